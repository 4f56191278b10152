"""Published figures of NVIDIA GPUs, and what follows from them: occupancy, and the least time an element can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

WARP = 32
REGISTERS = 65536  # of a multiprocessor, a quarter of them to each of its four schedulers


class Multiprocessor(NamedTuple):
    """Limits of one, from the CUDA Programming Guide, "Technical Specifications per Compute Capability"."""

    warps: int
    blocks: int
    shared: int  # bytes


MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * 1024),
    "90": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}


class Gpu(NamedTuple):
    """Lanes: results a clock of a multiprocessor, from the CUDA Best Practices Guide, "Arithmetic Instructions"."""

    architecture: str
    bandwidth: float  # GB/s
    multiprocessors: int
    clock: float  # GHz, the highest
    float_lanes: int  # which also multiply integers, at most 64 of them
    source: str


GPUS = {
    "A100": Gpu("80", 2039, 108, 1.41, 64, "A100 80GB SXM: NVIDIA A100 datasheet and GA100 whitepaper"),
    "H100": Gpu("90", 3350, 132, 1.98, 128, "H100 SXM: NVIDIA H100 datasheet; the clock is its 67 TFLOPS of float32"),
    "B200": Gpu(
        "100", 8000, 148, 1.965, 128, "B200: NVIDIA HGX B200 datasheet; multiprocessors, clock: as drivers report"
    ),
}
INTEGER_LANES = 64  # multiplies; and, in a pipe of their own, additions, logic, shifts, comparisons
SPECIAL_LANES = 16
ISSUE_LANES = 4 * WARP  # an instruction a clock from each scheduler


def occupancy(architecture: str, registers: int, shared: int, threads: int) -> float:
    """Share of a multiprocessor's warps that a kernel can keep there at once, as NVIDIA's cuda_occupancy.h counts them.

    A warp's registers come from one scheduler's quarter, in units of 256; a block's shared memory, and 1 KB of it for
    the system, in units of 128 bytes; a block is there whole or not at all.
    """
    limits = MULTIPROCESSORS[architecture]
    warps = -(-threads // WARP)
    warp_registers = -(-registers * WARP // 256) * 256
    by_registers = 4 * (REGISTERS // 4 // warp_registers) // warps
    by_shared = limits.shared // (-(-(shared + 1024) // 128) * 128)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps / limits.warps


def times(gpu: Gpu, bytes_moved: float, mix: Mapping[str, float]) -> dict[str, float]:
    """Picoseconds that an element takes at least: of the memory, of the schedulers, and of the pipes whose rate is
    published. ``mix`` has an element's instructions by their pipe."""
    lanes = {
        "issue": (sum(mix.values()), ISSUE_LANES),
        "float and multiply": (mix["float"] + mix["multiply"], gpu.float_lanes),
        "multiply": (mix["multiply"], INTEGER_LANES),
        "logic": (mix["logic"], INTEGER_LANES),
        "special": (mix["special"], SPECIAL_LANES),
    }
    rate = gpu.multiprocessors * gpu.clock * 1e-3  # clocks of all multiprocessors in a picosecond
    return {
        "memory": bytes_moved / gpu.bandwidth * 1e3,
        **{pipe: count / width / rate for pipe, (count, width) in lanes.items()},
    }
