"""The registry of cases.                                                                                     GROUPS"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import nn

import fpfast
from bench import arithmetic, likelihoods, pipelines, residual, trajectories
from bench import overhead as overheads
from bench import unet as unets
from bench.machine import Machine
from bench.peers import compiled, jaxjit, residual_jax, residual_torch
from bench.residual import Residual
from bench.timing import Case, Settings, Side
from bench.trajectory import Trajectory
from fpfast import _native, ops
from fpfast.network import MLP

PARTICLE_STEP = "ns/particle-step"


def _trajectory_case(group: str, name: str, problem: Trajectory, sides: dict[str, Side]) -> Case:
    return Case(group, name, sides, PARTICLE_STEP, problem.particle_steps, flops=problem.flops)


def authors(settings: Settings) -> Iterator[Case]:
    steps = 10 if settings.quick else 100
    for batch in (512,) if settings.quick else (16384, 262144):
        problem = Trajectory(trajectories.authors_score(settings), "softplus:100", batch, steps)
        name = f"3-80-80-80-1 potential softplus:100, batch {batch}, {steps} steps"
        yield _trajectory_case("authors", name, problem, trajectories.all_sides(problem, settings))


def small(settings: Settings) -> Iterator[Case]:
    steps = 10 if settings.quick else 100
    for batch in (64,) if settings.quick else (64, 256, 1024):
        nets = {
            "3-80-80-80-1 potential softplus:100": (trajectories.authors_score(settings), "softplus:100"),
            "3-64-64-64-2 score silu": (trajectories.random_score(64, "silu", 2, False), "silu"),
        }
        for name, (score, activation) in nets.items():
            problem = Trajectory(score, activation, batch, steps)
            name = f"{name}, batch {batch}, {steps} steps"
            sides: dict[str, Side] = {
                "fpfast": partial(trajectories.ours, problem),
                "fpfast, compiled": partial(trajectories.ours, trajectories.recognised(problem)),
            }
            sides.update(trajectories.all_sides(problem, settings))
            flops, bases = float(problem.flops * batch), (("fpfast",), ("fpfast, compiled",))
            yield Case("small", name, sides, "us/step", steps, 1e6, flops, bases)


def widths(settings: Settings) -> Iterator[Case]:
    cells = [
        (width, activation, dimension, potential)
        for width in (32, 64, 128, 256, 512)
        for activation in ("tanh", "silu", "softplus")
        for dimension in (2, 10, 64)
        for potential in (False, True)
    ]
    if settings.quick:
        cells = [(32, "tanh", 10, False), (64, "silu", 2, True)]
    steps = 10 if settings.quick else 20
    for width, activation, dimension, potential in cells:
        batch = 256 if settings.quick else {256: 2048, 512: 512}.get(width, 8192)  # a side takes well below a second
        problem = Trajectory(
            trajectories.random_score(width, activation, dimension, potential), activation, batch, steps
        )
        kind = "potential" if potential else "score"
        name = f"{width:3} {activation:8} d {dimension:2} {kind:9} batch {batch}"
        yield _trajectory_case("widths", name, problem, trajectories.three_sides(problem, settings))


def grid(settings: Settings) -> Iterator[Case]:
    """Width, dimension and batch, in all combinations."""
    nets = {
        f"{width:3} tanh, d {dimension:2}, score": (trajectories.random_score(width, "tanh", dimension, False), "tanh")
        for width in ((64,) if settings.quick else (64, 128, 256))
        for dimension in ((2,) if settings.quick else (2, 10, 64))
    }
    if not settings.quick:
        nets[" 80 softplus:100, d  2, potential"] = (trajectories.authors_score(settings), "softplus:100")
    for curve, (score, activation) in nets.items():
        for batch in (64, 256) if settings.quick else (64, 4096, 262144):
            work = Trajectory(score, activation, batch, 1).flops * batch
            steps = 4 if settings.quick else max(2, min(100, round(3e10 / work)))  # fpfast takes below a second
            problem = Trajectory(score, activation, batch, steps)
            sides, count = trajectories.packages(problem, settings), problem.particle_steps
            name = f"{curve}, batch {batch:6}, {steps} steps"
            yield Case("grid", name, sides, PARTICLE_STEP, count, flops=problem.flops, curve=curve, size=batch)


# ------------------------------------------------------------------------------------------------ arithmetic


def _shapes(settings: Settings, *millions: int) -> Iterator[tuple[int, int]]:
    for size in (0.25,) if settings.quick else millions:
        yield int(size * 2**20) // 1024, 1024


def combine(settings: Settings) -> Iterator[Case]:
    for shape in _shapes(settings, 4, 16, 64):
        sides = arithmetic.combine_sides(shape, settings.machine)
        bases = (("fpfast",), ("triad",), ("torch eager",))
        yield Case("combine", f"{_size(shape)} elements", sides, "ns/element", shape[0] * shape[1], bases=bases)


def sizes(settings: Settings) -> Iterator[Case]:
    """What combine takes from 2^10 elements, where a call costs more than its work, to 2^26, far beyond the caches."""
    for power in (10, 12) if settings.quick else range(10, 27, 2):
        shape = (2 ** (power - 5), 32)
        count = shape[0] * shape[1]
        sides = arithmetic.combine_sides(shape, settings.machine)
        yield Case("sizes", f"2^{power} elements", sides, "ns/element", count, curve="combine", size=count)


def normal(settings: Settings) -> Iterator[Case]:
    for shape in _shapes(settings, 4, 16, 64):
        sides = arithmetic.normal_sides(shape)
        yield Case("normal", f"{_size(shape)} elements", sides, "ns/element", shape[0] * shape[1])


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0] * shape[1] / 2**20:g} Mi"


# ------------------------------------------------------------------------------------------------ levels, sharing


def levels(settings: Settings) -> Iterator[Case]:
    names = _native.levels()
    (shape,) = _shapes(settings, 16)
    count = shape[0] * shape[1]
    bases = ((names[0],),)
    for kind, build in (("combine", arithmetic.combine_at_level), ("normal", arithmetic.normal_at_level)):
        sides: dict[str, Side] = {level: partial(build, shape, level) for level in names}
        yield Case("levels", f"{kind}, {_size(shape)} elements", sides, "ns/element", count, bases=bases)
    problem = Trajectory(
        trajectories.authors_score(settings), "softplus:100", *((512, 10) if settings.quick else (16384, 100))
    )
    sides = {level: partial(trajectories.at_level, problem, level) for level in names}
    name = f"trajectory, batch {problem.batch}, {problem.steps} steps"
    yield Case("levels", name, sides, PARTICLE_STEP, problem.particle_steps, flops=problem.flops, bases=bases)


def interleaved(settings: Settings) -> Iterator[Case]:
    """A torch network and fpfast's kernels share one pool of threads: in turn they take what they take alone."""
    if settings.threads == 1:
        return
    ((rows, columns),) = _shapes(settings, 4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256)).requires_grad_(False)
    inputs, x, s = torch.randn(4096, 256), torch.randn(rows, columns), torch.randn(rows, columns)
    coef, seed = torch.tensor([*arithmetic.COEFFICIENTS[:2], 0.0, 0.0, arithmetic.COEFFICIENTS[2]]), torch.tensor(0)

    def network() -> None:
        net(inputs)

    def kernel() -> None:
        ops.combine_(x, [s], coef, seed=seed)

    def both() -> None:
        network()
        kernel()

    def repeated(call: Callable[[], None]) -> Side:
        def run() -> None:
            for _ in range(10):
                call()

        return lambda: (run, "")

    parts = {"network alone": network, "combine alone": kernel, "in turn": both}
    sides = {name: repeated(call) for name, call in parts.items()}
    bases = (("network alone", "combine alone"),)
    yield Case("interleaved", "256-256-256 on 4096 samples, combine", sides, "ms", 10, 1e3, bases=bases)


# ------------------------------------------------------------------------------------------------ residuals


def training(settings: Settings) -> Iterator[Case]:
    """A step of training with the residual: the loss and its gradients by all parameters."""
    wide = MLP(10, [256] * 4, activation="tanh", potential=True)
    problems = {
        "3-80-80-80-1 softplus:100, OU": (trajectories.authors_score(settings), "softplus:100", 50_000),
        "11-256-256-256-256-1 tanh, VP": (fpfast.Score(wide, fpfast.VP(), "potential"), "tanh", 4_000),
    }
    for name, (score, activation, points) in problems.items():
        cast(nn.Module, score.net).requires_grad_(True)
        problem = Residual(score, activation, 1_000 if settings.quick else points)
        hessian, by_hand = (residual_jax.candidates(problem, kind, settings.quick) for kind in (True, False))
        flushed = {
            name: partial(_flushed_step, settings.machine, build)
            for name, build in residual_torch.candidates(problem, settings.quick).items()
        }
        sides: dict[str, Side] = {
            "fpfast": partial(residual.fpfast_step, problem),
            "torch eager": partial(residual.nested, problem),
            "torch.compile": partial(residual.fastest, problem, flushed),
            "jax, Hessian": partial(residual.fastest, problem, {"whole batch": residual_jax.whole_batch}),
            "jax, Hessian, tiles": partial(residual.fastest, problem, hessian),
            "jax": partial(residual.fastest, problem, by_hand),
        }
        name = f"{name}, {problem.points} points"
        count, flops = float(problem.points), float(problem.flops)
        # Training goes from step to step, without pauses.
        yield Case("training", name, sides, "us/point", count, 1e6, flops, shortest=0.02 if settings.quick else 0.4)


def unet(settings: Settings) -> Iterator[Case]:
    """What residuals cost a training step of a small U-Net, over the denoising loss alone."""
    sides: dict[str, Side] = {name: partial(unets.step, name) for name in unets.LOSSES}
    yield Case("unet", f"UNet2DModel, VP, batch {unets.BATCH}", sides, "ms", 1, 1e3, bases=(("denoising alone",),))


# ------------------------------------------------------------------------------------------------ other packages


def overhead(settings: Settings) -> Iterator[Case]:
    steps = 10 if settings.quick else overheads.STEPS
    for batch, dimension in ((64, 2),) if settings.quick else ((64, 2), (4096, 2)):
        sides = overheads.sides(batch, dimension, steps)
        yield Case("overhead", f"batch {batch}, d {dimension}, {steps} steps", sides, "us/step", steps, 1e6)


def pipeline(settings: Settings) -> Iterator[Case]:
    for batch in (1,) if settings.quick else (1, 8):
        steps = 2 if settings.quick else 10
        sides = pipelines.sides(batch, steps)
        yield Case("pipeline", f"UNet2DModel, batch {batch}, {steps} steps", sides, "ms/step", steps, 1e3)


def likelihood(settings: Settings) -> Iterator[Case]:
    for points in (64,) if settings.quick else (64, 4096):
        steps = 20 if settings.quick else 50
        sides = likelihoods.sides(points, steps)
        name = f"3-64-64-64-2 tanh, VP, {points} points, {steps} rk4 steps"
        yield Case("likelihood", name, sides, "us/point", points, 1e6)


def _flushed_step(machine: Machine, build: Callable[[Residual], residual.Step], problem: Residual) -> residual.Step:
    return partial(trajectories.flushed, machine, build(problem))


GROUPS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    group.__name__: group
    for group in (
        authors,
        small,
        combine,
        normal,
        interleaved,
        levels,
        widths,
        grid,
        sizes,
        training,
        unet,
        overhead,
        pipeline,
        likelihood,
    )
}


def forget() -> None:
    """Drops what the peers compiled for earlier cases."""
    compiled.forget()
    jaxjit.forget()
