// What the formulas of this folder are written in: a machine M has
//
//   F, I, U     float32, int32 and uint32, or vectors of them
//   Word        an unsigned value of 32 bits; the upper half of a wider one is ignored
//   Product     an unsigned value of 64 bits
//
// and the functions below, of which plus_exact(a, b, c) is a b + c for an a b that is exact, so that one rounding and
// two give the same, and root serves 0 and values of moderate size. Scalar serves CUDA, where a thread handles one
// value; cpu/simd.h has the vectors. So there is one text of every formula, whatever runs it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FPFAST_FN static __host__ __device__ __forceinline__
#define FPFAST_MEMBER __host__ __device__ __forceinline__
#define FPFAST_UNROLL _Pragma("unroll")
#else
#define FPFAST_FN static inline __attribute__((always_inline))
#define FPFAST_MEMBER inline __attribute__((always_inline))
#define FPFAST_UNROLL _Pragma("GCC unroll 32")
#endif

struct Scalar {
  using F = float;
  using I = int32_t;
  using U = uint32_t;
  using Word = uint32_t;
  using Product = uint64_t;

  FPFAST_FN F as_float(U bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    F value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
  }
  FPFAST_FN U as_bits(F value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    U bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
  }
  FPFAST_FN I as_signed(U value) { return I(value); }
  FPFAST_FN U as_unsigned(I value) { return U(value); }
  FPFAST_FN F to_float(I value) { return float(value); }
  FPFAST_FN F word_to_float(U word) { return float(word); }  // rounded once, to nearest
  // The lower bits of the whole part of a value from 0 to 2^22, and the whole part itself.
  FPFAST_FN I truncate(F value, F& whole) {
#if defined(__CUDA_ARCH__)
    const F shifted = __fadd_rz(value, 0x1p23f);  // conversions run at a quarter of an addition's rate
    whole = shifted - 0x1p23f;
    return I(as_bits(shifted));
#else
    whole = F(I(value));
    return I(value);
#endif
  }
  FPFAST_FN bool odd(I value) { return value & 1; }
  FPFAST_FN F select(bool mask, F yes, F no) { return mask ? yes : no; }
  FPFAST_FN F flip(F value, U sign) { return as_float(as_bits(value) ^ (sign & 0x80000000u)); }  // by the top bit
  FPFAST_FN F plus_exact(F a, F b, F c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return a * b + c;
#endif
  }
  FPFAST_FN F root(F value) {
#if defined(__CUDA_ARCH__)
    // With these steps sqrt.rn itself begins, and ends for all but very small and very large values, after a test and
    // a branch. The bound is far below all values but 0.
    F y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(fmaxf(value, 0x1p-60f)));
    const F root = value * y;
    return __fmaf_rn(__fmaf_rn(-root, root, value), y * 0.5f, root);
#else
    return sqrtf(value);
#endif
  }
  FPFAST_FN F fma(F a, F b, F c) { return fmaf(a, b, c); }
  FPFAST_FN F max(F a, F b) { return a > b ? a : b; }  // b where it is NaN
  FPFAST_FN bool negative(F value) { return as_bits(value) >> 31; }
  FPFAST_FN F minus_absolute(F value) { return as_float(as_bits(value) | 0x80000000u); }
  FPFAST_FN F inverse(F value) { return 1.0f / value; }
  // For sines of large arguments, r and the number of quarter turns by way of float64.
  FPFAST_FN void reduce_large(F z, F& r, U& quadrant) {
    if (!(fabsf(z) > 0x1p13f)) return;
    if (!(fabsf(z) < 0x1p48f)) {  // from there on float64 does not count turns well enough
      r = z - z;
      return;
    }
    const double turns = rint(double(z) * 0x1.45f306dc9c883p-1);  // 2 / pi
    r = float(::fma(-turns, 0x1.1a62633145c07p-54, ::fma(-turns, 0x1.921fb54442d18p+0, double(z))));
    quadrant = U(int64_t(turns));
  }
  FPFAST_FN Product product(uint32_t constant, Word word) {
#if defined(__CUDA_ARCH__)
    Product both;  // nvcc makes one instruction more of a multiplication in C++
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(both) : "r"(word), "r"(constant));
    return both;
#else
    return uint64_t(constant) * word;
#endif
  }
  FPFAST_FN Word high(Product p) { return Word(p >> 32); }
  FPFAST_FN Word low(Product p) { return Word(p); }
  FPFAST_FN Word exclusive_or(Word a, Word b, Word c) { return a ^ b ^ c; }
};
