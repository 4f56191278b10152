"""torch.compile: Taylor mode written out by hand, value, directions and rate as columns of one matrix product.

The rate M = d_t + a x.grad - g^2/2 Laplacian goes through an activation as M h = h' M z - g^2/2 h'' |grad z|^2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.residual import Gradients, Residual, Step

Jet = tuple[Tensor, Tensor, Tensor]


def _tanh(z: Tensor, _: float) -> Jet:
    h = torch.tanh(z)
    first = 1 - h * h
    return h, first, -2 * h * first


def _softplus(z: Tensor, beta: float) -> Jet:
    sigmoid = torch.sigmoid(beta * z)
    logarithm = torch.log(torch.where(z >= 0, sigmoid, 1 - sigmoid))
    return z.clamp(min=0) - logarithm / beta, sigmoid, beta * sigmoid * (1 - sigmoid)


ACTIVATIONS: dict[str, Callable[[Tensor, float], Jet]] = {"tanh": _tanh, "softplus": _softplus}


def _residual(problem: Residual) -> Callable[..., Tensor]:
    """R's sum of squares as a function of points and parameters."""
    name, _, parameter = problem.activation.partition(":")
    act, beta, d = ACTIVATIONS[name], float(parameter or 1), problem.dimension
    x_columns = slice(1, None) if problem.net.time_first else slice(0, d)
    t_column = 0 if problem.net.time_first else d

    def loss(x: Tensor, t: Tensor, a: Tensor, gamma: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        by_x, by_t = weights[0][:, x_columns], weights[0][:, t_column]
        value = x @ by_x.t() + t[:, None] * by_t + biases[0]
        along = [by_x[:, i].expand_as(value) for i in range(d)]
        rate = a[:, None] * (x @ by_x.t()) + by_t
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            h, first, second = act(value, beta)
            square = sum(one * one for one in along)
            columns = [h, *(first * one for one in along), first * rate - gamma[:, None] * second * square]
            z = torch.cat(columns) @ weight.t()
            value, *along, rate = z.split(len(x))
            value = value + bias
        square = sum(one * one for one in along)
        r = rate[:, 0] + a * d - gamma * square[:, 0]
        return (r * r).sum()

    return loss


def step(problem: Residual, *, tile: int, options: dict[str, Any]) -> Step:
    """Tiles of points, whose gradients are added up."""
    compiled = torch.compile(_residual(problem), fullgraph=True, dynamic=False, options=options)
    parameters = [p.detach().clone().requires_grad_() for layer in problem.layers for p in (layer.weight, layer.bias)]
    a, gamma = problem.coefficients
    tiles = [v.split(tile) for v in (problem.x, problem.t, a, gamma)]

    def run() -> tuple[Tensor, Gradients]:
        total: Gradients = []
        loss = torch.zeros(())
        for parts in zip(*tiles, strict=True):
            some = compiled(*parts, *parameters) / problem.points
            found = torch.autograd.grad(some, parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
            loss += some.detach()
        return loss, total

    return run


def candidates(problem: Residual, few: bool) -> dict[str, Callable[[Residual], Step]]:
    plain: dict[str, Any] = {}
    autotuned = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
    tiles = [tile for tile in (500, 2000, 10000) if tile < problem.points and problem.points % tile == 0]
    tiles = tiles[:1] if few else [*tiles, problem.points]
    found = {f"tile {tile}": partial(step, tile=tile, options=plain) for tile in tiles}
    if not few:
        found["tile 2000, max-autotune"] = partial(step, tile=2000, options=autotuned)
    return found
