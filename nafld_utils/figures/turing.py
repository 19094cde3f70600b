"""Figures of the Turing test: the images, the rates beside the paper's, and which images fool whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

KIND_NAMES = {"real": "real", "semantic": "semantic LDM", "class": "class LDM"}
_INK, _ALERT = "#222222", "#8C2D04"


def contact_sheet(images: np.ndarray, items: pd.DataFrame, ax: Axes, columns: int = 10, reveal: bool = False) -> Axes:
    """All images of the test in its order, numbered; with `reveal`, framed in the colour of their kind.

    Parameters
    ----------
    images : (n, S, S) uint8
    items : pandas.DataFrame
        ``order``; with `reveal` also ``kind``. Row i belongs to image i.
    ax : Axes
    columns : int
        Images a row.
    reveal : bool
        Show which image is what.
    """
    size, gap = images.shape[1], max(4, images.shape[1] // 16)
    step, rows = size + gap, -(-len(images) // columns)
    sheet = np.full((rows * step - gap, min(columns, len(images)) * step - gap), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step, i % columns * step
        sheet[top : top + size, left : left + size] = image
    ax.imshow(sheet, vmin=0, vmax=255, interpolation="antialiased")
    for i, item in enumerate(items.itertuples()):
        top, left = i // columns * step, i % columns * step
        color = COLORS[item.kind] if reveal else "none"
        ax.add_patch(_frame(left, top, size, gap, color))
        ax.text(left + size * 0.04, top + size * 0.05, f"{item.order}", color="white", fontsize=9, va="top")
    ax.set(xlim=(-gap, sheet.shape[1] + gap - 1), ylim=(sheet.shape[0] + gap - 1, -gap))
    ax.axis("off")
    if reveal:
        _kind_legend(ax, items["kind"])
    return ax


def _frame(left: float, top: float, size: int, gap: int, color: str) -> Rectangle:
    from matplotlib.patches import Rectangle

    inset = gap / 4
    box = (left - 0.5 - inset, top - 0.5 - inset)
    return Rectangle(box, size + 2 * inset, size + 2 * inset, fill=False, lw=2.5, ec=color)


def _kind_legend(ax: Axes, kinds: pd.Series) -> None:
    from matplotlib.lines import Line2D

    counts = kinds.value_counts()
    handles = [
        Line2D([], [], color=COLORS[kind], lw=4, label=f"{name} ({counts[kind]})")
        for kind, name in KIND_NAMES.items()
        if kind in counts
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles))


def rates(summaries: Mapping[str, pd.DataFrame], ax: Axes) -> Axes:
    """Means with intervals over raters, one colour a source; the unit range is marked, since nothing is clipped.

    Parameters
    ----------
    summaries : mapping of str to pandas.DataFrame
        By name of the source (at most three): ``group, metric, mean, low, high``, rows in one order.
    ax : Axes
    """
    looks = [(_INK, "o"), (COLORS["semantic"], "D"), (COLORS["class"], "s")]
    first = next(iter(summaries.values()))
    # a gap between classes keeps the three triplets apart
    place = np.arange(len(first)) + 0.7 * (first["group"] != first["group"].shift()).cumsum().to_numpy()
    for i, (name, table) in enumerate(summaries.items()):
        color, marker = looks[i]
        at = place + (i - (len(summaries) - 1) / 2) * 0.3
        ax.hlines(at, table["low"], table["high"], color=color, lw=2)
        ax.plot(table["mean"], at, marker, color=color, label=name, ms=6)
    ax.axvline(0.5, color=_INK, lw=1, ls="--")
    for edge in (0, 1):
        ax.axvline(edge, color="#BBBBBB", lw=1)
    ax.set_yticks(place, [f"{row.group}: {row.metric}" for row in first.itertuples()])
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xlabel("share of answers that are right (dashed: 0.5; grey: 0 and 1)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=len(summaries))
    return ax


def recognised(images: pd.DataFrame, ax: Axes) -> Axes:
    """How often each image was recognised: a dot an image, a row a kind and class, a bar for their mean.

    Parameters
    ----------
    images : pandas.DataFrame
        ``kind, label, right`` (share of raters), an image a row.
    ax : Axes
    """
    rows = [(kind, label) for kind in KIND_NAMES for label in (1, 0)]
    rows = [row for row in rows if ((images["kind"] == row[0]) & (images["label"] == row[1])).any()]
    for y, (kind, label) in enumerate(rows):
        share = np.sort(images.loc[(images["kind"] == kind) & (images["label"] == label), "right"].to_numpy())
        values, first = np.unique(share, return_inverse=True)
        stack = np.arange(len(share)) - np.searchsorted(share, share)  # equal shares stand beside each other
        spread = np.bincount(first, minlength=len(values))[first]
        ax.plot(share, y + (stack - (spread - 1) / 2) * 0.075, "o", color=COLORS[kind], ms=5, alpha=0.85)
        ax.vlines(share.mean(), y - 0.4, y + 0.4, color=_INK, lw=2)
    ax.set_yticks(range(len(rows)), [f"{KIND_NAMES[k]}, {'unhealthy' if y else 'healthy'}" for k, y in rows])
    ax.set(
        xlim=(-0.05, 1.05), ylim=(len(rows) - 0.5, -0.5), xlabel="share of raters who recognised the image (bar: mean)"
    )
    ax.grid(axis="x")
    ax.grid(visible=False, axis="y")
    return ax


def strip(images: np.ndarray, table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """A row of images, each with what it is and how many raters recognised it.

    Parameters
    ----------
    images : (n, S, S) uint8
    table : pandas.DataFrame
        ``order, kind, label, right``, row i for image i.
    axes : (n,) array of Axes
    """
    for ax, image, item in zip(axes, images, table.itertuples(), strict=True):
        ax.imshow(image, vmin=0, vmax=255)
        group = "unhealthy" if item.label else "healthy"
        text = f"no. {item.order}: {KIND_NAMES[item.kind]}\n{group}, recognised {item.right:.0%}"
        ax.set_title(text, fontsize=9, loc="left", color=COLORS[item.kind], fontweight="normal")
        ax.axis("off")
    return axes


def mark_raters(figure: Figure, simulated: bool) -> Figure:
    """Write "simulated raters" into the lower left corner of a figure made from answers of no one."""
    if simulated:
        # within the layout, so that a tight box holds it on figures of any height
        figure.text(0.0, -0.03, "simulated raters", ha="left", va="bottom", fontsize=9, style="italic", color=_ALERT)
    return figure
