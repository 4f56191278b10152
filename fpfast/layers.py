"""What the fused engine makes of each layer and function in a traced network.                    LAYERS, FUNCTIONS"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpfast.program import Activate, Add, Bias, Linear, Scale, Term, Value
from fpfast.shapes import SHAPES, SameDtype
from fpfast.traced import Joined, OfTime, State, Unsupported, of_time, state_value


def _bias(term: OfTime, rows: int) -> Term:
    tail = term.tail[1:] if not term.batched and len(term.tail) == 2 and term.tail[0] == 1 else term.tail
    fits = tail in ((rows,), (1,)) if term.batched else tail in ((rows,), (1,), ())
    if not fits:
        raise Unsupported(f"it adds a shape {term.tail} to {rows} columns")
    return Term(lambda t: term.compute(t).expand(len(t), rows), rows, term.batched)


def _factor(term: OfTime, rows: int) -> Callable[[], Tensor]:
    if term.batched:
        raise Unsupported("it multiplies by something that depends on time")
    if term.tail not in ((rows,), (1,), (), (1, rows)):
        raise Unsupported(f"it multiplies {rows} columns by a shape {term.tail}")
    return lambda: term.compute(torch.zeros(1, dtype=torch.float64)).reshape(-1).expand(rows)


# Linear --------------------------------------------------------------------------------------------------------------


def _matrix(weight: Tensor, columns: slice) -> Callable[[], Tensor]:
    return lambda: weight[:, columns].to(torch.float64)


def _linear(x: Any, weight: Any, bias: Any = None) -> State | OfTime:
    weight = OfTime.of(weight).tensor
    bias = None if bias is None else OfTime.of(bias)
    if weight is None or weight.ndim != 2 or (bias is not None and bias.batched):
        raise Unsupported("its weight or bias is not a parameter")
    dtypes = {p.dtype for p in (weight, bias.tensor if bias else None) if p is not None}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise Unsupported(f"its parameters are {', '.join(map(str, dtypes))}, not float32")
    out = len(weight)
    if isinstance(x, OfTime):
        if not x.batched or x.tail != (weight.shape[1],):
            raise Unsupported(f"it takes {weight.shape[1]} columns and gets a shape {x.tail}")
        matrix, given = _matrix(weight, slice(None)), x
        product = OfTime((out,), lambda t: given.compute(t) @ matrix().mT)
        return product if bias is None else of_time(torch.add, product, bias)
    parts = x.parts if isinstance(x, Joined) else (State(state_value(x)),)
    widths = [part.value.rows if isinstance(part, State) else part.tail[0] for part in parts]
    if sum(widths) != weight.shape[1]:
        raise Unsupported(f"it takes {weight.shape[1]} columns and gets {sum(widths)}")
    of_x: list[tuple[Value, Callable[[], Tensor]]] = []
    terms = [] if bias is None else [_bias(bias, out)]
    start = 0
    for part, width in zip(parts, widths, strict=True):
        matrix = _matrix(weight, slice(start, start + width))
        start += width
        if isinstance(part, State):
            of_x.append((part.value, matrix))
        else:
            terms.append(Term(part.compute, width, True, matrix))
    if not of_x:
        raise Unsupported("its input does not depend on x")
    total = Bias(out, tuple(terms)) if terms else None
    value = None
    for source, matrix in of_x:  # the bias goes with the first, the others are added to it
        value = Linear(out, source, matrix, total if value is None else None, value)
    assert value is not None
    return State(value)


# Elementwise ---------------------------------------------------------------------------------------------------------


def _activated(kind: str, function: Callable[[Tensor], Tensor], x: Any, parameter: float = 1.0) -> State | OfTime:
    if isinstance(x, OfTime):
        return of_time(function, x)
    value = state_value(x)
    return State(Activate(value.rows, value, kind, float(parameter)))


def _not_in_place(inplace: bool) -> None:
    if inplace:  # another name of the same tensor would see the change
        raise Unsupported("it works in place")


def _tanh(x: Any) -> State | OfTime:
    return _activated("tanh", torch.tanh, x)


def _sine(x: Any) -> State | OfTime:
    return _activated("sine", torch.sin, x)


def _silu(x: Any, inplace: bool = False) -> State | OfTime:
    _not_in_place(inplace)
    return _activated("silu", functional.silu, x)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> State | OfTime:
    if threshold < 20 or not 0 < beta <= 1e6:
        raise Unsupported(f"beta = {beta}, threshold = {threshold}: expected 0 < beta <= 10^6, and 20 or more")
    return _activated("softplus", lambda y: functional.softplus(y, beta, threshold), x, beta)


def _gelu(x: Any, approximate: str = "none") -> State | OfTime:
    if approximate != "tanh" and isinstance(x, State):
        raise Unsupported("approximate='none': only approximate='tanh' is fused")
    return _activated("gelu", lambda y: functional.gelu(y, approximate=approximate), x)


def _elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> State | OfTime:
    _not_in_place(inplace)
    return _activated("elu", lambda y: functional.elu(y, alpha), x, alpha)


def _add(x: Any, y: Any, *, alpha: float = 1) -> State | OfTime:
    if alpha != 1:
        y = _multiply(y, alpha)
    if isinstance(y, State) and not isinstance(x, State):
        x, y = y, x
    if not isinstance(x, State):
        return of_time(torch.add, x, y)
    a = state_value(x)
    if not isinstance(y, State):
        return State(Add(a.rows, a, Bias(a.rows, (_bias(OfTime.of(y), a.rows),))))
    b = state_value(y)
    if a.rows != b.rows:
        raise Unsupported(f"it adds {b.rows} columns to {a.rows}")
    return State(Add(a.rows, a, other=b))


def _subtract(x: Any, y: Any, *, alpha: float = 1) -> State | OfTime:
    return _add(x, _multiply(y, -alpha))


def _negative(x: Any) -> State | OfTime:
    return _multiply(x, -1)


def _multiply(x: Any, y: Any) -> State | OfTime:
    if isinstance(y, State) and not isinstance(x, State):
        x, y = y, x
    if not isinstance(x, State):
        return of_time(torch.mul, x, y)
    a = state_value(x)
    return State(Scale(a.rows, a, _factor(OfTime.of(y), a.rows)))


def _divide(x: Any, y: Any) -> State | OfTime:
    return _multiply(x, of_time(torch.reciprocal, y)) if isinstance(x, State) else of_time(torch.div, x, y)


def _time_only(function: Callable[..., Tensor]) -> Callable[..., OfTime]:
    return lambda *args: of_time(function, *args)


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _to(x: Any, *args: Any, **kwargs: Any) -> Any:
    for target in (*args, *kwargs.values()):
        if not (
            isinstance(target, State | OfTime | bool | SameDtype)
            or target in (torch.float32, "cpu", torch.device("cpu"))
        ):
            raise Unsupported(f"it converts to {target}")
    return x


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p > 0:
        raise Unsupported("it is active (training mode)")
    return x


LAYERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: lambda m, x: _linear(x, m.weight, m.bias),
    nn.Tanh: lambda m, x: _tanh(x),
    nn.Softplus: lambda m, x: _softplus(x, m.beta, m.threshold),
    nn.SiLU: lambda m, x: _silu(x, m.inplace),
    nn.GELU: lambda m, x: _gelu(x, m.approximate),
    nn.ELU: lambda m, x: _elu(x, m.alpha, m.inplace),
    nn.Identity: lambda m, x: x,
    nn.Dropout: lambda m, x: _dropout(x, m.p, m.training),
    nn.Flatten: lambda m, x: SHAPES["flatten"](x, m.start_dim, m.end_dim),
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "tanh": _tanh,
    "sin": _sine,
    "silu": _silu,
    "softplus": _softplus,
    "gelu": _gelu,
    "elu": _elu,
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    **dict.fromkeys(("truediv", "div"), _divide),
    "neg": _negative,
    **{name: _time_only(getattr(torch, name)) for name in ("cos", "exp", "log", "sqrt", "square", "sigmoid", "pow")},
    **SHAPES,
    **dict.fromkeys(("contiguous", "clone"), _same),
    **dict.fromkeys(("to", "float"), _to),
    "dropout": _dropout,
}
