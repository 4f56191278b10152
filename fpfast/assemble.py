"""Settles where the values of a program live, and writes the engine's instructions (csrc/kernels.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fpfast.packing import up
from fpfast.program import (
    Activate,
    Add,
    Bias,
    Constant,
    Derivative,
    Fill,
    Linear,
    Multiply,
    Scale,
    Value,
    operands,
    order,
)

# Numbers of csrc/kernels.h and csrc/math/activation.h.
OPS = {"linear": 0, "activate": 1, "add": 2, "multiply": 3, "scale": 4, "fill": 5}
NOTHING, INPUT_ROWS, OUTPUT_ROWS = -1, -2, -3
LOG2E = 1.4426950408889634
# name -> (number, u / z as a function of the parameter, value / h as a function of it)
ACTIVATIONS: dict[str, tuple[int, Callable[[float], float], Callable[[float], float]]] = {
    "tanh": (0, lambda p: 2 * LOG2E, lambda p: 1.0),
    "softplus": (1, lambda beta: beta * LOG2E, lambda beta: beta * LOG2E),
    "silu": (2, lambda p: LOG2E, lambda p: LOG2E),
    "gelu": (3, lambda p: 1.0, lambda p: 1.0),
    "elu": (4, lambda alpha: LOG2E, lambda alpha: LOG2E),
    "sine": (5, lambda p: 1.0, lambda p: 1.0),
}


class Layout(NamedTuple):
    """What a kernel wants multiples of: rows of values, vectors and a matrix's columns; and a matrix's rows."""

    rows: int = 1
    matrix_rows: int = 1


PLAIN = Layout()


@dataclass
class Program:
    """Instructions with their rows settled, and the recipe for weights and biases."""

    rows: int  # of the workspace, including those kept free at its start
    layout: Layout
    output_rows: int
    instructions: Tensor  # [n, 11] int64, as in csrc/kernels.h
    bias_width: int
    _weights: list[Constant]  # in the order of their offsets
    _biases: list[tuple[int, int, Bias, float]]  # offset, rows, what, factor

    @property
    def flops(self) -> int:
        """Of the matrix products, for one sample."""
        linear = self.instructions[self.instructions[:, 0] == OPS["linear"]]
        return 2 * int((linear[:, 6] * linear[:, 7]).sum())

    @torch.no_grad()
    def weights(self, pack: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """All in one, the matrices as ``pack`` returns them."""
        parts = []
        for constant in self._weights:
            w = constant()
            w = pack(w) if w.ndim == 2 else pad(w, (0, -len(w) % self.layout.rows))
            parts.append(w.reshape(-1))
        return torch.cat(parts).to(dtype) if parts else torch.zeros(self.layout.rows, dtype=dtype)

    @torch.no_grad()
    def biases(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """[len(times), bias_width] for evaluations at these times."""
        out = torch.zeros(len(times), max(self.bias_width, 1), dtype=torch.float64)
        for offset, rows, bias, factor in self._biases:
            out[:, offset : offset + rows] = factor * bias(times.to(torch.float64))
        return out.to(dtype)

    def with_biases_at(self, row: int) -> Tensor:
        """The instructions where every sample has biases of its own, in rows ``row`` and following."""
        code: list[list[int]] = []
        for line in self.instructions.tolist():
            op, out, first, second, src, other, rows, columns, weights, bias, kind = line
            if bias != NOTHING:
                if other != NOTHING:  # a bias is used once, so its rows may take the sum
                    code.append([OPS["add"], row + bias, NOTHING, NOTHING, row + bias, other, rows, 0, 0, NOTHING, 0])
                line = [op, out, first, second, src, row + bias, rows, columns, weights, NOTHING, kind]
            code.append(line)
        return torch.tensor(code, dtype=torch.int64).reshape(-1, 11)


class Rows:
    """Hands out rows of the workspace and takes them back, lowest first; in multiples of ``granule``."""

    def __init__(self, start: int, granule: int = 1) -> None:
        self.free: list[tuple[int, int]] = []  # (row, count), by row
        self.granule = granule
        self.end = up(start, granule)

    def take(self, count: int) -> int:
        count = up(count, self.granule)
        for k, (row, size) in enumerate(self.free):
            if size >= count:
                self.free[k : k + 1] = [(row + count, size - count)] if size > count else []
                return row
        row, self.end = self.end, self.end + count
        return row

    def give(self, row: int, count: int) -> None:
        count = up(count, self.granule)
        merged: list[tuple[int, int]] = []
        for start, size in sorted([*self.free, (row, count)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self.free = merged


def assemble(end: Value, source: Value, first_row: int = 0, layout: Layout = PLAIN) -> Program:
    """The program that computes ``end`` from ``source``. Rows below ``first_row`` are the caller's."""
    return _Assembler(end, source, first_row, layout).program()


class _Assembler:
    def __init__(self, end: Value, source: Value, first_row: int, layout: Layout) -> None:
        self.end, self.layout = end, layout
        self.values = order(end)
        self.users: dict[Value, list[Value]] = {value: [] for value in self.values}
        for value in self.values:
            if not isinstance(value, Derivative):  # it lies beside its activation, not in it
                for operand in operands(value):
                    self.users[operand].append(value)
        self.left = {value: len(users) for value, users in self.users.items()}
        # Products that a matrix's kernel makes before it writes its rows: of a matrix's result with no other use.
        self.factors: dict[Linear, Value] = {}
        self.products: dict[Multiply, Linear] = {}
        for value in self.values:
            if isinstance(value, Multiply) and (matrix := self.single_use(value.a) or self.single_use(value.b)):
                self.factors[matrix] = value.b if matrix is value.a else value.a
                self.products[value] = matrix
        self.scales = {value: self.scale(value) for value in self.values}
        self.place: dict[Value, int] = {source: INPUT_ROWS}
        self.rows = Rows(first_row, layout.rows)
        self.code: list[list[int]] = []
        self.weights: list[Constant] = []
        self.biases: list[tuple[int, int, Bias, float]] = []
        self.weight_count = self.bias_count = 0

    def scale(self, value: Value) -> float:
        """The stored value over the true one.

        Activations take scaled arguments and give scaled values (csrc/math/activation.h). Where a value has no other
        use, the scale goes into the matrices around it; else it costs an instruction.
        """
        users = self.users[value]
        if value is self.end:
            return 1.0
        if isinstance(value, Linear) and value.other is None and len(users) == 1 and isinstance(users[0], Activate):
            return ACTIVATIONS[users[0].kind][1](users[0].parameter)
        if isinstance(value, Activate) and all(isinstance(u, Linear) and u.other is not value for u in users):
            return ACTIVATIONS[value.kind][2](value.parameter)
        return 1.0

    def single_use(self, value: Value) -> Linear | None:
        return value if isinstance(value, Linear) and len(self.users[value]) == 1 else None

    def program(self) -> Program:
        for value in self.values:
            match value:
                case Linear() if value in self.factors:
                    pass  # comes with its product
                case Linear():
                    self.linear(value, value)
                case Activate():
                    self.activate(value)
                case Add(a=a, bias=bias, other=other):
                    self.elementwise("add", value, a, other, bias=self.new_bias(bias, value.rows))
                case Multiply() if value in self.products:
                    self.linear(self.products[value], value)
                case Multiply(a=a, b=b):
                    self.elementwise("multiply", value, a, b)
                case Scale(a=a, factor=factor):
                    self.elementwise("scale", value, a, None, weights=self.new_weights(factor, value.rows))
                case Fill(vector=vector):
                    self.emit("fill", value.rows, self.settle(value), weights=self.new_weights(vector, value.rows))
        if self.place[self.end] != OUTPUT_ROWS:
            self.emit("add", self.end.rows, OUTPUT_ROWS, src=self.place[self.end])
        code = torch.tensor(self.code, dtype=torch.int64).reshape(-1, 11)
        counts = self.rows.end, self.layout, self.end.rows
        return Program(*counts, code, self.bias_count, self.weights, self.biases)

    def emit(
        self,
        op: str,
        rows: int,
        out: int,
        first: int = NOTHING,
        second: int = NOTHING,
        src: int = NOTHING,
        other: int = NOTHING,
        columns: int = 0,
        weights: int = 0,
        bias: int = NOTHING,
        kind: int = 0,
    ) -> None:
        self.code.append([OPS[op], out, first, second, src, other, rows, columns, weights, bias, kind])

    def linear(self, value: Linear, result: Value) -> None:
        """``result`` is the value itself, or its product with another one."""
        matrix, factor = value.matrix, self.scales[value] / self.scales[value.src]
        times = None if result is value else self.factors[value]
        heir = self.inherit(result, times)
        self.emit(
            "linear",
            value.rows,
            self.place[result],
            first=NOTHING if times is None else self.place[times],
            src=self.place[value.src],
            other=NOTHING if value.other is None else self.place[value.other],
            columns=value.src.rows,
            weights=self.new_weights(lambda: matrix() * factor, self.matrix_size(value.rows, value.src.rows)),
            bias=self.new_bias(value.bias, value.rows, self.scales[value]),
        )
        self.release(*operands(value))
        if times is not None:
            self.release(times, keep=heir is times)

    def activate(self, value: Activate) -> None:
        number, argument, result = ACTIVATIONS[value.kind]
        rows, src, parameter = value.rows, value.src, value.parameter
        u = self.place[src]
        factor = argument(parameter) / self.scales[src]
        copied = factor != 1
        if copied:
            u = self.rows.take(rows)
            self.scale_rows(rows, u, self.place[src], factor)
        wanted = bool(self.users[value]) or value is self.end
        reuse = not copied and self.left[src] == 1 and u >= 0
        out = NOTHING
        if wanted:
            out = u if reuse and value is not self.end else self.settle(value)
            self.place[value] = out
        first, second = (self.settle(d) if d in self.users else NOTHING for d in (value.first, value.second))
        constant = torch.tensor([parameter], dtype=torch.float64)
        weights = self.new_weights(lambda: constant, 1)
        self.emit("activate", rows, out, first, second, src=u, weights=weights, kind=number)
        if wanted and self.scales[value] != result(parameter):
            self.scale_rows(rows, out, out, self.scales[value] / result(parameter))
        if copied:
            self.rows.give(u, rows)
        self.release(src, keep=out == u)

    def scale_rows(self, rows: int, out: int, src: int, factor: float) -> None:
        weights = self.new_weights(lambda: torch.full((rows,), factor, dtype=torch.float64), rows)
        self.emit("scale", rows, out, src=src, weights=weights)

    def elementwise(self, op: str, value: Value, a: Value, b: Value | None, **more: int) -> None:
        """One that may put its result in the place of an operand that nobody needs any more."""
        other = NOTHING if b is None else self.place[b]
        heir = self.inherit(value, *((a, b) if a is not b else ()))
        self.emit(op, value.rows, self.place[value], src=self.place[a], other=other, **more)
        for operand in operands(value):
            self.release(operand, keep=operand is heir)

    def inherit(self, value: Value, *candidates: Value | None) -> Value | None:
        """Gives a value the place of a candidate that nobody needs any more, and says whose; else a new one."""
        for old in candidates:
            if old is not None and self.left[old] == 1 and self.place[old] >= 0 and value is not self.end:
                self.place[value] = self.place[old]
                return old
        self.settle(value)
        return None

    def matrix_size(self, rows: int, columns: int) -> int:
        return up(rows, self.layout.matrix_rows) * up(columns, self.layout.rows)

    def new_weights(self, constant: Constant, size: int) -> int:
        self.weights.append(constant)
        size = up(size, self.layout.rows)
        self.weight_count += size
        return self.weight_count - size

    def new_bias(self, bias: Bias | None, rows: int, factor: float = 1.0) -> int:
        if bias is None:
            return NOTHING
        self.biases.append((self.bias_count, rows, bias, factor))
        start, self.bias_count = self.bias_count, self.bias_count + up(rows, self.layout.rows)
        return start

    def settle(self, value: Value) -> int:
        """Rows for a new value; the end goes where the caller wants it."""
        self.place[value] = OUTPUT_ROWS if value is self.end else self.rows.take(value.rows)
        return self.place[value]

    def release(self, *used: Value, keep: bool = False) -> None:
        """One use of each value is over; ``keep``: its rows have a new owner."""
        for value in used:
            self.left[value] -= 1
            if self.left[value] == 0 and not keep and self.place[value] >= 0:
                self.rows.give(self.place[value], value.rows)
