"""One shape for every complaint: which argument, what was expected, what came."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST = sys.float_info.max


def bad(name: str, expected: str, got: object) -> ValueError:
    """A ``ValueError`` that reads ``name: expected ..., got ...``."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def unknown(name: str, got: object, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` for a name that is not in a table; lists the table."""
    return bad(name, "one of " + ", ".join(map(repr, known)), repr(got))


def key(name: str, value: Any, table: Iterable[str]) -> str:
    """``value`` if it is a name in ``table``."""
    if not isinstance(value, str) or value not in table:
        raise unknown(name, value, table)
    return value


def instance(name: str, value: Any, kind: type, expected: str) -> None:
    """Raises TypeError where ``value`` is not of that kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def function(name: str, value: Any, expected: str) -> None:
    """Raises TypeError where ``value`` cannot be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def as_path(name: str, value: Any) -> Path:
    """``value`` as a path."""
    try:
        found = Path(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}") from error
    if "\0" in str(found):
        raise bad(name, "a path without a zero byte", repr(value))
    return found


def truth(name: str, value: Any) -> bool:
    """``value`` as True or False, for interfaces of others, which take whatever Python finds true."""
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise bad(name, "True or False", type(value).__name__) from error


def flag(name: str, value: Any) -> bool:
    """``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise bad(name, "True or False", type(value).__name__)
    return value


def floating(name: str, value: Any) -> torch.dtype:
    """``value`` if it is float32 or float64."""
    if not isinstance(value, torch.dtype) or value not in (torch.float32, torch.float64):
        raise bad(name, "torch.float32 or torch.float64", value)
    return value


def tensor(name: str, value: Any, expected: str, **options: Any) -> Tensor:
    """``torch.as_tensor(value, **options)``: numbers, all of which are there."""
    try:
        x = torch.as_tensor(value, **options)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise bad(name, expected, f"{type(value).__name__}: {error}") from error
    complex_ = "complex" in str(getattr(value, "dtype", ""))  # which torch would make real, and warn of once
    if complex_ or x.layout != torch.strided or x.is_meta:
        raise bad(name, expected, brief(value if complex_ else x))
    return x


def brief(x: Any) -> str:
    """What kind of tensor, or of thing, x is."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    layout = "" if x.layout == torch.strided else f", {x.layout}"
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}{layout}"


def dense(x: Any) -> bool:
    """Whether x is a tensor of one or more dimensions, all of whose values are there."""
    return isinstance(x, Tensor) and x.ndim > 0 and x.layout == torch.strided and not x.is_meta


def integer(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """``value`` as an int in [low, high]; whole numbers of other types (numpy's) pass, floats and bools do not."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        limits = f"of at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise bad(name, f"an integer {limits}", repr(value))
    return number


def real(
    name: str, value: Any, expected: str = "a finite number", low: float = -math.inf, high: float = math.inf
) -> float:
    """``value`` as a finite float in [low, high]."""
    return number(name, value, expected, max(low, -LARGEST), min(high, LARGEST))


def number(name: str, value: Any, expected: str = "a number", low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float in [low, high], which may be infinite."""
    try:
        found = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = math.nan
    if not low <= found <= high:
        raise bad(name, expected, repr(value))
    return found


def sizes(name: str, value: Any, low: int) -> tuple[int, ...]:
    """``value`` as one or more sizes, each at least ``low``; in most places the shape (samples, ...)."""
    try:
        shape = () if isinstance(value, str | bytes) else tuple(operator.index(size) for size in value)
    except (TypeError, RuntimeError):  # torch's NotImplementedError is one
        shape = ()
    if not shape or min(shape) < low:
        raise bad(name, f"one or more integers of at least {low}", repr(value))
    return shape
