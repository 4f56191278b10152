"""``fpfast paper ode-sde-gap --published FOLDER``: the authors' networks, sampled anew, beside their histograms.

FOLDER holds NAME.safetensors, potentials phi(t, x) 3-80-80-80-1 with softplus(100), and NAME_hist.npz: ``ode``, ``sde``
and ``truth``, weights on the 64 x 64 nodes of :func:`fpfast.metrics.histogram`, of 3,000,000 samples each.
"""

from __future__ import annotations

import math
import statistics
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from fpfast.errors import bad
from fpfast.metrics import Estimate, Histogram, histogram, total_variation, total_variation_floor, w2_grid
from fpfast.network import load_mlp
from fpfast.papers.gap_networks import TIMES
from fpfast.papers.report import Report, cell
from fpfast.sample import sample
from fpfast.score import Score
from fpfast.sde import OU

THEIRS = 3_000_000
SAMPLES = 1_000_000
EVALUATIONS = 890
NOISE = {"ode": 0.0, "sde": 1.0}
PAIRS = {"ODE-truth": ("ode", "truth"), "SDE-truth": ("sde", "truth"), "ODE-SDE": ("ode", "sde")}
DRAWS = 4  # of n samples of a published histogram
SLICE = 3  # steps of plain autograd that are timed, before and after fpfast's


class Sampled(NamedTuple):
    ours: dict[str, Histogram]  # of the ODE and of the SDE
    seconds: float  # of sampling both
    autograd: list[float]  # seconds of single steps


def names(folder: Path) -> list[str]:
    """The networks in a folder that have histograms. Raises ValueError where there is none."""
    found = sorted(path.stem for path in folder.glob("*.safetensors") if (folder / f"{path.stem}_hist.npz").is_file())
    if not found:
        raise bad("--published", "a folder of NAME.safetensors and NAME_hist.npz", repr(str(folder)))
    return found


def published(folder: Path, name: str) -> dict[str, Histogram]:
    """Their histograms, ode, sde and truth."""
    path = folder / f"{name}_hist.npz"
    try:
        with numpy.load(path, allow_pickle=False) as file:
            weights = {part: file[part].reshape(64, 64).astype(float) for part in ("ode", "sde", "truth")}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise bad("--published", "arrays ode, sde and truth of 4096 weights", f"{str(path)!r}: {error}") from error
    for part, weight in weights.items():
        if not (weight >= 0).all() or abs(weight.sum() - 1) > 1e-3:
            raise bad("--published", "weights that sum to 1", f"{weight.sum()} in {part!r} of {str(path)!r}")
    return {part: Histogram(weight, 3.5, THEIRS) for part, weight in weights.items()}


def autograd_step(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """An Euler step of the ODE as plain torch takes it: the score by autograd, for half of the samples at a time."""
    halves = []
    for half in x.chunk(2):
        half = half.detach().requires_grad_()
        (s,) = torch.autograd.grad(net(half, t.expand(len(half))).sum(), half)
        halves.append((half + 0.0125 * (half + s / 2)).detach())
    return torch.cat(halves)


def autograd_seconds(net: nn.Module, n: int) -> list[float]:
    """Of SLICE steps of n samples, after one that is not timed."""
    x, seconds = torch.randn(n, 2), []
    for step in range(SLICE + 1):
        began = time.perf_counter()
        x = autograd_step(net, x, torch.tensor(1.0))
        if step:
            seconds.append(time.perf_counter() - began)
    return seconds


def sampled(folder: Path, name: str, n: int) -> Sampled:
    net = load_mlp(
        folder / f"{name}.safetensors", (80, 80, 80), activation="softplus:100", potential=True, time_first=True
    )
    score, ours, seconds = Score(net, OU(), "potential"), {}, 0.0
    slow = autograd_seconds(net, n)
    for process, noise in NOISE.items():
        x, info = sample(score, (n, 2), noise=noise, times=TIMES, seed=0, batch_size=2048, return_info=True)
        ours[process], seconds = histogram(x), seconds + info.seconds
    return Sampled(ours, seconds, slow + autograd_seconds(net, n))


def run(folder: Path, report: Report, n: int) -> None:
    """All networks of a folder: three tables."""
    same = [["network", "process", "total variation to theirs", "multinomial noise", "W2^2 to theirs", "such noise"]]
    apart = [["network", *(part for pair in PAIRS for part in (pair, "theirs"))]]
    times = [["network", "ODE + SDE, s", "plain autograd, s", "times as long"]]
    numbers, apart_numbers = [], []
    for name in names(folder):
        theirs, found = published(folder, name), sampled(folder, name, n)
        for process, ours in found.ours.items():
            variation, chance = (
                total_variation(ours, theirs[process]),
                total_variation_floor(theirs[process], n, THEIRS),
            )
            distance, floor = w2_grid(ours, theirs[process]), w2_floor(theirs[process], n)
            same.append([name, process.upper(), *(cell(e) for e in (variation, chance, distance, floor))])
            kept = {"total variation": variation, "noise": chance, "W2^2": distance, "W2^2 of noise": floor}
            numbers.append({"network": name, "process": process, **kept})
        mixed, row = {**found.ours, "truth": theirs["truth"]}, [name]
        for pair, (a, b) in PAIRS.items():
            own, expected = w2_grid(mixed[a], mixed[b]), w2_of_fewer(theirs[a], theirs[b], n, both=b != "truth")
            row += [cell(own), cell(expected)]
            apart_numbers.append({"network": name, "pair": pair, "ours": own, "theirs": expected})
        apart.append(row)
        slow = 2 * EVALUATIONS * statistics.median(found.autograd)
        spread = f"{min(found.autograd):.2f} to {max(found.autograd):.2f} s a step"
        times.append([name, f"{found.seconds:.0f}", f"{slow:.0f} ({spread})", f"{slow / found.seconds:.1f}"])
    report.table(f"Histograms of {n} samples, ours and the published ones of {THEIRS}", same, numbers)
    report.table("Squared W2 distances: ours, theirs; truth is theirs", apart, apart_numbers)
    report.say(
        f"Theirs: of {n} samples drawn from their histograms, {DRAWS} times, as distances fall with more samples."
    )
    report.table(f"Time of {n} samples x {EVALUATIONS} steps, on {torch.get_num_threads()} threads", times)
    report.say(f"Plain autograd: the median of {2 * SLICE} single steps of {n} samples, times {2 * EVALUATIONS}.")


def w2_of_fewer(x: Histogram, y: Histogram, n: int, both: bool) -> Estimate:
    """Squared W2 distance of n samples of x to y, or to n of y. Its error has the draws' own and that of x and y."""
    generator = numpy.random.default_rng(0)

    def fewer(h: Histogram) -> Histogram:
        return Histogram(h.weights, h.edge, n).resampled(generator)

    values = [w2_grid(fewer(x), fewer(y) if both else y).value for _ in range(DRAWS)]
    return Estimate(statistics.mean(values), math.hypot(w2_grid(x, y).error, statistics.stdev(values) / DRAWS**0.5))


def w2_floor(h: Histogram, n: int) -> Estimate:
    """Squared W2 distance between histograms of n and of THEIRS samples of one law; its error as of any distance."""
    generator = numpy.random.default_rng(0)
    fewer = Histogram(h.weights, h.edge, n).resampled(generator)
    return w2_grid(fewer, h.resampled(generator))
