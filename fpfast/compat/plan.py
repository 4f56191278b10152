"""A solver's table, cut where the network is called, for callers who call the network themselves.

`make_plan` turns a table (see `fpfast.solvers`) into one `Segment` for each evaluation: what is to be done with the
network's output until the next one is needed. A plan does not change after it was made, so threads may share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpfast import solvers
from fpfast.compat.levels import Flow, Levels, Variance
from fpfast.errors import bad
from fpfast.score import Score
from fpfast.sde import EDM
from fpfast.sde import Flow as FlowSDE
from fpfast.solvers import SOLVERS, Moments, Table

# diffusers' prediction_type -> (dx, dy) of the denoiser D = dx x + dy y at (alpha, std), x being the model's state.
PREDICTIONS = {
    "epsilon": lambda alpha, std: (1 / alpha, -std / alpha),
    "sample": lambda alpha, std: (torch.zeros_like(std), torch.ones_like(std)),
    "v_prediction": lambda alpha, std: (alpha, -std),
    "flow_prediction": lambda alpha, std: (torch.ones_like(std), -std),
}


class Move(NamedTuple):
    """slots[to] = c0 slots[of[0]] + ... + cz z; then slots[b] = the old slots[a] for each (a, b) of keep."""

    to: str
    of: tuple[str, ...]
    row: tuple[float, ...]  # c0, c1, c2, c3, cz
    stream: int
    keep: tuple[tuple[str, str], ...]


class Segment(NamedTuple):
    """The network is evaluated at slots[at]; its output goes to slots[output]; then come the moves."""

    at: str
    output: str
    level: float  # where it is evaluated
    step: int | None  # the step that begins here, if one does
    moves: tuple[Move, ...]
    next: str  # the slot where the next evaluation is, or that holds the result
    carried: frozenset[
        str
    ]  # slots that this segment or a later one reads, beside at and output, before they are written


class _Model(Score):
    """The score of a network of one of PREDICTIONS, for a state x / scale."""

    def __init__(self, path: Variance | Flow, prediction: str, top: float) -> None:
        sde = EDM(T=top) if isinstance(path, Variance) else FlowSDE()
        super().__init__(lambda x, t: x, sde)
        self.path, self.prediction = path, prediction

    def denoiser(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, std = map(torch.from_numpy, self.path.marginal(t.numpy()))
        dx, dy = PREDICTIONS[self.prediction](alpha, std)
        return (dx * alpha if isinstance(self.path, Variance) else dx), dy

    def affine(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t, dtype=torch.float64)
        dx, dy = self.denoiser(t)
        alpha = 1 - t if isinstance(self.path, Flow) else torch.ones_like(t)
        return (alpha * dx - 1) / t**2, alpha * dy / t**2


class _FlowMoments(Moments):
    """Finite at t = 1 too, where the drift of the SDE is not: there the ODE's velocity is still that of the network."""

    score: _Model

    @cached_property
    def g2(self) -> Tensor:
        return 2 * self.t / (1 - self.t).clamp(min=1e-300)  # not infinite, so that no noise times g is none

    @cached_property
    def alpha(self) -> Tensor:
        return 1 - self.t

    @cached_property
    def std(self) -> Tensor:
        return self.t

    @property
    def data_x(self) -> Tensor:
        return self.score.denoiser(self.t)[0]

    @property
    def data_y(self) -> Tensor:
        return self.score.denoiser(self.t)[1]

    def drift(self, noise: float) -> tuple[Tensor, Tensor]:
        """Of a network that predicts the velocity v: v + lambda^2 (x / (1 - t) + v)."""
        square = noise**2
        return (square / (1 - self.t) if square else torch.zeros_like(self.t)), torch.full_like(self.t, 1 + square)


class _FlowPlan(solvers.Plan):
    def at(self, t: Tensor) -> Moments:
        return _FlowMoments(t, self.score)


@dataclass(frozen=True, eq=False)
class Plan:
    """A run from levels[0] down to levels[-1]."""

    segments: tuple[Segment, ...]
    levels: Levels
    noise: float
    uploaded: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = field(default_factory=dict, repr=False)

    def rows(self, device: torch.device, dtype: torch.dtype) -> list[list[Tensor]]:
        """The coefficients of each segment's moves, there."""
        if (device, dtype) not in self.uploaded:
            numbers = [move.row for segment in self.segments for move in segment.moves]
            each = iter(torch.tensor(numbers, dtype=torch.float64).to(device, dtype).unbind())
            made = [[next(each) for _ in segment.moves] for segment in self.segments]
            self.uploaded[device, dtype] = made
        return self.uploaded[device, dtype]

    @cached_property
    def stateless(self) -> bool:
        """No segment needs anything but its sample and output."""
        return not any(segment.carried for segment in self.segments)


def make_plan(path: Variance | Flow, prediction: str, solver: str, levels: Levels, noise: float) -> Plan:
    """The plan of a solver at a noise level. States are alpha x0 + std z, as the network takes them.

    In between, models with alpha^2 + std^2 = 1 are integrated as x / alpha in time sigma, where Euler and Heun steps
    are those of Karras et al. (arXiv 2206.00364); the factors are folded into the rows. Flow models are integrated as
    they are, in time sigma.

    Raises ValueError where the solver has no finite step there (with noise, a flow model at sigma = 1).
    """
    model = _Model(path, prediction, float(levels[0]))
    kind = _FlowPlan if isinstance(path, Flow) else solvers.Plan
    table = SOLVERS[solver](kind(model, torch.from_numpy(levels.copy()), noise, False))
    if not bool(table.coef.float().isfinite().all()):
        raise bad(
            "noise",
            f"0, or a solver other than {solver!r}, from a level of {levels[0]:g} (or a highest level below it)",
            noise,
        )
    return Plan(_segments(table, path, levels), levels, noise)


def _segments(table: Table, path: Variance | Flow, levels: Levels) -> tuple[Segment, ...]:
    """Cuts a table before each evaluation, and scales what the network sees, or the caller gets."""
    parts: list[tuple[int, int, list[tuple[int, int]]]] = []
    for i in range(len(table.coef)):
        for j, stage in enumerate(table.stages):
            if stage.at is not None and bool(table.evaluate[i, j]):
                parts.append((i, j, []))
            if parts:
                parts[-1][2].append((i, j))
            else:  # churning to the time where the run starts anyway
                assert table.coef[i, j].tolist() == [1, 0, 0, 0, 0]
    ends = [float(table.times[i, j]) for i, j, _ in parts[1:]] + [float(levels[-1])]
    scales = {"x": _scale(path, float(table.times[parts[0][0], parts[0][1]]))}
    made: list[Segment] = []
    for n, (i, j, inside) in enumerate(parts):
        last = n + 1 == len(parts)
        following = "x" if last else str(table.stages[parts[n + 1][1]].at)
        moves = []
        final = max(k for k, (_, jj) in enumerate(inside) if table.stages[jj].to == following)
        for k, (ii, jj) in enumerate(inside):
            stage = table.stages[jj]
            scale = _scale(path, ends[n]) if k == final else 1.0
            numbers = table.coef[ii, jj].tolist()
            read = [(name, c / scales.get(name, 1.0)) for name, c in zip(stage.of, numbers, strict=False)]
            read = [read[0], *((name, c) for name, c in read[1:] if c != 0)]
            row = [c * scale for _, c in read]
            row = [*row, *[0.0] * (4 - len(row)), numbers[4] * scale]
            moves.append(Move(stage.to, tuple(name for name, _ in read), tuple(row), stage.stream, stage.keep))
            kept = {to: scales.get(slot, 1.0) for slot, to in stage.keep}
            scales.update({stage.to: scale, **kept})
        stage = table.stages[j]
        begins = i if n == 0 or parts[n - 1][0] != i else None
        level = float(table.times[i, j])
        made.append(Segment(str(stage.at), stage.output, level, begins, tuple(moves), following, frozenset()))
    return _with_carried(made)


def _scale(path: Variance | Flow, level: float) -> float:
    """What the network's state is to the integrated one."""
    return float(path.marginal(np.array(level))[0]) if isinstance(path, Variance) else 1.0


def _with_carried(segments: list[Segment]) -> tuple[Segment, ...]:
    """From the last to the first: what is read before it is written."""
    live: frozenset[str] = frozenset()
    found = []
    for segment in reversed(segments):
        needed = live | {segment.next}
        for move in reversed(segment.moves):
            kept = {to: slot for slot, to in move.keep}
            needed = frozenset(kept.get(name, name) for name in needed if name != move.to or name in kept)
            needed |= set(move.of)
        live = needed - {segment.at, segment.output}
        found.append(segment._replace(carried=live))
    return tuple(reversed(found))
