// One source compiled for three instruction-set levels; the best one that the processor has is chosen at import.
#pragma once
#include "../kernels.h"

namespace fpfast {

struct CpuKernels {
  void (*combine)(const Combine&, int threads);
  void (*noise)(float* out, Kind, const Noise&, int64_t samples, int64_t elements, int threads);
};

#define FPFAST_DECLARE_LEVEL(name) \
  namespace name {                 \
  extern const CpuKernels kernels; \
  }
FPFAST_DECLARE_LEVEL(baseline)
FPFAST_DECLARE_LEVEL(avx2)
FPFAST_DECLARE_LEVEL(avx512)

}  // namespace fpfast
