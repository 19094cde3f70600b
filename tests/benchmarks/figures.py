"""Figures of ``make bench``: how many times faster than a plain loop, and cost against the size of the cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = dict(zip(("o", "s", "^", "D", "v"), list(COLORS.values())[:5], strict=True))
BOUND_GIB = 2.0  # of stages 01 and 02


def ratios(rows: pd.DataFrame, ax: Axes) -> Axes:
    """How many times faster each way is than what it stands against, one bar a row, on a logarithmic axis.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``stage, what, ratio, against``; rows without a ratio are left out.
    ax : Axes
        Where to draw.
    """
    rows = rows.dropna(subset=["ratio"])[::-1]
    place = np.arange(len(rows))
    ax.barh(place, rows["ratio"], color=COLORS["class"], height=0.62, left=0)
    ax.axvline(1, color="#222222", lw=1.2, ls="--")
    for y, ratio in zip(place, rows["ratio"], strict=True):
        ax.annotate(f"{ratio:.3g}", (ratio, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    names = [f"{row.stage} {row.what}" for row in rows.itertuples()]
    ax.set(xscale="log", xlabel="times faster than the plain loop (dashed line: as fast)", ylim=(-0.6, len(rows) - 0.4))
    ax.set_yticks(place, names)
    ax.set_xlim(min(0.7, 0.8 * rows["ratio"].min()), 1.6 * max(rows["ratio"].max(), 1.0))
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")
    return ax


def seconds(curve: pd.DataFrame, exponents: dict[str, float], ax: Axes) -> Axes:
    """Processor seconds of each step against the images of the cohort, with a line of linear growth.

    Both axes are logarithmic. The legend is the figure's, since `memory` beside it shows the same steps.

    Parameters
    ----------
    curve : pandas.DataFrame
        ``step, patients, images, cpu_seconds``.
    exponents : dict
        Step to the fitted exponent, NaN where there is none.
    ax : Axes
        Where to draw.
    """
    for (marker, color), (step, part) in zip(LOOKS.items(), curve.groupby("step", sort=False), strict=False):
        power = exponents[step]
        label = step if np.isnan(power) else f"{step}: images$^{{{power:.2f}}}$"
        ax.plot(part["images"], part["cpu_seconds"], marker=marker, color=color, label=label)
    images = np.sort(curve["images"].unique())
    if len(images) > 1:
        low = curve["cpu_seconds"].min()
        ax.plot(images, 0.6 * low * images / images[0], color="#222222", ls="--", lw=1.2, label="linear growth")
    ax.set(xscale="log", yscale="log", xlabel="images (patients below)", ylabel="processor seconds")
    _ticks(curve, ax)
    return ax


def memory(curve: pd.DataFrame, ax: Axes) -> Axes:
    """Peak memory of each step's process against the images of the cohort.

    Parameters
    ----------
    curve : pandas.DataFrame
        ``step, patients, images, peak_gib``.
    ax : Axes
        Where to draw.
    """
    for (marker, color), (step, part) in zip(LOOKS.items(), curve.groupby("step", sort=False), strict=False):
        ax.plot(part["images"], part["peak_gib"], marker=marker, color=color, label=step)
    ax.axhline(BOUND_GIB, color="#222222", ls="--", lw=1.2)
    place = (curve["images"].min(), BOUND_GIB)
    ax.annotate("bound of 01 and 02", place, (0, 4), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", xlabel="images (patients below)", ylabel="peak memory (GiB)")
    ax.set_ylim(0, 1.25 * max(BOUND_GIB, curve["peak_gib"].max()))
    _ticks(curve, ax)
    return ax


def _ticks(curve: pd.DataFrame, ax: Axes) -> None:
    sizes = curve[["images", "patients"]].drop_duplicates().sort_values("images")
    labels = [f"{images}\n({patients})" for images, patients in sizes.itertuples(index=False)]
    ax.set_xticks(sizes["images"], labels)
    ax.minorticks_off()
