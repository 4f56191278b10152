"""Straight-line programs for the fused engine: the values of a network, their derivatives, and how they are packed.

A value is a vector of ``rows`` numbers for each sample. Reverse mode (:func:`gradient`) and forward mode
(:func:`tangent`) write their results in the same few kinds of values, so the engine in ``csrc/cpu`` knows no
differentiation: it runs what it is given. What depends on time alone never reaches the engine: it is a bias, computed
once for each evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Constant = Callable[[], Tensor]  # float64, with a graph to the parameters it is made of


@dataclass(eq=False)
class Term:
    """A part of a bias, matrix @ compute(t) or compute(t) as it stands."""

    compute: Callable[[Tensor], Tensor]  # times [n] -> [n, columns], float64
    columns: int
    of_time: bool  # else the same at all times
    matrix: Constant | None = None  # [rows, columns]


@dataclass(eq=False)
class Bias:
    """What is added to ``rows`` numbers of every sample; it may depend on time."""

    rows: int
    terms: tuple[Term, ...]

    def __call__(self, t: Tensor) -> Tensor:
        """At times [n]: [n, rows], float64."""
        values = [term.compute(t) if term.matrix is None else term.compute(t) @ term.matrix().mT for term in self.terms]
        if len(values) == 1 and values[0].shape == (len(t), self.rows):
            return values[0]
        return sum(values, torch.zeros(len(t), self.rows, dtype=torch.float64))


@dataclass(eq=False)
class Value:
    rows: int


@dataclass(eq=False)
class Input(Value):
    """The state."""


@dataclass(eq=False)
class Linear(Value):
    """W src + bias + other."""

    src: Value
    matrix: Constant  # [rows, src.rows]
    bias: Bias | None = None
    other: Value | None = None


@dataclass(eq=False)
class Activate(Value):
    src: Value
    kind: str
    parameter: float

    @cached_property
    def first(self) -> Derivative:
        return Derivative(self.rows, self, 1)

    @cached_property
    def second(self) -> Derivative:
        return Derivative(self.rows, self, 2)


@dataclass(eq=False)
class Derivative(Value):
    """h' or h'' where the activation has h."""

    of: Activate
    order: int


@dataclass(eq=False)
class Add(Value):
    """a + bias + other."""

    a: Value
    bias: Bias | None = None
    other: Value | None = None


@dataclass(eq=False)
class Multiply(Value):
    a: Value
    b: Value


@dataclass(eq=False)
class Scale(Value):
    """factor * a, a factor a row."""

    a: Value
    factor: Constant


@dataclass(eq=False)
class Fill(Value):
    """The same for all samples."""

    vector: Constant


# A derivative is a value, or the same vector for all samples, or nothing (zero).
Change = Value | Constant | None


def operands(value: Value) -> tuple[Value, ...]:
    """The values that a value is computed from."""
    match value:
        case Linear(src=src, other=other):
            return (src,) if other is None else (other, src)
        case Activate(src=src):
            return (src,)
        case Derivative(of=of):
            return (of,)
        case Add(a=a, other=other):
            return (a,) if other is None else (a, other)
        case Multiply(a=a, b=b):
            return (a, b)
        case Scale(a=a):
            return (a,)
    return ()


def order(*ends: Value) -> list[Value]:
    """All values that ``ends`` need, each after its operands."""
    done: dict[Value, None] = {}
    stack: list[tuple[Value, bool]] = [(end, False) for end in reversed(ends)]
    while stack:
        value, ready = stack.pop()
        if value in done:
            continue
        if ready:
            done[value] = None
        else:
            stack.append((value, True))
            stack.extend((operand, False) for operand in reversed(operands(value)))
    return list(done)


def _times(a: Change, b: Value) -> Change:
    """a * b, row by row."""
    if a is None:
        return None
    return Multiply(b.rows, a, b) if isinstance(a, Value) else Scale(b.rows, b, a)


def _plus(a: Change, b: Change) -> Change:
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, Value) and isinstance(b, Value):
        return Add(a.rows, a, other=b)
    if isinstance(a, Value):
        return Add(a.rows, a, bias=_constant_bias(b, a.rows))  # type: ignore[arg-type]
    if isinstance(b, Value):
        return Add(b.rows, b, bias=_constant_bias(a, b.rows))
    return lambda: a() + b()


def _constant_bias(vector: Constant, rows: int) -> Bias:
    return Bias(rows, (Term(lambda t: vector().expand(len(t), -1), rows, of_time=False),))


def _apply(rows: int, matrix: Constant, change: Change, other: Change = None) -> Change:
    """matrix @ change + other."""
    if change is None:
        return other
    if isinstance(change, Scale):  # the factors go into the matrix's columns
        factor, unscaled = change.factor, matrix
        change, matrix = change.a, lambda: unscaled() * factor()
    if not isinstance(change, Value):
        product = change
        return _plus(lambda: matrix() @ product(), other)
    if other is None or isinstance(other, Value):
        return Linear(rows, change, matrix, other=other)
    return Linear(rows, change, matrix, bias=_constant_bias(other, rows))


def as_value(change: Change, rows: int) -> Value:
    if change is None:
        return Fill(rows, lambda: torch.zeros(rows, dtype=torch.float64))
    return change if isinstance(change, Value) else Fill(rows, change)


def gradient(end: Value, source: Value) -> Value:
    """The gradient of ``end`` (one row) by ``source``, by reverse mode."""
    changes: dict[Value, Change] = {end: lambda: torch.ones(1, dtype=torch.float64)}
    for value in reversed(order(end)):
        change = changes.get(value)
        if change is None:
            continue
        match value:
            case Linear(src=src, matrix=matrix, other=other):
                transposed = _transposed(matrix)
                changes[src] = _apply(src.rows, transposed, change, changes.get(src))
                if other is not None:
                    changes[other] = _plus(changes.get(other), change)
            case Activate(src=src):
                changes[src] = _plus(changes.get(src), _times(change, value.first))
            case Add(a=a, other=other):
                for term in (a, other):
                    if term is not None:
                        changes[term] = _plus(changes.get(term), change)
            case Scale(a=a, factor=factor):
                changes[a] = _plus(changes.get(a), _scaled(change, factor))
    return as_value(changes.get(source), source.rows)


def _transposed(matrix: Constant) -> Constant:
    return lambda: matrix().mT


def _scaled(change: Change, factor: Constant) -> Change:
    if change is None or isinstance(change, Value):
        return None if change is None else Scale(change.rows, change, factor)
    return lambda: change() * factor()


def tangent(end: Value, source: Value, direction: Constant) -> Change:
    """The derivative of ``end`` along ``direction`` in ``source``, by forward mode.

    First derivatives of activations may occur on the way, second ones may not.
    """
    changes: dict[Value, Change] = {source: direction}
    for value in order(end):
        if value is source:
            continue
        match value:
            case Linear(src=src, matrix=matrix, other=other):
                changes[value] = _apply(value.rows, matrix, changes.get(src), changes.get(other) if other else None)
            case Activate(src=src):
                changes[value] = _times(changes.get(src), value.first)
            case Derivative(of=of, order=1):
                changes[value] = _times(changes.get(of.src), of.second)
            case Add(a=a, other=other):
                changes[value] = _plus(changes.get(a), changes.get(other) if other else None)
            case Multiply(a=a, b=b):
                changes[value] = _plus(_times(changes.get(a), b), _times(changes.get(b), a))
            case Scale(a=a, factor=factor):
                changes[value] = _scaled(changes.get(a), factor)
    return changes.get(end)


def divergence(end: Value, source: Value) -> Value:
    """sum_i d end_i / d source_i, by one forward pass for each i."""
    total: Change = None
    for i in range(source.rows):
        unit = torch.eye(source.rows, dtype=torch.float64)[i]
        total = _apply(1, lambda unit=unit: unit[None], tangent(end, source, lambda unit=unit: unit), total)  # type: ignore[misc]
    return as_value(total, 1)


def joined(a: Value, b: Value) -> Value:
    """The rows of a, then those of b."""
    rows = a.rows + b.rows
    upper, lower = torch.eye(rows, dtype=torch.float64).split([a.rows, b.rows], dim=1)
    return Linear(rows, a, lambda: upper, other=Linear(rows, b, lambda: lower))
