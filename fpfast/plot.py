"""Pictures of samples and densities, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fpfast.errors import bad
from fpfast.gap import Gap
from fpfast.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def canvas(rows: int, columns: int, width: float, height: float) -> Figure:
    """A figure of rows x columns axes, each of a width and height in inches."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    figure.subplots(rows, columns, squeeze=False)
    return figure


def _bar(e: Estimate) -> str:
    return f"{e.value:.4f} ± {e.error:.4f}"


def gaps(results: Mapping[str, Gap]) -> Figure:
    """A row for each result: densities of truth, SDE and ODE samples on one scale, and ODE minus SDE."""
    figure = canvas(len(results), 4, 3.1, 3.3)
    for row, (name, gap) in enumerate(results.items()):
        axes = figure.axes[4 * row : 4 * row + 4]
        edge = gap.histograms["truth"].edge
        density = {part: h.weights / h.cell for part, h in gap.histograms.items()}
        top = density["truth"].max()
        titles = {
            "truth": f"{name}\ntruth",
            "sde": f"SDE\nW2² to truth {_bar(gap.table['SDE-truth']['w2_grid'])}",
            "ode": f"ODE\nW2² to truth {_bar(gap.table['ODE-truth']['w2_grid'])}",
        }
        frame: dict[str, Any] = {"extent": (-edge, edge, -edge, edge), "origin": "lower", "interpolation": "nearest"}
        for axis, (part, title) in zip(axes, titles.items(), strict=False):
            image = axis.imshow(density[part], vmin=0, vmax=top, cmap="magma", **frame)
            axis.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axes[:3], shrink=0.75, label="density")
        difference = axes[3].imshow(density["ode"] - density["sde"], vmin=-top, vmax=top, cmap="RdBu_r", **frame)
        axes[3].set_title(f"ODE - SDE\nW2² {_bar(gap.table['ODE-SDE']['w2_grid'])}", fontsize=9)
        figure.colorbar(difference, ax=axes[3], shrink=0.75)
        for axis in axes:
            axis.set_xticks((-3, 0, 3))
            axis.set_yticks((-3, 0, 3))
    return figure


def samples(x: Tensor) -> Figure:
    """Two-dimensional samples (n, 2) as a histogram, or up to 64 images (n, 1, h, w) in a mosaic.

    Raises ValueError for other shapes.
    """
    x = x.detach().cpu()
    if x.ndim == 2 and x.shape[1] == 2:
        figure = canvas(1, 1, 4.5, 4.5)
        figure.axes[0].hist2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=100, cmap="magma")
        figure.axes[0].set_aspect("equal")
        return figure
    if x.ndim != 4 or x.shape[1] != 1:
        raise bad("x", "samples of shape (n, 2) or images of shape (n, 1, h, w)", tuple(x.shape))
    figure = canvas(8, 8, 0.8, 0.8)
    for axis in figure.axes:
        axis.axis("off")
    for axis, image in zip(figure.axes, x[:64, 0], strict=False):
        axis.imshow(image.numpy(), cmap="gray")
    return figure
