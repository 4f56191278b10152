"""The bound between ODE and SDE samples, on Gaussians, where all that it is made of is known."""

import math

import pytest

import fpfast
from fpfast.certificate import certificate
from fpfast.embedded import embedded
from fpfast.papers import identity


@pytest.mark.parametrize("factor", [1.0, 0.8, 1.3])
def test_the_identity(factor):
    """I = Int E[R] + E_T[e] - E_0[e], where E_0[e] = E[log p_0 - phi] is known too."""
    exact, found = identity.exactly(factor), identity.measured(factor)
    assert found.log_mass == pytest.approx(-0.5 * math.log(factor), abs=1e-5)
    by_identity = found.residual.value + found.prior - exact.end(factor)
    assert by_identity == pytest.approx(exact.information, abs=4 * found.residual.error + 2e-3)
    assert found.information.value >= exact.information - 4 * found.residual.error - 2e-3


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("dimension", [1, 2])
def test_the_bound_holds(dimension, factor):
    found = identity.measured(factor, n=1000, steps=400, dimension=dimension)
    assert found.bound > dimension * identity.exactly(factor).w2 - 1e-6
    slope = 1 - factor / (2 * identity.START)  # L at t = 0: -a + g^2/2 times the only eigenvalue
    assert float(found.lipschitz[-1]) == pytest.approx(slope, rel=1e-4)
    if factor == 1.0:  # nothing to bound, but that the prior is not the marginal at T
        assert found.bound < 0.01


def test_an_embedded_network():
    found = certificate(embedded("blob_w0"), 2, n=300, steps=100, seed=0)
    assert found.rates.shape == found.times.shape == found.lipschitz.shape == (101,)
    assert found.information.value == pytest.approx(found.residual.value + found.prior + found.log_mass)
    assert 0 < found.information.value + 3 * found.information.error < 0.3
    assert found.bound > 0.03  # W2^2 of its ODE and SDE samples is about 0.02 (docs/certificate.md)


def test_bad_arguments():
    score = embedded("blob_w0")
    for arguments, message in (
        ({"dimension": 3}, r"dimension: expected an integer in \[1, 2\], got 3"),
        ({"dimension": 2, "n": 1}, "n: expected an integer in \\[2, "),
        ({"dimension": 2, "n": 4, "steps": 2, "edge": 0}, "edge: expected a number from 10"),
        ({"dimension": 2, "nodes": 2}, "nodes: expected an integer in \\[3, "),
        ({"dimension": 2, "n": 3, "seed": [1, 2, 3]}, "seed: expected one for all samples"),
    ):
        with pytest.raises(ValueError, match=message):
            certificate(score, **arguments)
    with pytest.raises(ValueError, match="score: expected one that predicts 'potential', got 'score'"):
        certificate(fpfast.Score(lambda x, t: -x, fpfast.VP(), "score"), 1)
    with pytest.raises(TypeError, match=r"score: expected fpfast.Score"):
        certificate(score.net, 2)
