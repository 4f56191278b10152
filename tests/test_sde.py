"""Each SDE's coefficients belong together, and stay finite at both ends."""

import pytest
import torch

import fpfast
from fpfast import times
from fpfast.sde import SDES

ALL = [sde() for sde in SDES.values()]


def inside(sde, n=200):
    return torch.linspace(sde.t_min, sde.T, n, dtype=torch.float64)[1:-1]


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_marginals_solve_their_equations(sde):
    """alpha' = a alpha and (std^2)' = 2 a std^2 + g^2, by central differences."""
    t = inside(sde)
    h = 1e-6 * sde.T
    d_alpha = (sde.alpha(t + h) - sde.alpha(t - h)) / (2 * h)
    d_variance = (sde.std(t + h) ** 2 - sde.std(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(sde.a(t) * sde.alpha(t), d_alpha, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(2 * sde.a(t) * sde.std(t) ** 2 + sde.g2(t), d_variance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_finite_at_both_ends(sde):
    t = torch.tensor([0.0, 1e-300, 1e-12, sde.t_min, sde.T])
    for f in (sde.a, sde.g2, sde.alpha, sde.std, sde.diffusion):
        values = f(t)
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all()), f
    assert bool((sde.std(t) >= 0).all())
    assert bool((sde.std(torch.tensor([1e-12, sde.t_min, sde.T])) > 0).all())
    assert not bool(sde.log_snr(t).isnan().any())


def test_small_times_keep_their_digits():
    """1 - exp(-B) would have none left at t = 1e-12."""
    t = 1e-12
    assert float(fpfast.VP().std(t)) == pytest.approx((0.1 * t) ** 0.5, rel=1e-9)
    assert float(fpfast.SubVP().std(t)) == pytest.approx(0.1 * t, rel=1e-9)
    assert float(fpfast.OU().std(t)) == pytest.approx(t**0.5, rel=1e-9)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_log_snr_and_its_inverse(sde):
    t = inside(sde)
    assert bool((sde.log_snr(t).diff() < 0).all())
    # float64 log_snr of OU is flat to 1e-16 near T = 10, where alpha = e^-10: compare what the time is for.
    torch.testing.assert_close(sde.log_snr(sde.time_at(sde.log_snr(t))), sde.log_snr(t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_prior_is_the_marginal_at_T_of_little_data(sde):
    x = sde.prior((20_000, 3), seed=1)
    alpha, std = sde.marginal(sde.T)
    assert float(x.std()) == pytest.approx(float(std), rel=0.02)
    assert float(alpha) <= 1
    assert float(alpha) * 1.0 < 0.05 * float(std)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_density_of_the_prior(sde):
    x = sde.prior((7, 2, 3), seed=0)
    expected = torch.distributions.Normal(0.0, sde.prior_std).log_prob(x.double()).sum((1, 2))
    torch.testing.assert_close(sde.prior_log_prob(x), expected)
    torch.testing.assert_close(
        sde.prior_log_prob(x[:, 0, 0]), torch.distributions.Normal(0.0, sde.prior_std).log_prob(x[:, 0, 0].double())
    )


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_drift_and_diffusion(sde):
    x, t = torch.randn(5, 2, 3), torch.linspace(sde.t_min, sde.T, 5)
    torch.testing.assert_close(sde.drift(x, t), sde.a(t).float()[:, None, None] * x)
    torch.testing.assert_close(sde.diffusion(0.5), sde.g2(0.5).sqrt())
    torch.testing.assert_close(sde.drift(x, 0.5), float(sde.a(0.5)) * x)


@pytest.mark.parametrize("name", times.TIMES)
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_named_grids_descend_from_T_to_t_min(name, sde):
    for steps in (1, 2, 137):
        t = times.grid(sde, name, steps)
        assert len(t) == steps + 1
        assert (float(t[0]), float(t[-1])) == (sde.T, sde.t_min)
        assert bool((t.diff() < 0).all())


def test_karras_grid_of_edm_is_the_formula():
    ramp = torch.linspace(0, 1, 18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(times.grid(fpfast.EDM(), "karras", 17), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_asinh_grid_is_the_formula(sde):
    alpha, std = sde.marginal(times.grid(sde, "asinh", 40))
    roots = (std / alpha).asinh().sqrt()
    torch.testing.assert_close(roots.diff(), (roots[-1] - roots[0]).expand(40) / 40, rtol=1e-6, atol=0)


def test_parse_makes_the_grid_of_the_paper():
    t = times.parse("10:0.125:790,0.125:0:100")
    assert len(t) == 891
    torch.testing.assert_close(t[:3], torch.tensor([10, 9.9875, 9.975], dtype=torch.float64))
    torch.testing.assert_close(t[-3:], torch.tensor([0.0025, 0.00125, 0], dtype=torch.float64), atol=1e-15, rtol=0)


def test_dtypes_and_times_that_fit():
    sde, x = fpfast.VP(), torch.randn(3, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(sde.prior((3, 2), seed=1, dtype=dtype), sde.prior((3, 2), seed=1).to(dtype))
    assert torch.equal(sde.drift(x, torch.tensor([0.5])), sde.drift(x, 0.5))
    with pytest.raises(ValueError, match=r"^dtype: expected a floating-point dtype"):
        sde.prior((3, 2), dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^t: expected a number or shape \(3,\), got \(2,\)"):
        sde.drift(x, torch.tensor([0.5, 0.6]))
