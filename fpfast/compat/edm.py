"""The sampler of Karras et al.'s code (arXiv 2206.00364, algorithm 2), with its signature."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fpfast.compat.k_diffusion import LARGEST, Run, churning, heun
from fpfast.errors import bad, brief, dense, function, integer, number, real


@torch.no_grad()
def edm_sampler(
    net: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    S_noise: float = 1.0,
) -> Tensor:
    """Heun's steps over (sigma_max^(1/rho) + ... )^rho, after churning; the last one, to sigma = 0, is Euler's.

    Args:
        net: the denoiser ``net(x, sigma, class_labels)``, sigma of shape (B,). If it has ``sigma_min``, ``sigma_max``
            or ``round_sigma``, they limit and round the noise levels.
        latents: standard normal, (B, ...); not changed.
        randn_like: the noise of churning. torch.randn_like stands for that of docs/noise.md, under a seed drawn from
            torch's default generator.

    Returns the samples as float64, as their sampler does; between the network's calls they are float32 here.
    Raises ValueError for levels that do not descend from sigma_max to sigma_min, and outputs of another shape. Warns
    with RuntimeWarning when samples hold NaN or infinity.
    """
    function("net", net, "a denoiser net(x, sigma, class_labels)")
    function("randn_like", randn_like, "a function")
    if not dense(latents) or not latents.is_floating_point():
        raise bad("latents", "a floating-point tensor (samples, ...)", brief(latents))
    steps = integer("num_steps", num_steps, 1, 10**7)
    power = real("rho", rho, "a positive number", math.ulp(0.0))
    churn = churning(S_churn=S_churn, S_min=S_min, S_max=S_max, S_noise=S_noise)
    least = max(number("sigma_min", sigma_min), real("net.sigma_min", getattr(net, "sigma_min", 0.0)))
    most = min(number("sigma_max", sigma_max), number("net.sigma_max", getattr(net, "sigma_max", math.inf)))
    if not 0 < least < most <= LARGEST:
        raise bad("sigma_min, sigma_max", "0 < sigma_min < sigma_max, finite", f"{least}, {most}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = torch.tensor([most, least], dtype=torch.float64) ** (1 / power)
    sigmas = (first + ramp * (last - first)) ** power
    round_sigma: Callable[[Tensor], Tensor] | None = getattr(net, "round_sigma", None)

    def rounded(sigma: float) -> float:
        return sigma if round_sigma is None else float(round_sigma(torch.tensor(sigma, dtype=torch.float64)))

    levels = torch.tensor([*map(rounded, sigmas.tolist()), 0.0], dtype=torch.float64)
    if not all(now > after for now, after in pairwise(levels.tolist())) or not levels[0] <= LARGEST:
        raise bad("rho, num_steps, sigma_min, sigma_max", "what gives descending levels, rounded", levels.tolist())
    x = latents.float() * levels[0].float().to(latents.device)

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        y = net(x, sigma, class_labels)
        return y.to(x) if isinstance(y, Tensor) and y.dtype == torch.float64 else y

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return randn_like(x)

    given = None if randn_like is torch.randn_like else noise_sampler
    names = ("net", "randn_like")
    run = Run(denoise, x, levels, None, None, given, descending=True, rounded=rounded, names=names)
    heun(run, True, churn)
    return run.finished().double()
