"""The residual kernels against autograd in float64: compiled PTX (sm_80) of CUDA's and Triton's, CUDA's on the CPU."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from emulated import NVCC, PTX, Cuda, Triton, compiled_by_nvcc
from simt_runner import NEEDED, Simt, sanitized
from test_fused_residual import CASES as ALL
from test_fused_residual import SPECS, Everything, agrees, loss_and_gradients, of_case, points

import fpfast
from fpfast import backends, fused
from fpfast.network import MLP

pytestmark = pytest.mark.skipif(
    backends.BACKENDS["cpu"].missing() is not None, reason="the native kernels are not built"
)


# "taylor" is a potential's "hutchinson" by another name.
CASES = [case for case in ALL if case[2] != "taylor"]
NAMES = [f"{form}-{'potential' if potential else 'score'}-{estimator}" for form, potential, estimator in CASES]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("ptx", marks=[*PTX, NVCC]),
        pytest.param("triton", marks=PTX),
        pytest.param("simt", marks=NEEDED),
    ],
)
def built(request, tmp_path_factory):
    if request.param == "simt":
        yield Simt(request.getfixturevalue("simt_library"))
    elif request.param == "ptx":
        yield Cuda({"residual": compiled_by_nvcc("residual", tmp_path_factory.mktemp("residual"))})
    else:
        pytest.importorskip("triton", minversion="3.6", reason="triton is not installed")
        with pytest.MonkeyPatch.context() as patch:
            kernels = Triton(patch)
            patch.setattr(kernels.residuals, "PROGRAMS", 3)  # so that they come back for other points
            yield kernels


@pytest.fixture
def kernels(built, monkeypatch):
    """As if the network, and the points, were on a GPU of these kernels."""
    monkeypatch.setattr(fused, "_on_cpu", lambda net: False)
    monkeypatch.setattr(fused.Fused, "kernels", lambda self, x: built if x.dtype == torch.float32 else None)
    return built


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("spec", SPECS)
def test_gradients(kernels, spec, case):
    torch.manual_seed(0)
    agrees(MLP(3, [24, 17, 33], activation=spec, potential=case[1]), 3, fpfast.VP(), case, 1e-5)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("n", [1, 128, 300])
def test_numbers_of_points(kernels, case, n):
    """A warp's, a block's, more blocks than there are, and points that a block comes back for."""
    torch.manual_seed(1)
    agrees(MLP(2, [9, 17], potential=case[1]), 2, fpfast.OU(), case, 1e-5, n=n)


@pytest.mark.parametrize(("case", "learned"), [(case, n % 2 == 0) for n, case in enumerate(CASES)], ids=NAMES)
def test_structures(kernels, case, learned):
    """Residual additions, factors, time in several places, through learned features or fixed ones."""
    torch.manual_seed(2)
    agrees(Everything(10, 12, 1 if case[1] else 10, learned), 10, fpfast.VP(), case, 2e-5, n=20)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_wide(kernels, case):
    """More pairs of row tiles than are summed up at once, and more columns of jets."""
    torch.manual_seed(3)
    agrees(MLP(5, [150, 33], activation="silu", potential=case[1]), 5, fpfast.VE(0.01, 10.0), case, 2e-5, n=17)


def test_published_network(kernels):
    torch.manual_seed(4)
    net = MLP(2, [80, 80, 80], activation="softplus:100", potential=True)
    agrees(net, 2, fpfast.OU(), ("log_density", True, "exact"), 1e-5, n=130)


@pytest.mark.parametrize("options", [{"unbiased": False}, {"weighting": "noise"}, {"probes": 3}], ids=str)
def test_options(kernels, options):
    torch.manual_seed(5)
    for case in CASES:
        if case[2] == "hutchinson":
            agrees(MLP(3, [8], potential=case[1]), 3, fpfast.VP(), case, 2e-5, n=20, **options)


def score_of(net, dimension, predicts):
    return fpfast.Score(fused.compile(net, dimension), fpfast.OU(), predicts)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_order_does_not_count(kernels, case):
    """Bits are the same whichever block, and thread, comes first."""
    torch.manual_seed(6)
    chosen, predicts = of_case(case)
    score = score_of(MLP(2, [12], potential=case[1]), 2, predicts)
    x, t = points(fpfast.OU(), 2, 300)
    found = []
    for backwards in (False, True):
        kernels.reverse = backwards
        if isinstance(kernels, Simt):
            kernels.order(backwards, backwards)
        loss, gradients = loss_and_gradients(score, x, t, **chosen)
        found.append(torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in gradients)]))
    assert torch.equal(*found)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_points_value_does_not_depend_on_its_neighbours(kernels, case):
    torch.manual_seed(7)
    chosen, predicts = of_case(case)
    score = score_of(MLP(2, [12], potential=case[1]), 2, predicts)
    x, t = points(fpfast.OU(), 2, 150)
    broken = x.clone()
    broken[20] = float("nan")
    seeds = torch.arange(150)  # one each, so that a point has its probes wherever it is
    whole = fpfast.fp_residual(score, x, t, seed=seeds, **chosen).value
    assert torch.equal(fpfast.fp_residual(score, x[100:], t[100:], seed=seeds[100:], **chosen).value, whole[100:])
    rest = torch.arange(150) != 20
    assert torch.equal(fpfast.fp_residual(score, broken, t, seed=seeds, **chosen).value[rest], whole[rest])


def test_parameters_change(kernels):
    """Training goes on with the module's values, not with those of an earlier copy."""
    torch.manual_seed(8)
    net = MLP(2, [12], potential=True)
    score = score_of(net, 2, "potential")
    x, t = points(fpfast.OU(), 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        loss, gradients = loss_and_gradients(score, x, t, form="log_density")
        again = loss_and_gradients(score_of(net, 2, "potential"), x, t, form="log_density")
        assert torch.equal(loss, again[0])
        assert all(map(torch.equal, gradients, again[1]))
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()
    next(net.parameters()).requires_grad_(False)
    assert len(loss_and_gradients(score, x, t, form="log_density")[1]) == 3


@pytest.mark.parametrize(
    "built", [pytest.param("triton", marks=PTX), pytest.param("simt", marks=NEEDED)], indirect=True
)
def test_launches(kernels):
    """A loss and its gradients: one launch for the points, one that adds up what the blocks have; values: one."""
    torch.manual_seed(9)
    score = score_of(MLP(2, [12], potential=True), 2, "potential")
    x, t = points(fpfast.OU(), 2, 1000)
    before = kernels.launches
    loss_and_gradients(score, x, t, form="log_density")
    assert kernels.launches - before == 2
    with torch.no_grad():
        fpfast.fp_residual(score, x, t, form="log_density")
    assert kernels.launches - before == 3


def inexact(library: Simt) -> str:
    """For a process of its own, where the sanitizers are."""
    fused._on_cpu = lambda net: False
    fused.Fused.kernels = lambda self, x: library if x.dtype == torch.float32 else None
    torch.manual_seed(10)
    for case in CASES:
        agrees(Everything(9, 12, 1 if case[1] else 9, True), 9, fpfast.VP(), case, 2e-5, n=40)
        agrees(MLP(2, [40, 33], potential=case[1]), 2, fpfast.VP(), case, 2e-5, n=300)
    return "as exact as they should be"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles the CUDA kernels, is not on PATH")
def test_residuals_under_sanitizers(sanitized_library):
    """AddressSanitizer and UBSan, in another process: this file as a program, with the library as its argument."""
    done = sanitized(__file__, str(sanitized_library))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == "as exact as they should be"


if __name__ == "__main__":
    json.dump(inexact(Simt(Path(sys.argv[1]))), sys.stdout)
