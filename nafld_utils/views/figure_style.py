"""One look for every figure: colours by name, text sizes, and the word that marks simulated data.

Contract of every room's ``figures``: a function takes a table or an array and an Axes, draws, and returns the
Axes; it computes no statistic, opens no file and shows nothing. Colours are Okabe and Ito's, told apart by readers
with any of the common colour vision deficiencies (https://jfly.uni-koeln.de/color/); no text is below 9 points.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from typing import TYPE_CHECKING, Any

from nafld_utils import engine
from nafld_utils.artifacts import Run
from nafld_utils.params import SetName

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

COLORS: dict[str, str] = {
    "real": "#555555",
    "semantic": "#D55E00",
    "class": "#0072B2",
    "traditional": "#56B4E9",
    "trivial": "#8C6D31",
    "gan": "#E69F00",
    "simulated": "#7570B3",
    "filtered": "#999933",
    "healthy": "#009E73",
    "fatty": "#CC79A7",
}

CLASS_COLORS = (COLORS["healthy"], COLORS["fatty"])  # label 0, label 1
SIMULATED = "simulated cohort"
_LIGHT, _SHOWN = 150_000, 10**6  # most characters of an SVG on a page, and where somebody looks on
_SMALL = 100  # dots per inch of the PNG beside an SVG
# How hard a PNG is packed, of 9, on a page and where somebody waits: at 6 it takes two thirds more time than at 3, for
# files that are 4 % smaller.
_PACKED, _QUICK = 3, 1


def color_of(name: str) -> str:
    """Colour of a generator or arm; a balanced twin has its model's."""
    return COLORS[SetName.of(name).conditioning]


def style(overrides: Mapping[str, Any] | None = None) -> ExitStack:
    """Set the study's figure style and further rc settings, and none of the user's own; notebooks call it once.

    Returns
    -------
    contextlib.ExitStack
        On leaving it the settings before the call are back; a plain call leaves the style in force.

    Examples
    --------
    >>> import matplotlib as mpl
    >>> with style():
    ...     mpl.rcParams["axes.grid"]
    True
    """
    import matplotlib as mpl

    with resources.as_file(resources.files("nafld_utils.views") / "figures.mplstyle") as path:
        look = mpl.rc_params_from_file(path, use_default_template=False)
    before = {name: value for name, value in mpl.rcParams.copy().items() if name != "backend"}
    mpl.rcdefaults()  # not those of the user's own matplotlibrc
    mpl.rcParams.update({**look, "axes.prop_cycle": mpl.cycler(color=list(COLORS.values())), **(overrides or {})})
    _show_as_vectors()
    if "inline" in mpl.get_backend():  # in a notebook, where pyplot would draw each figure once more than it is shown
        import matplotlib.pyplot as plt

        plt.switch_backend(mpl.get_backend())
        plt.uninstall_repl_displayhook()
    restore = ExitStack()
    restore.callback(mpl.rcParams.update, before)
    return restore


def _show_as_vectors() -> None:
    """In a notebook, show figures without pictures as SVG where that is light, beside a small PNG for other readers."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "display_formatter") or "inline" not in os.environ.get("MPLBACKEND", ""):
        return
    import matplotlib_inline.backend_inline  # noqa: F401  # sets its own formats when it is first imported
    from matplotlib.figure import Figure

    drawn: weakref.WeakKeyDictionary[Figure, str] = weakref.WeakKeyDictionary()
    boxes: weakref.WeakKeyDictionary[Figure, Any] = weakref.WeakKeyDictionary()

    def vectors(figure: Figure) -> str | None:
        boxes[figure] = laid_out(figure)
        if any(ax.images for ax in figure.axes):
            return None
        text = printed(figure, boxes[figure], fmt="svg", metadata={"Date": None})
        if text and len(text) <= (_LIGHT if engine.is_headless() else _SHOWN):
            drawn[figure] = text
        return drawn.get(figure)

    def pixels(figure: Figure) -> str | None:
        if figure in drawn and not engine.is_headless():  # who looks on has the vectors
            return None
        packed = _PACKED if engine.is_headless() else _QUICK
        options = {"dpi": _SMALL if figure in drawn else figure.dpi, "pil_kwargs": {"compress_level": packed}}
        return printed(figure, boxes[figure], fmt="png", base64=True, **options)

    formatters = shell.display_formatter.formatters
    formatters["image/svg+xml"].for_type(Figure, vectors)
    formatters["image/png"].for_type(Figure, pixels)


def laid_out(figure: Figure) -> Any:
    """Lay a figure out and give the box, in inches, of what it shows."""
    import matplotlib as mpl

    if layout := figure.get_layout_engine():
        layout.execute(figure)
    return figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])


def printed(figure: Figure, box: Any, **options: Any) -> Any:
    """One form of a figure that `laid_out` has given its box; matplotlib would lay it out, and draw it, once more."""
    import matplotlib as mpl
    from IPython.core.pylabtools import print_figure

    layout = figure.get_layout_engine()
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine()
    try:
        return print_figure(figure, bbox_inches=box, **options)
    finally:
        figure.set_layout_engine(layout or "none")


def bare(ax: Axes, title: str = "") -> None:
    """Strip ticks, grid and frame from an Axes that shows a picture; an empty title is left out."""
    ax.set(xticks=[], yticks=[])
    ax.xaxis.set_visible(False)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9, fontweight="normal", loc="center", y=1.0)


def picture(ax: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a grey image, (H, W) uint8, without axes; an empty title is left out."""
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    bare(ax, title)


def picture_row(ax: Axes, images: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Show grey images of one size, (H, W) uint8, side by side as one picture, with text above each."""
    if not len(images):
        bare(ax)
        return
    width = images[0].shape[1]
    gap = max(1, width // 20)
    picture(ax, tiles(images, len(images), gap))
    for i, title in enumerate(titles):
        place = (width + gap) * i + width / 2, 0
        ax.annotate(title, place, (0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=9)


def picture_rows(title: str, n: int, lines: int = 1, width: float = 8.0) -> tuple[Figure, np.ndarray]:
    """A figure of two Axes for `picture_row`, one below the other.

    Choice: placed by hand, since all sizes are known; a layout engine would measure every text twice.

    Parameters
    ----------
    title : str
    n : int
        Square images per row.
    lines : int
        Lines of text above each image.
    width : float
        Inches.

    Returns
    -------
    tuple of Figure, and array of two Axes
    """
    import matplotlib.pyplot as plt

    left, above, text = 0.52, 0.3, 0.1 + 0.16 * lines
    side = (width - left) / (n + (n - 1) / 20)
    height = above + 2 * (text + side)
    places = {"left": left / width, "right": 1.0, "bottom": 0.0, "top": 1 - (above + text) / height}
    places["hspace"] = text / side
    figure, axes = plt.subplots(2, 1, figsize=(width, height), layout="none", gridspec_kw=places)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure, axes


def name_rows(ax: Axes, names: Sequence[str], xlabel: str) -> None:
    """Name the rows of a figure at heights 0, 1, ..., the first on top, with grid lines along x alone."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")


def bar_lengths(value: pd.Series, table: pd.DataFrame) -> np.ndarray:
    """Lengths (2, n) of the error bars from values to a table's ``low, high``."""
    import numpy as np

    return np.clip([value - table["low"], table["high"] - value], 0, None)


def spread_dots(n: int, reach: float) -> np.ndarray:
    """Offsets (n,) within `reach` for dots of one row: by the golden angle, so that neighbours never overlap."""
    import numpy as np

    return reach * np.cos(np.arange(n) * 2.4)


def tiles(images: Sequence[np.ndarray], n_columns: int, gap: int) -> np.ndarray:
    """Images (n, H, W) uint8 in reading order as one picture, (rows, columns) uint8, with white gaps between."""
    from skimage.util import montage

    shape = (-(-len(images) // n_columns), n_columns)
    return montage(images, fill=255, padding_width=gap, grid_shape=shape)[gap:-gap, gap:-gap]


def mark_simulated(figure: Figure, run: Run) -> Text | None:
    """Write "simulated cohort" into the corner of a figure, laid out or not, of simulated patients; else None."""
    if not run.is_simulated:
        return None
    look = {"ha": "right", "fontsize": 9, "style": "italic", "color": "#8C2D04"}
    if figure.get_supxlabel() or figure.get_layout_engine() is None:
        return figure.text(0.99, -0.01, SIMULATED, va="top", **look)  # below all else; a tight box keeps it
    return figure.supxlabel(SIMULATED, x=0.99, **look)  # the layout engine makes room for it
