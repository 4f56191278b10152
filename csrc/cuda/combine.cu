// Noise and linear combinations on NVIDIA GPUs: one thread for each group of four elements of a sample, that is for
// each Philox call. Compiled with -fmad=false, so results are those of the CPU kernels and of the reference, bit for
// bit.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "../math/normal.h"
#include "launch.h"

namespace fpfast::cuda {
namespace {

constexpr int threads_per_block = 256;
constexpr int64_t most_blocks = int64_t(1) << 20;  // beyond it a thread takes several groups

template <Kind kind>
__device__ void four_values(float (&z)[4], const Noise& noise, int64_t sample, uint32_t group) {
  const uint64_t seed = noise.seeds[noise.per_sample ? sample : 0];
  const uint64_t index = noise.per_sample ? 0 : noise.first_sample + uint64_t(sample);
  const Words<Scalar> counter = {group, uint32_t(index), uint32_t(sample_high(index, noise.stream)), noise.draw};
  const Words<Scalar> w = philox<Scalar>(counter, uint32_t(seed), uint32_t(seed >> 32));
  if constexpr (kind == Kind::normal) {
    const auto p = normal_pair<Scalar>(w.w0, w.w1), q = normal_pair<Scalar>(w.w2, w.w3);
    z[0] = p.a, z[1] = p.b, z[2] = q.a, z[3] = q.b;
  } else {
    const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
    for (int k = 0; k < 4; ++k)
      z[k] = kind == Kind::uniform ? uniform_value<Scalar>(words[k]) : rademacher_value<Scalar>(words[k]);
  }
}

// Elements at, at + 1 .. at + n - 1 (n <= 4) of an operand; one wide load where the address allows it.
__device__ void load(float (&v)[4], const void* operand, Dtype dtype, int64_t at, int n) {
  if (dtype == Dtype::float32) {
    const float* p = static_cast<const float*>(operand) + at;
    if (n == 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
      const float4 wide = *reinterpret_cast<const float4*>(p);
      v[0] = wide.x, v[1] = wide.y, v[2] = wide.z, v[3] = wide.w;
    } else {
      for (int k = 0; k < 4; ++k)
        if (k < n) v[k] = p[k];
    }
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(operand) + at;
  uint16_t narrow[4] = {};
  if (n == 4 && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
    const ushort4 wide = *reinterpret_cast<const ushort4*>(p);
    narrow[0] = wide.x, narrow[1] = wide.y, narrow[2] = wide.z, narrow[3] = wide.w;
  } else {
    for (int k = 0; k < 4; ++k)
      if (k < n) narrow[k] = p[k];
  }
  for (int k = 0; k < 4; ++k)
    v[k] = dtype == Dtype::bfloat16 ? Scalar::as_float(uint32_t(narrow[k]) << 16)
                                    : __half2float(__ushort_as_half(narrow[k]));
}

__device__ void store(float* out, const float (&v)[4], int n) {
  if (n == 4 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
    *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    for (int k = 0; k < 4; ++k)
      if (k < n) out[k] = v[k];
  }
}

__global__ void __launch_bounds__(threads_per_block) combine_kernel(Combine op) {
  const int64_t groups = (op.elements + 3) / 4, units = op.samples * groups;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t q = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; q < units; q += stride) {
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

int blocks_for(int64_t samples, int64_t elements) {
  const int64_t units = samples * ((elements + 3) / 4);
  return int(std::min(most_blocks, (units + threads_per_block - 1) / threads_per_block));
}

const char* launch_result() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* combine(const Combine& op, void* stream) {
  if (op.samples == 0 || op.elements == 0) return nullptr;
  const int blocks = blocks_for(op.samples, op.elements);
  combine_kernel<<<blocks, threads_per_block, 0, static_cast<cudaStream_t>(stream)>>>(op);
  return launch_result();
}

const char* noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, void* stream) {
  if (samples == 0 || elements == 0) return nullptr;
  const int blocks = blocks_for(samples, elements);
  const auto kernel = kind == Kind::normal    ? noise_kernel<Kind::normal>
                      : kind == Kind::uniform ? noise_kernel<Kind::uniform>
                                              : noise_kernel<Kind::rademacher>;
  kernel<<<blocks, threads_per_block, 0, static_cast<cudaStream_t>(stream)>>>(out, noise, samples, elements);
  return launch_result();
}

}  // namespace fpfast::cuda
