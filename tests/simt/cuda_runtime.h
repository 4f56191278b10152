// Stands in for CUDA's header of this name, so that g++ compiles a .cu file unchanged and the CPU runs its kernels.
// It has what such files use of the language and of the runtime, and no more. runner.h says how it works.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// All of a library's shared arrays then lie together in its thread-local block, those of templates too. Blocks run one
// by one on one thread of the system, so a block finds its own values there.
#define __shared__ thread_local

#define SIMT_VECTOR2(T, name)          \
  struct alignas(2 * sizeof(T)) name { \
    T x, y;                            \
  };                                   \
  inline name make_##name(T x, T y) { return {x, y}; }
#define SIMT_VECTOR4(T, name)                               \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name { \
    T x, y, z, w;                                           \
  };                                                        \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR2(float, float2)
SIMT_VECTOR4(float, float4)
SIMT_VECTOR2(double, double2)
SIMT_VECTOR2(int, int2)
SIMT_VECTOR4(int, int4)
SIMT_VECTOR2(unsigned int, uint2)
SIMT_VECTOR4(unsigned int, uint4)
SIMT_VECTOR2(unsigned short, ushort2)
SIMT_VECTOR4(unsigned short, ushort4)

struct uint3 {
  unsigned int x, y, z;
};

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
using cudaStream_t = struct CUstream_st*;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device);

namespace simt {

struct Place {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Place place;  // of the thread that runs

struct Launch {
  void (*kernel)();
  void (*call)(void (*kernel)(), void** arguments);
  void** arguments;
  dim3 blocks, threads;
  size_t dynamic_bytes;
};
cudaError_t launch(const Launch& launch);
cudaError_t allow_dynamic_bytes(void (*kernel)(), int bytes);

constexpr int warp = 32;
int lane();  // of the thread that runs

// Ends the launch, with `text`, said of the thread that runs. `caller` is an address in the kernel's code.
[[noreturn]] void fail(const char* text, const void* caller);

// The lanes of `mask` meet at `what`. The last to come calls `act` with what each brought: null of those not in `mask`.
void meet(const char* what, unsigned mask, void* mine, void (*act)(void* const* lanes), const void* caller);

// Not instrumented, as it reads the arguments from the memory of the host.
template <class... Parameters, size_t... k>
__attribute__((no_sanitize_thread)) void call_with(void (*kernel)(), void** arguments, std::index_sequence<k...>) {
  reinterpret_cast<void (*)(Parameters...)>(kernel)(*static_cast<Parameters*>(arguments[k])...);
}

template <class... Parameters>
__attribute__((no_sanitize_thread)) void call(void (*kernel)(), void** arguments) {
  call_with<Parameters...>(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

template <class T>
struct Exchange {
  T value, got;
  int source;  // lane whose value this one gets
};

template <class T>
T exchange(const char* what, unsigned mask, T value, int source, const void* caller) {
  Exchange<T> mine = {value, value, source};
  meet(
      what, mask, &mine,
      [](void* const* lanes) {
        for (int k = 0; k < warp; ++k) {
          auto* const to = static_cast<Exchange<T>*>(lanes[k]);
          if (to && lanes[to->source]) to->got = static_cast<Exchange<T>*>(lanes[to->source])->value;
        }
      },
      caller);
  if (!(mask >> source & 1)) fail("takes a value from a lane that is not in the mask of the shuffle", caller);
  return mine.got;
}

unsigned ballot(const char* what, unsigned mask, bool vote, const void* caller);

}  // namespace simt

#define threadIdx simt::place.thread
#define blockIdx simt::place.block
#define blockDim simt::place.threads
#define gridDim simt::place.blocks

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, void** arguments,
                             size_t dynamic_bytes = 0, cudaStream_t = nullptr) {
  return simt::launch(
      {reinterpret_cast<void (*)()>(kernel), simt::call<Parameters...>, arguments, blocks, threads, dynamic_bytes});
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return simt::allow_dynamic_bytes(reinterpret_cast<void (*)()>(kernel), bytes);
}

// The device's functions are not inlined, so that their return address says where in the kernel they are called.
#define SIMT_FUNCTION \
  template <class T>  \
  __attribute__((noinline))

void __syncthreads();
void __syncwarp(unsigned mask = 0xFFFFFFFFu);

SIMT_FUNCTION T __shfl_sync(unsigned mask, T value, int source, int width = simt::warp) {
  const int first = simt::lane() & ~(width - 1);
  return simt::exchange("__shfl_sync", mask, value, first + (source & (width - 1)), __builtin_return_address(0));
}

SIMT_FUNCTION T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = simt::warp) {
  const int lane = simt::lane(), source = lane ^ flipped;
  return simt::exchange("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source,
                        __builtin_return_address(0));
}

SIMT_FUNCTION T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = simt::warp) {
  const int lane = simt::lane(), source = lane - int(by);
  return simt::exchange("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source,
                        __builtin_return_address(0));
}

SIMT_FUNCTION T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = simt::warp) {
  const int lane = simt::lane(), source = lane + int(by);
  return simt::exchange("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source,
                        __builtin_return_address(0));
}

unsigned __ballot_sync(unsigned mask, int vote);
int __any_sync(unsigned mask, int vote);
int __all_sync(unsigned mask, int vote);

float atomicAdd(float* to, float value);
double atomicAdd(double* to, double value);
int atomicAdd(int* to, int value);
unsigned int atomicAdd(unsigned int* to, unsigned int value);

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class To, class From>
To simt_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned long long)(a)*b >> 32; }
inline unsigned int __float_as_uint(float value) { return simt_bits<unsigned int>(value); }
inline float __uint_as_float(unsigned int bits) { return simt_bits<float>(bits); }
inline int __float_as_int(float value) { return simt_bits<int>(value); }
inline float __int_as_float(int bits) { return simt_bits<float>(bits); }
