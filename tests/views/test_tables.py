"""Tables for readers: words, digits, intervals in one cell, groups, sentences for nothing; and claims in words."""

import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown

from nafld_utils import views

SCORES = pd.DataFrame(
    {
        "backbone": "lite0",
        "arm": ["real", "gan", "gan"],
        "rate": [0, 0.5, 1],
        "auc": [0.86123, 0.9, np.nan],
        "low": [0.7512, 0.8, np.nan],
        "high": [0.9549, 0.99, np.nan],
        "n_patients": pd.array([40, 40, pd.NA], dtype="Int64"),
        "done": [True, False, True],
    }
)


def test_numbers_and_their_interval_are_one_cell_in_three_digits_under_words():
    shown = views.table(SCORES, "AUC", "auc|low|high n_patients done absent", "backbone arm rate", {"gan": "GAN"})
    assert shown.data.to_dict("list") == {
        "AUC [95 %]": ["0.861 [0.751, 0.955]".replace(", ", ",\u00a0"), "0.9 [0.8,\u00a00.99]", "–"],
        "patients": ["40", "40", "–"],
        "done": ["yes", "no", "yes"],
    }
    assert shown.data.index.tolist() == [("real", "0"), ("GAN", "0.5"), ("GAN", "1")]
    assert [*shown.data.index.names] == ["images mixed in", "mixing rate"]


def test_what_all_rows_share_stands_in_the_caption_and_a_group_once():
    page = views.table(SCORES, "AUC <of> arms", "auc", "backbone arm rate")._repr_html_()
    assert "<caption>AUC &lt;of&gt; arms; network: lite0</caption>" in page
    assert page.count("GAN") == 1
    assert 'rowspan="2"' in page
    assert page.count("<tr>") == 1 + len(SCORES), "names of rows stand in the line of the columns' names"
    assert ">0</th>" in page, "no row numbers but the rate"


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "a|b", "two words"])
def test_names_of_users_are_text(hostile):
    table = pd.DataFrame({hostile: [1, 2], "name": [hostile, "b"]})
    page = views.table(table, hostile, words={"b": hostile})._repr_html_()
    assert "<script>" not in page
    assert len(views.table(table, "x").data.columns) == 1, "no column is lost"


def test_the_same_table_has_the_same_bytes_and_another_another_name():
    one, two = (views.table(SCORES, "AUC", "auc")._repr_html_() for _ in range(2))
    assert one == two
    assert one.split("#T_")[1][:6] not in views.table(SCORES.iloc[:2], "AUC", "auc")._repr_html_()


def test_a_table_of_nothing_is_a_sentence():
    shown = views.table(SCORES.iloc[:0], "AUC", none="All are done.")
    assert isinstance(shown, Markdown)
    assert shown.data == "All are done."


def test_an_index_names_the_rows_and_heads_of_two_levels_are_joined():
    wide = SCORES.pivot_table(index="arm", columns="rate", values=["auc", "low"])
    shown = views.table(wide, "x").data
    assert [*shown.columns] == ["AUC, 0.0", "AUC, 0.5", "low, 0.0", "low, 0.5"]
    assert shown.index.tolist() == ["GAN", "real"]


def test_claims_are_told_in_words():
    row = {
        "claim": "loss",
        "this_run": 0.5759,
        "unit": "ratio",
        "low": 0.5573,
        "high": 0.5951,
        "over": "folds",
        "key": "a.b",
    }
    alone = row | {"low": None, "high": None, "over": "", "key": "a.c", "unit": ""}
    assert (
        views.told([row, alone, row | {"key": "b"}], "a.")
        == "Loss: 0.576 ratio [0.557, 0.595] over folds.\nLoss: 0.576."
    )


def test_two_columns_with_one_heading_are_both_shown():
    found = pd.DataFrame({"set": ["gan", "class"], "n_images": [7, 8], "images": [1, 2]})
    shown = views.table(found, "x", rows="set").data
    assert shown.index.tolist() == ["GAN", "class"], "the name of a row is not lost to a column of the same heading"
    assert shown.to_dict("list") == {"images (n_images)": ["7", "8"], "images (images)": ["1", "2"]}


def test_stored_names_are_told_in_words_and_a_unit_once():
    row = {
        "claim": "copies, gan images",
        "this_run": 3,
        "unit": "images",
        "low": None,
        "high": None,
        "over": "",
        "key": "a",
    }
    assert views.told([row], "a") == "Copies, GAN images: 3."
    assert views.named("upper / lower half, folds") == "brightness ratio, upper to lower half of the image, folds"
    kept = "organ, gan.enabled, artifacts/demo/gan/fold0"
    assert views.named(kept) == kept, "whole words alone, no key and no path"
    assert (views.unit_beside("generation", "ratio"), views.unit_beside("Copies", "copies")) == ("ratio", "")
