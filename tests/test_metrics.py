"""Distances against cases with known values, and their error bars against repetition."""

import math

import numpy
import pytest
import torch

from fpfast import metrics


def gaussian(n, mean, std, seed):
    return mean + std * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_w2_of_gaussians():
    """Between N(m, s^2 I) and N(0, I) in the plane, W2^2 = |m|^2 + 2 (s - 1)^2; sliced: half of it."""
    x, y = gaussian(3000, 1.0, 0.5, 0), gaussian(3000, 0.0, 1.0, 1)
    true = 2 * 1.0 + 2 * 0.25
    exact = metrics.w2_exact(x, y)
    assert abs(exact.value - true) < 4 * exact.error + 0.03  # the finite samples' bias
    sliced = metrics.w2_sliced(x, y, projections=200)
    assert abs(sliced.value - true / 2) < 4 * sliced.error + 0.03


def test_w2_of_moved_points_is_the_move():
    x = gaussian(300, 0.0, 1.0, 0)
    assert metrics.w2_exact(x, x + torch.tensor([3.0, 4.0])).value == pytest.approx(25)
    assert metrics.w2_exact(x, x.flip(0)).value == pytest.approx(0, abs=1e-12)


def test_grid_distances_of_moved_histograms():
    x = torch.tensor([[0.0, 0.0]] * 9 + [[1.0, 0.0]])
    grid = {"edge": 2.0, "nodes": 5}  # nodes -2, -1, 0, 1, 2
    a, b = metrics.histogram(x, **grid), metrics.histogram(x + torch.tensor([0.0, 1.0]), **grid)
    assert metrics.w2_grid(a, b).value == pytest.approx(1)
    assert metrics.total_variation(a, b).value == pytest.approx(1)
    assert metrics.density_l2(a, b).value == pytest.approx(math.sqrt(2 * (0.81 + 0.01)))
    for metric in metrics.METRICS.values():
        assert metric(a, a).value == pytest.approx(0, abs=1e-12)


def test_histogram_is_the_nearest_node_on_meshgrid_order():
    x = torch.tensor([[-3.44, 0.06], [3.49, -3.49], [3.5, 0.0], [0.0, -3.6]])
    h = metrics.histogram(x)
    line = numpy.linspace(-3.5, 3.5, 64)
    assert h.n == 2
    weights = h.weights.ravel()
    for point in x[:2].numpy():
        k = numpy.argmin(((h.points - point) ** 2).sum(1))
        assert weights[k] == 0.5
        assert numpy.allclose(h.points[k], [line[numpy.abs(line - c).argmin()] for c in point])


def test_error_bars_of_histogram_distances():
    """The reported standard error is that of repetition, within a factor 1.6 for 30 repetitions."""
    grid = {"edge": 3.0, "nodes": 12}
    for metric in metrics.METRICS.values():
        estimates = [
            metric(metrics.histogram(gaussian(2000, 0.4, 0.7, 2 * k), **grid),
                   metrics.histogram(gaussian(2000, 0.0, 0.8, 2 * k + 1), **grid))
            for k in range(30)
        ]  # fmt: skip
        spread = numpy.std([e.value for e in estimates], ddof=1)
        reported = numpy.mean([e.error for e in estimates])
        assert 1 / 1.6 < reported / spread < 1.6, metric.__name__


def test_error_bars_of_exact_transport():
    estimates = [
        metrics.w2_exact(gaussian(400, 0.8, 0.7, 2 * k), gaussian(400, 0.0, 0.8, 2 * k + 1)) for k in range(30)
    ]
    spread = numpy.std([e.value for e in estimates], ddof=1)
    assert 1 / 1.6 < numpy.mean([e.error for e in estimates]) / spread < 1.6


def mmd_of_gaussians(mean, std, other, width, d=2):
    """Between N(mean, std^2 I) and N(0, other^2 I): E k(x, y) is a Gaussian's density at mean, up to a factor."""

    def kernel(variance, shift):
        total = width**2 + variance
        return (width**2 / total) ** (d / 2) * math.exp(-d * shift**2 / (2 * total))

    return kernel(2 * std**2, 0) + kernel(2 * other**2, 0) - 2 * kernel(std**2 + other**2, mean)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.8), (0.0, 0.5), (0.0, 1.0)])
def test_mmd_of_gaussians(mean, std):
    """Unbiased, also where it is zero: the mean of 100 repetitions of 60 and 80 points, within 4 standard errors."""
    true = mmd_of_gaussians(mean, std, 1.0, 0.9)
    found = [
        metrics.mmd(gaussian(60, mean, std, 2 * k), gaussian(80, 0.0, 1.0, 2 * k + 1), bandwidth=0.9)
        for k in range(100)
    ]
    values = numpy.array([e.value for e in found])
    assert abs(values.mean() - true) < 4 * values.std(ddof=1) / 10
    if true == 0:
        assert (values < 0).any()
    # for equal laws the error is too large by sqrt(2)
    expected = values.std(ddof=1) * (math.sqrt(2) if true == 0 else 1)
    assert 1 / 1.3 < numpy.mean([e.error for e in found]) / expected < 1.3


def test_mmd_by_its_definition(monkeypatch):
    """In blocks that do not divide the sizes; far from the origin; of images as of their pixels."""
    monkeypatch.setattr(metrics, "BLOCK", 7)
    x, y = gaussian(20, 0.3, 0.7, 0) + 1e4, gaussian(31, 0.0, 1.0, 1) + 1e4

    def mean(a, b, same):
        kernel = numpy.exp(-((a[:, None] - b[None]) ** 2).sum(-1).numpy() / (2 * 0.6**2))
        return (kernel.sum() - (len(a) if same else 0)) / (len(a) * (len(b) - same))

    expected = mean(x, x, 1) + mean(y, y, 1) - 2 * mean(x, y, 0)
    assert metrics.mmd(x, y, bandwidth=0.6).value == pytest.approx(expected, rel=1e-7)
    assert metrics.mmd(y, x, bandwidth=0.6) == pytest.approx(metrics.mmd(x, y, bandwidth=0.6))
    images = metrics.mmd(x.reshape(20, 1, 2, 1), y.reshape(31, 1, 2, 1), bandwidth=0.6)
    assert images == metrics.mmd(x, y, bandwidth=0.6)


def test_mmd_takes_the_median_distance():
    x, y = torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([[0.0], [3.0], [4.0]])
    # distances that are not zero: 6 times 3 (2 threes, 3 zeros), 3 times 4, 2 times 1: the median is 3
    assert metrics.mmd(x, y) == metrics.mmd(x, y, bandwidth=3.0)


def test_total_variation_floor():
    x = metrics.histogram(gaussian(50_000, 0.0, 1.0, 0))
    floor = metrics.total_variation_floor(x, 50_000, 50_000)
    again = metrics.total_variation(x, metrics.histogram(gaussian(50_000, 0.0, 1.0, 1))).value
    assert again == pytest.approx(floor.value, abs=6 * floor.error + 0.005)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: metrics.histogram(torch.zeros(3, 3)), "x"),
        (lambda: metrics.histogram(torch.full((3, 2), math.nan)), "x"),
        (lambda: metrics.histogram(torch.full((3, 2), 9.0)), "x"),
        (lambda: metrics.histogram(torch.zeros(3, 2), nodes=1), "nodes"),
        (lambda: metrics.histogram(torch.zeros(3, 2), edge=0.0), "edge"),
        (lambda: metrics.w2_sliced(torch.zeros(3, 2), torch.zeros(3, 2), projections=0), "projections"),
        (lambda: metrics.w2_exact(torch.zeros(3, 2), torch.zeros(3, 3)), "y"),
        (lambda: metrics.w2_exact(torch.zeros(0, 2), torch.zeros(3, 2)), "x"),
        (lambda: metrics.mmd(torch.zeros(3, 2), torch.zeros(3, 3)), "y"),
        (lambda: metrics.mmd(torch.zeros(3, 2), torch.zeros(1, 2)), "y"),
        (lambda: metrics.mmd(torch.zeros(3, 2), torch.ones(3, 2), bandwidth=0.0), "bandwidth"),
        (lambda: metrics.mmd(torch.zeros(3, 2), torch.ones(3, 2), bandwidth=math.nan), "bandwidth"),
        (lambda: metrics.mmd(torch.ones(3, 2), torch.ones(3, 2)), "x, y"),
        (lambda: metrics.w2_exact(torch.zeros(30_000, 2), torch.zeros(3, 2)), "x, y"),
        (
            lambda: metrics.w2_grid(
                metrics.histogram(torch.zeros(1, 2)), metrics.histogram(torch.zeros(1, 2), nodes=9)
            ),
            "y",
        ),
    ],
)
def test_bad_input(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        call()
