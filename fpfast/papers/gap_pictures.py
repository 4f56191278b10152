"""Pictures of ``fpfast paper ode-sde-gap``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fpfast import plot
from fpfast.gap import Gap
from fpfast.papers.gap_networks import Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def densities(gaps: Mapping[str, Gap]) -> Figure:
    """A row for each weight."""
    return plot.gaps(gaps)


def _weights(found: Sequence[Found]) -> list[float]:
    return sorted({one.case.weight for one in found})


def residuals(found: Sequence[Found]) -> Figure:
    """At perturbed data, and in the box, over time."""
    figure = plot.canvas(1, 2, 5.0, 4.0)
    for axis, where, title in zip(
        figure.axes, ("at_data", "in_box"), ("at perturbed data", "at uniform points of the box"), strict=True
    ):
        for w, colour in zip(_weights(found), COLOURS, strict=True):
            lines = torch.stack([getattr(one, where) for one in found if one.case.weight == w])
            times = found[0].times
            axis.plot(times, lines.mean(0), color=colour, label=f"w = {w:g}")
            axis.fill_between(times, lines.amin(0), lines.amax(0), color=colour, alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="t", title=title)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("root mean square of R")
    figure.axes[0].legend()
    return figure


def bounds(found: Sequence[Found]) -> Figure:
    """I, and the bound, over the measured distance; a colour for each weight, a marker for each data set."""
    figure = plot.canvas(1, 2, 5.0, 4.2)
    names = sorted({one.case.data for one in found})
    markers = dict(zip(names, "os^", strict=False))
    for axis, part, title in zip(
        figure.axes,
        (lambda one: one.bound.information.value, lambda one: one.bound.bound),
        ("I at most", "bound: first factor times I"),
        strict=True,
    ):
        for w, colour in zip(_weights(found), COLOURS, strict=True):
            for name in names:
                some = [one for one in found if one.case.weight == w and one.case.data == name]
                x = [one.gap.table["ODE-SDE"]["w2_grid"].value for one in some]
                options: dict[str, Any] = {"color": colour, "marker": markers[name], "linestyle": "none"}
                axis.plot(x, [part(one) for one in some], label=f"{name}, w = {w:g}", **options)
        axis.set(xscale="log", yscale="log", xlabel="W2² of ODE and SDE samples, measured", title=title)
        axis.grid(alpha=0.3, which="both")
        low, high = axis.get_xlim()
        axis.plot((low, high), (low, high), color="grey", linewidth=0.8, scalex=False)  # where they would be equal
    figure.axes[0].legend(fontsize=8)
    return figure
