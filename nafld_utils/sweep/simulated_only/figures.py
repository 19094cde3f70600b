"""Figures of trainings without a real image; see `nafld_utils.views.figure_style` for what holds of every room's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from nafld_utils import phantom
from nafld_utils.sweep.simulated_only import tables
from nafld_utils.views import COLORS, bar_lengths, name_rows, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY, _RATIO = "#222222", "#777777", "#8C2D04"
_LOOKED = (COLORS["real"], "#D55E00", "#0072B2")  # the cohort, the declared variant, wide scanners
_KINDS = {"declared": "#D55E00", "control": "#777777", "variant": "#0072B2"}


def drawn(found: dict[str, pd.DataFrame]) -> list[Figure]:
    """Every figure of the section, which the caller closes; none where nothing was trained.

    Parameters
    ----------
    found : dict of str to pandas.DataFrame
        From `simulated_only.build`.
    """
    import matplotlib.pyplot as plt

    if not found:
        return []
    panels = 2 if "worth" in found else 1
    first, axes = plt.subplots(1, panels, figsize=(4.6 * panels, 3.8), squeeze=False)
    curve(found["curve"], axes[0, 0])
    if "worth" in found:
        worth(found["worth"], found["auc"], axes[0, 1])
    whole = found["auc"].query("level == 'patient'")
    second, ax = plt.subplots(figsize=(8.5, 1.4 + 0.36 * len(whole)))
    bars(whole, found["ratio"], ax)
    third, axes = plt.subplots(2, 3, figsize=(8.5, 5.4))
    looks(found["looks"], axes.flat)
    return [first, second, third]


def looks(table: pd.DataFrame, axes: Iterable[Axes]) -> None:
    """How frames of the cohort look beside simulated ones, a panel per measure (`phantom.looks.draw`)."""
    groups = {name: part.drop(columns="group") for name, part in table.groupby("group", sort=False)}
    *panels, profile, spare = axes
    phantom.looks.draw(groups, [*panels, profile], dict(zip(groups, _LOOKED, strict=False)))
    spare.set_visible(False)


def curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC by patient over training steps, a thin line per training and their mean (`tables.curve`)."""
    for (cohort, _), part in table.groupby(["cohort", "seed"]):
        ax.plot(part["step"], part["auc"], color=_GREY, lw=0.9, ls=("-", "--", ":", "-.")[int(cohort) % 4], alpha=0.8)
    mean = table.groupby("step")["auc"].mean()
    ax.plot(mean.index, mean, "o-", color=_KINDS["declared"], lw=2.4, ms=4, label="mean of the trainings")
    ax.plot([], [], color=_GREY, lw=0.9, label="a training; a dash per simulated cohort")
    ax.axhline(0.5, color="#999999", lw=1, ls="--", zorder=1)
    ax.set(xlabel="step, on simulated patients alone", ylabel="AUC by patient, mean of the folds")
    ax.set_title("No real image in training")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9)
    return ax


def worth(table: pd.DataFrame, alone: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over the number of real training patients, alone and after simulated ones, with 95 % bars.

    `table` is `tables.worth_table`; `alone` is `tables.auc_table`, whose declared row is the AUC of none.
    """
    none = alone.query("kind == 'declared' and level == 'patient'").head(1)
    reach = 0.01 * table["n"].max()
    for first, color, words in (
        (False, COLORS["real"], "real alone"),
        (True, _KINDS["declared"], "simulated, then real"),
    ):
        part = table[table["first"] == first].sort_values("n")
        look = {"yerr": bar_lengths(part["auc"], part), "fmt": "o-", "ms": 5, "lw": 1.8}
        ax.errorbar(part["n"] + reach * first, part["auc"], color=color, label=words, **look)
    look = {"yerr": bar_lengths(none["auc"], none), "fmt": "D", "ms": 6}
    ax.errorbar([0], none["auc"], color=_KINDS["declared"], label="simulated alone", **look)
    ax.set_xticks([0, *sorted(table["n"].unique())])
    ax.set(xlabel="real training patients", ylabel="AUC by patient, mean of the folds")
    ax.set_title("What simulated patients are worth (95 %)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=9)
    return ax


def bars(table: pd.DataFrame, ratio: pd.DataFrame, ax: Axes) -> Axes:
    """AUC of the declared trainings, of controls and of variants of the simulator, with 95 % bars."""
    for y, row in enumerate(table.itertuples()):
        color = _KINDS[row.kind]
        ax.plot([row.low, row.high], [y] * 2, color=color, lw=1.6)
        ax.plot([row.auc], [y], "o", color=color, ms=6)
    for kind, color in _KINDS.items():
        ax.plot([], [], "o-", color=color, label={"variant": "variant of the simulator, one cohort"}.get(kind, kind))
    ax.axvline(0.5, color="#999999", lw=1, ls="--", zorder=1)
    halves = ratio["value"].iloc[0]
    ax.axvline(halves, color=_RATIO, lw=1.2, zorder=1, label=f"{named(tables.HALVES)}, nothing learnt: {halves:.3f}")
    names = table["name"].str.replace("_", " ")
    name_rows(ax, names, "AUC by patient, mean of the folds; bars are 95 % over patients")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return ax
