"""Packages that call a network step by step, on one problem: Euler's method (or Euler-Maruyama) from x at sigma = 80.

The problem is that of Karras et al. (arXiv 2206.00364): dx/dsigma = (x - D(x, sigma)) / sigma, sigma from 80 to 0.002.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.timing import Run

Network = Callable[[Tensor, Tensor], Tensor]  # D(x, sigma), sigma of shape (B,)


def k_diffusion() -> Any:
    """k_diffusion.sampling alone: the rest of the package wants to import torchvision, CLIP and more."""
    if "k_diffusion" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("k-diffusion: pip install --no-deps k-diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    images = types.ModuleType("torchvision.transforms")
    images.functional = None  # it reads pictures
    absent = {"torchvision": types.ModuleType("torchvision"), images.__name__: images}
    absent = {} if importlib.util.find_spec("torchvision") else absent
    sys.modules.update(absent)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in absent:  # others ask if it is there
            del sys.modules[name]


def sample_euler(net: Network, x: Tensor, sigmas: Tensor) -> Run:
    sampler = k_diffusion().sample_euler
    return lambda: sampler(net, x, sigmas, disable=True)


def diffusers_scheduler(scheduler: Any, net: Network, x: Tensor, sigmas: Tensor) -> Run:
    """A pipeline's loop; the network predicts x0."""

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(len(sigmas) - 1)
        state = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(state, t)
            state = scheduler.step(net(inputs, t.expand(len(x))), t, state).prev_sample
        return state

    return run


def torchsde_euler(net: Network, x: Tensor, sigmas: Tensor, step: float = 1.0) -> Run:
    """As many steps as the others take. Sums of 1 are exact in float32; those of most other steps miss the end, so that
    there are one or two more, and what it keeps of its Brownian motion grows much. sdeint calls f once before."""
    import torchsde

    class Reverse(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return (net(y, t.expand(len(y))) - y) * 0.5

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, 0.1)

    sde, ends = Reverse(), torch.tensor([0.0, step * (len(sigmas) - 1)])

    @torch.no_grad()
    def run() -> Tensor:
        return torchsde.sdeint(sde, x, ends, dt=step, method="euler")[-1]

    return run


def torchdiffeq_euler(net: Network, x: Tensor, sigmas: Tensor) -> Run:
    import torchdiffeq

    def slope(sigma: Tensor, y: Tensor) -> Tensor:
        return (y - net(y, sigma.expand(len(y)))) / sigma

    @torch.no_grad()
    def run() -> Tensor:
        return torchdiffeq.odeint(slope, x, sigmas, method="euler")[-1]

    return run


def diffrax_euler(weight: Tensor, bias: Tensor, x: Tensor, sigmas: Tensor) -> Run:
    """The whole run in one jitted call, so that its overhead is XLA's; the network is written in JAX."""
    import diffrax
    import jax
    import jax.numpy as jnp

    w, b, start, steps = (jnp.asarray(value.numpy()) for value in (weight, bias, x, sigmas))

    def slope(sigma: Any, y: Any, _: Any) -> Any:
        return (y - (y @ w.T + b)) / sigma

    @jax.jit
    def solve(y: Any) -> Any:
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(slope), diffrax.Euler(), steps[0], steps[-1], None, y,
            stepsize_controller=diffrax.StepTo(steps), max_steps=len(steps),
        )  # fmt: skip
        return found.ys[-1]

    return lambda: solve(start).block_until_ready()
