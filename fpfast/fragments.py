"""Programs and weights as the CUDA kernels want them (csrc/cuda/network.h): in tiles and fragments."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fpfast.assemble import OPS, Layout, Program, up

LAYOUT = Layout(rows=8, matrix_rows=16)
PAIRS = 8  # of tiles of a matrix's rows that are summed up together
SLAB = 16  # fragments that come together; one is 512 bytes
FRAGMENT = 128  # numbers: one column tile of one pair of row tiles


def fragments(matrix: Tensor) -> Tensor:
    """[PAIRS pairs of row tiles][column tile][pair][lane][4], the numbers a lane multiplies by of both tiles.

    Lane 4 g + q has row g of a tile and columns 2 q and 2 q + 1.
    """
    rows, columns = matrix.shape
    matrix = pad(matrix, (0, -columns % LAYOUT.rows, 0, -rows % LAYOUT.matrix_rows))
    tiles = matrix.reshape(-1, 2, 8, matrix.shape[1] // 8, 4, 2)  # pair, which of it, g, column tile, q, column
    lanes = tiles.permute(3, 0, 2, 4, 1, 5)
    return torch.cat([part.reshape(-1) for part in lanes.split(PAIRS, dim=1)])


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


def shared_bytes(program: Program) -> int:
    """What a block needs of a GPU's shared memory at least: the values of one warp's 16 samples, and three slabs."""
    most = max((fragments for _, fragments in slabs(program).tolist()), default=0)
    return 64 * program.rows + 3 * 4 * FRAGMENT * most
