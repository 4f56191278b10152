"""A program of the fused engine with its weights laid out for the native kernel, and the calls to it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fpfast import backends
from fpfast.assemble import Program
from fpfast.packing import blocks
from fpfast.reference import Key
from fpfast.watch import Watch


def obstacle(x: Tensor) -> str | None:
    """Why the engine does not serve x; None where it does."""
    if (missing := backends.BACKENDS["cpu"].missing()) is not None:
        return missing
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return f"it serves float32 and float64 on the CPU, not {x.dtype} on {x.device}"
    return None


class Packed:
    """A program with its weights as the kernel wants them."""

    def __init__(self, program: Program, dtype: torch.dtype, level: str | None) -> None:
        from fpfast.native import Cpu  # which is not there where the kernels are not built

        self.cpu = Cpu(level)
        self.program = program
        self.weights = program.weights(partial(blocks, rows=self.cpu.block_rows), dtype)

    def evaluate(self, x: Tensor, out: Tensor, biases: Tensor, per_sample: bool = False) -> None:
        """out = the program's value at x; ``biases`` has one row, or one for each sample."""
        code, rows, dimension = self.program.instructions, self.program.rows, x.shape[1]
        inputs = [(x, 0)]
        if per_sample:
            code, inputs = self.program.with_biases_at(rows), [*inputs, (biases, rows)]
            rows += biases.shape[1]
        self.cpu.trajectory(
            inputs=inputs,
            outputs=[(out, dimension)],
            program=code,
            weights=self.weights,
            biases=biases,
            actions=torch.tensor([[1, 0, 0, dimension, 0, 0, 0, 0, 0, 0]]),
            steps=(0, 1),
            evaluations=torch.zeros(1, 1, dtype=torch.int64),
            coef=torch.zeros(1, 1, 5, dtype=x.dtype),
            dimension=dimension,
            rows=rows,
        )

    def run(
        self,
        slots: list[tuple[Tensor, int]],  # [samples, d] and the first row of each; changed in place
        actions: Tensor,
        steps: tuple[int, int],
        evaluations: Tensor,
        coef: Tensor,
        biases: Tensor,
        dimension: int,
        key: Key,
        watch: Watch | None = None,
    ) -> None:
        """Steps of a trajectory; see ``native.Cpu.trajectory``."""
        self.cpu.trajectory(
            inputs=slots,
            outputs=slots,
            program=self.program.instructions,
            weights=self.weights,
            biases=biases,
            actions=actions,
            steps=steps,
            evaluations=evaluations,
            coef=coef,
            dimension=dimension,
            rows=self.program.rows,
            key=key,
            broken=None if watch is None else watch.broken,
            freeze=watch is not None and watch.freeze,
        )
