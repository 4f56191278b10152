"""Many runs side by side: each in one thread, so that its bits do not depend on how many there are at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fpfast import train
from fpfast.batches import Draw
from fpfast.sample import Bar
from fpfast.score import Score

T = TypeVar("T")


def _alone(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(before)


def side_by_side(
    function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], jobs: int | None, what: str
) -> list[T]:
    """``function`` of each tuple of arguments, in order; ``jobs`` processes at a time (default: one a core)."""
    from joblib import Parallel, delayed

    jobs = min(jobs or os.cpu_count() or 1, len(arguments))
    found = Parallel(n_jobs=jobs, return_as="generator")(delayed(_alone)(function, each) for each in arguments)
    bar = Bar(found, total=len(arguments), desc=what, disable=not sys.stderr.isatty())
    return list(bar)


def trained(
    folder: Path,
    name: str,
    score: Score,
    data: Tensor | Draw,
    recipe: train.Recipe,
    validation: Tensor | None = None,
    every: int = 1000,
) -> train.Fit:
    """A fit that is kept as ``name``.pt: a command that was stopped goes on, one that is repeated need not train."""
    return train.fit(
        score, data, recipe, validation=validation, every=every, checkpoint_file=folder / f"{name}.pt", resume=True
    )
