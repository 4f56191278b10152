// Vectors of one instruction-set level, and packs of them, as machines of csrc/math.
//
// GCC's vector types do the arithmetic; what they have no operator for is an intrinsic here. A pack is N independent
// vectors that go through a formula side by side, instruction by instruction: one vector's chain of dependent
// operations is longer than what a processor looks ahead. Nothing is contracted but fma(), which is for networks, not
// for noise.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <utility>

#include "../math/machine.h"

namespace fpfast {
namespace FPFAST_LEVEL {

#if defined(__AVX512F__)
#define FPFAST_MM(name) _mm512_##name
#define FPFAST_MMI(v) __m512i(v)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
#define FPFAST_MM(name) _mm256_##name
#define FPFAST_MMI(v) __m256i(v)
constexpr int vector_bytes = 32;
#else
#define FPFAST_MM(name) _mm_##name
#define FPFAST_MMI(v) __m128i(v)
constexpr int vector_bytes = 16;
#endif

constexpr int lanes = vector_bytes / 4;

// Rows of a matrix whose sums are held in registers at a time; they are packed together.
#if defined(__AVX512F__)
constexpr int rows_together = 8;
#elif defined(__AVX2__)
constexpr int rows_together = 4;
#else
constexpr int rows_together = 3;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
  typedef T unaligned __attribute__((vector_size(vector_bytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
FPFAST_FN Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}
template <class T>
FPFAST_FN void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

template <class T>
FPFAST_FN Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // exact, and the compiler knows
}

FPFAST_FN Vector<float> root(Vector<float> v) {
#if defined(__SSE2__)
  return FPFAST_MM(sqrt_ps)(v);
#else
  for (int k = 0; k < lanes; ++k) v[k] = sqrtf(v[k]);
  return v;
#endif
}

// a b + c, rounded once where the level has an instruction for it.
FPFAST_FN Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__FMA__)
  return FPFAST_MM(fmadd_ps)(a, b, c);
#else
  return a * b + c;
#endif
}
FPFAST_FN Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__FMA__)
  return FPFAST_MM(fmadd_pd)(a, b, c);
#else
  return a * b + c;
#endif
}

// The larger one; b where one is NaN.
FPFAST_FN Vector<float> max(Vector<float> a, Vector<float> b) {
#if defined(__SSE2__)
  return FPFAST_MM(max_ps)(a, b);
#else
  return a > b ? a : b;
#endif
}

// The product of the lower halves of 64-bit lanes.
FPFAST_FN Vector<uint64_t> multiply_halves(Vector<uint64_t> a, Vector<uint64_t> b) {
#if defined(__SSE2__)
  return Vector<uint64_t>(FPFAST_MM(mul_epu32)(FPFAST_MMI(a), FPFAST_MMI(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// float(word), rounded once. SSE2 and AVX2 convert only signed integers: two exact halves are put together.
FPFAST_FN Vector<float> word_to_float(Vector<uint32_t> word) {
  using F = Vector<float>;
#if defined(__AVX512F__)
  return __builtin_convertvector(word, F);
#else
  using I = Vector<int32_t>;
  return __builtin_convertvector(I(word >> 16), F) * 65536.0f + __builtin_convertvector(I(word & 0xFFFFu), F);
#endif
}

#if defined(__AVX512F__)
using Mask = __mmask16;
FPFAST_FN Mask negative(Vector<float> v) { return _mm512_movepi32_mask(__m512i(v)); }
FPFAST_FN bool any(Mask m) { return m != 0; }
FPFAST_FN Mask odd(Vector<int32_t> v) { return _mm512_test_epi32_mask(__m512i(v), _mm512_set1_epi32(1)); }
FPFAST_FN Vector<float> select(Mask m, Vector<float> yes, Vector<float> no) { return _mm512_mask_blend_ps(m, no, yes); }
#else
using Mask = Vector<int32_t>;
FPFAST_FN Mask negative(Vector<float> v) { return Vector<int32_t>(v) < 0; }
FPFAST_FN bool any(Mask m) {
#if defined(__SSE2__)
  return FPFAST_MM(movemask_ps)(Vector<float>(m)) != 0;
#else
  int32_t some = 0;
  for (int k = 0; k < lanes; ++k) some |= m[k];
  return some != 0;
#endif
}
FPFAST_FN Mask odd(Vector<int32_t> v) { return (v & 1) != 0; }
FPFAST_FN Vector<float> select(Mask m, Vector<float> yes, Vector<float> no) { return m ? yes : no; }
#endif

// For sines of large arguments, r and the number of quarter turns by way of float64.
FPFAST_FN void reduce_large(Vector<float> z, Vector<float>& r, Vector<uint32_t>& quadrant) {
  const auto magnitude = Vector<float>(Vector<uint32_t>(z) & 0x7FFFFFFFu);
  if (!any(negative(0x1p13f - magnitude))) return;
  for (int k = 0; k < lanes; ++k) {
    if (fabsf(z[k]) <= 0x1p13f) continue;
    const double angle = atan2(::sin(double(z[k])), ::cos(double(z[k]))),
                 turns = nearbyint(angle * 0x1.45f306dc9c883p-1);
    if (angle != angle) {
      r[k] = float(angle);
      continue;
    }
    r[k] = float(angle - turns * 0x1.921fb54442d18p+0);
    quadrant[k] = uint32_t(int32_t(turns));
  }
}

// 32-bit words live in two vectors of 64-bit lanes, lane l in vector l % 2. This puts them together again.
FPFAST_FN Vector<uint32_t> interleave(Vector<uint64_t> even, Vector<uint64_t> odd) {
#if defined(__AVX512F__)
  return Vector<uint32_t>(_mm512_mask_shuffle_epi32(__m512i(even), 0xAAAA, __m512i(odd), _MM_PERM_CCAA));
#else
  return Vector<uint32_t>((even & 0xFFFFFFFFu) | (odd << 32));
#endif
}

// Four vectors as blocks of four lanes; every block of 4 x 4 is transposed.
FPFAST_FN void transpose_blocks(Vector<float>& a, Vector<float>& b, Vector<float>& c, Vector<float>& d) {
  using F = Vector<float>;
#if defined(__SSE2__)
  using D = Vector<double>;
  const D ab0 = D(FPFAST_MM(unpacklo_ps)(a, b)), ab1 = D(FPFAST_MM(unpackhi_ps)(a, b));
  const D cd0 = D(FPFAST_MM(unpacklo_ps)(c, d)), cd1 = D(FPFAST_MM(unpackhi_ps)(c, d));
  a = F(FPFAST_MM(unpacklo_pd)(ab0, cd0)), b = F(FPFAST_MM(unpackhi_pd)(ab0, cd0));
  c = F(FPFAST_MM(unpacklo_pd)(ab1, cd1)), d = F(FPFAST_MM(unpackhi_pd)(ab1, cd1));
#else
  const F x = {a[0], b[0], c[0], d[0]}, y = {a[1], b[1], c[1], d[1]}, z = {a[2], b[2], c[2], d[2]};
  d = F{a[3], b[3], c[3], d[3]}, a = x, b = y, c = z;
#endif
}

// Four vectors, whose blocks of four lanes q go to to[(4 q + 0 ... 3) * stride].
FPFAST_FN void scatter_blocks(float* to, int64_t stride, const Vector<float> (&v)[4]) {
  typedef float Block __attribute__((vector_size(16), aligned(4), may_alias));
  FPFAST_UNROLL
  for (int q = 0; q < lanes / 4; ++q) FPFAST_UNROLL
  for (int j = 0; j < 4; ++j) {
    Block block;
    memcpy(&block, reinterpret_cast<const char*>(&v[j]) + 16 * q, sizeof block);
    *reinterpret_cast<Block*>(to + (4 * q + j) * stride) = block;
  }
}

template <class T, int N>
struct Pack {
  Vector<T> v[N];
};

// f on each vector of the packs.
template <class R, int N, class Fn, size_t... n, class... P>
FPFAST_FN Pack<R, N> map(std::index_sequence<n...>, const Fn& f, const P&... p) {
  const auto one = [&](auto k) __attribute__((always_inline)) { return Vector<R>(f(p.v[k]...)); };
  return {{one(std::integral_constant<size_t, n>{})...}};
}
template <class R, int N, class Fn, class... P>
FPFAST_FN Pack<R, N> map(const Fn& f, const P&... p) {
  return map<R, N>(std::make_index_sequence<N>{}, f, p...);
}

#define FPFAST_OPERATOR(op)                                                                       \
  template <class T, int N>                                                                       \
  FPFAST_FN Pack<T, N> operator op(const Pack<T, N>& a, const Pack<T, N>& b) {                    \
    return map<T, N>([](auto x, auto y) __attribute__((always_inline)) { return x op y; }, a, b); \
  }                                                                                               \
  template <class T, int N>                                                                       \
  FPFAST_FN Pack<T, N> operator op(const Pack<T, N>& a, decltype(T{}) b) {                        \
    return map<T, N>([b](auto x) __attribute__((always_inline)) { return x op b; }, a);           \
  }
FPFAST_OPERATOR(+)
FPFAST_OPERATOR(-)
FPFAST_OPERATOR(*)
FPFAST_OPERATOR(/)
FPFAST_OPERATOR(&)
FPFAST_OPERATOR(|)
FPFAST_OPERATOR(^)
#undef FPFAST_OPERATOR

template <class T, int N>
FPFAST_FN Pack<T, N> operator>>(const Pack<T, N>& a, int count) {
  return map<T, N>([count](auto x) __attribute__((always_inline)) { return x >> count; }, a);
}
template <class T, int N>
FPFAST_FN Pack<T, N> operator<<(const Pack<T, N>& a, int count) {
  return map<T, N>([count](auto x) __attribute__((always_inline)) { return x << count; }, a);
}
// N vectors of values, and 2 N vectors of 64-bit words behind them.
template <int N>
struct Simd {
  using F = Pack<float, N>;
  using I = Pack<int32_t, N>;
  using U = Pack<uint32_t, N>;
  using Word = Pack<uint64_t, N>;
  using Product = Pack<uint64_t, N>;

#define FPFAST_MAP(type, expression, ...) \
  map<type, N>([&](auto x, auto... y) __attribute__((always_inline)) { return expression; }, __VA_ARGS__)
  FPFAST_FN F as_float(const U& bits) { return FPFAST_MAP(float, Vector<float>(x), bits); }
  FPFAST_FN U as_bits(const F& value) { return FPFAST_MAP(uint32_t, Vector<uint32_t>(x), value); }
  FPFAST_FN I as_signed(const U& value) { return FPFAST_MAP(int32_t, Vector<int32_t>(x), value); }
  FPFAST_FN U as_unsigned(const I& value) { return FPFAST_MAP(uint32_t, Vector<uint32_t>(x), value); }
  FPFAST_FN F to_float(const I& value) { return FPFAST_MAP(float, __builtin_convertvector(x, Vector<float>), value); }
  template <class C>
  FPFAST_FN F plus_exact(const F& a, float b, const C& c) {
    return a * b + c;
  }
  FPFAST_FN I truncate(const F& value, F& whole) {
    const I number = FPFAST_MAP(int32_t, __builtin_convertvector(x, Vector<int32_t>), value);
    whole = to_float(number);
    return number;
  }
  FPFAST_FN F word_to_float(const U& word) { return FPFAST_MAP(float, FPFAST_LEVEL::word_to_float(x), word); }
  FPFAST_FN F root(const F& value) { return FPFAST_MAP(float, FPFAST_LEVEL::root(x), value); }
  FPFAST_FN Product product(uint32_t constant, const Word& word) {
    return FPFAST_MAP(uint64_t, multiply_halves(x, Vector<uint64_t>{} + constant), word);
  }
#undef FPFAST_MAP
  FPFAST_FN Word high(const Product& p) { return p >> 32; }
  FPFAST_FN Word low(const Product& p) { return p; }
  FPFAST_FN Word exclusive_or(const Word& a, const Word& b, const Word& c) { return a ^ b ^ c; }
  FPFAST_FN F minus_absolute(const F& value) { return as_float(as_bits(value) | 0x80000000u); }
  FPFAST_FN F inverse(const F& value) { return (F{} + 1.0f) / value; }
  FPFAST_FN F max(float a, const F& b) {
    return map<float, N>([a](auto x) __attribute__((always_inline)) { return FPFAST_LEVEL::max(broadcast(a), x); }, b);
  }
  template <class A, class B, class C>
  FPFAST_FN F fma(const A& a, const B& b, const C& c) {
    F sum;
    FPFAST_UNROLL
    for (int n = 0; n < N; ++n) sum.v[n] = FPFAST_LEVEL::fma(vector(a, n), vector(b, n), vector(c, n));
    return sum;
  }
  FPFAST_FN Vector<float> vector(const F& pack, int n) { return pack.v[n]; }
  FPFAST_FN Vector<float> vector(float value, int) { return broadcast(value); }
  FPFAST_FN void reduce_large(const F& z, F& r, U& quadrant) {
    for (int n = 0; n < N; ++n) FPFAST_LEVEL::reduce_large(z.v[n], r.v[n], quadrant.v[n]);
  }

  FPFAST_FN F flip(const F& value, const U& sign) { return as_float(as_bits(value) ^ (sign & 0x80000000u)); }

  struct Masks {
    Mask v[N];
  };
  FPFAST_FN Masks negative(const F& value) {
    Masks m;
    FPFAST_UNROLL
    for (int n = 0; n < N; ++n) m.v[n] = FPFAST_LEVEL::negative(value.v[n]);
    return m;
  }
  FPFAST_FN Masks odd(const I& value) {
    Masks m;
    FPFAST_UNROLL
    for (int n = 0; n < N; ++n) m.v[n] = FPFAST_LEVEL::odd(value.v[n]);
    return m;
  }
  FPFAST_FN F select(const Masks& mask, const F& yes, const F& no) {
    F chosen;
    FPFAST_UNROLL
    for (int n = 0; n < N; ++n) chosen.v[n] = FPFAST_LEVEL::select(mask.v[n], yes.v[n], no.v[n]);
    return chosen;
  }
};

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
