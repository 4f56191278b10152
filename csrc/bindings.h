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

void bind_residual(pybind11::module_& module);

}  // namespace fpfast
