"""edm_sampler against its algorithm, written down here from the paper in float64."""

import itertools
import math

import pytest
import torch

from fpfast.compat.edm import edm_sampler

X = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(7)


class Net:
    """A denoiser that knows its levels only to a grid, as iDDPM's does."""

    sigma_min, sigma_max = 0.01, 50.0

    def __init__(self, grid=0.0):
        self.grid = grid
        self.calls = []

    def round_sigma(self, sigma):
        return (sigma / self.grid).round() * self.grid if self.grid else sigma

    def __call__(self, x, sigma, labels):
        assert labels is LABELS
        self.calls.append(float(sigma.flatten()[0]))
        s = sigma.reshape(-1, 1, 1, 1).to(x.dtype)
        return (x / (1 + s**2) + 0.2 * torch.sin(x / (1 + s))).to(x.dtype)


def algorithm_2(net, latents, noise, steps=18, churn=0.0, least=0.0, most=float("inf"), s_noise=1.0):
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    t = (50 ** (1 / 7) + ramp * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7
    t = torch.cat([net.round_sigma(t), torch.zeros(1, dtype=torch.float64)])
    x = latents.double() * t[0]
    for now, after in itertools.pairwise(t):
        gamma = min(churn / steps, 2**0.5 - 1) if least <= now <= most else 0.0
        hat = net.round_sigma(now + gamma * now)
        if gamma:
            x = x + (hat**2 - now**2).sqrt() * s_noise * noise().double()
        slope = (x - net(x, hat, LABELS)) / hat
        euler = x + (after - hat) * slope
        if after == 0:
            return euler
        x = x + (after - hat) * (slope + (euler - net(euler, after, LABELS)) / after) / 2
    return x


def noises():
    generator = torch.Generator().manual_seed(4)
    return lambda *_: torch.randn(X.shape, generator=generator)


@pytest.mark.parametrize("grid", [0.0, 0.005])
@pytest.mark.parametrize("churn", [{}, {"churn": 30.0, "least": 0.05, "most": 20.0, "s_noise": 1.01}], ids=str)
def test_as_algorithm_2(grid, churn):
    ours, theirs = Net(grid), Net(grid)
    names = {"churn": "S_churn", "least": "S_min", "most": "S_max", "s_noise": "S_noise"}
    options = {names[key]: value for key, value in churn.items()}
    got = edm_sampler(ours, X, LABELS, noises(), **options)
    expected = algorithm_2(theirs, X, noises(), **churn)
    assert got.dtype == torch.float64
    assert float((got - expected).abs().max()) < 2e-6 * max(1, float(expected.abs().max()))
    assert ours.calls == pytest.approx(theirs.calls, rel=1e-6)


def test_own_noise():
    torch.manual_seed(0)
    first = edm_sampler(Net(), X, LABELS, S_churn=40.0)
    torch.manual_seed(0)
    assert torch.equal(first, edm_sampler(Net(), X, LABELS, S_churn=40.0))
    assert not torch.allclose(first, edm_sampler(Net(), X, LABELS, S_churn=40.0))


def test_samples_that_are_not_finite():
    class Broken(Net):
        def __call__(self, *arguments):
            return super().__call__(*arguments) * math.nan

    with pytest.warns(RuntimeWarning, match=f"^{len(X)} of {len(X)} samples hold NaN or infinity") as said:
        edm_sampler(Broken(), X, LABELS)
    assert said[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, r"num_steps: expected an integer in \[1, "),
        ({"rho": 0.0}, r"rho: expected a positive number"),
        ({"sigma_min": 60.0}, r"sigma_min, sigma_max: expected 0 < sigma_min < sigma_max"),
    ],
    ids=str,
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        edm_sampler(Net(), X, LABELS, **options)
