"""The Triton residual kernels in Triton's interpreter on the CPU, against autograd in float64.

As in test_triton.py all cases run in one other process, this file as a program; compiled PTX is tested in
test_gpu_residual.py.
"""

import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import native
from test_fused_residual import CASES as ALL
from test_fused_residual import Everything, agrees

import fpfast
from fpfast import backends, fused
from fpfast.network import MLP
from fpfast.packing import Fragments, Tiles

PRESENT = importlib.util.find_spec("triton") is not None
pytestmark = [pytest.mark.skipif(not PRESENT, reason="triton is not installed"), native]

CASES = {
    f"{form}-{'potential' if potential else 'score'}-{estimator}": (form, potential, estimator)
    for form, potential, estimator in ALL
    if estimator != "taylor"  # a potential's "hutchinson" by another name
}


def mlp(case: tuple[str, bool, str], spec: str, **options: object) -> None:
    """A hidden layer of more than a tile; a program that comes back for the last point."""
    torch.manual_seed(0)
    agrees(MLP(2, [18], activation=spec, potential=case[1]), 2, fpfast.VP(), case, 1e-5, n=17, **options)


def several_programs() -> None:
    from fpfast.kernels import residual

    residual.PROGRAMS, before = 2, residual.PROGRAMS
    mlp(("log_density", True, "exact"), "silu")
    residual.PROGRAMS = before


def everything(case: tuple[str, bool, str], learned: bool) -> None:
    """Residual additions, factors, time in several places, through learned features or fixed ones; ragged tiles."""
    torch.manual_seed(1)
    agrees(Everything(3, 5, 1 if case[1] else 3, learned), 3, fpfast.VP(), case, 2e-5, n=5)


def many_dimensions(case: tuple[str, bool, str]) -> None:
    """Of points, more than a tile of rows has."""
    torch.manual_seed(2)
    agrees(MLP(17, [6], potential=case[1]), 17, fpfast.OU(), case, 1e-5, n=3)


SPECS = ("tanh", "softplus:20", "gelu", "elu", "sine")
RUNS: dict[str, Callable[[], None]] = {
    **{f"{name}-{spec}": partial(mlp, case, spec) for (name, case), spec in zip(CASES.items(), SPECS, strict=True)},
    **{f"{name}-everything": partial(everything, case, n % 2 == 0) for n, (name, case) in enumerate(CASES.items())},
    "weighting": partial(mlp, ("log_density", True, "hutchinson"), "silu", weighting="noise", unbiased=False),
    "probes": partial(mlp, ("score", False, "hutchinson"), "silu", probes=3),
    "several programs": several_programs,
    "many dimensions": partial(many_dimensions, ("score", False, "hutchinson")),
}


def wrong(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception:  # it fails the case's test, not the others'
        return traceback.format_exc()
    return ""


def main() -> None:
    """As if the networks, and the points, were on a GPU of these kernels."""
    from fpfast.kernels import residual

    kernels = backends.kernels("triton")
    residual.PROGRAMS = 1
    fused._on_cpu = lambda net: False
    fused.Fused.kernels = lambda self, x: kernels if x.dtype == torch.float32 else None
    json.dump({name: wrong(check) for name, check in RUNS.items()}, sys.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    pytest.importorskip("triton", minversion="3.9", reason="older interpreters fail at loops to numbers that were read")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RUNS)
def test_interpreted_residuals(found, name):
    assert found[name] == ""


@pytest.mark.parametrize(("cuda", "packing"), [(None, Fragments), ("it is not built", Tiles)], ids=["cuda", "no cuda"])
def test_triton_serves_where_cuda_is_not_built(monkeypatch, cuda, packing):
    """On a GPU that is not here."""
    for name, missing in (("cuda", cuda), ("triton", None)):
        there = replace(backends.BACKENDS[name], missing=lambda missing=missing: missing)
        monkeypatch.setitem(backends.BACKENDS, name, there)

    class There:
        device, dtype = torch.device("cuda:0"), torch.float32

    net = fused.compile(MLP(2, [8]), 2)
    assert isinstance(net.kernels(There()).packing, packing)
    There.dtype = torch.float64
    assert net.kernels(There()) is None


def test_sums_are_where_the_gradient_looks_for_them():
    packing, places = Tiles(), Tiles().sums(40, 20)
    assert packing.matrix(torch.zeros(40, 20, dtype=torch.int64)).numel() == 3 * 2 * 256
    for row, column in ((0, 0), (39, 19), (17, 3)):
        assert places[row, column] == (row // 16 * 2 + column // 16) * 256 + row % 16 * 16 + column % 16
    padded = packing.matrix(torch.arange(40 * 20).reshape(40, 20))
    assert sorted(padded[padded >= 0].tolist()) == list(range(800))


def test_a_network_of_more_numbers_than_are_counted():
    from fpfast.kernels import residual

    numbers = {"jets": 2**20, "adjoints": 2**20, "columns": 2**6, "sum_count": 16}
    tensors = {"x": torch.zeros(1, 2), "loss": None, "gradient": None}
    with pytest.raises(ValueError, match=r"^net: expected values of 16 points that are fewer than 2147483648, got"):
        residual.residual(tensors=tensors, numbers=numbers)


if __name__ == "__main__":
    main()
