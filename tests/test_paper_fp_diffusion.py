"""The command ``fpfast paper fp-diffusion``, and what it measures against cases with known values."""

import json
import math

import pytest
import torch
from torch import nn

import fpfast
from fpfast import cli, losses
from fpfast.mixture import GaussianMixture
from fpfast.network import MLP
from fpfast.papers import fp_diffusion, fp_problems
from fpfast.papers import fp_measures as measures

VP = fpfast.VP()


def points(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """s = -A x + shift."""

    def __init__(self, matrix, shift=0.0):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(matrix), nn.Parameter(torch.tensor(shift, dtype=matrix.dtype))

    def forward(self, x, t):
        return self.shift - (x.flatten(1) @ self.matrix.T).reshape(x.shape)


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_asymmetry_of_a_linear_score(shape):
    a = points(6, 6)
    absolute, relative = measures.asymmetry(fpfast.Score(Linear(a), VP), points(200, 6).reshape(-1, *shape), 0.3)
    assert absolute == pytest.approx(float((a - a.T).norm()))
    assert relative == pytest.approx(float((a - a.T).norm() / a.norm()))
    symmetric = fpfast.Score(Linear(a + a.T), VP)
    assert measures.asymmetry(symmetric, points(20, 6), 0.3)[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d", [2, 20])
def test_residual_of_a_linear_score(d):
    """s = -c x has eps = -g^2 c (c - 1) x under VP."""
    c, t = 1.7, 0.4
    score, x0 = fpfast.Score(Linear(c * torch.eye(d, dtype=torch.float64)), VP), points(300, d)
    size = measures.at(score, x0, t, 3).square().mean().sqrt()
    expected = float(VP.g2(t)) * c * (c - 1) * float(size)
    assert measures.residual(score, x0, t, seed=3) == pytest.approx(expected, rel=1e-6)


def test_residual_by_probes_is_unbiased():
    """In 20 dimensions, of a network that is no gradient: near the exact one, as no estimate squared would be."""
    torch.manual_seed(0)
    net = MLP(20, (16,), activation="tanh").double()
    for p in net.parameters():
        p.data *= 3
    score, x0 = fpfast.Score(net, VP), points(2000, 20)
    x = measures.at(score, x0, 0.5, 1)
    exact = fpfast.fp_residual(score, x, 0.5, estimator="exact").value.square().mean().sqrt()
    one = fpfast.fp_residual(score, x, 0.5, estimator="hutchinson", probes=1, seed=5).value.square().mean().sqrt()
    assert measures.residual(score, x0, 0.5, probes=2, seed=1) == pytest.approx(float(exact), rel=0.02)
    assert one > 1.05 * exact


def test_the_exact_score_of_the_mixture():
    known = fp_problems.mixture()
    score, x0 = known.score(VP), known.sample(400, torch.Generator().manual_seed(0))
    for t in (0.001, 0.1, 1.0):
        assert measures.residual(score, x0, t) < 1e-9 / float(VP.std(t)) ** 4
        assert measures.asymmetry(score, x0, t)[1] < 1e-12
        assert measures.score_error(score, known, x0, t) < 1e-12
        scaled = fpfast.Score(lambda x, t: 1.25 * known.gradient(x, VP, t), VP)
        assert measures.score_error(scaled, known, x0, t) == pytest.approx(0.25)
    nats = measures.mixture_likelihood(score, known, x0.float(), steps=30)
    assert nats.divergence == pytest.approx(0, abs=0.02)  # the prior is not quite the marginal at T
    x = measures.at(score, x0, VP.t_min, 0)
    assert nats.exact == pytest.approx(-float(known.log_prob(x, VP, VP.t_min).mean()), rel=1e-5)
    assert nats.model == pytest.approx(nats.exact + nats.divergence)
    assert nats.trimmed < nats.divergence


def test_bits_of_images():
    """A score of N(0, 0.3 I): bits of its density at the continuous pixels, at t_min."""
    known, whole = GaussianMixture(torch.zeros(1, 4), torch.tensor([0.3])), torch.randint(17, (150, 1, 2, 2))
    score = fpfast.Score(lambda x, t: known.gradient(x.flatten(1), VP, t).reshape(x.shape), VP)
    bits = measures.image_likelihood(score, whole, 17, steps=30, probes=2, seed=3).value
    x = fpfast.dequantise(whole, levels=17, seed=3).flatten(1).double()
    expected = -(known.log_prob(x, VP, VP.t_min) / 4 + math.log(2 / 17)) / math.log(2)
    assert bits.flatten().tolist() == pytest.approx(expected.tolist(), abs=0.02)


def test_weights_are_those_of_the_paper(monkeypatch):
    """Twice their loss: dsm / 2 + alpha mean g^2 |eps|^2 / d^2 + beta |U|; ours has the first part, with our alpha."""
    problem = fp_problems.PROBLEMS["mixture"]._replace(alpha=0.15)
    monkeypatch.setitem(fp_problems.PROBLEMS, "mixture", problem)
    budget = fp_problems.BUDGETS["mixture"]
    score = fpfast.Score(Linear(1.7 * torch.eye(2, dtype=torch.float64), 0.2), VP)
    t = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    x, _ = losses.perturb(VP, points(50, 2), t, 0)
    theirs, ours = (
        fp_diffusion.recipe("mixture", method, budget, 0) for method in (fp_problems.THEIRS, fp_problems.OURS)
    )
    assert theirs.weight == 2
    eps = fpfast.fp_residual(score, x, t, estimator="exact").value
    vector = 0.15 * (VP.g2(t) * eps.square().sum(1)).mean() / 4
    assert losses.fp_diffusion(score, x, t, beta=0.0, seed=0).item() == pytest.approx(vector.item())
    options = {"estimator": ours.estimator, "weighting": ours.residual_weighting, "unbiased": ours.unbiased}
    assert ours.unbiased
    assert ours.regulariser == "score"
    found = ours.weight * losses.fp_regulariser(score, x, t, seed=0, **options)
    assert found.item() == pytest.approx(2 * vector.item(), rel=1e-3)


def test_digits_are_split():
    held_out, rest = (fp_problems.whole_digits(flag).flatten(1) for flag in (True, False))
    assert len(held_out) == fp_problems.HELD_OUT
    assert len(held_out) + len(rest) == 1797
    assert set(held_out.unique().tolist()) == set(range(17))
    assert fp_problems.draw_digits(50, torch.Generator().manual_seed(0)).abs().max() <= 1


def test_verdicts():
    alone = [2.0, 3.0, 4.0]
    assert fp_diffusion.verdict(alone, [1.0, 2.1, 2.9]) == "holds"
    assert fp_diffusion.verdict(alone, [3.0, 4.1, 4.9]) == "the opposite"
    assert fp_diffusion.verdict(alone, [1.0, 2.1, 4.1]) == "not told apart"
    assert fp_diffusion.verdict(alone, [1.99, 2.9, 1.0]) == "not told apart"
    assert fp_diffusion.verdict([2.0], [1.0]) == "not told apart"
    assert measures.geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2)
    assert math.isnan(measures.geometric_mean([1.0, math.nan]))


TINY = {
    "mixture": fp_problems.Budget(60, 4, 64, 8, 8, 40, 4, 300, 5, 1000),
    "digits": fp_problems.Budget(2, 2, 8, 2, 2, 4, 2, 40, 2, 60),
}


@pytest.fixture
def tiny(monkeypatch):
    for module in (fp_diffusion, fp_problems):
        monkeypatch.setattr(module, "BUDGETS", TINY)
    monkeypatch.setattr(fp_diffusion, "TIMES", (0.05, 1.0))
    monkeypatch.setattr(fp_diffusion, "ROUNDS", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_command(tiny, tmp_path, capsys):
    """At a tiny budget; a method's run that is repeated takes the trained network up again and finds the same."""
    assert cli.main(["paper", "fp-diffusion", "--out", str(tmp_path), "--seeds", "1", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    mixture, digits = (found for name, found in tables.items() if "over seeds" in name)
    for found in (mixture, digits):
        for method in fp_problems.METHODS:
            assert all(math.isfinite(value) for value in found[method]["values"][0].values())
            assert all(len(curve) == 2 for curve in found[method]["curves"][0].values())
    assert mixture["exact score"]["score error"] < 1e-5 < mixture[fp_problems.ALONE]["values"][0]["score error"]
    again = fp_diffusion.one("digits", fp_problems.OURS, 0, TINY["digits"], tmp_path)
    assert again.values == pytest.approx(digits[fp_problems.OURS]["values"][0], rel=1e-4)
    for word in ("bits per dimension", "norm of J - J^T", "What holds here", "Cost of a training step", "minutes"):
        assert word in printed
    pictures = {path.name for path in tmp_path.glob("*.png")}
    names = {"mixture_curves", "mixture_samples", "digits_curves", "digits_samples", "ratios"}
    assert pictures == {f"{name}.png" for name in names}
    text = (tmp_path / "report.md").read_text()
    assert all(f"({name})" in text for name in pictures)


def test_each_seed_is_counted_where_it_belongs(tiny, tmp_path, monkeypatch, capsys):
    """With runs that are made up: FP-Diffusion's values are half of those of denoising alone, ours twice."""
    factors = dict(zip(fp_problems.METHODS, (1.0, 0.5, 2.0), strict=True))

    def one(name, method, seed, budget, folder):
        value = factors[method] * (10 + seed + 100 * (name == "digits"))
        values = dict.fromkeys(fp_diffusion.ROWS[name], value)
        return fp_diffusion.Measured({"residual": [value]}, values, {}, (value, value))

    monkeypatch.setattr(fp_diffusion, "one", one)
    for name in ("begun", "_costs", "_pictures"):
        monkeypatch.setattr(fp_diffusion, name, lambda *given: None)
    assert cli.main(["paper", "fp-diffusion", "--out", str(tmp_path), "--seeds", "3", "--jobs", "1"]) == 0
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    for problem, first in (("mixture", 10), ("digits", 110)):
        found = tables[f"{problem}: means and standard errors over seeds"]
        for method, factor in factors.items():
            assert [each["residual"] for each in found[method]["values"]] == [factor * (first + k) for k in range(3)]
        for row in tables[f"{problem}: over denoising alone, seed by seed"][1:]:
            assert row[1:] == ["0.5000 ± 0.0000", "2.000 ± 0.000"]
    claims = tables["What holds here, against denoising alone"]
    assert len(claims) == 1 + len(fp_diffusion.CLAIMS)
    assert all(row[1:] in (["holds", "the opposite"] * 2, ["holds", "the opposite", "", ""]) for row in claims[1:])
