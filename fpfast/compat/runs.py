"""Which run a sample belongs to, where nothing but the sample and its timestep is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fpfast.compat.levels import Levels
from fpfast.compat.plan import Plan
from fpfast.errors import bad, tensor

REMEMBERED = 32  # noise levels


class Place(NamedTuple):
    """A plan, which of all timesteps its first is, and the segment that comes next."""

    plan: Plan
    first: int
    segment: int

    @property
    def position(self) -> int:
        return self.first + self.segment


class Memory(NamedTuple):
    """What a run needs of earlier segments at its next one."""

    place: Place
    slots: dict[str, Tensor]
    shape: torch.Size


class Runs:
    """All runs on one grid of timesteps, in all threads.

    What a run keeps belongs to the tensor it returned, as long as that lives. A tensor that is not known continues this
    thread's last segment, if that was the one before and had samples of this shape; else a run begins.
    """

    def __init__(self, whole: Plan, timesteps: Tensor, make: Callable[[Levels, float], Plan]) -> None:
        self.whole, self.timesteps, self.make = whole, timesteps, make
        self.positions: dict[float, list[int]] = {}
        for position, value in enumerate(timesteps.tolist()):
            self.positions.setdefault(value, []).append(position)
        self.repeats = len(self.positions) < len(timesteps)
        self.later: dict[int, Plan] = {}  # plans of runs that begin at a later timestep
        self.noisier: dict[float, Plan] = {}  # and of other noise levels
        self.memories = WeakTensorKeyDictionary()
        self.thread = threading.local()  # .last: its last Memory

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, (self.whole, self.timesteps, self.make)  # a copy of a scheduler has no runs

    def forget(self) -> None:
        """This thread's last segment: what comes is another run."""
        self.thread.last = None

    def at(self, noise: float) -> Plan:
        """The plan on the same levels at another noise level."""
        if noise not in self.noisier:
            if len(self.noisier) >= REMEMBERED:
                self.noisier = {}
            self.noisier[noise] = self.make(self.whole.levels, noise)
        return self.noisier[noise]

    def find(self, timestep: float | Tensor, sample: Tensor, begin: int) -> list[int]:
        """Positions among the timesteps: one, or one for each sample if they differ.

        Of several with this timestep: where the sample's run is, else where a step begins, from ``begin`` on.
        """
        given = tensor("timestep", timestep, "a number or a tensor of numbers")
        if given.numel() == 1 or given.stride() == (0,):
            own = self.timesteps.untyped_storage().data_ptr()
            if given.untyped_storage().data_ptr() == own:
                return [int(given.storage_offset())]  # its value might be on a GPU, and need not be asked for
        values = given.detach().to("cpu").reshape(-1)
        if len(values) not in (1, len(sample)):
            raise bad("timestep", f"one timestep, or one for each of {len(sample)} samples", tuple(values.shape))
        if not self.timesteps.is_floating_point() and values.is_floating_point():
            values = values.double()
        elif self.timesteps.is_floating_point():
            values = values.to(self.timesteps.dtype)
        memory, found = self._memory(sample), []
        for value in values.tolist():
            places = self.positions.get(value)
            if places is None:
                raise bad("timestep", "one of scheduler.timesteps", value)
            if memory is not None and memory.place.position in places:
                found.append(memory.place.position)
            else:
                begins = (place for place in places if place >= begin and self.whole.segments[place].step is not None)
                found.append(next(begins, places[-1]))
        return found[:1] if len(set(found)) == 1 else found

    def resume(self, position: int, sample: Tensor) -> tuple[Place, dict[str, Tensor]]:
        """The run that a sample belongs to, and what it kept; or one that begins here."""
        memory = self._memory(sample)
        if memory is not None and memory.place.position == position:
            return memory.place, memory.slots
        segment = self.whole.segments[position]
        if segment.step is None:
            raise bad("sample", "what step returned for the timestep before", "another tensor in the middle of a step")
        if position == 0:
            return Place(self.whole, 0, 0), {}
        if position not in self.later:
            levels = np.concatenate(([segment.level], self.whole.levels[segment.step + 1 :]))
            self.later[position] = self.make(levels, self.whole.noise)
        return Place(self.later[position], position, 0), {}

    def keep(self, place: Place, slots: dict[str, Tensor], result: Tensor, seen: Sequence[Tensor]) -> None:
        """Remembers what the run at ``place``, which made ``result``, needs next; others hold the tensors ``seen``."""
        after = place.segment + 1
        self.thread.last = None
        if (place.plan.stateless and not self.repeats) or after == len(place.plan.segments):
            return
        # Not the tensors themselves, one of which may be a result that would keep its own memory alive, and nobody's
        # memory that is going to be written to.
        known = {one.untyped_storage().data_ptr() for one in (result, *seen)}
        kept = {
            name: slots[name].clone()
            if slots[name].untyped_storage().data_ptr() in known
            else slots[name].view_as(result)
            for name in place.plan.segments[after].carried
        }
        self.memories[result] = self.thread.last = Memory(place._replace(segment=after), kept, result.shape)

    def _memory(self, sample: Tensor) -> Memory | None:
        known: Memory | None = self.memories.get(sample)
        if known is None:
            known = getattr(self.thread, "last", None)
            if known is not None and known.shape != sample.shape:
                known = None
        return known
