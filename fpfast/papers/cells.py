"""Distances of a sample from a law whose mass in every cell of a grid is known exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fpfast.metrics import Histogram, w2_grid

EDGE = 3.5  # grids cover [-EDGE, EDGE]^2
TV_FACTOR, W2_FACTOR = 2, 4  # cells on a side that are joined first
NEGLIGIBLE = 1e-6  # mass of cells that transport leaves out


class Distances(NamedTuple):
    """l2: Int (q - p)^2 / Int p^2, unbiased, so it may be negative; tv in [0, 1]; w2: squared, NaN if not asked for.

    q is the sample's law, p the exact one, both averaged over cells. tv and w2 are those of the histogram itself, with
    the bias of a finite sample in them: see what a sample of p has (the floor).
    """

    l2: float
    tv: float
    w2: float
    outside: float  # share of the sample beyond the grid


def edges(cells: int) -> Tensor:
    return torch.linspace(-EDGE, EDGE, cells + 1, dtype=torch.float64)


def shares(x: Tensor, cells: int) -> Tensor:
    """Share of the samples (n, 2) in each cell, (cells, cells), rows x_2; what is beyond the grid is in none."""
    index = ((x.double() + EDGE) * (cells / (2 * EDGE))).floor()
    index = index[((index >= 0) & (index < cells)).all(1)].long()
    return torch.bincount(index[:, 1] * cells + index[:, 0], minlength=cells**2).reshape(cells, cells) / float(len(x))


def squared_difference(share: Tensor, n: int, exact: Tensor) -> float:
    """Sum over cells of (q - p)^2 by the unbiased (share - p)^2 - share (1 - share) / (n - 1), n samples."""
    return float(((share - exact) ** 2 - share * (1 - share) / (n - 1)).sum())


def joined(masses: Tensor, factor: int) -> Tensor:
    m = len(masses) // factor
    return masses.reshape(m, factor, m, factor).sum((1, 3))


def _w2(share: Tensor, exact: Tensor, n: int) -> float:
    edge = EDGE * (1 - 1 / len(share))  # centres of cells are the nodes of Histogram
    exact = torch.where(exact < NEGLIGIBLE, 0.0, exact)
    return w2_grid(Histogram(share.numpy(), edge, n), Histogram(exact.numpy(), edge, n)).value


def distances(x: Tensor, exact: Tensor, w2: bool = True) -> Distances:
    """``exact``: masses (m, m) of p on the grid of ``edges(m)``, m a multiple of 4. x: (n, 2), finite or not."""
    share = shares(x, len(exact))
    inside = float(share.sum())
    l2 = squared_difference(share, len(x), exact) / float((exact**2).sum())
    tv = 0.5 * float((joined(share, TV_FACTOR) - joined(exact, TV_FACTOR)).abs().sum()) + 0.5 * (1 - inside)
    transport = math.nan
    if w2 and inside > 0:
        transport = _w2(joined(share, W2_FACTOR), joined(exact, W2_FACTOR), len(x))
    return Distances(l2, tv, transport, 1 - inside)


def l2_noise(exact: Tensor, n: int) -> float:
    """Standard deviation of ``Distances.l2`` of n samples of p itself: that of a sum of squares of multinomial shares,

    (2 sum p^2)^(1/2) / n up to O(sum p^3), divided by sum p^2.
    """
    total = float((exact**2).sum())
    return math.sqrt(2 * total) / n / total
