"""``fpfast paper ode-sde-gap``: the Fokker-Planck residual and the distance between ODE and SDE samples."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import scipy.stats

from fpfast import data
from fpfast.errors import bad
from fpfast.metrics import Estimate, histogram, total_variation_floor, w2_grid
from fpfast.papers import gap_pictures, identity, published
from fpfast.papers.gap_networks import EDGE, FULL, SHORT, Budget, Case, Found, examine
from fpfast.papers.report import Report, cell, over_seeds
from fpfast.papers.runs import side_by_side

TITLE = "closing the ODE-SDE gap by a Fokker-Planck term (Deveney et al., arXiv 2311.15996); 45 minutes of a core"
WEIGHTS = (0.0, 0.1, 1.0, 10.0)
PAIRS = ("ODE-truth", "SDE-truth", "ODE-SDE")

# Squared W2 distances of PAIRS, and the total variation between ODE and SDE: exact transport between the histograms
# (3,000,000 samples) that the authors published with their code, computed by fpfast.
AUTHORS = {
    ("blob", 0.0): (0.01097, 0.00218, 0.01160, 0.259),
    ("blob", 0.1): (0.00604, 0.00294, 0.00311, 0.058),
    ("blob", 1.0): (0.00528, 0.00427, 0.00290, 0.045),
    ("blob", 10.0): (0.01722, 0.01599, 0.00221, 0.035),
    ("circles2", 0.0): (0.01435, 0.00227, 0.01340, 0.375),
    ("circles2", 0.1): (0.00737, 0.00332, 0.00528, 0.081),
    ("circles2", 1.0): (0.00828, 0.00454, 0.00309, 0.051),
    ("circles2", 10.0): (0.00938, 0.00910, 0.00170, 0.032),
    ("checker", 0.0): (0.02442, 0.00368, 0.02720, 0.346),
    ("checker", 0.1): (0.01139, 0.00539, 0.00716, 0.115),
    ("checker", 1.0): (0.01143, 0.01155, 0.00353, 0.049),
    ("checker", 10.0): (0.03305, 0.03216, 0.00210, 0.030),
}

DATA = tuple(dict.fromkeys(name for name, _ in AUTHORS))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", choices=DATA, help="(default: blob; with --full: all)")
    parser.add_argument("--full", action="store_true", help="the authors' 100,000 steps: hours for each network")
    parser.add_argument(
        "--published",
        metavar="FOLDER",
        help="no training: a million samples of each of the authors' networks there, beside their histograms",
    )


def run(args: argparse.Namespace) -> None:
    if args.published is not None:
        if args.full or args.data:
            raise bad("--published", "neither --full nor --data beside it", args.data or "--full")
        sampled = {"samples": published.SAMPLES}
        report = Report(args.out, "The published networks, sampled by fpfast", sampled, "published")
        published.run(Path(args.published), report, published.SAMPLES)
        report.close()
        return
    began, budget = time.perf_counter(), FULL if args.full else SHORT
    chosen = list(dict.fromkeys(args.data or (DATA if args.full else ["blob"])))
    settings = {"data": chosen, "seeds": args.seeds, "budget": asdict(budget)}
    report = Report(args.out, "The gap between ODE and SDE samples", settings)
    gaussians(report, budget)
    cases = [Case(name, w, seed) for name in chosen for seed in range(args.seeds) for w in WEIGHTS]
    found = side_by_side(examine, [(report.folder, case, budget) for case in cases], args.jobs, "networks")
    for name in chosen:
        of_data = [one for one in found if one.case.data == name]
        distances(report, name, of_data, budget)
        findings(report, name, of_data)
        bounds(report, name, of_data)
        report.picture(
            f"{name}_densities",
            gap_pictures.densities({f"w = {one.case.weight:g}": one.gap for one in of_data if one.case.seed == 0}),
            f"{name}: densities of data, SDE and ODE samples for each weight w, first seed; squared W2 distances.",
        )
        report.picture(
            f"{name}_residuals",
            gap_pictures.residuals(of_data),
            f"{name}: root mean square of the Fokker-Planck residual over time, mean and range over seeds.",
        )
    report.picture(
        "bound",
        gap_pictures.bounds(found),
        "The computable bound, and its second factor I, beside the squared W2 distance of ODE and SDE samples.",
    )
    report.numbers["networks"] = [networks(one) for one in found]
    minutes = (time.perf_counter() - began) / 60
    report.say(
        f"{len(cases)} networks in {minutes:.1f} minutes, {args.jobs} at a time; what was trained before took none."
    )
    report.close()


def networks(one: Found) -> dict[str, Any]:
    """What report.json keeps of each."""
    distances = {pair: one.gap.table[pair] for pair in (*PAIRS, "floor")}
    return {**one.case._asdict(), **distances, "residual": one.residual, "denoising loss": one.dsm}


def gaussians(report: Report, budget: Budget) -> None:
    """The identity, where all its terms are known."""
    rows = [["score, times the exact one", "I", "by the identity", "W2^2", "bound"]]
    for factor in (0.8, 1.0, 1.3):
        exact, paths = identity.exactly(factor), identity.measured(factor, steps=budget.gaussian_steps)
        by_identity = Estimate(paths.residual.value + paths.prior - exact.end(factor), paths.residual.error)
        numbers = (exact.information, exact.w2, paths.bound)
        shown = [cell(Estimate(value, math.nan)) for value in numbers]
        rows.append([f"{factor:g}", shown[0], cell(by_identity), shown[1], shown[2]])
    report.table("Identity and bound on Gaussians in one dimension", rows)


def of_weight(found: list[Found], weight: float) -> list[Found]:
    return [one for one in found if one.case.weight == weight]


def value(one: Found, pair: str, metric: str = "w2_grid") -> float:
    return one.gap.table[pair][metric].value


def distances(report: Report, name: str, found: list[Found], budget: Budget) -> None:
    """Ours beside the authors'."""
    heading = ["w", *(part for pair in PAIRS for part in (pair, "authors")), "total variation", "authors"]
    rows, numbers = [[*heading, "residual", "denoising loss"]], []
    for w in WEIGHTS:
        ours = of_weight(found, w)
        means = {pair: over_seeds([value(one, pair) for one in ours]) for pair in PAIRS}
        variation = over_seeds([value(one, "ODE-SDE", "total_variation") for one in ours])
        residual, dsm = over_seeds([one.residual for one in ours]), over_seeds([one.dsm for one in ours])
        theirs = [f"{number:g}" for number in AUTHORS[name, w]]
        row = [part for pair, number in zip(PAIRS, theirs, strict=False) for part in (cell(means[pair]), number)]
        rows.append([f"{w:g}", *row, cell(variation), theirs[3], cell(residual), cell(dsm, 4)])
        kept = {**means, "total variation": variation, "residual": residual, "denoising loss": dsm}
        numbers.append({"w": w, **kept})
    floor = over_seeds([value(one, "floor") for one in of_weight(found, 0.0)])
    fresh = [histogram(data.draw(name, budget.samples, seed=2000 + k)) for k in range(2)]
    chance, least = w2_grid(*fresh), total_variation_floor(fresh[0], budget.samples, budget.samples)
    rows.append(["data", cell(floor), "", cell(floor), "", cell(chance), "", cell(least), "", "", ""])
    report.table(f"{name}: squared W2 distances, mean over seeds ± its standard error", rows, numbers)
    report.say(
        f"{budget.samples} samples of ODE and SDE, {10 * budget.samples} of the data; the last row is what fresh "
        "samples of the data have in their place, by chance. The authors' columns: 3,000,000 samples each. residual: "
        "root mean square of R in the box, at 25 times even in log t from 0.01."
    )
    outside = max(one.gap.outside[part] for one in found for part in ("ode", "sde"))
    report.say(f"Up to {outside:.2%} of a network's samples lie beyond the grid and are left out, as the authors do.")


def findings(report: Report, name: str, found: list[Found]) -> None:
    """The paper's three, each as differences of networks of one seed."""
    seeds = len(of_weight(found, 0.0))

    def difference(pair: str, a: float, b: float) -> Estimate:
        first, second = of_weight(found, a), of_weight(found, b)
        return over_seeds([value(x, pair) - value(y, pair) for x, y in zip(first, second, strict=True)])

    best = min(WEIGHTS, key=lambda w: over_seeds([value(one, "ODE-truth") for one in of_weight(found, w)]).value)
    rows = [["finding", "difference", "over seeds", "verdict"]]
    claims = [("the gap closes with w", "ODE-SDE", a, b) for a, b in pairwise(WEIGHTS)]
    claims += [
        ("ODE samples are best in between", "ODE-truth", a, b)
        for a, b in ((0.0, 0.1), (0.0, 1.0), (10.0, 0.1), (10.0, 1.0))
    ]
    claims += [("SDE samples are worse at large w", "SDE-truth", 10.0, w) for w in (0.0, 0.1, 1.0)]
    for claim, pair, a, b in claims:
        gained = difference(pair, a, b)
        rows.append([claim, f"{pair}: w = {a:g} less w = {b:g}", cell(gained), verdict(gained, seeds)])
    report.table(f"{name}: the paper's findings (positive as the paper has it)", rows)
    report.say(
        f"{name}: ODE samples are closest to the data at w = {best:g}, of {', '.join(f'{w:g}' for w in WEIGHTS)}."
    )


def verdict(difference: Estimate, seeds: int) -> str:
    """Decided where the 95% interval by Student's t leaves 0 out; one seed has none."""
    if seeds < 2 or abs(difference.value) <= float(scipy.stats.t.ppf(0.975, seeds - 1)) * difference.error:
        return "not decided"
    return "as the paper" if difference.value > 0 else "against the paper"


def bounds(report: Report, name: str, found: list[Found]) -> None:
    heading = ["w", "W2^2 of ODE and SDE", "Int E[R] dt", "E_T[e]", "log Z_0", "I at most", "first factor", "bound"]
    rows, numbers = [heading], []
    for w in WEIGHTS:
        ours = of_weight(found, w)
        parts = {
            "W2^2": over_seeds([value(one, "ODE-SDE") for one in ours]),
            "residual": over_seeds([one.bound.residual.value for one in ours]),
            "prior": over_seeds([one.bound.prior for one in ours]),
            "log mass": over_seeds([one.bound.log_mass for one in ours]),
            "information": over_seeds([one.bound.information.value for one in ours]),
        }
        largest = {part: max(getattr(one.bound, part) for one in ours) for part in ("growth", "bound")}
        rows.append([f"{w:g}", *(cell(number) for number in parts.values()), *(f"{x:.0e}" for x in largest.values())])
        numbers.append({"w": w, **parts, **largest})
    report.table(
        f"{name}: the bound; Z over [-{EDGE:g}, {EDGE:g}]^2; the last two columns: the largest over seeds",
        rows,
        numbers,
    )
