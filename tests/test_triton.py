"""The Triton kernels, in Triton's interpreter on the CPU, against the reference, bit for bit.

TRITON_INTERPRET must be set before triton is imported and changes what ``triton.jit`` makes, so all cases run in one
other process: this file as a program. It prints what is wrong with each case; every test here reads its own line.
"""

import importlib.util
import inspect
import itertools
import json
import math
import os
import subprocess
import sys
import traceback
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fpfast import backends, reference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

OPS = [name for name in vars(backends.Kernels) if not name.startswith("_")]
SHAPES = [(3, 7), (5, 1), (2, 4, 3), (1000, 2), (1, 4099), (0, 4), (4, 0)]
SINGLE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
OPERANDS = [(SINGLE,), (SINGLE, BRAIN), (SINGLE, HALF, SINGLE), (SINGLE, BRAIN, HALF, SINGLE), (HALF, SINGLE, HALF)]
BIG_SEED = 5 - 2**63  # the bits of 2**63 + 5
FAR = {"first_sample": 2**33 + 1, "draw": 2**32 - 1}
ZERO = (
    FAR["first_sample"] + 7182603
)  # with BIG_SEED's first word u = 1, so its normal values are zeros, which have signs


class Case(NamedTuple):
    shape: tuple[int, ...]
    kind: str = ""  # of noise; empty: combine
    dtypes: tuple[torch.dtype, ...] = ()  # of the operands
    seeds: str = "one"  # "none", "one" or "each"
    coefs: str = "one"  # "one" or "each"
    in_place: bool = False
    wide: bool = False  # count in 64 bits, as arrays of 2^33 elements need
    first: int = FAR["first_sample"]
    placed: bool = False  # the numbers come from a position in memory

    def __str__(self) -> str:
        name = "x".join(map(str, self.shape)) + f"-{self.kind or 'combine'}-{self.seeds}-seed"
        if not self.kind:
            name += f"-{self.coefs}-coef-" + "+".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        name += "-in-place" * self.in_place + "-wide" * self.wide + "-zeros" * (self.first == ZERO)
        return name + "-placed" * self.placed


CASES = [
    Case((2, 8), "normal", first=ZERO),
    *(Case(*case) for case in itertools.product(SHAPES, reference.KINDS, [()], ["one", "each"])),
    *(Case(*case) for case in itertools.product(SHAPES, [""], OPERANDS, ["none", "one", "each"], ["one", "each"])),
    *(
        Case(shape, "", OPERANDS[2], seeds, coefs, in_place=True)
        for shape, seeds, coefs in itertools.product(SHAPES[:5], ["one", "each"], ["one", "each"])
    ),
    *(Case(shape, "", OPERANDS[2], seeds, "each", wide=True) for shape in SHAPES[:3] for seeds in ("one", "each")),
    *(
        Case(shape, "", dtypes, seeds, in_place=len(dtypes) == 3, placed=True)
        for shape, dtypes, seeds in itertools.product(
            [(3, 7), (40, 32), (1000, 2)], [*OPERANDS[:4], (SINGLE, SINGLE)], ["none", "one", "each"]
        )
    ),
    *(Case(shape, "", OPERANDS[3], seeds) for shape in [(300, 8), (70, 12)] for seeds in ("none", "one")),
    Case((8, 8), "", OPERANDS[0], first=2**32 - 3),  # the upper half of a sample's number changes on the way
]


class PairCase(NamedTuple):
    """One of the ops of pairs and probes."""

    op: str
    shape: tuple[int, ...]
    kind: str = "rademacher"
    seeds: str = "one"  # or "each"

    def __str__(self) -> str:
        name = f"{self.op}-" + "x".join(map(str, self.shape))
        return name if self.op in ("defect", "product") else f"{name}-{self.kind}-{self.seeds}-seed"


# Samples of one group, of as many as a warp, a block and several blocks of threads have, whole groups and not.
PAIR_SHAPES = [(1, 1), (3, 2), (40, 3), (5, 3, 7), (7, 64), (3, 130), (2, 1028), (2, 9001), (1, 32768), (0, 4), (4, 0)]
PAIR_CASES = [
    *(PairCase(op, shape) for op in ("defect", "product") for shape in PAIR_SHAPES),
    *(
        PairCase(op, shape, kind, seeds)
        for op in ("pair", "probe_dot", "probe_times")
        for shape, (kind, seeds) in zip(
            PAIR_SHAPES, itertools.cycle(itertools.product(reference.KINDS, ["one", "each"])), strict=False
        )
    ),
    *(PairCase("probe_dot", (3, 5), *which) for which in itertools.product(reference.KINDS, ["one", "each"])),
]


class Given(NamedTuple):
    operands: list[Tensor]
    coef: Tensor
    key: reference.Key | None
    expected: Tensor
    position: Tensor | None = None


def given(case: Case) -> Given:
    """Inputs of ``case`` and the reference's result. The first operands hold zeros, subnormal and huge values too."""
    generator = torch.Generator().manual_seed(1)
    samples = case.shape[0]
    operands = []
    for k, dtype in enumerate(case.dtypes):
        operand = torch.randn(case.shape, generator=generator)
        flat = operand.view(-1)[4 * k : 4 * k + 4]
        flat.copy_(torch.tensor([-0.0, 1e-40, 3e38, 7e-8])[: len(flat)])
        operands.append(operand.to(dtype))
    coef = torch.randn((samples, 5) if case.coefs == "each" else (5,), generator=generator)
    seed = torch.arange(samples) * -(2**37) + BIG_SEED if case.seeds == "each" else torch.tensor(BIG_SEED)
    key = None if case.seeds == "none" else reference.Key(seed, case.first, 1, FAR["draw"])
    expected = torch.full(case.shape, math.nan)
    if case.kind:
        reference.noise(expected, case.kind, key)
    elif case.placed:  # a table of 3 steps and 2 stages; the key's own draw and lower bits are not read
        table, position = torch.randn(3, 2, 5, generator=generator), torch.tensor([2, case.first])
        at = key and key._replace(draw=2)
        reference.combine(expected, operands, table[2, 1], at)
        key = key and key._replace(first_sample=case.first - case.first % 2**32 + 77)
        return Given(operands, table[:, 1], key, expected, position)
    else:
        reference.combine(expected, operands, coef, key)
    return Given(operands, coef, key, expected)


def difference(got: Tensor, expected: Tensor) -> str:
    """Where the bits differ; empty if nowhere."""
    wrong = (got.view(torch.int32) != expected.view(torch.int32)).reshape(-1).nonzero()[:, 0].tolist()
    if not wrong:
        return ""
    first = wrong[0]
    values = f"got {got.reshape(-1)[first].item()!r}, expected {expected.reshape(-1)[first].item()!r}"
    return f"{len(wrong)} of {got.numel()} elements differ, first element {first}: {values}"


def compare(kernels, case: Case) -> str:
    """Runs ``case``; says what is wrong with the result, or with the inputs afterwards."""
    operands, coef, key, expected, position = given(case)
    out = operands[0] if case.in_place else torch.full(case.shape, math.nan)
    inputs = [tensor for tensor in (*operands, coef) if tensor is not out]
    before = [tensor.clone() for tensor in inputs]
    if case.kind:
        kernels.noise(out, case.kind, key)
    else:
        kernels.combine(out, operands, coef, key, position)
    if not all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)):
        return "an input was changed"
    return difference(out, expected)


def compare_pair(kernels, case: PairCase) -> str:
    """Runs ``case``; says what is wrong with the result. Sums may differ by rounding, all else by nothing."""
    generator = torch.Generator().manual_seed(4)
    samples = case.shape[0]
    x, y = (torch.randn(case.shape, generator=generator) for _ in range(2))
    pair, other = (torch.randn(2, *case.shape, generator=generator) for _ in range(2))
    three, two, one = (torch.randn(samples, n, generator=generator) for n in (3, 2, 1))
    seed = torch.arange(samples) * -(2**37) + BIG_SEED if case.seeds == "each" else torch.tensor(BIG_SEED)
    drawn = (case.kind, reference.Key(seed, stream=3, **FAR))
    state, sums = torch.full(case.shape, math.nan), torch.full((samples,), math.nan)
    outs, inputs = {
        "pair": ([torch.full((2, *case.shape), math.nan)], (x, y, three, *drawn)),
        "defect": ([state, sums], (x, pair, two)),
        "product": ([sums], (x, pair, other, two)),
        "probe_dot": ([sums], (x, *drawn)),
        "probe_times": ([state], (one[:, 0].contiguous(), *drawn)),
    }[case.op]
    expected = [torch.full_like(out, math.nan) for out in outs]
    getattr(reference, case.op)(*expected, *inputs)
    getattr(kernels, case.op)(*outs, *inputs)
    if case.op in ("pair", "defect", "probe_times") and (wrong := difference(outs[0], expected[0])):
        return wrong
    if case.op in ("pair", "probe_times"):
        return ""
    added_up = {
        "defect": lambda: expected[0].double().square(),
        "product": lambda: reference._defect(x, pair, two) * reference._defect(x, other, two),
        "probe_dot": lambda: x,
    }[case.op]()
    bound = 4e-7 * added_up.double().abs().flatten(1).sum(1)
    away = (outs[-1].double() - expected[-1].double()).abs()
    return "" if bool((away <= bound).all()) else f"sums {outs[-1].tolist()}, expected {expected[-1].tolist()}"


def main() -> None:
    from fpfast.kernels import groups

    found, small, kernels = {}, groups.SMALL, backends.kernels("triton")
    for case in (*CASES, *PAIR_CASES):
        groups.SMALL = 0 if getattr(case, "wide", False) else small
        try:
            found[str(case)] = (compare if isinstance(case, Case) else compare_pair)(kernels, case)
        except Exception:  # it fails the case's test, not the others'
            found[str(case)] = traceback.format_exc()
    json.dump(found, sys.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*CASES, *PAIR_CASES], ids=str)
def test_interpreted_kernels_have_the_reference_bits(found, case):
    assert found[str(case)] == ""


def test_functions_are_those_of_every_backend():
    for name in OPS:
        parameters = inspect.signature(getattr(backends.kernels("triton"), name)).parameters
        assert list(parameters) == list(inspect.signature(getattr(reference, name)).parameters)


def test_units_are_counted_in_32_bits_while_the_last_program_allows():
    from fpfast.kernels import groups

    programs = -(-groups.SMALL // groups.LANES)
    assert programs * groups.LANES <= 2**31
    assert str(groups.options(4, groups.SMALL)["INDEX"]) == "int32"
    assert str(groups.options(4, groups.SMALL + 1)["INDEX"]) == "int64"


@pytest.mark.parametrize("number", [2, 3, 4, 5, 7, 8, 641, 2**16, 2**16 + 1, 2**30 - 1, 2**30, 2**31 - 1])
def test_a_division_is_a_multiplication(number):
    from fpfast.kernels import combine

    multiplier, shift, minus = combine._divisor(number)
    assert max(multiplier, minus) < 2**32
    least, most = combine.MOST_PLAIN // number, combine.MOST_PLAIN
    for q in (0, 1, number - 1, number, number + 1, least * number - 1, least * number, most - 1, most):
        quotient = (q * multiplier >> 32) >> shift
        assert (quotient, (q + quotient * minus) % 2**32) == divmod(q, number)


if __name__ == "__main__":
    main()
