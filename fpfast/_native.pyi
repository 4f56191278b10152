"""The compiled module (csrc/bindings.cpp). Addresses are ``Tensor.data_ptr()``, operands (address, dtype code)."""

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
def cpu_combine(
    level: str,
    out: int,
    operands: list[tuple[int, int]],
    coef: int,
    coef_per_sample: bool,
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
    seeds: int,
    seeds_per_sample: bool,
    first_sample: int,
    stream: int,
    draw: int,
    samples: int,
    elements: int,
    cuda_stream: int,
) -> None: ...
