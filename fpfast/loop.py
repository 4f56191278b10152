"""The loop for any network: calls it, combines, and so on, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fpfast import backends, ops
from fpfast.errors import bad
from fpfast.graph import Batch, Graphs, Slots
from fpfast.reference import Key
from fpfast.rows import Rows, most_operands
from fpfast.score import Score, checked
from fpfast.solvers import Table
from fpfast.tables import is_output
from fpfast.watch import Watch

REMEMBERED = 8  # of one table: weights of guidance, devices, dtypes
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
        self.mix: Tensor | None = None
        if most_operands(table, weights) > 4:  # too many outputs for one call: they are mixed first
            self.mix = torch.tensor([*weights, 0, 0, 0], dtype=dtype, device=device)
            weights = (1.0,)
        self.direct = score.direct
        self.rows = _prepared(table, weights, device, dtype)
        self.one_output = len({stage.output for stage in table.stages}) == 1 and not any(s.keep for s in table.stages)
        self.keeps_states = any(not is_output(slot) for stage in table.stages for slot, _ in stage.keep)
        self.graphs: Graphs | None = None
        if lengths:
            self.table_times = table.times.to(device, dtype)
            self.graphs = Graphs(self._kinds(), self._carried(), lengths, device, must_replay)

    @property
    def evaluations(self) -> int:
        """Network calls for a batch that runs to the last step (fewer than the table's after a callback's stop)."""
        return int(self.table.evaluate[: self.steps].sum())

    def __call__(self, x: Tensor, seed: Tensor, first_sample: int, bar: tqdm, watch: Watch | None = None) -> Tensor:
        batch = Batch({"x": (x,)}, [x], x.new_empty(len(x)), seed, first_sample)
        kernels = backends.kernels(self.backend)
        stages = getattr(kernels, "stages", None)  # of the native kernels on the CPU
        self.native = None if stages is None else stages(self.rows.rows, x, seed, first_sample)
        for i in range(self.steps):
            if watch is not None:
                watch.remember(batch.slots["x"][0])
            if self.graphs is None:
                self._step(i, batch)
            else:
                self.graphs(i, batch, self._step)
            if watch is not None:
                watch.look(batch.slots["x"][0], i + 1)
            bar.update()
            wanted = self.callback is not None and i + 1 in self.callback_steps
            if wanted and self.callback(i + 1, self.ends[i], batch.slots["x"][0].clone()):  # type: ignore[misc]
                self.steps = i + 1
                break
        return batch.slots["x"][0]

    def _step(self, i: int, batch: Batch) -> None:
        slots, evaluate, reads, native = batch.slots, self.rows.evaluate[i], self.rows.reads[i], self.native
        for j, stage in enumerate(self.table.stages):
            if stage.at is not None and evaluate[j]:
                outputs = self._outputs(slots[stage.at][0], self._time(i, j, batch))
                if not self.one_output:
                    _check_new(outputs, [kept for name, kept in slots.items() if name != stage.output])
                slots[stage.output] = outputs
            read, noisy = reads[j]
            first = slots[stage.of[0]][0]
            operands = [first, *[slots[name][which] for name, which in read]]
            # In place where nothing else needs the old value.
            alone = stage.to == stage.of[0] and not stage.keep and not (self.keeps_states and _shared(first, slots))
            out = first if alone else _free(batch.states, slots)
            if native is not None:
                native(i * self.rows.stages + j, out, operands, noisy, stage.stream, i)
                ops.changed(out)
            else:
                key = Key(batch.seed, batch.first_sample, stage.stream, i) if noisy else None
                coef = self.rows.row(i, j) if batch.position is None else self.rows.rows[:, j]
                ops.combine_into(out, operands, coef, key, self.backend, batch.position)
            kept = {to: slots[slot] for slot, to in stage.keep} if stage.keep else {}
            slots[stage.to] = (out,)
            slots.update(kept)

    def _time(self, i: int, j: int, batch: Batch) -> Tensor:
        """The time of a stage's evaluation, for each sample; the memory is that of all other times."""
        if batch.position is None:
            return batch.t.fill_(self.rows.times[i][j])
        times = self.table_times[:, j : j + 1].expand(-1, len(batch.t))
        torch.index_select(times, 0, batch.position[:1], out=batch.t[None])
        return batch.t

    def _kinds(self) -> list[Hashable]:
        """What each step does, but for its numbers."""
        return [(*evaluate, *reads) for evaluate, reads in zip(self.rows.evaluate, self.rows.reads, strict=True)]

    def _carried(self) -> set[str]:
        """Slots that some step reads before it writes them."""
        found = {"x"}
        for evaluate, step in zip(self.rows.evaluate, self.rows.reads, strict=True):
            written: set[str] = set()
            for stage, evaluated, (others, _) in zip(self.table.stages, evaluate, step, strict=True):
                read = {stage.of[0], *(name for name, _ in others), *(slot for slot, _ in stage.keep)}
                if stage.at is not None and evaluated:
                    found |= {stage.at} - written
                    written.add(stage.output)
                found |= read - written
                written |= {stage.to, *(to for _, to in stage.keep)}
        return found

    def _outputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        counts = not x.is_inference()  # inference tensors do not count their versions
        version = x._version if counts else 0
        outputs = self.score.outputs(x, t) if self.direct is None else self._direct(x, t)
        if counts and x._version != version:
            raise bad("net", "a network that leaves its input as it is", "one that changed x in place")
        # The network may have returned its input, which the next stage is about to overwrite.
        address = x.data_ptr()
        for y in outputs:
            if y.data_ptr() == address:
                outputs = tuple(y.clone() if y.data_ptr() == address else y for y in outputs)
                break
        if self.mix is None:
            return outputs
        conditional, unconditional = (y.to(x.dtype) for y in outputs)
        return (ops.combined([conditional, unconditional], self.mix, None, self.backend),)

    def _direct(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """:meth:`Score.outputs` for the usual network, by the fewest calls: small steps are made of these."""
        y = self.direct(x, t)  # type: ignore[misc]
        usual = type(y) is Tensor and y.dtype is x.dtype and y.shape == x.shape and y.device == x.device
        return (y if usual and y.is_contiguous() and not y.is_neg() else checked(y, x).contiguous(),)


def _prepared(table: Table, weights: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Rows:
    """Remembered with the table, as short runs would spend much of their time here."""
    wanted = weights, device, dtype
    if wanted not in table.prepared:
        if len(table.prepared) >= REMEMBERED:
            table.prepared.clear()
        table.prepared[wanted] = Rows(table, weights, device, dtype)
    return table.prepared[wanted]


def _shared(state: Tensor, slots: Slots) -> bool:
    """If more than one slot holds a state."""
    return sum(tensors[0] is state for tensors in slots.values()) > 1


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
