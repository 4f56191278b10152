// Jets (csrc/kernels.h) of a tile of 16 points (tile.h) through a network and back, and gradients of its parameters
// over the tiles of a block.
//
// Jets and adjoints lie in the GPU's memory, a tile of rows after the other, its columns side by side: 512 bytes each,
// 16 a lane.
#pragma once
#include "../kernels.h"
#include "../math/activation.h"
#include "../math/jet.h"
#include "tile.h"

namespace fpfast::cuda {

constexpr int points_warps = 8;                           // of a block
constexpr int points_blocks = 2;                          // on a multiprocessor
constexpr int columns_together = 2, matrix_together = 3;  // columns of a jet and pairs of row tiles, summed up at once
constexpr int right_together = 4;                         // tiles of a gradient that share an operand

// How a warp's workspace is laid out. It is a parameter of the kernel, as what is read from there takes no registers.
struct Layout {
  Columns columns;
  int jets;  // rows of them; adjoints lie behind
  int size;  // float4

  // Places of rows, in float4: 32 bits, as pointers would take twice the registers.
  __device__ int jet(int row) const { return row / tile_rows * columns.count * warp; }
  __device__ int adjoint(int row) const { return jet(jets + row); }
};
constexpr int nowhere = -1;  // in place of a place

// A tile of rows of a jet, for math/jet.h.
struct Row {
  using V = float4;
  float4* memory;
  int at;
  bool adds = false;

  __device__ V get(int column) const { return memory[at + column * warp]; }
  __device__ void put(int column, V v) const { memory[at + column * warp] = adds ? get(column) + v : v; }
  __device__ static float fma(float a, float b, float c) { return fmaf(a, b, c); }
  __device__ static V fma(V a, V b, V c) {
    return make_float4(fma(a.x, b.x, c.x), fma(a.y, b.y, c.y), fma(a.z, b.z, c.z), fma(a.w, b.w, c.w));
  }
};

// Some columns of a jet: first, first + step ... below last.
struct Some {
  int first, last, step = 1;
};

// For C columns, `step` apart. `memory` is the lane's. Matrices come as [pair of row tiles][column tile][lane][4], from
// the lane's numbers on.
template <int C>
__device__ void multiply_some(int rows, int columns, float4* memory, int out, int in, const float4* w, int other,
                              int width, int step) {
  const int tiles = tiles_of(rows), pairs = (tiles + 1) / 2, right = tiles_of(columns);
  for (int first = 0; first < pairs; first += matrix_together, w += matrix_together * right * warp) {
    float sums[C][2 * matrix_together][4] = {};
    for (int k = 0; k < right; ++k) {
      const int at = in + k * width * warp;
      const Split<4> a[] = {split_left(memory[at]), split_left(memory[at + (C - 1) * step * warp])};
      FPFAST_UNROLL
      for (int p = 0; p < matrix_together; ++p) {
        if (first + p >= pairs) break;
        const float4 b = __ldg(w + (p * right + k) * warp);
        const Split<2> upper = split_right(b.x, b.y), lower = split_right(b.z, b.w);
        FPFAST_UNROLL
        for (int c = 0; c < C; ++c) {
          add_product(sums[c][2 * p], a[c], upper);
          add_product(sums[c][2 * p + 1], a[c], lower);
        }
      }
    }
    FPFAST_UNROLL
    for (int t = 0; t < 2 * matrix_together; ++t) {
      if (2 * first + t >= tiles) break;
      FPFAST_UNROLL
      for (int c = 0; c < C; ++c) {
        const int at = ((2 * first + t) * width + c * step) * warp;
        const float4 v = of_sums(sums[c][t]);
        memory[out + at] = other == nowhere ? v : memory[other + at] + v;
      }
    }
  }
}

// out = W in (+ other, which may be `nowhere`).
__device__ inline void multiply(int rows, int columns, float4* memory, int out, int in, const float4* w, int other,
                                int width, Some some) {
  for (int c = some.first; c < some.last; c += columns_together * some.step) {
    const int also = other == nowhere ? nowhere : other + c * warp;
    if (c + some.step < some.last)
      multiply_some<2>(rows, columns, memory, out + c * warp, in + c * warp, w, also, width, some.step);
    else
      multiply_some<1>(rows, columns, memory, out + c * warp, in + c * warp, w, also, width, some.step);
  }
}

// out (+)= factor * in, a factor a row, or 1; `factor` begins with the lane's.
__device__ inline void copy_columns(int rows, float4* memory, int out, int in, const float* factor, int width,
                                    bool adds, Some some) {
  for (int t = 0; t < tiles_of(rows); ++t)
    for (int c = some.first; c < some.last; c += some.step) {
      const int at = (t * width + c) * warp;
      float4 v = memory[in + at];
      if (factor) v = v * of_rows(*reinterpret_cast<const float2*>(factor + t * tile_rows));
      memory[out + at] = adds ? memory[out + at] + v : v;
    }
}

// ------------------------------------------------------------------------------------------------------- activations

// What the argument is multiplied by, and then the value; see math/activation.h.
struct Scales {
  float in, out;

  __device__ Scales(Activation kind, float parameter) {
    constexpr float log2e = 0x1.715476p+0f, ln2 = 0x1.62e430p-1f;
    in = kind == Activation::tanh                              ? 2 * log2e
         : kind == Activation::softplus                        ? parameter * log2e
         : kind == Activation::silu || kind == Activation::elu ? log2e
                                                               : 1.0f;
    out = kind == Activation::softplus ? 1 / in : kind == Activation::silu || kind == Activation::elu ? ln2 : 1.0f;
  }
};

template <Activation kind>
__device__ inline Jet<float4> activation_of(float4 u, float p) {
  const Jet<float> x = activation<Scalar, kind>(u.x, p), y = activation<Scalar, kind>(u.y, p),
                   z = activation<Scalar, kind>(u.z, p), w = activation<Scalar, kind>(u.w, p);
  return {make_float4(x.value, y.value, z.value, w.value), make_float4(x.first, y.first, z.first, w.first),
          make_float4(x.second, y.second, z.second, w.second), make_float4(x.third, y.third, z.third, w.third),
          make_float4(x.fourth, y.fourth, z.fourth, w.fourth)};
}

__device__ inline Jet<float4> activation_of(Activation kind, float4 u, float p) {
  switch (kind) {
    case Activation::tanh: return activation_of<Activation::tanh>(u, p);
    case Activation::softplus: return activation_of<Activation::softplus>(u, p);
    case Activation::silu: return activation_of<Activation::silu>(u, p);
    case Activation::gelu: return activation_of<Activation::gelu>(u, p);
    case Activation::elu: return activation_of<Activation::elu>(u, p);
    default: return activation_of<Activation::sine>(u, p);
  }
}

// f(place of a tile from the first one's, derivatives of the activation at z) for each tile of rows.
template <class F>
__device__ void for_slopes(const JetInstruction& i, const float4* z, int width, float parameter, const F& f) {
  const Scales scales(Activation(i.kind), parameter);
  for (int t = 0; t < tiles_of(i.rows); ++t) {
    const int at = t * width * warp;
    Jet<float4> h = activation_of(Activation(i.kind), of_all(scales.in) * z[at], parameter);
    h.value = of_all(scales.out) * h.value;
    f(at, h);
  }
}

// --------------------------------------------------------------------------------------------------------- gradients

// The workspaces of a block's warps, one after the other, without the lane's offset. As float2 they are numbers of one
// row and two points: number 8 s + r of a column's 64 has row r of a tile and points s and s + 8.
struct Block {
  const float2* memory;
  int size, columns;  // float2 of a warp's workspace; columns of a jet

  __device__ int tile(int row_tile, int column) const { return (row_tile * columns + column) * 2 * warp; }
};

// sums (+)= adjoint in^T over the block's points and some columns, shared out among its warps: [pair of row
// tiles][column tile][lane][4], as mma leaves them. `adjoint` and `in` are tiles of rows. Each warp's points have sums
// of their own before they are added.
__device__ inline void outer(int rows, int columns, float4* sums, int adjoint, int in, const Block& block, bool adds,
                             Lane lane, Some some) {
  const int tiles = tiles_of(rows), right = tiles_of(columns);
  const int groups = (right + right_together - 1) / right_together;
  const int g = lane.number / 4, q = lane.number % 4;
  const int own_place = 8 * q + g;  // row g, points q and q + 8; half a column on, q + 4 and q + 12
  const int step = some.step * 2 * warp;
  for (int item = int(threadIdx.x) / warp; item < (tiles + 1) / 2 * groups; item += points_warps) {
    const int tile = item / groups * 2, first = item % groups * right_together;
    float4 total[right_together] = {};
    for (int of = 0; of < points_warps; ++of) {
      float own[right_together][4] = {};
      const int at = of * block.size + own_place;
      int upper = at + block.tile(adjoint + tile, some.first);
      int lower = at + block.tile(adjoint + min(tile + 1, tiles - 1), some.first);
      int from[right_together];
      FPFAST_UNROLL
      for (int n = 0; n < right_together; ++n) from[n] = at + block.tile(in + min(first + n, right - 1), some.first);
      for (int c = some.first; c < some.last; c += some.step) {
        FPFAST_UNROLL
        for (int half = 0; half < 2 * warp; half += warp) {
          const float2 u = block.memory[upper + half], l = block.memory[lower + half];
          const Split<4> a = split_left(make_float4(u.x, l.x, u.y, l.y));
          FPFAST_UNROLL
          for (int n = 0; n < right_together; ++n) {
            const float2 b = block.memory[from[n] + half];
            add_product(own[n], a, split_right(b.x, b.y));
          }
        }
        upper += step, lower += step;
        FPFAST_UNROLL
        for (int n = 0; n < right_together; ++n) from[n] += step;
      }
      FPFAST_UNROLL
      for (int n = 0; n < right_together; ++n)
        total[n] = total[n] + make_float4(own[n][0], own[n][1], own[n][2], own[n][3]);
    }
    FPFAST_UNROLL
    for (int n = 0; n < right_together; ++n) {  // tiles that do not exist were the last one's again
      if (first + n >= right) break;
      float4& to = sums[(tile / 2 * right + first + n) * warp + lane.number];
      to = adds ? to + total[n] : total[n];
    }
  }
}

// sums[r] (+)= the sum over the block's points and the first columns of adjoint, times `in` if it is a tile (not
// `nowhere`); a thread makes a row.
__device__ inline void row_sums(int rows, float* sums, int adjoint, int in, const Block& block, bool adds,
                                int columns) {
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    const int own_place = r % tile_rows;
    float total = 0;
    for (int of = 0; of < points_warps; ++of) {
      float own = 0;
      for (int c = 0; c < columns; ++c) {
        const int at = of * block.size + own_place;
        const int u = at + block.tile(adjoint + r / tile_rows, c), v = at + block.tile(in + r / tile_rows, c);
        FPFAST_UNROLL
        for (int s = 0; s < 2 * warp; s += 8) {
          const float2 term = block.memory[u + s], factor = in == nowhere ? make_float2(1, 1) : block.memory[v + s];
          own = fmaf(term.y, factor.y, fmaf(term.x, factor.x, own));
        }
      }
      total += own;
    }
    sums[r] = adds ? sums[r] + total : total;
  }
}

}  // namespace fpfast::cuda
