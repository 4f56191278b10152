// _native.cpu_residual: checks what it is given, and runs it.
#include <pybind11/stl.h>

#include "bindings.h"

namespace py = pybind11;

namespace fpfast {
namespace {

// No instruction reaches outside of the workspaces, the weights and the gradient, whose sizes the caller gives.
void check(const Residual& run, int64_t weight_count) {
  const auto within = [](int64_t first, int64_t count, int64_t size) {
    return first >= 0 && count >= 0 && first <= size - count;
  };
  const auto optional = [&](int64_t first, int64_t count, int64_t size) {
    return first == nothing || within(first, count, size);
  };
  for (int64_t k = 0; k < run.instructions; ++k) {
    const JetInstruction& i = run.program[k];
    const bool matrix = i.op == JetOp::linear || (i.op == JetOp::feature && i.weights != nothing);
    const int64_t columns = matrix ? i.columns : i.rows, limit = int64_t(1) << 24;
    require(matrix || i.op != JetOp::feature || (i.columns == i.rows && i.gradient == nothing),
            "program: a feature without a matrix has columns or a gradient");
    require(i.op >= JetOp::linear && i.op <= JetOp::scale && i.rows >= 1 && i.rows <= limit && columns >= 1 &&
                columns <= limit,
            "program: a size is out of range");
    require(within(i.out, i.rows, run.jets) && within(i.a, columns, run.jets) && optional(i.b, i.rows, run.jets),
            "program: a jet is outside the workspace");
    require(within(i.out_adjoint, i.rows, run.adjoints) && optional(i.a_adjoint, columns, run.adjoints) &&
                optional(i.b_adjoint, i.rows, run.adjoints),
            "program: an adjoint is outside the workspace");
    const int64_t used = matrix ? i.rows * i.columns : i.op == JetOp::activate ? 1 : i.op == JetOp::scale ? i.rows : 0;
    require(used == 0 || within(i.weights, used, weight_count), "program: weights are outside their buffer");
    require(!matrix || i.a_adjoint == nothing || within(i.transposed, used, weight_count),
            "program: weights are outside their buffer");
    require(optional(i.bias, i.rows, weight_count), "program: a bias is outside the weights");
    require(optional(i.gradient, i.rows * (matrix ? i.columns : 1), run.gradient_count) &&
                optional(i.bias_gradient, i.rows, run.gradient_count),
            "program: a gradient is outside its buffer");
    require(i.op != JetOp::activate || within(i.slopes, i.rows, run.slopes), "program: slopes are outside");
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

void cpu_residual(const std::string& level, const py::dict& arguments, int threads) {
  const auto number = [&](const char* name) { return arguments[name].cast<int64_t>(); };
  const auto pointer = [&](const char* name) { return reinterpret_cast<void*>(arguments[name].cast<uintptr_t>()); };
  Residual run{};
  const int64_t form = number("form");
  require(form >= 0 && form <= int64_t(Form::score), "form: expected 0 to 3");
  run.float64 = number("float64") != 0, run.form = Form(form);
  run.program = static_cast<const JetInstruction*>(pointer("program")), run.instructions = number("instructions");
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
              run.directions <= limit && run.feature_count >= 0 && run.feature_count <= limit,
          "samples, dimension, directions, features: out of range");
  for (const int64_t rows : {run.jets, run.adjoints, run.slopes, run.gradient_count})
    require(rows >= 0 && rows <= int64_t(1) << 40, "workspace: out of range");
  require(run.samples == 0 || (run.x && run.coef && run.weights &&
                               (run.feature_count == 0 || (run.feature_values && run.feature_rates))),
          "a pointer is null");
  require(run.probes || run.directions == run.dimension, "directions: expected d, or probes");
  require(!run.gradient || run.upstream || run.loss, "gradient: expected upstream or a loss");
  require(run.gradient || !run.feature_adjoints, "feature_adjoints: expected a gradient too");
  require(!run.feature_adjoints == !run.rate_adjoints && (!run.feature_adjoints || run.features_adjoint != nothing),
          "feature_adjoints: expected rows for them");
  check(run, number("weight_count"));
  const CpuKernels& kernels = kernels_of(level);
  py::gil_scoped_release release;
  kernels.residual(run, threads < 1 ? 1 : threads);
}

}  // namespace

void bind_residual(py::module_& module) { module.def("cpu_residual", cpu_residual); }

}  // namespace fpfast
