"""What a step costs beside the network: Euler's method with a network that costs next to nothing.

fpfast does not recognise it (it is no module), so that the loop for any network is timed, not the fused engine. All run
STEPS steps in float32 on a small batch; without noise each is held against Euler's method in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import fpfast
from bench.gates import GateError, check_normal, tensor
from bench.peers import loops
from bench.timing import Run, Side
from fpfast.compat import k_diffusion

STEPS = 100
Sides = dict[str, Side]


def sides(batch: int, dimension: int, steps: int = STEPS) -> Sides:
    """All sides; the first is fpfast's."""
    torch.manual_seed(0)
    linear = nn.Linear(dimension, dimension).requires_grad_(False)
    linear.weight.mul_(0.3)
    x = torch.randn(batch, dimension) * 80
    sigmas = torch.cat([_karras(steps), torch.zeros(1)])

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        return linear(x)

    exact = _euler(linear, x, sigmas)
    score = fpfast.Score(net, fpfast.EDM(), predicts="x0")
    options = {"solver": "euler_maruyama", "times": sigmas.double(), "seed": 0}

    def ours(noise: float) -> tuple[Run, str]:
        _agree(fpfast.sample(score, tuple(x.shape), x=x, **{**options, "noise": 0.0}), exact)
        run = partial(fpfast.sample, score, tuple(x.shape), x=x, noise=noise, **options)
        return run, f"noise {noise:g}"

    def checked(build: Callable[[], Run], expected: Tensor | None) -> tuple[Run, str]:
        run = build()
        found = tensor(run())
        if expected is not None:
            _agree(found, expected)
        elif found.shape != x.shape or not bool(found.isfinite().all()):
            raise GateError(f"expected {len(x)} finite samples, got {tuple(found.shape)}, or not finite")
        return run, "" if expected is not None else "not the same problem: as many steps of the same cost"

    def scheduler(ours: bool) -> tuple[Run, str]:
        from diffusers.schedulers import EulerDiscreteScheduler

        from fpfast.compat.diffusers import FPFastScheduler

        theirs = EulerDiscreteScheduler(prediction_type="sample", timestep_spacing="trailing")
        other = FPFastScheduler(solver="euler_maruyama", prediction_type="sample", timestep_spacing="trailing")
        theirs.set_timesteps(steps)
        top = float(theirs.sigmas[0])
        divided = x / 80 * (top / math.sqrt(1 + top**2))  # our state is alpha x0 + std z, theirs x0 + sigma z
        runs = [
            loops.diffusers_scheduler(theirs, net, x / 80, sigmas),
            loops.diffusers_scheduler(other, net, divided, sigmas),
        ]
        _agree(runs[1](), runs[0]().double())
        return runs[ours], "on the timesteps of a VP model"

    return {
        "fpfast": partial(ours, 1.0),
        "fpfast, no noise": partial(ours, 0.0),
        "the network alone": lambda: (_alone(linear, x, steps), ""),
        "torch eager": lambda: (_plain(linear, x, steps), "x + h (x + net(x)) + c randn_like(x)"),
        "fpfast's sample_euler": partial(checked, partial(_sample_euler, net, x, sigmas), exact),
        "k-diffusion sample_euler": partial(checked, partial(loops.sample_euler, net, x, sigmas), exact),
        "fpfast's scheduler": partial(scheduler, True),
        "diffusers EulerDiscreteScheduler": partial(scheduler, False),
        "torchdiffeq euler": partial(checked, partial(loops.torchdiffeq_euler, net, x, sigmas), exact),
        "torchsde euler": partial(checked, partial(loops.torchsde_euler, net, x, sigmas), None),
        "torchsde euler, [0, 1]": partial(checked, partial(loops.torchsde_euler, net, x, sigmas, 1 / steps), None),
        "jax, diffrax Euler": partial(
            checked, partial(loops.diffrax_euler, linear.weight, linear.bias, x, sigmas), exact
        ),
    }


def _karras(steps: int) -> Tensor:
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps, dtype=torch.float64)
    sigmas = (ramp**7).float()
    sigmas[0] = 80.0
    return sigmas


def _euler(linear: nn.Linear, x: Tensor, sigmas: Tensor) -> Tensor:
    weight, bias, x, levels = linear.weight.double(), linear.bias.double(), x.double(), sigmas.double().tolist()
    for sigma, after in itertools.pairwise(levels):
        x = x + (after - sigma) * (x - (x @ weight.T + bias)) / sigma
    return x


def _agree(found: Tensor, exact: Tensor) -> None:
    error = float((found.double() - exact).abs().max()) / max(1.0, float(exact.abs().max()))
    if not error < 1e-4:
        raise GateError(f"relative error: at most 1e-4 expected, got {error:.2g}")


def _alone(linear: nn.Linear, x: Tensor, steps: int) -> Run:
    @torch.no_grad()
    def run() -> None:
        for _ in range(steps):
            linear(x)

    return run


def _plain(linear: nn.Linear, start: Tensor, steps: int) -> Run:
    h, c = 0.01, 0.1
    check_normal(torch.randn(4096, 4))

    @torch.no_grad()
    def run() -> Tensor:
        x = start
        for _ in range(steps):
            x = x + h * (x + linear(x)) + c * torch.randn_like(x)
        return x

    return run


def _sample_euler(net: loops.Network, x: Tensor, sigmas: Tensor) -> Run:
    return lambda: k_diffusion.sample_euler(net, x, sigmas, disable=True)
