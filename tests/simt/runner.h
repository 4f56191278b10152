// Runs CUDA kernels, compiled by g++, on one thread of the CPU, and finds their faults.
//
// Each thread of a block is a fiber, which runs until it waits for others or ends; the blocks run one after another. If
// no thread can go on and not all have ended, one that others wait for is missing.
//
// Accesses to memory are found by one of two builds.
//
//   checked     -fsanitize=thread makes g++ call __tsan_read4 and the like before every access. The functions in
//               hooks.cpp stand in for the sanitizer's own and ask memory.cpp, which knows the buffers that the host
//               registered to the byte, and of each byte of shared memory who wrote and read it, and when.
//               An access at fault is not made, so buffers need no guard pages.
//   sanitized   AddressSanitizer and UBSan; buffers are blocks of its heap. It also sees what is behind local arrays.
//
// A launch ends at its first fault. Then cudaLaunchKernel fails, and cudaGetErrorString describes the fault.
#pragma once
#include "cuda_runtime.h"

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool checked = false;
#else
constexpr bool checked = true;
#endif

constexpr size_t most_dynamic = 227 << 10;  // bytes of shared memory

// Of the thread that runs in its block; -1 on the host.
int thread_index();

enum class Access { read, write, atomic };

// An access that the thread that runs is about to make. It may be the last thing the thread does.
void check(const void* address, size_t bytes, Access access, const void* caller);

// What orders accesses to shared memory: a block begins, its threads have met at a barrier, the lanes of a warp have.
void begin_block(size_t dynamic_bytes);
void block_met();
void warp_met(int of_warp);

bool is_shared(const void* address, size_t bytes);

// Whether a copy is under way to bytes of shared memory.
void expect(void* shared, size_t bytes, bool expected);

// The copies of a block that has ended.
void forget_copies();

}  // namespace simt
