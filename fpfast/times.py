"""Time grids from T down, by name, by specification or by value.                                              TIMES"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fpfast.errors import bad, integer, key, tensor
from fpfast.sde import SDE

KARRAS_RHO = 7.0


def _ramp(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def _uniform(sde: SDE, steps: int) -> Tensor:
    return sde.T + _ramp(steps) * (sde.t_min - sde.T)


def _quadratic(sde: SDE, steps: int) -> Tensor:
    """sqrt(t) uniform: steps shrink towards the data."""
    return (math.sqrt(sde.T) + _ramp(steps) * (math.sqrt(sde.t_min) - math.sqrt(sde.T))) ** 2


def _logsnr(sde: SDE, steps: int) -> Tensor:
    """log(alpha / std) uniform (Lu et al., DPM-Solver, arXiv 2206.00927)."""
    first, last = sde.log_snr(sde.T), sde.log_snr(sde.t_min)
    return sde.time_at(first + _ramp(steps) * (last - first))


def _karras(sde: SDE, steps: int) -> Tensor:
    """(std / alpha)^(1/7) uniform (Karras et al., arXiv 2206.00364, eq. 5)."""
    first, last = ((-sde.log_snr(t) / KARRAS_RHO).exp() for t in (sde.T, sde.t_min))
    return sde.time_at(-KARRAS_RHO * (first + _ramp(steps) * (last - first)).log())


def _asinh(sde: SDE, steps: int) -> Tensor:
    """sqrt(asinh(std / alpha)) uniform: even in sqrt(std / alpha) near the data, nearly in log(std / alpha) near T."""
    first, last = ((-sde.log_snr(t)).exp().asinh().sqrt() for t in (sde.T, sde.t_min))
    return sde.time_at(-((first + _ramp(steps) * (last - first)) ** 2).sinh().log())


TIMES: dict[str, Callable[[SDE, int], Tensor]] = {
    "uniform": _uniform,
    "asinh": _asinh,
    "karras": _karras,
    "logsnr": _logsnr,
    "quadratic": _quadratic,
}


def parse(spec: str) -> Tensor:
    """Times from "START:STOP:STEPS[,START:STOP:STEPS...]": uniform pieces, each beginning where the last one stopped.

    Raises ValueError where it is not of this form.
    """
    form = "pieces START:STOP:STEPS joined by commas, each starting where the last one stopped"
    pieces: list[Tensor] = []
    for piece in spec.split(","):
        try:
            start, stop, steps = piece.split(":")
            first, last, count = float(start), float(stop), int(steps)
        except ValueError:
            raise bad("times", form, repr(spec)) from None
        if not (0 < count <= 10**7 and math.isfinite(first) and math.isfinite(last)):
            raise bad("times", form + ", with 1 to 10^7 STEPS", repr(spec))
        if pieces and float(pieces[-1][-1]) != first:
            raise bad("times", form, repr(spec))
        line = first + _ramp(count) * (last - first)
        line[-1] = last
        pieces.append(line[1:] if pieces else line)
    return torch.cat(pieces)


def grid(sde: SDE, times: str | Sequence[float] | Tensor | None, steps: int) -> Tensor:
    """The times of a run, float64 of shape (steps + 1,), strictly descending from T.

    Args:
        times: a name of ``TIMES``, a specification for :func:`parse`, any descending sequence from T down to at least
            0, or None for the SDE's own named grid.
        steps: for named grids; a sequence has as many steps as it says.

    Raises ValueError for unknown names, times that do not descend strictly, do not start at T, or leave [0, T].
    """
    if times is None:
        times = sde.times
    if isinstance(times, str) and ":" not in times:
        steps = integer("steps", steps, 1, 10**9)
        if sde.t_min >= sde.T:
            raise bad("times", f"a sequence, since T = {sde.T} is not above t_min = {sde.t_min}", repr(times))
        t = TIMES[key("times", times, TIMES)](sde, steps)
        t[0], t[-1] = sde.T, sde.t_min
    elif isinstance(times, str):
        t = parse(times)
    else:
        numbers = tensor("times", times, "a name, a specification or a sequence of numbers", dtype=torch.float64)
        t = numbers.detach().cpu().clone()
    if t.ndim != 1 or len(t) < 2 or not bool((t[1:] < t[:-1]).all()):
        raise bad("times", "a strictly descending sequence of two or more times", _brief(t))
    if not math.isclose(float(t[0]), sde.T, rel_tol=1e-6) or float(t[-1]) < 0:
        raise bad("times", f"a sequence from T = {sde.T} of the SDE down to at least 0", _brief(t))
    return t


def _brief(t: Tensor) -> str:
    values = [f"{value:g}" for value in t.flatten().tolist()]
    return "[" + ", ".join(values if len(values) <= 6 else [*values[:3], "...", *values[-2:]]) + "]"
