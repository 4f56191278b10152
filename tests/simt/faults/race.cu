// A warp may write what the other has read, or read what the other has written.
#include <cuda_runtime.h>

namespace race {
__global__ void kernel(float* out, int n) {
  __shared__ float values[64];
  const int k = int(threadIdx.x);
  values[k] = 0;
  __syncthreads();
  values[k] = 1;  // fault
  __syncwarp();
  if (k < n) out[k] = values[63 - k];
}
}  // namespace race
