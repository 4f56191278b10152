"""What ``fpfast paper noise`` runs: reverse processes of every noise level with exact, wrong and learned scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast import train
from fpfast.fused import compile as compiled
from fpfast.network import MLP
from fpfast.papers import tracking
from fpfast.papers.cells import Distances, distances, edges, shares
from fpfast.papers.runs import trained
from fpfast.papers.score_errors import EARLY, KINDS, SDE, perturbed, size_of
from fpfast.papers.score_errors import field as error_field
from fpfast.papers.trajectories import REFERENCES, at
from fpfast.sample import sample
from fpfast.score import Score
from fpfast.times import grid

LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Budget:
    """What a run costs. ``shown``: the size of error in tables of one size; ``moments``: times at which p_t is met."""

    samples: int = 10_000
    steps: int = 128
    cells: int = 128
    moments: int = 8
    sizes: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    shown: float = 0.5
    widths: tuple[int, ...] = (4, 16, 64)
    train: train.Recipe = field(
        default_factory=lambda: train.Recipe(steps=2000, batch_size=512, learning_rate=5e-3, ema=0.99, time_law="beta")
    )
    tracking: tracking.Budget = field(default_factory=tracking.Budget)

    @property
    def recorded(self) -> list[int]:
        return [round(self.steps * (i + 1) / self.moments) for i in range(self.moments)]

    @property
    def times(self) -> list[float]:
        t = grid(SDE, "logsnr", self.steps)
        return [float(t[step]) for step in self.recorded]


class Case(NamedTuple):
    """One score: reference trajectory, kind ("fresh": no score, exact samples of p_t), size of its error or width."""

    reference: str
    kind: str
    size: float
    seed: int


class Outcome(NamedTuple):
    case: Case
    error: float  # the score's, (Int g^2 E|e|^2 dt)^(1/2)
    distances: dict[float, list[Distances]]  # noise level -> one for each moment
    shares: dict[float, Tensor]  # of the last histograms; kept of the first seed
    early: float = 0.0  # a learned score's error at t <= EARLY alone


def follow(budget: Budget, score: Score, case: Case, level: float) -> list[Tensor]:
    """The reverse process from p_T: its samples at each moment."""
    found: dict[int, Tensor] = {}

    def keep(step: int, t: float, x: Tensor) -> None:
        found[step] = x

    x = at(REFERENCES[case.reference], SDE, SDE.T, budget.samples, torch.Generator().manual_seed(case.seed))
    sample(
        score,
        (budget.samples, 2),
        solver="exponential",
        times="logsnr",
        steps=budget.steps,
        noise=level,
        seed=case.seed + 1000,
        x=x.float(),
        final="noise",
        callback=keep,
        callback_steps=budget.recorded,
    )
    return [found[step] for step in budget.recorded]


def _fresh(budget: Budget, case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(case.seed + 2000)
    return [at(REFERENCES[case.reference], SDE, t, budget.samples, generator) for t in budget.times]


def _network(budget: Budget, folder: Path, case: Case) -> Score:
    """A perceptron of two hidden layers of this width, trained by denoising score matching."""
    torch.manual_seed(case.seed)
    net = compiled(MLP(2, (int(case.size), int(case.size))), 2)
    reference, recipe = REFERENCES[case.reference], asdict(budget.train) | {"seed": case.seed}

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return reference.sample(n, generator).float()

    name = f"{case.reference}_{int(case.size)}_{case.seed}"
    return trained(folder, name, Score(net, SDE, "noise"), draw, train.Recipe(**recipe)).score


def outcome(budget: Budget, folder: Path, case: Case) -> Outcome:
    """All noise levels with one score."""
    reference = REFERENCES[case.reference]
    exact = [reference.cells(edges(budget.cells), SDE, t) for t in budget.times]
    score, size, early = None, 0.0, 0.0
    if case.kind == "learned":
        score = learned = _network(budget, folder, case)

        def wrong(x: Tensor, t: float) -> Tensor:
            return learned(x.float(), t).double() - reference.gradient(x, SDE, t)

        size, early = size_of(wrong, reference), size_of(wrong, reference, until=EARLY)
    elif case.kind in KINDS:
        score, size = perturbed(reference, error_field(KINDS[case.kind], case.size, reference)), case.size
    elif case.kind == "exact":
        score = perturbed(reference, None)
    along = case.kind not in KINDS or case.size == budget.shown  # transport at all times
    kept: dict[float, list[Distances]] = {}
    maps: dict[float, Tensor] = {}
    for level in LEVELS:
        if score is None and kept:
            kept[level] = kept[LEVELS[0]]
            continue
        paths = _fresh(budget, case) if score is None else follow(budget, score, case, level)
        last = len(exact) - 1
        kept[level] = [distances(x, p, along or k == last) for k, (x, p) in enumerate(zip(paths, exact, strict=True))]
        if case.seed == 0:
            maps[level] = shares(paths[-1], budget.cells)
    return Outcome(case, size, kept, maps, early)


def cases(budget: Budget, seeds: int) -> list[Case]:
    kinds = [("exact", 0.0), ("fresh", 0.0), *((kind, size) for kind in KINDS for size in budget.sizes)]
    kinds += [("learned", float(width)) for width in budget.widths]
    return [Case(name, kind, size, seed) for name in REFERENCES for kind, size in kinds for seed in range(seeds)]
