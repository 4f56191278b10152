"""Divergences and Fokker-Planck residuals: exact where the score is known, unbiased where probes are random."""

import contextlib
import itertools
import math

import pytest
import torch
from conftest import native
from torch import nn

import fpfast
from fpfast.divergence import ESTIMATORS
from fpfast.network import MLP
from fpfast.sde import SDES

ALL = [sde() for sde in SDES.values()]
RANDOM = [name for name in ESTIMATORS if name != "exact"]
UNBIASED = ["hutchinson", "hutchpp"]  # for every score; "taylor" is for gradients
REACH = 4.5  # standard errors


def known(sde, d, n=20, dtype=torch.float64):
    """A mixture, its score and potential under ``sde``, and points where it lives, t from t_min to T."""
    generator = torch.Generator().manual_seed(d)
    means = torch.randn(3, d, dtype=torch.float64, generator=generator)
    gm = fpfast.GaussianMixture(means, torch.tensor([0.3, 0.1, 0.7]), torch.tensor([1.0, 2.0, 3.0]))
    t = torch.linspace(sde.t_min, sde.T, n, dtype=torch.float64)
    z = torch.randn(n, d, dtype=torch.float64, generator=generator)
    x = sde.alpha(t)[:, None] * gm.sample(n, generator) + sde.std(t)[:, None] * z
    potential = fpfast.Score(lambda x, t: gm.log_prob(x, sde, t), sde, "potential")
    return gm, gm.score(sde), potential, x.to(dtype), t.to(dtype)


def network(d, kind, dtype=torch.float64, seed=0):
    """A perceptron that is no density's score: "score" has no potential."""
    torch.manual_seed(seed)
    net = MLP(d, [24, 24], activation="tanh", potential=kind == "potential").to(dtype).requires_grad_(False)
    return fpfast.Score(net, fpfast.VP(), kind)


def brute(score, x, t):
    """(div s, score residual) from full Jacobians, point by point, in float64."""
    sde, traces, residuals = score.sde, [], []
    for one, at in zip(x, t, strict=True):

        def s(x, t):
            return score(x[None], t[None])[0]

        jacobian = torch.autograd.functional.jacobian(lambda x: s(x, at), one)  # noqa: B023
        d_t = torch.autograd.functional.jacobian(lambda t: s(one, t), at)  # noqa: B023
        second = torch.autograd.functional.jacobian(  # d/dx of the Jacobian: [i, j, k]
            lambda x: torch.autograd.functional.jacobian(lambda y: s(y, at), x, create_graph=True),  # noqa: B023
            one,
        )
        a, g2, value = sde.a(at), sde.g2(at), s(one, at)
        traces.append(jacobian.trace())
        residuals.append(
            d_t + a * value + jacobian.T @ (a * one - g2 * value) - g2 / 2 * second.diagonal(0, 0, 1).sum(1)
        )
    return torch.stack(traces).detach(), torch.stack(residuals).detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("d", [1, 2, 7, 64])
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_exact_on_a_solution(sde, d, dtype):
    """Both residuals vanish, beside the terms that they are the difference of, and div s is the closed form's."""
    gm, score, potential, x, t = known(sde, d, dtype=dtype)
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    exact = gm.divergence(x.double(), sde, t.double())
    got = fpfast.divergence(score, x, t, estimator="exact")
    assert (got.error, got.estimator, got.value.dtype) == (None, "exact", dtype)
    assert float(((got.value - exact).abs() / exact.abs().amax()).max()) < bound
    for form, field in (("score", score), ("score", potential), ("log_density", potential)):
        found = fpfast.fp_residual(field, x, t, form=form, estimator="exact").value
        s, a, g2 = score(x, t).double(), sde.a(t.double()), sde.g2(t.double())
        if form == "score":
            rate = gm.dt_score(x.double(), sde, t.double()).norm(dim=1)
            scale = rate + a.abs() * s.norm(dim=1) + g2 * s.norm(dim=1) * (s.norm(dim=1) + exact.abs())
            found = found.norm(dim=1)
        else:
            rate = gm.dt_log_prob(x.double(), sde, t.double()).abs()
            scale = rate + a.abs() * (d + (x * s).sum(1).abs()) + g2 / 2 * (s.square().sum(1) + exact.abs())
        assert float((found.abs() / scale).max()) < bound, form


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_random_probes_on_a_solution(sde, name):
    gm, score, potential, x, t = known(sde, 7)
    exact, rate = gm.divergence(x, sde, t), gm.dt_log_prob(x, sde, t).abs().amax()
    options = {"estimator": name, "probes": 60 if name == "taylor" else 300, "seed": 1}
    differences = name in ("finite_difference", "martingale")
    # Differences have a bias; it is largest for times near the end where std vanishes, so those are judged alone.
    slack = 1e-4 if differences else 1e-9
    found = fpfast.divergence(score, x, t, **options)
    assert bool(((found.value - exact).abs() < REACH * found.error + slack * exact.abs().amax()).all())
    found = fpfast.fp_residual(potential, x, t, form="log_density", **options)
    assert bool((found.value.abs() < REACH * found.error + slack * rate).all())
    found = fpfast.fp_residual(score, x, t, **options)
    scale = gm.dt_score(x, sde, t).norm(dim=1, keepdim=True) + (gm.gradient(x, sde, t).norm(dim=1) * sde.g2(t)
                                                               / sde.std(t) ** 2)[:, None]  # fmt: skip
    assert bool((found.value.abs() < REACH * found.error + slack * scale).all())


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("kind", ["score", "potential"])
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(("repeats", "probes"), [(60, 60), pytest.param(1000, 100, marks=pytest.mark.slow)])
def test_mean_and_standard_error(repeats, probes, name, kind, distribution):
    """Against brute force on a network: the mean is right, and errors have the size that is reported."""
    d = 5
    score = network(d, kind)
    x, t = torch.randn(3, d, dtype=torch.float64), torch.tensor([0.05, 0.4, 1.0], dtype=torch.float64)
    trace, residual = brute(score, x, t)
    wide, times = x.repeat(repeats, 1), t.repeat(repeats)
    options = {"estimator": name, "probes": probes, "seed": 3, "distribution": distribution}
    found = fpfast.divergence(score, wide, times, **options)
    slack = 1e-5 if name in ("finite_difference", "martingale") else 1e-9
    check(found, trace, repeats, slack)
    if name not in UNBIASED and kind == "score":
        return  # those take the score for a gradient
    check(fpfast.fp_residual(score, wide, times, **options), residual, repeats, slack)


def check(found, exact, repeats, slack):
    """z = (value - exact) / error over independent repeats: mean 0, and chi-square of the right size."""
    value, error = (y.unflatten(0, (repeats, -1)) for y in (found.value, found.error))
    off = (value - exact).mean(0).abs()
    spread = error.square().mean(0).sqrt()
    assert bool((off < REACH * spread / math.sqrt(repeats) + slack * exact.abs().amax()).all())
    if bool((spread > 1e-6 * exact.abs().amax()).all()):
        square = ((value - exact).detach() / error).square().mean().detach()
        assert 0.8 < float(square) < 1.25, float(square)


def test_martingale_converges_with_order_one():
    score = network(3, "potential")
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    _, exact = brute(score, x, t)
    seed = torch.zeros(4, dtype=torch.int64)  # one for each point: all points have the same probes
    draws = fpfast.points.Probes(x, 60, seed, "rademacher")
    corners = {tuple(draws.draw(k)[0].tolist()): k for k in draws.numbers}
    assert set(corners) == set(itertools.product((1.0, -1.0), repeat=3))

    def mean(h):  # over all Rademacher probes: what is left is bias
        total = torch.zeros_like(x)
        for k in corners.values():
            points = fpfast.points.Points(score, x, t, False, h)
            total += next(ESTIMATORS["martingale"].residual(points, draws.some(k, 1)))
        return total / len(corners)

    errors = [float((mean(h) - exact).norm()) for h in (4e-3, 2e-3, 1e-3, 5e-4)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("name", ["martingale", "finite_difference"])
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_default_step_is_near_the_best_in_float32(sde, name):
    """Within a factor of 6 of the least error over a sweep of steps; the ends of the sweep are far worse."""
    _, score, _, x, _ = known(sde, 2, 100, torch.float32)
    t = torch.full((100,), sde.T / 3)
    x = x * float(sde.std(sde.T / 3) / x.std())
    exact = fpfast.fp_residual(score, x.double(), t.double(), estimator="taylor", probes=4, seed=0).value

    def error(h=None):
        found = fpfast.fp_residual(score, x, t, estimator=name, probes=4, seed=0, h=h).value
        return float((found - exact).norm(dim=1).median())

    scale = float(sde.std(sde.T / 3) ** 2 / sde.g2(sde.T / 3))
    sweep = [error(scale * 10 ** (k / 2)) for k in range(-12, 1)]
    assert error() < 6 * min(sweep)
    assert min(sweep[0], sweep[-1]) > 10 * min(sweep)


def test_steps_below_the_resolution_of_time_are_one_number_long():
    _, score, _, x, t = known(fpfast.Flow(), 2, dtype=torch.float32)
    for name in ("martingale", "finite_difference"):
        for call in (fpfast.divergence, fpfast.fp_residual):
            assert bool(call(score, x, t, estimator=name, h=1e-12).value.isfinite().all())


def test_images_and_other_shapes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 3, padding=1)).double()
    score = fpfast.Score(lambda x, t: net(x) * t[:, None, None, None], fpfast.VP(), "noise")
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    exact = fpfast.divergence(score, x, 0.5, estimator="exact")
    assert exact.value.shape == (3,)
    assert fpfast.divergence(score, x, 0.5).estimator == "hutchinson"
    assert fpfast.fp_residual(score, x, 0.5).estimator == "martingale"
    for name in RANDOM:
        found = fpfast.divergence(score, x, 0.5, estimator=name, probes=100, seed=0)
        assert bool(((found.value - exact.value).abs() < REACH * found.error + 1e-5 * exact.value.abs()).all()), name
        assert fpfast.fp_residual(score, x, 0.5, estimator=name, probes=3, seed=0).value.shape == x.shape


@pytest.mark.parametrize("name", ESTIMATORS)
def test_graph_by_a_flag(name):
    """Without it no graph is left, whatever the mode; with it gradients are those of finite differences."""
    score = network(3, "potential")
    score.net.requires_grad_(True)
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.1, 0.3, 0.7, 1.0], dtype=torch.float64)
    calls = [
        lambda **options: fpfast.divergence(score, x, t, **options),
        lambda **options: fpfast.fp_residual(score, x, t, **options),
        lambda **options: fpfast.fp_residual(score, x, t, form="log_density", **options),
    ]
    options = {"estimator": name, "probes": 3, "seed": 0, "h": 1e-3}
    for call in calls:
        plain = call(**options)
        assert not plain.value.requires_grad
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                torch.testing.assert_close(call(**options).value, plain.value, rtol=1e-12, atol=1e-12)
        if name == "hutchpp":
            continue  # its gradient holds Q fixed: unbiased, but not the derivative of this one value
        loss = call(create_graph=True, **options).value.square().sum()
        weight = score.net[0].weight if isinstance(score.net, nn.Sequential) else next(score.net.parameters())
        (gradient,) = torch.autograd.grad(loss, weight)
        direction = torch.randn_like(weight)

        def moved(step, weight=weight, direction=direction, call=call):
            with torch.no_grad():
                weight += step * direction
                found = call(**options).value.square().sum()
                weight -= step * direction
            return float(found)

        difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert abs(float((gradient * direction).sum()) - difference) < 1e-5 * (abs(difference) + 1)


def test_mode_of_the_caller_stays():
    score = network(3, "potential")
    x = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        for name in ESTIMATORS:
            points = fpfast.points.Points(score, x, 0.5, False)
            probes = fpfast.points.Probes(points.x, 4, 0, "rademacher")
            for estimates in (ESTIMATORS[name].divergence(points, probes), ESTIMATORS[name].residual(points, probes)):
                next(estimates)  # and no further
                assert not torch.is_grad_enabled(), name
    assert torch.is_grad_enabled()


def test_gradient_by_x():
    score = network(3, "potential")
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    r = fpfast.fp_residual(score, x, 0.5, form="log_density", estimator="exact", create_graph=True).value
    (found,) = torch.autograd.grad(r.sum(), x)
    eps = fpfast.fp_residual(score, x.detach(), 0.5, estimator="exact").value
    torch.testing.assert_close(found, eps)  # eps = grad R


class OneWay(torch.autograd.Function):
    """tanh with a derivative that has none, and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / torch.cosh(x) ** 2


def test_named_estimators_do_not_fall_back():
    score = fpfast.Score(lambda x, t: OneWay.apply(x), fpfast.VP())
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="'taylor': forward mode does not go through"):
        fpfast.fp_residual(score, x, 0.5, estimator="taylor")
    for name in ("exact", "hutchinson", "hutchpp"):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            fpfast.fp_residual(score, x, 0.5, estimator=name, probes=3)
    assert fpfast.fp_residual(score, x, 0.5).estimator == "martingale"
    trace = 1 / torch.cosh(x) ** 2
    assert fpfast.divergence(score, x, 0.5).estimator == "exact"
    torch.testing.assert_close(fpfast.divergence(score, x, 0.5).value, trace.sum(1))


def test_without_autograd():
    score = fpfast.Score(lambda x, t: torch.from_numpy(-x.detach().numpy()), fpfast.VP())
    x = torch.randn(4, 3, dtype=torch.float64)
    found = fpfast.divergence(score, x, 0.5)
    assert found.estimator == "finite_difference"
    torch.testing.assert_close(found.value, torch.full((4,), -3.0, dtype=torch.float64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="net: expected a score that autograd can differentiate"):
        fpfast.divergence(score, x, 0.5, estimator="hutchinson")
    assert fpfast.fp_residual(score, x, 0.5).estimator == "martingale"


@pytest.mark.parametrize("kind", ["float32 network", "bfloat16 output", "autocast"])
def test_steps_follow_the_coarsest_dtype(kind):
    """Of a float64 state with a float32 network, and the like: differences are as good as that dtype lets them be."""
    net = network(2, "score", torch.float32).net
    double = network(2, "score").net
    x, t = torch.randn(50, 2, dtype=torch.float64), torch.full((50,), 0.5, dtype=torch.float64)
    exact = fpfast.divergence(fpfast.Score(double, fpfast.VP()), x, t).value

    def low(x, t):
        y = net(x.float(), t.float())
        return y.bfloat16() if kind == "bfloat16 output" else y

    score = fpfast.Score(low, fpfast.VP())
    bound = 1e-3 if kind == "float32 network" else 0.3
    mode = torch.autocast("cpu", dtype=torch.bfloat16) if kind == "autocast" else contextlib.nullcontext()
    with mode:
        for name in ("finite_difference", "martingale"):
            found = fpfast.divergence(score, x, t, estimator=name, probes=2, seed=0, distribution="rademacher")
            # The same probes, exactly:
            taylor = fpfast.divergence(fpfast.Score(double, fpfast.VP()), x, t, estimator="taylor", probes=2, seed=0)
            off = (found.value - taylor.value).square().mean().sqrt() / exact.square().mean().sqrt()
            assert float(off) < bound, (name, float(off))


HEAD = nn.Linear(2, 2).double()
DETACHED = {
    "detached input": lambda x, t: torch.tanh(x.detach()) * t[:, None].to(x.dtype),
    "trained head": lambda x, t: HEAD(torch.tanh(x.detach())),
}


@pytest.mark.parametrize("name", DETACHED)
def test_graphs_that_do_not_reach_x(name):
    score = fpfast.Score(DETACHED[name], fpfast.VP())
    x = torch.randn(4, 2, dtype=torch.float64)
    found = fpfast.divergence(score, x, 0.5)
    assert found.estimator == "finite_difference"
    assert float(found.value.abs().min()) > 1e-3
    for estimator in ("exact", "hutchinson", "hutchpp"):
        with pytest.raises(ValueError, match="net: expected a score that autograd can differentiate"):
            fpfast.divergence(score, x, 0.5, estimator=estimator, probes=3)
    assert fpfast.fp_residual(score, x, 0.5).estimator == "martingale"
    constant = fpfast.Score(lambda x, t: torch.ones_like(x), fpfast.VP())
    assert float(fpfast.divergence(constant, x, 0.5, estimator="exact").value.abs().max()) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_wrong_outputs_and_times(name):
    x = torch.randn(4, 3, dtype=torch.float64)
    for call in (fpfast.divergence, fpfast.fp_residual):
        with pytest.raises(ValueError, match=r"net: expected an output of shape \(4, 3\)"):
            call(fpfast.Score(lambda x, t: x[:, :1], fpfast.VP()), x, 0.5, estimator=name, probes=3)
        for t in (-0.5, 1.5):
            with pytest.raises(ValueError, match="t: expected times in"):
                call(network(3, "score"), x, t, estimator=name, probes=3)


@pytest.mark.parametrize("name", ["auto", *ESTIMATORS])
def test_no_points(name):
    score, x = network(3, "score"), torch.zeros(0, 3, dtype=torch.float64)
    assert fpfast.divergence(score, x, 0.5, estimator=name, probes=3).value.shape == (0,)
    assert fpfast.fp_residual(score, x, 0.5, estimator=name, probes=3).value.shape == (0, 3)


@native
@pytest.mark.parametrize("predicts", ["noise", "potential"])
def test_fused_network(predicts, monkeypatch):
    """The engine answers, on the same terms."""
    net = MLP(3, [24, 24], activation="tanh", potential=predicts == "potential").requires_grad_(False)
    plain, fused = (fpfast.Score(n, fpfast.VP(), predicts) for n in (net, fpfast.fused.compile(net, 3)))
    x, t = torch.randn(50, 3), torch.rand(50) * 0.9 + 0.05
    exact = fpfast.divergence(plain, x, t).value
    net.requires_grad_(True)  # as it is after training
    calls, forward = [], MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, t: calls.append(x) or forward(self, x, t))
    torch.testing.assert_close(fpfast.divergence(fused, x, t).value, exact, rtol=1e-4, atol=1e-4)
    assert all(len(x) == 3 for x in calls)  # of which recognition makes use
    for t_wrong in (-0.5, 1.5):
        with pytest.raises(ValueError, match="t: expected times in"):
            fpfast.divergence(fused, x, t_wrong)
    for name in ESTIMATORS:
        ours, theirs = (fpfast.fp_residual(s, x, t, estimator=name, probes=3, seed=0).value for s in (fused, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0.02 * float(theirs.abs().max()))


def test_times_in_float64_keep_their_digits():
    """A plain number was rounded to float32, whatever x was: errors of 1e-8 and more in what should have 1e-15."""
    seen = []
    score = fpfast.Score(lambda x, t: seen.append(t) or -x, fpfast.VP())
    fpfast.divergence(score, torch.zeros(2, 2, dtype=torch.float64), 0.3, estimator="exact")
    assert float(seen[0][0].detach()) == 0.3


def test_probes_are_numbered():
    score = network(20, "score", torch.float32)
    x, t = torch.randn(6, 20), torch.full((6,), 0.5)
    run = {"estimator": "hutchinson", "probes": 4}
    assert torch.equal(
        fpfast.divergence(score, x, t, seed=5, **run).value, fpfast.divergence(score, x, t, seed=5, **run).value
    )
    own = fpfast.divergence(score, x, t, seed=list(range(6)), **run).value
    back = fpfast.divergence(score, x.flip(0), t, seed=list(range(6))[::-1], **run).value
    torch.testing.assert_close(own.flip(0), back)


X = torch.randn(3, 2)
BAD = [
    ({"estimator": "hutch"}, "estimator: expected one of 'auto', 'exact'"),
    ({"probes": 0, "estimator": "hutchinson"}, r"probes: expected an integer in \[1, 4294967296\], got 0"),
    ({"probes": 2**62, "estimator": "hutchinson"}, r"probes: expected an integer in \[1, 4294967296\], got 4"),
    ({"probes": 2, "estimator": "hutchpp"}, r"probes: expected an integer in \[3, 4294967296\], got 2"),
    ({"x": torch.randn(3)}, r"x: expected float32 or float64 of shape \(B, ...\)"),
    ({"x": X.half()}, "x: expected float32 or float64"),
    ({"t": torch.rand(2)}, r"t: expected a number or shape \(3,\)"),
    ({"t": 1.5}, "t: expected times in"),
    ({"t": 0.0, "estimator": "martingale"}, r"t: expected times in \[0.001, 1.0\] for differences in time"),
    ({"h": -1.0}, "h: expected a step in time"),
    ({"h": 2.0}, "h: expected a step in time"),
    ({"distribution": "uniform"}, "distribution: expected one of 'rademacher', 'normal'"),
    ({"score": nn.Linear(2, 2)}, "score: expected fpfast.Score"),
    ({"form": "density"}, "form: expected one of 'score', 'log_density'"),
    ({"form": "log_density"}, "form: expected 'score' for a network that is no potential"),
    ({"seed": [1, 2]}, "seed: expected one seed, or one for each of the 3 samples"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(k) for k in range(len(BAD))])
def test_bad_input(change, message):
    arguments = {"score": network(2, "score", torch.float32), "x": X, "t": 0.5, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        fpfast.fp_residual(**arguments)
    if "form" not in change:
        with pytest.raises((ValueError, TypeError), match=message):
            fpfast.divergence(**arguments)
