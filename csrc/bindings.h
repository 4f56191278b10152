// What the files of the Python module share.
#pragma once
#include <pybind11/pybind11.h>

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

void bind_pairs(pybind11::module_& module);
void bind_residual(pybind11::module_& module);
void bind_trajectory(pybind11::module_& module);

}  // namespace fpfast
