"""The loop for any network: calls it, combines, and so on, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fpfast import backends, ops
from fpfast.errors import bad
from fpfast.graph import Batch, Graphs
from fpfast.reference import Key
from fpfast.rows import Rows, Slots, Work
from fpfast.score import Score, checked
from fpfast.solvers import Table
from fpfast.watch import Watch

REMEMBERED = 8  # of one table: weights of guidance, devices, dtypes
Callback = Callable[[int, float, Tensor], Any]
Advance = Callable[[int], Any]  # told how many steps were done


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
        self.direct = score.direct
        self.rows = _prepared(table, score.weights, device, dtype)
        self.graphs: Graphs | None = None
        if lengths:
            kinds: list[Hashable] = list(self.rows.steps)
            self.graphs = Graphs(kinds, self.rows.carried, lengths, device, must_replay)

    @property
    def evaluations(self) -> int:
        """Network calls for a batch that runs to the last step (fewer than the table's after a callback's stop)."""
        return int(self.table.evaluate[: self.steps].sum())

    def __call__(
        self, x: Tensor, seed: Tensor, first_sample: int, advance: Advance | None = None, watch: Watch | None = None
    ) -> Tensor:
        t = x.new_empty(len(x))
        batch = Batch({"x": x}, [x], t, seed, first_sample)
        self.memory = t.untyped_storage()  # which someone may take from t
        self.counts = not x.is_inference()  # inference tensors do not count their versions
        self.like = x.dtype, x.shape, x.device
        self.native = None
        stages = getattr(backends.kernels(self.backend), "stages", None)  # of the native kernels on the CPU
        if stages is not None:
            self.native = stages(self.rows.rows, self.rows.times, t, x, seed, first_sample)
            t.fill_(self.rows.numbers[0][0])
        for i in range(self.steps):
            if watch is not None:
                watch.remember(batch.slots["x"])
            if self.graphs is None:
                self._step(i, batch)
            else:
                self.graphs(i, batch, self._step)
            if watch is not None:
                watch.look(batch.slots["x"], i + 1)
            if advance is not None:
                advance(1)
            if self.callback is None or i + 1 not in self.callback_steps:
                continue
            if self.callback(i + 1, self.ends[i], batch.slots["x"].clone()):
                self.steps = i + 1
                break
        return batch.slots["x"]

    def _step(self, i: int, batch: Batch) -> None:
        rows, slots, native = self.rows, batch.slots, self.native
        for j, work in enumerate(rows.steps[i]):
            if work.at is not None:
                t = self._time(i, j, batch) if native is None else batch.t  # which the last stage left there
                self._evaluate(work, slots[work.at], t, slots)
            operands = work.read(slots)
            first = operands[0]
            alone = work.in_place and not (rows.keeps_states and _shared(first, slots))
            out = first if alone else _free(batch.states, slots)
            if native is not None:
                row = i * rows.stages + j
                native(row, out, operands, work.noisy, work.stream, i)
                if self.counts:
                    increment_version((out, batch.t) if row < rows.last else (out,))
            else:
                key = Key(batch.seed, batch.first_sample, work.stream, i) if work.noisy else None
                coef = rows.row(i, j) if batch.position is None else rows.rows[:, j]
                ops.combine_into(out, list(operands), coef, key, self.backend, batch.position)
            kept = {to: slots[slot] for slot, to in work.keep} if work.keep else None
            slots[work.to] = out
            if kept is not None:
                slots.update(kept)

    def _time(self, i: int, j: int, batch: Batch) -> Tensor:
        """The time of a stage's evaluation, for each sample; the memory is that of all other times."""
        if batch.position is None:
            return batch.t.fill_(self.rows.numbers[i][j])
        times = self.rows.times[:, j : j + 1].expand(-1, len(batch.t))
        torch.index_select(times, 0, batch.position[:1], out=batch.t[None])
        return batch.t

    def _evaluate(self, work: Work, x: Tensor, t: Tensor, slots: Slots) -> None:
        """Calls the network, and puts what it says into the slots; small steps are made of this."""
        version, inputs = x._version if self.counts else 0, (x.data_ptr(), t.data_ptr())
        outputs = self.score.outputs(x, t) if self.direct is None else (self._one(self.direct(x, t), x),)
        if (x.data_ptr(), t.data_ptr()) != inputs or (self.counts and x._version != version):
            changed = "x in place" if t.data_ptr() == inputs[1] else "where t is stored"
            raise bad("net", "a network that leaves its input as it is", f"one that changed {changed}")
        if self.rows.mix is not None:
            outputs = (ops.combined([y.to(x.dtype) for y in outputs], self.rows.mix, None, self.backend),)
        for name, y in zip(work.outputs, outputs, strict=True):
            # The network may have returned an input, which the next stage is about to overwrite.
            slots[name] = y.clone() if y.data_ptr() in inputs else y
        if not self.rows.one_output:
            _check_new(work.outputs, slots)

    def _one(self, y: Any, x: Tensor) -> Tensor:
        """What :meth:`Score.outputs` makes of one output, with little to do for the usual one."""
        dtype, shape, device = self.like
        usual = type(y) is Tensor and y.dtype is dtype and y.shape == shape and y.device == device
        return y if usual and y.is_contiguous() and not y.is_neg() else checked(y, x).contiguous()


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
    return sum(tensor is state for tensor in slots.values()) > 1


def _free(states: list[Tensor], slots: Slots) -> Tensor:
    """A state that no slot holds; a new one where there is none."""
    held = {id(tensor) for tensor in slots.values()}
    for state in states:
        if id(state) not in held:
            return state
    states.append(torch.empty_like(states[0]))
    return states[-1]


def _check_new(outputs: tuple[str, ...], slots: Slots) -> None:
    """A network that writes all its outputs to one buffer would change what a solver keeps of an earlier call."""
    kept = {tensor.data_ptr() for name, tensor in slots.items() if name not in outputs}
    if any(slots[name].data_ptr() in kept for name in outputs):
        raise bad("net", "a new tensor from each call (clone the output)", "memory of an earlier output")
