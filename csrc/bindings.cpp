// The Python module fpfast._native: addresses and sizes come in, are checked once more here, and go to a kernel.
// fpfast/native.py is its only caller, but for what it hands out to do the stages of a run (CpuStages).
#include <pybind11/stl.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
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

struct Level {
  const char* name;
  const CpuKernels* kernels;
  bool runs_here;
};

const std::vector<Level>& levels() {
  static const std::vector<Level> all = {
#ifdef FPFAST_X86
      {"avx512", &avx512::kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
      {"avx2", &avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {"baseline", &baseline::kernels, true},
  };
  return all;
}

}  // namespace

const CpuKernels& kernels_of(const std::string& level) {
  for (const Level& one : levels())
    if (level == one.name && one.runs_here) return *one.kernels;
  throw py::value_error("level: expected one that this processor has (see levels()), got '" + level + "'");
}

void require(bool ok, const char* message) {
  if (!ok) throw py::value_error(message);
}

void check_sizes(int64_t samples, int64_t elements, int64_t first_sample, int64_t draw) {
  require(samples >= 0 && elements >= 0, "samples, elements: expected sizes that are not negative");
  require(elements <= (int64_t(1) << 34), "elements: expected at most 2^34 in one sample");
  require(samples == 0 || elements <= INT64_MAX / 8 / samples, "samples, elements: expected a product below 2^60");
  require(first_sample >= 0 && first_sample <= (int64_t(1) << 48) - samples, "first_sample: expected 48-bit indices");
  require(draw >= 0 && draw <= int64_t(UINT32_MAX), "draw: expected 32 bits");
}

Noise make_noise(uintptr_t seeds, bool per_sample, int64_t first_sample, int stream, int64_t draw) {
  require(stream >= 0 && stream < (1 << 16), "stream: expected 16 bits");
  return {reinterpret_cast<const uint64_t*>(seeds), per_sample, uint64_t(first_sample), uint32_t(stream),
          uint32_t(draw)};
}

Noise noise_from(Noise noise, int64_t first) {
  if (noise.per_sample)
    noise.seeds += first;
  else
    noise.first_sample += uint64_t(first);
  return noise;
}

namespace {

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (const Level& one : levels())
    if (one.runs_here) names.push_back(one.name);
  return names;
}

Combine make_combine(uintptr_t out, const std::vector<std::tuple<uintptr_t, int>>& operands, uintptr_t coef,
                     bool coef_per_sample, uintptr_t position, int step_stride, const Noise& noise, int64_t samples,
                     int64_t elements) {
  require(!operands.empty() && operands.size() <= max_operands, "operands: expected 1 to 4");
  Combine op{};
  op.out = reinterpret_cast<float*>(out);
  for (const auto& [address, dtype] : operands) {
    require(dtype >= 0 && dtype <= int(Dtype::float16), "operands: expected dtype codes 0 to 2");
    require(address != 0 || samples == 0 || elements == 0, "operands: a pointer is null");
    op.operand[op.operands] = reinterpret_cast<const void*>(address);
    op.dtype[op.operands++] = Dtype(dtype);
  }
  op.coef = reinterpret_cast<const float*>(coef);
  op.coef_per_sample = coef_per_sample;
  op.position = reinterpret_cast<const int64_t*>(position), op.step_stride = step_stride;
  require(position == 0 || !coef_per_sample, "position: expected one row of coefficients for all samples");
  op.noise = noise;
  op.samples = samples, op.elements = elements;
  const bool some = samples > 0 && elements > 0;
  require(!some || (op.coef != nullptr && op.out != nullptr && op.operand[0] != nullptr), "a pointer is null");
  return op;
}

// Asks for large pages under an output that is most likely fresh: first touching it by pages of 4 KiB costs more than
// filling it. Only a hint, so it may fail.
void prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t stop = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (start < stop) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

void combine_in_parts(const CpuKernels& kernels, const Combine& op, int threads) {
  if (op.samples == 0 || op.elements == 0) return;
  if (op.out != op.operand[0]) prefer_large_pages(op.out, 4 * op.samples * op.elements);
  // A position holds the number of the first sample, and its samples stay together.
  const int64_t most = op.position ? op.samples : part_elements / op.elements;
  in_parts(op.samples, most, [&](int64_t first, int64_t count) {
    Combine part = op;
    part.out += first * op.elements;
    for (int k = 0; k < op.operands; ++k)
      part.operand[k] =
          static_cast<const char*>(op.operand[k]) + (op.dtype[k] == Dtype::float32 ? 4 : 2) * first * op.elements;
    if (op.coef_per_sample) part.coef += 5 * first;
    part.noise = noise_from(op.noise, first);
    part.samples = count;
    kernels.combine(part, threads < 1 ? 1 : threads);
  });
}

void cpu_combine(const std::string& level, uintptr_t out, const std::vector<std::tuple<uintptr_t, int>>& operands,
                 uintptr_t coef, bool coef_per_sample, uintptr_t position, int step_stride, uintptr_t seeds,
                 bool seeds_per_sample, int64_t first_sample, int stream, int64_t draw, int64_t samples,
                 int64_t elements, int threads) {
  check_sizes(samples, elements, first_sample, draw);
  const Noise noise = make_noise(seeds, seeds_per_sample, first_sample, stream, draw);
  const Combine op =
      make_combine(out, operands, coef, coef_per_sample, position, step_stride, noise, samples, elements);
  combine_in_parts(kernels_of(level), op, threads);
}

// Calls a method of a tensor that takes nothing, or reads an attribute.
py::object ask(PyObject* tensor, PyObject* name, bool method) {
  PyObject* answer = method ? PyObject_CallMethodNoArgs(tensor, name) : PyObject_GetAttr(tensor, name);
  if (answer == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(answer);
}

// The stages of a run. What does not change from one to the next is given, and checked, once. A small stage takes half
// a microsecond, less than Python needs to look at its tensors: they come as they are, and are asked for their
// addresses here. That they are as large as said, and contiguous, is up to the caller.
class CpuStages {
 public:
  CpuStages(const std::string& level, uintptr_t rows, uintptr_t times, uintptr_t t, int64_t count, int64_t samples,
            int64_t elements, uintptr_t seeds, bool seeds_per_sample, int64_t first_sample,
            std::vector<py::object> dtypes, int threads)
      : kernels_(kernels_of(level)),
        rows_(rows),
        times_(reinterpret_cast<const float*>(times)),
        t_(reinterpret_cast<float*>(t)),
        count_(count),
        samples_(samples),
        elements_(elements),
        noise_(make_noise(seeds, seeds_per_sample, first_sample, 0, 0)),
        dtypes_(std::move(dtypes)),
        threads_(threads < 1 ? 1 : threads) {
    check_sizes(samples, elements, first_sample, 0);
    require(count >= 0 && count < (int64_t(1) << 40), "count: expected a number of rows");
    require((rows != 0 && times != 0 && t != 0) || count == 0 || samples == 0, "rows, times, t: a pointer is null");
    require(dtypes_.size() == 3, "dtypes: expected those of the codes 0 to 2");
  }

  // Combines, and leaves the time of the next row in t.
  void combine(int64_t row, const py::object& out, const py::tuple& operands, bool noisy, int stream,
               int64_t draw) const {
    require(row >= 0 && row < count_, "row: expected one of the rows");
    require(stream >= 0 && stream < (1 << 16), "stream: expected 16 bits");
    require(draw >= 0 && draw <= int64_t(UINT32_MAX), "draw: expected 32 bits");
    require(!noisy || noise_.seeds != nullptr, "noisy: expected seeds");
    Noise noise = noise_;
    noise.stream = uint32_t(stream), noise.draw = uint32_t(draw);
    if (!noisy) noise.seeds = nullptr;
    std::vector<std::tuple<uintptr_t, int>> read;
    read.reserve(max_operands);
    for (const py::handle& operand : operands) read.emplace_back(address(operand), dtype(operand));
    const uintptr_t coef = rows_ + 5 * sizeof(float) * uintptr_t(row);
    const Combine op = make_combine(address(out), read, coef, false, 0, 0, noise, samples_, elements_);
    combine_in_parts(kernels_, op, threads_);
    if (row + 1 < count_)
      in_parts(samples_, samples_, [&](int64_t, int64_t count) { std::fill_n(t_, count, times_[row + 1]); });
  }

 private:
  static uintptr_t address(const py::handle& tensor) {
    static PyObject* const name = PyUnicode_InternFromString("data_ptr");
    return ask(tensor.ptr(), name, true).cast<uintptr_t>();
  }

  int dtype(const py::handle& tensor) const {
    static PyObject* const name = PyUnicode_InternFromString("dtype");
    const py::object found = ask(tensor.ptr(), name, false);
    for (size_t code = 0; code < dtypes_.size(); ++code)
      if (found.is(dtypes_[code])) return int(code);
    throw py::value_error("operands: expected float32, bfloat16 or float16");
  }

  const CpuKernels& kernels_;
  uintptr_t rows_;
  const float* times_;
  float* t_;
  int64_t count_, samples_, elements_;
  Noise noise_;
  std::vector<py::object> dtypes_;
  int threads_;
};

void cpu_noise(const std::string& level, uintptr_t out, int kind, uintptr_t seeds, bool seeds_per_sample,
               int64_t first_sample, int stream, int64_t draw, int64_t samples, int64_t elements, int threads) {
  check_sizes(samples, elements, first_sample, draw);
  require(kind >= 0 && kind <= int(Kind::rademacher), "kind: expected 0 to 2");
  const bool some = samples > 0 && elements > 0;
  require(!some || (seeds != 0 && out != 0), "a pointer is null");
  const Noise noise = make_noise(seeds, seeds_per_sample, first_sample, stream, draw);
  const CpuKernels& kernels = kernels_of(level);
  if (!some) return;
  prefer_large_pages(reinterpret_cast<void*>(out), 4 * samples * elements);
  in_parts(samples, part_elements / elements, [&](int64_t first, int64_t count) {
    kernels.noise(reinterpret_cast<float*>(out) + first * elements, Kind(kind), noise_from(noise, first), count,
                  elements, threads < 1 ? 1 : threads);
  });
}

int block_rows(const std::string& level) { return kernels_of(level).block_rows; }
int jet_rows(const std::string& level) { return kernels_of(level).jet_rows; }

#ifdef FPFAST_CUDA
void cuda_combine(uintptr_t out, const std::vector<std::tuple<uintptr_t, int>>& operands, uintptr_t coef,
                  bool coef_per_sample, uintptr_t position, int step_stride, uintptr_t seeds, bool seeds_per_sample,
                  int64_t first_sample, int stream, int64_t draw, int64_t samples, int64_t elements,
                  uintptr_t cuda_stream) {
  check_sizes(samples, elements, first_sample, draw);
  const Noise noise = make_noise(seeds, seeds_per_sample, first_sample, stream, draw);
  const Combine op =
      make_combine(out, operands, coef, coef_per_sample, position, step_stride, noise, samples, elements);
  py::gil_scoped_release release;
  const char* error = fpfast::cuda::combine(op, reinterpret_cast<void*>(cuda_stream));
  if (error) throw std::runtime_error(std::string("fpfast::combine on CUDA: ") + error);
}

void cuda_noise(uintptr_t out, int kind, uintptr_t seeds, bool seeds_per_sample, int64_t first_sample, int stream,
                int64_t draw, int64_t samples, int64_t elements, uintptr_t cuda_stream) {
  check_sizes(samples, elements, first_sample, draw);
  require(kind >= 0 && kind <= int(Kind::rademacher), "kind: expected 0 to 2");
  const Noise noise = make_noise(seeds, seeds_per_sample, first_sample, stream, draw);
  py::gil_scoped_release release;
  const char* error = fpfast::cuda::noise(reinterpret_cast<float*>(out), Kind(kind), noise, samples, elements,
                                          reinterpret_cast<void*>(cuda_stream));
  if (error) throw std::runtime_error(std::string("fpfast::noise on CUDA: ") + error);
}
#endif

}  // namespace
}  // namespace fpfast

PYBIND11_MODULE(_native, m) {
  using namespace fpfast;
  m.doc() = "fpfast's kernels behind addresses and sizes.";
  m.def("levels", level_names, "Instruction-set levels that this processor runs, best first.");
  m.def("cpu_combine", cpu_combine);
  m.def("cpu_noise", cpu_noise);
  py::class_<CpuStages>(m, "CpuStages")
      .def(py::init<const std::string&, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, uintptr_t, bool,
                    int64_t, std::vector<py::object>, int>())
      .def("combine", &CpuStages::combine);
  bind_pairs(m);
  bind_residual(m);
  bind_trajectory(m);
  m.def("block_rows", block_rows, "Rows of a matrix that a level packs together.");
  m.def("jet_rows", jet_rows, "The same for cpu_residual.");
#ifdef FPFAST_CUDA
  m.attr("has_cuda") = true;
  m.def("cuda_combine", cuda_combine);
  m.def("cuda_noise", cuda_noise);
#else
  m.attr("has_cuda") = false;
#endif
}
