"""Bad input: every message names the argument, what was expected and what came."""

import math

import pytest
import torch
from conftest import mixture

import fpfast
from fpfast import backends, noise, ops, times
from fpfast.sde import SDES

VP, GM = fpfast.VP(), mixture()
SCORE = GM.score(VP)
X, Y, C = torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(5)


class NaNs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, math.nan]))

    def forward(self, x, t):
        return x * self.weight


def shared_coefficients():
    x = torch.zeros(3, 5)
    ops.combine_(x, [], x[1])


def sampling(shape=(3, 2), score=SCORE, **options):
    return lambda: fpfast.sample(score, shape, **{"steps": 3, "seed": 0, **options})


def with_net(net, **options):
    return sampling(score=fpfast.Score(net, VP, **options))


CASES = {
    # sample
    "empty batch": (sampling((0, 2)), "shape"),
    "negative size": (sampling((3, -2)), "shape"),
    "shape of no kind": (sampling(5), "shape"),
    "bare network": (lambda: fpfast.sample(torch.nn.Linear(2, 2), (3, 2)), "score"),
    "unknown solver": (sampling(solver="euler"), "solver"),
    "unknown times": (sampling(times="linear"), "times"),
    "times of no kind": (sampling(times=5), "times"),
    "a number for times": (sampling(times=torch.tensor(0.5)), "times"),
    "nested times": (sampling(times=[[1.0, 0.5]]), "times"),
    "fraction of a step after a whole one": (lambda: [sampling(steps=n)() for n in (7, 7.5)], "steps"),
    "output without data": (with_net(lambda x, t: torch.empty_like(x, device="meta")), "net"),
    "callback_steps out of range": (sampling(callback_steps=[4]), "callback_steps"),
    "ascending times": (sampling(times=[0.0, 0.5, 1.0]), "times"),
    "repeated times": (sampling(times=[1.0, 0.5, 0.5, 0.1]), "times"),
    "one time": (sampling(times=[1.0]), "times"),
    "NaN in times": (sampling(times=[1.0, math.nan, 0.1]), "times"),
    "times not from T": (sampling(times=[0.9, 0.5, 0.1]), "times"),
    "times beyond T": (sampling(times=[1.5, 1.0, 0.5]), "times"),
    "times below 0": (sampling(times=[1.0, 0.5, -0.1]), "times"),
    "bad piece of times": (sampling(times="1:0.5"), "times"),
    "gap in times": (sampling(times="1:0.5:3,0.4:0:3"), "times"),
    "endless times": (sampling(times="1:0:1000000000"), "times"),
    "no steps": (sampling(steps=0), "steps"),
    "steps not whole": (sampling(steps=2.5), "steps"),
    "negative noise": (sampling(noise=-0.1), "noise"),
    "NaN noise": (sampling(noise=math.nan), "noise"),
    "infinite noise": (sampling(noise=math.inf), "noise"),
    "negative seed": (sampling(seed=-1), "seed"),
    "huge seed": (sampling(seed=2**64), "seed"),
    "fractional seed": (sampling(seed=0.5), "seed"),
    "seed of text": (sampling(seed="7"), "seed"),
    "too few seeds": (sampling(seed=[1, 2]), "seed"),
    "negative first sample": (sampling(first_sample=-1), "first_sample"),
    "first sample too large": (sampling(first_sample=2**48), "first_sample"),
    "unknown final": (sampling(final="last"), "final"),
    "half state": (sampling(dtype=torch.float16), "dtype"),
    "unknown backend": (sampling(backend="tpu"), "backend"),
    "backend of another device": (sampling(backend="cuda"), "backend"),
    "backend of another dtype": (sampling(backend="cpu", dtype=torch.float64), "backend"),
    "batch size 0": (sampling(batch_size=0), "batch_size"),
    "x of another shape": (sampling(x=torch.zeros(2, 2)), "x"),
    "x with NaN": (sampling(x=torch.full((3, 2), math.nan)), "x"),
    "x of integers": (sampling(x=torch.zeros(3, 2, dtype=torch.int64)), "x"),
    "NaN weights": (with_net(NaNs()), "score"),
    "x of no kind": (sampling(x=[[0.0, 0.0]] * 3), "x"),
    "shape of fractions": (sampling((2.7, 2)), "shape"),
    "shape of text": (sampling("32"), "shape"),
    "noise of text": (sampling(noise="1"), "noise"),
    "times of text": (sampling(times=["a", "b"]), "times"),
    "solver of no kind": (sampling(solver=["heun"]), "solver"),
    "callback of no kind": (sampling(callback=5), "callback"),
    "fractional first sample": (sampling(first_sample=1.5), "first_sample"),
    "first sample beside seeds": (sampling(seed=[1, 2, 3], first_sample=1), "first_sample"),
    "samples past 2^48": (sampling(first_sample=2**48 - 2, batch_size=1), "first_sample"),
    "device that is not here": (sampling(device="cuda:99"), "device"),
    "device without data": (sampling(device="meta"), "device"),
    "T below t_min": (sampling(score=GM.score(fpfast.OU(T=5e-4))), "times"),
    # what networks return
    "output of another shape": (with_net(lambda x, t: x[:, :1]), "net"),
    "output of integers": (with_net(lambda x, t: x.long()), "net"),
    "output in float64": (with_net(lambda x, t: x.double()), "net"),
    "output no tensor": (with_net(lambda x, t: {"sample": x}), "net"),
    "no pair for guidance": (with_net(lambda x, t: x, guidance=2.0), "net"),
    "potential of another shape": (with_net(lambda x, t: x, predicts="potential"), "net"),
    "potential without a graph": (with_net(lambda x, t: t * 0, predicts="potential"), "net"),
    # Score
    "no network": (lambda: fpfast.Score(None, VP), "net"),
    "no SDE": (lambda: fpfast.Score(torch.sin, "vp"), "sde"),
    "unknown prediction": (lambda: fpfast.Score(torch.sin, VP, predicts="eps"), "predicts"),
    "NaN guidance": (lambda: fpfast.Score(torch.sin, VP, guidance=math.nan), "guidance"),
    "time beyond T": (lambda: SCORE(X, 1.5), "t"),
    "negative time": (lambda: SCORE(X, -0.1), "t"),
    "NaN time": (lambda: SCORE(X, math.nan), "t"),
    "too few times": (lambda: SCORE(X, torch.zeros(2)), "t"),
    # SDEs
    **{
        f"{name} of nothing": (lambda sde=sde: sde(**{next(iter(sde.__dataclass_fields__)): 0.0}), sde.__name__)
        for name, sde in SDES.items()
    },
    "Flow to 1": (lambda: fpfast.Flow(T=1.0), "Flow.T"),
    "VE upside down": (lambda: fpfast.VE(sigma_min=2.0, sigma_max=1.0), "VE.sigma_max"),
    "NaN field": (lambda: fpfast.VP(beta_min=math.nan), "VP.beta_min"),
    # combine
    "operand of another shape": (lambda: ops.combine(X, [torch.zeros(3, 3)], C), r"ys\[0\]"),
    "operand of integers": (lambda: ops.combine(X, [Y.int()], C), r"ys\[0\]"),
    "operand in float64": (lambda: ops.combine(X, [Y.double()], C), r"ys\[0\]"),
    "operand not contiguous": (lambda: ops.combine(X, [torch.zeros(2, 3).T], C), r"ys\[0\]"),
    "operand elsewhere": (lambda: ops.combine(X, [Y.to("meta")], C), r"ys\[0\]"),
    "four more operands": (lambda: ops.combine(X, [Y] * 4, C), "ys"),
    "half state in combine": (lambda: ops.combine(X.half(), [], C.half()), "x"),
    "no samples dimension": (lambda: ops.combine(torch.tensor(1.0), [], C), "x"),
    "too few coefficients": (lambda: ops.combine(X, [Y], C[:4].clone()), "coef"),
    "coefficients of another dtype": (lambda: ops.combine(X, [Y], C.double()), "coef"),
    "seed of another shape": (lambda: ops.combine(X, [Y], C, seed=torch.zeros(2, dtype=torch.int64)), "seed"),
    "seed of another dtype": (lambda: ops.combine(X, [Y], C, seed=torch.tensor(1.0)), "seed"),
    "draw too large": (lambda: ops.combine(X, [Y], C, seed=torch.tensor(1), draw=2**32), "draw"),
    "unknown stream number": (lambda: ops.combine(X, [Y], C, seed=torch.tensor(1), stream=2**16), "stream"),
    "operand in the state's memory": (lambda: ops.combine_(X, [X[:]], C), r"ys\[0\]"),
    "coefficients in the state's memory": (lambda: shared_coefficients(), "coef"),
    "x that requires grad": (lambda: ops.combine_(X.clone().requires_grad_(), [Y], C), "x, ys"),
    "operand that requires grad": (lambda: ops.combine_(X.clone(), [Y.clone().requires_grad_()], C), "x, ys"),
    "seed of an integer in combine": (lambda: ops.combine(X, [Y], C, seed=3), "seed"),
    "strided seeds in combine": (lambda: ops.combine(X, [Y], C, seed=torch.arange(6)[::2]), "seed"),
    "coefficients of a list": (lambda: ops.combine(X, [Y], [1.0] * 5), "coef"),
    "x of None": (lambda: ops.combine(None, [Y], C), "x"),
    # noise
    "unknown stream": (lambda: noise.normal(0, (2, 2), stream="steps"), "stream"),
    "unknown kind": (lambda: ops.noise("cauchy", torch.tensor(0), (2,), first_sample=0, stream=0, draw=0), "kind"),
    "no shape": (lambda: noise.normal(0, ()), "shape"),
    "negative shape": (lambda: noise.normal(0, (2, -1)), "shape"),
    "negative draw": (lambda: noise.normal(0, (2, 2), draw=-1), "draw"),
    "counter of three": (lambda: noise.philox((0, 0, 0), (0, 0)), "counter, key"),
    "counter out of range": (lambda: noise.philox((0, 0, 0, 2**32), (0, 0)), "counter, key"),
    "counter of fractions": (lambda: noise.philox((0, 0, 0, 0.5), (0, 0)), "counter, key"),
    # gap
    "gap without noise": (lambda: fpfast.gap(SCORE, "blob", noise=0.0), "noise"),
    "gap of unknown data": (lambda: fpfast.gap(SCORE, "blobs"), "data"),
    "gap in three dimensions": (lambda: fpfast.gap(SCORE, torch.zeros(5, 3)), "data"),
    "gap with negative noise": (lambda: fpfast.gap(SCORE, "blob", noise=-1.0), "noise"),
    "gap of two points": (lambda: fpfast.gap(SCORE, torch.zeros(2, 2)), "data"),
    "gap with a huge seed": (lambda: fpfast.gap(SCORE, "blob", seed=2**64 - 1), "seed"),
    "gap of nothing": (lambda: fpfast.gap(SCORE, "blob", n=0), "n"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    call, name = CASES[case]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call()
    message = str(caught.value)
    import re

    assert re.match(rf"{name}.*?: ", message), message
    assert ("expected" in message and "got" in message) or "cannot serve" in message, message


def test_explicit_backend_names_what_would_mend_it(monkeypatch):
    monkeypatch.setattr(backends, "NATIVE_ERROR", "No module named 'fpfast._native'")
    with pytest.raises(RuntimeError, match=r"'cpu' cannot serve .* install g\+\+, then: pip install"):
        backends.pick("cpu", "cpu", torch.float32)
    assert backends.pick("auto", "cpu", torch.float32) == "reference"


def test_times_are_not_changed_by_the_grid():
    given = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    assert times.grid(VP, given, 7) is not given
