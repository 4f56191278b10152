// Entry points of the CUDA kernels. They return null, or the text of a CUDA error.
#pragma once
#include "../kernels.h"

namespace fpfast::cuda {

const char* combine(const Combine& op, void* stream);
const char* noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, void* stream);

// So many partial sums a sample; `scratch` has room for those of all samples, and may be null where they are 1.
int64_t parts_of(int64_t elements);

const char* pair(const Probed& op, void* stream);
const char* defect(const Probed& op, float* scratch, void* stream);
const char* product(const Probed& op, float* scratch, void* stream);
const char* probe_dot(const Probed& op, float* scratch, void* stream);
const char* probe_times(const Probed& op, void* stream);

}  // namespace fpfast::cuda
