// _native.cpu_probed and _native.cuda_probed: pairs, defects and dot products with probes.
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "bindings.h"
#ifdef FPFAST_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace fpfast {
namespace {

// Addresses by their names in csrc/kernels.h; what an op does not take is not there.
using Addresses = std::map<std::string, uintptr_t>;

Probed make_probed(const std::string& op, const Addresses& given, int kind, uintptr_t seeds, bool seeds_per_sample,
                   int64_t first_sample, int stream, int64_t draw, int64_t samples, int64_t elements) {
  check_sizes(samples, elements, first_sample, draw);
  require(kind >= 0 && kind <= int(Kind::rademacher), "kind: expected 0 to 2");
  const auto at = [&](const char* name) {
    const auto found = given.find(name);
    return found == given.end() ? nullptr : reinterpret_cast<float*>(found->second);
  };
  const Noise noise = make_noise(seeds, seeds_per_sample, first_sample, stream, draw);
  const Probed run = {at("out"),  at("norms"), at("x"), at("y"), at("z"),
                      at("coef"), Kind(kind),  noise,   samples, elements};
  const bool pair = op == "pair", defect = op == "defect", product = op == "product", dot = op == "probe_dot",
             times = op == "probe_times";
  require(pair || defect || product || dot || times, "op: expected the name of one");
  if (samples == 0) return run;
  // Samples without elements have sums too.
  require((run.norms || !defect) && (run.out || !(product || dot)), "a pointer is null");
  if (elements == 0) return run;
  require(run.out && (run.x || times) && (run.coef || dot) && (run.y || dot || times) && (run.z || !product) &&
              (run.noise.seeds || defect || product),
          "a pointer is null");
  return run;
}

void cpu_probed(const std::string& level, const std::string& op, const Addresses& given, int kind, uintptr_t seeds,
                bool seeds_per_sample, int64_t first_sample, int stream, int64_t draw, int64_t samples,
                int64_t elements, int threads) {
  const Probed run =
      make_probed(op, given, kind, seeds, seeds_per_sample, first_sample, stream, draw, samples, elements);
  const CpuKernels& kernels = kernels_of(level);
  const auto kernel = op == "pair"        ? kernels.pair
                      : op == "defect"    ? kernels.defect
                      : op == "product"   ? kernels.product
                      : op == "probe_dot" ? kernels.probe_dot
                                          : kernels.probe_times;
  in_parts(samples, part_elements / std::max<int64_t>(elements, 1),
           [&](int64_t first, int64_t count) { kernel(run, {first, first + count}, threads < 1 ? 1 : threads); });
}

#ifdef FPFAST_CUDA
void cuda_probed(const std::string& op, const Addresses& given, int kind, uintptr_t seeds, bool seeds_per_sample,
                 int64_t first_sample, int stream, int64_t draw, int64_t samples, int64_t elements, uintptr_t scratch,
                 uintptr_t cuda_stream) {
  const Probed run =
      make_probed(op, given, kind, seeds, seeds_per_sample, first_sample, stream, draw, samples, elements);
  const bool sums = op == "defect" || op == "product" || op == "probe_dot";
  require(scratch || samples == 0 || !sums || cuda::parts_of(elements) == 1, "scratch: a pointer is null");
  float* const room = reinterpret_cast<float*>(scratch);
  void* const on = reinterpret_cast<void*>(cuda_stream);
  py::gil_scoped_release release;
  const char* error = op == "pair"        ? cuda::pair(run, on)
                      : op == "defect"    ? cuda::defect(run, room, on)
                      : op == "product"   ? cuda::product(run, room, on)
                      : op == "probe_dot" ? cuda::probe_dot(run, room, on)
                                          : cuda::probe_times(run, on);
  if (error) throw std::runtime_error("fpfast::" + op + " on CUDA: " + error);
}
#endif

}  // namespace

void bind_pairs(py::module_& module) {
  module.def("cpu_probed", cpu_probed);
#ifdef FPFAST_CUDA
  module.def("cuda_probed", cuda_probed);
  module.def("cuda_parts", cuda::parts_of, "Partial sums of a sample of so many elements.");
#endif
}

}  // namespace fpfast
