// Stands in for CUDA's header of this name.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  unsigned short bits;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

// To nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return {0x7FFF};
  return {(unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}
