"""Errors of a score, of a given kind and size, and what a size says by Girsanov's theorem.                    KINDS"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast.papers.trajectories import Trajectory, at
from fpfast.score import Score
from fpfast.sde import OU
from fpfast.times import grid

# g is constant, so an error weighs the same at all times; N(0, I) is stationary; p_T is sampled exactly, so T is short.
SDE = OU(theta=1.0, sigma=math.sqrt(2), T=1.0)
PHASE = (0.3, 1.1)
EARLY = 0.02  # what is near t = 0
NODES, SAMPLES = 96, 4000  # of the quadrature in time, and in space for each time


class Kind(NamedTuple):
    """The field sin(k x_i / alpha + c_i) exp(-t / decay), i = 1, 2, k = wave / size^power, times a constant.

    In x / alpha, as where p_t is nearly flat the exact probability flow carries a point along at constant x / alpha: it
    stays where the error pushes it the same way.
    """

    wave: float
    power: int
    decay: float
    text: str


KINDS = {
    "smooth": Kind(1.0, 0, math.inf, "wave number 1"),
    "rough": Kind(14.0, 0, math.inf, "wave number 14"),
    "ever rougher": Kind(3.5, 1, 0.03, "wave number 3.5 / size, times exp(-t / 0.03): its gradient does not shrink"),
    "near t = 0": Kind(1.0, 0, EARLY, "wave number 1, times exp(-t / 0.02)"),
}


def size_of(
    error: Callable[[Tensor, float], Tensor], reference: Trajectory, seed: int = 0, until: float = math.inf
) -> float:
    """(Int g^2 E_{p_t}|e|^2 dt)^(1/2) over t_min <= t <= min(T, until): trapezoids in log-SNR, exact samples of p_t."""
    generator = torch.Generator().manual_seed(seed)
    times = grid(SDE, "logsnr", NODES)
    times = times[times <= until]
    means = []
    for t in times.tolist():
        x = at(reference, SDE, t, SAMPLES, generator)
        means.append(float(SDE.g2(t)) * float(error(x, t).square().sum(1).mean()))
    return math.sqrt(-float(torch.trapezoid(torch.tensor(means, dtype=torch.float64), times)))


def field(kind: Kind, size: float, reference: Trajectory) -> Callable[[Tensor, float], Tensor]:
    """e(x, t) of this kind with Int g^2 E_{p_t}|e|^2 dt = size^2."""
    wave = kind.wave / size**kind.power

    def plain(x: Tensor, t: float) -> Tensor:
        return (wave / float(SDE.alpha(t)) * x + torch.tensor(PHASE, dtype=x.dtype)).sin() * math.exp(-t / kind.decay)

    scale = size / size_of(plain, reference)
    return lambda x, t: scale * plain(x, t)


def perturbed(reference: Trajectory, error: Callable[[Tensor, float], Tensor] | None) -> Score:
    """The exact score plus an error. All samples of a call have one t, as the sampler's do."""

    def s(x: Tensor, t: Tensor) -> Tensor:
        one = float(t[0])
        exact = reference.gradient(x, SDE, one)
        return exact if error is None else exact + error(x, one)

    return Score(s, SDE)


def divergence_of_paths(level: float, size: float) -> float:
    """KL between the paths with the exact score and with an error of this size, from one and the same p_T:

    (1 + level^2)^2 / (8 level^2) size^2, by Girsanov's theorem. (The drifts differ by (1 + level^2)/2 g^2 e, and the
    noise is level g.) Least at level 1; infinite at 0. TV(law at t, p_t) <= (KL / 2)^(1/2) by Pinsker's inequality.
    """
    return math.inf if level == 0 else ((1 + level**2) * size) ** 2 / (8 * level**2)


def bound_of_tv(level: float, size: float) -> float:
    return min(1.0, math.sqrt(divergence_of_paths(level, size) / 2))
