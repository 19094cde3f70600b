"""Who is one patient by name: one name in two writings, a spreadsheet's rounding, files as patients, joins."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nafld_utils import artifacts, cohort, params, pipeline
from nafld_utils.cohort import one_person
from nafld_utils.preprocessing import folds

NAMES = ("benign", "malignant")


def folder(path, names, n_frames=2, **columns):
    """Frames of patients; `names` has one list of names per frame."""
    path.mkdir()
    rows = []
    for place in range(len(names[0]) * n_frames):
        person, frame = divmod(place, n_frames)
        grey = np.random.default_rng(place).integers(0, 256, (24, 30), dtype=np.uint8)
        Image.fromarray(grey).save(path / f"{person}_{frame}.png")
        name = names[frame % len(names)][person]
        rows.append({"image": f"{person}_{frame}.png", "patient": name, "label": NAMES[person % 2]})
    pd.DataFrame(rows).assign(**columns).to_csv(path / "images.csv", index=False)
    return path


def wrong(path, **people):
    with pytest.raises(cohort.CohortError) as caught:
        cohort.load(path, NAMES, people=tuple(people.values()) or ("stop", None))
    return caught.value.problems


PLAIN = [f"Pät {p:02d}" for p in range(10)]
WRITINGS = {
    "Unicode form": (PLAIN, [unicodedata.normalize("NFD", name) for name in PLAIN]),
    "invisible characters": (PLAIN, [f"{name}\u200b" for name in PLAIN]),
    "blanks": (PLAIN, [name.replace(" ", "\u00a0") for name in PLAIN]),
    "case": ([f"P{p:02d}" for p in range(10)], [f"p{p:02d}" for p in range(10)]),
    ".0 behind a number": (range(1, 11), [f"{p}.0" for p in range(1, 11)]),
    "leading zeros": ([f"{p:03d}" for p in range(1, 11)], range(1, 11)),
    "dashes or quotes": ([f"A-{p}" for p in range(10)], [f"A\u2013{p}" for p in range(10)]),
    "the alphabet of a letter": ([f"P{p}" for p in range(10)], [f"\u0420{p}" for p in range(10)]),
    "the script of a digit": (
        range(1, 11),
        [chr(0x0660 + p // 10) * (p > 9) + chr(0x0660 + p % 10) for p in range(1, 11)],
    ),
    "blanks or punctuation": ([f"A-{p}" for p in range(10)], [f"A_{p}" for p in range(10)]),
    "the order of words": ([f"Doe Jo{p}" for p in "abcdefghij"], [f"Jo{p} Doe" for p in "abcdefghij"]),
    "the order of words and blanks or punctuation": (
        [f"Doe, Jo{p}" for p in "abcdefghij"],
        [f"Jo{p} Doe" for p in "abcdefghij"],
    ),
    "accents": ([f"Müller{p}" for p in range(10)], [f"Mueller{p}" for p in range(10)]),
    "the form of a date": (
        [f"D 1970-02-{p:02d}" for p in range(10, 20)],
        [f"D {p:02d}.02.1970" for p in range(10, 20)],
    ),
    "marks between thousands": (range(1000, 1010), [f"{p:,}" for p in range(1000, 1010)]),
}


@pytest.mark.parametrize("what", WRITINGS)
def test_ten_persons_written_in_two_ways_are_listed_with_both_rows(tmp_path, what):
    problems = wrong(folder(tmp_path / "a", [list(map(str, names)) for names in WRITINGS[what]]))
    assert [problem.row for problem in problems] == list(range(3, 23, 2)), "the second row of each person"
    for place, problem in enumerate(problems):
        assert f"in row {2 + 2 * place}, which differ by {what}; correct the table, or give" in problem.text
        assert 'SET="cohort.alike_names=same" or SET="cohort.alike_names=different"' in problem.text


@pytest.mark.parametrize("other", ["Pät  03", "\u2009Pät 03", "pÄT03", "Pät\t03", " Pät 3 ", "ＰÄT 03", '"Pät 03"'])
def test_more_ways_to_write_one_name(other):
    assert one_person.alike(["Pät 03", other])[other] == "Pät 03"


@pytest.mark.parametrize(
    "names",
    [
        ("P1", "P11"),
        ("P10", "P1"),
        ("1 1", "11"),
        ("0", "00x"),
        ("1.1", "1.10"),
        ("A1", "B1"),
        ("7", "70"),
        ("P1a", "P1b"),
        ("1-2", "12"),
        ("1-2", "2-1"),
        ("P-1", "P11"),
        ("P1-1", "P11"),
        ("site-1 ward-2", "ward-1 site-2"),
        ("A-B", "B-A"),
        ("J. D.", "D. J."),
        ("Jo Doe 1", "Doe Jo 2"),
        ("D 2020-01-05", "D 2020-05-01"),
        ("20201301", "2020-13-01"),
        ("कि", "का"),
    ],
)
def test_names_of_two_persons_stay_two(names):
    assert len(set(one_person.alike(names).values())) == 2


def test_same_makes_one_patient_of_them_and_different_two(tmp_path):
    path = folder(tmp_path / "a", WRITINGS["case"])
    same = cohort.load(path, NAMES, people=("same", None))
    assert len(same.patients) == 10
    assert "20 names were joined to 10 patients as cohort.alike_names same say" in same.provenance["text"]
    assert same.sources["patient"].tolist()[:2] == ["P00", "p00"], "as written"
    fold = folds.make_folds(same.patients, 5, 0)
    sides = same.images.merge(fold, on="patient_id").groupby(same.sources["file"].str.split("_").str[0].to_numpy())
    assert (sides["fold"].max() == sides["fold"].min()).all(), "no person is on both sides"
    assert len(cohort.load(path, NAMES, people=("different", None)).patients) == 20


def test_given_folds_are_asked_too(tmp_path):
    path = folder(tmp_path / "a", WRITINGS["case"], fold=[0, 1] * 10)
    assert len([p for p in wrong(path) if "differ by case" in p.text]) == 10
    assert any("expected one fold per patient" in p.text for p in wrong(path, alike="same", join=None))


def test_rounded_numbers_are_problems_by_row(tmp_path):
    true = [123456789012, 123456789013, 987654321098, 987654321099]
    names = [f"{true[i]:.5E}" for i in (0, 2)]
    problems = wrong(folder(tmp_path / "a", [names]))
    assert [problem.row for problem in problems] == [2, 4]
    assert "found 1.23457E+11, a number that a spreadsheet has rounded" in problems[0].text
    assert "format the column as text" in problems[0].text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P7.", "P7"),
        ("P 7", "P_7"),
        ("1\u00a0234", "1234"),
        ("\u0432\u0037", "B7"),  # a small letter whose capital looks like B
        ("site 1 \u200b12", "site 1 12"),
        ("john_doe", "John Doe"),
        ("DOE^JOHN", "John Doe"),
        ("van der Berg, Jo 3", "Jo van der Berg 3"),
        ("Jose", "José"),
        ("Soren Muller", "Müller, Søren"),
        ("Groß", "Gross"),
        ("Işık", "ISIK"),
        ("MacDonald", "Mac Donald"),
        ("JohnDoe", "John Doe"),
        ("P_19700105", "P 1970-01-05"),
        ("P 1/31/1970", "P 31.1.1970"),
        ("P#7", "P(7)"),
        *((f"P7{unseen}", "P7") for unseen in "\u2800\u3164\u034f\ufe0f\u180e\u061c\u2069"),
    ],
)
def test_marks_letters_and_what_nobody_sees(one, other):
    assert one_person.alike([other, one])[one] == other


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["4.711E+07", "47110012", "8"], ["4.711E+07"]),
        (["4.711E+7", "47110012", "8"], ["4.711E+7"]),
        (["1.23457E11", "123456789012", "8"], ["1.23457E11"]),
        (["123.457E+9", "123456789012", "8"], ["123.457E+9"]),
        (["1.23457E+1", "4E+0", "7.0e0", "123456789012"], []),  # with nothing less than the whole number
        (["4,7E+07", "47000001", "8"], ["4,7E+07"]),  # 4.70000E+07, as a spreadsheet shows it
        (["1234567890123450000", "1234567890123456789"], ["1234567890123450000"]),
        (["12345678901234568.0", "8"], ["12345678901234568.0"]),
        ([str(10**15 + place) for place in range(40)], []),  # numbers in a row: four of 40 end in 0
        (["1E5", "A1E+7", "47110000", "1234567890123450"], []),
    ],
)
def test_what_a_spreadsheet_has_rounded(names, found):
    assert one_person.rounded(names) == found
    assert len(set(one_person.alike(names).values())) == len(names), "a rounded number connects nobody"
    if found and found[0] != "12345678901234568.0":
        assert one_person.may_be(names, found) == {names[0]: [names[1]]}, "whose number it may be"


def test_whole_numbers_that_are_all_64_bit_numbers_were_rounded():
    true = [123456789012345601 + 137 * place for place in range(20)]
    became = [str(int(float(number))) for number in true]
    assert one_person.rounded(map(str, true)) == []
    assert set(one_person.rounded(became)) == set(became)
    assert one_person.rounded(became[:1]) == [], "one of 16 numbers is one by chance"


@pytest.mark.parametrize("answer", ["same", "different"])
def test_no_setting_silences_a_rounded_number(tmp_path, answer):
    names = ["47110001", "47110002", "4.711E+07", "8"]
    (problem,) = wrong(folder(tmp_path / "a", [names]), alike=answer, join=None)
    assert problem.row == 6
    assert "which may be 47110001 in row 2 or 47110002 in row 4; format the column as text" in problem.text
    assert len(set(one_person.alike(names).values())) == 4


def test_a_join_of_some_names_does_not_hide_others_that_look_alike(tmp_path):
    """Ten persons under three names each, two of which differ by case; the join knows one pair of each."""
    three = [[f"V{p:02d}" for p in range(10)], [f"P{p:02d}" for p in range(10)], [f"p{p:02d}" for p in range(10)]]
    path, join = folder(tmp_path / "a", three, n_frames=3), tmp_path / "join.csv"
    pd.DataFrame({"patient": three[0], "same_as": three[1]}).to_csv(join, index=False)
    problems = wrong(path, alike="stop", join=str(join))
    assert [problem.row for problem in problems] == list(range(4, 34, 3)), "the third name of each person"
    same = cohort.load(path, NAMES, people=("same", str(join)))
    assert same.images.groupby("patient_id").size().tolist() == [3] * 10
    pd.DataFrame({"patient": three[1], "same_as": three[2]}).to_csv(join, index=False)
    assert len(cohort.load(path, NAMES, people=("stop", str(join))).patients) == 20, "a join answers for its pair"


def test_a_table_joins_patients_before_anything_is_split(tmp_path):
    path = folder(tmp_path / "a", [[f"P{p}" for p in range(6)]])
    pd.DataFrame({"patient": ["P0", "P4"], "same_as": ["P2", "P2"], "r": 1}).to_csv(tmp_path / "join.csv", index=False)
    found = cohort.load(path, NAMES, people=("stop", str(tmp_path / "join.csv")))
    assert found.images.groupby("patient_id").size().tolist() == [6, 2, 2, 2]
    assert found.sources["patient"].tolist()[:6:2] == ["P0", "P2", "P4"]
    assert "6 names were joined to 4 patients as cohort.join say" in found.provenance["text"]
    (tmp_path / "join.csv").write_text("patient,same_as\nP0,P9\nP0,P1\n")
    texts = [problem.text for problem in wrong(path, alike="stop", join=str(tmp_path / "join.csv"))]
    assert any("row 2: expected patients of this table, found P9" in text for text in texts)
    assert [text for text in texts if "one label per patient, found malignant here and benign in row 2" in text], texts
    (tmp_path / "join.csv").write_text("patient,person\nP0,P2\n")
    with pytest.raises(cohort.CohortError, match=r"columns patient and same_as of cohort\.join, found patient, p"):
        cohort.load(path, NAMES, people=("stop", str(tmp_path / "join.csv")))


def test_patients_of_a_mat_file_are_joined(tmp_path):
    made = cohort.simulate(4, 1)
    path = cohort.write_mat(tmp_path / "a.mat", made)
    one, other = made.patients.loc[made.patients["label"] == made.patients["label"].mode()[0], "patient_id"].iloc[:2]
    grade = made.patients.set_index("patient_id")["grade"]
    (tmp_path / "join.csv").write_text(f"patient,same_as\n{other},{one}\n")
    if grade[one] != grade[other]:
        with pytest.raises(cohort.CohortError, match="expected one grade per person, found 2 of patient"):
            cohort.load(path, people=("stop", str(tmp_path / "join.csv")))
    made.patients["grade"] = grade.where(grade.index != other, grade[one]).to_numpy()
    path = cohort.write_mat(tmp_path / "b.mat", made)
    found = cohort.load(path, people=("stop", str(tmp_path / "join.csv")))
    assert found.images.groupby("patient_id").size().tolist().count(20) == 1
    rows = np.flatnonzero(found.images["patient_id"] == one)
    was = np.flatnonzero(made.images["patient_id"].isin([one, other]))
    assert (found.pixels[rows] == made.pixels[was]).all()
    assert "4 patients were joined to 3, as cohort.join says." in found.provenance["text"]


def test_the_settings_enter_the_hash_only_where_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    path = folder(tmp_path / "a", [[f"P{p}" for p in range(8)]])
    (tmp_path / "join.csv").write_text("patient,same_as\nP0,P2\n")
    chosen = {"cohort.source": "file", "cohort.path": str(path), "cohort.class_names": list(NAMES)}
    plain = cohort.cohort_unit(artifacts.open_run("smoke", chosen))
    assert set(plain.recipe["settings"]) == {"frames_per_patient", "fat_threshold", "classes"}
    assert "patient_names" not in plain.recipe["revisions"]
    run = artifacts.open_run("smoke", chosen | {"cohort.join": str(tmp_path / "join.csv")})
    joined = cohort.cohort_unit(run)
    (tmp_path / "join.csv").write_text("patient,same_as\nP1,P3\n")
    other = cohort.cohort_unit(artifacts.open_run("smoke", chosen | {"cohort.join": str(tmp_path / "join.csv")}))
    assert len({plain.hash, joined.hash, other.hash}) == 3
    pipeline.start_checks.check_folder(run)
    (tmp_path / "join.csv").write_text("patient,same_as\nP1,P2\n")
    with pytest.raises(cohort.CohortError, match="expected one label per patient"):
        pipeline.start_checks.check_folder(run)
    assert params.load("paper").cohort.alike_names == "stop"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0_0", "1_0.png", "2_0", "3_0", "4_0"], "Warning: 5 of 5 images are a patient of their own, named as their"),
        (["A", "B", "C", "D", "E"], "; every image is its own patient; if a person has several images, name the"),
    ],
)
def test_files_as_patients_are_noticed_and_said(tmp_path, names, said):
    assert said in cohort.load(folder(tmp_path / "a", [names], n_frames=1), NAMES).provenance["text"]


def test_one_image_that_is_used_of_several_is_not_taken_for_all(tmp_path):
    found = cohort.load(folder(tmp_path / "a", [list("ABCDE")]), NAMES, keep=1)
    assert "patient;" not in found.provenance["text"]
    assert len(found.images) == 5


@pytest.mark.parametrize("word", ["NA", "n/a", "NaN", "None", "null", "Unknown", "?", "-"])
def test_words_for_nothing_are_no_patient_and_no_grade(tmp_path, word):
    problems = wrong(folder(tmp_path / "a", [["P0", "P1", word, word, "P4", "P5"]]))
    assert [problem.row for problem in problems] == [6], "named once, and not one patient of two labels"
    assert f"found {word} in 4 rows, the first of which is this, which stands for nothing" in problems[0].text
    found = cohort.load(folder(tmp_path / "b", [["P0", "P1", "P2"]], grade=[word, word, 1, 1, 2, 2]), NAMES)
    assert found.patients["grade"].isna().tolist() == [True, False, False]
