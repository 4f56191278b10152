"""Tables of :mod:`fpfast.papers.tracking`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fpfast.metrics import Estimate
from fpfast.papers import tracking_plots
from fpfast.papers.report import Report, cell, over_seeds
from fpfast.papers.runs import side_by_side
from fpfast.papers.score_errors import SDE
from fpfast.papers.tracking import Budget, Track, track

MEASURES = {"l2": "squared L2 distance, relative", "w2": "squared W2 distance", "tv": "total variation"}


def _over(tracks: Sequence[Track], kind: str, measure: str, last: bool) -> list[float]:
    """One value a seed: at the end, or the mean over the pieces' ends."""
    values = [[getattr(d, measure) for d in getattr(track, kind)] for track in tracks]
    return [each[-1] if last else sum(each) / len(each) for each in values]


def table(tracks: Sequence[Track], levels: Sequence[float], measure: str) -> list[list[str]]:
    rows = [["p_t", "process", "when", *(f"noise {level:g}" for level in levels)]]
    for name in dict.fromkeys(each.reference for each in tracks):
        of = {level: [t for t in tracks if (t.reference, t.level) == (name, level)] for level in levels}
        for kind, label in (("fitted", "width 2"), ("exact", "exact score")):
            for last in (False, True):
                values = [cell(over_seeds(_over(of[level], kind, measure, last))) for level in levels]
                rows.append([name, label, "end" if last else "mean over t", *values])
        if measure == "l2":
            least = _over(of[levels[0]], "fitted", measure, False)
            change = [
                over_seeds([a - b for a, b in zip(_over(of[level], "fitted", measure, False), least, strict=True)])
                for level in levels
            ]
            rows.append([name, "width 2", f"less that of noise {levels[0]:g}", *(cell(e) for e in change)])
            rows.append([name, "width 2", "loss of the fit", *(cell(_loss(of[level])) for level in levels)])
    return rows


def _loss(tracks: Sequence[Track]) -> Estimate:
    return over_seeds([track.loss for track in tracks])


def run(report: Report, budget: Budget, levels: Sequence[float], args: argparse.Namespace) -> None:
    every = [
        (budget, name, level, seed) for name in budget.references for level in levels for seed in range(args.seeds)
    ]
    tracks = side_by_side(track, every, args.jobs, "tracking")
    report.say(
        f"Drifts of width 2 with tanh, {budget.pieces} pieces of 10 controls, {budget.iterations} iterations of Adam "
        f"on {budget.particles} particles, {args.seeds} seeds; compared on {budget.samples} new particles, "
        f"{budget.cells} x {budget.cells} cells, from t = {SDE.T:g} to {budget.end:g}."
    )
    for measure, title in MEASURES.items():
        report.table(f"Drifts of width 2: {title}", table(tracks, levels, measure))
    report.picture(
        "tracking",
        tracking_plots.tracks(budget, tracks, levels),
        f"Drifts of width 2: densities at t = {budget.end:g} of the first seed, and L2 over time (means over seeds; "
        "dotted: the reverse process with the exact score).",
    )
