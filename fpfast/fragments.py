"""Programs as the CUDA kernels want them (csrc/cuda/network.h): in tiles, their matrices in slabs."""

from __future__ import annotations

import torch
from torch import Tensor

from fpfast.assemble import OPS, Layout, Program
from fpfast.packing import FRAGMENT, PAIRS, TILE, up

LAYOUT = Layout(rows=TILE, matrix_rows=2 * TILE)
SLAB = 16  # fragments that come together; one is 512 bytes


def slabs(program: Program) -> Tensor:
    """[n, 2] int64: where slabs of weights begin and their fragments, in the order in which the program needs them."""
    found = []
    for op, _, _, _, _, _, rows, columns, start, _, _ in program.instructions.tolist():
        if op != OPS["linear"]:
            continue
        pairs, tiles = up(rows, 16) // 16, up(columns, 8) // 8
        for first in range(0, pairs, PAIRS):
            together = min(PAIRS, pairs - first)
            step = SLAB // together
            for tile in range(0, tiles, step):
                found.append((start, min(step, tiles - tile) * together))
                start += found[-1][1] * FRAGMENT
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)


def shared_bytes(program: Program, before: int) -> int:
    """What a block needs of a GPU's shared memory at least: the values of one warp's 16 samples, and three slabs.

    ``before``: rows of the state before a step, where it is kept.
    """
    most = max((fragments for _, fragments in slabs(program).tolist()), default=0)
    return 64 * (program.rows + before) + 3 * 4 * FRAGMENT * most
