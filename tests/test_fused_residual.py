"""Residuals in the fused engine against autograd in float64: values, losses, and gradients by every parameter."""

import copy

import pytest
import torch
from conftest import LEVELS, native, same_bits
from torch import nn

import fpfast
from fpfast import fused, fused_residual, losses
from fpfast.fused_residual import FUSED
from fpfast.network import MLP
from fpfast.sde import SDES

pytestmark = native
SPECS = ["tanh", "softplus", "softplus:20", "silu", "gelu", "elu", "sine"]
CASES = sorted(FUSED)
NAMES = [f"{form}-{'potential' if potential else 'score'}-{estimator}" for form, potential, estimator in CASES]


def of_case(case):
    form, potential, estimator = case
    return {"form": form, "estimator": estimator}, "potential" if potential else "score"


def pair(net, dimension, sde, predicts, dtype=torch.float32, level=None):
    """(the engine's score in dtype, the module's in float64) of the same weights, which are float32's."""
    net = net.float()
    module = copy.deepcopy(net).double()
    engine = fused.Fused(copy.deepcopy(net).to(dtype), dimension, level)
    return fpfast.Score(engine, sde, predicts), fpfast.Score(module, sde, predicts)


def points(sde, dimension, n=40):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, dimension, generator=generator)
    t = sde.t_min + (sde.T - sde.t_min) * (0.1 + 0.8 * torch.rand(n, generator=generator))
    return x, t


def module_of(score):
    return score.net.net if isinstance(score.net, fused.Fused) else score.net


def loss_and_gradients(score, x, t, **options):
    dtype = next(module_of(score).parameters()).dtype
    parameters = [p for p in module_of(score).parameters() if p.requires_grad]
    loss = losses.fp_regulariser(score, x.to(dtype), t.to(dtype), seed=3, **options)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def error(found, wanted):
    """Relative, in the norm of all together."""
    found, wanted = (torch.cat([one.detach().double().reshape(-1) for one in many]) for many in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def agrees(net, dimension, sde, case, bound, *, predicts=None, dtype=torch.float32, level=None, n=40, **options):
    chosen, usual = of_case(case)
    ours, reference = pair(net, dimension, sde, predicts or usual, dtype, level)
    x, t = points(sde, dimension, n)
    loss, gradients = loss_and_gradients(ours, x, t, **chosen, **options)
    if chosen["estimator"] == "taylor":
        chosen = {**chosen, "estimator": "hutchinson"}  # the same estimate of a Laplacian, for every activation
    want, wanted = loss_and_gradients(reference, x, t, **chosen, **options)
    assert error([loss], [want]) < bound
    assert error(gradients, wanted) < bound
    r = fpfast.fp_residual(ours, x.to(dtype), t.to(dtype), seed=5, **of_case(case)[0])
    v = fpfast.fp_residual(reference, x.double(), t.double(), seed=5, **chosen)
    assert r.estimator == case[2]
    assert error([r.value], [v.value]) < bound


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("spec", SPECS)
def test_gradients(spec, case, served):
    """Of the loss by all parameters, and the residual itself: 10^-5 in float32, rounding in float64."""
    torch.manual_seed(0)
    net = MLP(3, [24, 17, 33], activation=spec, potential=case[1])
    agrees(net, 3, fpfast.VP(), case, 1e-5)
    agrees(net, 3, fpfast.VP(), case, 1e-12, dtype=torch.float64)
    assert served.count == (10 if FUSED[case].probes else 4)


@pytest.fixture
def served(monkeypatch):
    """Counts the calls of the engine."""

    class Count:
        count = 0

    original = fused_residual.FusedResidual._part

    def counted(self, *args):
        Count.count += 1
        return original(self, *args)

    monkeypatch.setattr(fused_residual.FusedResidual, "_part", counted)
    return Count


def test_calls(served):
    """One native call for a loss and its gradients; two for products of two estimates, and two more on the way back."""
    torch.manual_seed(0)
    net = MLP(3, [8], potential=True)
    x, t = points(fpfast.OU(), 3)
    score = fpfast.Score(fused.compile(net, 3), fpfast.OU(), "potential")
    loss = losses.fp_regulariser(score, x, t, form="log_density")
    assert served.count == 1
    loss.backward()
    assert served.count == 1
    loss = losses.fp_regulariser(score, x, t, form="log_density", estimator="hutchinson")
    assert served.count == 3
    loss.backward()
    assert served.count == 5
    with torch.no_grad():
        losses.fp_regulariser(score, x, t, form="log_density")
    assert served.count == 6


@pytest.mark.parametrize("sde", [sde() for sde in SDES.values()], ids=list(SDES))
@pytest.mark.parametrize("predicts", ["score", "noise", "x0", "v", "velocity"])
def test_predictions(sde, predicts):
    torch.manual_seed(1)
    agrees(MLP(2, [16, 16]), 2, sde, ("score", False, "exact"), 1e-5, predicts=predicts)


@pytest.mark.parametrize("sde", [sde() for sde in SDES.values()], ids=list(SDES))
@pytest.mark.parametrize("case", [case for case in CASES if case[1]], ids=[n for n in NAMES if "-potential-" in n])
def test_potentials_under_every_sde(sde, case):
    torch.manual_seed(1)
    agrees(MLP(2, [16, 16], potential=True), 2, sde, case, 1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("dimension", [1, 2, 5, 16])
def test_levels_and_dimensions(level, case, dimension):
    torch.manual_seed(2)
    net = MLP(dimension, [20, 9], activation="silu", potential=case[1])
    agrees(net, dimension, fpfast.VP(), case, 1e-5, level=level, n=23)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_wide_and_deep(case):
    torch.manual_seed(3)
    agrees(MLP(3, [150, 70, 64, 64, 31, 18, 5, 80], potential=case[1]), 3, fpfast.VP(), case, 1e-5)
    agrees(MLP(2, [512], potential=case[1]), 2, fpfast.VP(), case, 1e-5)


def test_many_dimensions():
    torch.manual_seed(4)
    agrees(MLP(40, [33, 12], potential=True), 40, fpfast.VP(), ("log_density", True, "exact"), 1e-5, n=17)
    for case in (("log_density", True, "hutchinson"), ("score", False, "hutchinson")):
        for unbiased in (False, True):
            net = MLP(70, [33, 12], potential=case[1])
            agrees(net, 70, fpfast.VP(), case, 1e-5, n=17, probes=3, unbiased=unbiased)


@pytest.mark.parametrize("options", [{"weighting": "likelihood"}, {"weighting": "noise"}, {"fraction": 0.3}], ids=str)
def test_options(options):
    torch.manual_seed(5)
    for case in CASES:
        agrees(MLP(2, [16], potential=case[1]), 2, fpfast.VP(), case, 1e-5, **options)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_numbers_of_points(case, n):
    torch.manual_seed(6)
    agrees(MLP(2, [16], potential=case[1]), 2, fpfast.OU(), case, 1e-5, n=n)


class Everything(nn.Module):
    """Residual additions, a learned factor, learned features of time at two depths, a value used three times."""

    def __init__(self, dimension, width, outputs, learned=True):
        super().__init__()
        self.first, self.second = nn.Linear(dimension + 2 * 3, width), nn.Linear(width, width)
        self.skip, self.last = nn.Linear(dimension, width, bias=False), nn.Linear(width, outputs)
        self.embed = nn.Sequential(nn.Linear(6, 10), nn.SiLU(), nn.Linear(10, width)).requires_grad_(learned)
        self.frequencies = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=learned)
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.5, width))

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies
        fourier = torch.cat([angles.sin(), angles.cos()], dim=1)
        h = nn.functional.silu(self.first(torch.cat([fourier, x], dim=1)))
        h = h + torch.tanh(self.second(h) + self.embed(fourier)) * self.factor + self.skip(x)
        h = h + nn.functional.softplus(self.second(h)) + self.shift
        return self.last(h - h * 0.25) + (x if self.last.out_features > 1 else 0.1)


@pytest.mark.parametrize("learned", [True, False], ids=["learned time", "fixed time"])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_structures(case, learned, served):
    torch.manual_seed(8)
    net = Everything(3, 19, 1 if case[1] else 3, learned)
    agrees(net, 3, fpfast.VP(), case, 1e-5)
    agrees(net, 3, fpfast.VP(), case, 1e-12, dtype=torch.float64)
    assert served.count >= 4


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_only_time_is_learned(case):
    """No matrix has a gradient, features of time have."""
    torch.manual_seed(8)
    net = Everything(3, 19, 1 if case[1] else 3).requires_grad_(False)
    net.embed.requires_grad_(True)
    agrees(net, 3, fpfast.VP(), case, 1e-5)


class Shifted(nn.Module):
    """Time comes in with a shift that is learned, so that the feature's rate depends on no parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 12), nn.Linear(12, 1)
        self.shift = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(torch.cat([x, t[:, None] + self.shift], dim=1))))


def test_a_rate_without_parameters():
    torch.manual_seed(8)
    for case in [case for case in CASES if case[1]]:
        agrees(Shifted(), 2, fpfast.VP(), case, 1e-5)


def test_what_only_autograd_can_do(served):
    """Hooks of parameters, and tensors that ask for gradients beside them: the module itself is differentiated."""
    x, t = points(fpfast.OU(), 2)
    torch.manual_seed(9)
    net = Everything(2, 8, 1)
    plain = copy.deepcopy(net)
    for one in (net, plain):
        one.factor.register_hook(lambda g: 2 * g)
    held = [fpfast.Score(n, fpfast.OU(), "potential") for n in (fused.compile(net, 2), plain)]
    gradients = [loss_and_gradients(score, x, t, form="log_density")[1] for score in held]
    assert served.count == 0
    assert error(*gradients) < 1e-5

    class Beside(MLP):
        def forward(self, x, t):
            return super().forward(x, t) + torch.tanh(self.output(self.beside * torch.tanh(self.input(
                torch.cat((x, t.reshape(-1, 1)), dim=1)))))  # fmt: skip

    net = Beside(2, [8], potential=True)
    net.register_buffer("beside", torch.ones(8, requires_grad=True))
    score = fpfast.Score(fused.compile(net, 2), fpfast.OU(), "potential")
    losses.fp_regulariser(score, x, t, form="log_density").backward()
    assert served.count == 0
    assert net.beside.grad is not None


def test_networks_without_matrices(served):
    """There is nothing to train; autograd has their residuals."""

    class Plain(nn.Module):
        def forward(self, x, t):
            return x + x

    score = fpfast.Score(fused.compile(Plain(), 2), fpfast.OU(), "score")
    x, t = points(fpfast.OU(), 2)
    want = fpfast.fp_residual(fpfast.Score(Plain(), fpfast.OU(), "score"), x, t).value
    assert error([fpfast.fp_residual(score, x, t).value], [want]) < 1e-6
    assert served.count == 0


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_frozen_parts(case):
    """Gradients of what asks for them."""
    torch.manual_seed(9)
    net = MLP(2, [16, 16], potential=case[1])
    net.hidden1.requires_grad_(False)
    net.output.bias.requires_grad_(False)
    agrees(net, 2, fpfast.VP(), case, 1e-5)


def test_no_parameter_asks():
    torch.manual_seed(9)
    net = MLP(2, [16, 16], potential=True).requires_grad_(False)
    score = fpfast.Score(fused.compile(net, 2), fpfast.VP(), "potential")
    x, t = points(fpfast.VP(), 2)
    loss = losses.fp_regulariser(score, x, t, form="log_density")
    assert not loss.requires_grad
    want = fpfast.fp_residual(score, x, t, form="log_density").value.double().square().mean()
    assert abs(float(loss - want)) < 1e-6 * float(want)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_same_bits_for_every_number_of_threads(case, threads):
    torch.manual_seed(10)
    chosen, predicts = of_case(case)
    score = fpfast.Score(fused.compile(MLP(2, [32, 32], potential=case[1]), 2), fpfast.VP(), predicts)
    x, t = points(fpfast.VP(), 2, 3001)
    found = []
    for count in (1, 2, 3):
        threads(count)
        loss, gradients = loss_and_gradients(score, x, t, **chosen)
        found.append([loss.detach(), *gradients])
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_points_value_does_not_depend_on_its_neighbours(case):
    torch.manual_seed(10)
    chosen, predicts = of_case(case)
    score = fpfast.Score(fused.compile(MLP(2, [32, 32], potential=case[1]), 2), fpfast.VP(), predicts)
    x, t = points(fpfast.VP(), 2, 200)
    seeds = torch.arange(200)  # a probe of its own for each point, wherever it stands
    whole = fpfast.fp_residual(score, x, t, seed=seeds, **chosen).value
    cuts = [slice(k, k + 7) for k in range(0, 200, 7)]
    parts = [fpfast.fp_residual(score, x[cut], t[cut], seed=seeds[cut], **chosen).value for cut in cuts]
    assert same_bits(whole, torch.cat(parts))


def test_parts_of_a_large_batch(monkeypatch):
    """Points go to the engine in parts; here in small ones."""
    torch.manual_seed(11)
    cases = [(case, MLP(2, [16], potential=case[1])) for case in CASES]
    monkeypatch.setattr(fused_residual.FusedResidual, "_points_together", lambda self, directions: 16)
    for case, net in cases:
        agrees(net, 2, fpfast.VP(), case, 1e-5, n=77)
    for case in CASES:
        agrees(Everything(2, 9, 1 if case[1] else 2), 2, fpfast.VP(), case, 1e-5, n=77)


def test_a_seed_for_each_point(monkeypatch):
    """Probes are the same in parts and at once, and those of autograd's way."""
    torch.manual_seed(11)
    x, t = points(fpfast.VP(), 3)
    seeds = [7 * k + 1 for k in range(len(x))]
    both = pair(MLP(3, [16], potential=True), 3, fpfast.VP(), "potential", torch.float64)
    options = {"form": "log_density", "estimator": "hutchinson", "seed": seeds, "probes": 2}
    values = [fpfast.fp_residual(score, x.double(), t.double(), **options).value for score in both]
    monkeypatch.setattr(fused_residual.FusedResidual, "_points_together", lambda self, directions: 16)
    values.append(fpfast.fp_residual(both[0], x.double(), t.double(), **options).value)
    assert error([values[0]], [values[1]]) < 1e-12
    assert same_bits(values[0], values[2])


def pair_of(score, dtype):
    """The same network in another dtype, compiled."""
    net = fused.compile(copy.deepcopy(module_of(score)).to(dtype), score.net.dimension)
    return fpfast.Score(net, score.sde, score.predicts)


def test_after_inference_mode():
    """What was remembered there has no part in training."""
    torch.manual_seed(11)
    score = fpfast.Score(fused.compile(MLP(2, [16], potential=True), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)
    with torch.inference_mode():
        quiet = losses.fp_regulariser(score, x + 0, t + 0, form="log_density")
        twin = losses.fp_regulariser(pair_of(score, torch.float64), x.double(), t.double(), form="log_density")
    loss = losses.fp_regulariser(score, x, t, form="log_density")
    loss.backward()
    assert float(quiet) == float(loss.detach())
    assert abs(float(twin - quiet)) < 1e-6 * float(twin)
    assert all(p.grad is not None for p in module_of(score).parameters())


def test_inside_of_a_function():
    """Where torch has forward mode switched off."""
    torch.manual_seed(11)
    score = fpfast.Score(fused.compile(MLP(2, [16], potential=True), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)

    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return fpfast.fp_residual(score, x, t, form="log_density").value

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError

    assert same_bits(Inside.apply(x), fpfast.fp_residual(score, x, t, form="log_density").value)


def test_one_time_for_all():
    torch.manual_seed(12)
    score = fpfast.Score(fused.compile(MLP(2, [16], potential=True), 2), fpfast.OU(), "potential")
    x, _ = points(fpfast.OU(), 2)
    for call in (losses.fp_regulariser, lambda *args, **options: fpfast.fp_residual(*args, **options).value):
        want = call(score, x, torch.full((len(x),), 0.5), form="log_density").detach()
        for one in (0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64).expand(len(x))):
            assert same_bits(call(score, x, one, form="log_density").detach(), want)


def test_composes_with_other_losses():
    """Sums, factors, accumulated gradients and steps of an optimizer: parameters change, results follow."""
    torch.manual_seed(13)
    net = MLP(2, [16, 16], potential=True)
    ours, reference = pair(net, 2, fpfast.OU(), "potential", torch.float64)
    x, t = points(fpfast.OU(), 2)
    x, t = x.double(), t.double()
    optimizers = [torch.optim.SGD(module_of(score).parameters(), lr=0.01) for score in (ours, reference)]
    for step in range(3):
        for score, optimizer in zip((ours, reference), optimizers, strict=True):
            optimizer.zero_grad()
            for part in (slice(0, 20), slice(20, 40)):
                loss = losses.dsm(score, x[part], t=t[part], seed=step)
                loss = loss + 0.3 * losses.fp_regulariser(score, x[part], t[part], form="log_density") ** 2
                loss.backward()
            optimizer.step()
        assert error(list(module_of(ours).parameters()), list(module_of(reference).parameters())) < 1e-12
    assert all(p.grad is not None for p in module_of(ours).parameters())


def test_any_function_of_the_residual():
    """fp_residual with a graph: the engine runs again with what autograd asks for."""
    torch.manual_seed(14)
    for case in CASES:
        chosen, predicts = of_case(case)
        found = []
        for score in pair(MLP(2, [16, 16], potential=case[1]), 2, fpfast.VP(), predicts, torch.float64):
            x, t = points(fpfast.VP(), 2)
            r = fpfast.fp_residual(score, x.double(), t.double(), seed=1, create_graph=True, probes=3, **chosen)
            parameters = list(module_of(score).parameters())
            found.append(torch.autograd.grad(r.value.abs().mean(), parameters, allow_unused=True))
            found[-1] = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found[-1], strict=True)]
        assert error(*found) < 1e-12


def test_changes_before_the_way_back():
    """Changed points and learned features are noticed; other parameters do not matter, the gradient is the value's."""
    torch.manual_seed(14)
    score = fpfast.Score(fused.compile(MLP(2, [16], potential=True), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)
    parameters = list(module_of(score).parameters())
    options = {"form": "log_density", "create_graph": True}
    want = torch.autograd.grad(fpfast.fp_residual(score, x, t, **options).value.sum(), parameters)
    value = fpfast.fp_residual(score, x, t, **options).value
    with torch.no_grad():
        parameters[0].add_(1)
    assert all(map(same_bits, want, torch.autograd.grad(value.sum(), parameters)))
    value = fpfast.fp_residual(score, x, t, **options).value
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place since then"):
        value.sum().backward()
    net = Everything(2, 8, 1)
    score = fpfast.Score(fused.compile(net, 2), fpfast.OU(), "potential")
    value = fpfast.fp_residual(score, x, t, **options).value
    with torch.no_grad():
        net.frequencies.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place since then"):
        value.sum().backward()
    seed = torch.tensor(3)
    value = fpfast.fp_residual(score, x, t, **options, estimator="hutchinson", seed=seed).value
    seed.add_(1)
    with pytest.raises(RuntimeError, match="changed in place since then"):
        value.sum().backward()


def test_error_over_probes():
    torch.manual_seed(15)
    for case in [case for case in CASES if FUSED[case].probes]:
        chosen, predicts = of_case(case)
        x, t = points(fpfast.VP(), 4)
        both = pair(MLP(4, [16, 16], potential=case[1]), 4, fpfast.VP(), predicts, torch.float64)
        a, b = (fpfast.fp_residual(s, x.double(), t.double(), seed=1, probes=5, **chosen) for s in both)
        assert error([a.value, a.error], [b.value, b.error]) < 1e-12


def test_auto_is_exact_and_says_so():
    for dimension in (2, 20):
        net = fused.compile(MLP(dimension, [16], potential=True), dimension)
        score = fpfast.Score(net, fpfast.OU(), "potential")
        x, t = points(fpfast.OU(), dimension)
        assert fpfast.fp_residual(score, x, t, form="log_density").estimator == "exact"


def test_second_derivatives_by_parameters_are_refused():
    score = fpfast.Score(fused.compile(MLP(2, [8], potential=True), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)
    parameters = list(module_of(score).parameters())
    loss = losses.fp_regulariser(score, x, t, form="log_density")
    (first, *_) = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_points_that_ask_for_gradients():
    """The engine has none of x; autograd has."""
    torch.manual_seed(16)
    ours, reference = pair(MLP(2, [8], potential=True), 2, fpfast.OU(), "potential", torch.float64)
    x, t = points(fpfast.OU(), 2)
    found = []
    for score in (ours, reference):
        y = x.double().requires_grad_()
        found.append(torch.autograd.grad(losses.fp_regulariser(score, y, t.double(), form="log_density"), y))
    assert error(*found) < 1e-12


def test_bad_arguments():
    score = fpfast.Score(fused.compile(MLP(2, [8], potential=True), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)
    for call in (losses.fp_regulariser, fpfast.fp_residual):
        with pytest.raises(ValueError, match="t: expected a number or shape"):
            call(score, x, t[:5], form="log_density")
        with pytest.raises(ValueError, match="t: expected times in"):
            call(score, x, t + 20, form="log_density")
        with pytest.raises(ValueError, match="probes"):
            call(score, x, t, form="log_density", estimator="hutchinson", probes=0)
        for estimator in ("exact", "hutchinson"):
            with pytest.raises(ValueError, match="distribution"):
                call(score, x, t, form="log_density", estimator=estimator, distribution="cauchy")
        with pytest.raises(ValueError, match="h: expected"):
            call(score, x, t, form="log_density", h=-1)
        with pytest.raises(TypeError, match="score: expected"):
            call(module_of(score), x, t)
        with pytest.raises(ValueError, match="x: expected shape"):
            call(score, torch.randn(40, 3), t, form="log_density")
    with torch.no_grad():
        next(module_of(score).parameters())[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite parameters"):
        losses.fp_regulariser(score, x, t, form="log_density")


def test_native_calls_check_their_programs(monkeypatch):
    """A number in a program that points outside of its buffer is refused, whichever it is; here without points."""
    from fpfast import _native

    torch.manual_seed(17)
    score = fpfast.Score(fused.compile(Everything(2, 8, 1), 2), fpfast.OU(), "potential")
    x, t = points(fpfast.OU(), 2)
    engine = fused_residual.serve(score, x, "log_density", "exact")
    seen, original = [], _native.cpu_residual
    monkeypatch.setattr(_native, "cpu_residual", lambda *args: seen.append(args) or original(*args))
    engine.run(x, t, None, value=torch.empty(len(x)))
    ((level, arguments, _),) = seen
    arguments["samples"] = 0

    def refused(**changed):
        with pytest.raises(ValueError, match=r"program|workspace|form|directions|number|probes|out of range"):
            original(level, {**arguments, **changed}, 1)

    original(level, arguments, 1)
    for name in ("jets", "adjoints", "slopes", "gradient_count", "output", "form", "directions", "features"):
        refused(**{name: -2})
        refused(**{name: 1 << 60})
    refused(weight_count=-1)
    code = engine.jets.instructions
    names = ["op", "rows", "columns", "out", "a", "b", "out_adjoint", "a_adjoint", "b_adjoint", "a_adds", "b_adds"]
    names += ["weights", "transposed", "bias", "gradient", "bias_gradient", "slopes", "kind"]
    without = {  # what an instruction does not look at
        "linear": {"slopes"},
        "feature": {"slopes"},
        "activate": {"columns", "transposed"},
        "add": {"columns", "weights", "transposed", "slopes"},
        "scale": {"columns", "transposed", "slopes"},
    }
    for row in range(len(code)):
        op = ["linear", "feature", "activate", "add", "scale"][code[row, 0]]
        for column, name in enumerate(names):
            if name in without[op] or name in ("a_adds", "b_adds"):
                continue
            if op == "feature" and code[row, names.index("weights")] == -1 and name == "transposed":
                continue
            for wrong in (-7, 1 << 50):
                program = code.clone()
                program[row, column] = wrong
                refused(program_here=program.data_ptr())
