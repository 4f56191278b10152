// Host definitions of what csrc/cuda/tensor.h has as PTX: multiplications of matrices by a warp, and copies to shared
// memory that go on beside the thread's other work.
#pragma once
#include "cuda_bf16.h"
#include "cuda_runtime.h"

namespace simt {
void wait_for_copies(int groups_left, const void* caller);
}

namespace fpfast::cuda {

// d += a b by the 32 lanes of a warp, whose fragments lie as PTX says of mma.sync.aligned.m16n8k8.row.col and of
// m16n8k16. Products and sums are float32's; of a tf32 operand the lower 13 bits do not count.
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Two numbers rounded to bfloat16, to nearest, ties to even; the first in the lower half.
inline uint32_t two_bf16(float first, float second) {
  return uint32_t(__bfloat16_as_ushort(__float2bfloat16(first))) |
         uint32_t(__bfloat16_as_ushort(__float2bfloat16(second))) << 16;
}

// Copies 16 bytes; they arrive when the thread has waited for the group that the copy was committed with. Until then
// the shared memory holds NaNs.
void copy_async(void* shared, const void* global);
void commit_async();

// Until no more than the last n groups are under way.
template <int n>
__attribute__((noinline)) void wait_async() {
  simt::wait_for_copies(n, __builtin_return_address(0));
}

}  // namespace fpfast::cuda
