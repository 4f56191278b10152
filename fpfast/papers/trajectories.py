"""Trajectories p_t in closed form: what a linear SDE makes of three distributions in the plane.            REFERENCES

X_t = alpha(t) X_0 + std(t) z, so p_t is the law of alpha X_0, smoothed by a Gaussian. The distributions of X_0 are
mixtures of products of one-dimensional laws, normal or uniform, and so everything is a matter of error functions:
densities, scores, and the mass of every cell of a grid, with which a histogram can be compared without any sample of
the truth. In float64; without NaN far away and at small std.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fpfast.errors import bad
from fpfast.mixture import GaussianMixture
from fpfast.score import Score
from fpfast.sde import SDE, Time, as_float64

LOG_ROOT = 0.5 * math.log(2 * math.pi)
UNDERFLOW = 1e-280  # below it a difference of two erfc has lost digits


def log_interval(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, element by element, Phi the standard normal distribution function."""
    right = a + b > 0  # mirrored, so that both erfc are small where the difference is
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    difference = 0.5 * (torch.erfc(-b * math.sqrt(0.5)) - torch.erfc(-a * math.sqrt(0.5)))
    lost = difference < UNDERFLOW
    found = difference.clamp(min=UNDERFLOW).log()
    if bool(lost.any()):
        low, high = torch.special.log_ndtr(a[lost]), torch.special.log_ndtr(b[lost])
        found = found.masked_scatter(lost, high + (-torch.expm1(low - high)).log())
    return found


def _normal_cells(edges: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mass of N(mean, std^2) between consecutive edges, (K, m) for mean and std (K, 1)."""
    z = (edges - mean) / std
    return log_interval(z[:, :-1], z[:, 1:]).exp()


def _ramp(z: Tensor) -> Tensor:
    """z Phi(z) + phi(z), the integral of Phi."""
    return z * torch.special.ndtr(z) + (-0.5 * z * z - LOG_ROOT).exp()


def _uniform_cells(edges: Tensor, low: Tensor, high: Tensor, std: Tensor) -> Tensor:
    """The same of the uniform law on [low, high], smoothed by N(0, std^2)."""
    first, last = edges[:-1].expand(len(low), -1), edges[1:].expand(len(low), -1)
    right = first + last > low + high  # mirrored, so that nothing large cancels
    first, last = torch.where(right, low + high - last, first), torch.where(right, low + high - first, last)
    parts = [_ramp((x - end) / std) for x, end in ((last, low), (first, low), (last, high), (first, high))]
    return ((parts[0] - parts[1] - parts[2] + parts[3]) * std / (high - low)).clamp(min=0)


def _joined(weights: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The sum over components of products of masses (K, m): rows x_2, columns x_1, as in ``fpfast.metrics``."""
    return torch.einsum("k,kr,kc->rc", weights, rows, columns)


class Blobs(GaussianMixture):
    """A mixture of round Gaussians in the plane. Raises ValueError for other covariances and dimensions."""

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor | None = None) -> None:
        super().__init__(means, variances, weights)
        if self.basis is not None or self.means.shape[1] != 2:
            raise bad("means, variances", "shapes (K, 2) and (K,)", (tuple(self.means.shape), "covariances"))

    def smooth_log_prob(self, x: Tensor, sde: SDE, t: Time, width: float) -> Tensor:
        """log of (p_t * N(0, width^2 I)) at x, (B,)."""
        alpha, std = (c.reshape(-1, 1).to(x) for c in sde.marginal(as_float64(t)))
        variance = alpha**2 * self.variances[:, 0].to(x) + std**2 + width**2  # [B, K]
        square = (x[:, None] - alpha[..., None] * self.means.to(x)).square().sum(-1)
        return (self.weights.to(x).log() - square / (2 * variance) - (2 * math.pi * variance).log()).logsumexp(-1)

    def cells(self, edges: Tensor, sde: SDE, t: float) -> Tensor:
        """Mass of p_t in each cell of the grid edges x edges, (m, m) for m + 1 edges: rows x_2, columns x_1."""
        alpha, std = sde.marginal(t)
        spread = (alpha**2 * self.variances[:, :1] + std**2).sqrt()
        columns, rows = (_normal_cells(edges, alpha * self.means[:, i : i + 1], spread) for i in range(2))
        return _joined(self.weights, columns, rows)


class Boxes:
    """A mixture of uniform laws on boxes [low_k, high_k] in the plane; sides may have length zero (segments, points).

    In each coordinate p_t's component is, with z_low = (x - alpha low) / std and z_high = (x - alpha high) / std,

        (Phi(z_low) - Phi(z_high)) / (alpha (high - low)),      or N(alpha low, std^2) where high = low.

    At t = 0 the score is not Lipschitz: at small t it is about (distance to the box) / std^2 outside and 0 inside.

    Args:
        low, high: (K, 2), low <= high.
        weights: (K,), positive; normalised to sum to 1. Default: equal.

    Methods take x (B, 2), float32 or float64, and t > 0, a number or (B,), as those of
    :class:`fpfast.GaussianMixture`, and compute in float64. Raises ValueError for shapes and values that do not fit.
    """

    def __init__(
        self, low: Sequence[Sequence[float]], high: Sequence[Sequence[float]], weights: Sequence[float] | None = None
    ) -> None:
        self.low, self.high = (torch.as_tensor(c, dtype=torch.float64) for c in (low, high))
        k = len(self.low)
        if (
            tuple(self.low.shape) != (k, 2)
            or self.low.shape != self.high.shape
            or not bool((self.low <= self.high).all())
        ):
            raise bad("low, high", "two of shape (K, 2) with low <= high", (self.low.tolist(), self.high.tolist()))
        self.weights = torch.ones(k, dtype=torch.float64)
        if weights is not None:
            self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if tuple(self.weights.shape) != (k,) or not bool((self.weights > 0).all() and self.weights.isfinite().all()):
            raise bad("weights", f"{k} positive finite values", weights)
        self.weights = self.weights / self.weights.sum()
        self._wide = (self.low < self.high).flatten()  # of the 2 K sides

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples of X_0, (n, 2), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        share = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        return torch.lerp(self.low[k], self.high[k], share)

    def _sides(self, x: Tensor, alpha: Tensor, std: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
        """log density of each side's law and its derivative, (K, 2, B): sums over rows are the fast ones."""
        wide, low, high = self._wide, self.low.reshape(-1, 1), self.high.reshape(-1, 1)
        x = x.double().T.repeat(len(self.low), 1)
        a, b = (x[wide] - alpha * high[wide]) / std, (x[wide] - alpha * low[wide]) / std
        z = (x[~wide] - alpha * low[~wide]) / std
        inside = log_interval(a, b)
        logs, derivative = torch.empty_like(x), torch.empty_like(x) if slopes else None
        logs[wide] = inside - (alpha * (high - low)[wide]).log()
        logs[~wide] = -0.5 * z * z - LOG_ROOT - std.log()
        if derivative is not None:
            inside = inside + LOG_ROOT
            derivative[wide] = ((-0.5 * b * b - inside).exp() - (-0.5 * a * a - inside).exp()) / std
            derivative[~wide] = -z / std
            derivative = derivative.unflatten(0, (-1, 2))
        return logs.unflatten(0, (-1, 2)), derivative

    def _log_parts(self, logs: Tensor) -> Tensor:
        return logs[:, 0] + logs[:, 1] + self.weights.log()[:, None]

    def _log_prob(self, x: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
        return self._log_parts(self._sides(x, alpha, std, slopes=False)[0]).logsumexp(0)

    def log_prob(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """log p_t(x), (B,)."""
        return self._log_prob(x, *sde.marginal(t)).to(x.dtype)

    def smooth_log_prob(self, x: Tensor, sde: SDE, t: Time, width: float) -> Tensor:
        """log of (p_t * N(0, width^2 I)) at x, (B,)."""
        alpha, std = sde.marginal(as_float64(t))
        return self._log_prob(x, alpha, (std**2 + width**2).sqrt()).to(x.dtype)

    def gradient(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """The score grad log p_t(x), (B, 2)."""
        logs, slopes = self._sides(x, *sde.marginal(as_float64(t)), slopes=True)
        assert slopes is not None
        share = self._log_parts(logs).softmax(0)
        return (share[:, None] * slopes).sum(0).T.to(x.dtype)

    def cells(self, edges: Tensor, sde: SDE, t: float) -> Tensor:
        """Mass of p_t in each cell of the grid edges x edges, (m, m) for m + 1 edges: rows x_2, columns x_1."""
        alpha, std = sde.marginal(t)
        low, high = alpha * self.low, alpha * self.high
        sides = []
        for i in range(2):
            masses = _normal_cells(edges, low[:, i : i + 1], std)
            wide = low[:, i] < high[:, i]
            masses[wide] = _uniform_cells(edges, low[wide, i : i + 1], high[wide, i : i + 1], std)
            sides.append(masses)
        return _joined(self.weights, *sides)

    def score(self, sde: SDE) -> Score:
        """The exact score under ``sde``, ready to be sampled."""
        return Score(lambda x, t: self.gradient(x, sde, t), sde)


Trajectory = Blobs | Boxes

REFERENCES: dict[str, Trajectory] = {
    "mixture": Blobs(
        torch.tensor([[1.5, 0.2], [-0.9, 1.3], [-0.6, -1.4]]), torch.tensor([0.08, 0.12, 0.1]), torch.tensor([4, 3, 3])
    ),
    "squares": Boxes([[-1.9, -1.9], [0.5, 0.5]], [[-0.5, -0.5], [1.9, 1.9]]),
    "segment": Boxes([[-1.5, 0.4]], [[1.5, 0.4]]),
}


def at(reference: Trajectory, sde: SDE, t: float, n: int, generator: torch.Generator) -> Tensor:
    """n samples of p_t, (n, 2), float64."""
    alpha, std = sde.marginal(t)
    x = reference.sample(n, generator)
    return alpha * x + std * torch.randn(x.shape, dtype=torch.float64, generator=generator)
