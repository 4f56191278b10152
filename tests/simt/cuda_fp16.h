// Stands in for CUDA's header of this name.
#pragma once
#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline float __half2float(__half value) {
  const unsigned sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
  if (rest < 0x0400u) return __uint_as_float(sign | __float_as_uint(float(rest) * 0x1p-24f));  // zero or subnormal
  const unsigned quiet = rest > 0x7C00u ? 0x00400000u : 0;
  return __uint_as_float(sign | ((rest << 13) + (rest < 0x7C00u ? 0x38000000u : 0x70000000u)) | quiet);
}

// To nearest, ties to even.
inline __half __float2half(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return {0x7FFF};
  if (rest >= 0x47800000u) return {(unsigned short)(sign | 0x7C00u)};
  // Below 2^-14 the sum's last bit is worth 2^-24, a subnormal's; above, the 13 bits that go are rounded.
  const unsigned small = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3F000000u;
  const unsigned normal = (rest + 0x0FFFu + (rest >> 13 & 1) - 0x38000000u) >> 13;
  return {(unsigned short)(sign | (rest < 0x38800000u ? small : normal))};
}
