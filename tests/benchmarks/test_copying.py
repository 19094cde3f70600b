"""The study of copying by numbers of patients: what it says of a table, and what its stored table shows."""

import copying
import pandas as pd
import pytest

from nafld_utils.ldm import over_training_units
from nafld_utils.ldm.figures import LEVEL


def table(shares, p, patients=4):
    rows = pd.DataFrame({"passes": [100.0, 200.0], "share": shares, "p": p, "nominal": 0.4})
    return rows.assign(patients=patients, step=rows["passes"])


def test_it_says_between_which_passes_copies_are_first_found():
    assert copying.told(table([0.1, 0.7], [0.9, 0.01])) == (
        "copies exceed the nominal rate within passes 100 to 200: 10, 70 % (nominal 40.0 %)"
    )
    assert copying.told(table([0.7, 0.8], [0.01, 0.01])).startswith(
        "copies exceed the nominal rate within passes 0 to 100"
    )
    assert copying.told(table([0.1, 0.2], [0.9, 0.9])).startswith("copies never exceed the nominal rate")


def test_what_breaks_it():
    few, many = table([0.1, 0.7], [0.9, 0.01]), table([0.0, 0.1], [1.0, 0.9], 80)
    assert copying.broken({4: few}) == copying.broken({4: few, 80: many}) == {}
    assert "expected copies that exceed the nominal rate" in copying.broken({80: many})["broken"]
    assert copying.broken({4: few, 80: few})["broken"] == "80 patients: expected fewer copies than with 4."


def test_its_figure_says_what_it_is(tmp_path):
    copying.draw(pd.concat([table([0.1, 0.7], [0.9, 0.01]), table([0.0, 0.1], [1.0, 0.9], 80)]), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in ("Simulated patients", "4 patients (nominal 40 %)", "80 patients", "passes over the training images"):
        assert words in text
    assert len(text) < 100_000


def test_the_stored_study_shows_a_model_of_four_patients_copying_and_one_of_eighty_copying_less():
    """The step is bracketed: not told at the checkpoint before, told at that one; the test is that of the counts."""
    stored = pd.read_csv(copying.STORED)
    assert tuple(stored["patients"].unique()) == copying.SIZES
    for row in stored.itertuples():
        assert row.p == pytest.approx(over_training_units.at_least(row.copies, row.n, row.nominal))
        assert 1 / (row.patients + 1) <= row.nominal < 0.5, "one patient more than are found counts as called a copy"
    few, many = (stored[stored["patients"] == n].reset_index() for n in (4, 80))
    first = over_training_units.begins(few)
    assert first > 0
    assert few["p"][first] < LEVEL <= few["p"][first - 1]
    assert few["passes"].tolist() == pytest.approx(many["passes"].tolist(), rel=0.05)
    assert many["share"].iloc[-1] < few["share"].iloc[-1]
