"""Figures of stages 03 and 04: loss curves, reconstructions, sample grids. Tables and arrays in, Axes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nafld_utils.views import COLORS, bare, color_of, picture, tiles

LEVEL = 0.05  # of the test of each checkpoint, one-sided

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curves(curves: pd.DataFrame, ax: Axes) -> Axes:
    """Training and validation loss (`denoiser_units.curves`): a thin line per fold, a bold mean per model."""
    from matplotlib.lines import Line2D

    for name, part in curves.groupby("model", sort=False):
        color = color_of(str(name))
        for column, dashes in (("loss", "-"), ("validation", ":")):
            wide = part.pivot_table(index="step", columns="fold", values=column)
            if wide.empty:
                continue
            ax.plot(wide.index, wide.to_numpy(), dashes, color=color, lw=0.6, alpha=0.35)
            smooth = wide.mean(axis=1).rolling(5, min_periods=1, center=True).mean()
            ax.plot(wide.index, smooth, dashes, color=color, lw=2.2, label=f"{name}, {_WORDS[column]}")
    ax.set(xlabel="training step", ylabel="loss (dimensionless)", ylim=(0, None))
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles=[*handles, Line2D([], [], color="#888888", lw=0.6, label="one fold")])
    return ax


def gan_curves(curves: pd.DataFrame, ax: Axes) -> Axes:
    """Losses of both networks of the GAN over steps (`gan_units.curves`), a line per fold."""
    looks = {"discriminator": (COLORS["real"], ":"), "generator": (COLORS["gan"], "-")}
    for name, (color, dashes) in looks.items():
        for i, (_, part) in enumerate(curves.groupby("fold")):
            ax.plot(part["step"], part[name], dashes, color=color, lw=1.0, label=name if i == 0 else None)
    ax.axhline(np.log(2), color="#888888", lw=0.8, ls="--", label="log 2: neither side ahead")
    ax.set(xlabel="training step", ylabel="relativistic loss (nats)")
    ax.legend()
    return ax


def over_training(table: pd.DataFrame, distance: Axes, share: Axes) -> None:
    """Distances to training and held-out patients above, the share of copies below, on one axis of steps; one model.

    `table` is that of `over_training_units.look`: ``step, passes, n, copies, share, nominal, p, to_training,
    to_held_out``.
    """
    color = color_of(table["model"].iloc[0])
    distance.plot(table["step"], table["to_training"], "-", color=color, marker="o", label="training patients")
    if "to_held_out" in table:
        distance.plot(table["step"], table["to_held_out"], ":", color=color, marker="s", label="held-out patients")
    distance.axhline(0, lw=0)  # panels share the axis: a limit set here would cut the curves of the next
    distance.set(ylabel="Frechet distance (Lite0)")
    share.plot(table["step"], table["share"], "-", color=color, marker="o", label="copies")
    above = table[table["p"] < LEVEL]
    share.plot(above["step"], above["share"], "o", color="black", mfc="none", ms=10, label="above the nominal rate")
    share.axhline(table["nominal"].iloc[0], color="#888888", lw=0.8, ls="--", label="nominal rate")
    share.set(xlabel="training step", ylabel="share of images", ylim=(-0.03, 1.03))
    for ax in (distance, share):
        ax.legend()


_WORDS = {"loss": "training batch", "validation": "held-out patients"}


def image_row(images: Sequence[np.ndarray], titles: Sequence[str], axes: Sequence[Axes], cmap: str = "gray") -> None:
    """Show grey images (H, W) uint8 side by side, without axes; an empty title is left out. Maps use ``"viridis"``."""
    for image, title, ax in zip(images, titles, axes, strict=True):
        top = 255 if cmap == "gray" else None
        ax.imshow(image, cmap=cmap, vmin=0, vmax=top)
        bare(ax, title)


def mosaic(images: np.ndarray, n_columns: int, ax: Axes, title: str = "") -> Axes:
    """Tile (n, H, W) uint8 images in reading order into one picture with thin gaps."""
    picture(ax, tiles(images, n_columns, gap=3))
    ax.set_title(title)
    return ax


def reconstruction_error(table: pd.DataFrame, value: str, unit: str, ax: Axes) -> Axes:
    """Distribution of a column, PSNR or SSIM, over held-out images, a box per fold; `unit` labels the axis."""
    import seaborn as sns

    sns.boxplot(table, x="fold", y=value, color="#BBBBBB", width=0.5, fliersize=2, ax=ax)
    ax.set(xlabel="held-out fold", ylabel=unit)
    return ax
