// What the files of the Python module share.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "cpu/levels.h"

namespace fpfast {

// The kernels of a level that this processor runs; ValueError for another name.
const CpuKernels& kernels_of(const std::string& level);

// ValueError where it is not so.
void require(bool ok, const char* message);

// ValueError where a kernel could not count so far.
void check_sizes(int64_t samples, int64_t elements, int64_t first_sample, int64_t draw);

Noise make_noise(uintptr_t seeds, bool per_sample, int64_t first_sample, int stream, int64_t draw);

// That of the samples from `first` on.
Noise noise_from(Noise noise, int64_t first);

// Of one call of a kernel without a network: a tenth of a second, on one thread and the lowest level too.
constexpr int64_t part_elements = int64_t(1) << 25;

// Runs run(first, count) on all samples without Python's lock, `most` at a time: in between signals are looked at, so
// that Ctrl-C, which raises KeyboardInterrupt from here, waits for a part alone.
template <class Run>
void in_parts(int64_t samples, int64_t most, const Run& run) {
  most = std::max<int64_t>(most, 1);
  for (int64_t first = 0; first < samples; first += most) {
    if (first > 0 && PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    pybind11::gil_scoped_release release;
    run(first, std::min(most, samples - first));
  }
}

void bind_pairs(pybind11::module_& module);
void bind_residual(pybind11::module_& module);
void bind_trajectory(pybind11::module_& module);

}  // namespace fpfast
