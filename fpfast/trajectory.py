"""The loop for a recognised network: whole runs in the fused engine, in place of the loop over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fpfast import backends, fragments, packing, tiles
from fpfast.assemble import PLAIN, Layout, Program
from fpfast.errors import bad
from fpfast.fused import Fused, Unsupported, recognised
from fpfast.loop import Advance, Callback
from fpfast.packing import up
from fpfast.reference import Key
from fpfast.score import Score
from fpfast.solvers import Table
from fpfast.tables import carried
from fpfast.watch import Watch

if TYPE_CHECKING:
    from fpfast.native import Cuda

NOTHING = -1
SPARE = "(spare)"  # a slot of our own
ENGINES = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # backends that run networks whole, in order of preference
# Floating-point operations in one native call: so long a progress bar, or Ctrl-C, has to wait.
WORK = {"cpu": 2 * 10**10, "cuda": 10**14}


def fusible(
    score: Score,
    table: Table,
    shape: tuple[int, ...],
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    freeze: bool = False,
) -> tuple[Fused | None, str | None]:
    """The network if the fused engine runs it, else why not. ``backend`` is the one that the user asked for.

    ``freeze``: samples that are not finite are to stay where they were.
    """
    if device.type not in ENGINES:
        return None, f"the state is on {device}"
    if (engine := _engine(backend, device)) is None:
        return None, f"backend is {backend!r}"
    if (missing := backends.BACKENDS["cpu"].missing() or backends.BACKENDS[engine].missing()) is not None:
        return None, missing
    if device.type == "cuda" and dtype != torch.float32:
        return None, f"the state is {dtype}"
    net, reason = recognise(score, shape, dtype)
    if net is None:
        return None, reason
    if net.products != "float32" and engine != "cuda":
        return None, f"products in {net.products} are the CUDA kernel's alone"
    return (net, None) if (reason := _too_large(net, score, table, device, engine, freeze)) is None else (None, reason)


def recognise(score: Score, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Fused | None, str | None]:
    """The score's network, compiled if it was not, where the engine evaluates it; else why not."""
    if type(score) is not Score:
        return None, f"{type(score).__name__} may say something else than its network"
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


def _engine(backend: str, device: torch.device) -> str | None:
    """The backend that is to run networks whole; of "auto" the first that is not missing. None if it is not one."""
    engines = ENGINES[device.type]
    if backend == "auto":
        return next((name for name in engines if backends.BACKENDS[name].missing() is None), engines[0])
    return backend if backend in engines else None


def _cuda() -> Cuda:
    from fpfast.native import Cuda  # which is not there where the kernels are not built

    return Cuda()


def _too_large(net: Fused, score: Score, table: Table, device: torch.device, engine: str, freeze: bool) -> str | None:
    """Why a GPU's shared memory does not hold the values of 16 samples; None where it does, and where it need not."""
    if engine != "cuda":
        return None
    what, rows = _what(score), Plan(table, net.dimension, fragments.LAYOUT).rows
    before = up(net.dimension, fragments.LAYOUT.rows) if freeze else 0
    needed = net.remembered(
        ("bytes", what, rows, before),
        lambda: fragments.shared_bytes(net.program(what, rows, fragments.LAYOUT), before),
    )
    there = _cuda().shared_memory(device)
    if needed <= there:
        return None
    return f"16 samples need {needed} bytes of shared memory, and {device} has {there}"


def _flat_score(net: Fused, score: Score) -> bool:
    """Outputs of shape (B,), which only a potential may have."""
    return net.flat and score.predicts != "potential"


def _what(score: Score) -> str:
    return "gradient" if score.predicts == "potential" else "output"


class Plan:
    """A table as the engine wants it. States and outputs are slots, of so many rows as a layout makes of a state."""

    def __init__(self, table: Table, dimension: int, layout: Layout) -> None:
        rows = {name: k * up(dimension, layout.rows) for k, name in enumerate(_slots(table))}
        self.rows = len(rows) * up(dimension, layout.rows)
        self.actions = torch.tensor(_actions(table, rows))
        self.bias_rows = torch.where(table.evaluate, table.evaluate.flatten().cumsum(0).view_as(table.evaluate) - 1, -1)
        self.kept = {name: rows[name] for name in carried(table)}  # between native calls


class Schedule:
    """A plan with its numbers, for a processor."""

    device = "cpu"

    def __init__(self, net: Fused, what: str, table: Table, dtype: torch.dtype) -> None:
        self.plan, self.dimension = Plan(table, net.dimension, PLAIN), net.dimension
        self.packed = net.packed(what, self.plan.rows, dtype)
        self.program = self.packed.program
        self.coef = table.coef.to(dtype)
        self.biases = self.program.biases(table.times[table.evaluate], dtype)

    def run(
        self, slots: list[tuple[Tensor, int]], steps: tuple[int, int], key: Key, watch: Watch | None = None
    ) -> None:
        plan = self.plan
        self.packed.run(slots, plan.actions, steps, plan.bias_rows, self.coef, self.biases, self.dimension, key, watch)


class GpuSchedule:
    """A plan with its numbers, for the CUDA kernel on one GPU."""

    device = "cuda"

    def __init__(self, net: Fused, what: str, table: Table, device: torch.device, kernels: Cuda) -> None:
        self.plan, self.kernels = Plan(table, net.dimension, fragments.LAYOUT), kernels
        self.program, self.dimension = net.program(what, self.plan.rows, fragments.LAYOUT), net.dimension
        self.bfloat16 = net.products == "bfloat16"
        self.host = {**_code(self.program, self.plan), "slabs": fragments.slabs(self.program)}
        numbers = _numbers(self.program, table, packing.fragments)
        self.there = {name: tensor.to(device).contiguous() for name, tensor in {**self.host, **numbers}.items()}

    def run(
        self, slots: list[tuple[Tensor, int]], steps: tuple[int, int], key: Key, watch: Watch | None = None
    ) -> None:
        self.kernels.trajectory(
            inputs=slots,
            outputs=slots,
            host=self.host,
            device=self.there,
            steps=steps,
            dimension=self.dimension,
            rows=self.program.rows,
            bfloat16=self.bfloat16,
            key=key,
            broken=None if watch is None else watch.broken,
            freeze=watch is not None and watch.freeze,
        )


class TritonSchedule:
    """A plan with its numbers, for the Triton kernel on one GPU."""

    device = "cuda"

    def __init__(self, net: Fused, what: str, table: Table, device: torch.device, kernels: Any) -> None:
        self.plan, self.kernels = Plan(table, net.dimension, tiles.LAYOUT), kernels
        self.program = net.program(what, self.plan.rows, tiles.LAYOUT)
        numbers = {
            **_code(self.program, self.plan),
            **_numbers(self.program, table, packing.tiles),
            "slot_rows": torch.tensor([*self.plan.kept.values()]),
        }
        self.there = {name: tensor.to(device).contiguous() for name, tensor in numbers.items()}

    def run(
        self, slots: list[tuple[Tensor, int]], steps: tuple[int, int], key: Key, watch: Watch | None = None
    ) -> None:
        self.kernels.trajectory(
            states=[state for state, _ in slots],
            device=self.there,
            steps=steps,
            rows=self.program.rows,
            key=key,
            broken=None if watch is None else watch.broken,
            freeze=watch is not None and watch.freeze,
        )


def _code(program: Program, plan: Plan) -> dict[str, Tensor]:
    return {"program": program.instructions, "actions": plan.actions, "evaluations": plan.bias_rows}


def _numbers(program: Program, table: Table, pack: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {
        "weights": program.weights(pack, torch.float32),
        "biases": program.biases(table.times[table.evaluate], torch.float32),
        "coef": table.coef.float(),
    }


def schedule(
    net: Fused, score: Score, table: Table, backend: str, device: torch.device, dtype: torch.dtype
) -> Schedule | GpuSchedule | TritonSchedule:
    """The table made ready for the engine, here or at an earlier call."""
    what, engine = _what(score), _engine(backend, device)

    def make() -> Schedule | GpuSchedule | TritonSchedule:
        if engine == "cpu":
            return Schedule(net, what, table, dtype)
        if engine == "cuda":
            return GpuSchedule(net, what, table, device, _cuda())
        return TritonSchedule(net, what, table, device, backends.kernels("triton"))

    return net.remembered((what, table, engine, device, dtype), make)


class FusedLoop:
    """Runs a schedule, in one native call where nothing asks for more."""

    def __init__(
        self,
        schedule: Schedule | GpuSchedule | TritonSchedule,
        table: Table,
        ends: Sequence[float],
        callback: Callback | None,
        callback_steps: set[int],
    ) -> None:
        self.schedule, self.table, self.ends = schedule, table, ends
        self.callback, self.callback_steps = callback, callback_steps
        self.steps = len(ends)

    @property
    def evaluations(self) -> int:
        return int(self.table.evaluate[: self.steps].sum())

    def __call__(
        self, x: Tensor, seed: Tensor, first_sample: int, advance: Advance | None = None, watch: Watch | None = None
    ) -> Tensor:
        kept = self.schedule.plan.kept
        slots = [(x if name == "x" else torch.zeros_like(x), row) for name, row in kept.items()]
        start = 0
        for stop in self._stops(len(x)):
            self.schedule.run(slots, (start, stop), Key(seed, first_sample, 0, 0), watch)
            if advance is not None:
                advance(stop - start)
            start = stop
            wanted = self.callback is not None and stop in self.callback_steps
            if wanted and self.callback(stop, self.ends[stop - 1], x.clone()):  # type: ignore[misc]
                self.steps = stop
                break
        return x

    def _stops(self, samples: int) -> list[int]:
        """The steps after which the engine returns: those of the callback, and often enough in between."""
        flops = self.schedule.program.flops * self.table.evaluate.sum(1)
        work, most = (flops.clamp(min=1) * samples).cumsum(0), WORK[self.schedule.device]
        ends = {self.steps}
        if work[-1] > most:
            ends |= set(((work // most).diff().nonzero()[:, 0] + 1).tolist())
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
        names += [SPARE] * bool(stage.keep)
    return list(dict.fromkeys(names))


def _actions(table: Table, row: dict[str, int]) -> list[list[int]]:
    """Each as csrc/kernels.h has it: evaluate, stage, in, out, operands, four of them, stream."""
    actions = []
    for number, stage in enumerate(table.stages):
        if stage.at is not None:
            actions.append([1, number, row[stage.at], row[stage.output], 0, 0, 0, 0, 0, 0])
        operands = [row[name] for name in stage.of]
        # What is kept is the old value, which the result must not overwrite before.
        to = row[SPARE] if stage.keep else row[stage.to]
        actions.append([0, number, 0, to, len(operands), *operands, *[0] * (4 - len(operands)), stage.stream])
        copies = [*stage.keep, (SPARE, stage.to)] if stage.keep else []
        actions += [[0, NOTHING, row[source], row[target], 0, 0, 0, 0, 0, 0] for source, target in copies]
    return actions
