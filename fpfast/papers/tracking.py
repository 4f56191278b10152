"""Drifts no wider than the input: p_t tracked by a process whose weights are piecewise constant controls.

In the time tau = T - t that runs backwards, from X ~ p_T,

    dX = sum_i W_i(t) tanh(A_i(t) . X + b_i(t)) dtau + level g dW,      i = 1 ... d,  d = 2,

and nothing else: the drift must do all that a x and the score do. W, A and b are constant on each of K pieces.
Gradient descent through the simulated process, on the squared L2 distance of densities, smoothed by N(0, h^2 I):

    |q_h - p_h|^2 = E N(X - X'; 0, 2 h^2 I) - 2 E (p_t * N(0, 2 h^2 I))(X) + |p_h|^2,      X, X' independent, of law q,

where the middle term is in closed form, and the first is unbiased over pairs of different particles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fpfast.papers.cells import Distances, distances, edges, shares
from fpfast.papers.score_errors import SDE, perturbed
from fpfast.papers.trajectories import REFERENCES, Trajectory, at
from fpfast.sample import sample


@dataclass(frozen=True)
class Budget:
    """Of one fit: K pieces of ``substeps`` Euler-Maruyama steps, even in log-SNR from T to ``end``.

    The loss is taken at the end of every second piece, with each h of ``smoothing``.
    """

    references: tuple[str, ...] = ("mixture", "squares")
    end: float = 0.01
    pieces: int = 20
    substeps: int = 3
    particles: int = 256
    iterations: int = 250
    learning_rate: float = 0.1
    smoothing: tuple[float, ...] = (0.15, 0.5)
    samples: int = 16_000
    cells: int = 64

    @property
    def times(self) -> Tensor:
        first, last = (float(SDE.log_snr(t)) for t in (SDE.T, self.end))
        even = torch.linspace(first, last, self.pieces * self.substeps + 1, dtype=torch.float64)
        t = SDE.time_at(even)
        t[0], t[-1] = SDE.T, self.end
        return t

    @property
    def ends(self) -> Tensor:
        """Of the pieces: where densities are compared."""
        return self.times[self.substeps :: self.substeps]

    @property
    def fitted(self) -> slice:
        """Which of the ends are in the loss, the last one among them."""
        return slice((self.pieces + 1) % 2, None, 2)


class Drift(nn.Module):
    """Controls of K pieces, 10 numbers each. They begin near -level^2 tanh(x), under which N(0, I) hardly moves."""

    def __init__(self, pieces: int, level: float, generator: torch.Generator) -> None:
        super().__init__()

        def near(matrix: Tensor) -> nn.Parameter:
            return nn.Parameter(matrix + 0.1 * torch.randn(pieces, *matrix.shape, generator=generator))

        self.outer, self.inner, self.shift = near(-(level**2) * torch.eye(2)), near(torch.eye(2)), near(torch.zeros(2))

    def forward(self, x: Tensor, piece: int) -> Tensor:  # [B, 2] -> [B, 2]
        return torch.addmm(self.shift[piece], x, self.inner[piece].T).tanh() @ self.outer[piece].T


def simulate(budget: Budget, drift: Drift, x: Tensor, level: float, generator: torch.Generator) -> list[Tensor]:
    """X at the end of each piece."""
    found, times = [], budget.times.tolist()
    g = float(SDE.diffusion(0.0))
    for k, (now, after) in enumerate(itertools.pairwise(times)):
        x = x + (now - after) * drift(x, k // budget.substeps)
        if level:
            x = x + level * g * math.sqrt(now - after) * torch.randn(x.shape, generator=generator)
        if (k + 1) % budget.substeps == 0:
            found.append(x)
    return found


class Loss:
    """The mean over times and h of |q_h - p_h|^2 / |p_h|^2, unbiased."""

    def __init__(self, budget: Budget, reference: Trajectory) -> None:
        self.budget, self.reference, self.times = budget, reference, budget.ends[budget.fitted]
        line = torch.linspace(-6, 6, 161, dtype=torch.float64)
        plane = torch.cartesian_prod(line, line)
        area = float(line[1] - line[0]) ** 2
        self.norms = torch.tensor(
            [
                [float((2 * reference.smooth_log_prob(plane, SDE, t, h)).exp().sum()) * area for h in budget.smoothing]
                for t in self.times.tolist()
            ]
        )

    def __call__(self, paths: Sequence[Tensor]) -> Tensor:
        x = torch.stack(list(paths)[self.budget.fitted])  # [times, B, 2]
        n = x.shape[1]
        square = sum(((y[:, :, None] - y[:, None, :]).square() for y in x.unbind(-1)), torch.zeros(()))
        t = self.times.repeat_interleave(n)
        total = torch.zeros(())
        for h, norms in zip(self.budget.smoothing, self.norms.T, strict=True):
            pairs = (square / (-4 * h * h)).exp().sum((1, 2)) - n  # without those of a particle with itself
            own = pairs / (n * (n - 1) * 4 * math.pi * h * h)
            cross = self.reference.smooth_log_prob(x.flatten(0, 1), SDE, t, math.sqrt(2) * h).exp()
            total = total + ((own - 2 * cross.reshape(-1, n).mean(1)) / norms + 1).mean()
        return total / len(self.budget.smoothing)


class Track(NamedTuple):
    reference: str
    level: float
    seed: int
    first_loss: float
    loss: float  # mean of the last tenth of the iterations
    fitted: list[Distances]  # at the end of each piece, of new particles
    exact: list[Distances]  # of the reverse process with the exact score
    shares: Tensor


def fit(budget: Budget, name: str, level: float, seed: int) -> tuple[Drift, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    drift, loss = Drift(budget.pieces, level, generator), Loss(budget, REFERENCES[name])
    optimiser = torch.optim.Adam(drift.parameters(), lr=budget.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, budget.iterations)
    losses = []
    for _ in range(budget.iterations):
        x = at(REFERENCES[name], SDE, SDE.T, budget.particles, generator).float()
        found = loss(simulate(budget, drift, x, level, generator))
        optimiser.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(drift.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(found.detach()))
    return drift, losses


def _exact(budget: Budget, name: str, level: float, seed: int, x: Tensor) -> list[Tensor]:
    """The reverse process with the exact score, at the same times."""
    found: list[Tensor] = []
    sample(
        perturbed(REFERENCES[name], None),
        tuple(x.shape),
        solver="exponential",
        times=budget.times,
        noise=level,
        seed=seed,
        x=x,
        final="noise",
        callback=lambda step, t, x: found.append(x),
        callback_steps=range(budget.substeps, len(budget.times), budget.substeps),
    )
    return found


def track(budget: Budget, name: str, level: float, seed: int) -> Track:
    """A fit, and what it does with particles that it has not seen."""
    drift, losses = fit(budget, name, level, seed)
    generator = torch.Generator().manual_seed(seed + 3000)
    x = at(REFERENCES[name], SDE, SDE.T, budget.samples, generator).float()
    with torch.no_grad():
        paths = simulate(budget, drift, x, level, generator)
    exact = [REFERENCES[name].cells(edges(budget.cells), SDE, t) for t in budget.ends.tolist()]
    fitted, reverse = (
        [distances(y, p) for y, p in zip(found, exact, strict=True)]
        for found in (paths, _exact(budget, name, level, seed + 3000, x))
    )
    last = losses[-max(1, len(losses) // 10) :]
    return Track(name, level, seed, losses[0], sum(last) / len(last), fitted, reverse, shares(paths[-1], budget.cells))
