"""Samplers shaped like those of Song et al.'s score_sde (arXiv 2011.13456): make one once, call it with a model.

    from fpfast.compat import score_sde
    sampling_fn = score_sde.get_sampling_fn(config, sde, shape, inverse_scaler, eps)
    samples, evaluations = sampling_fn(model)

``sde`` is one of theirs (VPSDE, subVPSDE, VESDE: known by its class's name and attributes) and ``model(x, labels)``
their network. Predictors and correctors are given by the names they are registered under there, or as their classes.

What differs: the noise is that of docs/noise.md, under a seed drawn from torch's default generator, so a sample does
not depend on its neighbours; therefore the Langevin corrector's step does not use norms averaged over the batch, but
their values where noise dominates, 2 alpha (snr std)^2, which is theirs for "ald". "ancestral_sampling" has the
variance of the posterior. Steps end where theirs do, at max(eps - T/N, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from fpfast.errors import bad, integer, key, real
from fpfast.noise import STREAMS
from fpfast.sample import sample
from fpfast.score import Score
from fpfast.sde import SDE, VE, VP, SubVP
from fpfast.solvers import Plan, Solver, Stage, Table, ancestral, euler_maruyama, make_row, make_table

Scaler = Callable[[Tensor], Tensor]
Sampler = Callable[[Any], tuple[Tensor, int]]

SDES: dict[str, Callable[[Any], SDE]] = {
    "VPSDE": lambda sde: VP(float(sde.beta_0), float(sde.beta_1)),
    "subVPSDE": lambda sde: SubVP(float(sde.beta_0), float(sde.beta_1)),
    "VESDE": lambda sde: VE(float(sde.sigma_min), float(sde.sigma_max)),
}


def reverse_diffusion(plan: Plan) -> Table:
    """x' = (2 - m) x + (1 + lambda^2)/2 v s + lambda sqrt(v) z: the forward step, turned round.

    X_t given X_t' has mean m X_t', m = alpha/alpha', and variance v = std^2 - m^2 std'^2. Weak order 1; one evaluation
    a step. Source: Song et al. (arXiv 2011.13456), eq. 46, with the exact forward step for their discretisation of it.
    """
    now, after = plan.now, plan.next
    m = now.alpha / after.alpha
    v = (now.std**2 - (m * after.std) ** 2).clamp(min=0)
    k = (1 + plan.noise**2) / 2 * v
    row = make_row(v, 2 - m + k * now.p, k * now.q, z=plan.noisy * plan.noise * v.sqrt())
    return make_table((Stage("x", ("x", "y"), at="x"), row, now))


PREDICTORS: dict[str, Solver | None] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral,
    "none": None,
}
CORRECTORS = ("langevin", "ald", "none")
FURTHER = 16  # the stream of a second corrector's noise at one time; of a third: one more
CLASSES = {
    "EulerMaruyamaPredictor": "euler_maruyama",
    "ReverseDiffusionPredictor": "reverse_diffusion",
    "AncestralSamplingPredictor": "ancestral_sampling",
    "NonePredictor": "none",
    "LangevinCorrector": "langevin",
    "AnnealedLangevinDynamics": "ald",
    "NoneCorrector": "none",
}


def get_sampling_fn(config: Any, sde: Any, shape: Sequence[int], inverse_scaler: Scaler, eps: float) -> Sampler:
    """The sampler that a configuration asks for: ``config.sampling`` and ``config.training.continuous``.

    Raises ValueError for a method other than "pc" and "ode", and as those do.
    """
    chosen = config.sampling
    method = str(chosen.method).lower()
    if key("config.sampling.method", method, ("pc", "ode")) == "ode":
        return get_ode_sampler(
            sde, shape, inverse_scaler, denoise=chosen.noise_removal, eps=eps, device=config.device,
            continuous=config.training.continuous,
        )  # fmt: skip
    return get_pc_sampler(
        sde, shape, str(chosen.predictor).lower(), str(chosen.corrector).lower(), inverse_scaler, chosen.snr,
        n_steps=chosen.n_steps_each, probability_flow=chosen.probability_flow,
        continuous=config.training.continuous, denoise=chosen.noise_removal, eps=eps, device=config.device,
    )  # fmt: skip


def get_pc_sampler(
    sde: Any,
    shape: Sequence[int],
    predictor: Any,
    corrector: Any,
    inverse_scaler: Scaler,
    snr: float,
    n_steps: int = 1,
    probability_flow: bool = False,
    continuous: bool = False,
    denoise: bool = True,
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
) -> Sampler:
    """Predictor-corrector sampling: at each of N times ``n_steps`` Langevin steps, then the predictor's.

    Returns ``sampler(model) -> (samples, N (n_steps + 1))``, samples having passed ``inverse_scaler``; if ``denoise``,
    the last step adds no noise. Raises ValueError for an unknown predictor, corrector or SDE, and "ancestral_sampling"
    with a probability flow or a sub-VP SDE, which they do not have either.
    """
    ours, n = _sde(sde), integer("sde.N", sde.N, 2)
    step = _name("predictor", predictor, PREDICTORS)
    correct = _name("corrector", corrector, CORRECTORS)
    if step == "ancestral_sampling" and (probability_flow or isinstance(ours, SubVP)):
        raise bad("predictor", "'reverse_diffusion' or 'euler_maruyama' with this SDE", repr(step))
    corrections = integer("n_steps", n_steps, 1) if correct != "none" else 0
    if step == correct == "none":
        raise bad("predictor, corrector", "one of them", "neither")
    solver = _composed(PREDICTORS[step], corrections, real("snr", snr, "a number that is not negative", low=0), n)
    times = _times(ours, n, eps)

    def pc_sampler(model: Any) -> tuple[Tensor, int]:
        x = sample(
            _score(sde, ours, model, continuous), shape, solver=solver, times=times, device=device,
            noise=0.0 if probability_flow else 1.0, final="mean" if denoise else "noise",
        )  # fmt: skip
        return inverse_scaler(x), n * (n_steps + 1)

    return pc_sampler


def get_ode_sampler(
    sde: Any,
    shape: Sequence[int],
    inverse_scaler: Scaler,
    denoise: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "RK45",
    eps: float = 1e-3,
    device: torch.device | str = "cuda",
    continuous: bool = True,
) -> Sampler:
    """The probability-flow ODE from T to eps by scipy's adaptive solvers, as theirs; ``denoise`` ends with a step to 0.

    Returns ``sampler(model, z=None) -> (samples, evaluations)``; z is the state at T.
    """
    ours = _sde(sde)
    if not 0 < real("eps", eps) < ours.T:
        raise bad("eps", f"a time between 0 and {ours.T}", eps)

    @torch.no_grad()
    def ode_sampler(model: Any, z: Tensor | None = None) -> tuple[Tensor, int]:
        score = _score(sde, ours, model, continuous)
        start = ours.prior(shape, device=device) if z is None else z

        def slope(t: float, flat: Any) -> Any:
            x = torch.from_numpy(flat.reshape(shape)).to(device, torch.float32)
            drift = ours.drift(x, t) - float(ours.g2(t)) / 2 * score(x, t)
            return drift.cpu().numpy().reshape(-1)

        solved = integrate.solve_ivp(
            slope, (ours.T, eps), start.cpu().numpy().reshape(-1), rtol=rtol, atol=atol, method=method
        )
        if not solved.success:
            raise RuntimeError(f"model: the ODE could not be solved from {ours.T} to {eps}: {solved.message}")
        x = torch.tensor(solved.y[:, -1].reshape(shape)).to(device, torch.float32)
        if denoise:
            std, alpha = float(ours.std(eps)), float(ours.alpha(eps))
            x = (x + std**2 * score(x, eps)) / alpha
        return inverse_scaler(x), int(solved.nfev)

    return ode_sampler


def _sde(sde: Any) -> SDE:
    name = type(sde).__name__
    if name not in SDES:
        raise bad("sde", "a VPSDE, subVPSDE or VESDE of score_sde", name)
    return SDES[name](sde)


def _name(argument: str, given: Any, table: Any) -> str:
    """A predictor's or corrector's name, from the name or the class it is registered under; None is "none"."""
    name = "none" if given is None else CLASSES.get(getattr(given, "__name__", ""), given)
    return key(argument, name, table)


def _times(sde: SDE, n: int, eps: float) -> Tensor:
    if not 0 < real("eps", eps) < sde.T:
        raise bad("eps", f"a time in (0, {sde.T})", eps)
    times = torch.linspace(sde.T, eps, n, dtype=torch.float64)
    return torch.cat([times, times.new_tensor([max(eps - sde.T / n, 0.0)])])


def _composed(predictor: Solver | None, corrections: int, snr: float, n: int) -> Solver:
    """Langevin steps of size 2 alpha (snr std)^2, alpha = 1 - beta / N of a VP SDE, then the predictor's stage."""

    def solver(plan: Plan) -> Table:
        now = plan.now
        sde = plan.score.sde
        alpha = 1 - sde.beta(now.t) / n if isinstance(sde, VP) and not isinstance(sde, SubVP) else 1.0
        e = 2 * alpha * (snr * now.std) ** 2
        row = make_row(e, 1 + e * now.p, e * now.q, z=(2 * e).sqrt())
        streams = [STREAMS["corrector"], *range(FURTHER, FURTHER + corrections - 1)][:corrections]
        stages = [(Stage("x", ("x", "y"), at="x", stream=stream), row, now) for stream in streams]
        if predictor is not None:
            table = predictor(plan)
            stages += [(table.stages[0], table.coef[:, 0], now)]
        return make_table(*stages)

    return solver


def _score(theirs: Any, sde: SDE, model: Any, continuous: bool) -> Score:
    """Their network as a score: what it predicts and how it is told the time (``models/utils.py`` of score_sde)."""
    if isinstance(model, torch.nn.Module):
        model.eval()
    if isinstance(sde, VE):
        if continuous:
            return Score(lambda x, t: model(x, sde.std(t.double()).to(t)), sde, "score")
        return Score(lambda x, t: model(x, ((sde.T - t) * (theirs.N - 1)).round().long()), sde, "score")
    if continuous or isinstance(sde, SubVP):
        return Score(lambda x, t: model(x, t * 999), sde, "noise")
    stds = torch.as_tensor(np.asarray(theirs.sqrt_1m_alphas_cumprod), dtype=torch.float32)

    def discrete(x: Tensor, t: Tensor) -> Tensor:
        labels = t * (theirs.N - 1)
        std = stds.to(x.device)[labels.long()].reshape(-1, *[1] * (x.ndim - 1))
        return -model(x, labels) / std

    return Score(discrete, sde, "score")
