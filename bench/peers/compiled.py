"""torch.compile: whole steps of Euler-Maruyama compiled by inductor, with the gradient written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import select_algorithm

from bench.timing import Run
from bench.trajectory import Build, Sampler, Trajectory

select_algorithm.PRINT_AUTOTUNE = False


def _tanh(a: Tensor, _: float) -> tuple[Tensor, Tensor]:
    h = torch.tanh(a)
    return h, 1 - h * h


def _silu(a: Tensor, _: float) -> tuple[Tensor, Tensor]:
    sigmoid = torch.sigmoid(a)
    h = a * sigmoid
    return h, sigmoid + h * (1 - sigmoid)


def _softplus(a: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """One sigmoid and one logarithm: 1.3 times faster than functional.softplus and a sigmoid beside it."""
    z = beta * a
    sigmoid = torch.sigmoid(z)
    logarithm = torch.log(torch.where(z >= 0, sigmoid, 1 - sigmoid))
    return (z.clamp(min=0) - logarithm) / beta, sigmoid


ACTIVATIONS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {  # value and slope
    "tanh": _tanh,
    "silu": _silu,
    "softplus": _softplus,
}


class _Steps(nn.Module):
    """x after as many steps as ``rows`` has."""

    def __init__(self, problem: Trajectory, draws: bool) -> None:
        super().__init__()
        name, _, beta = problem.activation.partition(":")
        self.act, self.beta = ACTIVATIONS[name], float(beta or 1)
        self.potential, self.draws = problem.potential, draws
        frozen = partial(nn.Parameter, requires_grad=False)
        self.weights = nn.ParameterList([frozen(weight.detach().clone()) for weight, _ in problem.layers])
        self.offsets = nn.ParameterList([frozen(bias.detach().clone()) for _, bias in problem.layers[1:]])

    def score(self, x: Tensor, bias: Tensor) -> Tensor:
        h, slopes = x, []
        for weight, offset in zip(self.weights[:-1], (bias, *self.offsets[:-1]), strict=True):
            h, slope = self.act(torch.addmm(offset, h, weight.t()), self.beta)
            slopes.append(slope)
        if not self.potential:
            return torch.addmm(self.offsets[-1], h, self.weights[-1].t())
        u = self.weights[-1][0] * slopes[-1]
        for k in range(len(slopes) - 1, 0, -1):
            u = (u @ self.weights[k]) * slopes[k - 1]
        return u @ self.weights[0]

    def forward(self, x: Tensor, biases: Tensor, rows: Tensor) -> Tensor:  # [tile, d], [steps, width], [steps, 3]
        for bias, row in zip(biases.unbind(), rows.unbind(), strict=True):
            s = self.score(x, bias)
            x = row[0] * x + row[1] * s
            if self.draws:
                x = x + row[2] * torch.randn_like(x)
        return x


def sampler(problem: Trajectory, *, tile: int, together: int, draws: bool, options: dict[str, Any]) -> Sampler:
    """Tiles of particles, each taken through all steps, ``together`` steps a call."""
    tile = min(tile, problem.batch)
    # Freezing makes constants of the weights; it is read when a graph is traced, where options do not reach.
    freezing = {"freezing": options.get("max_autotune", False)}
    steps = torch.compile(_Steps(problem, draws), fullgraph=True, dynamic=False, options=options)

    def prepare(start: Tensor | None, noise: float) -> Run:
        rows, biases = problem.rows(noise).float().split(together), problem.biases.split(together)

        @torch.no_grad()
        def run() -> Tensor:
            x = problem.prior_std * torch.randn(problem.batch, problem.dimension) if start is None else start
            parts = []
            for part in x.split(tile):
                for row, bias in zip(rows, biases, strict=True):
                    part = steps(part, bias, row)
                parts.append(part)
            return torch.cat(parts)

        with torch._inductor.config.patch(freezing), torch.no_grad():
            steps(problem.start()[:tile], biases[0], rows[0])  # compiles
        return run

    return prepare


def candidates(problem: Trajectory, *, draws: bool, few: bool) -> dict[str, Build]:
    """Ways to cut the work, and options, to be compared; ``few``: the one that is mostly best."""
    # torch's own generator is faster than the one that inductor writes into its kernels.
    plain: dict[str, Any] = {"fallback_random": True}
    autotuned = {**plain, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
    build = partial(sampler, draws=draws, together=1)
    # One activation of a tile takes a quarter to half a megabyte for each thread.
    width = max(len(bias) for _, bias in problem.layers)
    fitting = min(problem.batch, 2 ** int(math.log2(2**17 / width)) * torch.get_num_threads())
    if few:
        return {f"tile {fitting}": partial(build, tile=fitting, options=plain)}
    found: dict[str, Build] = {f"tile {tile}": partial(build, tile=tile, options=plain) for tile in (1024, 4096, 16384)}
    if problem.batch <= 1024:
        build = partial(sampler, draws=draws, together=10, tile=problem.batch)
        found = {
            "one tile": partial(build, together=1, options=plain),
            "10 steps a call": partial(build, options=plain),
            "10 steps a call, C++ wrapper": partial(build, options={**plain, "cpp_wrapper": True}),
        }
    found["max-autotune"] = partial(sampler, draws=draws, together=1, tile=1024, options=autotuned)
    return found


def combine(x: Tensor, s: Tensor, c: tuple[float, float, float]) -> Run:
    """x = c0 x + c1 s + c2 z in place; torch's own generator, which is faster than inductor's."""

    def step(x: Tensor, s: Tensor) -> Tensor:
        return x.copy_(c[0] * x + c[1] * s + c[2] * torch.randn_like(x))

    return partial(torch.compile(step, fullgraph=True, dynamic=False, options={"fallback_random": True}), x, s)


def forget() -> None:
    """Drops what earlier cases compiled, so that its guards are not run through in later ones."""
    torch._dynamo.reset()
