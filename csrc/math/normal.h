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
  return M::word_to_float(word) * 0x1p-32f + 0x1p-33f;
}

template <class M>
FPFAST_FN typename M::F rademacher_value(typename M::U word) {
  return M::as_float((word & 0x80000000u) | 0x3F800000u);
}

// log u for u in [2^-33, 1]: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), relative error below 2e-7.
template <class M>
FPFAST_FN typename M::F log_uniform(typename M::F u) {
  using F = typename M::F;
  const typename M::U shifted = M::as_bits(u) - 0x3F3504F3u;
  const F f = M::as_float((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  F q = f * 0x1.65c77ep-4f;
  q = q + -0x1.2504aep-3f;
  q = q * f + 0x1.31852ap-3f;
  q = q * f + -0x1.535d2ep-3f;
  q = q * f + 0x1.98d2c0p-3f;
  q = q * f + -0x1.00049ap-2f;
  q = q * f + 0x1.5556f4p-2f;
  q = q * f + -0x1.fffffap-2f;
  const F e = M::to_float(M::as_signed(shifted) >> 23);
  const F tail = e * 0x1.7f7d1cp-20f + (f + f * f * q);  // ln 2 = 0x1.62e4p-1 + 0x1.7f7d1cp-20
  return e * 0x1.62e4p-1f + tail;
}

template <class M>
struct Pair {
  typename M::F a, b;
};

// Box-Muller: (r cos 2 pi v, r sin 2 pi v), r = sqrt(-2 log u).  The angle is reduced to a quarter turn, exactly.
template <class M>
FPFAST_FN Pair<M> normal_pair(typename M::U word0, typename M::U word1) {
  using F = typename M::F;
  const F radius = M::root(log_uniform<M>(uniform_value<M>(word0)) * -2.0f);
  const F quarters = M::word_to_float(word1) * 0x1p-30f + 0x1p-31f;  // four times the uniform value
  const typename M::I quadrant = M::truncate(quarters + 0.5f);
  const F r = quarters - M::to_float(quadrant);  // in [-1/2, 1/2]; angle = pi/2 (quadrant + r)
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
  const F sine = M::flip(M::select(odd, c, s), M::as_unsigned(quadrant) << 30);
  const F cosine = M::flip(M::select(odd, s, c), M::as_unsigned(quadrant + 1) << 30);
  return {radius * cosine, radius * sine};
}
