// What the bindings and the kernels agree on: raw pointers and sizes, no torch.
#pragma once
#include <cstdint>

namespace fpfast {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };
enum class Kind : int { normal = 0, uniform = 1, rademacher = 2 };

constexpr int max_operands = 4;

// Which noise: words are made from (seed, sample, element / 4, stream, draw).
struct Noise {
  const uint64_t* seeds = nullptr;  // one value, or one per sample; null: no noise
  bool per_sample = false;          // with a seed of its own, every sample is sample 0
  uint64_t first_sample = 0;
  uint32_t stream = 0;
  uint32_t draw = 0;
};

// out[b, e] = ((c0 x0[b, e] + c1 x1[b, e]) + ...) + cz z[b, e];  row b of coef is (c0, c1, c2, c3, cz).
//
// A call that is recorded once and replayed for many steps, as in a CUDA graph, finds its numbers in memory: `position`
// holds a step and the first sample. The row is then the step's, the step is the draw, and noise.draw is not read.
// noise.first_sample is then only to tell a launch how large numbers are: its upper 32 bits, and those of the last
// sample, are those of the position's.
struct Combine {
  float* out;                         // [samples, elements], may be operand 0
  const void* operand[max_operands];  // [samples, elements] each
  Dtype dtype[max_operands];
  int operands;
  const float* coef;  // [5], or [samples, 5]; with a position that of step 0, [5]
  bool coef_per_sample;
  const int64_t* position;  // [2], or null
  int32_t step_stride;      // from a step's row to the next; times the step it is below 2^31
  Noise noise;
  int64_t samples, elements;
};

// What residuals are made of by differences and by random probes v; all arrays are float32, [samples, elements] where
// nothing else is said. Every sample's sum is made in one order, whatever the threads.
struct Probed {
  float* out;              // of pair [2, samples, elements], of the others [samples, ...]
  float* norms;            // of defect: |out|^2 [samples]
  const float *x, *y, *z;  // operands
  const float* coef;       // [samples, 3] of pair, [samples, 2] of defect and product, [samples] of probe_times
  Kind kind;               // of v
  Noise noise;
  int64_t samples, elements;
};

// A network is a straight-line program on values of `rows` numbers a sample; a value is named by its first row in the
// workspace. Programs are written by fpfast/program.py.
enum class Op : int64_t {
  linear = 0,    // out = (W in + bias + other) * first
  activate = 1,  // out, first, second = h, h', h'' at in
  add = 2,       // out = in + bias + other
  multiply = 3,  // out = in * other
  scale = 4,     // out = weights * in + other, a weight a row
  fill = 5,      // out = weights
};
constexpr int64_t nothing = -1, input_rows = -2, output_rows = -3;  // in place of a row

struct Instruction {
  Op op;
  int64_t out, first, second;  // what is not wanted is `nothing`; `first` is a factor of `linear`
  int64_t in, other;           // `other` may be `nothing`
  int64_t rows, columns;
  int64_t weights;  // offset of the packed matrix, of a weight a row, or of the activation's parameter
  int64_t bias;     // offset in the evaluation's row of biases, or `nothing`
  int64_t kind;     // Activation
};

// What a run does in each step. Values are rows here too, of `dimension` numbers each.
struct Action {
  int64_t
      evaluate;  // 1: out = network at in, if the step's stage says so; 0: combine, or copy where stage is `nothing`
  int64_t stage;
  int64_t in, out;
  int64_t operands, operand[max_operands];  // those with coefficient 0 are not read, but for the first
  int64_t stream;                           // of the noise, drawn where its coefficient is not 0
};

struct Port {
  void* data;  // [samples, rows]
  int64_t row, rows;
};

constexpr int max_ports = 16;

struct Trajectory {
  bool float64;  // of the state, weights, biases, coefficients
  const Instruction* program;
  int64_t instructions;
  const void* weights;
  const void* biases;  // [evaluations, bias_width]
  int64_t bias_width;
  const Action* actions;  // of a step
  int64_t count;
  int64_t first_step, last_step, stages;
  const int64_t* evaluations;  // [steps, stages]: the row of biases, or `nothing`: no evaluation
  const void* coef;            // [steps, stages, 5]
  Port inputs[max_ports], outputs[max_ports];
  int input_count, output_count;
  int64_t dimension;  // rows of a state
  int64_t rows;       // of the workspace
  Noise noise;        // its stream is the action's, its draw the step
  int64_t samples;
  int64_t tile;  // vectors a tile, 1 to 3, or 0: the best for the number of samples
};

// What is kept of samples that are NaN or infinite after a step.
struct Watch {
  int64_t* broken;  // [samples]: the number of the first such step, 1 to steps; 0: none. Null: nobody asks
  bool freeze;      // such a sample has the state that it had before that step, from then on
};

// The Fokker-Planck residual of a recognised network and the gradient of a loss of it, point by point. A value's jet
// has, for each of its rows, columns
//
//   value | derivatives along n directions | rate | along e | along a direction and e, n of them | rate along e
//
// where the rate is M = d_t + (drift of the jet's x) . grad - curvature sum_i D^2[direction i, direction i], e is one
// more direction, and the last n + 2 columns, or the last, are there only where a form needs them.
enum class JetOp : int64_t {
  linear = 0,    // out = W a + b + bias
  feature = 1,   // out += W a, a of time: only its value and its rate are not 0; W may be `nothing`
  activate = 2,  // out = h(a)
  add = 3,       // out = a + b + bias
  scale = 4,     // out = weights * a, a weight a row
};

struct JetInstruction {
  JetOp op;
  int64_t rows, columns;
  int64_t out, a, b;                          // rows of the jets' workspace; those of x are the first
  int64_t out_adjoint, a_adjoint, b_adjoint;  // rows of the adjoints', or `nothing` where it is not wanted
  int64_t a_adds, b_adds;                     // 1: there is something already, to be added to
  int64_t weights, transposed;                // offsets of packed matrices, of factors, of the activation's parameter
  int64_t bias;                               // offset in the weights, or `nothing`
  int64_t gradient, bias_gradient;            // offsets in the gradient (on a GPU in a block's sums), or `nothing`
  int64_t slopes;                             // of an activation: rows of derivatives
  int64_t kind;                               // Activation
};

enum class Form : int {
  log_density = 0,         // a potential's R, along all d units
  log_density_probes = 1,  // a potential's R, along probes
  potential = 2,           // the residual of a potential's score, along all d units
  score = 3,               // the residual of a score
};

struct Residual {
  bool float64;
  Form form;
  const JetInstruction* program;
  int64_t instructions;
  const void* weights;
  int64_t dimension, directions;
  double share;             // of a direction in the sum over all: 1, or 1 / directions of probes
  int64_t output, outputs;  // rows of the network's output
  int64_t output_adjoint;
  int64_t features, feature_count, features_adjoint;  // their rows
  int64_t jets, adjoints, slopes;                     // rows of the workspaces
  int64_t samples;
  const void *x, *feature_values, *feature_rates;  // [samples, d], [samples, feature_count]
  const void* probes;                              // [directions, samples, d], or null: the units
  const void* coef;      // [6, samples]: a, g^2 / 2, p, q, dp/dt, dq/dt of s = p x + q y; of a potential [2, samples]
  void* value;           // the residual, [samples] or [samples, d]; may be null
  const void* upstream;  // [samples] or [samples, d]: what the gradient is of is sum upstream . residual; or, if null,
  const void* weight;    // the loss, scale sum weight |residual|^2, [samples], or scale sum |residual|^2
  double scale;
  double* loss;      // added to; may be null
  double* gradient;  // [gradient_count], added to; may be null
  int64_t gradient_count;
  void *feature_adjoints, *rate_adjoints;  // [samples, feature_count]; may be null
};

}  // namespace fpfast
