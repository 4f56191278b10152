"""log_likelihood against closed forms: exact values, order, standard errors, bits per dimension; and its manners."""

import builtins
import math

import pytest
import torch
from conftest import mixture, native, same_bits
from scipy import stats
from sklearn.datasets import load_digits

import fpfast
from fpfast import likelihood, network
from fpfast.divergence import ESTIMATORS
from fpfast.likelihood import ODE_SOLVERS
from fpfast.sde import SDES

ALL = [sde() for sde in SDES.values()]
EVALUATIONS = {"heun": 2, "rk4": 4}  # a step
# As wide as the prior, components close: what 64 steps of Heun's method manage. ``mixture()`` is three clear clusters.
WIDE = fpfast.GaussianMixture(
    torch.tensor([[0.5, 0.0], [-0.5, 0.2]]), torch.tensor([0.7, 0.6]), torch.tensor([0.6, 0.4])
)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """Which small tensors are quickest with."""
    threads(1)


def points(gm, sde, n):
    """Samples of X at t_min, float64."""
    generator = torch.Generator().manual_seed(1)
    x = gm.sample(n, generator)
    return sde.alpha(sde.t_min) * x + sde.std(sde.t_min) * torch.randn(x.shape, dtype=x.dtype, generator=generator)


def found(score, x, **options):
    return fpfast.log_likelihood(score, x, **{"seed": 0, "dtype": x.dtype, **options})


def true_prior(result, gm, sde):
    """The value had the prior been the data's own marginal at T: the prior's density is taken out, the other put in."""
    marginal = gm.log_prob(result.latent.double(), sde, sde.T)
    return result.value - sde.prior_log_prob(result.latent) + marginal


def errors(gm, sde, x, **options):
    return (true_prior(found(gm.score(sde), x, **options), gm, sde) - gm.log_prob(x.double(), sde, sde.t_min)).abs()


# ------------------------------------------------------------------------------------------------ exact values


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_a_mixture_to_1e_4_nats_in_64_steps_of_heun(sde):
    x = points(WIDE, sde, 300)
    assert float(errors(WIDE, sde, x, solver="heun", steps=64).max()) < 1e-4
    assert float(errors(WIDE, sde, x.float(), solver="heun", steps=64).max()) < 1.3e-4  # x is rounded, too


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_clear_clusters_in_the_default_50_steps_of_rk4(sde):
    x = points(mixture(), sde, 300)
    assert float(errors(mixture(), sde, x).max()) < 5e-4
    assert float(errors(mixture(), sde, x).median()) < 1e-5


def test_a_prior_that_is_the_marginal_needs_no_correction():
    """Data N(0, v I) under OU: X_10 differs from the prior by 1e-9 of its variance, the density by 1e-8 nats."""
    sde, gm = fpfast.OU(), fpfast.GaussianMixture(torch.zeros(1, 2), torch.tensor([0.3]))
    x = points(gm, sde, 50)
    result = found(gm.score(sde), x, steps=100)
    torch.testing.assert_close(result.value, gm.log_prob(x, sde, sde.t_min), rtol=0, atol=2e-6)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_latent_of_one_gaussian(sde):
    """The ODE keeps x over the standard deviation of its marginal."""
    gm = fpfast.GaussianMixture(torch.zeros(1, 3), torch.tensor([0.3]))
    x = points(gm, sde, 20)
    start, end = (math.sqrt(float(gm.moments(sde, t)[1][0, 0])) for t in (sde.t_min, sde.T))
    torch.testing.assert_close(found(gm.score(sde), x).latent, x / start * end, rtol=2e-4, atol=0)


def test_dopri5_keeps_its_tolerance():
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install 'fpfast[adaptive]')")
    sde = fpfast.VP()
    x = points(mixture(), sde, 20)
    loose, tight = (errors(mixture(), sde, x, solver="dopri5", rtol=r, atol=r).max() for r in (1e-4, 1e-7))
    assert float(loose) < 2e-2
    assert float(tight) < 5e-5
    assert float(errors(mixture(), sde, x.float(), solver="dopri5").max()) < 2e-3
    # Only the ends of the grid count, which may end elsewhere than at t_min.
    early = found(mixture().score(sde), x, solver="dopri5", times=[1.0, 0.3], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(true_prior(early, mixture(), sde), mixture().log_prob(x, sde, 0.3), rtol=0, atol=5e-5)


def test_dopri5_comes_to_an_end(monkeypatch):
    """Tolerances that the rounding of a network in float32 does not allow."""
    monkeypatch.setattr(likelihood, "MOST_STEPS", 20)
    with pytest.raises(RuntimeError, match=r"solver 'dopri5': max_num_steps exceeded .*; take 'rk4', or larger rtol"):
        found(mixture().score(fpfast.VP()), torch.ones(4, 2), solver="dopri5", rtol=1e-12, atol=1e-12)


def test_dopri5_without_torchdiffeq_names_the_command(monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **options):
        if name == "torchdiffeq":
            raise ImportError("No module named 'torchdiffeq'")
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=r"^solver: 'dopri5' cannot serve .*pip install 'fpfast\[adaptive\]'"):
        found(mixture().score(fpfast.VP()), torch.zeros(1, 2), solver="dopri5")


@pytest.mark.parametrize(("solver", "order", "least"), [("heun", 2, 64), ("rk4", 4, 32)])
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_order(sde, solver, order, least):
    """Observed by halving the step, of the whole: probability and path."""
    x = points(WIDE, sde, 40)
    gaps = [errors(WIDE, sde, x, solver=solver, steps=steps).square().mean().sqrt() for steps in (least, 2 * least)]
    assert float((gaps[0] / gaps[1]).log2()) == pytest.approx(order, abs=0.35)


# ------------------------------------------------------------------------------------------------ estimated divergences


def correlated(d):
    """Two components with full covariances: the estimates of a trace are about normal."""
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(2, d, d, generator=generator, dtype=torch.float64) / d**0.5
    means = torch.randn(2, d, generator=generator) / 2
    return fpfast.GaussianMixture(means, root @ root.mT + 0.05 * torch.eye(d))


SMALL = correlated(12)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_standard_error_covers_the_truth(distribution):
    """Hutchinson, K = 8, d = 32: 4 seeds, 250 samples, each with its own probes. Student's t, 7 degrees of freedom."""
    gm, sde, seeds, probes = correlated(32), fpfast.VP(), 4, 8
    x, score = points(gm, sde, 250).float(), gm.score(sde)
    options = {"solver": "heun", "steps": 16}
    exact = found(score, x, **options)
    assert exact.error is None
    given = {"estimator": "hutchinson", "probes": probes, "distribution": distribution, **options}
    results = [found(score, x, seed=seed, **given) for seed in range(seeds)]
    off = torch.cat([result.value - exact.value for result in results])
    error = torch.cat([result.error for result in results])
    tolerance = 4 * math.sqrt(0.05 * 0.95 / len(off))
    covered = float((off.abs() < stats.t.ppf(0.975, probes - 1) * error).double().mean())
    assert covered == pytest.approx(0.95, abs=tolerance)
    # The normal interval, for so few probes, covers what it would of a t variable: 0.909.
    normal = float((off.abs() < 1.96 * error).double().mean())
    assert normal == pytest.approx(1 - 2 * stats.t.sf(1.96, probes - 1), abs=4 * math.sqrt(0.09 / len(off)))
    # No bias, and standard errors of the right size.
    assert abs(float(off.mean())) < 4 * float(off.std()) / len(off) ** 0.5
    assert float(off.square().mean() / error.square().mean()) == pytest.approx(1, abs=0.2)


def test_standard_error_is_that_of_the_integral():
    """Probes are fixed, so their errors add up along the path: what is reported is the spread over seeds, not less."""
    sde = fpfast.VP()
    x = points(SMALL, sde, 1).expand(600, -1).contiguous()
    result = found(SMALL.score(sde), x, estimator="hutchinson", probes=4, solver="heun", steps=8)
    assert float(result.value.std() / result.error.square().mean().sqrt()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator(name):
    """Within 4.5 standard errors of the exact divergence, whatever the number of probes; one probe has no error."""
    sde = fpfast.SubVP()
    x, options = points(SMALL, sde, 200), {"solver": "rk4", "steps": 12}
    exact = found(SMALL.score(sde), x, **options).value
    fewest = ESTIMATORS[name].fewest
    result = found(SMALL.score(sde), x, estimator=name, probes=2 * fewest, **options)
    one = found(SMALL.score(sde), x, estimator=name, probes=fewest, **options)
    assert one.error is None
    assert result.estimator == name
    if name == "exact":
        assert torch.equal(result.value, exact)
        return
    spread = float((result.value - exact).std()) / len(x) ** 0.5
    assert abs(float((result.value - exact).mean())) < 4.5 * spread
    assert spread > 0
    ratio = (result.value - exact).square().mean() / result.error.square().mean()
    assert 0.4 < float(ratio) < 2.5


# ------------------------------------------------------------------------------------------------ the same bits


CUTS = {
    "exact": {},
    "hutchinson": {"estimator": "hutchinson", "probes": 8},
    "hutchpp": {"estimator": "hutchpp", "probes": 6},
    "martingale": {"estimator": "martingale", "probes": 2, "distribution": "normal"},
    "finite_difference": {"estimator": "finite_difference", "probes": 3},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("d", [2, 48])
def test_same_bits_however_cut(d, cut):
    means = 0.5 * torch.randn(2, d, generator=torch.Generator().manual_seed(0))
    gm = fpfast.GaussianMixture(means, torch.tensor([0.5, 0.3]))
    x, options = points(gm, fpfast.VP(), 37).float(), {"solver": "heun", "steps": 3, **CUTS[cut]}
    score = gm.score(fpfast.VP())
    whole = found(score, x, **options)
    for size in (1, 10):
        part = found(score, x[:21], batch_size=size, **options)
        assert same_bits(part.value, whole.value[:21])
        assert same_bits(part.latent, whole.latent[:21])
        assert part.error is whole.error is None or same_bits(part.error, whole.error[:21])
    rest = found(score, x[20:], first_sample=20, **options)
    assert same_bits(rest.value, whole.value[20:])
    if cut == "exact":
        return
    assert same_bits(rest.error, whole.error[20:])
    assert not same_bits(found(score, x[20:], **options).value, rest.value)
    assert not same_bits(found(score, x, **{**options, "seed": 1}).value, whole.value)
    seeds = list(range(100, 137))
    one_each = found(score, x, **{**options, "seed": seeds})
    flipped = found(score, x.flip(0), **{**options, "seed": seeds[::-1]}, batch_size=5)
    assert same_bits(flipped.value, one_each.value.flip(0))


@pytest.mark.parametrize("sde", [fpfast.VP(), fpfast.EDM()], ids=["vp", "edm"])
def test_probes_estimate_the_rest_only(sde):
    """Of data N(0, I) nothing is left to estimate: every estimator is exact, with normal probes too."""
    gm = fpfast.GaussianMixture(torch.zeros(1, 5), torch.ones(1))
    x = points(gm, sde, 10)
    expected = found(gm.score(sde), x, steps=4).value
    for name in ESTIMATORS:
        result = found(gm.score(sde), x, estimator=name, probes=6, distribution="normal", steps=4)
        torch.testing.assert_close(result.value, expected, rtol=0, atol=1e-5)


def test_x_is_not_changed_and_where_it_comes_from_does_not_matter():
    score, x = mixture().score(fpfast.VP()), points(mixture(), fpfast.VP(), 9).float()
    before, whole = x.clone(), found(score, x, steps=3).value
    assert same_bits(x, before)
    strided = torch.stack((x, x), dim=-1)[..., 0].requires_grad_()
    assert same_bits(found(score, strided, steps=3).value, whole)
    with torch.inference_mode():
        assert same_bits(found(score, x.clone(), steps=3).value, whole)
    assert same_bits(fpfast.log_likelihood(score, x.double(), steps=3).value, whole)  # the default dtype is float32


# ------------------------------------------------------------------------------------------------ networks


class Counted(torch.nn.Module):
    """The score of N(0, I / 2) at all times, with a parameter; counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.calls, self.rows = 0, 0

    def forward(self, x, t):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return -self.scale * x.sin()


CALLS = {"exact": 1, "hutchinson": 1, "hutchpp": 1, "taylor": 4, "finite_difference": 7, "martingale": 4}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("solver", EVALUATIONS)
def test_network_is_called_as_often_as_documented(solver, estimator):
    net, steps = Counted(), 5
    options = {
        "solver": solver,
        "steps": steps,
        "estimator": estimator,
        "probes": 3,
        "times": [1.0, 0.8, 0.6, 0.4, 0.2, 0.1],
    }
    result = found(fpfast.Score(net, fpfast.VP()), torch.ones(4, 2), batch_size=2, **options)
    assert result.evaluations == steps * EVALUATIONS[solver]
    assert net.calls == 2 * result.evaluations * CALLS[estimator]
    assert net.scale.grad is None
    assert result.value.dtype == torch.float64
    assert not result.value.requires_grad


def test_dopri5_counts_its_evaluations():
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install 'fpfast[adaptive]')")
    net = Counted()
    result = found(fpfast.Score(net, fpfast.VP()), torch.ones(4, 2), solver="dopri5")
    assert result.evaluations == net.calls > 10


def kinds():
    """The score of one mixture under VP, by what a network can predict."""
    gm, sde = mixture(), fpfast.VP()

    def of(change):
        def net(x, t):
            alpha, std, a, g2 = (c.to(x)[:, None] for c in (sde.alpha(t), sde.std(t), sde.a(t), sde.g2(t)))
            return change(gm.gradient(x, sde, t), x, alpha, std, a, g2)

        return net

    return {
        "noise": (of(lambda s, x, alpha, std, a, g2: -std * s), {}),
        "x0": (of(lambda s, x, alpha, std, a, g2: (std**2 * s + x) / alpha), {}),
        "v": (of(lambda s, x, alpha, std, a, g2: -(std * (alpha**2 + std**2) * s + std * x) / alpha), {}),
        "velocity": (of(lambda s, x, alpha, std, a, g2: a * x - g2 / 2 * s), {}),
        "potential": (lambda x, t: gm.log_prob(x, sde, t), {}),
        "score": (of(lambda s, x, alpha, std, a, g2: (s, -s)), {"guidance": 1.0}),
    }


@pytest.mark.parametrize("predicts", kinds())
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_kind_of_score_in_every_mode(predicts, mode):
    net, options = kinds()[predicts]
    x = points(mixture(), fpfast.VP(), 20)
    expected = found(mixture().score(fpfast.VP()), x, steps=10).value
    with mode():
        got = found(fpfast.Score(net, fpfast.VP(), predicts=predicts, **options), x, steps=10).value
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@native
@pytest.mark.parametrize("potential", [False, True])
def test_compiled_networks(potential):
    torch.manual_seed(0)
    module = network.MLP(3, (16, 16), potential=potential, activation="tanh").train()
    nets = [lambda x, t: module(x, t), fpfast.fused.compile(module, 3), module]  # the engine sees through no function
    predicts = "potential" if potential else "noise"
    x = torch.randn(30, 3)
    for options in ({}, {"estimator": "hutchinson", "probes": 2}):
        plain, engine, itself = (
            found(fpfast.Score(net, fpfast.VP(), predicts=predicts), x, steps=6, **options) for net in nets
        )
        torch.testing.assert_close(engine.value, plain.value, rtol=1e-4, atol=1e-3)
        assert engine.evaluations == itself.evaluations == 24
        if not options:
            assert same_bits(itself.value, engine.value)  # a perceptron is recognised
    assert all(parameter.grad is None for parameter in module.parameters())


def test_images_and_sixteen_bits():
    net = torch.nn.Conv2d(2, 2, 3, padding=1)
    score = fpfast.Score(lambda x, t: net(x).bfloat16(), fpfast.VP(), predicts="noise")
    x = torch.randn(3, 2, 4, 4)
    result = found(score, x, steps=4, estimator="hutchinson", probes=2)
    assert result.latent.shape == x.shape
    assert bool(result.value.isfinite().all())
    whole = found(fpfast.Score(lambda x, t: net(x), fpfast.VP(), predicts="noise"), x, steps=4).value
    flat = fpfast.Score(lambda x, t: net(x.reshape(-1, 2, 4, 4)).flatten(1), fpfast.VP(), predicts="noise")
    torch.testing.assert_close(found(flat, x.flatten(1), steps=4).value, whole)


def test_progress_and_warnings(capsys):
    found(mixture().score(fpfast.VP()), torch.zeros(4, 2), steps=3, batch_size=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "24/24" in captured.err
    broken = fpfast.Score(lambda x, t: -x - 0 * (-x).sqrt(), fpfast.VP())
    with pytest.warns(RuntimeWarning, match="1 of 2 log-likelihoods are NaN or infinite"):
        found(broken, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), steps=2)


# ------------------------------------------------------------------------------------------------ bits per dimension

SCALE = {"levels": 17, "low": -1.0, "high": 1.0}


def test_digits_to_the_closed_form():
    """A Gaussian fitted to dequantised digits (d = 64) has its exact score: bits per dimension in closed form."""
    whole = torch.from_numpy(load_digits().images).long().flatten(1)
    data = fpfast.dequantise(whole, seed=1, dtype=torch.float64, **SCALE)
    gm, sde, d = fpfast.GaussianMixture(data.mean(0)[None], data.T.cov()[None]), fpfast.VP(), 64
    x = fpfast.dequantise(whole[:12], seed=2, dtype=torch.float64, **SCALE)
    result = found(gm.score(sde), x)
    mean, covariance = gm.moments(sde, sde.t_min)
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    expected = (-density - d * math.log(2 / 17)) / (d * math.log(2))
    exact = result._replace(value=true_prior(result, gm, sde))
    torch.testing.assert_close(fpfast.bits_per_dimension(exact, **SCALE).value, expected, rtol=0, atol=1e-4)
    # With the prior itself, which is not quite the marginal; and by probes.
    bits = fpfast.bits_per_dimension(result, **SCALE)
    assert bits.error is None
    torch.testing.assert_close(bits.value, expected, rtol=0, atol=2e-3)
    by_probes = found(gm.score(sde), x, estimator="hutchinson", probes=8)
    bits = fpfast.bits_per_dimension(by_probes, **SCALE)
    away = (bits.value - fpfast.bits_per_dimension(result, **SCALE).value) / bits.error
    assert float(away.abs().max()) < stats.t.ppf(1 - 1e-5, 7)
    assert bits.estimator == "hutchinson"


def test_bits_of_a_uniform_density():
    """Density 1 / 2^d on [-1, 1]^d, 256 levels: 8 bits. And the density's own with levels = 1."""
    found = fpfast.likelihood.Likelihood(
        torch.full((3,), -5 * math.log(2.0)), torch.ones(3), "hutchinson", 1, torch.zeros(3, 5)
    )
    torch.testing.assert_close(fpfast.bits_per_dimension(found).value, torch.full((3,), 8.0))
    torch.testing.assert_close(fpfast.bits_per_dimension(found).error, torch.full((3,), 1 / (5 * math.log(2))))
    torch.testing.assert_close(fpfast.bits_per_dimension(found, levels=1, low=0, high=1).value, torch.ones(3))


def test_dequantise():
    whole = torch.randint(0, 256, (500, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = fpfast.dequantise(whole, low=0.0, high=256.0, seed=3, dtype=torch.float64)
    u = x - whole
    assert 0 < float(u.min()) < float(u.max()) <= 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    rest = fpfast.dequantise(whole[200:], low=0.0, high=256.0, seed=3, first_sample=200, dtype=torch.float64)
    assert same_bits(rest, x[200:])
    scaled = fpfast.dequantise(whole.float(), seed=3)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, (x / 128 - 1).float())


# ------------------------------------------------------------------------------------------------ errors

X, SCORE = torch.zeros(3, 2), mixture().score(fpfast.VP())
BITS = fpfast.likelihood.Likelihood(torch.zeros(3), None, "exact", 1, X)
CASES = {
    "score": lambda: found(torch.nn.Linear(2, 2), X),
    "x": lambda: found(SCORE, X[0]),
    "x ": lambda: fpfast.log_likelihood(SCORE, X.long()),
    "x  ": lambda: found(SCORE, X * math.nan),
    "x   ": lambda: fpfast.log_likelihood(SCORE, [[0.0, 0.0]]),
    "x    ": lambda: found(SCORE, X[:0]),
    "solver": lambda: found(SCORE, X, solver="euler"),
    "steps": lambda: found(SCORE, X, steps=0),
    "times": lambda: found(SCORE, X, times="even"),
    "times ": lambda: found(SCORE, X, times=[0.001, 1.0]),
    "estimator": lambda: found(SCORE, X, estimator="auto"),
    "probes": lambda: found(SCORE, X, estimator="hutchinson", probes=0),
    "probes ": lambda: found(SCORE, X, estimator="hutchpp"),
    "distribution": lambda: found(SCORE, X, distribution="uniform"),
    "rtol": lambda: found(SCORE, X, solver="dopri5", rtol=0),
    "atol": lambda: found(SCORE, X, solver="dopri5", atol="1"),
    "seed": lambda: found(SCORE, X, seed=[1, 2]),
    "first_sample": lambda: found(SCORE, X, first_sample=-1),
    "first_sample ": lambda: found(SCORE, X, seed=[1, 2, 3], first_sample=1),
    "device": lambda: found(SCORE, X, device="cuda:99"),
    "dtype": lambda: found(SCORE, X, dtype=torch.float16),
    "batch_size": lambda: found(SCORE, X, batch_size=0),
    "net": lambda: found(fpfast.Score(lambda x, t: x[:, :1], fpfast.VP()), X),
    "net ": lambda: found(fpfast.Score(lambda x, t: torch.zeros_like(x).copy_(x.detach()), fpfast.VP()), X + 1),
    "found": lambda: fpfast.bits_per_dimension(torch.zeros(3)),
    "levels": lambda: fpfast.bits_per_dimension(BITS, levels=0),
    "high": lambda: fpfast.bits_per_dimension(BITS, low=1.0, high=1.0),
    "low": lambda: fpfast.dequantise(X, low=math.nan),
    "x     ": lambda: fpfast.dequantise(X + 0.5),
    "x      ": lambda: fpfast.dequantise(X + 16, levels=16),
    "x       ": lambda: fpfast.dequantise([[1]]),
    "dtype ": lambda: fpfast.dequantise(X, dtype=torch.float16),
    "first_sample  ": lambda: fpfast.dequantise(X, first_sample=2**48),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    with pytest.raises((ValueError, TypeError), match=f"^{name.strip()}: expected .*, got "):
        CASES[name]()


def test_network_that_changes_its_input_is_refused():
    def net(x, t):
        with torch.no_grad():
            x.mul_(-1)
        return -x

    for estimator in ("exact", "finite_difference"):
        with pytest.raises(ValueError, match=r"^net: expected a network that leaves its input as it is"):
            found(fpfast.Score(net, fpfast.VP()), X + 1, estimator=estimator, steps=2)


def test_solvers_are_those_of_the_table():
    assert set(ODE_SOLVERS) == {*EVALUATIONS, "dopri5"}
