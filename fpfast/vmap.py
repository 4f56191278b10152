"""torch.func.vmap over the ops: slice by slice, since a kernel names its noise by samples, not by slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def by_slices(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """A rule for ``torch.library.register_vmap``: each slice gives the bits that ``op`` gives for it alone."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
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
