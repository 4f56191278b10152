// Gradients of matrices: products, over points and columns, of an adjoint with the jets that a matrix was applied to.
// The jets are turned round for that, a point's numbers side by side.
#pragma once
#include <algorithm>

#include "network.h"
#include "sums.h"

namespace fpfast {
namespace FPFAST_LEVEL {

#if defined(__AVX512F__)
// 16 vectors, `from` apart, become 16 others, `to` apart: blocks of 4 x 4 are turned, then the square of blocks.
FPFAST_FN void turn_square(const float* in, int64_t from, float* out, int64_t to) {
  Vector<float> v[4][4];
  FPFAST_UNROLL
  for (int g = 0; g < 4; ++g) {
    FPFAST_UNROLL
    for (int j = 0; j < 4; ++j) v[g][j] = load(in + (4 * g + j) * from);
    transpose_blocks(v[g][0], v[g][1], v[g][2], v[g][3]);
  }
  FPFAST_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 a = v[0][j], b = v[1][j], c = v[2][j], d = v[3][j];
    const __m512 ab_even = _mm512_shuffle_f32x4(a, b, 0x88), ab_odd = _mm512_shuffle_f32x4(a, b, 0xDD);
    const __m512 cd_even = _mm512_shuffle_f32x4(c, d, 0x88), cd_odd = _mm512_shuffle_f32x4(c, d, 0xDD);
    store(out + j * to, Vector<float>(_mm512_shuffle_f32x4(ab_even, cd_even, 0x88)));
    store(out + (4 + j) * to, Vector<float>(_mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88)));
    store(out + (8 + j) * to, Vector<float>(_mm512_shuffle_f32x4(ab_even, cd_even, 0xDD)));
    store(out + (12 + j) * to, Vector<float>(_mm512_shuffle_f32x4(ab_odd, cd_odd, 0xDD)));
  }
}
#endif

// turned[column, lane][row] of a jet's columns first ... last - 1, rows filled up with zeros to `padded`.
template <class T>
void turn(int64_t rows, const T* in, int64_t width, int64_t first, int64_t last, T* turned, int64_t padded) {
  constexpr int L = lanes_of<T>;
  const int64_t columns = last - first;
  in += first * L;
  int64_t r = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
#if defined(__AVX512F__)
    for (; r + 16 <= rows; r += 16)
      for (int64_t c = 0; c < columns; ++c)
        turn_square(in + r * width + c * L, width, turned + c * L * padded + r, padded);
#endif
    for (; r + 4 <= rows; r += 4)
      for (int64_t c = 0; c < columns; ++c) {
        Vector<float> v[4];
        FPFAST_UNROLL
        for (int j = 0; j < 4; ++j) v[j] = load(in + (r + j) * width + c * L);
        transpose_blocks(v[0], v[1], v[2], v[3]);
        scatter_blocks(turned + c * L * padded + r, padded, v);
      }
  }
  for (; r < padded; ++r)
    for (int64_t p = 0; p < columns * L; ++p) turned[p * padded + r] = r < rows ? in[r * width + p] : T(0);
}

// gradient[r][k] += sum over points of adjoint[r][point] turned[point][k], R rows and V vectors.
template <class T, int R, int V>
FPFAST_FN void outer_block(T* gradient, int64_t padded, const T* adjoint, int64_t width, const T* turned,
                           int64_t points) {
  constexpr int L = lanes_of<T>;
  Vector<T> sum[R][V];
  FPFAST_UNROLL
  for (int r = 0; r < R; ++r) FPFAST_UNROLL
  for (int v = 0; v < V; ++v) sum[r][v] = load(gradient + r * padded + v * L);
#pragma GCC unroll 4
  for (int64_t p = 0; p < points; ++p, turned += padded) {
    Vector<T> x[V];
    FPFAST_UNROLL
    for (int v = 0; v < V; ++v) x[v] = load(turned + v * L);
    FPFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vector<T> one = broadcast(adjoint[r * width + p]);
      FPFAST_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = fma(one, x[v], sum[r][v]);
    }
  }
  FPFAST_UNROLL
  for (int r = 0; r < R; ++r) FPFAST_UNROLL
  for (int v = 0; v < V; ++v) store(gradient + r * padded + v * L, sum[r][v]);
}

template <class T, int R, int V>
void outer_vectors(int64_t rows, T* gradient, int64_t padded, const T* adjoint, int64_t width, const T* turned,
                   int64_t points) {
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    outer_block<T, R, V>(gradient + r * padded, padded, adjoint + r * width, width, turned, points);
  for (; r < rows; ++r) outer_block<T, 1, V>(gradient + r * padded, padded, adjoint + r * width, width, turned, points);
}

// The same for a matrix of few rows or columns, not turned: gradient[r][k][lane], to be added up by whoever reads it.
template <class T>
void outer_narrow(int64_t rows, int64_t columns, T* gradient, const T* adjoint, const T* in, int64_t width,
                  int64_t first, int64_t last) {
  constexpr int L = lanes_of<T>;
  for (int64_t r = 0; r < rows; ++r, adjoint += width)
    for (int64_t k = 0; k < columns; ++k, gradient += gradient_lanes) {
      Vector<T> sum = load(gradient);
      for (int64_t c = first * L; c < last * L; c += L) sum = fma(load(adjoint + c), load(in + k * width + c), sum);
      store(gradient, sum);
    }
}

// Sums of R rows and V vectors fill the registers.
constexpr int most_outer = lanes == 16 ? 5 : 3;
constexpr int outer_rows(int V) { return lanes == 16 && V > 3 ? (V == 4 ? 6 : 5) : rows_together; }

template <class T, int V, class... Arguments>
void outer_some(int wanted, Arguments... arguments) {
  if constexpr (V > 0) {
    if (wanted == V) return outer_vectors<T, outer_rows(V), V>(arguments...);
    outer_some<T, V - 1>(wanted, arguments...);
  }
}

constexpr int turned_columns = 8;  // at a time

template <class T>
void outer(int64_t rows, int64_t columns, T* gradient, const T* adjoint, const T* in, int64_t width, T* turned,
           int64_t first, int64_t last) {
  constexpr int L = lanes_of<T>;
  if (narrow(rows, columns)) return outer_narrow(rows, columns, gradient, adjoint, in, width, first, last);
  const int64_t padded = padded_columns(rows, columns);
  for (; first < last; first += turned_columns) {
    const int64_t end = std::min<int64_t>(last, first + turned_columns), points = (end - first) * L;
    turn(columns, in, width, first, end, turned, padded);
    for (int64_t k = 0, left = padded / L; left > 0;) {
      const int64_t parts = (left + most_outer - 1) / most_outer, V = (left + parts - 1) / parts;
      outer_some<T, most_outer>(int(V), rows, gradient + k, padded, adjoint + first * L, width, turned + k, points);
      k += V * L, left -= V;
    }
  }
}

// A number a row and lane, to be added up by whoever reads the gradient.
template <class T>
void row_sums(int64_t rows, T* gradient, const T* adjoint, const T* other, int64_t width, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < columns * lanes_of<T>; k += lanes_of<T>) {
      T* to = gradient + r * gradient_lanes;
      const Vector<T> u = load(adjoint + r * width + k);
      store(to, other ? fma(u, load(other + r * width + k), load(to)) : load(to) + u);
    }
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
