// Half of a warp asks for the values of the other half, which does not come.
#include <cuda_runtime.h>

namespace absent_source {
__global__ void kernel(float* out, int n) {
  float sum = 1;
  if (threadIdx.x < 16) sum += __shfl_xor_sync(0x0000FFFFu, sum, 16);  // fault
  if (int(threadIdx.x) < n) out[threadIdx.x] = sum;
}
}  // namespace absent_source
