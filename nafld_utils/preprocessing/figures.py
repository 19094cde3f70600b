"""Figures of notebook 02: region and crop of an image, semantic maps, folds, and what the crop cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils.cohort import caption as caption
from nafld_utils.views import CLASS_COLORS, bare, picture, spread_dots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REGION, _CROP, _LOST = "#F0E442", "#56B4E9", (0.84, 0.37, 0.0)


def region_overlay(frame: np.ndarray, region: np.ndarray, facts: Any, ax: Axes) -> Axes:
    """Raw frame (H, W) uint8 with the outline of its (H, W) bool region and the crop; what that cuts off is tinted.

    `facts` has ``crop_top, crop_left, crop_side`` in pixels, as a row of `preprocessing.Preprocessed.images`.
    """
    from matplotlib.patches import Rectangle

    top, left, size = (int(facts[name]) for name in ("crop_top", "crop_left", "crop_side"))
    inside = np.zeros_like(region)
    inside[max(top, 0) : top + size, max(left, 0) : left + size] = True
    tint = np.zeros((*frame.shape, 4))
    tint[region & ~inside] = (*_LOST, 0.35)
    picture(ax, frame)
    ax.imshow(tint)
    ax.contour(region, levels=[0.5], colors=_REGION, linewidths=0.9)
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, ec=_CROP, lw=1.3))
    return ax


def steps(
    frame: np.ndarray,
    region: np.ndarray,
    facts: Any,
    crop: np.ndarray,
    pool: np.ndarray,
    axes: Sequence[Axes],
    name: str,
) -> None:
    """One row of pictures: the `region_overlay`, titled `name`; the centre crop; as many of `pool` as there are axes.

    `crop` is (C, C) uint8, `pool` (k, S, S) uint8 random resized crops of it; three axes or more.
    """
    bare(region_overlay(frame, region, facts, axes[0]), name)
    picture(axes[1], crop, f"centre crop, {crop.shape[0]} px")
    for number, (ax, image) in enumerate(zip(axes[2:], pool, strict=False)):
        picture(ax, image, f"random crop {number}, {image.shape[0]} px")


def label_map(labels: np.ndarray, classes: int, ax: Axes, title: str = "") -> Axes:
    """Semantic map, (M, M) labels 0 .. classes - 1, in as many grey-blue-yellow steps, the darkest class dark."""
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
    """Held-out patients of each fold by class, stacked; `folds` has one row per patient: ``fold, label``."""
    counts = pd.crosstab(folds["fold"], folds["label"]).reindex(columns=[0, 1], fill_value=0)
    bottom = np.zeros(len(counts))
    for label, name in enumerate(class_names):
        bars = ax.bar(counts.index, counts[label], bottom=bottom, color=CLASS_COLORS[label], label=name, width=0.7)
        ax.bar_label(bars, label_type="center", color="black", fontsize=9)
        bottom += counts[label].to_numpy()
    ax.set(xlabel="fold", ylabel="held-out patients", xticks=counts.index, ylim=(0, bottom.max() * 1.25))
    ax.legend(loc="upper center", ncols=2)
    return ax


def crops_by_class(facts: pd.DataFrame, class_names: tuple[str, str], axes: Sequence[Axes]) -> None:
    """Side of the crop and share of the image that it keeps, a dot per patient (mean of its images), by class.

    `facts` is of `preprocessing.facts_of`; two axes.
    """
    patients = facts.groupby("patient_id").agg({"label": "first", "crop_side": "mean", "image_share": "mean"})
    said = {"crop_side": "side of the crop (pixels)", "image_share": "image inside the crop (%)"}
    for ax, (column, words) in zip(axes, said.items(), strict=True):
        for label, name in enumerate(class_names):
            part = np.sort(patients.loc[patients["label"] == label, column]) * (100 if column == "image_share" else 1)
            offsets = spread_dots(len(part), 0.25)
            ax.plot(label + offsets, part, "o", color=CLASS_COLORS[label], alpha=0.7, ms=5, mec="white", label=name)
            ax.plot([label - 0.35, label + 0.35], [np.median(part)] * 2, color=CLASS_COLORS[label], lw=2)
        ax.margins(y=0.35)
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5))  # 1 px or 1 % apart is no spread
        ax.set(ylabel=words, xticks=[0, 1], xticklabels=class_names, xlim=(-0.6, 1.6))
        ax.legend(title="a dot per patient, line: median", title_fontsize=9)
