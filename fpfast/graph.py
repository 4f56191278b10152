"""Steps of the loop as CUDA graphs: one step is captured, and replayed for all that do the same.

What changes from step to step is read on the device: coefficients, times and noise numbers by a *position* (step, first
sample) that each replay moves on by one step. What a step leaves for the next lies at fixed places.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fpfast.recognise import HOOKS
from fpfast.rows import Slots
from fpfast.score import Score

WARM_UP = 1  # steps of a kind that run as they are first: what a first call sets up must not be captured
SAFE = "2.13"  # torch before it takes a capture that failed for one that goes on
LEAST = 3  # replays that pay for a capture

Asked = bool | Literal["auto"]


@dataclass
class Batch:
    """What the steps of one batch work on."""

    slots: Slots
    states: list[Tensor]  # all that this run has made for states; those that no slot holds are free
    t: Tensor
    seed: Tensor
    first_sample: int
    position: Tensor | None = None  # int64 (step, first sample), from which a step takes its numbers; None: it is given


Step = Callable[[int, Batch], None]  # the number of a step: what it does, and its numbers where there is no position


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One for all runs: what torch's allocator holds is held for each stream."""
    return torch.cuda.Stream(device)


class Cuda:
    """Captures work on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, _side_stream(device)
        self.pool: Any = None

    def warm_up(self, step: Callable[[], None], slots: Slots) -> None:
        """Runs a step that fills ``slots``, on a stream of its own, as torch asks for what is captured later."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    step()
            finally:
                current.wait_stream(self.stream)
            for tensor in slots.values():
                tensor.record_stream(current)

    def capture(self, step: Callable[[], None], first: bool) -> Callable[[], None]:
        """A function that does the step's work, while the step itself does none.

        Graphs share their memory, but for a ``first`` one, which comes where no earlier one is left: torch refuses
        memory whose graphs are all gone.

        As torch.cuda.graph does it, but that waits for the GPU and gives all cached memory back, and where a step fails
        it leaves its own stream current and hides the cause. Other threads may use the GPU meanwhile: "thread_local"
        lets only this one's calls spoil the capture.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            if first:
                self.pool = torch.cuda.graph_pool_handle()
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                with suppress(RuntimeError):  # it may have been spoilt
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay


CAPTURERS: dict[str, Callable[[torch.device], Any]] = {"cuda": Cuda}  # by type of device


def obstacle(asked: Asked, score: Score, device: torch.device, backend: str) -> str | None:
    """Why no step is captured, whatever the network does when it is called; None where there is no reason."""
    if asked is False:
        return "graph is False"
    if device.type not in CAPTURERS:
        return f"the state is on {device}"
    if backend == "reference":
        return f"backend is {backend!r}"
    if asked is True:
        return None
    if torch.__version__ < SAFE:
        return (
            f"torch is older than {SAFE}; there a capture that fails leaves memory in disorder (graph=True allows that)"
        )
    if not isinstance(score.net, nn.Module):
        return None
    if (known := _failures.get(score.net)) is not None:
        return f"{known} (in an earlier run; graph=True tries again)"
    modules = list(score.net.modules())
    if any(module.training for module in modules):
        return "the network is in training mode, in which a call may change it (net.eval(), or graph=True)"
    hooked = any(getattr(module, name, None) for module in modules for name in HOOKS)
    if hooked or any(getattr(nn.modules.module, f"_global{name}") for name in HOOKS):
        return "the network has hooks, which a replay does not call (graph=True allows that)"
    return None


_failures: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # networks that could not be captured, and why


def remember_failure(score: Score, reason: str) -> None:
    """So that "auto" does not try again at each call: a capture that fails costs time, and may leave memory held."""
    if isinstance(score.net, nn.Module):
        _failures[score.net] = reason


class Captured:
    """Steps captured for batches of one length, and what they work on."""

    def __init__(self, batch: Batch, carried: set[str], position: Tensor) -> None:
        self.slots = {name: batch.slots[name].clone() for name in carried - {"x"}}
        self.slots["x"] = batch.slots["x"]  # a state, which is ours
        self.batch = replace(batch, slots=self.slots, seed=batch.seed.clone(), position=position)
        self.replays: dict[Hashable, Callable[[], None]] = {}

    def whole(self, i: int, step: Step) -> None:
        """Step ``i`` from the fixed places back to them."""
        work = replace(self.batch, slots=dict(self.slots), states=[self.slots["x"]])
        step(i, work)
        settle(self.slots, work.slots)

    def replay(self, kind: Hashable, batch: Batch) -> None:
        settle(self.slots, batch.slots)
        batch.slots = dict(self.slots)
        self.replays[kind]()


class Graphs:
    """Runs the steps of a loop, and replays them where that is worth it."""

    def __init__(
        self,
        kinds: Sequence[Hashable],  # of each step; those of one kind differ in numbers only
        carried: set[str],  # slots that a step may leave for the next
        lengths: Sequence[int],  # of all batches
        device: torch.device,
        must: bool,
    ) -> None:
        self.kinds, self.carried, self.must = kinds, carried, must
        self.reason: str | None = None  # why no more is captured
        self.replayed = self.failed = False
        of_kind = Counter(kinds)
        self.left = {(n, kind): times * of_kind[kind] for n, times in Counter(lengths).items() for kind in of_kind}
        self.warm: Counter[tuple[int, Hashable]] = Counter()
        self.capturer = CAPTURERS[device.type](device)
        self.batch: Batch | None = None
        self.setting: tuple[int, ...] = ()  # of the batch; what is captured serves no other
        self.captured: Captured | None = None
        self.position = torch.zeros(2, dtype=torch.int64, device=device)
        self.at = 0  # the step in it
        if max(self.left.values()) < WARM_UP + LEAST:
            self._give_up(f"no kind of step occurs {WARM_UP + LEAST} times")

    @property
    def missing(self) -> str | None:
        """Why nothing was replayed, or not to the end."""
        return self.reason if self.replayed or self.reason else "the run ended before a step was captured"

    def __call__(self, i: int, batch: Batch, step: Step) -> None:
        """Step ``i`` of a batch, as ``step`` does it."""
        if self.reason is None and batch is not self.batch:
            self._begin(batch)
        which = len(batch.t), self.kinds[i]
        if self._ready(i, batch):
            self._capture(i, batch, step)
        self.left[which] -= 1
        if self.captured is not None and self.kinds[i] in self.captured.replays:
            self._stand_at(i)
            self.captured.replay(self.kinds[i], batch)
            self.at, self.replayed = i + 1, True
        elif self.reason is None and self.left[which] >= LEAST:
            self._stand_at(i)
            placed = replace(batch, position=self.position)  # else a kernel would be new to the capture
            self.capturer.warm_up(lambda: self._moving_on(lambda: step(i, placed)), batch.slots)
            self.at = i + 1
            self.warm[which] += 1
        else:
            step(i, batch)

    def _ready(self, i: int, batch: Batch) -> bool:
        """If step ``i`` is to be captured now."""
        which = len(batch.t), self.kinds[i]
        if self.reason is not None or self.left[which] < LEAST or self.warm[which] < WARM_UP:
            return False
        if self.captured is not None:
            return self.kinds[i] not in self.captured.replays
        return self.carried <= batch.slots.keys()

    def _stand_at(self, i: int) -> None:
        if self.at != i:
            self.position[:1].fill_(i)
            self.at = i

    def _moving_on(self, step: Callable[[], None]) -> None:
        step()
        self.position[:1].add_(1)

    def _begin(self, batch: Batch) -> None:
        last = batch.first_sample + len(batch.t) - 1
        setting = len(batch.t), batch.first_sample >> 32, last >> 32  # see Combine in csrc/kernels.h
        if setting != self.setting:
            self.captured = None
        elif self.captured is not None:
            self.captured.batch.seed.copy_(batch.seed)
        self.position[1:].fill_(batch.first_sample)
        self.batch, self.setting = batch, setting

    def _capture(self, i: int, batch: Batch, step: Step) -> None:
        self._stand_at(i)
        captured = self.captured or Captured(batch, self.carried, self.position)
        try:
            whole = functools.partial(self._moving_on, lambda: captured.whole(i, step))
            replay = self.capturer.capture(whole, first=self.captured is None)
        except Exception as error:  # whatever the network may raise: it runs as it is, or the user is told
            self.failed = True
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0], error)
        else:
            self.captured = captured
            captured.replays[self.kinds[i]] = replay

    def _give_up(self, reason: str, cause: Exception | None = None) -> None:
        self.reason, self.captured = reason, None
        if self.must and not self.replayed:
            raise cannot(reason) from cause


def cannot(reason: str) -> RuntimeError:
    return RuntimeError(f"graph: True, but no step can be captured: {reason}")


def settle(fixed: Slots, slots: Slots) -> None:
    """Copies what ``slots`` hold to the fixed places of their names, to each after what is needed of its old value."""
    names = fixed.keys() & slots.keys()  # at the beginning of a batch there are not all yet
    moves = [(fixed[name], slots[name]) for name in names if fixed[name] is not slots[name]]
    while moves:
        needed = {id(of) for _, of in moves}
        number = next((k for k, (to, _) in enumerate(moves) if id(to) not in needed), None)
        if number is None:  # they change places
            moves[0] = (moves[0][0], moves[0][1].clone())
        else:
            to, of = moves.pop(number)
            to.copy_(of)
