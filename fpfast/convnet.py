"""A small convolutional network for scores of images."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpfast.errors import bad, integer, real, sizes


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))) + W e))), e the embedded time."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(embedding, width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.first(functional.silu(self.first_norm(x))) + self.time(e)[:, :, None, None]
        return x + self.second(functional.silu(self.second_norm(h)))


class ConvNet(nn.Module):
    """A U-Net with one level below the image's own, for images (B, C, H, W) and times (B,).

    Two residual blocks at full resolution, two at half of it with twice the width, then two at full resolution again,
    which see the first ones' output. Time enters each by its sines and cosines at frequencies from 1 / T to 1000 / T.

    Args:
        shape: (C, H, W), H and W even.
        width: channels at full resolution, a multiple of 8.
        time_scale: T of the SDE.
    """

    def __init__(self, shape: tuple[int, int, int], *, width: int = 32, time_scale: float = 1.0) -> None:
        super().__init__()
        shape = cast(tuple[int, int, int], sizes("shape", shape, 1))
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise bad("shape", "(C, H, W), H and W even", shape)
        width = integer("width", width, 8, 2**24)
        if width % 8:
            raise bad("width", "a multiple of 8", width)
        time_scale = real("time_scale", time_scale, "a positive number", math.ulp(0.0))
        self.options: dict[str, Any] = {"shape": shape, "width": width, "time_scale": time_scale}
        frequencies = 2 * math.pi / time_scale * torch.logspace(0, 3, 32, dtype=torch.float64)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.embed = nn.Sequential(nn.Linear(64, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU())
        self.enter = nn.Conv2d(shape[0], width, 3, padding=1)
        self.before = nn.ModuleList(Block(width, 4 * width) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.below = nn.ModuleList(Block(2 * width, 4 * width) for _ in range(2))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.after = nn.ModuleList(Block(width, 4 * width) for _ in range(2))
        self.norm = nn.GroupNorm(8, width)
        self.leave = nn.Conv2d(width, shape[0], 3, padding=1)
        for parameter in self.leave.parameters():  # an output of 0 to begin with
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # x: [B, C, H, W], t: [B] -> [B, C, H, W]
        angles = t[:, None] * self.frequencies
        e = self.embed(torch.cat((angles.sin(), angles.cos()), 1))
        h = self.enter(x)
        for block in self.before:
            h = block(h, e)
        low = self.down(h)
        for block in self.below:
            low = block(low, e)
        h = self.join(torch.cat((h, self.up(low)), 1))
        for block in self.after:
            h = block(h, e)
        return self.leave(functional.silu(self.norm(h)))
