"""A user's network as a score: s(x, t) = p(t) x + q(t) y(x, t), whatever the network y predicts.    PREDICTIONS"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpfast.errors import bad, brief, dense, function, instance, key, real
from fpfast.fused import Fused
from fpfast.sde import SDE, as_float64, per_sample

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Coefficients(NamedTuple):
    """Of one SDE at given times, float64."""

    a: Tensor
    g2: Tensor
    alpha: Tensor
    std: Tensor


def _of_score(c: Coefficients) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(c.std), torch.ones_like(c.std)


def _of_noise(c: Coefficients) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(c.std), -1 / c.std


def _of_x0(c: Coefficients) -> tuple[Tensor, Tensor]:
    return -1 / c.std**2, c.alpha / c.std**2


def _of_v(c: Coefficients) -> tuple[Tensor, Tensor]:
    square = c.alpha**2 + c.std**2  # noise = (alpha v + std x) / square
    return -1 / square, -c.alpha / (c.std * square)


def _of_velocity(c: Coefficients) -> tuple[Tensor, Tensor]:
    return 2 * c.a / c.g2, -2 / c.g2


# What the network predicts -> the (p, q) of s = p x + q y.
PREDICTIONS: dict[str, Callable[[Coefficients], tuple[Tensor, Tensor]]] = {
    "score": _of_score,
    "noise": _of_noise,
    "x0": _of_x0,
    "v": _of_v,
    "velocity": _of_velocity,
    "potential": _of_score,
}


class Score:
    """The score s(x, t) = grad log p_t(x) of a diffusion model, from a network and what it predicts.

    With X_t = alpha x0 + std z, the network's output y means, and the score is

    ============  =======================================  ================================================
    predicts      y                                        s
    ============  =======================================  ================================================
    "score"       s                                        y
    "noise"       E[z | x]                                 -y / std
    "x0"          E[x0 | x]                                (alpha y - x) / std^2
    "v"           E[alpha z - std x0 | x]                  -(alpha y + std x) / (std (alpha^2 + std^2))
    "velocity"    dx/dt of the probability-flow ODE        2 (a x - y) / g^2
    "potential"   phi with s = grad phi, (B,) or (B, 1)    grad y
    ============  =======================================  ================================================

    (Song et al., arXiv 2011.13456; "v": Salimans & Ho, arXiv 2202.00512; "velocity": Liu et al., arXiv 2209.03003.)

    Args:
        net: ``net(x, t)`` with x of shape (B, ...) and t of shape (B,), in the SDE's units of time; a module or any
            callable. A net with a true attribute ``time_column`` gets t of shape (B, 1).
        sde: one of ``fpfast.sde.SDES``.
        predicts: a key of the table above.
        guidance: a weight w for classifier-free guidance (Ho & Salimans, arXiv 2207.12598): ``net`` then returns a
            pair (conditional, unconditional) and y = w conditional + (1 - w) unconditional.

    Raises ValueError for unknown names and a weight that is not finite, TypeError for a net that cannot be called.
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor], Any],
        sde: SDE,
        predicts: str = "score",
        guidance: float | None = None,
    ) -> None:
        function("net", net, "a module or a function net(x, t)")
        instance("sde", sde, SDE, "an SDE such as fpfast.VP()")
        key("predicts", predicts, PREDICTIONS)
        if guidance is not None:
            guidance = real("guidance", guidance, "a finite weight or None")
        self.net = net
        self.sde = sde
        self.predicts = predicts
        self.guidance = guidance
        self._column = bool(getattr(net, "time_column", False))  # looked up once: a module takes its time to say no

    @property
    def module(self) -> Callable[..., Any]:
        """The network as it was before ``fpfast.fused.compile``."""
        return self.net.net if isinstance(self.net, Fused) else self.net

    @property
    def direct(self) -> Callable[[Tensor, Tensor], Any] | None:
        """The network itself, where :meth:`outputs` would only call it and check what it says."""
        plain = type(self) is Score and self.guidance is None and self.predicts != "potential"
        return self.net if plain and not self._column and not isinstance(self.net, Fused) else None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of :meth:`outputs` in y."""
        if self.guidance is None or self.predicts == "potential":
            return (1.0,)
        return (self.guidance, 1.0 - self.guidance)

    def affine(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of s = p x + q y at times t, in float64."""
        t = as_float64(t)
        return PREDICTIONS[self.predicts](Coefficients(self.sde.a(t), self.sde.g2(t), *self.sde.marginal(t)))

    def outputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """What the network says at x (B, ...) and t (B,): one tensor like x, or the pair of guidance. One call.

        Raises ValueError when an output has another shape or dtype than the state's (or 16 bits), TypeError when it is
        no tensor.
        """
        if isinstance(self.net, Fused) and self.guidance is None and self.net.serves(x, t):
            return (self.net.gradient(x, t) if self.predicts == "potential" else checked(self.net(x, t), x),)
        if self.predicts == "potential":
            return (self._gradient(x, t).contiguous(),)
        if self.guidance is None:
            return (checked(self.net(x, t[:, None] if self._column else t), x).contiguous(),)
        return tuple(checked(y, x).contiguous() for y in self._call(x, t))

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """s(x, t), shape of x; differentiable in x and the network's parameters where gradients are enabled.

        t is a number or a tensor of shape (B,), in [0, T]. Raises ValueError for another shape or range.
        """
        t = self.times(x, t)
        return self.combine(self.outputs(x, t.to(x.dtype)), x, t)

    def times(self, x: Tensor, t: float | Tensor) -> Tensor:
        """t as float64 of shape (B,), checked; see :meth:`__call__`."""
        if not dense(x) or not x.is_floating_point():
            raise bad("x", "a dense floating-point tensor (B, ...)", brief(x))
        t = as_float64(t, x.device)
        if t.ndim and t.shape != x.shape[:1]:
            raise bad("t", f"a number or shape ({x.shape[0]},)", tuple(t.shape))
        top = self.sde.T * (1 + 1e-6)  # a T that was rounded to float32 on its way here is still T
        seen = t.detach()
        if t.numel():
            least, most = map(float, seen.aminmax())
            if not (least >= 0 and most <= top):
                raise bad("t", f"times in [0, {self.sde.T}]", f"[{least}, {most}]")
            if most > self.sde.T:
                t = t - (seen - self.sde.T).clamp(min=0)  # a clamp of t itself would lose its derivative
        return t.expand(x.shape[0])

    def combine(self, outputs: tuple[Tensor, ...], x: Tensor, t: Tensor) -> Tensor:
        """s from the network's outputs at x and t (B,)."""
        p, q = self.affine(t)
        score = per_sample(p, x) * x
        for weight, y in zip(self.weights, outputs, strict=True):
            score = score + per_sample(weight * q, x) * y.to(x.dtype)
        return score

    def function(self) -> Callable[[Tensor, Tensor], Tensor]:
        """s(x, t) for x (B, ...) and t (B,) as a function that torch.func can transform; arguments are not checked."""
        plain = copy.copy(self)
        plain.net = self.module

        def s(x: Tensor, t: Tensor) -> Tensor:
            if plain.predicts == "potential":
                return plain.combine((torch.func.grad(lambda x: plain.potential(x, t).sum())(x),), x, t)
            return plain.combine(plain._call(x, t), x, t)

        return s

    def _call(self, x: Tensor, t: Tensor) -> tuple[Any, ...]:
        y = self.net(x, t[:, None] if self._column else t)
        if self.guidance is None:
            return (y,)
        if not isinstance(y, tuple | list) or len(y) != 2:
            raise TypeError(f"net: expected a pair (conditional, unconditional) for guidance, got {type(y).__name__}")
        return tuple(y)

    def potential(self, x: Tensor, t: Tensor) -> Tensor:
        """phi(x, t), (B,), for x (B, ...) and t (B,), of a network that predicts "potential". One call.

        Raises ValueError for a network that predicts something else, or whose output is not (B,) or (B, 1).
        """
        if self.predicts != "potential":
            raise bad("predicts", "'potential'", repr(self.predicts))
        potentials = [_tensor(phi) for phi in self._call(x, t)]
        for phi in potentials:
            if tuple(phi.shape) not in ((x.shape[0],), (x.shape[0], 1)):
                raise bad("net", f"potentials of shape ({x.shape[0]},) or ({x.shape[0]}, 1)", tuple(phi.shape))
        w = self.guidance
        phi = potentials[0] if w is None else w * potentials[0] + (1 - w) * potentials[1]
        return phi.reshape(x.shape[0])

    def _gradient(self, x: Tensor, t: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()  # while sampling it is not, and no graph outlives this call
        with torch.inference_mode(False), torch.enable_grad():
            if x.is_inference():
                x, t = x.clone(), t.clone()
            if not (wanted and x.requires_grad):
                x = x.detach().requires_grad_()
            phi = self.potential(x, t)
            if not phi.requires_grad:
                raise bad("net", "a potential that autograd can differentiate in x", "an output without a graph")
            return torch.autograd.grad(phi.sum(), x, create_graph=wanted)[0]


def _tensor(y: Any) -> Tensor:
    if not isinstance(y, Tensor):
        raise TypeError(f"net: expected a tensor, got {type(y).__name__}; wrap it: lambda x, t: net(x, t).sample")
    return y


def checked(y: Any, x: Tensor) -> Tensor:
    """A network's output, of the right shape, dtype and device."""
    y = _tensor(y).resolve_neg()  # kernels read memory, and know of no sign beside it
    if y.dtype == x.dtype and y.shape == x.shape and y.device == x.device:
        return y
    if y.device != x.device:
        raise bad("net", f"an output on {x.device} as x", y.device)
    if y.shape != x.shape:
        raise bad("net", f"an output of shape {tuple(x.shape)} as x", tuple(y.shape))
    if y.dtype not in (*OUTPUT_DTYPES, x.dtype):
        raise bad("net", "an output of dtype " + ", ".join(map(str, (*OUTPUT_DTYPES, x.dtype))), y.dtype)
    return y
