"""The table of the simulator's constants: the code reads it, all of it, and each number says where it comes from."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from nafld_utils import phantom
from nafld_utils.phantom import anatomy, fat, provenance, scanner

TABLE = provenance._rows()
WITH_CONSTANTS = ("full", "wide", "no_frames", "literature")


def test_every_constant_is_read_by_the_code(monkeypatch):
    read = {"frame_shape", "n_range", "n_angle", "max_angle", "n_scatterers"}  # when the module is loaded

    class Noted(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    values = provenance._values
    monkeypatch.setattr(provenance, "_values", lambda sets: Noted(values(sets)))
    for feature in (None, *phantom.FEATURES):
        phantom.simulate_patient(1, 0, 40.0, 1, feature)
    fat.draw_fat(1, np.random.default_rng(0))
    assert read == {row["constant"] for row in TABLE}


# Numbers that are no property of a patient or a scanner: sums, grids of points, decibels, guards against zero.
FREE = {0.0, 0.5, 1.5, 2.5, 0.02, 0.98, 1.001, 1e-6, 1e-9}


@pytest.mark.parametrize("module", [anatomy, scanner, fat])
def test_no_constant_hides_in_the_code(module):
    """No decimal number but those above, and no number inside a draw but the grids and shapes of standard noise."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, float)}
    assert found <= FREE
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and re.search(r"rng\.(normal|uniform|gamma|integers)$", ast.unparse(call.func)):
            numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", " ".join(ast.unparse(argument) for argument in call.args))
            assert set(numbers) <= {"0", "1", "2"}, ast.unparse(call)  # standard noise, 2 pi, places in a row


def test_each_row_says_what_it_is_and_lies_over_a_constant_of_the_cohort():
    names = [row["constant"] for row in TABLE if row["set"] == "cohort"]
    assert len(names) == len(set(names))
    assert len({(row["constant"], row["set"]) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row["constant"] in names
        assert row["set"] in ("cohort", "wide", "no_frames", "literature")
        assert row["kind"] in provenance.KINDS
        assert row["source"]
        assert row["drawn"] in ("", "normal", "uniform", "gamma", "integers")
        assert row["value"] or row["kind"] == "computation"
    published = [row["source"] for row in TABLE if row["kind"] == "published"]
    cited = r"doi 10\.|\d{4}, \d+\(\d+\), \d+|physics|RCEM|scanners assume"
    assert [source for source in published if not re.search(cited, source)] == []


def test_variants_use_no_constant_of_a_kind_that_they_exclude():
    kinds = provenance.kinds()
    assert list(kinds.index) == list(WITH_CONSTANTS)
    assert kinds.loc["full", ["frames", "labels"]].min() > 0
    assert kinds.loc["wide", "frames"] < kinds.loc["full", "frames"]
    assert kinds.loc["no_frames", "frames"] == 0
    assert kinds.loc["literature", ["frames", "labels"]].tolist() == [0, 0]
    assert kinds.sum(axis=1).nunique() == 1, "every variant has every constant"


def test_the_table_of_a_variant_has_the_numbers_that_its_patients_are_drawn_from():
    shown = provenance.constants(phantom.VARIANTS["wide"]).set_index("constant")
    assert shown.loc["half_angle", ["set", "drawn"]].tolist() == ["wide", "uniform"]
    assert shown.loc["kidney_tilt", "set"] == "cohort"
    low, high = map(float, shown.loc["half_angle", "value"].split())
    for index in range(3):
        patient = scanner.Patient(8, index, 0.0, None, phantom.VARIANTS["wide"])
        assert low <= patient.sector.half_angle <= high
    assert scanner.Patient(8, 0, 0.0).sector == scanner.COHORT


def test_a_constant_that_is_not_drawn_takes_nothing_from_the_generator():
    rng = np.random.default_rng(0)
    assert provenance.Draws(rng).draw("frequency") == 2.5
    assert rng.random() == np.random.default_rng(0).random()
    drawn = provenance.Draws(np.random.default_rng(0)).draw("kidney_x")
    assert drawn == np.random.default_rng(0).normal(-88, 40)
