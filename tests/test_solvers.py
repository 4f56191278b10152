"""Orders of convergence, exactness, evaluations."""

import functools
import itertools
import math
import re

import pytest
import torch
from conftest import mixture

import fpfast
from fpfast.sde import SDES
from fpfast.solvers import CORRECTOR_SNR, SOLVERS, Plan
from fpfast.times import grid

EVALUATIONS = {"heun": 2, "stochastic_heun": 2, "pc": 2}  # a step; the others 1


def slope(errors, steps):
    """Minus the exponent in error ~ steps^-order, by least squares in log-log."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def moments(solver, noise, times, data_mean=1.0, data_variance=0.25):
    """Exact mean and variance of a solver's last state for Gaussian data under OU, where everything is linear.

    The table is run on coefficients: a slot is a vector (constant, x_T, z_1, z_2, ...) of what it depends on.
    """
    sde = fpfast.OU(T=2.0)
    gm = fpfast.GaussianMixture(torch.tensor([[data_mean]]), torch.tensor([data_variance]))
    table = SOLVERS[solver](Plan(gm.score(sde), times, noise, True))
    draws: dict = {}
    size = 2 + table.coef.shape[0] * table.coef.shape[1]

    def unit(index):
        e = torch.zeros(size, dtype=torch.float64)
        e[index] = 1
        return e

    slots = {"x": unit(1)}
    for i, row in enumerate(table.coef):
        for j, stage in enumerate(table.stages):
            if stage.at is not None and table.evaluate[i, j]:
                alpha, std = sde.marginal(table.times[i, j])
                variance = alpha**2 * data_variance + std**2
                slots[stage.output] = (alpha * data_mean * unit(0) - slots[stage.at]) / variance
            old = dict(slots)
            new = sum(c * old[name] for c, name in zip(row[j], stage.of, strict=False) if c != 0)
            if row[j, 4] != 0:
                new = new + row[j, 4] * unit(draws.setdefault((stage.stream, i), 2 + len(draws)))
            slots[stage.to] = new
            slots.update((to, old[slot]) for slot, to in stage.keep)
    x = slots["x"]
    alpha, std = sde.marginal(sde.T)  # start from the true marginal at T: only the solver's error is left
    start_mean, start_variance = alpha * data_mean, alpha**2 * data_variance + std**2
    mean = x[0] + x[1] * start_mean
    variance = x[1] ** 2 * start_variance + x[2:].square().sum()
    end_alpha, end_std = sde.marginal(times[-1])
    return abs(float(mean - end_alpha * data_mean)), abs(float(variance - end_alpha**2 * data_variance - end_std**2))


WEAK_ORDER = {
    ("euler_maruyama", 0.0): 1,
    ("euler_maruyama", 1.0): 1,
    ("heun", 0.0): 2,
    ("stochastic_heun", 0.0): 2,
    ("stochastic_heun", 0.5): 2,
    ("stochastic_heun", 1.0): 2,
    ("exponential", 0.0): 1,
    ("exponential", 1.0): 1,
    ("dpmpp_2m", 0.0): 2,
    ("dpmpp_2m_sde", 0.0): 2,
    ("ancestral", 0.0): 1,
    ("ancestral", 1.0): 1,
}


@pytest.mark.parametrize(("solver", "noise"), WEAK_ORDER)
def test_weak_order_on_ou_without_sampling_error(solver, noise):
    steps = [80, 160, 320, 640]
    times = [torch.linspace(2, 0.1, n + 1, dtype=torch.float64) for n in steps]
    errors = [sum(moments(solver, noise, t)) for t in times]
    order = WEAK_ORDER[solver, noise]
    assert slope(errors, steps) == pytest.approx(order, abs=0.2), errors


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 2.0])
def test_all_converge_on_ou(solver, noise):
    """Mean and variance errors vanish as steps grow; corrector steps keep the marginal to their own order."""
    fine = [sum(moments(solver, noise, torch.linspace(2, 0.01, n + 1, dtype=torch.float64))) for n in (100, 1600)]
    assert fine[1] < 0.02
    assert fine[1] < max(fine[0] / 4, 2e-3 if solver == "pc" else 1e-6)


@functools.cache
def fine_solution(sde):
    x = sde.prior((64, 2), seed=0, dtype=torch.float64)
    options = {"noise": 0.0, "times": "logsnr", "dtype": torch.float64, "x": x}
    return fpfast.sample(mixture().score(sde), x.shape, solver="heun", steps=4000, **options)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("stochastic_heun", 2), ("dpmpp_2m", 2),
                                               ("dpmpp_2m_sde", 2), ("euler_maruyama", 1), ("exponential", 1),
                                               ("ancestral", 1)])  # fmt: skip
@pytest.mark.parametrize("sde", [fpfast.VP(), fpfast.EDM()], ids=["vp", "edm"])
def test_order_of_the_ode_on_a_mixture(sde, solver, order):
    """At noise 0, path by path in float64, against heun with many steps."""
    score = mixture().score(sde)
    x = sde.prior((64, 2), seed=0, dtype=torch.float64)
    options = {"noise": 0.0, "times": "logsnr", "dtype": torch.float64, "x": x}
    exact = fine_solution(sde)
    steps = [100, 200, 400]
    errors = [
        float((fpfast.sample(score, x.shape, solver=solver, steps=n, **options) - exact).abs().mean()) for n in steps
    ]
    assert slope(errors, steps) == pytest.approx(order, abs=0.25), errors


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order", "steps"), [("euler_maruyama", 1, [4, 8, 16]),
                                                        ("stochastic_heun", 2, [4, 6, 8, 11])])  # fmt: skip
def test_weak_order_on_a_mixture(solver, order, steps):
    """E|x|^2 at noise 1 from 2^21 samples of a mixture on the line; the start is exact, the error the solver's."""
    gm = fpfast.GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.6]))
    sde, n, end = fpfast.OU(T=1.5), 2**21, 0.05
    alpha, std = sde.marginal(sde.T)
    generator = torch.Generator().manual_seed(0)
    start = alpha * gm.sample(n, generator) + std * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    mean, covariance = gm.moments(sde, end)
    true = float(mean**2 + covariance)
    errors = []
    for k in steps:
        options = {"times": torch.linspace(1.5, end, k + 1), "x": start.float(), "final": "noise"}
        x = fpfast.sample(gm.score(sde), (n, 1), solver=solver, seed=k, batch_size=2**14, **options)
        errors.append(abs(float(x.double().square().mean()) - true))
    assert min(errors) > 2 * math.sqrt(2) * true / math.sqrt(n), "hidden by sampling noise"
    assert slope(errors, steps) == pytest.approx(order, abs=0.35), errors


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_evaluations(solver, noise, end):
    """The network is called exactly as often as documented, and never at t = 0."""
    calls = []

    def net(x, t):
        calls.append(float(t[0]))
        return -x

    steps = 7
    times = torch.linspace(1, end, steps + 1)
    _, info = fpfast.sample(
        fpfast.Score(net, fpfast.VP()), (3, 2), solver=solver, times=times, noise=noise, seed=0, return_info=True
    )
    skipped = 1 if end == 0 and solver in ("heun", "stochastic_heun") else 0
    assert len(calls) == info.evaluations == steps * EVALUATIONS.get(solver, 1) - skipped
    assert min(calls) > 0


def test_every_docstring_says_what_it_must():
    for name, solver in SOLVERS.items():
        text = " ".join(solver.__doc__.split())
        assert "rder" in text, name
        assert "evaluation" in text, name
        assert re.search(r"arXiv \d{4}\.\d{4,5}|\b(18|19|20)\d\d\b", text), name


def test_exponential_at_noise_0_is_ddim():
    sde, gm = fpfast.VP(), mixture()
    times = grid(sde, "uniform", 10)
    x = sde.prior((20, 2), seed=0, dtype=torch.float64)
    ours = fpfast.sample(gm.score(sde), x.shape, solver="exponential", times=times, noise=0.0, x=x, dtype=torch.float64)
    for t, s in itertools.pairwise(times):  # DDIM as Song et al. (2010.02502), eq. 12, writes it
        noise = -sde.std(t) * gm.gradient(x, sde, t)
        x = sde.alpha(s) * (x - sde.std(t) * noise) / sde.alpha(t) + sde.std(s) * noise
    torch.testing.assert_close(ours, x)


def test_heun_is_edm():
    """Algorithm 1 of Karras et al., down to sigma = 0."""
    sde, gm = fpfast.EDM(), mixture()
    times = [*grid(sde, "karras", 12).tolist(), 0.0]
    x = sde.prior((20, 2), seed=0, dtype=torch.float64)
    ours = fpfast.sample(gm.score(sde), x.shape, solver="heun", times=times, noise=0.0, x=x, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        d = -t * gm.gradient(x, sde, t)
        after = x + (s - t) * d
        if s > 0:
            after = x + (s - t) * (d - s * gm.gradient(after, sde, s)) / 2
        x = after
    torch.testing.assert_close(ours, x)


def test_dpmpp_2m_is_the_published_update():
    sde, gm = fpfast.VP(), mixture()
    times = [*grid(sde, "logsnr", 12).tolist(), 0.0]
    x = sde.prior((20, 2), seed=0, dtype=torch.float64)
    ours = fpfast.sample(gm.score(sde), x.shape, solver="dpmpp_2m", times=times, noise=0.0, x=x, dtype=torch.float64)
    previous = None
    for t, s in itertools.pairwise(times):
        (alpha, std), (alpha_s, std_s) = sde.marginal(t), sde.marginal(s)
        data = (x + std**2 * gm.gradient(x, sde, t)) / alpha
        h = sde.log_snr(s) - sde.log_snr(t)
        estimate = data
        if previous is not None and s > 0:
            estimate = data + (data - previous[0]) * h / (2 * previous[1])
        x = std_s / std * x - alpha_s * torch.expm1(-h) * estimate
        previous = (data, h)
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("solver", ["exponential", "dpmpp_2m", "dpmpp_2m_sde", "ancestral"])
@pytest.mark.parametrize("sde", [sde() for sde in SDES.values()], ids=SDES)
def test_a_single_point_of_data_is_hit(solver, sde):
    """With D constant the exponential family is exact, whatever the step: 3 steps to t = 0 end on the point."""
    score = fpfast.Score(lambda x, t: torch.full_like(x, 0.7), sde, predicts="x0")
    times = [sde.T, 0.5 * sde.T, 0.1 * sde.T, 0.0]
    x = fpfast.sample(score, (50, 3), solver=solver, times=times, seed=0)
    tolerance = 0.01 * 5 if isinstance(sde, fpfast.VE) else 1e-5  # VE keeps sigma_min at t = 0
    torch.testing.assert_close(x, torch.full_like(x, 0.7), atol=tolerance, rtol=0)


def test_bias_of_the_corrector():
    """pc ends with a variance that is too large by the share (r std)^2 / variance, as its docstring says."""
    sde, end, data = fpfast.OU(T=2.0), 0.1, 0.25
    alpha, std = sde.marginal(end)
    variance = float(alpha**2 * data + std**2)
    _, excess = moments("pc", 1.0, torch.linspace(2, end, 3201, dtype=torch.float64), data_variance=data)
    assert excess / variance == pytest.approx(float((CORRECTOR_SNR * std) ** 2) / variance, rel=0.15)
