"""Figures of stage 04: what the condition does, and samplers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils.ldm import image_row as image_row
from nafld_utils.ldm import mosaic as mosaic
from nafld_utils.views import COLORS, bar_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLERS = {"ddim": ("s", "DDIM"), "dpmsolver++": ("o", "DPM-Solver++"), "unipc": ("^", "UniPC")}  # marker, words


def condition_effect(table: pd.DataFrame, ax: Axes) -> Axes:
    """Effect of the condition with its interval, drawn with the condition and with the null condition.

    `table` holds one effect: ``drawn_with, mean, low, high, expected_without, over``.
    """
    y = np.arange(len(table))[::-1]
    ax.errorbar(table["mean"], y, xerr=bar_lengths(table["mean"], table), fmt="o", color="#222222", capsize=3)
    ax.axvline(table["expected_without"].iloc[0], color=COLORS["semantic"], lw=1.2, ls="--", label="no effect")
    words = table["drawn_with"].map({"condition": "with its condition", "no condition": "null condition"})
    ax.set_yticks(y, words + "\n(interval over " + table["over"] + ")")
    ax.grid(axis="x")
    ax.set_ylim(-0.6, len(table) - 0.4)
    ax.legend(loc="best")
    return ax


def sampler_comparison(table: pd.DataFrame, varied: str, value: str, label: str, ax: Axes) -> Axes:
    """A value of small sets over one setting of the sampler; the run's own setting drawn twice.

    `table` holds ``model, scheduler, seeds`` and the columns that `varied` (``guidance`` or ``steps``) and `value`
    (``frechet`` or ``condition``) name; `label` is that of the y axis.
    """
    for (name, scheduler), part in table.groupby(["model", "scheduler"], sort=False):
        look = {"color": COLORS[str(name)], "marker": SAMPLERS[str(scheduler)][0]}
        own, other = part[part["seeds"] == "own"].sort_values(varied), part[part["seeds"] == "other"]
        ax.plot(own[varied], own[value], **look)
        ax.plot(other[varied], other[value], ls="", mfc="none", ms=9, **look)
    if varied == "steps":
        ax.set_xscale("log")
        steps = sorted(table[varied].unique())
        ax.set_xticks(steps, [str(step) for step in steps])
        ax.minorticks_off()
    ax.set(xlabel=varied, ylabel=label)
    return ax


def sampler_legend(table: pd.DataFrame, figure: Figure) -> None:
    """What colours and markers of `sampler_comparison` mean, below all panels of a figure."""
    from matplotlib.lines import Line2D

    grey = {"ls": "", "color": "#444444"}
    handles = [Line2D([], [], color=COLORS[str(name)], label=f"{name} model") for name in table["model"].unique()]
    found = [SAMPLERS[str(name)] for name in table["scheduler"].unique()]
    handles += [Line2D([], [], marker=marker, label=words, **grey) for marker, words in found]
    handles.append(Line2D([], [], marker="s", mfc="none", ms=9, label="hollow: other seeds", **grey))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
