// The entry points of csrc/cuda/launch.h, for Python.
#include "../../csrc/cuda/launch.h"
#include "cuda_runtime.h"

using namespace fpfast;

extern "C" {

const char* simt_combine(const Combine* op) { return cuda::combine(*op, nullptr); }

const char* simt_noise(float* out, int kind, const Noise* noise, int64_t samples, int64_t elements) {
  return cuda::noise(out, Kind(kind), *noise, samples, elements, nullptr);
}

int64_t simt_parts_of(int64_t elements) { return cuda::parts_of(elements); }

const char* simt_pair(const Probed* op) { return cuda::pair(*op, nullptr); }
const char* simt_defect(const Probed* op, float* scratch) { return cuda::defect(*op, scratch, nullptr); }
const char* simt_product(const Probed* op, float* scratch) { return cuda::product(*op, scratch, nullptr); }
const char* simt_probe_dot(const Probed* op, float* scratch) { return cuda::probe_dot(*op, scratch, nullptr); }
const char* simt_probe_times(const Probed* op) { return cuda::probe_times(*op, nullptr); }

const char* simt_trajectory(const Trajectory* run, const Watch* watch, const cuda::Weights* weights) {
  return cuda::trajectory(*run, *watch, *weights, nullptr);
}

const char* simt_residual(const Residual* run, const cuda::Scratch* scratch) {
  return cuda::residual(*run, *scratch, nullptr);
}

}  // extern "C"
