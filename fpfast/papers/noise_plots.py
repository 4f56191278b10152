"""The pictures of ``fpfast paper noise``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fpfast.papers.cells import EDGE, edges, l2_noise
from fpfast.papers.noise_cases import Budget, Outcome
from fpfast.papers.noise_tables import chosen, points, value
from fpfast.papers.score_errors import KINDS, SDE
from fpfast.papers.trajectories import REFERENCES
from fpfast.plot import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOURS = ("#000000", "#3b6fb6", "#3aa17e", "#e08a1e", "#c23b3b")  # of noise levels


def _levels(outcomes: Sequence[Outcome]) -> list[tuple[float, str]]:
    return list(zip(outcomes[0].distances, COLOURS, strict=True))


def densities(budget: Budget, outcomes: Sequence[Outcome]) -> Figure:
    """Rows: reference with an error that is rough, and one that is not; columns: p_t, then noise levels."""
    levels = [level for level, _ in _levels(outcomes)]
    rows = [(name, kind) for name in REFERENCES for kind in ("smooth", "rough")]
    figure = canvas(len(rows), 1 + len(levels), 2.0, 2.15)
    area = (2 * EDGE / budget.cells) ** 2
    frame: dict[str, Any] = {"extent": (-EDGE, EDGE, -EDGE, EDGE), "origin": "lower", "interpolation": "nearest"}
    for row, (name, kind) in enumerate(rows):
        axes = figure.axes[row * (1 + len(levels)) : (row + 1) * (1 + len(levels))]
        exact = REFERENCES[name].cells(edges(budget.cells), SDE, SDE.t_min) / area
        first = chosen(outcomes, name, kind, budget.shown)[0]
        maps = [exact, *(first.shares[level] / area for level in levels)]
        for axis, density in zip(axes, maps, strict=True):
            axis.imshow(density.numpy(), vmin=0, vmax=1.5 * float(exact.max()), cmap="magma", **frame)
            axis.set(xticks=(), yticks=(), xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
        for axis, level in zip(axes[1:], levels, strict=True):
            axis.set_title(f"noise {level:g}", fontsize=9)
        axes[0].set_title("exact $p_t$", fontsize=9)
        axes[0].set_ylabel(f"{name}\n{kind} error", fontsize=9)
    return figure


def times(budget: Budget, outcomes: Sequence[Outcome]) -> Figure:
    """Squared L2 distance over time, a row for each reference, a column for each score."""
    kinds = ["exact", *KINDS, "learned"]
    figure = canvas(len(REFERENCES), len(kinds), 2.5, 2.4)
    moments = budget.times
    for k, name in enumerate(REFERENCES):
        exact = [REFERENCES[name].cells(edges(budget.cells), SDE, t) for t in moments]
        seeds = len(chosen(outcomes, name, "exact"))
        noise = [2 * l2_noise(p, budget.samples) / seeds**0.5 for p in exact]
        for j, kind in enumerate(kinds):
            axis = figure.axes[k * len(kinds) + j]
            size = budget.shown if kind in KINDS else max(budget.widths) if kind == "learned" else None
            found = chosen(outcomes, name, kind, size)
            axis.fill_between(moments, [-e for e in noise], noise, color="0.85", lw=0)
            for level, colour in _levels(outcomes):
                along = [value(found, level, "l2", moment) for moment in range(len(moments))]
                axis.errorbar(moments, [e.value for e in along], [e.error for e in along], color=colour, lw=1.2, ms=3,
                              marker="o", label=f"noise {level:g}")  # fmt: skip
            axis.set_xscale("log")
            axis.set_yscale("symlog", linthresh=0.01)
            axis.invert_xaxis()
            axis.set_ylim(-0.02, 20)
            axis.tick_params(labelsize=7)
            if k == 0:
                axis.set_title(kind if kind != "learned" else f"learned, width {max(budget.widths)}", fontsize=9)
            if j == 0:
                axis.set_ylabel(f"{name}\n$\\int(q-p)^2/\\int p^2$", fontsize=9)
            if k == len(REFERENCES) - 1:
                axis.set_xlabel("t", fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    return figure


def convergence(budget: Budget, outcomes: Sequence[Outcome]) -> Figure:
    """L2 and W2 over the size of the error, log-log."""
    kinds = list(KINDS)
    figure = canvas(2 * len(REFERENCES), len(kinds), 2.7, 2.2)
    for k, (name, measure) in enumerate((name, measure) for name in REFERENCES for measure in ("l2", "w2")):
        row = figure.axes[k * len(kinds) : (k + 1) * len(kinds)]
        seen: list[float] = []
        for axis, kind in zip(row, kinds, strict=True):
            top = 0.0
            for level, colour in _levels(outcomes):
                kept = points(budget, outcomes, name, kind, level, measure)
                values = [e.value for _, e in kept]
                axis.errorbar([size for size, _ in kept], values, [e.error for _, e in kept], color=colour, lw=1.2,
                              ms=3.5, marker="o", label=f"noise {level:g}")  # fmt: skip
                seen, top = seen + values, max([top, *values])
            if top:
                line = [top * size / budget.sizes[-1] for size in budget.sizes]
                axis.plot(budget.sizes, line, color="0.7", lw=1, ls="--", label="slope 1")
            _log(axis, budget.sizes)
            if k == 0:
                axis.set_title(kind, fontsize=9)
            if k == 2 * len(REFERENCES) - 1:
                axis.set_xlabel("size of the error", fontsize=9)
        row[0].set_ylabel(f"{name}: {'relative L2' if measure == 'l2' else 'W2'}", fontsize=9)
        for axis in row if seen else ():
            axis.set_ylim(0.6 * min(seen), 1.6 * max(seen))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
    return figure


def widths(budget: Budget, outcomes: Sequence[Outcome]) -> Figure:
    """Learned scores: squared distances at the end over the networks' width."""
    figure = canvas(2, len(REFERENCES), 3.4, 2.7)
    for row, (measure, label) in enumerate((("l2", "$\\int(q-p)^2/\\int p^2$"), ("w2", "W2 squared"))):
        for column, name in enumerate(REFERENCES):
            axis = figure.axes[row * len(REFERENCES) + column]
            for level, colour in _levels(outcomes):
                along = [value(chosen(outcomes, name, "learned", width), level, measure) for width in budget.widths]
                axis.errorbar(budget.widths, [e.value for e in along], [e.error for e in along], color=colour, lw=1.2,
                              ms=3.5, marker="o", label=f"noise {level:g}")  # fmt: skip
            if measure == "w2":
                floor = value(chosen(outcomes, name, "fresh"), next(iter(outcomes[0].distances)), measure).value
                axis.axhline(floor, color="0.5", lw=1, ls=":", label="floor")
            _log(axis, budget.widths)
            if row == 0:
                axis.set_title(name, fontsize=9)
            else:
                axis.set_xlabel("width", fontsize=9)
            if column == 0:
                axis.set_ylabel(label, fontsize=9)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=9)
    return figure


def _log(axis: Any, ticks: Sequence[float]) -> None:
    """Both axes logarithmic, with labels that can be read over less than a decade too."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set(xscale="log", yscale="log", xlim=(0.8 * ticks[0], 1.25 * ticks[-1]))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.tick_params(labelsize=7)
