// One warp waits at a barrier, the other for ever at a vote of two lanes, one of which waits at the barrier.
#include <cuda_runtime.h>

namespace deadlock {
__global__ void kernel(float* out, int n) {
  if (threadIdx.x == 32) __any_sync(3u, 1);
  __syncthreads();  // fault
  if (int(threadIdx.x) < n) out[threadIdx.x] = 1;
}
}  // namespace deadlock
