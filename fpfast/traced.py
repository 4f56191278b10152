"""What a value in a traced network can be: it depends on x, or on t alone, or is both side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpfast.program import Value


class Unsupported(ValueError):
    """The fused engine does not run this network; the message names the layer or operation that stopped it."""


def first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]


@dataclass(frozen=True)
class State:
    """Something that depends on x, (B, rows); ``flat``: (B,), for a potential."""

    value: Value
    flat: bool = False


@dataclass(frozen=True)
class OfTime:
    """Something that depends on t and parameters alone: (B, *tail), or without samples of shape ``tail``."""

    tail: tuple[int, ...]
    compute: Callable[[Tensor], Tensor]  # times [n] float64 -> float64
    batched: bool = True
    tensor: Tensor | None = None  # where it is one as it stands

    @staticmethod
    def of(value: Any) -> OfTime:
        """A parameter, a number, or one of these already."""
        if isinstance(value, OfTime):
            return value
        if not isinstance(value, Tensor | int | float):
            raise Unsupported("it mixes values that depend on x in a way that the fused engine does not know")
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if tensor.device.type != "cpu":
            raise Unsupported(f"a parameter is on {tensor.device}, not on the CPU")
        return OfTime(tuple(tensor.shape), lambda t: tensor.to(torch.float64), batched=False, tensor=tensor)


@dataclass(frozen=True)
class Joined:
    """Columns side by side, good for a Linear."""

    parts: tuple[State | OfTime, ...]


def state_value(x: Any) -> Value:
    if not isinstance(x, State) or x.flat:
        raise Unsupported("its input is not a matrix of samples")
    return x.value


def of_time(function: Callable[..., Tensor], *args: Any) -> OfTime:
    """``function`` of times and parameters, elementwise. Samples must be the first dimension of the result."""
    terms = [OfTime.of(arg) for arg in args]
    sizes = [len(term.tail) + term.batched for term in terms]
    top, batched = max(sizes), any(term.batched for term in terms)
    tails = []
    for term, size in zip(terms, sizes, strict=True):
        tail = term.tail
        if batched and term.batched and size != top:
            raise Unsupported("it broadcasts samples against something else")
        if batched and not term.batched and size == top:
            if tail[0] != 1:
                raise Unsupported("it broadcasts samples against a parameter")
            tail = tail[1:]
        tails.append(tail)
    tail = tuple(torch.broadcast_shapes(*tails))
    return OfTime(tail, lambda t: function(*(term.compute(t) for term in terms)), batched)
