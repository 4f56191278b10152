// A warp's tile of 16 samples, and products of it with matrices on tensor cores.
//
// A value's rows come in tiles of eight. Of those lane 4 g + q has rows 2 q and 2 q + 1 of samples g and g + 8, four
// numbers, as mma leaves its sums and as they can be an operand of the next mma: a sum over rows does not mind their
// order, so rows 2 q and 2 q + 1 take the places q and q + 4, in the weights too. Nothing is moved between lanes.
//
// A product of float32 numbers is three products of tensor cores: with a = high + low, a b is high high' + high low' +
// low high' but for 2^-22 of it.
#pragma once
#include <cstdint>

#include "../math/machine.h"
#include "tensor.h"

// x, y are row 2 q of samples g and g + 8, and z, w row 2 q + 1.
__device__ inline float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ inline float4 operator-(float4 a, float4 b) {
  return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}
__device__ inline float4 operator-(float4 a) { return make_float4(-a.x, -a.y, -a.z, -a.w); }
__device__ inline float4 operator*(float4 a, float4 b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

namespace fpfast::cuda {

constexpr int warp = 32, tile_samples = 16, tile_rows = 8;

struct Lane {
  int number;

  __device__ int sample(int which) const { return number / 4 + 8 * which; }  // of the tile, which = 0, 1
  __device__ int row() const { return number % 4 * 2; }                      // the first of a tile's two
};

__device__ inline float4 of_rows(float2 v) { return make_float4(v.x, v.x, v.y, v.y); }     // one number a row
__device__ inline float4 of_samples(float2 v) { return make_float4(v.x, v.y, v.x, v.y); }  // one a sample
__device__ inline float4 of_all(float v) { return make_float4(v, v, v, v); }

__device__ inline int tiles_of(int64_t rows) { return int((rows + tile_rows - 1) / tile_rows); }

// A number's upper 11 bits, rounded, and what is left.
__device__ inline void split(float value, uint32_t& high, uint32_t& low) {
  high = (__float_as_uint(value) + 0x1000u) & 0xFFFFE000u;
  low = __float_as_uint(value - __uint_as_float(high));
}

// A fragment of mma in two parts; of the left operand it is a lane's four numbers in their order.
template <int n>
struct Split {
  uint32_t high[n], low[n];

  __device__ explicit Split(const float (&v)[n]) {
    FPFAST_UNROLL
    for (int k = 0; k < n; ++k) split(v[k], high[k], low[k]);
  }
};

__device__ inline Split<4> split_left(float4 v) {
  const float numbers[] = {v.x, v.y, v.z, v.w};
  return Split<4>(numbers);
}
__device__ inline Split<2> split_right(float first, float second) {
  const float numbers[] = {first, second};
  return Split<2>(numbers);
}

__device__ inline void add_product(float (&sums)[4], const Split<4>& a, const Split<2>& b) {
  mma_tf32(sums, a.low, b.high);
  mma_tf32(sums, a.high, b.low);
  mma_tf32(sums, a.high, b.high);
}

// How a tile's values are multiplied by a pair of row tiles of a matrix, so many column tiles at once. `in` and `w` are
// the lane's numbers of the first of them, the next ones are `stride` on; `whole`: they are all there.
struct Exactly {  // as float32 numbers
  static constexpr int tiles = 1;
  Split<4> left;

  __device__ Exactly(const float4* in, bool) : left(split_left(*in)) {}
  __device__ void add(float (&upper)[4], float (&lower)[4], const float4* w, int64_t, bool) const {
    const float4 b = *w;
    add_product(upper, left, split_right(b.x, b.y));
    add_product(lower, left, split_right(b.z, b.w));
  }
};

struct Rounded {  // rounded to bfloat16, and summed up in float32
  static constexpr int tiles = 2;
  uint32_t left[4];

  __device__ Rounded(const float4* in, bool whole) {
    const float4 a = in[0], b = whole ? in[warp] : make_float4(0, 0, 0, 0);
    left[0] = two_bf16(a.x, a.z), left[1] = two_bf16(a.y, a.w);
    left[2] = two_bf16(b.x, b.z), left[3] = two_bf16(b.y, b.w);
  }
  __device__ void add(float (&upper)[4], float (&lower)[4], const float4* w, int64_t stride, bool whole) const {
    const float4 a = *w, b = whole ? w[stride] : make_float4(0, 0, 0, 0);
    mma_bf16(upper, left, {two_bf16(a.x, a.y), two_bf16(b.x, b.y)});
    mma_bf16(lower, left, {two_bf16(a.z, a.w), two_bf16(b.z, b.w)});
  }
};

// A lane's numbers where they were summed up.
__device__ inline float4 of_sums(const float (&sums)[4]) { return make_float4(sums[0], sums[2], sums[1], sums[3]); }

}  // namespace fpfast::cuda
