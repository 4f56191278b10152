"""Equal training time on digits: python scripts/digits_residual.py [--seconds 120] [--seeds 0 1 2]

A small convolutional score network learns scikit-learn's 8 x 8 digits under VP, by the denoising loss alone, with
FP-Diffusion's regulariser (arXiv 2210.04296: Hutchinson's estimate squared, double backward, alpha = 0.15,
beta = 0.01), and with the same vector part from two independent antithetic pairs, unbiased. After equal time, on
held-out images: the denoising loss, and the mean of g^2 |eps|^2 / d^2, eps the exact residual.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fpfast
from fpfast import losses

# method -> (alpha, fraction of the points)
METHODS = {
    "denoising alone": (0.0, 0.0),
    "FP-Diffusion": (0.15, 1.0),
    "two pairs": (0.15, 1.0),
    "two pairs, alpha 1.5": (1.5, 1.0),
    "two pairs, alpha 1.5, fraction 0.25": (1.5, 0.25),
}
DIMENSION, REPEATS = 64, 4


class Net(nn.Module):
    """Three residual blocks of 32 channels; time comes in as a shift of the channels. Predicts the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)])
        self.times = nn.ModuleList([nn.Linear(16, 32) for _ in range(3)])
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * torch.pi / 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        features = torch.cat((angles.sin(), angles.cos()), dim=1)
        h = self.first(x)
        for block, time_shift in zip(self.blocks, self.times, strict=True):
            h = h + block(torch.tanh(h + time_shift(features)[:, :, None, None]))
        return self.last(torch.tanh(h))


def images() -> tuple[Tensor, Tensor]:
    """(for training, held out), about -1 to 1."""
    x = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[300:]], x[order[:300]]


def loss_of(method: str, score: fpfast.Score, x0: Tensor) -> Tensor:
    loss, x, t, s = losses.dsm(score, x0, weighting="noise", return_points=True)
    alpha, fraction = METHODS[method]
    if method == "FP-Diffusion":
        return loss + losses.fp_diffusion(score, x.detach(), t, alpha=alpha)
    if alpha:
        options = {"estimator": "martingale", "weighting": "likelihood", "fraction": fraction, "value": s}
        loss = loss + alpha / DIMENSION**2 * losses.fp_regulariser(score, x, t, **options)
    return loss


def train(method: str, seconds: float, seed: int, x0: Tensor) -> tuple[fpfast.Score, int]:
    torch.manual_seed(seed)
    score = fpfast.Score(Net(), fpfast.VP(), "noise")
    parameters = list(score.net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    steps, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        batch = x0[torch.randint(len(x0), (64,))]
        optimizer.zero_grad()
        loss_of(method, score, batch).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
    return score, steps


def measure(score: fpfast.Score, x0: Tensor) -> tuple[float, float, float]:
    """(denoising loss, mean and median of g^2 |eps|^2 / d^2) at the same points for all."""
    repeated = x0.repeat(20, 1, 1, 1)
    with torch.no_grad():
        dsm = float(losses.dsm(score, repeated, weighting="noise", seed=1))
    x0 = x0.repeat(REPEATS, 1, 1, 1)
    t = losses.random_times(score.sde, len(x0), seed=2)
    x, _ = losses.perturb(score.sde, x0, t, seed=2)
    eps = torch.cat(
        [
            fpfast.fp_residual(score, a, b, estimator="exact").value
            for a, b in zip(x.split(100), t.split(100), strict=True)
        ]
    )
    squares = score.sde.g2(t).float() / DIMENSION**2 * eps.square().flatten(1).sum(1)
    return dsm, float(squares.mean()), float(squares.median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    train_images, held_out = images()
    print(f"{'method':36} {'seed':>4} {'steps':>6} {'denoising loss':>15} {'residual':>10} {'median':>10}")
    for seed in options.seeds:
        for method in METHODS:
            score, steps = train(method, options.seconds, seed, train_images)
            dsm, mean, middle = measure(score, held_out)
            print(f"{method:36} {seed:4} {steps:6} {dsm:15.3f} {mean:10.4g} {middle:10.4g}", flush=True)


if __name__ == "__main__":
    main()
