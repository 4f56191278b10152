"""Distances between sets of samples, each with an error bar. Optimal transport is POT's.                    METRICS"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
from torch import Tensor

from fpfast.errors import bad, integer, real, tensor

REPLICATES = 20
EXACT_LIMIT = 20_000
PIVOTS = 10**8  # of the network simplex; it stops when it is done
BLOCK = 1024  # rows of a kernel matrix at a time
MEDIAN_POINTS = 1000  # of each set, for the median of distances
TINY = 1e-100  # a length whose square is more than 0


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Histogram:
    """Weights (nodes, nodes) on the nodes of [-edge, edge]^2, rows x_2, columns x_1, that sum to 1; from n samples."""

    weights: numpy.ndarray
    edge: float
    n: int

    @property
    def points(self) -> numpy.ndarray:
        """The nodes in the order of ``weights.ravel()``, (nodes^2, 2)."""
        line = numpy.linspace(-self.edge, self.edge, len(self.weights))
        return numpy.stack(numpy.meshgrid(line, line), axis=-1).reshape(-1, 2)

    @property
    def cell(self) -> float:
        """Area of one cell."""
        return (2 * self.edge / (len(self.weights) - 1)) ** 2

    def resampled(self, generator: numpy.random.Generator) -> Histogram:
        """A histogram of n new samples of this one."""
        counts = generator.multinomial(self.n, self.weights.ravel() / self.weights.sum())
        return Histogram((counts / self.n).reshape(self.weights.shape), self.edge, self.n)


def histogram(x: Tensor, *, edge: float = 3.5, nodes: int = 64) -> Histogram:
    """Counts of 2-D samples at the nearest nodes of a square grid; samples with any |x_i| >= edge are left out.

    This is the histogram of Deveney et al. (arXiv 2311.15996), 64 x 64 nodes on [-3.5, 3.5]^2.
    Raises ValueError for a shape other than (n, 2), values that are not finite, or no sample inside.
    """
    points = _points("x", x)
    if points.shape[1] != 2:
        raise bad("x", "samples of shape (n, 2)", points.shape)
    nodes = integer("nodes", nodes, 2, 2**13)
    edge = real("edge", edge, "a positive number", TINY, 1 / TINY)
    inside = points[(numpy.abs(points) < edge).all(axis=1)]
    if len(inside) == 0:
        raise bad("x", f"samples inside [-{edge}, {edge}]^2", "none")
    index = numpy.rint((inside + edge) * ((nodes - 1) / (2 * edge))).astype(numpy.int64)
    counts = numpy.bincount(index[:, 1] * nodes + index[:, 0], minlength=nodes * nodes)
    return Histogram((counts / len(inside)).reshape(nodes, nodes), edge, len(inside))


def _points(name: str, x: Tensor) -> numpy.ndarray:
    x = tensor(name, x, "samples").detach().cpu()
    if x.is_complex():
        raise bad(name, "real samples", x.dtype)
    if x.ndim < 2 or len(x) == 0:
        raise bad(name, "samples of shape (n, ...) with n >= 1", tuple(x.shape))
    if not bool(x.isfinite().all()):
        raise bad(name, "finite samples", f"{int((~x.isfinite()).flatten(1).any(1).sum())} of {len(x)} are not")
    return x.double().flatten(1).numpy()


def _pair(x: Tensor, y: Tensor) -> tuple[numpy.ndarray, numpy.ndarray]:
    a, b = _points("x", x), _points("y", y)
    if a.shape[1] != b.shape[1]:
        raise bad("y", f"samples of the size of x, {a.shape[1]}", b.shape[1])
    return a, b


def _transport(p: numpy.ndarray, q: numpy.ndarray, cost: numpy.ndarray, n: int, m: int) -> Estimate:
    """Exact transport cost. The standard error is the delta method's: with the dual potentials u, v of the optimum,

    variance = Var_p(u) / n + Var_q(v) / m (Sommerfeld & Munk, "Inference for empirical Wasserstein distances", 2018).
    """
    import ot  # here, because POT takes longer to import than the rest of the package

    value, log = ot.emd2(p, q, cost, log=True, numItermax=PIVOTS)
    if log["warning"] is not None:
        raise RuntimeError(f"optimal transport did not converge: {log['warning']}")
    u, v = log["u"], log["v"]
    variance = (p @ u**2 - (p @ u) ** 2) / n + (q @ v**2 - (q @ v) ** 2) / m
    return Estimate(max(float(value), 0.0), math.sqrt(max(float(variance), 0.0)))


def w2_exact(x: Tensor, y: Tensor) -> Estimate:
    """Squared Wasserstein-2 distance between two sets of points (n, ...), (m, ...), by exact transport (POT's emd2).

    Memory is 8 n m bytes; n and m may be at most 20,000. The value is biased upward by the finite samples.
    """
    import ot

    a, b = _pair(x, y)
    if max(len(a), len(b)) > EXACT_LIMIT:
        raise bad("x, y", f"at most {EXACT_LIMIT} samples each (else w2_grid or w2_sliced)", (len(a), len(b)))
    return _transport(ot.unif(len(a)), ot.unif(len(b)), ot.dist(a, b), len(a), len(b))


def w2_grid(x: Histogram, y: Histogram) -> Estimate:
    """Squared Wasserstein-2 distance between two histograms on one grid, by exact transport between their nodes."""
    import ot

    _same_grid(x, y)
    p, q, points = x.weights.ravel(), y.weights.ravel(), x.points
    cost = ot.dist(points[p > 0], points[q > 0])
    p, q = p[p > 0], q[q > 0]
    return _transport(p / p.sum(), q / q.sum(), cost, x.n, y.n)


def w2_sliced(x: Tensor, y: Tensor, *, projections: int = 32, seed: int = 0) -> Estimate:
    """Sliced squared Wasserstein-2 distance: the mean over random directions of the one-dimensional one.

    The error is the standard deviation over replicates with new directions and resampled points.
    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015).
    """
    import ot

    a, b = _pair(x, y)
    projections = integer("projections", projections, 1, 2**20)
    generator = numpy.random.default_rng(integer("seed", seed, 0))

    def once(a: numpy.ndarray, b: numpy.ndarray) -> float:
        directions = generator.standard_normal((a.shape[1], projections))
        directions /= numpy.linalg.norm(directions, axis=0)
        return float(ot.wasserstein_1d(a @ directions, b @ directions, p=2).mean())

    value = once(a, b)
    again = [once(generator.choice(a, len(a)), generator.choice(b, len(b))) for _ in range(REPLICATES // 2)]
    return Estimate(value, float(numpy.std(again, ddof=1)))


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> Estimate:
    """Squared maximum mean discrepancy between the laws of two sets of points (n, ...), (m, ...); unbiased:

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j),
        k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))

    (Gretton et al., "A kernel two-sample test", 2012, eq. 3.) Its mean is 0 for equal laws, so it may be negative.
    The error is the infinitesimal jackknife's, from each point's influence; for equal laws, where influences are noise
    alone, it is too large, by sqrt(2).

    Args:
        x, y: at least two points each.
        bandwidth: default: the median distance among the first 1,000 points of both sets together, without those that
            are equal. Give one for values that are to be compared.

    Time grows as (n + m)^2, memory as n + m. Raises ValueError for shapes that do not fit, a bandwidth out of range,
    or points that are all the same where it is to be found.
    """
    a, b = _pair(x, y)
    for name, points in (("x", a), ("y", b)):
        if len(points) < 2:
            raise bad(name, "two samples or more", len(points))
    centre = b.mean(axis=0)  # against cancellation in the distances
    a, b = a - centre, b - centre
    width = (
        _median_distance(a, b)
        if bandwidth is None
        else real("bandwidth", bandwidth, "a positive number", TINY, 1 / TINY)
    )
    n, m = len(a), len(b)
    xx, xy = _kernel_sums(a, a, width) - 1, _kernel_sums(a, b, width)  # k(x, x) = 1 is left out
    yy, yx = _kernel_sums(b, b, width) - 1, _kernel_sums(b, a, width)
    of_x, of_y = xx / (n - 1) - xy / m, yy / (m - 1) - yx / n
    variance = 4 * (of_x.var(ddof=1) / n + of_y.var(ddof=1) / m)
    return Estimate(float(of_x.mean() + of_y.mean()), math.sqrt(float(variance)))


def _squared_distances(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    return numpy.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T), 0.0)


def _kernel_sums(a: numpy.ndarray, b: numpy.ndarray, width: float) -> numpy.ndarray:
    """sum_j k(a_i, b_j) for each i."""
    sums = numpy.zeros(len(a))
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            squares = _squared_distances(a[i : i + BLOCK], b[j : j + BLOCK])
            if a is b and i == j:
                numpy.fill_diagonal(squares, 0.0)  # rounding leaves something there
            sums[i : i + BLOCK] += numpy.exp(squares / (-2 * width**2)).sum(axis=1)
    return sums


def _median_distance(a: numpy.ndarray, b: numpy.ndarray) -> float:
    both = numpy.concatenate((a[:MEDIAN_POINTS], b[:MEDIAN_POINTS]))
    squares = _squared_distances(both, both)[numpy.triu_indices(len(both), 1)]
    apart = squares[squares > 1e-12 * (both**2).sum(1).max()]
    if len(apart) == 0:
        raise bad("x, y", "points that differ, where no bandwidth is given", "points that are all the same")
    return math.sqrt(float(numpy.median(apart)))


def _same_grid(x: Histogram, y: Histogram) -> None:
    for name, h in (("x", x), ("y", y)):
        if not isinstance(h, Histogram):
            raise TypeError(f"{name}: expected a Histogram (see histogram), got {type(h).__name__}")
    if x.edge != y.edge or x.weights.shape != y.weights.shape:
        raise bad("y", f"a histogram on {x.weights.shape} nodes to {x.edge}", f"{y.weights.shape} to {y.edge}")


def _bootstrapped(x: Histogram, y: Histogram, f: Callable[[Any], float]) -> Estimate:
    """f of the weights' difference, and its standard deviation over resampled histograms."""
    _same_grid(x, y)
    generator = numpy.random.default_rng(0)
    again = [f(x.resampled(generator).weights - y.resampled(generator).weights) for _ in range(REPLICATES)]
    return Estimate(f(x.weights - y.weights), float(numpy.std(again, ddof=1)))


def total_variation(x: Histogram, y: Histogram) -> Estimate:
    """Half the sum of absolute differences of two histograms, in [0, 1]; error by bootstrap."""
    return _bootstrapped(x, y, lambda difference: 0.5 * float(numpy.abs(difference).sum()))


def density_l2(x: Histogram, y: Histogram) -> Estimate:
    """L2 distance of the histograms as densities, (integral of (p - q)^2)^(1/2); error by bootstrap."""
    return _bootstrapped(x, y, lambda difference: math.sqrt(float((difference**2).sum()) / x.cell))


def total_variation_floor(x: Histogram, n: int, m: int) -> Estimate:
    """Mean and standard deviation of the total variation between histograms of n and of m samples that share the law x:

    what multinomial noise alone gives.
    """
    n, m = integer("n", n, 1), integer("m", m, 1)
    generator = numpy.random.default_rng(0)
    p = x.weights.ravel() / x.weights.sum()
    draws = [
        0.5 * float(numpy.abs(generator.multinomial(n, p) / n - generator.multinomial(m, p) / m).sum())
        for _ in range(REPLICATES)
    ]
    return Estimate(float(numpy.mean(draws)), float(numpy.std(draws, ddof=1)))


METRICS: dict[str, Callable[[Histogram, Histogram], Estimate]] = {
    "w2_grid": w2_grid,
    "total_variation": total_variation,
    "density_l2": density_l2,
}
