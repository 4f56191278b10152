// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and how a noise value is numbered.
#pragma once
#include "machine.h"

template <class M>
struct Words {
  typename M::Word w0, w1, w2, w3;
};

constexpr int philox_rounds = 10;
constexpr uint32_t philox_multiplier0 = 0xD2511F53u, philox_multiplier1 = 0xCD9E8D57u;
constexpr uint32_t philox_step0 = 0x9E3779B9u, philox_step1 = 0xBB67AE85u;  // of the keys, from round to round

template <class M>
FPFAST_FN Words<M> philox_round(const Words<M>& c, typename M::Word k0, typename M::Word k1) {
  const typename M::Product p0 = M::product(philox_multiplier0, c.w0), p1 = M::product(philox_multiplier1, c.w2);
  return {M::exclusive_or(M::high(p1), c.w1, k0), M::low(p1), M::exclusive_or(M::high(p0), c.w3, k1), M::low(p0)};
}

// The words of counter c under the key (k0, k1).
template <class M>
FPFAST_FN Words<M> philox(Words<M> c, typename M::Word k0, typename M::Word k1) {
  FPFAST_UNROLL
  for (int round = 0; round < philox_rounds; ++round, k0 = k0 + philox_step0, k1 = k1 + philox_step1)
    c = philox_round<M>(c, k0, k1);
  return c;
}

// The counter's third word: the upper 16 bits of a sample's index, and the stream.
template <class Index>
FPFAST_FN Index sample_high(Index sample, uint32_t stream) {
  return ((sample >> 32) & 0xFFFFu) | (stream << 16);
}
