"""Figures of notebook 01: who is in the cohort, what the images look like, how alike and how bright they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.cohort.data import spread
from nafld_utils.views import CLASS_COLORS, COLORS, bare, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nafld_utils.cohort.data import Cohort


def grades(
    patients: pd.DataFrame,
    class_names: tuple[str, str],
    threshold: float | None,
    ax: Axes,
    name: str = "hepatocytes with fatty infiltration (%)",
) -> Axes:
    """Stacked histogram of the patients' ``grade`` by ``label``; where no grade is known the Axes says so.

    `threshold` is the fat percent from which on a patient is of class 1, a dashed line, with an axis from 0 to 100;
    None: any grade. `name` is the grade with its unit.
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
    """One bar per patient: its images, and how many of them are pixel-for-pixel repeats (hatched).

    `images` has ``patient_id, label, sha256``.
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

    `pairs` are from `description.similarity`.
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
    """Mean grey level of each class along a `kind` of `cohort.class_curves`, the interval over patients as a band."""
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


def frame_grid(
    cohort: Cohort,
    patients: Sequence[int],
    n_frames: int,
    axes: np.ndarray,
    names: tuple[str, str],
    grade: str = "fat {:.0f} %",
) -> None:
    """Images of patients, one row of axes each, spread over the patient's images; captions as `caption`."""
    for row, patient in enumerate(patients):
        places = np.flatnonzero(cohort.images["patient_id"].to_numpy() == patient)
        chosen = places[spread(len(places), n_frames)]
        for ax, place in zip(axes[row], chosen, strict=True):
            picture(ax, cohort.pixels[place], caption(cohort.images.iloc[place], names, grade))


def look_alikes(cohort: Cohort, pairs: pd.DataFrame, axes: np.ndarray) -> None:
    """The most alike images of each row of `cohort.open_pairs`, one row of two axes each, with the pair's numbers."""
    place = {name: row for row, name in enumerate(cohort.images["image_id"])}
    for (left, right), pair in zip(axes, pairs.itertuples(index=False), strict=True):
        mark = "flagged: " if pair.flagged else ""
        picture(left, cohort.pixels[place[pair.image_a]], f"{mark}{pair.image_a}")
        numbers = f"r = {pair.correlation:.3f} (usual {pair.usual:.3f}), p = {pair.p:.2g}"
        picture(right, cohort.pixels[place[pair.image_b]], f"{pair.image_b}: {numbers}")


def caption(image: Any, names: tuple[str, str], grade: str = "fat {:.0f} %") -> str:
    """One line about an image: id, class and, if known, its grade, put into the pattern `grade`."""
    known = "" if np.isnan(image["grade"]) else f", {grade.format(image['grade'])}"
    return f"{image['image_id']}: {names[int(image['label'])]}{known}"
