// _native.cpu_residual and _native.cuda_residual: check what they are given, and run it.
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings.h"
#ifdef FPFAST_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace fpfast {
namespace {

// No instruction reaches outside of the workspaces, the weights and the sums of gradients, whose sizes the caller
// gives. `unit`: values and vectors take multiples of so many rows, and matrices of twice as many.
void check(const Residual& run, int64_t weight_count, int64_t sum_count, int64_t unit) {
  const auto up = [](int64_t count, int64_t of) { return (count + of - 1) / of * of; };
  const auto within = [&](int64_t first, int64_t count, int64_t size) {
    return first >= 0 && first % unit == 0 && count >= 0 && first <= size - up(count, unit);
  };
  const auto optional = [&](int64_t first, int64_t count, int64_t size) {
    return first == nothing || within(first, count, size);
  };
  const auto entries = [&](int64_t rows, int64_t columns) {
    return unit == 1 ? rows * columns : up(rows, 2 * unit) * up(columns, unit);
  };
  for (int64_t k = 0; k < run.instructions; ++k) {
    const JetInstruction& i = run.program[k];
    const bool matrix = i.op == JetOp::linear || (i.op == JetOp::feature && i.weights != nothing);
    const int64_t columns = matrix ? i.columns : i.rows, limit = int64_t(1) << 24;
    require(matrix || i.op != JetOp::feature || i.columns == i.rows, "program: a feature without a matrix has columns");
    require(matrix || i.op == JetOp::scale || i.gradient == nothing, "program: a gradient of what has no weights");
    require(i.op >= JetOp::linear && i.op <= JetOp::scale && i.rows >= 1 && i.rows <= limit && columns >= 1 &&
                columns <= limit && i.columns >= 0 && i.columns <= limit,  // sizes of sums count those of all
            "program: a size is out of range");
    require(within(i.out, i.rows, run.jets) && within(i.a, columns, run.jets) && optional(i.b, i.rows, run.jets),
            "program: a jet is outside the workspace");
    require(within(i.out_adjoint, i.rows, run.adjoints) && optional(i.a_adjoint, columns, run.adjoints) &&
                optional(i.b_adjoint, i.rows, run.adjoints),
            "program: an adjoint is outside the workspace");
    const int64_t used = matrix                    ? entries(i.rows, i.columns)
                         : i.op == JetOp::activate ? 1
                         : i.op == JetOp::scale    ? i.rows
                                                   : 0;
    require(used == 0 || within(i.weights, used, weight_count), "program: weights are outside their buffer");
    require(!matrix || i.a_adjoint == nothing || within(i.transposed, entries(i.columns, i.rows), weight_count),
            "program: weights are outside their buffer");
    require(optional(i.bias, i.rows, weight_count), "program: a bias is outside the weights");
    require(optional(i.gradient, matrix ? entries(i.rows, i.columns) : i.rows, sum_count) &&
                optional(i.bias_gradient, i.rows, sum_count),
            "program: a gradient is outside its buffer");
    require(i.op != JetOp::activate || (i.slopes >= 0 && i.slopes <= run.slopes - i.rows),
            "program: slopes are outside");
    require(i.kind >= 0 && i.kind <= 5, "program: an activation is not known");
  }
  require(within(run.output, run.outputs, run.jets) && within(run.output_adjoint, run.outputs, run.adjoints) &&
              within(0, run.dimension, run.jets) && within(0, run.dimension, run.adjoints),
          "program: its output is outside the workspace");
  require(run.outputs == (run.form == Form::score ? run.dimension : 1), "program: outputs do not fit the form");
  require(run.feature_count == 0 || (within(run.features, run.feature_count, run.jets) &&
                                     optional(run.features_adjoint, run.feature_count, run.adjoints)),
          "program: features are outside the workspace");
}

// `arguments`: numbers and addresses by their names in kernels.h.
Residual make_residual(const py::dict& arguments) {
  const auto number = [&](const char* name) { return arguments[name].cast<int64_t>(); };
  const auto pointer = [&](const char* name) { return reinterpret_cast<void*>(arguments[name].cast<uintptr_t>()); };
  Residual run{};
  const int64_t form = number("form");
  require(form >= 0 && form <= int64_t(Form::score), "form: expected 0 to 3");
  run.float64 = number("float64") != 0, run.form = Form(form);
  run.program = static_cast<const JetInstruction*>(pointer("program_here")), run.instructions = number("instructions");
  run.weights = pointer("weights");
  run.dimension = number("dimension"), run.directions = number("directions");
  run.share = arguments["share"].cast<double>(), run.scale = arguments["scale"].cast<double>();
  run.output = number("output"), run.outputs = number("outputs"), run.output_adjoint = number("output_adjoint");
  run.features = number("features"), run.feature_count = number("feature_count");
  run.features_adjoint = number("features_adjoint");
  run.jets = number("jets"), run.adjoints = number("adjoints"), run.slopes = number("slopes");
  run.samples = number("samples");
  run.x = pointer("x"), run.feature_values = pointer("feature_values");
  run.feature_rates = pointer("feature_rates"), run.probes = pointer("probes");
  run.coef = pointer("coef");
  run.value = pointer("value"), run.upstream = pointer("upstream"), run.weight = pointer("weight");
  run.gradient = static_cast<double*>(pointer("gradient")), run.gradient_count = number("gradient_count");
  run.loss = static_cast<double*>(pointer("loss"));
  run.feature_adjoints = pointer("feature_adjoints"), run.rate_adjoints = pointer("rate_adjoints");

  const int64_t limit = int64_t(1) << 24;
  require(run.samples >= 0 && run.dimension >= 1 && run.dimension <= limit && run.directions >= 1 &&
              run.directions <= 1 << 20 && run.feature_count >= 0 && run.feature_count <= limit,
          "samples, dimension, directions, features: out of range");
  for (const int64_t rows : {run.jets, run.adjoints, run.slopes, run.gradient_count})
    require(rows >= 0 && rows <= int64_t(1) << 31, "workspace: out of range");
  require(run.samples == 0 || (run.x && run.coef && run.weights &&
                               (run.feature_count == 0 || (run.feature_values && run.feature_rates))),
          "a pointer is null");
  require(run.probes || run.directions == run.dimension, "directions: expected d, or probes");
  require(!run.gradient || run.upstream || run.loss, "gradient: expected upstream or a loss");
  require(run.gradient || !run.feature_adjoints, "feature_adjoints: expected a gradient too");
  require(!run.feature_adjoints == !run.rate_adjoints && (!run.feature_adjoints || run.features_adjoint != nothing),
          "feature_adjoints: expected rows for them");
  return run;
}

void cpu_residual(const std::string& level, const py::dict& arguments, int threads) {
  const Residual run = make_residual(arguments);
  check(run, arguments["weight_count"].cast<int64_t>(), run.gradient_count, 1);
  const CpuKernels& kernels = kernels_of(level);
  py::gil_scoped_release release;
  kernels.residual(run, threads < 1 ? 1 : threads);
}

#ifdef FPFAST_CUDA
void cuda_residual(const py::dict& arguments, uintptr_t cuda_stream) {
  const auto number = [&](const char* name) { return arguments[name].cast<int64_t>(); };
  const auto pointer = [&](const char* name) { return reinterpret_cast<void*>(arguments[name].cast<uintptr_t>()); };
  Residual run = make_residual(arguments);
  require(!run.float64, "weights: expected float32");
  cuda::Scratch scratch{};
  scratch.blocks = number("blocks"), scratch.sum_count = number("sum_count");
  scratch.values = static_cast<float4*>(pointer("values"));
  scratch.sums = static_cast<float*>(pointer("sums"));
  scratch.losses = static_cast<double*>(pointer("losses"));
  scratch.places = static_cast<const int64_t*>(pointer("places"));
  check(run, number("weight_count"), scratch.sum_count, 8);
  require(run.jets % 8 == 0 && run.adjoints % 8 == 0, "workspace: expected multiples of 8 rows");
  require(run.directions <= 1 << 20 && run.jets + run.adjoints <= int64_t(1) << 31 &&
              cuda::residual_bytes(run) <= cuda::most_residual_bytes,
          "workspace: expected at most 16 GB for 128 points");
  require(scratch.blocks >= 1 && scratch.blocks <= int64_t(1) << 16 && scratch.values &&
              number("value_count") * int64_t(sizeof(float)) >= cuda::residual_bytes(run),
          "values: expected room for each block");
  require((!run.gradient || (scratch.sums && scratch.places)) && (!run.loss || scratch.losses), "a pointer is null");
  run.program = static_cast<const JetInstruction*>(pointer("program"));
  py::gil_scoped_release release;
  const char* error = cuda::residual(run, scratch, reinterpret_cast<void*>(cuda_stream));
  if (error) throw std::runtime_error(std::string("residual on CUDA: ") + error);
}
#endif

}  // namespace

void bind_residual(py::module_& module) {
  module.def("cpu_residual", cpu_residual);
#ifdef FPFAST_CUDA
  module.def("cuda_residual", cuda_residual);
#endif
}

}  // namespace fpfast
