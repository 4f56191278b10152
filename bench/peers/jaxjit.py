"""JAX: one jit for a whole trajectory, a scan over steps inside a map over tiles, with the gradient written by hand.

The devices are as many virtual processors as there are threads, so that work can be split between them without
barriers. Noise is threefry in its form that is not partitionable, drawn for all steps of a tile at once: on a processor
that is several times faster than the rbg generators, and than drawing step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from torch import Tensor

from bench.timing import Run
from bench.trajectory import Build, Sampler, Trajectory

jax.config.update("jax_num_cpu_devices", torch.get_num_threads())
jax.config.update("jax_threefry_partitionable", False)

ALL, SPLIT = PartitionSpec(), PartitionSpec("devices")


def _tanh(a: jax.Array, _: float) -> tuple[jax.Array, jax.Array]:
    h = jnp.tanh(a)
    return h, 1 - h * h


def _silu(a: jax.Array, _: float) -> tuple[jax.Array, jax.Array]:
    sigmoid = jax.nn.sigmoid(a)
    h = a * sigmoid
    return h, sigmoid + h * (1 - sigmoid)


def _softplus(a: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    z = beta * a
    e = jnp.exp(-jnp.abs(z))
    inverse = 1 / (1 + e)
    return (jnp.maximum(z, 0) + jnp.log(1 + e)) / beta, jnp.where(z >= 0, inverse, e * inverse)


ACTIVATIONS: dict[str, Callable[[jax.Array, float], tuple[jax.Array, jax.Array]]] = {  # value and slope
    "tanh": _tanh,
    "silu": _silu,
    "softplus": _softplus,
}


def from_torch(x: Tensor) -> jax.Array:
    return jnp.asarray(x.detach().float().numpy())


class Devices:
    """The first ``count`` devices. Arrays in them are cut along their first dimension."""

    def __init__(self, count: int) -> None:
        self.count = count
        chosen = jax.devices()[:count]
        self.mesh = jax.make_mesh((count,), ("devices",), axis_types=(AxisType.Auto,), devices=chosen)

    def put(self, x: jax.Array) -> jax.Array:
        return x if self.count == 1 else jax.device_put(x, NamedSharding(self.mesh, SPLIT))

    def keys(self, seed: int) -> jax.Array:
        return self.put(jax.random.split(jax.random.key(seed, impl="threefry2x32"), self.count))

    def jit(self, function: Callable[..., Any], *inputs: PartitionSpec, **options: Any) -> Callable[..., Any]:
        """``function`` for each device's share; ``inputs`` says what of its arguments is cut."""
        if self.count > 1:
            function = jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=SPLIT, check_vma=False)
        return jax.jit(function, **options)


def _score(problem: Trajectory) -> Callable[[jax.Array, jax.Array], jax.Array]:
    name, _, parameter = problem.activation.partition(":")
    act, beta = ACTIVATIONS[name], float(parameter or 1)
    layers = [(from_torch(weight), from_torch(bias)) for weight, bias in problem.layers]

    def score(x: jax.Array, bias: jax.Array) -> jax.Array:
        h, slopes = x, []
        for k, (weight, offset) in enumerate(layers[:-1]):
            h, slope = act(h @ weight.T + (offset if k else bias), beta)
            slopes.append(slope)
        last, offset = layers[-1]
        if not problem.potential:
            return h @ last.T + offset
        u = last[0] * slopes[-1]
        for k in range(len(slopes) - 1, 0, -1):
            u = (u @ layers[k][0]) * slopes[k - 1]
        return u @ layers[0][0]

    return score


def sampler(problem: Trajectory, *, tile: int, devices: int, draws: bool) -> Sampler:
    where, score, biases = Devices(devices), _score(problem), from_torch(problem.biases)
    share = (problem.batch // devices, problem.dimension)
    tile = min(tile, share[0])
    tiles = (share[0] // tile, tile, share[1])

    def one_tile(x: jax.Array, rows: jax.Array, key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (problem.steps, *x.shape)) if draws else None

        def step(x: jax.Array, now: Any) -> tuple[jax.Array, None]:
            row, bias, z = now
            x = row[0] * x + row[1] * score(x, bias)
            return (x if z is None else x + row[2] * z), None

        return lax.scan(step, x, (rows, biases, z))[0]

    def trajectory(x: jax.Array, rows: jax.Array, key: jax.Array) -> jax.Array:
        if tiles[0] == 1:
            return one_tile(x, rows, key[0])
        keys = jax.random.split(key[0], tiles[0])
        return lax.map(lambda part: one_tile(part[0], rows, part[1]), (x.reshape(tiles), keys)).reshape(share)

    def prior(key: jax.Array) -> jax.Array:
        return problem.prior_std * jax.random.normal(key[0], share)

    run_all = where.jit(trajectory, SPLIT, ALL, SPLIT)
    start_all = where.jit(prior, SPLIT)

    def prepare(start: Tensor | None, noise: float) -> Run:
        rows = from_torch(problem.rows(noise))
        x = None if start is None else where.put(from_torch(start))
        seeds, keys = where.keys(0), where.keys(1)
        return lambda: run_all(start_all(seeds) if x is None else x, rows, keys).block_until_ready()

    return prepare


def candidates(problem: Trajectory, *, draws: bool, few: bool) -> dict[str, Build]:
    """Ways to cut the work, to be compared; ``few``: the one that is mostly best."""
    found: dict[str, Build] = {}
    for devices in sorted({1, jax.device_count()}, reverse=True):
        share = problem.batch // devices
        for tile in sorted({min(size, share) for size in (512, 2048, 8192)}):
            label = f"tile {tile}, {devices} device" + "s" * (devices > 1)
            found[label] = partial(sampler, tile=tile, devices=devices, draws=draws)
    return dict(list(found.items())[:1]) if few else found


def combine(x: Tensor, s: Tensor, c: tuple[float, float, float], *, devices: int) -> Run:
    """x = c0 x + c1 s + cz z, the memory of x given away to the result."""

    def update(x: jax.Array, s: jax.Array, key: jax.Array) -> jax.Array:
        return c[0] * x + c[1] * s + c[2] * jax.random.normal(key[0], x.shape)

    where = Devices(devices)
    call = where.jit(update, SPLIT, SPLIT, SPLIT, donate_argnums=0)
    state, other, keys = where.put(from_torch(x).copy()), where.put(from_torch(s)), where.keys(0)

    def run() -> jax.Array:
        nonlocal state
        state = call(state, other, keys).block_until_ready()
        return state

    return run


def normal(shape: tuple[int, int], *, devices: int) -> Run:
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key[0], (shape[0] // devices, shape[1]))

    where = Devices(devices)
    call, keys = where.jit(draw, SPLIT), where.keys(0)
    return lambda: call(keys).block_until_ready()


def forget() -> None:
    """Frees what earlier cases compiled."""
    jax.clear_caches()
