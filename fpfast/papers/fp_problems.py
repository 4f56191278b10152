"""What ``fpfast paper fp-diffusion`` trains on, with what, and for how long.                       PROBLEMS, METHODS"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from fpfast import data
from fpfast.convnet import ConvNet
from fpfast.likelihood import dequantise
from fpfast.mixture import GaussianMixture
from fpfast.network import MLP

LEVELS = 17  # of the digits' pixels
HELD_OUT = 450  # digits


@dataclass(frozen=True)
class Budget:
    """What is spent on a problem."""

    shared: int  # steps of denoising alone, from whose end all methods go on
    steps: int  # of each method
    batch_size: int
    points: int  # at each time, for residuals
    jacobians: int  # at each time
    held_out: int  # samples whose likelihood is taken
    likelihood: int  # steps of its integral
    samples: int  # of the ODE, and of the SDE
    sampling: int  # steps of the ODE; the SDE has twice as many
    truth: int  # samples of data to compare them with


BUDGETS = {
    "mixture": Budget(5000, 2000, 256, 512, 512, 4000, 30, 20_000, 60, 100_000),
    "digits": Budget(2500, 300, 64, 128, 32, 256, 30, 300, 60, HELD_OUT),
}
FULL = {
    "mixture": Budget(20_000, 20_000, 512, 2048, 2048, 20_000, 60, 100_000, 200, 1_000_000),
    "digits": Budget(20_000, 4000, 64, HELD_OUT, 100, HELD_OUT, 60, HELD_OUT, 200, HELD_OUT),
}


def mixture() -> GaussianMixture:
    """Four Gaussians of unlike weights and shapes."""
    means = torch.tensor([[-1.3, -1.0], [1.5, -0.8], [0.2, 1.5], [0.1, 0.1]])
    covariances = torch.tensor([[[0.25, 0.15], [0.15, 0.25]], [[0.12, 0.0], [0.0, 0.3]],
                                [[0.4, 0.0], [0.0, 0.1]], [[0.1, 0.0], [0.0, 0.1]]])  # fmt: skip
    return GaussianMixture(means, covariances, torch.tensor([0.4, 0.3, 0.2, 0.1]))


def draw_mixture(n: int, generator: Generator) -> Tensor:
    return mixture().sample(n, generator).float()


def whole_digits(held_out: bool) -> Tensor:
    """The digits as whole numbers 0 to 16; 450 of them are held out."""
    images = (data.digit_images() + 1) * 8
    images = images[torch.randperm(len(images), generator=Generator().manual_seed(0))]
    return images[:HELD_OUT] if held_out else images[HELD_OUT:]


def draw_digits(n: int, generator: Generator) -> Tensor:
    """Made continuous anew each time."""
    images = whole_digits(False)
    return dequantise(images[torch.randint(len(images), (n,), generator=generator)], levels=LEVELS, seed=generator)


def planar_network() -> nn.Module:
    return MLP(2, (64, 64, 64))


def image_network() -> nn.Module:
    return ConvNet((1, 8, 8), width=8)


class Problem(NamedTuple):
    title: str
    draw: Callable[[int, Generator], Tensor]
    network: Callable[[], nn.Module]
    predicts: str
    shape: tuple[int, ...]
    learning_rate: float
    known: GaussianMixture | None
    alpha: float  # the weight of ours, in the place that FP-Diffusion's 0.15 has
    bandwidth: float  # of MMD: about the median distance of two samples

    @property
    def dimension(self) -> int:
        return math.prod(self.shape)

    def truth(self, n: int, seed: int) -> Tensor:
        """Held-out samples; of digits there are 450, made continuous."""
        if self.known is not None:
            return draw_mixture(n, Generator().manual_seed(seed))
        return dequantise(whole_digits(True)[:n], levels=LEVELS, seed=seed)


PROBLEMS = {
    "mixture": Problem("mixture", draw_mixture, planar_network, "score", (2,), 2e-3, mixture(), 0.015, 2.0),
    "digits": Problem("digits", draw_digits, image_network, "v", (1, 8, 8), 1e-3, None, 0.15, 6.0),
}

# Their code halves the denoising loss, which fpfast.losses.dsm does not: so weights are twice theirs.
HALVED = 2.0
METHODS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "denoising alone": lambda problem: {},
    "FP-Diffusion": lambda problem: {"regulariser": "fp_diffusion", "weight": HALVED},
    "pairs (ours)": lambda problem: {
        "regulariser": "score",
        "estimator": "martingale",
        "residual_weighting": "likelihood",
        "weight": HALVED * problem.alpha / problem.dimension**2,
    },
}
ALONE, THEIRS, OURS = METHODS
