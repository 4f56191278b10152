"""``fpfast doctor``: what is installed, what runs here, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil

import torch

from fpfast import __version__, backends


def report() -> list[str]:
    """Lines of text about this installation."""
    lines = [
        f"fpfast {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"processor: {platform.machine()}",
        f"threads: {torch.get_num_threads()} (torch's setting; fpfast's kernels use the same)",
    ]
    if backends.NATIVE_ERROR is None:
        from fpfast import _native

        levels = _native.levels()
        lines.append(f"native kernels: built; levels here: {', '.join(levels)}; in use: {levels[0]}")
        lines.append(f"CUDA kernels: {'built' if _native.has_cuda else 'not built'}")
    else:
        compiler = shutil.which("g++") or shutil.which("c++")
        found = f"found {compiler}" if compiler else "no C++ compiler on PATH"
        lines.append(f"native kernels: missing ({found})")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")  # where setup.py looks, too
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    lines.append(f"nvcc: {nvcc or 'not on PATH or under CUDA_HOME'}")
    lines.append("GPU: " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "torch sees none"))
    for name, backend in backends.BACKENDS.items():
        reason = backend.missing()
        lines.append(f"backend {name}: {'ready' if reason is None else 'not available: ' + reason}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines.append(f"backend='auto' on {device}: {backends.pick('auto', device, torch.float32)}")
    return lines
