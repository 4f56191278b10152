"""Forward SDEs dX = a(t) X dt + g(t) dW: an SDE is its coefficients.                                           SDES

Every SDE here is linear, so X_t given X_0 = x is N(alpha(t) x, std(t)^2 I) with

    d alpha / dt = a alpha,        d std^2 / dt = 2 a std^2 + g^2.

All functions of t take a float or a tensor and return float64 on t's device, element by element.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpfast import noise
from fpfast.errors import bad, brief, dense, key, real, tensor, unknown

Time = float | Tensor


def as_float64(t: Time, device: torch.device | None = None) -> Tensor:
    return tensor("t", t, "a number or a tensor of numbers", dtype=torch.float64, device=device)


def per_sample(c: Tensor, x: Tensor) -> Tensor:
    """A scalar, or one coefficient per sample, shaped and typed to multiply x of shape (B, ...)."""
    return c.to(x.dtype).reshape(c.shape + (1,) * (x.ndim - c.ndim if c.ndim else 0))


class SDE(ABC):
    """A linear SDE on [0, T]. ``t_min`` is where named time grids end; scores may be singular at t = 0.

    Subclasses are frozen dataclasses whose fields are positive numbers.
    """

    T: float = 1.0
    t_min: float = 1e-3
    times: str = "uniform"  # the named grid that suits explicit solvers

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise bad(f"{type(self).__name__}.{name}", "a positive finite number", repr(value))

    @abstractmethod
    def a(self, t: Time) -> Tensor:
        """The drift's coefficient, per unit of time."""

    @abstractmethod
    def g2(self, t: Time) -> Tensor:
        """g(t)^2, variance per unit of time."""

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """The mean of X_t given X_0 = x is alpha(t) x."""

    @abstractmethod
    def std(self, t: Time) -> Tensor:
        """The standard deviation of X_t given X_0."""

    @property
    def prior_std(self) -> float:
        """The prior at T is N(0, prior_std^2 I)."""
        return float(self.std(self.T))

    def marginal(self, t: Time) -> tuple[Tensor, Tensor]:
        """(alpha(t), std(t)): X_t given X_0 = x is N(alpha x, std^2 I)."""
        return self.alpha(t), self.std(t)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """a(t) x for x of shape (B, ...) and t a number or of shape (B,)."""
        if not dense(x) or not x.is_floating_point():
            raise bad("x", "a floating-point tensor (B, ...)", brief(x))
        a = self.a(t).to(x.device)
        if a.shape not in ((), (1,), x.shape[:1]):
            raise bad("t", f"a number or shape ({x.shape[0]},)", tuple(a.shape))
        return per_sample(a, x) * x

    def diffusion(self, t: Time) -> Tensor:
        """g(t)."""
        return self.g2(t).sqrt()

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: noise.Seed = None,
        first_sample: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> Tensor:
        """Samples of the prior at T, of the given shape (samples, ...). Noise: stream "prior", draw 0."""
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
            raise bad("dtype", "a floating-point dtype of 16 bits or more", dtype)
        z = noise.normal(seed, shape, first_sample=first_sample, stream="prior", device=device, backend=backend)
        return z.to(dtype).mul_(self.prior_std)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log of the prior's density at x (B, ...), in nats: -|x|^2 / (2 prior_std^2) - d/2 log(2 pi prior_std^2).

        float64, shape (B,).
        """
        if not dense(x) or x.is_complex():
            raise bad("x", "a tensor of numbers (B, ...)", brief(x))
        x = x.double().flatten(1) if x.ndim > 1 else x.double()[:, None]
        return -((x / self.prior_std) ** 2 + math.log(2 * math.pi * self.prior_std**2)).sum(1) / 2

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha / std), decreasing in t; half of the log signal-to-noise ratio. Infinite where std = 0."""
        return self.alpha(t).log() - self.std(t).log()

    def time_at(self, log_snr: Time) -> Tensor:
        """The t in [0, T] with the given ``log_snr`` (by bisection to the last bits; clamped to the ends)."""
        target = tensor("log_snr", log_snr, "a number or a tensor of numbers", dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.full_like(target, self.T)
        for _ in range(80):
            middle = (low + high) / 2
            later = self.log_snr(middle) > target
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class OU(SDE):
    """Ornstein-Uhlenbeck: dX = -theta X dt + sigma dW. The prior is the stationary N(0, sigma^2 / (2 theta)).

    Deveney et al. (arXiv 2311.15996) use theta = sigma = 1, T = 10.
    """

    times = "quadratic"
    theta: float = 1.0
    sigma: float = 1.0
    T: float = 10.0

    def a(self, t: Time) -> Tensor:
        return torch.full_like(as_float64(t), -self.theta)

    def g2(self, t: Time) -> Tensor:
        return torch.full_like(as_float64(t), self.sigma**2)

    def alpha(self, t: Time) -> Tensor:
        return (-self.theta * as_float64(t)).exp()

    def std(self, t: Time) -> Tensor:
        return (-torch.expm1(-2 * self.theta * as_float64(t))).sqrt() * self.prior_std

    @property
    def prior_std(self) -> float:
        return self.sigma / math.sqrt(2 * self.theta)


@dataclass(frozen=True)
class VP(SDE):
    """Variance preserving: a = -beta/2, g^2 = beta, beta(t) = beta_min + t (beta_max - beta_min), T = 1.

    Song et al., "Score-based generative modeling through SDEs" (arXiv 2011.13456), eq. 11 and 32. Prior N(0, I).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + as_float64(t) * (self.beta_max - self.beta_min)

    def integral(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = as_float64(t)
        return t * self.beta_min + t * t * (0.5 * (self.beta_max - self.beta_min))

    def a(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: Time) -> Tensor:
        return self.beta(t)

    def alpha(self, t: Time) -> Tensor:
        return (-0.5 * self.integral(t)).exp()

    def std(self, t: Time) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP: the drift of VP with g^2 = beta (1 - exp(-2 B)), so std = 1 - exp(-B).

    Song et al. (arXiv 2011.13456), eq. 12 and appendix B. Prior N(0, I).
    """

    def g2(self, t: Time) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self.integral(t))

    def std(self, t: Time) -> Tensor:
        return -torch.expm1(-self.integral(t))


@dataclass(frozen=True)
class VE(SDE):
    """Variance exploding: a = 0, std(t) = sigma_min (sigma_max / sigma_min)^t, g^2 = d std^2 / dt, T = 1.

    Song et al. (arXiv 2011.13456), eq. 9 and 30; as there, X_0 already carries the noise sigma_min. Prior
    N(0, sigma_max^2 I).
    """

    t_min = 1e-5
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise bad("VE.sigma_max", f"more than sigma_min = {self.sigma_min}", self.sigma_max)

    @property
    def log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def a(self, t: Time) -> Tensor:
        return torch.zeros_like(as_float64(t))

    def g2(self, t: Time) -> Tensor:
        return 2 * self.log_ratio * self.std(t) ** 2

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_float64(t))

    def std(self, t: Time) -> Tensor:
        return self.sigma_min * (self.log_ratio * as_float64(t)).exp()


@dataclass(frozen=True)
class EDM(SDE):
    """Karras et al. (arXiv 2206.00364): a = 0, std(t) = t = sigma, g^2 = 2 t, on [0, 80]. Prior N(0, T^2 I)."""

    t_min = 0.002
    times = "karras"
    T: float = 80.0

    def a(self, t: Time) -> Tensor:
        return torch.zeros_like(as_float64(t))

    def g2(self, t: Time) -> Tensor:
        return 2 * as_float64(t)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_float64(t))

    def std(self, t: Time) -> Tensor:
        return as_float64(t).clone()


@dataclass(frozen=True)
class Flow(SDE):
    """Rectified flow: alpha = 1 - t, std = t, hence a = -1 / (1 - t), g^2 = 2 t / (1 - t).

    Liu et al. (arXiv 2209.03003); the SDE with these marginals: Albergo et al. (arXiv 2303.08797). Its coefficients
    are infinite at t = 1, so T, a field, stays below: X_T differs from the prior N(0, I) by (1 - T) times the data.
    The default grid is uniform in log-SNR, since g^2 is largest near T; for the ODE (noise = 0) "uniform" suits too.
    """

    times = "logsnr"
    T: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.T >= 1:
            raise bad("Flow.T", "less than 1, where the drift is infinite", self.T)

    def a(self, t: Time) -> Tensor:
        return -1 / (1 - as_float64(t))

    def g2(self, t: Time) -> Tensor:
        t = as_float64(t)
        return 2 * t / (1 - t)

    def alpha(self, t: Time) -> Tensor:
        return 1 - as_float64(t)

    def std(self, t: Time) -> Tensor:
        return as_float64(t).clone()

    @property
    def prior_std(self) -> float:
        return 1.0


SDES: dict[str, type[SDE]] = {"ou": OU, "vp": VP, "subvp": SubVP, "ve": VE, "edm": EDM, "flow": Flow}


def parse(spec: str, argument: str = "sde") -> SDE:
    """An SDE from "NAME" or "NAME:FIELD=VALUE,...", such as "vp:beta_max=10".

    Raises ValueError, which names ``argument``, for what it does not know.
    """
    name, _, fields = spec.partition(":")
    kind = SDES[key(argument, name, SDES)]
    known = inspect.signature(kind).parameters
    values = {}
    for part in filter(None, fields.split(",")):
        field, _, value = part.partition("=")
        if field not in known:
            raise unknown(f"{argument} {name}", field, known)
        try:
            number: float | str = float(value)
        except ValueError:
            number = value
        values[field] = real(f"{argument} {name}:{field}", number)
    return kind(**values)
