// _native.cpu_trajectory and _native.cuda_trajectory: check what they are given, and run it.
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#ifdef FPFAST_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace fpfast {
namespace {

// (address, first row, rows) of a [samples, rows] array.
using PortSpec = std::tuple<uintptr_t, int64_t, int64_t>;

int set_ports(Port (&ports)[max_ports], const std::vector<PortSpec>& specs, int64_t rows, int64_t samples,
              int64_t unit) {
  require(specs.size() <= max_ports, "ports: expected at most 16");
  int count = 0;
  for (const auto& [address, row, width] : specs) {
    require(address != 0 || samples == 0, "ports: a pointer is null");
    require(row >= 0 && row % unit == 0 && width >= 0 && row <= rows - width,
            "ports: expected rows within the workspace");
    ports[count++] = {reinterpret_cast<void*>(address), row, width};
  }
  return count;
}

// Checked once for each call: no instruction or action reaches outside the workspace, the weights, the biases and the
// coefficients, whose sizes the caller gives.
//
// `unit`: values take multiples of so many rows.
void check_program(const Trajectory& run, int64_t weight_count, int64_t bias_count, int64_t steps, int64_t unit) {
  const auto up = [unit](int64_t rows) { return (rows + unit - 1) / unit * unit; };
  int64_t input = 0, output = 0;
  const auto fits = [&](int64_t row, int64_t rows) {
    if (row == input_rows) input = std::max(input, rows);
    if (row == output_rows) output = std::max(output, rows);
    require(row < 0 ? row >= output_rows : row <= run.rows - up(rows) && row % unit == 0,
            "program: a value is outside the workspace");
  };
  for (int64_t n = 0; n < run.instructions; ++n) {
    const Instruction& i = run.program[n];
    require(i.rows >= 0 && i.columns >= 0 && i.rows <= run.rows && i.columns <= run.rows,
            "program: a size is out of range");
    const bool any = i.out != nothing || (i.op == Op::activate && (i.first != nothing || i.second != nothing));
    require(any && (i.op == Op::fill || i.in != nothing) && (i.op != Op::multiply || i.other != nothing),
            "program: an instruction lacks a value");
    for (const int64_t row : {i.out, i.first, i.second, i.other}) fits(row, i.rows);
    fits(i.in, i.op == Op::linear ? i.columns : i.rows);
    const int64_t used = i.op == Op::linear                      ? i.rows * i.columns
                         : i.op == Op::activate                  ? 1
                         : i.op == Op::scale || i.op == Op::fill ? up(i.rows)
                                                                 : 0;
    require(i.weights >= 0 && i.weights <= weight_count - used && i.weights % unit == 0,
            "program: weights are outside their buffer");
    require(i.bias == nothing || (i.bias >= 0 && i.bias <= run.bias_width - up(i.rows) && i.bias % unit == 0),
            "program: a bias is outside its row");
  }
  for (int64_t n = 0; n < run.count; ++n) {
    const Action& a = run.actions[n];
    require(a.operands >= 0 && a.operands <= max_operands && a.stage >= nothing && a.stage < run.stages,
            "actions: a number is out of range");
    const bool copy = a.stage == nothing, network = a.evaluate && !copy;
    require(copy || network || (a.operands >= 1 && run.noise.seeds != nullptr),
            "actions: operands or seeds are missing");
    const int64_t in = up(network ? input : run.dimension), out = up(network ? output : run.dimension);
    require(a.in >= 0 && a.in <= run.rows - in && a.in % unit == 0 && a.out >= 0 && a.out <= run.rows - out &&
                a.out % unit == 0,
            "actions: a slot is outside");
    for (int64_t k = 0; k < a.operands; ++k)
      require(a.operand[k] >= 0 && a.operand[k] <= run.rows - up(run.dimension) && a.operand[k] % unit == 0,
              "actions: an operand is outside");
  }
  require(run.first_step >= 0 && run.first_step <= run.last_step && run.last_step <= steps,
          "steps: expected a range of the table's");
  for (int64_t k = 0; k < steps * run.stages; ++k)
    require(run.evaluations[k] >= nothing && run.evaluations[k] < bias_count,
            "evaluations: a row of biases is missing");
}

// What the arguments say, checked: names are those of csrc/kernels.h, addresses those of memory that can be read here.
Trajectory make_trajectory(const py::dict& arguments, const std::vector<PortSpec>& inputs,
                           const std::vector<PortSpec>& outputs, int64_t unit) {
  const auto number = [&](const char* name) { return arguments[name].cast<int64_t>(); };
  const auto pointer = [&](const char* name) { return reinterpret_cast<void*>(arguments[name].cast<uintptr_t>()); };
  const int64_t samples = number("samples"), dimension = number("dimension"), rows = number("rows");
  check_sizes(samples, dimension, number("first_sample"), 0);
  require(rows >= 1 && rows <= (int64_t(1) << 28) && rows % unit == 0, "rows: expected 1 to 2^28, in whole tiles");
  Trajectory run{};
  run.float64 = number("float64") != 0;
  run.program = static_cast<const Instruction*>(pointer("program")), run.instructions = number("instructions");
  run.weights = pointer("weights");
  run.biases = pointer("biases"), run.bias_width = number("bias_width");
  run.actions = static_cast<const Action*>(pointer("actions")), run.count = number("count");
  run.first_step = number("first_step"), run.last_step = number("last_step"), run.stages = number("stages");
  run.evaluations = static_cast<const int64_t*>(pointer("evaluations"));
  run.coef = pointer("coef");
  run.input_count = set_ports(run.inputs, inputs, rows, samples, unit);
  run.output_count = set_ports(run.outputs, outputs, rows, samples, unit);
  run.dimension = dimension, run.rows = rows, run.samples = samples;
  run.noise =
      make_noise(arguments["seeds"].cast<uintptr_t>(), number("seeds_per_sample") != 0, number("first_sample"), 0, 0);
  check_program(run, number("weight_count"), number("bias_rows"), number("steps"), unit);
  return run;
}

// Operations on a sample, about.
double work(const Trajectory& run) {
  double network = 0, step = 0;
  for (int64_t n = 0; n < run.instructions; ++n)
    network += 2.0 * double(run.program[n].rows) * double(std::max<int64_t>(run.program[n].columns, 8));
  for (int64_t n = 0; n < run.count; ++n) step += run.actions[n].evaluate ? network : 20.0 * double(run.dimension);
  return std::max(step * double(run.last_step - run.first_step), 1.0);
}

// `broken`: the address of a number for each sample, or 0.
Watch make_watch(const Trajectory& run, uintptr_t broken, bool freeze) {
  require(!freeze || broken != 0, "freeze: expected an array to say which samples are");
  require(broken == 0 || (run.input_count > 0 && run.inputs[0].rows == run.dimension),
          "inputs: expected the state first");
  return {reinterpret_cast<int64_t*>(broken), freeze};
}

void cpu_trajectory(const std::string& level, const py::dict& arguments, const std::vector<PortSpec>& inputs,
                    const std::vector<PortSpec>& outputs, uintptr_t broken, bool freeze, int tile, int threads) {
  require(tile >= 0 && tile <= 3, "tile: expected 0 to 3 vectors");
  Trajectory run = make_trajectory(arguments, inputs, outputs, 1);
  run.tile = tile;
  const Watch watch = make_watch(run, broken, freeze);
  const CpuKernels& kernels = kernels_of(level);
  const int64_t size = run.float64 ? 8 : 4;
  in_parts(run.samples, int64_t(std::max(2e10 / work(run), 1024.0)), [&](int64_t first, int64_t count) {
    Trajectory part = run;
    for (int k = 0; k < run.input_count; ++k)
      part.inputs[k].data = static_cast<char*>(run.inputs[k].data) + size * first * run.inputs[k].rows;
    for (int k = 0; k < run.output_count; ++k)
      part.outputs[k].data = static_cast<char*>(run.outputs[k].data) + size * first * run.outputs[k].rows;
    part.noise = noise_from(run.noise, first);
    part.samples = count;
    kernels.trajectory(part, {watch.broken ? watch.broken + first : nullptr, freeze}, threads < 1 ? 1 : threads);
  });
}

#ifdef FPFAST_CUDA
// The slabs are whole columns of the matrices, in the order of the program, and lie within the weights.
void check_slabs(const Trajectory& run, const cuda::Slab* slabs, int64_t count, int64_t weight_count) {
  constexpr int64_t together = cuda::pairs_together;
  int64_t used = 0;
  for (int64_t n = 0; n < run.instructions; ++n) {
    const Instruction& i = run.program[n];
    if (i.op != Op::linear) continue;
    const int64_t all = (i.rows + 15) / 16, columns = (i.columns + 7) / 8;
    for (int64_t first = 0; first < all; first += together) {
      const int64_t pairs = std::min(together, all - first);
      for (int64_t column = 0; column < columns; ++used) {
        require(used < count, "slabs: too few");
        const cuda::Slab& slab = slabs[used];
        require(slab.fragments > 0 && slab.fragments % pairs == 0 && slab.first >= 0 && slab.first % 4 == 0 &&
                    slab.first <= weight_count - slab.fragments * cuda::fragment_floats,
                "slabs: expected whole columns within the weights");
        column += slab.fragments / pairs;
        require(column <= columns, "slabs: one reaches beyond its matrix");
      }
    }
  }
  require(used == count, "slabs: too many");
}

// `arguments` as above; `device` has the addresses of the same arrays in the GPU's memory.
void cuda_trajectory(const py::dict& arguments, const py::dict& device, const std::vector<PortSpec>& inputs,
                     const std::vector<PortSpec>& outputs, uintptr_t broken, bool freeze, uintptr_t cuda_stream) {
  const auto pointer = [](const py::dict& of, const char* name) {
    return reinterpret_cast<void*>(of[name].cast<uintptr_t>());
  };
  Trajectory run = make_trajectory(arguments, inputs, outputs, 8);
  require(!run.float64, "weights: expected float32");
  const Watch watch = make_watch(run, broken, freeze);
  cuda::Weights weights{};
  weights.count = arguments["weight_count"].cast<int64_t>(),
  weights.slab_count = arguments["slab_count"].cast<int64_t>();
  weights.bfloat16 = arguments["bfloat16"].cast<bool>();
  require(weights.count % 4 == 0, "weights: expected a multiple of four");
  const auto* slabs = static_cast<const cuda::Slab*>(pointer(arguments, "slabs"));
  check_slabs(run, slabs, weights.slab_count, weights.count);
  for (int64_t k = 0; k < weights.slab_count; ++k)
    weights.most_fragments = std::max(weights.most_fragments, slabs[k].fragments);
  weights.slabs = static_cast<const cuda::Slab*>(pointer(device, "slabs"));
  run.program = static_cast<const Instruction*>(pointer(device, "program"));
  run.actions = static_cast<const Action*>(pointer(device, "actions"));
  run.evaluations = static_cast<const int64_t*>(pointer(device, "evaluations"));
  py::gil_scoped_release release;
  const char* error = cuda::trajectory(run, watch, weights, reinterpret_cast<void*>(cuda_stream));
  if (error) throw std::runtime_error(std::string("fused engine on CUDA: ") + error);
}

int64_t cuda_shared_memory() {
  int64_t bytes = 0;
  if (const char* error = cuda::shared_memory(bytes)) throw std::runtime_error(error);
  return bytes;
}
#endif

}  // namespace

void bind_trajectory(py::module_& module) {
  module.def("cpu_trajectory", cpu_trajectory);
#ifdef FPFAST_CUDA
  module.def("cuda_trajectory", cuda_trajectory);
  module.def("cuda_shared_memory", cuda_shared_memory);
#endif
}

}  // namespace fpfast
