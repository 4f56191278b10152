// Fokker-Planck residuals of recognised networks, and gradients of their losses: what csrc/cpu/residual.cpp computes.
//
// A warp takes 16 points forwards and back. Before a matrix's gradient the warps of a block wait for each other, and
// share out its tiles, each over the points of all of them. A block goes on to its next points with the same sums;
// those of all blocks are added at last, in their order and in float64. So bits depend on the number of blocks alone.
#include "groups.h"
#include "jets.h"

namespace fpfast::cuda {
namespace {

// Of s = p x + q y and dX = a X dt + g dW.
enum Coefficient { A, GAMMA, P, Q, P_RATE, Q_RATE };

static_assert(block_points == points_warps * tile_samples);

template <Form form>
__host__ __device__ Columns columns_of(const Residual& run) {
  const int64_t n = run.directions;
  return {n, form == Form::potential ? 2 * n + 4 : form == Form::score ? 2 * n + 3 : n + 2};
}

// Columns that take part in the first pass back, and in that for parameters.
template <Form form>
constexpr Reach reach_of_x = form == Form::potential ? Reach::first_order
                             : form == Form::score   ? Reach::directions
                                                     : Reach::value;
template <Form form>
constexpr Reach reach_of_parameters = form == Form::potential ? Reach::rate_along_e
                                      : form == Form::score   ? Reach::along_e
                                                              : Reach::first_order;

template <Form form>
class PointTile {
 public:
  __device__ PointTile(const Residual& run, const Scratch& scratch)
      : run_(run), columns_(columns_of<form>(run)), lane_{int(threadIdx.x) % warp} {
    const int64_t of_warp = (run.jets + run.adjoints) / tile_rows * columns_.count * warp;
    float4* const of_block = scratch.values + blockIdx.x * points_warps * of_warp;
    space_ = {of_block + threadIdx.x / warp * of_warp + lane_.number, run.jets, columns_.count};
    block_ = {reinterpret_cast<const float2*>(of_block), 2 * of_warp, columns_.count};
    sums_ = scratch.sums + blockIdx.x * scratch.sum_count;
  }

  // The points from `start` on; the warps of a block come here together. `adds`: not the block's first.
  //
  // Twice forwards and back: the first time for the residual, the second for the parameters' gradients. One loop, so
  // that there is one text of the network in the machine's code.
  __device__ void points(int64_t start, bool adds) {
    first_ = start + threadIdx.x / warp * tile_samples, adds_ = adds;
    load_points();
#pragma unroll 1
    for (bool parameters = form == Form::log_density;; parameters = true) {
      const bool again = parameters && form != Form::log_density;
      forward(again ? columns_before() : 0, parameters ? columns_.count : columns_before());
      clear(adjoint(run_.output_adjoint), run_.outputs);
      parameters ? seed_gradients() : seed_residual();
      if (parameters && !wanted()) return;
      backward(parameters            ? columns_.count
               : form == Form::score ? 1 + columns_.directions
                                     : columns_before(),
               parameters);
      if (parameters) return;
      finish_residual();
      if (form >= Form::potential && !wanted()) return;
    }
  }

  __device__ double loss() const { return loss_; }

 private:
  __device__ bool wanted() const { return run_.gradient; }
  __device__ float4* jet(int64_t row) const { return space_.jet(row); }
  __device__ float4* adjoint(int64_t row) const { return space_.adjoint(row); }
  __device__ float4& x(int t, int64_t column) const { return jet(t * tile_rows)[column * warp]; }
  __device__ float4& x_adjoint(int t, int64_t column) const { return adjoint(t * tile_rows)[column * warp]; }
  __device__ float4 y(int t, int64_t column) const {
    return within(jet(run_.output + t * tile_rows)[column * warp], t, run_.outputs);
  }
  __device__ float4& seed(int t, int64_t column) const {
    return adjoint(run_.output_adjoint + t * tile_rows)[column * warp];
  }
  __device__ int64_t row(int t) const { return t * tile_rows + lane_.row(); }
  __device__ int64_t sample(int which) const { return first_ + lane_.sample(which); }

  // Zeros in place of rows that do not exist.
  __device__ float4 within(float4 v, int t, int64_t rows) const {
    if (row(t) >= rows) v.x = v.y = 0;
    if (row(t) + 1 >= rows) v.z = v.w = 0;
    return v;
  }

  // Rows of tile t of an array [samples, columns]; where there is no point the last one's, or zeros.
  __device__ float4 gather(const void* data, int64_t columns, int t, bool zero = false) const {
    float of[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t n = sample(k % 2), r = row(t) + k / 2;
      const bool there = r < columns && !(zero && n >= run_.samples);
      of[k] = there ? static_cast<const float*>(data)[min(n, run_.samples - 1) * columns + r] : 0.0f;
    }
    return make_float4(of[0], of[1], of[2], of[3]);
  }
  __device__ void scatter(void* data, int64_t columns, int t, float4 v) const {
    const float of[] = {v.x, v.y, v.z, v.w};
    for (int k = 0; k < 4; ++k) {
      const int64_t n = sample(k % 2), r = row(t) + k / 2;
      if (r < columns && n < run_.samples) static_cast<float*>(data)[n * columns + r] = of[k];
    }
  }

  // One number a sample.
  __device__ float2 samples_of(const float* data) const {
    return {data[min(sample(0), run_.samples - 1)], data[min(sample(1), run_.samples - 1)]};
  }
  __device__ float4 coef(Coefficient which) const {
    return of_samples(samples_of(static_cast<const float*>(run_.coef) + which * run_.samples));
  }

  __device__ void clear(float4* at, int64_t rows) const {
    for (int64_t k = 0; k < tiles_of(rows) * columns_.count; ++k) at[k * warp] = of_all(0);
  }

  __device__ void load_points() {
    const int64_t d = run_.dimension, n = run_.directions;
    curvature_ =
        form == Form::score ? of_all(0) : of_all(float(run_.share)) * coef(GAMMA);  // there a rate is d_t alone
    clear(jet(0), d);
    for (int t = 0; t < tiles_of(d); ++t) {
      const float4 at = gather(run_.x, d, t);
      x(t, 0) = at;
      if constexpr (form != Form::score) x(t, columns_.rate()) = coef(A) * at;
      for (int64_t i = 0; i < n; ++i)
        x(t, 1 + i) = run_.probes ? gather(static_cast<const float*>(run_.probes) + i * run_.samples * d, d, t)
                                  : of_rows({i == row(t) ? 1.0f : 0.0f, i == row(t) + 1 ? 1.0f : 0.0f});
    }
    if (!run_.feature_count) return;
    clear(jet(run_.features), run_.feature_count);
    for (int t = 0; t < tiles_of(run_.feature_count); ++t) {
      float4* const feature = jet(run_.features + t * tile_rows);
      feature[0] = gather(run_.feature_values, run_.feature_count, t);
      feature[columns_.rate() * warp] = gather(run_.feature_rates, run_.feature_count, t);
    }
  }

  // A residual's tile t, of so many columns: writes it, adds to the loss, and says what a loss of it asks of its
  // adjoint.
  __device__ float4 finish(float4 residual, int64_t columns, int t) {
    if (run_.value) scatter(run_.value, columns, t, residual);
    if (run_.upstream) return gather(run_.upstream, columns, t, true);
    if (!run_.loss) return of_all(0);
    float2 weight = {sample(0) < run_.samples ? float(run_.scale) : 0,
                     sample(1) < run_.samples ? float(run_.scale) : 0};
    if (run_.weight) {
      const float2 given = samples_of(static_cast<const float*>(run_.weight));
      weight = {weight.x * given.x, weight.y * given.y};
    }
    const float4 weighted = of_samples(weight) * residual;
    loss_ += double(weighted.x) * double(residual.x) + double(weighted.y) * double(residual.y) +
             double(weighted.z) * double(residual.z) + double(weighted.w) * double(residual.w);
    return weighted + weighted;
  }

  // ------------------------------------------------------------------------------------------------- the forms
  //
  // log_density         R, all in the second pass: value, gradient and Laplacian from one way forwards.
  // log_density_probes  With the drift w = a x - g^2 s held fixed, M phi + g^2/2 |s|^2 + a d has R's value and R's
  //                     gradient by parameters. The first pass makes s.
  // potential           eps = grad R, and the gradient of e.eps by parameters is that of the derivative of R along e.
  // score               eps = d_t s - grad U, U = g^2/2 (div s + |s|^2) - a x.s, with sums of v.J v for div s.

  // Columns of the first pass forwards.
  __device__ int64_t columns_before() const { return form == Form::log_density_probes ? 1 : columns_.first_order(); }

  __device__ float4 score_at(int t) const { return Row::fma(coef(P), x(t, 0), coef(Q) * y(t, 0)); }
  // Of U by s, but for div s.
  __device__ float4 by_score(int t) const { return of_all(2) * coef(GAMMA) * score_at(t) - coef(A) * x(t, 0); }
  __device__ float4 share() const { return of_all(float(run_.share)) * coef(GAMMA) * coef(Q); }

  __device__ void seed_residual() const {
    const Columns& c = columns_;
    if constexpr (form == Form::log_density_probes) seed(0, 0) = within(of_all(1), 0, 1);
    if constexpr (form == Form::potential) {
      for (int64_t i = 1; i <= c.directions; ++i) seed(0, i) = of_all(-2) * coef(GAMMA) * y(0, i);
      seed(0, c.rate()) = within(of_all(1), 0, 1);
    }
    if constexpr (form == Form::score)
      for (int t = 0; t < tiles_of(run_.dimension); ++t) {
        seed(t, 0) = coef(Q) * by_score(t);
        for (int64_t i = 0; i < c.directions; ++i) seed(t, 1 + i) = share() * x(t, 1 + i);
      }
  }

  // What the first pass has found, and what the second begins with.
  __device__ void finish_residual() {
    const Columns& c = columns_;
    const int64_t d = run_.dimension;
    float2 square = {0, 0};
    for (int t = 0; t < tiles_of(d); ++t) {
      if constexpr (form == Form::log_density_probes) {
        const float4 s = within(x_adjoint(t, 0), t, d);
        square = {fmaf(s.x, s.x, fmaf(s.z, s.z, square.x)), fmaf(s.y, s.y, fmaf(s.w, s.w, square.y))};
        x(t, c.rate()) = coef(A) * x(t, 0) - of_all(2) * coef(GAMMA) * s;
      }
      if constexpr (form == Form::potential) {
        const float4 e = finish(within(x_adjoint(t, 0) + coef(A) * x_adjoint(t, c.rate()), t, d), d, t);
        x(t, c.along_e()) = e, x(t, c.rate_along_e()) = coef(A) * e;
      }
      if constexpr (form == Form::score) {
        const float4 gradient = x_adjoint(t, 0) + coef(P) * by_score(t) - coef(A) * score_at(t);
        const float4 rate = coef(P_RATE) * x(t, 0) + coef(Q_RATE) * y(t, 0) + coef(Q) * y(t, c.rate());
        x(t, c.along_e()) = finish(within(rate - gradient, t, d), d, t);
      }
    }
    if constexpr (form == Form::log_density_probes) {
      for (int other = 1; other < 4; other *= 2) {  // the lanes that have the same points
        square.x += __shfl_xor_sync(0xFFFFFFFFu, square.x, other);
        square.y += __shfl_xor_sync(0xFFFFFFFFu, square.y, other);
      }
      square_ = of_samples(square);
    }
  }

  __device__ void seed_gradients() {
    const Columns& c = columns_;
    if constexpr (form == Form::log_density || form == Form::log_density_probes) {
      float4 square = square_;
      if constexpr (form == Form::log_density) {
        square = of_all(0);
        for (int64_t i = 1; i <= c.directions; ++i) square = square - y(0, i) * y(0, i);
      }
      const float4 known = coef(A) * of_all(float(run_.dimension)) + coef(GAMMA) * square;
      const float4 asked = finish(y(0, c.rate()) + within(known, 0, 1), 1, 0);
      if constexpr (form == Form::log_density)
        for (int64_t i = 1; i <= c.directions; ++i) seed(0, i) = of_all(-2) * coef(GAMMA) * asked * y(0, i);
      seed(0, c.rate()) = asked;
    }
    if constexpr (form == Form::potential) {
      const float4 minus_twice = of_all(-2) * coef(GAMMA);
      for (int64_t i = 0; i < c.directions; ++i) {
        seed(0, 1 + i) = minus_twice * y(0, c.mixed() + i);
        seed(0, c.mixed() + i) = minus_twice * y(0, 1 + i);
      }
      seed(0, c.rate_along_e()) = within(of_all(1), 0, 1);
    }
    if constexpr (form == Form::score)
      for (int t = 0; t < tiles_of(run_.dimension); ++t) {
        const float4 e = x(t, c.along_e()), s_along_e = Row::fma(coef(P), e, coef(Q) * y(t, c.along_e()));
        seed(t, 0) = coef(Q_RATE) * e + coef(Q) * (coef(A) * e - of_all(2) * coef(GAMMA) * s_along_e);
        seed(t, c.rate()) = coef(Q) * e;
        seed(t, c.along_e()) = -(coef(Q) * by_score(t));
        for (int64_t i = 0; i < c.directions; ++i) seed(t, c.mixed() + i) = -(share() * x(t, 1 + i));
      }
  }

  // ---------------------------------------------------------------------------------------------- the network

  __device__ const float* weights(int64_t at) const { return static_cast<const float*>(run_.weights) + at; }
  __device__ const float4* matrix(int64_t at) const {
    return reinterpret_cast<const float4*>(weights(at)) + lane_.number;
  }

  __device__ void forward(int64_t first, int64_t last) const {
    const Columns& c = columns_;
    const int64_t width = c.count;
    const Some all = {first, last};
    // Of the value's and the rate's columns those that are asked for.
    const Some of_time = {first == 0 ? 0 : c.rate(), last > c.rate() && first <= c.rate() ? c.rate() + 1 : first == 0,
                          c.rate()};
    for (int64_t k = 0; k < run_.instructions; ++k) {
      const JetInstruction& i = run_.program[k];
      float4 *const out = jet(i.out), *const a = jet(i.a);
      float4* const b = i.b == nothing ? nullptr : jet(i.b);
      switch (i.op) {
        case JetOp::linear: multiply(i.rows, i.columns, out, a, matrix(i.weights), b, width, all); break;
        case JetOp::feature:
          if (i.weights == nothing)
            copy_columns(i.rows, out, a, nullptr, width, true, of_time);
          else
            multiply(i.rows, i.columns, out, a, matrix(i.weights), out, width, of_time);
          break;
        case JetOp::activate:
          for_slopes(i, a, width, *weights(i.weights), [&](int t, const Jet<float4>& h) {
            const Row from = {a + t * width * warp}, to = {out + t * width * warp};
            if (first == 0) to.put(0, h.value);
            if (first <= 1 && last > 1) first_order_row(from, to, h.first, h.second, curvature_, c);
            if constexpr (form == Form::potential || form == Form::score)
              if (last > c.first_order())
                along_e_row<form == Form::potential>(from, to, h.first, h.second, h.third, curvature_, c);
          });
          break;
        case JetOp::add:
          copy_columns(i.rows, out, a, nullptr, width, false, all);
          if (b) copy_columns(i.rows, out, b, nullptr, width, true, all);
          break;
        case JetOp::scale: copy_columns(i.rows, out, a, weights(i.weights) + lane_.row(), width, false, all); break;
      }
      if (i.bias != nothing && first == 0)
        for (int t = 0; t < tiles_of(i.rows); ++t) {
          const float* const bias = weights(i.bias) + t * tile_rows + lane_.row();
          out[t * width * warp] = out[t * width * warp] + of_rows(*reinterpret_cast<const float2*>(bias));
        }
    }
  }

  // Adjoints of columns 0 ... last - 1: of parameters, or else of x.
  __device__ void backward(int64_t last, bool parameters) const {
    const Columns& c = columns_;
    const int64_t width = c.count;
    const Some all = {0, last}, of_time = {0, c.rate() + 1, c.rate()};
    for (int64_t k = run_.instructions - 1; k >= 0; --k) {
      const JetInstruction& i = run_.program[k];
      float4 *const out = adjoint(i.out_adjoint), *const in = jet(i.a);
      const bool to_x = i.a_adjoint >= 0 && i.a_adjoint < run_.dimension, of_feature = i.op == JetOp::feature;
      float4* const a = i.a_adjoint == nothing || (parameters ? to_x : of_feature) ? nullptr : adjoint(i.a_adjoint);
      const bool adds = i.a_adds;
      if (parameters && (i.gradient != nothing || i.bias_gradient != nothing)) gradients(i, last);
      if (i.b != nothing && i.b_adjoint != nothing && !(parameters && i.b_adjoint < run_.dimension))
        copy_columns(i.rows, adjoint(i.b_adjoint), out, nullptr, width, i.b_adds, all);
      switch (i.op) {
        case JetOp::linear:
        case JetOp::feature: {
          const Some some = of_feature ? of_time : all;
          if (a && i.weights == nothing)
            copy_columns(i.rows, a, out, nullptr, width, adds, some);
          else if (a)
            multiply(i.columns, i.rows, a, out, matrix(i.transposed), adds ? a : nullptr, width, some);
          break;
        }
        case JetOp::activate:
          if (!a) break;
          for_slopes(i, in, width, *weights(i.weights), [&](int t, const Jet<float4>& h) {
            const int64_t at = t * width * warp;
            const SlopesOfRow<float4> slopes = {h.first, h.second, h.third, h.fourth};
            if (parameters)
              back_row<reach_of_parameters<form>>(Row{in + at}, Row{out + at}, Row{a + at, adds}, slopes, curvature_,
                                                  c);
            else if constexpr (form != Form::log_density)
              back_row<reach_of_x<form>>(Row{in + at}, Row{out + at}, Row{a + at, adds}, slopes, curvature_, c);
          });
          break;
        case JetOp::add:
          if (a) copy_columns(i.rows, a, out, nullptr, width, adds, all);
          break;
        case JetOp::scale:
          if (a) copy_columns(i.rows, a, out, weights(i.weights) + lane_.row(), width, adds, all);
          break;
      }
    }
    if (!parameters || !run_.feature_adjoints) return;
    for (int t = 0; t < tiles_of(run_.feature_count); ++t) {
      const float4* const of = adjoint(run_.features_adjoint + t * tile_rows);
      scatter(run_.feature_adjoints, run_.feature_count, t, of[0]);
      scatter(run_.rate_adjoints, run_.feature_count, t, of[c.rate() * warp]);
    }
  }

  // The block's, of one instruction.
  __device__ void gradients(const JetInstruction& i, int64_t last) const {
    const int64_t adjoint = (run_.jets + i.out_adjoint) / tile_rows, in = i.a / tile_rows;
    __syncthreads();  // every warp's adjoint is there
    if (i.bias_gradient != nothing) row_sums(i.rows, sums_ + i.bias_gradient, adjoint, nothing, block_, adds_, 1);
    if (i.gradient != nothing) {
      float4* const sums = reinterpret_cast<float4*>(sums_ + i.gradient);
      const Some some = i.op == JetOp::feature ? Some{0, columns_.rate() + 1, columns_.rate()} : Some{0, last};
      if (i.op == JetOp::scale)
        row_sums(i.rows, sums_ + i.gradient, adjoint, in, block_, adds_, last);
      else
        outer(i.rows, i.columns, sums, adjoint, in, block_, adds_, lane_, some);
    }
    __syncthreads();  // and none is needed any more
  }

  const Residual& run_;
  Columns columns_;
  Lane lane_;
  Space space_;
  Block block_;
  float* sums_;
  float4 curvature_, square_;  // of log_density_probes |s|^2
  int64_t first_ = 0;
  bool adds_ = false;
  double loss_ = 0;
};

template <Form form>
__global__ void __launch_bounds__(points_warps* warp, 1) residual_kernel(Residual run, Scratch scratch) {
  PointTile<form> tile(run, scratch);
  for (int64_t start = int64_t(blockIdx.x) * block_points; start < run.samples;
       start += int64_t(gridDim.x) * block_points)
    tile.points(start, start >= int64_t(gridDim.x) * block_points);
  if (!run.loss) return;
  __shared__ double losses[points_warps * warp];
  losses[threadIdx.x] = tile.loss();
  for (unsigned n = points_warps * warp / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) losses[threadIdx.x] += losses[threadIdx.x + n];
  }
  if (threadIdx.x == 0) scratch.losses[blockIdx.x] = losses[0];
}

// A thread adds up what the blocks have of one number of the gradient; the last, of the loss.
__global__ void __launch_bounds__(threads_per_block) fold_kernel(Residual run, Scratch scratch) {
  const int64_t all = (run.gradient ? run.gradient_count : 0) + (run.loss ? 1 : 0);
  for (int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < all; n += int64_t(gridDim.x) * blockDim.x) {
    const bool of_gradient = run.gradient && n < run.gradient_count;
    double sum = 0;
    for (int64_t block = 0; block < scratch.blocks; ++block)
      sum += of_gradient ? double(scratch.sums[block * scratch.sum_count + scratch.places[n]]) : scratch.losses[block];
    double& to = of_gradient ? run.gradient[n] : *run.loss;
    to += sum;
  }
}

template <Form form>
const char* run_form(const Residual& run, const Scratch& scratch, void* stream) {
  return launch(residual_kernel<form>, int(scratch.blocks), points_warps * warp, 0, stream, run, scratch);
}

}  // namespace

int64_t residual_bytes(const Residual& run) {
  const int64_t columns = run.form == Form::potential ? columns_of<Form::potential>(run).count
                          : run.form == Form::score   ? columns_of<Form::score>(run).count
                                                      : columns_of<Form::log_density>(run).count;
  return points_warps * (run.jets + run.adjoints) / tile_rows * columns * int64_t(warp * sizeof(float4));
}

const char* residual(const Residual& run, const Scratch& scratch, void* stream) {
  if (run.samples == 0) return nullptr;
  const auto kernel = run.form == Form::log_density          ? run_form<Form::log_density>
                      : run.form == Form::log_density_probes ? run_form<Form::log_density_probes>
                      : run.form == Form::potential          ? run_form<Form::potential>
                                                             : run_form<Form::score>;
  const char* const error = kernel(run, scratch, stream);
  const int64_t sums = (run.gradient ? run.gradient_count : 0) + (run.loss ? 1 : 0);
  if (error || sums == 0) return error;
  return launch(fold_kernel, blocks_for(sums), threads_per_block, 0, stream, run, scratch);
}

}  // namespace fpfast::cuda
