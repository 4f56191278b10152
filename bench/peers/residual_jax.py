"""JAX: the Hessian by transformations, and Taylor mode written out by hand; value_and_grad in one jit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.sharding import PartitionSpec
from torch import Tensor

from bench.peers.jaxjit import ALL, SPLIT, Devices, from_torch
from bench.residual import Gradients, Residual, Step

Jet = tuple[jax.Array, jax.Array, jax.Array]
Parameters = list[tuple[jax.Array, jax.Array]]


def _tanh(z: jax.Array, _: float) -> Jet:
    h = jnp.tanh(z)
    first = 1 - h * h
    return h, first, -2 * h * first


def _softplus(z: jax.Array, beta: float) -> Jet:
    e = jnp.exp(-jnp.abs(beta * z))
    inverse = 1 / (1 + e)
    sigmoid = jnp.where(z >= 0, inverse, e * inverse)
    return jnp.maximum(z, 0) + jnp.log(1 + e) / beta, sigmoid, beta * e * inverse * inverse


ACTIVATIONS: dict[str, Callable[[jax.Array, float], Jet]] = {"tanh": _tanh, "softplus": _softplus}
PLAIN: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "tanh": lambda z, _: jnp.tanh(z),
    "softplus": lambda z, beta: jax.nn.softplus(beta * z) / beta,
}


def _of_hessian(problem: Residual) -> Callable[..., jax.Array]:
    name, _, parameter = problem.activation.partition(":")
    act, beta, d = PLAIN[name], float(parameter or 1), problem.dimension

    def potential(x: jax.Array, t: jax.Array, layers: Parameters) -> jax.Array:
        h = jnp.concatenate((t[None], x) if problem.net.time_first else (x, t[None]))
        for weight, bias in layers[:-1]:
            h = act(weight @ h + bias, beta)
        return (layers[-1][0] @ h + layers[-1][1])[0]

    def residual(x: jax.Array, t: jax.Array, a: jax.Array, gamma: jax.Array, layers: Parameters) -> jax.Array:
        s, rate = jax.grad(potential, (0, 1))(x, t, layers)
        laplacian = jnp.trace(jax.hessian(potential)(x, t, layers))
        return rate + a * d + a * (x @ s) - gamma * (s @ s + laplacian)

    each = jax.vmap(residual, (0, 0, 0, 0, None))
    return lambda layers, x, t, a, gamma: (each(x, t, a, gamma, layers) ** 2).sum()


def _by_hand(problem: Residual) -> Callable[..., jax.Array]:
    name, _, parameter = problem.activation.partition(":")
    act, beta, d = ACTIVATIONS[name], float(parameter or 1), problem.dimension
    x_columns = slice(1, None) if problem.net.time_first else slice(0, d)
    t_column = 0 if problem.net.time_first else d

    def loss(layers: Parameters, x: jax.Array, t: jax.Array, a: jax.Array, gamma: jax.Array) -> jax.Array:
        by_x, by_t = layers[0][0][:, x_columns], layers[0][0][:, t_column]
        plain = x @ by_x.T
        value, rate = plain + t[:, None] * by_t + layers[0][1], a[:, None] * plain + by_t
        along = jnp.broadcast_to(by_x.T[:, None], (d, *value.shape))
        for weight, bias in layers[1:]:
            h, first, second = act(value, beta)
            bent = first * rate - gamma[:, None] * second * (along**2).sum(0)
            columns = jnp.concatenate((h[None], first * along, bent[None]))
            z = (columns.reshape(-1, columns.shape[2]) @ weight.T).reshape(d + 2, len(x), -1)
            value, along, rate = z[0] + bias, z[1:-1], z[-1]
        r = rate[:, 0] + a * d - gamma * (along[:, :, 0] ** 2).sum(0)
        return (r * r).sum()

    return loss


def step(problem: Residual, *, loss: Callable[[Residual], Callable[..., jax.Array]], tile: int, devices: int) -> Step:
    where = Devices(devices)
    share = problem.points // devices
    tile = min(tile, share)
    of_tile = jax.value_and_grad(loss(problem))
    layers = [(from_torch(layer.weight), from_torch(layer.bias)) for layer in problem.layers]

    def of_share(layers: Parameters, *points: jax.Array) -> Any:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_tile(layers, *part)), None

        if tile == share:
            found = of_tile(layers, *points)
        else:
            parts = [p.reshape(share // tile, tile, *p.shape[1:]) for p in points]
            zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), layers))
            found, _ = lax.scan(add, zeros, parts)
        return jax.tree.map(lambda one: one[None], found)  # a row for each device

    cut: list[PartitionSpec] = [ALL, SPLIT, SPLIT, SPLIT, SPLIT]
    call = where.jit(of_share, *cut)
    points = [where.put(from_torch(v)) for v in (problem.x, problem.t, *problem.coefficients)]

    def run() -> tuple[Tensor, Gradients]:
        loss, gradients = jax.block_until_ready(call(layers, *points))

        def total(one: jax.Array) -> Tensor:
            return torch.from_numpy(np.array(one)).sum(0) / problem.points

        return total(loss), [total(one) for pair in gradients for one in pair]

    return run


def whole_batch(problem: Residual) -> Step:
    """The Hessian of all points at once, on one device: what comes out if one writes nothing but the formula."""
    return step(problem, loss=_of_hessian, tile=problem.points, devices=1)


def candidates(problem: Residual, hessian: bool, few: bool) -> dict[str, Callable[[Residual], Step]]:
    found: dict[str, Callable[[Residual], Step]] = {}
    loss = _of_hessian if hessian else _by_hand
    for devices in sorted({1, jax.device_count()}, reverse=True):
        share = problem.points // devices
        tiles = [tile for tile in (250, 1000, 5000) if share % tile == 0 and tile < share]
        for tile in tiles[:1] if few else [*tiles, share]:
            label = f"tile {tile}, {devices} device" + "s" * (devices > 1)
            found[label] = partial(step, loss=loss, tile=tile, devices=devices)
    return found
