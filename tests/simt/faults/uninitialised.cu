// The last element of a shared array is read and was not written.
#include <cuda_runtime.h>

namespace uninitialised {
__global__ void kernel(float* out, int n) {
  extern __shared__ float values[];
  const int k = int(threadIdx.x);
  if (k < n - 1) values[k] = 1;
  __syncthreads();
  if (k < n) out[k] = values[n - 1 - k];  // fault
}
}  // namespace uninitialised
