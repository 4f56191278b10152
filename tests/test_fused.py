"""The fused engine against the module in float64: every activation, prediction kind, solver, shape and way of time."""

import pytest
import torch
from conftest import native
from torch import nn

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
