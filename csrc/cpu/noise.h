// Noise by vectors of one level. A group is four elements of a sample, one Philox call; its number and its sample's are
// 64-bit lanes, two vectors (even and odd lanes) for each vector of values.
#pragma once
#include <algorithm>

#include "../kernels.h"
#include "../math/normal.h"
#include "simd.h"

namespace fpfast {
namespace FPFAST_LEVEL {

constexpr int lanes64 = lanes / 2;

// Numbers of 64 bits for the lanes of one vector: lane i of half h is for lane 2 i + h.
using Halves = Pack<uint64_t, 2>;

// The groups of one vector.
struct Place {
  Halves group, sample;
};

// The four words of each group of V vectors: words[r] has word r of all of them, in the order of lanes. A place after
// last_sample is filled with something.
template <int V>
struct GroupWords {
  Pack<uint32_t, V> words[4];
};

template <int V, bool seed_per_sample>
FPFAST_FN GroupWords<V> noise_words(const Place (&place)[V], const Noise& noise, int64_t last_sample) {
  using Chains = Simd<2 * V>;
  typename Chains::Word k0 = {}, k1 = {}, group, sample;
  FPFAST_UNROLL
  for (int n = 0; n < 2 * V; ++n) {
    group.v[n] = place[n / 2].group.v[n % 2], sample.v[n] = place[n / 2].sample.v[n % 2];
    if constexpr (seed_per_sample) {
      for (int i = 0; i < lanes64; ++i) {
        const uint64_t seed = noise.seeds[std::min(int64_t(sample.v[n][i]), last_sample)];
        k0.v[n][i] = seed & 0xFFFFFFFFu, k1.v[n][i] = seed >> 32;
      }
      sample.v[n] = Vector<uint64_t>{};
    } else {
      k0.v[n] = k0.v[n] + (*noise.seeds & 0xFFFFFFFFu), k1.v[n] = k1.v[n] + (*noise.seeds >> 32);
      sample.v[n] = sample.v[n] + noise.first_sample;
    }
  }
  const typename Chains::Word draw = typename Chains::Word{} + uint64_t(noise.draw);
  const Words<Chains> w = philox<Chains>({group, sample, sample_high(sample, noise.stream), draw}, k0, k1);
  GroupWords<V> out;
  FPFAST_UNROLL
  for (int v = 0; v < V; ++v) {
    out.words[0].v[v] = interleave(w.w0.v[2 * v], w.w0.v[2 * v + 1]);
    out.words[1].v[v] = interleave(w.w1.v[2 * v], w.w1.v[2 * v + 1]);
    out.words[2].v[v] = interleave(w.w2.v[2 * v], w.w2.v[2 * v + 1]);
    out.words[3].v[v] = interleave(w.w3.v[2 * v], w.w3.v[2 * v + 1]);
  }
  return out;
}

// The values of two words: words 0 and 1 of a group, or 2 and 3.
template <Kind kind, int N>
FPFAST_FN Pair<Simd<N>> two_values(const Pack<uint32_t, N>& first, const Pack<uint32_t, N>& second) {
  if constexpr (kind == Kind::normal) return normal_pair<Simd<N>>(first, second);
  if constexpr (kind == Kind::uniform) return {uniform_value<Simd<N>>(first), uniform_value<Simd<N>>(second)};
  return {rademacher_value<Simd<N>>(first), rademacher_value<Simd<N>>(second)};
}

// Walks over the groups of all samples in a row, a vector at a time. Lane 4 L + j gets group j lanes / 4 + L of the
// vector, so that transposing the four vectors of values within their blocks puts all values in the order of memory.
class Walk {
 public:
  Walk(int64_t groups, int64_t q) : groups_(groups), sample_(q / groups), group_(q % groups) {
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < lanes64; ++i) {
        const int lane = 2 * i + h;
        order_.v[h][i] = uint64_t(lane % 4 * (lanes / 4) + lane / 4);
      }
  }

  Place next() {
    Place place;
    const bool inside = group_ + lanes <= groups_;
    for (int h = 0; h < 2; ++h) {
      Vector<uint64_t> group = order_.v[h] + uint64_t(group_), sample = Vector<uint64_t>{} + uint64_t(sample_);
      if (groups_ == 1) {
        sample += order_.v[h], group = Vector<uint64_t>{};
      } else if (!inside) {
        for (int64_t past = group_ + lanes - 1; past >= groups_; past -= groups_) {
          const Vector<uint64_t> over = Vector<uint64_t>(group >= uint64_t(groups_));
          group -= over & uint64_t(groups_), sample -= over;
        }
      }
      place.group.v[h] = group, place.sample.v[h] = sample;
    }
    if (inside && group_ + lanes < groups_) {
      group_ += lanes;
    } else {
      sample_ += (group_ + lanes) / groups_, group_ = (group_ + lanes) % groups_;
    }
    return place;
  }

 private:
  int64_t groups_, sample_, group_;
  Halves order_;
};

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
