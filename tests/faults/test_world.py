"""Clocks set back and forward, other languages and time zones, and files that mean harm."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import faulty
import numpy as np
import pandas as pd
import pytest
from faulty import RUN, assert_same, fingerprint, perform
from project import PROJECT
from toy_study import FIRST, SECOND, Study

pytestmark = pytest.mark.faults
PATHS = [str(PROJECT / "tests"), str(PROJECT / "tests" / "faults")]  # of `faulty` and what it imports
RAN = r"\d:\d\d  "  # a line of a running notebook


# ---------------------------------------------------------------- clocks


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A toy study whose two notebooks have run."""
    study = Study(tmp_path_factory.mktemp("clock"))
    study.make(SECOND, check=0)
    return study


@pytest.fixture
def study(toy, tmp_path, monkeypatch):
    """A copy of it, times and all."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    for name in ("work", "notebooks"):
        shutil.copytree(toy.root.parent / name, tmp_path / name, copy_function=shutil.copy2)
    copy = object.__new__(Study)
    copy.root, copy.notebooks = tmp_path / "work", tmp_path / "notebooks"
    return copy


def shift(folder, seconds, pattern="*"):
    """Move the times of files, as if they had been written under another clock."""
    for path in folder.rglob(pattern):
        if path.is_file():
            found = path.stat()
            os.utime(path, ns=(found.st_atime_ns + seconds * 10**9, found.st_mtime_ns + seconds * 10**9))


YEAR = 365 * 86400
UNITS = "artifacts/smoke/toy"


def unit_times(study):
    return {path: path.stat().st_mtime_ns for path in (study.root / UNITS).rglob("*")}


@pytest.mark.promise("clock")
@pytest.mark.parametrize("years", [-10, 3])
def test_a_run_made_under_another_clock_is_not_run_again(study, years):
    """All files of the run and its notebooks are of another time; their order is what counts."""
    shift(study.root, years * YEAR)
    shift(study.notebooks, years * YEAR)
    assert not re.search(RAN, study.make(SECOND, check=0).stdout)


@pytest.mark.promise("clock")
def test_a_setting_changed_after_the_clock_was_set_back_still_runs_its_stage(study):
    """Reports and stamps lie three years ahead: without care make takes the old report for newer than the setting."""
    shift(study.root, 3 * YEAR)
    said = study.make(SECOND, "SET=folds.seed=7", check=0).stdout
    assert re.search(rf"{SECOND} +{RAN}", said), said
    assert not re.search(rf"{FIRST} +{RAN}", said), "only the stage that reads the setting"
    assert not re.search(RAN, study.make(SECOND, "SET=folds.seed=7", check=0).stdout), "and once is enough"


@pytest.mark.promise("clock")
def test_what_follows_a_stage_runs_again_although_its_report_is_from_the_future(study):
    shift(study.root / "reports", 3 * YEAR, f"{SECOND}.*")
    said = study.make(SECOND, "SET=cohort.simulation_seed=9", check=0).stdout
    assert re.search(rf"{FIRST} +{RAN}", said), said
    assert re.search(rf"{SECOND} +{RAN}", said), said


@pytest.mark.promise("clock")
def test_stamps_from_the_future_cost_one_run_and_no_unit(study):
    before = unit_times(study)
    shift(study.root / "artifacts" / "smoke" / "settings", YEAR)
    study.make(SECOND, check=0)
    assert unit_times(study) == before
    assert not re.search(RAN, study.make(SECOND, check=0).stdout), "not again and again"


@pytest.mark.promise("clock")
def test_units_do_not_ask_when_their_files_were_written(calm, tmp_path, record_property):
    for i, years in enumerate((-40, 40)):
        root = calm.before("end", tmp_path / str(i), link=False)
        shift(root, years * YEAR)
        ended = perform(root, faulty.STEPS)
        assert (ended.code, ended.events) == (0, 0), "nothing was made again"
    record_property("cases", 2 * len(faulty.STEPS))


# ---------------------------------------------------------------- languages and time zones

LANGUAGES = {  # name: source and character set, as localedef takes them
    "tr_TR.UTF-8": ("tr_TR", "UTF-8"),  # an i that is no I in small
    "de_DE.ISO-8859-1": ("de_DE", "ISO-8859-1"),  # a decimal comma; files are not UTF-8 unless somebody says so
}
FEW = ("cohort", "preprocessed", "traditional", "gan", "page", "analysis", "answer", "quality", "filtering")


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """Folder of compiled locales; what a machine has installed does not matter."""
    if not shutil.which("localedef"):
        pytest.skip("localedef is not installed (Debian: libc-bin)")
    folder = tmp_path_factory.mktemp("locales")
    for name, (source, charset) in LANGUAGES.items():
        command = ["localedef", "--no-archive", "-i", source, "-f", charset, str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (folder / name / "LC_NUMERIC").exists():
            pytest.skip(f"localedef cannot make {name} (Debian: package locales): {done.stderr[-200:]}")
    return folder


LOCAL = """
import locale, sys, pathlib
sys.path[:0] = {paths!r}
import faulty
locale.setlocale(locale.LC_ALL, "")
assert locale.localeconv()["decimal_point"] == {point!r}, locale.localeconv()
functions, run = faulty.steps(), faulty.open_run()
for name in {names!r}:
    functions[name][1](run)
"""


def remake(root, names):
    """Remove what these steps make, so that they make it again."""
    made = {"cohort": "cohort", "preprocessed": "preprocess", "traditional": "traditional", "gan": "gan"}
    made |= {"page": "turing", "answer": "sweep_tables", "quality": "quality/table", "filtering": "filtered"}
    for name in names:
        shutil.rmtree(root / "artifacts" / RUN / made.get(name, "none"), ignore_errors=True)


@pytest.mark.promise("locale")
@pytest.mark.parametrize(
    ("language", "zone"),
    [("C", "Pacific/Chatham"), ("tr_TR.UTF-8", "UTC"), ("de_DE.ISO-8859-1", "Asia/Kolkata")],
)
def test_results_do_not_depend_on_language_and_time_zone(calm, languages, tmp_path, language, zone, record_property):
    root = calm.before("end", tmp_path / "wörk", link=False) if language != "C" else calm.before("end", tmp_path / "w")
    remake(root, FEW)
    code = LOCAL.format(paths=PATHS, names=FEW, point="," if "_" in language else ".")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    environment |= {"LC_ALL": language, "LOCPATH": str(languages), "TZ": zone, "NAFLD_ROOT": str(root)}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "nafld_utils" in line]
    assert not ours, f"files read or written in the language's character set: {ours[:3]}"
    assert_same(fingerprint(root), calm.after("analysis"))
    record_property("cases", len(FEW))


# ---------------------------------------------------------------- cores


IN_WORKERS = faulty.STEPS[faulty.STEPS.index("autoencoders") : faulty.STEPS.index("filtering") + 1]


@pytest.mark.promise("threads")
def test_results_do_not_depend_on_cores_or_on_how_many_units_are_made_at_once(calm, tmp_path, record_property):
    root, at_once = calm.before(IN_WORKERS[0], tmp_path / "work"), {"engine.mode": "local", "engine.n_workers": 2}
    ended = perform(root, IN_WORKERS, ("threads", 3), timeout=500, overrides=at_once)
    assert ended.code == 0, ended.said[-4000:]
    assert_same(fingerprint(root), calm.after(IN_WORKERS[-1]))
    record_property("cases", len(IN_WORKERS))


# ---------------------------------------------------------------- files that mean harm


class Payload:
    """What a pickle may do when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A folder that exists once a pickle has been opened."""
    return tmp_path / "a pickle was opened"


PICKLED = {"gan/fold0/averaged.safetensors": "sets", "preprocess/pool.npy": "latents"}


@pytest.mark.promise("malice")
@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_in_place_of_an_artifact_is_not_opened_even_if_its_manifest_vouches_for_it(calm, tmp_path, trap, name):
    import torch

    from nafld_utils import artifacts

    root = calm.before("end", tmp_path / "work", link=False)
    path = root / "artifacts" / RUN / name
    if path.suffix == ".npy":
        np.save(path, np.array([Payload(trap)], dtype=object), allow_pickle=True)
    else:
        torch.save({"a": Payload(trap)}, path)
    manifest = json.loads((path.parent / "run.json").read_text())
    manifest["files"][path.name] = [path.stat().st_size, artifacts.file_sha256(path)]
    (path.parent / "run.json").write_text(json.dumps(artifacts.sealed(manifest)))
    step = PICKLED[name]
    shutil.rmtree(root / "artifacts" / RUN / ("synthetic" if step == "sets" else "latents"))
    ended = perform(root, step)
    assert ended.code == 1
    assert not trap.exists()
    assert "a pickle, which is never opened" in ended.said, ended.said[-1500:]
    assert str(path) in ended.said.rsplit("ended by", 1)[1]


@pytest.mark.promise("malice")
def test_no_loader_of_the_package_opens_a_pickle(tmp_path, trap, record_property):
    import torch

    from nafld_utils import artifacts, networks, sweep
    from nafld_utils.artifacts import checkpoints, files
    from nafld_utils.ldm import compvis_checkpoint

    path = tmp_path / "file"
    contents = {"torch": io.BytesIO(), "plain": io.BytesIO(pickle.dumps(Payload(trap), protocol=2))}
    torch.save({"state_dict": {}, "hook": Payload(trap)}, contents["torch"], pickle_module=pickle)
    loaders = [
        artifacts.load_weights,
        files.load_array,
        artifacts.load_state,
        lambda p: compvis_checkpoint.load(p, artifacts.file_sha256(p), "vq", 8, 1.0),
        lambda p: sweep.read_trial(p.parent, p.stem),
        lambda p: networks.read(p, artifacts.file_sha256(p), "known", "fetch it again"),
    ]
    cases = 0
    for content in contents.values():
        for ending in ("file", "file.parquet", "file.npy"):
            path = tmp_path / ending
            path.write_bytes(content.getvalue())
            for load in loaders:
                with pytest.raises((ValueError, TypeError, OSError)):
                    load(path)
                cases += 1
            assert checkpoints.load_array(path) is None
    assert not trap.exists()
    record_property("cases", cases)


HARMFUL = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "=HYPERLINK(1)", "+1+1", "@SUM(A1)", "-2+3")


@pytest.mark.promise("malice")
def test_names_of_raters_and_files_are_shown_as_text_and_computed_by_no_spreadsheet(calm, tmp_path, record_property):
    """Ratings of a folder, through the stage and the table that notebook 08 shows."""
    from nafld_utils import artifacts

    root = calm.before("end", tmp_path / "work", link=False)
    items = pd.read_csv(root / "artifacts" / RUN / "turing" / "set" / "items.csv")
    folder = root / "ratings"
    folder.mkdir()
    for i, name in enumerate(("anna", "<b>bo</b>")):
        table = pd.DataFrame(
            {"rater": name, "image_id": items["image_id"], "said_real": (np.arange(len(items)) + i) % 2}
        )
        table.to_csv(folder / f"{i}.csv", index=False)
    for i, name in enumerate(HARMFUL):
        table = pd.DataFrame({"rater": name, "image_id": items["image_id"], "said_real": 1})
        table.to_csv(folder / f"{name.replace('/', '_')}.csv", index=False)
        (folder / f"{name.replace('/', '_')}{i}.json").write_text(json.dumps({"rater": name}), encoding="utf-8")
    code = """
from nafld_utils import turing
import faulty
run = faulty.open_run(**{"turing.ratings": "ratings"})
found = turing.analyse(run)
for name in ("files", "raters", "ratings", "images"):
    print(turing.titled(run, found, found[name], "x")._repr_html_())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NAFLD_ROOT": str(root), "PYTHONPATH": os.pathsep.join(PATHS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for text in (*HARMFUL[:2], "<b>bo"):
        assert text not in done.stdout
    assert "&lt;script&gt;" in done.stdout
    for path in (root / "artifacts" / RUN / "turing" / "analysis").glob("*.csv"):
        for value in pd.read_csv(path, dtype=str).to_numpy().ravel():
            assert not str(value).startswith(("=", "+", "@")), f"{path.name}: {value}"
    files = artifacts.load_table(root / "artifacts" / RUN / "turing" / "analysis" / "files.csv")
    assert (files["status"] == "counted").sum() == 2 + 2, "two raters, and two whose names are odd and harmless"
    record_property("cases", 2 * len(HARMFUL))


@pytest.mark.promise("malice")
def test_the_front_page_shows_harmful_names_as_text(tmp_path, monkeypatch):
    from nafld_utils import artifacts, params, report

    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    with pytest.raises(params.SettingsError, match=r"cohort\.class_names"):
        artifacts.open_run("smoke", {"cohort.class_names": ["<script>alert(1)</script>", "b"]})
    run = artifacts.open_run("smoke")
    provenance = {
        "kind": "other content",
        "text": "Folder <script>alert(2)</script>.",
        "sha256": "x",
        "images": 1,
        "used": 1,
    }
    artifacts.save_json(run.root / "cohort" / "provenance.json", provenance)
    row = {"key": "x", "claim": "<script>alert(3)</script>", "this_run": 1.0, "unit": "<img src=x onerror=alert(4)>"}
    run.record_claims(FIRST, [{**row, "same_protocol": "<script>alert(5)</script>"}])
    page = report.index_html(run)
    assert not re.search(r"<script>alert|<img src=x", page)
    assert "&lt;script&gt;alert(3)" in page


@pytest.mark.promise("malice")
@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "link.png", "sub/../../outside.png"])
def test_a_cohort_cannot_name_images_outside_its_folder(tmp_path, name):
    from PIL import Image

    from nafld_utils import cohort

    folder = tmp_path / "cohort"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "outside.png")
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(folder / f"{i}.png")
    rows = [("0.png", 1, 0), ("1.png", 2, 1), (name, 3, 1)]
    pd.DataFrame(rows, columns=["image", "patient", "label"]).to_csv(folder / "images.csv", index=False)
    with pytest.raises(ValueError, match=rf"(?s)folder.*{re.escape(name)}|{re.escape(name)}.*folder"):
        cohort.load(folder)


def bomb_png(path, side=30_000):
    """A PNG of a few kilobytes that unpacks to `side` squared pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(200)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def limited(code, *arguments, gibibytes=3):
    """Run code in a process that may take so much address space beyond what its imports took."""
    start = f"""
import resource, sys
from nafld_utils import cohort
import PIL.Image, scipy.io, nafld_utils.cohort.loading
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int({gibibytes} * 2**30),) * 2)
"""
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.promise("malice")
def test_an_image_bomb_is_refused_with_a_sentence(tmp_path):
    bomb_png(tmp_path / "a.png")
    (tmp_path / "images.csv").write_text("image,patient,label\na.png,1,0\n")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    done = limited("cohort.load(sys.argv[1])", tmp_path)
    assert re.search(r"^[\w.]*(CohortError|ValueError): ", done.stderr, re.MULTILINE), done.stderr[-2000:]
    assert re.search(r"a\.png: expected .*pixels", done.stderr)
    assert "MemoryError" not in done.stderr


@pytest.mark.promise("malice")
def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A .mat file of a megabyte whose variable unpacks to a GiB; the bound is lowered, so that this takes a moment."""
    path, packer, block, n = tmp_path / "bomb.mat", zlib.compressobj(9), bytes(2**22), 256
    first = packer.compress(struct.pack("<II", 14, n * len(block))) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)  # the same bytes every time
    packed = first + again * n
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    assert path.stat().st_size < 2 * 10**6
    code = "cohort.loading.MOST_BYTES = 2**28; cohort.load(sys.argv[1])"
    done = limited(code, path, gibibytes=0.25)
    (*_, last) = done.stderr.strip().splitlines()
    assert last.startswith("ValueError: "), done.stderr[-2000:]
    assert "expected a cohort of at most 0.25 GiB" in last


@pytest.mark.promise("malice")
def test_oversized_and_nested_results_files_are_refused_by_name(tmp_path, record_property):
    from nafld_utils.turing import results_files

    items = pd.DataFrame({"image_id": ["a"]})
    files = {
        "big.json": b"[" * (results_files.MAX_BYTES + 1),
        "deep.json": b"[" * 100_000 + b"]" * 100_000,
        "packed.json": gzip.compress(bytes(10**7)),
        "number.json": b'{"schema": ' + b"9" * 10_000 + b"}",
        "null.csv": b"rater,image_id,said_real\n\x00,a,1\n",
        "wide.csv": b",".join([b"x"] * 2_000),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("a.json", bytes(10**7))
    files["bomb.zip"] = archive.getvalue()
    started = time.process_time()
    for name, content in files.items():
        with pytest.raises(ValueError, match=re.escape(name)):
            results_files.collect({name: content}, items, "set")
    assert time.process_time() - started < 30
    record_property("cases", len(files))
