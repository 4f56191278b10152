"""sample(graph=...): replayed steps have the bits of the loop, nothing in them waits, and what cannot be is said."""

import gc
import itertools
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import fake_graphs
import pytest
import torch
from conftest import native, same_bits
from torch import nn

import fpfast
from fpfast import graph, loop
from fpfast.network import MLP
from fpfast.solvers import SOLVERS

pytestmark = native


@pytest.fixture
def captures(monkeypatch) -> list[fake_graphs.Fake]:
    return fake_graphs.install(monkeypatch)


def drift(x, t):
    return -x * (1 + t[:, None]) + torch.tanh(x.flip(1))


SCORE = fpfast.Score(drift, fpfast.VP())
PAIR = fpfast.Score(lambda x, t: (drift(x, t), 0.5 * drift(x, t)), fpfast.VP(), "x0", guidance=3.0)
HALF = fpfast.Score(lambda x, t: drift(x, t).to(torch.bfloat16), fpfast.VP(), "noise")
POTENTIAL = fpfast.Score(lambda x, t: -(x**2).sum(1) * (1 + t), fpfast.VP(), "potential")
SCORES = {"score": SCORE, "guidance": PAIR, "bfloat16": HALF, "potential": POTENTIAL}


def both(captures, score=SCORE, n=10, **options):
    """What a run gives with and without graphs, and what the first one says."""
    options = {"steps": 9, "seed": 3, **options}
    expected = fpfast.sample(score, (n, 4), graph=False, **options)
    got, info = fpfast.sample(score, (n, 4), graph=True, return_info=True, **options)
    assert same_bits(got, expected)
    assert info.graph
    assert info.not_graph is None
    assert captures[-1].replays > 0
    return info


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("which", SCORES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_same_bits_as_the_loop(captures, solver, which, noise):
    for final in ("mean", "noise"):
        both(captures, SCORES[which], solver=solver, noise=noise, final=final)


FAR = 2**32 - 13  # with batches of 5 numbers pass 2^32 in the third


@pytest.mark.parametrize(
    ("solver", "first", "captured"),
    [("heun", 7, 2), ("dpmpp_2m", 7, 3), ("pc", 0, 2), ("heun", FAR, 5), ("dpmpp_2m", FAR, 5), ("pc", FAR, 4)],
)
def test_batches_share_what_is_captured(captures, solver, first, captured):
    """Kinds that occur once or twice a batch too. Where the upper halves of numbers change, all is captured anew."""
    both(captures, n=20, batch_size=5, first_sample=first, solver=solver)
    assert captures[-1].captures == captured


def test_a_length_of_its_own_for_the_last_batch(captures):
    both(captures, n=13, batch_size=5)
    assert captures[-1].captures == 2
    both(captures, n=11, batch_size=5, steps=5)
    assert captures[-1].captures == 2
    both(captures, n=11, batch_size=5, steps=4, final="noise")
    assert captures[-1].captures == 2


def test_one_seed_per_sample(captures):
    both(captures, n=12, seed=list(range(12)), batch_size=4)
    both(captures, n=12, seed=list(range(12)))


def test_start_and_shapes(captures):
    x = torch.randn(10, 4)
    before = x.clone()
    both(captures, x=x)
    assert same_bits(x, before)
    image = fpfast.Score(lambda x, t: -x * t[:, None, None, None], fpfast.VP())
    options = {"steps": 6, "seed": 1, "solver": "dpmpp_2m"}
    a, b = (fpfast.sample(image, (3, 2, 5, 5), graph=which, **options) for which in (True, False))
    assert same_bits(a, b)


@pytest.mark.parametrize("solver", ["euler_maruyama", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
def test_callbacks_come_between_replays(captures, solver):
    def run(which, stop=None, **options):
        seen = []

        def callback(step, t, x):
            seen.append((step, t, x.clone()))
            x.zero_()  # a copy: nothing happens to the run
            return step == stop

        out = fpfast.sample(SCORE, (10, 4), solver=solver, steps=9, seed=3, graph=which, callback=callback, **options)
        return out, seen

    for options in ({}, {"stop": 6}, {"stop": 6, "batch_size": 4}, {"callback_steps": [3, 8]}):
        (a, seen), (b, expected) = run(True, **options), run(False, **options)
        assert same_bits(a, b)
        assert [one[:2] for one in seen] == [one[:2] for one in expected]
        assert all(same_bits(one[2], other[2]) for one, other in zip(seen, expected, strict=True))


def test_a_run_that_ends_before_a_capture_says_so(captures):
    _, info = fpfast.sample(SCORE, (5, 4), steps=9, seed=0, callback=lambda *_: True, return_info=True)
    assert not info.graph
    assert info.not_graph == "the run ended before a step was captured"


def test_kinds_of_steps_that_alternate(captures, monkeypatch):
    """Captured both; the rare third kind runs as it is between replays, from and to the fixed places."""
    solver = SOLVERS["dpmpp_2m_sde"]

    def mixed(plan):
        table = solver(plan)
        table.coef[::2, :, 4] = 0  # no noise in these
        table.coef[5, :, 2:4] = 0  # of first order
        return table

    monkeypatch.setitem(SOLVERS, "mixed", mixed)
    both(captures, solver="mixed", steps=20)
    assert captures[-1].captures == 2
    assert captures[-1].replays == 16


def test_what_a_network_is_called(captures):
    """Once for each step that is run as it is and once for the capture."""
    calls = []

    def net(x, t):
        calls.append(float(t[0]) if not graph_is_being_captured() else None)
        return -x

    def graph_is_being_captured():
        return fake_graphs.Fake.recording is not None

    _, info = fpfast.sample(fpfast.Score(net, fpfast.VP()), (5, 4), steps=9, seed=0, return_info=True)
    assert info.evaluations == 9
    assert [one is None for one in calls] == [False, True, False]  # the first step, the capture, the last one, a mean
    assert (captures[-1].warm_ups, captures[-1].replays) == (1, 7)


def test_nothing_waits_for_the_device(captures, monkeypatch):
    """Nor copies from the host, from the first step to the last, whether a step is replayed or not."""
    run = loop.Loop.__call__

    def watched(*args):
        with fake_graphs.no_waiting():
            return run(*args)

    monkeypatch.setattr(loop.Loop, "__call__", watched)
    for solver in SOLVERS:
        for score in SCORES.values():
            for which in (True, False):
                fpfast.sample(score, (7, 4), solver=solver, steps=6, seed=0, batch_size=4, graph=which)
    waits = fpfast.Score(lambda x, t: -x * float(t[0]), fpfast.VP())
    with pytest.raises(RuntimeError, match="values were read"):
        fpfast.sample(waits, (7, 4), steps=6, seed=0, graph=False)


def waiting(x, t):
    return -x * t[:, None].clamp(max=t.max().item())


def test_a_network_that_waits_runs_as_it_is(captures):
    score = fpfast.Score(waiting, fpfast.VP())
    for options in ({}, {"batch_size": 4}):
        options = {"steps": 9, "seed": 3, "solver": "dpmpp_2m", **options}
        expected = fpfast.sample(score, (10, 4), graph=False, **options)
        got, info = fpfast.sample(score, (10, 4), return_info=True, **options)
        assert same_bits(got, expected)
        assert not info.graph
        assert info.not_graph.startswith("RuntimeError: operation not permitted when stream is capturing")
        assert (captures[-1].warm_ups, captures[-1].captures) == (1, 0)
        with pytest.raises(
            RuntimeError, match=r"^graph: True, but no step can be captured: RuntimeError: operation not"
        ):
            fpfast.sample(score, (10, 4), graph=True, **options)


class Waiting(nn.Module):
    def forward(self, x, t):
        return waiting(x, t)


def test_a_failure_is_remembered(captures):
    """By the network: the next run of another one is captured, and of this one if graph=True asks for it."""
    net = Waiting().eval()
    score = fpfast.Score(net, fpfast.VP())
    for tried in (1, 0):
        before = len(captures)
        _, info = fpfast.sample(score, (5, 4), steps=9, seed=0, return_info=True)
        assert info.not_graph.startswith("RuntimeError: operation not permitted when stream is capturing")
        assert len(captures) - before == tried
    assert info.not_graph.endswith("(in an earlier run; graph=True tries again)")
    net.forward = Net().forward
    assert reason(net, graph=True) is None
    assert reason(Net().eval()) is None


def test_a_run_that_has_replayed_goes_on_without(captures):
    """Where a later capture fails, graph=True does not throw away what is there."""

    def network(x, t):
        return drift(x, t) if len(x) == 4 else waiting(x, t)

    score = fpfast.Score(network, fpfast.VP())
    options = {"steps": 9, "seed": 0, "batch_size": 4}
    got, info = fpfast.sample(score, (7, 4), graph=True, return_info=True, **options)
    assert info.graph
    assert info.not_graph.startswith("RuntimeError: operation not permitted")
    assert same_bits(got, fpfast.sample(score, (7, 4), graph=False, **options))


def test_what_a_network_holds_is_not_changed(captures):
    """Outputs that it keeps are no places for what the solver keeps."""
    held = [torch.randn(5, 4) for _ in range(20)]
    before, numbers = [one.clone() for one in held], itertools.count()
    score = fpfast.Score(lambda x, t: held[next(numbers)], fpfast.VP())
    fpfast.sample(score, (5, 4), solver="dpmpp_2m", steps=9, seed=0, graph=True)
    assert all(map(same_bits, held, before))


class Net(nn.Module):
    def forward(self, x, t):
        return -x * t[:, None]


def reason(net, **options):
    """Why "auto" captures nothing."""
    options = {"steps": 9, "seed": 0, **options}
    _, info = fpfast.sample(fpfast.Score(net, fpfast.VP()), (5, 4), return_info=True, **options)
    assert info.graph == (info.not_graph is None)
    return info.not_graph


def test_auto_leaves_some_modules_alone(captures):
    assert reason(Net().eval()) is None
    assert reason(Net()).startswith("the network is in training mode")
    assert reason(Net(), graph=True) is None
    hooked = nn.Sequential(nn.Identity()).eval()
    hooked.forward = Net().forward
    hooked[0].register_forward_hook(lambda *_: None)
    assert reason(hooked).startswith("the network has hooks")
    assert reason(hooked, graph=True) is None


def test_what_cannot_be_captured(captures):
    assert reason(drift, graph=False) == "graph is False"
    assert reason(drift, backend="reference") == "backend is 'reference'"
    assert reason(drift, steps=4) == "no kind of step occurs 4 times"
    assert reason(drift, steps=4, final="noise") is None
    for options in ({"backend": "reference"}, {"steps": 3}, {"dtype": torch.float64}):
        with pytest.raises(RuntimeError, match=r"^graph: True, but no step can be captured: "):
            reason(drift, graph=True, **options)
    perceptron = fpfast.Score(MLP(2, [8]).eval(), fpfast.VP())
    with pytest.raises(RuntimeError, match="the network runs in the fused engine"):
        fpfast.sample(perceptron, (5, 2), graph=True)
    for value in ("yes", 1, None):
        with pytest.raises(ValueError, match=r"^graph: expected 'auto', True or False, got "):
            fpfast.sample(SCORE, (5, 4), graph=value)


def test_auto_waits_for_a_torch_whose_captures_may_fail(captures, monkeypatch):
    monkeypatch.setattr(graph, "SAFE", "99")
    _, info = fpfast.sample(SCORE, (3, 2), steps=9, return_info=True)
    assert info.not_graph.startswith("torch is older than 99; ")
    both(captures, steps=9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu():
    assert reason(drift) == "the state is on cpu"
    with pytest.raises(RuntimeError, match=r"^graph: True, but no step can be captured: the state is on cpu$"):
        reason(drift, graph=True)


def test_no_graph_outlives_its_run(captures):
    gc.disable()
    try:
        fpfast.sample(SCORE, (5, 4), steps=9, seed=0, graph=True)
        one = weakref.ref(captures.pop())
        assert one() is None
    finally:
        gc.enable()


class Log:
    """Stands in for torch.cuda: keeps what is done, in order, and on which stream a step ran."""

    def __init__(self, spoilt: bool) -> None:
        self.done, self.current, self.spoilt = [], "main", spoilt
        self.CUDAGraph = lambda: self

    def __call__(self, step):
        return lambda: self.done.append(f"{step} on {self.current}")

    def capture_begin(self, pool, capture_error_mode):
        self.done.append(f"begin on {self.current}, {pool}, {capture_error_mode}")

    def capture_end(self):
        self.done.append("end")
        if self.spoilt:
            raise RuntimeError("spoilt")

    def replay(self):
        self.done.append(f"replay on {self.current}")

    def Stream(self, device):
        return self.named("side")

    def current_stream(self):
        return self.named(self.current)

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.done.append(f"{name} waits for {other.name}"))

    def graph_pool_handle(self):
        return "pool"

    def device(self, device):
        return nullcontext()

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_is_asked_of_cuda(monkeypatch, spoilt):
    log = Log(spoilt)
    monkeypatch.setattr(torch, "cuda", log)
    monkeypatch.setattr(graph, "_side_stream", log.Stream)
    cuda = graph.Cuda(torch.device("cuda", 0))
    kept = SimpleNamespace(record_stream=lambda stream: log.done.append(f"kept for {stream.name}"))
    cuda.warm_up(log("step"), {"x": kept})
    assert log.done == ["side waits for main", "step on side", "main waits for side", "kept for main"]

    def fails():
        raise ValueError("the cause")

    for attempt in (cuda.warm_up, cuda.capture):
        with pytest.raises(ValueError, match="the cause"):
            attempt(fails, {} if attempt == cuda.warm_up else True)
        assert log.current == "main"
    log.done.clear()
    if not spoilt:
        cuda.capture(log("step"), first=True)()
        assert log.done == ["begin on side, pool, thread_local", "step on side", "end", "replay on main"]


@pytest.mark.parametrize("moves", ["bcda", "aabc", "badc", "cab", "bbb", "abc"])
def test_settling(moves):
    """Place k is to hold what place moves[k] held: chains, rings and copies of one."""
    places = {name: torch.tensor(float(ord(name))) for name in "abcd"[: len(moves)]}
    graph.settle(places, {name: places[of] for name, of in zip(places, moves, strict=True)})
    assert "".join(chr(int(place)) for place in places.values()) == moves
    assert all(a is not b for a, b in itertools.pairwise(places.values()))
