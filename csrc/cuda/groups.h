// What the CUDA kernels share: launches, and a thread's group of four elements of a sample, that is of one Philox call.
// Compiled with -fmad=false, so that the bits are those of the CPU kernels and of the reference.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../math/normal.h"
#include "launch.h"

namespace fpfast::cuda {

constexpr int threads_per_block = 256;
constexpr int blocks_together = 6;  // on a multiprocessor: so no kernel takes more than 40 registers
#if __CUDA_ARCH__ >= 1200
constexpr int blocks_of_small = 6;  // a multiprocessor has no more threads
#else
constexpr int blocks_of_small = 8;  // of kernels that need no more than 32
#endif
constexpr int64_t most_blocks = int64_t(1) << 14;  // beyond it a thread takes several groups

inline int blocks_for(int64_t units) {
  return int(std::min(most_blocks, (units + threads_per_block - 1) / threads_per_block));
}

// f(an integral constant of the kind).
template <class F>
const char* by_kind(Kind kind, const F& f) {
  switch (kind) {
    case Kind::normal: return f(std::integral_constant<Kind, Kind::normal>{});
    case Kind::uniform: return f(std::integral_constant<Kind, Kind::uniform>{});
    default: return f(std::integral_constant<Kind, Kind::rademacher>{});
  }
}

// Divides numbers below 2^31 by a multiplication: with 2^s <= number < 2^(s + 1), q / number is the floor of
// q m / 2^(32 + s) for m the least whole number above 2^(32 + s) / number (Granlund & Montgomery, "Division by
// invariant integers using multiplication", 1994); of a power of two m is 2^31, and s one less.
struct Divisor {
  static constexpr int64_t most = int64_t(1) << 31;
  uint32_t multiplier = uint32_t(1) << 31, shift = 0, minus;

  explicit Divisor(uint32_t number) : minus(0 - number) {  // 2 to 2^31 - 1
    while ((number >> shift) > 1) ++shift;
    if ((number & (number - 1)) == 0)
      --shift;
    else
      multiplier = uint32_t((uint64_t(1) << (32 + shift)) / number + 1);
  }
  __device__ uint32_t quotient(uint32_t q) const { return __umulhi(q, multiplier) >> shift; }
  __device__ uint32_t remainder(uint32_t q, uint32_t quotient) const { return q + quotient * minus; }
};

// Of the current device.
inline cudaError_t attribute(cudaDeviceAttr which, int& value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&value, which, device) : error;
}

// Null, or what CUDA says is wrong.
inline const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// By the call behind <<<>>>, which any C++ compiler reads.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int blocks, int threads, int64_t shared_bytes, void* stream,
                   const Arguments&... arguments) {
  std::tuple<Parameters...> given(arguments...);
  if (shared_bytes > 0) {  // the most there is, as the setting is one for all threads of the host
    int most = 0;
    cudaError_t error = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, most);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return text_of(error);
  }
  return text_of(std::apply(
      [&](auto&... each) {
        void* addresses[] = {&each...};
        return cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), addresses, size_t(shared_bytes),
                                static_cast<cudaStream_t>(stream));
      },
      given));
}

__device__ inline Words<Scalar> counter(const Noise& noise, uint64_t number, uint32_t group) {
  return {group, uint32_t(number), uint32_t(sample_high(number, noise.stream)), noise.draw};
}

template <Kind kind>
__device__ inline void four_values(float (&z)[4], const Words<Scalar>& w) {
  if constexpr (kind == Kind::normal) {
    const auto p = normal_pair<Scalar>(w.w0, w.w1), q = normal_pair<Scalar>(w.w2, w.w3);
    z[0] = p.a, z[1] = p.b, z[2] = q.a, z[3] = q.b;
  } else {
    const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
    for (int k = 0; k < 4; ++k)
      z[k] = kind == Kind::uniform ? uniform_value<Scalar>(words[k]) : rademacher_value<Scalar>(words[k]);
  }
}

template <Kind kind>
__device__ inline void four_values(float (&z)[4], const Noise& noise, int64_t sample, uint32_t group) {
  const uint64_t seed = noise.seeds[noise.per_sample ? sample : 0];
  const uint64_t number = noise.per_sample ? 0 : noise.first_sample + uint64_t(sample);
  four_values<kind>(z, philox<Scalar>(counter(noise, number, group), uint32_t(seed), uint32_t(seed >> 32)));
}

// Elements at, at + 1 .. at + n - 1 (n <= 4) of an operand; one wide load where the address allows it, as it does where
// `whole` says that there are four and the address is aligned.
template <bool whole = false>
__device__ inline void load(float (&v)[4], const void* operand, Dtype dtype, int64_t at, int n) {
  if (dtype == Dtype::float32) {
    const float* p = static_cast<const float*>(operand) + at;
    if (whole || (n == 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0)) {
      const float4 wide = *reinterpret_cast<const float4*>(p);
      v[0] = wide.x, v[1] = wide.y, v[2] = wide.z, v[3] = wide.w;
    } else {
      for (int k = 0; k < 4; ++k)
        if (k < n) v[k] = p[k];
    }
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(operand) + at;
  uint16_t narrow[4] = {};
  if (whole || (n == 4 && reinterpret_cast<uintptr_t>(p) % 8 == 0)) {
    const ushort4 wide = *reinterpret_cast<const ushort4*>(p);
    narrow[0] = wide.x, narrow[1] = wide.y, narrow[2] = wide.z, narrow[3] = wide.w;
  } else {
    for (int k = 0; k < 4; ++k)
      if (k < n) narrow[k] = p[k];
  }
  for (int k = 0; k < 4; ++k)
    v[k] = dtype == Dtype::bfloat16 ? Scalar::as_float(uint32_t(narrow[k]) << 16)
                                    : __half2float(__ushort_as_half(narrow[k]));
}

template <bool whole = false>
__device__ inline void store(float* out, const float (&v)[4], int n) {
  if (whole || (n == 4 && reinterpret_cast<uintptr_t>(out) % 16 == 0)) {
    *reinterpret_cast<float4*>(out) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    for (int k = 0; k < 4; ++k)
      if (k < n) out[k] = v[k];
  }
}

}  // namespace fpfast::cuda
