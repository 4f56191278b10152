"""Drop-ins against the packages they stand in for: ``python -m bench.drop_ins`` prints the table of docs/drop-ins.md.

tests/test_compat_*.py run the same comparisons one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.schedulers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from bench.peers import loops
from fpfast.compat import k_diffusion
from fpfast.compat.diffusers import FPFastScheduler

Network = Callable[[Tensor, Tensor], Tensor]

# ------------------------------------------------------------------------------------------------ diffusers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
KINDS = ["epsilon", "v_prediction", "sample"]
STEPS = 16
WEIGHT = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) * 0.3
X = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def denoiser(x: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """Of data in the middle of a normal law and something that is none."""
    flat = (alpha * x / (alpha**2 + std**2)).flatten(1)
    return (flat + 0.3 * std.flatten(1) * torch.tanh(flat.double() @ WEIGHT.double()).to(x)).reshape(x.shape)


def network(scheduler: Any, kind: str) -> Network:
    """A model for that schedule: noise, v, velocity or data, of one denoiser."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
        if kind == "flow_prediction":
            std = t / 1000
            alpha = 1 - std
        else:
            squares = torch.as_tensor(scheduler.alphas_cumprod).double()
            sigmas = ((1 - squares) / squares).sqrt().log()
            low = t.floor().long().clamp(max=998)
            sigma = torch.lerp(sigmas[low], sigmas[low + 1], t - low).exp()
            alpha = (1 + sigma**2).rsqrt()
            std = sigma * alpha
        alpha, std = (c.to(x.dtype).reshape(-1, 1, 1, 1) for c in (alpha, std))
        data = denoiser(x, alpha, std)
        if kind == "sample":
            return data
        slope = (x - (data if kind == "flow_prediction" else alpha * data)) / std.clamp(min=1e-3)
        return alpha * slope - std * data if kind == "v_prediction" else slope

    return net


def run(scheduler: Any, net: Network, x: Tensor, steps: int = STEPS, **options: Any) -> Tensor:
    """A pipeline's loop."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        y = net(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t.expand(len(x)))
        x = scheduler.step(y, t, x, **options).prev_sample
    return x


# Their scheduler, the options of both, our solver, and whether their state is x / alpha.
LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
PAIRS: dict[str, tuple[Any, dict[str, Any], str, bool]] = {
    "DDIM": (DDIMScheduler, {"timestep_spacing": "leading", "steps_offset": 1}, "exponential", False),
    "DDIM, not to 0": (DDIMScheduler, {"set_alpha_to_one": False}, "ancestral", False),
    "Euler": (EulerDiscreteScheduler, TRAILING, "euler_maruyama", True),
    "Euler, Karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True, **LINSPACE}, "exponential", True),
    "Euler, exponential": (EulerDiscreteScheduler, {"use_exponential_sigmas": True, **LINSPACE}, "exponential", True),
    "Euler, Beta": (EulerDiscreteScheduler, {"use_beta_sigmas": True, **LINSPACE}, "exponential", True),
    "Heun": (HeunDiscreteScheduler, TRAILING, "heun", True),
    "DPM-Solver++(2M)": (DPMSolverMultistepScheduler, TRAILING, "dpmpp_2m", False),
    "DPM-Solver++(2M), not to 0": (
        DPMSolverMultistepScheduler,
        {"final_sigmas_type": "sigma_min", **TRAILING},
        "dpmpp_2m",
        False,
    ),
}


def pair(name: str, schedule: str, kind: str) -> tuple[Any, FPFastScheduler, Network, Tensor]:
    """Their scheduler, ours, a model and where theirs starts."""
    theirs, options, solver, divided = PAIRS[name]
    options = {**BETAS, "beta_schedule": schedule, "prediction_type": kind, **options}
    clip = {"clip_sample": False} if theirs in (DDIMScheduler, HeunDiscreteScheduler) else {}
    peer, ours = theirs(**options, **clip), FPFastScheduler(solver=solver, noise=0.0, **options)
    ours.set_timesteps(STEPS)
    return peer, ours, network(ours, kind), X * (1 + float(ours.sigmas[0]) ** 2) ** 0.5 if divided else X


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, over the largest value (at least 1)."""
    return float((found.double() - expected.double()).abs().max()) / max(1.0, float(expected.abs().max()))


def diffusers_rows() -> Iterator[tuple[str, str, float]]:
    for name, (theirs, _, solver, divided) in PAIRS.items():
        found: dict[str, float] = {}
        for schedule in SCHEDULES:
            for kind in KINDS:
                peer, ours, net, start = pair(name, schedule, kind)
                coarse = schedule == "squaredcos_cap_v2" and (divided or kind == "epsilon")
                where = ", cosine schedule" if coarse else ""
                error = difference(run(ours, net, X), run(peer, net, start))
                found[where] = max(found.get(where, 0.0), error)
        for where, error in found.items():
            yield f"diffusers {theirs.__name__} ({name}){where}", solver, error
    for shift in (1.0, 3.0):
        flow = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler = FPFastScheduler.from_config(flow.config, solver="euler_maruyama")
        net = network(scheduler, "flow_prediction")
        error = difference(run(scheduler, net, X), run(flow, net, X))
        yield f"diffusers FlowMatchEulerDiscreteScheduler (shift {shift:g})", "euler_maruyama", error


# ------------------------------------------------------------------------------------------------ k-diffusion

WIDE = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * 80
SIGMAS = torch.cat([torch.linspace(80 ** (1 / 7), 0.02 ** (1 / 7), 20) ** 7, torch.zeros(1)])
SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("euler", {}),
    ("heun", {}),
    ("dpmpp_2m", {}),
    ("euler_ancestral", {"eta": 0.0}),
    ("euler_ancestral", {"noise_sampler": True, "s_noise": 1.1}),
    ("euler_ancestral", {"noise_sampler": True, "eta": 3.0}),
    ("dpmpp_2m_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde", {"noise_sampler": True, "s_noise": 1.1}),
    ("dpmpp_2m_sde", {"noise_sampler": True, "solver_type": "heun", "eta": 0.5}),
    ("dpmpp_sde", {"eta": 0.0}),
    ("dpmpp_sde", {"noise_sampler": True}),
    ("dpmpp_sde", {"noise_sampler": True, "r": 0.3, "eta": 0.5, "s_noise": 0.9}),
]


def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
    flat, s = x.flatten(1), sigma[:, None]
    return ((flat @ WEIGHT).tanh() / (1 + s) + 0.1 * s.sin() + flat / (1 + s**2)).reshape(x.shape)


def sampled(module: Any, name: str, options: dict[str, Any], **more: Any) -> Tensor:
    """What a sampler of theirs or ours returns; both are given the same noises."""
    if options.get("noise_sampler"):
        generator = torch.Generator().manual_seed(3)
        options = {**options, "noise_sampler": lambda *_: torch.randn(WIDE.shape, generator=generator)}
    result: Tensor = getattr(module, f"sample_{name}")(model, WIDE, disable=True, **options, **more)
    return result


def k_diffusion_rows() -> Iterator[tuple[str, str, float]]:
    theirs = loops.k_diffusion()
    for name, options in SAMPLERS:
        error = max(
            difference(*(sampled(module, name, options, sigmas=sigmas) for module in (k_diffusion, theirs)))
            for sigmas in (SIGMAS, SIGMAS[:-1])
        )
        said = ", ".join(f"{key} {value}" for key, value in options.items()).replace(
            "noise_sampler True", "same noises"
        )
        yield f"k-diffusion sample_{name}" + (f" ({said})" if said else ""), f"sample_{name}", error


if __name__ == "__main__":
    print("| against | fpfast's | largest difference, of the largest value |\n|---|---|---|")
    for rows in (diffusers_rows(), k_diffusion_rows()):
        for against, ours, error in rows:
            print(f"| {against} | `{ours}` | {error:.1e} |")
