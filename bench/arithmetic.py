"""The sides of the cases that move memory: x = c0 x + c1 s + cz z in place, and normal noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fpfast
from bench.gates import check_equal, check_normal
from bench.machine import Machine
from bench.peers import compiled, eager, jaxjit
from bench.timing import Run, Side, seconds
from fpfast import ops
from fpfast.native import Cpu
from fpfast.reference import Key

COEFFICIENTS = (0.9, 0.05, 0.3)  # applied over and over they keep x near 1
ENDS = 16  # rows at either end that are compared


def _ends(x: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(x[:ENDS]), np.asarray(x[-ENDS:])])).double()


def _reference_noise(shape: tuple[int, int]) -> Tensor:
    draw = partial(fpfast.noise.normal, 0, (ENDS, shape[1]), backend="reference")
    return torch.cat([draw(), draw(first_sample=shape[0] - ENDS)]).double()


def _checked_combine(run: Run, x: Tensor, s: Tensor, noise: Tensor | str | None) -> Run:
    """After one run on x; ``noise``: what it must have added, or "any", or None."""
    before = _ends(x)
    after = _ends(run())
    exact = COEFFICIENTS[0] * before + COEFFICIENTS[1] * _ends(s)
    if isinstance(noise, str):
        check_normal((after - exact) / COEFFICIENTS[2])
    else:
        check_equal(after, exact if noise is None else exact + COEFFICIENTS[2] * noise)
    return run


def _fastest(build: Callable[[int], Run]) -> tuple[Run, str]:
    """The faster of two runs of JAX: on one device, whose operations may use all threads, or on one for each thread."""
    runs = {devices: build(devices) for devices in {1, torch.get_num_threads()}}
    times = {devices: min(seconds(run) for _ in range(3)) for devices, run in runs.items()}
    devices = min(times, key=times.__getitem__)
    return runs[devices], f"{devices} device" + "s" * (devices > 1)


def combine_sides(shape: tuple[int, int], machine: Machine) -> dict[str, Side]:
    x, s, target = torch.randn(shape), torch.randn(shape), torch.zeros(shape)
    coef = torch.tensor([*COEFFICIENTS[:2], 0.0, 0.0, COEFFICIENTS[2]])
    seed = torch.tensor(0)
    count = x.numel()

    def with_noise() -> tuple[Run, str]:
        run = partial(ops.combine_, x, [s], coef, seed=seed)
        return _checked_combine(run, x, s, _reference_noise(shape)), ""

    def without_noise() -> tuple[Run, str]:
        return _checked_combine(partial(ops.combine_, x, [s], coef), x, s, None), ""

    def triad() -> tuple[Run, str]:
        run = partial(machine.triad, target.data_ptr(), x.data_ptr(), s.data_ptr(), count)
        run()
        check_equal(_ends(target), _ends(x) + 0.5 * _ends(s))
        return run, "a = b + s c, plain stores"

    def update() -> tuple[Run, str]:
        run = partial(machine.update, target.data_ptr(), s.data_ptr(), count)
        before = _ends(target)
        run()
        check_equal(_ends(target), 0.5 * before + 0.25 * _ends(s))
        return run, "a = s a + t c"

    def by_torch(build: Callable[..., Run]) -> tuple[Run, str]:
        return _checked_combine(build(x, s, COEFFICIENTS), x, s, "any"), ""

    def jax() -> tuple[Run, str]:
        def build(devices: int) -> Run:
            return _checked_combine(jaxjit.combine(x, s, COEFFICIENTS, devices=devices), x, s, "any")

        return _fastest(build)

    return {
        "fpfast": with_noise,
        "fpfast, no noise": without_noise,
        "triad": triad,
        "triad in place": update,
        "torch eager": partial(by_torch, eager.combine),
        "torch eager, buffer reused": partial(by_torch, eager.combine_reusing),
        "torch.compile": partial(by_torch, compiled.combine),
        "jax": jax,
    }


def normal_sides(shape: tuple[int, int]) -> dict[str, Side]:
    def ours() -> tuple[Run, str]:
        run = partial(fpfast.noise.normal, 0, shape)
        check_equal(_ends(run()), _reference_noise(shape))
        return run, ""

    def checked(run: Run) -> Run:
        check_normal(_ends(run()))
        return run

    return {
        "fpfast": ours,
        "torch eager": lambda: (checked(partial(torch.randn, shape)), ""),
        "jax": lambda: _fastest(lambda devices: checked(jaxjit.normal(shape, devices=devices))),
    }


def combine_at_level(shape: tuple[int, int], level: str) -> tuple[Run, str]:
    x, s = torch.randn(shape), torch.randn(shape)
    coef = torch.tensor([*COEFFICIENTS[:2], 0.0, 0.0, COEFFICIENTS[2]])
    key = Key(torch.tensor(0), 0, 1, 0)

    def run() -> Tensor:
        Cpu(level).combine(x, [x, s], coef, key)
        return x

    return _checked_combine(run, x, s, _reference_noise(shape)), ""


def normal_at_level(shape: tuple[int, int], level: str) -> tuple[Run, str]:
    out, key = torch.empty(shape), Key(torch.tensor(0), 0, 1, 0)

    def run() -> Tensor:
        Cpu(level).noise(out, "normal", key)
        return out

    check_equal(_ends(run()), _reference_noise(shape))
    return run, ""
