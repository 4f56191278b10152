"""The trajectory kernels against the CPU engine: compiled PTX (sm_80), and the CUDA source compiled for the CPU."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import test_watch
import torch
from emulated import NVCC, PTX, Cuda, Triton, compiled_by_nvcc
from simt_runner import NEEDED, Simt, sanitized
from torch import Tensor, nn

import fpfast
from fpfast import backends, fused, packing
from fpfast.network import MLP
from fpfast.reference import Key
from fpfast.solvers import SOLVERS, Table
from fpfast.solvers import Plan as SolverPlan
from fpfast.times import grid
from fpfast.trajectory import FusedLoop, GpuSchedule, Schedule, TritonSchedule, fusible, schedule
from fpfast.watch import Watch

pytestmark = pytest.mark.skipif(
    backends.BACKENDS["cpu"].missing() is not None, reason="the native kernels are not built"
)

STEPS = 3
KEY = Key(torch.tensor(7), first_sample=2**33 + 1, stream=0, draw=0)


class Skip(nn.Module):
    """Additions, factors, and a time that comes in twice and not by a concatenation."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(dimension, width), nn.Linear(width, width)
        self.time, self.out = nn.Linear(1, width), nn.Linear(width, dimension)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(self.a(x) + self.time(t[:, None]))
        h = h + 0.5 * torch.nn.functional.silu(self.b(h)) + torch.sin(self.time(t[:, None]))
        return self.out(h) - x


class Case(NamedTuple):
    net: nn.Module
    dimension: int
    solver: str = "euler_maruyama"
    predicts: str = "score"
    samples: int = 37
    warps: int = 2
    resident: bool = True


def mlp(dimension: int, *hidden: int, activation: str = "silu", potential: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return MLP(dimension, hidden, activation=activation, potential=potential)


CASES = {
    **{
        f"{name}-{predicts}": Case(
            mlp(3, 24, 20, activation=name, potential=predicts == "potential"), 3, predicts=predicts
        )
        for name in ("tanh", "softplus:100", "silu", "gelu", "elu", "sine")
        for predicts in ("score", "potential")
    },
    "one-dimension": Case(mlp(1, 8), 1),
    "two-steps": Case(mlp(2, 16), 2, "dpmpp_2m_sde"),
    "two-stages": Case(mlp(5, 9), 5, "stochastic_heun", samples=5),
    "corrector": Case(mlp(9, 8), 9, "pc", samples=16, warps=1),
    "skip": Case(Skip(6, 21), 6),
    "published": Case(mlp(2, 80, 80, 80, activation="softplus:100", potential=True), 2, predicts="potential"),
    "wide": Case(mlp(2, 150), 2, samples=17),
    "wide-streamed": Case(mlp(2, 150, 40), 2, samples=33, resident=False),
    "streamed": Case(mlp(3, 24, 20), 3, resident=False, warps=3),
    "streamed-potential": Case(mlp(2, 33, 70, potential=True), 2, predicts="potential", resident=False),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("ptx", marks=[*PTX, NVCC]),
        pytest.param("triton", marks=PTX),
        pytest.param("simt", marks=NEEDED),
    ],
)
def kernels(request, tmp_path_factory) -> Iterator[Cuda | Triton | Simt]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "simt":
        yield Simt(request.getfixturevalue("simt_library"))
    elif request.param == "ptx":
        yield Cuda({"trajectory": compiled_by_nvcc("trajectory", folder)})
    else:
        pytest.importorskip("triton", minversion="3.6", reason="triton is not installed")
        with pytest.MonkeyPatch.context() as patch:
            yield Triton(patch)


def table_of(case: Case) -> Table:
    score = fpfast.Score(case.net, fpfast.OU(T=1.0), predicts=case.predicts)
    return SOLVERS[case.solver](SolverPlan(score, grid(score.sde, None, STEPS), 1.0, True))


def gpu_schedule(
    kernels: Cuda | Triton | Simt, net: fused.Fused, what: str, table: Table
) -> GpuSchedule | TritonSchedule:
    made = TritonSchedule if isinstance(kernels, Triton) else GpuSchedule
    return made(net, what, table, torch.device("cpu"), kernels)


def run(
    schedule: Schedule | GpuSchedule | TritonSchedule,
    x: Tensor,
    key: Key = KEY,
    watch: Watch | None = None,
    launches: tuple[int, ...] = (STEPS,),  # the steps that they end with
) -> Tensor:
    slots = [(x.clone() if name == "x" else torch.zeros_like(x), row) for name, row in schedule.plan.kept.items()]
    for start, end in zip((0, *launches), launches, strict=False):
        schedule.run(slots, (start, end), key, watch)
    return slots[0][0]


def orders(kernels: Cuda | Triton | Simt, case: Case) -> Iterator[None]:
    """Makes the kernels ready for a case, to run blocks, and threads where it can be chosen, in any order."""
    kernels.resident, kernels.warps = case.resident, case.warps
    for backwards in (False, True):
        if isinstance(kernels, Simt):
            kernels.order(backwards, backwards)
        kernels.reverse = backwards
        yield


def ready(kernels: Cuda | Triton | Simt, case: Case) -> Cuda | Triton | Simt:
    next(orders(kernels, case))
    return kernels


def states(case: Case) -> Tensor:
    return torch.randn(case.samples, case.dimension, generator=torch.Generator().manual_seed(2))


def inexact(kernels: Cuda | Triton | Simt, name: str) -> str:
    """What is wrong with a case: an error beyond twice that of the engine on a processor."""
    case = CASES[name]
    what = "gradient" if case.predicts == "potential" else "output"
    table, net, x = table_of(case), fused.compile(case.net, case.dimension), states(case)
    exact = run(Schedule(net, what, table, torch.float64), x.double())
    single = run(Schedule(net, what, table, torch.float32), x)
    bound = 2 * (single - exact).abs().max() + 1e-6 * exact.abs().max()
    for _ in orders(kernels, case):
        error = (run(gpu_schedule(kernels, net, what, table), x) - exact).abs().max()
        if not error <= bound:
            return f"error {error:.2g}, expected at most {bound:.2g}"
    return ""


@pytest.mark.parametrize("name", CASES)
def test_trajectories_are_as_exact_as_the_engine_on_a_processor(kernels, name):
    assert inexact(kernels, name) == ""


def without_outputs(table: Table) -> Table:
    """In which the network's outputs count for nothing."""
    for number, stage in enumerate(table.stages):
        for k, slot in enumerate(stage.of):
            if slot.startswith("y"):
                table.coef[:, number, k] = 0
    return table


@pytest.mark.parametrize("seeds", ["one", "each"])
@pytest.mark.parametrize("name", ["one-dimension", "two-steps", "two-stages", "corrector", "skip"])
def test_combinations_have_the_bits_of_the_cpu(kernels, name, seeds):
    """Where the network's outputs count for nothing, that is all that is left."""
    case = CASES[name]
    table, net, x = without_outputs(table_of(case)), fused.compile(case.net, case.dimension), states(case)
    key = KEY if seeds == "one" else Key(torch.arange(case.samples) * 2**40 + 1, 0, 0, 0)
    got = run(gpu_schedule(ready(kernels, case), net, "output", table), x, key)
    assert torch.equal(got, run(Schedule(net, "output", table, torch.float32), x, key))


def test_samples_do_not_depend_on_their_neighbours(kernels):
    case = CASES["two-steps"]
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    schedule = gpu_schedule(ready(kernels, case), net, "output", table)
    later = KEY._replace(first_sample=KEY.first_sample + 11)
    assert torch.equal(run(schedule, x)[11:], run(schedule, x[11:], later))


@pytest.mark.parametrize("kernels", [pytest.param("triton", marks=PTX)], indirect=True)
def test_programs_take_several_tiles_where_programs_run_out(kernels, monkeypatch):
    case = CASES["two-steps"]
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    expected = run(gpu_schedule(kernels, net, "output", table), x)
    monkeypatch.setattr(kernels.trajectories, "PROGRAMS", 2)
    assert torch.equal(run(gpu_schedule(kernels, net, "output", table), x), expected)
    assert kernels.stats.blocks == 2
    table, x = overflowing(case)
    assert unlike_torch(gpu_schedule(kernels, net, "output", table), x, True) == ""


def test_a_sample_that_is_not_finite_stays_alone(kernels):
    case = CASES["two-steps"]
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    schedule = gpu_schedule(ready(kernels, case), net, "output", table)
    broken = x.clone()
    broken[20, 1] = float("nan")
    got, rest = run(schedule, broken), torch.arange(len(x)) != 20
    assert bool(got[20].isnan().all())
    assert torch.equal(got[rest], run(schedule, x)[rest])


def overflowing(case: Case) -> tuple[Table, Tensor]:
    """A table, and states of which it makes some overflow in one step, some in another, and some in none.

    The last one does: it also stands in a tile's places where there is no sample.
    """
    table, large = table_of(case), 7e12  # whose third power is the largest float
    table.coef[:, -1, 0] *= large
    return table, states(case) * large ** ((torch.arange(case.samples) + 2) % 4 - 1.0)[:, None]


def unlike_torch(schedule: GpuSchedule | TritonSchedule, x: Tensor, freeze: bool) -> str:
    """What is wrong with a watched run, in one launch or two: what torch sees and keeps, a step at a time."""
    slots = [(x.clone() if name == "x" else torch.zeros_like(x), row) for name, row in schedule.plan.kept.items()]
    state, expected = slots[0][0], Watch(x, freeze)
    for step in range(STEPS):
        expected.remember(state)
        schedule.run(slots, (step, step + 1), KEY)
        expected.look(state, step + 1)
    if set(expected.broken.tolist()) != set(range(STEPS + 1)):
        return f"samples of all kinds were to be there, not {expected.broken.tolist()}"
    for launches in ((STEPS,), (2, STEPS)):
        watch = Watch(x, freeze)
        got = run(schedule, x, watch=watch, launches=launches)
        if not torch.equal(watch.broken, expected.broken):
            return f"{launches}: steps {watch.broken.tolist()}, expected {expected.broken.tolist()}"
        if not torch.allclose(got, state, rtol=0, atol=0, equal_nan=True):
            return f"{launches}: other states"
    return ""


FREEZE = pytest.mark.parametrize("freeze", [False, True], ids=["watched", "frozen"])


@FREEZE
@pytest.mark.parametrize(
    "name", ["one-dimension", "two-steps", "two-stages", "corrector", "skip", "streamed-potential"]
)
def test_samples_that_are_not_finite_are_seen(kernels, name, freeze):
    case = CASES[name]
    table, x = overflowing(case)
    what = "gradient" if case.predicts == "potential" else "output"
    net = fused.compile(case.net, case.dimension)
    assert unlike_torch(gpu_schedule(ready(kernels, case), net, what, table), x, freeze) == ""


@FREEZE
@pytest.mark.parametrize("name", ["one-dimension", "two-steps", "two-stages", "corrector", "skip"])
def test_samples_that_are_not_finite_are_those_of_the_cpu(kernels, name, freeze):
    case = CASES[name]
    (table, x), net = overflowing(case), fused.compile(case.net, case.dimension)
    without_outputs(table)
    found = []
    for one in (
        gpu_schedule(ready(kernels, case), net, "output", table),
        Schedule(net, "output", table, torch.float32),
    ):
        watch = Watch(x, freeze)
        found.append((run(one, x, watch=watch, launches=(1, STEPS)), watch.broken))
    assert torch.equal(found[0][1], found[1][1])
    assert torch.allclose(found[0][0], found[1][0], rtol=0, atol=0, equal_nan=True)


def test_frozen_samples_stay_where_they_were_finite(kernels, monkeypatch):
    """All of fpfast.sample, with these kernels in place of the CPU's."""
    used = []

    def made(net: fused.Fused, score: fpfast.Score, table: Table, *_) -> GpuSchedule | TritonSchedule:
        used.append(gpu_schedule(ready(kernels, CASES["two-steps"]), net, "output", table))
        return used[-1]

    monkeypatch.setattr(sys.modules["fpfast.sample"], "schedule", made)
    score = test_watch.blows_up()
    every, first = test_watch.history(score)
    broken = first > 0
    x, info = test_watch.run(score, on_nonfinite="freeze")
    assert torch.equal(x, every[torch.where(broken, first - 1, test_watch.STEPS), torch.arange(test_watch.N)])
    step = int(first[broken].min())
    assert (info.nonfinite, info.first_nonfinite) == (int(broken.sum()), (int((first == step).nonzero()[0, 0]), step))
    assert len(used) == 2


@FREEZE
@pytest.mark.parametrize("name", ["two-steps", "wide-streamed", "streamed-potential"])
def test_a_watch_changes_nothing_where_all_is_finite(kernels, name, freeze):
    case = CASES[name]
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    what, watch = "gradient" if case.predicts == "potential" else "output", Watch(x, freeze)
    schedule = gpu_schedule(ready(kernels, case), net, what, table)
    assert torch.equal(run(schedule, x, watch=watch), run(schedule, x))
    assert not watch.broken.any()


@pytest.mark.parametrize(
    ("dtype", "backend", "freeze", "reason"),
    [
        (torch.float64, "auto", False, "the state is torch.float64"),
        (torch.float32, "cpu", False, "backend is 'cpu'"),
        (torch.float32, "cuda", False, "16 samples need 44544 bytes of shared memory, and cuda:0 has 40000"),
        (torch.float32, "cuda", True, "16 samples need 45056 bytes of shared memory, and cuda:0 has 40000"),
    ],
)
def test_why_a_gpu_would_not_run_it(monkeypatch, dtype, backend, freeze, reason):
    """Of a GPU that is not here, nor its memory."""
    there = replace(backends.BACKENDS["cuda"], missing=lambda: None)
    monkeypatch.setitem(backends.BACKENDS, "cuda", there)
    monkeypatch.setattr("fpfast.trajectory._cuda", lambda: SimpleNamespace(shared_memory=lambda _: 40000))
    case = CASES["published"]
    net = fused.compile(case.net, 2)
    score, table = fpfast.Score(net, fpfast.OU(T=1.0), predicts="potential"), table_of(case)
    found = fusible(score, table, (4, 2), backend, torch.device("cuda:0"), dtype, freeze)
    assert found == (None, reason)


def test_triton_runs_it_where_cuda_is_not_built(monkeypatch):
    """Of a GPU that is not here."""
    for name, missing in (("cuda", "it is not built"), ("triton", None)):
        there = replace(backends.BACKENDS[name], missing=lambda missing=missing: missing)
        monkeypatch.setitem(backends.BACKENDS, name, there)
    case, device = CASES["published"], torch.device("cuda:0")
    net, table = fused.compile(case.net, 2), table_of(case)
    score = fpfast.Score(net, fpfast.OU(T=1.0), predicts="potential")
    found = {name: fusible(score, table, (4, 2), name, device, torch.float32) for name in ("auto", "triton", "cuda")}
    assert found == {"auto": (net, None), "triton": (net, None), "cuda": (None, "it is not built")}
    monkeypatch.setattr("fpfast.trajectory.TritonSchedule", lambda *given: given)
    monkeypatch.setattr("fpfast.backends.kernels", lambda name: f"kernels of {name}")
    assert schedule(net, score, table, "auto", device, torch.float32)[1:] == (
        "gradient",
        table,
        device,
        "kernels of triton",
    )


class Bare(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * -0.5


def test_a_network_without_matrices(kernels):
    """Of five warps three fit, so that weights, if there were some, would come in slabs."""
    case = Case(Bare(), 40, samples=80, warps=3)
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    kernels = ready(kernels, case)
    kernels.processors = 1
    got = run(gpu_schedule(kernels, net, "output", table), x)
    kernels.processors = 0
    torch.testing.assert_close(got, run(Schedule(net, "output", table, torch.float32), x), rtol=1e-6, atol=1e-6)


class Whole(nn.Module):
    """Weights, and values for states of small whole numbers, that bfloat16 has too."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(dimension, width), nn.Linear(width, dimension)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator) / 4

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(self.a(x))


CUDA = pytest.mark.parametrize(
    "kernels", [pytest.param("ptx", marks=[*PTX, NVCC]), pytest.param("simt", marks=NEEDED)], indirect=True
)


@CUDA
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize(("dimension", "width"), [(3, 40), (9, 24), (20, 150)])
def test_products_in_bfloat16_of_what_it_has(kernels, dimension, width, resident):
    """They are exact then: every factor is where it should be, with odd numbers of tiles and with even ones."""
    case = Case(Whole(dimension, width), dimension, resident=resident)
    table, found = table_of(case), []
    table.coef.zero_()
    table.coef[:, 0, 1] = 1  # the network's output is the state
    x = torch.randint(-4, 5, (case.samples, dimension), generator=torch.Generator().manual_seed(4)).float()
    for products in ("float32", "bfloat16"):
        net = fused.compile(case.net, dimension, products=products)
        slots = [(x.clone(), GpuSchedule(net, "output", table, torch.device("cpu"), kernels).plan.kept["x"])]
        GpuSchedule(net, "output", table, torch.device("cpu"), ready(kernels, case)).run(slots, (0, 1), KEY)
        found.append(slots[0][0])
    assert torch.equal(*found)
    assert torch.equal(found[0], case.net(x, torch.zeros(len(x))))


def rounding_error(kernels: Cuda | Simt, case: Case) -> float:
    """Of products in bfloat16, by the largest state."""
    what = "gradient" if case.predicts == "potential" else "output"
    table, x = table_of(case), states(case)
    exact = run(Schedule(fused.compile(case.net, case.dimension), what, table, torch.float64), x.double())
    net = fused.compile(case.net, case.dimension, products="bfloat16")
    got = run(GpuSchedule(net, what, table, torch.device("cpu"), ready(kernels, case)), x)
    return float((got - exact).abs().max() / exact.abs().max())


@CUDA
@pytest.mark.parametrize("name", ["published", "wide", "streamed", "skip"])
def test_products_in_bfloat16(kernels, name):
    """Errors are those of rounded factors, and not float32's."""
    assert 1e-5 < rounding_error(kernels, CASES[name]) < 1e-2


@CUDA
@FREEZE
@pytest.mark.parametrize("name", ["wide", "streamed"])
def test_samples_are_seen_with_products_in_bfloat16_too(kernels, name, freeze):
    case = CASES[name]
    (table, x), net = overflowing(case), fused.compile(case.net, case.dimension, products="bfloat16")
    assert unlike_torch(gpu_schedule(ready(kernels, case), net, "output", table), x, freeze) == ""


def test_products_have_a_name():
    with pytest.raises(ValueError, match=r"^products: expected one of .*, got 'tf32'"):
        fused.compile(Bare(), 2, products="tf32")
    net = fused.compile(mlp(2, 8), 2, products="bfloat16")
    score = fpfast.Score(net, fpfast.OU(T=1.0))
    found = fusible(score, table_of(CASES["two-steps"]), (4, 2), "auto", torch.device("cpu"), torch.float32)
    assert found == (None, "products in bfloat16 are the CUDA kernel's alone")


def test_fragments_are_where_a_lane_looks_for_them():
    matrix = torch.arange(40.0 * 20).reshape(40, 20)
    packed = packing.fragments(matrix).reshape(3, 3, 32, 2, 2)  # column tile, pair, lane, tile of the pair, column
    whole = nn.functional.pad(matrix, (0, 4, 0, 8))
    for column, pair, lane, tile in ((0, 0, 0, 0), (2, 2, 31, 1), (1, 0, 13, 1)):
        row, first = 16 * pair + 8 * tile + lane // 4, 8 * column + 2 * (lane % 4)
        assert packed[column, pair, lane, tile].tolist() == whole[row, first : first + 2].tolist()


def test_a_run_is_one_launch(kernels, monkeypatch):
    case = CASES["two-stages"]
    net, table, x = fused.compile(case.net, case.dimension), table_of(case), states(case)
    expected = run(gpu_schedule(ready(kernels, case), net, "output", table), x)
    launches, launch = [], kernels.trajectory
    monkeypatch.setattr(kernels, "trajectory", lambda **given: (launches.append(given["steps"]), launch(**given)))
    schedule = gpu_schedule(kernels, net, "output", table)
    loop = FusedLoop(schedule, table, [0.0] * STEPS, None, set())
    got = loop(x.clone(), KEY.seed, KEY.first_sample)
    assert launches == [(0, STEPS)]
    assert torch.equal(got, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles the CUDA kernels, is not on PATH")
def test_trajectories_under_sanitizers(sanitized_library):
    """AddressSanitizer and UBSan, in another process: this file as a program, with the library as its argument."""
    done = sanitized(__file__, str(sanitized_library))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 1e-5 < found.pop("bfloat16") < 1e-2
    assert found == dict.fromkeys((*CASES, "frozen"), "")


if __name__ == "__main__":
    library = Simt(Path(sys.argv[1]))
    results = {name: inexact(library, name) for name in CASES}
    case = CASES["two-steps"]
    (table, x), net = overflowing(case), fused.compile(case.net, case.dimension)
    results["frozen"] = unlike_torch(gpu_schedule(ready(library, case), net, "output", table), x, True)
    json.dump({**results, "bfloat16": rounding_error(library, CASES["wide-streamed"])}, sys.stdout)
