// Noise and linear combinations on the CPU. Compiled once for each level, with FPFAST_LEVEL naming the namespace.
//
// A sample's elements come in groups of four, one Philox call each. The groups of all samples are numbered in a row and
// handled in blocks; a block covers a contiguous range of elements, also where a sample's last group is short.
#include <algorithm>

#include "jets.h"
#include "levels.h"
#include "noise.h"

namespace fpfast {
namespace FPFAST_LEVEL {
namespace {

constexpr int64_t block_groups = 8 * lanes;
constexpr int64_t block_elements = 4 * block_groups;
constexpr int64_t serial_below = 1 << 14;  // elements: a parallel region costs about as much as these
// Vectors whose words, and whose values, are made side by side: what registers hold.
constexpr int words_together = lanes == 16 ? 4 : 2, values_together = 2;

int64_t groups_per_sample(int64_t elements) { return (elements + 3) / 4; }

// First flat element of flat group q.
int64_t element_of(int64_t q, int64_t groups, int64_t elements) {
  return q / groups * elements + std::min(q % groups * 4, elements);
}

// Noise of the flat groups [q, q + block_groups), four values each, into z. First all words, then all values: each
// half's chain of dependent operations is short enough for the processor to run several of them at a time.
template <Kind kind, bool seed_per_sample>
void whole_groups(float* z, const Noise& noise, int64_t q, int64_t groups, int64_t last_sample) {
  alignas(64) uint32_t words[4][block_groups];
  Walk walk(groups, q);
  for (int64_t at = 0; at < block_groups; at += lanes * words_together) {
    Place place[words_together];
    for (Place& one : place) one = walk.next();
    const auto made = noise_words<words_together, seed_per_sample>(place, noise, last_sample);
    for (int r = 0; r < 4; ++r)
      for (int v = 0; v < words_together; ++v) store(&words[r][at + v * lanes], made.words[r].v[v]);
  }
  constexpr int N = values_together;
  for (int64_t at = 0; at < block_groups; at += lanes * N) {
    Pack<uint32_t, 2 * N> first, second;  // words 0 and 2, words 1 and 3
    for (int v = 0; v < N; ++v) {
      first.v[v] = load(&words[0][at + v * lanes]), first.v[N + v] = load(&words[2][at + v * lanes]);
      second.v[v] = load(&words[1][at + v * lanes]), second.v[N + v] = load(&words[3][at + v * lanes]);
    }
    auto values = two_values<kind, 2 * N>(first, second);
    for (int v = 0; v < N; ++v) {
      transpose_blocks(values.a.v[v], values.b.v[v], values.a.v[N + v], values.b.v[N + v]);
      float* const out = z + 4 * (at + v * lanes);
      store(out, values.a.v[v]), store(out + lanes, values.b.v[v]);
      store(out + 2 * lanes, values.a.v[N + v]), store(out + 3 * lanes, values.b.v[N + v]);
    }
  }
}

// Noise of flat groups [q, q + count) into z, element by element. A whole block is written as it is made.
template <Kind kind>
void noise_block(float* z, const Noise& noise, int64_t q, int64_t count, int64_t samples, int64_t elements) {
  const int64_t groups = groups_per_sample(elements);
  const auto fill = noise.per_sample ? whole_groups<kind, true> : whole_groups<kind, false>;
  if (count == block_groups && elements % 4 == 0) return fill(z, noise, q, groups, samples - 1);
  alignas(64) float raw[block_elements];
  fill(raw, noise, q, groups, samples - 1);
  for (int64_t i = 0, group = q % groups; i < count; ++i) {
    const int64_t n = std::min<int64_t>(4, elements - 4 * group);
    for (int64_t k = 0; k < n; ++k) *z++ = raw[4 * i + k];
    if (++group == groups) group = 0;
  }
}

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
#pragma omp parallel for num_threads(threads) schedule(static) if (total >= serial_below)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t q = b * block_groups, count = std::min(block_groups, units - q);
    alignas(64) float z[noisy ? block_elements : 1];
    if constexpr (noisy) {
      noise_block<Kind::normal>(z, op.noise, q, count, op.samples, op.elements);
      const int64_t stop = element_of(q + count, groups, op.elements);
      combine_range<operands, noisy>(op, z, element_of(q, groups, op.elements), stop);
    } else {
      combine_range<operands, noisy>(op, nullptr, 4 * q, std::min(total, 4 * (q + count)));
    }
  }
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

void combine(const Combine& op, int threads) {
  if (op.samples == 0 || op.elements == 0) return;
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
const CpuKernels kernels = {combine, noise, run_trajectory, run_residual, rows_together, jet_rows};

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
