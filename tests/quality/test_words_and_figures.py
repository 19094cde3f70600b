"""Stage 05 in words and figures: where a model stands, and bars whose long intervals are cut and named."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nafld_utils.quality import figures, metric_units


def place(model, group, ceiling="repeated_image", difference=(3447.1, -127.3, 7021.5), below=False, lowest=1541.9):
    row = {"model": model, "class": group, "mean": 4989.0, "floor": 1372.8, "lowest_ceiling": lowest}
    row |= {"ceiling": "repeated_image", "beyond": ceiling, "below_every_ceiling": below}
    return row | dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, "ceiling 1542 (one real image, repeated); farther than that ceiling, by 3447 [-127, 7022] (95 % over"),
        ({"ceiling": "noise", "difference": (-89.0, -148.0, -29.0)},
         "; nearer than the ceiling that it is least clear of (noise): -89 [-148, -29] (95 % over folds)."),
        ({"difference": (3447.1, np.nan, np.nan)}, "by 3447 (one fold, no interval)."),
        ({"lowest": 1000.0}, "That ceiling is no farther than the floor, so this cohort is too small to tell."),
    ],
)  # fmt: skip
def test_where_a_model_stands_is_said_in_whole_numbers_and_words(facts, says):
    rows = [place("semantic", group, **facts) for group in ("healthy", "fatty", "both")]
    (line,) = metric_units.reading(pd.DataFrame(rows), ["healthy", "fatty"])
    assert line.startswith(
        "semantic LDM: for no class shown to lie below every ceiling. Both classes, mean of the folds: 4989, floor 1373"
    )
    assert says in line
    assert "repeated_image" not in line


def test_the_classes_below_every_ceiling_are_named():
    rows = [place("class", group, below=group != "both") for group in ("healthy", "fatty", "both")]
    (line,) = metric_units.reading(pd.DataFrame(rows), ["healthy", "fatty"])
    assert line.startswith("class LDM: shown to lie below every ceiling for healthy and fatty, not for both. ")


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_a_long_interval_is_cut_with_an_arrow_and_its_true_end(ax):
    table = pd.DataFrame(
        {"model": ["real_training", "semantic", "class"], "role": ["floor", "model", "model"],
         "mean": [2.0, 3.0, 1.5], "low": [1.8, 2.5, 1.1], "high": [2.2, 3.5, 45_000.0]}
    )  # fmt: skip
    figures.bars(table, ax)
    assert figures.reach(table) == 6.0  # twice the largest mean
    assert ax.get_xlim()[1] == pytest.approx(1.3 * 6.0)
    texts = [text.get_text().strip() for text in ax.texts]
    assert sorted(texts) == ["1.5", "2", "3", "to 45000"]
    arrows = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == ">"]
    assert arrows == [6.0]
    assert figures.reach(table.assign(high=3.5)) == 3.5  # no interval is cut
    assert figures.unbounded(table) == ""
    assert "too few for an interval" in figures.unbounded(table.assign(low=np.nan))


def test_numbers_beside_bars_have_their_room_inside_the_axes_which_no_layout_makes_for_them():
    fig, axes = plt.subplots(1, 3, figsize=(10, 3))
    table = pd.DataFrame({"model": ["semantic", "class"], "role": "model", "mean": [80.0, 1234.0]})
    for ax, low in zip(axes, (70.0, -1200.0, -2400.0), strict=True):
        figures.bars(table.assign(low=low, high=2400.0), ax)
    fig.draw_without_rendering()
    for ax in axes:
        assert all(text.get_window_extent().x1 <= ax.bbox.x1 for text in ax.texts)
        assert not any(text.get_in_layout() for text in ax.texts)
    plt.close(fig)


def test_a_panel_without_one_of_the_sets_that_panels_share_says_so_in_its_place():
    table = pd.DataFrame({"model": ["semantic", "class", "noise"], "role": ["model", "model", "ceiling"], "mean": 2.0})
    table = table.assign(low=1.0, high=3.0)
    fig, axes = plt.subplots(1, 3, sharey=True)
    for ax, missing in zip(axes, ([1], [0, 1, 2], []), strict=True):
        figures.bars(table.assign(mean=table["mean"].mask(table.index.isin(missing))), ax)
    places = dict(zip([text.get_text() for text in axes[0].get_yticklabels()], axes[0].get_yticks(), strict=True))
    assert places == {"semantic LDM": 2, "class LDM": 1, "noise": 0}
    assert axes[0].get_ylim() == (-0.6, 2.6), "all of them are in view, whatever is drawn"
    assert [patch.get_y() + patch.get_height() / 2 for patch in axes[0].patches] == pytest.approx([2, 0])
    said = [[text.get_position()[1] for text in ax.texts if "too few" in text.get_text()] for ax in axes]
    assert said == [[1], [2, 1, 0], []]
    plt.close(fig)


def test_a_generator_that_is_not_trained_enough_is_hatched_and_says_so(ax):
    names, roles = ["real_training", "gan", "semantic", "noise"], ["floor", "baseline", "model", "ceiling"]
    table = pd.DataFrame({"model": names, "role": roles, "mean": [2.0, 3.0, 2.5, 9.0], "low": 1.0, "high": 4.0})
    strip = {name: [np.zeros((4, 4), np.uint8)] * 2 for name in ("real", "semantic", "gan")}
    for untrained, label in (([], "GAN"), (["gan"], "GAN: not compared")):
        fig = plt.figure()
        figures.strip_card(strip, table, ("healthy", "fatty"), fig, untrained)
        titles, bars = [one.get_title() for one in fig.axes], fig.axes[-1]
        assert titles[:3] == ["real", "semantic", "GAN"], "the name that the text has"
        row = [text.get_text() for text in bars.get_yticklabels()].index(label)
        assert [bool(patch.get_hatch()) for patch in bars.patches].count(True) == 1 + bool(untrained)
        assert bars.patches[row].get_hatch() == ("xxx" if untrained else None)
        plt.close(fig)


def test_an_empty_panel_of_precision_says_so_and_lines_have_a_name(ax):
    columns = ["model", "role", "metric", "mean", "low", "high"]
    rows = [[name, role, metric, np.nan, np.nan, np.nan] for name, role in (("noise", "ceiling"), ("class", "model"))
            for metric in ("precision", "recall")]  # fmt: skip
    figures.precision_recall(pd.DataFrame(rows, columns=columns), ax)
    assert [text.get_text() for text in ax.texts] == ["too few images"]
    assert "95 % over folds" in ax.get_legend_handles_labels()[1]
    marks = {line.get_label(): line.get_marker() for line in ax.lines}
    assert marks["noise"] == "+"
