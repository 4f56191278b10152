"""The closed forms of GaussianMixture against autograd in float64, and against its own samples."""

import pytest
import torch

import fpfast
from fpfast.sde import SDES

ALL = [sde() for sde in SDES.values()]


def mixtures():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    root = randn(3, 4, 4)
    return [
        fpfast.GaussianMixture(randn(3, 2), torch.tensor([0.3, 0.1, 0.7]), torch.tensor([1.0, 2.0, 3.0])),
        fpfast.GaussianMixture(randn(3, 4), root @ root.mT),
        fpfast.GaussianMixture(torch.zeros(1, 1), torch.zeros(1)),  # a point at 0
    ]


@pytest.mark.parametrize("sde", ALL, ids=SDES)
@pytest.mark.parametrize("gm", mixtures(), ids=["round", "full", "point"])
def test_derivatives(gm, sde):
    d = gm.means.shape[1]
    t = torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64) * sde.T
    x = gm.sample(3) + sde.std(t)[:, None] * torch.randn(3, d, dtype=torch.float64)
    torch.testing.assert_close(gm.log_prob(x, sde, t).shape, torch.Size([3]))
    for k in range(3):
        one, at = x[k : k + 1], t[k]
        gradient = torch.autograd.functional.jacobian(lambda x: gm.log_prob(x, sde, at).sum(), one)  # noqa: B023
        hessian = torch.autograd.functional.hessian(lambda x: gm.log_prob(x, sde, at).sum(), one)  # noqa: B023
        torch.testing.assert_close(gm.gradient(one, sde, at), gradient)
        torch.testing.assert_close(gm.divergence(one, sde, at)[0], hessian.reshape(d, d).trace())
        h = 1e-5 * float(at)
        for closed, f in ((gm.dt_log_prob, gm.log_prob), (gm.dt_score, gm.gradient)):
            difference = (f(one, sde, at + h) - f(one, sde, at - h)) / (2 * h)
            torch.testing.assert_close(closed(one, sde, at), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
@pytest.mark.parametrize("gm", mixtures(), ids=["round", "full", "point"])
def test_density_solves_the_fokker_planck_equation(gm, sde):
    """d_t phi = -a d - a x.s + g^2/2 (|s|^2 + div s)."""
    d = gm.means.shape[1]
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64) * sde.T
    x = sde.alpha(t)[:, None] * gm.sample(50) + sde.std(t)[:, None] * torch.randn(50, d, dtype=torch.float64)
    s, a, g2 = gm.gradient(x, sde, t), sde.a(t), sde.g2(t)
    right = -a * d - a * (x * s).sum(1) + g2 / 2 * (s.square().sum(1) + gm.divergence(x, sde, t))
    torch.testing.assert_close(gm.dt_log_prob(x, sde, t), right, rtol=1e-8, atol=1e-8)


def test_moments_are_those_of_the_samples():
    gm = mixtures()[1]
    x = gm.sample(200_000, torch.Generator().manual_seed(1))
    sde = fpfast.VP()
    x = sde.alpha(0.3) * x + sde.std(0.3) * torch.randn(x.shape, dtype=torch.float64)
    mean, covariance = gm.moments(sde, 0.3)
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.05, rtol=0.02)


def test_its_score_is_a_score():
    gm = mixtures()[0]
    score = gm.score(fpfast.VP())
    x = torch.randn(7, 2)
    torch.testing.assert_close(score(x, 0.5), gm.gradient(x, fpfast.VP(), 0.5))


@pytest.mark.parametrize(
    ("means", "covariances", "weights", "name"),
    [
        (torch.zeros(2), torch.ones(2), None, "means"),
        (torch.tensor([[float("nan")]]), torch.ones(1), None, "means"),
        (torch.zeros(2, 3), torch.ones(3), None, "covariances"),
        (torch.zeros(1, 2), -torch.eye(2)[None], None, "covariances"),
        (torch.zeros(2, 1), torch.ones(2), torch.tensor([1.0, -1.0]), "weights"),
        (torch.zeros(2, 1), torch.ones(2), torch.tensor([1.0, float("nan")]), "weights"),
    ],
)
def test_bad_mixtures(means, covariances, weights, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        fpfast.GaussianMixture(means, covariances, weights)
