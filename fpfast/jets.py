"""A recognised network as residuals want it: jets forwards, adjoints backwards, and gradients of the parameters.

The instructions are those of ``csrc/kernels.h``; what they do to a jet is written in ``csrc/math/jet.h``. Here is
settled where everything lies. What depends on time alone comes in as features, values and their rates of change,
computed by torch in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from fpfast.assemble import ACTIVATIONS, NOTHING, Rows
from fpfast.packing import Packing, up
from fpfast.program import Activate, Add, Bias, Constant, Input, Linear, Scale, Term, Value, order
from fpfast.traced import Unsupported, first_line

# Steps of autograd that copy numbers, or read them in another order.
COPIES = {
    *("AccumulateGrad", "Alias", "Expand", "ReshapeAlias", "Select", "Slice", "Squeeze", "T", "ToCopy", "Transpose"),
    *("Unsqueeze", "View"),
}
EXACT = 1 << 24  # whole numbers below have a float32

OPS = {"linear": 0, "feature": 1, "activate": 2, "add": 3, "scale": 4}  # numbers of csrc/kernels.h


@dataclass
class Step:
    """An instruction before its adjoints are settled. ``out``, ``a`` and ``b`` are values, or a feature's term."""

    op: str
    rows: int
    columns: int
    out: Value
    a: Value | Term
    b: Value | None = None
    weights: int = NOTHING
    transposed: int = NOTHING
    bias: int = NOTHING
    gradient: int = NOTHING
    bias_gradient: int = NOTHING
    slopes: int = NOTHING
    kind: int = 0


class Jets:
    """The program of ``end`` as a function of ``source``, with its buffers' sizes and the way back to parameters."""

    def __init__(self, end: Value, source: Input, packing: Packing) -> None:
        self.dimension, self.outputs, self.packing = source.rows, end.rows, packing
        self.constants: list[Constant] = []  # in the order of the flat buffer that weights are packed from
        self._index: list[Tensor] = []
        self._flat = 0
        self.weight_count = 0
        self.gradient_count = 0
        self.sum_count = 0  # numbers that the kernel sums up
        self._places: list[Tensor] = []  # of the gradient among them
        self._gradients: list[tuple[int, int, tuple[int, ...]]] = []  # number of the constant, size, shape
        self.terms: list[Term] = []  # the features, each once
        self.slopes = 0
        values = order(end)
        if not any(isinstance(value, Linear) for value in values):
            raise Unsupported("net: it has no matrix")
        self._find_terms(values)
        self.feature_count = sum(self._up(term.columns) for term in self.terms)
        with torch.enable_grad():
            self.learned = self.feature_count > 0 and self._features(torch.zeros(1, dtype=torch.float64)).requires_grad
        self.place: dict[Value | Term, int] = {source: 0}
        row = self._up(source.rows)
        for term in self.terms:
            self.place[term] = row
            row += self._up(term.columns)
        for value in values:
            if value is not source:
                self.place[value] = row
                row += self._up(value.rows)
        self.jets = row
        self.output = self.place[end]
        steps = [step for value in values if value is not source for step in self._steps(value)]
        self.instructions = self._settle(steps, end, source)
        self._packing = torch.cat(self._index)
        self._there: dict[torch.device, dict[str, Tensor]] = {}
        try:
            self.feature_values(torch.zeros(1, dtype=torch.float64))
        except (RuntimeError, NotImplementedError) as error:
            raise Unsupported(f"net: its function of time has no forward mode ({first_line(error)})") from error

    def _up(self, rows: int) -> int:
        return up(rows, self.packing.rows)

    def _find_terms(self, values: Sequence[Value]) -> None:
        """Terms with the same function of time are one feature."""
        self._term_of: dict[Term, Term] = {}
        by_function: dict[object, Term] = {}
        for value in values:
            bias = getattr(value, "bias", None)
            for term in () if bias is None else bias.terms:
                if term.of_time:
                    one = by_function.setdefault(term.compute, term)
                    self._term_of[term] = one
                    if one is term:
                        self.terms.append(term)

    def _steps(self, value: Value) -> list[Step]:
        rows = value.rows
        match value:
            case Linear(src=src, matrix=matrix, bias=bias, other=other):
                step = Step("linear", rows, src.rows, value, src, other)
                step.weights, step.transposed, step.gradient = self._matrix(matrix, rows, src.rows)
            case Activate(src=src, kind=kind, parameter=parameter):
                constant = torch.tensor([parameter], dtype=torch.float64)
                step = Step("activate", rows, rows, value, src, weights=self._vector(lambda: constant)[0])
                step.slopes, step.kind, bias = self.slopes, ACTIVATIONS[kind][0], None
                self.slopes += rows
            case Add(a=a, bias=bias, other=other):
                step = Step("add", rows, rows, value, a, other)
            case Scale(a=a, factor=factor):
                step, bias = Step("scale", rows, rows, value, a), None
                step.weights, step.gradient = self._vector(factor)
            case _:
                raise AssertionError(f"a network has no {type(value).__name__}")
        if bias is None:
            return [step]
        step.bias, step.bias_gradient = self._constant_part(bias)
        return [step, *(self._feature(value, term) for term in bias.terms if term.of_time)]

    def _constant_part(self, bias: Bias) -> tuple[int, int]:
        constant = tuple(term for term in bias.terms if not term.of_time)
        if not constant:
            return NOTHING, NOTHING
        part = Bias(bias.rows, constant)
        return self._vector(lambda: part(torch.zeros(1, dtype=torch.float64))[0])

    def _feature(self, value: Value, term: Term) -> Step:
        step = Step("feature", value.rows, term.columns, value, self._term_of[term])
        if term.matrix is not None:
            step.weights, step.transposed, step.gradient = self._matrix(term.matrix, value.rows, term.columns)
        return step

    def _matrix(self, matrix: Constant, rows: int, columns: int) -> tuple[int, int, int]:
        index = self._flat + torch.arange(rows * columns).reshape(rows, columns)
        trained = self._add(matrix, index)
        gradient = self._gradient(index) if trained else NOTHING
        return self._pack(index), self._pack(index.mT), gradient

    def _vector(self, constant: Constant) -> tuple[int, int]:
        with torch.enable_grad():
            size = constant().numel()
        index = self._flat + torch.arange(size)
        trained = self._add(constant, index)
        self._index.append(pad(index, (0, self._up(size) - size), value=-1))
        self.weight_count += self._up(size)
        return self.weight_count - self._up(size), self._gradient(index) if trained else NOTHING

    def _add(self, constant: Constant, index: Tensor) -> bool:
        """Takes the constant in, and says if it has a gradient."""
        self.constants.append(constant)
        self._flat += index.numel()
        with torch.enable_grad():
            return constant().requires_grad

    def _pack(self, index: Tensor) -> int:
        self._index.append(self.packing.matrix(index))
        self.weight_count += self._index[-1].numel()
        return self.weight_count - self._index[-1].numel()

    def _gradient(self, index: Tensor) -> int:
        """Room for the gradient of the constant that came last, of the shape of ``index``."""
        self._gradients.append((len(self.constants) - 1, index.numel(), tuple(index.shape)))
        self.gradient_count += index.numel()
        start = self.sum_count
        if index.ndim == 2:
            places, room = self.packing.sums(*index.shape), self.packing.matrix(index).numel()
        else:
            places, room = torch.arange(index.numel()), self._up(index.numel())
        self._places.append(start + places.reshape(-1))
        self.sum_count += room
        return start

    def _settle(self, steps: list[Step], end: Value, source: Input) -> Tensor:
        """Places of the adjoints, met in reverse: the first to come writes, the others add."""
        rows = Rows(self._up(source.rows) + self.feature_count, self.packing.rows)
        place: dict[Value | Term, int] = {}
        kept: dict[Value | Term, int] = {source: 0}  # these have rows of their own
        for term in self.terms:
            kept[term] = self.place[term]  # features lie behind x here too
        place[end] = self.output_adjoint = rows.take(end.rows)

        def meet(operand: Value | Term, count: int, shared: int | None = None) -> tuple[int, int]:
            if operand in place:
                return place[operand], 1
            if operand in kept:
                place[operand] = kept[operand]
            else:
                place[operand] = rows.take(count) if shared is None else shared
            return place[operand], 0

        code = []
        for step in reversed(steps):
            out = place[step.out]
            b, b_adds = (NOTHING, 0) if step.b is None else meet(step.b, step.rows)
            in_place = step.op in ("activate", "add", "scale") and step.a not in place and step.a not in kept
            a, a_adds = meet(step.a, step.columns, out if in_place else None)
            if step.op == "feature" and not self.learned:
                a = NOTHING
            line = [OPS[step.op], step.rows, step.columns, self.place[step.out], self.place[step.a]]
            line += [NOTHING if step.b is None else self.place[step.b], out, a, b, a_adds, b_adds]
            line += [step.weights, step.transposed, step.bias, step.gradient, step.bias_gradient]
            code.append([*line, step.slopes, step.kind])
            if step.op != "feature" and not in_place:
                rows.give(out, step.rows)
        self.adjoints = rows.end
        return torch.tensor(code[::-1], dtype=torch.int64)

    # ------------------------------------------------------------------------------------------ what runs need

    def settled(self) -> list[Tensor]:
        """The constants' present values, float64, each with a graph to the parameters that it is made of."""
        with torch.enable_grad():
            return [constant() for constant in self.constants]

    def check_leaves(self, parameters: Sequence[Tensor]) -> None:
        """Raises Unsupported where something else than ``parameters`` asks for a gradient."""
        with torch.enable_grad():
            features = [self._features(torch.zeros(1, dtype=torch.float64))] if self.learned else []
        known = {id(parameter) for parameter in parameters}
        if any(id(leaf) not in known for leaf in _leaves([*self.settled(), *features])):
            raise Unsupported("net: a tensor that is not one of its parameters asks for a gradient")
        self._sources = self._find_sources([p for p in parameters if p.requires_grad])
        self._moved: dict[torch.device, Tensor] = {}

    def _find_sources(self, parameters: Sequence[Tensor]) -> tuple[Tensor, list[torch.Size | None]] | None:
        """Where in the engine's gradient that of the parameters lies, one after the other; their shapes, None: nowhere.

        None where numbers of a matrix are not just numbers of a parameter. It saves a way back by autograd, which takes
        as long as 1,000 points of a small network.
        """
        settled = self.settled()
        trained = [settled[number] for number, *_ in self._gradients]
        plain = all(_step(node) in COPIES for node in _nodes(trained))
        if not plain or self.gradient_count >= EXACT or any(p.dtype.itemsize < 4 for p in parameters):
            return None
        numbers = torch.arange(1.0, self.gradient_count + 1, dtype=torch.float64)
        places = pull_back(trained, self._split(numbers), parameters)
        uses = pull_back(trained, self._split(torch.ones_like(numbers)), parameters)
        if any(use is not None and bool((use > 1).any()) for use in uses):
            return None
        nowhere = self.gradient_count  # where the engine's buffer has a 0
        sources = [torch.where(p > 0, p.long() - 1, nowhere).reshape(-1) for p in places if p is not None]
        none = torch.zeros(0, dtype=torch.int64)
        return torch.cat([none, *sources]), [None if p is None else p.shape for p in places]

    def _split(self, gradient: Tensor) -> list[Tensor]:
        """The gradients of constants, side by side, each in its shape."""
        parts = gradient.split([size for _, size, _ in self._gradients])
        return [part.reshape(shape) for part, (_, _, shape) in zip(parts, self._gradients, strict=True)]

    def weights(self, constants: list[Tensor], dtype: torch.dtype) -> Tensor:
        zero = torch.zeros(1, dtype=torch.float64)  # the last, for what is -1
        flat = torch.cat([*(constant.detach().reshape(-1) for constant in constants), zero])
        return flat[self._packing].to(dtype)

    def feature_values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(values, rates), [n, feature_count] each, of the times t (n,), float64; with a graph to parameters."""
        if not self.terms:
            empty = torch.zeros(len(t), 0, dtype=torch.float64)
            return empty, empty
        t = t.contiguous()
        one = torch.ones_like(t)
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(self._features(forward_ad.make_dual(t, one)))
            if found.tangent is not None:
                return found.primal, found.tangent
        # Constant features, or forward mode is off, as in the forward of an autograd.Function; this turns it on, and
        # takes longer.
        values, rates = torch.func.jvp(self._features, (t,), (one,))[:2]
        return values, rates

    def _features(self, t: Tensor) -> Tensor:
        found = [pad(term.compute(t), (0, self._up(term.columns) - term.columns)) for term in self.terms]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def numbers(self) -> dict[str, int]:
        """Sizes and places, by their names in csrc/kernels.h."""
        return {
            "instructions": len(self.instructions),
            "dimension": self.dimension,
            "output": self.output,
            "outputs": self.outputs,
            "output_adjoint": self.output_adjoint,
            "features": self._up(self.dimension),  # behind x, among adjoints too
            "feature_count": self.feature_count,
            "features_adjoint": self._up(self.dimension) if self.learned else NOTHING,
            "jets": self.jets,
            "adjoints": self.adjoints,
            "slopes": self.slopes,
            "gradient_count": self.gradient_count,
            "sum_count": self.sum_count,
        }

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """What the kernels of a device read beside weights and points; ``program_here`` to check it before."""
        if device not in self._there:
            self._there[device] = {
                "program": self.instructions.to(device),
                "program_here": self.instructions,
                "places": torch.cat([*self._places, torch.zeros(1, dtype=torch.int64)]).to(device),  # never empty
            }
        return self._there[device]

    def backward(self, gradient: Tensor, constants: list[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The parameters' gradients from the engine's buffer, which ends with a 0."""
        if self._sources is None:
            trained = [constants[number] for number, *_ in self._gradients]
            return pull_back(trained, self._split(gradient[:-1].cpu()), parameters)
        sources, shapes = self._sources
        if gradient.device not in self._moved:
            self._moved[gradient.device] = sources.to(gradient.device)
        parts = gradient[self._moved[gradient.device]]
        if len({p.dtype for p in parameters}) == 1:
            parts = parts.to(parameters[0].dtype)  # all at once
        found = iter(parts.split([shape.numel() for shape in shapes if shape is not None]))
        gradients = [None if shape is None else next(found).reshape(shape) for shape in shapes]
        pairs = zip(parameters, gradients, strict=True)
        return [None if g is None or not p.requires_grad else g.to(p.dtype) for p, g in pairs]


def pull_back(outputs: list[Tensor], grads: list[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Autograd's share: from what parameters are made into, to the parameters."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    asking = [p for p in parameters if p.requires_grad]  # one may have been frozen since
    if not pairs or not asking:
        return [None] * len(parameters)
    held, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(held, asking, given, allow_unused=True, retain_graph=True))
    return [next(found) if p.requires_grad else None for p in parameters]


def add(a: list[Tensor | None], b: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients, item by item; None is nothing."""
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def _leaves(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """What autograd would accumulate gradients in."""
    yield from (tensor for tensor in tensors if tensor.requires_grad and tensor.grad_fn is None)
    yield from (node.variable for node in _nodes(tensors) if hasattr(node, "variable"))


def _nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """Autograd's steps on the way to the tensors, each once."""
    stack: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)


def _step(node: Any) -> str:
    """Its operation: "Slice" of SliceBackward0."""
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
