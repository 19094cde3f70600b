"""Figures of the attributions: images beside red and blue overlays, all on one symmetric scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


def picture(image: np.ndarray, title: str, ax: Axes) -> Axes:
    """One grey image (S, S) uint8 with its title."""
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=10, fontweight="normal")
    ax.set_axis_off()
    return ax


def overlay(image: np.ndarray, values: np.ndarray, limit: float, ax: Axes) -> Axes:
    """Attributions over the pale image: red speaks for fatty, blue against; the weaker, the more transparent.

    Parameters
    ----------
    image : (S, S) uint8
    values : (S, S) float
        Log-odds a pixel.
    limit : float
        End of the scale, the same for every map of a figure.
    ax : Axes
    """
    ax.imshow(image, cmap="gray", vmin=-255, vmax=255)  # the upper half of the greys: pale
    alpha = np.clip(np.abs(values) / limit, 0.0, 1.0) ** 0.7
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=alpha)
    ax.set_axis_off()
    return ax


def scale(figure: Figure, axes: Sequence[Axes], limit: float) -> ScalarMappable:
    """One colour bar for all overlays of a figure."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(Normalize(-limit, limit), cmap="RdBu_r")
    bar = figure.colorbar(colors, ax=list(axes), shrink=0.8, pad=0.02)
    bar.set_label("log-odds of fatty liver that a pixel adds")
    bar.formatter.set_powerlimits((-2, 2))
    return colors
