"""Figures of the sweep: AUC over the mixing rate, ROC curves, the gain with both its intervals, robustness variants.

And of its checks: baselines, the leak, the canary, calibration, and the scores by patient. Contract: a table of one
group and an Axes in, the Axes out; tables are those of `sweep.build_tables` and `sweep.build`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils import params, statistics
from nafld_utils.sweep import frozen_classifiers, planning
from nafld_utils.views import COLORS, bar_lengths, name_rows, named, spread_dots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERATORS = {
    "traditional": "cropped and rotated",
    "trivial": "TrivialAugment",
    "semantic": "semantic LDM",
    "class": "class LDM",
    "gan": "GAN",
    "simulated": "simulated patients",
    "filtered": "filtered",
}
_MORE = ("#009E73", "#CC79A7", "#1B4965", "#B2182B", "#5AAE61", "#2166AC", "#999999", "#6A3D9A")
_INK, _GREY, _LEAK, _GREEN, _ORANGE = "#222222", "#777777", "#8C2D04", "#009E73", "#D55E00"
_SPLITS = {frozen_classifiers.IN_FOLDS: ("o", _INK), frozen_classifiers.ONE_OUT: ("s", "#0072B2")}


def arms_of(table: pd.DataFrame) -> list[str]:
    """Arms of a table in one order, real images alone at the head, those of two generators at the end."""

    def place(name: str) -> tuple[Any, ...]:
        arm = params.parse(name)
        return len(arm.generators), [list(GENERATORS).index(g) for g in arm.generators], arm.first, name

    return sorted(dict.fromkeys(table["arm"]), key=place)


def arm_colors(arms: list[str]) -> dict[str, str]:
    """A colour for each arm: the study's own where the arm has one, else the next that no arm has."""
    spare = iter(_MORE * (1 + len(arms) // len(_MORE)))
    return {arm: COLORS.get(arm) or next(spare) for arm in arms}


def name_of(arm: str) -> str:
    """An arm's name in words.

    Examples
    --------
    >>> name_of("semantic"), name_of("simulated_first"), name_of("class_matched_only")
    ('real + semantic LDM', 'simulated patients, then real', 'class LDM (class mix of the real), no real')
    """
    one = params.parse(arm)
    if not one.generators:
        return "real images alone"
    words = " and ".join(GENERATORS[name] for name in one.generators) + " (class mix of the real)" * one.matched
    return f"{words}, then real" if one.first else f"real + {words}" if one.with_real else f"{words}, no real"


def over_words(n_seeds: pd.Series) -> str:
    """What intervals over patients are over, in a legend's words, from the training seeds of each: from
    `statistics.FEWEST_SEEDS` seeds on they are over seeds too.

    Examples
    --------
    >>> over_words(pd.Series([25, 25])), over_words(pd.Series([1]))
    ('patients and seeds', 'patients')
    """
    if n_seeds.min() >= statistics.FEWEST_SEEDS:
        return "patients and seeds"
    some = f"patients, and seeds where there are {statistics.FEWEST_SEEDS} or more"
    return "patients" if n_seeds.max() < statistics.FEWEST_SEEDS else some


def boxes(by_seed: pd.DataFrame, arms: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over the mixing rate: a box and dots of seeds, and beside them the mean's interval (`over_words`; Fig. 5A).

    With fewer than five seeds a bar at their mean stands for the box, whose quartiles would be made up. `by_seed` has
    ``arm, rate, seed, auc``; `arms` has ``arm, rate, mean_auc, low, high, n_seeds``.
    """
    rates, names = sorted(by_seed["rate"].unique()), arms_of(by_seed)
    colors, others = arm_colors(names), [name for name in names if name != "real"]
    width = 0.8 / max(1, len(others))
    bounds = arms.set_index(["arm", "rate"])
    for (arm, rate), part in by_seed.groupby(["arm", "rate"], sort=False):
        center, color = float(rates.index(rate)), colors[arm]
        if arm != "real":
            center += (others.index(arm) - (len(others) - 1) / 2) * width
        values = part.sort_values("seed")["auc"].to_numpy()
        if len(values) >= 5:
            _box(ax, values, center - width * 0.12, width * 0.5, color)
        else:
            ax.plot([center - width * 0.35, center + width * 0.1], [values.mean()] * 2, color=color, lw=2.5)
        spread = np.linspace(-0.15, 0.15, len(values)) * width if len(values) > 1 else [0.0]
        dots = center - width * 0.12 + np.asarray(spread)
        ax.plot(dots, values, "o", color=color, ms=4, mec="white", mew=0.4, zorder=3)
        found = bounds.loc[(arm, rate)]
        ax.plot([center + width * 0.3] * 2, [found["low"], found["high"]], color=color, lw=1.4)
        ax.plot([center + width * 0.3], [found["mean_auc"]], "_", color=color, ms=7, mew=1.6)
    for arm in names:
        ax.plot([], [], "s", color=colors[arm], ms=8, label=name_of(arm))
    ax.plot([], [], color=_GREY, lw=1.4, label=f"95 % over {over_words(arms['n_seeds'])}")
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


def roc(curves: pd.DataFrame, arms: pd.DataFrame, ax: Axes) -> Axes:
    """Mean ROC curves over seeds, each with its pointwise 95 % band (`over_words`; the paper's Fig. 5B).

    `curves` has ``arm, rate, fpr, tpr, low, high``; `arms`, for the legend, as in `boxes`.
    """
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=1)
    ax.annotate("chance", (0.62, 0.58), color="#666666", fontsize=9, rotation=45, ha="center", va="center")
    colors, bounds = arm_colors(arms_of(curves)), arms.set_index(["arm", "rate"])
    for (arm, rate), part in curves.groupby(["arm", "rate"], sort=False):
        one = bounds.loc[(arm, rate)]
        bounds_of = f"[{one['low']:.3f}, {one['high']:.3f}]" if np.isfinite(one["low"]) else "(no interval)"
        label = f"{name_of(arm)}, r = {rate:g}: {one['mean_auc']:.3f} {bounds_of}"
        ax.fill_between(part["fpr"], part["low"], part["high"], color=colors[arm], alpha=0.15, lw=0, zorder=2)
        ax.plot(part["fpr"], part["tpr"], color=colors[arm], lw=2.4, zorder=3, label=label)
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.grid(axis="both")
    title = f"AUC [95 % over {over_words(arms['n_seeds'])}]"
    ax.legend(loc="lower right", fontsize=9, title=title, title_fontsize=9)
    return ax


def differences(table: pd.DataFrame, ax: Axes) -> Axes:
    """Gain in AUC over real images alone, with its interval over seeds and its interval over patients.

    ``arm, rate, difference, low_seeds, high_seeds, low_patients, high_patients, n_seeds, role, note``; each row says
    whether it is primary, secondary or exploratory.
    """
    ax.axvline(0, color=_INK, lw=1, zorder=1)
    # A t interval over two or three seeds can fill nearly all of [-1, 1]: it is cut off, with an arrow.
    reach = 1.6 * float(np.nanmax(table[["low_patients", "high_patients", "difference"]].abs())) or 0.1
    colors = arm_colors(arms_of(table))
    for row, item in enumerate(table.itertuples()):
        color = colors[item.arm]
        ax.plot([item.low_patients, item.high_patients], [row + 0.14] * 2, color=color, lw=5, solid_capstyle="butt")
        if not np.isfinite(item.low_patients):
            nothing = "over patients: cannot be said"
            ax.annotate(nothing, (item.difference, row + 0.2), ha="center", va="top", fontsize=9, color=color)
        _seeds_interval(ax, row - 0.14, item, color, reach)
        ax.plot([item.difference] * 2, [row - 0.14, row + 0.14], "o", color=color, ms=5, mec="white", mew=0.6, zorder=3)
    ax.set_xlim(-reach, reach)
    names = [f"{name_of(i.arm)}\nr = {i.rate:g}\n{i.role.partition(',')[0]}" for i in table.itertuples()]
    name_rows(ax, names, "AUC minus that of real images alone")
    if table["low_seeds"].notna().any():
        ax.plot([], [], color=_GREY, lw=1.6, ls=(0, (3, 1.5)), label="95 % over training seeds, these patients")
    label = f"95 % over {over_words(table['n_seeds'])}"
    ax.plot([], [], color=_GREY, lw=5, solid_capstyle="butt", label=label)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def gain_card(gain: pd.Series, networks: pd.DataFrame, baselines: pd.DataFrame, axes: np.ndarray) -> None:
    """The primary gain (a row as in `differences`) with both its intervals; AUC of `networks` and the best baseline."""
    best = baselines[baselines["split"] == frozen_classifiers.IN_FOLDS].nlargest(1, "auc")
    shown = pd.concat([networks, best.rename(columns={"auc": "mean_auc"})])
    names = ["real images" if arm == "real" else f"with {arm}" for arm in networks["arm"]]
    strongest = textwrap.fill(named(best["baseline"].iloc[0]).replace(" + ", " +\u00a0"), 20)
    over = over_words(pd.Series([gain.n_seeds])).replace("training ", "").replace(" and ", "\nand ")
    ways = (("patients", _INK), ("seeds", _GREY))
    gains = [(gain.difference, gain[f"low_{way}"], gain[f"high_{way}"], color) for way, color in ways]
    aucs = zip(shown["mean_auc"], shown["low"], shown["high"], [*[_GREEN] * len(networks), _INK], strict=True)
    for ax, rows in zip(axes, (gains, aucs), strict=True):
        for y, (value, low, high, color) in enumerate(rows):
            ax.plot([low, high], [y, y], color=color, lw=3, solid_capstyle="butt")
            ax.plot([value], [y], "o", color=color, ms=6, mec="white")
        ax.locator_params(axis="x", nbins=4)
    axes[0].axvline(0, color=_INK, lw=1, ls="--", zorder=1)
    name_rows(axes[0], [f"over {over}", "over seeds"], f"gain in AUC, {gain.arm}, r = {gain.rate:g}")
    axes[0].set_xlabel(axes[0].get_xlabel(), loc="right")  # it is longer than the axis
    name_rows(axes[1], [*names, strongest], "AUC by patient")


def power(table: pd.DataFrame, ax: Axes, shares: str) -> Axes:
    """Power to show each declared gain over the number of patients (`planning.power_table`); dots at those needed.

    `shares` says in words how many patients are of each class.
    """
    from matplotlib.ticker import LogLocator

    for (gain, part), color in zip(table.groupby("gain"), _MORE, strict=False):
        needed = part["needed"].iloc[0]
        words = planning.takes(needed, *part[["n_patients", "n_seeds"]].iloc[0]).replace(" (", "\n(")
        ax.plot(part["patients"], part["power"], color=color, lw=2, label=f"gain of {gain:g}: {words}")
        if np.isfinite(needed):
            reached = np.interp(needed, part["patients"], part["power"])
            ax.plot([needed], [reached], "o", color=color, ms=7, mec="white", zorder=3)
    ax.axhline(0.8, color=_GREY, lw=1, ls="--", zorder=1)
    here = int(table["n_patients"].iloc[0])
    ax.axvline(here, color=_INK, lw=1, zorder=1)
    ax.annotate(f" these {here} patients", (here, 1.03), fontsize=9, color=_INK, va="bottom")
    ax.set(xscale="log", ylim=(0, 1.12), xlabel=f"number of patients ({shares})", ylabel="power")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter("")
    look = {"fontsize": 9, "title": "80 % power takes", "title_fontsize": 9}
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **look)
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


def small_multiples(variants: pd.DataFrame) -> Figure:
    """One panel per robustness variant: AUC over the mixing rate by arm, 95 % bars (`over_words`); one scale for all.

    From `comparisons.variants`; a new figure, which the caller closes.
    """
    import matplotlib.pyplot as plt

    panels = list(variants.groupby(["backbone", "variant"], sort=False))
    n_cols = min(3, len(panels))
    n_rows = -(-len(panels) // n_cols)
    size = (3.1 * n_cols + 0.4, 2.9 * n_rows + 0.5)
    fig, axes = plt.subplots(n_rows, n_cols, figsize=size, squeeze=False, sharex=True, sharey=True)
    names = arms_of(variants)
    colors = arm_colors(names)
    rates, others = np.unique(variants["rate"]), [name for name in names if name != "real"]
    shift = 0.35 * float(np.diff(rates).min(initial=1.0)) / max(1, len(others))  # arms of a rate beside each other
    for ax, ((backbone, variant), part) in zip(axes.flat, panels, strict=False):
        for arm in names:
            line = part[part["arm"] == arm].sort_values("rate")
            x = line["rate"] + (0 if arm == "real" else (others.index(arm) - (len(others) - 1) / 2) * shift)
            look = {"color": colors[arm], "ms": 4, "lw": 1.2, "elinewidth": 1.0, "fmt": "o-"}
            ax.errorbar(x, line["auc"], yerr=bar_lengths(line["auc"], line), **look)
        ax.set_xticks(rates)
        ax.set_title(f"{backbone}\n{variant}", fontsize=9, fontweight="normal")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    handles = [plt.Line2D([], [], color=colors[arm], marker="o", ms=4, label=name_of(arm)) for arm in names]
    handles.append(plt.Line2D([], [], color=_GREY, lw=1.0, label=f"95 % over {over_words(variants['n_seeds'])}"))
    fig.legend(handles=handles, loc="outside upper center", ncols=min(3, len(names)))
    fig.supylabel("ROC AUC", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("mixing rate r")
    return fig


# ---------------------------------------------------------------- the checks


def baseline_bars(table: pd.DataFrame, arms: pd.DataFrame, ax: Axes) -> Axes:
    """AUC by patient of every baseline with its interval, the published values, and the study's own networks.

    `table` is one level of `frozen_classifiers.baseline_table`; `arms`, as in `boxes` with ``n_patients``, the
    networks to stand beside, at the same level. Where they were trained on some folds alone, the legend says of how
    many patients they are.
    """
    rows = [(name, part) for name, part in table.groupby("baseline", sort=False)]
    for y, (_, part) in enumerate(rows):
        for k, item in enumerate(part.itertuples()):
            marker, color = _SPLITS[item.split]
            height = y + 0.24 * (k - (len(part) - 1) / 2)
            ax.plot([item.low, item.high], [height] * 2, color=color, lw=1.4)
            ax.plot([item.auc], [height], marker, color=color, ms=6)
            if np.isfinite(item.byra):
                ax.plot([item.byra], [height], "*", color=_ORANGE, ms=10, zorder=4)
    for y, item in enumerate(arms.itertuples(), start=len(rows)):
        ax.plot([item.low, item.high], [y] * 2, color=_GREEN, lw=1.4)
        ax.plot([item.mean_auc], [y], "D", color=_GREEN, ms=5)
    names = [textwrap.fill(named(name), 32) for name, _ in rows] + [
        f"network: {name_of(i.arm)}, r = {i.rate:g}" for i in arms.itertuples()
    ]
    for split, (marker, color) in _SPLITS.items():
        ax.plot(
            [], [], marker, color=color, label=f"{split} (biased low)" if split == frozen_classifiers.ONE_OUT else split
        )
    n, all_of = arms["n_patients"].max(), table["n_patients"].max()
    whose = frozen_classifiers.IN_FOLDS if n == all_of else f"{n} of the {all_of} patients, not those of the baselines"
    ax.plot([], [], "D", color=_GREEN, ms=5, label=f"trained network, {whose}")
    if np.isfinite(table["byra"]).any():
        ax.plot([], [], "*", color=_ORANGE, ms=9, ls="", label="published for the real cohort (Byra et al. 2018)")
    ax.axvline(0.5, color="#999999", lw=1, ls="--", zorder=1)
    over = over_words(arms["n_seeds"])
    bars = "patients" if over == "patients" else f"patients (of networks, over {over})"
    name_rows(ax, names, f"ROC AUC by patient, bars are 95 % over {bars}")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return ax


def leak(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC of baselines over split seeds (`frozen_classifiers.split_spread`), split by patient and, a leak, by image."""
    rows = list(table.groupby(["split_by", "baseline"], sort=False))
    rows.sort(key=lambda item: item[0][0] == "image")
    for y, ((by, _), part) in enumerate(rows):
        values, color = np.sort(part["auc"].to_numpy()), _LEAK if by == "image" else _INK
        ax.plot(values, y + spread_dots(len(values), 0.22), "o", color=color, alpha=0.65, ms=5, mec="white", mew=0.4)
        middle = float(np.median(values))
        ax.plot([middle] * 2, [y - 0.34, y + 0.34], color=color, lw=2)
        ax.annotate(f"median {middle:.3f}", (middle, y - 0.36), ha="center", va="bottom", color=color, fontsize=9)
    marks = {"patient": "by patient", "image": "by IMAGE: a leak"}
    name_rows(ax, [f"{name}\n{marks[by]}" for (by, name), _ in rows], "image-level ROC AUC, one dot per split seed")
    ax.set(ylim=(len(rows) - 0.4, -0.7), xlim=(min(0.5, float(table["auc"].min()) - 0.02), 1.01))
    return ax


def canary(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC under shuffled diagnoses, a dot and its 95 % interval per shuffle; orange where the interval misses 0.5.

    One way of splitting of `frozen_classifiers.canary`.
    """
    table = table.sort_values("auc").reset_index(drop=True)
    for item in table.itertuples():
        color = _INK if item.covers else _ORANGE
        ax.plot([item.Index] * 2, [item.low, item.high], color=color, lw=1, alpha=0.6)
        ax.plot([item.Index], [item.auc], "o", color=color, ms=3)
    ax.axhline(0.5, color="#0072B2", lw=1.2, label="nothing to learn: 0.5")
    ax.axhline(
        table["auc"].mean(), color=_INK, lw=1.2, ls="--", label=f"mean of the shuffles: {table['auc'].mean():.3f}"
    )
    ax.plot([], [], color=_ORANGE, lw=1, label="interval misses 0.5")
    ax.set(xlabel="shuffle, by AUC", ylabel="ROC AUC, 95 % over patients", ylim=(-0.02, 1.02))
    ax.set_xlim(-0.6, len(table) - 0.4)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)
    return ax


def reliability(table: pd.DataFrame, ax: Axes, positive: str = "a fatty liver") -> Axes:
    """Share of patients of class 1 by predicted probability, a colour per arm; bars: Wilson 95 % over a bin's patients.

    ``arm, rate, predicted, observed, low, high, n``; `positive` is what the probability is of.
    """
    ax.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=1)
    for (arm, rate), part in table.groupby(["arm", "rate"], sort=False):
        color = COLORS.get(arm, _GREEN)
        look = {"color": color, "ms": 5, "elinewidth": 1, "fmt": "o", "alpha": 0.8}
        look["label"] = f"{name_of(arm)}, r = {rate:g}"
        ax.errorbar(part["predicted"], part["observed"], yerr=bar_lengths(part["observed"], part), **look)
    ax.set(xlabel=f"predicted probability of {positive}", ylabel="observed share", aspect="equal")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.plot([], [], color=_GREY, lw=1, label="bars: 95 % (Wilson) over a bin's patients")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return ax


def patient_scores(part: pd.DataFrame, names: tuple[str, str], ax: Axes) -> Axes:
    """Scores of held-out images by patient, patients in order of their mean: where a classifier errs, and on whom.

    ``patient_id, label, score`` of one cell and seed, one row per image; `names` are those of label 0 and 1.
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
