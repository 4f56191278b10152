"""``sample`` recognises a module once, sees whatever changes in it, and does not keep it alive."""

import gc
import types
import weakref

import pytest
import torch
from conftest import native
from test_fused import error
from test_fused_random import MUTATIONS, Plain, Reverse
from torch import nn

import fpfast
from fpfast import recognise

pytestmark = native
FACTOR = 1.0


class Knobs(nn.Module):
    """A potential that reads what a trace turns into numbers."""

    kind = 1.0

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 1)
        self.act = nn.Softplus(beta=2.0)
        self.scale, self.numbers, self.named, self.nested = 1.0, [1.0, 2.0], {"a": 1.0}, [[1.0], (1.0,)]
        self.tensor, self.object, self.offset = torch.tensor(1.0), types.SimpleNamespace(k=1.0), 0.0
        self.flags = {"a"}

    def forward(self, x, t):
        factor = self.scale * self.numbers[1] * self.named["a"] * self.kind * FACTOR * self.nested[0][0] * self.object.k
        factor = 2 * factor if "b" in self.flags else factor
        return self.last(self.act(self.first(x) + t[:, None])) * factor * self.tensor + self.offset


def set_global(net):
    global FACTOR
    FACTOR = 1.5


def set_forward(net):
    type(net).forward = lambda self, x, t: self.last(self.act(self.first(x) * 2))


SEEN_BY_COMPILED = {
    "item of a set": lambda net: net.flags.add("b"),
    "item of a nested list": lambda net: net.nested[0].__setitem__(0, 3.0),
    "tensor in place": lambda net: net.tensor.mul_(3),
    "float": lambda net: setattr(net, "scale", 1.5),
}
CHANGES = {
    **SEEN_BY_COMPILED,
    "object": lambda net: setattr(net.object, "k", 2.0),
    "item of a list": lambda net: net.numbers.__setitem__(1, 3.0),
    "item of a dict": lambda net: net.named.__setitem__("a", 2.0),
    "attribute of the class": lambda net: setattr(type(net), "kind", 2.0),
    "global": set_global,
    "method of the class": set_forward,
    "parameter of a part": lambda net: setattr(net.act, "beta", 1.0),
    "weights": lambda net: net.first.weight.data.mul_(2),
    "part": lambda net: setattr(net, "act", nn.Tanh()),
}


@pytest.fixture
def traces(monkeypatch):
    """Counts how often a module is traced."""
    calls, trace = [], recognise._trace
    monkeypatch.setattr(recognise, "_trace", lambda net, *how: calls.append(net) or trace(net, *how))
    return calls


@pytest.fixture(autouse=True)
def _reset():
    global FACTOR
    yield
    FACTOR = 1.0


def run(net, backend="auto"):
    score = fpfast.Score(net, fpfast.VP(), "potential")
    return fpfast.sample(score, (20, 2), steps=4, seed=0, backend=backend, return_info=True)


def test_traced_once(traces):
    net = Plain()
    first, second = run(net), run(net)
    assert len(traces) == 1
    assert torch.equal(first[0], second[0])
    assert first[1].fused
    assert second[1].fused
    fpfast.sample(fpfast.Score(net, fpfast.VP(), "potential"), (5, 2), solver="heun", steps=2, seed=0)
    assert len(traces) == 1


def test_calls_of_the_module():
    """On three points: once a run, and for a potential's gradient once more when it is new."""
    calls = []

    class Counted(Plain):
        def forward(self, x, t):
            if isinstance(x, torch.Tensor):
                calls.append(tuple(x.shape))
            return super().forward(x, t)

    net = Counted()
    counts = []
    for _ in range(3):
        calls.clear()
        assert run(net)[1].fused
        assert set(calls) == {(3, 2)}
        counts.append(len(calls))
    assert counts == [2, 1, 1]


@pytest.mark.parametrize("change", CHANGES)
def test_change_between_runs(change):
    net = type("Net", (Knobs,), {})()
    before, info = run(net)
    assert info.fused
    CHANGES[change](net)
    after, info = run(net)
    assert info.fused, info.not_fused
    assert error(after, before) > 1e-3
    assert error(after, run(net, "reference")[0]) < 1e-5


def test_change_under_a_large_constant():
    """The output hardly changes, the gradient does."""
    net = Knobs()
    net.offset = 3000.0
    before, _ = run(net)
    net.object.k = 1.0009
    after, info = run(net)
    assert info.fused
    assert not torch.equal(after, before)
    assert error(after, run(net, "reference")[0]) < 1e-5


@pytest.mark.parametrize("change", SEEN_BY_COMPILED)
def test_change_after_compile(change):
    net = Knobs().requires_grad_(False)
    engine = fpfast.fused.compile(net, 2)
    x, t = torch.randn(5, 2), torch.rand(5)
    before = engine(x, t)
    SEEN_BY_COMPILED[change](net)
    assert error(engine(x, t), net(x, t)) < 1e-5
    assert error(engine(x, t), before) > 0.1


@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in ("more outputs", "forward")])
def test_mutation_between_runs(name):
    net = Plain()
    run(net)
    MUTATIONS[name](net)
    assert error(run(net)[0], run(net, "reference")[0]) < 1e-5


def test_refusals_repeat():
    """A gradient that differs from the trace's is refused at each run, also where it was fused before."""

    class Net(Plain):
        def forward(self, x, t):
            h = self.act(self.first(x))
            return self.last(Reverse.apply(h) if self.number > 1 else h)

    net = Net()
    infos = [run(net)[1] for _ in range(2)]
    assert [info.fused for info in infos] == [False, False]
    assert infos[0].not_fused == infos[1].not_fused


def test_module_is_not_kept_alive():
    net = Plain()
    net.method = net.forward_pre_hook = net.extra_repr  # which hold the module
    run(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_another_dimension():
    class Tanh(nn.Module):
        def forward(self, x, t):
            return torch.tanh(x) * 0.5

    score = fpfast.Score(Tanh(), fpfast.VP())
    for d in (2, 3, 2):
        x, info = fpfast.sample(score, (4, d), steps=2, seed=0, return_info=True)
        assert x.shape == (4, d)
        assert info.fused


def test_numbers_that_a_trace_looked_at():
    """New values of parameters do not need a new trace, unless the forward computes with the values themselves."""

    class Reads(Plain):
        def forward(self, x, t):
            return super().forward(x, t) * self._parameters["number"].item()

    for kind, looked in ((Plain, False), (Reads, True)):
        net = kind()
        net.number = nn.Parameter(torch.tensor(2.0))
        engine = fpfast.fused.compile(net, 2)
        x, t = torch.randn(5, 2), torch.rand(5)
        for _ in range(2):
            with torch.no_grad():
                net.number.mul_(3)
                net.first.weight.mul_(0.5)
                assert torch.allclose(engine(x, t), net(x, t), rtol=1e-5)
        assert engine._looked == looked
