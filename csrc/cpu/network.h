// Runs a network's program on one tile: P vectors of samples, a sample in each lane, row after row.
//
// A matrix is packed as blocks of rows_together rows, [block][column][row]; the last block has the rows that are left.
// For each block rows_together x P sums stay in registers while the columns pass by. Every lane does the same
// operations in the same order, so a sample's result does not depend on its tile or its neighbours.
#pragma once
#include <cmath>

#include "../kernels.h"
#include "../math/activation.h"
#include "simd.h"

namespace fpfast {
namespace FPFAST_LEVEL {

constexpr int most_vectors = 3;

template <class T>
constexpr int lanes_of = vector_bytes / int(sizeof(T));

template <class T, int P>
struct Tile {
  static constexpr int width = P * lanes_of<T>;
  T* rows;

  T* row(int64_t number) const { return rows + number * width; }
};

// What a matrix's rows are finished with: (sum + bias + other) * factor. Null where there is none.
template <class T>
struct Beside {
  const T *bias, *other, *factor;

  Beside at(int64_t row, int64_t width) const {
    return {bias ? bias + row : nullptr, other ? other + row * width : nullptr,
            factor ? factor + row * width : nullptr};
  }
};

// `width` numbers lie between a value's row and its next.
template <class T, int R, int P>
FPFAST_FN void matrix_block(T* out, const T* w, const T* in, int64_t columns, int64_t width, const Beside<T>& beside) {
  Vector<T> sum[R][P];
  FPFAST_UNROLL
  for (int r = 0; r < R; ++r) FPFAST_UNROLL
  for (int p = 0; p < P; ++p) sum[r][p] = Vector<T>{};
#pragma GCC unroll 4
  for (int64_t k = 0; k < columns; ++k, in += width, w += R) {
    Vector<T> x[P];
    FPFAST_UNROLL
    for (int p = 0; p < P; ++p) x[p] = load(in + p * lanes_of<T>);
    FPFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vector<T> weight = broadcast(w[r]);
      FPFAST_UNROLL
      for (int p = 0; p < P; ++p) sum[r][p] = fma(weight, x[p], sum[r][p]);
    }
  }
  // Last, because a large bias (of a large time, say) would round every sum on the way.
  FPFAST_UNROLL
  for (int r = 0; r < R; ++r) FPFAST_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t at = r * width + p * lanes_of<T>;
    if (beside.bias) sum[r][p] += broadcast(beside.bias[r]);
    if (beside.other) sum[r][p] += load(beside.other + at);
    if (beside.factor) sum[r][p] *= load(beside.factor + at);
    store(out + at, sum[r][p]);
  }
}

template <class T, int R, int P>
FPFAST_FN void last_block(int64_t rows, T* out, const T* w, const T* in, int64_t columns, int64_t width,
                          const Beside<T>& beside) {
  if constexpr (R > 0) {
    if (rows == R) return matrix_block<T, R, P>(out, w, in, columns, width, beside);
    last_block<T, R - 1, P>(rows, out, w, in, columns, width, beside);
  }
}

template <class T, int P, int R = rows_together>
FPFAST_FN void linear(int64_t rows, int64_t columns, T* out, const T* in, const T* w, int64_t width,
                      const Beside<T>& beside) {
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    matrix_block<T, R, P>(out + r * width, w + r * columns, in, columns, width, beside.at(r, width));
  last_block<T, R - 1, P>(rows - r, out + r * width, w + r * columns, in, columns, width, beside.at(r, width));
}

// N vectors from k on. What is not wanted has no place, from which none is counted.
template <Activation kind, int wants, int N>
FPFAST_FN void activate_some(const float* in, float* out, float* first, float* second, float parameter, int64_t k) {
  Pack<float, N> u;
  FPFAST_UNROLL
  for (int n = 0; n < N; ++n) u.v[n] = load(in + k + n * lanes);
  const Jet<Pack<float, N>> jet = activation<Simd<N>, kind>(u, parameter);
  FPFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    if constexpr (wants & want_value) store(out + k + n * lanes, jet.value.v[n]);
    if constexpr (wants & want_first) store(first + k + n * lanes, jet.first.v[n]);
    if constexpr (wants & want_second) store(second + k + n * lanes, jet.second.v[n]);
  }
}

template <Activation kind, int wants>
void activate_all(const float* in, float* out, float* first, float* second, float parameter, int64_t count) {
  constexpr int together = lanes == 16 ? 4 : 2;  // what registers hold
  int64_t k = 0;
  for (; k + together * lanes <= count; k += together * lanes)
    activate_some<kind, wants, together>(in, out, first, second, parameter, k);
  for (; k < count; k += lanes) activate_some<kind, wants, 1>(in, out, first, second, parameter, k);
}

using ActivateFloat = void (*)(const float*, float*, float*, float*, float, int64_t);

template <Activation kind>
ActivateFloat activate_for(int wants) {
  switch (wants) {
    case 1: return activate_all<kind, 1>;
    case 2: return activate_all<kind, 2>;
    case 3: return activate_all<kind, 3>;
    case 4: return activate_all<kind, 4>;
    case 5: return activate_all<kind, 5>;
    case 6: return activate_all<kind, 6>;
    default: return activate_all<kind, 7>;
  }
}

inline ActivateFloat activate_for(Activation kind, int wants) {
  switch (kind) {
    case Activation::tanh: return activate_for<Activation::tanh>(wants);
    case Activation::softplus: return activate_for<Activation::softplus>(wants);
    case Activation::silu: return activate_for<Activation::silu>(wants);
    case Activation::gelu: return activate_for<Activation::gelu>(wants);
    case Activation::elu: return activate_for<Activation::elu>(wants);
    default: return activate_for<Activation::sine>(wants);
  }
}

// The same in float64, by the standard library: a check, not meant to be fast.
inline Jet<double> exact_activation(Activation kind, double u, double parameter) {
  constexpr double log2e = 1.4426950408889634, k = 1.5957691216057308, cubic = 0.044715;
  struct Logistic {
    double value, first, second, third, fourth;
  };
  const auto logistic = [](double w) {
    const double e = std::exp(-std::fabs(w)), r = 1 / (1 + e), s = w < 0 ? e * r : r, first = e * r * r;
    return Logistic{s, first, first * (1 - 2 * s), first * (1 - 6 * first), first * (1 - 2 * s) * (1 - 12 * first)};
  };
  switch (kind) {
    case Activation::tanh: {
      const double z = u / (2 * log2e), h = std::tanh(z), c = std::cosh(z), first = 1 / (c * c),
                   second = -2 * h * first;
      return {h, first, second, first * (4 - 6 * first), second * (4 - 12 * first)};
    }
    case Activation::softplus: {
      const double w = u / log2e, b = parameter;
      const Logistic s = logistic(w);
      const double h = log2e * (std::fmax(w, 0.0) + std::log1p(std::exp(-std::fabs(w))));
      return {h, s.value, b * s.first, b * b * s.second, b * b * b * s.third};
    }
    case Activation::silu: {
      const double z = u / log2e;
      const Logistic s = logistic(z);
      return {u * s.value, s.value + z * s.first, 2 * s.first + z * s.second, 3 * s.second + z * s.third,
              4 * s.third + z * s.fourth};
    }
    case Activation::gelu: {
      const double z = u, w1 = k * (1 + 3 * cubic * z * z), w2 = 6 * k * cubic * z, w3 = 6 * k * cubic;
      const Logistic s = logistic(k * z * (1 + cubic * z * z));
      const double s1 = s.first * w1, s2 = s.second * w1 * w1 + s.first * w2;
      const double s3 = s.third * w1 * w1 * w1 + 3 * s.second * w1 * w2 + s.first * w3;
      const double s4 =
          s.fourth * w1 * w1 * w1 * w1 + 6 * s.third * w1 * w1 * w2 + s.second * (3 * w2 * w2 + 4 * w1 * w3);
      return {z * s.value, s.value + z * s1, 2 * s1 + z * s2, 3 * s2 + z * s3, 4 * s3 + z * s4};
    }
    case Activation::elu: {
      const double z = u / log2e;
      if (!(z <= 0)) return {u, 1, 0, 0, 0};
      const double slope = parameter * std::exp(z);
      return {log2e * parameter * std::expm1(z), slope, slope, slope, slope};
    }
    default: return {std::sin(u), std::cos(u), -std::sin(u), -std::cos(u), std::sin(u)};
  }
}

inline void activate(const Instruction& i, const float* in, float* out, float* first, float* second, float parameter,
                     int64_t count) {
  const int wants = (out ? want_value : 0) | (first ? want_first : 0) | (second ? want_second : 0);
  activate_for(Activation(i.kind), wants)(in, out, first, second, parameter, count);
}

inline void activate(const Instruction& i, const double* in, double* out, double* first, double* second,
                     double parameter, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const Jet<double> jet = exact_activation(Activation(i.kind), in[k], parameter);
    if (out) out[k] = jet.value;
    if (first) first[k] = jet.first;
    if (second) second[k] = jet.second;
  }
}

// Denormals are taken for zero while a network runs: they cost a hundred times a normal operation and mean nothing.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

template <class T, int P>
void evaluate(const Trajectory& run, const Tile<T, P>& tile, const T* bias, int64_t input, int64_t output) {
  constexpr int width = Tile<T, P>::width;
  const FlushDenormals flush;
  const T* weights = static_cast<const T*>(run.weights);
  const auto at = [&](int64_t row) -> T* {
    if (row == nothing) return nullptr;
    return tile.row(row == input_rows ? input : row == output_rows ? output : row);
  };
  for (int64_t n = 0; n < run.instructions; ++n) {
    const Instruction& i = run.program[n];
    T* const out = at(i.out);
    const T *const in = at(i.in), *const other = at(i.other);
    const T* const b = i.bias == nothing ? nullptr : bias + i.bias;
    const T* const w = weights + i.weights;
    switch (i.op) {
      case Op::linear: linear<T, P>(i.rows, i.columns, out, in, w, width, {b, other, at(i.first)}); break;
      case Op::activate: activate(i, in, out, at(i.first), at(i.second), *w, i.rows * width); break;
      case Op::add:
        for (int64_t r = 0; r < i.rows; ++r)
          for (int64_t k = r * width; k < (r + 1) * width; ++k)
            out[k] = in[k] + (b ? b[r] : 0) + (other ? other[k] : 0);
        break;
      case Op::multiply:
        for (int64_t k = 0; k < i.rows * width; ++k) out[k] = in[k] * other[k];
        break;
      case Op::scale:
        for (int64_t r = 0; r < i.rows; ++r)
          for (int64_t k = r * width; k < (r + 1) * width; ++k) out[k] = w[r] * in[k] + (other ? other[k] : 0);
        break;
      case Op::fill:
        for (int64_t r = 0; r < i.rows; ++r)
          for (int64_t k = r * width; k < (r + 1) * width; ++k) out[k] = w[r];
        break;
    }
  }
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
