// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and how a noise value is numbered.
#pragma once
#include "machine.h"

template <class M>
struct Words {
  typename M::Word w0, w1, w2, w3;
};

// The words of counter c under the key (k0, k1).
template <class M>
FPFAST_FN Words<M> philox(Words<M> c, typename M::Word k0, typename M::Word k1) {
  FPFAST_UNROLL
  for (int round = 0; round < 10; ++round) {
    const typename M::Product p0 = M::product(0xD2511F53u, c.w0), p1 = M::product(0xCD9E8D57u, c.w2);
    c.w0 = M::exclusive_or(M::high(p1), c.w1, k0);
    c.w1 = M::low(p1);
    c.w2 = M::exclusive_or(M::high(p0), c.w3, k1);
    c.w3 = M::low(p0);
    k0 = k0 + 0x9E3779B9u, k1 = k1 + 0xBB67AE85u;
  }
  return c;
}

// The counter's third word: the upper 16 bits of a sample's index, and the stream.
template <class Index>
FPFAST_FN Index sample_high(Index sample, uint32_t stream) {
  return ((sample >> 32) & 0xFFFFu) | (stream << 16);
}
