// A lane writes what another read before; a shuffle between orders nothing.
#include <cuda_runtime.h>

namespace race_of_lanes {
__global__ void kernel(float* out, int n) {
  __shared__ float values[64];
  const int k = int(threadIdx.x);
  values[k] = 1;
  __syncwarp();
  const float other = __shfl_xor_sync(0xFFFFFFFFu, values[k ^ 1], 1);
  values[k] = 2;  // fault
  if (k < n) out[k] = other;
}
}  // namespace race_of_lanes
