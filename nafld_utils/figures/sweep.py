"""Figures of the sweep: AUC over the mixing rate, ROC curves, the gain with both its intervals, the leak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARM_NAMES = {
    "real": "real images alone",
    "traditional": "real + geometric copies",
    "semantic": "real + semantic LDM",
    "class": "real + class LDM",
}
_INK = "#222222"
_LEAK = "#8C2D04"


def _color(arm: str) -> str:
    return COLORS.get(arm, "#999999")


def boxes(by_seed: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over the mixing rate, a dot a seed and a box of seeds an arm (the paper's Fig. 5A).

    With fewer than five seeds a bar at their mean stands for the box, whose quartiles would be made up.

    Parameters
    ----------
    by_seed : pandas.DataFrame
        ``arm, rate, seed, auc``, of one backbone.
    ax : Axes
    """
    rates = sorted(by_seed["rate"].unique())
    arms = [arm for arm in ARM_NAMES if arm in set(by_seed["arm"])]
    width = 0.8 / max(1, len(arms) - 1)
    for (arm, rate), part in by_seed.groupby(["arm", "rate"], sort=False):
        center = float(rates.index(rate))
        if arm != "real":
            others = [name for name in arms if name != "real"]
            center += (others.index(arm) - (len(others) - 1) / 2) * width
        color, values = _color(arm), part.sort_values("seed")["auc"].to_numpy()
        if len(values) >= 5:
            _box(ax, values, center, width * 0.7, color)
        else:
            ax.plot([center - width * 0.3, center + width * 0.3], [values.mean()] * 2, color=color, lw=2.5)
        spread = np.linspace(-0.15, 0.15, len(values)) * width if len(values) > 1 else [0.0]
        ax.plot(center + np.asarray(spread), values, "o", color=color, ms=4, mec="white", mew=0.4, zorder=3)
    for arm in arms:
        ax.plot([], [], "s", color=_color(arm), ms=8, label=ARM_NAMES[arm])
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_xlim(-0.6, len(rates) - 0.4)
    ax.set(xlabel="mixing rate r (synthetic to real images)", ylabel="ROC AUC, held-out patients")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _box(ax: Axes, values: np.ndarray, center: float, width: float, color: str) -> None:
    line = {"color": color}
    box = {"facecolor": color, "alpha": 0.35, "edgecolor": color}
    options = {"boxprops": box, "whiskerprops": line, "capprops": line, "medianprops": {"color": _INK}}
    ax.boxplot(values, positions=[center], widths=width, showfliers=False, patch_artist=True, **options)


def roc(curves: pd.DataFrame, ax: Axes) -> Axes:
    """ROC curves: thin lines are seeds, bold lines their mean (the paper's Fig. 5B).

    Parameters
    ----------
    curves : pandas.DataFrame
        ``arm, rate, seed, fpr, tpr`` and ``auc`` (mean over seeds, for the legend); seed -1 is the mean.
    ax : Axes
    """
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=1)
    ax.annotate("chance", (0.62, 0.58), color="#666666", fontsize=9, rotation=45, ha="center", va="center")
    for (arm, rate), part in curves.groupby(["arm", "rate"], sort=False):
        for seed, line in part.groupby("seed"):
            if seed != -1:
                ax.plot(line["fpr"], line["tpr"], color=_color(arm), lw=0.7, alpha=0.45, zorder=2)
        mean = part[part["seed"] == -1]
        label = f"{ARM_NAMES.get(arm, arm)}, r = {rate:g}: AUC {part['auc'].iloc[0]:.3f}"
        ax.plot(mean["fpr"], mean["tpr"], color=_color(arm), lw=2.4, zorder=3, label=label)
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.grid(axis="both")
    ax.legend(loc="lower right", fontsize=9)
    return ax


def differences(table: pd.DataFrame, ax: Axes) -> Axes:
    """Gain in AUC over real images alone, with its interval over seeds and its interval over patients.

    Parameters
    ----------
    table : pandas.DataFrame
        ``arm, rate, difference, low_seeds, high_seeds, low_patients, high_patients, primary, note``.
    ax : Axes
    """
    ax.axvline(0, color=_INK, lw=1, zorder=1)
    # A t interval over two or three seeds can be wider than an AUC can differ: it is cut off, with an arrow.
    reach = 1.6 * float(table[["low_patients", "high_patients", "difference"]].abs().to_numpy().max()) or 0.1
    for row, item in enumerate(table.itertuples()):
        color = _color(item.arm)
        ax.plot([item.low_patients, item.high_patients], [row + 0.14] * 2, color=color, lw=5, solid_capstyle="butt")
        _seeds_interval(ax, row - 0.14, item, color, reach)
        ax.plot([item.difference] * 2, [row - 0.14, row + 0.14], "o", color=color, ms=5, mec="white", mew=0.6, zorder=3)
    ax.set_xlim(-reach, reach)
    names = [
        f"{ARM_NAMES.get(i.arm, i.arm)}\nr = {i.rate:g}{' (declared)' if i.primary else ''}" for i in table.itertuples()
    ]
    ax.set_yticks(range(len(table)), names)
    ax.set(ylim=(len(table) - 0.5, -0.5), xlabel="AUC minus that of real images alone")
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    ax.plot([], [], color="#777777", lw=1.6, ls=(0, (3, 1.5)), label="95 % over training seeds, these patients")
    ax.plot([], [], color="#777777", lw=5, solid_capstyle="butt", label="95 % over patients and seeds")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def _seeds_interval(ax: Axes, height: float, item: Any, color: str, reach: float) -> None:
    if not np.isfinite(item.low_seeds):
        ax.annotate(item.note, (item.difference, height - 0.1), ha="center", va="bottom", fontsize=9, color=color)
        return
    low, high = max(item.low_seeds, -reach), min(item.high_seeds, reach)
    ax.plot([low, high], [height] * 2, color=color, lw=1.6, ls=(0, (3, 1.5)))
    for end, true, sign in ((low, item.low_seeds, "<"), (high, item.high_seeds, ">")):
        if end != true:
            ax.plot([end], [height], sign, color=color, ms=7, clip_on=False, zorder=4)
            side, place = ("left", 6) if sign == "<" else ("right", -6)
            note = {"xytext": (place, 3), "textcoords": "offset points", "ha": side, "va": "bottom"}
            ax.annotate(f"to {true:+.2f}", (end, height), fontsize=9, color=color, **note)


def leak(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC of a linear classifier on frozen features over split seeds, split by patient and by image.

    Parameters
    ----------
    table : pandas.DataFrame
        ``split_by`` ("patient" or "image"), ``seed``, ``auc``.
    ax : Axes
    """
    facts = {
        "patient": ("by patient\n(as everywhere in this study)", _INK),
        "image": ("by IMAGE\n(frames of a patient on both sides)", _LEAK),
    }
    for row, (name, (_, color)) in enumerate(facts.items()):
        values = np.sort(table.loc[table["split_by"] == name, "auc"].to_numpy())
        offsets = 0.22 * np.cos(np.arange(len(values)) * 2.4)  # golden angle: neighbours never overlap
        ax.plot(values, row + offsets, "o", color=color, alpha=0.65, ms=5, mec="white", mew=0.4)
        middle = float(np.median(values))
        ax.plot([middle] * 2, [row - 0.34, row + 0.34], color=color, lw=2)
        ax.annotate(f"median {middle:.3f}", (middle, row - 0.38), ha="center", va="bottom", color=color, fontsize=9)
    ax.set_yticks(range(2), [text for text, _ in facts.values()])
    ax.set(ylim=(1.6, -0.7), xlabel="ROC AUC of frozen features + logistic regression, a dot a split seed")
    ax.set_xlim(min(0.5, float(table["auc"].min()) - 0.02), 1.01)
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    return ax
