"""A trajectory to compute: the problem that fpfast and its peers are given, and the gate their results must pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

import fpfast
from bench.gates import GateError, check_normal, check_states, tensor
from bench.timing import Run, seconds
from fpfast.fused import Fused
from fpfast.network import MLP
from fpfast.solvers import Plan, euler_maruyama
from fpfast.times import grid

# sampler(x, noise): a run from x (None: from the prior, drawn by the run) at a noise level.
Sampler = Callable[[Tensor | None, float], Run]
Build = Callable[["Trajectory"], Sampler]

TUNING_BATCH = 16384  # candidates are compared on at most so many particles
GATE_ROWS = 256
WALK = math.inf  # a noise level that stands for x' = x + z / sqrt(steps), whatever the score


@dataclass(frozen=True)
class Trajectory:
    """``steps`` steps of Euler-Maruyama on ``batch`` particles with a perceptron as score or potential."""

    score: fpfast.Score  # its net is an fpfast.network.MLP
    activation: str
    batch: int
    steps: int

    @property
    def net(self) -> MLP:
        net = self.score.net
        return cast(MLP, net.net if isinstance(net, Fused) else net)

    @property
    def linear(self) -> list[nn.Linear]:
        return [layer for layer in self.net.children() if isinstance(layer, nn.Linear)]

    @property
    def potential(self) -> bool:
        return self.score.predicts == "potential"

    @property
    def dimension(self) -> int:
        return self.net.dimension

    @property
    def prior_std(self) -> float:
        return self.score.sde.prior_std

    @property
    def particle_steps(self) -> int:
        return self.batch * self.steps

    @property
    def flops(self) -> int:
        """Of the matrix products of one particle and step: 2 for each weight, again 2 for a potential's gradient."""
        return 2 * sum(layer.weight.numel() for layer in self.linear) * (2 if self.potential else 1)

    @cached_property
    def times(self) -> Tensor:
        return grid(self.score.sde, None, self.steps)

    def rows(self, noise: float) -> Tensor:
        """[steps, 3] of x' = c0 x + c1 s + cz z, float64."""
        if noise == WALK:
            return torch.tensor([1.0, 0.0, 1 / math.sqrt(self.steps)], dtype=torch.float64).repeat(self.steps, 1)
        table = euler_maruyama(Plan(self.score, self.times, noise, True))
        return table.coef[:, 0][:, [0, 1, 4]]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer; the first one without its column for t, which :attr:`biases` holds."""
        first, *others = self.linear
        x = first.weight[:, 1:] if self.net.time_first else first.weight[:, :-1]
        return [(x.contiguous(), first.bias), *((layer.weight, layer.bias) for layer in others)]

    @property
    def biases(self) -> Tensor:
        """[steps, width]: the first layer's bias with t's column folded in."""
        first = self.linear[0]
        column = first.weight[:, 0] if self.net.time_first else first.weight[:, -1]
        return first.bias + self.times[:-1, None].float() * column

    def start(self) -> Tensor:
        return self.score.sde.prior((self.batch, self.dimension), seed=1)

    def plain(self, x: Tensor) -> Tensor:
        """The final states from x without noise in plain torch, in x's dtype."""
        score = fpfast.Score(copy.deepcopy(self.net).to(x.dtype), self.score.sde, self.score.predicts)
        with torch.no_grad():
            for row, t in zip(self.rows(0.0).to(x.dtype), self.times.to(x.dtype), strict=False):
                x = row[0] * x + row[1] * score.outputs(x, t.expand(len(x)))[0]
        return x


def fpfast_sampler(problem: Trajectory) -> Sampler:
    def sampler(x: Tensor | None, noise: float) -> Run:
        shape = (problem.batch, problem.dimension)
        options: dict[str, Any] = {"solver": "euler_maruyama", "steps": problem.steps, "noise": noise, "seed": 0}
        options["final"] = "noise"  # as many draws as steps
        return lambda: fpfast.sample(problem.score, shape, x=x, **options)

    return sampler


def check(problem: Trajectory, sampler: Sampler, draws: bool) -> None:
    """That a peer's sampler solves the problem, and draws the prior and (``draws``) each step's noise."""
    check_without_noise(problem, sampler)
    states = tensor(sampler(None, WALK)())
    if states.dtype != torch.float32 or tuple(states.shape) != (problem.batch, problem.dimension):
        raise GateError(f"expected float32 of {problem.batch} samples, got {states.dtype} of {tuple(states.shape)}")
    check_normal(states / math.sqrt(problem.prior_std**2 + draws))


def check_without_noise(problem: Trajectory, sampler: Sampler) -> None:
    """Some final states against float64; plain float32 torch sets the scale, as a trajectory may amplify rounding."""
    x = problem.start()
    some = torch.linspace(0, problem.batch - 1, min(GATE_ROWS, problem.batch)).long()
    exact = problem.plain(x[some].double())
    check_states(tensor(sampler(x, 0.0)())[some], exact, problem.plain(x[some]))


def check_noise(problem: Trajectory, run: Run) -> None:
    """That ``run``, of fpfast with seed 0, made the noise of the specification: it is in float64 what it should be."""
    net = copy.deepcopy(problem.net)
    few = min(GATE_ROWS, problem.batch)
    exact, plain = (
        fpfast.sample(
            fpfast.Score(net.to(dtype), problem.score.sde, problem.score.predicts),
            (few, problem.dimension),
            steps=problem.steps,
            seed=0,
            final="noise",
            dtype=dtype,
            backend="reference",
        )
        for dtype in (torch.float64, torch.float32)
    )
    check_states(tensor(run())[:few], exact, plain)


def fastest(problem: Trajectory, candidates: dict[str, Build], draws: bool) -> tuple[Run, str]:
    """A peer's run from the prior at noise 1: of its fastest candidate that passes :func:`check`, and which that is.

    Raises GateError where all fail.
    """
    small = replace(problem, batch=min(problem.batch, TUNING_BATCH))
    times: dict[str, float] = {}
    notes = []
    for name, build in candidates.items() if len(candidates) > 1 else ():
        try:
            sampler = build(small)
            check(small, sampler, draws)
        except Exception as error:  # wrong, or not to be compiled: the others remain
            notes.append(f"{name} failed: {error}".splitlines()[0][:160])
            continue
        run = sampler(None, 1.0)
        times[name] = min(seconds(run) for _ in range(3))
    if len(candidates) > 1 and not times:
        raise GateError("; ".join(notes))
    name = min(times, key=times.__getitem__) if times else next(iter(candidates))
    sampler = candidates[name](problem)
    check(problem, sampler, draws)
    return sampler(None, 1.0), "; ".join([name, *notes])
