"""Files that raters send back: read, refused by name with a reason, and put beside the key."""

import base64
import html
import json
import quopri
import re
import time
from email.message import EmailMessage

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


def lines(text, start):
    return "".join(f"{start}{line}\n" for line in text.splitlines())


def wrapped(text, width):
    return "\n".join(re.findall(f".{{1,{width}}}", json.dumps(json.loads(text))))


RTF, RTF_END = r"\\\1", "\\par\n"
MAILED = {
    "no-break blanks": lambda t: t.replace("\n ", "\n\u00a0"),
    "narrow and wide blanks": lambda t: t.replace(": ", ":\u202f").replace("\n ", "\n\u3000\t"),
    "lines apart": lambda t: t.replace("\n", "\r\n\r\n"),
    "zero-width in front and between": lambda t: "\u200b" + t.replace('":', '"\u2060:'),
    "curly quotes": lambda t: t.replace('"', "\u201d"),
    "German quotes": lambda t: t.replace(' "', " \u201e").replace('"', "\u201c"),
    "French quotes": lambda t: t.replace(' "', " \u00ab").replace('"', "\u00bb"),
    "dashes": lambda t: t.replace("-", "\u2011"),
    "signature": lambda t: f"{t}\n--\nSent from my phone {{}}\n",
    "greeting": lambda t: f"Hello {{all}}, here it is:\n{t}",
    "quoted": lambda t: lines(t, "> "),
    "quoted twice in an answer": lambda t: f"Thanks!\n\nOn Friday A <a@b.io> wrote:\n{lines(t, '>> ')}>\n> -- \n",
    "Outlook's bar": lambda t: lines(t, " | "),
    "code fence": lambda t: f"```json\n{t}```\n",
    "one line": lambda t: " ".join(t.split()),
    "wrapped": lambda t: json.dumps(json.loads(t)).replace(", ", ",\n"),
    "quoted-printable": lambda t: quopri.encodestring(t.encode()).decode(),
    "quoted-printable, all of it": lambda t: "".join(c if c.isalnum() else f"={ord(c):02X}" for c in t),
    "web mail": lambda t: f"<div>{t.replace(chr(34), '&quot;').replace(' ', '&nbsp;').replace(chr(10), '<br>')}</div>",
    "twice": lambda t: f"{t}\n{lines(t, '> ')}",
    "wrapped inside words": lambda t: wrapped(t, 76),
    "wrapped inside words and quoted": lambda t: lines(wrapped(t, 30), "> "),
    "other ends of lines": lambda t: t.replace("\n", "\u2028", 9).replace("\n", "\x0b", 9).replace("\n", "\x85"),
    "French quotes with blanks": lambda t: re.sub('"([^"]*)"', "\u00ab\u00a0\\1\u202f\u00bb", t),
    "single curly quotes": lambda t: t.replace('"', "\u2019"),
    "two apostrophes": lambda t: t.replace('"', "''"),
    "comma behind the last": lambda t: f"{t.rstrip()[:-1]},}}",
    "address made a link": lambda t: t.replace("390x740@3", "390x740@3 <mailto:390x740@3>"),
    "saved as a web page": lambda t: f"<html><body><pre>{html.escape(t)}</pre></body></html>",
    "rich text": lambda t: f"{{\\rtf1\\ansi {re.sub('([{}])', RTF, t).replace(chr(10), RTF_END)}}}",
}  # fmt: skip


@pytest.mark.parametrize("mail", MAILED.values(), ids=MAILED)
def test_what_a_mail_program_does_does_not_matter_where_the_checksum_holds(items, mail):
    text = mail(sealed(body(items)).decode())
    ratings, report = read(items, a_txt=text.encode())
    assert ratings["said_real"].tolist() == [1, 0, 1, 0, 1, 0]
    assert ratings["confidence"].fillna(-1).tolist() == [-1, 70, -1, 70, -1, 70]
    assert report.iloc[0].tolist() == ["a.txt", "R1", "counted", N, 3, 0.2, ""]
    assert len(report) == 1
    spoilt = text.replace("2500", "2600")
    with pytest.raises(ValueError, match="found it edited"):
        read(items, a_txt=spoilt.encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mail_saved_as_a_web_page_is_read_in_every_encoding(items, encoding):
    page = MAILED["saved as a web page"](sealed(body(items)).decode())
    assert len(read(items, a_html=page.encode(encoding))[0]) == N
    with pytest.raises(ValueError, match="found a web page; download the file itself"):
        read(items, a_json="<html>login</html>".encode(encoding))


def test_a_mail_saved_in_base64_is_read(items):
    mail = EmailMessage()
    mail.set_content("Here it is.")
    mail.add_attachment(sealed(body(items)), maintype="application", subtype="json", filename="a.json")
    assert b"nafld-turing" not in mail.as_bytes()
    ratings, report = read(items, a_eml=mail.as_bytes())
    assert ratings["said_real"].tolist() == [1, 0, 1, 0, 1, 0]
    assert report["status"].tolist() == ["counted"]


@pytest.mark.parametrize("around", ["{}", "Here it is:\n\n{}\nRegards\n", "> {}"])
@pytest.mark.parametrize("width", [76, 60, 10**6])
def test_the_source_of_a_mail_without_its_headers_is_read(items, around, width):
    def packed(content):
        text = "\n".join(re.findall(f".{{1,{width}}}", base64.b64encode(content).decode()))
        return around.format(text.replace("\n", "\n> ") if around[0] == ">" else text).encode()

    ratings, report = read(items, a_txt=packed(sealed(body(items))))
    assert ratings["said_real"].tolist() == [1, 0, 1, 0, 1, 0]
    assert report["status"].tolist() == ["counted"]
    with pytest.raises(ValueError, match="found it edited"):
        read(items, a_txt=packed(sealed(body(items)).replace(b"2500", b"2600")))
    with pytest.raises(ValueError, match="it is truncated"):
        read(items, a_txt=packed(sealed(body(items))[:-30]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("name", ["a.txt", "a.json.txt", "a (1).json", "results", "a.eml", "a.csv"])
def test_encodings_and_endings_of_a_pasted_copy_do_not_matter(items, encoding, name):
    text = "M\u00fcller:\n" * (encoding != "utf-16-be") + sealed(body(items)).decode().replace("\n ", "\n\u00a0")
    ratings, _ = results_files.collect({name: text.encode(encoding)}, items, SET)
    assert ratings["said_real"].tolist() == [1, 0, 1, 0, 1, 0]


def test_every_sitting_that_a_mail_holds_counts_or_is_refused(items):
    texts = [sealed(body(items, rater, sitting)).decode() for rater, sitting in (("R1", "a"), ("R2", "b"), ("R3", "c"))]
    mail = f"Two:\n{texts[0]}\nand\n{lines(texts[1], '> ')}\nand\n{texts[2].replace('synthetic', 'real', 1)}"
    ratings, report = read(items, a_txt=mail.encode())
    assert ratings["rater"].unique().tolist() == ["R1", "R2"]
    assert sorted(report["status"]) == ["counted", "counted", "refused"]
    assert "found it edited" in report.set_index("status").loc["refused", "note"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.replace('"confidence"', "confidence", 1) + "-- \nA\n", "line 15 .*: it is damaged"),
        (lambda t: t.replace(",\n", "\n", 3), "it is damaged"),
        (lambda t: t.replace(":", "\uff1a"), "it is damaged"),
        (lambda t: f"Hello,\n{t[:-12]}", "it is truncated"),
        (lambda t: f"Hello,\n{lines(t[:400], '> ')}-- \nA\n", "it is truncated"),
        (lambda t: "I did not find the button.", "expected results as JSON, found none in it"),
    ],
)
def test_more_than_the_results_is_never_called_truncated(items, spoil, says):
    with pytest.raises(ValueError, match=says):
        read(items, a_txt=spoil(sealed(body(items)).decode()).encode())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xlsx", b"PK\x03\x04", "found a spreadsheet; save its sheet as CSV UTF-8"),
        ("a.csv", b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "an Office document; export it as CSV UTF-8"),
        ("a.txt", b"PK\x03\x04" + b"\0" * 26 + b"a.json", "a zip archive; unpack it"),
        ("a.json", b"%PDF-1.7", "a PDF document; ask for the original"),
        ("a.json", b"<!DOCTYPE html><html>Sign in</html>", "a web page; download the file itself"),
        ("a.pages", b"text", "another ending; save the rater's own file, or the text of the mail as .txt"),
    ],
)
def test_other_kinds_of_file_are_named_with_what_to_do(items, name, content, says):
    with pytest.raises(ValueError, match=says):
        results_files.collect({name: content}, items, SET)


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
        (lambda i: b"\xff\xfe{\x00}\x00", "expected a file with schema"),
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


@pytest.mark.parametrize(("one", "other"), [("7", "7.0"), ("007", "7"), ("R1", "R 1"), ("R\u20101", "r-1")])
def test_one_rater_written_in_two_ways_counts_once(items, one, other):
    """Two panels of one person would halve the interval over raters."""
    tables = [
        "rater,image_id,said_real\n" + "".join(f"{rater},{name},{i % 2}\n" for i, name in enumerate(items["image_id"]))
        for rater in (one, other)
    ]
    ratings, report = read(items, a_csv=tables[0].encode(), b_csv=tables[1].encode())
    assert ratings["rater"].unique().tolist() == [one]
    assert f"found {other!r} here and {one!r} in a.csv" in report.set_index("file").loc["b.csv", "note"]
    assert len(read(items, a_csv=tables[0].encode(), b_csv=tables[1].replace(other, "R2").encode())[0]) == 2 * N


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
    assert "found 'R1' here and 'R1' in b.json" in report.loc["a.json", "note"]
    assert "the same sitting as b.json" in report.loc["c.json", "note"]
    assert "found 'r1' here and 'R1' in b.json" in report.loc["d.json", "note"]
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


def saved(items, **changes):
    """Text of a table with every answer "real" but the first."""
    table = pd.DataFrame({"rater": "R2", "image_id": items["image_id"], "said_real": [0] + [1] * (N - 1)})
    return table.assign(confidence="70").assign(**changes).to_csv(index=False)


SAVED = {
    "semicolon": lambda t: t.replace(",", ";").encode(),
    "semicolon and decimal comma": lambda t: t.replace(",", ";").replace("70", "70,0").replace(";1;", ";1,0;").encode(),
    "tab": lambda t: t.replace(",", "\t").encode(),
    "bar": lambda t: t.replace(",", "|").encode(),
    "UTF-16": lambda t: t.encode("utf-16"),
    "UTF-16 without a mark": lambda t: t.encode("utf-16-le"),
    "mark": lambda t: t.encode("utf-8-sig"),
    "sep=": lambda t: f"sep=;\r\n{t}".replace(",", ";").encode(),
    "capitals and blanks": lambda t: t.replace("rater,image_id,said", " Rater,\u00a0Image ID ,SAID\u200b").encode(),
    "1.0": lambda t: t.replace(",1,", ",1.0,").replace(",0,", ",0.0,").encode(),
    "words": lambda t: t.replace(",1,", ",Real,").replace(",0,", ", synthetic ,").encode(),
    "true and false": lambda t: t.replace(",1,", ",TRUE,").replace(",0,", ",FALSE,").encode(),
    "per cent": lambda t: t.replace("70", "70\u00a0%").encode(),
    "70.0": lambda t: t.replace("70", "70.0").encode(),
    "empty rows": lambda t: f"\n{t},,,\n\u200b,\u00a0,,\n\n".encode(),
    "empty columns": lambda t: t.replace("\n", ",,\n").encode(),
    "capital ids": lambda t: t.replace(",t", ",T").encode(),
    "lines in quotes": lambda t: "".join(f'"{line}"\n' for line in t.splitlines()).encode(),
    "old line ends": lambda t: t.replace("\n", "\r").encode(),
}  # fmt: skip


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_tables_are_read_as_any_spreadsheet_saves_them(items, save, name):
    ratings, report = results_files.collect({name: save(saved(items))}, items, SET)
    assert ratings["said_real"].tolist() == [0] + [1] * (N - 1)
    assert ratings["confidence"].tolist() == [70.0] * N
    assert report.iloc[0].tolist()[:5] == [name, "R2", "counted", N, N]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda t: t.replace(",", "  "), "found no rater, image_id, said_real in the first line, 'rater  image_id"),
        (lambda t: t.replace("confidence", "rater"), "expected one column rater, found 2"),
        (lambda t: t.replace(",70\n", ",70,5\n"), "line 2: expected 4 cells, found 5"),
        (lambda t: t.replace("R2,", "R\u00fc,").encode("cp1252"), "expected UTF-8 text, found byte 0xfc in line 2"),
        (lambda t: t.replace(",0,", ",perhaps,"), "line 2: .*'perhaps'"),
        (lambda t: f"\n\n{t}".replace(",0,", ",2,"), "line 4: .*'2'"),
    ],
)
def test_what_a_table_of_ratings_does_not_say_is_refused_by_its_line(items, content, says):
    made = content(saved(items))
    with pytest.raises(ValueError, match=says):
        read(items, a_csv=made if isinstance(made, bytes) else made.encode())


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


@pytest.mark.parametrize("part", ['{"schema"', '{"schema":', "<a ", "&#1;", "> ", '{"schema":{"a":"'])
def test_a_file_made_to_cost_time_costs_little(items, part):
    started = time.process_time()
    with pytest.raises(ValueError, match="expected"):
        read(items, a_txt=(part * results_files.MAX_BYTES)[: results_files.MAX_BYTES].encode())
    assert time.process_time() - started < 5
