"""The fused engine against the module in float64: every activation, prediction kind, solver, shape and way of time."""

import copy
import random
import threading

import numpy
import pytest
import torch
from conftest import native
from torch import nn

import fpfast
from fpfast import activation, fused
from fpfast.assemble import ACTIVATIONS
from fpfast.network import MLP

pytestmark = native
SPECS = ["tanh", "softplus", "softplus:100", "silu", "gelu", "elu", "sine"]


def mlp(dimension, hidden, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return MLP(dimension, hidden, **options).to(dtype).requires_grad_(False)


def doubled(net, *args, **options):
    twin = mlp(*args, dtype=torch.float64, **options)
    twin.load_state_dict(net.state_dict())
    return twin


def gradient(net, x, t):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net(x, t).sum(), x)[0]


def error(a, b):
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


def test_every_activation_is_tested():
    assert {spec.partition(":")[0] for spec in SPECS} == set(ACTIVATIONS)


@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_error_is_torchs(spec, potential):
    """Root mean square over 2,000 points, against float64: at most twice that of torch in float32."""
    args, options = (3, (80, 70, 60)), {"activation": spec, "potential": potential}
    net = mlp(*args, **options)
    exact, engine = doubled(net, *args, **options), fused.compile(net, 3)
    x, t = 2 * torch.randn(2000, 3), torch.tensor(0.7)
    times = t.expand(2000)
    y = exact(x.double(), times.double())
    assert error(engine(x, t), y) < 2 * error(net(x, times), y)
    slow = fused.compile(exact, 3)
    assert error(slow(x.double(), t.double()), y) < 1e-14
    if potential:
        g = gradient(exact, x.double(), times.double())
        assert error(engine.gradient(x, t), g) < 2 * error(gradient(net, x, times), g)
        assert error(slow.gradient(x.double(), t.double()), g) < 1e-14


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("potential", [False, True])
@pytest.mark.parametrize("dimension", [1, 2, 5, 16])
def test_divergence_is_exact(spec, potential, dimension):
    args, options = (dimension, (20, 24)), {"activation": spec, "potential": potential}
    net = mlp(*args, **options)
    exact = doubled(net, *args, **options)
    x, t = torch.randn(50, dimension), torch.rand(50)
    score = (lambda x: gradient_of(exact, x, t)) if potential else (lambda x: exact(x, t.double()))
    with torch.enable_grad():
        point = x.double().requires_grad_()
        y = score(point)
        rows = [torch.autograd.grad(y[:, i].sum(), point, retain_graph=True)[0][:, i] for i in range(dimension)]
    trace = torch.stack(rows).sum(0)
    got = fused.compile(exact, dimension).divergence(x.double(), t.double(), potential=potential)
    assert error(got, trace) < 1e-12
    assert error(fused.compile(net, dimension).divergence(x, t, potential=potential), trace) < 2e-5


def gradient_of(net, x, t):
    return torch.autograd.grad(net(x, t.double()).sum(), x, create_graph=True)[0]


class OneUnit(nn.Module):
    """act(x)."""

    def __init__(self, spec, dtype):
        super().__init__()
        self.inner = nn.Linear(1, 1, dtype=dtype)
        self.outer = nn.Linear(1, 1, bias=False, dtype=dtype)
        self.activation = activation.activation(spec)
        nn.init.ones_(self.inner.weight), nn.init.zeros_(self.inner.bias), nn.init.ones_(self.outer.weight)
        self.requires_grad_(False)

    def forward(self, x, t):
        return self.outer(self.activation(self.inner(x)))


@pytest.mark.parametrize("spec", SPECS)
def test_activations_far_out(spec):
    """Relative errors also where exponentials under- and overflow, and where the argument is tiny or huge."""
    points = [0.0, 1e-30, 1e-4, 0.3, 1.0, 3.0, 20.0, 40.0, 80.0, 200.0, 3e4, 1e8]
    x = torch.tensor([sign * point for point in points for sign in (1, -1)])[:, None]
    t = torch.zeros(())
    # The float64 engine, which calls the standard library: autograd's own derivatives cancel out here.
    exact, engine = fused.compile(OneUnit(spec, torch.float64), 1), fused.compile(OneUnit(spec, torch.float32), 1)
    beta = 100 if spec == "softplus:100" else 1
    for got, want in (
        (engine(x, t), exact(x.double(), t)),
        (engine.gradient(x, t), exact.gradient(x.double(), t)),
    ):
        # An exponential's relative error is its argument's rounding (to no more than 90, where it underflows).
        relative = 5e-7 * (1 + (beta * x.double().abs()).clamp(max=90))
        absolute = {"gelu": 3e-7, "sine": 2e-7}.get(spec, 0) * x.double().abs().clamp(1e-30, 1) + 1e-29
        wrong = ((got - want).abs() > relative * want.abs() + absolute)[:, 0]
        assert not bool(wrong.any()), torch.cat((x, got, want), 1)[wrong]


class AskingForTypes(MLP):
    """A trace takes the other branch."""

    def forward(self, x, t):
        return super().forward(x, t) * (2 if isinstance(x, torch.Tensor) else 3)


class Asserting(MLP):
    def forward(self, x, t):
        assert len(x) if not isinstance(x, torch.Tensor) else len(x) != 3
        return super().forward(x, t)


def test_what_a_trace_misreads_is_refused_every_time():
    net = AskingForTypes(2, (8,)).requires_grad_(False)
    for _ in range(2):
        with pytest.raises(fused.Unsupported, match="not what its trace says"):
            fused.compile(net, 2)
    held = fused.compile(mlp(2, (8,)), 2)
    held.net.__class__ = AskingForTypes
    held.net.input.bias += 1
    for _ in range(2):
        with pytest.raises(fused.Unsupported, match="not what its trace says"):
            held(torch.zeros(1, 2), torch.zeros(()))


def test_a_forward_that_refuses_the_points_of_the_check():
    _, info = fpfast.sample(fpfast.Score(Asserting(2, (8,)), fpfast.OU()), (5, 2), steps=2, return_info=True)
    assert not info.fused


def test_other_threads_may_call_modules_meanwhile():
    other, x, stop, failures = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.zeros(1, 2), threading.Event(), []

    def call():
        while not stop.is_set():
            try:
                other(x)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(20):
        fused.compile(mlp(2, (8, 8)), 2)
    stop.set()
    thread.join()
    assert not failures


def test_a_copy_reads_its_own_parameters():
    engine = fused.compile(mlp(2, (8,)), 2)
    twin = copy.deepcopy(engine)
    engine.net.input.weight.mul_(2)
    x, t = torch.ones(3, 2), torch.tensor(0.5)
    assert error(twin(x, t), twin.net(x, t.expand(3))) < 1e-6
    assert error(twin(x, t), engine(x, t)) > 1e-3


def test_nan_parameters_are_refused():
    engine = fused.compile(mlp(2, (8,)), 2)
    engine.net.output.bias[0] = torch.nan
    for _ in range(2):
        with pytest.raises(ValueError, match=r"net: expected finite parameters, got NaN or infinity in 'output.bias'"):
            fpfast.sample(fpfast.Score(engine, fpfast.OU()), (5, 2), steps=2)


def test_held(monkeypatch):
    """Within it the module is looked at once, by this thread; other threads, and later calls, look again."""
    looks = []
    look = fused.check_modules
    monkeypatch.setattr(fused, "check_modules", lambda net: looks.append(threading.get_ident()) or look(net))
    net = MLP(2, [8]).requires_grad_(False)
    engine, x, t = fused.compile(net, 2), torch.randn(5, 2), torch.rand(5)
    looks.clear()
    with engine.held():
        for _ in range(3):
            engine(x, t)
        with engine.held():
            engine.divergence(x, t)
        assert looks == [threading.get_ident()]
        thread = threading.Thread(target=lambda: engine(x, t))
        thread.start()
        thread.join()
        assert len(looks) == 2
    next(net.parameters()).mul_(2)
    assert torch.allclose(engine(x, t), net(x, t), atol=1e-5)
    assert len(looks) == 3


class Drawing(torch.nn.Module):
    """Draws from one generator or another, and does nothing with it."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = torch.nn.Linear(3, 2), draw

    def forward(self, x, t):
        self.draw()
        return self.layer(torch.cat([x, t[:, None]], dim=1))


DRAWS = {
    "torch": lambda: torch.rand(3),
    "torch, in place": lambda: torch.empty(2).normal_(),
    "python": random.random,
    "numpy": numpy.random.random,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_forward_that_draws_is_refused(name):
    with pytest.raises(fused.Unsupported, match="net: its forward draws random numbers"):
        fused.compile(Drawing(DRAWS[name]), 2)


def test_no_number_is_drawn_twice_while_networks_are_traced():
    """Other threads draw from torch's generator meanwhile; nobody winds it back."""
    drawn, done = [], threading.Event()

    def draw():
        while not done.is_set():
            drawn.append(float(torch.rand((), dtype=torch.float64)))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(20):
            fused.compile(MLP(2, [4]), 2)
    finally:
        done.set()
        thread.join()
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)


def test_an_engine_that_fails_is_not_taken_for_a_network_that_does(monkeypatch):
    def fails(*arguments, **given):
        raise MemoryError("engine out of memory")

    monkeypatch.setattr(fused.Packed, "evaluate", fails)
    with pytest.raises(MemoryError, match="engine out of memory"):
        fused.compile(MLP(2, [4]), 2)
