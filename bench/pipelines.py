"""A pipeline's step with a small U-Net (see bench/unet.py): what the scheduler adds to the network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import unet
from bench.gates import GateError
from bench.timing import Run, Side


def sides(batch: int, steps: int) -> dict[str, Side]:
    """DDIM with our scheduler and with diffusers', which must give the same pictures; and the network alone."""
    net = unet.Net().unet.eval().requires_grad_(False)
    x = torch.randn(batch, 3, unet.SIZE, unet.SIZE, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loop(scheduler: Any) -> Tensor:
        scheduler.set_timesteps(steps)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(net(state, t).sample, t, state).prev_sample
        return state

    def scheduled(ours: bool) -> tuple[Run, str]:
        from diffusers.schedulers import DDIMScheduler

        from fpfast.compat.diffusers import FPFastScheduler

        theirs = DDIMScheduler(clip_sample=False)
        mine = FPFastScheduler.from_config(theirs.config, solver="exponential")
        expected, found = loop(theirs), loop(mine)
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error < 1e-3:  # the network multiplies rounding
            raise GateError(f"relative difference: at most 1e-3 expected, got {error:.2g}")
        return partial(loop, mine if ours else theirs), ""

    @torch.no_grad()
    def alone() -> None:
        for _ in range(steps):
            net(x, 500)

    return {
        "fpfast": partial(scheduled, True),
        "diffusers DDIMScheduler": partial(scheduled, False),
        "the network alone": lambda: (alone, ""),
    }
