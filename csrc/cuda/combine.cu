// Noise and linear combinations on NVIDIA GPUs: one thread for each group of four elements of a sample.
#include "groups.h"

namespace fpfast::cuda {
namespace {

// Any operands, sizes and addresses.
__global__ void __launch_bounds__(threads_per_block, blocks_together) combine_kernel(Combine op) {
  const int64_t groups = (op.elements + 3) / 4, units = op.samples * groups;
  const int64_t stride = int64_t(gridDim.x) * threads_per_block;
  for (int64_t q = int64_t(blockIdx.x) * threads_per_block + threadIdx.x; q < units; q += stride) {
    const int64_t sample = q / groups, group = q % groups, left = op.elements - 4 * group;
    const int n = left < 4 ? int(left) : 4;
    const int64_t at = sample * op.elements + 4 * group;
    const float* c = op.coef + (op.coef_per_sample ? 5 * sample : 0);
    float sum[4] = {}, v[4] = {};
    for (int k = 0; k < max_operands; ++k) {
      if (k >= op.operands) break;
      load(v, op.operand[k], op.dtype[k], at, n);
      for (int e = 0; e < 4; ++e) sum[e] = k == 0 ? c[k] * v[e] : sum[e] + c[k] * v[e];
    }
    if (op.noise.seeds != nullptr) {
      four_values<Kind::normal>(v, op.noise, sample, uint32_t(group));
      for (int e = 0; e < 4; ++e) sum[e] = sum[e] + c[4] * v[e];
    }
    store(op.out + at, sum, n);
  }
}

struct None {
  __device__ explicit None(const Noise&) {}
};

// A seed's keys for all rounds, worked out once for all of a thread's groups.
struct Keys {
  Words<Scalar> first;  // counter of the first sample
  uint32_t k0[philox_rounds], k1[philox_rounds];

  __device__ explicit Keys(const Noise& noise) : first(counter(noise, noise.first_sample, 0)) {
    const uint64_t seed = *noise.seeds;
    for (int round = 0; round < philox_rounds; ++round) {
      k0[round] = uint32_t(seed) + round * philox_step0;
      k1[round] = uint32_t(seed >> 32) + round * philox_step1;
      asm("" : "+r"(k0[round]));  // else the compiler adds it up again for each group
    }
  }

  __device__ Words<Scalar> words(uint32_t sample, uint32_t group) const {
    Words<Scalar> c = first;
    c.w0 = group, c.w1 += sample;
    for (int round = 0; round < philox_rounds; ++round) c = philox_round<Scalar>(c, k0[round], k1[round]);
    return c;
  }
};

// What a plain call's threads need beside it.
struct Work {
  uint32_t units, stride;  // groups in all, and from a thread's group to its next
  Divisor groups;          // in a sample
};

// What nearly all calls are: see is_plain.
template <int operands, bool noisy, bool single>
__global__ void __launch_bounds__(threads_per_block, blocks_together) plain_kernel(Combine op, Work work) {
  float c[operands], cz = 0;
  for (int k = 0; k < operands; ++k) c[k] = op.coef[k];
  if constexpr (noisy) cz = op.coef[4];
  const std::conditional_t<noisy, Keys, None> keys(op.noise);
  for (uint32_t q = blockIdx.x * threads_per_block + threadIdx.x; q < work.units; q += work.stride) {
    const int64_t at = 4 * int64_t(q);
    float sum[4] = {};
    for (int k = 0; k < operands; ++k) {
      float v[4];
      load<true>(v, op.operand[k], single ? Dtype::float32 : op.dtype[k], at, 4);
      for (int e = 0; e < 4; ++e) sum[e] = k == 0 ? c[k] * v[e] : sum[e] + c[k] * v[e];
    }
    if constexpr (noisy) {
      const uint32_t sample = work.groups.quotient(q), group = work.groups.remainder(q, sample);
      float z[4];
      four_values<Kind::normal>(z, keys.words(sample, group));
      for (int e = 0; e < 4; ++e) sum[e] = sum[e] + cz * z[e];
    }
    store<true>(op.out + at, sum, 4);
  }
}

bool aligned(const void* address, size_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

bool single(const Combine& op) {
  return std::all_of(op.dtype, op.dtype + op.operands, [](Dtype one) { return one == Dtype::float32; });
}

// If a call is plain: samples are two whole groups or more, 32 bits count all groups, addresses are aligned, and all
// samples have the same coefficients, seed, and upper half of their numbers.
bool is_plain(const Combine& op, int64_t units) {
  bool plain = op.elements % 4 == 0 && op.elements > 4 && units < Divisor::most && aligned(op.out, 16);
  for (int k = 0; k < op.operands; ++k) plain &= aligned(op.operand[k], op.dtype[k] == Dtype::float32 ? 16 : 8);
  const uint64_t first = op.noise.first_sample, last = first + uint64_t(op.samples - 1);
  return plain && !op.coef_per_sample && !op.noise.per_sample && first >> 32 == last >> 32;
}

template <int operands>
const char* run_plain(const Combine& op, uint32_t units, void* stream) {
  const int blocks = blocks_for(units);
  const Work work = {units, uint32_t(blocks * threads_per_block), Divisor(uint32_t(op.elements / 4))};
  const auto kernel = op.noise.seeds
                          ? (single(op) ? plain_kernel<operands, true, true> : plain_kernel<operands, true, false>)
                          : (single(op) ? plain_kernel<operands, false, true> : plain_kernel<operands, false, false>);
  return launch(kernel, blocks, threads_per_block, 0, stream, op, work);
}

template <Kind kind>
__global__ void __launch_bounds__(threads_per_block)
    noise_kernel(float* out, Noise noise, int64_t samples, int64_t elements) {
  const int64_t groups = (elements + 3) / 4, units = samples * groups;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t q = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; q < units; q += stride) {
    const int64_t sample = q / groups, group = q % groups, left = elements - 4 * group;
    float z[4];
    four_values<kind>(z, noise, sample, uint32_t(group));
    store(out + sample * elements + 4 * group, z, left < 4 ? int(left) : 4);
  }
}

}  // namespace

const char* combine(const Combine& op, void* stream) {
  if (op.samples == 0 || op.elements == 0) return nullptr;
  const int64_t units = op.samples * ((op.elements + 3) / 4);
  if (!is_plain(op, units)) return launch(combine_kernel, blocks_for(units), threads_per_block, 0, stream, op);
  switch (op.operands) {
    case 1: return run_plain<1>(op, uint32_t(units), stream);
    case 2: return run_plain<2>(op, uint32_t(units), stream);
    case 3: return run_plain<3>(op, uint32_t(units), stream);
    default: return run_plain<4>(op, uint32_t(units), stream);
  }
}

const char* noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, void* stream) {
  if (samples == 0 || elements == 0) return nullptr;
  const int blocks = blocks_for(samples * ((elements + 3) / 4));
  return by_kind(kind, [&](auto one) {
    return launch(noise_kernel<decltype(one)::value>, blocks, threads_per_block, 0, stream, out, noise, samples,
                  elements);
  });
}

}  // namespace fpfast::cuda
