"""Figures of the Turing test: the page, the images, the rates beside the paper's, who is fooled by what, and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.views import COLORS, mark_simulated, name_rows, tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nafld_utils.artifacts import Run

KIND_NAMES = {"real": "real", "semantic": "semantic LDM", "class": "class LDM"}
_INK, _ALERT = "#222222", "#8C2D04"
# the page's own colours, of templates/turing.css
_GROUND, _LINE, _LIGHT, _SOFT, _ACCENT = "#101214", "#6d747b", "#eceff1", "#b4bcc2", "#8ec5ff"


def contact_sheet(images: np.ndarray, items: pd.DataFrame, ax: Axes, columns: int = 10, reveal: bool = False) -> Axes:
    """All images (n, S, S) uint8 of the test in its order, numbered; with `reveal`, framed in the colour of their kind.

    Parameters
    ----------
    images : (n, S, S) uint8
    items : pandas.DataFrame
        ``order``; with `reveal` also ``kind``. Row i belongs to image i.
    ax : Axes
    columns : int
        Images per row.
    reveal : bool
        Show which image is what.
    """
    from matplotlib.patches import Rectangle

    size, gap = images.shape[1], max(4, images.shape[1] // 16)
    step = size + gap
    sheet = tiles(images, min(columns, len(images)), gap)
    ax.imshow(sheet, vmin=0, vmax=255, interpolation="antialiased")
    side = size + gap / 2  # of a frame, half way into the gap
    for i, item in enumerate(items.itertuples()):
        top, left = i // columns * step, i % columns * step
        corner = (left - 0.5 - gap / 4, top - 0.5 - gap / 4)
        color = COLORS[item.kind] if reveal else "none"
        ax.add_patch(Rectangle(corner, side, side, fill=False, lw=2.5, ec=color))
        ax.text(left + size * 0.04, top + size * 0.05, f"{item.order}", color="white", fontsize=9, va="top")
    ax.set(xlim=(-gap, sheet.shape[1] + gap - 1), ylim=(sheet.shape[0] + gap - 1, -gap))
    ax.axis("off")
    if reveal:
        _kind_legend(ax, items["kind"])
    return ax


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
    """Means with intervals over raters, one colour per source; the unit range is marked, since nothing is clipped.

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


def recognised(images: pd.DataFrame, ax: Axes, class_names: Sequence[str] = ("healthy", "unhealthy")) -> Axes:
    """How often each image was recognised: one dot per image, one row per kind and class, a bar for their mean.

    Parameters
    ----------
    images : pandas.DataFrame
        ``kind, label, right`` (share of raters), one row per image.
    ax : Axes
    class_names : sequence of str
        Of labels 0 and 1.
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
    names = [f"{KIND_NAMES[kind]}, {class_names[label]}" for kind, label in rows]
    name_rows(ax, names, "share of raters who recognised the image (bar: mean)")
    ax.set_xlim(-0.05, 1.05)
    return ax


def preview(image: np.ndarray, texts: Mapping[str, Any], n: int, levels: Sequence[int], ax: Axes) -> Axes:
    """What a rater has on the screen, drawn from the page's own texts and colours; it is a drawing, not the page.

    Parameters
    ----------
    image : (S, S) uint8
        The first image of the sitting.
    texts : mapping
        From `nafld_utils.turing.page.load_texts`.
    n : int
        Images in the sitting.
    levels : sequence of int
        Confidences on offer, in per cent.
    ax : Axes
    """
    ax.set(xlim=(0, 100), ylim=(136, 0), aspect="equal")
    ax.axis("off")
    _box(ax, (0, 0, 100, 136), _GROUND)
    _say(ax, (5, 6.5), texts["item_heading"].format(i=1, n=n), ha="left", fontweight="bold", fontsize=11)
    _box(ax, (5, 10.5, 90, 1.4), "#33383d")
    _box(ax, (5, 10.5, 90 / n, 1.4), _ACCENT)
    _box(ax, (5, 15, 90, 70), "black")
    ax.imshow(image, vmin=0, vmax=255, extent=(15.5, 84.5, 84.5, 15.5), interpolation="bilinear", zorder=3)
    _say(ax, (5, 89), texts["answer_legend"], ha="left", color=_SOFT)
    for left, name in ((5, "real"), (51.5, "synthetic")):
        _box(ax, (left, 91.5, 43.5, 9), _GROUND, edge=_LINE)
        _say(ax, (left + 21.75, 96), f"{texts[name]}  [{texts[name + '_key']}]", fontweight="bold")
    _say(ax, (5, 105), texts["confidence_legend"], ha="left", color=_SOFT)
    labels = [texts["confidence_none"], *(texts["percent"].format(p=level) for level in levels)]
    width = 90 / len(labels)
    for i, label in enumerate(labels):
        _box(ax, (5 + i * width, 107.5, width - 1.2, 7.5), _GROUND, edge=_ACCENT if i == 0 else _LINE)
        at = (5 + i * width + (width - 1.2) / 2, 111.3)
        _say(ax, at, label.replace(" ", "\n") if i == 0 else label, fontsize=9)
    _box(ax, (5, 121, 20, 9), _GROUND, edge=_LINE)
    _say(ax, (15, 125.5), texts["back"])
    _box(ax, (28, 121, 67, 9), _ACCENT)
    _say(ax, (61.5, 125.5), texts["next"], color=_GROUND, fontweight="bold")
    return ax


def _box(ax: Axes, place: tuple[float, float, float, float], face: str, edge: str = "none") -> None:
    from matplotlib.patches import Rectangle

    left, top, width, height = place
    ax.add_patch(Rectangle((left, top), width, height, facecolor=face, edgecolor=edge, lw=1.2, zorder=2))


def _say(ax: Axes, at: tuple[float, float], text: str, color: str = "", **look: Any) -> None:
    look = {"ha": "center", "va": "center", "fontsize": 9, "linespacing": 0.9, "zorder": 4} | look
    ax.text(*at, plain(text), color=color or _LIGHT, **look)


def plain(text: str) -> str:
    """Text from outside for a figure: a dollar sign stays one, where matplotlib would begin a formula."""
    return str(text).replace("$", r"\$")


def fooled(ratings: pd.DataFrame, ax: Axes) -> Axes:
    """Which images fool whom: one row per rater, one column per image, filled where the rater was wrong (Supp. Fig. 2).

    Parameters
    ----------
    ratings : pandas.DataFrame
        ``rater, order, kind, is_real, said_real``; columns are grouped by kind, within it the most fooling first.
    ax : Axes
    """
    table = ratings.assign(wrong=(ratings["said_real"] != ratings["is_real"]).astype(int))
    images = table.groupby(["kind", "order"])["wrong"].mean().reset_index()
    images["place"] = images["kind"].map(list(KIND_NAMES).index)
    images = images.sort_values(["place", "wrong", "order"], ascending=[True, False, True])
    raters = list(dict.fromkeys(table["rater"]))
    grid = table.pivot_table(index="rater", columns="order", values="wrong").loc[raters, images["order"]]
    shades = np.full((*grid.shape, 3), 1.0)
    for column, kind in enumerate(images["kind"]):
        shades[grid.to_numpy()[:, column] == 1, column] = [int(COLORS[kind][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    ax.imshow(shades, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(images)), [str(number) for number in images["order"]], rotation=90)
    ax.set_yticks(range(len(raters)), [plain(rater) for rater in raters])
    ax.set_xlabel("image (its number in the order), grouped by kind; filled: rater was wrong")
    ax.vlines(np.arange(len(images) - 1) + 0.5, -0.5, len(raters) - 0.5, color="#DDDDDD", lw=0.6)
    ax.hlines(np.arange(len(raters) - 1) + 0.5, -0.5, len(images) - 0.5, color="#DDDDDD", lw=0.6)
    for kind, part in images.reset_index(drop=True).groupby("kind"):
        middle = part.index.to_numpy().mean()
        ax.text(middle, -0.65, KIND_NAMES[kind], ha="center", va="bottom", fontsize=9, color=COLORS[kind])
    ax.grid(visible=False)
    return ax


def calibrated(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of right answers at each stated confidence, with intervals; the diagonal is a calibrated rater.

    Parameters
    ----------
    table : pandas.DataFrame
        From `nafld_utils.turing.intervals.calibration`; without rows the Axes says so.
    ax : Axes
    """
    ax.plot([50, 100], [0.5, 1], color=_INK, lw=1, ls="--")
    if len(table):
        ax.vlines(table["confidence"], table["low"], table["high"], color=_INK, lw=2)
        ax.plot(table["confidence"], table["right"], "o", color=_INK, ms=6)
        for row in table.itertuples():
            ax.annotate(f"{row.n}", (row.confidence, row.right), (5, 4), textcoords="offset points", fontsize=9)
    else:
        ax.text(0.5, 0.5, "nobody stated a confidence", transform=ax.transAxes, ha="center", va="center")
    ax.set(xlim=(45, 105), ylim=(0, 1.02), xlabel="stated confidence, %", ylabel="share of right answers")
    return ax


def discriminated(raters: pd.DataFrame, found: Mapping[str, Any], margin: float, ax: Axes) -> Axes:
    """Each rater's d' with its interval over images, the panel's over raters and images, and the margin as a band.

    Parameters
    ----------
    raters : pandas.DataFrame
        From `nafld_utils.turing.table_1.per_rater`.
    found : mapping
        From `nafld_utils.turing.rater_model.equivalence_test`; its 90 % interval decides.
    margin : float
        Of equivalence, in d'.
    ax : Axes
    """
    place = np.arange(1, len(raters) + 1)
    ax.axvspan(-margin, margin, color="#E4E4E4", lw=0, label=f"margin, {margin:g}")
    ax.axvline(0, color=_INK, lw=1, ls="--")
    ax.hlines(place, raters["d_low"], raters["d_high"], color=_INK, lw=1)
    ax.plot(raters["d_prime"], place, "o", color=_INK, ms=5, label="one rater, 95 % interval over images")
    if np.isfinite(found["d_prime"]):
        ax.hlines(0, found["low"], found["high"], color=COLORS["semantic"], lw=3)
        label = "panel, 90 % interval over raters and images"
        ax.plot(found["d_prime"], 0, "D", color=COLORS["semantic"], ms=7, label=label)
    ax.set_yticks([0, *place], ["panel", *(plain(name) for name in raters["rater"])])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("d', standard deviations (0: cannot tell)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=1, fontsize=9)
    return ax


def raters_card(raters: pd.DataFrame, found: Mapping[str, Any], margin: float, ax: Axes) -> None:
    """As `discriminated`, small: raters against chance, named in the text beside it."""
    discriminated(raters, found, margin, ax)
    ax.get_legend().remove()
    if len(raters) > 8:
        ax.set_yticks([0], ["panel"])
    ax.set_xlabel("d', 95 % (panel: 90 %); grey: margin")


def planned(table: pd.DataFrame, ax: Axes) -> Axes:
    """Images that each of so many raters must see, one line per basis; bases for which no number is enough are named.

    Parameters
    ----------
    table : pandas.DataFrame
        From `nafld_utils.turing.rater_model.plans`.
    ax : Axes
    """
    from matplotlib.ticker import NullLocator, ScalarFormatter

    looks = {"these raters": (_INK, "o"), "the paper's raters": (COLORS["semantic"], "D")}
    parts = dict(tuple(table.groupby("basis", sort=False)))
    for who, (color, marker) in looks.items():
        if who not in parts:
            continue
        own, worst = parts[who], parts[f"{who}, upper limit"]
        lines = [(who, own, "-", color), (f"{who}, upper limit", worst, "--", "white")]
        if own["n_images"].fillna(0).tolist() == worst["n_images"].fillna(0).tolist():
            lines = [(f"{who}, upper limit too", own, "-", color)]
        for basis, part, form, face in lines:
            enough = part.dropna(subset=["n_images"])
            label = basis if len(enough) else f"{basis}: no number is enough"
            look = {"color": color, "marker": marker, "ms": 6, "mfc": face, "ls": form, "label": label}
            ax.plot(enough["n_raters"], enough["n_images"].astype(float), **look)
    ax.set(xscale="log", yscale="log", xlabel="raters", ylabel="images each of them sees")
    for axis, ticks in ((ax.xaxis, sorted(table["n_raters"].unique())), (ax.yaxis, (10, 20, 50, 100, 200, 500, 1000))):
        axis.set_ticks(ticks)
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    ax.legend(fontsize=9, handlelength=3.5)
    return ax


def strip(images: np.ndarray, table: pd.DataFrame, axes: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Images (n, S, S), titled with what it is and how many raters recognised it (``order, kind, label, right``)."""
    for ax, image, item in zip(axes, images, table.itertuples(), strict=True):
        ax.imshow(image, vmin=0, vmax=255)
        text = f"no. {item.order}: {KIND_NAMES[item.kind]}\n{class_names[item.label]}, recognised {item.right:.0%}"
        ax.set_title(text, fontsize=9, loc="left", color=COLORS[item.kind], fontweight="normal")
        ax.axis("off")
    return axes


def mark(figure: Figure, run: Run, simulated_raters: bool) -> Figure:
    """Say in the corners of a figure where its answers are of simulated raters, and where its cohort is simulated."""
    if simulated_raters:
        # below all else; a tight box keeps it
        figure.text(0.0, -0.01, "simulated raters", ha="left", va="top", fontsize=9, style="italic", color=_ALERT)
    mark_simulated(figure, run)
    return figure
