"""Losses: their values where they are known, what their expectations are, and that training by them works."""

import math

import pytest
import torch
from test_residual import network
from torch import nn

import fpfast
from fpfast import losses
from fpfast.network import MLP
from fpfast.sde import SDES

ALL = [sde() for sde in SDES.values()]


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_dsm_of_the_exact_score(sde, weighting):
    """Data at 0: the score is the target. Data N(0, c I): d lambda alpha^2 c / (std^2 v), v = alpha^2 c + std^2."""
    n, d, c = 40_000, 2, 0.7
    t = torch.full((n,), sde.T / 3, dtype=torch.float64)
    point = fpfast.GaussianMixture(torch.zeros(1, d), torch.zeros(1))
    assert float(losses.dsm(point.score(sde), torch.zeros(50, d).double(), weighting=weighting, seed=0)) < 1e-20
    wide = fpfast.GaussianMixture(torch.zeros(1, d), torch.tensor([c]))
    x0 = wide.sample(n, torch.Generator().manual_seed(0))
    alpha, std = sde.marginal(sde.T / 3)
    weight = {"uniform": 1.0, "likelihood": float(sde.g2(sde.T / 3)), "noise": float(std**2)}[weighting]
    want = d * weight * float(alpha**2 * c / (std**2 * (alpha**2 * c + std**2)))
    got = float(losses.dsm(wide.score(sde), x0, weighting=weighting, t=t, seed=0))
    assert abs(got / want - 1) < 5 * math.sqrt(2 / (n * d))


def test_times_and_points():
    for sde in ALL:
        t = losses.random_times(sde, 10_000, seed=0)
        assert sde.t_min <= float(t.min()) < float(t.max()) <= sde.T
        assert abs(float((t - sde.t_min).mean()) / (sde.T - sde.t_min) - 0.5) < 0.02
    x = losses.box((10_000, 3), 4.0, seed=0)
    assert 3.99 < float(x.abs().max()) <= 4
    assert torch.equal(x, losses.box((10_000, 3), 4.0, seed=0))
    x, z = losses.perturb(fpfast.VP(), torch.zeros(5, 3), torch.full((5,), 0.5), seed=1)
    torch.testing.assert_close(x, z * float(fpfast.VP().std(0.5)))


@pytest.mark.parametrize("form", ["score", "log_density"])
@pytest.mark.parametrize("estimator", ["hutchinson", "hutchpp", "taylor", "martingale"])
def test_product_is_unbiased_and_square_is_not(estimator, form):
    """Expectations over probes, by many points at one place; the square's excess is the variance of an estimate."""
    # The density of another process, so that there is a residual.
    means = torch.tensor([[1.0, 0.5, 0.0, -1.0], [-1.0, 1.0, 0.5, 1.0]])
    gm, other = fpfast.GaussianMixture(means, torch.tensor([0.1, 0.2])), fpfast.SubVP()
    score = fpfast.Score(lambda x, t: gm.log_prob(x, other, t), fpfast.VP(), "potential")
    n, probes = 6000, 3 if estimator == "hutchpp" else 1
    x, t = torch.tensor([[0.2, 0.3, 0.1, -0.2]], dtype=torch.float64).expand(n, 4), 0.2
    exact = fpfast.fp_residual(score, x[:1], t, form=form, estimator="exact").value
    want = float(exact.square().sum())
    options = {"form": form, "estimator": estimator, "probes": probes, "distribution": "normal"}
    single = [fpfast.fp_residual(score, x, t, seed=seed, **options).value for seed in (0, 1)]
    squares = [y.reshape(n, -1).square().sum(1) for y in single]
    products = (single[0] * single[1]).reshape(n, -1).sum(1)
    error = float(products.std()) / math.sqrt(n)
    product, square = (
        float(losses.fp_regulariser(score, x, t, seed=2, unbiased=unbiased, **options).detach())
        for unbiased in (True, False)
    )
    assert abs(product - want) < 5 * error + 1e-4 * want
    excess = float(squares[0].mean()) - want
    assert excess > 10 * error
    assert abs(square - want - excess) < 8 * float(squares[0].std()) / math.sqrt(n)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_exact_regulariser(weighting):
    score = network(3, "score")
    x, t = torch.randn(10, 3, dtype=torch.float64), torch.linspace(0.1, 1, 10, dtype=torch.float64)
    residual = fpfast.fp_residual(score, x, t, estimator="exact").value.square().sum(1)
    want = losses.WEIGHTINGS[weighting](score.sde, t) * residual
    for unbiased in (True, False):
        got = losses.fp_regulariser(score, x, t, weighting=weighting, unbiased=unbiased)
        torch.testing.assert_close(got, want.mean())
        part = losses.fp_regulariser(score, x, t, weighting=weighting, unbiased=unbiased, fraction=0.4)
        torch.testing.assert_close(part, want[:4].mean())


def test_fp_diffusion():
    score = network(3, "score")
    score.net.requires_grad_(True)
    x, t = torch.randn(6, 3, dtype=torch.float64), torch.linspace(0.1, 1, 6, dtype=torch.float64)
    sde = score.sde
    eps = fpfast.fp_residual(score, x, t, estimator="exact").value.norm(dim=1)
    s, div = score(x, t).detach(), fpfast.divergence(score, x, t, estimator="exact").value
    u = sde.g2(t) / 2 * (div + s.square().sum(1)) - sde.a(t) * (x * s).sum(1)
    for m in (1.0, 2.0):
        want = 0.15 * (sde.g2(t) * eps**m).mean() / 3**m + 0.01 * u.norm()
        got = losses.fp_diffusion(score, x, t, m=m, estimator="exact")
        torch.testing.assert_close(got.detach(), want)
    for estimator in ("hutchinson", "hutchpp"):
        losses.fp_diffusion(score, x, t, estimator=estimator, seed=0).backward()
    assert all(bool(p.grad.isfinite().all()) for p in score.net.parameters() if p.grad is not None)


def test_training_lowers_the_residual():
    """A few hundred steps on a mixture: with the regulariser the residual ends lower, at little cost in the loss."""
    sde = fpfast.OU(T=3.0)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    gm = fpfast.GaussianMixture(means, torch.tensor([0.1, 0.1]))
    data = gm.sample(4000, torch.Generator().manual_seed(0)).float()
    found = {}
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        net = MLP(2, [32, 32], activation="tanh", potential=True)
        score = fpfast.Score(net, sde, "potential")
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        for step in range(300):
            x0 = data[torch.randint(len(data), (128,), generator=torch.Generator().manual_seed(step))]
            loss = losses.dsm(score, x0, weighting="noise", seed=step)
            if weight:
                t = losses.random_times(sde, 64, seed=step)
                x, _ = losses.perturb(sde, x0[:64], t, seed=step)
                loss = loss + weight * losses.fp_regulariser(score, x, t, form="log_density", weighting="noise")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        t = losses.random_times(sde, 1000, seed=-1 % 2**64)
        x, _ = losses.perturb(sde, data[:1000], t, seed=7)
        residual = fpfast.fp_residual(score, x, t, form="log_density").value
        found[weight] = (
            float((sde.std(t) ** 2 * residual.square()).mean()),
            float(losses.dsm(score, data, weighting="noise", seed=9).detach()),
        )
    assert found[0.1][0] < 0.7 * found[0.0][0]
    assert found[0.1][1] < 1.1 * found[0.0][1]


X = torch.randn(3, 2)
BAD = [
    (lambda s: losses.dsm(s, X, weighting="none"), "weighting: expected one of 'uniform', 'likelihood', 'noise'"),
    (lambda s: losses.dsm(s, X, t=torch.rand(2)), r"t: expected a number or shape \(3,\)"),
    (lambda s: losses.dsm(s, X, t=torch.full((3,), 2.0)), "t: expected times in"),
    (lambda s: losses.fp_regulariser(s, X, 0.5, fraction=0.0), r"fraction: expected a number in \(0, 1\]"),
    (lambda s: losses.fp_regulariser(s, X, 0.5, fraction=1.5), r"fraction: expected a number in \(0, 1\]"),
    (lambda s: losses.fp_regulariser(s, X, 0.5, estimator="best"), "estimator: expected one of 'auto'"),
    (lambda s: losses.fp_regulariser(s, X, 0.5, weighting="w"), "weighting: expected one of"),
    (lambda s: losses.fp_regulariser(s, X, 0.5, form="f"), "form: expected one of"),
    (lambda s: losses.fp_diffusion(s, X, 0.5, estimator="taylor"), "estimator: expected one of 'exact', 'hutchinson'"),
    (lambda s: losses.fp_diffusion(s, X, 0.5, alpha=-1.0), "alpha: expected a number of at least 0"),
    (lambda s: losses.fp_diffusion(s, X, 0.5, m=0.5), "m: expected a power of at least 1"),
    (lambda s: losses.dsm(s, X, t=torch.zeros(3)), "t: expected times where std"),
    (lambda s: losses.dsm(s, X[:0]), "x0: expected float32 or float64"),
    (lambda s: losses.dsm(s, X.long()), "x0: expected float32 or float64"),
    (lambda s: losses.fp_regulariser(s, X[:0], 0.5), "x: expected at least one point"),
    (lambda s: losses.fp_regulariser(s, X, torch.rand(2), fraction=0.5), r"t: expected a number or shape \(3,\)"),
    (
        lambda s: losses.fp_regulariser(s, X, 0.5, probes=1.5),
        r"probes: expected an integer in \[1, 2147483648\], got 1.5",
    ),
    (
        lambda s: losses.fp_regulariser(s, X, 0.5, probes=2**63),
        r"probes: expected an integer in \[1, 2147483648\], got 9",
    ),
    (lambda s: losses.fp_regulariser(s, X, 0.5, seed=range(2)), "seed: expected one seed, or one for each of the 3"),
    (lambda s: losses.box((3, 2), -1.0), "half_width: expected a positive number"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[str(k) for k in range(len(BAD))])
def test_bad_input(call, message):
    score = fpfast.Score(nn.Sequential(), fpfast.VP())
    score.net.forward = lambda x, t: -x
    with pytest.raises(ValueError, match=message):
        call(score)


def test_a_shared_evaluation():
    """dsm hands its points and the score there on; the regulariser is what it is without, for one call less."""
    calls = []

    class Counted(MLP):
        def forward(self, x, t):
            calls.append(len(x))
            return super().forward(x, t)

    torch.manual_seed(0)
    net = Counted(3, [16], activation="tanh").double()
    score = fpfast.Score(net, fpfast.VP(), "noise")
    x0 = torch.randn(10, 3, dtype=torch.float64)
    plain = losses.dsm(score, x0, seed=1)
    loss, x, t, s = losses.dsm(score, x0, seed=1, return_points=True)
    assert float(loss.detach()) == float(plain.detach())
    assert torch.equal(s, score(x, t))
    for options in ({"estimator": "martingale"}, {"estimator": "martingale", "unbiased": False, "fraction": 0.3},
                    {"estimator": "martingale", "probes": 3}, {"estimator": "finite_difference"}):  # fmt: skip
        found, counts = [], []
        for value in (None, s):
            calls.clear()
            loss = losses.fp_regulariser(score, x, t, seed=2, value=value, **options)
            counts.append(sum(calls))
            gradients = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
            found.append(torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in gradients)]))
        assert torch.allclose(*found, rtol=1e-5, atol=1e-5)  # rounding, divided by h
        used = round(options.get("fraction", 1) * 10)
        assert counts[0] - counts[1] == used
    with pytest.raises(ValueError, match="value: expected None for the estimator 'exact'"):
        losses.fp_regulariser(score, x, t, estimator="exact", value=s)
    with pytest.raises(ValueError, match=r"value: expected torch.float64 of shape"):
        losses.fp_regulariser(score, x, t, estimator="martingale", value=s[:5])
