"""torch eager: what one writes by hand without an extension."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.timing import Run
from bench.trajectory import Sampler, Trajectory


def _module(problem: Trajectory) -> nn.Module:
    name, _, beta = problem.activation.partition(":")
    activations: dict[str, Callable[[], nn.Module]] = {
        "tanh": nn.Tanh,
        "silu": nn.SiLU,
        "softplus": lambda: nn.Softplus(beta=float(beta or 1)),
    }
    modules: list[nn.Module] = []
    for layer in problem.linear:
        modules += [layer, activations[name]()]
    return nn.Sequential(*modules[:-1])


def network(problem: Trajectory) -> Callable[[Tensor, Tensor], Tensor]:
    """The score at x and a time or times t: the network, or its gradient by autograd."""
    net, time_first = _module(problem), problem.net.time_first

    def score(x: Tensor, t: Tensor) -> Tensor:
        column = t.reshape(-1, 1).expand(len(x), 1)
        inputs = torch.cat((column, x) if time_first else (x, column), dim=1)
        return net(inputs)

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(score(x, t).sum(), x)[0]

    return gradient if problem.potential else score


def sampler(problem: Trajectory) -> Sampler:
    """As Deveney et al. (arXiv 2311.15996) sample: step by step the score and an update."""
    score, shape = network(problem), (problem.batch, problem.dimension)

    def prepare(start: Tensor | None, noise: float) -> Run:
        rows, times = problem.rows(noise).float(), problem.times.float()

        @torch.no_grad()
        def run() -> Tensor:
            x = problem.prior_std * torch.randn(shape) if start is None else start
            for row, t in zip(rows, times, strict=False):
                x = row[0] * x + row[1] * score(x, t) + row[2] * torch.randn_like(x)
            return x

        return run

    return prepare


def combine(x: Tensor, s: Tensor, c: tuple[float, float, float]) -> Run:
    """x = c0 x + c1 s + cz z in place."""
    return lambda: x.mul_(c[0]).add_(s, alpha=c[1]).add_(torch.randn_like(x), alpha=c[2])


def combine_reusing(x: Tensor, s: Tensor, c: tuple[float, float, float]) -> Run:
    """:func:`combine` with one buffer for the noise of all calls."""
    z = torch.empty_like(x)
    return lambda: x.mul_(c[0]).add_(s, alpha=c[1]).add_(z.normal_(), alpha=c[2])
