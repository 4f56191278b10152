// Noise and linear combinations on NVIDIA GPUs: one thread for each group of four elements of a sample.
#include "groups.h"

namespace fpfast::cuda {
namespace {

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

}  // namespace

const char* combine(const Combine& op, void* stream) {
  if (op.samples == 0 || op.elements == 0) return nullptr;
  return launch(combine_kernel, blocks_for(op.samples * ((op.elements + 3) / 4)), stream, op);
}

const char* noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, void* stream) {
  if (samples == 0 || elements == 0) return nullptr;
  const int blocks = blocks_for(samples * ((elements + 3) / 4));
  return by_kind(kind, [&](auto one) {
    return launch(noise_kernel<decltype(one)::value>, blocks, stream, out, noise, samples, elements);
  });
}

}  // namespace fpfast::cuda
