// Jets (csrc/kernels.h) through a network and back: one vector of points, a point in each lane.
//
// For h = h(z), first order: h_i = h' z_i; the rate M h = h' M z - c h'' sum_i z_i^2, c the curvature; along e:
// h_e = h' z_e, h_ie = h' z_ie + h'' z_i z_e, (M h)_e = h' (M z)_e + h'' z_e M z - c (2 h'' sum_i z_i z_ie + h''' z_e
// sum_i z_i^2). The way back is the transpose of the derivative of all that by z and its columns.
#pragma once
#include <algorithm>

#include "network.h"

namespace fpfast {
namespace FPFAST_LEVEL {

// Which columns there are.
struct Columns {
  int64_t directions, count;

  int64_t rate() const { return 1 + directions; }
  int64_t first_order() const { return 2 + directions; }  // so many columns without e
  int64_t along_e() const { return 2 + directions; }
  int64_t mixed() const { return 3 + directions; }
  int64_t rate_along_e() const { return 3 + 2 * directions; }
};

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

// One row of the columns along directions, and of the rate.
template <class T>
FPFAST_FN void first_order_row(const T* z, T* h, Vector<T> h1, Vector<T> h2, Vector<T> curvature, const Columns& c) {
  constexpr int L = lanes_of<T>;
  Vector<T> square{};
  for (int64_t i = 1; i <= c.directions; ++i) {
    const Vector<T> zi = load(z + i * L);
    square = fma(zi, zi, square);
    store(h + i * L, h1 * zi);
  }
  const int64_t rate = c.rate() * L;
  store(h + rate, fma(h1, load(z + rate), -(curvature * h2 * square)));
}

template <class T>
void first_order(int64_t rows, const T* z, T* h, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  for (int64_t r = 0; r < rows; ++r, z += at.width(), h += at.width(), slopes += slope_orders * L)
    first_order_row<T>(z, h, load(slopes), load(slopes + L), load(at.curvature), at.columns);
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
FPFAST_FN void slopes_of_some(const float* z, float* h, float* slopes, const Workspace<float>& at, float parameter,
                              float in, float out) {
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
      first_order_row<float>(z + n * width, h + n * width, jet.first.v[n], jet.second.v[n], load(at.curvature),
                             at.columns);
  }
}

template <Activation kind, Ahead ahead>
void slopes_of_rows(int64_t rows, const float* z, float* h, float* slopes, const Workspace<float>& at,
                    float parameter) {
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
void slopes_of(Activation kind, int64_t rows, const float* z, float* h, float* slopes, const Workspace<float>& at,
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
void slopes_of(Activation kind, int64_t rows, const double* z, double* h, double* slopes, const Workspace<double>& at,
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
void along_e(int64_t rows, const T* z, T* h, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  const Columns& c = at.columns;
  const int64_t n = c.directions, width = at.width(), e = c.along_e() * L, mixed = (c.mixed() - 1) * L;
  const Vector<T> curvature = load(at.curvature);
  for (int64_t r = 0; r < rows; ++r, z += width, h += width, slopes += slope_orders * L) {
    const Vector<T> h1 = load(slopes), h2 = load(slopes + L), ze = load(z + e), h2_ze = h2 * ze;
    store(h + e, h1 * ze);
    Vector<T> square{}, product{};
    for (int64_t i = 1; i <= n; ++i) {
      const Vector<T> zi = load(z + i * L), zie = load(z + mixed + i * L);
      if constexpr (rates) square = fma(zi, zi, square), product = fma(zi, zie, product);
      store(h + mixed + i * L, fma(h1, zie, h2_ze * zi));
    }
    if constexpr (rates) {
      const Vector<T> h3 = load(slopes + 2 * L);
      const Vector<T> bend = fma(h2 + h2, product, h3 * ze * square);
      const Vector<T> flow = fma(h1, load(z + c.rate_along_e() * L), h2_ze * load(z + c.rate() * L));
      store(h + c.rate_along_e() * L, flow - curvature * bend);
    }
  }
}

// ------------------------------------------------------------------------------------------------ activations, back

// The adjoint of z from that of h, which may be the same place. `last` columns take part.
enum class Reach { value, directions, first_order, along_e, rate_along_e };

template <class T, Reach reach>
void back(int64_t rows, const T* z, const T* adjoint, T* out, bool adds, const T* slopes, const Workspace<T>& at) {
  constexpr int L = lanes_of<T>;
  constexpr bool rates = reach >= Reach::first_order, dual = reach >= Reach::along_e,
                 dual_rates = reach == Reach::rate_along_e;
  const Columns& c = at.columns;
  const int64_t n = reach == Reach::value ? 0 : c.directions, width = at.width();
  const int64_t rate = c.rate() * L, e = c.along_e() * L, mixed = (c.mixed() - 1) * L, rate_e = c.rate_along_e() * L;
  const Vector<T> curvature = load(at.curvature);
  const auto put = [&](T* to, Vector<T> v) __attribute__((always_inline)) { store(to, adds ? load(to) + v : v); };
  for (int64_t r = 0; r < rows; ++r, z += width, adjoint += width, out += width, slopes += slope_orders * L) {
    const Vector<T> h1 = load(slopes), h2 = load(slopes + L), u = load(adjoint);
    Vector<T> of_h1{}, of_h2{}, of_h3{}, square{}, product{}, mixed_sum{};
    Vector<T> ue{}, ze{}, ur{}, zr{}, ure{};
    if constexpr (dual) ue = load(adjoint + e), ze = load(z + e);
    for (int64_t i = 1; i <= n; ++i) {
      const Vector<T> zi = load(z + i * L);
      of_h1 = fma(load(adjoint + i * L), zi, of_h1);
      if constexpr (rates) square = fma(zi, zi, square);
      if constexpr (dual) {
        const Vector<T> uie = load(adjoint + mixed + i * L), zie = load(z + mixed + i * L);
        of_h1 = fma(uie, zie, of_h1);
        mixed_sum = fma(uie, zi, mixed_sum);
        if constexpr (dual_rates) product = fma(zi, zie, product);
      }
    }
    Vector<T> bend{}, bend_e{}, h3{};
    if constexpr (rates) {
      ur = load(adjoint + rate), zr = load(z + rate), h3 = load(slopes + 2 * L);
      of_h1 = fma(ur, zr, of_h1);
      bend = curvature * ur;
      of_h2 = -bend * square;
    }
    if constexpr (dual) {
      of_h1 = fma(ue, ze, of_h1);
      of_h2 = fma(ze, mixed_sum, of_h2);
    }
    if constexpr (dual_rates) {
      ure = load(adjoint + rate_e);
      bend_e = curvature * ure;
      of_h1 = fma(ure, load(z + rate_e), of_h1);
      of_h2 = of_h2 + ure * ze * zr - (bend_e + bend_e) * product;
      of_h3 = -bend_e * ze * square;
    }
    Vector<T> of_z = fma(u, h1, of_h1 * h2);
    if constexpr (rates) of_z = fma(of_h2, h3, of_z);
    if constexpr (dual_rates) of_z = fma(of_h3, load(slopes + 3 * L), of_z);
    put(out, of_z);
    const Vector<T> bend_h2 = (bend + bend) * h2;
    for (int64_t i = 1; i <= n; ++i) {
      const Vector<T> zi = load(z + i * L);
      Vector<T> of_zi = load(adjoint + i * L) * h1;
      if constexpr (rates) of_zi = of_zi - bend_h2 * zi;
      if constexpr (dual) {
        const Vector<T> uie = load(adjoint + mixed + i * L);
        of_zi = fma(uie * h2, ze, of_zi);
        Vector<T> of_zie = uie * h1;
        if constexpr (dual_rates) {
          const Vector<T> twice = bend_e + bend_e;
          of_zi = of_zi - twice * fma(h2, load(z + mixed + i * L), h3 * ze * zi);
          of_zie = of_zie - twice * h2 * zi;
        }
        put(out + mixed + i * L, of_zie);
      }
      put(out + i * L, of_zi);
    }
    if constexpr (rates) put(out + rate, dual_rates ? fma(ure * h2, ze, ur * h1) : ur * h1);
    if constexpr (dual) {
      Vector<T> of_ze = fma(ue, h1, h2 * mixed_sum);
      if constexpr (dual_rates) of_ze = of_ze + ure * h2 * zr - bend_e * h3 * square;
      put(out + e, of_ze);
    }
    if constexpr (dual_rates) put(out + rate_e, ure * h1);
  }
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
