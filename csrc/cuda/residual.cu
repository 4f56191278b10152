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
Columns columns_of(const Residual& run) {
  const int n = int(run.directions);
  return {n, form == Form::potential ? 2 * n + 4 : form == Form::score ? 2 * n + 3 : n + 2};
}

template <Form form>
Layout layout_of(const Residual& run) {
  const Columns columns = columns_of<form>(run);
  return {columns, int(run.jets), int(run.jets + run.adjoints) / tile_rows * columns.count * warp};
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

// What a thread needs now and then only, which lies in shared memory: in registers it would leave too few for two
// blocks on a multiprocessor.
struct Kept {
  int part;        // of the points, block_points of them: the block's present one
  int64_t sample;  // the lane's first in it
  double loss;
  float2 square;  // of log_density_probes |s|^2
};

template <Form form>
class PointTile {
 public:
  __device__ PointTile(const Residual& run, const Scratch& scratch, const Layout& layout, Kept& kept)
      : run_(run), scratch_(scratch), layout_(layout), kept_(kept) {
    memory_ = of_block() + threadIdx.x / warp * layout.size + lane().number;
  }

  // The points of the present part; the warps of a block come here together.
  //
  // Twice forwards and back: the first time for the residual, the second for the parameters' gradients. One loop, so
  // that there is one text of the network in the machine's code.
  __device__ void points() {
    const Columns& c = layout_.columns;
    kept_.sample = int64_t(kept_.part) * block_points + threadIdx.x / warp * tile_samples + lane().sample(0);
    load_points();
#pragma unroll 1
    for (bool parameters = form == Form::log_density;; parameters = true) {
      const bool again = parameters && form != Form::log_density;
      forward(again ? columns_before() : 0, parameters ? c.count : columns_before());
      clear(layout_.adjoint(run_.output_adjoint), run_.outputs);
      parameters ? seed_gradients() : seed_residual();
      if (parameters && !wanted()) return;
      backward(parameters);
      if (parameters) return;
      finish_residual();
      if (form >= Form::potential && !wanted()) return;
    }
  }

 private:
  __device__ Lane lane() const { return {int(threadIdx.x) % warp}; }
  __device__ float4* of_block() const { return scratch_.values + int64_t(blockIdx.x) * points_warps * layout_.size; }
  __device__ Block block() const {
    return {reinterpret_cast<const float2*>(of_block()), 2 * layout_.size, layout_.columns.count};
  }
  __device__ float* sums() const { return scratch_.sums + blockIdx.x * scratch_.sum_count; }
  __device__ bool adds() const { return kept_.part >= int(gridDim.x); }  // to sums of earlier parts
  __device__ bool wanted() const { return run_.gradient; }

  __device__ float4& jet(int row, int column) const { return memory_[layout_.jet(row) + column * warp]; }
  __device__ float4& adjoint(int row, int column) const { return memory_[layout_.adjoint(row) + column * warp]; }
  __device__ float4& x(int t, int column) const { return jet(t * tile_rows, column); }
  __device__ float4& x_adjoint(int t, int column) const { return adjoint(t * tile_rows, column); }
  __device__ float4 y(int t, int column) const {
    return within(jet(run_.output + t * tile_rows, column), t, run_.outputs);
  }
  __device__ float4& seed(int t, int column) const { return adjoint(run_.output_adjoint + t * tile_rows, column); }
  __device__ int row(int t) const { return t * tile_rows + lane().row(); }
  __device__ int64_t sample(int which) const { return kept_.sample + which * (tile_samples / 2); }

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
  __device__ float4 curvature() const {  // without one a rate is d_t alone
    return form == Form::score ? of_all(0) : of_all(float(run_.share)) * coef(GAMMA);
  }

  __device__ void clear(int at, int64_t rows) const {
    for (int k = 0; k < tiles_of(rows) * layout_.columns.count; ++k) memory_[at + k * warp] = of_all(0);
  }

  __device__ void load_points() {
    const int d = int(run_.dimension), n = layout_.columns.directions;
    clear(layout_.jet(0), d);
    for (int t = 0; t < tiles_of(d); ++t) {
      const float4 at = gather(run_.x, d, t);
      x(t, 0) = at;
      if constexpr (form != Form::score) x(t, layout_.columns.rate()) = coef(A) * at;
      for (int i = 0; i < n; ++i)
        x(t, 1 + i) = run_.probes ? gather(static_cast<const float*>(run_.probes) + i * run_.samples * d, d, t)
                                  : of_rows({i == row(t) ? 1.0f : 0.0f, i == row(t) + 1 ? 1.0f : 0.0f});
    }
    if (!run_.feature_count) return;
    clear(layout_.jet(run_.features), run_.feature_count);
    for (int t = 0; t < tiles_of(run_.feature_count); ++t) {
      const int feature = run_.features + t * tile_rows;
      jet(feature, 0) = gather(run_.feature_values, run_.feature_count, t);
      jet(feature, layout_.columns.rate()) = gather(run_.feature_rates, run_.feature_count, t);
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
    kept_.loss += double(weighted.x) * double(residual.x) + double(weighted.y) * double(residual.y) +
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
  __device__ int columns_before() const { return form == Form::log_density_probes ? 1 : layout_.columns.first_order(); }

  __device__ float4 score_at(int t) const { return Row::fma(coef(P), x(t, 0), coef(Q) * y(t, 0)); }
  // Of U by s, but for div s.
  __device__ float4 by_score(int t) const { return of_all(2) * coef(GAMMA) * score_at(t) - coef(A) * x(t, 0); }
  __device__ float4 share() const { return of_all(float(run_.share)) * coef(GAMMA) * coef(Q); }

  __device__ void seed_residual() const {
    const Columns& c = layout_.columns;
    if constexpr (form == Form::log_density_probes) seed(0, 0) = within(of_all(1), 0, 1);
    if constexpr (form == Form::potential) {
      for (int i = 1; i <= c.directions; ++i) seed(0, i) = of_all(-2) * coef(GAMMA) * y(0, i);
      seed(0, c.rate()) = within(of_all(1), 0, 1);
    }
    if constexpr (form == Form::score)
      for (int t = 0; t < tiles_of(run_.dimension); ++t) {
        seed(t, 0) = coef(Q) * by_score(t);
        for (int i = 0; i < c.directions; ++i) seed(t, 1 + i) = share() * x(t, 1 + i);
      }
  }

  // What the first pass has found, and what the second begins with.
  __device__ void finish_residual() {
    const Columns& c = layout_.columns;
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
      kept_.square = square;
    }
  }

  __device__ void seed_gradients() {
    const Columns& c = layout_.columns;
    if constexpr (form == Form::log_density || form == Form::log_density_probes) {
      float4 square = of_samples(kept_.square);
      if constexpr (form == Form::log_density) {
        square = of_all(0);
        for (int i = 1; i <= c.directions; ++i) square = square - y(0, i) * y(0, i);
      }
      const float4 known = coef(A) * of_all(float(run_.dimension)) + coef(GAMMA) * square;
      const float4 asked = finish(y(0, c.rate()) + within(known, 0, 1), 1, 0);
      if constexpr (form == Form::log_density)
        for (int i = 1; i <= c.directions; ++i) seed(0, i) = of_all(-2) * coef(GAMMA) * asked * y(0, i);
      seed(0, c.rate()) = asked;
    }
    if constexpr (form == Form::potential) {
      const float4 minus_twice = of_all(-2) * coef(GAMMA);
      for (int i = 0; i < c.directions; ++i) {
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
        for (int i = 0; i < c.directions; ++i) seed(t, c.mixed() + i) = -(share() * x(t, 1 + i));
      }
  }

  // ---------------------------------------------------------------------------------------------- the network

  __device__ const float* weights(int64_t at) const { return static_cast<const float*>(run_.weights) + at; }
  __device__ const float4* matrix(int64_t at) const {
    return reinterpret_cast<const float4*>(weights(at)) + lane().number;
  }
  __device__ const float* factors(int64_t at) const { return weights(at) + lane().row(); }  // one a row

  __device__ void forward(int first, int last) const {
    const Columns& c = layout_.columns;
    const int width = c.count;
    const Some all = {first, last};
    // Of the value's and the rate's columns those that are asked for.
    const Some of_time = {first == 0 ? 0 : c.rate(), last > c.rate() && first <= c.rate() ? c.rate() + 1 : first == 0,
                          c.rate()};
    for (int k = 0; k < run_.instructions; ++k) {
      const JetInstruction& i = run_.program[k];
      const int out = layout_.jet(i.out), a = layout_.jet(i.a), b = i.b == nothing ? nowhere : layout_.jet(i.b);
      const bool of_feature = i.op == JetOp::feature;
      const Some some = of_feature ? of_time : all;
      switch (i.op) {
        case JetOp::linear:
        case JetOp::feature:
          if (i.weights == nothing)
            copy_columns(i.rows, memory_, out, a, nullptr, width, true, some);
          else
            multiply(i.rows, i.columns, memory_, out, a, matrix(i.weights), of_feature ? out : b, width, some);
          break;
        case JetOp::activate:
          for_slopes(i, memory_ + a, width, *weights(i.weights), [&](int at, const Jet<float4>& h) {
            const Row from = {memory_, a + at}, to = {memory_, out + at};
            if (first == 0) to.put(0, h.value);
            if (first <= 1 && last > 1) first_order_row(from, to, h.first, h.second, curvature(), c);
            if constexpr (form == Form::potential || form == Form::score)
              if (last > c.first_order())
                along_e_row<form == Form::potential>(from, to, h.first, h.second, h.third, curvature(), c);
          });
          break;
        case JetOp::add:
          copy_columns(i.rows, memory_, out, a, nullptr, width, false, all);
          if (b != nowhere) copy_columns(i.rows, memory_, out, b, nullptr, width, true, all);
          break;
        case JetOp::scale: copy_columns(i.rows, memory_, out, a, factors(i.weights), width, false, all); break;
      }
      if (i.bias != nothing && first == 0)
        for (int t = 0; t < tiles_of(i.rows); ++t) {
          float4& value = memory_[out + t * width * warp];
          value = value + of_rows(*reinterpret_cast<const float2*>(factors(i.bias) + t * tile_rows));
        }
    }
  }

  // To parameters, or else to x.
  __device__ void backward(bool parameters) const {
    const Columns& c = layout_.columns;
    const int width = c.count;
    const int last = parameters ? c.count : form == Form::score ? 1 + c.directions : columns_before();
    const Some all = {0, last}, of_time = {0, c.rate() + 1, c.rate()};
    for (int k = int(run_.instructions) - 1; k >= 0; --k) {
      const JetInstruction& i = run_.program[k];
      if (parameters && (i.gradient != nothing || i.bias_gradient != nothing)) gradients(i);
      const bool to_x = i.a_adjoint >= 0 && i.a_adjoint < run_.dimension, of_feature = i.op == JetOp::feature;
      const bool wanted = i.a_adjoint != nothing && !(parameters ? to_x : of_feature), adds = i.a_adds;
      const int out = layout_.adjoint(i.out_adjoint), a = wanted ? layout_.adjoint(i.a_adjoint) : nowhere;
      if (i.b != nothing && i.b_adjoint != nothing && !(parameters && i.b_adjoint < run_.dimension))
        copy_columns(i.rows, memory_, layout_.adjoint(i.b_adjoint), out, nullptr, width, i.b_adds, all);
      if (!wanted) continue;
      const Some some = of_feature ? of_time : all;
      switch (i.op) {
        case JetOp::linear:
        case JetOp::feature:
          if (i.weights == nothing)
            copy_columns(i.rows, memory_, a, out, nullptr, width, adds, some);
          else
            multiply(i.columns, i.rows, memory_, a, out, matrix(i.transposed), adds ? a : nowhere, width, some);
          break;
        case JetOp::activate: {
          const int z = layout_.jet(i.a);
          for_slopes(i, memory_ + z, width, *weights(i.weights), [&](int at, const Jet<float4>& h) {
            const Row from = {memory_, z + at}, upper = {memory_, out + at}, to = {memory_, a + at, adds};
            const SlopesOfRow<float4> slopes = {h.first, h.second, h.third, h.fourth};
            if (parameters)
              back_row<reach_of_parameters<form>>(from, upper, to, slopes, curvature(), c);
            else if constexpr (form != Form::log_density)
              back_row<reach_of_x<form>>(from, upper, to, slopes, curvature(), c);
          });
          break;
        }
        case JetOp::add: copy_columns(i.rows, memory_, a, out, nullptr, width, adds, all); break;
        case JetOp::scale: copy_columns(i.rows, memory_, a, out, factors(i.weights), width, adds, all); break;
      }
    }
    if (!parameters || !run_.feature_adjoints) return;
    for (int t = 0; t < tiles_of(run_.feature_count); ++t) {
      const int feature = int(run_.features_adjoint) + t * tile_rows;
      scatter(run_.feature_adjoints, run_.feature_count, t, adjoint(feature, 0));
      scatter(run_.rate_adjoints, run_.feature_count, t, adjoint(feature, c.rate()));
    }
  }

  // The block's, of one instruction.
  __device__ void gradients(const JetInstruction& i) const {
    const int adjoint = int(run_.jets + i.out_adjoint) / tile_rows, in = int(i.a) / tile_rows;
    const Columns& c = layout_.columns;
    __syncthreads();  // every warp's adjoint is there
    if (i.bias_gradient != nothing) row_sums(i.rows, sums() + i.bias_gradient, adjoint, nowhere, block(), adds(), 1);
    if (i.gradient != nothing) {
      float* const to = sums() + i.gradient;
      const Some some = i.op == JetOp::feature ? Some{0, c.rate() + 1, c.rate()} : Some{0, c.count};
      if (i.op == JetOp::scale)
        row_sums(i.rows, to, adjoint, in, block(), adds(), c.count);
      else
        outer(i.rows, i.columns, reinterpret_cast<float4*>(to), adjoint, in, block(), adds(), lane(), some);
    }
    __syncthreads();  // and none is needed any more
  }

  const Residual& run_;
  const Scratch& scratch_;
  const Layout& layout_;
  Kept& kept_;
  float4* memory_;  // the lane's
};

template <Form form>
__global__ void __launch_bounds__(points_warps* warp, points_blocks)
    residual_kernel(Residual run, Scratch scratch, Layout layout) {
  __shared__ Kept kept[points_warps * warp];
  Kept& own = kept[threadIdx.x] = {};
  PointTile<form> tile(run, scratch, layout, own);
  for (own.part = int(blockIdx.x); own.part * block_points < run.samples; own.part += int(gridDim.x)) tile.points();
  if (!run.loss) return;
  for (unsigned n = points_warps * warp / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) own.loss += kept[threadIdx.x + n].loss;
  }
  if (threadIdx.x == 0) scratch.losses[blockIdx.x] = own.loss;
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
  return launch(residual_kernel<form>, int(scratch.blocks), points_warps * warp, 0, stream, run, scratch,
                layout_of<form>(run));
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
