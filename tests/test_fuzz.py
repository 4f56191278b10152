"""Whatever the arguments: a result of the right kind, or an error that names an argument. Nothing else, and no input
changed. Long runs: pytest tests/test_fuzz.py --hypothesis-profile=long (1,500 examples of each)."""

import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import fpfast
from fpfast import backends, data, fused, losses, metrics, noise, ops, pair_ops
from fpfast.convnet import ConvNet
from fpfast.network import MLP
from fpfast.score import PREDICTIONS

# Values --------------------------------------------------------------------------------------------------------------

# What nobody should give, or somebody will.
ODD_VALUES = [
    *(None, True, False, 0, -1, 1, 2**40, 2**63, -(2**63) - 1, 2**64, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, math.inf, -math.inf, math.nan, 1j),
    *("", "x", "auto", "1:2:3", b"x", (), [], [1], {}, {"x": 1}, object()),
    *(numpy.int64(3), numpy.float32(0.5), numpy.array([1.0, math.nan]), numpy.ones((2, 2))),
    *(torch.tensor(0.5), torch.tensor(math.nan), torch.tensor(7), torch.empty(0), torch.empty(0, 2)),
    *(torch.ones(3, 2), torch.ones(3, 2).to_sparse(), torch.empty(3, 2, device="meta"), torch.ones(2, 3).T),
    *(torch.ones(3, 2, dtype=torch.complex64), torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 2).int()),
    *(torch.float16, torch.float32, torch.float64, torch.device("cpu"), torch.Generator(), "cuda", "meta"),
    *(5e-324, 1e-310, 1e-200, 1e-155, 1e-46, 1e-39, 1e-30, 1e-20, 1e20, 1e39, 1e155, 1e200),
    *(1000, 2**53 + 1, 2**62, 2**63 - 1, -(2**31), -(2**62)),
]
ODD = st.sampled_from(ODD_VALUES)
EXTREMES = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e3, -1e3, 1e30, 3e38, math.inf, -math.inf, math.nan]
SDES = [
    *(fpfast.VP(), fpfast.SubVP(), fpfast.VE(), fpfast.EDM(), fpfast.OU(), fpfast.Flow()),
    *(fpfast.VP(1e-6, 1e-3), fpfast.VE(1e-4, 1e4), fpfast.OU(1e-3, 10.0, 0.1), fpfast.EDM(1e-3), fpfast.Flow(0.1)),
]


@st.composite
def tensors(draw, *shape, dtypes=(torch.float32, torch.float64), extreme=True):
    """Of a shape, laid out in memory in some way."""
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    layout = draw(st.sampled_from(["plain", "plain", "plain", "transposed", "sliced", "expanded", "leaf", "view"]))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if extreme and draw(st.integers(0, 4)) == 0 and x.numel():
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(EXTREMES))
    x = x.to(dtype)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        return torch.stack((x, x + 1), dim=-1)[..., 0]
    if layout == "expanded" and x.numel():
        return x[:1].expand(shape)
    if layout == "leaf" and dtype.is_floating_point:
        return x.requires_grad_()
    return torch.cat((x.new_zeros(3), x.flatten()))[3:].view(shape) if layout == "view" else x


def network(potential: bool, activation: str = "tanh") -> nn.Module:
    torch.manual_seed(0)
    return MLP(2, [8, 8], activation=activation, potential=potential)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x).tanh()


NETS: dict[str, Callable[[], Any]] = {
    "perceptron": lambda: network(False).requires_grad_(False),
    "with gradients": lambda: network(False, "silu"),
    "compiled": lambda: fused.compile(network(False).requires_grad_(False), dimension=2),
    "function": lambda: lambda x, t: -x * torch.ones_like(t)[:, None],
    "potential": lambda: network(True).requires_grad_(False),
}


@st.composite
def scores(draw, image=False):
    sde = draw(st.sampled_from(SDES))
    if image:
        return fpfast.Score(Image(), sde, "noise")
    name = draw(st.sampled_from(list(NETS)))
    potential = name == "potential"
    return fpfast.Score(NETS[name](), sde, "potential" if potential else draw(st.sampled_from(sorted(PREDICTIONS))))


def seeds(samples=3):
    return st.one_of(
        st.none(),
        st.integers(0, 2**64 - 1),
        st.just(torch.arange(samples)),
        st.just([5] * samples),
        st.builds(lambda k: torch.Generator().manual_seed(k), st.integers(0, 9)),
    )


ONE_TIME = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-12, 1e-5, 0.999, 1.0, 10.0, 80.0]))  # some of no SDE
WHOLE = st.one_of(st.integers(0, 3), st.sampled_from([2**32 - 1, 2**32, 2**48 - 4, 2**48]))
POINTS, OTHER_POINTS, PAIR = tensors(3, 2), tensors(4, 2), tensors(2, 3, 2)
FIELD = st.one_of(st.floats(1e-3, 1e3), st.floats(allow_nan=True))
KEY = st.one_of(st.integers(-5, 5).map(torch.tensor), st.just(torch.arange(3)))


def choice(*values):
    return st.sampled_from(values)


def histogram(seed):
    return metrics.histogram(torch.randn(50, 2, generator=torch.Generator().manual_seed(seed)), nodes=8)


# What is right for most arguments of a name.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "score": scores(),
    "sde": st.sampled_from(SDES),
    "shape": choice((3, 2), (1, 1), (2, 3, 2), (4, 1, 2, 2), (1, 5), [3, 2], (3,), (0, 2), (2, 0), torch.Size([3, 2])),
    "x": POINTS,
    "x0": POINTS,
    "y": POINTS,
    "value": POINTS,
    "ys": st.lists(POINTS, max_size=3),
    "coef": st.one_of(tensors(5), tensors(3, 5), tensors(3, 3), tensors(3, 2)),
    "t": st.one_of(ONE_TIME, ONE_TIME.map(torch.tensor), st.lists(ONE_TIME, min_size=3, max_size=3).map(torch.tensor)),
    "times": choice(
        *(
            None,
            *fpfast.TIMES,
            "1:0.1:3",
            "10:0:2",
            [1.0, 0.5, 0.1],
            (1.0, 1.0),
            torch.tensor([1.0, 0.2]),
            [80.0, 1, 0.01],
        )
    ),
    "seed": seeds(),
    "first_sample": WHOLE,
    "draw": WHOLE,
    "stream": choice("step", "prior"),
    "backend": choice(*backends.BACKENDS, "auto"),
    "device": choice("cpu", "cuda", None),
    "dtype": choice(torch.float32, torch.float64),
    "solver": st.sampled_from(sorted(fpfast.SOLVERS)),
    "steps": st.integers(1, 6),
    "noise": st.floats(0, 2),
    "final": choice("mean", "noise"),
    "batch_size": st.integers(1, 4),
    "callback_steps": st.lists(st.integers(1, 3)),
    "graph": choice("auto", False, True),
    "on_nonfinite": choice("ignore", "freeze", "raise"),
    "return_info": st.booleans(),
    "estimator": choice("auto", *fpfast.ESTIMATORS),
    "form": choice("score", "log_density"),
    "probes": st.integers(1, 3),
    "distribution": choice("rademacher", "normal"),
    "kind": choice("rademacher", "normal"),
    "h": st.one_of(st.none(), st.floats(1e-6, 0.5)),
    "create_graph": st.booleans(),
    "unbiased": st.booleans(),
    "fraction": st.floats(0.01, 1),
    "weighting": choice("uniform", "likelihood", "noise"),
    "return_points": st.booleans(),
    "rtol": st.floats(1e-4, 1e-1),
    "atol": st.floats(1e-4, 1e-1),
    "alpha": st.floats(0, 1),
    "beta": st.floats(0, 1),
    "m": st.floats(0.5, 3),
    "n": st.integers(1, 5),
    "half_width": st.floats(0.1, 10),
    "levels": st.integers(1, 256),
    "low": st.floats(-2, 0),
    "high": st.floats(0.5, 2),
    "predicts": st.sampled_from(sorted(PREDICTIONS)),
    "guidance": st.floats(0, 5),
    "edge": st.floats(0.1, 10),
    "nodes": st.integers(2, 16),
    "projections": st.integers(1, 4),
    "bandwidth": st.floats(0.1, 10),
    "pair": PAIR,
    "other": PAIR,
}


# What else a message may begin with: what an argument holds.
OF_OPERANDS = {"ys[0]", "ys[1]", "ys[2]"}
PARTS = {"net", "score", "seeds", "times", "sde", "t", "estimator", "backend", "data", "device"} | OF_OPERANDS


class Case:
    """A function, the names of arguments that it needs and of some that it takes, and what is right for these.

    parts: what else its messages may begin with; even: the arguments that are never odd; changes: the one that it
    changes; finite: where points are, results are, or there is a warning.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        needs: str,
        takes: str = "",
        *,
        parts: str = "",
        even: str = "",
        changes: str = "",
        finite: bool = False,
        **own: Any,
    ) -> None:
        self.call, self.changes, self.finite = call, changes, finite
        self.required, self.optional = (
            {name: {**ARGUMENTS, **own}[name] for name in of.split()} for of in (needs, takes)
        )
        self.odd = sorted({*self.required, *self.optional} - {*even.split()})
        self.named = {*self.required, *self.optional, *parts.split(), *PARTS}


ESTIMATE = "estimator probes seed distribution h"
OF_NOISE = "first_sample draw backend"
COMBINE = {"seed": st.one_of(st.none(), KEY), "stream": st.integers(0, 9)}
LIKE_PAIR = {"seed": st.just(torch.tensor(1)), "stream": st.integers(0, 9)}
IMAGES = {"score": scores(image=True), "shape": choice((3, 1, 4, 4), (2, 1, 1, 2)), "x": tensors(3, 1, 4, 4)}
HISTOGRAMS = {name: st.integers(0, 3).map(histogram) for name in "xy"}
MODULES = choice(network(False), network(True), Image(), nn.Identity())


def evaluated(score, x, t):
    return score(x, t) if isinstance(score, fpfast.Score) else None


CASES = {
    "normal": Case(noise.normal, "seed shape", f"stream {OF_NOISE}", finite=True),
    "uniform": Case(noise.uniform, "seed shape", f"stream {OF_NOISE}", finite=True),
    "rademacher": Case(noise.rademacher, "seed shape", f"stream {OF_NOISE}", finite=True),
    "sample": Case(
        fpfast.sample,
        "score shape",
        "solver steps times noise seed first_sample x dtype final backend batch_size callback_steps graph on_nonfinite "
        "device return_info",
        shape=choice((3, 2), (1, 2), (40, 2), [3, 2], (3, 1), (0, 2)),
        finite=True,
    ),
    "sample images": Case(fpfast.sample, "score shape", "solver steps noise seed x batch_size", finite=True, **IMAGES),
    "log_likelihood": Case(
        fpfast.log_likelihood,
        "score x",
        "solver steps times estimator probes distribution rtol atol seed first_sample dtype batch_size",
        solver=choice("heun", "rk4", "dopri5"),
        finite=True,
    ),
    "divergence": Case(fpfast.divergence, "score x t", f"{ESTIMATE} create_graph"),
    "fp_residual": Case(fpfast.fp_residual, "score x t", f"{ESTIMATE} create_graph form"),
    "score": Case(evaluated, "score x t"),
    "dsm": Case(losses.dsm, "score x0", "weighting t seed return_points"),
    "fp_diffusion": Case(losses.fp_diffusion, "score x t", "alpha beta m estimator seed"),
    "fp_regulariser": Case(losses.fp_regulariser, "score x t", f"{ESTIMATE} form unbiased fraction value weighting"),
    "perturb": Case(losses.perturb, "sde x0 t", "seed"),
    "random_times": Case(losses.random_times, "sde n", "seed", seed=seeds(5), finite=True),
    "box": Case(losses.box, "shape half_width", "seed", finite=True),
    "dequantise": Case(
        fpfast.dequantise,
        "x",
        "levels low high seed first_sample dtype",
        x=tensors(3, 2, dtypes=(torch.uint8, torch.int64, torch.float32)),
        finite=True,
    ),
    "mixture": Case(
        fpfast.GaussianMixture,
        "means covariances",
        "weights",
        means=tensors(2, 2),
        covariances=st.one_of(tensors(2), st.just(torch.eye(2).repeat(2, 1, 1))),
        weights=tensors(2),
    ),
    "Score": Case(fpfast.Score, "net sde", "predicts guidance", net=MODULES),
    "MLP": Case(
        MLP,
        "dimension hidden",
        "activation potential time_first",
        dimension=st.integers(1, 3),
        hidden=st.lists(st.integers(1, 9), min_size=1),
        activation=choice("tanh", "softplus:10"),
        potential=st.booleans(),
        time_first=st.booleans(),
    ),
    "ConvNet": Case(
        ConvNet,
        "shape",
        "width time_scale",
        shape=choice((1, 4, 4), [2, 2, 2]),
        width=choice(8, 16),
        time_scale=st.floats(0.1, 10),
    ),
    "compile": Case(
        fused.compile,
        "net dimension",
        "products",
        net=MODULES,
        dimension=st.integers(1, 3),
        products=choice("float32", "bfloat16"),
    ),
    "draw": Case(data.draw, "name n", "seed", name=st.sampled_from(sorted(data.DATA)), seed=WHOLE, finite=True),
    "histogram": Case(metrics.histogram, "x", "edge nodes"),
    "w2_exact": Case(metrics.w2_exact, "x y", y=OTHER_POINTS),
    "w2_sliced": Case(metrics.w2_sliced, "x y", "projections seed", y=OTHER_POINTS, seed=WHOLE),
    "mmd": Case(metrics.mmd, "x y", "bandwidth", y=OTHER_POINTS),
    "w2_grid": Case(metrics.w2_grid, "x y", **HISTOGRAMS),
    "total_variation": Case(metrics.total_variation, "x y", **HISTOGRAMS),
    "VP": Case(fpfast.VP, "beta_min beta_max", parts="VP", beta_min=FIELD, beta_max=FIELD),
    "VE": Case(fpfast.VE, "sigma_min sigma_max", parts="VE", sigma_min=FIELD, sigma_max=FIELD),
    "OU": Case(fpfast.OU, "theta sigma T", parts="OU", theta=FIELD, sigma=FIELD, T=FIELD),
    "Flow": Case(fpfast.Flow, "T", parts="Flow", T=FIELD),
    "combine": Case(ops.combine, "x ys coef", f"seed stream {OF_NOISE}", **COMBINE),
    "combine_": Case(ops.combine_, "x ys coef", f"seed stream {OF_NOISE}", changes="x", **COMBINE),
    "pair": Case(pair_ops.pair, "x y coef seed", f"kind stream {OF_NOISE}", **LIKE_PAIR),
    "defect": Case(pair_ops.defect, "x pair coef", "backend"),
    "defect_product": Case(pair_ops.defect_product, "x pair other coef", "backend"),
    "probe_dot": Case(pair_ops.probe_dot, "x seed", f"kind stream {OF_NOISE}", **LIKE_PAIR),
}

# The last two: a file that is not there, and a package that an argument needs.
REFUSALS = (ValueError, TypeError, RuntimeError, FloatingPointError, FileNotFoundError, ModuleNotFoundError)
# What torch says of sizes that are too large, and of what the user's own network does.
ALLOWED = (
    "can't allocate memory",
    "must have the same dtype",
    "cannot be multiplied",
    "must have same number of dimensions",
    "to have 1 channels, but got",
    "input to conv2d",
)


def copies(value: Any) -> Any:
    if isinstance(value, list):
        return [copies(one) for one in value]
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return value.detach().clone() if plain else None


def unchanged(value: Any, before: Any) -> bool:
    if isinstance(before, list):
        return all(map(unchanged, value, before))
    return before is None or torch.allclose(value, before, 0, 0, equal_nan=True)


# May be large in the most ordinary call.
NUMBERED = {"seed", "first_sample", "draw"}


def results(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return [one for one in found if isinstance(one, torch.Tensor)] if isinstance(found, tuple) else []


def ordinary(value: Any) -> bool:
    """No number in it is extreme."""
    if isinstance(value, list | tuple):
        return all(map(ordinary, value))
    if isinstance(value, numpy.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype.is_floating_point
        return not plain or bool((value.abs() <= 1e3).all())
    return not isinstance(value, float | int) or abs(value) <= 1e3


def complaint(case: Case, arguments: dict[str, Any]) -> str | None:
    """What is wrong with what a call does, if anything."""
    before = {key: copies(value) for key, value in arguments.items()}
    found = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = case.call(**arguments)
        except REFUSALS as error:
            begins = re.match(r"(\w+)([-.]\w+|\[\w+\])*(, [\w.]+)*( '\w+'| \d+)?: ", str(error))
            known = any(words in str(error) for words in ALLOWED)
            if not (begins and begins[1] in case.named) and not known and not isinstance(error, fused.Unsupported):
                return f"{type(error).__name__}: {error}"
        except MemoryError:
            pass
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    for key, value in arguments.items():
        if not unchanged(value, before[key]) and key != case.changes:
            return f"{key} was changed"
    warned = any(issubclass(one.category, RuntimeWarning) for one in said)
    if case.finite and not warned and all(ordinary(value) for key, value in arguments.items() if key not in NUMBERED):
        for x in results(found):
            if x.dtype.is_floating_point and not bool(x.isfinite().all()):
                return "NaN or infinity, and no warning"
    return None


@st.composite
def right(draw, case):
    """Arguments: those that are needed, and some of the others."""
    arguments = {key: draw(strategy) for key, strategy in case.required.items()}
    if case.optional:
        some = draw(st.lists(st.sampled_from(sorted(case.optional)), unique=True, max_size=4))
        arguments |= {key: draw(case.optional[key]) for key in some}
    return arguments


@st.composite
def calls(draw, case):
    """Arguments, some of them odd at times."""
    arguments = draw(right(case))
    odd = draw(st.lists(st.sampled_from(case.odd), max_size=2))
    arguments |= {key: draw(ODD) for key in odd if draw(st.booleans())}
    return arguments


def succeeds(case: Case, arguments: dict[str, Any]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case.call(**arguments)
        except Exception:
            return False
    return True


def complaints(case: Case) -> list[str]:
    """What is wrong where one argument, each in turn, has each odd value, in two calls that are right without it."""
    some: list[dict[str, Any]] = []

    @settings(
        max_examples=300, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(choices=st.data())
    def collect(choices):
        arguments = choices.draw(right(case))
        if len(some) < 2 and succeeds(case, arguments):
            some.append(arguments)

    collect()
    assert len(some) == 2
    found = []
    for key, value, arguments in itertools.product(case.odd, ODD_VALUES, some):
        if (wrong := complaint(case, {**arguments, key: value})) is not None:
            found.append(f"{key}={value!r} beside {arguments}: {wrong}")
    return found


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(choices=st.data())
def test_right_or_refused(name, choices):
    assert complaint(CASES[name], choices.draw(calls(CASES[name]), label="arguments")) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_odd_value(name):
    assert complaints(CASES[name]) == []
