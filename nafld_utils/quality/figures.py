"""Figures of stage 05: bars between floor and ceilings, curves over patients, copies. Tables in, Axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.params import SetName
from nafld_utils.views import COLORS, bare, color_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CEILING = "#D9D9D9"
WORDS = {
    "real_training": "real, other patients",
    "real_validation": "real, held out",
    "semantic": "semantic LDM",
    "class": "class LDM",
    "semantic_balanced": "semantic LDM, balanced",
    "class_balanced": "class LDM, balanced",
    "gan": "GAN, trained here",
    "traditional": "traditional crops",
    "halves_of_real": "real, other patients",
    "gaussian_semantic": "Gaussian latents (semantic)",
    "gaussian_class": "Gaussian latents (class)",
    "untrained_semantic": "untrained semantic LDM",
    "untrained_class": "untrained class LDM",
    "repeated_image": "one real image, repeated",
    "noise": "noise",
}
_ROLES = ("reference", "floor", "model", "baseline", "ceiling")


def bars(intervals: pd.DataFrame, ax: Axes, title: str = "", xlabel: str = "", numbers: bool = True) -> Axes:
    """Horizontal bars of one metric and class: real images on top, then the models, then what they must beat (Fig. 4).

    Parameters
    ----------
    intervals : pandas.DataFrame
        Rows of `metric_tables.fold_intervals`, one a set: ``model, role, mean, low, high``.
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
    return (
        {"color": color_of(name)}
        if role in ("model", "baseline")
        else {"color": _CEILING, "edgecolor": "#8A8A8A", "hatch": "///"}
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bar_grid(
    intervals: pd.DataFrame, axes: np.ndarray, metrics: Sequence[tuple[str, str]], classes: Sequence[str]
) -> None:
    """Fill a grid of Axes, a row a metric and a column a class, with `bars`; equal numbers of images.

    Parameters
    ----------
    intervals : pandas.DataFrame
        From `metric_tables.fold_intervals`.
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


def patient_curves(rows: pd.DataFrame, curves: pd.DataFrame, ax: Axes) -> Axes:
    """Distance against one over the number of real patients, with the line to infinitely many.

    Parameters
    ----------
    rows, curves : pandas.DataFrame
        From `patient_curve_units.load`, of one class: ``model, infinite, infinite_low, infinite_high`` and ``model,
        n_patients, value``.
    ax : Axes
        Where to draw; the number of patients grows to the left, infinity is at zero.
    """
    shown = rows[rows["role"].isin(["model", "baseline"])].reset_index(drop=True)
    sizes: set[int] = set()
    for i, row in enumerate(shown.to_dict("records")):
        part = curves[curves["model"] == row["model"]]
        if not len(part) or not np.isfinite(row["infinite"]):
            continue
        sizes |= set(part["n_patients"].astype(int))
        color, dashes = color_of(row["model"]), "--" if SetName.of(row["model"]).is_balanced else "-"
        x = 1.0 / part["n_patients"]
        ax.plot(x, part["value"], "o", color=color, ms=4, label=WORDS[row["model"]])
        fit = np.polyfit(x, part["value"], 1) if len(part) > 1 else [0.0, row["infinite"]]
        ends = np.array([0.0, x.max()])
        ax.plot(ends, np.polyval(fit, ends), dashes, color=color, lw=1.0)
        place, low, high = 0.002 * (i + 1), row["infinite_low"], row["infinite_high"]
        ax.plot(place, row["infinite"], "D", color=color, ms=5, mfc="white")
        ax.plot([place, place], [low, high], color=color, lw=1.5)
    ticks = sorted(sizes)[:: max(1, len(sizes) // 5)]
    ax.set_xticks([0.0, *(1.0 / n for n in ticks)], ["∞", *map(str, ticks)])
    ax.set(xlabel="real patients (scale: one over n)")
    return ax


def precision_recall(intervals: pd.DataFrame, ax: Axes, title: str = "") -> Axes:
    """Precision against recall, means and 95 % intervals over folds, real images of other patients beside.

    Parameters
    ----------
    intervals : pandas.DataFrame
        Rows of `metric_tables.fold_intervals` of one class, images in equal numbers.
    ax : Axes
        Where to draw.
    title : str
        What the panel shows.
    """
    wide = intervals.set_index(["model", "role", "metric"])[["mean", "low", "high"]].unstack("metric")  # noqa: PD010
    for (name, role), row in wide.iterrows():
        if role == "ceiling" and name not in ("repeated_image", "noise"):
            continue
        x, y = row["mean", "recall"], row["mean", "precision"]
        known = role in ("model", "baseline")
        color = color_of(name) if known else COLORS["real"] if role == "floor" else "#8A8A8A"
        marker = "o" if known else "s" if role == "floor" else "x"
        ax.plot(x, y, marker, color=color, ms=7, label=WORDS.get(name, name))
        for (low, high), line in (((row["low", "recall"], row["high", "recall"]), "x"),
                                  ((row["low", "precision"], row["high", "precision"]), "y")):  # fmt: skip
            ends = np.clip([low, high], 0, 1)
            ax.plot(*((ends, [y, y]) if line == "x" else ([x, x], ends)), color=color, lw=1.0, alpha=0.7)
    ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="recall (share of real images reached)", title=title)
    ax.set_ylabel("precision (share that looks real)")
    ax.set_aspect("equal")
    return ax


def quoted(table: pd.DataFrame, ax: Axes, title: str) -> Axes:
    """Numbers that the paper states or quotes, on axes of their own, hatched so that nobody takes them for this run's.

    Parameters
    ----------
    table : pandas.DataFrame
        From `metric_units.quoted`, of one metric: ``source, class, value``.
    ax : Axes
        Where to draw.
    title : str
        What the panel shows.
    """
    place = np.arange(len(table))[::-1]
    look = {"color": "white", "edgecolor": "#555555", "hatch": "...."}
    ax.barh(place, table["value"], height=0.7, **look)
    for y, value in zip(place, table["value"], strict=True):
        ax.annotate(f"{value:g}", (value, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    labels = [f"{row['source']}\n{row['class']}" for row in table.to_dict("records")]
    ax.set_yticks(place, labels, fontsize=9)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.2)
    ax.set(title=title)
    return ax


def copy_shares(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Share of images that are copies, with intervals over folds, and the share each measure alone finds near.

    Parameters
    ----------
    summary : pandas.DataFrame
        From `quality.summary`.
    ax : Axes
        Where to draw.
    """
    place = np.arange(len(summary))[::-1]
    for y, row in zip(place, summary.to_dict("records"), strict=True):
        color = color_of(row["set"]) if SetName.of(row["set"]).conditioning in COLORS else COLORS["real"]
        ax.barh(y, row["copy"], height=0.6, color=color)
        ax.plot([row["low"], row["high"]], [y, y], color="black", lw=1.3)
    for name, marker in (("pixels", "o"), ("latents", "^"), ("features", "s")):
        ax.plot(
            summary[name], place, marker, color="black", mfc="white", ms=5, ls="none", label=f"near by {name} alone"
        )
    ax.set_yticks(place, [WORDS.get(name, name) for name in summary["set"]])
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", visible=True)
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set(xlabel="share of images (bar: copies, 95 % interval over folds)", xlim=(0, None))
    ax.margins(x=0.1)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return ax


def closest_pairs(table: pd.DataFrame, axes: np.ndarray) -> None:
    """Synthetic images above the training frames they come nearest to.

    Parameters
    ----------
    table : pandas.DataFrame
        From `quality.closest`: ``fold, patient, correlation, copy, image, nearest``.
    axes : numpy.ndarray of Axes, shape (2, n)
        Where to draw.
    """
    for ax, below, row in zip(*axes, table.to_dict("records"), strict=False):
        ax.imshow(row["image"], cmap="gray", vmin=0, vmax=255)
        bare(ax, f"correlation {row['correlation']:.2f}" + (", a copy" if row["copy"] else ""))
        below.imshow(row["nearest"], cmap="gray", vmin=0, vmax=255)
        bare(below, f"patient {row['patient']}, fold {row['fold']}")
    for row, text in zip(axes, ("synthetic", "nearest\ntraining frame"), strict=True):
        row[0].set_ylabel(text, fontsize=10)


def beside_nearest(items: Sequence[Mapping[str, Any]], axes: np.ndarray, class_names: Sequence[str]) -> None:
    """Synthetic images above the training frames nearest to them by pixels, whatever their score.

    Parameters
    ----------
    items : sequence of mapping
        Rows of `quality.judged_images` with ``image`` and ``nearest``, (S, S) uint8 each.
    axes : numpy.ndarray of Axes, shape (2, n) or (2,)
        Where to draw.
    class_names : sequence of str
        Names of labels 0 and 1.
    """
    for ax, below, item in zip(*np.reshape(axes, (2, -1)), items, strict=False):
        ax.imshow(item["image"], cmap="gray", vmin=0, vmax=255)
        bare(ax, f"{class_names[int(item['label'])]}, fold {item['fold']}\ndistance {_short(item['distance'])}")
        below.imshow(item["nearest"], cmap="gray", vmin=0, vmax=255)
        verdict = ", a copy" if item["is_copy"] else ""
        bare(below, f"patient {item['nearest_patient']}\ncorrelation {item['correlation']:.2f}{verdict}")
    for row, text in zip(np.reshape(axes, (2, -1)), ("synthetic", "nearest\ntraining frame"), strict=True):
        row[0].set_ylabel(text, fontsize=10)


def gallery(table: pd.DataFrame, axes: np.ndarray, class_names: Sequence[str]) -> None:
    """Images nearest to held-out real ones in the first row, farthest in the second (after Fig. 3).

    Parameters
    ----------
    table : pandas.DataFrame
        From `metric_units.gallery`: ``kind, distance, fold, label, image``.
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
