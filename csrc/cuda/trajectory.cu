// Whole runs of a recognised network in one launch: a warp takes 16 samples through all steps.
//
// Weights lie in shared memory; where they do not fit beside the samples' values they pass through it, slab by slab,
// the next ones under way while one is used. Combinations and noise are those of combine.cu, operation by operation.
#include "groups.h"
#include "network.h"

namespace fpfast::cuda {
namespace {

constexpr int most_warps = 8, enough_warps = 4;  // of a block; with four every scheduler has one
constexpr int slabs_at_once = 3;                 // in shared memory: one in use, the others on their way

struct SlabView {
  const float4* data;
  int fragments;  // of 32 float4
};

// All weights, in shared memory for good.
class Resident {
 public:
  static __host__ __device__ int64_t bytes(const Weights& all) {
    return all.slab_count ? all.count * int64_t(sizeof(float)) : 0;  // without matrices there is nothing to read here
  }

  __device__ Resident(const Weights& all, const float* global, float4* memory) : all_(all), memory_(memory) {
    for (int64_t k = threadIdx.x; k < bytes(all) / int64_t(sizeof(float4)); k += blockDim.x)
      copy_async(memory + k, reinterpret_cast<const float4*>(global) + k);
    commit_async();
    wait_async<0>();
    __syncthreads();
  }

  __device__ SlabView next() {
    const Slab slab = all_.slabs[number_];
    number_ = number_ + 1 < all_.slab_count ? number_ + 1 : 0;
    return {memory_ + slab.first / 4, int(slab.fragments)};
  }

 private:
  const Weights& all_;
  const float4* memory_;
  int64_t number_ = 0;
};

// Slab after slab, all over again when the last was used.
class Streamed {
 public:
  static __host__ __device__ int64_t bytes(const Weights& all) {
    return slabs_at_once * all.most_fragments * int64_t(warp * sizeof(float4));
  }

  __device__ Streamed(const Weights& all, const float* global, float4* memory)
      : all_(all), global_(reinterpret_cast<const float4*>(global)), memory_(memory) {
    for (int k = 0; k < slabs_at_once - 1; ++k) fetch();
  }

  __device__ SlabView next() {
    wait_async<slabs_at_once - 2>();
    __syncthreads();  // it is there, and nobody needs the one before it
    fetch();
    const SlabView slab = {place(used_), int(all_.slabs[number_].fragments)};
    number_ = number_ + 1 < all_.slab_count ? number_ + 1 : 0;
    used_ = (used_ + 1) % slabs_at_once;
    return slab;
  }

 private:
  __device__ float4* place(int which) const { return memory_ + which * all_.most_fragments * warp; }

  __device__ void fetch() {
    const Slab slab = all_.slabs[coming_];
    for (int k = int(threadIdx.x); k < int(slab.fragments) * warp; k += int(blockDim.x))
      copy_async(place(fetched_) + k, global_ + slab.first / 4 + k);
    commit_async();
    coming_ = coming_ + 1 < all_.slab_count ? coming_ + 1 : 0;
    fetched_ = (fetched_ + 1) % slabs_at_once;
  }

  const Weights& all_;
  const float4* global_;
  float4* memory_;
  int64_t number_ = 0, coming_ = 0;
  int used_ = 0, fetched_ = 0;
};

// What a lane does with the state: copies, combinations and noise, `rows` of it.
struct State {
  const Trajectory& run;
  Values at;
  Lane lane;
  int64_t first;  // sample of the tile

  __device__ int tiles() const { return tiles_of(run.dimension); }

  __device__ float element(const Port& port, int which, int64_t row) const {
    const int64_t sample = min(first + lane.sample(which), run.samples - 1);
    return row < port.rows ? static_cast<const float*>(port.data)[sample * port.rows + row] : 0.0f;
  }

  __device__ void copy_in(const Port& port) const {
    for (int64_t row = lane.row(); row < (port.rows + 7) / 8 * 8; row += tile_rows)
      at(port.row + row) = make_float4(element(port, 0, row), element(port, 1, row), element(port, 0, row + 1),
                                       element(port, 1, row + 1));
  }

  __device__ void copy_out(const Port& port) const {
    for (int64_t row = lane.row(); row < port.rows; row += tile_rows) {
      const float4 v = at(port.row + row);
      const float of[2][2] = {{v.x, v.z}, {v.y, v.w}};
      for (int which = 0; which < 2; ++which) {
        const int64_t sample = first + lane.sample(which);
        if (sample >= run.samples) continue;
        float* const to = static_cast<float*>(port.data) + sample * port.rows + row;
        to[0] = of[which][0];
        if (row + 1 < port.rows) to[1] = of[which][1];
      }
    }
  }

  // Rows row, row + 1 of a sample: half of a group's values.
  __device__ Pair<Scalar> normals(const Noise& noise, int which, int64_t row) const {
    const int64_t sample = min(first + lane.sample(which), run.samples - 1);
    const uint64_t seed = noise.seeds[noise.per_sample ? sample : 0];
    const uint64_t number = noise.per_sample ? 0 : noise.first_sample + uint64_t(sample);
    const Words<Scalar> w =
        philox<Scalar>(counter(noise, number, uint32_t(row / 4)), uint32_t(seed), uint32_t(seed >> 32));
    return row % 4 ? normal_pair<Scalar>(w.w2, w.w3) : normal_pair<Scalar>(w.w0, w.w1);
  }

  __device__ void combine(const Action& a, const float* c, uint32_t draw) const {
    Noise noise = run.noise;
    noise.stream = uint32_t(a.stream), noise.draw = draw;
    for (int64_t row = lane.row(), t = 0; t < tiles(); ++t, row += tile_rows) {
      float4 sum = of_all(c[0]) * at(a.operand[0] + row);
      for (int n = 1; n < a.operands; ++n)
        if (c[n] != 0) sum = sum + of_all(c[n]) * at(a.operand[n] + row);
      if (c[4] != 0 && row < run.dimension) {
        const auto z = normals(noise, 0, row), other = normals(noise, 1, row);
        sum = sum + of_all(c[4]) * make_float4(z.a, other.a, z.b, other.b);
      }
      if (row + 1 >= run.dimension) sum.z = sum.w = 0;  // a sum of rows that do not exist is to stay finite
      if (row >= run.dimension) sum.x = sum.y = 0;
      at(a.out + row) = sum;
    }
  }

  __device__ void copy(const Action& a) const {
    for (int64_t t = 0; t < tiles(); ++t) at(a.out + t * tile_rows) = at(a.in + t * tile_rows);
  }
};

// Nobody asks which samples are not finite.
struct Unwatched {
  static __host__ __device__ int64_t rows(const Trajectory& run, const Watch&) { return run.rows; }

  __device__ Unwatched(const State&, const Watch&) {}
  __device__ void remember() const {}
  __device__ void look(int64_t) const {}
};

// What struct Watch asks for. The state is the first input; that before a step lies behind a warp's other values.
class Watched {
 public:
  static __host__ __device__ int64_t rows(const Trajectory& run, const Watch& watch) {
    return run.rows + (watch.freeze ? (run.dimension + tile_rows - 1) / tile_rows * tile_rows : 0);
  }

  __device__ Watched(const State& state, const Watch& watch) : state_(state), watch_(watch) {
    for (int which = 0; which < 2; ++which) broken_[which] = exists(which) && watch.broken[sample(which)] != 0;
  }

  __device__ void remember() const {
    if (!watch_.freeze) return;
    for (int t = 0; t < state_.tiles(); ++t) before(t) = now(t);
  }

  __device__ void look(int64_t step) {
    float4 zero = of_all(0);  // 0 x is NaN where x is not finite
    for (int t = 0; t < state_.tiles(); ++t) zero = zero + of_all(0) * now(t);
    const bool bad[2] = {zero.x + zero.z != 0, zero.y + zero.w != 0};
    for (int which = 0; which < 2; ++which) {
      const unsigned lanes = __ballot_sync(0xFFFFFFFFu, bad[which]);
      if (broken_[which] || !(lanes >> (state_.lane.number & ~3) & 0xFu)) continue;  // four lanes have a sample
      broken_[which] = true;
      if (exists(which) && state_.lane.row() == 0) watch_.broken[sample(which)] = step + 1;
    }
    if (!watch_.freeze) return;
    for (int t = 0; t < state_.tiles(); ++t) {
      const float4 v = now(t), old = before(t);
      now(t) = make_float4(broken_[0] ? old.x : v.x, broken_[1] ? old.y : v.y, broken_[0] ? old.z : v.z,
                           broken_[1] ? old.w : v.w);
    }
  }

 private:
  __device__ float4& now(int t) const { return state_.at(state_.run.inputs[0].row + t * tile_rows); }
  __device__ float4& before(int t) const { return state_.at(state_.run.rows + t * tile_rows); }
  __device__ int64_t sample(int which) const { return state_.first + state_.lane.sample(which); }
  __device__ bool exists(int which) const { return sample(which) < state_.run.samples; }

  const State& state_;
  const Watch& watch_;
  bool broken_[2];  // of the lane's samples
};

template <class Source, class Product, class Guard>
__global__ void __launch_bounds__(most_warps* warp) trajectory_kernel(Trajectory run, Weights all, Watch watch) {
  extern __shared__ float4 memory[];
  Source weights(all, static_cast<const float*>(run.weights), memory);
  const Lane lane = {int(threadIdx.x) % warp};
  const int64_t tile = int64_t(blockIdx.x) * (blockDim.x / warp) + threadIdx.x / warp;
  const int64_t own = threadIdx.x / warp * (Guard::rows(run, watch) / tile_rows * warp) + lane.number;
  const Values at = {memory + Source::bytes(all) / int64_t(sizeof(float4)) + own};
  const State state = {run, at, lane, tile * tile_samples};
  Guard guard(state, watch);
  for (int n = 0; n < run.input_count; ++n) state.copy_in(run.inputs[n]);
  for (int64_t step = run.first_step; step < run.last_step; ++step) {
    guard.remember();
    for (int64_t n = 0; n < run.count; ++n) {
      const Action& a = run.actions[n];
      const int64_t row = step * run.stages + a.stage;
      if (a.stage == nothing)
        state.copy(a);
      else if (!a.evaluate)
        state.combine(a, static_cast<const float*>(run.coef) + 5 * row, uint32_t(step));
      else if (run.evaluations[row] != nothing)
        evaluate<Product>(run, at, static_cast<const float*>(run.biases) + run.evaluations[row] * run.bias_width, a.in,
                          a.out, lane, weights);
    }
    guard.look(step);
  }
  wait_async<0>();
  for (int n = 0; n < run.output_count; ++n) state.copy_out(run.outputs[n]);
}

int64_t bytes_of_values(const Trajectory& run, const Watch& watch, int64_t warps) {
  return warps * (Watched::rows(run, watch) / tile_rows) * int64_t(warp * sizeof(float4));
}

template <class Source, class Guard>
const char* run_with(const Trajectory& run, const Watch& watch, const Weights& all, int64_t tiles, int64_t warps,
                     void* stream) {
  const auto kernel =
      all.bfloat16 ? trajectory_kernel<Source, Rounded, Guard> : trajectory_kernel<Source, Exactly, Guard>;
  return launch(kernel, int((tiles + warps - 1) / warps), int(warps * warp),
                Source::bytes(all) + bytes_of_values(run, watch, warps), stream, run, all, watch);
}

}  // namespace

const char* shared_memory(int64_t& bytes) {
  int found = 0;
  const char* const error = text_of(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, found));
  bytes = found;
  return error;
}

// As many warps a block as there is room for, so that they share what comes in, but no more than let every
// multiprocessor have some. Resident weights are worth having while they leave room for enough of them.
const char* trajectory(const Trajectory& run, const Watch& watch, const Weights& all, void* stream) {
  if (run.samples == 0) return nullptr;
  int64_t room = 0;
  int processors = 0;
  if (const char* error = shared_memory(room)) return error;
  if (const char* error = text_of(attribute(cudaDevAttrMultiProcessorCount, processors))) return error;
  const int64_t tiles = (run.samples + tile_samples - 1) / tile_samples;
  const int64_t wanted = std::min<int64_t>(most_warps, (tiles + processors - 1) / processors);
  const auto warps = [&](int64_t weights) {
    return std::min(wanted, (room - weights) / bytes_of_values(run, watch, 1));
  };
  const int64_t resident = warps(Resident::bytes(all)), streamed = warps(Streamed::bytes(all));
  const int64_t enough = all.slab_count ? std::min<int64_t>(wanted, enough_warps) : 1;
  if (resident < enough && streamed < 1) return "the network is too large for the shared memory of this GPU";
  const auto with = resident >= enough ? (watch.broken ? run_with<Resident, Watched> : run_with<Resident, Unwatched>)
                                       : (watch.broken ? run_with<Streamed, Watched> : run_with<Streamed, Unwatched>);
  return with(run, watch, all, tiles, resident >= enough ? resident : streamed, stream);
}

}  // namespace fpfast::cuda
