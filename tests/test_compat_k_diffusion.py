"""Samplers with k-diffusion's signatures: against k-diffusion itself where it is installed, and against exact laws."""

import importlib.util
import inspect
import math

import pytest
import torch

from fpfast.compat import k_diffusion as ours

pytest.importorskip("diffusers", reason="diffusers, beside which drop-ins are compared, is not installed")
pytest.importorskip("bench.drop_ins", reason="bench/ is not beside the tests (a wheel's install)")
from bench.drop_ins import SAMPLERS, SIGMAS, difference, model, sampled
from bench.drop_ins import WIDE as X
from bench.peers import loops

NAMES = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde"]
PARTS = ("k_diffusion", "torchsde", "torchdiffeq")
MISSING = [name for name in PARTS if importlib.util.find_spec(name) is None]
HOW = "pip install --no-deps k-diffusion torchsde torchdiffeq trampoline"


@pytest.fixture(scope="module")
def theirs():
    if MISSING:
        pytest.skip(f"{', '.join(MISSING)} not installed ({HOW})")
    return loops.k_diffusion()


@pytest.mark.filterwarnings("ignore:Should have t")
@pytest.mark.parametrize("end", ["to zero", "to the last level"])
@pytest.mark.parametrize(("name", "options"), SAMPLERS, ids=str)
def test_as_theirs(theirs, name, options, end):
    """The same model calls, callbacks and results, to 2e-6 of the largest value."""
    sigmas, told = SIGMAS if end == "to zero" else SIGMAS[:-1], [[], []]
    results = [
        sampled(module, name, options, sigmas=sigmas, callback=calls.append)
        for module, calls in zip((theirs, ours), told, strict=True)
    ]
    assert difference(*results) < 2e-6
    assert len(told[0]) == len(told[1]) == len(sigmas) - 1
    for expected, got in zip(*told, strict=True):
        assert expected.keys() == got.keys()
        scale = float(expected["x"].abs().max())
        for what in ("x", "denoised", "sigma", "sigma_hat"):
            assert torch.allclose(torch.as_tensor(expected[what]), got[what], rtol=0, atol=5e-6 * scale), what


@pytest.mark.parametrize("name", NAMES)
def test_signatures(theirs, name):
    def form(module):
        parameters = inspect.signature(getattr(module, f"sample_{name}")).parameters.values()
        return [(p.name, p.default, p.kind) for p in parameters]

    assert form(ours) == form(theirs)


def normal(x, sigma, **extra):
    """The denoiser of data N(1, 0.25)."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (0.25 * x + s**2) / (0.25 + s**2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {}),
        ("euler", {"s_churn": 20.0, "s_tmin": 0.05}),
        ("heun", {}),
        ("heun", {"s_churn": 20.0}),
        ("euler_ancestral", {}),
        ("euler_ancestral", {"eta": 0.5}),
        ("dpmpp_2m", {}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.5}),
        ("dpmpp_sde", {}),
        ("dpmpp_sde", {"eta": 0.5, "r": 0.3}),
    ],
    ids=str,
)
def test_own_noise_gives_the_law(name, options):
    sigmas = torch.cat([torch.linspace(80 ** (1 / 7), 0.02 ** (1 / 7), 120) ** 7, torch.zeros(1)])
    torch.manual_seed(1)
    x = getattr(ours, f"sample_{name}")(normal, torch.randn(40000, 1) * 80, sigmas, disable=True, **options)
    assert float(x.mean()) == pytest.approx(1, abs=0.02)
    assert float(x.std()) == pytest.approx(
        0.5, rel=0.08 if name.startswith("euler") else 0.02
    )  # of first order: some percent


def test_churn_as_theirs_but_for_the_noise(theirs):
    """With a model for which noise does not matter at the end: churned levels are the same."""
    told = [[], []]
    for module, calls in zip((theirs, ours), told, strict=True):
        for name in ("euler", "heun"):
            sampler = getattr(module, f"sample_{name}")
            sampler(model, X, SIGMAS, disable=True, callback=calls.append, s_churn=5.0, s_tmin=0.1, s_tmax=50.0)
    for expected, got in zip(*told, strict=True):
        assert float(expected["sigma_hat"]) == pytest.approx(float(got["sigma_hat"]), rel=1e-6)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"])
def test_seeds(name):
    sampler = getattr(ours, f"sample_{name}")

    def run(x, seed):
        return sampler(model, x, SIGMAS, extra_args={"seed": seed}, disable=True)

    assert torch.equal(run(X, 7), run(X, 7))
    assert not torch.equal(run(X, 7), run(X, 8))
    # A seed for each sample: it does not depend on the others.
    assert torch.allclose(run(X, [5, 6, 7, 8, 9, 10])[2:4], run(X[2:4], [7, 8]), atol=1e-4)
    torch.manual_seed(3)
    first = sampler(model, X, SIGMAS, disable=True)
    torch.manual_seed(3)
    assert torch.equal(first, sampler(model, X, SIGMAS, disable=True))


def test_the_state_is_not_changed_and_half_precision_is_kept():
    before = X.clone()
    ours.sample_heun(model, X, SIGMAS, disable=True)
    assert torch.equal(X, before)
    seen = []

    def half(x, sigma):
        seen.append((x.dtype, sigma.dtype))
        return model(x.float(), sigma.float()).to(x)

    assert ours.sample_dpmpp_2m(half, X.half(), SIGMAS, disable=True).dtype == torch.float16
    assert set(seen) == {(torch.float16, torch.float16)}
    double = ours.sample_heun(lambda x, s: model(x.float(), s.float()).double(), X.double(), SIGMAS, disable=True)
    assert double.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((model, X, SIGMAS.tolist()), {}, r"sigmas: expected a tensor of shape \(steps \+ 1,\), got list"),
        ((model, X, SIGMAS.flip(0)), {}, r"sigmas: expected positive finite levels, the last of which may be 0"),
        ((model, X, SIGMAS * math.nan), {}, r"sigmas: expected positive finite levels"),
        ((model, X, SIGMAS[[3, 2, 4]]), {}, r"sigmas: expected strictly descending levels"),
        ((model, X.long(), SIGMAS), {}, r"x: expected a floating-point tensor"),
        ((lambda x, s: x[:, :1], X, SIGMAS), {}, r"model: expected a tensor of shape \(6, 3, 2, 2\) as x"),
        ((lambda x, s: x.long(), X, SIGMAS), {}, r"model: expected 16 bits or torch.float32 on cpu"),
        ((model, X, SIGMAS), {"eta": -1.0}, r"eta: expected a finite number that is not negative"),
        ((model, X, SIGMAS), {"noise_sampler": lambda a, b: X[:2]}, r"noise_sampler: expected a tensor of shape"),
        ((model, X, SIGMAS), {"extra_args": {"seed": [1, 2]}}, r"seed: expected one seed, or one for each of the 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ours.sample_dpmpp_2m_sde(*arguments, disable=True, **options)


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_are_not_finite(name):
    """They are returned, with a warning where the sampler was called."""

    def broken(x, sigma, seed):
        return torch.cat([model(x, sigma)[:5], x[5:] * math.nan])

    with pytest.warns(RuntimeWarning, match="^1 of 6 samples hold NaN or infinity") as said:
        getattr(ours, f"sample_{name}")(broken, X, SIGMAS, disable=True, extra_args={"seed": 0})
    assert said[0].filename == __file__


def test_half_precision_may_not_hold_the_result():
    """Down to 1e-5 Heun's slope is (x - D) / 1e-5."""
    x = torch.full((2, 1), 1e3, dtype=torch.float16)
    with pytest.warns(RuntimeWarning, match="2 of 2 samples hold NaN or infinity"):
        ours.sample_heun(lambda x, s: -x, x, torch.tensor([1.0, 1e-3, 1e-5]), disable=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_may_answer_in_one_place(name):
    """As compiled networks and CUDA graphs do."""
    place = torch.empty_like(X)

    def reuses(x, sigma, seed=None):
        return place.copy_(model(x, sigma))

    found = [
        getattr(ours, f"sample_{name}")(net, X * 10, SIGMAS, disable=True, extra_args={"seed": 0})
        for net in (model, reuses)
    ]
    assert torch.equal(*found)


def test_a_model_that_changes_its_input_is_refused():
    with pytest.raises(ValueError, match="model: expected a model that leaves its input as it is"):
        ours.sample_euler(lambda x, sigma, **extra: x.mul_(0.5), X.clone(), SIGMAS, disable=True)
