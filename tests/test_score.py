"""Every kind of prediction gives the same score; guidance is linear; potentials are differentiated."""

import pytest
import torch
from conftest import mixture

import fpfast
from fpfast.score import PREDICTIONS
from fpfast.sde import SDES, per_sample

ALL = [sde() for sde in SDES.values()]


def predictor(gm, sde, kind):
    """A network that predicts ``kind`` for the mixture exactly, from what the kinds mean."""

    def net(x, t):
        alpha, std = (per_sample(c, x) for c in sde.marginal(t))
        noise = -std * gm.gradient(x, sde, t)
        x0 = (x - std * noise) / alpha
        velocity = sde.drift(x, t) - 0.5 * per_sample(sde.g2(t), x) * gm.gradient(x, sde, t)
        return {
            "score": gm.gradient(x, sde, t),
            "noise": noise,
            "x0": x0,
            "v": alpha * noise - std * x0,
            "velocity": velocity,
            "potential": gm.log_prob(x, sde, t),
        }[kind]

    return net


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("sde", ALL, ids=SDES)
def test_predictions_agree(sde, kind):
    gm = mixture()
    x = torch.randn(20, 2, dtype=torch.float64)
    t = torch.linspace(0.02, 0.95, 20, dtype=torch.float64) * sde.T
    score = fpfast.Score(predictor(gm, sde, kind), sde, predicts=kind)
    torch.testing.assert_close(score(x, t), gm.gradient(x, sde, t), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_sampling_does_not_depend_on_the_prediction(kind):
    gm, sde = mixture(), fpfast.VP()

    def run(kind):
        score = fpfast.Score(predictor(gm, sde, kind), sde, predicts=kind)
        return fpfast.sample(score, (50, 2), solver="dpmpp_2m_sde", steps=20, seed=0, dtype=torch.float64)

    torch.testing.assert_close(run(kind), run("score"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["noise", "potential"])
@pytest.mark.parametrize("solver", fpfast.SOLVERS)
def test_guidance_is_the_mixed_network(solver, kind):
    """Two outputs are folded into one kernel where they fit, else mixed first: both equal mixing in the network."""
    gm, other, sde = mixture(), fpfast.GaussianMixture(torch.zeros(1, 2), torch.ones(1)), fpfast.VP()
    yes, no = predictor(gm, sde, kind), predictor(other, sde, kind)
    guided = fpfast.Score(lambda x, t: (yes(x, t), no(x, t)), sde, predicts=kind, guidance=1.5)
    mixed = fpfast.Score(lambda x, t: 1.5 * yes(x, t) - 0.5 * no(x, t), sde, predicts=kind)
    x, t = torch.randn(6, 2), torch.full((6,), 0.4)
    torch.testing.assert_close(guided(x, t), mixed(x, t))
    options = {"solver": solver, "steps": 15, "seed": 1}
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        a, b = (fpfast.sample(score, (40, 2), dtype=dtype, **options) for score in (guided, mixed))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Potential(torch.nn.Module):
    def __init__(self, squeeze):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))
        self.squeeze = squeeze

    def forward(self, x, t):
        phi = -self.scale * (x.square().sum(1, keepdim=True) / (1 + t[:, None]))
        return phi[:, 0] if self.squeeze else phi


@pytest.mark.parametrize("squeeze", [True, False])
def test_potential(squeeze):
    net = Potential(squeeze)
    score = fpfast.Score(net, fpfast.OU(), predicts="potential")
    x, t = torch.randn(4, 2, requires_grad=True), torch.rand(4)
    s = score(x, t)
    torch.testing.assert_close(s, -2 * 0.7 * x / (1 + t[:, None]))
    s.square().sum().backward()  # differentiable in parameters and input
    assert net.scale.grad is not None
    assert x.grad is not None
    with torch.no_grad():
        assert not score(x, t).requires_grad


def test_no_graph_is_kept_while_sampling():
    seen = []
    net = Potential(True)
    score = fpfast.Score(net, fpfast.OU(), predicts="potential")
    x = fpfast.sample(score, (4, 2), steps=3, seed=0, callback=lambda step, t, x: seen.append(x.requires_grad))
    assert not x.requires_grad
    assert seen == [False] * 3
    assert net.scale.grad is None


def test_time_column():
    def net(x, t):
        assert t.shape == (len(x), 1)
        return x * t

    net.time_column = True
    torch.testing.assert_close(fpfast.Score(net, fpfast.VP())(torch.ones(3, 2), 0.5), torch.full((3, 2), 0.5))


def test_half_precision_outputs_are_widened():
    sde = fpfast.VP()
    for dtype in (torch.bfloat16, torch.float16):
        rounded = fpfast.Score(lambda x, t, d=dtype: (-x).to(d), sde)
        exact = fpfast.Score(lambda x, t, d=dtype: (-x).to(d).float(), sde)
        a, b = (fpfast.sample(score, (9, 5), steps=10, seed=0) for score in (rounded, exact))
        assert torch.equal(a, b)


def test_an_output_whose_sign_is_a_mark_beside_it():
    """As the imaginary part of a conjugate has it."""

    def marked(x, t):
        y = torch.complex(torch.zeros_like(x), x.sin()).conj().imag
        return y if y.is_neg() else torch._neg_view(-y)

    plain = fpfast.Score(lambda x, t: -x.sin(), fpfast.VP(), predicts="noise")
    score = fpfast.Score(marked, fpfast.VP(), predicts="noise")
    assert marked(torch.ones(2, 2), None).is_neg()
    for backend in ("auto", "reference"):
        options = {"steps": 5, "seed": 0, "backend": backend}
        assert torch.equal(fpfast.sample(score, (4, 2), **options), fpfast.sample(plain, (4, 2), **options))
