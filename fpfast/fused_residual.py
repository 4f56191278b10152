"""Fokker-Planck residuals in the fused engine: their values, and gradients of losses by the network's parameters. FUSED

A network that :func:`fpfast.fused.compile` has recognised runs forwards with all the derivatives that a residual asks
for, and backwards to the gradient of a loss, a few points at a time, in one native call. So memory does not grow with
the number of points, and no graph is kept. What ``csrc/cpu/residual.cpp`` computes:

log_density     R of a potential phi along all d units, the gradient and the Laplacian from the same pass forwards
probes          R with the Laplacian as the mean of D^2 phi[v, v], the gradient from a pass backwards
potential       eps = grad R by a pass backwards; a loss's gradient is that of the derivative of R along dloss/deps
score           eps = d_t s - grad U, U = g^2/2 (sum v.J v + |s|^2) - a x.s; its gradient in the same way
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpfast.errors import bad
from fpfast.fused import Fused
from fpfast.jets import Jets, pull_back
from fpfast.points import Probes
from fpfast.score import Score
from fpfast.sde import per_sample

LARGEST = 64  # dimension of exact residuals: the cost is one column of a jet for each
POINTS = 1 << 17  # at a time, in one native call


@dataclass(frozen=True)
class Form:
    """One of the kernel's; ``number`` is its in csrc/kernels.h."""

    number: int
    vector: bool  # the residual is one of the score's, shape of x
    probes: bool


# (form, of a potential, estimator) -> what the kernel has for it
FUSED: dict[tuple[str, bool, str], Form] = {
    ("log_density", True, "exact"): Form(0, vector=False, probes=False),
    ("log_density", True, "hutchinson"): Form(1, vector=False, probes=True),
    ("log_density", True, "taylor"): Form(1, vector=False, probes=True),
    ("score", True, "exact"): Form(2, vector=True, probes=False),
    ("score", False, "exact"): Form(3, vector=True, probes=False),
    ("score", False, "hutchinson"): Form(3, vector=True, probes=True),
}


def exact(score: Score, x: Tensor, form: str) -> bool:
    """If the engine has the exact residual."""
    return serve(score, x, form, "exact") is not None


def serve(score: Score, x: Tensor, form: str, estimator: str) -> FusedResidual | None:
    """The engine's residual, where the score's network was compiled for it and x asks for nothing else."""
    net = score.net
    found = FUSED.get((form, score.predicts == "potential", estimator))
    if found is None or not isinstance(net, Fused) or score.guidance is not None:
        return None
    fits = x.ndim == 2 and x.shape[1] == net.dimension and not (x.requires_grad and torch.is_grad_enabled())
    if not fits or not net.available(x) or (not found.probes and net.dimension > LARGEST):
        return None
    return FusedResidual(score, net, found, x.dtype)


class FusedResidual:
    """Residuals of one form of a compiled network, for its present parameters."""

    def __init__(self, score: Score, net: Fused, form: Form, dtype: torch.dtype) -> None:
        net.refresh()
        if score.predicts != "potential" and net.outputs != net.dimension:
            raise bad("net", f"{net.dimension} outputs, as x has columns", net.outputs)
        if score.predicts == "potential" and net.outputs != 1:
            raise bad("net", "a potential with one output", net.outputs)
        self.score, self.form, self.dtype = score, form, dtype
        self.jets, self.cpu, self.constants, self.weights = net.jets(dtype)
        self.parameters = [p for p in net.net.parameters() if p.requires_grad]

    def values(self, x: Tensor, t: Tensor, probes: Probes | None) -> Tensor:
        """The residual at x (B, d) and times t, a number or (B,); its gradients by parameters run the engine again."""
        return _Values.apply(self, x.detach(), t.detach(), probes, *self.parameters)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, t: Tensor, probes: Probes | None, weight: Tensor) -> Tensor:
        """sum_b weight_b |residual_b|^2, and its gradients by parameters in the same pass."""
        return _Loss.apply(self, x.detach(), t.detach(), probes, weight, *self.parameters)  # type: ignore[no-any-return]

    def run(
        self,
        x: Tensor,
        t: Tensor,
        probes: Probes | None,
        *,
        value: Tensor | None = None,
        upstream: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss, if there are weights, and gradients of the parameters, if there is something to differentiate."""
        loss = torch.zeros((), dtype=torch.float64)
        gradient = torch.zeros(self.jets.gradient_count, dtype=torch.float64)
        wanted = upstream is not None or weight is not None
        of_features: list[Tensor] = []
        for start in range(0, len(x), POINTS):
            part = slice(start, start + POINTS)
            given = [None if v is None else v[part] for v in (value, upstream, weight)]
            times = t[part] if t.ndim else t
            found = self._part(x[part], times, probes, start, loss, gradient, *given, wanted=wanted)
            of_features = [a + b for a, b in zip(of_features, found, strict=True)] if of_features else found
        if not wanted:
            return loss, []
        found = self.jets.backward(gradient, self.constants, self.parameters)
        return loss, [a + b for a, b in zip(found, of_features, strict=True)] if of_features else found

    def _part(
        self,
        x: Tensor,
        t: Tensor,
        probes: Probes | None,
        start: int,
        loss: Tensor,
        gradient: Tensor,
        value: Tensor | None,
        upstream: Tensor | None,
        weight: Tensor | None,
        *,
        wanted: bool,
    ) -> list[Tensor]:
        jets, form, samples = self.jets, self.form, len(x)
        t = self.score.times(x, t.to(x.dtype))
        learned = wanted and jets.learned
        with torch.set_grad_enabled(learned):
            features, rates = jets.feature_values(t)
        feature_adjoints = [torch.zeros(samples, jets.feature_count, dtype=self.dtype) for _ in range(2 * learned)]
        directions = _directions(probes, start, samples) if probes is not None else None
        tensors = {
            "program": jets.instructions,
            "weights": self.weights,
            "x": x.contiguous(),
            "feature_values": features.detach().to(self.dtype).contiguous(),
            "feature_rates": rates.detach().to(self.dtype).contiguous(),
            "probes": directions,
            "coef": self._coefficients(t),
            "value": value,
            "upstream": upstream if upstream is None else upstream.to(self.dtype).contiguous(),
            "weight": weight if weight is None else weight.to(self.dtype).contiguous(),
            "loss": loss,
            "gradient": gradient if wanted else None,
            "feature_adjoints": feature_adjoints[0] if learned else None,
            "rate_adjoints": feature_adjoints[1] if learned else None,
        }
        count = jets.dimension if directions is None else len(directions)
        self.cpu.residual(
            tensors=tensors,
            numbers={
                "float64": self.dtype == torch.float64,
                "form": form.number,
                "instructions": len(jets.instructions),
                "weight_count": len(self.weights),
                "dimension": jets.dimension,
                "directions": count,
                "share": 1.0 if directions is None else 1.0 / count,
                "output": jets.output,
                "outputs": jets.outputs,
                "output_adjoint": jets.output_adjoint,
                "features": jets.features,
                "feature_count": jets.feature_count,
                "features_adjoint": jets.features if learned else -1,
                "jets": jets.jets,
                "adjoints": jets.adjoints,
                "slopes": jets.slopes,
                "samples": samples,
                "gradient_count": jets.gradient_count,
            },
        )
        if not learned:
            return []
        return pull_back([features, rates], [a.double() for a in feature_adjoints], self.parameters)

    def _coefficients(self, t: Tensor) -> Tensor:
        """(a, g^2 / 2) of each time, and for a score s = p x + q y also p, q, dp/dt, dq/dt; [B, 2] or [B, 6]."""
        sde = self.score.sde
        rows = [sde.a(t), sde.g2(t) / 2]
        if self.score.predicts != "potential":
            (p, q), slopes = torch.func.jvp(self.score.affine, (t,), (torch.ones_like(t),))
            rows += [p, q, *slopes]
        out = torch.empty(len(t), len(rows), dtype=self.dtype)
        for k, row in enumerate(rows):
            out[:, k] = row
        return out


def _directions(probes: Probes, start: int, count: int) -> Tensor:
    """[K, count, d], those of points start, start + 1 ..."""
    return torch.stack([v[start : start + count] for v in probes]).contiguous()


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: FusedResidual, x: Tensor, t: Tensor, probes: Probes | None, *_: Tensor) -> Tensor:
        ctx.arguments = run, x, t, probes
        value = torch.empty(x.shape if run.form.vector else x.shape[:1], dtype=x.dtype)
        run.run(x, t, probes, value=value)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        run, x, t, probes = ctx.arguments
        _, gradients = run.run(x, t, probes, upstream=upstream)
        return None, None, None, None, *gradients


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: FusedResidual, x: Tensor, t: Tensor, probes: Probes | None, weight: Tensor, *parameters: Tensor
    ) -> Tensor:
        if not any(ctx.needs_input_grad):
            value = torch.empty(x.shape if run.form.vector else x.shape[:1], dtype=x.dtype)
            run.run(x, t, probes, value=value)
            return (weight * value.double().square().reshape(len(x), -1).sum(1)).sum().to(x.dtype)
        loss, ctx.gradients = run.run(x, t, probes, weight=weight)
        return loss.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, None, None, None, None, *(upstream * g for g in ctx.gradients)
