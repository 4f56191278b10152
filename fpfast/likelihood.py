"""The log-likelihood that a score gives to data, by its probability-flow ODE; bits per dimension.          ODE_SOLVERS

Along dx/dt = a x - g^2/2 s(x, t) the log-density changes by minus the divergence of the right side, so for x at time t0

    log p(x) = log prior(x_T) + Int_t0^T (a d - g^2/2 div s) dt

(Chen et al., arXiv 1806.07366; Song et al., arXiv 2011.13456, section 4.3 and appendix D.2). It is integrated in other
coordinates: with n^2 = alpha^2 + std^2, z = x / n and w = asinh(std / alpha) the same ODE reads

    dz/dw = -std r,   log p(x) = log prior(x_T) + d log(n_T / n_0) - Int std n div r dw,   r = s + x / n^2

for every SDE. What all data have in common is in n, without error; r is zero for data N(0, I); nothing is infinite at
either end for a network that predicts the noise.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fpfast import noise
from fpfast.backends import BACKENDS
from fpfast.divergence import ESTIMATORS, MOST_PROBES, Estimated, average, fuses
from fpfast.errors import bad, brief, dense, flag, floating, instance, integer, key, real
from fpfast.fused import EXACT_DIVERGENCE, Fused
from fpfast.points import DISTRIBUTIONS, Points, Probes
from fpfast.sample import Bar, usable_device
from fpfast.score import Score
from fpfast.sde import SDE, as_float64
from fpfast.times import grid
from fpfast.trajectory import recognise

MOST_STEPS = 4000  # of "dopri5": a few hundred are many


class Likelihood(NamedTuple):
    """log p(x) of each sample, its standard error over the probes, and how it came about."""

    value: Tensor  # nats, float64, (B,)
    error: Tensor | None  # of value, float64, (B,); None where the divergence is exact, or comes from a single probe
    estimator: str
    evaluations: int  # of the ODE's right side for each batch; by "dopri5" for the batch that took most
    latent: Tensor  # x_T, where the ODE carries x, shape and dtype of the state


class Rest(Score):
    """r = s + x / n^2, what a score has beside that of data N(0, I): the network's output, with another share of x."""

    def __init__(self, score: Score) -> None:
        vars(self).update(vars(score), outputs=score.outputs)  # which may be of a class of its own
        self.of = score

    def affine(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        p, q = self.of.affine(t)
        alpha, std = self.sde.marginal(as_float64(t))
        return p + 1 / (alpha**2 + std**2), q


class Path:
    """The coordinate w on a time grid, and the way back to t."""

    def __init__(self, sde: SDE, times: Tensor) -> None:
        self.sde, self.start, self.end = sde, float(times[0]), float(times[-1])
        self.w = (sde.std(times) / sde.alpha(times)).asinh()  # ascending, as the times

    def times(self, w: Tensor) -> Tensor:
        return self.sde.time_at(-w.sinh().log()).clamp(self.start, self.end)


class Moments:
    """Times at which the ODE's right side is wanted, and what all samples share there, made for all at once."""

    def __init__(self, rest: Rest, times: Tensor, dtype: torch.dtype) -> None:
        t = times.to(dtype).double().clamp(max=rest.sde.T)  # the network sees a t of its own dtype
        alpha, std = rest.sde.marginal(t)
        self.t, self.std, self.size = t, std.tolist(), (alpha**2 + std**2).sqrt().tolist()
        self.p, self.q = (c.tolist() for c in rest.affine(t))


class Field:
    """The right side of the ODE for one batch: d/dw of z and, for each estimate of the divergence, of log p of z."""

    def __init__(self, score: Score, estimator: str, probes: Probes, bar: Bar) -> None:
        self.rest, self.estimate, self.probes, self.bar = Rest(score), ESTIMATORS[estimator].divergence, probes, bar
        self.like, self.dtype = probes.like, probes.like.dtype
        self.evaluations = 0
        self.fused = estimator == "exact" and fuses(score, self.like, torch.zeros(1, dtype=torch.float64))

    def at(self, times: Tensor) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """f(z, k), the right side at times[k]: [B, ...] and [estimates, B]."""
        at = Moments(self.rest, times, self.dtype)
        right = self._in_engine(at) if self.fused else self._by_estimator(at)

        def counted(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
            r, traces = right(at.size[k] * z.to(self.dtype), k)
            self.evaluations += 1
            self.bar.update()
            return -at.std[k] * r, at.std[k] * at.size[k] * traces

        return counted

    def _in_engine(self, at: Moments) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        net, d = cast(Fused, self.rest.net), self.like.shape[1]
        evaluate = net.with_divergence(at.t, self.dtype, self.rest.predicts == "potential")

        def right(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            y = evaluate(x, k)
            return at.p[k] * x + at.q[k] * y[:, :d], (at.p[k] * d + at.q[k] * y[:, d].double())[None]

        return right

    def _by_estimator(self, at: Moments) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        times = at.t.tolist()

        def right(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            points = Points(self.rest, x, times[k], graph=False)
            traces = torch.stack([trace.double() for trace in self.estimate(points, self.probes)])
            r = points.value
            if x._version:
                raise bad("net", "a network that leaves its input as it is", "one that changed x in place")
            return r, traces

        return right


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: stage i is taken at nodes[i] of the step, with the slopes weighed by rows[i]."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


ODE_SOLVERS: dict[str, Tableau | None] = {  # None: steps of its own
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2)),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "dopri5": None,
}


def _weighed(weights: Sequence[float], slopes: list[Tensor]) -> Tensor | float:
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)


def fixed(field: Field, z: Tensor, path: Path, tableau: Tableau) -> tuple[Tensor, Tensor | float]:
    """z at the end, and what each estimate says that log p of z has gained: a step for each step of the grid."""
    nodes = torch.tensor(tableau.nodes, dtype=torch.float64)
    steps = path.w.diff()
    right = field.at(path.times(path.w[:-1, None] + steps[:, None] * nodes).flatten())
    gained: Tensor | float = 0.0
    numbers = itertools.count()
    for h in steps.tolist():
        slopes: list[Tensor] = []
        gains: list[Tensor] = []
        for row in tableau.rows:
            slope, gain = right(z + h * _weighed(row, slopes), next(numbers))
            slopes.append(slope)
            gains.append(gain)
        z = z + h * _weighed(tableau.weights, slopes)
        gained = gained + h * _weighed(tableau.weights, gains)
    return z, gained


def adaptive(field: Field, z: Tensor, path: Path, rtol: float, atol: float) -> tuple[Tensor, Tensor]:
    """The same by Dormand and Prince's pair of orders 5 and 4, by torchdiffeq; the state is float64."""
    odeint = _torchdiffeq()
    estimates = len(field.at(torch.tensor([path.start], dtype=torch.float64))(z, 0)[1])
    state = z.double(), torch.zeros(estimates, len(z), dtype=torch.float64, device=z.device)

    def right(w: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        slope, gain = field.at(path.times(w.cpu())[None])(state[0], 0)
        return slope.double(), gain

    ends = path.w[[0, -1]].to(z.device)
    try:
        z, gained = odeint(
            right, state, ends, rtol=rtol, atol=atol, method="dopri5", options={"max_num_steps": MOST_STEPS}
        )
    except AssertionError as error:  # steps that vanish, or are too many, values that are not finite
        raise RuntimeError(f"solver 'dopri5': {error}; take 'rk4', or larger rtol and atol") from error
    return z[-1], gained[-1]


def _torchdiffeq() -> Callable[..., tuple[Tensor, Tensor]]:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        message = f"solver: 'dopri5' cannot serve without torchdiffeq ({error}): pip install 'fpfast[adaptive]'"
        raise RuntimeError(message) from error
    return odeint


@torch.inference_mode(False)
@torch.no_grad()
def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    solver: str = "rk4",
    steps: int = 50,
    times: str | Sequence[float] | Tensor | None = "asinh",
    estimator: str = "exact",
    probes: int = 1,
    distribution: str = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: noise.Seed = None,
    first_sample: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    progress: bool = False,
) -> Likelihood:
    """log p(x), in nats, of samples x at the last time t0 of the grid (t_min of the SDE), under the score's ODE.

        dx/dt = a x - g^2/2 s,   log p(x) = log prior(x_T) + Int_t0^T (a d - g^2/2 div s) dt

    (Song et al., arXiv 2011.13456, eq. 39.) It is the density of the model: that of what the ODE makes of the prior
    N(0, prior_std^2 I). Even with the exact score of the data it differs from theirs, as their marginal at T is not the
    prior (``latent`` gives x_T, to see by how much), and as x is taken to be a sample at t0, not at 0.

    Args:
        score: a :class:`fpfast.Score` of any kind. Put the network in evaluation mode if it has dropout.
        x: (B, ...), finite floating-point values; see :func:`dequantise` for whole numbers.
        solver: "heun" (order 2, two evaluations of the ODE's right side a step), "rk4" (order 4, four), or "dopri5"
            (steps by rtol and atol, from t0 to T; torchdiffeq's, ``pip install 'fpfast[adaptive]'``).
        steps: number of steps of a named time grid.
        times: a descending grid from T to t0 as for :func:`fpfast.sample`; None is the SDE's own, made for sampling.
            "asinh", even in sqrt(w), suits this ODE under every SDE.
        estimator: of div s, a key of ``fpfast.divergence.ESTIMATORS``. The default is "exact" in all dimensions: d
            backward passes an evaluation (one call of the engine for perceptrons up to d = 16 on the CPU). For large d
            take "hutchinson": ``probes`` backward passes.
        probes: K random probes of each sample. Each is the same all along the path, and integrated on its own: so the
            standard error, which needs two, is that of log p. With K probes, log p is within ``value +- q error`` by
            Student's t with K - 1 degrees of freedom, if the estimates are about normal.
        distribution: of the probes, "rademacher" (which has the smaller errors) or "normal".
        rtol, atol: of "dopri5". Its steps suit a whole batch, so the last digits depend on the batch size. Below what
            the network's own rounding allows steps become tiny; after 4,000 it is a RuntimeError.
        seed: an integer in [0, 2^64), a torch.Generator, None (torch's default generator), or one integer per sample.
            Probe k is draw k of the stream "probes".
        first_sample: number of the first sample: those of x[k:] with first_sample = k have the probes they have in x.
        device: default: that of x.
        dtype: of the state, which is what the network gets: float32 or float64. Sums are float64.
        batch_size: at most so many samples at a time.
        progress: a progress bar on stderr.

    The network is called once for each evaluation by "exact", "hutchinson" and "hutchpp" (a compiled one, by "exact" up
    to d = 16, twice: output and divergence), 1 + 2 K times by "finite_difference", 1 + K by "taylor" and "martingale"
    (which near t_min, where it looks at other times, takes one more). "dopri5" adds an evaluation to those of its own.

    Returns:
        :class:`Likelihood`: (value, error, estimator, evaluations, latent).

    Raises:
        ValueError, TypeError: an argument is of the wrong kind or out of range, or the network's parameters or outputs
            are; the message names it.
        RuntimeError: an estimator cannot differentiate the network; torchdiffeq is missing, or finds no step.

    Warns with RuntimeWarning when values are NaN or infinite.
    """
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    if not dense(x) or x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise bad("x", "floating-point values of shape (B, ...), B >= 1", brief(x))
    if not bool(x.isfinite().all()):
        raise bad("x", "finite values", f"{int((~x.isfinite()).sum())} that are not")
    floating("dtype", dtype)
    tableau = ODE_SOLVERS[key("solver", solver, ODE_SOLVERS)]
    probes = integer("probes", probes, ESTIMATORS[key("estimator", estimator, ESTIMATORS)].fewest, MOST_PROBES)
    key("distribution", distribution, DISTRIBUTIONS)
    flag("progress", progress)
    tiny = torch.finfo(torch.float64).tiny
    rtol, atol = (real(name, value, "a positive number", tiny) for name, value in (("rtol", rtol), ("atol", atol)))
    first_sample = integer("first_sample", first_sample, 0, 2**48 - len(x))
    batch_size = len(x) if batch_size is None else integer("batch_size", batch_size, 1)
    device = usable_device(score, x, device)
    seeds = noise.seed_tensor(seed, len(x), device)
    if seeds.ndim and first_sample:
        raise bad("first_sample", "0 where every sample has a seed of its own", first_sample)
    path = Path(score.sde, grid(score.sde, times, steps).flip(0))
    estimates, latents, most = [], [], 0
    starts = range(0, len(x), batch_size)
    total = None if tableau is None else len(starts) * (len(path.w) - 1) * len(tableau.nodes)
    if estimator == "exact" and device.type == "cpu" and math.prod(x.shape[1:]) <= EXACT_DIVERGENCE:
        score = _recognised(score, tuple(x.shape), dtype)
    held = score.net.held() if isinstance(score.net, Fused) else contextlib.nullcontext()
    with Bar(total=total, desc="likelihood", unit="evaluation", disable=not progress) as bar, held:
        for start in starts:
            part = slice(start, min(start + batch_size, len(x)))
            state = x[part].detach().to(device=device, dtype=dtype, copy=True).contiguous()
            own, first = (seeds[part], 0) if seeds.ndim else (seeds, first_sample + start)
            field = Field(score, estimator, Probes(state, probes, own, distribution, first_sample=first), bar)
            sizes = [math.hypot(*map(float, score.sde.marginal(t))) for t in (path.start, path.end)]
            z = state / sizes[0]
            z, gained = adaptive(field, z, path, rtol, atol) if tableau is None else fixed(field, z, path, tableau)
            latent = sizes[1] * z.to(dtype)
            known = score.sde.prior_log_prob(latent) + math.log(sizes[1] / sizes[0]) * state[0].numel()
            estimates.append(known - gained)
            latents.append(latent)
            most = max(most, field.evaluations)
    value, error, _ = average(estimator, iter(torch.cat(estimates, dim=1)))
    if nonfinite := int((~value.isfinite()).sum()):
        warnings.warn(f"{nonfinite} of {len(x)} log-likelihoods are NaN or infinite", RuntimeWarning, stacklevel=2)
    return Likelihood(value, error, estimator, most, torch.cat(latents))


def _recognised(score: Score, shape: tuple[int, ...], dtype: torch.dtype) -> Score:
    """With its network compiled, where the engine evaluates it."""
    net = None if BACKENDS["cpu"].missing() else recognise(score, shape, dtype)[0]
    if net is None or net is score.net:
        return score
    compiled = copy.copy(score)
    compiled.net = net
    return compiled


def dequantise(
    x: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    seed: noise.Seed = None,
    first_sample: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """low + (high - low) (x + u) / levels, u uniform on (0, 1]: whole numbers 0 to levels - 1 made continuous.

    Uniform dequantisation (Theis et al., arXiv 1511.01844, section 3.1). Noise: stream "data" of the seed, draw 1 (the
    losses take 0), numbered as for :func:`fpfast.sample`.

    Args:
        x: (B, ...), whole numbers of any dtype.
        levels: 256 for 8 bits; [0, levels] becomes [low, high].
        dtype: of the result.

    Raises ValueError for values that are not whole or out of range, and for arguments out of range.
    """
    levels, low, high = _scale(levels, low, high)
    if not dense(x) or x.is_complex():
        raise bad("x", "whole numbers of shape (B, ...)", brief(x))
    floating("dtype", dtype)
    whole = x.detach().double()
    if not bool(((whole == whole.round()) & (whole >= 0) & (whole < levels)).all()):
        raise bad("x", f"whole numbers in [0, {levels - 1}]", f"{float(whole.min())} to {float(whole.max())}")
    first_sample = integer("first_sample", first_sample, 0, 2**48 - len(x))
    seed = noise.seed_tensor(seed, len(x), x.device)
    if seed.ndim and first_sample:
        raise bad("first_sample", "0 where every sample has a seed of its own", first_sample)
    u = noise.uniform(seed, x.shape, first_sample=first_sample, stream="data", draw=1, device=x.device)
    return (low + (high - low) / levels * (whole + u)).to(dtype)


def bits_per_dimension(found: Likelihood, *, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Estimated:
    """-(log p(x) + d log((high - low) / levels)) / (d log 2) of each sample, and its standard error, (B,).

    For x of :func:`dequantise` with the same numbers: log p(x) + d log((high - low) / levels) is the log-density of
    whole number + u. Its mean over u is at most the log of the density's integral over u, which is the probability of
    the whole numbers; so the mean over data is at least the bits that a lossless code by this model would take (Theis
    et al., arXiv 1511.01844, section 3.1). levels = 1, low = 0, high = 1 leave out the scale: -log2 p(x) / d.

    Args:
        found: what :func:`log_likelihood` gave.
        levels, low, high: as for :func:`dequantise`.

    Returns (value, error, estimator). Raises ValueError for numbers out of range.
    """
    levels, low, high = _scale(levels, low, high)
    if not isinstance(found, Likelihood):
        raise TypeError(f"found: expected what fpfast.log_likelihood returns, got {type(found).__name__}")
    d = found.latent[0].numel()
    value = -(found.value / d + math.log((high - low) / levels)) / math.log(2)
    error = None if found.error is None else found.error / (d * math.log(2))
    return Estimated(value, error, found.estimator)


def _scale(levels: int, low: float, high: float) -> tuple[int, float, float]:
    low, high = real("low", low), real("high", high)
    if high <= low:
        raise bad("high", f"more than low = {low}", high)
    return integer("levels", levels, 1, 2**53), low, high
