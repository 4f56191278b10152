"""Fokker-Planck residuals in the fused engine: their values, and gradients of losses by the network's parameters. FUSED

A network that :func:`fpfast.fused.compile` has recognised runs forwards with all the derivatives that a residual asks
for, and backwards to the gradient of a loss, a few points at a time, in one native call. So memory does not grow with
the number of points, and no graph is kept. What ``csrc/cpu/residual.cpp``, ``csrc/cuda/residual.cu`` and, in Triton,
``kernels/residual.py`` compute:

log_density     R of a potential phi along all d units, the gradient and the Laplacian from the same pass forwards
probes          R with the Laplacian as the mean of D^2 phi[v, v], the gradient from a pass backwards
potential       eps = grad R by a pass backwards; a loss's gradient is that of the derivative of R along dloss/deps
score           eps = d_t s - grad U, U = g^2/2 (sum v.J v + |s|^2) - a x.s; its gradient in the same way
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpfast.backends import Residuals
from fpfast.errors import bad, key
from fpfast.fused import Fused, Unsupported
from fpfast.jets import add, pull_back
from fpfast.points import DISTRIBUTIONS, Probes
from fpfast.score import Score
from fpfast.sde import SDE

Weighting = Callable[[SDE, Tensor], Tensor]  # lambda(t)

LARGEST = 64  # dimension of exact residuals: the cost is one column of a jet for each
POINTS = {"cpu": 1 << 17, "cuda": 1 << 20}  # of one native call, at most; fewer where they are more than
WORK = {"cpu": 2e10, "cuda": 1e13}  # operations: a fraction of a second, after which Python may answer Ctrl-C


@dataclass(frozen=True)
class Form:
    """One of the kernel's; ``number`` is its in csrc/kernels.h."""

    number: int
    vector: bool  # the residual is one of the score's, shape of x
    probes: bool

    def columns(self, directions: int) -> int:
        """Of a jet, for a gradient too."""
        return (directions + 2, directions + 2, 2 * directions + 4, 2 * directions + 3)[self.number]


# (form, of a potential, estimator) -> what the kernel has for it
FUSED: dict[tuple[str, bool, str], Form] = {
    ("log_density", True, "exact"): Form(0, vector=False, probes=False),
    ("log_density", True, "hutchinson"): Form(1, vector=False, probes=True),
    ("log_density", True, "taylor"): Form(1, vector=False, probes=True),
    ("score", True, "exact"): Form(2, vector=True, probes=False),
    ("score", False, "exact"): Form(3, vector=True, probes=False),
    ("score", False, "hutchinson"): Form(3, vector=True, probes=True),
}


def serve(score: Score, x: Tensor, form: str, estimator: str, graph: bool = False) -> FusedResidual | None:
    """The engine's residual, where there is one for the score and x. ``graph``: x may ask for gradients."""
    net = score.net
    found = FUSED.get((form, score.predicts == "potential", estimator))
    if found is None or not isinstance(net, Fused) or score.guidance is not None or (kernels := net.kernels(x)) is None:
        return None
    if x.ndim != 2 or x.shape[1] != net.dimension:
        raise bad("x", f"shape (B, {net.dimension})", tuple(x.shape))
    if (graph and x.requires_grad) or (not found.probes and net.dimension > LARGEST):
        return None
    net.refresh()
    if any(p._backward_hooks for p in net.parameters):
        return None  # they would be called twice
    if net.outputs != (1 if score.predicts == "potential" else net.dimension):
        return None  # autograd's way says what is wrong with it
    try:
        return FusedResidual(score, net, found, kernels, x)
    except Unsupported:
        return None


class FusedResidual:
    """Residuals of one form of a compiled network, for its present parameters."""

    def __init__(self, score: Score, net: Fused, form: Form, kernels: Residuals, like: Tensor) -> None:
        self.score, self.form, self.kernels, self.dtype, self.device = score, form, kernels, like.dtype, like.device
        self.jets, here, self.constants, self.weights = net.jets(kernels, self.dtype, self.device)
        self.parameters = [p for p in net.parameters if p.requires_grad]
        self.here = [p for p in here if p.requires_grad]  # the same on the CPU, of which the constants are made

    def values(self, x: Tensor, t: Tensor, probes: Probes | None) -> Tensor:
        """The residual at x (B, d) and times t, a number or (B,), shape of x or (B,).

        Where gradients are enabled it has a graph to the parameters; its way back runs the network again.
        """
        x, t = x.detach(), t.detach()
        value = x.new_empty(x.shape if self.form.vector else x.shape[:1])
        self.run(x, t, probes, value=value)
        if not torch.is_grad_enabled():
            return value
        # What the way back reads again. Weights are not among it, features of time that are learned are.
        held = [x, t, *(self.parameters if self.jets.learned else ())]
        if probes is not None and isinstance(probes.seed, Tensor):
            held.append(probes.seed)
        versions = [tensor._version for tensor in held]

        def pull_back(upstream: Tensor) -> list[Tensor | None]:
            if [tensor._version for tensor in held] != versions:
                raise RuntimeError(
                    "x, t, seed or parameters: expected what the residual was computed from, got something changed in "
                    "place since then"
                )
            return self.run(x, t, probes, upstream=upstream)[1]

        return _Graph.apply(value, pull_back, *self.parameters)

    def loss(self, x: Tensor, t: Tensor, probes: Probes | None, weighting: Weighting | None) -> Tensor:
        """The mean of weighting(sde, t) |residual|^2 over the points; its gradients are made in the same pass.

        No weighting stands for 1.
        """
        wanted = torch.is_grad_enabled() and bool(self.parameters)
        loss, gradients = self.run(x.detach(), t.detach(), probes, weighting=weighting, gradient_of_loss=wanted)

        def pull_back(upstream: Tensor) -> list[Tensor | None]:
            return [None if g is None else upstream.to(g.device) * g for g in gradients]

        return _Graph.apply(loss[0].to(x.dtype), pull_back, *self.parameters)

    def regulariser(
        self,
        x: Tensor,
        t: Tensor,
        weighting: Weighting | None,
        unbiased: bool,
        probes: int,
        seed: Tensor,
        distribution: str,
    ) -> Tensor:
        """What :func:`fpfast.losses.fp_regulariser` says, ``probes`` of each estimate."""
        if not self.form.probes:
            return self.loss(x, t, None, weighting)
        drawn = Probes(x, 2 * probes, seed, key("distribution", distribution, DISTRIBUTIONS))
        if not unbiased:
            return self.loss(x, t, drawn.some(0, probes), weighting)
        product = self.values(x, t, drawn.some(0, probes)) * self.values(x, t, drawn.some(probes, probes))
        squares = product.reshape(len(x), -1).sum(1)
        if weighting is not None:
            squares = weighting(self.score.sde, self._times(x, t)).to(x.dtype) * squares
        return squares.mean()

    def _times(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.score.times(x, t.to(x.dtype))  # a float32 network sees float32 times
        return t.clone() if t.is_inference() else t.contiguous()  # forward mode wants memory of its own for each

    @torch.inference_mode(False)  # where there is no forward mode
    @torch.no_grad()
    def run(
        self,
        x: Tensor,
        t: Tensor,
        probes: Probes | None,
        *,
        value: Tensor | None = None,
        upstream: Tensor | None = None,
        weighting: Weighting | None = None,
        gradient_of_loss: bool = False,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Fills in the value. Returns the loss and, if wanted, the gradients of the parameters: its, or upstream's."""
        if t.ndim and t.shape != x.shape[:1]:
            raise bad("t", f"a number or shape ({len(x)},)", tuple(t.shape))
        loss = x.new_zeros(1, dtype=torch.float64)
        wanted = gradient_of_loss or upstream is not None
        gradient = x.new_zeros(self.jets.gradient_count + 1, dtype=torch.float64) if wanted else None  # never empty
        of_features: list[Tensor | None] = [None] * len(self.parameters)
        size = self._points_together(self.jets.dimension if probes is None else probes.count)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            points, times = x[part], self._times(x[part], t[part] if t.ndim else t)
            weight = None if weighting is None else weighting(self.score.sde, times)
            outside = {
                "probes": None if probes is None else probes.of_points(start, len(points)),
                "value": None if value is None else value[part],
                "upstream": None if upstream is None else upstream[part].to(self.dtype).contiguous(),
                "weight": None if weight is None else weight.to(self.dtype).contiguous(),
                "loss": loss if value is None and upstream is None else None,
                "gradient": gradient,
            }
            of_features = add(of_features, self._part(points, times, outside, 1 / len(x)))
        if gradient is None:
            return loss, []
        gradients = self.jets.backward(gradient, self.constants, self.here)
        return loss, add(self._home(gradients), self._home(of_features))

    def _home(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Each on the device of its parameter."""
        return [None if g is None else g.to(p.device) for g, p in zip(gradients, self.parameters, strict=True)]

    def _points_together(self, directions: int) -> int:
        work = 3 * self.form.columns(directions) * self.jets.weight_count
        return max(256, min(POINTS[self.device.type], int(WORK[self.device.type] / work)))

    def _part(self, x: Tensor, t: Tensor, outside: dict[str, Tensor | None], scale: float) -> list[Tensor | None]:
        """One native call. Returns the gradients that go to the parameters by way of learned features of time."""
        jets = self.jets
        learned = jets.learned and outside["gradient"] is not None
        with torch.set_grad_enabled(learned):
            features = jets.feature_values(t.cpu() if jets.terms else t)
        adjoints = [x.new_zeros(len(x), jets.feature_count) for _ in features] if learned else None
        values, rates = (f.detach().to(self.device, self.dtype).contiguous() for f in features)
        probes = outside["probes"]
        directions = jets.dimension if probes is None else len(probes)
        self.kernels.residual(
            tensors={
                **outside,
                **jets.on(self.device),
                "weights": self.weights,
                "x": x.contiguous(),
                "feature_values": values,
                "feature_rates": rates,
                "coef": self._coefficients(t),
                "feature_adjoints": None if adjoints is None else adjoints[0],
                "rate_adjoints": None if adjoints is None else adjoints[1],
            },
            numbers={
                **jets.numbers(),
                "float64": self.dtype == torch.float64,
                "form": self.form.number,
                "columns": self.form.columns(directions),
                "weight_count": len(self.weights),
                "directions": directions,
                "share": 1.0 if probes is None else 1.0 / directions,
                "scale": scale,
                "samples": len(x),
            },
        )
        if adjoints is None:
            return [None] * len(self.parameters)
        return pull_back(list(features), [a.cpu().double() for a in adjoints], self.here)

    def _coefficients(self, t: Tensor) -> Tensor:
        """(a, g^2 / 2) of each time, and for a score s = p x + q y also p, q, dp/dt, dq/dt; [2, B] or [6, B]."""
        sde, potential = self.score.sde, self.score.predicts == "potential"
        rows = [sde.a(t), sde.g2(t) / 2]
        if not potential:
            values, slopes = torch.func.jvp(self.score.affine, (t,), (torch.ones_like(t),))[:2]
            rows += [*values, *slopes]
        return torch.stack([row.to(self.dtype) for row in rows])


class _Graph(torch.autograd.Function):
    """A value that is there already, and how to get its gradients by the parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pull_back: Callable[[Tensor], list[Tensor | None]], *_: Tensor) -> Tensor:
        ctx.pull_back = pull_back
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.pull_back(upstream)
