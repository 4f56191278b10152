"""What a score is trained with: denoising score matching, and the Fokker-Planck regulariser.              WEIGHTINGS"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Literal, cast, overload

import torch
from torch import Tensor

from fpfast import fused_residual, noise
from fpfast.divergence import ESTIMATORS, MOST_PROBES, Backward, Martingale, make_probes
from fpfast.errors import bad, brief, dense, flag, instance, integer, key, real
from fpfast.points import DISTRIBUTIONS, Points, check_step
from fpfast.residual import FORMS, pick
from fpfast.score import Score
from fpfast.sde import SDE, as_float64, per_sample

# lambda(t), the weight of a time in a loss
WEIGHTINGS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "uniform": lambda sde, t: torch.ones_like(t),
    "likelihood": lambda sde, t: sde.g2(t),
    "noise": lambda sde, t: sde.std(t) ** 2,
}


WITH_VALUE = ("martingale", "finite_difference")  # estimators that take s(x, t) from outside


def random_times(sde: SDE, n: int, seed: noise.Seed = None, device: torch.device | str = "cpu") -> Tensor:
    """n times, uniform on [t_min, T], float64. Stream "times" of the seed."""
    instance("sde", sde, SDE, "an SDE such as fpfast.VP()")
    n = integer("n", n, 0, 2**48)
    u = noise.uniform(seed, (n, 1), stream="times", device=device)[:, 0].double()
    return sde.t_min + (sde.T - sde.t_min) * u


def perturb(sde: SDE, x0: Tensor, t: Tensor, seed: noise.Seed = None) -> tuple[Tensor, Tensor]:
    """(x, z): x = alpha(t) x0 + std(t) z with z ~ N(0, I) from the stream "data" of the seed. t is (B,)."""
    instance("sde", sde, SDE, "an SDE such as fpfast.VP()")
    if not dense(x0) or not x0.is_floating_point():
        raise bad("x0", "floating-point values of shape (B, ...)", brief(x0))
    t = as_float64(t, x0.device)
    if t.ndim and t.shape != x0.shape[:1]:
        raise bad("t", f"a number or shape ({len(x0)},)", tuple(t.shape))
    z = noise.normal(seed, x0.shape, stream="data", device=x0.device).to(x0.dtype)
    alpha, std = (per_sample(c, x0) for c in sde.marginal(t))
    return alpha * x0 + std * z, z


def box(shape: tuple[int, ...], half_width: float, seed: noise.Seed = None) -> Tensor:
    """Points uniform on [-half_width, half_width]^d, of a shape (B, ...), float32. Stream "data" of the seed."""
    half_width = real("half_width", half_width, "a positive number", low=math.ulp(0.0))
    return (2 * noise.uniform(seed, shape, stream="data") - 1) * half_width


@overload
def dsm(
    score: Score,
    x0: Tensor,
    *,
    weighting: str = ...,
    t: Tensor | None = ...,
    seed: noise.Seed = ...,
    return_points: Literal[False] = ...,
) -> Tensor: ...


@overload
def dsm(
    score: Score,
    x0: Tensor,
    *,
    weighting: str = ...,
    t: Tensor | None = ...,
    seed: noise.Seed = ...,
    return_points: Literal[True],
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def dsm(
    score: Score,
    x0: Tensor,
    *,
    weighting: str = "uniform",
    t: Tensor | None = None,
    seed: noise.Seed = None,
    return_points: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Denoising score matching: the mean over the batch of lambda(t) |s(x_t, t) - grad log p(x_t | x0)|^2, a scalar.

    x_t = alpha x0 + std z, so grad log p(x_t | x0) = -z / std (Vincent 2011; Song et al., arXiv 2011.13456, eq. 7).

    Args:
        score: its network is trained through the graph of the loss.
        x0: data, (B, ...), float32 or float64.
        weighting: lambda = 1 ("uniform"), g^2 ("likelihood"; Song et al., arXiv 2101.09258), std^2 ("noise").
        t: times (B,), default uniform on [t_min, T].
        seed: of times and noise; give each step its own, or None for torch's default generator.
        return_points: return (loss, x_t, t, s(x_t, t)): the arguments of :func:`fp_regulariser` at the same points.

    Raises ValueError for unknown names and times that do not fit.
    """
    weight = WEIGHTINGS[key("weighting", weighting, WEIGHTINGS)]
    if not dense(x0) or x0.ndim < 2 or len(x0) == 0 or x0.dtype not in (torch.float32, torch.float64):
        raise bad("x0", "float32 or float64 of shape (B, ...), B > 0", brief(x0))
    flag("return_points", return_points)
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    sde = score.sde
    seeds = noise.seed_tensor(seed, len(x0))
    times = random_times(sde, len(x0), seeds, x0.device) if t is None else score.times(x0, t)
    x, z = perturb(sde, x0, times, seeds)
    # Weighted before they are summed: lambda / std^2 may be moderate where 1 / std^2 is not.
    std = sde.std(times)
    if not bool((std > 0).all()):
        raise bad("t", "times where std(t) > 0: at others the target is infinite", float(times.min()))
    scale = per_sample(weight(sde, times).sqrt() / std, x)
    s = score(x, times)
    loss = (scale * (per_sample(std, x) * s + z)).square().flatten(1).sum(1).mean()
    return (loss, x, times, s) if return_points else loss


def fp_regulariser(
    score: Score,
    x: Tensor,
    t: float | Tensor,
    *,
    form: str = "score",
    estimator: str = "auto",
    unbiased: bool = True,
    fraction: float = 1.0,
    weighting: str = "uniform",
    probes: int = 1,
    seed: noise.Seed = None,
    distribution: str = "rademacher",
    h: float | None = None,
    value: Tensor | None = None,
) -> Tensor:
    """The mean over the points of lambda(t) |eps|^2, eps the Fokker-Planck residual; a scalar with a graph.

    The square of a noisy estimate is too large by the estimate's variance, and training would lower that variance in
    place of the residual. ``unbiased``: the product r1.r2 of two estimates with probes of their own, whose expectation
    is |eps|^2 up to the bias of the estimator itself; it may be negative. Else |r|^2, for half the price. Of the exact
    estimator they are the same.

    Args:
        x, t: points (B, ...) and times, such as of :func:`perturb` or :func:`box`.
        form, estimator, distribution, h: as for :func:`fpfast.fp_residual`.
        fraction: of the points that is used, in (0, 1]: the first ones, at least one.
        weighting: as for :func:`dsm`.
        probes: of each estimate.
        seed: of the probes; give each step its own, or None for torch's default generator.
        value: s(x, t) with its graph, where it is known, as from :func:`dsm`: "martingale" and "finite_difference" then
            evaluate the network once less ("martingale" where no time is so near t_min that it moves it). Others do not
            take it. Give ``h`` for a network whose outputs have 16 bits, since the value does not show that.

    Raises ValueError for arguments out of range, RuntimeError where a named estimator cannot differentiate the network.
    """
    weight = WEIGHTINGS[key("weighting", weighting, WEIGHTINGS)]
    fraction = real("fraction", fraction, "a number in (0, 1]", torch.finfo(torch.float64).tiny, 1)
    if not dense(x) or len(x) == 0:
        raise bad("x", "at least one point", brief(x))
    count = max(1, round(fraction * len(x)))
    seeds = noise.seed_tensor(seed, len(x))
    t = as_float64(t, x.device)
    if t.ndim and t.shape != x.shape[:1]:
        raise bad("t", f"a number or shape ({len(x)},)", tuple(t.shape))
    whole = x.shape
    x, t, seeds = x[:count], t[:count] if t.ndim else t, seeds[:count] if seeds.ndim else seeds
    form, unbiased = key("form", form, FORMS), flag("unbiased", unbiased)
    key("estimator", estimator, ("auto", *ESTIMATORS))
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    key("distribution", distribution, DISTRIBUTIONS)
    if value is not None:
        if estimator not in WITH_VALUE:
            raise bad("value", f"None for the estimator {estimator!r}; one of {', '.join(WITH_VALUE)} takes it", "one")
        if not isinstance(value, Tensor) or value.shape != whole or value.dtype != x.dtype:
            raise bad("value", f"{x.dtype} of shape {tuple(whole)} as x", getattr(value, "shape", type(value).__name__))
        value = value[:count]
    check_step(score, h)
    most = MOST_PROBES // 2  # of each of two estimates
    engine = fused_residual.serve(score, x, form, "exact" if estimator == "auto" else estimator, True)
    if engine is not None:
        given = None if weighting == "uniform" else weight
        probes = integer("probes", probes, 1, most)
        return engine.regulariser(x, t, given, unbiased, probes, seeds, distribution)
    at = Points(score, x, score.times(x, t), True, h, value)
    name = pick(estimator, form, at)
    both = 2 if unbiased and name != "exact" else 1
    probes = integer("probes", probes, ESTIMATORS[name].fewest, most)
    drawn = make_probes(name, at, both * probes, seeds, distribution)
    chosen = ESTIMATORS[name]
    if isinstance(chosen, Martingale) and form == "score" and probes == 1:
        squares = chosen.squares(at, drawn)
        return (weight(score.sde, at.t.detach().double()).to(squares.dtype) * squares).mean()
    estimates = FORMS[form](chosen, at, drawn)
    if both == 2:
        found = list(estimates)
        half = len(found) // 2
        product = _mean(found[:half]) * _mean(found[half:])
    else:
        product = _mean(list(islice(estimates, probes))).square()
    squares = product.flatten(1).sum(1) if product.ndim > 1 else product
    return (weight(score.sde, at.t.detach().double()).to(squares.dtype) * squares).mean()


def fp_diffusion(
    score: Score,
    x: Tensor,
    t: float | Tensor,
    *,
    alpha: float = 0.15,
    beta: float = 0.01,
    m: float = 2.0,
    estimator: str = "hutchinson",
    seed: noise.Seed = None,
) -> Tensor:
    """The regulariser of FP-Diffusion (Lai et al., arXiv 2210.04296, and the authors' code), a scalar with a graph:

        alpha mean_b g^2 |eps_b|_2^m / d^m  +  beta |U|_2,    U_b = g^2/2 (div s + |s|^2) - a x.s,

    eps the residual of the score's equation; the second norm is over the batch. Both come from one estimate of div s
    ("hutchinson" with one probe in their code; "hutchpp" takes three), so for m = 2 the first part is too large by the
    estimate's variance; :func:`fp_regulariser` is not. Their code takes d_t s as a difference, this one differentiates.

    Raises ValueError for arguments out of range, RuntimeError where the network cannot be differentiated twice.
    """
    backward = [name for name, one in ESTIMATORS.items() if isinstance(one, Backward)]
    chosen = cast(Backward, ESTIMATORS[key("estimator", estimator, backward)])
    alpha, beta = (
        real(name, value, "a number of at least 0", low=0) for name, value in (("alpha", alpha), ("beta", beta))
    )
    m = real("m", m, "a power of at least 1", low=1)
    at = Points(score, x, t, True)
    drawn = make_probes(estimator, at, chosen.fewest, seed, "rademacher")
    with torch.enable_grad():
        u = next(chosen.rates(at, drawn))
        eps = at.d_t - at.backward(u, torch.ones_like(u))
        vector = at.g2.flatten() * (eps.flatten(1).norm(dim=1) / at.dimension) ** m
        return alpha * vector.mean() + beta * u.norm()


def _mean(estimates: list[Tensor]) -> Tensor:
    return torch.stack(estimates).mean(0)
