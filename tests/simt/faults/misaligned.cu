// Reads four floats at an address that only one needs.
#include <cuda_runtime.h>

namespace misaligned {
__global__ void kernel(float* out, int n) {
  const float4 wide = *reinterpret_cast<const float4*>(out + 1);  // fault
  if (threadIdx.x == 0 && n > 4) out[0] = wide.x + wide.y + wide.z + wide.w;
}
}  // namespace misaligned
