"""The tables of ``fpfast paper noise``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fpfast.metrics import Estimate
from fpfast.papers.cells import edges, l2_noise
from fpfast.papers.noise_cases import Budget, Outcome
from fpfast.papers.report import Report, cell, over_seeds
from fpfast.papers.score_errors import EARLY, KINDS, SDE, bound_of_tv
from fpfast.papers.trajectories import REFERENCES


class Measure(NamedTuple):
    title: str
    power: int  # of the distance that is measured
    biased: bool  # a sample of p itself does not have 0 on average


MEASURES = {
    "l2": Measure("squared L2 distance, relative", 2, False),
    "w2": Measure("squared W2 distance", 2, True),
    "tv": Measure("total variation", 1, True),
}


def chosen(outcomes: Sequence[Outcome], reference: str, kind: str, size: float | None = None) -> list[Outcome]:
    return [
        each for each in outcomes if each.case[:2] == (reference, kind) and (size is None or each.case.size == size)
    ]


def value(found: Sequence[Outcome], level: float, measure: str, moment: int = -1) -> Estimate:
    return over_seeds([getattr(each.distances[level][moment], measure) for each in found])


def _row(found: Sequence[Outcome], measure: str) -> list[str]:
    return [cell(value(found, level, measure)) for level in found[0].distances]


def _heading(*first: str, outcomes: Sequence[Outcome]) -> list[str]:
    return [*first, *(f"noise {level:g}" for level in outcomes[0].distances)]


def final(report: Report, budget: Budget, outcomes: Sequence[Outcome]) -> None:
    """Distances at the end, by noise level, score and reference."""
    for measure, about in MEASURES.items():
        rows = [_heading("p_t", "score", outcomes=outcomes)]
        for name in REFERENCES:
            for kind in ("fresh", "exact", *KINDS):
                size = budget.shown if kind in KINDS else None
                label = "(floor)" if kind == "fresh" else kind
                rows.append([name, label, *_row(chosen(outcomes, name, kind, size), measure)])
        if measure == "tv":
            levels = outcomes[0].distances
            rows.append(["all", "bound", *(f"{bound_of_tv(level, budget.shown):.2f}" for level in levels)])
        report.table(f"At t = {SDE.t_min:g}, errors of size {budget.shown:g}: {about.title}", rows)


def over_time(report: Report, budget: Budget, outcomes: Sequence[Outcome]) -> None:
    """All three distances at all moments, for report.json: [value, standard error], of errors of the size shown."""
    rows = []
    for name in REFERENCES:
        scores = [("fresh", None), ("exact", None), *((kind, budget.shown) for kind in KINDS)]
        scores += [("learned", width) for width in budget.widths]
        for kind, size in scores:
            found = chosen(outcomes, name, kind, size)
            for level in found[0].distances:
                for k, t in enumerate(budget.times):
                    values = {measure: list(value(found, level, measure, k)) for measure in MEASURES}
                    rows.append({"p_t": name, "score": kind, "size": size, "noise": level, "t": t, **values})
    report.numbers["over time"] = rows


def points(
    budget: Budget, outcomes: Sequence[Outcome], reference: str, kind: str, level: float, measure: str
) -> list[tuple[float, Estimate]]:
    """(size, distance), not squared, of the sizes at which it is seen.

    L2: above two standard errors of what exact samples have. W2: squared, less that of the exact score with the same
    seed, which has the same start and noise; above a quarter of it.
    """
    exact = chosen(outcomes, reference, "exact")
    subtracted = {each.case.seed: each.distances[level][-1].w2 if measure == "w2" else 0.0 for each in exact}
    least = 0.25 * sum(subtracted.values()) / len(subtracted)
    if measure == "l2":
        masses = REFERENCES[reference].cells(edges(budget.cells), SDE, SDE.t_min)
        least = 2 * l2_noise(masses, budget.samples) / math.sqrt(len(exact))
    kept = []
    for size in budget.sizes:
        found = chosen(outcomes, reference, kind, size)
        square = over_seeds(
            [getattr(each.distances[level][-1], measure) - subtracted[each.case.seed] for each in found]
        )
        if square.value > least:
            root = math.sqrt(square.value)
            kept.append((size, Estimate(root, square.error / (2 * root))))
    return kept


def slope(kept: Sequence[tuple[float, Estimate]]) -> float:
    """Of log distance over log size, least squares; NaN with fewer than three points."""
    if len(kept) < 3:
        return math.nan
    x, y = [math.log(size) for size, _ in kept], [math.log(e.value) for _, e in kept]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def _slope(budget: Budget, outcomes: Sequence[Outcome], reference: str, kind: str, level: float, measure: str) -> str:
    seeds = sorted({each.case.seed for each in outcomes})
    all_of = points(budget, outcomes, reference, kind, level, measure)
    fitted = slope(all_of)
    if math.isnan(fitted):
        return f"- ({len(all_of)} of {len(budget.sizes)} seen)"
    left_out = [
        slope(points(budget, [o for o in outcomes if o.case.seed != seed], reference, kind, level, measure))
        for seed in seeds
    ]
    error = math.nan
    if len(seeds) > 1 and not any(map(math.isnan, left_out)):  # the jackknife's
        mean = sum(left_out) / len(seeds)
        error = math.sqrt((len(seeds) - 1) / len(seeds) * sum((s - mean) ** 2 for s in left_out))
    return cell(Estimate(fitted, error), 3)


def convergence(report: Report, budget: Budget, outcomes: Sequence[Outcome]) -> None:
    """Slopes in the size of the error."""
    for measure in ("l2", "w2"):
        rows = [_heading("p_t", "error", outcomes=outcomes)]
        for name in REFERENCES:
            for kind in KINDS:
                levels = outcomes[0].distances
                rows.append([name, kind, *(_slope(budget, outcomes, name, kind, level, measure) for level in levels)])
        report.table(
            f"Slope of log {measure.upper()} distance over log size of the error, sizes {budget.sizes[0]:g} to "
            f"{budget.sizes[-1]:g}, where three or more are above the noise",
            rows,
        )


def widths(report: Report, budget: Budget, outcomes: Sequence[Outcome]) -> None:
    """Distances of learned scores."""
    for measure in ("l2", "w2"):
        rows = [_heading("p_t", "width", "size of error", f"at t < {EARLY:g}", outcomes=outcomes)]
        for name in REFERENCES:
            for width in budget.widths:
                found = chosen(outcomes, name, "learned", width)
                sizes = [cell(over_seeds(values)) for values in ([e.error for e in found], [e.early for e in found])]
                rows.append([name, str(width), *sizes, *_row(found, measure)])
            rows.append([name, "(floor)", "0", "0", *_row(chosen(outcomes, name, "fresh"), measure)])
        report.table(f"Learned scores at t = {SDE.t_min:g}: {MEASURES[measure].title}", rows)
