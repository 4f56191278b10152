"""Whether every op gives on a device what it gives on the CPU: the part of the GPU suite that comes before any time."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fpfast
from fpfast import backends, fused, losses, reference
from fpfast.fused_residual import FUSED
from fpfast.network import MLP
from fpfast.trajectory import ENGINES

SHAPES = [(1, 1), (3, 7), (1000, 2), (64, 3, 32, 32), (1, 2**20 + 5)]
LARGE = (4, 2**23)  # threads take several groups
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SUM = 4e-7  # of what is added up, a sum's error
PATH = 1e-5  # of the largest state, the error of a trajectory: the network's sums are made in another order
RESIDUAL = 2e-5  # of their norm, the error of residuals and of their losses' gradients, against float64
Check = tuple[str, Callable[[], str]]  # what is checked, and a function that says what is wrong


def serving(device: torch.device) -> list[str]:
    """The backends, but for plain torch, that run on a device here."""
    found = {name for name in backends.BACKENDS if backends.obstacle(name, device.type, torch.float32) is None}
    return [name for name in backends.BACKENDS if name in found - {"reference"}]


def engines(device: torch.device) -> list[str]:
    """Those of them that run networks whole."""
    return [name for name in serving(device) if name in ENGINES[device.type]]


@contextmanager
def residuals_by(name: str) -> Iterator[None]:
    """Residuals of float32 by this backend, where compiled networks take the first that there is."""
    chosen = fused.Fused.kernels

    def kernels(self: fused.Fused, x: Tensor) -> backends.Residuals | None:
        there = backends.obstacle(name, x.device.type, x.dtype) is None
        return backends.kernels(name) if there else chosen(self, x)  # type: ignore[return-value]

    fused.Fused.kernels = kernels  # type: ignore[method-assign]
    try:
        yield
    finally:
        fused.Fused.kernels = chosen  # type: ignore[method-assign]


def checks(device: torch.device) -> Iterator[Check]:
    large = [LARGE] if device.type == "cuda" else []
    for name in serving(device):
        for shape in (*SHAPES, *large):
            yield f"{name}, noise {shape}", lambda name=name, shape=shape: _noise(name, shape, device)
            yield f"{name}, combine {shape}", lambda name=name, shape=shape: _combine(name, shape, device)
            yield f"{name}, pairs {shape}", lambda name=name, shape=shape: _pairs(name, shape, device)
        if device.type == "cuda":
            for solver in fpfast.solvers.SOLVERS:
                yield f"{name}, graph, {solver}", lambda name=name, solver=solver: _graph(name, solver, device)
    for name, case, solver in itertools.product(engines(device), NETWORKS, fpfast.solvers.SOLVERS):
        yield (
            f"{name}, trajectory, {case}, {solver}",
            lambda name=name, case=case, solver=solver: _path(name, case, solver, device),
        )
    for name, case in itertools.product(engines(device), NETWORKS):
        yield f"{name}, frozen, {case}", lambda name=name, case=case: _frozen(name, case, device)
    for name, residual in itertools.product(engines(device), sorted(FUSED)):
        yield f"{name}, residual, {residual}", lambda name=name, residual=residual: _residual(name, *residual, device)


def _key(seeds: Tensor) -> reference.Key:
    return reference.Key(seeds, first_sample=2**33 + 1, stream=1, draw=2**32 - 1)


def _seeds(samples: int) -> Iterator[Tensor]:
    yield torch.tensor(5 - 2**63)
    yield torch.arange(samples) * -(2**37) + 11


def _different(got: Tensor, want: Tensor) -> str:
    got, want = (x.cpu().contiguous().view(torch.int32) for x in (got, want))
    wrong = int((got != want).sum())
    return f"{wrong} of {want.numel()} elements have other bits" if wrong else ""


def _noise(name: str, shape: tuple[int, ...], device: torch.device) -> str:
    for kind in reference.KINDS:
        for seeds in _seeds(shape[0]):
            want, got = torch.empty(shape), torch.empty(shape, device=device)
            reference.noise(want, kind, _key(seeds))
            backends.kernels(name).noise(got, kind, _key(seeds.to(device)))
            if wrong := _different(got, want):
                return f"{kind}: {wrong}"
    return ""


def _combine(name: str, shape: tuple[int, ...], device: torch.device) -> str:
    """With 1 to 4 operands of all dtypes, with noise and without, by sample or not, in place."""
    generator = torch.Generator().manual_seed(1)
    for count in range(1, 5):
        for mixed, seeds in itertools.product((False, True), (None, *_seeds(shape[0]))):
            dtypes = [DTYPES[k % 3 if mixed else 0] for k in range(count)]
            operands = [torch.randn(shape, generator=generator).to(dtype) for dtype in dtypes]
            coef = torch.randn((5,) if seeds is None or not seeds.ndim else (shape[0], 5), generator=generator)
            want, there = torch.empty(shape), [operand.to(device) for operand in operands]
            reference.combine(want, operands, coef, None if seeds is None else _key(seeds))
            key = None if seeds is None else _key(seeds.to(device))
            backends.kernels(name).combine(there[0], there, coef.to(device), key)
            if wrong := _different(there[0], want):
                return f"{count} operands: {wrong}"
    return ""


def _pairs(name: str, shape: tuple[int, ...], device: torch.device) -> str:
    generator, kernels, samples = torch.Generator().manual_seed(2), backends.kernels(name), shape[0]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x, y, pair, other = normal(*shape), normal(*shape), normal(2, *shape), normal(2, *shape)
    three, two, one, kind = normal(samples, 3), normal(samples, 2), normal(samples), "normal"
    key, there = _key(torch.tensor(3)), _key(torch.tensor(3, device=device))
    cases: dict[str, tuple[list[Tensor], list[Any]]] = {  # outputs and inputs
        "pair": ([normal(2, *shape)], [x, y, three, kind]),
        "defect": ([normal(*shape), normal(samples)], [x, pair, two]),
        "product": ([normal(samples)], [x, pair, other, two]),
        "probe_dot": ([normal(samples)], [x, kind]),
        "probe_times": ([normal(*shape)], [one, kind]),
    }
    for op, (outputs, inputs) in cases.items():
        on_device = [value.to(device) if isinstance(value, Tensor) else value for value in inputs]
        results = [output.to(device) for output in outputs]
        drawn = kind in inputs
        getattr(reference, op)(*outputs, *inputs, *([key] if drawn else []))
        getattr(kernels, op)(*results, *on_device, *([there] if drawn else []))
        if outputs[0].shape != (samples,) and (wrong := _different(results[0], outputs[0])):
            return f"{op}: {wrong}"
        if outputs[-1].shape == (samples,):
            away = (results[-1].cpu() - outputs[-1]).abs().max() / max(1.0, float(outputs[-1].abs().max()))
            if not away <= SUM * x[0].numel() ** 0.5 + 1e-6:
                return f"{op}: relative error {float(away):.2g}"
    return ""


NETWORKS = {  # dimension and widths; the last is too large for its weights to stay in a GPU's shared memory
    "score": (2, [128, 128]),
    "potential": (2, [80, 80, 80]),
    "wide score": (5, [256, 256, 256]),
}


def network(case: str) -> nn.Module:
    torch.manual_seed(1)
    dimension, widths = NETWORKS[case]
    return MLP(dimension, widths, activation="softplus:100", potential=case == "potential")


def _graph(name: str, solver: str, device: torch.device) -> str:
    """Replayed steps against the same steps called one by one."""
    net = network("score").requires_grad_(False).to(device).eval()
    score = fpfast.Score(lambda x, t: net(x, t), fpfast.VP())  # a function, which the fused engine leaves alone
    for seed, batch_size in ((5, 300), (list(range(1000)), None)):
        options: Any = {"solver": solver, "steps": 20, "seed": seed, "batch_size": batch_size, "backend": name}
        want = fpfast.sample(score, (1000, 2), device=device, graph=False, **options)
        got, info = fpfast.sample(score, (1000, 2), device=device, graph=True, return_info=True, **options)
        if info.not_graph:
            return f"not all was captured: {info.not_graph}"
        if wrong := _different(got, want):
            return wrong
    return ""


def _path(name: str, case: str, solver: str, device: torch.device) -> str:
    """Against the same samples on the CPU, whose noise has the same bits."""
    net = network(case).requires_grad_(False)
    score = fpfast.Score(net, fpfast.OU(T=1.0), predicts=case.split()[-1])
    shape = (1000, NETWORKS[case][0])
    for seed, batch_size in ((5, 300), (list(range(1000)), None)):
        options: Any = {"solver": solver, "steps": 10, "seed": seed, "batch_size": batch_size}
        net.cpu()
        want = fpfast.sample(score, shape, **options)
        net.to(device)
        got, info = fpfast.sample(score, shape, device=device, backend=name, return_info=True, **options)
        if not info.fused:
            return f"it did not run in the fused engine: {info.not_fused}"
        error = float((got.cpu() - want).abs().max() / want.abs().max())
        if not error <= PATH:
            return f"relative error {error:.2g}"
    return ""


def _frozen(name: str, case: str, device: torch.device) -> str:
    """Samples that overflow, against the states after all steps of a run that nobody watches."""
    net = network(case).requires_grad_(False).to(device)
    score = fpfast.Score(net, fpfast.OU(T=1.0), predicts=case.split()[-1])
    start = torch.randn(1000, NETWORKS[case][0], generator=torch.Generator().manual_seed(6))
    start *= 10 ** torch.linspace(0, 37.5, 1000)[:, None]
    options: Any = {"x": start, "steps": 10, "seed": 5, "device": device, "backend": name}
    states = [start.to(device)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fpfast.sample(score, start.shape, callback=lambda step, t, x: states.append(x), **options)
        got, info = fpfast.sample(score, start.shape, on_nonfinite="freeze", return_info=True, **options)
    finite = torch.stack(states).isfinite().all(2)
    first = torch.where(finite.all(0), 0, (~finite).int().argmax(0))
    step = int(first[first > 0].min())
    want = int((first > 0).sum()), (int((first == step).nonzero()[0, 0]), step)
    if not info.fused:
        return f"it did not run in the fused engine: {info.not_fused}"
    if (info.nonfinite, info.first_nonfinite) != want:
        return f"{info.nonfinite} samples, first {info.first_nonfinite}, expected {want}"
    last = torch.where(first > 0, first - 1, 10)
    return _different(got, torch.stack(states)[last, torch.arange(1000, device=device)])


def _residual(name: str, form: str, potential: bool, estimator: str, device: torch.device) -> str:
    """Values, a loss and its gradients by the kernels, against the CPU's in float64."""
    with residuals_by(name):
        return _inexact_residual(form, potential, estimator, device)


def _inexact_residual(form: str, potential: bool, estimator: str, device: torch.device) -> str:
    torch.manual_seed(2)
    generator, sde = torch.Generator().manual_seed(3), fpfast.OU(T=1.0)
    net, predicts = MLP(3, [80, 150, 33], activation="silu", potential=potential), "potential" if potential else "score"
    for points in (1, 1000, 100_000 if device.type == "cuda" else 5000):
        x, t = torch.randn(points, 3, generator=generator), 0.1 + 0.8 * torch.rand(points, generator=generator)
        found = []
        for there, dtype in (("cpu", torch.float64), (device, torch.float32)):
            module = copy.deepcopy(net).to(there, dtype)
            score = fpfast.Score(fused.compile(module, 3), sde, predicts)
            if score.net.kernels(x.to(there, dtype)) is None:  # type: ignore[union-attr]
                return "there are no kernels for it"
            options: Any = {"form": form, "estimator": estimator, "seed": 4}
            value = fpfast.fp_residual(score, x.to(there, dtype), t.to(there, dtype), **options).value
            loss = losses.fp_regulariser(score, x.to(there, dtype), t.to(there, dtype), **options)
            loss.backward()
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            found.append(
                [
                    one.detach().double().cpu().reshape(-1)
                    for one in (value, loss, torch.cat([g.reshape(-1) for g in gradients]))
                ]
            )
        for what, want, got in zip(("values", "loss", "gradients"), *found, strict=True):
            error = float((got - want).norm() / want.norm())
            if not error <= RESIDUAL:
                return f"{points} points, {what}: relative error {error:.2g}"
    return ""
