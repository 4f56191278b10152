"""How far apart ODE and SDE samples of one score are, and how far each is from the data.

Source: Deveney et al., "Closing the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation"
(arXiv 2311.15996), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpfast import data as datasets
from fpfast.errors import bad, brief, integer, real, tensor
from fpfast.metrics import METRICS, Estimate, Histogram, histogram, w2_sliced
from fpfast.sample import sample
from fpfast.score import Score

PAIRS = {
    "ODE-truth": ("ode", "truth"),
    "SDE-truth": ("sde", "truth"),
    "ODE-SDE": ("ode", "sde"),
    "floor": ("fresh", "truth"),
}
TRUTH_FACTOR = 10
SLICED_POINTS = 5_000


@dataclass(frozen=True)
class Gap:
    """Distances between ODE samples, SDE samples and data ("truth"); "floor" is a fresh draw of data against the truth.

    ``table[pair][metric]`` holds an :class:`fpfast.metrics.Estimate`; pairs are those of ``PAIRS``, metrics those of
    ``fpfast.metrics.METRICS`` and "w2_sliced" (W2 distances are squared). ``histograms`` are named by the pairs' parts.
    """

    table: dict[str, dict[str, Estimate]]
    histograms: dict[str, Histogram]
    outside: dict[str, float]  # share of the samples beyond the grid, left out of every distance
    n: int
    evaluations: int  # of the network for each batch, ODE and SDE together
    seconds: float


def _truth(data: str | Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A fresh draw and the truth: n and 10 n named samples, or the given ones shuffled, n or a third held out."""
    if isinstance(data, str):
        fresh, truth = datasets.draw(data, n, seed=seed + 1), datasets.draw(data, TRUTH_FACTOR * n, seed=seed)
        if truth.ndim != 2:
            raise bad("data", "a name of two-dimensional samples", repr(data))
        return fresh, truth
    given = tensor("data", data, "a name, or samples (n, 2)")
    if given.ndim != 2 or given.shape[1] != 2 or len(given) < 3 or given.dtype == torch.bool:
        raise bad("data", "a name, or three or more two-dimensional samples (n, 2)", brief(given))
    given = given[torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))]
    held = min(n, len(given) // 3)
    return given[:held], given[held:]


def gap(
    score: Score,
    data: str | Tensor,
    *,
    n: int = 50_000,
    noise: float = 1.0,
    seed: int = 0,
    edge: float = 3.5,
    nodes: int = 64,
    **options: Any,
) -> Gap:
    """Samples the probability-flow ODE and the reverse SDE from the same seed, so the same prior draws, and compares.

    Args:
        score: of two-dimensional samples.
        data: a name of ``fpfast.data.DATA``, or samples of the truth, (m, 2).
        n: samples of each.
        noise: the SDE's noise level.
        seed: of the samplers; the truth is drawn with it too.
        edge, nodes: the histograms' grid, see :func:`fpfast.metrics.histogram`.
        options: solver, steps, times, final, device, dtype, backend, batch_size, progress of :func:`fpfast.sample`.

    The truth has 10 n samples where it is named; of given samples, n or a third are held out for "floor". Transport and
    densities are compared on the histograms, "w2_sliced" on 5,000 samples inside their grid.
    Raises ValueError as :func:`fpfast.sample` and :func:`fpfast.metrics.histogram` do.
    """
    n = integer("n", n, 1, 2**44)
    seed = integer("seed", seed, 0, 2**63 - 2)
    if real("noise", noise, "a positive level for the SDE (the ODE has 0)", low=0) == 0:
        raise bad("noise", "a positive level for the SDE (the ODE has 0)", noise)
    fresh, truth = _truth(data, n, seed)
    ode, ode_info = sample(score, (n, 2), noise=0.0, seed=seed, return_info=True, **options)
    sde, sde_info = sample(score, (n, 2), noise=noise, seed=seed, return_info=True, **options)
    points = {"ode": ode, "sde": sde, "truth": truth, "fresh": fresh}
    grids = {name: histogram(x, edge=edge, nodes=nodes) for name, x in points.items()}
    inside = {name: x[(x.abs() < grids[name].edge).all(1)] for name, x in points.items()}
    table = {}
    for pair, (a, b) in PAIRS.items():
        table[pair] = {name: metric(grids[a], grids[b]) for name, metric in METRICS.items()}
        table[pair]["w2_sliced"] = w2_sliced(inside[a][:SLICED_POINTS], inside[b][:SLICED_POINTS])
    outside = {name: 1 - grids[name].n / len(points[name]) for name in ("ode", "sde", "truth")}
    return Gap(
        table, grids, outside, n, ode_info.evaluations + sde_info.evaluations, ode_info.seconds + sde_info.seconds
    )
