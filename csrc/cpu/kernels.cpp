// Noise and linear combinations on the CPU. Compiled once for each level, with FPFAST_LEVEL naming the namespace.
#include <algorithm>

#include "jets.h"
#include "levels.h"
#include "noise_blocks.h"
#include "pairs.h"

namespace fpfast {
namespace FPFAST_LEVEL {
namespace {

float half_to_float(uint16_t h) {
  const uint32_t magnitude = h & 0x7FFFu;
  const float normal = Scalar::as_float((magnitude << 13) + 0x38000000u);  // exponent bias 15 -> 127
  const float subnormal = float(int32_t(magnitude)) * 0x1p-24f;
  const float special = Scalar::as_float((magnitude << 13) | 0x7F800000u);
  const float value = magnitude < 0x0400u ? subnormal : magnitude < 0x7C00u ? normal : special;
  return Scalar::as_float(Scalar::as_bits(value) | uint32_t(h & 0x8000u) << 16);
}

// n elements of an operand from `start`, as float32: in place where they are, else widened into `buffer`.
const float* widened(const void* operand, Dtype dtype, int64_t start, int64_t n, float* buffer) {
  if (dtype == Dtype::float32) return static_cast<const float*>(operand) + start;
  const uint16_t* narrow = static_cast<const uint16_t*>(operand) + start;
  if (dtype == Dtype::bfloat16)
    for (int64_t i = 0; i < n; ++i) buffer[i] = Scalar::as_float(uint32_t(narrow[i]) << 16);
  else
    for (int64_t i = 0; i < n; ++i) buffer[i] = half_to_float(narrow[i]);
  return buffer;
}

template <int operands, bool noisy>
void weighted_sum(float* out, const float* const* x, const float* z, const float* c, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float sum = c[0] * x[0][i];
    if constexpr (operands > 1) sum = sum + c[1] * x[1][i];
    if constexpr (operands > 2) sum = sum + c[2] * x[2][i];
    if constexpr (operands > 3) sum = sum + c[3] * x[3][i];
    if constexpr (noisy) sum = sum + c[4] * z[i];
    out[i] = sum;
  }
}

// Flat elements [start, stop), split at samples where each has coefficients of its own. z belongs to `start`.
template <int operands, bool noisy>
void combine_range(const Combine& op, const float* z, int64_t start, int64_t stop) {
  alignas(64) float buffer[operands][block_elements];
  const float* x[operands];
  for (int k = 0; k < operands; ++k) x[k] = widened(op.operand[k], op.dtype[k], start, stop - start, buffer[k]);
  for (int64_t from = start; from < stop;) {
    const int64_t sample = op.coef_per_sample ? from / op.elements : 0;
    const int64_t to = op.coef_per_sample ? std::min(stop, (sample + 1) * op.elements) : stop;
    const float* shifted[operands];
    for (int k = 0; k < operands; ++k) shifted[k] = x[k] + (from - start);
    const float* shifted_z = noisy ? z + (from - start) : nullptr;
    weighted_sum<operands, noisy>(op.out + from, shifted, shifted_z, op.coef + 5 * sample, to - from);
    from = to;
  }
}

template <int operands, bool noisy>
void combine_all(const Combine& op, int threads) {
  const int64_t total = op.samples * op.elements;
  const int64_t groups = groups_per_sample(op.elements);
  const int64_t units = noisy ? op.samples * groups : (total + 3) / 4;  // without noise samples do not matter
  const int64_t blocks = (units + block_groups - 1) / block_groups;
  const auto block = [&](int64_t b) {
    const int64_t q = b * block_groups, count = std::min(block_groups, units - q);
    alignas(64) float z[noisy ? block_elements : 1];
    if constexpr (noisy) {
      noise_block<Kind::normal>(z, op.noise, q, count, op.samples, op.elements);
      const int64_t stop = element_of(q + count, groups, op.elements);
      combine_range<operands, noisy>(op, z, element_of(q, groups, op.elements), stop);
    } else {
      combine_range<operands, noisy>(op, nullptr, 4 * q, std::min(total, 4 * (q + count)));
    }
  };
  if (total < serial_below) {  // a parallel region of one thread has its price too
    for (int64_t b = 0; b < blocks; ++b) block(b);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < blocks; ++b) block(b);
}

template <bool noisy>
void combine_noisy(const Combine& op, int threads) {
  switch (op.operands) {
    case 1: return combine_all<1, noisy>(op, threads);
    case 2: return combine_all<2, noisy>(op, threads);
    case 3: return combine_all<3, noisy>(op, threads);
    default: return combine_all<4, noisy>(op, threads);
  }
}

void combine(const Combine& given, int threads) {
  Combine op = given;
  if (op.samples == 0 || op.elements == 0) return;
  if (op.position != nullptr) {
    op.coef += op.step_stride * op.position[0];
    op.noise.draw = uint32_t(op.position[0]), op.noise.first_sample = uint64_t(op.position[1]);
  }
  op.noise.seeds ? combine_noisy<true>(op, threads) : combine_noisy<false>(op, threads);
}

template <Kind kind>
void noise_all(float* out, const Noise& noise, int64_t samples, int64_t elements, int threads) {
  const int64_t groups = groups_per_sample(elements), units = samples * groups;
  const int64_t blocks = (units + block_groups - 1) / block_groups;
#pragma omp parallel for num_threads(threads) schedule(static) if (samples * elements >= serial_below)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t q = b * block_groups;
    const int64_t count = std::min(block_groups, units - q);
    noise_block<kind>(out + element_of(q, groups, elements), noise, q, count, samples, elements);
  }
}

void noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, int threads) {
  if (samples == 0 || elements == 0) return;
  switch (kind) {
    case Kind::normal: return noise_all<Kind::normal>(out, noise, samples, elements, threads);
    case Kind::uniform: return noise_all<Kind::uniform>(out, noise, samples, elements, threads);
    case Kind::rademacher: return noise_all<Kind::rademacher>(out, noise, samples, elements, threads);
  }
}

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels = {combine, noise,     run_trajectory, run_residual,  pair,    defect,
                            product, probe_dot, probe_times,    rows_together, jet_rows};

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
