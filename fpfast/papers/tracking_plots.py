"""The picture of the drifts of width 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fpfast.papers.cells import EDGE, edges
from fpfast.papers.noise_plots import COLOURS
from fpfast.papers.report import over_seeds
from fpfast.papers.score_errors import SDE
from fpfast.papers.tracking import Budget, Track
from fpfast.papers.trajectories import REFERENCES
from fpfast.plot import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tracks(budget: Budget, found: Sequence[Track], levels: Sequence[float]) -> Figure:
    """A row for each reference: p_t at the end, the fitted processes' densities, and L2 over time."""
    columns = 2 + len(levels)
    figure = canvas(len(budget.references), columns, 2.2, 2.6)
    area = (2 * EDGE / budget.cells) ** 2
    frame: dict[str, Any] = {"extent": (-EDGE, EDGE, -EDGE, EDGE), "origin": "lower", "interpolation": "nearest"}
    times = budget.ends.tolist()
    for row, name in enumerate(budget.references):
        axes = figure.axes[row * columns : (row + 1) * columns]
        exact = REFERENCES[name].cells(edges(budget.cells), SDE, times[-1]) / area
        first = [next(t for t in found if (t.reference, t.level) == (name, level)) for level in levels]
        for axis, density in zip(axes, [exact, *(each.shares / area for each in first)], strict=False):
            axis.imshow(density.numpy(), vmin=0, vmax=1.3 * float(exact.max()), cmap="magma", **frame)
            axis.set(xticks=(), yticks=(), xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
        axes[0].set_title("exact $p_t$", fontsize=9)
        axes[0].set_ylabel(name, fontsize=9)
        curves = axes[-1]
        for axis, level, colour in zip(axes[1:], levels, COLOURS, strict=False):
            axis.set_title(f"noise {level:g}", fontsize=9)
            of = [t for t in found if (t.reference, t.level) == (name, level)]
            for kind, style in (("fitted", "-"), ("exact", ":")):
                along = [over_seeds([getattr(t, kind)[k].l2 for t in of]) for k in range(len(times))]
                curves.errorbar(times, [e.value for e in along], [e.error for e in along], color=colour, ls=style, lw=1,
                                label=f"noise {level:g}" if kind == "fitted" else None)  # fmt: skip
        curves.set(xscale="log", yscale="log", xlabel="t", ylim=(1e-3, 3))
        curves.invert_xaxis()
        curves.set_title("$\\int(q-p)^2/\\int p^2$", fontsize=9)
        curves.tick_params(labelsize=7)
    figure.legend(
        *figure.axes[columns - 1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9
    )
    return figure
