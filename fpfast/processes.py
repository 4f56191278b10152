"""Processes that share a run, as ``torchrun`` starts them. Without torchrun there is one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """``rank`` is this one's number among ``count``."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Of ``total`` items those of this process: as even as can be, in the order of the ranks."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the tensors, those of one dtype in one message, by their sums over all processes."""
        together: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors if self.count > 1 else ():
            together.setdefault(tensor.dtype, []).append(tensor)
        for group in together.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            for tensor, summed in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the tensors by those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def gather(self, part: Tensor, total: int) -> Tensor | None:
        """At the first process the parts of all, each as long as its :meth:`share` of ``total``; None elsewhere."""
        if self.count == 1:
            return part
        if not self.first:
            dist.send(part.contiguous(), 0)
            return None
        parts = [part]
        for rank in range(1, self.count):
            size = len(Processes(rank, self.count).share(total))
            parts.append(part.new_empty(size, *part.shape[1:]))
            dist.recv(parts[-1], rank)
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def join(device: str | torch.device | None = None) -> Processes:
    """This process among those that torchrun has started; gloo joins them on the CPU, nccl on GPUs, one for each.

    ``device``: default: the CPU.
    """
    where = torch.device(device or "cpu")
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Processes(device=where)
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun's word for it; there is no other
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), where)


def leave() -> None:
    """Ends what :func:`join` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
