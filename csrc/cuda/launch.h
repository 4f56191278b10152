// Entry points of the CUDA kernels. They return null, or the text of a CUDA error.
#pragma once
#include "../kernels.h"

namespace fpfast::cuda {

const char* combine(const Combine& op, void* stream);
const char* noise(float* out, Kind kind, const Noise& noise, int64_t samples, int64_t elements, void* stream);

}  // namespace fpfast::cuda
