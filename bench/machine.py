"""The machine: its name, its cores, and the ceilings that machine.cpp measures."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAGS = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC"]


def processor() -> str:
    """The name in /proc/cpuinfo with family and model, which tell generations of one name apart."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def cores(count: int) -> set[int]:
    """``count`` processors that this process may use, no two of one core as long as there are others."""
    allowed = sorted(os.sched_getaffinity(0))
    firsts: dict[str, int] = {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        firsts.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    ordered = [*firsts.values(), *(cpu for cpu in allowed if cpu not in firsts.values())]
    if len(ordered) < count:
        raise ValueError(f"threads: expected at most the {len(ordered)} processors of this process, got {count}")
    return set(ordered[:count])


def build(source: str, folder: Path) -> Path:
    """A library of a source file beside this one."""
    library = folder / f"{source}.so"
    subprocess.run(["g++", *FLAGS, str(Path(__file__).with_name(source)), "-o", str(library)], check=True)
    return library


def memory_of(run: Callable[[], Any]) -> float | None:
    """MB that a run's allocations come to at most at one time; None in a process without allocations.cpp preloaded."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "count_allocations"):
        return None
    process.most_allocated.restype = ctypes.c_long
    process.count_allocations()
    run()
    return process.most_allocated() / 2**20


class Machine:
    """machine.cpp, compiled for this processor and loaded."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        with tempfile.TemporaryDirectory() as folder:
            self._native = ctypes.CDLL(str(build("machine.cpp", Path(folder))))
        self._native.multiply_add.restype = ctypes.c_double
        self._native.multiply_add.argtypes = [ctypes.c_int64, ctypes.c_int]
        pointer, number = ctypes.c_void_p, ctypes.c_float
        self._native.triad.argtypes = [pointer, pointer, pointer, number, ctypes.c_int64, ctypes.c_int]
        self._native.update.argtypes = [pointer, pointer, number, number, ctypes.c_int64, ctypes.c_int]

    @property
    def vector_bits(self) -> int:
        return self._native.vector_bits()

    def peak(self, seconds: float = 0.2, repeats: int = 5) -> float:
        """The best rate of float32 multiply-adds found, in GFLOPS."""
        rounds, best = 10_000, 0.0
        while repeats:
            began = time.perf_counter()
            operations = self._native.multiply_add(rounds, self.threads)
            took = time.perf_counter() - began
            if took < seconds / 2:
                rounds *= 2
            else:
                best = max(best, operations / took / 1e9)
                repeats -= 1
        return best

    def flush_denormals(self, on: bool) -> None:
        """Sets whether torch's threads take numbers below 2^-126 for zero."""
        self._native.flush_denormals(on, self.threads)

    def triad(self, a: int, b: int, c: int, count: int) -> None:
        """a = b + s c on ``count`` float32 values at these addresses."""
        self._native.triad(a, b, c, 0.5, count, self.threads)

    def update(self, a: int, c: int, count: int) -> None:
        """a = s a + t c."""
        self._native.update(a, c, 0.5, 0.25, count, self.threads)
