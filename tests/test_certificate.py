"""The bound between ODE and SDE samples, on Gaussians, where all that it is made of is known."""

import math

import pytest
import torch
from torch import nn

import fpfast
from fpfast.certificate import certificate
from fpfast.embedded import embedded


class Wrong(nn.Module):
    """phi of N(0, v(t)) under dX = -X dt + dW, v = 1/2 + (c - 1/2) e^-2t, but for a factor: s = -factor x / v."""

    def __init__(self, factor, start=1.5):
        super().__init__()
        self.factor, self.start = factor, start

    def forward(self, x, t):
        v = 0.5 + (self.start - 0.5) * torch.exp(-2 * t)
        return -self.factor * x.square().sum(1) / (2 * v) - x.shape[1] / 2 * torch.log(2 * math.pi * v)


def exactly(factor, times, start=1.5):
    """(I, variance of the SDE's samples, of the ODE's) in one dimension, by small steps of the equations for variances.

    Backwards, dX = (X + s) d(-t) + dW with s = -factor X / v: the variance u grows by 2 u (1 - factor / v) + 1, the
    ODE's standard deviation by 1 - factor / (2 v). I = Int u (factor / v - 1 / u)^2 / 2 dt.
    """
    fine = torch.linspace(times[0], times[-1], 200_001, dtype=torch.float64)
    v = 0.5 + (start - 0.5) * torch.exp(-2 * fine)
    h = float(fine[0] - fine[1])
    u, log_ode, gained = 0.5, 0.0, 0.0
    for one in v.tolist():
        gained += h * u * (factor / one - 1 / u) ** 2 / 2
        u += h * (2 * u * (1 - factor / one) + 1)
        log_ode += h * (1 - factor / (2 * one))
    return gained, u, 0.5 * math.exp(2 * log_ode)


@pytest.mark.parametrize("factor", [1.0, 0.8, 1.3])
def test_the_identity(factor):
    """I = Int E[R] + E_T[e] - E_0[e], where E_0[e] = E[log p_0 - phi] is known too."""
    score, times = fpfast.Score(Wrong(factor), fpfast.OU(T=4.0), "potential"), torch.linspace(4, 0, 2001).double()
    found = certificate(score, 1, n=4000, times=times, edge=12.0, seed=0)
    information, u, _ = exactly(factor, (4.0, 0.0))
    v = 1.5
    end = 0.5 * (factor * u / v - 1 - math.log(u / v))  # E[log p_0 - phi_0]
    log_mass = -0.5 * math.log(factor)
    assert found.log_mass == pytest.approx(log_mass, abs=1e-5)
    assert found.residual.value + found.prior - end == pytest.approx(information, abs=4 * found.residual.error + 2e-3)
    assert found.information.value >= information - 4 * found.residual.error - 2e-3


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("dimension", [1, 2])
def test_the_bound_holds(dimension, factor):
    score = fpfast.Score(Wrong(factor), fpfast.OU(T=4.0), "potential")
    found = certificate(score, dimension, n=1000, times=torch.linspace(4, 0, 401).double(), seed=1)
    _, u, ode = exactly(factor, (4.0, 0.0))
    distance = dimension * (math.sqrt(u) - math.sqrt(ode)) ** 2
    assert found.bound > distance - 1e-6
    slope = 1 - factor / (2 * 1.5)  # L at t = 0: -a + g^2/2 times the only eigenvalue
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
        ({"dimension": 2, "n": 1}, "n: expected an integer of at least 2"),
        ({"dimension": 2, "n": 4, "steps": 2, "edge": 0}, "edge: expected a positive number"),
        ({"dimension": 2, "nodes": 2}, "nodes: expected an integer of at least 3"),
        ({"dimension": 2, "n": 3, "seed": [1, 2, 3]}, "seed: expected one for all samples"),
    ):
        with pytest.raises(ValueError, match=message):
            certificate(score, **arguments)
    with pytest.raises(ValueError, match="score: expected one that predicts 'potential', got 'score'"):
        certificate(fpfast.Score(lambda x, t: -x, fpfast.VP(), "score"), 1)
    with pytest.raises(TypeError, match=r"score: expected fpfast.Score"):
        certificate(score.net, 2)
