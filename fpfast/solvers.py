"""Solvers: a solver is a function that writes a table of coefficients.                                      SOLVERS

The reverse process of dX = a X dt + g dW at noise level lambda runs from T to 0 and is

    dX = [a x - (1 + lambda^2) / 2 g^2 s] dt + lambda g dW~,

the probability-flow ODE at lambda = 0, the reverse SDE at lambda = 1 (Song et al., arXiv 2011.13456; every lambda has
the same marginals where s is exact). Below, t and t' are the ends of a step, h = t - t' > 0, primes mark values at t'.

The score is s = p x + q y with y the network's output, so a step of any solver is a few linear combinations of states
and outputs, the *stages*; a table holds their coefficients in float64, one row a stage and step. `loop.py` and
`trajectory.py` run it without knowing the solver's name. Steps that end at t' = 0, where the score is singular, use no
evaluation there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpfast.errors import bad, brief, dense, instance, tensor
from fpfast.noise import STREAMS
from fpfast.score import Score

CORRECTOR_SNR = 0.16


class Stage(NamedTuple):
    """slots[to] = c0 slots[of[0]] + c1 slots[of[1]] + ... + cz z, after evaluating the network where ``at`` says so."""

    to: str
    of: tuple[str, ...]
    at: str | None = None  # slot at which the network is evaluated first
    output: str = "y"  # slot of its output
    stream: int = STREAMS["step"]
    keep: tuple[tuple[str, str], ...] = ()  # (slot, slot that receives its old value afterwards)


@dataclass(frozen=True, eq=False)
class Table:
    """A solver's plan. The rows of ``coef`` are (c0, c1, c2, c3, cz)."""

    stages: tuple[Stage, ...]
    coef: Tensor  # [steps, stages, 5] float64
    times: Tensor  # [steps, stages] float64, where the network is evaluated
    evaluate: Tensor  # [steps, stages] bool
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)  # what the loop makes of it, for each device

    @property
    def evaluations(self) -> int:
        """How often the network is called, for each batch."""
        return int(self.evaluate.sum())


@dataclass(frozen=True)
class Moments:
    """Everything a solver needs to know at some times: the SDE's coefficients and the score's (p, q), float64."""

    t: Tensor
    score: Score

    @cached_property
    def a(self) -> Tensor:
        return self.score.sde.a(self.t)

    @cached_property
    def g2(self) -> Tensor:
        return self.score.sde.g2(self.t)

    @cached_property
    def alpha(self) -> Tensor:
        return self.score.sde.alpha(self.t)

    @cached_property
    def std(self) -> Tensor:
        return self.score.sde.std(self.t)

    @cached_property
    def p(self) -> Tensor:
        return self.score.affine(self.t)[0]

    @cached_property
    def q(self) -> Tensor:
        return self.score.affine(self.t)[1]

    @property
    def ratio(self) -> Tensor:
        """std / alpha, the noise-to-signal ratio (sigma of Karras et al.)."""
        return self.std / self.alpha

    @property
    def data_x(self) -> Tensor:
        """The denoiser D = (x + std^2 s) / alpha is data_x x + data_y y."""
        return (1 + self.std**2 * self.p) / self.alpha

    @property
    def data_y(self) -> Tensor:
        return self.std**2 * self.q / self.alpha

    def drift(self, noise: float) -> tuple[Tensor, Tensor]:
        """(A, B) of the reverse drift A x + B y = a x - (1 + noise^2) / 2 g^2 s."""
        k = (1 + noise**2) / 2 * self.g2
        return self.a - k * self.p, -k * self.q


class Plan:
    """What a solver is asked for: the score, the ends of its steps, the noise level, and if the last step has noise."""

    def __init__(self, score: Score, times: Tensor, noise: float, last_noise: bool) -> None:
        self.score = score
        self.noise = noise
        self.now, self.next = self.at(times[:-1]), self.at(times[1:])
        self.noisy = torch.ones(len(times) - 1, dtype=torch.float64)  # multiplies every cz
        self.noisy[-1] = float(last_noise)

    def at(self, t: Tensor) -> Moments:
        return Moments(t, self.score)

    @property
    def h(self) -> Tensor:
        return self.now.t - self.next.t


def make_row(like: Tensor, *coefficients: Tensor | float, z: Tensor | float = 0.0) -> Tensor:
    """A stage's rows for all steps, (steps, 5) float64: c0, c1, c2, c3 (zero where not given), cz."""
    if not dense(like) or like.ndim != 1:
        raise bad("like", "a tensor of shape (steps,)", brief(like))
    if len(coefficients) > 4:
        raise bad("coefficients", "at most four", len(coefficients))
    row = torch.zeros(len(like), 5, dtype=torch.float64)
    named = {k: (f"coefficients[{k}]", c) for k, c in enumerate(coefficients)} | {4: ("z", z)}
    for k, (name, c) in named.items():
        column = tensor(name, c, "a number or a tensor of numbers", dtype=torch.float64)
        if column.shape not in ((), (1,), like.shape):
            raise bad(name, f"a number or shape ({len(like)},)", tuple(column.shape))
        row[:, k] = column
    return row


def make_table(*stages: tuple[Stage, Tensor, Moments], skip: Tensor | None = None) -> Table:
    """A table from its stages, each with its rows and the times where it evaluates the network.

    ``skip`` marks steps whose last stage evaluates nothing.
    """
    if not stages:
        raise bad("stages", "one or more", "none")
    for given in stages:
        if not isinstance(given, tuple) or len(given) != 3:
            raise bad("stages", "triples of a stage, its rows and its moments", type(given).__name__)
        stage, row, moments = given
        instance("stages", stage, Stage, "a fpfast.solvers.Stage first")
        instance("stages", moments, Moments, "fpfast.solvers.Moments last")
        if not dense(row) or row.shape != (len(stages[0][1]), 5):
            raise bad("stages", "rows as make_row makes them, one a step", brief(row))
        if not dense(moments.t) or moments.t.shape != stages[0][2].t.shape:
            raise bad("stages", "moments of one number of times", brief(moments.t))
    coef = torch.stack([row for _, row, _ in stages], dim=1)
    times = torch.stack([moments.t for _, _, moments in stages], dim=1)
    evaluate = torch.tensor([stage.at is not None for stage, _, _ in stages]).repeat(len(coef), 1)
    if skip is not None:
        if not dense(skip) or skip.dtype != torch.bool or skip.shape != (len(coef),):
            raise bad("skip", f"a tensor of bool of shape ({len(coef)},), or None", brief(skip))
        evaluate[:, -1] &= ~skip
    return Table(tuple(stage for stage, _, _ in stages), coef, times, evaluate)


def euler_row(plan: Plan, start: Moments, noise: float, z: Tensor | float = 0.0) -> Tensor:
    """x' = x - h (A x + B y) + z."""
    h = start.t - plan.next.t
    drift_x, drift_y = start.drift(noise)
    return make_row(h, 1 - h * drift_x, -h * drift_y, z=z)


def euler_maruyama(plan: Plan) -> Table:
    """x' = x - h [a x - (1 + lambda^2)/2 g^2 s] + lambda g sqrt(h) z.

    Ito; strong order 1 (the noise is additive), weak order 1; one evaluation a step. Source: Kloeden & Platen (1992),
    section 10.2; the reverse SDE of Song et al. (arXiv 2011.13456), eq. 6.
    """
    z = plan.noisy * plan.noise * (plan.now.g2 * plan.h).sqrt()
    return make_table((Stage("x", ("x", "y"), at="x"), euler_row(plan, plan.now, plan.noise, z), plan.now))


def _churn(plan: Plan) -> tuple[Moments, list[tuple[Stage, Tensor, Moments]]]:
    """Noise for ODE solvers: a step first goes back to a noisier time t^ <= T, by adding exactly the noise between.

    With r = std/alpha, r(t^)^2 = r^2 + lambda^2 (r^2 - r'^2): the rate of the reverse SDE at lambda.

    Returns where the ODE steps start, and the stage that leads there (none at lambda = 0).
    """
    if plan.noise == 0:
        return plan.now, []
    r2, next_r2 = plan.now.ratio**2, plan.next.ratio**2
    raised = (r2 + plan.noisy * plan.noise**2 * (r2 - next_r2)).sqrt()
    t = torch.maximum(plan.score.sde.time_at(-raised.log()), plan.now.t)
    start = plan.at(torch.where(plan.noisy > 0, t.clamp(max=float(plan.now.t[0])), plan.now.t))
    added = start.alpha * (start.ratio**2 - r2).clamp(min=0).sqrt()
    return start, [(Stage("x", ("x",)), make_row(t, start.alpha / plan.now.alpha, z=added), start)]


def _trapezoid_rows(plan: Plan, start: Moments, noise: float, z: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of u = x - h (A x + B y) + z and x' = x - h/2 [A x + B y + A' u + B' y'] + z, and the steps that end at 0,

    where x' = u. The first has operands (x, y), the second (x, y, y'), u being written out in x and y.
    """
    singular = plan.next.t == 0
    h = start.t - plan.next.t
    drift_x, drift_y = start.drift(noise)
    after = plan.at(torch.where(singular, start.t, plan.next.t))
    next_x, next_y = after.drift(noise)
    predictor = make_row(h, 1 - h * drift_x, -h * drift_y, z=z)
    u_x, u_y, u_z = predictor[:, 0], predictor[:, 1], predictor[:, 4]
    corrector = make_row(
        h,
        1 - h / 2 * (drift_x + next_x * u_x),
        -h / 2 * (drift_y + next_x * u_y),
        -h / 2 * next_y,
        z=u_z - h / 2 * next_x * u_z,
    )
    return predictor, torch.where(singular[:, None], predictor, corrector), singular


def heun(plan: Plan) -> Table:
    """Heun's method for the probability-flow ODE in (x, t), after churning.

    x^ = noise added up to t^ (see ``_churn``); u = x^ - h^ f(x^, t^); x' = x^ - h^/2 [f(x^, t^) + f(u, t')],
    f = a x - g^2/2 s, h^ = t^ - t'. Order 2 at lambda = 0, weak order 1 with churn; two evaluations a step, one for a
    step that ends at t' = 0. Source: Karras et al. (arXiv 2206.00364), algorithms 1 and 2; their churn gamma is
    sqrt(1 + lambda^2 (1 - sigma'^2 / sigma^2)) - 1 here, so that lambda means the same for all solvers.
    """
    start, stages = _churn(plan)
    predictor, corrector, singular = _trapezoid_rows(plan, start, 0.0, 0.0)
    return make_table(
        *stages,
        (Stage("u", ("x", "y"), at="x"), predictor, start),
        (Stage("x", ("x", "y", "y1"), at="u", output="y1"), corrector, plan.next),
        skip=singular,
    )


def stochastic_heun(plan: Plan) -> Table:
    """u = x - h f(x, t) + n;  x' = x - h/2 [f(x, t) + f(u, t')] + n;  n = lambda sqrt(h (g^2 + g'^2)/2) z, the same z.

    f = a x - (1 + lambda^2)/2 g^2 s. Ito and Stratonovich agree (additive noise); weak order 2; two evaluations a step,
    one for a step that ends at t' = 0. Source: Kloeden & Platen (1992), section 15.1 (trapezoidal weak scheme of
    order 2 for additive noise); Rumelin (1982).
    """
    variance = plan.h * (plan.now.g2 + plan.next.g2) / 2
    z = plan.noisy * plan.noise * variance.sqrt()
    predictor, corrector, singular = _trapezoid_rows(plan, plan.now, plan.noise, z)
    return make_table(
        (Stage("u", ("x", "y"), at="x"), predictor, plan.now),
        (Stage("x", ("x", "y", "y1"), at="u", output="y1"), corrector, plan.next),
        skip=singular,
    )


def _exact_rows(plan: Plan, start: Moments, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """(c_x, c_D, c_z) of the exact solution for a constant denoiser D, with k = log-SNR gain of the step:

    x' = (std'/std) e^(-lambda^2 k) x + alpha' (1 - e^(-(1 + lambda^2) k)) D + std' sqrt(1 - e^(-2 lambda^2 k)) z.
    """
    k = start.ratio.log() - plan.next.ratio.log()
    square = noise**2
    # At t' = 0, k is infinite and std' = 0: all is forgotten but D. (0 * inf must not arise at lambda = 0.)
    fade = torch.exp(-square * k) if square else torch.ones_like(k)
    z = plan.next.std * (-torch.expm1(-2 * square * k) if square else torch.zeros_like(k)).sqrt()
    return plan.next.std / start.std * fade, -plan.next.alpha * torch.expm1(-(1 + square) * k), z


def exponential(plan: Plan) -> Table:
    """The linear part and the noise are integrated exactly, with the denoiser D = (x + std^2 s)/alpha held constant:

    x' = (std'/std) e^(-lambda^2 k) x + alpha' (1 - e^(-(1 + lambda^2) k)) D + std' sqrt(1 - e^(-2 lambda^2 k)) z,
    k = log(alpha'/std') - log(alpha/std). Exact for a D that does not depend on x and t; weak order 1; one evaluation a
    step; may end at t' = 0. lambda = 0 is DDIM (Song et al., arXiv 2010.02502), lambda = 1 is SDE-DPM-Solver++(1)
    (Lu et al., arXiv 2211.01095), which is DDPM's ancestral step.
    """
    c_x, c_d, c_z = _exact_rows(plan, plan.now, plan.noise)
    row = make_row(c_x, c_x + c_d * plan.now.data_x, c_d * plan.now.data_y, z=plan.noisy * c_z)
    return make_table((Stage("x", ("x", "y"), at="x"), row, plan.now))


def _two_step_rows(plan: Plan, start: Moments, noise: float) -> tuple[Tensor, Tensor]:
    """Coefficients on (x, y, x_prev, y_prev) and c_z: as ``exponential`` with D + (D - D_prev) / (2 r), r = k_prev / k.

    The first step and one that ends at t' = 0 are of first order, and so is a churned one: the previous evaluation
    then lies on another trajectory.
    """
    c_x, c_d, c_z = _exact_rows(plan, start, noise)
    k = start.ratio.log() - plan.next.ratio.log()
    between = -start.ratio.log().diff()  # log-SNR gained from the last evaluation to this one
    follows = (plan.next.t != 0) & (start.t == plan.now.t)
    weight = torch.zeros_like(k)
    weight[1:] = torch.where(follows[1:], k[1:] / (2 * between), 0.0)
    d, d_prev = c_d * (1 + weight), -c_d * weight
    prev_x, prev_y = start.data_x.roll(1), start.data_y.roll(1)
    return make_row(k, c_x + d * start.data_x, d * start.data_y, d_prev * prev_x, d_prev * prev_y), c_z


_TWO_STEP = Stage("x", ("x", "y", "x_prev", "y_prev"), at="x", keep=(("x", "x_prev"), ("y", "y_prev")))


def dpmpp_2m(plan: Plan) -> Table:
    """DPM-Solver++(2M) for the probability-flow ODE, after churning as in ``heun``:

    x' = (std'/std) x + alpha' (1 - e^-k) [D + (D - D_prev) / (2 r)],  r = k_prev / k.
    Order 2 at lambda = 0, weak order 1 with churn; one evaluation a step; may end at t' = 0. Source: Lu et al.
    (arXiv 2211.01095), algorithm 2.
    """
    start, stages = _churn(plan)
    row, _ = _two_step_rows(plan, start, 0.0)
    return make_table(*stages, (_TWO_STEP, row, start))


def dpmpp_2m_sde(plan: Plan) -> Table:
    """SDE-DPM-Solver++(2M), midpoint form, at any noise level: ``exponential`` with D + (D - D_prev) / (2 r) for D.

    Order 2 at lambda = 0, weak order 1 above; one evaluation a step; may end at t' = 0. lambda = 1 is the solver
    of Lu et al. (arXiv 2211.01095), section 3.4; lambda^2 is k-diffusion's eta.
    """
    row, c_z = _two_step_rows(plan, plan.now, plan.noise)
    row[:, 4] = plan.noisy * c_z
    return make_table((_TWO_STEP, row, plan.now))


def ancestral(plan: Plan) -> Table:
    """x' = alpha' D + sqrt(std'^2 - u^2) eps + u z,  u = min(std', lambda std' sqrt(1 - (r'/r)^2)),  r = std/alpha.

    eps = (x - alpha D) / std = -std s. Weak order 1; one evaluation a step; may end at t' = 0. lambda is DDIM's eta:
    0 is DDIM, 1 is DDPM (Ho et al., arXiv 2006.11239; Song et al., arXiv 2010.02502, eq. 12 and 16).
    """
    now, after = plan.now, plan.next
    u = torch.minimum(after.std, plan.noise * after.std * (1 - (after.ratio / now.ratio) ** 2).sqrt())
    along = (after.std**2 - u**2).clamp(min=0).sqrt()
    row = make_row(
        u,
        after.alpha * now.data_x - along * now.std * now.p,
        after.alpha * now.data_y - along * now.std * now.q,
        z=plan.noisy * u,
    )
    return make_table((Stage("x", ("x", "y"), at="x"), row, now))


def pc(plan: Plan) -> Table:
    """Predictor-corrector: one Langevin step at t, then a reverse Euler-Maruyama step to t'.

    Corrector: x <- x + e s + sqrt(2 e) z,  e = 2 (r std)^2, signal-to-noise ratio r = 0.16. Song et al.
    (arXiv 2011.13456, algorithms 2 to 5) put e = 2 (r |z| / |s|)^2 with norms averaged over the batch; here |z| and |s|
    are sqrt(d) and sqrt(d) / std, their values where noise dominates, because with batch averages a sample would depend
    on its neighbours (docs/design-notes.md). lambda scales the predictor's noise; the corrector is always Langevin.
    Weak order 1 down to the bias of unadjusted Langevin steps, which more steps do not remove: the variance is too
    large by a share (r std)^2 / variance, at the time where the run ends. Two evaluations a step. With final="mean" the
    last predictor adds no noise.
    """
    now = plan.now
    e = 2 * (CORRECTOR_SNR * now.std) ** 2
    z = plan.noisy * plan.noise * (now.g2 * plan.h).sqrt()
    predictor = make_row(e, *euler_row(plan, now, plan.noise).T[:2], z=z)
    return make_table(
        (
            Stage("x", ("x", "y"), at="x", stream=STREAMS["corrector"]),
            make_row(e, 1 + e * now.p, e * now.q, z=(2 * e).sqrt()),
            now,
        ),
        (Stage("x", ("x", "y"), at="x"), predictor, now),
    )


Solver = Callable[[Plan], Table]
SOLVERS: dict[str, Solver] = {
    solver.__name__: solver
    for solver in (
        euler_maruyama,
        heun,
        stochastic_heun,
        exponential,
        dpmpp_2m,
        dpmpp_2m_sde,
        ancestral,
        pc,
    )
}
