"""Adapters in the shape of score_sde: whose SDEs and networks are stood in for by what their code says they have."""

import math
from types import SimpleNamespace

import pytest
import torch

from fpfast.compat import score_sde

N = 200
MEAN, STD = 0.7, 0.4  # of the data


class VPSDE:
    T, N = 1.0, N
    beta_0, beta_1 = 0.1, 20.0

    def __init__(self):
        betas = torch.linspace(self.beta_0 / self.N, self.beta_1 / self.N, self.N)
        self.sqrt_1m_alphas_cumprod = (1 - (1 - betas).cumprod(0)).sqrt()

    def marginal(self, t):
        alpha = (-0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0).exp()
        return alpha, (1 - alpha**2).sqrt()


class subVPSDE(VPSDE):
    def marginal(self, t):
        alpha = super().marginal(t)[0]
        return alpha, 1 - alpha**2


class VESDE:
    T, N = 1.0, N
    sigma_min, sigma_max = 0.01, 20.0

    def marginal(self, t):
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t


class Model(torch.nn.Module):
    """The exact network: labels are 999 t, or t (N - 1), or sigma, or its number, as in models/utils.py there."""

    def __init__(self, sde, continuous):
        super().__init__()
        self.sde, self.continuous, self.calls = sde, continuous, 0

    def forward(self, x, labels):
        self.calls += 1
        assert not self.training
        sde = self.sde
        if isinstance(sde, VESDE):
            if self.continuous:
                t = (labels / sde.sigma_min).log() / math.log(sde.sigma_max / sde.sigma_min)
            else:
                assert labels.dtype == torch.int64
                t = 1 - labels / (sde.N - 1)
        else:
            t = labels / (999 if self.continuous or isinstance(sde, subVPSDE) else sde.N - 1)
        alpha, std = (c[:, None] for c in sde.marginal(t.double()))
        score = -(x - alpha * MEAN) / ((alpha * STD) ** 2 + std**2)
        if isinstance(sde, VESDE):
            return score.float()
        if not self.continuous and not isinstance(sde, subVPSDE):
            std = sde.sqrt_1m_alphas_cumprod[labels.long()][:, None]
        return (-score * std).float()


SDES = [VPSDE, subVPSDE, VESDE]


def agrees(x, tolerance):
    assert float(x.mean()) == pytest.approx(MEAN, abs=tolerance)
    assert float(x.std()) == pytest.approx(STD, rel=tolerance)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("corrector", ["none", "ald", "langevin"])
@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion", "ancestral_sampling"])
@pytest.mark.parametrize("kind", SDES)
def test_laws(kind, predictor, corrector, flow):
    sde, shape = kind(), (20000, 1)
    arguments = (sde, shape, predictor, corrector, lambda x: 2 * x, 0.16)
    options = {"probability_flow": flow, "continuous": True, "eps": 1e-3, "device": "cpu"}
    if predictor == "ancestral_sampling" and (flow or kind is subVPSDE):
        with pytest.raises(ValueError, match=r"predictor: expected 'reverse_diffusion' or 'euler_maruyama'"):
            score_sde.get_pc_sampler(*arguments, **options)
        return
    model = Model(sde, True).train()
    torch.manual_seed(0)
    x, evaluations = score_sde.get_pc_sampler(*arguments, **options)(model)
    assert evaluations == 2 * N  # as theirs counts, whose correctors are called to do nothing
    assert model.calls == N * (1 + (corrector != "none"))
    agrees(x / 2, 0.15 if flow else 0.06)  # 200 steps of first order


@pytest.mark.parametrize("kind", SDES)
def test_discrete_networks(kind):
    sde = kind()
    sampler = score_sde.get_pc_sampler(sde, (20000, 1), "reverse_diffusion", None, lambda x: x, 0.16, device="cpu")
    agrees(sampler(Model(sde, False))[0], 0.06)


@pytest.mark.parametrize("kind", SDES)
def test_steps_are_theirs(kind):
    """Their reverse-diffusion predictor along the probability flow, written down here: equal to the order of 1/N."""
    sde = kind()
    model = Model(sde, True)
    sampler = score_sde.get_pc_sampler(
        sde, (9, 1), "reverse_diffusion", "none", lambda x: x, 0.16, probability_flow=True, continuous=True, eps=1e-3,
        device="cpu",
    )  # fmt: skip
    torch.manual_seed(5)
    got = sampler(model)[0]
    torch.manual_seed(5)
    x = score_sde._sde(sde).prior((9, 1), seed=None).double()  # where that run began
    for t in torch.linspace(1, 1e-3, N, dtype=torch.float64).tolist():
        alpha, std = sde.marginal(torch.tensor([t], dtype=torch.float64))
        score = -(x - alpha * MEAN) / ((alpha * STD) ** 2 + std**2)
        index = round(t * (N - 1))
        if kind is VESDE:
            sigmas = 0.01 * 2000 ** (torch.arange(N, dtype=torch.float64) / (N - 1))
            g2 = sigmas[index] ** 2 - (sigmas[index - 1] ** 2 if index else 0)
            x = x + g2 / 2 * score
        elif kind is VPSDE:
            beta = (0.1 + (20 - 0.1) * index / (N - 1)) / N
            x = (2 - (1 - beta) ** 0.5) * x + beta / 2 * score
        else:  # the base class's Euler discretisation
            beta = 0.1 + t * (20 - 0.1)
            g2 = beta * (1 - math.exp(-2 * 0.1 * t - (20 - 0.1) * t**2))
            x = x + (0.5 * beta * x + g2 / 2 * score) / N
    assert float((got - x).abs().max()) < (0.08 if kind is subVPSDE else 0.03)


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("denoise", [False, True])
def test_ode(kind, denoise):
    sde = kind()
    torch.manual_seed(1)
    sampler = score_sde.get_ode_sampler(sde, (4000, 1), lambda x: x, denoise=denoise, device="cpu")
    x, evaluations = sampler(Model(sde, True))
    assert 10 < evaluations < 2000
    agrees(x, 0.08)
    start = torch.randn(4000, 1)
    assert torch.equal(sampler(Model(sde, True), start)[0], sampler(Model(sde, True), start)[0])


def config(**changes):
    sampling = {
        "method": "pc", "predictor": "euler_maruyama", "corrector": "none", "snr": 0.16, "n_steps_each": 1,
        "probability_flow": False, "noise_removal": True, **changes,
    }  # fmt: skip
    return SimpleNamespace(
        sampling=SimpleNamespace(**sampling), training=SimpleNamespace(continuous=True), device=torch.device("cpu")
    )


@pytest.mark.parametrize("changes", [{}, {"corrector": "ald", "n_steps_each": 3}, {"method": "ode"}], ids=str)
def test_by_configuration(changes):
    sde = VPSDE()
    sampler = score_sde.get_sampling_fn(config(**changes), sde, (4000, 1), lambda x: x, 1e-3)
    torch.manual_seed(0)
    agrees(sampler(Model(sde, True))[0], 0.1)


def test_predictor_classes():
    class ReverseDiffusionPredictor:
        pass

    class LangevinCorrector:
        pass

    sde = VESDE()
    sampler = score_sde.get_pc_sampler(
        sde, (4000, 1), ReverseDiffusionPredictor, LangevinCorrector, lambda x: x, 0.16, continuous=True, device="cpu"
    )
    agrees(sampler(Model(sde, True))[0], 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sde": SimpleNamespace(N=5)}, r"sde: expected a VPSDE, subVPSDE or VESDE of score_sde, got SimpleNamespace"),
        ({"predictor": "heun"}, r"predictor: expected one of 'euler_maruyama'"),
        ({"corrector": "mala"}, r"corrector: expected one of 'langevin'"),
        ({"predictor": None}, r"predictor, corrector: expected one of them, got neither"),
        ({"snr": -1}, r"snr: expected a number that is not negative"),
        ({"eps": 1.0}, r"eps: expected a time from 10"),
    ],
    ids=str,
)
def test_refused(change, message):
    arguments = {"sde": VPSDE(), "shape": (3, 2), "predictor": "euler_maruyama", "corrector": "none",
                 "inverse_scaler": lambda x: x, "snr": 0.16, "device": "cpu", **change}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        score_sde.get_pc_sampler(**arguments)
    with pytest.raises(ValueError, match=r"config.sampling.method: expected one of 'pc', 'ode'"):
        score_sde.get_sampling_fn(config(method="sde"), VPSDE(), (3, 2), lambda x: x, 1e-3)


def test_an_ode_that_cannot_be_solved():
    sampler = score_sde.get_ode_sampler(VPSDE(), (4, 2), lambda x: x, device="cpu")

    def model(x, labels):
        return torch.where((labels < 500).reshape(-1, 1), torch.nan, -x)

    with pytest.raises((RuntimeError, ValueError), match="model: the ODE could not be solved"):
        sampler(model)
    with pytest.raises(ValueError, match=r"eps: expected a time from 10"):
        score_sde.get_ode_sampler(VPSDE(), (4, 2), lambda x: x, eps=1.0, device="cpu")


def test_what_is_not_used_is_not_looked_at():
    """Numbers of steps of no corrector; a table that is longer than an N that was lowered later."""
    sampler = score_sde.get_pc_sampler(
        VESDE(), (4, 2), "euler_maruyama", "none", lambda x: x, 0.16, n_steps=0, device="cpu"
    )
    assert sampler(lambda x, sigma: -x)[0].shape == (4, 2)
    sde = VPSDE()
    sde.N = 30
    sampler = score_sde.get_pc_sampler(
        sde, (4, 2), "euler_maruyama", "none", lambda x: x, 0.16, continuous=False, device="cpu"
    )
    assert sampler(lambda x, labels: -x)[0].shape == (4, 2)


def test_a_start_of_16_bits():
    sampler = score_sde.get_ode_sampler(VPSDE(), (4, 2), lambda x: x, device="cpu")
    z = torch.randn(4, 2).bfloat16()
    assert torch.equal(sampler(lambda x, t: -x, z)[0], sampler(lambda x, t: -x, z.float())[0])
