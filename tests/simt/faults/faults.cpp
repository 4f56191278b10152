// One library of all faults. Each kernel is launched on two warps and a buffer of n floats, and n floats of dynamic
// shared memory; null, or what the runner found.
#include <cuda_runtime.h>

namespace {
const char* launch(void (*kernel)(float*, int), float* out, int n) {
  void* arguments[] = {&out, &n};
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(1), dim3(64), arguments, n * sizeof(float));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
}  // namespace

#define FAULT(name) \
  extern "C" const char* simt_##name(float* out, int n) { return launch(name::kernel, out, n); }

#include "absent_source.cu"
FAULT(absent_source)
#include "deadlock.cu"
FAULT(deadlock)
#include "dynamic_overrun.cu"
FAULT(dynamic_overrun)
#include "misaligned.cu"
FAULT(misaligned)
#include "missing_lane.cu"
FAULT(missing_lane)
#include "missing_wait.cu"
FAULT(missing_wait)
#include "out_of_bounds_read.cu"
FAULT(out_of_bounds_read)
#include "out_of_bounds_write.cu"
FAULT(out_of_bounds_write)
#include "race.cu"
FAULT(race)
#include "race_of_lanes.cu"
FAULT(race_of_lanes)
#include "static_overrun.cu"
FAULT(static_overrun)
#include "uninitialised.cu"
FAULT(uninitialised)
