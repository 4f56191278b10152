"""The loop for a recognised network: whole runs in the fused engine, in place of the loop over steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fpfast import backends
from fpfast.errors import bad
from fpfast.fused import Fused, Unsupported, recognised
from fpfast.loop import Callback
from fpfast.reference import Key
from fpfast.score import Score
from fpfast.solvers import Table

NOTHING = -1
WORK = 20_000_000_000  # floating-point operations in one native call: so long a progress bar, or Ctrl-C, has to wait


def fusible(
    score: Score, shape: tuple[int, ...], backend: str, device: torch.device, dtype: torch.dtype
) -> tuple[Fused | None, str | None]:
    """The network if the fused engine runs it, else why not. ``backend`` is the one that the user asked for."""
    if backend not in ("auto", "cpu"):
        return None, f"backend is {backend!r}"
    if (missing := backends.BACKENDS["cpu"].missing()) is not None:
        return None, missing
    if device.type != "cpu":
        return None, f"the state is on {device}"
    if score.guidance is not None:
        return None, "a network with guidance returns a pair"
    if len(shape) != 2:
        return None, f"a sample has the shape {shape[1:]}, not (d,)"
    net = score.net
    outputs = 1 if score.predicts == "potential" else shape[1]
    if isinstance(net, Fused):
        net.refresh()
        if (net.dimension, net.outputs) != (shape[1], outputs) or _flat_score(net, score):
            want = f"a network compiled for dimension {shape[1]}, with {outputs} outputs"
            flat = ", flat" if net.flat else ""
            raise bad("score", want, f"dimension {net.dimension}, {net.outputs} outputs{flat}")
        return net, None
    if not isinstance(net, nn.Module):
        return None, "net is a function, not a torch.nn.Module"
    if dtype != torch.float32:
        return None, f"the state is {dtype} (fused.compile serves it)"
    held = [tensor.dtype for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
    if other := {str(one) for one in held if one != dtype}:
        return None, f"the network's parameters are {', '.join(sorted(other))}"
    try:
        fused = recognised(net, shape[1], _what(score))
        if fused.outputs != outputs or _flat_score(fused, score):
            return None, f"the network has {fused.outputs} outputs" + ", flat" * fused.flat
        fused.value(_what(score))
    except Unsupported as error:
        return None, str(error)
    return fused, None


def _flat_score(net: Fused, score: Score) -> bool:
    """Outputs of shape (B,), which only a potential may have."""
    return net.flat and score.predicts != "potential"


def _what(score: Score) -> str:
    return "gradient" if score.predicts == "potential" else "output"


class Schedule:
    """A table as the engine wants it. States and outputs are slots of ``dimension`` rows each."""

    def __init__(self, net: Fused, what: str, table: Table, dtype: torch.dtype) -> None:
        d = net.dimension
        rows = {name: k * d for k, name in enumerate(_slots(table))}
        self.packed = net.packed(what, len(rows) * d, dtype)
        self.actions = torch.tensor(_actions(table, rows))
        self.coef = table.coef.to(dtype)
        self.bias_rows = torch.where(table.evaluate, table.evaluate.flatten().cumsum(0).view_as(table.evaluate) - 1, -1)
        self.biases = self.packed.program.biases(table.times[table.evaluate], dtype)
        self.flops = max(1, self.packed.program.flops) * table.evaluate.sum(1)
        # What a step leaves for the next: the state, and what multistep solvers keep.
        self.kept = {name: rows[name] for name in ("x", *(to for stage in table.stages for _, to in stage.keep))}


class FusedLoop:
    """A table made ready for the engine."""

    def __init__(
        self,
        net: Fused,
        score: Score,
        table: Table,
        ends: Sequence[float],
        dtype: torch.dtype,
        callback: Callback | None,
        callback_steps: set[int],
    ) -> None:
        self.table, self.ends = table, ends
        self.callback, self.callback_steps = callback, callback_steps
        self.steps, self.dimension = len(ends), net.dimension
        what = _what(score)
        self.schedule = net.remembered((what, table, dtype), lambda: Schedule(net, what, table, dtype))

    @property
    def evaluations(self) -> int:
        return int(self.table.evaluate[: self.steps].sum())

    def __call__(self, x: Tensor, seed: Tensor, first_sample: int, bar: tqdm) -> Tensor:
        plan = self.schedule
        slots = [(x if name == "x" else torch.zeros_like(x), row) for name, row in plan.kept.items()]
        start = 0
        for stop in self._stops(len(x)):
            plan.packed.run(slots, plan.actions, (start, stop), plan.bias_rows, plan.coef, plan.biases,
                            self.dimension, Key(seed, first_sample, 0, 0))  # fmt: skip
            bar.update(stop - start)
            start = stop
            wanted = self.callback is not None and stop in self.callback_steps
            if wanted and self.callback(stop, self.ends[stop - 1], x.clone()):  # type: ignore[misc]
                self.steps = stop
                break
        return x

    def _stops(self, samples: int) -> list[int]:
        """The steps after which the engine returns: those of the callback, and often enough in between."""
        work = (self.schedule.flops * samples).cumsum(0)
        ends = {self.steps}
        if work[-1] > WORK:
            ends |= set(((work // WORK).diff().nonzero()[:, 0] + 1).tolist())
        if self.callback is not None:
            ends |= {step for step in self.callback_steps if step < self.steps}
        return sorted(step for step in ends if 0 < step <= self.steps)


def _slots(table: Table) -> list[str]:
    names = ["x"]
    for stage in table.stages:
        names += [
            stage.to,
            *stage.of,
            stage.at or "x",
            stage.output if stage.at else "x",
            *(to for _, to in stage.keep),
        ]
        names += ["spare"] * bool(stage.keep)
    return list(dict.fromkeys(names))


def _actions(table: Table, row: dict[str, int]) -> list[list[int]]:
    """Each as csrc/kernels.h has it: evaluate, stage, in, out, operands, four of them, stream."""
    actions = []
    for number, stage in enumerate(table.stages):
        if stage.at is not None:
            actions.append([1, number, row[stage.at], row[stage.output], 0, 0, 0, 0, 0, 0])
        operands = [row[name] for name in stage.of]
        # What is kept is the old value, which the result must not overwrite before.
        to = row["spare"] if stage.keep else row[stage.to]
        actions.append([0, number, 0, to, len(operands), *operands, *[0] * (4 - len(operands)), stage.stream])
        copies = [*stage.keep, ("spare", stage.to)] if stage.keep else []
        actions += [[0, NOTHING, row[source], row[target], 0, 0, 0, 0, 0, 0] for source, target in copies]
    return actions
