// Whole runs of a recognised network, tile by tile: a tile's samples go through all actions while they stay in cache.
// Compiled once for each level, with FPFAST_LEVEL naming the namespace.
//
// Combinations and noise are those of kernels.cpp, operation by operation, so a state has the bits that any backend
// would give it for the same network outputs.
#include <algorithm>
#include <memory>
#include <new>

#include "levels.h"
#include "network.h"
#include "noise.h"

namespace fpfast {
namespace FPFAST_LEVEL {

namespace {

template <class T, int P>
void copy_in(const Tile<T, P>& tile, const Port& port, int64_t start, int64_t count) {
  const T* data = static_cast<const T*>(port.data) + start * port.rows;
  for (int64_t r = 0; r < port.rows; ++r) {
    T* row = tile.row(port.row + r);
    for (int64_t k = 0; k < tile.width; ++k) row[k] = data[std::min(k, count - 1) * port.rows + r];
  }
}

template <class T, int P>
void copy_out(const Tile<T, P>& tile, const Port& port, int64_t start, int64_t count) {
  T* data = static_cast<T*>(port.data) + start * port.rows;
  for (int64_t r = 0; r < port.rows; ++r) {
    const T* row = tile.row(port.row + r);
    for (int64_t k = 0; k < count; ++k) data[k * port.rows + r] = row[k];
  }
}

// Numbers of a vector, widened to T: as many as there are, at most `count`.
template <class T>
FPFAST_FN void store_as(T* to, Vector<float> from, int count) {
  if constexpr (sizeof(T) == sizeof(float)) return store(to, from);
  for (int k = 0; k < std::min(lanes, count); ++k) to[k] = T(from[k]);
}

// The noise of elements 4 group, 4 group + 1 ... of the tile's samples, two for each of `pairs`: z[2 pairs][width].
template <class T, int P, bool seed_per_sample, int pairs>
void tile_noise(T* z, const Noise& noise, int64_t group, int64_t start, int64_t last_sample) {
  constexpr int width = Tile<T, P>::width, vectors = (width + lanes - 1) / lanes;
  Place place[vectors];
  for (int v = 0; v < vectors; ++v)
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < lanes64; ++i) {
        place[v].group.v[h][i] = uint64_t(group);
        place[v].sample.v[h][i] = uint64_t(start + v * lanes + 2 * i + h);
      }
  const auto made = noise_words<vectors, seed_per_sample>(place, noise, last_sample);
  for (int pair = 0; pair < pairs; ++pair, z += 2 * width) {
    const auto values = two_values<Kind::normal, vectors>(made.words[2 * pair], made.words[2 * pair + 1]);
    for (int v = 0; v < vectors; ++v) {
      store_as(z + v * lanes, values.a.v[v], width - v * lanes);
      store_as(z + width + v * lanes, values.b.v[v], width - v * lanes);
    }
  }
}

template <class T, int P>
void tile_noise(T* z, int64_t rows, const Noise& noise, int64_t group, int64_t start, int64_t last_sample) {
  const auto make = noise.per_sample ? (rows > 2 ? tile_noise<T, P, true, 2> : tile_noise<T, P, true, 1>)
                                     : (rows > 2 ? tile_noise<T, P, false, 2> : tile_noise<T, P, false, 1>);
  make(z, noise, group, start, last_sample);
}

template <class T, int P, int operands>
void combine_rows(T* out, const T* const* x, const T* c, const T* z, T cz, int64_t rows) {
  for (int64_t k = 0; k < rows * Tile<T, P>::width; k += lanes_of<T>) {
    Vector<T> sum = c[0] * load(x[0] + k);
    for (int n = 1; n < operands; ++n) sum = sum + c[n] * load(x[n] + k);
    if (z) sum = sum + cz * load(z + k);
    store(out + k, sum);
  }
}

template <class T, int P>
void combine(const Trajectory& run, const Tile<T, P>& tile, const Action& a, const T* row, uint32_t draw,
             int64_t start) {
  const T* x[max_operands];
  T c[max_operands];
  int operands = 0;
  for (int n = 0; n < a.operands; ++n)
    if (n == 0 || row[n] != 0) x[operands] = tile.row(a.operand[n]), c[operands++] = row[n];
  const auto rows = operands == 1   ? combine_rows<T, P, 1>
                    : operands == 2 ? combine_rows<T, P, 2>
                    : operands == 3 ? combine_rows<T, P, 3>
                                    : combine_rows<T, P, 4>;
  T* out = tile.row(a.out);
  if (row[4] == 0) return rows(out, x, c, nullptr, 0, run.dimension);
  Noise noise = run.noise;
  noise.stream = uint32_t(a.stream), noise.draw = draw;
  for (int64_t first = 0; first < run.dimension; first += 4) {
    alignas(64) T z[4 * Tile<T, P>::width];
    const int64_t count = std::min<int64_t>(4, run.dimension - first);
    tile_noise<T, P>(z, count, noise, first / 4, start, run.samples - 1);
    rows(out, x, c, z, row[4], count);
    out += 4 * tile.width;
    for (int n = 0; n < operands; ++n) x[n] += 4 * tile.width;
  }
}

// After a step. `before`: the state before it, where samples are to be frozen. The state is the first input.
template <class T, int P>
void look(const Trajectory& run, const Watch& watch, const Tile<T, P>& tile, const T* before, int64_t step,
          int64_t start, int64_t count) {
  constexpr int64_t width = Tile<T, P>::width;
  T* const state = tile.row(run.inputs[0].row);
  alignas(64) T zero[width] = {};  // 0 x is NaN where x is not finite
  for (int64_t r = 0; r < run.dimension; ++r)
    for (int64_t k = 0; k < width; ++k) zero[k] += T(0) * state[r * width + k];
  for (int64_t k = 0; k < count; ++k) {
    int64_t& broken = watch.broken[start + k];
    if (broken == 0 && zero[k] == 0) continue;
    if (broken == 0) broken = step + 1;
    if (watch.freeze)
      for (int64_t r = 0; r < run.dimension; ++r) state[r * width + k] = before[r * width + k];
  }
}

template <class T, int P>
void run_tile(const Trajectory& run, const Watch& watch, T* workspace, int64_t start) {
  const Tile<T, P> tile = {workspace};
  T* const before = tile.row(run.rows);
  const int64_t count = std::min<int64_t>(tile.width, run.samples - start);
  for (int n = 0; n < run.input_count; ++n) copy_in(tile, run.inputs[n], start, count);
  for (int64_t step = run.first_step; step < run.last_step; ++step) {
    if (watch.freeze) std::copy_n(tile.row(run.inputs[0].row), run.dimension * tile.width, before);
    for (int64_t n = 0; n < run.count; ++n) {
      const Action& a = run.actions[n];
      if (a.stage == nothing) {
        std::copy_n(tile.row(a.in), run.dimension * tile.width, tile.row(a.out));
        continue;
      }
      const int64_t at = step * run.stages + a.stage;
      if (!a.evaluate)
        combine(run, tile, a, static_cast<const T*>(run.coef) + 5 * at, uint32_t(step), start);
      else if (run.evaluations[at] != nothing)
        evaluate(run, tile, static_cast<const T*>(run.biases) + run.evaluations[at] * run.bias_width, a.in, a.out);
    }
    if (watch.broken) look(run, watch, tile, before, step, start, count);
  }
  for (int n = 0; n < run.output_count; ++n) copy_out(tile, run.outputs[n], start, count);
}

template <class T, int P>
void run_tiles(const Trajectory& run, const Watch& watch, int threads) {
  constexpr int64_t width = Tile<T, P>::width;
  const int64_t tiles = (run.samples + width - 1) / width;
  bool short_of_memory = false;
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, tiles))) reduction(|| : short_of_memory)
  {
    const size_t bytes = size_t((run.rows + (watch.freeze ? run.dimension : 0)) * width) * sizeof(T);
    T* workspace = static_cast<T*>(::operator new(bytes, std::align_val_t(64), std::nothrow));
    short_of_memory = workspace == nullptr;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < tiles; ++n)
      if (workspace) run_tile<T, P>(run, watch, workspace, n * width);
    ::operator delete(workspace, std::align_val_t(64));
  }
  if (short_of_memory) throw std::bad_alloc();
}

// Vectors a tile. Three use the registers best, but the last round of tiles should keep all threads busy.
int best_tile(int64_t vectors, int threads) {
  int best = 1;
  double least = 0;
  for (int p = 1; p <= most_vectors; ++p) {
    const int64_t tiles = (vectors + p - 1) / p, rounds = (tiles + threads - 1) / threads;
    const double cost = double(rounds * p) * (p == 1 ? 1.2 : p == 2 ? 1.03 : 1.0);
    if (p == 1 || cost <= least) best = p, least = cost;
  }
  return best;
}

template <class T>
void run_all(const Trajectory& run, const Watch& watch, int threads) {
  const int64_t vectors = (run.samples + lanes_of<T> - 1) / lanes_of<T>;
  switch (run.tile ? run.tile : best_tile(vectors, threads)) {
    case 1: return run_tiles<T, 1>(run, watch, threads);
    case 2: return run_tiles<T, 2>(run, watch, threads);
    default: return run_tiles<T, 3>(run, watch, threads);
  }
}

}  // namespace

void run_trajectory(const Trajectory& run, const Watch& watch, int threads) {
  if (run.samples == 0) return;
  run.float64 ? run_all<double>(run, watch, threads) : run_all<float>(run, watch, threads);
}

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
