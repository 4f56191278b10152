"""The ops under torch.func: vmap goes slice by slice, since a kernel names its noise by samples.

Forward mode is refused: torch has none for custom ops, and its answer would be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fpfast.errors import bad


def refuse_forward_mode(tensors: Iterable[Tensor]) -> None:
    """Raises RuntimeError where one of the tensors carries a tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError("fpfast's ops have no forward mode: differentiate backwards, or plain torch operations")


def by_slices(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """A rule for ``torch.library.register_vmap``: each slice gives the bits that ``op`` gives for it alone."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise bad("in_dims", "one slice or more", "a dimension of size 0")
        results = [
            op(*(_at(value, dim, number) for value, dim in zip(arguments, in_dims, strict=True)))
            for number in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        parts = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return parts, (0,) * len(parts)

    return rule


def _at(value: Any, dim: Any, number: int) -> Any:
    """The slice of an argument; of a list of tensors, of each."""
    if isinstance(value, list | tuple) and isinstance(dim, list | tuple):
        return [_at(one, its, number) for one, its in zip(value, dim, strict=True)]
    return value.select(dim, number).contiguous() if isinstance(dim, int) else value
