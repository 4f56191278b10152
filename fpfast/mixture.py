"""A Gaussian mixture carried through any SDE in closed form: the exact score to test samplers and residuals against."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast.errors import bad, tensor
from fpfast.score import Score
from fpfast.sde import SDE, Time, as_float64


class _Terms(NamedTuple):
    """Per component k, in the eigenbasis of its covariance; v is the variance and y the deviation, per direction."""

    y: Tensor  # [B, K, d]
    v: Tensor  # [B, K, d]
    y_t: Tensor  # d/dt
    v_t: Tensor
    log_density: Tensor  # [B, K], log w_k N_k
    share: Tensor  # [B, K], softmax of it


class GaussianMixture:
    """sum_k w_k N(m_k, C_k) on R^d; X_t then has the components N(alpha m_k, alpha^2 C_k + std^2 I).

    Args:
        means: (K, d).
        covariances: (K, d, d), or (K,) variances for C_k = c_k I. Positive semi-definite.
        weights: (K,), positive; normalised to sum to 1. Default: equal.

    Methods take x of shape (B, d) and t a number or (B,), and compute in x's dtype. Where all covariances are
    multiples of I every operation is elementwise, so a sample's score does not depend on its batch.
    Raises ValueError for shapes that do not fit and values that are not finite, positive or semi-definite.
    """

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        means = tensor("means", means, "values of shape (K, d)", dtype=torch.float64)
        if means.ndim != 2 or not bool(torch.isfinite(means).all()):
            raise bad("means", "finite values of shape (K, d)", tuple(means.shape))
        k, d = means.shape
        covariances = tensor("covariances", covariances, "variances or matrices", dtype=torch.float64)
        if tuple(covariances.shape) not in ((k,), (k, d, d)) or not bool(torch.isfinite(covariances).all()):
            raise bad("covariances", f"finite values of shape ({k},) or ({k}, {d}, {d})", tuple(covariances.shape))
        weights = tensor("weights", [1.0] * k if weights is None else weights, f"{k} numbers", dtype=torch.float64)
        if tuple(weights.shape) != (k,) or not bool((weights > 0).all() and torch.isfinite(weights).all()):
            raise bad("weights", f"{k} positive finite values", weights.tolist())
        if k == 0 or d == 0:
            raise bad("means", "at least one component and one dimension", (k, d))
        if covariances.ndim == 3 and not torch.allclose(covariances, covariances.mT):
            raise bad("covariances", "symmetric matrices", "one that is not")
        self.means, self.weights = means, weights / weights.sum()
        self.basis: Tensor | None = None  # columns are eigenvectors; None: the identity
        if covariances.ndim == 1:
            self.variances = covariances[:, None].expand(k, d)
        else:
            self.variances, self.basis = torch.linalg.eigh(covariances)
        if bool((self.variances < -1e-12 * self.variances.abs().amax()).any()):
            raise bad("covariances", "positive semi-definite matrices", f"an eigenvalue {float(self.variances.min())}")
        self.variances = self.variances.clamp(min=0)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        deviation = self.means - self.mean
        basis = torch.eye(self.means.shape[1], dtype=torch.float64) if self.basis is None else self.basis
        within = (basis * self.variances[:, None, :]) @ basis.mT
        return torch.einsum("k,kij->ij", self.weights, within + deviation[:, :, None] * deviation[:, None, :])

    def moments(self, sde: SDE, t: float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of X_t, float64."""
        alpha, std = sde.marginal(t)
        return alpha * self.mean, alpha**2 * self.covariance + std**2 * torch.eye(self.means.shape[1])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples of X_0, (n, d), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator) * self.variances[k].sqrt()
        return self.means[k] + (z if self.basis is None else (self.basis[k] @ z[:, :, None])[:, :, 0])

    def _terms(self, x: Tensor, sde: SDE, t: Time) -> _Terms:
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise bad("x", f"shape (B, {self.means.shape[1]})", tuple(x.shape))

        def to(c: Tensor) -> Tensor:
            return c.to(x)

        t = as_float64(t).to(x.device).reshape(-1, 1, 1)
        alpha, std, a, g2 = sde.alpha(t), sde.std(t), sde.a(t), sde.g2(t)
        means, variances = self.means.to(x.device), self.variances.to(x.device)
        v = to(alpha**2 * variances + std**2)
        v_t = to(2 * a * alpha**2 * variances + 2 * a * std**2 + g2)
        y, y_t = x[:, None, :] - to(alpha * means), to(-a * alpha * means)
        if self.basis is not None:
            basis = to(self.basis)
            y, y_t = torch.einsum("kij,bki->bkj", basis, y), torch.einsum("kij,bki->bkj", basis, y_t)
        log_density = to(self.weights).log() - 0.5 * (y * y / v + (2 * math.pi * v).log()).sum(-1)
        return _Terms(y, v, y_t, v_t, log_density, log_density.softmax(-1))

    def _back(self, per_direction: Tensor) -> Tensor:
        """From each component's eigenbasis to coordinates, [B, K, d]."""
        if self.basis is None:
            return per_direction
        return torch.einsum("kij,bkj->bki", self.basis.to(per_direction), per_direction)

    def log_prob(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """log p_t(x), (B,)."""
        return self._terms(x, sde, t).log_density.logsumexp(-1)

    def gradient(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """The score grad log p_t(x), (B, d)."""
        m = self._terms(x, sde, t)
        return -(m.share[..., None] * self._back(m.y / m.v)).sum(1)

    def divergence(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """div grad log p_t(x), (B,): sum_k r_k (div s_k + |s_k|^2) - |s|^2."""
        m = self._terms(x, sde, t)
        within = ((m.y / m.v) ** 2 - 1 / m.v).sum(-1)
        return (m.share * within).sum(-1) - self.gradient(x, sde, t).square().sum(-1)

    def dt_log_prob(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """d/dt log p_t(x) at fixed x, (B,)."""
        m = self._terms(x, sde, t)
        return (m.share * _dt_log_component(m)).sum(-1)

    def dt_score(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """d/dt grad log p_t(x) at fixed x, (B, d): sum_k r_k ((l_k' - l') s_k + s_k')."""
        m = self._terms(x, sde, t)
        rate = _dt_log_component(m)
        rate = rate - (m.share * rate).sum(-1, keepdim=True)
        scores = self._back(m.y / m.v)
        scores_t = self._back(m.y_t / m.v - m.y * m.v_t / m.v**2)
        return -(m.share[..., None] * (rate[..., None] * scores + scores_t)).sum(1)

    def score(self, sde: SDE) -> Score:
        """The exact score under ``sde``, ready to be sampled."""
        return Score(lambda x, t: self.gradient(x, sde, t), sde, predicts="score")


def _dt_log_component(m: _Terms) -> Tensor:
    """d/dt log N_k, [B, K]."""
    return -0.5 * (2 * m.y * m.y_t / m.v - (m.y / m.v) ** 2 * m.v_t + m.v_t / m.v).sum(-1)
