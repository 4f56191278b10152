// The first thread reads the element before the buffer.
#include <cuda_runtime.h>

namespace out_of_bounds_read {
__global__ void kernel(float* out, int n) {
  const int k = int(threadIdx.x);
  if (k < n) out[k] = out[k - 1];  // fault
}
}  // namespace out_of_bounds_read
