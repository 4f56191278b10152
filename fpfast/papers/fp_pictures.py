"""Pictures of ``fpfast paper fp-diffusion``: curves over time, ratios, densities, digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from fpfast.metrics import histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("tab:gray", "tab:orange", "tab:blue", "tab:green")
MARKERS = ("s", "^", "o", "D")
SIZES = (5, 9, 4, 4)  # where curves coincide, one shows behind the other


def _figure(rows: int, columns: int, width: float, height: float, **shared: Any) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    figure.subplots(rows, columns, squeeze=False, **shared)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], times: Sequence[float]) -> Figure:
    """A panel for each title; of each method, one curve a seed: their geometric mean, in a band of the extremes."""
    figure = _figure((len(panels) + 1) // 2, 2, 4.8, 3.6)
    for axis in figure.axes[len(panels) :]:
        axis.remove()
    for axis, (title, methods) in zip(figure.axes, panels.items(), strict=True):
        for (name, seeds), colour, marker, size in zip(methods.items(), COLOURS, MARKERS, SIZES, strict=False):
            values = numpy.asarray(seeds)
            axis.plot(
                times, numpy.exp(numpy.log(values).mean(0)), color=colour, marker=marker, ms=size, lw=1.5, label=name
            )
            axis.fill_between(times, values.min(0), values.max(0), color=colour, alpha=0.25, lw=0)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("time t")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=9)
    return figure


def ratios(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], base: str) -> Figure:
    """A panel for each problem, a row for each measure: its ratio to that of ``base``; small dots are the seeds."""
    figure = _figure(1, len(panels), 5.6, 4.2)
    for axis, (title, measures) in zip(figure.axes, panels.items(), strict=True):
        rows = list(measures)
        for row, measure in enumerate(rows):
            for place, (name, found) in enumerate(measures[measure].items()):
                _row(axis, len(rows) - 1 - row + 0.16 * (0.5 - place) * 2, name, found, place, row == 0)
        axis.axvline(1, color="black", lw=1)
        axis.set_xscale("log")
        _plain_ticks(axis)
        axis.set_yticks(range(len(rows)), rows[::-1])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlabel(f"ratio to {base} (log scale)")
        axis.set_title(title, fontsize=11)
        axis.grid(axis="x", alpha=0.3)
    figure.axes[0].legend(fontsize=9)
    return figure


def _row(axis: Axes, height: float, name: str, found: Sequence[float], place: int, labelled: bool) -> None:
    colour, marker = COLOURS[1 + place], MARKERS[1 + place]
    axis.plot(found, [height] * len(found), marker=".", ls="none", color=colour, alpha=0.5)
    middle = float(numpy.exp(numpy.log(found).mean()))
    axis.plot([middle], [height], marker=marker, ms=8, ls="none", color=colour, label=name if labelled else None)


def _plain_ticks(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def densities(truth: Tensor, methods: Mapping[str, Mapping[str, Tensor]], edge: float = 3.0) -> Figure:
    """Two rows of histograms: the ODE's samples of each method and the SDE's, beside the truth."""
    figure = _figure(2, 1 + len(methods), 2.7, 2.8)
    grids = {"truth": histogram(truth, edge=edge, nodes=96)}
    top = grids["truth"].weights.max() / grids["truth"].cell
    frame: dict[str, Any] = {"extent": (-edge, edge, -edge, edge), "origin": "lower", "interpolation": "nearest"}
    columns = {"truth": {"ODE": truth, "SDE": truth}, **methods}
    for column, (name, samples) in enumerate(columns.items()):
        for row, (kind, x) in enumerate(samples.items()):
            axis = figure.axes[row * len(columns) + column]
            grid = histogram(x, edge=edge, nodes=96)
            image = axis.imshow(grid.weights / grid.cell, vmin=0, vmax=top, cmap="magma", **frame)
            axis.set_title("truth" if name == "truth" else f"{name}, {kind}", fontsize=10)
            axis.set_xticks((-2, 0, 2))
            axis.set_yticks((-2, 0, 2))
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="density")
    return figure


def mosaics(panels: Mapping[str, Tensor], side: int = 6) -> Figure:
    """side x side images of each, in two rows of panels, on one scale of grey."""
    columns = (len(panels) + 1) // 2
    figure = _figure(2, columns, 2.8, 3.0)
    for axis in figure.axes:
        axis.axis("off")
    for axis, (title, images) in zip(figure.axes, panels.items(), strict=False):
        tiles = numpy.pad(images[: side * side, 0].numpy(), ((0, 0), (1, 1), (1, 1)), constant_values=1.0)
        high, wide = tiles.shape[1:]
        whole = tiles.reshape(side, side, high, wide).transpose(0, 2, 1, 3).reshape(side * high, side * wide)
        axis.imshow(whole, vmin=-1, vmax=1, cmap="gray")
        axis.set_title(title, fontsize=10)
    return figure
