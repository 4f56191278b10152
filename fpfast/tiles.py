"""Programs and weights as the Triton kernel wants them (kernels/trajectory.py): in square tiles."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from fpfast.assemble import Layout

SIDE = 16  # of a tile
LAYOUT = Layout(rows=SIDE, matrix_rows=SIDE)


def tiles(matrix: Tensor) -> Tensor:
    """[row tile][column tile][column][row]."""
    rows, columns = matrix.shape
    matrix = pad(matrix, (0, -columns % SIDE, 0, -rows % SIDE))
    return matrix.unflatten(1, (-1, SIDE)).unflatten(0, (-1, SIDE)).permute(0, 2, 3, 1)
