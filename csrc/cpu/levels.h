// One source compiled for three instruction-set levels; the best one that the processor has is chosen at import.
#pragma once
#include "../kernels.h"

namespace fpfast {

// Samples of an op, start to stop.
struct Part {
  int64_t start, stop;
  int64_t elements(const Probed& op) const { return (stop - start) * op.elements; }
};

struct CpuKernels {
  void (*combine)(const Combine&, int threads);
  void (*noise)(float* out, Kind, const Noise&, int64_t samples, int64_t elements, int threads);
  void (*trajectory)(const Trajectory&, const Watch&, int threads);
  void (*residual)(const Residual&, int threads);
  void (*pair)(const Probed&, Part, int threads);         // out = c0 x + c1 y +- cz v
  void (*defect)(const Probed&, Part, int threads);       // out = (x - (y+ + y-) / 2) c1 + c0 x, and its norms
  void (*product)(const Probed&, Part, int threads);      // of two defects, of y and of z, summed
  void (*probe_dot)(const Probed&, Part, int threads);    // v.x
  void (*probe_times)(const Probed&, Part, int threads);  // c v
  int block_rows;                                         // rows of a matrix that are packed together
  int jet_rows;                                           // the same for jets
};

#define FPFAST_DECLARE_LEVEL(name)                                   \
  namespace name {                                                   \
  extern const CpuKernels kernels;                                   \
  void run_trajectory(const Trajectory&, const Watch&, int threads); \
  void run_residual(const Residual&, int threads);                   \
  }
FPFAST_DECLARE_LEVEL(baseline)
FPFAST_DECLARE_LEVEL(avx2)
FPFAST_DECLARE_LEVEL(avx512)

}  // namespace fpfast
