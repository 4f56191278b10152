"""The compiled module (csrc/bindings.cpp). Addresses are ``Tensor.data_ptr()``, operands (address, dtype code)."""

import torch
from torch import Tensor

has_cuda: bool

def levels() -> list[str]: ...
def cpu_noise(
    level: str,
    out: int,
    kind: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    threads: int,
) -> None: ...
def cpu_probed(
    level: str,
    op: str,
    addresses: dict[str, int],  # by their names in csrc/kernels.h
    kind: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    threads: int,
) -> None: ...
def cuda_probed(
    op: str,
    addresses: dict[str, int],
    kind: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    scratch: int,
    cuda_stream: int,
) -> None: ...
def cuda_parts(elements: int) -> int: ...
def cpu_combine(
    level: str,
    out: int,
    operands: list[tuple[int, int]],
    coef: int,
    coef_per_sample: bool,
    position: int,  # 0: none
    step_stride: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    threads: int,
) -> None: ...
def cuda_noise(
    out: int,
    kind: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    cuda_stream: int,
) -> None: ...
def cuda_combine(
    out: int,
    operands: list[tuple[int, int]],
    coef: int,
    coef_per_sample: bool,
    position: int,  # 0: none
    step_stride: int,
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    cuda_stream: int,
) -> None: ...
def block_rows(level: str) -> int: ...
def jet_rows(level: str) -> int: ...
def cpu_residual(level: str, arguments: dict[str, int | float], threads: int) -> None: ...
def cuda_residual(arguments: dict[str, int | float], stream: int) -> None: ...
def cpu_trajectory(
    level: str,
    arguments: dict[str, int],  # addresses and numbers by their names in csrc/kernels.h
    inputs: list[tuple[int, int, int]],
    outputs: list[tuple[int, int, int]],
    broken: int,  # address, or 0
    freeze: bool,
    tile: int,
    threads: int,
) -> None: ...
def cuda_shared_memory() -> int: ...  # of a block, on the current device
def cuda_trajectory(
    arguments: dict[str, int],
    device: dict[str, int],
    inputs: list[tuple[int, int, int]],
    outputs: list[tuple[int, int, int]],
    broken: int,  # address, or 0
    freeze: bool,
    cuda_stream: int,
) -> None: ...

class CpuStages:  # rows, times, t and seeds are addresses; those of one run
    def __init__(
        self,
        level: str,
        rows: int,
        times: int,
        t: int,
        count: int,
        samples: int,
        elements: int,
        seeds: int,
        seeds_per_sample: bool,
        first_sample: int,
        dtypes: list[torch.dtype],  # in the order of their codes
        threads: int,
    ) -> None: ...
    def combine(
        self, row: int, out: Tensor, operands: tuple[Tensor, ...], noisy: bool, stream: int, draw: int
    ) -> None: ...
