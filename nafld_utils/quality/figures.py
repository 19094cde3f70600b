"""Figures of stage 05: bars between floor and ceilings, curves over patients, copies. Tables in, Axes out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.params import SetName
from nafld_utils.views import COLORS, color_of, named, picture, picture_row, tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {
    "real_training": "real, other patients",
    "real_validation": "real, held out",
    "semantic": "semantic LDM",
    "class": "class LDM",
    "semantic_balanced": "semantic LDM, balanced",
    "class_balanced": "class LDM, balanced",
    "gan": "GAN",
    "simulated": "simulated patients",
    "traditional": "traditional crops",
    "halves_of_real": "real, other patients",
    "gaussian_semantic": "Gaussian latents (semantic)",
    "gaussian_class": "Gaussian latents (class)",
    "untrained_semantic": "untrained semantic LDM",
    "untrained_class": "untrained class LDM",
    "repeated_image": "one real image, repeated",
    "noise": "noise",
}
UNTRAINED = "untrained"  # role of a generator that is not trained enough to compare
_ROLES = ("reference", "floor", "model", "baseline", UNTRAINED, "ceiling")


def bars(intervals: pd.DataFrame, ax: Axes, title: str = "", xlabel: str = "", end: float = 0.0) -> Axes:
    """Horizontal bars of one metric and class: real images on top, then the models, then what they must beat (Fig. 4).

    `intervals` holds one row per set, ``model, role, mean, low, high``; `ax` may share its y axis with panels of the
    same sets. An interval longer than `end` (without one: `reach` of these bars) is cut there, with an arrow and its
    true end.
    """
    table = intervals.assign(order=intervals["role"].map(_ROLES.index)).sort_values("order", kind="stable")
    note = table["role"].map({UNTRAINED: ": not compared"}).fillna("")
    table["y"], end = _named_rows(ax, [*table["model"].replace(WORDS) + note]), end or reach(table)
    for y in table.loc[table["mean"].isna(), "y"]:
        ax.text(0, y, " too few", va="center", fontsize=9, color="#777777")
    table = table.dropna(subset="mean")
    looks = zip(*(_look(*names) for names in zip(table["model"], table["role"], strict=True)), strict=True)
    ax.barh(table["y"], table["mean"], 0.72, **dict(zip(("color", "edgecolor", "hatch"), looks, strict=False)))
    drawn = pd.DataFrame({name: table[name].fillna(table["mean"]).clip(-end, end) for name in ("low", "high")})
    ax.hlines(table["y"], drawn["low"], drawn["high"], color="black", lw=1.3)
    for row, y, low, high in zip(table.to_dict("records"), table["y"], drawn["low"], drawn["high"], strict=True):
        for x, bound, sign, side in ((low, row["low"], "<", "left"), (high, row["high"], ">", "right")):
            if np.isfinite(bound) and abs(bound) > end:
                ax.plot([x], [y], sign, color="black", ms=5, clip_on=False)
                at = {"xytext": (7 if side == "left" else -7, 2), "textcoords": "offset points", "ha": side}
                ax.annotate(f"to {short(bound)}", (x, y), va="bottom", fontsize=9, **at)
        _write(ax, f"  {short(row['mean'])}" if row["high"] > end else short(row["mean"]), high, y)
    least = min(0.0, drawn["low"].min(), table["mean"].min())
    ax.grid(axis="x", visible=True)
    ax.set(title=title, xlabel=xlabel, xlim=(1.1 * least, end + 0.3 * (end - least)))
    return ax


def strip_card(
    strip: Mapping[str, Sequence[np.ndarray]],
    intervals: pd.DataFrame,
    names: Sequence[str],
    fig: Figure,
    untrained: Sequence[str] = (),
) -> None:
    """A strip of `quality.strip`, a column per set; below it the sets' distances between floor and lowest ceiling.

    `intervals` as in `bars`; `names` are those of the classes; `untrained` the generators whose bar is not to be
    compared (`quality.untrained`), hatched.
    """
    above, below = fig.subfigures(2, 1, height_ratios=[1.15, 1.0])
    places = above.subplots(1, len(strip), squeeze=False)[0]
    side = len(strip["real"][0])
    for ax, (column, images) in zip(places, strip.items(), strict=True):
        picture(ax, tiles(images, 1, side // 4), named(column))
    places[0].set_yticks(1.25 * side * (np.arange(len(names)) + 0.4), names, rotation=90, va="center", color="black")
    places[0].tick_params(length=0, grid_alpha=0)
    intervals = intervals.assign(role=intervals["role"].mask(intervals["model"].isin(untrained), UNTRAINED))
    lowest = intervals[intervals["role"] == "ceiling"].nsmallest(1, "mean").assign(model="lowest ceiling")
    bars(pd.concat([intervals[intervals["role"] != "ceiling"], lowest]), below.subplots())


def reach(table: pd.DataFrame) -> float:
    """How far bars are drawn: twice the largest mean, and no farther than the longest interval goes."""
    size = table[["mean", "low", "high"]].abs()
    longest, mean = (float(np.nanmax(part.to_numpy(), initial=0.0)) for part in (size, size["mean"]))
    return min(2 * mean, longest) or 1.0


def unbounded(table: pd.DataFrame) -> str:
    """What a panel of `bars` says where no model has an interval; empty where one has."""
    models = table[table["role"] == "model"]
    return "" if models.empty or models["low"].notna().any() else "\ntoo few for an interval"


def _named_rows(ax: Axes, names: Sequence[str]) -> np.ndarray:
    """Places of horizontal bars from top to bottom, with their names; these stand once beside Axes that share them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    place = np.arange(len(names))[::-1]
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.yaxis.set_major_locator(FixedLocator(place))
    ax.yaxis.set_major_formatter(FixedFormatter(names))
    ax.yaxis.set_visible(ax.yaxis.get_tick_params().get("labelleft", True))
    ax.grid(axis="y", visible=False)
    return place


def _write(ax: Axes, text: str, x: float, y: float) -> None:
    """Write beside the end of a bar, where `bars` has left room: a layout engine need not measure it."""
    from matplotlib.transforms import offset_copy

    beside = offset_copy(ax.transData, ax.figure, 4 / 72)
    ax.text(x, y, text, va="center", fontsize=9, transform=beside, in_layout=False)


def _look(name: str, role: str) -> tuple[str, str, str | None]:
    """Colour, edge and hatch of a bar."""
    if role == "ceiling":
        return "#D9D9D9", "#8A8A8A", "///"
    if role == UNTRAINED:
        return "white", color_of(name), "xxx"
    return COLORS["real"] if role in ("floor", "reference") else color_of(name), "none", None


def short(value: float) -> str:
    """A distance as it is written in a figure."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bar_grid(
    intervals: pd.DataFrame, axes: np.ndarray, metrics: Sequence[tuple[str, str]], classes: Sequence[str]
) -> None:
    """Fill a grid of Axes, a row per metric (key, name) and a column per class, with `bars`; equal numbers of images.

    `intervals` are those of `quality.load_intervals`; `axes` share the y axis along a row.
    """
    # Held-out images have no distance to themselves: they appear beside the others in the score only.
    table = intervals[(intervals["sample"] == "equal") | (intervals["role"] == "reference")]
    for (metric, name), row in zip(metrics, axes, strict=True):
        for group, ax in zip(classes, row, strict=True):
            part = table[(table["metric"] == metric) & (table["class"] == group)]
            equal = part[part["role"] == "model"].iloc[0]
            size = f"{equal['n_images']} and more against {equal['n_reference']}"
            end = reach(table[table["metric"] == metric])
            bars(part, ax, f"{group}\n{size}" if ax in axes[0] else "", name, end)
        low, high = np.transpose([ax.get_xlim() for ax in row])
        for ax in row:
            ax.set_xlim(low.min(), high.max())


def precision_recall(intervals: pd.DataFrame, ax: Axes, title: str = "") -> Axes:
    """Precision against recall, means and 95 % intervals over folds, real images of other patients beside.

    `intervals` are those of `quality.load_intervals` of one class, images in equal numbers.
    """
    wide = intervals.set_index(["model", "role", "metric"])[["mean", "low", "high"]].unstack("metric")  # noqa: PD010
    for (name, role), row in wide.iterrows():
        if role == "ceiling" and name not in ("repeated_image", "noise"):
            continue
        color = {"floor": COLORS["real"], "ceiling": "#8A8A8A"}.get(role) or color_of(name)
        marker = {"floor": "s", "noise": "+", "repeated_image": "x"}.get(name if role == "ceiling" else role, "o")
        x, y = row["mean", "recall"], row["mean", "precision"]
        ax.plot(x, y, marker, color=color, ms=7, label=WORDS.get(name, name))
        across, along = (np.clip([row["low", metric], row["high", metric]], 0, 1) for metric in ("recall", "precision"))
        ax.plot(across, [y, y], color=color, lw=1.0, alpha=0.7)
        ax.plot([x, x], along, color=color, lw=1.0, alpha=0.7)
    ax.plot([], [], color="#777777", lw=1.0, label="95 % over folds")
    if not wide["mean"][["precision", "recall"]].notna().all(axis=1).any():
        ax.text(0.5, 0.5, "too few images", ha="center", va="center", fontsize=10, color="#555555")
    ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="recall (share of real images reached)", title=title)
    ax.set_ylabel("precision (share that looks real)")
    ax.set_aspect("equal")
    return ax


def agreement(table: pd.DataFrame, names: Mapping[str, str], axes: Sequence[Axes], classes: Sequence[str]) -> None:
    """Distances of the sets in one feature space against another, a panel per pair of spaces, both axes logarithmic.

    `table` is that of `quality.compare_spaces`, `names` the spaces by key, `classes` the names of labels 0 and 1.
    """
    from matplotlib.ticker import LogFormatter

    for (a, b), ax in zip(itertools.combinations(names, 2), axes, strict=True):
        for (model, label), part in table.groupby(["model", "label"], sort=False):
            look = {"color": color_of(model), "mfc": (color_of(model), "white")[label], "marker": "os"[label]}
            ax.plot(part[a], part[b], ls="none", ms=6, label=f"{WORDS.get(model, model)}, {classes[label]}", **look)
        ax.set(
            xscale="log", yscale="log", xlabel=f"Frechet distance, {names[a]}", ylabel=f"Frechet distance, {names[b]}"
        )
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def copy_shares(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Share of images that are copies, with exact intervals, and the share that each measure alone finds near.

    `summary` is that of `quality.summary`.
    """
    place = _named_rows(ax, [WORDS.get(name, name) for name in summary["set"]])
    for y, row in zip(place, summary.to_dict("records"), strict=True):
        color = color_of(row["set"]) if SetName.of(row["set"]).conditioning in COLORS else COLORS["real"]
        ax.barh(y, row["copy"], height=0.6, color=color)
        ax.plot([row["low"], row["high"]], [y, y], color="black", lw=1.3)
    look = {"color": "black", "mfc": "white", "ms": 5, "ls": "none", "clip_on": False, "zorder": 4}
    for name, marker, shift in (("pixels", "o", 0.2), ("latents", "^", 0.0), ("features", "s", -0.2)):
        ax.plot(summary[name], place + shift, marker, label=f"near by {name} alone", **look)
    ax.grid(axis="x", visible=True)
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set(xlabel="share of images (bar: copies, exact 95 % interval over images or patients)", xlim=(0, None))
    ax.margins(x=0.1)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return ax


def _pairs(axes: Sequence[Axes], items: Sequence[Mapping], above: Sequence[str], below: Sequence[str]) -> None:
    """Synthetic images on one Axes, the training frames nearest to them on another, with text above each."""
    picture_row(axes[0], [item["image"] for item in items], above)
    picture_row(axes[1], [item["nearest"] for item in items], below)
    axes[0].set_ylabel("synthetic")
    axes[1].set_ylabel("nearest\ntraining frame")


def closest_pairs(items: Sequence[Mapping[str, Any]], axes: Sequence[Axes]) -> None:
    """Synthetic images above the training frames they come nearest to, on two Axes; `items` of `quality.closest`."""
    marks = [",\nwithheld as a copy" if item["is_copy"] else "" for item in items]
    above = [f"correlation {item['correlation']:.2f}{mark}" for item, mark in zip(items, marks, strict=True)]
    _pairs(axes, items, above, [f"patient {item['nearest_patient']}, fold {item['fold']}" for item in items])


def beside_nearest(items: Sequence[Mapping[str, Any]], axes: Sequence[Axes], class_names: Sequence[str]) -> None:
    """Synthetic images above the training frames nearest to them by pixels, whatever their score, on two Axes.

    `items` are those of `quality.spread`; `class_names` those of labels 0 and 1.
    """
    above = [
        f"{class_names[int(item['label'])]}, fold {item['fold']}\ndistance {short(item['distance'])}" for item in items
    ]
    below = [
        f"patient {item['nearest_patient']}\ncorrelation {item['correlation']:.2f}"
        + (",\nwithheld as a copy" if item["is_copy"] else "")
        for item in items
    ]
    _pairs(axes, items, above, below)


def gallery(found: Mapping[str, Sequence[Mapping]], axes: Sequence[Axes], class_names: Sequence[str]) -> None:
    """Images nearest to held-out real ones on the first Axes, farthest on the second (after Fig. 3).

    `found` is that of `quality.gallery`.
    """
    words = {"near": "nearest to\nreal images", "far": "farthest from\nreal images"}
    for (kind, label), ax in zip(words.items(), axes, strict=True):
        texts = [f"{class_names[item['label']]}, {short(item['distance'])}" for item in found[kind]]
        picture_row(ax, [item["image"] for item in found[kind]], texts)
        ax.set_ylabel(label)


def closest_card(items: Sequence[Mapping[str, Any]], axes: Sequence[Axes]) -> None:
    """Of the closest pairs of several generators (`quality.closest`) the closest one, side by side on two Axes."""
    item = max(items, key=lambda one: one["correlation"])
    mark = "\nwithheld as a copy" if item["is_copy"] else ""
    picture(axes[0], item["image"], f"synthetic, {str(item['synthetic_id']).partition('_')[0]}{mark}")
    picture(axes[1], item["nearest"], f"training frame\ncorrelation {item['correlation']:.2f}")
