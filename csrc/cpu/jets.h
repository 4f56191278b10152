// Jets (csrc/kernels.h) through a network and back: one vector of points, a point in each lane.
#pragma once
#include <algorithm>

#include "../math/jet.h"
#include "network.h"

namespace fpfast {
namespace FPFAST_LEVEL {

constexpr int slope_orders = 4;

// Sums of so many rows of a matrix and columns of jets fill the registers.
constexpr int jet_rows = lanes == 16 ? 6 : rows_together, most_columns = lanes == 16 ? 4 : 3;

template <class T>
struct Workspace {
  static constexpr int L = lanes_of<T>;
  Columns columns;
  T *jets, *adjoints, *slopes, *turned;
  alignas(64) T curvature[L];

  int64_t width() const { return columns.count * L; }
  T* jet(int64_t row) const { return jets + row * width(); }
  T* adjoint(int64_t row) const { return adjoints + row * width(); }
};

// out = W in (+ other) for columns first ... last - 1.
template <class T, int P>
void some_columns(int64_t rows, int64_t columns, T* out, const T* in, const T* w, int64_t width, const T* other) {
  linear<T, P, jet_rows>(rows, columns, out, in, w, width, {nullptr, other, nullptr});
}

template <class T>
void multiply(int64_t rows, int64_t columns, T* out, const T* in, const T* w, int64_t width, const T* other,
              int64_t first, int64_t last) {
  while (first < last) {
    const int64_t left = last - first, parts = (left + most_columns - 1) / most_columns, at = first * lanes_of<T>;
    const int P = int((left + parts - 1) / parts);
    const auto some = P == 1   ? some_columns<T, 1>
                      : P == 2 ? some_columns<T, 2>
                      : P == 3 ? some_columns<T, 3>
                               : some_columns<T, most_columns>;
    some(rows, columns, out + at, in + at, w, width, other ? other + at : nullptr);
    first += P;
  }
}

// out (+)= factor * in for columns first ... last - 1, a factor a row, or 1.
template <class T>
void copy_columns(int64_t rows, T* out, const T* in, const T* factor, int64_t width, bool adds, int64_t first,
                  int64_t last) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = r * width + first * lanes_of<T>; k < r * width + last * lanes_of<T>; k += lanes_of<T>) {
      const Vector<T> v = factor ? factor[r] * load(in + k) : load(in + k);
      store(out + k, adds ? load(out + k) + v : v);
    }
}

// ------------------------------------------------------------------------------------------------ activations, forward

// A row of a jet or of its adjoint, for math/jet.h.
template <class T, bool adds = false>
struct Row {
  using V = Vector<T>;
  T* at;

  FPFAST_MEMBER V get(int64_t column) const { return load(at + column * lanes_of<T>); }
  FPFAST_MEMBER void put(int64_t column, V v) const { store(at + column * lanes_of<T>, adds ? get(column) + v : v); }
  FPFAST_FN V fma(V a, V b, V c) { return FPFAST_LEVEL::fma(a, b, c); }
};

template <class T>
void first_order(int64_t rows, T* z, T* h, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  for (int64_t r = 0; r < rows; ++r, z += at.width(), h += at.width(), slopes += slope_orders * L)
    first_order_row(Row<T>{z}, Row<T>{h}, load(slopes), load(slopes + L), load(at.curvature), at.columns);
}

// What the argument is multiplied by, and what the value then is too large by; see math/activation.h.
inline double scale_in(Activation kind, double parameter) {
  constexpr double log2e = 1.4426950408889634;
  switch (kind) {
    case Activation::tanh: return 2 * log2e;
    case Activation::softplus: return parameter * log2e;
    case Activation::silu:
    case Activation::elu: return log2e;
    default: return 1;
  }
}
inline double scale_out(Activation kind, double parameter) {
  return kind == Activation::tanh ? 1 : 1 / scale_in(kind, parameter);
}

// How far the columns go that a pass forward fills in: with `first_order` those follow at once, from registers.
enum class Ahead { value, first_order, first_order_of_dual };

template <Activation kind, int N, Ahead ahead>
FPFAST_FN void slopes_of_some(float* z, float* h, float* slopes, const Workspace<float>& at, float parameter, float in,
                              float out) {
  const int64_t width = at.width();
  Pack<float, N> u;
  FPFAST_UNROLL
  for (int n = 0; n < N; ++n) u.v[n] = in * load(z + n * width);
  const Jet<Pack<float, N>> jet = activation<Simd<N>, kind>(u, parameter);
  FPFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    float* to = slopes + n * slope_orders * lanes;
    store(h + n * width, out * jet.value.v[n]);
    store(to, jet.first.v[n]);
    store(to + lanes, jet.second.v[n]);
    store(to + 2 * lanes, jet.third.v[n]);
    if constexpr (ahead == Ahead::first_order_of_dual) store(to + 3 * lanes, jet.fourth.v[n]);
    if constexpr (ahead != Ahead::value)
      first_order_row(Row<float>{z + n * width}, Row<float>{h + n * width}, jet.first.v[n], jet.second.v[n],
                      load(at.curvature), at.columns);
  }
}

template <Activation kind, Ahead ahead>
void slopes_of_rows(int64_t rows, float* z, float* h, float* slopes, const Workspace<float>& at, float parameter) {
  const float in = float(scale_in(kind, parameter)), out = float(scale_out(kind, parameter));
  constexpr int together = 2;
  const int64_t width = at.width();
  int64_t r = 0;
  for (; r + together <= rows; r += together)
    slopes_of_some<kind, together, ahead>(z + r * width, h + r * width, slopes + r * slope_orders * lanes, at,
                                          parameter, in, out);
  for (; r < rows; ++r)
    slopes_of_some<kind, 1, ahead>(z + r * width, h + r * width, slopes + r * slope_orders * lanes, at, parameter, in,
                                   out);
}

// The value of h and its derivatives by z, and what columns `ahead` names.
template <Ahead ahead>
void slopes_of(Activation kind, int64_t rows, float* z, float* h, float* slopes, const Workspace<float>& at,
               float parameter) {
  const auto run = kind == Activation::tanh       ? slopes_of_rows<Activation::tanh, ahead>
                   : kind == Activation::softplus ? slopes_of_rows<Activation::softplus, ahead>
                   : kind == Activation::silu     ? slopes_of_rows<Activation::silu, ahead>
                   : kind == Activation::gelu     ? slopes_of_rows<Activation::gelu, ahead>
                   : kind == Activation::elu      ? slopes_of_rows<Activation::elu, ahead>
                                                  : slopes_of_rows<Activation::sine, ahead>;
  run(rows, z, h, slopes, at, parameter);
}

template <Ahead ahead>
void slopes_of(Activation kind, int64_t rows, double* z, double* h, double* slopes, const Workspace<double>& at,
               double parameter) {
  constexpr int L = lanes_of<double>;
  const double in = scale_in(kind, parameter), out = scale_out(kind, parameter);
  for (int64_t r = 0; r < rows; ++r)
    for (int k = 0; k < L; ++k) {
      const Jet<double> jet = exact_activation(kind, in * z[r * at.width() + k], parameter);
      double* to = slopes + r * slope_orders * L + k;
      h[r * at.width() + k] = out * jet.value;
      to[0] = jet.first, to[L] = jet.second, to[2 * L] = jet.third, to[3 * L] = jet.fourth;
    }
  if (ahead != Ahead::value) first_order(rows, z, h, slopes, at);
}

template <class T, bool rates>
void along_e(int64_t rows, T* z, T* h, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  for (int64_t r = 0; r < rows; ++r, z += at.width(), h += at.width(), slopes += slope_orders * L)
    along_e_row<rates>(Row<T>{z}, Row<T>{h}, load(slopes), load(slopes + L), load(slopes + 2 * L), load(at.curvature),
                       at.columns);
}

// The adjoint of z from that of h, which may be the same place.
template <class T, Reach reach, bool adds>
void back_rows(int64_t rows, T* z, T* adjoint, T* out, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  const int64_t width = at.width();
  for (int64_t r = 0; r < rows; ++r, z += width, adjoint += width, out += width, slopes += slope_orders * L) {
    const SlopesOfRow<Vector<T>> h = {load(slopes), load(slopes + L), load(slopes + 2 * L), load(slopes + 3 * L)};
    back_row<reach>(Row<T>{z}, Row<T>{adjoint}, Row<T, adds>{out}, h, load(at.curvature), at.columns);
  }
}

template <class T, Reach reach>
void back(int64_t rows, T* z, T* adjoint, T* out, bool adds, const T* slopes, const Workspace<T>& at) {
  const auto run = adds ? back_rows<T, reach, true> : back_rows<T, reach, false>;
  run(rows, z, adjoint, out, slopes, at);
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
