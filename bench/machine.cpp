// What the processor can do at best: fused multiply-adds in registers, and a triad over arrays larger than the caches.
#include <cstdint>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64, CHAINS = 24;
#define REGISTER "v"
#elif defined(__AVX__)
constexpr int BYTES = 32, CHAINS = 12;
#define REGISTER "x"
#elif defined(__x86_64__)
constexpr int BYTES = 16, CHAINS = 12;
#define REGISTER "x"
#else
constexpr int BYTES = 16, CHAINS = 24;
#define REGISTER "w"
#endif

typedef float Vector __attribute__((vector_size(BYTES)));
constexpr int LANES = BYTES / sizeof(float);

// CHAINS independent chains of a = a m + b, enough to hide the latency of two units. m < 1 keeps the values near b.
static float chains(int64_t rounds) {
  Vector a[CHAINS], m, b;
  for (int lane = 0; lane < LANES; ++lane) m[lane] = 0.5f, b[lane] = 1.0f;
  for (int k = 0; k < CHAINS; ++k) a[k] = b + float(k);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int k = 0; k < CHAINS; ++k) {
      Vector next = a[k] * m + b;
      asm volatile("" : "+" REGISTER(next));  // a value that the compiler has to make, in a register
      a[k] = next;
    }
  }
  float sum = 0;
#pragma GCC unroll 32
  for (int k = 0; k < CHAINS; ++k) sum += a[k][0];
  return sum;
}

extern "C" {

int vector_bits() { return 8 * BYTES; }

// Floating-point operations done by all threads (two for each multiply-add).
double multiply_add(int64_t rounds, int threads) {
  float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  sum += chains(rounds);
  static volatile float sink;
  sink = sum;
  return 2.0 * CHAINS * LANES * double(rounds) * threads;
}

// Lets all threads of OpenMP's pool, which torch uses too, take numbers below 2^-126 for zero (or, on = 0, not).
void flush_denormals(int on, int threads) {
#ifdef __x86_64__
#pragma omp parallel num_threads(threads)
  _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040);
#endif
}

// a = b + s c
void triad(float* __restrict a, const float* __restrict b, const float* __restrict c, float s, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + s * c[i];
}

// a = s a + t c: what combine with two operands does in place, without its noise
void update(float* __restrict a, const float* __restrict c, float s, float t, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) a[i] = s * a[i] + t * c[i];
}
}
