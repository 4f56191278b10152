"""The loop for any network: calls it, combines, and so on, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fpfast import ops
from fpfast.errors import bad
from fpfast.graph import Batch, Graphs, Slots
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
        lengths: Sequence[int] = (),  # of the batches whose steps are to be replayed where that is worth it
        must_replay: bool = False,
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
        stages, uploaded = len(table.stages), torch.tensor(rows, dtype=torch.float64).to(device, dtype)
        self.rows, each = uploaded.view(self.steps, stages, 5), uploaded.unbind()
        self.coef = [each[k : k + stages] for k in range(0, len(each), stages)]
        self.graphs: Graphs | None = None
        if lengths:
            self.table_times = table.times.to(device, dtype)
            self.graphs = Graphs(self._kinds(), self._carried(), lengths, device, must_replay)

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
        batch = Batch({"x": (x,)}, [x], x.new_empty(len(x)), seed, first_sample)
        for i in range(self.steps):
            if self.graphs is None:
                self._step(i, batch)
            else:
                self.graphs(i, batch, self._step)
            bar.update()
            wanted = self.callback is not None and i + 1 in self.callback_steps
            if wanted and self.callback(i + 1, self.ends[i], batch.slots["x"][0].clone()):  # type: ignore[misc]
                self.steps = i + 1
                break
        return batch.slots["x"][0]

    def _step(self, i: int, batch: Batch) -> None:
        slots, position = batch.slots, batch.position
        for j, stage in enumerate(self.table.stages):
            if stage.at is not None and self.evaluate[i][j]:
                outputs = self._outputs(slots[stage.at][0], self._time(i, j, batch))
                _check_new(outputs, [kept for name, kept in slots.items() if name != stage.output])
                slots[stage.output] = outputs
            reads, noisy = self.reads[i][j]
            operands = [slots[stage.of[0]][0], *(slots[name][which] for name, which in reads)]
            # In place where nothing else needs the old value.
            out = operands[0] if stage.to == stage.of[0] and not stage.keep else _free(batch.states, slots)
            key = Key(batch.seed, batch.first_sample, stage.stream, i) if noisy else None
            coef = self.coef[i][j] if position is None else self.rows[:, j]
            ops.combine_into(out, operands, coef, key, self.backend, position)
            kept = {to: slots[slot] for slot, to in stage.keep}
            slots.update({stage.to: (out,), **kept})

    def _time(self, i: int, j: int, batch: Batch) -> Tensor:
        """The time of a stage's evaluation, for each sample; the memory is that of all other times."""
        if batch.position is None:
            return batch.t.fill_(self.times[i][j])
        times = self.table_times[:, j : j + 1].expand(-1, len(batch.t))
        torch.index_select(times, 0, batch.position[:1], out=batch.t[None])
        return batch.t

    def _kinds(self) -> list[Hashable]:
        """What each step does, but for its numbers."""
        return [
            (*evaluate, *((tuple(operands), noisy) for operands, noisy in reads))
            for evaluate, reads in zip(self.evaluate, self.reads, strict=True)
        ]

    def _carried(self) -> set[str]:
        """Slots that some step reads before it writes them."""
        found = {"x"}
        for evaluate, step in zip(self.evaluate, self.reads, strict=True):
            written: set[str] = set()
            for stage, evaluated, (operands, _) in zip(self.table.stages, evaluate, step, strict=True):
                read = {stage.of[0], *(name for name, _ in operands), *(slot for slot, _ in stage.keep)}
                if stage.at is not None and evaluated:
                    found |= {stage.at} - written
                    written.add(stage.output)
                found |= read - written
                written |= {stage.to, *(to for _, to in stage.keep)}
        return found

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


def _free(states: list[Tensor], slots: Slots) -> Tensor:
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
