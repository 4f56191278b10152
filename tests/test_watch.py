"""Samples that become NaN or infinite: the first step at which they are is found, and they stay before it."""

import warnings

import pytest
import torch

import fpfast
from fpfast import cli, shards
from fpfast.network import MLP
from fpfast.solvers import SOLVERS

N, STEPS = 70, 12


def blows_up():
    """A perceptron whose score drives samples away, each the faster the farther out it is."""
    torch.manual_seed(0)
    net = MLP(2, [16, 16], activation="softplus").requires_grad_(False)
    for parameter in net.parameters():
        parameter.mul_(60)
    return fpfast.Score(net, fpfast.OU(T=3.0))


def not_seen_through():
    score = blows_up()
    return fpfast.Score(lambda x, t: score.net(x, t), score.sde)


def breaks_off():
    """NaN from t = 0.5 on, for some of the samples."""

    def net(x, t):
        return torch.where((t < 0.5)[:, None] & (x[:, :1] > 0.8), torch.nan, -x)

    return fpfast.Score(net, fpfast.VP())


NETS = {"fused": blows_up, "called": not_seen_through, "a function": breaks_off}


def run(score, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fpfast.sample(score, (N, 2), steps=STEPS, seed=1, return_info=True, **options)


def history(score, **options):
    """The states after all steps, [steps + 1, N, 2], and the first after which each sample was not finite, or 0."""
    states = [score.sde.prior((N, 2), seed=1)]
    run(score, callback=lambda step, t, x: states.append(x), **options)
    finite = torch.stack(states).isfinite().all(2)
    first = torch.where(finite.all(0), 0, (~finite).int().argmax(0))
    return torch.stack(states), first


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_samples_stay_where_they_were_finite(name, solver, backend):
    score, options = NETS[name](), {"solver": solver, "backend": backend}
    states, first = history(score, **options)
    broken = first > 0
    assert 0 < int(broken.sum()) < N + (name != "a function")
    x, info = run(score, on_nonfinite="freeze", **options)
    assert bool(x.isfinite().all())
    last = torch.where(broken, first - 1, STEPS)
    assert torch.equal(x, states[last, torch.arange(N)])
    step = int(first[broken].min())
    assert info.nonfinite == int(broken.sum())
    assert info.first_nonfinite == (int((first == step).nonzero()[0, 0]), step)
    assert info.fused == (name == "fused" and backend == "auto")


@pytest.mark.parametrize("name", ["fused", "a function"])  # torch's products are rounded by the size of a batch
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_do_not_matter(name, batch_size):
    score = NETS[name]()
    whole, info = run(score, on_nonfinite="freeze")
    parts, of_parts = run(score, on_nonfinite="freeze", batch_size=batch_size)
    assert torch.equal(parts, whole)
    assert of_parts[3:5] == info[3:5]


@pytest.mark.parametrize("steps", [1, 5])
def test_a_callback_sees_frozen_samples(steps):
    """The engine returns after each step that a callback wants, and goes on with what it knew."""
    seen = []
    wanted = range(steps, STEPS + 1, steps)
    x, info = run(blows_up(), on_nonfinite="freeze", callback=lambda *given: seen.append(given[2]),
                  callback_steps=wanted)  # fmt: skip
    assert all(bool(state.isfinite().all()) for state in seen)
    whole, of_whole = run(blows_up(), on_nonfinite="freeze")
    assert torch.equal(x, whole)
    assert info.first_nonfinite == of_whole.first_nonfinite


@pytest.mark.parametrize("name", NETS)
def test_an_error_says_where(name):
    score = NETS[name]()
    _, first = history(score)
    step = int(first[first > 0].min())
    sample = int((first == step).nonzero()[0, 0])
    where = rf"sample {sample} after step {step} of {STEPS}, at t = [0-9.e-]+$"
    with pytest.raises(FloatingPointError, match=rf"net: \d+ of {N} samples would hold NaN or infinity; first {where}"):
        run(score, on_nonfinite="raise")


def test_a_warning_says_where():
    score = breaks_off()
    with pytest.warns(RuntimeWarning, match=rf"\d+ of {N} samples were frozen; first sample \d+ after step \d+ of"):
        fpfast.sample(score, (N, 2), steps=STEPS, seed=1, on_nonfinite="freeze")


@pytest.mark.parametrize("action", ["ignore", "freeze", "raise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_changes_where_all_is_finite(action, dtype):
    torch.manual_seed(0)
    net = MLP(3, [8, 8]).to(dtype).requires_grad_(False)
    score = fpfast.Score(fpfast.fused.compile(net, 3), fpfast.VP(), predicts="noise")
    options = {"steps": 9, "seed": 0, "dtype": dtype, "backend": "auto"}
    x, info = fpfast.sample(score, (50, 3), on_nonfinite=action, return_info=True, **options)
    assert torch.equal(x, fpfast.sample(score, (50, 3), **options))
    assert (info.nonfinite, info.first_nonfinite) == (0, None)


def test_images():
    def net(x, t):
        return torch.where(t.reshape(-1, 1, 1, 1) < 0.5, torch.inf, 1.0) * x

    options = {"steps": 10, "seed": 0, "on_nonfinite": "freeze", "return_info": True}
    with pytest.warns(RuntimeWarning, match="3 of 3 samples were frozen"):
        x, info = fpfast.sample(fpfast.Score(net, fpfast.VP()), (3, 2, 4, 4), **options)
    assert bool(x.isfinite().all())
    assert (info.nonfinite, info.first_nonfinite) == (3, (0, 7))  # the seventh step begins at t = 0.4


def test_refused():
    with pytest.raises(ValueError, match="on_nonfinite: expected one of"):
        run(breaks_off(), on_nonfinite="stop")


def test_files(tmp_path):
    options = {"steps": STEPS, "seed": 1, "shard_samples": 30}
    with pytest.warns(RuntimeWarning, match=rf"\d+ of {N} samples were frozen"):
        found = fpfast.sample_to_folder(breaks_off(), (N, 2), tmp_path / "a", on_nonfinite="freeze", **options)
    x, info = run(breaks_off(), on_nonfinite="freeze")
    assert torch.equal(torch.cat(list(shards.read(tmp_path / "a"))), x)
    assert found.nonfinite == info.nonfinite
    with pytest.raises(FloatingPointError, match=r"samples-000000000000\.safetensors: net: "):
        fpfast.sample_to_folder(breaks_off(), (N, 2), tmp_path / "b", on_nonfinite="raise", **options)


def test_command(tmp_path, capsys):
    out = str(tmp_path / "x.csv")
    assert cli.main(["sample", "--n", "20", "--steps", "3", "--on-nonfinite", "raise", "--out", out]) == 0
    assert ", 0 not finite" in capsys.readouterr().out
