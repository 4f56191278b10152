"""The networks of ``fpfast paper ode-sde-gap``: how each is trained, and what is measured of it.

Setting of Deveney et al. (arXiv 2311.15996, code at github.com/teojd/ODESDEGap): dX = -X dt + dW on [0, 10], potentials
phi(t, x) 3-80-80-80-1 with softplus(100), denoising score matching at times 10 Beta(1, 2), plus w times the mean square
of the log-density residual at uniform points and times of [-3.5, 3.5]^2 x [0, 10]. Neither term is weighted in time.

Their denoising loss is the mean over the two coordinates, ours the sum: so w is multiplied by two. ``SHORT`` weights
both terms by std(t)^2, which leaves their ratio at each time as it is, and has softplus(20). ``FULL`` is theirs but for
times, which begin at 0.001 (theirs: 0.00001), and for one Adam in place of a new one at each learning rate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast import data, fused, losses, train
from fpfast.certificate import Certificate, certificate
from fpfast.gap import Gap, gap
from fpfast.network import MLP
from fpfast.papers.runs import trained
from fpfast.residual import fp_residual
from fpfast.score import Score
from fpfast.sde import OU

BOX = 3.5
TIMES = "10:0.125:790,0.125:0:100"  # theirs: Euler steps of 0.0125, of 0.00125 from 0.125 down
EDGE = 2 * BOX  # Z is the integral of exp(phi) over [-EDGE, EDGE]^2
HALF = "10:0.125:395,0.125:0:50"  # the same with half as many, for the paths of the bound


@dataclass(frozen=True)
class Budget:
    """``recipe``: of a network, but for seed and regulariser; ``points``: of the residual, a share of the batch.

    ``activation``: with their softplus(100) the Laplacian is so spiky that some thousands of steps are not enough.
    """

    recipe: train.Recipe
    activation: str
    points: float
    samples: int  # of the ODE and of the SDE
    paths: int  # of the bound
    held_out: int = 4096  # data, of the denoising loss and of residuals
    times: str = TIMES
    path_times: str = HALF
    gaussian_steps: int = 2000


SHORT = Budget(
    train.Recipe(steps=8_000, batch_size=512, learning_rate=2e-3, time_law="beta"),
    activation="softplus:20",
    points=0.5,
    samples=50_000,
    paths=500,
)
# What their code does without a GPU: batches of 20,000, 5,000 points of the residual, 100,000 steps.
FULL = Budget(
    train.Recipe(
        steps=100_000,
        batch_size=20_000,
        schedule="staircase",
        clip=0.0,
        ema=0.0,
        weighting="uniform",
        residual_weighting="uniform",
        time_law="beta",
    ),
    activation="softplus:100",
    points=0.25,
    samples=1_000_000,
    paths=2000,
)


class Case(NamedTuple):
    """One network."""

    data: str
    weight: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}_w{self.weight:g}_seed{self.seed}"


class Found(NamedTuple):
    """What was measured of one network."""

    case: Case
    gap: Gap
    times: Tensor  # of the residuals below
    at_data: Tensor  # root mean square of R at perturbed data
    in_box: Tensor  # and at uniform points of the box
    bound: Certificate
    dsm: float  # held-out denoising loss

    @property
    def residual(self) -> float:
        """Root mean square over box and times, which are even in log t."""
        return float(self.in_box.square().mean().sqrt())


def recipe(case: Case, budget: Budget) -> train.Recipe:
    options = asdict(budget.recipe) | {"seed": case.seed}
    if case.weight:
        options |= {"regulariser": "log_density", "weight": 2 * case.weight, "fraction": budget.points}
        options |= {"box": BOX, "box_time_law": "uniform"}
    return train.Recipe(**options)


def examine(folder: Path, case: Case, budget: Budget) -> Found:
    """Trains one network, or takes up its training, and measures it."""
    torch.manual_seed(case.seed)
    net = MLP(2, (80, 80, 80), potential=True, activation=budget.activation, time_first=True)
    score = Score(fused.compile(net, 2), OU(), "potential")
    held_out = data.draw(case.data, budget.held_out, seed=1000 + case.seed)
    try:
        fit = trained(folder, case.name, score, data.DATA[case.data], recipe(case, budget), held_out)
        return measure(fit.score, case, budget, held_out, fit.history[-1].validation or math.nan)
    except (ValueError, RuntimeError) as error:  # such as of a folder with other runs
        raise RuntimeError(f"{case.name}: {error}") from error


def measure(score: Score, case: Case, budget: Budget, held_out: Tensor, dsm: float) -> Found:
    measured = gap(score, case.data, n=budget.samples, seed=case.seed, times=budget.times, batch_size=2048)
    bound = certificate(score, 2, n=budget.paths, times=budget.path_times, edge=EDGE, seed=case.seed)
    return Found(case, measured, *residuals(score, held_out), bound, dsm)


def residuals(score: Score, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(times, root mean square of R at perturbed data, and in the box)."""
    times = torch.logspace(-2, math.log10(score.sde.T), 25, dtype=torch.float64).clamp(max=score.sde.T)

    def size(x: Tensor, t: float) -> Tensor:
        return fp_residual(score, x, t, form="log_density", estimator="exact").value.double().square().mean().sqrt()

    box = losses.box(tuple(x0.shape), BOX, seed=0)
    at_data = [
        size(losses.perturb(score.sde, x0, times[k].expand(len(x0)), seed=k)[0], t)
        for k, t in enumerate(times.tolist())
    ]
    return times, torch.stack(at_data), torch.stack([size(box, t) for t in times.tolist()])
