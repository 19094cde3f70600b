"""One look for every figure, whatever the user's own matplotlib settings are."""

import itertools
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nafld_utils import engine, views

OWN = {  # what people who write papers, or work in the dark, have in their matplotlibrc
    "tex": {"text.usetex": True, "font.family": "serif"},
    "dark": {"figure.facecolor": "black", "axes.facecolor": "black", "text.color": "white", "axes.labelcolor": "white"},
    "upside down": {"image.origin": "lower", "image.aspect": "auto", "image.lut": 4},
    "layout": {"figure.autolayout": True, "savefig.bbox": "tight", "lines.marker": "o", "axes.xmargin": 0.4},
}


def drawn():
    """(H, W, 4) uint8: a picture, a line and a legend in the study's style."""
    figure = Figure(dpi=50)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    views.picture(left, np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, "A picture")
    right.plot([0, 1, 2], [1, 0, 3], label="a line")
    right.set(xlabel="x (mm)", title="A curve")
    right.legend()
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_the_users_own_settings_change_no_figure(own):
    with views.style():
        plain = drawn()
    with mpl.rc_context(own):
        before = {name: mpl.rcParams[name] for name in own}
        with views.style():
            assert np.array_equal(drawn(), plain)
        assert {name: mpl.rcParams[name] for name in own} == before, "they are the user's again"


def test_what_a_caller_adds_is_in_force_and_a_plain_call_stays():
    with mpl.rc_context():
        views.style({"font.size": 12})
        assert mpl.rcParams["font.size"] == 12
        assert mpl.rcParams["axes.grid"]


IN_A_NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.backends.backend_agg import FigureCanvasAgg
drawn, draw = [], FigureCanvasAgg.draw
FigureCanvasAgg.draw = lambda canvas: drawn.append(canvas) or draw(canvas)
shell = InteractiveShell.instance()
shell.run_cell("import matplotlib.pyplot as plt; from nafld_utils import views; " + sys.argv[1])
shell.run_cell("plt.subplots(figsize=(1, 1)); plt.plot(range(%s), 'o');" % sys.argv[2])
print(len(drawn))
"""


def test_a_figure_in_a_notebook_is_drawn_once():
    """Pyplot draws it three times: once by itself, once for its extent, once for its picture; the pixels beside its
    vectors are for readers of a report alone. So are those in place of vectors that weigh more than a page takes."""
    times = []
    style = "views.style();"
    for styled, report, dots in (("", "yes", 1), (style, "yes", 1), (style, "", 1), (style, "", 5000)):
        shown = subprocess.run(
            [sys.executable, "-c", IN_A_NOTEBOOK, styled, str(dots)],
            env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", engine.PROGRESS_FILE: report},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        assert any("<Figure size" in line for line in shown)
        times.append(int(shown[-2]))
    assert times == [3, 1, 0, 0]


@pytest.mark.parametrize(("n", "lines", "width"), [(4, 1, 8.0), (4, 2, 8.0), (6, 2, 10.0)])
def test_rows_of_pictures_fill_their_figure_with_room_for_all_text(n, lines, width):
    fig, axes = views.picture_rows("a title", n, lines, width)
    for ax in axes:
        views.picture_row(ax, [np.zeros((40, 40), np.uint8)] * n, ["\n".join(["text"] * lines)] * n)
        ax.set_ylabel("two\nlines")
    fig.canvas.draw()
    boxes = [fig._suptitle.get_window_extent(), *(ax.get_tightbbox() for ax in axes)]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes)), "nothing lies over another"
    assert min(box.x0 for box in boxes) >= 0
    shown = [ax.images[0].get_window_extent() for ax in axes]
    assert all(box.width > 0.9 * fig.bbox.width for box in shown)
    plt.close(fig)


def test_a_row_of_pictures_is_one_with_text_above_the_middle_of_each():
    images = [np.full((40, 40), grey, np.uint8) for grey in (10, 20, 30)]
    row, none = Figure().subplots(2)
    views.picture_row(row, images, "abc")
    views.picture_row(none, [], [])
    shown = row.images[0].get_array()
    assert shown.shape == (40, 3 * 40 + 2 * 2), "gaps of a twentieth of the width"
    assert [shown[0, round(text.xy[0])] for text in row.texts] == [10, 20, 30]
    assert [text.get_text() for text in row.texts] == ["a", "b", "c"]
    assert [text.xy[0] for text in row.texts] == [20, 62, 104]
    assert (shown[:, 40:42] == 255).all()
    assert not none.images
