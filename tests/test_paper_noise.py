"""``fpfast paper noise``: its estimators on known cases, what its experiments must show, and the command end to end."""

import json
import math

import pytest
import torch

from fpfast import train
from fpfast.cli import main
from fpfast.metrics import Estimate
from fpfast.papers import noise, noise_cases, noise_tables, tracking
from fpfast.papers.cells import distances, edges, l2_noise, squared_difference
from fpfast.papers.score_errors import KINDS, SDE, bound_of_tv, divergence_of_paths, field, size_of
from fpfast.papers.trajectories import REFERENCES, at


def mean_and_error(values):
    values = torch.tensor(values, dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def test_squared_difference_is_unbiased():
    """Few samples in many cells, where the plain square is far off."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 8, 8, dtype=torch.float64, generator=generator)
    p, q = p / p.sum(), q / q.sum()
    n, found, plain = 50, [], []
    for _ in range(2000):
        drawn = torch.multinomial(q.flatten(), n, replacement=True, generator=generator)
        share = torch.bincount(drawn, minlength=64).reshape(8, 8) / float(n)
        found.append(squared_difference(share, n, p))
        plain.append(float((share - p).square().sum()))
    truth = float((q - p).square().sum())
    mean, error = mean_and_error(found)
    assert abs(mean - truth) < 4 * error
    assert mean_and_error(plain)[0] > truth + 20 * error


def test_a_sample_of_p_has_distance_zero_with_the_noise_that_is_said():
    exact = REFERENCES["squares"].cells(edges(64), SDE, 0.05)
    generator = torch.Generator().manual_seed(0)
    found = [distances(at(REFERENCES["squares"], SDE, 0.05, 2000, generator), exact, w2=False).l2 for _ in range(200)]
    mean, error = mean_and_error(found)
    assert abs(mean) < 4 * error
    assert error * 200**0.5 == pytest.approx(l2_noise(exact, 2000), rel=0.2)


def test_distances_of_a_shifted_law():
    """W2 squared of a shift is its square; L2 and TV by quadrature of the densities."""
    reference, t, shift = REFERENCES["mixture"], 0.2, torch.tensor([0.4, -0.3], dtype=torch.float64)
    exact = reference.cells(edges(128), SDE, t)
    x = at(reference, SDE, t, 20_000, torch.Generator().manual_seed(0)) + shift
    found = distances(x, exact)
    line = (edges(1024)[1:] + edges(1024)[:-1]) / 2
    plane = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    moved = reference.log_prob(plane - shift, SDE, t).exp().reshape(128, 8, 128, 8).sum((1, 3)) * (7 / 1024) ** 2
    assert found.l2 == pytest.approx(float((moved - exact).square().sum() / exact.square().sum()), abs=0.03)
    assert found.tv == pytest.approx(0.5 * float((moved - exact).abs().sum()), abs=0.03)
    assert found.w2 == pytest.approx(0.25, abs=0.05)
    assert found.outside < 0.01


def test_samples_that_left_the_grid_count():
    exact = REFERENCES["segment"].cells(edges(32), SDE, 0.1)
    gone = distances(torch.full((10, 2), math.nan), exact)
    assert (gone.outside, gone.l2) == (1.0, pytest.approx(1.0))
    assert gone.tv == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_have_the_size_that_was_asked_for(kind):
    reference = REFERENCES["segment"]
    assert size_of(field(KINDS[kind], 0.3, reference), reference, seed=5) == pytest.approx(0.3, rel=0.03)


def test_girsanov_by_hand():
    """A constant error e: the drifts differ by c = (1 + l^2)/2 g^2 e, and KL = T |c|^2 / (2 l^2 g^2)."""
    e = torch.tensor([0.3, 0.4])
    assert size_of(lambda x, t: e.expand_as(x), REFERENCES["mixture"]) == pytest.approx(0.5 * math.sqrt(2 * 0.999))
    for level in (0.25, 1.0, 2.0):
        c = (1 + level**2) / 2 * 2 * 0.5
        assert divergence_of_paths(level, 0.5 * math.sqrt(2)) == pytest.approx(c**2 / (2 * level**2 * 2))
    assert divergence_of_paths(0.0, 0.1) == math.inf
    assert bound_of_tv(0.0, 0.1) == 1.0


def small(**changes):
    return noise_cases.Budget(**({"samples": 4000, "steps": 64, "cells": 64} | changes))


def test_the_exact_score_tracks_at_every_level(tmp_path):
    found = noise_cases.outcome(small(), tmp_path, noise_cases.Case("segment", "exact", 0.0, 3))
    for level, along in found.distances.items():
        for t, distance in zip(small().times, along, strict=True):
            sigma = l2_noise(REFERENCES["segment"].cells(edges(64), SDE, t), 4000)
            assert abs(distance.l2) < 4.5 * sigma + 0.02, (level, t)
            assert distance.w2 < 0.06, (level, t)
    assert found.distances.keys() == set(noise_cases.LEVELS)


def test_noise_smooths_rough_errors(tmp_path):
    """By Girsanov it must, at level 1; without noise the density does not follow, though the samples hardly move."""
    found = noise_cases.outcome(small(), tmp_path, noise_cases.Case("segment", "rough", 0.5, 0))
    ode, sde = found.distances[0.0][-1], found.distances[1.0][-1]
    floor = noise_cases.outcome(small(), tmp_path, noise_cases.Case("segment", "fresh", 0.0, 0)).distances[1.0][-1]
    assert ode.l2 > 0.5
    assert sde.l2 < 0.1
    assert ode.w2 < 0.1
    assert sde.tv < bound_of_tv(1.0, 0.5) + floor.tv


def test_slope():
    assert noise_tables.slope([(s, Estimate(3 * s**0.7, 0.1)) for s in (0.1, 0.2, 0.5)]) == pytest.approx(0.7)
    assert math.isnan(noise_tables.slope([(0.1, Estimate(1, 0)), (0.2, Estimate(2, 0))]))


def test_the_tracking_loss_is_the_distance_of_smoothed_densities():
    """Of N(0, I) to p_t: both sides by quadrature of the densities."""
    budget = tracking.Budget(pieces=4, smoothing=(0.3,))
    reference = REFERENCES["squares"]
    loss, generator = tracking.Loss(budget, reference), torch.Generator().manual_seed(0)
    found = [float(loss(list(torch.randn(4, 100, 2, generator=generator)))) for _ in range(150)]
    line = torch.linspace(-6, 6, 121, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    q = (-(plane**2).sum(1) / (2 * 1.09)).exp() / (2 * math.pi * 1.09)
    parts = []
    for t in budget.ends[1::2].tolist():
        p = reference.smooth_log_prob(plane, SDE, t, 0.3).exp()
        parts.append(float((q - p).square().sum() / p.square().sum()))
    mean, error = mean_and_error(found)
    assert abs(mean - sum(parts) / len(parts)) < 4 * error
    assert len(budget.ends[budget.fitted]) == 2
    assert float(budget.ends[budget.fitted][-1]) == budget.end


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_fitting_lowers_the_tracking_loss(level):
    budget = tracking.Budget(pieces=4, substeps=2, particles=128, iterations=40, end=0.1)
    _, losses = tracking.fit(budget, "squares", level, seed=0)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_command(tmp_path, monkeypatch, capsys):
    recipe = train.Recipe(steps=4, batch_size=16)
    fits = tracking.Budget(
        references=("segment",), pieces=2, substeps=2, particles=16, iterations=2, samples=200, cells=16
    )
    budget = noise_cases.Budget(
        samples=200, steps=8, cells=32, moments=2, sizes=(0.25, 0.5), widths=(4,), train=recipe, tracking=fits
    )
    monkeypatch.setattr(noise, "BUDGET", budget)
    for table, names in ((REFERENCES, ("mixture", "squares")), (KINDS, ("ever rougher", "near t = 0"))):
        for name in names:  # one trajectory and two kinds are enough
            monkeypatch.delitem(table, name)
    assert main(["paper", "noise", "--out", str(tmp_path / "out"), "--seeds", "1", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "out"
    for picture in ("densities", "times", "convergence", "widths", "tracking"):
        assert (folder / f"{picture}.png").stat().st_size > 10_000
    report = json.loads((folder / "report.json").read_text())
    tables = report["tables"]
    assert len(report["over time"]) == (2 + 2 + 1) * len(noise_cases.LEVELS) * budget.moments
    assert all(math.isfinite(row[measure][0]) for row in report["over time"] for measure in ("l2", "w2", "tv"))
    assert len(tables) == 3 + 2 + 2 + 3
    final = next(rows for title, rows in tables.items() if "squared L2" in title and "errors of size 0.5" in title)
    assert len(final) == 1 + 2 + 2
    assert all(len(row) == 2 + len(noise_cases.LEVELS) for row in final)
    assert "Drifts of width 2: squared L2" in (folder / "report.md").read_text()
    assert " s, 1 at a time." in printed
    assert len(list((folder / "networks").glob("*.pt"))) == 1
