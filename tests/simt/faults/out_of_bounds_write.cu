// The last thread writes one element behind the buffer.
#include <cuda_runtime.h>

namespace out_of_bounds_write {
__global__ void kernel(float* out, int n) {
  const int k = int(threadIdx.x) + 1;
  if (k <= n) out[k] = 1;  // fault
}
}  // namespace out_of_bounds_write
