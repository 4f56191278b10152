"""Whole runs in the fused engine against the loop over the same network, and its bits against themselves."""

import itertools

import pytest
import torch
from conftest import native, same_bits
from test_fused import doubled, error, mlp

import fpfast
from fpfast import fused

pytestmark = native
SDES = [fpfast.OU(), fpfast.VP(), fpfast.SubVP(), fpfast.VE(0.01, 10.0), fpfast.EDM(), fpfast.Flow()]
CASES = list(itertools.product(fpfast.solvers.SOLVERS, SDES, (0.0, 1.0)))
SIZES = [(1, 1, 1), (1, 16, 2), (1024, 1, 3), (1000, 2, 256), (37, 16, 5)]
PREDICTIONS = itertools.cycle(fpfast.score.PREDICTIONS)


@pytest.mark.parametrize(
    ("solver", "sde", "noise", "predicts"), [(*c, p) for c, p in zip(CASES, PREDICTIONS, strict=False)]
)
def test_run_agrees_with_float64(solver, sde, noise, predicts):
    """As well as torch's float32 loop does; the engine's own float64 to rounding."""
    args, options = (3, (40, 24)), {"potential": predicts == "potential"}
    net = mlp(*args, **options)
    twin = doubled(net, *args, **options)
    run = {"solver": solver, "steps": 9, "noise": noise, "seed": 3, "return_info": True}

    def sample(net, **options):
        return fpfast.sample(fpfast.Score(net, sde, predicts), (60, 3), **run, **options)

    exact, _ = sample(twin, dtype=torch.float64, backend="reference")
    loop, called = sample(net, backend="reference")
    got, info = sample(net)
    slow, _ = sample(fused.compile(twin, 3), dtype=torch.float64)
    assert (info.fused, info.not_fused) == (True, None)
    assert (called.fused, called.not_fused) == (False, "backend is 'reference'")
    assert info.evaluations == called.evaluations
    assert error(slow, exact) < 1e-13
    assert error(got, exact) < 2 * error(loop, exact) + 1e-7


@pytest.mark.parametrize("solver", fpfast.solvers.SOLVERS)
@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_same_bits_however_it_is_split(solver, dimension, threads):
    score = fpfast.Score(mlp(dimension, (30, 17), activation="tanh"), fpfast.VP(), "noise")
    run = {"solver": solver, "steps": 5, "seed": 8}
    whole = fpfast.sample(score, (157, dimension), **run)
    for size in (1, 7, 48, 100):
        assert same_bits(fpfast.sample(score, (157, dimension), batch_size=size, **run), whole), size
    for count in (1, 2):
        threads(count)
        assert same_bits(fpfast.sample(score, (157, dimension), **run), whole), count
    halves = [fpfast.sample(score, (n, dimension), first_sample=k, **run) for k, n in ((0, 90), (90, 67))]
    assert same_bits(torch.cat(halves), whole)
    seeds = list(range(157))
    own = fpfast.sample(score, (157, dimension), **{**run, "seed": seeds})
    back = fpfast.sample(score, (157, dimension), **{**run, "seed": seeds[::-1]})
    assert same_bits(own.flip(0), back)


@pytest.mark.parametrize("tile", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 15, 16, 17, 100])
def test_every_tile_size_has_the_same_bits(tile, samples):
    packed = fused.compile(mlp(4, (33, 20)), 4).packed("output", 8, torch.float32)
    torch.manual_seed(0)
    x, biases = torch.randn(100, 4), packed.program.biases(torch.tensor([0.3]), torch.float32)

    def run(rows, tile):
        out = torch.empty(len(rows), 4)
        packed.cpu.trajectory(
            inputs=[(rows, 0)], outputs=[(out, 4)], program=packed.program.instructions, weights=packed.weights,
            biases=biases, actions=torch.tensor([[1, 0, 0, 4, 0, 0, 0, 0, 0, 0]]), steps=(0, 1),
            evaluations=torch.zeros(1, 1, dtype=torch.int64), coef=torch.zeros(1, 1, 5), dimension=4,
            rows=packed.program.rows, tile=tile,
        )  # fmt: skip
        return out

    assert same_bits(run(x[:samples].contiguous(), tile), run(x, 3)[:samples])


@pytest.mark.parametrize(
    ("width", "depth", "dimension"), [(1, 1, 1), (1, 16, 2), (1024, 1, 3), (1000, 2, 256), (37, 16, 5)]
)
@pytest.mark.parametrize("potential", [False, True])
def test_extreme_sizes(width, depth, dimension, potential):
    net = mlp(dimension, (width,) * depth, potential=potential, activation="tanh")
    score = fpfast.Score(net, fpfast.OU(), "potential" if potential else "score")
    got, info = fpfast.sample(score, (19, dimension), steps=3, seed=0, return_info=True)
    assert info.fused
    assert error(got, fpfast.sample(score, (19, dimension), steps=3, seed=0, backend="reference")) < 1e-5


def test_callback_sees_the_states_of_the_loop():
    score = fpfast.Score(mlp(2, (20, 20)), fpfast.VP(), "noise")
    run = {"solver": "dpmpp_2m", "noise": 0.0, "steps": 6, "seed": 1}
    seen = {"auto": [], "reference": []}
    for backend, states in seen.items():
        fpfast.sample(score, (30, 2), backend=backend, callback=lambda *state, to=states: to.append(state), **run)
    for (step, t, x), (same_step, same_t, y) in zip(seen["auto"], seen["reference"], strict=True):
        assert (step, t) == (same_step, same_t)
        assert error(x, y) < 1e-6


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_callback_at_chosen_steps_and_stop(backend):
    score = fpfast.Score(mlp(2, (20, 20)), fpfast.VP(), "noise")
    run = {"steps": 10, "seed": 1, "backend": backend, "return_info": True}
    whole, _ = fpfast.sample(score, (30, 2), **run)
    steps, states = [], []

    def callback(step, t, x):
        steps.append(step), states.append(x)

    chosen, _ = fpfast.sample(score, (30, 2), callback=callback, callback_steps=[3, 7, 10], **run)
    assert steps == [3, 7, 10]
    assert same_bits(chosen, whole)
    assert same_bits(states[-1], whole)
    stopped, info = fpfast.sample(score, (30, 2), callback=lambda step, t, x: step == 7, **run)
    assert info.evaluations == 7
    assert same_bits(stopped, states[1])
    with pytest.raises(ValueError, match=r"callback_steps: expected .*got 11"):
        fpfast.sample(score, (30, 2), callback=callback, callback_steps=[11], **run)


def test_new_weights_are_used():
    net = mlp(2, (16, 16))
    score, engine = fpfast.Score(net, fpfast.OU()), fused.compile(net, 2)
    held = fpfast.Score(engine, fpfast.OU())
    changes = [
        lambda: net.input.weight.mul_(1.5),
        lambda: net.output.bias.data.add_(1),
        lambda: net.load_state_dict(mlp(2, (16, 16), seed=5).state_dict()),
        lambda: setattr(net, "output", torch.nn.Linear(16, 2).requires_grad_(False)),
        lambda: setattr(net.input, "weight", torch.nn.Parameter(torch.ones(16, 3), requires_grad=False)),
    ]
    before = fpfast.sample(score, (20, 2), steps=4, seed=0)
    for change in changes:
        change()
        want = fpfast.sample(score, (20, 2), steps=4, seed=0, backend="reference")
        assert error(want, before) > 1e-3
        for one in (score, held):
            assert error(fpfast.sample(one, (20, 2), steps=4, seed=0), want) < 1e-5
        before = want


def test_networks_that_the_loop_runs():
    """And why, in the words of ``Info.not_fused``."""
    net = mlp(2, (8,))
    cases = {
        "function": (lambda x, t: net(x, t), {}),
        "guidance": (net, {"guidance": 2.0}),
        "float64": (mlp(2, (8,), dtype=torch.float64), {}),
    }
    reasons = {}
    for name, (module, options) in cases.items():
        call = (lambda x, t, module=module: (module(x, t),) * 2) if name == "guidance" else module
        score = fpfast.Score(call, fpfast.OU(), **options)
        dtype = torch.float64 if name == "float64" else torch.float32
        _, info = fpfast.sample(score, (5, 2), steps=2, seed=0, dtype=dtype, return_info=True)
        assert not info.fused
        reasons[name] = info.not_fused
    assert reasons["function"] == "net is a function, not a torch.nn.Module"
    assert "guidance" in reasons["guidance"]
    assert "float64" in reasons["float64"]


def test_nan_stays_nan():
    net = mlp(2, (16, 16), activation="softplus")
    x = torch.randn(40, 2)
    x[3, 1] = torch.nan
    y = fused.compile(net, 2)(x, torch.tensor(0.5))
    assert bool(y[3].isnan().all())
    assert int(y.isfinite().sum()) == 2 * 39
