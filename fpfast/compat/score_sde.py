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
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from fpfast.backends import usable
from fpfast.errors import bad, brief, dense, function, integer, key, real, sizes, tensor, truth
from fpfast.noise import STREAMS
from fpfast.sample import sample
from fpfast.score import Score, checked
from fpfast.sde import SDE, VE, VP, SubVP
from fpfast.solvers import Plan, Solver, Stage, Table, ancestral, euler_maruyama, make_row, make_table

Scaler = Callable[[Tensor], Tensor]
Sampler = Callable[[Any], tuple[Tensor, int]]

# Of theirs: ours, and the attributes that are its fields.
SDES: dict[str, tuple[Callable[[float, float], SDE], tuple[str, str]]] = {
    "VPSDE": (VP, ("beta_0", "beta_1")),
    "subVPSDE": (SubVP, ("beta_0", "beta_1")),
    "VESDE": (VE, ("sigma_min", "sigma_max")),
}
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


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
METHODS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
FURTHER = 16  # the stream of a second corrector's noise at one time; of a third: one more
MOST = 2**15  # correctors at one time, as streams are numbers of 16 bits
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
    fields = ("sampling.method", "sampling.noise_removal", "training.continuous", "device")
    method, denoise, continuous, device = _fields(config, *fields)
    if key("config.sampling.method", str(method).lower(), ("pc", "ode")) == "ode":
        return get_ode_sampler(
            sde, shape, inverse_scaler, denoise=denoise, eps=eps, device=device, continuous=continuous
        )
    names = ("predictor", "corrector", "snr", "n_steps_each", "probability_flow")
    predictor, corrector, snr, n_steps, flow = _fields(config, *(f"sampling.{name}" for name in names))
    return get_pc_sampler(
        sde, shape, str(predictor).lower(), str(corrector).lower(), inverse_scaler, snr, n_steps=n_steps,
        probability_flow=flow, continuous=continuous, denoise=denoise, eps=eps, device=device,
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
    ours, n = _sde(sde), _count(sde)
    shape = sizes("shape", shape, 1)
    function("inverse_scaler", inverse_scaler, "a function of samples")
    probability_flow, denoise = truth("probability_flow", probability_flow), truth("denoise", denoise)
    continuous = truth("continuous", continuous)
    step = _name("predictor", predictor, PREDICTORS)
    correct = _name("corrector", corrector, CORRECTORS)
    if step == "ancestral_sampling" and (probability_flow or isinstance(ours, SubVP)):
        raise bad("predictor", "'reverse_diffusion' or 'euler_maruyama' with this SDE", repr(step))
    n_steps = integer("n_steps", n_steps, int(correct != "none"), MOST)  # without a corrector it is only counted
    corrections = n_steps if correct != "none" else 0
    if step == correct == "none":
        raise bad("predictor, corrector", "one of them", "neither")
    snr = real("snr", snr, "a number that is not negative, nor above 10^6", 0, 1e6)
    solver = _composed(PREDICTORS[step], corrections, snr, n)
    times = _times(ours, n, eps)
    if corrections and type(ours) is VP and float(ours.beta(times).max()) > n:
        raise bad("sde.N", f"at least {float(ours.beta(times).max())}, as beta is, where there is a corrector", n)

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
    ours, shape = _sde(sde), sizes("shape", shape, 1)
    eps = _end(ours, eps)
    function("inverse_scaler", inverse_scaler, "a function of samples")
    denoise, continuous = truth("denoise", denoise), truth("continuous", continuous)
    rtol, atol = (
        real(name, value, "a number that is not negative", 0) for name, value in (("rtol", rtol), ("atol", atol))
    )
    if not (isinstance(method, type) and issubclass(method, integrate.OdeSolver)):
        key("method", method, METHODS)

    @torch.no_grad()
    def ode_sampler(model: Any, z: Tensor | None = None) -> tuple[Tensor, int]:
        score, where = _score(sde, ours, model, continuous), usable("device", device)
        if z is not None and not (dense(z) and z.shape == shape and z.is_floating_point() and bool(z.isfinite().all())):
            raise bad("z", f"finite floating-point values of shape {shape}", brief(z))
        start = ours.prior(shape, device=where) if z is None else z.detach().double()

        broken = False

        def slope(t: float, flat: Any) -> Any:
            nonlocal broken
            x = torch.from_numpy(flat.reshape(shape)).to(where, torch.float32)
            drift = ours.drift(x, t) - float(ours.g2(t)) / 2 * score(x, t)
            found = drift.cpu().numpy().reshape(-1)
            broken = broken or not np.isfinite(found).all()
            return found

        failed = f"model: the ODE could not be solved from {ours.T} to {eps}"
        flat = start.cpu().numpy().reshape(-1)
        try:
            solved = integrate.solve_ivp(slope, (ours.T, eps), flat, rtol=rtol, atol=atol, method=method)
        except ValueError as error:  # implicit methods refuse what is not finite
            if not broken:
                raise
            raise RuntimeError(f"{failed}: {error}") from error
        if not solved.success:
            raise RuntimeError(f"{failed}: {solved.message}")
        x = torch.tensor(solved.y[:, -1].reshape(shape)).to(where, torch.float32)
        if denoise:
            std, alpha = float(ours.std(eps)), float(ours.alpha(eps))
            x = (x + std**2 * score(x, eps)) / alpha
        return inverse_scaler(x), int(solved.nfev)

    return ode_sampler


def _sde(sde: Any) -> SDE:
    name = type(sde).__name__
    if name not in SDES:
        raise bad("sde", "a VPSDE, subVPSDE or VESDE of score_sde", name)
    kind, fields = SDES[name]
    first, second = (
        real(f"sde.{field}", getattr(sde, field, None), "a positive number that float32 can hold", SMALLEST, LARGEST)
        for field in fields
    )
    return kind(first, second)


def _count(sde: Any) -> int:
    return integer("sde.N", getattr(sde, "N", None), 2, 10**7)


def _fields(config: Any, *names: str) -> Any:
    try:
        return attrgetter(*names)(config)
    except AttributeError as error:
        raise bad("config", "one with " + ", ".join(names), f"{type(config).__name__}: {error}") from error


def _name(argument: str, given: Any, table: Any) -> str:
    """A predictor's or corrector's name, from the name or the class it is registered under; None is "none"."""
    name = "none" if given is None else CLASSES.get(getattr(given, "__name__", ""), given)
    return key(argument, name, table)


def _end(sde: SDE, eps: float) -> float:
    if not 1e-100 <= (time := real("eps", eps)) < sde.T:  # std(eps)^2 must not be 0
        raise bad("eps", f"a time from 10^-100 to below {sde.T}", eps)
    return time


def _times(sde: SDE, n: int, eps: float) -> Tensor:
    eps = _end(sde, eps)
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
    function("model", model, "a network model(x, labels)")
    if isinstance(model, torch.nn.Module):
        model.eval()
    if isinstance(sde, VE):
        if continuous:
            return Score(lambda x, t: model(x, sde.std(t.double()).to(t)), sde, "score")
        n = _count(theirs)
        return Score(lambda x, t: model(x, ((sde.T - t) * (n - 1)).round().long()), sde, "score")
    if continuous or isinstance(sde, SubVP):
        return Score(lambda x, t: model(x, t * 999), sde, "noise")
    n, name = _count(theirs), "sqrt_1m_alphas_cumprod"
    stds = tensor(f"sde.{name}", getattr(theirs, name, None), f"{n} numbers or more", dtype=torch.float32)
    if stds.ndim != 1 or len(stds) < n:
        raise bad(f"sde.{name}", f"{n} numbers or more", brief(stds))

    def discrete(x: Tensor, t: Tensor) -> Tensor:
        labels = t * (n - 1)
        std = stds.to(x.device)[labels.long()].reshape(-1, *[1] * (x.ndim - 1))
        return checked(model(x, labels), x).neg() / std

    return Score(discrete, sde, "score")
