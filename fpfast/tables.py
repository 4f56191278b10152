"""What a solver's table reads and writes, and the checks of one that is not fpfast's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpfast.errors import bad
from fpfast.noise import STREAMS
from fpfast.solvers import Stage, Table

TAKEN = {number for name, number in STREAMS.items() if name not in ("step", "corrector")}


def checked(table: Any, steps: int) -> Table:
    """The table of a solver that is not one of SOLVERS, looked through.

    Raises TypeError for anything else, ValueError for rows of another shape or that are not finite, for slots that are
    read before they are written, for names (those of outputs begin with y, those of states do not, what is kept of one
    kind stays of that kind), and for streams of noise that are no solver's.
    """
    if not isinstance(table, Table):
        raise TypeError(f"solver: expected a function that returns a fpfast.solvers.Table, got {type(table).__name__}")
    form = (steps, len(table.stages))
    for name, shape in (("coef", (*form, 5)), ("times", form), ("evaluate", form)):
        tensor = getattr(table, name)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or not form[1]:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise bad("solver", f"{name} of shape {shape}, of one stage or more", found)
    if table.evaluate.dtype != torch.bool:
        raise bad("solver", "evaluate of dtype torch.bool", table.evaluate.dtype)
    if not bool(table.coef.isfinite().all() and table.times.isfinite().all()):
        raise bad("solver", "finite coefficients and times", "NaN or infinity")
    for stage in table.stages:
        _check_stage(stage)
    known = {"x"}
    for row, evaluated in zip(table.coef.tolist(), table.evaluate.tolist(), strict=True):
        for stage, c, asked in zip(table.stages, row, evaluated, strict=True):
            at, read = reads(stage, c, asked)
            if not at <= known or not read <= known | ({stage.output} if at else set()):
                missing = ", ".join(sorted((at | read) - known - {stage.output}))
                raise bad("solver", "slots that are written before they are read", missing)
            known |= writes(stage, asked)
    # Kernels read them so; a table that is so already may be one that was used before.
    parts = {"coef": table.coef, "times": table.times, "evaluate": table.evaluate}
    if all(x.is_contiguous() and x.is_cpu and x.dtype in (torch.float64, torch.bool) for x in parts.values()):
        return table
    coef, times = (parts[name].detach().to("cpu", torch.float64).contiguous() for name in ("coef", "times"))
    return Table(table.stages, coef, times, table.evaluate.cpu().contiguous())


def _check_stage(stage: Stage) -> None:
    """Raises ValueError for a stage that could not mean one thing everywhere."""
    if not isinstance(stage, Stage):
        raise bad("solver", "stages that are fpfast.solvers.Stage", type(stage).__name__)
    states = (stage.to, stage.of[0] if stage.of else "y", *([] if stage.at is None else [stage.at]))
    if not is_output(stage.output) or any(map(is_output, states)) or not 1 <= len(stage.of) <= 4:
        raise bad(
            "solver", "one to four slots, whose output begins with y, and whose to, first of and at do not", stage
        )
    if type(stage.stream) is not int or not 0 <= stage.stream < 2**16 or stage.stream in TAKEN:
        raise bad("solver", 'a stream of noise.STREAMS for steps, "step" or "corrector"', repr(stage.stream))
    sources, targets = {slot for slot, _ in stage.keep}, [to for _, to in stage.keep]
    apart = len({*targets, stage.to} | sources) == len(targets) + len({stage.to} | sources)
    if not apart or any(is_output(slot) != is_output(to) for slot, to in stage.keep):
        raise bad("solver", "keep to slots of the same kind that the stage neither writes nor keeps", stage.keep)


def is_output(slot: str) -> bool:
    return slot.startswith("y")


def reads(stage: Stage, row: Sequence[float], evaluated: bool) -> tuple[set[str], set[str]]:
    """The slot at which a stage evaluates, if it does, and those that it reads then: the others have coefficient 0."""
    at = {stage.at} if stage.at is not None and evaluated else set()
    operands = {stage.of[0], *(name for name, c in zip(stage.of[1:], row[1:], strict=False) if c != 0)}
    return at, operands | {slot for slot, _ in stage.keep}


def writes(stage: Stage, evaluated: bool) -> set[str]:
    output = {stage.output} if stage.at is not None and evaluated else set()
    return output | {stage.to, *(to for _, to in stage.keep)}


def carried(table: Table) -> list[str]:
    """The state, then the other slots that some step reads before it writes them: what steps leave for later ones."""
    found: dict[str, None] = {"x": None}
    steps = {
        (tuple(map(tuple, used)), tuple(asked))
        for used, asked in zip((table.coef != 0).tolist(), table.evaluate.tolist(), strict=True)
    }
    for used, asked in sorted(steps):
        written: set[str] = set()
        for stage, row, evaluated in zip(table.stages, used, asked, strict=True):
            at, read = reads(stage, row, evaluated)
            early = (at - written) | (read - written - ({stage.output} if at else set()))
            found |= dict.fromkeys(sorted(early))
            written |= writes(stage, evaluated)
    return list(found)
