// Kernels without faults, which use what the runner has besides what csrc/cuda uses today.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt_tensor.h"

namespace fpfast::cuda {
namespace {

constexpr int rows = 16, columns = 8;

// d += a b: a [16, k], b [8, k] transposed, both copied to shared memory by one warp. Of two forms: a layout of the
// fragments of a that is right, and one with rows and columns swapped.
template <bool bf16, bool right>
__global__ void multiply_kernel(float* d, const void* a, const void* b) {
  extern __shared__ uint4 shared[];
  constexpr int chunks = 32;  // of a; half as many of b
  const int lane = int(threadIdx.x), group = lane / 4, in_group = lane % 4;
  copy_async(shared + lane, static_cast<const uint4*>(a) + lane);
  commit_async();
  if (lane < chunks / 2) copy_async(shared + chunks + lane, static_cast<const uint4*>(b) + lane);
  commit_async();
  wait_async<0>();
  __syncwarp();
  // A row is of 8 words of 32 bits, be they 8 tf32 or 16 bf16 values.
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(shared);
  const int low = right ? 0 : 4, high = 4 - low;
  const uint32_t fragment_a[4] = {words[group * 8 + in_group], words[(group + 8) * 8 + in_group + low],
                                  words[group * 8 + in_group + high], words[(group + 8) * 8 + in_group + 4]};
  const uint32_t* const words_b = words + chunks * 4;
  const uint32_t fragment_b[2] = {words_b[group * 8 + in_group], words_b[group * 8 + in_group + 4]};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(group + i / 2 * 8) * columns + in_group * 2 + i % 2];
  if (bf16)
    mma_bf16(sums, fragment_a, fragment_b);
  else
    mma_tf32(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * columns + in_group * 2 + i % 2] = sums[i];
}

// What each of two warps gets from the others, a row of 64 for each function.
__global__ void exchange_kernel(int* out, int* sum, float* sum_of_floats) {
  __shared__ int counted;
  const int k = int(threadIdx.x), n = int(blockDim.x);
  const unsigned all = 0xFFFFFFFFu, half = k % 32 < 16 ? 0xFFFFu : 0xFFFF0000u;
  if (k == 0) counted = 0;
  __syncthreads();
  atomicAdd(&counted, k);
  atomicAdd(sum, 1);
  atomicAdd(sum_of_floats, 0.5f);
  __syncthreads();
  const int row[] = {__shfl_sync(all, k, 5),         __shfl_sync(all, k, 9, 8),     __shfl_xor_sync(half, k, 3),
                     __shfl_up_sync(all, k, 2u, 16), __shfl_down_sync(all, k, 2u),  int(__ballot_sync(all, k % 3 == 0)),
                     __any_sync(all, k == 40),       __all_sync(half, k % 32 < 16), counted};
  for (int r = 0; r < 9; ++r) out[r * n + k] = row[r];
}

// Every 16-bit pattern, as a half and as a bfloat16, to float32 and back.
__global__ void convert_kernel(float* floats, unsigned short* back) {
  const int k = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(gridDim.x * blockDim.x);
  floats[k] = __half2float(__ushort_as_half(k));
  floats[n + k] = __bfloat162float(__ushort_as_bfloat16(k));
  back[k] = __half_as_ushort(__float2half(floats[n + k]));
  back[n + k] = __bfloat16_as_ushort(__float2bfloat16(floats[k]));
}

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), int blocks, int threads, size_t dynamic_bytes, Parameters... given) {
  void* arguments[] = {&given...};
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, dynamic_bytes);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace fpfast::cuda

using namespace fpfast::cuda;

extern "C" const char* simt_multiply(float* d, const void* a, const void* b, bool bf16, bool right) {
  auto* const kernel = bf16 ? (right ? multiply_kernel<true, true> : multiply_kernel<true, false>)
                            : (right ? multiply_kernel<false, true> : multiply_kernel<false, false>);
  return launch(kernel, 1, 32, 48 * 16, d, a, b);
}

extern "C" const char* simt_exchange(int* out, int* sum, float* sum_of_floats) {
  return launch(exchange_kernel, 2, 64, 0, out, sum, sum_of_floats);
}

extern "C" const char* simt_convert(float* floats, unsigned short* back) {
  return launch(convert_kernel, 256, 256, 0, floats, back);
}

// With so many bytes of dynamic shared memory, asked for beforehand or not.
extern "C" const char* simt_large(int bytes, bool asked, float* floats, unsigned short* back) {
  if (asked) cudaFuncSetAttribute(convert_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return launch(convert_kernel, 1, 1, bytes, floats, back);
}
