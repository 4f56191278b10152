"""Samples that become NaN or infinite: which, after which step, and what becomes of them.                ON_NONFINITE

Nothing here waits for a device until a batch is done: what was seen is written down where the samples are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# What to do -> what the message calls the samples.
ON_NONFINITE = {"ignore": "hold NaN or infinity", "freeze": "were frozen", "raise": "would hold NaN or infinity"}


def finite(x: Tensor) -> bool:
    """If x holds no NaN and no infinity."""
    x = x if x.dtype.itemsize > 1 else x.float()  # torch does not add up 8 bits
    # A sum costs a tenth of a look at each value, but may overflow.
    return math.isfinite(float(x.sum())) or bool(x.isfinite().all())


def count(x: Tensor) -> int:
    """Samples that hold a NaN or an infinity."""
    return 0 if finite(x) else int((~x.isfinite()).reshape(len(x), -1).any(1).sum())


class Watch:
    """What is known of one batch's samples."""

    def __init__(self, x: Tensor, freeze: bool) -> None:
        self.broken = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # number of the step, 1 to steps; 0: none
        self.before = torch.empty_like(x) if freeze else None

    @property
    def freeze(self) -> bool:
        return self.before is not None

    def remember(self, x: Tensor) -> None:
        """The state before a step."""
        if self.before is not None:
            self.before.copy_(x)

    def look(self, x: Tensor, step: int) -> None:
        """The state after it, which frozen samples get back."""
        bad = (0 * x).flatten(1).sum(1) != 0  # 0 x is NaN where x is not finite
        self.broken += step * (bad & (self.broken == 0))
        if self.before is not None:
            frozen = (self.broken > 0).reshape(-1, *[1] * (x.ndim - 1))
            torch.where(frozen, self.before, x, out=x)


class Broken(NamedTuple):
    """How many samples of a run were not finite, and the first: (sample, step), by the step, then by the sample."""

    samples: int = 0
    first: tuple[int, int] | None = None

    def with_batch(self, watch: Watch, start: int) -> Broken:
        """With those of a batch that begins with sample ``start`` of the run."""
        broken = watch.broken.cpu()
        which = broken.nonzero()[:, 0]
        if not len(which):
            return self
        step = int(broken[which].min())
        found = start + int(which[broken[which] == step][0]), step
        first = found if self.first is None else min(self.first, found, key=lambda one: (one[1], one[0]))
        return Broken(self.samples + len(which), first)

    def says(self, action: str, samples: int, ends: Sequence[float]) -> str:
        """What happened, and where first; ``ends`` are the times after the steps."""
        assert self.first is not None
        sample, step = self.first
        at = f"sample {sample} after step {step} of {len(ends)}, at t = {ends[step - 1]:.6g}"
        return f"{self.samples} of {samples} samples {ON_NONFINITE[action]}; first {at}"
