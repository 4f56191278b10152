// Writes behind the shared memory that the launch asked for.
#include <cuda_runtime.h>

namespace dynamic_overrun {
__global__ void kernel(float* out, int n) {
  extern __shared__ double more[];
  more[n / 2 + int(threadIdx.x)] = 1;  // fault
  out[0] = 1;
}
}  // namespace dynamic_overrun
