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

// The four values of each group of V vectors, or with pairs = 1 only the first two. A place after last_sample is filled
// with something.
template <Kind kind, int V, bool seed_per_sample, int pairs = 2>
FPFAST_FN void noise_values(const Place (&place)[V], const Noise& noise, int64_t last_sample,
                            Vector<float> (&z)[V][4]) {
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
  using Values = Simd<pairs * V>;
  typename Values::U first, second;  // of each pair: words 0 and 2 in `first`, 1 and 3 in `second`
  FPFAST_UNROLL
  for (int v = 0; v < V; ++v) {
    first.v[v] = interleave(w.w0.v[2 * v], w.w0.v[2 * v + 1]);
    second.v[v] = interleave(w.w1.v[2 * v], w.w1.v[2 * v + 1]);
    if constexpr (pairs == 2) {
      first.v[V + v] = interleave(w.w2.v[2 * v], w.w2.v[2 * v + 1]);
      second.v[V + v] = interleave(w.w3.v[2 * v], w.w3.v[2 * v + 1]);
    }
  }
  Pair<Values> values;
  if constexpr (kind == Kind::normal) {
    values = normal_pair<Values>(first, second);
  } else {
    constexpr auto f = kind == Kind::uniform ? uniform_value<Values> : rademacher_value<Values>;
    values = {f(first), f(second)};
  }
  FPFAST_UNROLL
  for (int v = 0; v < V; ++v) {
    z[v][0] = values.a.v[v], z[v][1] = values.b.v[v];
    if constexpr (pairs == 2) z[v][2] = values.a.v[V + v], z[v][3] = values.b.v[V + v];
  }
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
