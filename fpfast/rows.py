"""A solver's table made ready for one device: the rows as they are read, and what the stages of each step do."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast.solvers import Table
from fpfast.tables import carried, is_output

Slots = dict[str, Tensor]


class Work(NamedTuple):
    """What a stage does in some of the steps. Operands with coefficient zero are not read, whatever they hold."""

    at: str | None  # slot that the network is called at; None where it is not
    outputs: tuple[str, ...]  # slots for what it says
    read: Callable[[Slots], tuple[Tensor, ...]]  # the operands
    to: str
    in_place: bool  # the first operand is no more needed, unless another slot shares its memory
    keep: tuple[tuple[str, str], ...]
    noisy: bool
    stream: int


class Rows:
    """The rows of a table whose network has outputs of these weights (see :meth:`fpfast.Score.outputs`)."""

    def __init__(self, table: Table, weights: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> None:
        steps, self.stages, _ = table.coef.shape
        # Too many outputs for one call are mixed first.
        self.mix: Tensor | None = None
        if max(sum(len(_named(slot, weights)) for slot in stage.of) for stage in table.stages) > 4:
            self.mix = torch.tensor([*weights, *[0.0] * (5 - len(weights))], dtype=dtype, device=device)
            weights = (1.0,)
        self.last = steps * self.stages - 1  # row
        rows = torch.zeros_like(table.coef)  # of the operands that are read, then zeros
        rows[:, :, 0], rows[:, :, 4] = table.coef[:, :, 0], table.coef[:, :, 4]
        codes = torch.zeros(steps, self.stages, dtype=torch.int64)
        works: list[dict[int, Work]] = []
        for j, stage in enumerate(table.stages):
            named = [
                (name, table.coef[:, j, k] * weight)
                for k, slot in enumerate(stage.of[1:], 1)
                for name, weight in _named(slot, weights).items()
            ]
            used = [table.evaluate[:, j], table.coef[:, j, 4] != 0, *(column != 0 for _, column in named)]
            codes[:, j] = (torch.stack(used, dim=1) * 2 ** torch.arange(len(used))).sum(1)
            keep = tuple(
                pair for slots in stage.keep for pair in zip(*(_named(slot, weights) for slot in slots), strict=True)
            )
            known = {}
            for code in codes[:, j].unique().tolist():
                here = codes[:, j] == code
                chosen = [k for k in range(len(named)) if code >> 2 + k & 1]
                for to, k in enumerate(chosen, 1):
                    rows[here, j, to] = named[k][1][here]
                known[code] = Work(
                    at=stage.at if code & 1 else None,
                    outputs=tuple(_named(stage.output, weights)),
                    read=_reader(stage.of[0], *(named[k][0] for k in chosen)),
                    to=stage.to,
                    in_place=stage.to == stage.of[0] and not keep,
                    keep=keep,
                    noisy=bool(code & 2),
                    stream=stage.stream,
                )
            works.append(known)
        kinds = {
            code: tuple(known[part] for known, part in zip(works, code, strict=True))
            for code in {tuple(code) for code in codes.tolist()}
        }
        self.steps = [kinds[tuple(code)] for code in codes.tolist()]
        self.rows = rows.to(device, dtype)  # [steps, stages, 5]
        self.times = table.times.to(device, dtype)  # [steps, stages]
        self.numbers: list[list[float]] = table.times.tolist()
        self.carried = {name for slot in carried(table) for name in _named(slot, weights)}
        self.one_output = len({stage.output for stage in table.stages}) == 1 and not any(s.keep for s in table.stages)
        self.keeps_states = any(not is_output(slot) for stage in table.stages for slot, _ in stage.keep)
        self._each: tuple[Tensor, ...] = ()

    def row(self, i: int, j: int) -> Tensor:
        if not self._each:
            self._each = self.rows.view(-1, 5).unbind()
        return self._each[i * self.stages + j]


def _named(slot: str, weights: tuple[float, ...]) -> dict[str, float]:
    """A state, or the outputs of a call: names and weights. All but the first have names that no solver would give."""
    return {slot + k * "\0": weight for k, weight in enumerate(weights if is_output(slot) else (1.0,))}


def _reader(*names: str) -> Callable[[Slots], tuple[Tensor, ...]]:
    return itemgetter(*names) if len(names) > 1 else lambda slots: (slots[names[0]],)
