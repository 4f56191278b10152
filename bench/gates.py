"""What a result must pass before its time counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

SLACK = 4.0  # an error may be so many times that of plain float32 torch
REACH = 6.0  # standard errors


class GateError(Exception):
    """A result is wrong, so its time means nothing."""


def tensor(result: Any) -> Tensor:
    """A torch tensor from torch's or JAX's."""
    return torch.from_numpy(np.array(result))


def check_states(states: Tensor, exact: Tensor, plain: Tensor) -> None:
    """Nine in ten samples as near to ``exact`` as ``plain`` is, times ``SLACK``, and the others not far."""
    scale = float(exact.square().mean().sqrt())
    error, usual = ((y.double() - exact).norm(dim=1) for y in (states, plain))
    for level, floor in ((0.9, 1e-6), (1.0, 1e-2)):
        got, limit = float(error.quantile(level)), SLACK * float(usual.quantile(level)) + floor * scale
        if not got <= limit:
            raise GateError(f"error of the {level:.0%} quantile: at most {limit:.2g} expected, got {got:.2g}")


def check_normal(z: Tensor) -> None:
    """Mean, second and fourth moment of N(0, 1) to sampling error, and no two rows equal."""
    values = z.flatten().double()
    for power, want, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        far = abs(float(values.pow(power).mean()) - want) / math.sqrt(variance / len(values))
        if not far <= REACH:
            raise GateError(f"mean of z^{power}: {want:g} within {REACH:g} standard errors expected, got {far:.1f}")
    if len(z.unique(dim=0)) < len(z):
        raise GateError(f"{len(z)} different rows of noise expected, got {len(z.unique(dim=0))}")


def check_equal(got: Tensor, want: Tensor) -> None:
    error = float((got - want).abs().max())
    if not error <= 1e-5:
        raise GateError(f"error of at most 1e-5 expected, got {error:.2g}")
