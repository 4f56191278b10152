"""A score at points and times, its derivatives there, and random probes: what estimators are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fpfast import noise
from fpfast.errors import bad, brief, dense, instance, real
from fpfast.score import Score
from fpfast.sde import as_float64, per_sample

DISTRIBUTIONS = {"rademacher": noise.rademacher, "normal": noise.normal}


@dataclass
class Probes:
    """Random vectors like x, E[v v^T] = I, made from a seed and remade rather than stored."""

    like: Tensor
    count: int
    seed: noise.Seed
    distribution: str
    first: int = 0  # number of the first one
    first_sample: int = 0  # number of the first point

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.draw, self.numbers)

    def of_points(self, first: int, count: int) -> Tensor:
        """[probes, count, ...]: all probes of points first, first + 1 ..."""
        make, device = DISTRIBUTIONS[self.distribution], self.like.device
        seed = noise.seed_tensor(self.seed, len(self.like), device)
        seed, first = (seed[first : first + count], 0) if seed.ndim else (seed, self.first_sample + first)
        shape = (count, *self.like.shape[1:])
        given: dict[str, Any] = {"first_sample": first, "stream": "probes", "device": device}
        drawn = [make(seed, shape, draw=number, **given) for number in self.numbers]
        return torch.stack(drawn).to(self.like.dtype)

    def key(self, number: int) -> dict[str, Any]:
        """What names a probe to :mod:`fpfast.pair_ops`."""
        seed = noise.seed_tensor(self.seed, len(self.like), self.like.device)
        place = {"first_sample": self.first_sample, "stream": noise.STREAMS["probes"], "draw": number}
        return {"seed": seed, "kind": self.distribution, **place}

    def some(self, first: int, count: int) -> Probes:
        """``count`` of them, from one on."""
        return replace(self, first=self.first + first, count=count)

    def draw(self, number: int) -> Tensor:
        make, like = DISTRIBUTIONS[self.distribution], self.like
        v = make(
            self.seed, like.shape, first_sample=self.first_sample, stream="probes", draw=number, device=like.device
        )
        return v.to(like.dtype)


class Points:
    """A score at points x and times t, with what the estimators need of it.

    The score's own derivatives are taken here, once, when they are asked for. ``graph``: they can be differentiated
    further, by the network's parameters and, if it asks for it, by x.
    """

    def __init__(
        self,
        score: Score,
        x: Tensor,
        t: float | Tensor,
        graph: bool,
        h: float | None = None,
        value: Tensor | None = None,  # s(x, t), if it is known: nothing is evaluated there again
    ) -> None:
        instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
        check_step(score, h)
        self.score, self.graph, self.h = score, graph, h
        self.seen_through = False  # the graph of the first derivative
        if not dense(x) or x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
            raise bad("x", "float32 or float64 of shape (B, ...)", brief(x))
        # A float32 network sees float32 times: differences of times are made of those.
        t = as_float64(t, x.device).detach().to(x.dtype)
        if t.ndim and t.shape != x.shape[:1]:
            raise bad("t", f"a number or shape ({x.shape[0]},)", tuple(t.shape))
        self.t = t.expand(x.shape[0]).clone().requires_grad_()
        x = x.clone() if x.is_inference() else x
        self.x = x if graph and x.requires_grad else x.detach().requires_grad_()
        self.dimension = math.prod(x.shape[1:])
        score.times(self.x, self.t.detach())  # checked once for all
        sde, at = score.sde, self.t.detach().double()
        self.a, self.g2 = (per_sample(c(at), x) for c in (sde.a, sde.g2))
        if value is not None:
            vars(self).update(value=value, _plain=(value,))  # in place of what would be computed

    @cached_property
    def s(self) -> Tensor:
        """s(x, t), with its graph."""
        with torch.enable_grad():
            t = self.score.times(self.x, self.t)
            return self.score.combine(self._outputs, self.x, t)

    @cached_property
    def _outputs(self) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return self.score.outputs(self.x, self.t)

    @cached_property
    def differentiable(self) -> bool:
        """If autograd goes through the network to x, or there is nothing to go to: its output is the same elsewhere.

        s may have a graph all the same: from the x beside the output, and from parameters and times.
        """
        if any(_reaches(y, self.x) for y in self._outputs):
            return True
        with torch.no_grad():
            elsewhere = self.score.outputs(self.x.detach() + 1, self.t.detach())
        return all(map(torch.equal, self._outputs, elsewhere))

    @cached_property
    def epsilon(self) -> float:
        """Of the coarsest dtype on the way: the state's, the network's, that of its outputs, or autocast's."""
        net = self.score.net
        held = net.parameters() if isinstance(net, nn.Module) else ()
        dtypes = {self.x.dtype, *(p.dtype for p in held if p.is_floating_point()), *(y.dtype for y in self._plain)}
        if torch.is_autocast_enabled(self.x.device.type):
            dtypes.add(torch.get_autocast_dtype(self.x.device.type))
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    @cached_property
    def _plain(self) -> tuple[Tensor, ...]:
        """The network's outputs without a graph, unless there is one already."""
        if self.graph or "_outputs" in vars(self):
            return self._outputs
        with torch.no_grad():
            return self.score.outputs(self.x.detach(), self.t.detach())

    @cached_property
    def value(self) -> Tensor:
        """s(x, t), with a graph only where one is wanted."""
        if self.graph:
            return self.s
        with torch.no_grad():
            return self.score.combine(self._plain, self.x.detach(), self.score.times(self.x, self.t.detach())).detach()

    @cached_property
    def d_t_potential(self) -> Tensor:
        """d phi / dt of a potential, (B,)."""
        with torch.enable_grad():
            phi = self.score.potential(self.x, self.t)
            (found,) = torch.autograd.grad(phi.sum(), self.t, create_graph=self.graph, allow_unused=True)
        return torch.zeros_like(self.t) if found is None else found

    @property
    def w(self) -> Tensor:
        """a x - g^2 s: the reverse drift."""
        return self.a * self.x - self.g2 * self.value

    def backward(self, of: Tensor, v: Tensor, further: bool = False) -> Tensor:
        """The gradient of sum(of v) by x, with a graph if there is one by the flag, or if it is needed ``further``."""
        if not self.differentiable:
            raise bad("net", "a score that autograd can differentiate in x", "an output without a graph")
        graph = self.graph or further
        # A v that asks for a derivative brings to light what can be differentiated only once.
        v = v.detach().requires_grad_(graph)
        (found,) = torch.autograd.grad(of, self.x, v, create_graph=graph, retain_graph=True, allow_unused=True)
        if found is None:
            return torch.zeros_like(self.x)
        if graph and not self.seen_through:
            self.seen_through = True
            if _holds(found, "torch::autograd::Error"):
                raise RuntimeError(
                    "the network holds a function that is marked as once_differentiable, so its second derivatives "
                    "would be taken for zero; take the estimator 'martingale' or 'finite_difference'"
                )
        return found

    @cached_property
    def d_t(self) -> Tensor:
        """d s / dt. Backward mode twice: J_t^T u is linear in u, so its derivative by u is J_t."""
        with torch.enable_grad():
            u = torch.zeros_like(self.s).requires_grad_()
            (back,) = torch.autograd.grad(self.s, self.t, u, create_graph=True, allow_unused=True)
            if back is None or not back.requires_grad:
                return torch.zeros_like(self.s)
            (found,) = torch.autograd.grad(back.sum(), u, create_graph=self.graph, retain_graph=True)
        return found

    def at(self, x: Tensor, t: Tensor) -> Tensor:
        """s elsewhere."""
        with torch.set_grad_enabled(self.graph):
            return self.score(x, t)

    def by_coordinate(self) -> Iterator[Tensor]:
        """The unit vectors of one sample, like x."""
        for i in range(self.dimension):
            unit = torch.zeros_like(self.x)
            unit.flatten(1)[:, i] = 1
            yield unit


def check_step(score: Score, h: float | None) -> None:
    """Raises ValueError for a step that is not a length of time within the SDE's."""
    if h is not None and not 0 < real("h", h) < score.sde.T - score.sde.t_min:
        raise bad("h", f"a step in time below {score.sde.T - score.sde.t_min}, or None", h)


def _nodes(tensor: Tensor) -> Iterator[Any]:
    """The graph behind a tensor."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        stack.extend(following for following, _ in node.next_functions)


def _holds(tensor: Tensor, kind: str) -> bool:
    return any(node.name() == kind for node in _nodes(tensor))


def _reaches(tensor: Tensor, source: Tensor) -> bool:
    if tensor is source:
        return True
    return any(node is source.grad_fn or getattr(node, "variable", None) is source for node in _nodes(tensor))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B,)."""
    return (a * b).flatten(1).sum(1)
