"""The CUDA kernels, compiled by g++ and run on the CPU by tests/simt, against the reference and the CPU kernels.

Every access to memory is checked. The cases run once more under AddressSanitizer and UBSan, in another process: this
file as a program, with the library as its argument. It prints what is wrong with each case.
"""

import itertools
import json
import math
import mmap
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import fake_graphs
import pytest
import torch
from conftest import native
from simt_runner import NEEDED, Simt, sanitized
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

import fpfast
from fpfast import backends, reference
from fpfast.solvers import SOLVERS, Plan
from fpfast.times import grid

pytestmark = NEEDED

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
def checked(simt_library) -> Simt:
    return Simt(simt_library)


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
    checked.first_block, checked.blocks = last * (elements // 4 + (elements % 4 > 0)) // 256 % 2**14, 5
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
    checked.first_block, checked.blocks = (len(far) - 1) % 2**14, 1  # a block for each sample
    checked.defect(out, norms, far, pair, coef)
    assert difference(out[-1:], expected) == ""
    torch.testing.assert_close(norms[-1:], norm, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_is_one_launch_a_stage(checked, monkeypatch, solver):
    """With a network that launches nothing; and all of it has the bits of another backend."""
    score = fpfast.Score(lambda x, t: -x, fpfast.VP())
    options = {"solver": solver, "steps": 5, "seed": 3, "first_sample": 7}
    expected = fpfast.sample(score, (9, 3), backend="reference", **options)
    begun = fpfast.noise.normal(3, (9, 3), first_sample=7, stream="prior", backend="reference")
    checked.order(False, False)
    monkeypatch.setattr(backends, "kernels", lambda _: checked)
    before = checked.launches
    got = fpfast.sample(score, (9, 3), backend="reference", x=begun, **options)
    table = SOLVERS[solver](Plan(score, grid(score.sde, None, 5), 1.0, False))
    assert checked.launches - before == 5 * len(table.stages)
    assert difference(got, expected) == ""


@native
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_replayed_step_is_one_launch_a_stage(checked, monkeypatch, solver):
    """By graphs as tests/fake_graphs.py makes them; there a capture runs its step."""
    score = fpfast.Score(lambda x, t: -x * t[:, None], fpfast.VP())
    options = {"solver": solver, "steps": 9, "seed": 3, "first_sample": 7, "x": torch.randn(9, 8)}
    expected = fpfast.sample(score, (9, 8), backend="reference", **options)
    checked.order(False, False)
    captures = fake_graphs.install(monkeypatch)
    monkeypatch.setattr(backends, "kernels", lambda _: fake_graphs.Recorded(checked))
    before = checked.launches
    got = fpfast.sample(score, (9, 8), graph=True, **options)
    table = SOLVERS[solver](Plan(score, grid(score.sde, None, 9), 1.0, False))
    assert checked.launches - before == (9 + captures[-1].captures) * len(table.stages)
    assert difference(got, expected) == ""


# Under AddressSanitizer and UBSan -------------------------------------------------------------------------------------

SANITIZED_CASES = [*CASES, *PAIR_CASES, *RAGGED, *RAGGED_PAIRS]


@pytest.fixture(scope="module")
def found(sanitized_library) -> dict[str, str]:
    done = sanitized(__file__, str(sanitized_library))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", SANITIZED_CASES, ids=str)
def test_kernels_under_sanitizers(found, case):
    assert found[str(case)] == ""


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
