"""A bound for the distance between ODE and SDE samples of a potential, from its Fokker-Planck residual.

With p_t the law of the SDE's samples at time t, s = grad phi, and e = log p_t - phi,

    I = Int_0^T g^2/2 E_{p_t}|grad e|^2 dt = Int_0^T E_{p_t}[R] dt + E_{p_T}[e] - E_{p_0}[e]
    W2^2(p_ODE, p_SDE) <= ( Int_0^T g^2/2 exp(2 Int_0^t L) dt ) I

(after Deveney et al., arXiv 2311.15996, whose bound is of this form). L_t is a one-sided Lipschitz constant of the
reverse ODE's field -a x + g^2/2 s: the largest eigenvalue of -a + g^2/2 (J + J^T)/2. p_T is the prior, so E_{p_T}[e] is
an integral; -E_{p_0}[e] = log Z_0 - KL(p_0 | exp(phi_0) / Z_0) is at most log Z_0, Z_t the integral of exp(phi).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast import noise
from fpfast.errors import bad, integer, real
from fpfast.metrics import Estimate
from fpfast.residual import fp_residual
from fpfast.sample import sample
from fpfast.score import Score
from fpfast.times import grid

LARGEST = 2  # dimension that is integrated over


class Certificate(NamedTuple):
    """The bound and its parts. Integrals over time are from the last time of the grid to T, by the trapezoidal rule."""

    residual: Estimate  # Int E_{p_t}[R] dt; the error is over paths
    prior: float  # E_{p_T}[e]
    log_mass: float  # log Z at the last time
    information: Estimate  # their sum, an upper bound of I
    growth: float  # Int g^2/2 exp(2 Int L) dt
    bound: float  # growth times information (at least 0): of W2^2
    lipschitz: Tensor  # L at each time, float64: the largest value among the paths', so itself only estimated
    rates: Tensor  # E_{p_t}[R] at each time, float64
    times: Tensor  # descending from T, float64


def certificate(
    score: Score,
    dimension: int,
    *,
    n: int = 2000,
    steps: int = 250,
    times: str | Sequence[float] | Tensor | None = None,
    edge: float | None = None,
    nodes: int = 401,
    seed: noise.Seed = None,
) -> Certificate:
    """The bound above for a potential in one or two dimensions.

    Args:
        score: a :class:`fpfast.Score` that predicts "potential".
        dimension: d, 1 or 2.
        n: paths of the SDE (Euler-Maruyama), by which expectations are taken and among which L is the largest. The
            bound is as good as they are: L is not known elsewhere, and the paths' steps have an error of their own.
        steps, times: of the paths, as for :func:`fpfast.sample`.
        edge: Z is the integral over [-edge, edge]^d, which must hold all of exp(phi) that matters, 10^-30 to 10^30;
            default: 1.5 times the largest coordinate of a sample.
        nodes: of the trapezoidal rule in each dimension.
        seed: as for :func:`fpfast.sample`, but one for all samples.

    Raises ValueError for scores without a potential and for arguments out of range.
    """
    if not isinstance(score, Score):
        raise TypeError(f"score: expected fpfast.Score(net, sde, predicts='potential'), got {type(score).__name__}")
    if score.predicts != "potential":
        raise bad("score", "one that predicts 'potential'", repr(score.predicts))
    dimension = integer("dimension", dimension, 1, LARGEST)
    n, nodes = integer("n", n, 2, 2**48), integer("nodes", nodes, 3, 10**9)
    edge = None if edge is None else real("edge", edge, "a number from 10^-30 to 10^30", 1e-30, 1e30)
    key = noise.seed_tensor(seed, n)
    if key.ndim:
        raise bad("seed", "one for all samples", f"{n} seeds")
    t, sde = grid(score.sde, times, steps), score.sde
    steepness, residuals = [], []

    def look(at: float, x: Tensor) -> None:
        residuals.append(fp_residual(score, x, at, form="log_density", estimator="exact").value.double())
        steepness.append(_steepest(score, x, at))

    begin = noise.normal(key, (n, dimension), stream="prior") * sde.prior_std
    look(float(t[0]), begin)
    end = sample(score, (n, dimension), times=t, x=begin, seed=key, callback=lambda step, at, x: look(at, x))
    if not bool(end.isfinite().all()):
        raise bad("score", "one whose samples are finite", "NaN or infinity")
    if edge is None:
        edge = 1.5 * real("score", float(end.abs().max()), "one whose samples reach 10^-30 to 10^29", 1e-30, 1e29)

    along = torch.stack(residuals)  # [times, n]
    paths = -torch.trapezoid(along, t, dim=0)  # times descend
    residual = Estimate(float(paths.mean()), float(paths.std() / n**0.5))
    prior, log_mass = _prior_term(score, dimension, nodes), _log_mass(score, float(t[-1]), dimension, edge, nodes)
    information = Estimate(residual.value + prior + log_mass, residual.error)
    slopes = sde.g2(t) / 2 * torch.tensor(steepness, dtype=torch.float64) - sde.a(t)
    stretched = torch.cat((torch.zeros(1), torch.cumulative_trapezoid(slopes.flip(0), t.flip(0))))  # from the last time
    growth = float(torch.trapezoid(sde.g2(t).flip(0) / 2 * (2 * stretched).exp(), t.flip(0)))
    bound = growth * max(information.value, 0.0)
    return Certificate(residual, prior, log_mass, information, growth, bound, slopes, along.mean(1), t)


def _steepest(score: Score, x: Tensor, t: float) -> float:
    """The largest eigenvalue of the symmetric part of J = ds/dx among the points."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, t)
        rows = [torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    jacobian = torch.stack(rows, 1).double()
    return float(torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).max())


def _nodes(dimension: int, edge: float, nodes: int) -> tuple[Tensor, float]:
    """Nodes of the trapezoidal rule on [-edge, edge]^d, (nodes^d, d), and the volume of a cell."""
    line = torch.linspace(-edge, edge, nodes)
    return torch.cartesian_prod(*[line] * dimension).reshape(-1, dimension), (2 * edge / (nodes - 1)) ** dimension


@torch.no_grad()
def _log_mass(score: Score, t: float, dimension: int, edge: float, nodes: int) -> float:
    """log of the integral of exp(phi(x, t)); what is at the edge counts whole, as it should not matter."""
    x, cell = _nodes(dimension, edge, nodes)
    return float(score.potential(x, torch.full((len(x),), t)).double().logsumexp(0)) + math.log(cell)


@torch.no_grad()
def _prior_term(score: Score, dimension: int, nodes: int) -> float:
    """E[log prior(x) - phi(x, T)] over the prior."""
    x, cell = _nodes(dimension, 8 * score.sde.prior_std, nodes)
    log_prior = score.sde.prior_log_prob(x)
    difference = log_prior - score.potential(x, torch.full((len(x),), score.sde.T)).double()
    return float((log_prior.exp() * difference).sum()) * cell
