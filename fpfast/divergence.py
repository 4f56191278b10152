"""Estimators of what second derivatives say about a score: its divergence, and its Fokker-Planck residual. ESTIMATORS

At points x of shape (B, ...) and times t an estimator gives independent estimates, one for each random probe v with
E[v v^T] = I, of

    div s = tr J,  J = ds/dx,                                                 shape (B,)
    eps = d_t s + a s + J^T w - g^2/2 grad(div s),  w = a x - g^2 s,          shape of x

(the second is the residual of the score's Fokker-Planck equation; Lai et al., "FP-Diffusion", arXiv 2210.04296, eq. 9).
The first three below differentiate backwards and are unbiased for every score. The others look along a curve through x,

    c(r) = s(x + r g v - r^2 w, t - r^2),    c''(0) = g^2 D^2 s[v, v] - 2 (D s[w] + d_t s),

so that eps = a s - E c''(0) / 2 for a score that is a gradient; for others it differs from the residual by
(J - J^T) w + g^2/2 (grad div s - Laplacian s). At r = +-sqrt(h), x + r g v - r^2 w is an antithetic pair of reverse
Euler-Maruyama steps: the sampler's own moves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast import noise, pair_ops
from fpfast.errors import bad, flag, integer, key
from fpfast.fused import EXACT_DIVERGENCE, Fused
from fpfast.points import DISTRIBUTIONS, Points, Probes, dot
from fpfast.score import Score
from fpfast.sde import per_sample

SKETCH = 3  # Hutch++ spends a third of its products on the range of J, a third on the trace there, a third on the rest


class Estimated(NamedTuple):
    """A value for each point, its standard error over the probes, and the estimator that gave it."""

    value: Tensor
    error: Tensor | None  # None where the value is exact, or comes from a single probe
    estimator: str


class Estimator(ABC):
    """One row of the table. Both methods give independent estimates, one for each probe."""

    fewest = 1  # probes

    @abstractmethod
    def divergence(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        """Estimates of div s, (B,)."""

    @abstractmethod
    def residual(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        """Estimates of the score's residual, shape of x."""


class Backward(Estimator):
    """The residual as d_t s - grad U, U = g^2/2 (div s + |s|^2) - a x.s, the gradient of an estimate of div s."""

    @abstractmethod
    def traces(self, at: Points, probes: Probes, further: bool) -> Iterator[Tensor]:
        """Estimates of div s, with a graph to x where it is needed further."""

    def divergence(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        return _made_with_grad(at, self.traces(at, probes, False))

    def residual(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        return _made_with_grad(at, self.residuals(at, probes))

    def residuals(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        for u in self.rates(at, probes):
            yield at.d_t - at.backward(u, torch.ones_like(u))

    def rates(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        """U, (B,), with a graph to x: the rate at which the equation says log p changes, but for a d."""
        a, g2 = at.a.flatten(), at.g2.flatten()
        own = g2 / 2 * dot(at.s, at.s) - a * dot(at.x, at.s)
        for trace in self.traces(at, probes, True):
            yield g2 / 2 * trace + own


def _made_with_grad(at: Points, items: Iterator[Tensor]) -> Iterator[Tensor]:
    """The items, each made with gradients enabled; between them the caller's mode is the caller's."""
    while True:
        with torch.enable_grad():
            item = next(items, None)
        if item is None:
            return
        yield item if at.graph else item.detach()


class Exact(Backward):
    """d backward passes, one for each coordinate; one call of the fused engine where it can answer."""

    def traces(self, at: Points, probes: Probes, further: bool) -> Iterator[Tensor]:
        if not further and not at.graph and (fused := _fused(at)) is not None:
            yield fused
            return
        total = torch.zeros(len(at.x), dtype=at.x.dtype, device=at.x.device)
        for unit in at.by_coordinate():
            total = total + dot(at.backward(at.s, unit, further), unit)
        yield total


def fuses(score: Score, x: Tensor, t: Tensor) -> bool:
    """If the fused engine has the exact divergence of a score at x and t."""
    net = score.net
    if type(score) is not Score or not isinstance(net, Fused) or score.guidance is not None:
        return False
    if net.dimension > EXACT_DIVERGENCE or x.ndim != 2:
        return False
    return net.serves(x, t)


def _fused(at: Points) -> Tensor | None:
    net, score = at.score.net, at.score
    x, t = at.x.detach(), at.t.detach()
    with torch.no_grad():
        if not isinstance(net, Fused) or not fuses(score, x, t):
            return None
        p, q = (per_sample(c, t) for c in score.affine(t.double()))
        return p * x.shape[1] + q * net.divergence(x, t, potential=score.predicts == "potential")


class Hutchinson(Backward):
    """v^T J v, one backward pass a probe (Hutchinson 1990; for scores Song et al., arXiv 2011.13456, eq. 40).

    Its variance is 2 |(J + J^T)/2|_F^2 with normal probes, and less the diagonal's share with Rademacher's.
    """

    def traces(self, at: Points, probes: Probes, further: bool) -> Iterator[Tensor]:
        for number in probes.numbers:
            product = at.backward(at.s, probes.draw(number), further)
            yield pair_ops.probe_dot(product.contiguous(), **probes.key(number))


class HutchPP(Backward):
    """Hutch++ (Meyer et al., arXiv 2010.09649): exact on the range Q of J^T S, Hutchinson's on what is left.

        tr(Q^T J Q) + v^T (I - Q Q^T) J (I - Q Q^T) v

    Of K probes K // 3 are the columns of S, as many products make the first trace, the others are v. Q does not depend
    on v, so the estimate and, with Q held fixed, its gradient are unbiased. Where J is nearly of low rank the variance
    falls with 1 / K^2.
    """

    fewest = SKETCH

    def traces(self, at: Points, probes: Probes, further: bool) -> Iterator[Tensor]:
        sketch = min(probes.count // SKETCH, at.dimension)
        columns = [at.backward(at.s, probes.draw(k)).detach().flatten(1) for k in range(sketch)]
        q, _ = torch.linalg.qr(torch.stack(columns, dim=2))  # [B, d, sketch]
        within = torch.zeros(len(at.x), dtype=at.x.dtype, device=at.x.device)
        for column in q.unbind(2):
            v = column.reshape(at.x.shape)
            within = within + dot(at.backward(at.s, v, further), v)
        for k in range(2 * sketch, probes.count):
            v = probes.draw(k).flatten(1)
            v = (v - (q @ (q.mT @ v[:, :, None]))[:, :, 0]).reshape(at.x.shape)
            yield within + dot(at.backward(at.s, v, further), v)


class Taylor(Estimator):
    """c'(0) and c''(0) by forward mode: one pass of second-order Taylor mode a probe, unbiased for a gradient score.

    Needs a network that forward mode goes through twice (torch.func.jvp); fused attention, for one, is not.
    """

    def divergence(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        s = at.score.function()
        _ = at.value  # whose output is checked, as the function's is not
        for v in probes:
            yield dot(_forward(at, lambda r, v=v: s(at.x + r * v, at.t), 1), v)  # type: ignore[misc]

    def residual(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        s, g, w = at.score.function(), at.g2.sqrt(), at.w
        for v in probes:
            second = _forward(at, lambda r, v=v: s(at.x + r * g * v - r * r * w, at.t - r * r), 2)  # type: ignore[misc]
            yield at.a * at.value - second / 2


def _forward(at: Points, curve: Callable[[Tensor], Tensor], order: int) -> Tensor:
    """The first or second derivative of a curve at 0."""

    def derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda r: torch.func.jvp(f, (r,), (torch.ones_like(r),))[1]

    for _ in range(order):
        curve = derivative(curve)
    try:
        with torch.set_grad_enabled(at.graph):
            found = curve(torch.zeros((), dtype=at.x.dtype, device=at.x.device))
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(
            f"estimator 'taylor': forward mode does not go through the network ({str(error).splitlines()[0]}); "
            "take 'hutchinson', 'martingale' or 'finite_difference'"
        ) from error
    return found if at.graph else found.detach()


class FiniteDifference(Estimator):
    """Central differences of the score along v, and along (w, 1) in space and time; no derivative of the network.

    Times stay in [t_min, T], where the difference in time is one-sided. See :func:`_step` for the steps.
    """

    def divergence(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        t, step = at.t.detach(), (at.g2 * _step(at, 1.0, 2 / 3)).sqrt()
        for v in probes:
            yield dot(at.at(at.x + step * v, t) - at.at(at.x - step * v, t), v / (2 * step))

    def residual(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        h, w, t, sde = _step(at, 2.0, 1 / 3), at.w, at.t.detach(), at.score.sde
        late = torch.maximum(t + h.flatten(), _beside(t, math.inf)).clamp(max=sde.T)
        early = torch.minimum(t - h.flatten(), _beside(t, -math.inf)).clamp(min=sde.t_min)
        ends = [at.at(at.x + per_sample(end - t, w) * w, end) for end in (late, early)]
        along = (ends[0] - ends[1]) / per_sample(late - early, w)
        for v in probes:
            step = (at.g2 * h).sqrt() * v
            second = at.at(at.x + step, t) + at.at(at.x - step, t) - 2 * at.value
            yield along + at.a * at.value - second / (2 * h)


class _Pair(NamedTuple):
    h: Tensor  # (B,), as the others
    a: Tensor
    spread: Tensor  # g sqrt(h)
    middle: Tensor  # s(x, t)
    ends: Tensor  # s(x+, t - h) and s(x-, t - h), [2, B, ...]
    number: int  # of the probe

    @property
    def coef(self) -> Tensor:
        """(a, 1 / h), for :func:`fpfast.pair_ops.defect`."""
        return torch.stack((self.a, 1 / self.h), dim=1)


class Martingale(Estimator):
    """Two reverse Euler-Maruyama steps in place of derivatives: eps = [s - (c(sqrt h) + c(-sqrt h)) / 2] / h + a s.

    Bias O(h). One call of the network on twice the points a probe, and nothing of higher order when it is trained. The
    divergence is v.(c(sqrt h) - c(-sqrt h)) / (2 g sqrt h). Time never goes below t_min: where t - h would, the point
    is taken at t_min + h. See :func:`_step` for the step.
    """

    def divergence(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        for pair in self.pairs(at, probes, _step(at, 1.0, 2 / 3)):
            difference = pair_ops.probe_dot(pair.ends[0] - pair.ends[1], **probes.key(pair.number))
            yield difference / (2 * pair.spread)

    def residual(self, at: Points, probes: Probes) -> Iterator[Tensor]:
        for pair in self.pairs(at, probes, _step(at, 4.0, 1 / 2)):
            yield pair_ops.defect(pair.middle, pair.ends, pair.coef)[0]

    def squares(self, at: Points, probes: Probes) -> Tensor:
        """|eps|^2 of each point, (B,): the product of two estimates, or the square of one, which is too large."""
        first, *others = self.pairs(at, probes, _step(at, 4.0, 1 / 2), probes.count)
        if not others:
            return pair_ops.defect(first.middle, first.ends, first.coef)[1]
        return pair_ops.defect_product(first.middle, first.ends, others[0].ends, first.coef)

    def pairs(self, at: Points, probes: Probes, step: Tensor, together: int = 1) -> Iterator[_Pair]:
        """One for each probe; ``together``: of so many the network's values come from one call."""
        t, sde, step = at.t.detach(), at.score.sde, step.flatten()
        start = torch.maximum(t, sde.t_min + step)
        end = torch.minimum(start - step, _beside(start, -math.inf))
        h = (start - end).double()  # of the rounded times
        a, g2 = (c(start.double()) for c in (sde.a, sde.g2))
        middle = at.value if torch.equal(start, t) else at.at(at.x, start)
        x, y = at.x.contiguous(), middle.contiguous()
        coef = torch.stack((1 - h * a, h * g2, (g2 * h).sqrt()), dim=1).to(x.dtype)
        for first in range(0, probes.count, together):
            some = probes.some(first, min(together, probes.count - first)).numbers
            points = torch.stack([pair_ops.pair(x, y, coef, **probes.key(number)) for number in some])
            ends = at.at(points.flatten(0, 2), end.repeat(2 * len(some))).reshape(points.shape)
            for number, found in zip(some, ends.unbind(), strict=True):
                yield _Pair(h.to(x.dtype), a.to(x.dtype), coef[:, 2], y, found, number)


def _beside(t: Tensor, where: float) -> Tensor:
    """The next number of t's dtype towards ``where``."""
    return torch.nextafter(t, torch.full_like(t, where))


def _step(at: Points, factor: float, power: float) -> Tensor:
    """h of each point, shaped to multiply x: ``at.h``, or factor epsilon^power std^2 / g^2.

    std^2 / g^2 is the time in which the process diffuses by std; for h = c std^2 / g^2 it diffuses by sqrt(c) std. Bias
    grows with a power of c and rounding with epsilon over another, which settles the power of ``at.epsilon``. The
    factors are near the best for Gaussian mixtures under all six SDEs, d = 2 and 64, in float32.
    """
    sde, t = at.score.sde, at.t.detach().double()
    if t.numel() and not (float(t.min()) >= sde.t_min * (1 - 1e-6) and float(t.max()) <= sde.T * (1 + 1e-6)):
        limits = f"[{sde.t_min}, {sde.T}]"
        raise bad("t", f"times in {limits} for differences in time", f"[{float(t.min())}, {float(t.max())}]")
    if at.h is not None:
        return torch.full_like(at.a, at.h)
    return per_sample(factor * at.epsilon**power * sde.std(t) ** 2 / sde.g2(t), at.x)


ESTIMATORS: dict[str, Estimator] = {
    "exact": Exact(),
    "hutchinson": Hutchinson(),
    "hutchpp": HutchPP(),
    "taylor": Taylor(),
    "finite_difference": FiniteDifference(),
    "martingale": Martingale(),
}


MOST_PROBES = 1 << 32  # the bits of a draw's number


def average(name: str, estimates: Iterator[Tensor]) -> Estimated:
    """The mean and its standard error, by one pass over the estimates (Welford's update)."""
    mean = next(estimates)
    count, square = 1, torch.zeros_like(mean, requires_grad=False)
    for estimate in estimates:
        count += 1
        change = estimate - mean
        mean = mean + change / count
        square += (change * (estimate - mean)).detach()
    return Estimated(mean, (square / (count * (count - 1))).sqrt() if count > 1 else None, name)


def make_probes(name: str, at: Points, probes: int, seed: noise.Seed, distribution: str) -> Probes:
    count = integer("probes", probes, ESTIMATORS[name].fewest, MOST_PROBES)
    seeds = noise.seed_tensor(seed, len(at.x))
    return Probes(at.x, count, seeds, key("distribution", distribution, DISTRIBUTIONS))


@torch.inference_mode(False)
def divergence(
    score: Score,
    x: Tensor,
    t: float | Tensor,
    *,
    estimator: str = "auto",
    probes: int = 1,
    seed: noise.Seed = None,
    distribution: str = "rademacher",
    create_graph: bool = False,
    h: float | None = None,
) -> Estimated:
    """div s(x, t) = sum_i d s_i / d x_i, shape (B,).

    Args:
        score: an :class:`fpfast.Score`; of a potential the divergence is the Laplacian.
        x: (B, ...), float32 or float64.
        t: a number or (B,), in the SDE's units.
        estimator: a key of ``ESTIMATORS``, or "auto": "exact" for at most 16 dimensions, else "hutchinson", or
            "finite_difference" where autograd does not go through the network. The result says which it was.
        probes: K random probes; the standard error needs two. "hutchpp" needs three.
        seed: as for :func:`fpfast.sample`; probe k is draw k of the stream "probes".
        distribution: of the probes, "rademacher" or "normal".
        create_graph: keep a graph to the network's parameters (and to x, if it requires gradients).
        h: the step in time of "martingale" and "finite_difference"; default: by the dtype.

    Returns:
        (value, error, estimator).

    Raises ValueError for arguments out of range, RuntimeError where a named estimator cannot differentiate the network.
    """
    at = Points(score, x, t, flag("create_graph", create_graph), h)
    name = key("estimator", estimator, ("auto", *ESTIMATORS))
    if name == "auto":
        name = "exact" if at.dimension <= EXACT_DIVERGENCE else "hutchinson"
        if not isinstance(score.net, Fused) and not at.differentiable:
            name = "finite_difference"
    drawn = make_probes(name, at, probes, seed, distribution)
    return average(name, ESTIMATORS[name].divergence(at, drawn))
