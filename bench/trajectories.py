"""The sides of the cases that sample with perceptrons, and the networks of those cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

import fpfast
from bench.gates import GateError, tensor
from bench.machine import Machine
from bench.peers import compiled, eager, jaxjit, loops
from bench.timing import Run, Settings, Side
from bench.trajectory import Build, Sampler, Trajectory, check_noise, check_without_noise, fastest, fpfast_sampler
from fpfast import fused
from fpfast.embedded import embedded
from fpfast.network import MLP, load_mlp

REFERENCE_NETWORK = "blob_w0.0.safetensors"


def authors_score(settings: Settings) -> fpfast.Score:
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


def random_score(width: int, activation: str, dimension: int, potential: bool) -> fpfast.Score:
    """A random perceptron with three hidden layers. With T = 1 its states stay small whatever its weights."""
    torch.manual_seed(0)
    net = MLP(dimension, [width] * 3, activation=activation, potential=potential).eval().requires_grad_(False)
    return fpfast.Score(net, fpfast.OU(T=1.0), predicts="potential" if potential else "score")


def ours(problem: Trajectory) -> tuple[Run, str]:
    sampler = fpfast_sampler(problem)
    check_without_noise(problem, sampler)
    run = sampler(None, 1.0)
    check_noise(problem, run)
    _, info = fpfast.sample(problem.score, (1, problem.dimension), steps=problem.steps, seed=0, return_info=True)
    return run, "fused" if info.fused else f"not fused: {info.not_fused}"


def recognised(problem: Trajectory) -> Trajectory:
    """With the network recognised beforehand; ``fpfast.sample`` does it in each call for a network as it is."""
    score = problem.score
    net = fused.compile(cast(nn.Module, score.net), problem.dimension)
    return replace(problem, score=fpfast.Score(net, score.sde, score.predicts))


def at_level(problem: Trajectory, level: str) -> tuple[Run, str]:
    """What ``fpfast.sample`` returns, computed at one instruction-set level."""
    score = problem.score
    net = fused.Fused(cast(nn.Module, score.net), problem.dimension, level)
    only = replace(problem, score=fpfast.Score(net, score.sde, score.predicts))
    run = fpfast_sampler(only)(None, 1.0)
    check_noise(problem, run)
    return run, ""


def flushed(machine: Machine, run: Callable[[], Any]) -> Any:
    """A run with numbers below 2^-126 taken for zero, as in JAX; they slow torch down where sigmoids saturate."""
    machine.flush_denormals(True)
    try:
        return run()
    finally:
        machine.flush_denormals(False)


def _flushed(machine: Machine, build: Build) -> Build:
    def wrapped(problem: Trajectory) -> Sampler:
        sampler = build(problem)
        return lambda x, noise: partial(flushed, machine, sampler(x, noise))

    return wrapped


def _compiled(problem: Trajectory, settings: Settings, draws: bool, few: bool) -> tuple[Run, str]:
    found = compiled.candidates(problem, draws=draws, few=few)
    return fastest(problem, {name: _flushed(settings.machine, build) for name, build in found.items()}, draws)


def _jax(problem: Trajectory, settings: Settings, draws: bool) -> tuple[Run, str]:
    return fastest(problem, jaxjit.candidates(problem, draws=draws, few=settings.quick), draws)


def all_sides(problem: Trajectory, settings: Settings) -> dict[str, Side]:
    flushed_eager = _flushed(settings.machine, eager.sampler)
    return {
        "fpfast": partial(ours, problem),
        "torch eager": lambda: fastest(problem, {"": eager.sampler}, True),
        "torch eager, denormals flushed": lambda: fastest(problem, {"": flushed_eager}, True),
        "torch.compile": partial(_compiled, problem, settings, True, settings.quick),
        "torch.compile, no noise": partial(_compiled, problem, settings, False, settings.quick),
        "jax": partial(_jax, problem, settings, True),
        "jax, no noise": partial(_jax, problem, settings, False),
    }


def three_sides(problem: Trajectory, settings: Settings) -> dict[str, Side]:
    return {
        "fpfast": partial(ours, problem),
        "torch.compile": partial(_compiled, problem, settings, True, True),
        "jax": partial(_jax, problem, settings, True),
    }


def packages(problem: Trajectory, settings: Settings) -> dict[str, Side]:
    """fpfast beside compilers, and beside packages that call the network step by step, for a network as it is."""
    network = eager.network(problem)
    x, levels = problem.start(), torch.linspace(1.0, 0.01, problem.steps + 1)

    def stepped(build: Callable[[loops.Network, Tensor, Tensor], Run]) -> tuple[Run, str]:
        run = build(network, x, levels)
        states = tensor(run())
        if states.shape != x.shape or not bool(states.isfinite().all()):
            raise GateError(f"expected {len(x)} finite samples, got {tuple(states.shape)}, or not finite")
        return run, "as many steps of the same network"

    def scheduler(net: loops.Network, x: Tensor, sigmas: Tensor) -> Run:
        from diffusers.schedulers import EulerDiscreteScheduler

        return loops.diffusers_scheduler(EulerDiscreteScheduler(prediction_type="sample"), net, x, sigmas)

    return {
        **three_sides(problem, settings),
        "torch eager": lambda: fastest(problem, {"": eager.sampler}, True),
        "diffusers EulerDiscreteScheduler": partial(stepped, scheduler),
        "k-diffusion sample_euler": partial(stepped, loops.sample_euler),
        "torchdiffeq euler": partial(stepped, loops.torchdiffeq_euler),
        "torchsde euler": partial(stepped, loops.torchsde_euler),
    }
