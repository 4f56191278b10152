"""FP-Diffusion (Lai et al., arXiv 2210.04296): does the score's Fokker-Planck equation, as a regulariser, help?

Denoising score matching alone, with that paper's regulariser, and with ours, under VP: on a Gaussian mixture in the
plane, whose score is known, and on handwritten digits.  See docs/fp-diffusion.md.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from fpfast import train
from fpfast.metrics import Estimate
from fpfast.papers import fp_measures as measures
from fpfast.papers import fp_pictures as pictures
from fpfast.papers.fp_problems import (
    ALONE,
    BUDGETS,
    FULL,
    LEVELS,
    METHODS,
    OURS,
    PROBLEMS,
    THEIRS,
    Budget,
    whole_digits,
)
from fpfast.papers.report import Report, cell, over_seeds
from fpfast.papers.runs import side_by_side, trained
from fpfast.score import Score
from fpfast.sde import VP

TITLE = "FP-Diffusion: a regulariser from the score's Fokker-Planck equation (about 25 minutes of processor time)"

TIMES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ROUNDS = 20  # of timed steps
PICTURED = 20_000  # samples


def recipe(name: str, method: str, budget: Budget, seed: int) -> train.Recipe:
    """Of a method; the batches are others than those of :func:`begun`."""
    return train.Recipe(
        steps=budget.steps,
        batch_size=budget.batch_size,
        seed=1000 + seed,
        learning_rate=PROBLEMS[name].learning_rate / 2,
        weighting="likelihood",
        **METHODS[method](PROBLEMS[name]),
    )


def begun(name: str, seed: int, budget: Budget, folder: Path) -> Score:
    """Denoising alone, from whose end all methods go on."""
    torch.manual_seed(seed)
    problem = PROBLEMS[name]
    common = train.Recipe(
        steps=budget.shared,
        batch_size=budget.batch_size,
        seed=seed,
        learning_rate=problem.learning_rate,
        schedule="constant",
        weighting="likelihood",
    )
    score = Score(problem.network(), VP(), problem.predicts)
    return trained(folder, f"{name}-{seed}", score, problem.draw, common).score


class Measured(NamedTuple):
    """Of one score. Curves are over ``TIMES``."""

    curves: dict[str, list[float]]
    values: dict[str, float]
    samples: dict[str, Tensor]  # for pictures
    losses: tuple[float, float]  # held-out denoising loss half way of the method's steps, and at their end


def measured(name: str, score: Score, budget: Budget, losses: tuple[float, float] = (math.nan, math.nan)) -> Measured:
    problem, times = PROBLEMS[name], dict(enumerate(TIMES))
    clean, few = problem.truth(budget.points, 2), problem.truth(budget.jacobians, 3)
    curves = {"residual": [measures.residual(score, clean, t, seed=k) for k, t in times.items()]}
    skew = [measures.asymmetry(score, few, t, seed=k) for k, t in times.items()]
    curves["asymmetry"], curves["relative asymmetry"] = ([pair[i] for pair in skew] for i in (0, 1))
    x = measures.draws(score, (budget.samples, *problem.shape), steps=budget.sampling, seed=4)
    values = {
        "residual": measures.geometric_mean(curves["residual"]),
        "asymmetry": measures.geometric_mean(curves["asymmetry"]),
        "relative asymmetry": statistics.fmean(curves["relative asymmetry"]),
    }
    if problem.known is not None:
        held_out = problem.truth(budget.held_out, 6)
        curves["score error"] = [
            measures.score_error(score, problem.known, held_out, t, seed=k) for k, t in times.items()
        ]
        values["score error"] = measures.geometric_mean(curves["score error"])
        nats = measures.mixture_likelihood(score, problem.known, held_out, steps=budget.likelihood)
        values |= {
            "nats": nats.model,
            "divergence": nats.divergence,
            "trimmed": nats.trimmed,
            "divergence error": nats.error,
        }
    else:
        bits = measures.image_likelihood(
            score, whole_digits(True)[: budget.held_out], LEVELS, steps=budget.likelihood, probes=2, seed=6
        )
        values |= {"bits": float(bits.value.mean()), "bits error": measures.standard_error(bits.value)}
    truth = problem.truth(budget.truth, 7)
    for kind, points in x.items():
        distance = measures.distances(points, truth, problem.bandwidth)
        values |= {f"{what} {kind}": value for what, value in distance.items()}
    return Measured(curves, values, {kind: points[:PICTURED].clone() for kind, points in x.items()}, losses)


def one(name: str, method: str, seed: int, budget: Budget, folder: Path) -> Measured:
    """A method's run and what is measured of it."""
    problem, start = PROBLEMS[name], begun(name, seed, budget, folder)
    net = copy.deepcopy(cast(nn.Module, start.module)).requires_grad_()
    file, every = f"{name}-{seed}-{list(METHODS).index(method)}", max(1, budget.steps // 2)
    fit = trained(folder, file, Score(net, start.sde, start.predicts), problem.draw,
                  recipe(name, method, budget, seed), problem.truth(min(2000, budget.truth), 1), every)  # fmt: skip
    cast(nn.Module, fit.score.module).requires_grad_(False)
    held_out = [cast(float, record.validation) for record in fit.history]
    return measured(name, fit.score, budget, (held_out[0], held_out[-1]))


# What the tables say of each problem: a label, what it is the mean of.
ROWS = {
    "mixture": {
        "residual": "residual (geometric mean over t)",
        "score error": "error of the score, relative (geometric mean over t)",
        "nats": "-log p, nats",
        "divergence": "-log p less the exact one, nats",
        "trimmed": "the same without the worst 1 % of points",
        "asymmetry": "norm of J - J^T (geometric mean over t)",
        "relative asymmetry": "the same over the norm of J (mean over t)",
        "w2 ODE": "W2^2 to data, ODE",
        "w2 SDE": "W2^2 to data, SDE",
        "mmd ODE": "MMD^2 to data, ODE",
        "mmd SDE": "MMD^2 to data, SDE",
    }
}
ROWS["digits"] = {
    **{
        key: label
        for key, label in ROWS["mixture"].items()
        if key not in ("score error", "nats", "divergence", "trimmed")
    },
    "bits": "bits per dimension, held out",
}
SHORT = {  # in the picture of ratios
    "residual": "residual",
    "score error": "error of the score",
    "trimmed": "-log p less the exact one,\nbut for 1 % of points",
    "bits": "bits per dimension",
    "asymmetry": "norm of J - J$^T$",
    "relative asymmetry": "the same over the norm of J",
    "w2 ODE": "W2$^2$, ODE",
    "w2 SDE": "W2$^2$, SDE",
}
CLAIMS = {
    "lower residual": ("residual", "residual"),
    "better likelihood": ("divergence", "bits"),
    "better likelihood, without the worst 1 %": ("trimmed", None),
    "closer to conservative": ("asymmetry", "asymmetry"),
    "closer to conservative, relative to J": ("relative asymmetry", "relative asymmetry"),
    "better ODE samples (W2)": ("w2 ODE", "w2 ODE"),
    "better SDE samples (W2)": ("w2 SDE", "w2 SDE"),
}


def verdict(alone: list[float], method: list[float]) -> str:
    """If a method's values are lower: in every seed, and on average by more than two standard errors, in pairs."""
    differences = [b - a for a, b in zip(alone, method, strict=True)]
    mean = over_seeds(differences)
    clear = len(differences) > 1 and abs(mean.value) > 2 * mean.error
    if clear and max(differences) < 0:
        return "holds"
    return "the opposite" if clear and min(differences) > 0 else "not told apart"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="longer training, more samples: about ten times the time")


def run(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    budgets = FULL if args.full else BUDGETS
    settings = {"seeds": args.seeds, "jobs": args.jobs, "budgets": {name: asdict(b) for name, b in budgets.items()}}
    report = Report(args.out, "FP-Diffusion", settings)
    seeds, folder = range(args.seeds), report.folder
    starts = [(name, seed, budgets[name], folder) for name in PROBLEMS for seed in seeds]
    side_by_side(begun, starts, args.jobs, "denoising alone")
    runs = [(name, method, seed, budgets[name], folder) for name in PROBLEMS for method in METHODS for seed in seeds]
    found = side_by_side(one, runs, args.jobs, "methods")
    results = {(name, method): found[i : i + args.seeds] for i, (name, method, seed, *_) in enumerate(runs) if not seed}
    for name in PROBLEMS:
        _tables(report, name, {method: results[name, method] for method in METHODS}, budgets[name])
    _claims(report, results)
    _costs(report, budgets)
    _pictures(report, results, budgets)
    report.say(f"{(time.perf_counter() - began) / 60:.1f} minutes with --jobs {args.jobs}")
    report.close()


def _of(results: list[Measured], key: str) -> list[float]:
    return [each.values[key] for each in results]


def _ideal(name: str, budget: Budget) -> tuple[str, dict[str, float]]:
    """What the measures say of the exact score, or of data in place of samples."""
    problem = PROBLEMS[name]
    if problem.known is not None:
        return "exact score", measured(name, problem.known.score(VP()), budget).values
    fresh = problem.draw(budget.samples, Generator().manual_seed(8))
    distance = measures.distances(fresh, problem.truth(budget.truth, 7), problem.bandwidth)
    return "training data", {f"{what} {kind}": value for what, value in distance.items() for kind in ("ODE", "SDE")}


def _tables(report: Report, name: str, results: dict[str, list[Measured]], budget: Budget) -> None:
    title, (ideal, known) = PROBLEMS[name].title, _ideal(name, budget)
    rows = [["", *results, ideal]]
    for key, label in ROWS[name].items():
        last = cell(Estimate(known[key], math.nan), 4) if key in known else ""
        rows.append([label, *(cell(over_seeds(_of(found, key)), 4) for found in results.values()), last])
    numbers = {
        method: {"curves": [each.curves for each in found], "values": [each.values for each in found]}
        for method, found in results.items()
    }
    report.table(f"{title}: means and standard errors over seeds", rows, {"times": TIMES, ideal: known, **numbers})
    rows = [["", *(method for method in results if method != ALONE)]]
    for key, label in ROWS[name].items():
        alone = _of(results[ALONE], key)
        if min(alone) > 0:
            pairs = {m: [b / a for a, b in zip(alone, _of(found, key), strict=True)] for m, found in results.items()}
            rows.append([label, *(cell(over_seeds(pairs[method]), 4) for method in rows[0][1:])])
    report.table(f"{title}: over denoising alone, seed by seed", rows)
    rows = [["", "half way", "at the end"]]
    for method, found in results.items():
        rows.append([method, *(cell(over_seeds([each.losses[i] for each in found]), 4) for i in (0, 1))])
    report.table(f"{title}: denoising loss of held-out data", rows)


def _claims(report: Report, results: dict[tuple[str, str], list[Measured]]) -> None:
    columns = [(name, method) for name in PROBLEMS for method in (THEIRS, OURS)]
    rows = [["claim", *(f"{PROBLEMS[name].title}, {method}" for name, method in columns)]]
    for claim, keys in CLAIMS.items():
        row = [claim]
        for name, method in columns:
            key = dict(zip(PROBLEMS, keys, strict=True))[name]
            values = (_of(results[name, m], key) for m in (ALONE, method)) if key else None
            row.append(verdict(*values) if values else "")
        rows.append(row)
    report.table("What holds here, against denoising alone", rows)


def _costs(report: Report, budgets: dict[str, Budget]) -> None:
    """In turn, in this process, on one thread; the networks are new ones, which costs as much."""
    torch.set_num_threads(1)
    rows, numbers = [["", "milliseconds", *METHODS]], {}
    for name, problem in PROBLEMS.items():
        x0 = problem.draw(budgets[name].batch_size, Generator().manual_seed(0))
        kinds = {
            method: (Score(problem.network(), VP(), problem.predicts), recipe(name, method, budgets[name], 0))
            for method in METHODS
        }
        seconds = measures.step_costs(kinds, x0, ROUNDS)
        cells = []
        for method in METHODS:
            ratios = [b / a for a, b in zip(seconds[ALONE], seconds[method], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append([problem.title, f"{1000 * statistics.median(seconds[ALONE]):.1f}", *cells])
        numbers[name] = seconds
    rows[0][1] = f"{ALONE}, milliseconds"
    report.table("Cost of a training step over one of denoising alone: median (quartiles)", rows, numbers)


def _pictures(report: Report, results: dict[tuple[str, str], list[Measured]], budgets: dict[str, Budget]) -> None:
    titles = {"residual": "residual, root mean square", "score error": "error of the score, relative",
              "asymmetry": "norm of J - J$^T$", "relative asymmetry": "norm of J - J$^T$ over that of J"}  # fmt: skip
    for name, problem in PROBLEMS.items():
        own = {method: results[name, method] for method in METHODS}
        panels = {
            f"{problem.title}: {titles[key]}": {m: [each.curves[key] for each in found] for m, found in own.items()}
            for key in titles
            if key in own[ALONE][0].curves
        }
        report.picture(f"{name}_curves", pictures.curves(panels, TIMES),
                       "Over time: geometric means over seeds; bands from the least seed to the greatest.")  # fmt: skip
        sampled = {method: found[0].samples for method, found in own.items()}
        truth, generator = problem.truth(budgets[name].truth, 7), Generator().manual_seed(8)
        if problem.known is not None:
            report.picture(f"{name}_samples", pictures.densities(truth, sampled), "Samples of the first seed.")
        else:
            rows = {"ODE": ("held-out data", truth), "SDE": ("training data", problem.draw(36, generator))}
            shown: dict[str, Tensor] = {}
            for kind, (title, images) in rows.items():
                shown |= {title: images, **{f"{method}, {kind}": sampled[method][kind] for method in METHODS}}
            report.picture(f"{name}_samples", pictures.mosaics(shown),
                           "Samples of the first seed; methods share their prior draws and noise.")  # fmt: skip
    ratios = {}
    for name, problem in PROBLEMS.items():
        kept = {key: label for key, label in SHORT.items() if key in results[name, ALONE][0].values}
        ratios[problem.title] = {
            label: {
                m: [b / a for a, b in zip(_of(results[name, ALONE], key), _of(results[name, m], key), strict=True)]
                for m in (THEIRS, OURS)
            }
            for key, label in kept.items()
        }
    report.picture("ratios", pictures.ratios(ratios, ALONE), "Over denoising alone, seed by seed; less is better.")
