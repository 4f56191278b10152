"""The Triton kernels as the package launches them, compiled instead of run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fpfast.kernels import combine, pairs, residual, trajectory
from triton.backends.compiler import GPUTarget

from bench.cubins import FORMS
from fpfast.reference import KINDS, Key

SHAPE = (8, 3, 32, 32)  # samples of whole groups of four, more groups than a program has lanes


class Recorder:
    """Stands in for a ``triton.jit`` function, and keeps what it compiles."""

    def __init__(self, function: Any, kept: list[Any]) -> None:
        self.function, self.kept = function, kept

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.kept.append((self.function, self.function.warmup(*args, grid=grid, **options)))

        return launch


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Launches of every kernel, with float32 operands and one seed for all samples; and what tells them apart.

    Combinations are plain ones but for the last, with coefficients of each sample's own.
    """
    x, y, pair, other = torch.empty(SHAPE), torch.empty(SHAPE), torch.empty(2, *SHAPE), torch.empty(2, *SHAPE)
    key, sums = Key(torch.tensor(0), 0, 0, 0), torch.empty(SHAPE[0])
    coef, of_samples = torch.empty(5), torch.empty(SHAPE[0], 3)
    rows, position = torch.empty(3, 5), torch.zeros(2, dtype=torch.int64)
    for count in range(1, 5):
        operands = [x, y, x, y][:count]
        yield f"{count}", partial(combine.combine, x, operands, coef, None)
        yield f"{count} + noise", partial(combine.combine, x, operands, coef, key)
        yield f"{count} + noise, position", partial(combine.combine, x, operands, rows, key, position)
    yield "2 + noise", partial(combine.combine, x, [x, y], torch.empty(SHAPE[0], 5), key)
    for kind in KINDS:
        yield kind, partial(combine.noise, x, kind, key)
        yield kind, partial(pairs.pair, pair, x, y, of_samples, kind, key)
        yield kind, partial(pairs.probe_times, x, sums, kind, key)
        yield f"probe_dot {kind}", partial(pairs.probe_dot, sums, x, kind, key)
    yield "defect", partial(pairs.defect, y, sums, x, pair, of_samples)
    yield "product", partial(pairs.product, sums, x, pair, other, of_samples)
    names = ("slot_rows", "program", "actions", "evaluations")
    run = {name: torch.empty(1, 1, dtype=torch.int64) for name in names}
    run |= {name: torch.empty(1, 1) for name in ("weights", "biases", "coef")}
    for watch in ("", "watched", "frozen"):
        watching = {"broken": torch.empty(64, dtype=torch.int64), "freeze": watch == "frozen"} if watch else {}
        yield watch, partial(trajectory.trajectory, [torch.empty(64, 2)], run, (0, 1), 64, key, **watching)
    of_points = dict.fromkeys([*residual.TENSORS, "program", "weights", "places"], torch.empty(64, 2))
    of_points |= {name: torch.empty(1, dtype=torch.int64) for name in ("program", "places")}
    of_points |= {name: torch.empty(1, dtype=torch.float64) for name in ("loss", "gradient")}
    numbers = dict.fromkeys([*residual.NUMBERS, "columns", "gradient_count"], 16) | {"share": 1.0, "scale": 1.0}
    for form, name in enumerate(FORMS):
        yield name, partial(residual.residual, tensors=of_points, numbers={**numbers, "form": form})


def compiled(architecture: str) -> Iterator[tuple[str, Any]]:
    """Each kernel's name and what Triton made of it."""
    # What Triton asks of a driver before it compiles; the specialisation of the arguments is then its own.
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", int(architecture), 32),
        get_current_device=lambda: f"sm_{architecture}",
        get_current_stream=lambda _: 0,
    )
    jit: Any = importlib.import_module("triton.runtime.jit")
    kept: list[Any] = []
    files = (combine, pairs, residual, trajectory)
    originals = [(file, name, getattr(file, name)) for file in files for name in dir(file) if name.endswith("_kernel")]
    before, jit.driver = jit.driver, SimpleNamespace(active=driver)
    try:
        for file, name, value in originals:
            setattr(file, name, Recorder(value, kept))
        for name, launch in cases():
            launch()
            for function, kernel in kept:  # what is behind the first serves all cases
                title = f"{function.__module__.rpartition('.')[2]}.py: {function.__name__}"
                yield f"{title} {name if kernel is kept[0][1] else ''}".rstrip(), kernel
            kept.clear()
    finally:
        jit.driver = before
        for file, name, value in originals:
            setattr(file, name, value)
