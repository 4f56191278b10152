"""The loop for any network: calls it, combines, and so on, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fpfast import ops
from fpfast.errors import bad
from fpfast.reference import Key
from fpfast.score import Score
from fpfast.solvers import Stage, Table

Callback = Callable[[int, float, Tensor], Any]


class Loop:
    """A table made ready for one device and dtype, with a network that is called once for each evaluation."""

    def __init__(
        self,
        score: Score,
        table: Table,
        ends: Sequence[float],
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        callback: Callback | None,
        callback_steps: set[int],
    ) -> None:
        self.score, self.table, self.ends, self.backend = score, table, ends, backend
        self.callback, self.callback_steps = callback, callback_steps
        self.steps = len(table.coef)
        weights = score.weights
        # With guidance a stage reads two outputs for each evaluation; where that is too many they are mixed first.
        self.mix: Tensor | None = None
        if max(sum(len(weights) if _is_output(name) else 1 for name in stage.of) for stage in table.stages) > 4:
            self.mix = torch.tensor([*weights, 0, 0, 0], dtype=dtype, device=device)
            weights = (1.0,)
        self.weights = weights
        self.times, self.evaluate = table.times.tolist(), table.evaluate.tolist()
        numbers = table.coef.tolist()
        self.reads, rows = [], []
        for i in range(self.steps):
            parts = [self._row(stage, c) for stage, c in zip(table.stages, numbers[i], strict=True)]
            self.reads.append([reads for reads, _ in parts])
            rows += [row for _, row in parts]
        # Uploaded once, then handed out row by row.
        self.coef = _rows(torch.tensor(rows, dtype=torch.float64).to(device, dtype), len(table.stages))

    def _row(self, stage: Stage, c: list[float]) -> tuple[tuple[list[tuple[str, int]], bool], list[float]]:
        """What a stage reads beside its first operand (slot, which output), whether it is noisy, and its row.

        Operands with coefficient zero are not read, whatever they hold.
        """
        operands, values = [], [c[0]]
        for name, value in zip(stage.of[1:], c[1:-1], strict=False):
            for which, weight in enumerate(self.weights if _is_output(name) else (1.0,)):
                if value * weight != 0:
                    operands.append((name, which))
                    values.append(value * weight)
        return (operands, c[-1] != 0), [*values, *[0.0] * (4 - len(values)), c[-1]]

    @property
    def evaluations(self) -> int:
        """Network calls for a batch that runs to the last step (fewer than the table's after a callback's stop)."""
        return int(self.table.evaluate[: self.steps].sum())

    def __call__(self, x: Tensor, seed: Tensor, first_sample: int, bar: tqdm) -> Tensor:
        slots: dict[str, tuple[Tensor, ...]] = {"x": (x,)}
        states = [x]  # all that this run has made for states; those that no slot holds are free
        t = x.new_empty(len(x))
        for i in range(self.steps):
            for j, stage in enumerate(self.table.stages):
                if stage.at is not None and self.evaluate[i][j]:
                    outputs = self._outputs(slots[stage.at][0], t.fill_(self.times[i][j]))
                    _check_new(outputs, [kept for name, kept in slots.items() if name != stage.output])
                    slots[stage.output] = outputs
                reads, noisy = self.reads[i][j]
                operands = [slots[stage.of[0]][0], *(slots[name][which] for name, which in reads)]
                # In place where nothing else needs the old value.
                out = operands[0] if stage.to == stage.of[0] and not stage.keep else _free(states, slots)
                key = Key(seed, first_sample, stage.stream, i) if noisy else None
                ops.combine_into(out, operands, self.coef[i][j], key, self.backend)
                kept = {to: slots[slot] for slot, to in stage.keep}
                slots.update({stage.to: (out,), **kept})
            bar.update()
            x = slots["x"][0]
            wanted = self.callback is not None and i + 1 in self.callback_steps
            if wanted and self.callback(i + 1, self.ends[i], x.clone()):  # type: ignore[misc]
                self.steps = i + 1
                break
        return slots["x"][0]

    def _outputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        version = None if x.is_inference() else x._version  # inference tensors do not count
        outputs = self.score.outputs(x, t)
        if version is not None and x._version != version:
            raise bad("net", "a network that leaves its input as it is", "one that changed x in place")
        # The network may have returned its input, which the next stage is about to overwrite.
        outputs = tuple(y.clone() if y.data_ptr() == x.data_ptr() else y for y in outputs)
        if self.mix is None:
            return outputs
        conditional, unconditional = (y.to(x.dtype) for y in outputs)
        return (ops.combine(conditional, [unconditional], self.mix, backend=self.backend),)


def _rows(coef: Tensor, stages: int) -> list[tuple[Tensor, ...]]:
    rows = coef.unbind()
    return [rows[k : k + stages] for k in range(0, len(rows), stages)]


def _free(states: list[Tensor], slots: dict[str, tuple[Tensor, ...]]) -> Tensor:
    """A state that no slot holds; a new one where there is none."""
    held = {id(tensor) for tensors in slots.values() for tensor in tensors}
    for state in states:
        if id(state) not in held:
            return state
    states.append(torch.empty_like(states[0]))
    return states[-1]


def _check_new(outputs: tuple[Tensor, ...], kept: list[tuple[Tensor, ...]]) -> None:
    """A network that writes all its outputs to one buffer would change what a solver keeps of an earlier call."""
    addresses = {tensor.data_ptr() for tensors in kept for tensor in tensors}
    if any(y.data_ptr() in addresses for y in outputs):
        raise bad("net", "a new tensor from each call (clone the output)", "memory of an earlier output")


def _is_output(slot: str) -> bool:
    return slot.startswith("y")
