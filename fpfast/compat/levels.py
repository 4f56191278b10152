"""Noise levels as diffusers' configurations name them: the training schedule, and the levels of a run.         LEVELS

A level is sigma = std / alpha for models with alpha^2 + std^2 = 1, and sigma = std = 1 - alpha for flow models. The
model knows it as a timestep, 0 to N - 1, or N sigma for flow models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fpfast.errors import bad, integer, key, real, tensor
from fpfast.times import KARRAS_RHO

Levels = NDArray[np.float64]


def _cosine(count: int, start: float, end: float) -> torch.Tensor:
    """1 - f(k + 1) / f(k), at most 0.999, f(k) = cos^2((k / N + 0.008) / 1.008 pi / 2) (arXiv 2102.09672, eq. 17)."""
    angles = (torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2
    kept = angles.cos() ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999).float()


BETAS: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": lambda count, start, end: torch.linspace(start, end, count),
    "scaled_linear": lambda count, start, end: torch.linspace(start**0.5, end**0.5, count) ** 2,
    "squaredcos_cap_v2": _cosine,
}


def training_betas(config: Any) -> torch.Tensor:
    """The variances that a configuration's training added at each timestep, float32 as diffusers computes them."""
    count = integer("num_train_timesteps", config.num_train_timesteps, 2, 10**7)
    if config.trained_betas is not None:
        expected = f"{count} numbers, one for each training timestep"
        betas = torch.from_numpy(_array("trained_betas", config.trained_betas, expected)).float()
        if betas.shape != (count,):
            raise bad("trained_betas", expected, tuple(betas.shape))
    else:
        ends = (real(name, config[name], "a number in (0, 1)", 0, 1) for name in ("beta_start", "beta_end"))
        betas = BETAS[key("beta_schedule", config.beta_schedule, BETAS)](count, *ends)
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise bad("betas", "numbers in (0, 1)", f"[{float(betas.min())}, {float(betas.max())}]")
    return betas


def cumulative(betas: torch.Tensor, zero_terminal_snr: bool) -> torch.Tensor:
    """alpha^2 at each timestep, float32: the product of 1 - beta.

    ``zero_terminal_snr`` shifts and scales alpha so that it ends at 0 and begins where it did (Lin et al., arXiv
    2305.08891, algorithm 1); its end is put to 2^-12, so that the last sigma is finite, as diffusers does, or below the
    one before, where that is smaller still.
    """
    alphas = (1 - betas).cumprod(0)
    if zero_terminal_snr:
        root = alphas.sqrt()
        alphas = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        alphas[-1] = min(2**-24, float(alphas[-2]) / 2)
    return alphas


def spaced(spacing: str, steps: int, count: int, offset: int) -> Levels:
    """Timesteps of a run of so many steps, descending (Lin et al., arXiv 2305.08891, table 2)."""
    if steps > count:
        raise bad("num_inference_steps", f"at most the {count} timesteps of training", steps)
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps).round()[::-1].copy()
    if spacing == "trailing":
        return np.arange(count, 0, -count / steps).round()[:steps] - 1
    key("timestep_spacing", spacing, ("linspace", "leading", "trailing"))
    return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + offset


def _karras(most: float, least: float, steps: int) -> Levels:
    ramp, power = np.linspace(0, 1, steps), 1 / KARRAS_RHO
    return (most**power + ramp * (least**power - most**power)) ** KARRAS_RHO


def _exponential(most: float, least: float, steps: int) -> Levels:
    return np.exp(np.linspace(math.log(most), math.log(least), steps))


def _beta(most: float, least: float, steps: int) -> Levels:
    return least + stats.beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (most - least)


# What use_karras_sigmas and its like ask for: (sigma_max, sigma_min, steps) -> levels. Karras et al. (arXiv 2206.00364,
# eq. 5); uniform in log sigma; quantiles of Beta(0.6, 0.6) (Lee et al., arXiv 2407.12173).
LEVELS: dict[str, Callable[[float, float, int], Levels]] = {
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
}


class Variance:
    """A model with alpha^2 + std^2 = 1, trained at the timesteps 0 to N - 1; between them log sigma is linear."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        squared = alphas_cumprod.double().numpy()
        self.sigmas: Levels = np.sqrt((1 - squared) / squared)
        if not bool((np.diff(self.sigmas) > 0).all()):
            raise bad("betas", "noise that grows with the timestep", "a schedule whose noise does not")
        self.logs = np.log(self.sigmas)

    def level(self, timestep: Levels) -> Levels:
        if timestep.size and not (timestep.min() >= 0 and timestep.max() <= len(self.logs) - 1):
            got = f"[{timestep.min()}, {timestep.max()}]"
            raise bad("timesteps", f"numbers from 0 to {len(self.logs) - 1}", got)
        return np.asarray(np.exp(np.interp(timestep, np.arange(len(self.logs)), self.logs)))

    def timestep(self, level: Levels) -> Levels:
        return np.interp(np.log(level), self.logs, np.arange(len(self.logs)))

    def marginal(self, level: Levels) -> tuple[Levels, Levels]:
        """(alpha, std)."""
        alpha = 1 / np.sqrt(1 + level**2)
        return alpha, level * alpha


class Flow:
    """A model with alpha = 1 - sigma, std = sigma, trained at the timesteps N sigma."""

    def __init__(self, count: int) -> None:
        self.count = count

    def level(self, timestep: Levels) -> Levels:
        if timestep.size and not (timestep.min() >= 0 and timestep.max() <= self.count):
            raise bad("timesteps", f"numbers from 0 to {self.count}", f"[{timestep.min()}, {timestep.max()}]")
        return timestep / self.count

    def timestep(self, level: Levels) -> Levels:
        return level * self.count

    def marginal(self, level: Levels) -> tuple[Levels, Levels]:
        return 1 - level, level


def shifted(levels: Levels, shift: float) -> Levels:
    """s sigma / (1 + (s - 1) sigma), for flow models at high resolution (Esser et al., arXiv 2403.03206, eq. 23)."""
    return shift * levels / (1 + (shift - 1) * levels)


def ending_at(levels: Levels, last: float) -> Levels:
    """Levels stretched so that the last one is ``last`` and 1 stays 1."""
    return 1 - (1 - levels) * (1 - last) / (1 - levels[-1])


def numbers(name: str, values: Sequence[float] | torch.Tensor | Levels) -> Levels:
    """A user's own timesteps or levels: finite, strictly descending."""
    found = _array(name, values, "a descending sequence of numbers")
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or not bool((np.diff(found) < 0).all()):
        raise bad(name, "a strictly descending sequence of finite numbers", repr(values))
    return found


def _array(name: str, values: Any, expected: str) -> Levels:
    """A copy, as an array of any kind is taken, of any strides."""
    try:
        if isinstance(values, torch.Tensor):
            return tensor(name, values, expected, dtype=torch.float64).detach().cpu().numpy().copy()
        found = np.asarray(values)
        if found.dtype.kind in "cSU":
            raise TypeError(found.dtype)
        return found.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise bad(name, expected, repr(values)) from error
