// Antithetic pairs, their defects, and dot products with probes, on NVIDIA GPUs.
//
// A sum over a sample's elements is made by as many threads as the sample has groups of four, a power of two up to a
// block, and a sample with more than eight groups a thread is cut into parts of one block each. All of it depends on
// the number of elements alone, so a sum has the same bits in every batch.
#include "groups.h"

namespace fpfast::cuda {
namespace {

constexpr int groups_per_thread = 8, warp = 32;
constexpr int64_t groups_per_part = int64_t(groups_per_thread) * threads_per_block;

__host__ __device__ int64_t groups_of(const Probed& op) { return (op.elements + 3) / 4; }

int threads_per_sample(int64_t groups) {
  int threads = 1;
  while (threads < threads_per_block && threads < groups) threads *= 2;
  return threads;
}

template <Kind kind>
__global__ void __launch_bounds__(threads_per_block) pair_kernel(Probed op) {
  const int64_t groups = groups_of(op), units = op.samples * groups, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t q = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; q < units; q += stride) {
    const int64_t sample = q / groups, group = q % groups, left = op.elements - 4 * group;
    const int n = left < 4 ? int(left) : 4;
    const int64_t at = sample * op.elements + 4 * group;
    const float* const c = op.coef + 3 * sample;
    float x[4] = {}, y[4] = {}, z[4], plus[4], minus[4];
    load(x, op.x, Dtype::float32, at, n);
    load(y, op.y, Dtype::float32, at, n);
    four_values<kind>(z, op.noise, sample, uint32_t(group));
    for (int e = 0; e < 4; ++e) {
      const float middle = c[0] * x[e] + c[1] * y[e], step = c[2] * z[e];
      plus[e] = middle + step;
      minus[e] = middle - step;
    }
    store(op.out + at, plus, n);
    store(op.out + op.samples * op.elements + at, minus, n);
  }
}

template <Kind kind>
__global__ void __launch_bounds__(threads_per_block) times_kernel(Probed op) {
  const int64_t groups = groups_of(op), units = op.samples * groups, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t q = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; q < units; q += stride) {
    const int64_t sample = q / groups, group = q % groups, left = op.elements - 4 * group;
    float z[4];
    four_values<kind>(z, op.noise, sample, uint32_t(group));
    for (int e = 0; e < 4; ++e) z[e] = op.coef[sample] * z[e];
    store(op.out + sample * op.elements + 4 * group, z, left < 4 ? int(left) : 4);
  }
}

// A group of n elements of x, and the coefficients of its sample's defects.
struct Middle {
  float x[4] = {}, c0, c1;

  __device__ Middle(const Probed& op, int64_t sample, int64_t at, int n)
      : c0(op.coef[2 * sample]), c1(op.coef[2 * sample + 1]) {
    load(x, op.x, Dtype::float32, at, n);
  }

  // Of a pair there; 0 behind the n elements.
  __device__ void defect(float (&r)[4], const Probed& op, const float* pair, int64_t at, int n) const {
    float plus[4] = {}, minus[4] = {};
    load(plus, pair, Dtype::float32, at, n);
    load(minus, pair, Dtype::float32, op.samples * op.elements + at, n);
    for (int e = 0; e < 4; ++e) r[e] = e < n ? (x[e] - (plus[e] + minus[e]) * 0.5f) * c1 + c0 * x[e] : 0.0f;
  }
};

__device__ float sum_of_products(const float (&a)[4], const float (&b)[4]) {
  return (a[0] * b[0] + a[1] * b[1]) + (a[2] * b[2] + a[3] * b[3]);
}

// What a group of n elements adds to its sample's sum.
struct Defect {
  __device__ static float term(const Probed& op, int64_t sample, int64_t, int64_t at, int n) {
    float r[4];
    Middle(op, sample, at, n).defect(r, op, op.y, at, n);
    store(op.out + at, r, n);
    return sum_of_products(r, r);
  }
};

struct Product {
  __device__ static float term(const Probed& op, int64_t sample, int64_t, int64_t at, int n) {
    const Middle middle(op, sample, at, n);
    float r[4], other[4];
    middle.defect(r, op, op.y, at, n);
    middle.defect(other, op, op.z, at, n);
    return sum_of_products(r, other);
  }
};

template <Kind kind>
struct Dot {
  __device__ static float term(const Probed& op, int64_t sample, int64_t group, int64_t at, int n) {
    float x[4] = {}, z[4];
    load(x, op.x, Dtype::float32, at, n);
    four_values<kind>(z, op.noise, sample, uint32_t(group));
    return sum_of_products(x, z);
  }
};

// sums[sample, part]; `together` threads for each, which are neighbours.
template <class Term>
__global__ void __launch_bounds__(threads_per_block) sum_kernel(Probed op, float* sums, int together, int64_t parts) {
  __shared__ float of_warps[threads_per_block / warp];
  const int64_t groups = groups_of(op), units = op.samples * parts;
  const int per_block = threads_per_block / together, thread = int(threadIdx.x), lane = thread % together;
  // Blocks go on together, so that all threads meet at the barriers.
  for (int64_t first = int64_t(blockIdx.x) * per_block; first < units; first += int64_t(gridDim.x) * per_block) {
    const int64_t unit = first + thread / together, sample = unit / parts, part = unit % parts;
    float sum = 0;
    if (unit < units) {
      const int64_t end = groups < (part + 1) * groups_per_part ? groups : (part + 1) * groups_per_part;
      for (int64_t group = part * groups_per_part + lane; group < end; group += together) {
        const int64_t left = op.elements - 4 * group;
        sum += Term::term(op, sample, group, sample * op.elements + 4 * group, left < 4 ? int(left) : 4);
      }
    }
    for (int step = (together < warp ? together : warp) / 2; step > 0; step /= 2)
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (together > warp) {
      if (thread % warp == 0) of_warps[thread / warp] = sum;
      __syncthreads();
      sum = 0;
      for (int k = 0; k < together / warp; ++k) sum += of_warps[(thread - lane) / warp + k];
      __syncthreads();
    }
    if (lane == 0 && unit < units) sums[unit] = sum;
  }
}

__global__ void __launch_bounds__(threads_per_block)
    add_parts_kernel(float* out, const float* sums, int64_t samples, int64_t parts) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t sample = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; sample < samples; sample += stride) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += double(sums[sample * parts + part]);
    out[sample] = float(sum);
  }
}

template <class Term>
const char* sum_up(const Probed& op, float* out, float* scratch, void* stream) {
  if (op.samples == 0) return nullptr;
  const int64_t parts = parts_of(op.elements), units = op.samples * parts;
  const int together = threads_per_sample(groups_of(op));
  float* const sums = parts == 1 ? out : scratch;
  const char* error =
      launch(sum_kernel<Term>, blocks_for(units * together), threads_per_block, 0, stream, op, sums, together, parts);
  if (error || parts == 1) return error;
  return launch(add_parts_kernel, blocks_for(op.samples), threads_per_block, 0, stream, out,
                static_cast<const float*>(sums), op.samples, parts);
}

}  // namespace

int64_t parts_of(int64_t elements) {
  return std::max<int64_t>(1, ((elements + 3) / 4 + groups_per_part - 1) / groups_per_part);
}

const char* pair(const Probed& op, void* stream) {
  if (op.samples == 0 || op.elements == 0) return nullptr;
  const int blocks = blocks_for(op.samples * groups_of(op));
  return by_kind(op.kind, [&](auto kind) {
    return launch(pair_kernel<decltype(kind)::value>, blocks, threads_per_block, 0, stream, op);
  });
}

const char* probe_times(const Probed& op, void* stream) {
  if (op.samples == 0 || op.elements == 0) return nullptr;
  const int blocks = blocks_for(op.samples * groups_of(op));
  return by_kind(op.kind, [&](auto kind) {
    return launch(times_kernel<decltype(kind)::value>, blocks, threads_per_block, 0, stream, op);
  });
}

const char* defect(const Probed& op, float* scratch, void* stream) {
  return sum_up<Defect>(op, op.norms, scratch, stream);
}

const char* product(const Probed& op, float* scratch, void* stream) {
  return sum_up<Product>(op, op.out, scratch, stream);
}

const char* probe_dot(const Probed& op, float* scratch, void* stream) {
  return by_kind(op.kind, [&](auto kind) { return sum_up<Dot<decltype(kind)::value>>(op, op.out, scratch, stream); });
}

}  // namespace fpfast::cuda
