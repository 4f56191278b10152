"""fpfast.gap on scores whose gap is known."""

import pytest
import torch
from conftest import mixture

import fpfast


def test_an_exact_score_has_no_gap():
    gm, sde = mixture(), fpfast.VP()
    n = 20_000
    truth = gm.sample(10 * n, torch.Generator().manual_seed(0)).float()
    result = fpfast.gap(gm.score(sde), truth, n=n, nodes=24, steps=200, times="logsnr", solver="stochastic_heun")
    floor = result.table["floor"]
    for pair in ("ODE-truth", "SDE-truth"):
        for metric, estimate in result.table[pair].items():
            assert estimate.value < floor[metric].value + 5 * floor[metric].error + 0.02, (pair, metric)
    assert result.evaluations == 2 * 2 * 200
    assert set(result.histograms) == {"ode", "sde", "truth", "fresh"}


def test_a_wrong_score_has_one():
    """Half the true score: the ODE and the SDE then end at different variances, as exact arithmetic says."""
    gm, sde = fpfast.GaussianMixture(torch.zeros(1, 2), torch.tensor([0.25])), fpfast.VP()
    half = fpfast.Score(lambda x, t: 0.5 * gm.gradient(x, sde, t), sde)
    truth = gm.sample(200_000, torch.Generator().manual_seed(0)).float()
    result = fpfast.gap(half, truth, n=20_000, steps=400, nodes=32)
    floor = result.table["floor"]["w2_grid"].value
    assert result.table["ODE-SDE"]["w2_grid"].value > 20 * floor
    assert result.table["ODE-truth"]["w2_grid"].value > 20 * floor


def test_same_seed_same_result():
    score = mixture().score(fpfast.VP())
    options = {"n": 500, "steps": 5, "nodes": 8}
    a, b = fpfast.gap(score, "blob", seed=1, **options), fpfast.gap(score, "blob", seed=1, **options)
    assert a.table == b.table
    assert a.table != fpfast.gap(score, "blob", seed=2, **options).table


def test_samples_beyond_the_grid_are_reported():
    score = mixture().score(fpfast.VP())
    result = fpfast.gap(score, "blob", n=2000, steps=50, edge=1.0, nodes=8)
    assert 0.2 < result.outside["sde"] < 0.9
    assert result.outside["truth"] == pytest.approx(0.8, abs=0.15)


def test_a_grid_beyond_64_bits():
    result = fpfast.gap(mixture().score(fpfast.VP()), "blob", n=100, steps=5, edge=2**64, nodes=8)
    assert set(result.outside.values()) == {0.0}


def test_the_order_of_the_truth_does_not_matter():
    score = fpfast.Score(lambda x, t: -x, fpfast.VP())
    truth = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    a, b = (fpfast.gap(score, x, n=4000, steps=50, nodes=16) for x in (truth, truth[truth[:, 0].argsort()]))
    for pair in ("ODE-truth", "floor"):
        assert a.table[pair]["w2_sliced"].value == pytest.approx(b.table[pair]["w2_sliced"].value, abs=0.01)


def test_whole_numbers_are_points():
    points = torch.randint(-2, 3, (60, 2), generator=torch.Generator().manual_seed(1))
    score = mixture().score(fpfast.VP())
    found = [
        fpfast.gap(score, data, n=20, steps=5, nodes=8).table for data in (points, points.float(), points.tolist())
    ]
    assert found[0] == found[1] == found[2]
