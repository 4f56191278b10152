// Gradients while they are added up. A chunk of points has sums of its own, of type T and laid out as they are made:
// a row of a matrix padded to whole vectors, or, where a matrix has few rows or columns, a vector for each number.
// Chunks are added in their order, in float64, so that a gradient has the same bits for every number of threads.
#pragma once
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "../kernels.h"
#include "simd.h"

namespace fpfast {
namespace FPFAST_LEVEL {

constexpr int gradient_lanes = 16, few = 4;
constexpr bool narrow(int64_t rows, int64_t columns) { return rows <= few || columns <= few; }
constexpr int64_t padded_columns(int64_t rows, int64_t columns) {
  return narrow(rows, columns) ? columns * gradient_lanes
                               : (columns + gradient_lanes - 1) / gradient_lanes * gradient_lanes;
}

// Where the gradients of each instruction lie in a chunk's sums; a vector is a matrix of one column.
class Layout {
 public:
  explicit Layout(const Residual& run) {
    if (!run.gradient) return;
    for (int64_t k = 0; k < run.instructions; ++k) {
      const JetInstruction& i = run.program[k];
      matrices_.push_back(place(i.gradient, i.rows, i.op == JetOp::scale ? 1 : i.columns));
      biases_.push_back(place(i.bias_gradient, i.rows, 1));
    }
  }

  int64_t count() const { return count_; }
  int64_t matrix(int64_t instruction) const { return matrices_[size_t(instruction)]; }
  int64_t bias(int64_t instruction) const { return biases_[size_t(instruction)]; }

  // Adds the sums to the gradient, whose numbers lie side by side.
  void fold(const double* sums, double* gradient) const {
    for (const Place& p : places_)
      for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t c = 0; c < p.columns; ++c) {
          const double* from = sums + p.from + r * padded_columns(p.rows, p.columns);
          double sum = 0;
          if (narrow(p.rows, p.columns))
            for (int lane = 0; lane < gradient_lanes; ++lane) sum += from[c * gradient_lanes + lane];
          else
            sum = from[c];
          gradient[p.to + r * p.columns + c] += sum;
        }
  }

 private:
  struct Place {
    int64_t from, to, rows, columns;
  };

  int64_t place(int64_t to, int64_t rows, int64_t columns) {
    if (to == nothing) return nothing;
    const int64_t from = count_;
    places_.push_back({from, to, rows, columns});
    count_ += rows * padded_columns(rows, columns);
    return from;
  }

  int64_t count_ = 0;
  std::vector<Place> places_;
  std::vector<int64_t> matrices_, biases_;
};

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
template <class T>
using Memory = std::unique_ptr<T, Free>;

template <class T>
Memory<T> memory_of(int64_t count) {
  return Memory<T>(static_cast<T*>(::operator new(size_t(count) * sizeof(T), std::align_val_t(64), std::nothrow)));
}

// Chunks' sums; one that is early waits here for its turn, while its thread goes on.
template <class T>
class Sums {
 public:
  Sums(int64_t chunks, int64_t count) : total_(size_t(count)), done_(size_t(chunks)) { spare_.reserve(size_t(chunks)); }

  // Zeros; null where there is no memory for them.
  Memory<T> fresh() {
    Memory<T> sums;
#pragma omp critical(fpfast_sums)
    if (!spare_.empty()) sums = std::move(spare_.back()), spare_.pop_back();
    if (!sums) sums = memory_of<T>(std::max<int64_t>(int64_t(total_.size()), 1));
    if (sums) std::fill_n(sums.get(), total_.size(), T(0));
    return sums;
  }

  void add(int64_t chunk, Memory<T> sums, double loss) {
#pragma omp critical(fpfast_sums)
    {
      done_[size_t(chunk)] = {std::move(sums), loss};
      for (; next_ < done_.size() && done_[next_].sums; ++next_) {
        Chunk& ready = done_[next_];
        loss_ += ready.loss;
        for (size_t k = 0; k < total_.size(); ++k) total_[k] += double(ready.sums.get()[k]);
        spare_.push_back(std::move(ready.sums));
      }
    }
  }

  double loss() const { return loss_; }
  const double* total() const { return total_.data(); }

 private:
  struct Chunk {
    Memory<T> sums;
    double loss = 0;
  };

  double loss_ = 0;
  size_t next_ = 0;
  std::vector<double> total_;
  std::vector<Chunk> done_;
  std::vector<Memory<T>> spare_;
};

}  // namespace FPFAST_LEVEL
}  // namespace fpfast
