// Noise and linear combinations on NVIDIA GPUs: one thread for each group of four elements of a sample.
#include "groups.h"

namespace fpfast::cuda {
namespace {

// A call's coefficients and noise, from memory where the call has a position.
struct Numbers {
  const float* coef;
  Noise noise;

  __device__ explicit Numbers(const Combine& op) : coef(op.coef), noise(op.noise) {
    if (op.position == nullptr) return;
    coef += op.step_stride * int32_t(op.position[0]);
    noise.draw = uint32_t(op.position[0]), noise.first_sample = uint64_t(op.position[1]);
  }
};

// Any operands, sizes and addresses.
__global__ void __launch_bounds__(threads_per_block, blocks_of_small) combine_kernel(Combine op) {
  const int64_t groups = (op.elements + 3) / 4, units = op.samples * groups;
  const int64_t stride = int64_t(gridDim.x) * threads_per_block;
  const Numbers numbers(op);
  for (int64_t q = int64_t(blockIdx.x) * threads_per_block + threadIdx.x; q < units; q += stride) {
    const int64_t sample = q / groups, group = q % groups, left = op.elements - 4 * group;
    const int n = left < 4 ? int(left) : 4;
    const int64_t at = sample * op.elements + 4 * group;
    const float* c = numbers.coef + (op.coef_per_sample ? 5 * sample : 0);
    float sum[4] = {}, v[4] = {};
    FPFAST_UNROLL
    for (int k = 0; k < max_operands; ++k) {
      if (k >= op.operands) break;
      load(v, op.operand[k], op.dtype[k], at, n);
      for (int e = 0; e < 4; ++e) sum[e] = k == 0 ? c[k] * v[e] : sum[e] + c[k] * v[e];
    }
    if (op.noise.seeds != nullptr) {
      four_values<Kind::normal>(v, numbers.noise, sample, uint32_t(group));
      for (int e = 0; e < 4; ++e) sum[e] = sum[e] + c[4] * v[e];
    }
    store(op.out + at, sum, n);
  }
}

struct None {
  __device__ explicit None(const Noise&) {}
};

// A seed's keys for all rounds, worked out once for all of a thread's groups. The counter's third and fourth word are
// the same for these too: the keys of the first two rounds hold what comes of them, and the words themselves are 0.
struct Keys {
  uint32_t first;  // the first sample's lower bits
  uint32_t k0[philox_rounds], k1[philox_rounds];

  __device__ explicit Keys(const Noise& noise) : first(uint32_t(noise.first_sample)) {
    const uint64_t seed = *noise.seeds;
    for (int round = 0; round < philox_rounds; ++round) {
      k0[round] = uint32_t(seed) + round * philox_step0;
      k1[round] = uint32_t(seed >> 32) + round * philox_step1;
      asm("" : "+r"(k0[round]), "+r"(k1[round]));  // else the compiler adds them up again for each group
    }
    Words<Scalar> alike = counter(noise, noise.first_sample, 0);
    alike.w1 = 0;
    alike = philox_round<Scalar>(alike, k0[0], k1[0]);
    k0[0] = alike.w0, k0[1] ^= alike.w1, k1[0] = alike.w2;
  }

  __device__ Words<Scalar> words(uint32_t sample, uint32_t group) const {
    const Scalar::Product p = Scalar::product(philox_multiplier0, group);  // the first round, without words of 0
    Words<Scalar> c = {(first + sample) ^ k0[0], 0, Scalar::high(p) ^ k1[0], Scalar::low(p)};
    for (int round = 1; round < philox_rounds; ++round) c = philox_round<Scalar>(c, k0[round], k1[round]);
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
__global__ void __launch_bounds__(threads_per_block, operands > 2 && single ? blocks_together : blocks_of_small)
    plain_kernel(Combine op, Work work) {
  const Numbers numbers(op);
  float c[operands], cz = 0;
  for (int k = 0; k < operands; ++k) c[k] = numbers.coef[k];
  if constexpr (noisy) cz = numbers.coef[4];
  const std::conditional_t<noisy, Keys, None> keys(numbers.noise);
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
