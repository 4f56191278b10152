"""Fusing is never wrong: modules of any make either agree with the fused engine or are refused by name."""

import contextlib
import copy
import random
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import native
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import fpfast
from fpfast import fused
from fpfast.trajectory import WORK

pytestmark = native


# Modules -------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    width: int
    activation: tuple[str, float]
    as_module: bool = True  # the activation: nn.Tanh or torch.tanh
    residual: str = ""  # "before" or "after" the activation
    skip: bool = False  # x stands beside the input
    shared: bool = False  # the Linear of the layer before
    factor: str = ""  # a constant one


@dataclass
class Plan:
    dimension: int
    layers: list[Layer]
    time: str  # none, first, last (columns of the input), embedding (added in every layer)
    features: str  # of time: plain, learned, buffer (its frequencies)
    shape: int  # how t becomes a column
    column: bool  # time_column
    output: str  # score, or a potential: column, squeeze, item, flat
    bias: bool
    obstacle: str  # what cannot be fused, or ""
    strange: bool  # weights are not contiguous
    double: bool  # float64
    dropout: bool  # in evaluation mode
    change: str  # of the module after it was compiled
    solver: str
    seed: int = 0

    @property
    def potential(self) -> bool:
        return self.output != "score"


ACTIVATIONS = {
    "tanh": (lambda p: nn.Tanh(), lambda h, p: torch.tanh(h)),
    "softplus": (nn.Softplus, functional.softplus),
    "silu": (lambda p: nn.SiLU(), lambda h, p: functional.silu(h)),
    "gelu": (lambda p: nn.GELU("tanh"), lambda h, p: functional.gelu(h, approximate="tanh")),
    "elu": (nn.ELU, functional.elu),
    "sine": (lambda p: Sine(p), lambda h, p: torch.sin(p * h)),
}
COLUMNS = [
    lambda t: t[:, None],
    lambda t: t.unsqueeze(-1),
    lambda t: t.reshape(-1, 1),
    lambda t: t.view(t.shape[0], 1),
    lambda t: t[..., None],
    lambda t: t[:, None] if t.ndim == 1 else t,
]
FACTORS = {
    "number": lambda h, v: 0.7 * h,
    "vector": lambda h, v: h * v,
    "quotient": lambda h, v: h / 1.3,
    "negative": lambda h, v: -h,
    "difference": lambda h, v: 0.5 - h,
    "add": lambda h, v: torch.add(h, v, alpha=0.5),
}
# What stops the engine -> what the message must say.
OBSTACLES = {
    "LayerNorm": r"obstacle \(LayerNorm\)",
    "ReLU": r"obstacle \(ReLU\)",
    "BatchNorm1d": r"obstacle \(BatchNorm1d\)",
    "GELU": r"obstacle \(GELU\)",
    "Dropout": r"obstacle \(Dropout\)",
    "Softplus": r"obstacle \(Softplus\)",
    "gelu": "'gelu'",
    "dropout": "'dropout'",
    "relu": "'relu'",
    "time factor": "'mul'",
    "product": "'mul'",
    "batch mean": "'mean'",
    "hook": "hooks",
    "pre-hook": "hooks",
    "old weight_norm": "hooks",
    "weight_norm": "ParametrizedLinear",
    "bfloat16": "bfloat16",
}
CHANGES = ["in place", "data", "new data", "load", "parameter", "optimizer", "train", "eval"]


class Sine(nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x):
        return torch.sin(self.omega * x)


class Net(nn.Module):
    """What a plan says."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.time_column = plan.column
        features = 1 if plan.features == "plain" else 6
        if plan.features == "learned":
            self.frequencies = nn.Parameter(3 * torch.randn(3))
        elif plan.features == "buffer":
            self.register_buffer("frequencies", 3 * torch.randn(3))
        self.embedding = nn.Sequential(nn.Linear(features, 8), nn.GELU(), nn.Linear(8, 5))
        width = plan.dimension + (features if plan.time in ("first", "last") else 0)
        self.linears, self.times = nn.ModuleList(), nn.ModuleList()
        self.activations = nn.ModuleList(ACTIVATIONS[k.activation[0]][0](k.activation[1]) for k in plan.layers)
        self.vectors = [f"vector{n}" for n in range(len(plan.layers))]
        for name, k in zip(self.vectors, plan.layers, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(k.width)))
        for k in plan.layers:
            width += plan.dimension * k.skip
            shared = k.shared and len(self.linears) > 0 and self.linears[-1].weight.shape == (k.width, width)
            self.linears.append(self.linears[-1] if shared else self.linear(width, k.width, plan.bias))
            self.times.append(nn.Linear(5, k.width))
            width = k.width
        self.last = self.linear(width, 1 if plan.potential else plan.dimension, plan.bias)
        self.dropout = nn.Dropout(0.3).eval()
        makes = {"LayerNorm": lambda: nn.LayerNorm(width), "ReLU": nn.ReLU,
                 "BatchNorm1d": lambda: nn.BatchNorm1d(width), "GELU": nn.GELU, "Dropout": nn.Dropout,
                 "Softplus": lambda: nn.Softplus(1, 3)}  # fmt: skip
        self.obstacle = makes.get(plan.obstacle, nn.Identity)()

    @staticmethod
    def linear(columns: int, rows: int, bias: bool) -> nn.Linear:
        layer = nn.Linear(columns, rows, bias=bias)
        nn.init.xavier_normal_(layer.weight)  # the default shrinks deep networks to their biases
        return layer

    def forward(self, x, t):
        plan = self.plan
        column = t if plan.column else COLUMNS[plan.shape](t)
        features = column
        if plan.features != "plain":
            angle = column * self.frequencies
            features = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
        embedded = self.embedding(features)
        h = {"first": lambda: torch.cat((features, x), 1), "last": lambda: torch.cat((x, features), dim=-1)}.get(
            plan.time, lambda: x
        )()
        width = 0
        for k, linear, time, act, vector in zip(
            plan.layers, self.linears, self.times, self.activations, self.vectors, strict=True
        ):
            old, residual, width = h, k.residual if width == k.width else "", k.width
            h = linear(torch.cat([h, x], dim=1) if k.skip else h)
            if plan.time == "embedding":
                h = h + time(embedded)
            if residual == "before":
                h = h + old
            h = act(h) if k.as_module else ACTIVATIONS[k.activation[0]][1](h, k.activation[1])
            if residual == "after":
                h = old + h
            if k.factor:
                h = FACTORS[k.factor](h, getattr(self, vector))
            if plan.dropout:
                h = self.dropout(h)
        h = self.stopped(h, column)
        y = self.last(h)
        return {
            "squeeze": lambda: y.squeeze(-1),
            "item": lambda: y[:, 0],
            "flat": lambda: y.reshape(-1),
        }.get(plan.output, lambda: y)()

    def stopped(self, h, column):
        match self.plan.obstacle:
            case "gelu":
                return functional.gelu(h)
            case "dropout":
                return functional.dropout(h)
            case "relu":
                return functional.relu(h)
            case "time factor":
                return h * column
            case "product":
                return h * torch.tanh(h)
            case "batch mean":
                return h - h.mean(0)
        return self.obstacle(h)


@st.composite
def plans(draw) -> Plan:
    depth = draw(st.integers(1, 16))
    size = st.integers(41, 130) if draw(st.integers(0, 9)) == 9 else st.integers(1, 40)
    same = draw(st.sampled_from([0, 0, draw(size)]))
    layers = [
        Layer(
            same or draw(size),
            draw(
                st.one_of(
                    st.sampled_from([("tanh", 1.0), ("silu", 1.0), ("gelu", 1.0), ("sine", 1.0), ("sine", 2.5)]),
                    st.tuples(st.just("softplus"), st.sampled_from([0.5, 1.0, 7.0, 100.0])),
                    st.tuples(st.just("elu"), st.sampled_from([1.0, 0.3, 2.0])),
                )
            ),
            draw(st.booleans()),
            draw(st.sampled_from(["", "", "before", "after"])),
            draw(st.integers(0, 4)) == 4,
            draw(st.integers(0, 3)) == 3,
            draw(st.sampled_from(["", "", "", *FACTORS])),
        )
        for _ in range(depth)
    ]
    return Plan(
        dimension=draw(st.integers(1, 20)),
        layers=layers,
        time=draw(st.sampled_from(["none", "first", "last", "embedding"])),
        features=draw(st.sampled_from(["plain", "learned", "buffer"])),
        shape=draw(st.integers(0, len(COLUMNS) - 1)),
        column=draw(st.booleans()),
        output=draw(st.sampled_from(["score", "score", "score", "column", "squeeze", "item", "flat"])),
        bias=draw(st.integers(0, 3)) > 0,
        obstacle=draw(st.sampled_from([*[""] * 4 * len(OBSTACLES), *OBSTACLES])),
        strange=draw(st.booleans()),
        double=draw(st.integers(0, 9)) == 9,
        dropout=draw(st.booleans()),
        change=draw(st.sampled_from(["", *CHANGES])),
        solver=draw(st.sampled_from(["euler_maruyama", "heun", "dpmpp_2m", "exponential"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def build(plan: Plan) -> Net:
    torch.manual_seed(plan.seed)
    net = Net(plan).requires_grad_(False)
    if plan.strange:
        for layer in {*net.linears, net.last}:
            layer.weight = nn.Parameter(layer.weight.t().contiguous().t(), requires_grad=False)
    match plan.obstacle:
        case "hook":
            net.last.register_forward_hook(lambda module, args, out: out * 2)
        case "pre-hook":
            net.register_forward_pre_hook(lambda module, args: None)
        case "weight_norm":
            nn.utils.parametrizations.weight_norm(net.last)
        case "old weight_norm":
            nn.utils.weight_norm(net.last)
        case "bfloat16":
            net.to(torch.bfloat16)
    return net.double() if plan.double and plan.obstacle != "bfloat16" else net


def change(net: Net, how: str) -> None:
    """New values, or a new mode."""
    layer = net.linears[0]
    with torch.no_grad():
        match how:
            case "in place":
                layer.weight.mul_(1.5)
                if net.plan.features == "buffer":
                    net.frequencies.add_(0.3)
            case "data":
                layer.weight.data.add_(0.1)
            case "new data":
                net.last.weight.data = torch.randn_like(net.last.weight)
            case "load":
                net.load_state_dict({name: value * 0.9 for name, value in net.state_dict().items()})
            case "parameter":
                net.last.weight = nn.Parameter(-net.last.weight, requires_grad=False)
            case "optimizer":
                optimizer = torch.optim.SGD([layer.weight], lr=0.1)
                layer.weight.grad = torch.randn_like(layer.weight)
                optimizer.step()
                layer.weight.grad = None
            case "train":
                net.train()
            case "eval":
                net.eval()


# Agreement -----------------------------------------------------------------------------------------------------------


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, root mean square."""
    size = b.double().square().mean().sqrt().clamp(min=1e-25)  # less is lost where denormals are flushed to zero
    return float((a.double() - b.double()).square().mean().sqrt() / size)


def gradient(net: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net(x, t).sum(), x)[0]


def close(got: torch.Tensor, module: torch.Tensor, exact: torch.Tensor, plan: Plan) -> None:
    """As near to the module's value in float64 as the module in its own precision, but for a factor.

    Each layer rounds its sums and its activation to about one unit (6e-8), and later layers pass that on; 1e-6 a layer
    allows for widths to 130 and for the engine's other order of summation. Where a network amplifies its rounding
    errors (cancellation, steep activations) the module's own error shows it, and four times that is allowed.
    torch takes softplus for its argument from a threshold of 20 on, which is e^-20 = 2e-9 off; that counts in float64.
    """
    assert got.shape == module.shape
    assert got.dtype == module.dtype
    softplus = any(layer.activation[0] == "softplus" for layer in plan.layers)
    unit = 1e-6 if got.dtype == torch.float32 else 1e-8 if softplus else 1e-13
    allowed = unit * (len(plan.layers) + 2) + 4 * error(module, exact)
    assert error(got, exact) <= allowed


def agree(engine: fused.Fused, net: nn.Module, plan: Plan) -> None:
    dtype = torch.float64 if plan.double else torch.float32
    exact = copy.deepcopy(net).double()
    x = torch.randn(2 * plan.dimension, 21, dtype=dtype).t()[:, ::2]
    for t in (torch.rand(21, dtype=dtype), torch.full((21,), 0.3, dtype=dtype)):
        t = t[:, None] if plan.column else t
        close(engine(x, t), net(x, t), exact(x.double(), t.double()), plan)
        if plan.potential:
            got = engine.gradient(x, t)
            close(got, gradient(net, x, t), gradient(exact, x.double(), t.double()), plan)


def sample(net, plan: Plan, backend: str, dtype: torch.dtype = torch.float32):
    score = fpfast.Score(net, fpfast.VP(), "potential" if plan.potential else "score")
    shape = (9, plan.dimension)
    options = {"solver": plan.solver, "steps": 3, "seed": 1, "dtype": dtype, "backend": backend, "return_info": True}
    return fpfast.sample(score, shape, **options)


def runs_agree(net: nn.Module, plan: Plan) -> None:
    """Three steps of a solver: their errors add up, and pass through the network again (1e-6 a layer each time)."""
    got, info = sample(net, plan, "auto")
    assert info.fused, info.not_fused
    module, _ = sample(net, plan, "reference")
    exact, _ = sample(copy.deepcopy(net).double(), plan, "reference", torch.float64)
    assert error(got, exact) <= 3e-6 * (len(plan.layers) + 2) + 4 * error(module, exact)


@torch.no_grad()
def check(plan: Plan) -> None:
    net = build(plan)
    if plan.obstacle:
        with pytest.raises(fused.Unsupported, match=OBSTACLES[plan.obstacle]) as caught:
            fused.compile(net, plan.dimension)
        if plan.obstacle not in ("bfloat16", "batch mean") and not plan.double:
            _, info = sample(net, plan, "auto")
            assert not info.fused
            assert info.not_fused == str(caught.value)
        return
    engine = fused.compile(net, plan.dimension)
    agree(engine, net, plan)
    if plan.double:
        assert "torch.float64" in fpfast.sample(
            fpfast.Score(net, fpfast.VP(), "potential" if plan.potential else "score"),
            (2, plan.dimension), steps=1, dtype=torch.float64, seed=0, return_info=True,
        )[1].not_fused  # fmt: skip
    else:
        runs_agree(net, plan)
    change(net, plan.change)
    if plan.change == "train" and plan.dropout:
        with pytest.raises(fused.Unsupported, match=r"dropout \(Dropout\)"):
            engine(torch.zeros(1, plan.dimension), torch.zeros(1))
        return
    if plan.change:
        agree(engine, net, plan)
        if not plan.double:
            runs_agree(net, plan)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(plans())
def test_agrees_or_is_refused(plan):
    check(plan)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(plans())
def test_many_agree_or_are_refused(plan):
    check(plan)


SMALL = Plan(3, [Layer(12, ("silu", 1.0)), Layer(12, ("softplus", 5.0), residual="after")], "embedding", "buffer", 0,
             False, "column", True, "", False, False, True, "", "heun")  # fmt: skip


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_every_obstacle(obstacle, double):
    check(replace(SMALL, obstacle=obstacle, double=double))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change(change, double):
    check(replace(SMALL, change=change, double=double))


# What a trace does not show: each is refused, or agrees. -------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Linear(2, 5), nn.Linear(5, 1), nn.Tanh()
        self.vector = nn.Parameter(torch.randn(5))
        self.register_buffer("number", torch.tensor(2.0))
        self.register_buffer("frequencies", torch.rand(5))
        self.calls = [0]
        self.requires_grad_(False)

    def forward(self, x, t):
        return self.last(self.act(self.first(x) + t[:, None]))


def in_place_unused(self, x, t):
    h = self.first(x)
    h.tanh_()
    return self.last(h)


def in_place_option_unused(self, x, t):
    h = self.first(x)
    functional.silu(h, inplace=True)
    return self.last(h)


def out_option(self, x, t):
    h = self.first(x)
    torch.tanh(h, out=h)
    return self.last(h)


def in_place_on_view(self, x, t):
    h = self.first(x)
    h.view(h.shape[0], -1).mul_(2)
    return self.last(self.act(h))


def in_place_on_time(self, x, t):
    t = t * 1.0
    t.mul_(2)
    return self.last(self.act(self.first(x) + t[:, None]))


def foreach(self, x, t):
    h = [self.first(x)]
    torch._foreach_mul_(h, 2.0)
    return self.last(self.act(h[0]))


def augmented(self, x, t):
    h = self.first(x)
    h += self.vector
    return self.last(self.act(h))


def augmented_alias(self, x, t):
    h = old = self.first(x)
    h += self.vector
    return self.last(self.act(h) + old)


def augmented_alias_of_identity(self, x, t):
    old = self.first(x)
    h = old.contiguous()
    h *= 3
    return self.last(self.act(h) + old)


def computed_bias(self, x, t):
    return self.last(self.act(functional.linear(x, self.first.weight, self.vector * 3)))


def number_of_buffer(self, x, t):
    return self.last(self.act(self.first(x))) * self.number.item()


def branch_on_buffer(self, x, t):
    h = self.first(x)
    return self.last(self.act(h) if self.number > 1 else h)


def number_of_parameter(self, x, t):
    return self.last(self.act(self.first(x))) * float(sum(p.sum() for p in self.parameters()))


def is_tensor(self, x, t):
    t = t * 3 if torch.is_tensor(t) else t
    return self.last(self.act(self.first(x) + t[:, None]))


def type_is_tensor(self, x, t):
    x = x * 3 if type(x) is torch.Tensor else x
    return self.last(self.act(self.first(x) + t[:, None]))


def caught(self, x, t):
    try:
        factor = 1.0 if float(t.sum()) > -1 else 2.0
    except Exception:
        factor = 3.0
    return self.last(self.act(self.first(x))) * factor


def without_grad(self, x, t):
    with torch.no_grad():
        h = self.act(self.first(x))
    return self.last(h) + self.last(self.act(self.first(x * 2)))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        return -grad


def custom_backward(self, x, t):
    return self.last(Reverse.apply(self.act(self.first(x))))


def autocast(self, x, t):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = self.first(x)
    return self.last(self.act(h.float()))


def batch_size(self, x, t):
    return self.last(self.act(self.first(x))) / x.shape[0]


def default_flag(self, x, t, flag=True, *, scale=3):
    return self.last(self.act(self.first(x))) * scale


def buffer_as_row(self, x, t):
    return self.last(self.act(self.first(x) + torch.sin(t[:, None] * self.frequencies[None, :])))


def range_of_numbers(self, x, t):
    return self.last(self.act(self.first(x) + torch.sin(t[:, None] * torch.arange(5))))


def parameter_list(self, x, t):
    return self.last(self.act(self.first(x) + self.list[0]))


def time_by_row(self, x, t):
    return self.last(self.act(self.first(x))) + t


def asks_for_sizes(self, x, t):
    if x.ndim != 2 or x.shape[-1] != 2 or x.dim() != len(x.size()):
        raise ValueError(f"x: {x.shape}")
    assert t.shape[1:] == (), t.shape
    t = t[:, None] if t.dim() == 1 else t
    return self.last(self.act(self.first(x) * x.size(-1) ** -0.5 + t.expand(x.shape[0], x.ndim - 1)))


def branch_on_batch(self, x, t):
    return self.last(self.act(self.first(x))) * (2 if x.shape[0] > 3 else 1)


FORWARDS = [
    in_place_unused, in_place_option_unused, out_option, in_place_on_view, in_place_on_time, foreach, augmented,
    augmented_alias, augmented_alias_of_identity, computed_bias, number_of_buffer, branch_on_buffer,
    number_of_parameter, is_tensor, type_is_tensor, caught, without_grad, custom_backward, autocast, batch_size,
    default_flag, buffer_as_row, range_of_numbers, parameter_list, time_by_row, asks_for_sizes,
    branch_on_batch,
]  # fmt: skip
MUST_FUSE = [augmented, parameter_list, asks_for_sizes]


def agrees(engine: fused.Fused, net: nn.Module) -> None:
    x, t = torch.randn(5, 2), torch.rand(5)
    with torch.no_grad():
        y, want = engine(x, t), net(x, t)
    assert y.shape == want.shape
    assert error(y, want) < 1e-5
    if want.shape[1] == 1:
        assert error(engine.gradient(x, t), gradient(net, x, t)) < 1e-5


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_forward_agrees_or_is_refused(forward):
    net = type("Net", (Plain,), {"forward": forward})()
    if forward is parameter_list:
        net.list = nn.ParameterList([torch.randn(5)]).requires_grad_(False)
    try:
        engine = fused.compile(net, 2)
    except fused.Unsupported:
        assert forward not in MUST_FUSE
        return
    agrees(engine, net)
    net.number.fill_(0.5)
    net.first.weight.mul_(3)
    agrees(engine, net)


def count_calls(self, x, t):
    self.calls[0] += 1
    return self.last(self.act(self.first(x))) * self.calls[0]


def count_in_buffer(self, x, t):
    self.number += 1
    return self.last(self.act(self.first(x))) * self.number


def assign_buffer(self, x, t):
    self.number = self.number + 1
    return self.last(self.act(self.first(x))) * self.number


def random_number(self, x, t):
    return self.last(self.act(self.first(x))) * random.random()


@pytest.mark.parametrize("forward", [count_calls, count_in_buffer, assign_buffer, random_number],
                         ids=lambda forward: forward.__name__)  # fmt: skip
def test_state_is_refused(forward):
    net = type("Net", (Plain,), {"forward": forward})()
    with pytest.raises(fused.Unsupported):
        fused.compile(net, 2)
    assert net.number == 2  # nothing is left of the trial


def replace_activation(net):
    del net.act  # so that the new one may take its address
    net.act = nn.SiLU()


def shrink(net):
    net.first.weight.data, net.first.bias.data = torch.randn(3, 2), torch.randn(3)
    net.last.weight.data = torch.randn(1, 3)


def double_and_back(net):
    net.double()
    net.first.weight.mul_(2)
    net.float()


MUTATIONS = {
    "hook": lambda net: net.first.register_forward_hook(lambda module, args, out: out * 2),
    "pre-hook": lambda net: net.register_forward_pre_hook(lambda module, args: (args[0] * 2, args[1])),
    "weight_norm": lambda net: nn.utils.parametrizations.weight_norm(net.first).requires_grad_(False),
    "activation": replace_activation,
    "unsupported activation": lambda net: setattr(net, "act", nn.ReLU()),
    "more outputs": lambda net: setattr(net, "last", nn.Linear(5, 300).requires_grad_(False)),
    "wider": lambda net: (setattr(net, "first", nn.Linear(2, 90).requires_grad_(False)),
                          setattr(net, "last", nn.Linear(90, 1).requires_grad_(False))),
    "data of another shape": shrink,
    "double and back": double_and_back,
    "forward": lambda net: setattr(net, "forward", lambda x, t: x[:, :1]),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_after_compile(name):
    net = Plain()
    engine = fused.compile(net, 2)
    agrees(engine, net)
    MUTATIONS[name](net)
    with contextlib.suppress(fused.Unsupported):
        agrees(engine, net)


@pytest.mark.parametrize(("outputs", "d"), [(2, 1), (2, 3), (2, 40), (1, 2), (3, 2), (300, 2)])
def test_compiled_for_other_sizes_is_refused(outputs, d):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, outputs)

        def forward(self, x, t):
            return self.layer(x)

    score = fpfast.Score(fused.compile(Other(), 2), fpfast.VP())
    with pytest.raises(ValueError, match=r"shape|dimension|outputs|columns"):
        fpfast.sample(score, (5, d), steps=2, seed=0)


def test_gradient_by_time_is_not_lost():
    net = Plain()
    t = torch.rand(5, requires_grad=True)
    assert fused.compile(net, 2)(torch.randn(5, 2), t).requires_grad


def test_stop_in_one_batch_and_short_native_calls(monkeypatch):
    """A callback that stops the first batch only: the second ends at the same step, wherever native calls are cut."""
    monkeypatch.setitem(WORK, "cpu", 100)
    runs = []
    for backend in ("auto", "reference"):
        calls: list[int] = []
        runs.append(
            fpfast.sample(
                fpfast.Score(Plain(), fpfast.VP(), "potential"), (20, 2), steps=8, seed=1, batch_size=10,
                backend=backend, callback=lambda step, t, x, calls=calls: calls.append(step) or len(calls) == 1,
                callback_steps=[3],
            )
        )  # fmt: skip
        assert calls == [3, 3]
    assert error(*runs) < 1e-5
