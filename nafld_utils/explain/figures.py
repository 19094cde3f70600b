"""Figures of the attributions: images beside red and blue overlays, all on one symmetric scale."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils.views import name_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure


def picture(image: np.ndarray, title: str, ax: Axes) -> Axes:
    """One grey image (S, S) uint8 with its title."""
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=10, fontweight="normal")
    ax.set_axis_off()
    return ax


def caption(item: Mapping[str, Any], names: Sequence[str]) -> str:
    """One line about an explained image, a row of `attribution_units.Explanation.table`: name, class, what it is."""
    return f"{item['name']}: {names[int(item['label'])]}, {item['outcome'] or item['origin']}"


def overlay(image: np.ndarray, values: np.ndarray, limit: float, ax: Axes) -> Axes:
    """Attributions (S, S), log-odds per pixel, over the pale image: red speaks for fatty, blue against.

    The weaker, the more transparent; `limit` is the end of the scale, the same for every map of a figure.
    """
    ax.imshow(image, cmap="gray", vmin=-255, vmax=255)  # the upper half of the greys: pale
    alpha = np.clip(np.abs(values) / limit, 0.0, 1.0) ** 0.7
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=alpha)
    ax.set_axis_off()
    return ax


def scale(figure: Figure, axes: Sequence[Axes], limit: float, positive: str = "a fatty liver") -> ScalarMappable:
    """One colour bar for all overlays of a figure; `positive` is what positive log-odds speak for."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(Normalize(-limit, limit), cmap="RdBu_r")
    bar = figure.colorbar(colors, ax=list(axes), shrink=0.8, pad=0.02)
    bar.set_label(f"log-odds of {positive} that a pixel adds")
    bar.formatter.set_powerlimits((-2, 2))
    return colors


def by_classifier(
    images: Sequence[np.ndarray], titles: Sequence[str], maps: Mapping[str, tuple[np.ndarray, float]], axes: np.ndarray
) -> None:
    """The same images explained by several classifiers, one image per row and one classifier per column.

    Parameters
    ----------
    images : sequence of (S, S) uint8 ndarray
    titles : sequence of str
        One per image.
    maps : mapping of str to tuple of (n, S, S) float ndarray and float
        By classifier, log-odds per pixel and the end of the classifier's own scale: they differ in how large their
        log-odds are, and one scale would hide the pattern of the others.
    axes : (n, 1 + len(maps)) ndarray of Axes
        The first column is of the images.
    """
    for row, image, title in zip(axes, images, titles, strict=True):
        picture(image, title, row[0])
    for column, (name, (values, limit)) in zip(axes.T[1:], maps.items(), strict=True):
        for ax, image, one in zip(column, images, values, strict=True):
            overlay(image, one, limit, ax)
        words = "\n".join(textwrap.wrap(name, 22, break_long_words=False))
        column[0].set_title(f"{words}\nscale to ±{limit:.2g}", fontsize=10, fontweight="normal")


def intervals(
    names: Sequence[str], middle: Sequence[float], low: Sequence[float], high: Sequence[float], at: float, ax: Axes
) -> Axes:
    """Points with their intervals, one per line from the top, and a dashed line at the value that means nothing.

    Parameters
    ----------
    names : sequence of str
        A point's name; points whose value is NaN keep their line and say "none".
    middle, low, high : sequence of float
        Values and bounds; a bound that is NaN draws no bar.
    at : float
        Where the dashed line stands.
    ax : Axes
    """
    places = np.arange(len(names))
    middle, low, high = (np.asarray(values, dtype=float) for values in (middle, low, high))
    ax.axvline(at, color="#999999", linewidth=1.0, linestyle="--")
    ax.hlines(places, low, high, color="#0072B2", linewidth=1.5)
    ax.plot(middle, places, "o", color="#0072B2", markersize=5)
    for place in places[~np.isfinite(middle)]:
        ax.text(at, place, " none", va="center", fontsize=9)
    ax.set_yticks(places, labels=list(names))
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    return ax


def curves(table: pd.DataFrame, mode: str, ax: Axes) -> Axes:
    """Mean deletion or insertion (`mode`) curve of every map, from `map_measures.curves`."""
    looks = {"SHAP": ("#D55E00", "-"), "random": ("#555555", "--")}
    part = table[table["mode"] == mode]
    for name, (color, line) in looks.items():
        mean = part[part["map"] == name].groupby("fraction")["kept"].mean()
        ax.plot(100 * mean.index, mean.to_numpy(), line, color=color, label=f"{name} order")
    verb = "replaced" if mode == "deletion" else "put in"
    ax.set_xlabel(f"pixels {verb} (%)")
    ax.set_ylabel("log-odds on the image's side")
    ax.set_title(mode)
    return ax


def features(table: pd.DataFrame, ax: Axes) -> Axes:
    """Single-feature study (`single_feature_study.study`): attribution on the feature's place over that place's
    area.
    """
    places = np.arange(len(table))
    for prefix, color, label, shift in (("", "#D55E00", "trained", -0.1), ("untrained_", "#555555", "untrained", 0.1)):
        ax.hlines(places + shift, table[f"{prefix}ratio_low"], table[f"{prefix}ratio_high"], color=color)
        ax.plot(table[f"{prefix}ratio"], places + shift, "o", color=color, label=label, markersize=5)
    ax.axvline(1.0, color="#999999", linewidth=1.0, linestyle="--")
    names = [f"{row.feature.replace('_', ' ')}, {row.explainer}\nAUC {row.auc:.2f}" for row in table.itertuples()]
    over = f"(95 %, over {table['n_explained'].max():.0f} simulated patients)"
    name_rows(ax, names, f"attribution on the feature's place, over that place's share of the area\n{over}")
    ax.legend()
    return ax


def twin(feature: str, arrays: Mapping[str, np.ndarray], axes: Sequence[Axes]) -> None:
    """First explained image of one feature, its difference from its twin in grey levels, its attributions; three Axes.

    `arrays` are from `single_feature_study.study`.
    """
    image, difference, values = (arrays[name][0] for name in ("images", "difference", "maps_gradient"))
    picture(image, feature.replace("_", " "), axes[0])
    axes[1].imshow(difference, cmap="PuOr_r", vmin=-60, vmax=60)
    axes[1].set_title("minus its twin", fontsize=10, fontweight="normal")
    axes[1].set_axis_off()
    overlay(image, values, float(np.quantile(np.abs(values), 0.998)) or 1.0, axes[2])
    axes[2].set_title("attribution", fontsize=10, fontweight="normal")
