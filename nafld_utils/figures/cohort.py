"""Figures of notebooks 01 and 02: who is in the cohort, what the frames look like, what preprocessing does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.figures import COLORS, bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nafld_utils.cohort import Cohort

CLASS_COLORS = (COLORS["healthy"], COLORS["fatty"])  # label 0, label 1
_REGION, _CROP, _LOST = "#F0E442", "#56B4E9", (0.84, 0.37, 0.0)


def grades(
    patients: pd.DataFrame,
    class_names: tuple[str, str],
    threshold: float | None,
    ax: Axes,
    name: str = "hepatocytes with fatty infiltration (%)",
) -> Axes:
    """Stacked histogram of the patients' grade by class, with the threshold of the label where there is one.

    Parameters
    ----------
    patients : pandas.DataFrame
        ``label, grade``; where no grade is known the Axes says so.
    class_names : (str, str)
        Names of label 0 and 1.
    threshold : float or None
        Fat percent from which on a patient is of class 1, a dashed line, with an axis from 0 to 100; None: any grade.
    ax : Axes
        Where to draw.
    name : str
        The grade with its unit.
    """
    parts = [patients.loc[patients["label"] == label, "grade"].dropna() for label in (0, 1)]
    labels = [f"{name} ({len(part)} patients)" for name, part in zip(class_names, parts, strict=True)]
    if not any(map(len, parts)):
        bare(ax)
        ax.text(0.5, 0.5, "this cohort has no grades", ha="center", va="center", transform=ax.transAxes)
        return ax
    bins = 20 if threshold is None else np.arange(0, 101, 5)
    ax.hist(parts, bins=bins, stacked=True, color=CLASS_COLORS, edgecolor="white", label=labels)
    ax.set(xlabel=name, ylabel="patients")
    if threshold is not None:
        ax.axvline(threshold, color="#222222", ls="--", lw=1.2, label=f"label threshold, {threshold:g} %")
        ax.set_xlim(0, 100)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def images_per_patient(images: pd.DataFrame, class_names: tuple[str, str], ax: Axes) -> Axes:
    """Bar a patient: its images, and how many of them are pixel-for-pixel repeats (hatched).

    Parameters
    ----------
    images : pandas.DataFrame
        ``patient_id, label, sha256``.
    class_names : (str, str)
        Names of label 0 and 1.
    ax : Axes
        Where to draw.
    """
    table = images.groupby("patient_id").agg(
        label=("label", "first"), n=("sha256", "size"), unique=("sha256", "nunique")
    )
    for label, name in enumerate(class_names):
        part = table[table["label"] == label]
        ax.bar(part.index, part["unique"], color=CLASS_COLORS[label], width=0.8, label=name)
    repeated = table[table["n"] > table["unique"]]
    if len(repeated):
        style = {"color": "white", "edgecolor": "#222222", "hatch": "////", "width": 0.8, "lw": 0.6}
        height = repeated["n"] - repeated["unique"]
        ax.bar(repeated.index, height, bottom=repeated["unique"], label="repeats of another frame", **style)
    ax.set(xlabel="patient", ylabel="images", ylim=(0, table["n"].max() * 1.25))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper center", ncols=3)
    return ax


def correlations(pairs: pd.DataFrame, ax: Axes) -> Axes:
    """Histograms of frame correlations, same patient against different patients, each as a share of its pairs.

    Parameters
    ----------
    pairs : pandas.DataFrame
        From `describe.similarity`.
    ax : Axes
        Where to draw.
    """
    edges = np.linspace(min(0.0, float(pairs["correlation"].min())), 1.0, 51)
    for name, color in (("different patients", COLORS["real"]), ("same patient", COLORS["semantic"])):
        part = pairs.loc[pairs["pair"] == name, "correlation"].to_numpy()
        weights = np.full(len(part), 100 / max(len(part), 1))
        ax.hist(part, edges, weights=weights, color=color, alpha=0.75, label=f"{name} ({len(part)} pairs)")
    ax.set(xlabel="correlation of grey levels inside the region (-1 to 1)", ylabel="share of pairs (%)")
    ax.legend()
    return ax


def echogenicity(curves: pd.DataFrame, kind: str, class_names: tuple[str, str], ax: Axes) -> Axes:
    """Mean grey level of each class over depth or angle, with its interval over patients as a band.

    Parameters
    ----------
    curves : pandas.DataFrame
        From `describe.class_curves`.
    kind : str
        ``"depth"`` or ``"lateral"``, or of `describe.square_profiles` ``"rows"`` or ``"columns"``.
    class_names : (str, str)
        Names of label 0 and 1.
    ax : Axes
        Where to draw.
    """
    for label, name in enumerate(class_names):
        part = curves[(curves["kind"] == kind) & (curves["label"] == label)]
        ax.fill_between(part["position"], part["low"], part["high"], color=CLASS_COLORS[label], alpha=0.25, lw=0)
        ax.plot(part["position"], part["grey"], color=CLASS_COLORS[label], label=name)
    words = {"depth": "distance from the apex (pixel)", "lateral": "angle from the axis (degree)"}
    words |= {"rows": "height, from the top (%)", "columns": "width, from the left (%)"}
    top = 1.5 * curves.loc[curves["kind"] == kind, "grey"].max()  # two patients' band would dwarf the curves
    ax.set(xlabel=words[kind], ylabel="grey level (0 to 255)", ylim=(0, min(255.0, top)))
    ax.legend(title="mean, 95 % over patients", title_fontsize=9)
    return ax


# ---------------------------------------------------------------- frames


def frame_grid(
    cohort: Cohort,
    patients: Sequence[int],
    n_frames: int,
    axes: np.ndarray,
    names: tuple[str, str],
    grade: str = "fat {:.0f} %",
) -> None:
    """Static twin of `explorers.cohort.frames`: a row a patient, frames spread over the patient's images.

    Parameters
    ----------
    cohort : Cohort
        Whose frames.
    patients : sequence of int
        Patient ids, one a row.
    n_frames : int
        Frames a row.
    axes : (len(patients), n_frames) ndarray of Axes
        Where to draw.
    names : (str, str)
        Names of label 0 and 1.
    grade : str
        See `caption`.
    """
    for row, patient in enumerate(patients):
        places = np.flatnonzero(cohort.images["patient_id"].to_numpy() == patient)
        spread = places[np.rint(np.linspace(0, len(places) - 1, n_frames)).astype(int)]
        for ax, place in zip(axes[row], spread, strict=True):
            ax.imshow(cohort.pixels[place], cmap="gray", vmin=0, vmax=255)
            bare(ax, caption(cohort.images.iloc[place], names, grade))


def caption(image: Any, names: tuple[str, str], grade: str = "fat {:.0f} %") -> str:
    """One line about an image: id, class and, if known, its grade, put into the pattern `grade`."""
    known = "" if np.isnan(image["grade"]) else f", {grade.format(image['grade'])}"
    return f"{image['image_id']}: {names[int(image['label'])]}{known}"


# ---------------------------------------------------------------- preprocessing


def region_overlay(frame: np.ndarray, region: np.ndarray, corner: tuple[int, int], size: int, ax: Axes) -> Axes:
    """Frame with the region's outline and the crop's square; what the crop cuts off is tinted.

    Parameters
    ----------
    frame : (H, W) uint8 ndarray
        Raw frame.
    region : (H, W) bool ndarray
        Its region.
    corner : (int, int)
        Row and column of the crop's first pixel.
    size : int
        Side of the crop in pixels.
    ax : Axes
        Where to draw.
    """
    from matplotlib.patches import Rectangle

    inside = np.zeros_like(region)
    top, left = corner
    inside[max(top, 0) : top + size, max(left, 0) : left + size] = True
    tint = np.zeros((*frame.shape, 4))
    tint[region & ~inside] = (*_LOST, 0.35)
    ax.imshow(frame, cmap="gray", vmin=0, vmax=255)
    ax.imshow(tint)
    ax.contour(region, levels=[0.5], colors=_REGION, linewidths=0.9)
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, ec=_CROP, lw=1.3))
    bare(ax)
    return ax


def steps(
    frame: np.ndarray,
    region: np.ndarray,
    corner: tuple[int, int],
    crop: np.ndarray,
    pool: np.ndarray,
    axes: Sequence[Axes],
    name: str,
    side: int | None = None,
) -> None:
    """One row: raw frame with region and crop, the crop, then random resized crops of it.

    Parameters
    ----------
    frame : (H, W) uint8 ndarray
        Raw frame.
    region : (H, W) bool ndarray
        Its region.
    corner : (int, int)
        Row and column of the crop's first pixel.
    crop : (C, C) uint8 ndarray
        Centre crop.
    pool : (k, S, S) uint8 ndarray
        Random resized crops; as many are shown as there are axes left.
    axes : sequence of Axes
        At least three.
    name : str
        Title of the row's first picture.
    side : int, optional
        Side of the crop's square in the frame, in pixels; that of the crop by default.
    """
    region_overlay(frame, region, corner, side or crop.shape[0], axes[0])
    axes[0].set_title(name, fontsize=9, fontweight="normal", loc="center")
    axes[1].imshow(crop, cmap="gray", vmin=0, vmax=255)
    bare(axes[1], f"centre crop, {crop.shape[0]} px")
    for number, (ax, image) in enumerate(zip(axes[2:], pool, strict=False)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        bare(ax, f"random crop {number}, {image.shape[0]} px")


def label_map(labels: np.ndarray, classes: int, ax: Axes, title: str = "") -> Axes:
    """Semantic map in as many grey-blue-yellow steps as classes, the darkest class dark.

    Parameters
    ----------
    labels : (M, M) uint8 ndarray
        Labels 0 .. classes - 1.
    classes : int
        Number of classes.
    ax : Axes
        Where to draw.
    title : str
        Title, may be empty.
    """
    import matplotlib as mpl

    ax.imshow(labels, cmap=mpl.colormaps["cividis"].resampled(classes), vmin=-0.5, vmax=classes - 0.5)
    bare(ax, title)
    return ax


def label_legend(figure: Any, classes: int) -> None:
    """Legend of `label_map` under a figure."""
    import matplotlib as mpl
    from matplotlib.patches import Patch

    colors = mpl.colormaps["cividis"].resampled(classes)
    words = {0: "0 (darkest)", classes - 1: f"{classes - 1} (brightest)"}
    handles = [Patch(fc=colors(i), label=words.get(i, str(i))) for i in range(classes)]
    figure.legend(handles=handles, title="brightness class", loc="outside lower center", ncols=classes)


def fold_bars(folds: pd.DataFrame, class_names: tuple[str, str], ax: Axes) -> Axes:
    """Held-out patients of each fold by class, stacked.

    Parameters
    ----------
    folds : pandas.DataFrame
        One row a patient: ``fold, label``.
    class_names : (str, str)
        Names of label 0 and 1.
    ax : Axes
        Where to draw.
    """
    counts = pd.crosstab(folds["fold"], folds["label"]).reindex(columns=[0, 1], fill_value=0)
    bottom = np.zeros(len(counts))
    for label, name in enumerate(class_names):
        bars = ax.bar(counts.index, counts[label], bottom=bottom, color=CLASS_COLORS[label], label=name, width=0.7)
        ax.bar_label(bars, label_type="center", color="black", fontsize=9)
        bottom += counts[label].to_numpy()
    ax.set(xlabel="fold", ylabel="held-out patients", xticks=counts.index, ylim=(0, bottom.max() * 1.25))
    ax.legend(loc="upper center", ncols=2)
    return ax


def kept_share(images: pd.DataFrame, ax: Axes) -> Axes:
    """Histogram of the share of the region's area that the centre crop keeps.

    Parameters
    ----------
    images : pandas.DataFrame
        ``kept_share`` (0 to 1), one row an image.
    ax : Axes
        Where to draw.
    """
    share = 100 * images["kept_share"]
    low, high = np.floor(share.min()) - 1, np.ceil(share.max()) + 1
    ax.hist(share, np.linspace(low, high, 31), color=COLORS["real"], edgecolor="white")
    ax.set(xlabel="share of the region's area inside the crop (%)", ylabel="images", yscale="log", ylim=(0.7, None))
    ax.yaxis.set_major_formatter("{x:.0f}")
    return ax
