"""Figures of the checks on the sweep: baselines, the leak, the canary, calibration, and the scores by patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils import baselines
from nafld_utils.figures import COLORS
from nafld_utils.figures.sweep import name_of, over_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#222222"
_LEAK = "#8C2D04"
_SPLITS = {baselines.IN_FOLDS: ("o", _INK), baselines.ONE_OUT: ("s", "#0072B2")}


def baseline_bars(table: pd.DataFrame, arms: pd.DataFrame, ax: Axes) -> Axes:
    """AUC by patient of every baseline with its interval, the published values, and the study's own networks.

    Parameters
    ----------
    table : pandas.DataFrame
        ``baseline, split, auc, low, high, byra, n_patients`` (`baselines.baseline_table`, one level).
    arms : pandas.DataFrame
        ``arm, rate, mean_auc, low, high, n_seeds, n_patients``: the networks to stand beside, at the same level. Where
        they were trained on some folds alone, the legend says of how many patients they are.
    ax : Axes
    """
    rows = [(name, part) for name, part in table.groupby("baseline", sort=False)]
    for y, (_, part) in enumerate(rows):
        for k, item in enumerate(part.itertuples()):
            marker, color = _SPLITS[item.split]
            height = y + 0.24 * (k - (len(part) - 1) / 2)
            ax.plot([item.low, item.high], [height] * 2, color=color, lw=1.4)
            ax.plot([item.auc], [height], marker, color=color, ms=6)
            if np.isfinite(item.byra):
                ax.plot([item.byra], [height], "*", color="#D55E00", ms=10, zorder=4)
    for y, item in enumerate(arms.itertuples(), start=len(rows)):
        ax.plot([item.low, item.high], [y] * 2, color="#009E73", lw=1.4)
        ax.plot([item.mean_auc], [y], "D", color="#009E73", ms=5)
    names = [name for name, _ in rows] + [f"network: {name_of(i.arm)}, r = {i.rate:g}" for i in arms.itertuples()]
    ax.set_yticks(range(len(names)), names)
    for split, (marker, color) in _SPLITS.items():
        ax.plot([], [], marker, color=color, label=f"{split} (biased low)" if split == baselines.ONE_OUT else split)
    n, all_of = arms["n_patients"].max(), table["n_patients"].max()
    whose = baselines.IN_FOLDS if n == all_of else f"{n} of the {all_of} patients, not those of the baselines"
    ax.plot([], [], "D", color="#009E73", ms=5, label=f"trained network, {whose}")
    if np.isfinite(table["byra"]).any():
        ax.plot([], [], "*", color="#D55E00", ms=9, ls="", label="published for the real cohort (Byra et al. 2018)")
    ax.axvline(0.5, color="#999999", lw=1, ls="--", zorder=1)
    over = over_words(arms["n_seeds"])
    bars = "patients" if over == "patients" else f"patients (of networks, over {over})"
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"ROC AUC by patient, bars are 95 % over {bars}")
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return ax


def leak(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC of baselines over split seeds, split by patient and, as a warning, by image.

    Parameters
    ----------
    table : pandas.DataFrame
        ``baseline, split_by`` ("patient" or "image"), ``seed, auc``.
    ax : Axes
    """
    rows = list(table.groupby(["split_by", "baseline"], sort=False))
    rows.sort(key=lambda item: item[0][0] == "image")
    for y, ((by, _), part) in enumerate(rows):
        values, color = np.sort(part["auc"].to_numpy()), _LEAK if by == "image" else _INK
        offsets = 0.22 * np.cos(np.arange(len(values)) * 2.4)  # golden angle: neighbours never overlap
        ax.plot(values, y + offsets, "o", color=color, alpha=0.65, ms=5, mec="white", mew=0.4)
        middle = float(np.median(values))
        ax.plot([middle] * 2, [y - 0.34, y + 0.34], color=color, lw=2)
        ax.annotate(f"median {middle:.3f}", (middle, y - 0.36), ha="center", va="bottom", color=color, fontsize=9)
    marks = {"patient": "by patient", "image": "by IMAGE: a leak"}
    ax.set_yticks(range(len(rows)), [f"{name}\n{marks[by]}" for (by, name), _ in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.7), xlabel="image-level ROC AUC, a dot a split seed")
    ax.set_xlim(min(0.5, float(table["auc"].min()) - 0.02), 1.01)
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    return ax


def canary(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC under shuffled diagnoses, a dot and its 95 % interval a shuffle; orange where the interval misses 0.5.

    Parameters
    ----------
    table : pandas.DataFrame
        ``auc, low, high, covers`` of one way of splitting (`baselines.canary`).
    ax : Axes
    """
    table = table.sort_values("auc").reset_index(drop=True)
    for item in table.itertuples():
        color = _INK if item.covers else "#D55E00"
        ax.plot([item.Index] * 2, [item.low, item.high], color=color, lw=1, alpha=0.6)
        ax.plot([item.Index], [item.auc], "o", color=color, ms=3)
    ax.axhline(0.5, color="#0072B2", lw=1.2, label="nothing to learn: 0.5")
    ax.axhline(
        table["auc"].mean(), color=_INK, lw=1.2, ls="--", label=f"mean of the shuffles: {table['auc'].mean():.3f}"
    )
    ax.plot([], [], color="#D55E00", lw=1, label="interval misses 0.5")
    ax.set(xlabel="shuffle, by AUC", ylabel="ROC AUC, 95 % over patients", xlim=(-1, len(table)), ylim=(-0.02, 1.02))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="lower right", ncols=3)
    return ax


def reliability(table: pd.DataFrame, ax: Axes, positive: str = "a fatty liver") -> Axes:
    """Share of patients of class 1 by predicted probability, a line an arm, bars are Wilson 95 % over a bin's patients.

    Parameters
    ----------
    table : pandas.DataFrame
        ``arm, rate, predicted, observed, low, high, n``.
    ax : Axes
    positive : str
        What the probability is of.
    """
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=1)
    for (arm, rate), part in table.groupby(["arm", "rate"], sort=False):
        color = COLORS.get(arm, "#009E73")
        bars = np.clip([part["observed"] - part["low"], part["high"] - part["observed"]], 0, None)
        look = {"color": color, "ms": 5, "lw": 1.4, "elinewidth": 1, "fmt": "o-"}
        ax.errorbar(part["predicted"], part["observed"], yerr=bars, label=f"{name_of(arm)}, r = {rate:g}", **look)
    ax.set(xlabel=f"predicted probability of {positive}", ylabel="observed share", aspect="equal")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left")
    return ax


def patient_scores(part: pd.DataFrame, names: tuple[str, str], ax: Axes) -> Axes:
    """Scores of held-out images by patient, patients in order of their mean: where a classifier errs, and on whom.

    Parameters
    ----------
    part : pandas.DataFrame
        ``patient_id, label, score`` of one cell and seed, an image a row.
    names : (str, str)
        Names of label 0 and 1.
    ax : Axes
    """
    means = part.groupby("patient_id")["score"].mean().sort_values()
    place = {patient: i for i, patient in enumerate(means.index)}
    for label, name in enumerate(names):
        rows = part[part["label"] == label]
        color = COLORS["fatty" if label else "healthy"]
        ax.plot(rows["patient_id"].map(place), rows["score"], "o", color=color, ms=3, alpha=0.6, label=name)
    ax.plot(range(len(means)), means, "_", color=_INK, ms=6, label="patient's mean")
    ax.set(xlabel="held-out patients, by mean score", ylabel=f"probability of {names[1]}", ylim=(-0.03, 1.03))
    ax.legend(loc="upper left")
    return ax
