"""``python -m bench.run --suite gpu``: every op on the GPU, first checked against the CPU, then timed; one command.

Times are of whole calls from Python until the device has done its work. For combinations the share of the peak is that
of a copy's bandwidth there.
"""

from __future__ import annotations

import copy
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fpfast
from bench import gpu_checks, report
from bench.peers import eager
from bench.residual import Residual
from bench.timing import Case, Run, Side, measure, seconds
from fpfast import fused, losses, ops

COEFFICIENTS = (0.9, 0.05, 0.3)  # applied over and over they keep x near 1
STEPS = 100
RESULTS = Path(__file__).with_name("results")


def device(name: str) -> torch.device:
    """Raises SystemExit where torch cannot use it."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("suite gpu: expected a CUDA device that torch can use (torch.cuda.is_available()), found none")
    return torch.device(name)


def about(where: torch.device) -> dict[str, Any]:
    if where.type != "cuda":
        return {"device": str(where)}
    found = torch.cuda.get_device_properties(where)
    return {
        "device": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "backends": gpu_checks.serving(where),
    }


def failures(where: torch.device) -> list[str]:
    """What is wrong with the ops on this device, one line each; every check is printed as it is made."""
    found = []
    for what, check in gpu_checks.checks(where):
        try:
            wrong = check()
        except Exception as error:  # of whatever kind: it fails its check, not the others
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{'wrong' if wrong else 'right'}: {what}{': ' * bool(wrong)}{wrong}", file=sys.stderr, flush=True)
        found += [f"{what}: {wrong}"] * bool(wrong)
    return found


def waited(run: Run, where: torch.device) -> Run:
    """The run, and what it started on the device."""
    if where.type != "cuda":
        return run

    def both() -> Any:
        result = run()
        torch.cuda.synchronize(where)
        return result

    return both


def captured(run: Run) -> Run:
    """The run's work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # so that nothing is set up for the first time while it is captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def bandwidth(where: torch.device, elements: int) -> float:
    """Bytes a second of a copy."""
    x, y = torch.zeros(elements, device=where), torch.zeros(elements, device=where)
    run = waited(partial(y.copy_, x), where)
    run()
    return 8 * elements / min(seconds(run, 10) for _ in range(3))


def cases(where: torch.device, quick: bool) -> Iterator[Case]:
    sizes, batches = ([2**10], [64]) if quick else ([2**k for k in range(10, 27, 4)], [64, 4096, 262144])
    for elements in sizes:
        yield Case(
            "combine",
            f"2^{elements.bit_length() - 1} elements, one operand and noise, in place; 12 bytes an element",
            _combine_sides(where, elements),
            "ns/element",
            elements,
            flops=12,  # bytes, of which the memory's share is shown
        )
    for batch in batches:
        for predicts in ("score", "potential"):
            yield Case(
                "trajectory",
                f"{predicts}, batch {batch}, {STEPS} steps of Euler-Maruyama",
                _path_sides(where, predicts, batch, quick),
                "ns/particle-step",
                batch * (3 if quick else STEPS),
            )
    for points in [256] if quick else [4096, 131072, 1048576]:
        yield Case(
            "residual",
            f"loss of a potential's Fokker-Planck residual and its gradients, {points} points",
            _residual_sides(where, points),
            "ns/point",
            points,
        )


def _combine_sides(where: torch.device, elements: int) -> dict[str, Side]:
    # Samples of 64 elements where there are more.
    shape = (max(1, elements // 64), min(64, elements))
    x, s = torch.randn(shape, device=where), torch.randn(shape, device=where)
    coef = torch.tensor([*COEFFICIENTS[:2], 0.0, 0.0, COEFFICIENTS[2]], device=where)
    seed = torch.tensor(0, device=where)

    def ready(run: Run, remark: str = "") -> tuple[Run, str]:
        run = waited(run, where)
        run()
        return run, remark

    def compiled() -> tuple[Run, str]:
        def update(x: Tensor, s: Tensor) -> Tensor:
            return (
                x.mul_(COEFFICIENTS[0]).add_(s, alpha=COEFFICIENTS[1]).add_(torch.randn_like(x), alpha=COEFFICIENTS[2])
            )

        return ready(partial(torch.compile(update), x, s))

    sides: dict[str, Side] = {}
    for name in gpu_checks.serving(where):
        run = partial(ops.combine_, x, [s], coef, seed=seed, backend=name)
        title = "fpfast" if not sides else f"fpfast {name}"
        sides[title] = partial(ready, run, name)
        if where.type == "cuda":
            sides[f"{title}, graph"] = lambda run=run: ready(captured(run))
    sides["torch eager"] = partial(ready, eager.combine(x, s, COEFFICIENTS))
    sides["torch.compile"] = compiled
    return sides


def _path_sides(where: torch.device, predicts: str, batch: int, quick: bool) -> dict[str, Side]:
    net = gpu_checks.network(predicts).requires_grad_(False).to(where)
    score, steps = fpfast.Score(net, fpfast.OU(T=1.0), predicts=predicts), 3 if quick else STEPS
    h, shape = 1.0 / steps, (batch, 2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        if predicts == "score":
            return net(x, t)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(net(x, t).sum(), x)[0]

    def fused(backend: str = "auto") -> tuple[Run, str]:
        run = waited(partial(fpfast.sample, score, shape, steps=steps, seed=0, device=where, backend=backend), where)
        run()
        return run, ""

    def loop(graph: bool) -> tuple[Run, str]:
        plain = fpfast.Score(network, fpfast.OU(T=1.0))
        run = waited(partial(fpfast.sample, plain, shape, steps=steps, seed=0, device=where, graph=graph), where)
        run()
        return run, "the network called step by step" if not graph else "its steps captured and replayed, in each run"

    def step(x: Tensor, t: Tensor) -> Tensor:
        return x + h * (x + 2 * network(x, t)) + (2 * h) ** 0.5 * torch.randn_like(x)

    def by_hand(step: Callable[[Tensor, Tensor], Tensor]) -> Run:
        times = torch.linspace(1, h, steps, device=where)

        @torch.no_grad()
        def run() -> Tensor:
            x = torch.randn(shape, device=where)
            for t in times:
                x = step(x, t.expand(batch))
            return x

        return run

    def ready(run: Run) -> tuple[Run, str]:
        run = waited(run, where)
        run()
        return run, ""

    sides: dict[str, Side] = {"fpfast": fused}
    sides |= {f"fpfast {name}": partial(fused, name) for name in gpu_checks.engines(where)[1:]}
    sides["fpfast, loop"] = partial(loop, False)
    if where.type == "cuda" and not quick:  # whose steps are too few
        sides["fpfast, loop, graph"] = partial(loop, True)
    sides["torch eager"] = lambda: ready(by_hand(step))
    if predicts == "score":  # a gradient made by autograd is neither captured nor compiled
        if where.type == "cuda":
            sides["torch eager, graph"] = lambda: ready(captured(by_hand(step)))
        sides["torch.compile"] = lambda: ready(by_hand(torch.compile(step, mode="reduce-overhead")))
    return sides


def _residual_sides(where: torch.device, points: int) -> dict[str, Side]:
    """A step of training, with other weights each time."""
    net = gpu_checks.network("potential")
    problem = Residual(fpfast.Score(net, fpfast.OU(T=1.0), predicts="potential"), "softplus:100", points)

    def ready(run: Run, remark: str = "") -> tuple[Run, str]:
        run = waited(run, where)
        run()
        return run, remark

    def ours(backend: str) -> tuple[Run, str]:
        module = copy.deepcopy(net).to(where)
        score = fpfast.Score(fused.compile(module, 2), fpfast.OU(T=1.0), predicts="potential")
        parameters, x, t = list(module.parameters()), problem.x.to(where), problem.t.to(where)

        def run() -> Any:
            with torch.no_grad():
                parameters[0].neg_()  # other weights than in the step before
            with gpu_checks.residuals_by(backend):
                loss = losses.fp_regulariser(score, x, t, form="log_density", estimator="exact")
            return torch.autograd.grad(loss, parameters, allow_unused=True)

        return ready(run)

    names = gpu_checks.engines(where)
    sides: dict[str, Side] = {"fpfast": partial(ours, names[0])}
    sides |= {f"fpfast {name}": partial(ours, name) for name in names[1:]}
    return {**sides, "torch eager": lambda: ready(problem.autograd(torch.float32, where))}


def main(origin: dict[str, Any], options: Namespace) -> None:
    """Ends with a status other than 0 where a check fails; there are no times then."""
    where = device(options.device)
    facts = {**origin, **about(where)}
    for name, value in facts.items():
        print(f"{name}: {value}")
    began, wrong = time.perf_counter(), failures(where)
    if wrong:
        sys.exit("\n".join([f"{len(wrong)} checks failed:", *wrong]))
    print(f"all ops are right on {facts['device']}: {time.perf_counter() - began:.0f} s")
    speed = bandwidth(where, 2**20 if options.quick else 2**26)
    rows = []
    for case in cases(where, options.quick):
        print(f"{case.group}: {case.name}", file=sys.stderr, flush=True)
        rows += measure(case, 1, options.repeats, speed / 1e9)
    print("\n".join(report.tables(rows)))
    name = re.sub(r"\W+", "-", str(facts["device"])).lower()
    report.write(options.out or RESULTS / f"gpu-{name}.json", {**facts, "copy_gb_per_s": round(speed / 1e9, 1)}, rows)
