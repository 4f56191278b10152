// Half of the lanes do not come to a shuffle that names all.
#include <cuda_runtime.h>

namespace missing_lane {
__global__ void kernel(float* out, int n) {
  float sum = 1;
  if (threadIdx.x % 32 < 16) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);  // fault
  if (int(threadIdx.x) < n) out[threadIdx.x] = sum;
}
}  // namespace missing_lane
