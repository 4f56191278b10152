"""What is measured of a trained score: its residual, its Jacobian, its likelihood, its samples, the cost of a step.

Points are data perturbed to a time: x = alpha(t) x0 + std(t) z. Functions take a seed, by which scores that are to be
compared see the same points, noise and probes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fpfast import train
from fpfast.divergence import Estimated
from fpfast.likelihood import bits_per_dimension, dequantise, log_likelihood
from fpfast.losses import perturb
from fpfast.metrics import histogram, mmd, w2_exact, w2_grid
from fpfast.mixture import GaussianMixture
from fpfast.residual import fp_residual
from fpfast.sample import sample
from fpfast.score import Score

EXACT_UP_TO = 16  # dimensions in which residuals and divergences are exact
TOGETHER = 128  # points at a time
MMD_POINTS = 3000


def at(score: Score, x0: Tensor, t: float, seed: int) -> Tensor:
    """x0 perturbed to the time t."""
    return perturb(score.sde, x0, torch.full((len(x0),), t, dtype=torch.float64), seed)[0]


def residual(score: Score, x0: Tensor, t: float, *, probes: int = 8, seed: int = 0) -> float:
    """(E|eps|^2 / d)^(1/2) at the time t, eps the residual of the score's Fokker-Planck equation.

    It is exact up to 16 dimensions; beyond, the mean of products of two estimates by Hutchinson's probes, half of them
    each: unbiased for every score, conservative or not. A mean below zero, which those may have, gives NaN.
    """
    x, squares = at(score, x0, t, seed), []
    for number, part in enumerate(x.split(TOGETHER)):
        if part[0].numel() <= EXACT_UP_TO:
            first = second = fp_residual(score, part, t, estimator="exact").value
        else:
            first, second = (
                fp_residual(score, part, t, estimator="hutchinson", probes=probes // 2, seed=2 * number + half).value
                for half in (0, 1)
            )
        squares.append((first * second).flatten(1).mean(1))
    mean = float(torch.cat(squares).double().mean())
    return math.sqrt(mean) if mean >= 0 else math.nan


def jacobian(score: Score, x: Tensor, t: float) -> Tensor:
    """ds_i / dx_j, (B, d, d)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, t).flatten(1)
        rows = [torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in range(s.shape[1])]
    return torch.stack(rows, 1)


def asymmetry(score: Score, x0: Tensor, t: float, *, seed: int = 0) -> tuple[float, float]:
    """Means of |J - J^T|_F and of |J - J^T|_F / |J|_F at the time t; 0 for a score that is a gradient."""
    jacobians = torch.cat([jacobian(score, part, t) for part in at(score, x0, t, seed).split(TOGETHER)]).double()
    skew = (jacobians - jacobians.mT).flatten(1).norm(dim=1)
    return float(skew.mean()), float((skew / jacobians.flatten(1).norm(dim=1)).mean())


@torch.no_grad()
def score_error(score: Score, known: GaussianMixture, x0: Tensor, t: float, *, seed: int = 0) -> float:
    """(E|s - s*|^2 / E|s*|^2)^(1/2) at the time t, s* the exact score."""
    x = at(score, x0, t, seed)
    exact = known.gradient(x.double(), score.sde, t)
    return math.sqrt(float((score(x, t) - exact).square().sum() / exact.square().sum()))


class Nats(NamedTuple):
    """Means over held-out samples of a mixture, with standard errors over them."""

    model: float  # -log p(x) by the model
    exact: float  # -log p(x) by the mixture itself
    divergence: float  # their difference, the Kullback-Leibler divergence
    trimmed: float  # the same without the hundredth of the points where it is greatest
    error: float  # of the divergence


def mixture_likelihood(score: Score, known: GaussianMixture, x0: Tensor, *, steps: int, seed: int = 0) -> Nats:
    """Exact divergences, RK4; at t_min, with the mixture's own density there."""
    t = score.sde.t_min
    x = at(score, x0, t, seed)
    model = -log_likelihood(score, x, steps=steps, estimator="exact", batch_size=2048).value
    exact = -known.log_prob(x.double(), score.sde, t)
    difference = model - exact
    trimmed = float(difference.sort().values[: len(x) - len(x) // 100].mean())
    return Nats(float(model.mean()), float(exact.mean()), float(difference.mean()), trimmed, standard_error(difference))


def image_likelihood(score: Score, whole: Tensor, levels: int, *, steps: int, probes: int, seed: int = 0) -> Estimated:
    """Bits per dimension of each image of whole numbers, made continuous in [-1, 1]; Heun, Hutchinson's divergences."""
    x = dequantise(whole, levels=levels, seed=seed)
    found = log_likelihood(
        score, x, solver="heun", steps=steps, estimator="hutchinson", probes=probes, seed=seed, batch_size=TOGETHER
    )
    return bits_per_dimension(found, levels=levels)


def draws(score: Score, shape: tuple[int, ...], *, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Samples of the probability-flow ODE (Heun) and of the reverse SDE (Euler-Maruyama, twice the steps)."""
    together = 2048 if len(shape) == 2 else TOGETHER
    return {
        "ODE": sample(score, shape, solver="heun", steps=steps, noise=0.0, seed=seed, batch_size=together),
        "SDE": sample(score, shape, steps=2 * steps, noise=1.0, seed=seed, batch_size=together),
    }


def distances(x: Tensor, truth: Tensor, bandwidth: float) -> dict[str, float]:
    """Squared W2, in the plane between histograms on the 64 x 64 grid, else between the points; squared MMD of the

    first 3,000 points.
    """
    planar = x.shape[1:] == (2,)
    w2 = w2_grid(histogram(x), histogram(truth)) if planar else w2_exact(x, truth)
    return {"w2": w2.value, "mmd": mmd(x[:MMD_POINTS], truth[:MMD_POINTS], bandwidth=bandwidth).value}


def step_costs(scores: dict[str, tuple[Score, train.Recipe]], x0: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of training steps (both losses, gradients, clipping, Adam): one of each kind in turn, again and again."""
    kinds = {}
    for name, (score, recipe) in scores.items():
        parameters = list(cast(nn.Module, score.module).parameters())
        kinds[name] = (score, recipe, parameters, torch.optim.Adam(parameters, lr=recipe.learning_rate))
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(-2, rounds):  # the first ones also allocate
        for name, (score, recipe, parameters, optimiser) in kinds.items():
            began = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            dsm, regulariser = train.terms(score, recipe, x0, number + 2)
            (dsm + recipe.weight * regulariser).backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def geometric_mean(values: Sequence[float]) -> float:
    """NaN if any value is."""
    return math.exp(math.fsum(math.log(value) if value > 0 else math.nan for value in values) / len(values))
