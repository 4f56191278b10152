"""A step of residual training: the problem that fpfast and its peers are given, and the gate for their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import fpfast
from bench.gates import SLACK, GateError
from bench.timing import Run, seconds
from fpfast import fused, losses
from fpfast.network import MLP

Gradients = list[Tensor]
Step = Callable[[], tuple[Tensor, Gradients]]  # the loss and its gradients by all weights and biases, in their order


@dataclass(frozen=True)
class Residual:
    """The mean square of R = d_t phi + a d + a x.s - g^2/2 (|s|^2 + Laplacian phi), s = grad phi, phi a perceptron."""

    score: fpfast.Score  # its net is an fpfast.network.MLP, a potential whose parameters ask for gradients
    activation: str
    points: int

    @property
    def net(self) -> MLP:
        return cast(MLP, self.score.net)

    @property
    def layers(self) -> list[nn.Linear]:
        return [layer for layer in self.net.children() if isinstance(layer, nn.Linear)]

    @property
    def dimension(self) -> int:
        return self.net.dimension

    @cached_property
    def x(self) -> Tensor:
        return 3 * (2 * torch.rand(self.points, self.dimension, generator=torch.Generator().manual_seed(0)) - 1)

    @cached_property
    def t(self) -> Tensor:
        sde = self.score.sde
        u = torch.rand(self.points, generator=torch.Generator().manual_seed(1))
        return sde.t_min + (sde.T - sde.t_min) * u

    @cached_property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """a and g^2 / 2 at the points' times."""
        t = self.t.double()
        return self.score.sde.a(t).float(), self.score.sde.g2(t).float() / 2

    @property
    def flops(self) -> int:
        """Of the matrix products of one point, for value, d directions and the rate: forwards, back, and gradients.

        The way back ends at the first layer's output.
        """
        sizes = [layer.weight.numel() for layer in self.layers]
        return 2 * (self.dimension + 2) * (3 * sum(sizes) - sizes[0])

    def autograd(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Step:
        """As Deveney et al. (arXiv 2311.15996) do it: derivatives of derivatives by autograd."""
        net = copy.deepcopy(self.net).to(device, dtype)
        name, _, parameter = self.activation.partition(":")
        if name == "softplus":  # torch's, which is what one takes
            net.activation = partial(functional.softplus, beta=float(parameter or 1))
        x, t = (v.to(device, dtype, copy=True).requires_grad_() for v in (self.x, self.t))
        a, gamma = (c.to(device, dtype) for c in self.coefficients)
        parameters = list(net.parameters())

        def step() -> tuple[Tensor, Gradients]:
            s, rate = torch.autograd.grad(net(x, t).sum(), (x, t), create_graph=True)
            laplacian = torch.zeros_like(t)
            for i in range(self.dimension):
                laplacian = laplacian + torch.autograd.grad(s[:, i].sum(), x, create_graph=True)[0][:, i]
            r = rate + a * self.dimension + a * (x * s).sum(1) - gamma * ((s * s).sum(1) + laplacian)
            loss = r.square().mean()
            return loss.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))

        return step

    @cached_property
    def exact(self) -> Tensor:
        return flat(self.autograd(torch.float64)()[1], self)

    @cached_property
    def usual(self) -> float:
        """The error of plain torch in float32."""
        return self.error(self.autograd(torch.float32)()[1])

    def error(self, gradients: Gradients) -> float:
        return float((flat(gradients, self) - self.exact).norm() / self.exact.norm())


def flat(gradients: Gradients, problem: Residual) -> Tensor:
    parameters = [p for layer in problem.layers for p in (layer.weight, layer.bias)]
    zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([g.double().reshape(-1) for g in zeros])


def check(problem: Residual, step: Step) -> None:
    _, gradients = step()
    if any(g is not None and g.dtype != torch.float32 for g in gradients):
        raise GateError("expected gradients in float32")
    error, limit = problem.error(gradients), SLACK * problem.usual + 1e-6
    if not error <= limit:
        raise GateError(f"error of the gradient: at most {limit:.2g} expected, got {error:.2g}")


def fpfast_step(problem: Residual) -> tuple[Run, str]:
    """With weights that have changed since the step before, as they do in training."""
    net = copy.deepcopy(problem.net)
    score = fpfast.Score(fused.compile(net, problem.dimension), problem.score.sde, "potential")
    parameters = list(net.parameters())
    last = parameters[-1]  # the bias of a potential, which no gradient depends on

    def step() -> tuple[Tensor, Gradients]:
        with torch.no_grad():
            last.add_(1.0)
        loss = losses.fp_regulariser(score, problem.x, problem.t, form="log_density")
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    check(problem, step)
    return step, f"error {problem.error(step()[1]):.1e}, plain float32 {problem.usual:.1e}"


def nested(problem: Residual) -> tuple[Run, str]:
    step = problem.autograd(torch.float32)
    check(problem, step)
    return step, ""


def fastest(problem: Residual, candidates: dict[str, Callable[[Residual], Step]]) -> tuple[Run, str]:
    """The fastest of the candidates that pass the gate, and which that is. Raises GateError where all fail."""
    times: dict[str, tuple[float, Step]] = {}
    notes = []
    for name, build in candidates.items():
        try:
            step = build(problem)
            check(problem, step)
        except Exception as error:  # wrong, or not to be compiled: the others remain
            notes.append(f"{name} failed: {error}".splitlines()[0][:160])
            continue
        times[name] = min(seconds(step) for _ in range(3)), step
    if not times:
        raise GateError("; ".join(notes))
    name = min(times, key=lambda name: times[name][0])
    others = [f"{other} {times[other][0] / times[name][0]:.2f}" for other in times if other != name]
    return times[name][1], "; ".join([name, *others, *notes])
