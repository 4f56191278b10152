"""Samplers with the signatures of k-diffusion's, for code written for it (ComfyUI's, among others).

    from fpfast.compat.k_diffusion import sample_dpmpp_2m

``model(x, sigma, **extra_args)`` is a denoiser D for x = x0 + sigma z, sigma of shape (B,). All samplers here take:

    model, x: the denoiser, and the state at sigmas[0], (B, ...); x is not changed.
    sigmas: the noise levels, of shape (steps + 1,); all but the last positive. Samplers that add noise need them to
        descend.
    extra_args: passed on to the model. Its "seed" (an integer, or one for each sample), if there, is that of the noise;
        else one is drawn from torch's default generator.
    callback: called once a step with a dictionary of "x", "i", "sigma", "sigma_hat" and "denoised".
    disable: no progress bar.
    noise_sampler: ``noise_sampler(sigma, sigma_next)`` gives the noise of a step, in place of that of docs/noise.md.

They return the state at sigmas[-1], of x's dtype; 16-bit states are kept in float32 between the steps. Every stage is
one pass of the kernel that ``fpfast.sample`` uses. Deterministic samplers agree with k-diffusion's to rounding.

They raise ValueError for sigmas or outputs of the model that are not as said here, and warn with RuntimeWarning when
samples hold NaN or infinity. The formulas are those of Karras et al. (arXiv 2206.00364, algorithm 2) and Lu et al.
(arXiv 2211.01095).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpfast import backends, ops
from fpfast import noise as noises
from fpfast.errors import bad, brief, dense, function, key, number, real, truth
from fpfast.reference import Key
from fpfast.sample import Bar
from fpfast.watch import ON_NONFINITE, count

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Numbers = Sequence[float]  # the coefficients of (x, further operands, z)
LARGEST = torch.finfo(torch.float32).max  # level of a state in float32, which could not be held at higher ones


class Churn(NamedTuple):
    """Karras et al.'s: how much, the least and the highest level that is churned, and what multiplies the noise."""

    amount: float
    least: float
    most: float
    noise: float


def churning(**given: Any) -> Churn:
    """The four numbers of a :class:`Churn`, by the names that they have where they are given; checked."""
    *levels, (name, noise) = given.items()
    return Churn._make([*(number(*one) for one in levels), real(name, noise)])


class Run:
    """One call of a sampler: the levels, the model and where noise comes from."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None,
        callback: Callback | None,
        noise_sampler: NoiseSampler | None = None,
        descending: bool = False,
        rounded: Callable[[float], float] = float,
        names: tuple[str, str] = ("model", "noise_sampler"),  # what the caller's arguments are called
    ) -> None:
        function(names[0], model, "a denoiser")
        for name, called in (("callback", callback), (names[1], noise_sampler)):
            if called is not None:
                function(name, called, "a function or None")
        if not dense(x) or not x.is_floating_point():
            raise bad("x", "a floating-point tensor (samples, ...)", brief(x))
        if not dense(sigmas) or sigmas.ndim != 1 or sigmas.is_complex():
            raise bad("sigmas", "a tensor of shape (steps + 1,)", brief(sigmas))
        self.model, self.callback, self.noise_sampler, self.rounded = model, callback, noise_sampler, rounded
        self.names, self.extra = names, {} if extra_args is None else extra_args
        if not isinstance(self.extra, Mapping) or not all(isinstance(name, str) for name in self.extra):
            raise bad("extra_args", "a dictionary of arguments by their names, or None", repr(extra_args))
        self.dtype, self.sigmas, self.levels = x.dtype, sigmas, sigmas.double().tolist()
        most = torch.finfo(x.dtype).max if x.dtype == torch.float64 else LARGEST
        if not all(0 < s <= most for s in self.levels[:-1]) or not all(0 <= s <= most for s in self.levels[-1:]):
            raise bad("sigmas", "positive finite levels, the last of which may be 0", self.levels)
        if descending and any(a <= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise bad("sigmas", "strictly descending levels", self.levels)
        self.state = x.contiguous() if x.dtype == torch.float64 else x.float().contiguous()
        self.backend = backends.pick("auto", x.device.type, self.state.dtype)
        self.seed: Tensor | None = None

    @property
    def result(self) -> Tensor:
        return self.state.to(self.dtype)

    def finished(self) -> Tensor:
        """The result. Warns where it holds NaN or infinity, which 16 bits may where the state in float32 does not."""
        out = self.result
        if broken := count(out):
            said = f"{broken} of {len(out)} samples {ON_NONFINITE['ignore']}"
            warnings.warn(said, RuntimeWarning, stacklevel=4)  # of whoever called the sampler, through its no_grad
        return out

    def denoised(self, x: Tensor, sigma: float, needed_later: bool = False) -> Tensor:
        """The model at one level, checked. ``needed_later``: after the next call, which may reuse its memory."""
        seen = x.to(self.dtype)
        version = None if seen.is_inference() else seen._version
        y = self.model(seen, seen.new_full((len(x),), sigma), **self.extra)
        if version is not None and seen._version != version:
            raise bad(self.names[0], "a model that leaves its input as it is", "one that changed x in place")
        if not dense(y) or y.shape != x.shape:
            raise bad(self.names[0], f"a tensor of shape {tuple(x.shape)} as x", brief(y))
        if y.dtype not in (*ops.OPERAND_DTYPES, x.dtype) or y.device != x.device:
            raise bad(self.names[0], f"16 bits or {x.dtype} on {x.device}", f"{y.dtype} on {y.device}")
        return y.clone(memory_format=torch.contiguous_format) if needed_later else y.contiguous()

    def tell(self, i: int, hat: float, denoised: Tensor) -> None:
        if self.callback is not None:
            sigma = self.sigmas[i]
            raised = sigma if hat == self.levels[i] else sigma.new_tensor(hat)
            what = {"x": self.result, "i": i, "sigma": sigma, "sigma_hat": raised, "denoised": denoised}
            self.callback(what)

    def move(self, numbers: Numbers, *others: Tensor, z: float = 0.0, draw: int = 0) -> Tensor:
        """numbers[0] state + numbers[1] others[0] + ... + z times this run's own noise of that number, a new tensor."""
        row = [*numbers, *[0.0] * (4 - len(numbers)), z]
        coef = torch.tensor(row, dtype=self.state.dtype, device=self.state.device)
        operands = [self.state, *others[: len(numbers) - 1]]
        noise = Key(self._seed(), 0, noises.STREAMS["step"], draw) if z else None
        out = torch.empty_like(self.state)
        ops.combine_into(out, operands, coef, noise, self.backend)
        return out

    def noisy(self, numbers: Numbers, others: list[Tensor], z: float, i: int, levels: tuple[float, float]) -> Tensor:
        """:meth:`move` with noise, a sampler's own for these levels if there is one."""
        if not z or self.noise_sampler is None:
            return self.move(numbers, *others, z=z, draw=i)
        return self.move([*numbers, z], *others, self.given(*levels))

    def given(self, sigma: float, sigma_next: float) -> Tensor:
        """What the user's noise sampler says."""
        assert self.noise_sampler is not None
        z = self.noise_sampler(self.sigmas.new_tensor(sigma), self.sigmas.new_tensor(sigma_next))
        if not dense(z) or z.shape != self.state.shape:
            raise bad(self.names[1], f"a tensor of shape {tuple(self.state.shape)} as x", brief(z))
        return z.to(self.state).contiguous()

    def own(self, draw: int) -> Tensor:
        """A noise of this run as a tensor."""
        return ops.noise(
            "normal", self._seed(), self.state.shape, first_sample=0, stream=noises.STREAMS["step"], draw=draw
        ).to(self.state.dtype)

    def _seed(self) -> Tensor:
        if self.seed is None:
            self.seed = noises.seed_tensor(self.extra.get("seed"), len(self.state), self.state.device)
        return self.seed

    def steps(self, disable: bool | None) -> Any:
        """(i, sigma, sigma_next) of each step."""
        pairs = list(zip(self.levels, self.levels[1:], strict=False))
        off = None if disable is None else truth("disable", disable)
        return Bar([(i, a, b) for i, (a, b) in enumerate(pairs)], disable=off)

    def churned(self, i: int, churn: Churn) -> float:
        """Adds noise to the state as Karras et al. do, and returns its level then."""
        sigma = self.levels[i]
        gamma = min(churn.amount / (len(self.levels) - 1), math.sqrt(2) - 1)
        if not churn.least <= sigma <= churn.most or gamma <= 0:
            return sigma
        hat = self.rounded(sigma * (gamma + 1))
        if not sigma <= hat <= 2 * sigma:
            raise bad(self.names[0], f"a level near {sigma * (gamma + 1)} from its round_sigma", hat)
        self.state = self.noisy([1.0], [], churn.noise * math.sqrt(hat**2 - sigma**2), i, (sigma, hat))
        return hat


def _towards(sigma: float, sigma_next: float) -> list[float]:
    """Of (x, D), for a constant D: Euler's step, exact, and every first-order step of DPM-Solver++."""
    return [sigma_next / sigma, 1 - sigma_next / sigma]


def _ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up): down^2 + up^2 = sigma_next^2, up = eta times the noise of DDPM's step, at most sigma_next."""
    up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    return math.sqrt(sigma_next**2 - up**2), up


@torch.no_grad()
def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:
    """x' = x + (sigma' - sigma^) (x - D) / sigma^, after churning up to sigma^ (Karras et al., algorithm 2, Euler)."""
    churn = churning(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    run = Run(model, x, sigmas, extra_args, callback)
    for i, _, after in run.steps(disable):
        hat = run.churned(i, churn)
        denoised = run.denoised(run.state, hat)
        run.tell(i, hat, denoised)
        run.state = run.move(_towards(hat, after), denoised)
    return run.finished()


@torch.no_grad()
def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's step of dx/dsigma = (x - D) / sigma, after churning (Karras et al., algorithm 2); Euler's down to 0."""
    churn = churning(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    run = Run(model, x, sigmas, extra_args, callback)
    heun(run, disable, churn)
    return run.finished()


def heun(run: Run, disable: bool | None, churn: Churn) -> None:
    """The loop of :func:`sample_heun`."""
    for i, _, after in run.steps(disable):
        hat = run.churned(i, churn)
        denoised = run.denoised(run.state, hat, needed_later=True)
        run.tell(i, hat, denoised)
        predicted = run.move(_towards(hat, after), denoised)
        if after > 0:
            second, h = run.denoised(predicted, after), (after - hat) / 2
            row = [1 + 2 * h / hat, h * (1 / after - 2 / hat), -h / after]
            predicted = run.move(row, denoised, second)
        run.state = predicted


@torch.no_grad()
def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler's step to sqrt(sigma'^2 - u^2), then noise u z; u = eta sigma' sqrt(1 - (sigma'/sigma)^2) <= sigma'."""
    eta, s_noise = real("eta", eta, "a finite number that is not negative", low=0), real("s_noise", s_noise)
    run = Run(model, x, sigmas, extra_args, callback, noise_sampler, descending=eta > 0)
    for i, sigma, after in run.steps(disable):
        denoised = run.denoised(run.state, sigma)
        run.tell(i, sigma, denoised)
        down, up = _ancestral(sigma, after, eta) if eta else (after, 0.0)
        run.state = run.noisy(_towards(sigma, down), [denoised], s_noise * up, i, (sigma, after))
    return run.finished()


@torch.no_grad()
def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """x' = (sigma'/sigma) x + (1 - sigma'/sigma) [D + (D - D_prev) h / (2 h_prev)], h = log(sigma/sigma').

    Lu et al. (arXiv 2211.01095), algorithm 2; of first order at first, and down to 0.
    """
    run = Run(model, x, sigmas, extra_args, callback)
    if any(a == b and c > 0 for a, b, c in zip(run.levels, run.levels[1:], run.levels[2:], strict=False)):
        raise bad("sigmas", "levels that change from one to the next", run.levels)
    old: Tensor | None = None
    for i, sigma, after in run.steps(disable):
        denoised = run.denoised(run.state, sigma, needed_later=True)
        run.tell(i, sigma, denoised)
        row, others = _towards(sigma, after), [denoised]
        if old is not None and after > 0:
            weight = math.log(sigma / after) / (2 * math.log(run.levels[i - 1] / sigma))
            row, others = [row[0], row[1] * (1 + weight), -row[1] * weight], [denoised, old]
        run.state, old = run.move(row, *others), denoised
    return run.finished()


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """x' = (sigma'/sigma) e^(-eta h) x + k D + w (D - D_prev) h / h_prev + sigma' sqrt(1 - e^(-2 eta h)) z,

    h = log(sigma/sigma'), k = 1 - e^(-(1 + eta) h), w = k / 2 ("midpoint") or 1 - k / ((1 + eta) h) ("heun").
    Lu et al. (arXiv 2211.01095), section 3.4; x' = D down to 0. eta is the square of ``fpfast.sample``'s noise.
    """
    key("solver_type", solver_type, ("midpoint", "heun"))
    eta, s_noise = real("eta", eta, "a finite number that is not negative", low=0), real("s_noise", s_noise)
    run = Run(model, x, sigmas, extra_args, callback, noise_sampler, descending=True)
    old: Tensor | None = None
    for i, sigma, after in run.steps(disable):
        denoised = run.denoised(run.state, sigma, needed_later=True)
        run.tell(i, sigma, denoised)
        row, others, z = [0.0, 1.0], [denoised], 0.0
        if after > 0:
            h = math.log(sigma / after)
            k = -math.expm1(-(1 + eta) * h)
            row, z = [math.exp(-(1 + eta) * h), k], s_noise * after * math.sqrt(-math.expm1(-2 * eta * h))
            if old is not None:
                w = k / 2 if solver_type == "midpoint" else 1 - k / ((1 + eta) * h)
                w *= h / math.log(run.levels[i - 1] / sigma)
                row, others = [row[0], k + w, -w], [denoised, old]
        run.state, old = run.noisy(row, others, z, i, (sigma, after)), denoised
    return run.finished()


@torch.no_grad()
def sample_dpmpp_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 1 / 2,
) -> Tensor:
    """DPM-Solver++(2S) with ancestral noise: D_s is evaluated after a step to sigma_s = sigma^(1-r) sigma'^r, and

    (1 - 1/(2r)) D + D_s / (2r) stands for D in the whole step. Euler's step down to 0. Source: k-diffusion, after Lu et
    al. (arXiv 2211.01095). The two noises of a step are increments of one Brownian motion over sigma, of which the
    whole step's contains that of its first part.
    """
    eta, s_noise = real("eta", eta, "a finite number that is not negative", low=0), real("s_noise", s_noise)
    r = real("r", r, "a number in (0, 1)", math.ulp(0.0), math.nextafter(1, 0))
    run = Run(model, x, sigmas, extra_args, callback, noise_sampler, descending=True)
    for i, sigma, after in run.steps(disable):
        denoised = run.denoised(run.state, sigma, needed_later=True)
        run.tell(i, sigma, denoised)
        if after == 0:
            run.state = run.move(_towards(sigma, after), denoised)
            continue
        between, weight = sigma ** (1 - r) * after**r, 1 / (2 * r)
        down, up = _ancestral(sigma, between, eta)
        row, up = _towards(sigma, down), up * s_noise
        first: list[Tensor] = []
        if up and noise_sampler is not None:
            first = [run.given(sigma, between)]
        elif up:
            first = [run.own(2 * i)]
        middle = run.move([*row, up][: 2 + len(first)], denoised, *first)
        second = run.denoised(middle, between)
        down, up = _ancestral(sigma, after, eta)
        keep, rest = _towards(sigma, down)
        row, up = [keep, rest * (1 - weight), rest * weight], up * s_noise
        others = [denoised, second]
        if not up:
            run.state = run.move(row, *others)
        elif noise_sampler is not None:
            run.state = run.move([*row, up], *others, run.given(sigma, after))
        else:  # of variance 1 together
            share = (sigma - between) / (sigma - after)
            z = up * math.sqrt(1 - share)
            run.state = run.move([*row, up * math.sqrt(share)], *others, *first, z=z, draw=2 * i + 1)
    return run.finished()
