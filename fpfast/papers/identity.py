"""The identity behind the bound of :mod:`fpfast.certificate`, on Gaussians in one dimension: all of it is known."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fpfast.certificate import Certificate, certificate
from fpfast.score import Score
from fpfast.sde import OU

START = 1.5  # variance of the data
HORIZON = 4.0
STEPS = 200_000


def _variance(t: Tensor) -> Tensor:
    return 0.5 + (START - 0.5) * torch.exp(-2 * t)


class ScaledGaussian(nn.Module):
    """phi (B,) of N(0, v(t) I) under dX = -X dt + dW, but its quadratic part times ``factor``: s = -factor x / v."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        v = _variance(t)
        return -self.factor * x.square().sum(1) / (2 * v) - x.shape[1] / 2 * torch.log(2 * math.pi * v)


class Exact(NamedTuple):
    """In one dimension: I = Int g^2/2 E|grad e|^2 dt, and the variances of the SDE's and of the ODE's samples."""

    information: float
    sde: float
    ode: float

    @property
    def w2(self) -> float:
        """Squared W2 distance between the two."""
        return (math.sqrt(self.sde) - math.sqrt(self.ode)) ** 2

    def end(self, factor: float) -> float:
        """E_{p_0}[e]."""
        ratio = self.sde / START
        return 0.5 * (factor * ratio - 1 - math.log(ratio))


def exactly(factor: float, steps: int = STEPS) -> Exact:
    """By small steps of the equations for variances.

    Backwards, dX = (X + s) d(-t) + dW with s = -factor X / v: the variance u grows by 2 u (1 - factor / v) + 1, the
    ODE's standard deviation by 1 - factor / (2 v). I = Int u (factor / v - 1 / u)^2 / 2 dt.
    """
    variances = _variance(torch.linspace(HORIZON, 0, steps + 1, dtype=torch.float64)).tolist()
    h = HORIZON / steps
    u, log_ode, gained = 0.5, 0.0, 0.0
    for v in variances:
        gained += h * u * (factor / v - 1 / u) ** 2 / 2
        u += h * (2 * u * (1 - factor / v) + 1)
        log_ode += h * (1 - factor / (2 * v))
    return Exact(gained, u, 0.5 * math.exp(2 * log_ode))


def measured(factor: float, *, n: int = 4000, steps: int = 2000, dimension: int = 1) -> Certificate:
    """The parts of the bound, of paths: ``residual + prior - E_{p_0}[e]`` should be I."""
    score = Score(ScaledGaussian(factor), OU(T=HORIZON), "potential")
    times = torch.linspace(HORIZON, 0, steps + 1, dtype=torch.float64)
    return certificate(score, dimension, n=n, times=times, edge=12.0, seed=0)
