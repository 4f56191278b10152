"""The reference trajectories of ``fpfast paper noise``: closed forms against quadrature and differences, in float64."""

import math

import pytest
import torch

import fpfast
from fpfast.papers.trajectories import REFERENCES, Boxes, at, log_interval

SDE = fpfast.OU(sigma=math.sqrt(2), T=1.0)
LATE, EARLY = 0.4, 1e-3


def line(edge: float, n: int) -> torch.Tensor:
    """Midpoints of n cells of [-edge, edge]."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * edge / n) - edge


def plane(edge: float, n: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(line(edge, n), line(edge, n), indexing="ij")
    return torch.stack((columns.flatten(), rows.flatten()), dim=1)


def points(name: str, t: float, n: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    near = at(REFERENCES[name], SDE, t, n, generator)
    return torch.cat((near, near + 0.3 * torch.randn(near.shape, dtype=torch.float64, generator=generator)))


def test_log_interval_agrees_with_high_precision():
    """Values of log(Phi(b) - Phi(a)), from the asymptotic series in the far tail."""
    special = pytest.importorskip("scipy.special")
    a = torch.tensor([-1.0, 3.0, 8.0, 20.0, -21.0, 40.0, -60.0, -9.0], dtype=torch.float64)
    b = torch.tensor([2.0, 3.5, 9.0, 20.1, -20.0, 41.0, -50.0, 9.0], dtype=torch.float64)
    low, high = torch.where(a + b > 0, -b, a).numpy(), torch.where(a + b > 0, -a, b).numpy()
    small, large = special.log_ndtr(low), special.log_ndtr(high)
    want = torch.from_numpy(large) + torch.from_numpy(small - large).exp().neg().log1p()
    assert torch.allclose(log_interval(a, b), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("t", [LATE, 0.02])
def test_density_is_the_smoothed_law_of_the_data(name, t):
    """p_t(x) = E N(x; alpha X_0, std^2) by Monte Carlo, to four standard errors, and its integral is 1."""
    reference, x = REFERENCES[name], points(name, t, 5)
    alpha, std = SDE.marginal(t)
    x0 = reference.sample(50_000, torch.Generator().manual_seed(1))
    for point, log_prob in zip(x, reference.log_prob(x, SDE, t), strict=True):
        kernel = (-(((point - alpha * x0) / std) ** 2).sum(1) / 2).exp() / (2 * math.pi * std**2)
        error = kernel.std() / len(x0) ** 0.5
        assert abs(float(kernel.mean() - log_prob.exp())) < 4.5 * float(error) + 1e-4 * float(log_prob.exp())
    n = 400
    total = reference.log_prob(plane(7.0, n), SDE, t).exp().sum() * (14 / n) ** 2
    assert float(total) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("t", [LATE, EARLY])
def test_score_is_the_gradient_of_the_log_density(name, t):
    """Central differences, also at small t and where the density is exp(-2000)."""
    reference = REFERENCES[name]
    x = torch.cat((points(name, t), torch.tensor([[2.9, -2.5], [0.0, 0.1], [-3.0, 3.0]], dtype=torch.float64)))
    got = reference.gradient(x, SDE, t)
    h = 1e-5
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = h
        up, down = reference.log_prob(x + step, SDE, t), reference.log_prob(x - step, SDE, t)
        want = (up - down) / (2 * h)
        assert torch.allclose(got[:, i], want, rtol=1e-5, atol=1e-5 * float(want.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("t", [1.0, LATE, 0.01])
def test_cells_hold_the_integral_of_the_density(name, t):
    reference, edge, m, within = REFERENCES[name], 3.5, 20, 20
    masses = reference.cells(torch.linspace(-edge, edge, m + 1, dtype=torch.float64), SDE, t)
    density = reference.log_prob(plane(edge, m * within), SDE, t).exp()
    fine = density.reshape(m, within, m, within).sum((1, 3)) * (2 * edge / (m * within)) ** 2
    assert torch.allclose(masses, fine, atol=1e-4)
    assert float(masses.min()) >= 0
    far = reference.cells(torch.linspace(-9, 9, 60, dtype=torch.float64), SDE, t)
    assert float(far.sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("name", REFERENCES)
def test_nothing_breaks_far_away_and_at_tiny_times(name):
    reference = REFERENCES[name]
    x = torch.tensor([[0.0, 0.0], [50.0, -80.0], [1e3, 1e3], [-1.5, 0.4], [1.9, 0.5]], dtype=torch.float64)
    for t in (1e-8, 1e-3, 1.0):
        score, log_prob = reference.gradient(x, SDE, t), reference.log_prob(x, SDE, t)
        assert bool(score.isfinite().all())
        assert bool(log_prob.isfinite().all())
        if isinstance(reference, Boxes):  # the way to the support, divided by the variance
            far = score[2] * SDE.std(t) ** 2 / -x[2]
            assert torch.allclose(far, torch.ones(2, dtype=torch.float64), atol=0.01)
        masses = reference.cells(torch.linspace(-3.5, 3.5, 129, dtype=torch.float64), SDE, t)
        assert bool(masses.isfinite().all())
        assert float(masses.sum()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", REFERENCES)
def test_smoothing_is_a_convolution(name):
    """(p_t * N(0, w^2)) as the mean of p_t's density at shifted points, by Gauss-Hermite quadrature."""
    numpy = pytest.importorskip("numpy")
    reference, t, width = REFERENCES[name], 0.3, 0.4
    nodes, weights = map(torch.from_numpy, numpy.polynomial.hermite_e.hermegauss(40))
    shift = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2) * width
    weight = (weights[:, None] * weights[None, :]).flatten() / (2 * math.pi)
    for point in points(name, t, 4):
        want = (weight * reference.log_prob(point - shift, SDE, t).exp()).sum()
        got = reference.smooth_log_prob(point[None], SDE, t, width).exp()
        assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_float32_points_give_float32_scores():
    x = points("squares", EARLY)
    single = REFERENCES["squares"].score(SDE)(x.float(), EARLY)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), REFERENCES["squares"].gradient(x.float().double(), SDE, EARLY), rtol=1e-6)


def test_boxes_say_what_does_not_fit():
    with pytest.raises(ValueError, match="low, high: expected"):
        Boxes([[0.0, 1.0]], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="weights: expected"):
        Boxes([[0.0, 0.0]], [[1.0, 1.0]], [-1.0])
