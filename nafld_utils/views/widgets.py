"""What notebooks show beside their figures in JupyterLab: controls, and a picture that follows them.

Contract of every room's ``explorer``: an explorer takes what a stage has stored and returns a widget; it computes no
statistic, writes nothing, and draws with the functions of `nafld_utils.views.figure_style` that draw its static
twin. A headless run gets one line of text instead, so that no executed report holds a widget without its kernel.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import engine
from nafld_utils.artifacts import Run
from nafld_utils.views import figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLESS = "*In JupyterLab this cell is an explorer; below it stands its static twin.*"
DPI = 110


def on_page() -> bool:
    """Whether this notebook runs for a page, on which static twins stand for the explorers of JupyterLab."""
    return engine.is_headless()


def interactive(build: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an explorer: in a headless run it gives `HEADLESS` as text and builds no widget."""

    @functools.wraps(build)
    def built(*arguments: Any, **options: Any) -> Any:
        if on_page():
            from IPython.display import Markdown

            return Markdown(HEADLESS)
        return build(*arguments, **options)

    return built


def labelled(kind: Any, name: str, **options: Any) -> Any:
    """A control whose name is shown whole, as wide as it needs; a slider's track has a fixed length beside its name.

    `kind` is the widget's class, e.g. ``ipywidgets.Dropdown``; options are handed to it.
    """
    width = f"{280 + 7 * len(name)}px" if "Slider" in kind.__name__ else "auto"
    layout = {"width": width, "max_width": "100%"}
    return kind(description=name, style={"description_width": "initial"}, layout=layout, **options)


def row(controls: Sequence[Any]) -> Any:
    """Controls side by side, on further lines where the window is narrow."""
    import ipywidgets as widgets

    return widgets.HBox(list(controls), layout={"flex_flow": "row wrap", "grid_gap": "4px 16px"})


def text(words: str, run: Run) -> str:
    """A line for a ``widgets.HTML``, escaped, since names come from the user's cohort; says what is simulated."""
    return html.escape(f"{figure_style.SIMULATED}: {words}" if run.is_simulated else words)


def image(content: bytes, alt: str, width: int | None = None) -> str:
    """A PNG for a ``widgets.HTML``, with its alternative text and, where given, a width in CSS pixels."""
    data = base64.b64encode(content).decode()
    wide = f"width:{width}px;" if width else ""
    look = f"{wide}max-width:100%;height:auto"
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}" style="{look}">'


def grey_png(pixels: np.ndarray) -> bytes:
    """A grey image (H, W) uint8 as PNG, pixel for pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def draw_png(run: Run, width: float, height: float, draw: Callable[[Figure], Any]) -> bytes:
    """A figure of `width` x `height` inches as PNG, drawn by a function of it, marked where the cohort is simulated.

    pyplot keeps no trace of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure_style.mark_simulated(figure, run)
    return figure_style.printed(figure, figure_style.laid_out(figure))


def watch(controls: Sequence[Any], show: Callable[[Any], None]) -> None:
    """Call `show` when a control changes, and once now."""
    for control in controls:
        control.observe(show, "value")
    show(None)


def narrow(control: Any, options: Sequence[Any]) -> None:
    """Give a Dropdown other options and keep its value where it is still among them."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    before = control.value
    control.options = list(options)
    control.value = before if before in values else values[0]
