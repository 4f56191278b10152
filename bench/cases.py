"""The registry of cases.                                                                                     GROUPS"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import fpfast
from bench import arithmetic, likelihoods, pipelines, residual
from bench import overhead as overheads
from bench import unet as unets
from bench.machine import Machine
from bench.peers import compiled, eager, jaxjit, residual_jax, residual_torch
from bench.residual import Residual
from bench.timing import Case, Run, Side
from bench.trajectory import Build, Sampler, Trajectory, check_noise, check_without_noise, fastest, fpfast_sampler
from fpfast import _native, fused, ops
from fpfast.embedded import embedded
from fpfast.network import MLP, load_mlp

REFERENCE_NETWORK = "blob_w0.0.safetensors"
PARTICLE_STEP = "ns/particle-step"


@dataclass(frozen=True)
class Settings:
    threads: int
    quick: bool  # sizes that only show that everything runs
    reference_data: Path | None  # the folder of the networks of arXiv 2311.15996
    machine: Machine


def fpfast_at_level(level: str, score: fpfast.Score, shape: tuple[int, int], steps: int) -> Tensor:
    """What ``fpfast.sample(score, shape, steps=steps, seed=0)`` returns, computed at one instruction-set level."""
    net = fused.Fused(cast(nn.Module, score.net), shape[1], level)
    return fpfast.sample(fpfast.Score(net, score.sde, score.predicts), shape, steps=steps, seed=0)


# ------------------------------------------------------------------------------------------------ trajectories


def _authors_score(settings: Settings) -> fpfast.Score:
    """The potential network 3-80-80-80-1 of arXiv 2311.15996, or the embedded network's weights in its form.

    Random weights would not do: the state would grow like e^t, and the cost of some functions depends on its size.
    """
    form: dict[str, Any] = {"activation": "softplus:100", "potential": True, "time_first": True}
    if settings.reference_data is None:
        net = MLP(2, [80, 80, 80], **form)
        net.load_state_dict(cast(MLP, embedded("blob_w0").net).state_dict())
    else:
        net = load_mlp(settings.reference_data / REFERENCE_NETWORK, [80, 80, 80], **form)
    return fpfast.Score(net.eval().requires_grad_(False), fpfast.OU(), predicts="potential")


def _random_score(width: int, activation: str, dimension: int, potential: bool) -> fpfast.Score:
    """A random perceptron with three hidden layers. With T = 1 its states stay small whatever its weights."""
    torch.manual_seed(0)
    net = MLP(dimension, [width] * 3, activation=activation, potential=potential).eval().requires_grad_(False)
    return fpfast.Score(net, fpfast.OU(T=1.0), predicts="potential" if potential else "score")


def _flushed(machine: Machine, build: Build) -> Build:
    """With numbers below 2^-126 taken for zero, as JAX does by itself; they slow torch down where sigmoids saturate."""

    def flushed(run: Run) -> object:
        machine.flush_denormals(True)
        try:
            return run()
        finally:
            machine.flush_denormals(False)

    def wrapped(problem: Trajectory) -> Sampler:
        sampler = build(problem)
        return lambda x, noise: partial(flushed, sampler(x, noise))

    return wrapped


def _fpfast(problem: Trajectory) -> tuple[Run, str]:
    sampler = fpfast_sampler(problem)
    check_without_noise(problem, sampler)
    run = sampler(None, 1.0)
    check_noise(problem, run)
    _, info = fpfast.sample(problem.score, (1, problem.dimension), steps=problem.steps, seed=0, return_info=True)
    return run, "fused" if info.fused else f"not fused: {info.not_fused}"


def _compiled(problem: Trajectory) -> Trajectory:
    """With the network recognised beforehand; ``fpfast.sample`` does it in each call for a network as it is."""
    score = problem.score
    net = fused.compile(cast(nn.Module, score.net), problem.dimension)
    return replace(problem, score=fpfast.Score(net, score.sde, score.predicts))


def _sides(problem: Trajectory, settings: Settings) -> dict[str, Side]:
    def torch_compile(draws: bool) -> tuple[Run, str]:
        found = compiled.candidates(problem, draws=draws, few=settings.quick)
        return fastest(problem, {name: _flushed(settings.machine, build) for name, build in found.items()}, draws)

    def jax(draws: bool) -> tuple[Run, str]:
        return fastest(problem, jaxjit.candidates(problem, draws=draws, few=settings.quick), draws)

    flushed_eager = _flushed(settings.machine, eager.sampler)
    return {
        "fpfast": partial(_fpfast, problem),
        "torch eager": lambda: fastest(problem, {"": eager.sampler}, True),
        "torch eager, denormals flushed": lambda: fastest(problem, {"": flushed_eager}, True),
        "torch.compile": partial(torch_compile, True),
        "torch.compile, no noise": partial(torch_compile, False),
        "jax": partial(jax, True),
        "jax, no noise": partial(jax, False),
    }


def _trajectory_case(group: str, name: str, problem: Trajectory, sides: dict[str, Side]) -> Case:
    return Case(group, name, sides, PARTICLE_STEP, problem.particle_steps, flops=problem.flops)


def authors(settings: Settings) -> Iterator[Case]:
    steps = 10 if settings.quick else 100
    for batch in (512,) if settings.quick else (16384, 262144):
        problem = Trajectory(_authors_score(settings), "softplus:100", batch, steps)
        name = f"3-80-80-80-1 potential softplus:100, batch {batch}, {steps} steps"
        yield _trajectory_case("authors", name, problem, _sides(problem, settings))


def small(settings: Settings) -> Iterator[Case]:
    steps = 10 if settings.quick else 100
    for batch in (64,) if settings.quick else (64, 256, 1024):
        nets = {
            "3-80-80-80-1 potential softplus:100": (_authors_score(settings), "softplus:100"),
            "3-64-64-64-2 score silu": (_random_score(64, "silu", 2, False), "silu"),
        }
        for name, (score, activation) in nets.items():
            problem = Trajectory(score, activation, batch, steps)
            name = f"{name}, batch {batch}, {steps} steps"
            sides: dict[str, Side] = {
                "fpfast": partial(_fpfast, problem),
                "fpfast, compiled": partial(_fpfast, _compiled(problem)),
            }
            sides.update(_sides(problem, settings))
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
        problem = Trajectory(_random_score(width, activation, dimension, potential), activation, batch, steps)
        kind = "potential" if potential else "score"
        name = f"{width:3} {activation:8} d {dimension:2} {kind:9} batch {batch}"
        yield _trajectory_case("widths", name, problem, _three_sides(problem, settings))


def _three_sides(problem: Trajectory, settings: Settings) -> dict[str, Side]:
    def torch_compile() -> tuple[Run, str]:
        found = compiled.candidates(problem, draws=True, few=True)
        return fastest(problem, {name: _flushed(settings.machine, build) for name, build in found.items()}, True)

    return {
        "fpfast": partial(_fpfast, problem),
        "torch.compile": torch_compile,
        "jax": lambda: fastest(problem, jaxjit.candidates(problem, draws=True, few=settings.quick), True),
    }


# ------------------------------------------------------------------------------------------------ arithmetic


def _shapes(settings: Settings, *millions: int) -> Iterator[tuple[int, int]]:
    for size in (0.25,) if settings.quick else millions:
        yield int(size * 2**20) // 1024, 1024


def combine(settings: Settings) -> Iterator[Case]:
    for shape in _shapes(settings, 4, 16, 64):
        sides = arithmetic.combine_sides(shape, settings.machine)
        bases = (("fpfast",), ("triad",), ("torch eager",))
        yield Case("combine", f"{_size(shape)} elements", sides, "ns/element", shape[0] * shape[1], bases=bases)


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
    problem = Trajectory(_authors_score(settings), "softplus:100", *((512, 10) if settings.quick else (16384, 100)))
    sides = {level: partial(_trajectory_at_level, problem, level) for level in names}
    name = f"trajectory, batch {problem.batch}, {problem.steps} steps"
    yield Case("levels", name, sides, PARTICLE_STEP, problem.particle_steps, flops=problem.flops, bases=bases)


def _trajectory_at_level(problem: Trajectory, level: str) -> tuple[Run, str]:
    shape = (problem.batch, problem.dimension)
    run = partial(fpfast_at_level, level, problem.score, shape, problem.steps)
    check_noise(problem, run)
    return run, ""


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
        "3-80-80-80-1 softplus:100, OU": (_authors_score(settings), "softplus:100", 50_000),
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
    step = build(problem)

    def flushed() -> tuple[Tensor, list[Tensor]]:
        machine.flush_denormals(True)
        try:
            return step()
        finally:
            machine.flush_denormals(False)

    return flushed


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
