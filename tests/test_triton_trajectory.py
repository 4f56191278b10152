"""The Triton trajectory kernel, in Triton's interpreter on the CPU: runs against the loop, activations against torch.

As in test_triton.py all cases run in one other process, this file as a program; its compiled PTX is tested in
test_gpu_trajectory.py.
"""

import copy
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from test_gpu_trajectory import CASES, KEY, STEPS, Case, mlp, overflowing, run, states, table_of, unlike_torch
from torch import Tensor, nn
from torch.nn import functional

import fpfast
from fpfast import backends, fused
from fpfast.assemble import ACTIVATIONS
from fpfast.packing import tiles
from fpfast.solvers import SOLVERS
from fpfast.trajectory import TritonSchedule

PRESENT = importlib.util.find_spec("triton") is not None
if PRESENT:
    import triton
    import triton.language as tl
    from fpfast.kernels.activation import activation

    @triton.jit
    def activation_kernel(out, u, kind, parameter, COUNT: tl.constexpr):
        at = tl.arange(0, COUNT)
        value, first, second, third, fourth = activation(kind, tl.load(u + at), parameter)
        tl.store(out + at, value)
        tl.store(out + COUNT + at, first)
        tl.store(out + 2 * COUNT + at, second)
        tl.store(out + 3 * COUNT + at, third)
        tl.store(out + 4 * COUNT + at, fourth)


pytestmark = [
    pytest.mark.skipif(not PRESENT, reason="triton is not installed"),
    pytest.mark.skipif(backends.BACKENDS["cpu"].missing() is not None, reason="the native kernels are not built"),
]

RUNS = {
    **{name: CASES[name] for name in ("one-dimension", "skip", "published", "wide")},
    **{
        f"{solver}-{predicts}": Case(mlp(3, 20, potential=predicts == "potential"), 3, solver, predicts, samples)
        for (solver, predicts), samples in zip(
            itertools.product(SOLVERS, ("score", "potential")), itertools.cycle((1, 15, 16, 33)), strict=False
        )
    },
}


WATCHED = [*itertools.product(("one-dimension", "two-steps", "skip", "streamed-potential"), (False, True))]


class Function(NamedTuple):
    name: str
    of: Callable[[Tensor], Tensor]
    parameter: float = 0.0
    most: float = 12.0  # |z|

    def __str__(self) -> str:
        return f"{self.name}-{self.parameter:g}-to-{self.most:g}"


FUNCTIONS = [
    *(
        Function(name, of, parameter, most)
        for name, of, parameter in (
            ("tanh", torch.tanh, 0.0),
            ("softplus", partial(functional.softplus, beta=1.0, threshold=80.0), 1.0),
            ("softplus", partial(functional.softplus, beta=100.0, threshold=80.0), 100.0),
            ("silu", functional.silu, 0.0),
            ("gelu", partial(functional.gelu, approximate="tanh"), 0.0),
            ("elu", partial(functional.elu, alpha=0.7), 0.7),
            ("sine", torch.sin, 0.0),
        )
        for most in (0.1, 12.0)
    ),
    *(Function("sine", torch.sin, most=most) for most in (1e4, 1e9)),
]


def inexact_run(case: Case) -> str:
    """What is wrong with a case: an error against float64 beyond twice that of the loop in float32."""

    def loop(net: nn.Module, dtype: torch.dtype) -> Tensor:
        score = fpfast.Score(net, fpfast.OU(T=1.0), predicts=case.predicts)
        shape, first = (case.samples, case.dimension), KEY.first_sample
        given = {"solver": case.solver, "steps": STEPS, "seed": int(KEY.seed), "first_sample": first, "final": "noise"}
        return fpfast.sample(score, shape, x=states(case), dtype=dtype, backend="reference", **given)

    exact, single = loop(copy.deepcopy(case.net).double(), torch.float64), loop(case.net, torch.float32)
    what = "gradient" if case.predicts == "potential" else "output"
    net, kernels = fused.compile(case.net, case.dimension), backends.kernels("triton")
    got = run(TritonSchedule(net, what, table_of(case), torch.device("cpu"), kernels), states(case))
    error, bound = (got - exact).abs().max(), 2 * (single - exact).abs().max() + 1e-6 * exact.abs().max()
    return "" if error <= bound else f"error {error:.2g}, expected at most {bound:.2g}"


def unseen(name: str, freeze: bool) -> str:
    """What is wrong with a case whose samples overflow and are watched."""
    case = CASES[name]
    (table, x), what = overflowing(case), "gradient" if case.predicts == "potential" else "output"
    net, kernels = fused.compile(case.net, case.dimension), backends.kernels("triton")
    return unlike_torch(TritonSchedule(net, what, table, torch.device("cpu"), kernels), x, freeze)


def inexact_function(function: Function) -> str:
    """The same of an activation and its four derivatives, against torch's in float32."""

    def derivatives(z: Tensor) -> Tensor:
        z = z.requires_grad_()
        found = [function.of(z)]
        for _ in range(4):
            found.append(torch.autograd.grad(found[-1].sum(), z, create_graph=True)[0])
        return torch.stack(found).detach()

    number, argument, result = ACTIVATIONS[function.name]
    count, factor = 1024, argument(function.parameter)
    u = (torch.linspace(-function.most, function.most, count, dtype=torch.float64) * factor).float()
    z, got = u.double() / factor, torch.empty(5, count)
    activation_kernel[(1,)](got, u, number, function.parameter, COUNT=count)
    exact, single = derivatives(z.clone()), derivatives(z.float())
    exact_of_single = derivatives(z.float().double())  # where an argument is large its own rounding changes much
    got[0] /= result(function.parameter)
    error, of_torch = (got - exact).abs().amax(1), (single - exact_of_single).abs().amax(1)
    units = torch.tensor([2.0, 2, 2, 16, 32])  # in the last place; polynomials in the first derivative lose some
    bound = 2 * of_torch + 1.2e-7 * units * exact.abs().amax(1)
    return "" if bool((error <= bound).all()) else f"errors {error.tolist()}, expected at most {bound.tolist()}"


def main() -> None:
    found = {}
    for name, check in {
        **{name: partial(inexact_run, case) for name, case in RUNS.items()},
        **{f"{name}, {freeze}": partial(unseen, name, freeze) for name, freeze in WATCHED},
        **{str(function): partial(inexact_function, function) for function in FUNCTIONS},
    }.items():
        try:
            found[name] = check()
        except Exception:  # it fails the case's test, not the others'
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    pytest.importorskip("triton", minversion="3.9", reason="older interpreters fail at loops to numbers that were read")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RUNS)
def test_interpreted_runs_are_as_exact_as_the_loop(found, name):
    assert found[name] == ""


@pytest.mark.parametrize(("name", "freeze"), WATCHED)
def test_interpreted_runs_see_samples_that_are_not_finite(found, name, freeze):
    assert found[f"{name}, {freeze}"] == ""


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_interpreted_activations_are_as_exact_as_torch(found, function):
    assert found[str(function)] == ""


def test_tiles_are_where_the_kernel_looks_for_them():
    matrix = torch.arange(40.0 * 20).reshape(40, 20)
    packed, whole = tiles(matrix), functional.pad(matrix, (0, 12, 0, 8))
    assert packed.shape == (3, 2, 16, 16)
    for row, column in ((0, 0), (39, 19), (17, 3), (47, 31)):
        assert packed[row // 16, column // 16, column % 16, row % 16] == whole[row, column]


if __name__ == "__main__":
    main()
