"""How kernels want matrices and the sums of their gradients; and the memory that a GPU's residuals work in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 8  # rows and columns of a GPU's tiles (csrc/cuda/tile.h); a matrix has pairs of row tiles
PAIRS = 8  # of them are summed up together by the trajectory kernel
FRAGMENT = 128  # numbers: one column tile of one pair of row tiles
SIDE = 16  # of Triton's tiles (kernels/tiles.py)
POINTS = 128  # of a residual's block of threads
TOGETHER = 2  # blocks on a multiprocessor
SCRATCH = 1 << 30  # bytes that the blocks' values and sums may take, and a sixteenth of the GPU's memory


def up(count: int, granule: int) -> int:
    return -(-count // granule) * granule


def blocks(matrix: Tensor, rows: int) -> Tensor:
    """As the CPU's kernels want it: [block][column][row], the last block with the rows that are left."""
    return torch.cat([block.mT.reshape(-1) for block in matrix.split(rows)])


def fragments(matrix: Tensor, pairs: int = PAIRS) -> Tensor:
    """[``pairs`` pairs of row tiles][column tile][pair][lane][4], the numbers a lane multiplies by of both tiles.

    Lane 4 g + q has row g of a tile and columns 2 q and 2 q + 1.
    """
    rows, columns = matrix.shape
    matrix = pad(matrix, (0, -columns % TILE, 0, -rows % (2 * TILE)))
    tiles = matrix.reshape(-1, 2, TILE, matrix.shape[1] // TILE, 4, 2)  # pair, which of it, g, column tile, q, column
    lanes = tiles.permute(3, 0, 2, 4, 1, 5)
    return torch.cat([part.reshape(-1) for part in lanes.split(pairs, dim=1)])


def tiles(matrix: Tensor) -> Tensor:
    """As Triton's kernels want it: [row tile][column tile][column][row], square tiles."""
    rows, columns = matrix.shape
    matrix = pad(matrix, (0, -columns % SIDE, 0, -rows % SIDE))
    return matrix.unflatten(1, (-1, SIDE)).unflatten(0, (-1, SIDE)).permute(0, 2, 3, 1)


class Packing(Protocol):
    """How residuals want matrices, and what they sum up for the gradients."""

    rows: ClassVar[int]  # values and vectors take multiples of so many

    def matrix(self, index: Tensor) -> Tensor:
        """The numbers of a matrix's entries in the order of the packed matrix; -1 where it has a zero."""

    def sums(self, rows: int, columns: int) -> Tensor:
        """Where the kernel's sums have the entries of a matrix's gradient, [rows, columns]."""


@dataclass(frozen=True)
class Blocks:
    """The CPU's: blocks of rows, [block][column][row], the last one with the rows that are left."""

    block_rows: int
    rows: ClassVar[int] = 1

    def matrix(self, index: Tensor) -> Tensor:
        return blocks(index, self.block_rows)

    def sums(self, rows: int, columns: int) -> Tensor:
        return torch.arange(rows * columns).reshape(rows, columns)


@dataclass(frozen=True)
class Fragments:
    """The packing of residuals (csrc/cuda/jets.h): a matrix's pairs of row tiles one after the other."""

    rows: ClassVar[int] = TILE

    def matrix(self, index: Tensor) -> Tensor:
        return fragments(index + 1, pairs=1) - 1  # what it is padded with becomes -1

    def sums(self, rows: int, columns: int) -> Tensor:
        """[pair of row tiles][column tile][lane][4]: rows g and g + 8, columns 2 q and 2 q + 1 of lane 4 g + q."""
        r, k = torch.arange(rows)[:, None], torch.arange(columns)
        tile, lane = r // 16 * (up(columns, 8) // 8) + k // 8, 4 * (r % 8) + k % 8 // 2
        return tile * FRAGMENT + 4 * lane + 2 * (r % 16 // 8) + k % 2


@dataclass(frozen=True)
class Tiles:
    """The packing of Triton's residuals (kernels/residual.py)."""

    rows: ClassVar[int] = SIDE

    def matrix(self, index: Tensor) -> Tensor:
        return tiles(index + 1).reshape(-1) - 1  # what it is padded with becomes -1

    def sums(self, rows: int, columns: int) -> Tensor:
        """[row tile][column tile][row][column]."""
        r, k = torch.arange(rows)[:, None], torch.arange(columns)
        tile = r // SIDE * (up(columns, SIDE) // SIDE) + k // SIDE
        return tile * SIDE**2 + r % SIDE * SIDE + k % SIDE


class Scratch(NamedTuple):
    """What the blocks of a GPU's residual have of their own."""

    values: Tensor  # [blocks, n]: jets and adjoints of their points
    sums: Tensor | None  # [blocks, n], for gradients
    losses: Tensor | None  # [blocks], float64

    @staticmethod
    def of(tensors: dict[str, Tensor | None], numbers: dict[str, int | float], processors: int, memory: int) -> Scratch:
        """For a call of ``native.Cuda.residual`` on a GPU with so many multiprocessors and bytes."""
        x = tensors["x"]
        assert x is not None
        size = POINTS * int(numbers["jets"] + numbers["adjoints"]) * int(numbers["columns"])
        sums, losses = (tensors[name] is not None for name in ("gradient", "loss"))
        room = min(SCRATCH, memory // 16) // (4 * (size + sums * int(numbers["sum_count"])))
        blocks = max(1, min(-(-len(x) // POINTS), TOGETHER * processors, room))
        return Scratch(
            x.new_empty(blocks, size),
            x.new_empty(blocks, max(int(numbers["sum_count"]), TILE)) if sums else None,
            x.new_empty(blocks, dtype=torch.float64) if losses else None,
        )
