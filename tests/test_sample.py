"""fpfast.sample: the same bits however a run is cut, the right distribution for every combination, and its manners."""

import math
import threading

import pytest
import torch
from conftest import bits, mixture, native, same_bits
from tqdm import tqdm

import fpfast
from fpfast.network import MLP
from fpfast.sample import settled
from fpfast.sde import SDES
from fpfast.solvers import SOLVERS, Stage, Table, make_row, make_table

N = 1500


def run(solver="euler_maruyama", n=N, **options):
    return fpfast.sample(mixture().score(fpfast.VP()), (n, 2), solver=solver, **{"steps": 12, "seed": 3, **options})


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_bits_for_every_batch_size(solver):
    whole = run(solver)
    for size in (7, 1000):
        assert same_bits(run(solver, batch_size=size), whole)
    assert same_bits(run(solver, n=9, batch_size=1), whole[:9])


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_bits_in_two_halves(solver):
    whole = run(solver)
    assert same_bits(torch.cat((run(solver, n=700), run(solver, n=N - 700, first_sample=700))), whole)


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_bits_for_1_and_2_threads(solver, threads):
    threads(1)
    one = run(solver)
    threads(2)
    assert same_bits(run(solver), one)


@native
@pytest.mark.parametrize("solver", SOLVERS)
def test_same_bits_from_the_reference_backend(solver):
    assert same_bits(run(solver, backend="reference"), run(solver, backend="cpu"))


def test_one_seed_per_sample():
    seeds = [11, 12, 13]
    x = run(n=3, seed=seeds)
    assert same_bits(run(n=3, seed=seeds[::-1]), x.flip(0))
    assert same_bits(run(n=3, seed=seeds, batch_size=2), x)
    assert same_bits(run(n=1, seed=12), x[1:2])


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sde", [sde() for sde in SDES.values()], ids=SDES)
def test_reaches_the_true_mean_and_covariance(sde, solver, noise):
    """Every SDE x solver x noise level, within 4.5 standard errors of each of the 2 + 3 numbers."""
    gm, n = mixture(), 3000
    x = fpfast.sample(gm.score(sde), (n, 2), solver=solver, steps=400, times="logsnr", noise=noise, seed=1).double()
    mean, covariance = gm.moments(sde, sde.t_min)
    centred = x - x.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    assert bool(((x.mean(0) - mean).abs() < 4.5 * (covariance.diagonal() / n).sqrt()).all())
    assert bool(((products.mean(0) - covariance).abs() < 4.5 * products.std(0) / math.sqrt(n)).all())


def test_final_mean_adds_no_noise_in_the_last_step():
    """EDM with all data at 0, last step from 1 to 0.5: standard deviation 0.5 with its noise, 0.25 without."""
    score = fpfast.Score(lambda x, t: torch.zeros_like(x), fpfast.EDM(), predicts="x0")
    options = {"times": [80.0, 1.0, 0.5], "seed": 0, "solver": "exponential"}
    mean, noisy = (fpfast.sample(score, (4000, 1), final=final, **options) for final in ("mean", "noise"))
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.05)
    assert float(mean.std()) == pytest.approx(0.25, rel=0.05)


def test_x_is_the_start_and_is_not_changed():
    x = fpfast.VP().prior((N, 2), seed=3)
    before = x.clone()
    assert same_bits(run(x=x), run())
    assert same_bits(x, before)
    strided = torch.stack((x, x), dim=-1)[..., 0]
    assert same_bits(run(x=strided), run())


def test_network_that_returns_its_input():
    """The state is updated in place; an output that is the state must not be overwritten under our hands."""
    same = fpfast.Score(lambda x, t: x, fpfast.OU(), predicts="noise")
    copy = fpfast.Score(lambda x, t: x.clone(), fpfast.OU(), predicts="noise")
    for solver in SOLVERS:
        a, b = (fpfast.sample(s, (5, 3), solver=solver, steps=4, seed=0) for s in (same, copy))
        assert same_bits(a, b)


def test_network_with_one_output_buffer():
    """Harmless where a stage reads only the newest output, refused where a solver keeps an earlier one."""
    buffer = torch.empty(5, 3)
    score = fpfast.Score(lambda x, t: torch.mul(x, -1, out=buffer), fpfast.OU())
    plain = fpfast.Score(lambda x, t: -x, fpfast.OU())
    for solver in ("euler_maruyama", "exponential", "ancestral", "pc"):
        a, b = (fpfast.sample(s, (5, 3), solver=solver, steps=4, seed=0) for s in (score, plain))
        assert same_bits(a, b)
    for solver in ("heun", "stochastic_heun", "dpmpp_2m", "dpmpp_2m_sde"):
        with pytest.raises(ValueError, match=r"^net: expected a new tensor from each call"):
            fpfast.sample(score, (5, 3), solver=solver, steps=4, seed=0)


def test_network_that_returns_its_times():
    """They too are overwritten before all stages have read them."""
    options = {"steps": 3, "seed": 0, "times": "1:0:1"}
    for solver in SOLVERS:
        for shape, net in (((5,), lambda x, t: t), ((5, 1), lambda x, t: t[:, None])):
            copy = fpfast.Score(lambda x, t, net=net: net(x, t).clone(), fpfast.OU(T=1.0))
            a, b = (fpfast.sample(s, shape, solver=solver, **options) for s in (fpfast.Score(net, copy.sde), copy))
            assert same_bits(a, b)


def moved(which, to):
    def net(x, t):
        y = -x
        {"x": x, "t": t}[which].data = to(x if which == "x" else t)
        return y

    return net


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("which", ["x", "t"])
def test_network_that_puts_its_input_elsewhere_is_refused(which, backend):
    """That does not count as a change in torch; kernels would write to memory that is no more."""
    said = (
        r"^net: expected a network that leaves its input as it is, got one that changed "
        + {"x": "x", "t": "where t"}[which]
    )
    for to in (lambda x: torch.zeros(1), lambda x: torch.zeros(1).expand(x.shape), torch.Tensor.double, torch.clone):
        with pytest.raises(ValueError, match=said):
            fpfast.sample(fpfast.Score(moved(which, to), fpfast.VP()), (20000, 1), steps=3, seed=0, backend=backend)


def test_network_that_changes_its_input_is_refused():
    for n in (1, 4):
        with pytest.raises(ValueError, match=r"^net: expected a network that leaves its input as it is"):
            fpfast.sample(fpfast.Score(lambda x, t: x.mul_(-1), fpfast.VP()), (n, 2), steps=3, seed=0)


def test_network_may_change_its_times():
    """t is made for each call: changing it in place does not reach the run's table."""
    spoil = fpfast.Score(lambda x, t: -x * t.mul_(1000).div_(1000)[:, None], fpfast.VP())
    plain = fpfast.Score(lambda x, t: -x * t[:, None], fpfast.VP())
    for n in (1, 5):
        a, b = (fpfast.sample(s, (n, 2), steps=7, seed=0, batch_size=2) for s in (spoil, plain))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def midpoint(plan):
    """u = x - h/2 f(x, t), x' = x - h f(u, (t + t') / 2): a solver that is not ours."""
    middle = plan.at((plan.now.t + plan.next.t) / 2)
    a, b = plan.now.drift(0.0)
    c, d = middle.drift(0.0)
    h = plan.h
    return make_table(
        (Stage("u", ("x", "y"), at="x"), make_row(h, 1 - h / 2 * a, -h / 2 * b), plan.now),
        (Stage("x", ("x", "u", "y1"), at="u", output="y1"), make_row(h, 1, -h * c, -h * d), middle),
    )


@pytest.mark.parametrize("network", ["any", "fused"])
@pytest.mark.parametrize("backend", ["reference", pytest.param("auto", marks=native)])
def test_a_table_may_lie_in_memory_as_it_likes(network, backend):
    def turned(plan):
        table = SOLVERS["heun"](plan)
        parts = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (table.coef, table.times, table.evaluate))
        return Table(table.stages, *parts)

    torch.manual_seed(0)
    score = fpfast.Score(MLP(2, hidden=[8]) if network == "fused" else lambda x, t: -x * t[:, None], fpfast.OU())
    options = {"steps": 6, "seed": 0, "backend": backend}
    a, b = (fpfast.sample(score, (40, 2), solver=solver, **options) for solver in (turned, "heun"))
    assert same_bits(a, b)


class Three(fpfast.Score):
    """A weighted mean of three outputs."""

    @property
    def weights(self):
        return 0.5, 0.25, 0.25

    def outputs(self, x, t):
        return -x, -2 * x, x * t[:, None]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_score_of_three_outputs(solver):
    """Two are those of guidance; a score of one's own may have more."""
    one = fpfast.Score(lambda x, t: -x + 0.25 * (x * t[:, None]), fpfast.OU())
    a, b = (fpfast.sample(s, (40, 2), solver=solver, steps=6, seed=0) for s in (Three(one.net, one.sde), one))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["any", "fused"])
def test_a_solver_of_ones_own(network):
    """Of second order, like heun, whose result it approaches."""
    torch.manual_seed(0)
    net = MLP(2, hidden=[8]) if network == "fused" else lambda x, t: -x
    options = {"x": torch.randn(50, 2) / 2, "noise": 0.0, "times": "uniform"}
    score = fpfast.Score(net, fpfast.OU(T=2.0))
    found = [fpfast.sample(score, (50, 2), solver=midpoint, steps=steps, **options) for steps in (20, 40)]
    precise = fpfast.Score(net.double() if network == "fused" else net, fpfast.OU(T=2.0))
    exact = fpfast.sample(precise, (50, 2), solver="heun", steps=1000, dtype=torch.float64, **options)
    errors = [float((x - exact).abs().max()) for x in found]
    assert 3.3 < errors[0] / errors[1] < 4.7


def test_solvers_of_ones_own_that_are_refused():
    score = fpfast.Score(lambda x, t: -x, fpfast.OU())
    y, x = Stage("x", ("x", "y"), at="x"), Stage("x", ("x", "u"))

    def made(stage, row):
        return lambda plan: make_table((stage, row(plan), plan.now))

    for solver, error, message in [
        (
            lambda plan: None,
            TypeError,
            r"solver: expected a function that returns a fpfast.solvers.Table, got NoneType",
        ),
        (made(y, lambda plan: make_row(plan.h, math.nan)), ValueError, r"solver: expected finite coefficients"),
        (made(y, lambda plan: make_row(plan.h[1:], 1.0)), ValueError, r"solver: expected coef of shape \(3, 1, 5\)"),
        (made(x, lambda plan: make_row(plan.h, 1.0, 1.0)), ValueError, r"written before they are read, got u"),
        (made(y._replace(output="u"), lambda plan: make_row(plan.h, 1.0)), ValueError, r"whose output begins with y"),
        (
            made(y._replace(stream=3), lambda plan: make_row(plan.h, 1.0)),
            ValueError,
            r"a stream of noise.STREAMS .* got 3",
        ),
        (made(y._replace(stream="step"), lambda plan: make_row(plan.h, 1.0)), ValueError, r"a stream of .* got 'step'"),
    ]:
        with pytest.raises(error, match=message):
            fpfast.sample(score, (4, 2), solver=solver, steps=3)


def test_samples_of_one_number():
    score = fpfast.Score(lambda x, t: -x, fpfast.VP())
    x, y = (fpfast.sample(score, shape, steps=5, seed=0) for shape in ((6,), (6, 1)))
    assert same_bits(x, y[:, 0])


def test_nested_scores_and_inference_mode():
    """T = 0.999 is rounded up in float32 on its way through two scores; potentials work in inference mode."""
    gm, flow = mixture(), fpfast.Flow()
    inner = gm.score(flow)
    outer = fpfast.Score(lambda x, t: inner(x, t), flow)
    options = {"steps": 5, "seed": 0}
    torch.testing.assert_close(fpfast.sample(outer, (5, 2), **options), fpfast.sample(inner, (5, 2), **options))
    potential = fpfast.Score(lambda x, t: gm.log_prob(x, flow, t), flow, predicts="potential")
    with torch.inference_mode():
        x = fpfast.sample(potential, (5, 2), **options)
    torch.testing.assert_close(x, fpfast.sample(inner, (5, 2), **options), rtol=1e-3, atol=1e-4)


def test_callback_sees_every_step_and_may_stop():
    seen = []

    def callback(step, t, x):
        seen.append((step, t))
        x.zero_()  # a copy: nothing happens to the run
        return False

    assert same_bits(run(callback=callback), run())
    assert [step for step, _ in seen] == list(range(1, 13))
    assert seen[-1][1] == fpfast.VP().t_min
    states = {}
    run(callback=lambda step, t, x: states.update({step: x}))
    assert same_bits(run(callback=lambda step, t, x: step == 5), states[5])
    assert same_bits(run(callback=lambda step, t, x: step == 5, batch_size=400), states[5])


def test_info():
    x, info = run(return_info=True, solver="heun", seed=2**64 - 1)
    assert (info.evaluations, info.nonfinite, info.seed) == (24, 0, 2**64 - 1)
    assert run(return_info=True, solver="heun", callback=lambda step, t, x: step == 5)[1].evaluations == 10
    assert info.seconds > 0
    assert info.backend in ("cpu", "reference")
    torch.manual_seed(1)
    x, info = run(return_info=True, seed=None)
    assert same_bits(run(seed=info.seed), x)


def test_nonfinite_samples_are_counted_and_warned_of():
    bad = fpfast.Score(lambda x, t: torch.where(x > 0, torch.nan, -x), fpfast.VP())
    with pytest.warns(RuntimeWarning, match="of 10 samples hold NaN or infinity"):
        x, info = fpfast.sample(bad, (10, 2), steps=3, seed=0, return_info=True)
    assert info.nonfinite == int((~x.isfinite()).any(1).sum()) > 0


def test_float64_state_and_image_shapes():
    score = fpfast.Score(lambda x, t: -x, fpfast.VP())
    x = fpfast.sample(score, (3, 2, 5, 5), steps=5, seed=0, dtype=torch.float64)
    y = fpfast.sample(score, (3, 2, 5, 5), steps=5, seed=0)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x.float(), y, rtol=1e-4, atol=1e-5)
    assert not torch.equal(bits(x[0]), bits(x[1]))


def test_no_thread_is_left_behind(monkeypatch):
    """tqdm starts one for the first bar of a process."""
    monkeypatch.setattr(tqdm, "monitor", None)
    before = threading.active_count()
    run()
    run(progress=True)
    assert threading.active_count() == before


def test_progress_bar_goes_to_stderr(capsys):
    run(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "12/12" in captured.err


@pytest.mark.parametrize("solver", fpfast.solvers.SOLVERS)
def test_loop_reuses_its_memory(solver):
    """Of states and times, whatever the number of steps: the network sees the same few addresses."""
    seen_x, seen_t = set(), set()

    def net(x, t):
        seen_x.add(x.data_ptr()), seen_t.add(t.data_ptr())
        return -x

    fpfast.sample(fpfast.Score(net, fpfast.VP()), (100, 3), solver=solver, steps=20, seed=0)
    assert len(seen_x) <= 4
    assert len(seen_t) == 1


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("solver", fpfast.solvers.SOLVERS)
def test_each_call_is_given_the_time_of_the_table(solver, backend):
    """Also after stages that call no network; batches begin again."""
    seen = []

    def net(x, t):
        assert t.tolist() == len(x) * [t[0].item()]
        seen.append(t[0].item())
        t.fill_(-1)
        return -x

    options = {"solver": solver, "steps": 5, "times": "0.9:0.5:2,0.5:0:3", "seed": 0}
    score = fpfast.Score(net, fpfast.OU(T=0.9))
    _, table = settled(score, options)
    fpfast.sample(score, (100, 3), batch_size=60, backend=backend, **options)
    assert seen == 2 * table.times[table.evaluate].float().tolist()


@pytest.mark.parametrize("which", ["x", "t"])
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_what_a_network_saved_for_a_graph_is_known_to_be_overwritten(backend, which):
    weight, kept = torch.ones((), requires_grad=True), []

    def net(x, t):
        with torch.enable_grad():
            kept.append((weight * {"x": x, "t": t}[which]).sum())
        return -x

    fpfast.sample(fpfast.Score(net, fpfast.VP()), (5, 2), steps=3, seed=0, backend=backend)
    for call in kept if which == "x" else kept[:-1]:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            call.backward()
    if which == "t":
        kept[-1].backward()  # nothing comes after it
