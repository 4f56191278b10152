"""log p by the probability-flow ODE: classical Runge-Kutta steps of order 4 with the exact divergence, two dimensions.

fpfast integrates a rescaled state on its own grid; the peers take x itself on the same times. All must agree.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fpfast
from bench.gates import GateError, tensor
from bench.timing import Run, Side
from fpfast.network import MLP
from fpfast.times import grid

WIDTH = 64
TOLERANCE = 1e-2  # nats: of the steps, which differ


def sides(points: int, steps: int) -> dict[str, Side]:
    torch.manual_seed(0)
    net = MLP(2, [WIDTH] * 3, activation="tanh").requires_grad_(False)
    score = fpfast.Score(net, fpfast.VP(), predicts="noise")
    unseen = fpfast.Score(lambda x, t: net(x, t), fpfast.VP(), predicts="noise")
    x = torch.randn(points, 2, generator=torch.Generator().manual_seed(1))
    times = grid(score.sde, "asinh", steps).flip(0)
    precise = fpfast.Score(copy.deepcopy(net).double(), fpfast.VP(), predicts="noise")
    exact = fpfast.log_likelihood(precise, x[:64].double(), steps=400, dtype=torch.float64).value

    def checked(run: Run, remark: str = "") -> tuple[Run, str]:
        found = tensor(run()).double()[: len(exact)]
        error = float((found - exact).abs().max())
        if not error < TOLERANCE:
            raise GateError(f"log p: an error of at most {TOLERANCE} nats expected, got {error:.2g}")
        return run, remark

    def ours(which: fpfast.Score) -> tuple[Run, str]:
        return checked(lambda: fpfast.log_likelihood(which, x, steps=steps).value)

    return {
        "fpfast": partial(ours, score),
        "fpfast, not recognised": partial(ours, unseen),
        "torchdiffeq rk4": lambda: checked(_torchdiffeq(net, x, times), "trace by autograd"),
        "jax": lambda: checked(_jax(net, x, times), "one jitted call; trace by forward mode"),
    }


def _coefficients(t: Any, backend: Any) -> tuple[Any, Any]:
    """(beta, std) of fpfast.VP()."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t * t
    return beta, backend.sqrt(-backend.expm1(-integral))


def _torchdiffeq(net: nn.Module, x: Tensor, times: Tensor) -> Run:
    import torchdiffeq

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            beta, std = _coefficients(t.to(y), torch)
            drift = -0.5 * beta * y + 0.5 * beta / std * net(y, t.to(y).expand(len(y)))
            trace = sum(torch.autograd.grad(drift[:, k].sum(), y, retain_graph=k == 0)[0][:, k] for k in range(2))
        return drift.detach(), trace

    def run() -> Tensor:
        # its "rk4" is the 3/8 rule, also of order 4 with four evaluations
        states, gains = torchdiffeq.odeint(slope, (x, torch.zeros(len(x))), times, method="rk4")
        end = states[-1].double()
        return -(end**2).sum(1) / 2 - np.log(2 * np.pi) + gains[-1].double()

    return run


def _jax(net: MLP, x: Tensor, times: Tensor) -> Run:
    import jax
    import jax.numpy as jnp

    layers = [
        (jnp.asarray(layer.weight.numpy()), jnp.asarray(layer.bias.numpy()))
        for layer in net.children()
        if isinstance(layer, nn.Linear)
    ]
    start, knots = jnp.asarray(x.numpy()), jnp.asarray(times.float().numpy())

    def noise(y: Any, t: Any) -> Any:
        h = jnp.concatenate([t[None], y]) if net.time_first else jnp.concatenate([y, t[None]])
        for weight, bias in layers[:-1]:
            h = jnp.tanh(weight @ h + bias)
        return layers[-1][0] @ h + layers[-1][1]

    def slope(y: Any, t: Any) -> tuple[Any, Any]:
        beta, std = _coefficients(t, jnp)

        def drift(y: Any) -> Any:
            return -0.5 * beta * y + 0.5 * beta / std * noise(y, t)

        return drift(y), jnp.trace(jax.jacfwd(drift)(y))

    def step(carry: tuple[Any, Any], ends: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        (y, gain), (t, after) = carry, ends
        h = after - t
        k1, g1 = slope(y, t)
        k2, g2 = slope(y + h / 2 * k1, t + h / 2)
        k3, g3 = slope(y + h / 2 * k2, t + h / 2)
        k4, g4 = slope(y + h * k3, after)
        return (y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), gain + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)), None

    def one(y: Any) -> Any:
        (end, gain), _ = jax.lax.scan(step, (y, jnp.zeros(())), (knots[:-1], knots[1:]))
        return -(end @ end) / 2 - jnp.log(2 * jnp.pi) + gain

    solve = jax.jit(jax.vmap(one))
    return lambda: solve(start).block_until_ready()
