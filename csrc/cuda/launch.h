// Entry points of the CUDA kernels. They return null, or the text of a CUDA error.
#pragma once
#include "../kernels.h"

struct float4;

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

// Matrices of a program in the order of their use, cut into slabs: so many fragments, from float `first` on. Sizes are
// those of fpfast/fragments.py.
constexpr int fragment_floats = 128;  // 32 float4
constexpr int pairs_together = 8;     // of tiles of a matrix's rows, whose sums are in registers
struct Slab {
  int64_t first, fragments;
};

struct Weights {
  int64_t count;  // floats in all, a multiple of four
  const Slab* slabs;
  int64_t slab_count, most_fragments;
  bool bfloat16;  // products are of numbers rounded so
};

// Of a block of threads, on the current device.
const char* shared_memory(int64_t& bytes);
const char* trajectory(const Trajectory& run, const Watch& watch, const Weights& all, void* stream);

// What a residual's blocks have of their own. Offsets of gradients in the program are places in a block's sums.
struct Scratch {
  float4* values;         // residual_bytes(run) for each block
  float* sums;            // [blocks, sum_count]; null without a gradient
  double* losses;         // [blocks]; null without a loss
  const int64_t* places;  // [gradient_count]: where a number of the gradient is among a block's sums
  int64_t sum_count, blocks;
};

constexpr int64_t block_points = 128;
constexpr int64_t most_residual_bytes = int64_t(1) << 34;  // of a block: 32 bits count them as float2
int64_t residual_bytes(const Residual& run);
const char* residual(const Residual& run, const Scratch& scratch, void* stream);

}  // namespace fpfast::cuda
