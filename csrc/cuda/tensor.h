// Tensor cores, and copies to shared memory that arrive later: one wrapper for each PTX instruction.
//
// Products of matrices come in the fragments of mma.m16n8k8 (PTX ISA, "Matrix Fragments for mma.m16n8k8"): of lane
// 4 g + q, A holds rows g and g + 8 and columns q and q + 4, B holds rows q and q + 4 and column g, and the sums rows g
// and g + 8 and columns 2 q and 2 q + 1.
#pragma once
#include <cstdint>

#if !defined(__CUDACC__)
#include "simt_tensor.h"  // on the include path of whoever compiles kernels for a processor
#else

namespace fpfast::cuda {

// sums += a b, over 8 columns of a; of each number's 24 bits the upper 11 count.
__device__ inline void mma_tf32(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same in m16n8k16: two neighbouring columns of a, or rows of b, are in one register, 2 q and 2 q + 1 and those 8
// on.
__device__ inline void mma_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers rounded to bfloat16, the first in the lower half.
__device__ inline uint32_t two_bf16(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

// 16 bytes, aligned.
__device__ inline void copy_async(void* shared, const void* global) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// The thread's copies since the last call are a group.
__device__ inline void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the thread's last n groups are there.
template <int n>
__device__ inline void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

}  // namespace fpfast::cuda

#endif
