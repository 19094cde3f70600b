"""Files that raters send back: read, refused by name with a reason, and put beside the key."""

import json

import numpy as np
import pandas as pd
import pytest

from nafld_utils import turing
from nafld_utils.turing import results_files

N = 6
SET = "0123456789ab"


@pytest.fixture(scope="module")
def items():
    names = [f"t{i:08x}" for i in range(N)]
    kinds = ["real", "class", "real", "semantic", "class", "real"]
    table = pd.DataFrame({"order": range(1, N + 1), "image_id": names, "kind": kinds, "label": [0, 0, 1, 1, 0, 1]})
    return table.assign(is_real=(table["kind"] == "real").astype(int))


def body(items, rater="R1", sitting="a", **changes):
    given = [{"answer": "real", "confidence": None}, {"answer": "synthetic", "confidence": 70}]
    answers = [{"image_id": name, **given[i % 2], "ms": 2500, "visits": 1} for i, name in enumerate(items["image_id"])]
    value = {"schema": "nafld-turing-results", "version": 1, "set_id": SET, "rater": rater, "sitting": sitting * 32}
    value |= {"started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:14:05Z", "language": "en"}
    return value | {"window": "390x740@3", "answers": answers} | changes


def sealed(value, **dumps):
    """A file as the page writes it, checksum and all."""
    return json.dumps(value | {"checksum": results_files.checksum(value)}, **(dumps or {"indent": 1})).encode()


def read(items, **files):
    return results_files.collect({name.replace("_", "."): content for name, content in files.items()}, items, SET)


def test_a_results_file_is_read(items):
    ratings, report = read(items, a_json=sealed(body(items)))
    assert ratings["said_real"].tolist() == [1, 0, 1, 0, 1, 0]
    assert ratings["confidence"].fillna(-1).tolist() == [-1, 70, -1, 70, -1, 70]
    assert ratings["seconds"].eq(2.5).all()
    assert report.iloc[0].tolist() == ["a.json", "R1", "counted", N, 3, 0.2, ""]
    keyed = results_files.attach_key(ratings, items)
    assert keyed["order"].tolist() == list(range(1, N + 1))
    assert len(turing.summarize(keyed)) == 9


def test_blanks_and_a_byte_order_mark_of_a_pasted_copy_do_not_matter(items):
    pasted = b"\xef\xbb\xbf\r\n " + sealed(body(items), indent=4).replace(b"\n", b"\r\n") + b"\r\n\r\n"
    assert len(read(items, pasted_txt=pasted)[0]) == N


def changed(items, index=0, **changes):
    value = body(items)
    value["answers"][index] |= changes
    return value


def without(items, *names):
    return {key: value for key, value in body(items).items() if key not in names}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda i: sealed(body(i)).replace(b'"synthetic"', b'"real"', 1), "found it edited"),
        (lambda i: sealed(body(i)).replace(b'"R1"', b'"R2"'), "found it edited"),
        (lambda i: sealed(body(i))[:-40], "truncated"),
        (lambda i: sealed(body(i))[:200], "truncated"),
        (lambda i: b"", "truncated"),
        (lambda i: b"\xff\xfe{\x00}\x00", "UTF-8"),
        (lambda i: b"[1, 2]", "expected a JSON object, found list"),
        (lambda i: b"[" * 100_000, "nested too deeply|JSON"),
        (lambda i: b" " * (results_files.MAX_BYTES + 1), "at most 1000 kB"),
        (lambda i: b'{"schema": "x"}', "expected a file with schema"),
        (lambda i: sealed(body(i, version=2)), "expected version 1, found 2"),
        (lambda i: sealed(body(i, set_id="another")), "expected answers to set 0123456789ab, found 'another'"),
        (lambda i: sealed(body(i, extra=1)), "field extra"),
        (lambda i: sealed(without(i, "finished")), "field finished"),
        (lambda i: sealed(body(i, finished=None)), "field finished"),
        (lambda i: sealed(body(i, rater="<script>alert(1)</script>")), "field rater"),
        (lambda i: sealed(body(i, rater="=cmd()")), "field rater"),
        (lambda i: sealed(body(i, answers=body(i)["answers"][:-1])), "found 5 from 'R1'"),
        (lambda i: sealed(body(i, answers=2 * body(i)["answers"])), "found a second for 't00000000'"),
        (lambda i: sealed(body(i, answers=[])), "found none"),
        (lambda i: sealed(changed(i, image_id="t99")), "answers to another set"),
        (lambda i: sealed(changed(i, 3, answer="maybe")), r"field answers\.3\.answer"),
        (lambda i: sealed(changed(i, answer=None)), r"field answers\.0\.answer"),
        (lambda i: sealed(changed(i, confidence=55)), "confidence"),
        (lambda i: sealed(changed(i, confidence=[1])), "confidence"),
        (lambda i: sealed(changed(i, ms=-1)), "ms"),
        (lambda i: sealed(changed(i, ms="2500")), "ms"),
        (lambda i: sealed(body(i)).replace(b'"version": 1,', b'"version": 1, "version": 1,'), "'version' twice"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_by_name_and_the_others_count(items, spoil, says):
    ratings, report = read(items, bad_json=spoil(items), good_json=sealed(body(items, "R9", "b")))
    assert ratings["rater"].unique().tolist() == ["R9"]
    bad = report.set_index("file").loc["bad.json"]
    assert bad["status"] == "refused"
    assert pd.Series([bad["note"]]).str.contains(says).all(), bad["note"]
    assert "\n" not in bad["note"]
    with pytest.raises(ValueError, match=r"^bad\.json: "):
        read(items, bad_json=spoil(items))


def test_the_rater_of_a_refused_file_is_named_where_it_can_be_read(items):
    _, report = read(items, a_json=sealed(body(items, "R7"))[:300], b_json=sealed(body(items, "R9", "b")))
    assert report["rater"].tolist() == ["R7", "R9"]


def test_a_rater_counts_once_whatever_the_files_are_called(items):
    first, later = body(items), body(items, sitting="b", finished="2026-02-02T03:14:05Z")
    files = {
        "a_json": sealed(later), "b_json": sealed(first), "c_json": sealed(first),
        "d_json": sealed(body(items, "r1", "c", finished="2026-03-02T03:14:05Z")),
        "e_json": sealed(body(items, "R2", "a", finished="2026-03-02T03:14:05Z")),
    }  # fmt: skip
    ratings, report = read(items, **files)
    assert len(ratings) == N
    report = report.set_index("file")
    assert report["status"].to_dict() == {
        "a.json": "refused", "b.json": "counted", "c.json": "refused", "d.json": "refused", "e.json": "refused"
    }  # fmt: skip
    assert "found 'R1' in b.json already" in report.loc["a.json", "note"]
    assert "the same sitting as b.json" in report.loc["c.json", "note"]
    assert "found 'r1' in b.json already" in report.loc["d.json", "note"]
    assert "the same sitting as b.json" in report.loc["e.json", "note"], "one sitting under two codes"


def test_what_looks_careless_is_flagged_and_counts(items):
    hasty = body(items)
    hasty["answers"] = [answer | {"answer": "real", "ms": 300} for answer in hasty["answers"]]
    _, report = read(items, a_json=sealed(hasty))
    (row,) = report.to_dict("records")
    assert row["status"] == "counted"
    assert row["note"] == "every answer is real; half of the images were seen for less than a second"


def test_other_files_are_flagged_and_none_is_none(items):
    ratings, report = read(items, a_docx=b"PK", b_json=sealed(body(items)))
    assert "another ending" in report.set_index("file").loc["a.docx", "note"]
    empty, report = results_files.collect({}, items, SET)
    assert empty.empty
    assert report.columns.tolist() == results_files.FILE_COLUMNS
    assert len(ratings) == N


# ---------------------------------------------------------------- tables made by hand


def by_hand(items, n_raters=2):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"rater": np.repeat([f"r{i}" for i in range(n_raters)], N)})
    table["image_id"] = np.tile(items["image_id"], n_raters)
    return table.assign(said_real=rng.integers(0, 2, len(table)), seconds=3)


def test_a_table_counts_beside_results_files(items):
    content = by_hand(items).to_csv(index=False).encode()
    ratings, report = read(items, a_csv=content, b_json=sealed(body(items)))
    assert ratings["rater"].unique().tolist() == ["r0", "r1"]
    assert report["status"].tolist() == ["counted", "counted", "refused"], "R1 is r1, and the table comes first"
    keyed = results_files.attach_key(results_files.read_table(content, items), items)
    assert keyed["confidence"].isna().all()
    assert not keyed["simulated"].any()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.drop(columns="said_real"), "found no said_real"),
        (lambda t: t.assign(said_real=2), "line 2: expected a rater"),
        (lambda t: t.assign(rater=""), "line 2"),
        (lambda t: t.assign(rater="x" * 41), "line 2"),
        (lambda t: t.assign(confidence=55), "line 2"),
        (lambda t: t.iloc[:-1], r"expected 6 answers from each rater, found 5 from 'r1' \('t"),
        (lambda t: pd.concat([t, t.iloc[[0]]]), "found a second for 't"),
        (lambda t: t.assign(image_id="p001_f00"), "answers to another set"),
        (lambda t: t.iloc[:0], "found none"),
    ],
)
def test_faulty_tables_are_refused_with_the_files_name(items, spoil, says):
    with pytest.raises(ValueError, match=says) as caught:
        read(items, ratings_csv=spoil(by_hand(items)).to_csv(index=False).encode())
    assert str(caught.value).startswith("ratings.csv: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b'rater,image_id\n"a,b'])
def test_files_that_are_no_table_are_refused(items, content):
    with pytest.raises(ValueError, match=r"ratings\.csv: expected"):
        read(items, ratings_csv=content)
