"""Operations that only arrange values, in a traced network.                                              SHAPES"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpfast.traced import Joined, OfTime, State, Unsupported, state_value


def _cat(parts: Any, dim: int = 0) -> Joined | OfTime:
    if dim not in (1, -1):
        raise Unsupported(f"dim = {dim}: expected 1")
    flat = [one for part in parts for one in (part.parts if isinstance(part, Joined) else (part,))]
    for part in flat:
        if not (isinstance(part, State) and not part.flat) and not (
            isinstance(part, OfTime) and part.batched and len(part.tail) == 1
        ):
            raise Unsupported("it joins something other than matrices of samples")
    of_time = [part for part in flat if isinstance(part, OfTime)]
    if len(of_time) == len(flat):
        width = sum(part.tail[0] for part in of_time)
        return OfTime((width,), lambda t: torch.cat([part.compute(t) for part in of_time], dim=1))
    return Joined(tuple(flat))


class _Samples:
    """The number of samples, as a shape's first entry."""


class SameDtype:
    """The dtype of the state."""


def _shape(x: Any, name: str) -> Any:
    if name == "dtype" and isinstance(x, State | OfTime):
        return SameDtype()
    if name != "shape" or not isinstance(x, State | OfTime):
        raise Unsupported(f"attribute {name!r} is not one that the fused engine knows")
    if isinstance(x, State):
        return (_Samples(),) if x.flat else (_Samples(), x.value.rows)
    return (_Samples(), *x.tail) if x.batched else x.tail


def _size(x: Any, dim: int | None = None) -> Any:
    shape = _shape(x, "shape")
    return shape if dim is None else shape[dim]


def _column(x: Any) -> State | OfTime:
    """(B,) or (B, 1) as (B, 1)."""
    if isinstance(x, OfTime) and x.batched and x.tail in ((), (1,)):
        return OfTime((1,), lambda t: x.compute(t).reshape(-1, 1))
    if isinstance(x, State) and x.value.rows == 1:
        return State(x.value)
    raise Unsupported("it reshapes something other than one number a sample")


def _flat(x: Any) -> State | OfTime:
    """(B,) or (B, 1) as (B,)."""
    if isinstance(x, OfTime) and x.batched and x.tail in ((), (1,)):
        return OfTime((), lambda t: x.compute(t).reshape(-1))
    if isinstance(x, State) and x.value.rows == 1:
        return State(x.value, flat=True)
    raise Unsupported("it reshapes something other than one number a sample")


def _reshape(x: Any, *shape: Any) -> Any:
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    samples = isinstance(shape[0], _Samples) or shape[0] == -1
    if samples and len(shape) == 1:
        return _flat(x)
    if samples and len(shape) == 2 and isinstance(x, State) and not x.flat and shape[1] == x.value.rows:
        return x
    if samples and len(shape) == 2 and (shape[1] == 1 or (shape[1] == -1 and isinstance(shape[0], _Samples))):
        return _column(x) if shape[1] == 1 or not isinstance(x, State) or x.value.rows == 1 else x
    raise Unsupported(f"shape {shape} is not one that the fused engine knows")


def _expand(x: Any, *shape: Any) -> Any:
    """To the shape that it has."""
    own = _shape(x, "shape")
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    same = [type(want) is _Samples if type(have) is _Samples else want in (-1, have)
            for want, have in zip(shape, own, strict=False)]  # fmt: skip
    if len(shape) != len(own) or not all(same):
        raise Unsupported(f"it expands shape {own} to {shape}")
    return x


def _unsqueeze(x: Any, dim: int) -> Any:
    if isinstance(x, OfTime) and not x.batched:
        return OfTime(tuple(torch.empty(x.tail).unsqueeze(dim).shape), lambda t: x.compute(t).unsqueeze(dim), False)
    if dim not in (1, -1) or (isinstance(x, OfTime) and x.tail != ()) or (isinstance(x, State) and not x.flat):
        raise Unsupported(f"dim = {dim} of something other than one number a sample")
    return _column(x)


def _squeeze(x: Any, dim: int | None = None) -> Any:
    if dim not in (1, -1):
        raise Unsupported(f"dim = {dim}: expected 1 or -1")
    single = x.value.rows == 1 and not x.flat if isinstance(x, State) else x.tail == (1,)
    return _flat(x) if single else x


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if end_dim != -1 or start_dim not in (0, 1):
        raise Unsupported(f"start_dim = {start_dim}, end_dim = {end_dim}: expected 0 or 1, and -1")
    return _flat(x) if start_dim == 0 else State(state_value(x))


def _item(x: Any, key: Any) -> Any:
    if isinstance(x, tuple):
        return x[key]
    every = slice(None)
    if isinstance(x, OfTime) and not x.batched:
        probe = torch.empty(x.tail)[key]
        return OfTime(tuple(probe.shape), lambda t: x.compute(t)[key], False)
    if key in ((every, None), (..., None)) and (x.tail == () if isinstance(x, OfTime) else x.flat):
        return _column(x)
    if key in ((every, 0), (..., 0)) and (x.tail == (1,) if isinstance(x, OfTime) else not x.flat):
        return _flat(x)
    raise Unsupported(f"index {key} is not one that the fused engine knows")


SHAPES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("reshape", "view"), _reshape),
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "squeeze": _squeeze,
    "flatten": _flatten,
    "getattr": _shape,
    "size": _size,
    "getitem": _item,
}
