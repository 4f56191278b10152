"""A solver's table made ready for one device: the rows as they are read, and which slots each stage reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fpfast.solvers import Table
from fpfast.tables import is_output


class Read(NamedTuple):
    """What a stage reads beside its first operand, (slot, which output of a pair), and if it draws noise."""

    operands: tuple[tuple[str, int], ...]
    noisy: bool


class Rows:
    """The rows of a table whose network has outputs of these weights (see :meth:`fpfast.Score.outputs`).

    Operands with coefficient zero are not read, whatever they hold: a row has the others' coefficients, then zeros.
    """

    def __init__(self, table: Table, weights: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> None:
        steps, stages, _ = table.coef.shape
        rows = torch.zeros_like(table.coef)
        rows[:, :, 0], rows[:, :, 4] = table.coef[:, :, 0], table.coef[:, :, 4]
        codes = torch.zeros(steps, stages, dtype=torch.int64)
        reads: list[dict[int, Read]] = []
        for j, stage in enumerate(table.stages):
            named = [
                (name, which, table.coef[:, j, k] * weight)
                for k, name in enumerate(stage.of[1:], 1)
                for which, weight in enumerate(weights if is_output(name) else (1.0,))
            ]
            columns = [column for _, _, column in named] + [table.coef[:, j, 4]]
            used = torch.stack([column != 0 for column in columns], dim=1)
            codes[:, j] = (used * 2 ** torch.arange(len(columns))).sum(1)
            known = {}
            for code in codes[:, j].unique().tolist():
                here = codes[:, j] == code
                chosen = [k for k in range(len(named)) if code >> k & 1]
                for to, k in enumerate(chosen, 1):
                    rows[here, j, to] = columns[k][here]
                noisy = bool(code >> len(named) & 1)
                known[code] = Read(tuple((named[k][0], named[k][1]) for k in chosen), noisy)
            reads.append(known)
        kinds = {
            code: tuple(known[part] for known, part in zip(reads, code, strict=True))
            for code in {tuple(code) for code in codes.tolist()}
        }
        self.reads = [kinds[tuple(code)] for code in codes.tolist()]  # by step, then by stage
        self.rows = rows.to(device, dtype)  # [steps, stages, 5]
        self.times = table.times.tolist()
        self.evaluate = table.evaluate.tolist()
        self.stages = stages
        self._each: tuple[Tensor, ...] = ()

    def row(self, i: int, j: int) -> Tensor:
        if not self._each:
            self._each = self.rows.view(-1, 5).unbind()
        return self._each[i * self.stages + j]


def most_operands(table: Table, weights: tuple[float, ...]) -> int:
    """The most that a stage may read: with guidance, two outputs for each evaluation."""
    return max(sum(len(weights) if is_output(name) else 1 for name in stage.of) for stage in table.stages)
