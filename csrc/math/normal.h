// From 32-bit words to uniform, Rademacher and normal values, in float32.
//
// Every multiply and add below is rounded by itself (the compilers are told not to contract), square root is correctly
// rounded, and the polynomials are this project's own minimax fits. fpfast/reference.py repeats the same operations in
// the same order, so every backend gives the same bits.
#pragma once
#include <cmath>
#include <cstring>

#include "philox.h"

FPFAST_FN float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

FPFAST_FN uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// u = float(r) 2^-32 + 2^-33, in (0, 1].  float(r) is put together from two exact halves with a single rounding:
// SSE and AVX2 convert only signed integers.
FPFAST_FN float uniform_value(uint32_t word) {
  const float value = float(int32_t(word >> 16)) * 65536.0f + float(int32_t(word & 0xFFFFu));
  return value * 0x1p-32f + 0x1p-33f;
}

FPFAST_FN float rademacher_value(uint32_t word) { return bits_to_float(0x3F800000u | (word & 0x80000000u)); }

// log u for u in [2^-33, 1]: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), relative error below 2e-7.
FPFAST_FN float log_uniform(float u) {
  const uint32_t shifted = float_to_bits(u) - 0x3F3504F3u;
  const int32_t exponent = int32_t(shifted) >> 23;
  const float f = bits_to_float((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  float q = 0x1.65c77ep-4f;
  q = q * f + -0x1.2504aep-3f;
  q = q * f + 0x1.31852ap-3f;
  q = q * f + -0x1.535d2ep-3f;
  q = q * f + 0x1.98d2c0p-3f;
  q = q * f + -0x1.00049ap-2f;
  q = q * f + 0x1.5556f4p-2f;
  q = q * f + -0x1.fffffap-2f;
  const float e = float(exponent);
  const float tail = e * 0x1.7f7d1cp-20f + (f + f * f * q);  // ln 2 = 0x1.62e4p-1 + 0x1.7f7d1cp-20
  return e * 0x1.62e4p-1f + tail;
}

struct Pair {
  float a, b;
};

// Box-Muller: (r cos 2 pi v, r sin 2 pi v), r = sqrt(-2 log u).  The angle is reduced to a quarter turn, exactly.
FPFAST_FN Pair normal_pair(uint32_t word0, uint32_t word1) {
  const float radius = sqrtf(-2.0f * log_uniform(uniform_value(word0)));
  const float quarters = uniform_value(word1) * 4.0f;
  const int32_t quadrant = int32_t(quarters + 0.5f);
  const float r = quarters - float(quadrant);  // in [-1/2, 1/2]; angle = pi/2 (quadrant + r)
  const float r2 = r * r;
  float s = -0x1.2d9bb8p-8f;
  s = s * r2 + 0x1.465ec6p-4f;
  s = s * r2 + -0x1.4abbbap-1f;
  s = s * r2 + 0x1.921fb6p+0f;
  s = s * r;
  float c = -0x1.4ea9e6p-6f;
  c = c * r2 + 0x1.03b162p-2f;
  c = c * r2 + -0x1.3bd3a2p+0f;
  c = c * r2 + 1.0f;
  const bool odd = quadrant & 1;
  const uint32_t sine_sign = uint32_t(quadrant & 2) << 30;
  const uint32_t cosine_sign = uint32_t((quadrant + 1) & 2) << 30;
  const float sine = bits_to_float(float_to_bits(odd ? c : s) ^ sine_sign);
  const float cosine = bits_to_float(float_to_bits(odd ? s : c) ^ cosine_sign);
  return {radius * cosine, radius * sine};
}
