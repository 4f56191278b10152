// Fokker-Planck residuals of recognised networks, and gradients of their losses. A vector of points goes through the
// network and back while it stays in cache, so memory does not grow with the number of points.
//
// Sums over points are made in chunks whose size depends on the number of points alone; see sums.h.
#include <vector>

#include "gradients.h"
#include "jets.h"
#include "levels.h"
#include "sums.h"

namespace fpfast {
namespace FPFAST_LEVEL {

namespace {

// Of s = p x + q y and dX = a X dt + g dW.
enum Coefficient { A, GAMMA, P, Q, P_RATE, Q_RATE, COEFFICIENTS };

Columns columns_of(const Residual& run) {
  const int n = int(run.directions);
  return {n, run.form == Form::potential ? 2 * n + 4 : run.form == Form::score ? 2 * n + 3 : n + 2};
}

template <class T>
class PointTile {
 public:
  static constexpr int L = lanes_of<T>;
  using V = Vector<T>;

  PointTile(const Residual& run, const Layout& layout, T* memory, T* sums) : run_(run), layout_(layout), sums_(sums) {
    space_.columns = columns_of(run);
    space_.jets = memory;
    space_.adjoints = space_.jets + run.jets * space_.width();
    space_.slopes = space_.adjoints + run.adjoints * space_.width();
    space_.turned = space_.slopes + run.slopes * slope_orders * L;
  }

  static int64_t memory(const Residual& run) {
    const int64_t columns = columns_of(run).count;
    int64_t widest = gradient_lanes;
    for (int64_t k = 0; k < run.instructions; ++k) widest = std::max(widest, run.program[k].columns + gradient_lanes);
    return ((run.jets + run.adjoints) * columns + run.slopes * slope_orders + turned_columns * widest) * L;
  }

  // The points from `start` on; returns their part of the loss.
  double points(int64_t start) {
    start_ = start, count_ = std::min<int64_t>(L, run_.samples - start);
    load_points();
    switch (run_.form) {
      case Form::log_density: return log_density();
      case Form::log_density_probes: return log_density_probes();
      case Form::potential: return of_potential();
      default: return of_score();
    }
  }

 private:
  bool wanted() const { return run_.gradient; }
  T* x(int64_t row, int64_t column) { return space_.jet(row) + column * L; }
  T* x_adjoint(int64_t row, int64_t column) { return space_.adjoint(row) + column * L; }
  T* y(int64_t row, int64_t column) { return space_.jet(run_.output + row) + column * L; }
  T* seed(int64_t row, int64_t column) { return space_.adjoint(run_.output_adjoint + row) + column * L; }
  V coef(Coefficient which) const { return load(coef_[which]); }

  // Column `from` of samples' rows of `columns` numbers; lanes without a point repeat the last one, or are 0.
  V gather(const void* data, int64_t columns, int64_t from, bool zero = false) const {
    const T* at = static_cast<const T*>(data) + start_ * columns + from;
    V v{};
    for (int64_t k = 0; k < (zero ? count_ : L); ++k) v[k] = at[std::min(k, count_ - 1) * columns];
    return v;
  }
  void scatter(void* data, int64_t columns, int64_t to, V v) const {
    T* at = static_cast<T*>(data) + start_ * columns + to;
    for (int64_t k = 0; k < count_; ++k) at[k * columns] = v[k];
  }

  void load_points() {
    const int64_t d = run_.dimension, n = run_.directions, features = run_.feature_count;
    const bool of_score = run_.form == Form::score;  // then the rate is d_t alone
    const int coefficients = of_score ? COEFFICIENTS : P;
    for (int k = 0; k < coefficients; ++k)
      store(coef_[k], gather(static_cast<const T*>(run_.coef) + k * run_.samples, 1, 0));
    store(space_.curvature, of_score ? V{} : T(run_.share) * coef(GAMMA));
    std::fill_n(space_.jet(0), d * space_.width(), T(0));
    for (int64_t r = 0; r < d; ++r) {
      const V at = gather(run_.x, d, r);
      store(x(r, 0), at);
      if (!of_score) store(x(r, space_.columns.rate()), coef(A) * at);
      for (int64_t i = 0; i < n; ++i) {
        const auto probe = [&] { return static_cast<const T*>(run_.probes) + i * run_.samples * d; };
        store(x(r, 1 + i), run_.probes ? gather(probe(), d, r) : broadcast(T(i == r)));
      }
    }
    if (features) std::fill_n(space_.jet(run_.features), features * space_.width(), T(0));
    for (int64_t r = 0; r < features; ++r) {
      T* row = space_.jet(run_.features + r);
      store(row, gather(run_.feature_values, features, r));
      store(row + space_.columns.rate() * L, gather(run_.feature_rates, features, r));
    }
  }

  void clear_seeds() { std::fill_n(seed(0, 0), run_.outputs * space_.width(), T(0)); }

  // R and what a loss of it asks of its adjoint.
  double finish(V residual, V& adjoint) {
    if (run_.value) scatter(run_.value, 1, 0, residual);
    if (run_.upstream) {
      adjoint = gather(run_.upstream, 1, 0, true);
      return 0;
    }
    return of_square(residual, adjoint);
  }

  // scale weight residual^2, summed, and its derivative.
  double of_square(V residual, V& adjoint) {
    if (!run_.loss) return 0;
    V weight{};
    for (int64_t k = 0; k < count_; ++k) weight[k] = T(run_.scale);
    if (run_.weight) weight *= gather(run_.weight, 1, 0);
    const V weighted = weight * residual;
    adjoint = weighted + weighted;
    double loss = 0;
    for (int k = 0; k < L; ++k) loss += double(weighted[k]) * double(residual[k]);
    return loss;
  }

  double log_density() {
    const Columns& c = space_.columns;
    const V gamma = coef(GAMMA);
    forward(0, c.count);
    V square{}, adjoint{};
    for (int64_t i = 1; i <= c.directions; ++i) square = fma(load(y(0, i)), load(y(0, i)), square);
    const V residual = load(y(0, c.rate())) + coef(A) * T(run_.dimension) - gamma * square;
    const double loss = finish(residual, adjoint);
    if (!wanted()) return loss;
    clear_seeds();
    const V twice = T(-2) * gamma * adjoint;
    for (int64_t i = 1; i <= c.directions; ++i) store(seed(0, i), twice * load(y(0, i)));
    store(seed(0, c.rate()), adjoint);
    backward<Reach::first_order>(c.count, true);
    return loss;
  }

  // With the drift w = a x - g^2 s held fixed, M phi + g^2/2 |s|^2 + a d has R's value and R's gradient by parameters.
  double log_density_probes() {
    const Columns& c = space_.columns;
    const V gamma = coef(GAMMA);
    forward(0, 1);
    clear_seeds();
    store(seed(0, 0), broadcast(T(1)));
    backward<Reach::value>(1, false);
    V square{}, adjoint{};
    for (int64_t r = 0; r < run_.dimension; ++r) {
      const V s = load(x_adjoint(r, 0));
      square = fma(s, s, square);
      store(x(r, c.rate()), coef(A) * load(x(r, 0)) - T(2) * gamma * s);
    }
    forward(1, c.count);
    const V residual = load(y(0, c.rate())) + coef(A) * T(run_.dimension) + gamma * square;
    const double loss = finish(residual, adjoint);
    if (!wanted()) return loss;
    clear_seeds();
    store(seed(0, c.rate()), adjoint);
    backward<Reach::first_order>(c.count, true);
    return loss;
  }

  // What a loss of eps asks of eps' adjoint, which becomes the direction e of the x jets.
  double finish_row(int64_t row, V residual) {
    V adjoint{};
    if (run_.value) scatter(run_.value, run_.dimension, row, residual);
    double loss = 0;
    if (run_.upstream)
      adjoint = gather(run_.upstream, run_.dimension, row, true);
    else
      loss = of_square(residual, adjoint);
    if (wanted()) store(x(row, space_.columns.along_e()), adjoint);
    return loss;
  }

  // eps = grad R, and the gradient of e.eps by parameters is that of the derivative of R along e.
  double of_potential() {
    const Columns& c = space_.columns;
    const V gamma2 = T(2) * coef(GAMMA);
    forward(0, c.first_order());
    clear_seeds();
    for (int64_t i = 1; i <= c.directions; ++i) store(seed(0, i), -gamma2 * load(y(0, i)));
    store(seed(0, c.rate()), broadcast(T(1)));
    backward<Reach::first_order>(c.first_order(), false);
    double loss = 0;
    for (int64_t r = 0; r < run_.dimension; ++r) {
      loss += finish_row(r, load(x_adjoint(r, 0)) + coef(A) * load(x_adjoint(r, c.rate())));
      store(x(r, c.rate_along_e()), coef(A) * load(x(r, c.along_e())));
    }
    if (!wanted()) return loss;
    forward(c.first_order(), c.count);
    clear_seeds();
    for (int64_t i = 0; i < c.directions; ++i) {
      store(seed(0, 1 + i), -gamma2 * load(y(0, c.mixed() + i)));
      store(seed(0, c.mixed() + i), -gamma2 * load(y(0, 1 + i)));
    }
    store(seed(0, c.rate_along_e()), broadcast(T(1)));
    backward<Reach::rate_along_e>(c.count, true);
    return loss;
  }

  // eps = d_t s - grad U, U = g^2/2 (div s + |s|^2) - a x.s, with sums of v.J v for div s.
  double of_score() {
    const Columns& c = space_.columns;
    const int64_t d = run_.dimension;
    const V a = coef(A), gamma = coef(GAMMA), p = coef(P), q = coef(Q), share = T(run_.share) * gamma * q;
    forward(0, c.first_order());
    clear_seeds();
    const auto s = [&](int64_t r) { return fma(p, load(x(r, 0)), q * load(y(r, 0))); };
    const auto by_s = [&](int64_t r) { return T(2) * gamma * s(r) - a * load(x(r, 0)); };  // of U, but for div s
    for (int64_t r = 0; r < d; ++r) {
      store(seed(r, 0), q * by_s(r));
      for (int64_t i = 0; i < c.directions; ++i) store(seed(r, 1 + i), share * load(x(r, 1 + i)));
    }
    backward<Reach::directions>(1 + c.directions, false);
    double loss = 0;
    for (int64_t r = 0; r < d; ++r) {
      const V gradient = load(x_adjoint(r, 0)) + p * by_s(r) - a * s(r);
      const V rate = coef(P_RATE) * load(x(r, 0)) + coef(Q_RATE) * load(y(r, 0)) + q * load(y(r, c.rate()));
      loss += finish_row(r, rate - gradient);
    }
    if (!wanted()) return loss;
    forward(c.first_order(), c.count);
    clear_seeds();
    for (int64_t r = 0; r < d; ++r) {
      const V e = load(x(r, c.along_e())), s_along_e = fma(p, e, q * load(y(r, c.along_e())));
      store(seed(r, 0), coef(Q_RATE) * e + q * (a * e - T(2) * gamma * s_along_e));
      store(seed(r, c.rate()), q * e);
      store(seed(r, c.along_e()), -q * by_s(r));
      for (int64_t i = 0; i < c.directions; ++i) store(seed(r, c.mixed() + i), -share * load(x(r, 1 + i)));
    }
    backward<Reach::along_e>(c.count, true);
    return loss;
  }

  // ---------------------------------------------------------------------------------------------- the network

  void forward(int64_t first, int64_t last) {
    const FlushDenormals flush;
    const Columns& c = space_.columns;
    const int64_t width = space_.width(), rate = c.rate();
    const T* weights = static_cast<const T*>(run_.weights);
    for (int64_t k = 0; k < run_.instructions; ++k) {
      const JetInstruction& i = run_.program[k];
      T *const out = space_.jet(i.out), *const a = space_.jet(i.a);
      T* const b = i.b == nothing ? nullptr : space_.jet(i.b);
      switch (i.op) {
        case JetOp::linear: multiply(i.rows, i.columns, out, a, weights + i.weights, width, b, first, last); break;
        case JetOp::feature:
          for (const int64_t column : {int64_t(0), rate})
            if (column >= first && column < last) {
              if (i.weights == nothing)
                copy_columns<T>(i.rows, out, a, nullptr, width, true, column, column + 1);
              else
                multiply(i.rows, i.columns, out, a, weights + i.weights, width, out, column, column + 1);
            }
          break;
        case JetOp::activate: {
          T* const slopes = space_.slopes + i.slopes * slope_orders * L;
          using Slopes = void (*)(Activation, int64_t, T*, T*, T*, const Workspace<T>&, T);
          Slopes slopes_of_a = slopes_of<Ahead::first_order>;
          if (last == 1) slopes_of_a = slopes_of<Ahead::value>;
          if (run_.form == Form::potential) slopes_of_a = slopes_of<Ahead::first_order_of_dual>;
          if (first == 0) slopes_of_a(Activation(i.kind), i.rows, a, out, slopes, space_, weights[i.weights]);
          if (first == 1) first_order(i.rows, a, out, slopes, space_);
          if (last > c.first_order()) {
            const auto dual = run_.form == Form::potential ? along_e<T, true> : along_e<T, false>;
            dual(i.rows, a, out, slopes, space_);
          }
          break;
        }
        case JetOp::add:
          copy_columns<T>(i.rows, out, a, nullptr, width, false, first, last);
          if (b) copy_columns<T>(i.rows, out, b, nullptr, width, true, first, last);
          break;
        case JetOp::scale: copy_columns(i.rows, out, a, weights + i.weights, width, false, first, last); break;
      }
      if (i.bias != nothing && first == 0)
        for (int64_t r = 0; r < i.rows; ++r) store(out + r * width, load(out + r * width) + weights[i.bias + r]);
    }
  }

  // Adjoints of columns 0 ... last - 1: of parameters, or else of x.
  template <Reach reach>
  void backward(int64_t last, bool parameters) {
    const FlushDenormals flush;
    const Columns& c = space_.columns;
    const int64_t width = space_.width(), rate = c.rate();
    const T* weights = static_cast<const T*>(run_.weights);
    for (int64_t k = run_.instructions - 1; k >= 0; --k) {
      const JetInstruction& i = run_.program[k];
      T *const out = space_.adjoint(i.out_adjoint), *const in = space_.jet(i.a);
      const bool to_x = i.a_adjoint >= 0 && i.a_adjoint < run_.dimension;
      const bool of_time = i.op == JetOp::feature;
      T* const a = i.a_adjoint == nothing || (parameters ? to_x : of_time) ? nullptr : space_.adjoint(i.a_adjoint);
      const bool adds = i.a_adds;
      if (parameters && i.bias_gradient != nothing)
        row_sums<T>(i.rows, sums_ + layout_.bias(k), out, nullptr, width, 1);
      if (i.b != nothing && i.b_adjoint != nothing && !(parameters && i.b_adjoint < run_.dimension))
        copy_columns<T>(i.rows, space_.adjoint(i.b_adjoint), out, nullptr, width, i.b_adds, 0, last);
      switch (i.op) {
        case JetOp::linear:
          if (parameters && i.gradient != nothing)
            outer(i.rows, i.columns, sums_ + layout_.matrix(k), out, in, width, space_.turned, 0, last);
          if (a) multiply(i.columns, i.rows, a, out, weights + i.transposed, width, adds ? a : nullptr, 0, last);
          break;
        case JetOp::feature:
          for (const int64_t column : {int64_t(0), rate}) {
            if (!parameters) break;
            if (i.gradient != nothing)
              outer(i.rows, i.columns, sums_ + layout_.matrix(k), out, in, width, space_.turned, column, column + 1);
            if (a && i.weights == nothing)
              copy_columns<T>(i.rows, a, out, nullptr, width, adds, column, column + 1);
            else if (a)
              multiply(i.columns, i.rows, a, out, weights + i.transposed, width, adds ? a : nullptr, column,
                       column + 1);
          }
          break;
        case JetOp::activate:
          if (a) back<T, reach>(i.rows, in, out, a, adds, space_.slopes + i.slopes * slope_orders * L, space_);
          break;
        case JetOp::add:
          if (a) copy_columns<T>(i.rows, a, out, nullptr, width, adds, 0, last);
          break;
        case JetOp::scale:
          if (parameters && i.gradient != nothing) row_sums(i.rows, sums_ + layout_.matrix(k), out, in, width, last);
          if (a) copy_columns(i.rows, a, out, weights + i.weights, width, adds, 0, last);
          break;
      }
    }
    if (!parameters || !run_.feature_adjoints) return;
    for (int64_t r = 0; r < run_.feature_count; ++r) {
      const T* row = space_.adjoint(run_.features_adjoint + r);
      scatter(run_.feature_adjoints, run_.feature_count, r, load(row));
      scatter(run_.rate_adjoints, run_.feature_count, r, load(row + rate * L));
    }
  }

  const Residual& run_;
  const Layout& layout_;
  Workspace<T> space_;
  T* sums_;
  int64_t start_ = 0, count_ = 0;
  alignas(64) T coef_[COEFFICIENTS][L];
};

// Where chunks of vectors begin, and the end. Large ones first, because a chunk's gradient is added to the others' in
// float64, which should cost little beside its points; small ones last, so that threads end together.
std::vector<int64_t> chunks_of(int64_t vectors) {
  std::vector<int64_t> starts = {0};
  while (starts.back() < vectors) {
    const int64_t left = vectors - starts.back();
    starts.push_back(starts.back() + std::min(left, std::clamp<int64_t>(left / 32, 4, 64)));
  }
  return starts;
}

template <class T>
void run_all(const Residual& run, int threads) {
  constexpr int64_t L = lanes_of<T>;
  const int64_t vectors = (run.samples + L - 1) / L;
  const std::vector<int64_t> starts = chunks_of(vectors);
  const int64_t chunks = int64_t(starts.size()) - 1;
  const Layout layout(run);
  Sums<T> sums(chunks, layout.count());
  bool short_of_memory = false;
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, chunks))) reduction(|| : short_of_memory)
  {
    const Memory<T> workspace = memory_of<T>(PointTile<T>::memory(run));
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < chunks; ++n) {
      Memory<T> own = sums.fresh();
      if (!workspace || !own) {
        short_of_memory = true;
        continue;
      }
      PointTile<T> tile(run, layout, workspace.get(), own.get());
      double loss = 0;
      for (int64_t v = starts[n]; v < starts[n + 1]; ++v) loss += tile.points(v * L);
      sums.add(n, std::move(own), loss);
    }
  }
  if (short_of_memory) throw std::bad_alloc();
  if (run.loss) *run.loss += sums.loss();
  if (run.gradient) layout.fold(sums.total(), run.gradient);
}

}  // namespace

void run_residual(const Residual& run, int threads) {
  if (run.samples == 0) return;
  run.float64 ? run_all<double>(run, threads) : run_all<float>(run, threads);
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
