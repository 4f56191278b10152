// Activations with their first four derivatives, in float32; what is not asked for costs nothing.
//
// The caller scales the argument, u = z * in, and rescales the value, so that exponentials are powers of two and
// softplus costs no multiplication:
//
//               u / z                value / h(z)
//   tanh        2 log2 e             1
//   softplus    beta log2 e          beta log2 e      h = log(1 + e^(beta z)) / beta, parameter beta
//   silu        log2 e               log2 e
//   gelu        1                    1                the tanh form
//   elu         log2 e               log2 e           parameter alpha
//   sine        1                    1
//
// Derivatives are those of h by z. The polynomials are this project's own minimax fits; errors are near one unit in the
// last place, for |z| below 10^10; exponentials end at 2^-126, and NaN stays NaN.
#pragma once
#include "machine.h"

enum class Activation : int { tanh = 0, softplus = 1, silu = 2, gelu = 3, elu = 4, sine = 5 };

template <class F>
struct Jet {
  F value, first, second, third, fourth;
};

constexpr int want_value = 1, want_first = 2, want_second = 4;

template <class M>
struct PowerOfTwo {
  typename M::F whole, fraction;  // 2^n and f of 2^(n + f), |f| <= 1/2
};

// For x <= 0; below -126 it is taken for -126.
template <class M>
FPFAST_FN PowerOfTwo<M> split_power(typename M::F x) {
  x = M::max(-126.0f, x);
  const typename M::F shifted = x + 0x1.8p23f;  // its last bits hold the nearest integer
  return {M::as_float((M::as_bits(shifted) << 23) + 0x3F800000u), x - (shifted - 0x1.8p23f)};
}

// 2^x for x <= 0.
template <class M>
FPFAST_FN typename M::F power_of_two(typename M::F x) {
  const PowerOfTwo<M> split = split_power<M>(x);
  const auto f = split.fraction;
  auto p = M::fma(f, 0x1.5bba52p-10f, 0x1.3cea86p-7f);
  p = M::fma(p, f, 0x1.c6b752p-5f);
  p = M::fma(p, f, 0x1.ebf9bcp-3f);
  p = M::fma(p, f, 0x1.62e42ap-1f);
  return M::fma(split.whole * f, p, split.whole);
}

// 2^x - 1 and 2^x for x <= 0, each with a small relative error.
template <class M>
FPFAST_FN void power_of_two_minus_1(typename M::F x, typename M::F& minus_1, typename M::F& power) {
  const PowerOfTwo<M> split = split_power<M>(x);
  const auto f = split.fraction;
  auto p = M::fma(f, 0x1.4308f4p-13f, 0x1.5f07b6p-10f);
  p = M::fma(p, f, 0x1.3b2ba0p-7f);
  p = M::fma(p, f, 0x1.c6af6ep-5f);
  p = M::fma(p, f, 0x1.ebfbdep-3f);
  p = M::fma(p, f, 0x1.62e430p-1f);
  const auto scaled = split.whole * f;
  minus_1 = M::fma(scaled, p, split.whole - 1.0f);
  power = M::fma(scaled, p, split.whole);
}

template <class M>
struct Logistic {
  typename M::F power, inverse, value;  // e = 2^-|u|, 1 / (1 + e), and 1 / (1 + 2^-u)
};

template <class M>
FPFAST_FN Logistic<M> logistic(typename M::F u) {
  const auto e = power_of_two<M>(M::minus_absolute(u));
  const auto r = M::inverse(e + 1.0f);
  return {e, r, M::select(M::negative(u), e * r, r)};
}

// s', s'', s''' and s'''' of s(w) = 1 / (1 + e^-w).
template <class F>
struct Slopes {
  F first, second, third, fourth;
};

template <class M>
FPFAST_FN Slopes<typename M::F> slopes(const Logistic<M>& s) {
  const auto first = s.power * s.inverse * s.inverse, tilt = M::fma(s.value, -2.0f, 1.0f), second = first * tilt;
  return {first, second, first * M::fma(first, -6.0f, 1.0f), second * M::fma(first, -12.0f, 1.0f)};
}

template <class M>
FPFAST_FN Jet<typename M::F> softplus(typename M::F u, float beta) {
  const Logistic<M> s = logistic<M>(u);
  const auto e = s.power;
  auto q = M::fma(e, 0x1.eebcb0p-8f, -0x1.5cb4d6p-5f);  // log2(1 + e) / e on [0, 1]
  q = M::fma(q, e, 0x1.ce41b2p-4f);
  q = M::fma(q, e, -0x1.93b2dep-3f);
  q = M::fma(q, e, 0x1.1a41b0p-2f);
  q = M::fma(q, e, -0x1.6f029ep-2f);
  q = M::fma(q, e, 0x1.ec3ac6p-2f);
  q = M::fma(q, e, -0x1.715380p-1f);
  q = M::fma(q, e, 0x1.715476p+0f);
  const auto d = slopes<M>(s);
  return {M::fma(q, e, M::max(0.0f, u)), s.value, d.first * beta, d.second * (beta * beta),
          d.third * (beta * beta * beta)};
}

template <class M>
FPFAST_FN Jet<typename M::F> silu(typename M::F u, float) {
  const Logistic<M> s = logistic<M>(u);
  const auto d = slopes<M>(s);
  const auto z = u * 0x1.62e430p-1f;
  return {u * s.value, M::fma(z, d.first, s.value), M::fma(z, d.second, d.first * 2.0f),
          M::fma(z, d.third, d.second * 3.0f), M::fma(z, d.fourth, d.third * 4.0f)};
}

template <class M>
FPFAST_FN Jet<typename M::F> gelu(typename M::F z, float) {
  constexpr float k = 0x1.988454p+0f, cubic = 0.044715f, log2e = 0x1.715476p+0f;  // k = 2 sqrt(2 / pi)
  const auto z2 = z * z;
  const Logistic<M> s = logistic<M>(z * M::fma(z2, k * cubic * log2e, k * log2e));
  const auto d = slopes<M>(s);
  const auto w1 = M::fma(z2, 3 * k * cubic, k), w2 = z * (6 * k * cubic), w1_2 = w1 * w1;
  constexpr float w3 = 6 * k * cubic;
  // Derivatives of s(w(z)), then h'... = z s(w)'... + n s(w)'...
  const auto s1 = d.first * w1, s2 = M::fma(d.second, w1_2, d.first * w2);
  const auto s3 = M::fma(d.third * w1_2, w1, M::fma(d.second * (w1 * w2), 3.0f, d.first * w3));
  const auto s4 = M::fma(d.fourth * w1_2, w1_2,
                         M::fma(d.third * (w1_2 * w2), 6.0f, d.second * M::fma(w2 * w2, 3.0f, w1 * (4 * w3))));
  return {z * s.value, M::fma(z, s1, s.value), M::fma(z, s2, s1 * 2.0f), M::fma(z, s3, s2 * 3.0f),
          M::fma(z, s4, s3 * 4.0f)};
}

template <class M>
FPFAST_FN Jet<typename M::F> tanh(typename M::F u, float) {
  typename M::F m, e;
  power_of_two_minus_1<M>(M::minus_absolute(u), m, e);  // e = e^(-2 |z|), tanh |z| = -m / (2 + m)
  const auto r = M::inverse(m + 2.0f);
  const auto value = M::flip(m * r * -1.0f, M::as_bits(u)), first = e * r * r * 4.0f, second = value * first * -2.0f;
  return {value, first, second, first * M::fma(first, -6.0f, 4.0f), second * M::fma(first, -12.0f, 4.0f)};
}

template <class M>
FPFAST_FN Jet<typename M::F> elu(typename M::F u, float alpha) {
  typename M::F m, e;
  power_of_two_minus_1<M>(M::minus_absolute(u), m, e);
  const auto slope = e * alpha;
  const auto below = M::negative(M::as_float(M::as_bits(u) | (M::as_bits(u) - 1u)));  // u <= 0, as torch has it
  const typename M::F zero = {};
  const auto curve = M::select(below, slope, zero);
  return {M::select(below, m * (alpha * 0x1.715476p+0f), u), M::select(below, slope, zero + 1.0f), curve, curve, curve};
}

// sin z by quarter turns. Their number times pi / 2 is subtracted in three parts, which is good to |z| of about 10^5;
// reduce_large takes over from 2^13 on.
template <class M>
FPFAST_FN Jet<typename M::F> sine(typename M::F z, float) {
  const auto shifted = M::fma(z, 0x1.45f306p-1f, 0x1.8p23f);
  const auto n = shifted - 0x1.8p23f;
  auto r = M::fma(n, -0x1.92p+0f, z);
  r = M::fma(n, -0x1.fb4p-12f, r);
  r = M::fma(n, -0x1.4442d2p-24f, r);
  typename M::U quadrant = M::as_bits(shifted);
  M::reduce_large(z, r, quadrant);
  const auto r2 = r * r;
  auto s = M::fma(r2, -0x1.994cf8p-13f, 0x1.11075cp-7f);
  s = M::fma(s, r2, -0x1.555546p-3f);
  s = M::fma(s * r2, r, r);
  auto c = M::fma(r2, 0x1.9a00ccp-16f, -0x1.6c0c86p-10f);
  c = M::fma(c, r2, 0x1.55554ap-5f);
  c = M::fma(c, r2 * r2, M::fma(r2, -0.5f, 1.0f));
  const auto odd = M::odd(M::as_signed(quadrant));
  const auto value = M::flip(M::select(odd, c, s), quadrant << 30);
  const auto first = M::flip(M::select(odd, s, c), (quadrant + 1u) << 30);
  return {value, first, value * -1.0f, first * -1.0f, value};
}

template <class M, Activation kind>
FPFAST_FN Jet<typename M::F> activation(typename M::F u, float parameter) {
  if constexpr (kind == Activation::tanh) return tanh<M>(u, parameter);
  if constexpr (kind == Activation::softplus) return softplus<M>(u, parameter);
  if constexpr (kind == Activation::silu) return silu<M>(u, parameter);
  if constexpr (kind == Activation::gelu) return gelu<M>(u, parameter);
  if constexpr (kind == Activation::elu) return elu<M>(u, parameter);
  if constexpr (kind == Activation::sine) return sine<M>(u, parameter);
}
