"""Who does the arithmetic: the table of backends and the rule that picks one.                              BACKENDS

A backend is an object with functions that have the names and signatures of those in :mod:`fpfast.reference`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from fpfast.errors import bad, key, unknown
from fpfast.packing import Packing
from fpfast.reference import Key

REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir . (in fpfast's source tree)"
NO_DEVICE = "torch sees no CUDA device; install a CUDA build of torch and a driver"

# A forked process has no OpenMP threads, but their records: torch's next op, or ours, on many numbers would wait for
# them for ever. torch's own workers for data loading begin in the same way.
if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


class Kernels(Protocol):
    def noise(self, out: Tensor, kind: str, key: Key) -> None: ...

    def combine(
        self, out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None
    ) -> None: ...

    def pair(self, out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: Key) -> None: ...

    def defect(self, out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None: ...

    def product(self, out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None: ...

    def probe_dot(self, out: Tensor, x: Tensor, kind: str, key: Key) -> None: ...

    def probe_times(self, out: Tensor, coef: Tensor, kind: str, key: Key) -> None: ...


class Residuals(Protocol):
    """What the backends but plain torch have for residuals of recognised networks."""

    @property
    def packing(self) -> Packing: ...

    def residual(self, *, tensors: dict[str, Tensor | None], numbers: dict[str, int | float]) -> None: ...


@dataclass(frozen=True)
class Backend:
    devices: tuple[str, ...]  # torch device types; empty: any
    dtypes: tuple[torch.dtype, ...]  # of the state
    missing: Callable[[], str | None]  # what stands in the way on this machine, and the command that mends it
    load: Callable[[], Any]


def _native_error() -> str | None:
    try:
        importlib.import_module("fpfast._native")
    except ImportError as error:
        return str(error)
    return None


NATIVE_ERROR = _native_error()  # why fpfast._native cannot be imported; None where it can


def _no_native() -> str | None:
    if NATIVE_ERROR is None:
        return None
    return f"the native kernels are not built ({NATIVE_ERROR}); install g++, then: {REINSTALL}"


def _no_cuda() -> str | None:
    if missing := _no_native():
        return missing
    from fpfast import _native

    if not _native.has_cuda:
        return f"the CUDA kernels are not built; with nvcc on PATH: FPFAST_CUDA=1 {REINSTALL}"
    return None if torch.cuda.is_available() else NO_DEVICE


def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None if torch.cuda.is_available() else NO_DEVICE


def _load_reference() -> Any:
    from fpfast import reference

    return reference


def _load_cpu() -> Any:
    from fpfast.native import Cpu

    return Cpu()


def _load_cuda() -> Any:
    from fpfast.native import Cuda

    return Cuda()


def _load_triton() -> Any:
    from fpfast.kernels import combine, pairs, residual, trajectory

    return SimpleNamespace(
        noise=combine.noise,
        combine=combine.combine,
        pair=pairs.pair,
        defect=pairs.defect,
        product=pairs.product,
        probe_dot=pairs.probe_dot,
        probe_times=pairs.probe_times,
        trajectory=trajectory.trajectory,
        packing=residual.PACKING,
        residual=residual.residual,
    )


SINGLE = (torch.float32,)
BACKENDS: dict[str, Backend] = {  # in order of preference
    "cpu": Backend(("cpu",), SINGLE, _no_native, _load_cpu),
    "cuda": Backend(("cuda",), SINGLE, _no_cuda, _load_cuda),
    "triton": Backend(("cuda",), SINGLE, _no_triton, _load_triton),
    "reference": Backend((), (torch.float32, torch.float64), lambda: None, _load_reference),
}


def usable(name: str, device: Any) -> torch.device:
    """``device`` as a torch.device that holds data here. Raises ValueError for any other."""
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("which holds no data")
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise bad(name, "a device that torch can use here", f"{device!r}: {error}") from error
    if found.type == "cuda" and found.index is None:  # which one it is may change later
        return torch.device("cuda", torch.cuda.current_device())
    return found


def obstacle(name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why backend ``name`` cannot serve states of this kind; None where it can."""
    backend = BACKENDS[name]
    if backend.devices and device not in backend.devices:
        return f"it serves tensors on {' or '.join(backend.devices)}"
    if dtype not in backend.dtypes:
        return f"it serves states of {' or '.join(map(str, backend.dtypes))}"
    return backend.missing()


def pick(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend to use: ``name`` itself, or for "auto" the first of the table that serves this device and dtype.

    Raises ValueError for an unknown name or a dtype that no backend serves, RuntimeError when a named backend cannot
    serve (with the cause and what would mend it).
    """
    if key("backend", name, ["auto", *BACKENDS]) == "auto":
        for candidate in BACKENDS:
            if obstacle(candidate, device, dtype) is None:
                return candidate
        raise unknown("dtype", dtype, map(str, BACKENDS["reference"].dtypes))
    if (reason := obstacle(name, device, dtype)) is not None:
        raise RuntimeError(f"backend: {name!r} cannot serve a {dtype} state on {device}: {reason}")
    return name


@functools.cache
def kernels(name: str) -> Kernels:
    """The functions of backend ``name``, imported at first use."""
    return BACKENDS[name].load()
