// From 32-bit words to uniform, Rademacher and normal values, in float32.
//
// Every multiply and add below is rounded by itself (the compilers are told not to contract), square root is correctly
// rounded, and the polynomials are this project's own minimax fits. fpfast/reference.py repeats the same operations in
// the same order, so every backend gives the same bits.
#pragma once
#include "philox.h"

// u = float(r) 2^-32 + 2^-33, in (0, 1].
template <class M>
FPFAST_FN typename M::F uniform_value(typename M::U word) {
  return M::plus_exact(M::word_to_float(word), 0x1p-32f, 0x1p-33f);
}

template <class M>
FPFAST_FN typename M::F rademacher_value(typename M::U word) {
  return M::as_float((word & 0x80000000u) | 0x3F800000u);
}

// 2 log u for the word's uniform value u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), relative error below 2e-7.
//
// All bits are those of 2 (e high + (e low + (f + f f q))) with ln 2 = high + low: a factor that is a power of two
// changes no rounding, so u comes as 2^32 u, e as 2^23 e, and 2 is in the coefficients of q and of e.
template <class M>
FPFAST_FN typename M::F two_log(typename M::U word) {
  using F = typename M::F;
  constexpr uint32_t two_32 = 32u << 23;  // in an exponent
  const typename M::U bits = M::as_bits(M::word_to_float(word) + 0.5f);
  const typename M::U exponent = (bits - (two_32 + 0x3F3504F3u)) & 0xFF800000u;
  const F f = M::as_float(bits - exponent - two_32) - 1.0f;
  F q = f * 0x1.65c77ep-3f;
  q = q + -0x1.2504aep-2f;
  q = q * f + 0x1.31852ap-2f;
  q = q * f + -0x1.535d2ep-2f;
  q = q * f + 0x1.98d2c0p-2f;
  q = q * f + -0x1.00049ap-1f;
  q = q * f + 0x1.5556f4p-1f;
  q = q * f + -0x1.fffffap-1f;
  const F e = M::to_float(M::as_signed(exponent));
  const F tail = e * 0x1.7f7d1cp-42f + M::plus_exact(f, 2.0f, f * f * q);
  return M::plus_exact(e, 0x1.62e4p-23f, tail);  // 6 bits times 15
}

template <class M>
struct Pair {
  typename M::F a, b;
};

// Box-Muller: (r cos 2 pi v, r sin 2 pi v), r = sqrt(-2 log u).  The angle is reduced to a quarter turn, exactly.
template <class M>
FPFAST_FN Pair<M> normal_pair(typename M::U word0, typename M::U word1) {
  using F = typename M::F;
  const F radius = M::root(two_log<M>(word0) * -1.0f);
  const F quarters = M::plus_exact(M::word_to_float(word1), 0x1p-30f, 0x1p-31f);  // four times the uniform value
  F whole;
  const typename M::I quadrant = M::truncate(quarters + 0.5f, whole);
  const F r = quarters - whole;  // in [-1/2, 1/2]; angle = pi/2 (quadrant + r)
  const F r2 = r * r;
  F s = r2 * -0x1.2d9bb8p-8f;
  s = s + 0x1.465ec6p-4f;
  s = s * r2 + -0x1.4abbbap-1f;
  s = s * r2 + 0x1.921fb6p+0f;
  s = s * r;
  F c = r2 * -0x1.4ea9e6p-6f;
  c = c + 0x1.03b162p-2f;
  c = c * r2 + -0x1.3bd3a2p+0f;
  c = c * r2 + 1.0f;
  const auto odd = M::odd(quadrant);
  const F turned = M::flip(radius, M::as_unsigned(quadrant) << 30);  // by half a turn from the third quarter on
  return {turned * M::select(odd, s * -1.0f, c), turned * M::select(odd, c, s)};
}
