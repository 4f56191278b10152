"""The CUDA kernels, compiled by g++ and run on the CPU by tests/simt, against the reference and the CPU kernels.

Every access to memory is checked. The cases run once more under AddressSanitizer and UBSan, in another process: this
file as a program, with the library as its argument. It prints what is wrong with each case.
"""

import ctypes
import itertools
import json
import math
import mmap
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import native
from simt_runner import FAULTS, KERNELS, Simt, build
from test_triton import (
    BIG_SEED,
    BRAIN,
    CASES,
    FAR,
    HALF,
    PAIR_CASES,
    SINGLE,
    Case,
    PairCase,
    compare,
    compare_pair,
    difference,
)
from torch import Tensor

from fpfast import backends, reference

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the CUDA kernels run on the CPU only under Linux"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles the CUDA kernels, is not on PATH"),
]

LARGE = 2**20 + 5
SIZES = [1, 3, 4, 1023, LARGE]
ORDERS = list(itertools.product([False, True], repeat=2))  # of threads and of blocks, reversed or not


class Ragged(NamedTuple):
    """A combination of float32 and ``dtype``, in place, or with all addresses off by an element, or neither."""

    size: int
    dtype: torch.dtype
    place: str

    def __str__(self) -> str:
        return f"{self.size}-{str(self.dtype).removeprefix('torch.')}-{self.place}"


RAGGED = [
    Ragged(*case) for case in itertools.product(SIZES, [SINGLE, BRAIN, HALF], ["apart", "in-place", "misaligned"])
]
RAGGED_PAIRS = [
    PairCase(op, (1, size), kind)
    for size, (op, kind) in itertools.product(
        SIZES,
        [
            ("pair", "normal"),
            ("defect", "rademacher"),
            ("product", "rademacher"),
            ("probe_dot", "uniform"),
            ("probe_times", "normal"),
        ],
    )
]


def compare_ragged(kernels, case: Ragged) -> str:
    generator, skipped = torch.Generator().manual_seed(5), int(case.place == "misaligned")
    first = torch.randn(case.size + skipped, generator=generator)[skipped:].view(1, -1)
    second = torch.randn(case.size + skipped, generator=generator).to(case.dtype)[skipped:].view(1, -1)
    out = first if case.place == "in-place" else torch.full((1, case.size + skipped), math.nan)[:, skipped:]
    coef, expected = torch.randn(5, generator=generator), torch.empty(1, case.size)
    key = reference.Key(torch.tensor(BIG_SEED), stream=1, **FAR)
    reference.combine(expected, [first, second], coef, key)
    kernels.combine(out, [first, second], coef, key)
    return difference(out, expected)


COMPARE = {Case: compare, PairCase: compare_pair, Ragged: compare_ragged}


def wrong(kernels: Simt, case: Case | PairCase | Ragged) -> str:
    """What is wrong with a case, in any order of threads and of blocks; in one where there are many of them."""
    for order in ORDERS[-1:] if str(LARGE) in str(case) else ORDERS:
        kernels.order(*order)
        if found := COMPARE[type(case)](kernels, case):
            return found
    return ""


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Simt:
    return Simt(build(tmp_path_factory.mktemp("checked"), KERNELS))


@pytest.mark.parametrize("case", [*CASES, *PAIR_CASES], ids=str)
def test_kernels(checked, case):
    assert wrong(checked, case) == ""


@pytest.mark.parametrize("case", [*RAGGED, *RAGGED_PAIRS], ids=str)
def test_ragged_sizes(checked, case):
    assert wrong(checked, case) == ""


@native
@pytest.mark.parametrize("case", [*RAGGED, *RAGGED_PAIRS], ids=str)
def test_cpu_kernels_agree(case):
    assert COMPARE[type(case)](backends.kernels("cpu"), case) == ""


def sparse(*shape: int) -> Tensor:
    """Zeros, of which only the pages that are written take memory."""
    no_reserve = 0x4000  # MAP_NORESERVE
    pages = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(pages, dtype=SINGLE).view(shape)


@pytest.fixture(params=[4096, 4095], ids=str)
def far(request, checked):
    """The last sample of 2^32 elements and more; the blocks that reach it are those that are run."""
    elements = request.param
    last = 2**32 // 4095 + 1
    x = sparse(last + 1, elements)
    x[last] = torch.randn(elements, generator=torch.Generator().manual_seed(3))
    checked.order(False, False)
    checked.first_block, checked.blocks = last * (elements // 4 + (elements % 4 > 0)) // 256 % 2**20, 5
    yield x
    checked.first_block = checked.blocks = 0


def test_combinations_beyond_32_bits(checked, far):
    coef, key = torch.tensor([0.5, 0, 0, 0, 1.5]), reference.Key(torch.tensor(BIG_SEED), stream=1, **FAR)
    expected = torch.empty_like(far[-1:])
    reference.combine(expected, [far[-1:]], coef, key._replace(first_sample=key.first_sample + len(far) - 1))
    checked.combine(far, [far], coef, key)
    assert difference(far[-1:], expected) == ""


def test_pairs_beyond_32_bits(checked, far):
    out, coef, key = sparse(2, *far.shape), torch.ones(len(far), 3), reference.Key(torch.tensor(7), stream=1, **FAR)
    expected = torch.empty(2, 1, far.shape[1])
    later = key._replace(first_sample=key.first_sample + len(far) - 1)
    reference.pair(expected, far[-1:], far[-1:], coef[-1:], "normal", later)
    checked.pair(out, far, far, coef, "normal", key)
    assert difference(out[:, -1:], expected) == ""


def test_defects_beyond_32_bits(checked, far):
    pair, out, norms, coef = sparse(2, *far.shape), sparse(*far.shape), torch.zeros(len(far)), torch.ones(len(far), 2)
    pair[:, -1] = far[-1] * torch.tensor([[0.25], [0.5]])
    expected, norm = torch.empty_like(far[-1:]), torch.empty(1)
    reference.defect(expected, norm, far[-1:], pair[:, -1:], coef[-1:])
    checked.first_block, checked.blocks = (len(far) - 1) % 2**20, 1  # a block for each sample
    checked.defect(out, norms, far, pair, coef)
    assert difference(out[-1:], expected) == ""
    torch.testing.assert_close(norms[-1:], norm, rtol=1e-6, atol=0)


# The runner itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_threads_exchange_values(checked, order):
    checked.order(*order)
    out, total, half = torch.zeros(9, 64, dtype=torch.int32), torch.tensor([3], dtype=torch.int32), torch.zeros(1)
    checked.call("exchange", [out, total, half], [], out, total, half)
    k = torch.arange(64)
    lane, base = k % 32, k // 32 * 32
    ballots = [sum((at % 3 == 0) << at - first for at in range(first, first + 32)) for first in (0, 32)]
    signed = torch.tensor([ballot - (ballot >> 31 << 32) for ballot in ballots])
    expected = [
        base + 5,
        k // 8 * 8 + 1,
        k ^ 3,
        torch.where(k % 16 < 2, k, k - 2),
        torch.where(lane >= 30, k, k + 2),
        signed[k // 32],
        k // 32,
        lane < 16,
        torch.full((64,), 63 * 32),
    ]
    assert out.tolist() == torch.stack([row.long() for row in expected]).tolist()
    assert (total.item(), half.item()) == (3 + 128, 64)


def test_conversions_between_16_and_32_bits(checked):
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    floats, back = torch.zeros(2, 2**16), torch.zeros(2, 2**16, dtype=torch.int16)
    checked.call("convert", [floats, back], [], floats, back)
    expected = torch.stack([patterns.view(dtype).float() for dtype in (HALF, BRAIN)])
    torch.testing.assert_close(floats, expected, rtol=0, atol=0, equal_nan=True)
    narrow = torch.stack([expected[1].to(HALF).float(), expected[0].to(BRAIN).float()])
    got = torch.stack([back[0].view(HALF).float(), back[1].view(BRAIN).float()])
    torch.testing.assert_close(got, narrow, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [SINGLE, BRAIN], ids=["tf32", "bf16"])
def test_tensor_cores(checked, dtype):
    generator = torch.Generator().manual_seed(6)
    k = 8 if dtype == SINGLE else 16
    a, b, c = (torch.randn(shape, generator=generator) for shape in ((16, k), (8, k), (16, 8)))
    a, b = (matrix.to(dtype) for matrix in (a, b))
    exact = [matrix.float() for matrix in (a, b)]
    if dtype == SINGLE:  # the lower bits of float32 operands do not count
        exact = [(matrix.view(torch.int32) & ~0x1FFF).view(SINGLE) for matrix in (a, b)]
    expected = c + exact[0] @ exact[1].T
    for right in (True, False):
        d = c.clone()
        checked.call("multiply", [d], [a, b], d, a, b, dtype == BRAIN, right)
        assert torch.allclose(d, expected, rtol=1e-5, atol=1e-5) == right


def test_large_shared_memory_must_be_asked_for(checked):
    floats, back = torch.zeros(2), torch.zeros(2, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="invalid argument"):
        checked.call("large", [floats, back], [], 100_000, False, floats, back)
    checked.call("large", [floats, back], [], 100_000, True, floats, back)


FAULT_TEXTS = {
    "deadlock": "waits at __syncthreads for thread 32, which waits at __any_sync of lanes 00000003",
    "dynamic_overrun": r"writes 8 bytes at \d+ of 160 bytes of dynamic shared memory",
    "misaligned": "uses a misaligned address",
    "missing_lane": r"waits at __shfl_xor_sync of lanes ffffffff for thread \d+, which has ended",
    "missing_wait": "reads shared memory that a copy_async is under way to",
    "out_of_bounds_read": "reads 4 bytes at -4 of a buffer of 160 bytes",
    "out_of_bounds_write": "writes 4 bytes at 160 of a buffer of 160 bytes",
    "race": r"(reads|writes) shared memory that .*thread \d+.*, without a barrier between",
    "race_of_lanes": r"writes shared memory that other threads read, the last thread \d+, without a barrier between",
    "static_overrun": "indexes past the end of an array",
    "uninitialised": "reads shared memory that nobody wrote",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Simt:
    return Simt(build(tmp_path_factory.mktemp("faults"), FAULTS))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", FAULT_TEXTS)
def test_faults_are_found(faults, name, reverse):
    """Each by its text, and at the line of the source."""
    faults.order(reverse, False)
    source = (FAULTS[0].parent / f"{name}.cu").read_text().splitlines()
    (line,) = (number for number, text in enumerate(source, 1) if "// fault" in text)
    out = torch.zeros(40)
    with pytest.raises(RuntimeError, match=rf" {name}::kernel\(.*\) at {name}.cu:{line}: {FAULT_TEXTS[name]}$"):
        faults.call(name, [out], [], out, ctypes.c_int(40))


def test_inputs_are_not_written(faults):
    out = torch.zeros(64)
    with pytest.raises(RuntimeError, match="writes 4 bytes of a buffer that is only to be read"):
        faults.call("out_of_bounds_write", [], [out], out, ctypes.c_int(40))


# Under AddressSanitizer and UBSan -------------------------------------------------------------------------------------

SANITIZED_CASES = [*CASES, *PAIR_CASES, *RAGGED, *RAGGED_PAIRS]


def sanitized(*command: str) -> subprocess.CompletedProcess:
    """Runs Python, with the sanitizers loaded before all else."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not Path(found[0]).is_absolute():
        pytest.skip("g++ has no AddressSanitizer here")
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    library = build(tmp_path_factory.mktemp("sanitized"), KERNELS, under_sanitizers=True)
    done = sanitized(__file__, str(library))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", SANITIZED_CASES, ids=str)
def test_kernels_under_sanitizers(found, case):
    assert found[str(case)] == ""


@pytest.fixture(scope="module")
def sanitized_faults(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized_faults"), FAULTS, under_sanitizers=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dynamic_overrun", "AddressSanitizer: use-after-poison"),
        ("misaligned", "misaligned address"),
        ("out_of_bounds_read", "AddressSanitizer: heap-buffer-overflow"),
        ("out_of_bounds_write", "AddressSanitizer: heap-buffer-overflow"),
        ("static_overrun", "index 32 out of bounds"),
    ],
)
def test_faults_under_sanitizers(sanitized_faults, name, text):
    program = """if True:
        import ctypes, sys
        allocate = ctypes.CDLL(None).malloc
        allocate.restype = ctypes.c_void_p
        getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(allocate(160)), 40)
    """
    done = sanitized("-c", program, str(sanitized_faults), f"simt_{name}")
    assert done.returncode != 0
    assert text in done.stderr
    assert f"{name}.cu" in done.stderr


def main() -> None:
    kernels, results = Simt(Path(sys.argv[1])), {}
    for case in SANITIZED_CASES:
        try:
            results[str(case)] = wrong(kernels, case)
        except Exception:  # it fails the case's test, not the others'
            results[str(case)] = traceback.format_exc()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
