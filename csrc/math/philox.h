// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and how a noise value is numbered.
// One text for the host's SIMD kernels and for CUDA.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define FPFAST_FN static __host__ __device__ __forceinline__
#else
#define FPFAST_FN static inline __attribute__((always_inline))
#endif

struct Philox {
  uint32_t w0, w1, w2, w3;
};

FPFAST_FN Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// The four words for elements 4 group .. 4 group + 3 of one sample.
FPFAST_FN Philox noise_words(uint64_t seed, uint64_t sample, uint32_t group, uint32_t stream, uint32_t draw) {
  const uint32_t c2 = (uint32_t(sample >> 32) & 0xFFFFu) | (stream << 16);
  return philox(group, uint32_t(sample), c2, draw, uint32_t(seed), uint32_t(seed >> 32));
}
