"""The command of the first paper, at budgets that take seconds."""

import json
import math
import shutil
from pathlib import Path

import numpy
import pytest
import torch

import fpfast
from fpfast import cli, metrics, train
from fpfast.embedded import embedded
from fpfast.metrics import Estimate
from fpfast.papers import gap_networks, ode_sde_gap, published, report
from fpfast.papers.gap_networks import FULL, SHORT, Budget, Case

TINY = Budget(
    train.Recipe(steps=30, batch_size=64, learning_rate=5e-3, time_law="beta", ema=0.9),
    activation="softplus:20",
    points=0.5,
    samples=300,
    paths=20,
    held_out=100,
    times="1:0:20",
    path_times="1:0:10",
    gaussian_steps=50,
)


def command(*options):
    return cli.main(["paper", "ode-sde-gap", *map(str, options)])


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ode_sde_gap, "SHORT", TINY)
    monkeypatch.setattr(gap_networks, "OU", lambda: fpfast.OU(T=1.0))  # so little training leaves e^T times the prior
    options = ["--data", "circles2", "--seeds", 1, "--jobs", 1, "--out", tmp_path / "out"]
    assert command(*options) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "circles2: squared W2 distances" in printed
    files = {path.name for path in (tmp_path / "out").iterdir()}
    runs = {f"circles2_w{w}_seed{seed}.pt" for w in ("0", "0.1", "1", "10") for seed in (0,)}
    pictures = {"circles2_densities.png", "circles2_residuals.png", "bound.png"}
    assert files == runs | pictures | {"report.md", "report.json"}
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]
    row = numbers["circles2: squared W2 distances, mean over seeds ± its standard error"][2]
    assert row["w"] == 1.0
    assert row["ODE-SDE"]["value"] > 0
    assert row["ODE-SDE"]["error"] is None  # one seed has none
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 0.00309 |" in text  # the authors' number
    assert all(f"({name})" in text for name in pictures)
    trained = (tmp_path / "out" / "circles2_w1_seed0.pt").read_bytes()
    assert command(*options) == 0  # takes the networks up again
    again = capsys.readouterr().out
    assert (tmp_path / "out" / "circles2_w1_seed0.pt").read_bytes() == trained
    same = [line for line in printed.splitlines() if "w = " in line]
    assert same
    assert same == [line for line in again.splitlines() if "w = " in line]


def test_the_weight_is_the_authors():
    """dsm is a sum over coordinates and theirs a mean, so w * 2 leaves the sum of both terms theirs, times two."""
    of = gap_networks.recipe(Case("blob", 0.1, 3), SHORT)
    assert (of.weight, of.box, of.box_time_law, of.regulariser, of.seed) == (0.2, 3.5, "uniform", "log_density", 3)
    assert gap_networks.recipe(Case("blob", 0.0, 0), SHORT).regulariser is None
    full = gap_networks.recipe(Case("checker", 1.0, 0), FULL)
    assert (full.steps, full.batch_size, full.fraction * full.batch_size) == (100_000, 20_000, 5000)
    assert [full.rate(step) for step in (0, 30_000, 95_000)] == pytest.approx([1e-3, 1e-4, 1e-5])


def test_residuals_of_an_exact_potential():
    """Nothing is left of R where phi is log p_t; a wrong factor is seen at every time, at data and in the box."""

    def phi(factor):
        def net(x, t):
            v = 0.5 + torch.exp(-2 * t)  # data N(0, 1.5 I)
            return (-x.square().sum(1) / (2 * v) - torch.log(2 * math.pi * v)) * factor

        return fpfast.Score(net, fpfast.OU(), "potential")

    x0 = torch.randn(50, 2) * 1.5**0.5
    times, at_data, in_box = gap_networks.residuals(phi(1.0), x0)
    assert len(times) == len(at_data) == len(in_box)
    assert max(float(at_data.max()), float(in_box.max())) < 2e-4
    _, at_data, in_box = gap_networks.residuals(phi(1.5), x0)
    assert min(float(at_data.min()), float(in_box.min())) > 0.1


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.012345, 0.000678, "0.0123 ± 0.0007"),
        (1.2e-7, 1e-9, "(1.20 ± 0.01)e-7"),
        (2.5e7, math.nan, "2.50e7"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (-0.001, 0.02, "-0.0010 ± 0.0200"),
        (math.inf, math.nan, "inf"),
        (123.4, 5.0, "123 ± 5"),
    ],
)
def test_cells(value, error, text):
    assert report.cell(Estimate(value, error)) == text


def test_verdicts():
    """The 95% interval by Student's t: 4.30 standard errors for three seeds, 12.7 for two."""
    assert ode_sde_gap.verdict(Estimate(1.0, 0.23), 3) == "as the paper"
    assert ode_sde_gap.verdict(Estimate(-1.0, 0.23), 3) == "against the paper"
    assert ode_sde_gap.verdict(Estimate(1.0, 0.24), 3) == "not decided"
    assert ode_sde_gap.verdict(Estimate(1.0, 0.1), 2) == "not decided"
    assert ode_sde_gap.verdict(report.over_seeds([1.0]), 1) == "not decided"


def test_a_network_that_fails_is_named(tmp_path, monkeypatch, capsys):
    def failing(*arguments, **options):
        raise ValueError("x: expected samples inside [-3.5, 3.5]^2, got none")

    monkeypatch.setattr(ode_sde_gap, "SHORT", TINY)
    monkeypatch.setattr(gap_networks, "gap", failing)
    assert command("--seeds", 1, "--jobs", 1, "--out", tmp_path) == 2
    assert capsys.readouterr().err == "fpfast: blob_w0_seed0: x: expected samples inside [-3.5, 3.5]^2, got none\n"


@pytest.mark.slow
def test_published_networks(tmp_path, monkeypatch, capsys):
    """Histograms of one and the same sampler agree to within noise; those of another do not."""
    (tmp_path / "nets").mkdir()
    weights = Path(fpfast.__file__).parent / "weights" / "blob_w1.safetensors"
    shutil.copy(weights, tmp_path / "nets" / "some.safetensors")
    net = published.load_mlp(weights, (80, 80, 80), activation="softplus:100", potential=True, time_first=True)
    score, n, more = fpfast.Score(net, fpfast.OU(), "potential"), 2000, 50_000
    monkeypatch.setattr(published, "TIMES", "10:0:60")
    drawn = {
        part: fpfast.sample(score, (more, 2), times=published.TIMES, noise=noise, seed=7)
        for part, noise in published.NOISE.items()
    }
    histograms = {part: metrics.histogram(x).weights.ravel() for part, x in drawn.items()}
    numpy.savez(tmp_path / "nets" / "some_hist.npz", truth=histograms["sde"], **histograms)
    monkeypatch.setattr(published, "THEIRS", more)
    monkeypatch.setattr(published, "SAMPLES", n)
    assert command("--published", tmp_path / "nets", "--out", tmp_path / "out") == 0
    assert "plain autograd" in capsys.readouterr().out
    tables = json.loads((tmp_path / "out" / "published.json").read_text())["tables"]
    found = next(rows for name, rows in tables.items() if name.startswith("Histograms"))
    for row in found:
        assert row["total variation"]["value"] == pytest.approx(row["noise"]["value"], abs=5 * row["noise"]["error"])
    for row in next(rows for name, rows in tables.items() if name.startswith("Squared W2")):  # n is a 25th of more
        ours, expected = row["ours"], row["theirs"]
        assert abs(ours["value"] - expected["value"]) < 5 * math.hypot(ours["error"], expected["error"]), row
    theirs = published.published(tmp_path / "nets", "some")
    other = metrics.histogram(fpfast.sample(embedded("blob_w0"), (n, 2), times=published.TIMES, noise=0.0, seed=7))
    floor = metrics.total_variation_floor(theirs["ode"], n, more)
    assert metrics.total_variation(other, theirs["ode"]).value > floor.value + 5 * floor.error


@pytest.mark.parametrize("content", ["junk", "missing", "sum"])
def test_bad_histograms(tmp_path, content):
    path = tmp_path / "a_hist.npz"
    weights = numpy.full(4096, 1 / 4096)
    if content == "junk":
        path.write_bytes(b"junk")
    elif content == "missing":
        numpy.savez(path, ode=weights, truth=weights)
    else:
        numpy.savez(path, ode=weights, sde=2 * weights, truth=weights)
    with pytest.raises(ValueError, match=r"--published: expected .*a_hist.npz"):
        published.published(tmp_path, "a")


def test_a_step_of_autograd():
    x, t = torch.randn(7, 2), torch.tensor(0.3)
    score = embedded("blob_w1")
    want = x + 0.0125 * (x + score(x, t.expand(7)) / 2)
    torch.testing.assert_close(published.autograd_step(score.module, x, t), want, rtol=1e-5, atol=1e-5)


def test_bad_arguments(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for options, message in (
        (["--seeds", 0], "--seeds: expected an integer of at least 1, got 0"),
        (["--jobs", 0], "--jobs: expected an integer of at least 1, got 0"),
        (["--published", tmp_path], "--published: expected a folder of NAME.safetensors and NAME_hist.npz"),
        (["--published", tmp_path, "--full"], "--published: expected neither --full nor --data beside it"),
        (["--out", tmp_path / "file" / "below"], "--out: expected a folder that can be made"),
    ):
        assert command("--out", tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
