"""Figures of stage 05: bars between floor and ceilings, examples near and far. Tables and arrays in, Axes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CEILING = "#D9D9D9"
WORDS = {
    "real_training": "real, other patients",
    "real_validation": "real, held out",
    "semantic": "semantic LDM",
    "class": "class LDM",
    "gaussian_semantic": "Gaussian latents (semantic)",
    "gaussian_class": "Gaussian latents (class)",
    "untrained_semantic": "untrained semantic LDM",
    "untrained_class": "untrained class LDM",
    "repeated_image": "one real image, repeated",
    "noise": "noise",
}
_ROLES = ("reference", "floor", "model", "ceiling")


def bars(intervals: pd.DataFrame, ax: Axes, title: str = "", xlabel: str = "", numbers: bool = True) -> Axes:
    """Horizontal bars of one metric and class: real images on top, then the models, then what they must beat (Fig. 4).

    Parameters
    ----------
    intervals : pandas.DataFrame
        Rows of `quality.fold_intervals`, one a set: ``model, role, mean, low, high``.
    ax : Axes
        Where to draw; shares its y axis with panels of the same sets.
    title, xlabel : str
        What the panel shows, and the metric.
    numbers : bool
        Write the mean beside each bar.
    """
    table = intervals.assign(order=intervals["role"].map(_ROLES.index)).sort_values("order", kind="stable")
    place = np.arange(len(table))[::-1]
    for y, row in zip(place, table.to_dict("records"), strict=True):
        if not np.isfinite(row["mean"]):
            ax.text(0, y, " too few images", va="center", fontsize=9, color="#777777")
            continue
        ax.barh(y, row["mean"], height=0.72, **_look(row["model"], row["role"]))
        ends = np.nan_to_num([row["low"], row["high"]], nan=row["mean"])
        ax.plot(ends, [y, y], color="black", lw=1.3, solid_capstyle="butt")
        if numbers:
            ax.annotate(_short(row["mean"]), (ends[1], y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(place, [WORDS.get(name, name) for name in table["model"]])
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.margins(x=0.2)
    ax.set(title=title, xlabel=xlabel)
    return ax


def _look(name: str, role: str) -> dict[str, object]:
    if role in ("floor", "reference"):
        return {"color": COLORS["real"]}
    return {"color": COLORS[name]} if role == "model" else {"color": _CEILING, "edgecolor": "#8A8A8A", "hatch": "///"}


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bar_grid(
    intervals: pd.DataFrame, axes: np.ndarray, metrics: Sequence[tuple[str, str]], classes: Sequence[str]
) -> None:
    """Fill a grid of Axes, a row a metric and a column a class, with `bars`; equal numbers of images.

    Parameters
    ----------
    intervals : pandas.DataFrame
        From `quality.fold_intervals`.
    axes : numpy.ndarray of Axes, shape (len(metrics), len(classes))
        With ``sharey="row"``.
    metrics : sequence of (str, str)
        Key and name of each metric.
    classes : sequence of str
        Values of column ``class``.
    """
    # Held-out images have no distance to themselves: they appear beside the others in the score only.
    table = intervals[(intervals["sample"] == "equal") | (intervals["role"] == "reference")]
    for (metric, name), row in zip(metrics, axes, strict=True):
        for group, ax in zip(classes, row, strict=True):
            part = table[(table["metric"] == metric) & (table["class"] == group)]
            equal = part[part["role"] == "model"].iloc[0]
            size = f"a fold: at least {equal['n_images']} against {equal['n_reference']}"
            bars(part, ax, f"{group}\n{size}" if ax in axes[0] else "", name)
        _share_limits(row)


def _share_limits(axes: Sequence[Axes]) -> None:
    low, high = (pick(ax.get_xlim()[i] for ax in axes) for i, pick in enumerate((min, max)))
    for ax in axes:
        ax.set_xlim(low, high)


def gallery(table: pd.DataFrame, axes: np.ndarray, class_names: Sequence[str]) -> None:
    """Images nearest to held-out real ones in the first row, farthest in the second (after Fig. 3).

    Parameters
    ----------
    table : pandas.DataFrame
        From `stages.quality.gallery`: ``kind, distance, fold, label, image``.
    axes : numpy.ndarray of Axes, shape (2, n)
        Where to draw.
    class_names : sequence of str
        Names of labels 0 and 1.
    """
    for kind, row in zip(("near", "far"), axes, strict=True):
        part = table[table["kind"] == kind].to_dict("records")
        for ax, item in zip(row, part, strict=False):
            ax.imshow(item["image"], cmap="gray", vmin=0, vmax=255)
            ax.set_title(f"{class_names[item['label']]}, {_short(item['distance'])}", fontsize=10, weight="normal")
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel({"near": "nearest to\nreal images", "far": "farthest from\nreal images"}[kind], fontsize=10)
