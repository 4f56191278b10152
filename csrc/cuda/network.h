// Runs a network's program (csrc/kernels.h) on one warp's tile of 16 samples (tile.h), whose values lie in shared
// memory, a lane's where no other lane looks. So warps wait for each other only where weights come in.
#pragma once
#include "../kernels.h"
#include "../math/activation.h"
#include "launch.h"
#include "tile.h"

namespace fpfast::cuda {

// The four numbers of tile `row / 8`.
struct Values {
  float4* memory;  // of this lane

  __device__ float4& operator()(int64_t row) const { return memory[row / tile_rows * warp]; }
};

// out = (W in + bias + other) * factor. A matrix comes as slabs of [column tile][pair of row tiles][lane][4], each of
// whole columns of at most pairs_together pairs: the numbers of B's fragment for the one tile and the other.
template <class Product, class Weights>
__device__ void linear(const Instruction& i, const Values& at, const float4* in, const float* bias, int64_t input,
                       int64_t output, Lane lane, Weights& weights) {
  const auto place = [&](int64_t row) { return row == input_rows ? input : row == output_rows ? output : row; };
  const int columns = tiles_of(i.columns), tiles = tiles_of(i.rows);
  for (int first = 0; 2 * first < tiles; first += pairs_together) {
    const int pairs = min(pairs_together, (tiles + 1) / 2 - first);
    float sums[2 * pairs_together][4] = {};
    for (int column = 0; column < columns;) {
      const auto slab = weights.next();
      const float4* w = slab.data + lane.number;
      const int end = column + slab.fragments / pairs;
      for (; column < end; column += Product::tiles, w += Product::tiles * pairs * warp) {
        const bool whole = column + Product::tiles <= end;
        const Product product(in + column * warp, whole);
        FPFAST_UNROLL
        for (int p = 0; p < pairs_together; ++p) {
          if (p >= pairs) break;
          product.add(sums[2 * p], sums[2 * p + 1], w + p * warp, pairs * warp, whole);
        }
      }
      column = end;
    }
    FPFAST_UNROLL
    for (int t = 0; t < 2 * pairs_together; ++t) {
      const int row = (2 * first + t) * tile_rows;
      if (row >= i.rows) break;
      float4 v = of_sums(sums[t]);
      if (bias) v = v + of_rows(*reinterpret_cast<const float2*>(bias + row + lane.row()));
      if (i.other != nothing) v = v + at(place(i.other) + row);
      if (i.first != nothing) v = v * at(place(i.first) + row);
      at(place(i.out) + row) = v;
    }
  }
}

template <Activation kind, bool slopes>
__device__ void activate_tiles(int tiles, const float4* in, float4* out, float4* first, float4* second,
                               float parameter) {
  for (int t = 0; t < tiles; ++t) {
    const float4 u = in[t * warp];
    const Jet<float> x = activation<Scalar, kind>(u.x, parameter), y = activation<Scalar, kind>(u.y, parameter),
                     z = activation<Scalar, kind>(u.z, parameter), w = activation<Scalar, kind>(u.w, parameter);
    if (out) out[t * warp] = make_float4(x.value, y.value, z.value, w.value);
    if constexpr (slopes) {
      if (first) first[t * warp] = make_float4(x.first, y.first, z.first, w.first);
      if (second) second[t * warp] = make_float4(x.second, y.second, z.second, w.second);
    }
  }
}

template <bool slopes>
__device__ void activate(Activation kind, int tiles, const float4* in, float4* out, float4* first, float4* second,
                         float p) {
  switch (kind) {
    case Activation::tanh: return activate_tiles<Activation::tanh, slopes>(tiles, in, out, first, second, p);
    case Activation::softplus: return activate_tiles<Activation::softplus, slopes>(tiles, in, out, first, second, p);
    case Activation::silu: return activate_tiles<Activation::silu, slopes>(tiles, in, out, first, second, p);
    case Activation::gelu: return activate_tiles<Activation::gelu, slopes>(tiles, in, out, first, second, p);
    case Activation::elu: return activate_tiles<Activation::elu, slopes>(tiles, in, out, first, second, p);
    case Activation::sine: return activate_tiles<Activation::sine, slopes>(tiles, in, out, first, second, p);
  }
}

// The program at the rows from `input`, its end to those from `output`. All warps of a block go through it together,
// for they share the weights as these come in.
template <class Product, class Weights>
__device__ void evaluate(const Trajectory& run, const Values& at, const float* bias_row, int64_t input, int64_t output,
                         Lane lane, Weights& weights) {
  const float* const vectors = static_cast<const float*>(run.weights) + lane.row();
  const auto tile = [&](int64_t row) -> float4* {
    if (row == nothing) return nullptr;
    return &at(row == input_rows ? input : row == output_rows ? output : row);
  };
  for (int64_t n = 0; n < run.instructions; ++n) {
    const Instruction& i = run.program[n];
    float4* const out = tile(i.out);
    const float4 *const in = tile(i.in), *const other = tile(i.other);
    const float* const bias = i.bias == nothing ? nullptr : bias_row + i.bias;
    const int tiles = tiles_of(i.rows);
    if (i.op == Op::linear) {
      linear<Product>(i, at, in, bias, input, output, lane, weights);
    } else if (i.op == Op::activate) {
      const float parameter = static_cast<const float*>(run.weights)[i.weights];
      float4 *const first = tile(i.first), *const second = tile(i.second);
      if (first || second)
        activate<true>(Activation(i.kind), tiles, in, out, first, second, parameter);
      else
        activate<false>(Activation(i.kind), tiles, in, out, nullptr, nullptr, parameter);
    } else {
      for (int t = 0; t < tiles; ++t) {
        float4 v = i.op == Op::fill || i.op == Op::scale
                       ? of_rows(*reinterpret_cast<const float2*>(vectors + i.weights + t * tile_rows))
                       : make_float4(1, 1, 1, 1);
        if (i.op == Op::multiply) v = other[t * warp];
        if (i.op != Op::fill) v = v * in[t * warp];
        if (bias) v = v + of_rows(*reinterpret_cast<const float2*>(bias + t * tile_rows + lane.row()));
        if (other && i.op != Op::multiply) v = v + other[t * warp];
        out[t * warp] = v;
      }
    }
  }
}

}  // namespace fpfast::cuda
