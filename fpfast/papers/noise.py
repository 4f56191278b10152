"""``fpfast paper noise``: Elamvazhuthi et al., "Noise in the reverse process improves the approximation capabilities of
diffusion models" (arXiv 2312.07851), at a small budget. See docs/noise-in-the-reverse-process.md

Reverse processes of every noise level start from p_T itself, so that only the score's error matters: exact scores,
scores with an error of a given size and kind, and learned ones; then drifts of limited width (tracking.py).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from fpfast.papers import noise_plots, noise_tables, tracking_tables
from fpfast.papers.noise_cases import LEVELS, Budget, cases, outcome
from fpfast.papers.report import Report
from fpfast.papers.runs import side_by_side
from fpfast.papers.score_errors import SDE

TITLE = "noise in the reverse process (Elamvazhuthi et al.): about 25 minutes of processor time"
BUDGET = Budget()


def add(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tracks three trajectories p_t by reverse processes of five noise levels, with exact, wrong and learned "
        "scores, and by drifts of width 2. About 25 minutes of processor time with 3 seeds."
    )


def run(args: argparse.Namespace) -> None:
    budget, began = BUDGET, time.perf_counter()
    report = Report(args.out, TITLE.partition(":")[0], {"seeds": args.seeds, **asdict(budget)})
    folder = report.folder / "networks"
    folder.mkdir(exist_ok=True)
    every = [(budget, folder, case) for case in cases(budget, args.seeds)]
    outcomes = side_by_side(outcome, every, args.jobs, "scores")
    report.say(
        f"{budget.samples} samples of each process, {budget.steps} steps (exponential integrator, even in log-SNR) "
        f"from t = {SDE.T:g} to {SDE.t_min:g}, {args.seeds} seeds. L2: Int (q - p)^2 / Int p^2 of densities averaged "
        f"over {budget.cells} x {budget.cells} cells, unbiased, so it may be negative. W2 squared on cells 4 times as "
        "wide, total variation on cells twice as wide, both with the bias of a finite sample: compare with the floor, "
        "which is what exact samples have. ± one standard error over seeds."
    )
    noise_tables.final(report, budget, outcomes)
    noise_tables.convergence(report, budget, outcomes)
    noise_tables.widths(report, budget, outcomes)
    noise_tables.over_time(report, budget, outcomes)
    captions = {
        noise_plots.densities: f"Densities at t = {SDE.t_min:g} with errors of size {budget.shown:g}, first seed. One "
        "scale a row, up to 1.5 times the largest density of p_t.",
        noise_plots.times: f"L2 over time with errors of size {budget.shown:g}; linear between -0.01 and 0.01. Grey: "
        "two standard errors of what exact samples have.",
        noise_plots.convergence: "L2, and W2 beyond that of the exact score, over the error's size, where seen.",
        noise_plots.widths: "Learned scores: distances at the end over the networks' width.",
    }
    for picture, caption in captions.items():
        report.picture(picture.__name__, picture(budget, outcomes), caption)
    tracking_tables.run(report, budget.tracking, LEVELS, args)
    report.say(f"{time.perf_counter() - began:.0f} s, {args.jobs} at a time.")
    report.close()
