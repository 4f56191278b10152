// Writes behind a shared array, where the array of another kernel may lie.
#include <cuda_runtime.h>

namespace static_overrun {
__global__ void kernel(float* out, int n) {
  __shared__ float values[32];
  values[threadIdx.x] = 1;  // fault
  if (n < 0) out[0] = values[0];
}
}  // namespace static_overrun
