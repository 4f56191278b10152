// Jets (csrc/kernels.h) through an activation h = h(z) and back, one row of them.
//
// First order: h_i = h' z_i; the rate M h = h' M z - c h'' sum_i z_i^2, c the curvature; along e: h_e = h' z_e,
// h_ie = h' z_ie + h'' z_i z_e, (M h)_e = h' (M z)_e + h'' z_e M z - c (2 h'' sum_i z_i z_ie + h''' z_e sum_i z_i^2).
// The way back is the transpose of the derivative of all that by z and its columns.
//
// A row R has the numbers of column n, of type V: those of several points, and on a GPU of several rows. get(n) reads
// them, put(n, v) writes them, or adds v where the row says so; R::fma(a, b, c) is a b + c.
#pragma once
#include "machine.h"

namespace fpfast {

// Which columns there are.
struct Columns {
  int directions, count;

  FPFAST_MEMBER int rate() const { return 1 + directions; }
  FPFAST_MEMBER int first_order() const { return 2 + directions; }  // so many columns without e
  FPFAST_MEMBER int along_e() const { return 2 + directions; }
  FPFAST_MEMBER int mixed() const { return 3 + directions; }
  FPFAST_MEMBER int rate_along_e() const { return 3 + 2 * directions; }
};

// Derivatives of h by z.
template <class V>
struct SlopesOfRow {
  V first, second, third, fourth;
};

// The columns along directions, and the rate.
template <class R, class V>
FPFAST_FN void first_order_row(const R& z, const R& h, V h1, V h2, V curvature, const Columns& c) {
  V square{};
  for (int i = 1; i <= c.directions; ++i) {
    const V zi = z.get(i);
    square = R::fma(zi, zi, square);
    h.put(i, h1 * zi);
  }
  h.put(c.rate(), R::fma(h1, z.get(c.rate()), -(curvature * h2 * square)));
}

// The columns along e, with that of the rate or without it.
template <bool rates, class R, class V>
FPFAST_FN void along_e_row(const R& z, const R& h, V h1, V h2, V h3, V curvature, const Columns& c) {
  const V ze = z.get(c.along_e()), h2_ze = h2 * ze;
  h.put(c.along_e(), h1 * ze);
  V square{}, product{};
  for (int i = 1; i <= c.directions; ++i) {
    const V zi = z.get(i), zie = z.get(c.mixed() - 1 + i);
    if constexpr (rates) square = R::fma(zi, zi, square), product = R::fma(zi, zie, product);
    h.put(c.mixed() - 1 + i, R::fma(h1, zie, h2_ze * zi));
  }
  if constexpr (rates) {
    const V bend = R::fma(h2 + h2, product, h3 * ze * square);
    const V flow = R::fma(h1, z.get(c.rate_along_e()), h2_ze * z.get(c.rate()));
    h.put(c.rate_along_e(), flow - curvature * bend);
  }
}

// The columns that take part in a pass back.
enum class Reach { value, directions, first_order, along_e, rate_along_e };

// The adjoint of z from that of h, which may be the same place.
template <Reach reach, class R, class Out, class V>
FPFAST_FN void back_row(const R& z, const R& adjoint, const Out& out, const SlopesOfRow<V>& h, V curvature,
                        const Columns& c) {
  constexpr bool rates = reach >= Reach::first_order, dual = reach >= Reach::along_e,
                 dual_rates = reach == Reach::rate_along_e;
  const int n = reach == Reach::value ? 0 : c.directions, mixed = c.mixed() - 1;
  const V h1 = h.first, h2 = h.second, h3 = h.third, u = adjoint.get(0);
  V of_h1{}, of_h2{}, of_h3{}, square{}, product{}, mixed_sum{};
  V ue{}, ze{}, ur{}, zr{}, ure{};
  if constexpr (dual) ue = adjoint.get(c.along_e()), ze = z.get(c.along_e());
  for (int i = 1; i <= n; ++i) {
    const V zi = z.get(i);
    of_h1 = R::fma(adjoint.get(i), zi, of_h1);
    if constexpr (rates) square = R::fma(zi, zi, square);
    if constexpr (dual) {
      const V uie = adjoint.get(mixed + i), zie = z.get(mixed + i);
      of_h1 = R::fma(uie, zie, of_h1);
      mixed_sum = R::fma(uie, zi, mixed_sum);
      if constexpr (dual_rates) product = R::fma(zi, zie, product);
    }
  }
  V bend{}, bend_e{};
  if constexpr (rates) {
    ur = adjoint.get(c.rate()), zr = z.get(c.rate());
    of_h1 = R::fma(ur, zr, of_h1);
    bend = curvature * ur;
    of_h2 = -bend * square;
  }
  if constexpr (dual) {
    of_h1 = R::fma(ue, ze, of_h1);
    of_h2 = R::fma(ze, mixed_sum, of_h2);
  }
  if constexpr (dual_rates) {
    ure = adjoint.get(c.rate_along_e());
    bend_e = curvature * ure;
    of_h1 = R::fma(ure, z.get(c.rate_along_e()), of_h1);
    of_h2 = of_h2 + ure * ze * zr - (bend_e + bend_e) * product;
    of_h3 = -bend_e * ze * square;
  }
  V of_z = R::fma(u, h1, of_h1 * h2);
  if constexpr (rates) of_z = R::fma(of_h2, h3, of_z);
  if constexpr (dual_rates) of_z = R::fma(of_h3, h.fourth, of_z);
  out.put(0, of_z);
  const V bend_h2 = (bend + bend) * h2;
  for (int i = 1; i <= n; ++i) {
    const V zi = z.get(i);
    V of_zi = adjoint.get(i) * h1;
    if constexpr (rates) of_zi = of_zi - bend_h2 * zi;
    if constexpr (dual) {
      const V uie = adjoint.get(mixed + i);
      of_zi = R::fma(uie * h2, ze, of_zi);
      V of_zie = uie * h1;
      if constexpr (dual_rates) {
        const V twice = bend_e + bend_e;
        of_zi = of_zi - twice * R::fma(h2, z.get(mixed + i), h3 * ze * zi);
        of_zie = of_zie - twice * h2 * zi;
      }
      out.put(mixed + i, of_zie);
    }
    out.put(i, of_zi);
  }
  if constexpr (rates) out.put(c.rate(), dual_rates ? R::fma(ure * h2, ze, ur * h1) : ur * h1);
  if constexpr (dual) {
    V of_ze = R::fma(ue, h1, h2 * mixed_sum);
    if constexpr (dual_rates) of_ze = of_ze + ure * h2 * zr - bend_e * h3 * square;
    out.put(c.along_e(), of_ze);
  }
  if constexpr (dual_rates) out.put(c.rate_along_e(), ure * h1);
}

}  // namespace fpfast
