// Noise in blocks of groups, as memory wants it.
//
// A sample's elements come in groups of four, one Philox call each. The groups of all samples are numbered in a row and
// handled in blocks; a block covers a contiguous range of elements, also where a sample's last group is short.
#pragma once
#include "noise.h"

namespace fpfast {
namespace FPFAST_LEVEL {

constexpr int64_t block_groups = 8 * lanes;
constexpr int64_t block_elements = 4 * block_groups;
constexpr int64_t serial_below = 1 << 14;  // elements: a parallel region costs about as much as these
// Vectors whose words, and whose values, are made side by side: what registers hold.
constexpr int words_together = lanes == 16 ? 4 : 2, values_together = 2;

inline int64_t groups_per_sample(int64_t elements) { return (elements + 3) / 4; }

// First flat element of flat group q.
inline int64_t element_of(int64_t q, int64_t groups, int64_t elements) {
  return q / groups * elements + std::min(q % groups * 4, elements);
}

// Noise of the flat groups [q, q + count), four values each, into z, which has room for a block: more is written there
// than asked for. First all words, then all values: each half's chain of dependent operations is short enough for the
// processor to run several of them at a time.
template <Kind kind, bool seed_per_sample>
void whole_groups(float* z, const Noise& noise, int64_t q, int64_t count, int64_t groups, int64_t last_sample) {
  alignas(64) uint32_t words[4][block_groups];
  Walk walk(groups, q);
  for (int64_t at = 0; at < count; at += lanes * words_together) {
    Place place[words_together];
    for (Place& one : place) one = walk.next();
    const auto made = noise_words<words_together, seed_per_sample>(place, noise, last_sample);
    for (int r = 0; r < 4; ++r)
      for (int v = 0; v < words_together; ++v) store(&words[r][at + v * lanes], made.words[r].v[v]);
  }
  constexpr int N = values_together;
  for (int64_t at = 0; at < count; at += lanes * N) {
    Pack<uint32_t, 2 * N> first, second;  // words 0 and 2, words 1 and 3
    for (int v = 0; v < N; ++v) {
      first.v[v] = load(&words[0][at + v * lanes]), first.v[N + v] = load(&words[2][at + v * lanes]);
      second.v[v] = load(&words[1][at + v * lanes]), second.v[N + v] = load(&words[3][at + v * lanes]);
    }
    auto values = two_values<kind, 2 * N>(first, second);
    for (int v = 0; v < N; ++v) {
      transpose_blocks(values.a.v[v], values.b.v[v], values.a.v[N + v], values.b.v[N + v]);
      float* const out = z + 4 * (at + v * lanes);
      store(out, values.a.v[v]), store(out + lanes, values.b.v[v]);
      store(out + 2 * lanes, values.a.v[N + v]), store(out + 3 * lanes, values.b.v[N + v]);
    }
  }
}

// Noise of flat groups [q, q + count) into z, element by element. A whole block is written as it is made.
template <Kind kind>
void noise_block(float* z, const Noise& noise, int64_t q, int64_t count, int64_t samples, int64_t elements) {
  const int64_t groups = groups_per_sample(elements);
  const auto fill = noise.per_sample ? whole_groups<kind, true> : whole_groups<kind, false>;
  if (count == block_groups && elements % 4 == 0) return fill(z, noise, q, count, groups, samples - 1);
  alignas(64) float raw[block_elements];
  fill(raw, noise, q, count, groups, samples - 1);
  for (int64_t i = 0, group = q % groups; i < count; ++i) {
    const int64_t n = std::min<int64_t>(4, elements - 4 * group);
    for (int64_t k = 0; k < n; ++k) *z++ = raw[4 * i + k];
    if (++group == groups) group = 0;
  }
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
