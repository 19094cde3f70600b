"""The loader: round trip through the real format, every refusal with its sentence, provenance, download."""

import functools
import hashlib
import http.server
import json
import os
import threading

import numpy as np
import pandas as pd
import pytest
from numpy.lib.recfunctions import repack_fields
from scipy import io

from nafld_utils import artifacts, cohort, params, preprocessing
from nafld_utils.cohort import data, description, download, loading

SIMULATED = {"kind": "simulated", "text": "Simulated for a test."}


def toy(n_patients=6, seed=0, shape=(24, 30)):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (n_patients, 10, *shape), dtype=np.uint8)
    fat = np.array([1, 20, 3, 60, 5, 0] * n_patients)[:n_patients]
    return data.from_arrays(frames, fat, (fat >= 5).astype(int), SIMULATED)


def records(n_patients=6, **changes):
    """Struct array of the published layout, with one patient's fields replaced."""
    made = toy(n_patients)
    data = np.empty((1, n_patients), dtype=[(name, object) for name in ("id", "class", "fat", "images")])
    for i, row in enumerate(made.patients.itertuples(index=False)):
        fields = {"id": np.uint8(row.patient_id), "class": np.uint8(row.label), "fat": np.uint8(row.grade)}
        fields["images"] = made.frames[i]
        if i == 2:
            fields |= changes
        data[0, i] = tuple(fields.values())
    return data


def saved(folder, data, name="data"):
    path = folder / "cohort.mat"
    io.savemat(path, {name: data})
    return path


# ---------------------------------------------------------------- the tables


def test_ids_hashes_and_frames_belong_together():
    made = toy(3)
    assert made.images["image_id"].tolist()[9:12] == ["p001_f09", "p002_f00", "p002_f01"]
    assert made.frames.shape == (3, 10, 24, 30)
    assert made.frames.base is not None, "frames must be a view, not a copy"
    assert (made.frames[1, 1] == made.pixels[11]).all()
    assert made.images["sha256"][11] == hashlib.sha256(made.pixels[11].tobytes()).hexdigest()
    assert list(made.images) == ["image_id", "patient_id", "label", "grade", "sha256"]
    assert list(made.patients) == ["patient_id", "label", "grade"]


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [4]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))]
)
def test_frames_are_taken_evenly_and_keep_their_names(k, kept):
    made = toy(4)
    part = made.subset_frames(k)
    assert part.frames.shape[:2] == (4, k)
    assert part.images["image_id"][:k].tolist() == [data.image_id(1, f) for f in kept]
    assert (part.frames[2] == made.frames[2][kept]).all()
    assert made.subset_frames(None) is made


def test_more_frames_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"cohort\.frames_per_patient is 11, .* found 10 for patient 1"):
        toy().subset_frames(11)


def test_uneven_cohorts_have_no_frames_view():
    made = toy(3)
    uneven = cohort.Cohort(made.images[:-1], made.patients, made.pixels[:-1], {})
    with pytest.raises(ValueError, match="found 9 to 10"):
        _ = uneven.frames
    assert uneven.subset_frames(3).frames.shape == (3, 3, 24, 30)


def test_duplicates_are_reported_once_a_group():
    made = toy(2)
    frames = made.frames.copy()
    frames[1, 4] = frames[1, 7] = frames[1, 2]
    copied = data.from_arrays(frames, [1, 20], [0, 1], SIMULATED)
    table = data.duplicates(copied)
    assert table.to_dict("records") == [
        {"patient_id": 2, "label": 1, "n": 3, "image_ids": "p002_f02, p002_f04, p002_f07"}
    ]
    assert data.duplicates(made).empty


# ---------------------------------------------------------------- .mat


def test_what_is_written_comes_back(tmp_path):
    made = toy()
    path = cohort.write_mat(tmp_path / "a.mat", made)
    back = cohort.load(path)
    assert (back.pixels == made.pixels).all()
    pd.testing.assert_frame_equal(back.images, made.images)
    pd.testing.assert_frame_equal(back.patients, made.patients)
    assert back.provenance == {**SIMULATED, "sha256": made.provenance["sha256"]}
    assert list(tmp_path.iterdir()) == [path]


def test_the_written_structure_is_the_published_one(tmp_path):
    data = io.loadmat(cohort.write_mat(tmp_path / "a.mat", toy()))["data"]
    assert data.shape == (1, 6)
    assert data.dtype.names == ("id", "class", "fat", "images")
    for name in ("id", "class", "fat"):
        assert (data[0, 3][name].shape, data[0, 3][name].dtype) == ((1, 1), np.uint8)
    assert (data[0, 3]["images"].shape, data[0, 3]["images"].dtype) == ((10, 24, 30), np.uint8)


def test_patients_come_back_in_the_order_of_their_ids(tmp_path):
    made = toy()
    loaded = cohort.load(saved(tmp_path, records()[:, ::-1]))
    assert loaded.patients["patient_id"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (loaded.pixels == made.pixels).all()
    assert loaded.provenance["kind"] == "other content"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": toy().frames[2, :9]}, r"images of patient 3 as \(10, height, width\) uint8, found \(9, 24, 30\)"),
        ({"images": toy().frames[2].astype(float)}, "uint8, found .* float64"),
        ({"images": np.zeros((0, 0), np.uint8)}, r"found \(0, 0\) uint8"),
        ({"images": toy().frames[2][:, :20]}, r"found \(24, 30\) for patient 1 and \(20, 30\) for patient 3"),
        ({"class": np.uint8(1)}, "found class 1 with fat 3 for patient 3"),
        ({"class": np.uint8(2)}, "class 0 or 1 for patient 3, found 2"),
        ({"fat": np.uint8(200)}, "between 0 and 100 percent for patient 3, found 200"),
        ({"fat": np.array([], np.uint8)}, "one number in field fat of record 3"),
        ({"fat": np.nan}, "one number in field fat of record 3"),
        ({"id": np.uint8(9)}, "id to run from 1 to 6, each once, found 4 where 3 belongs"),
        ({"id": np.uint8(4)}, "id to run from 1 to 6, each once, found 4 where 3 belongs"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, message):
    path = saved(tmp_path, records(**changes))
    with pytest.raises(ValueError, match=message) as error:
        cohort.load(path)
    assert str(path) in str(error.value)
    assert str(error.value).endswith((".", "README"))
    assert "\n" not in str(error.value)


def test_empty_and_constant_frames_are_refused(tmp_path):
    images = toy().frames[2].copy()
    images[4] = 0
    with pytest.raises(ValueError, match=r"one grey level \(0\) in the whole of p003_f04 \(1 such frames\)"):
        cohort.load(saved(tmp_path, records(images=images)))


def test_a_frame_under_two_patients_is_refused(tmp_path):
    images = toy().frames[2].copy()
    images[8] = toy().frames[5, 1]
    with pytest.raises(ValueError, match=r"under patients 3 and 6 \(1 such frames\)"):
        cohort.load(saved(tmp_path, records(images=images)))


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"both classes, found class \[0\] only"):
        cohort.load(saved(tmp_path, records()[:, [0]]))


def test_the_threshold_is_the_settings(tmp_path):
    with pytest.raises(ValueError, match="fat is at least 3 percent, found class 0 with fat 3 for patient 3"):
        cohort.load(saved(tmp_path, records()), fat_threshold=3)


def test_a_missing_field_or_variable_is_named(tmp_path):
    with pytest.raises(ValueError, match="found no fat, images"):
        cohort.load(saved(tmp_path, repack_fields(records()[["id", "class"]])))
    with pytest.raises(ValueError, match="struct array `data` of patients, found no such variable"):
        cohort.load(saved(tmp_path, records(), name="other"))
    with pytest.raises(ValueError, match="struct array `data` of patients, found uint8 of shape"):
        cohort.load(saved(tmp_path, np.zeros((1, 4), np.uint8)))


@pytest.mark.parametrize("kept", [0, 100, 130, 5_000, -1000])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path, kept):
    path = cohort.write_mat(tmp_path / "a.mat", toy())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.mat: expected") as error:
        cohort.load(path)
    assert "\n" not in str(error.value)


HDF5 = b"\x89HDF\r\n\x1a\n"
V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(116) + b"\0" * 8 + b"\x00\x02IM"
REMEDY = r"open it in MATLAB and save its variable with save\(\.\.\., 'data', '-v7'\)"


@pytest.mark.parametrize(
    ("start", "found"),
    [
        (V73.ljust(512, b"\0") + HDF5, f"a MATLAB v7.3 file, which is HDF5; {REMEDY}"),
        (V73[:124] + b"\x02\x00MI" + bytes(384) + HDF5, f"a MATLAB v7.3 file, which is HDF5; {REMEDY}"),
        (V73, f"a MATLAB v7.3 file, which is HDF5; {REMEDY}"),
        (HDF5, f"an HDF5 file; {REMEDY}"),
        (bytes(2048) + HDF5, f"an HDF5 file; {REMEDY}"),
        (b"PK\x03\x04" + b"0" * 200, "a zip archive; unpack it and name the file that is in it"),
        (b"\x1f\x8b\x08", "a gzip archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
        (b"\n <!DOCTYPE html><html>login</html>", "a web page; download the file itself"),
        (b"<html>404 Not Found</html>", "a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; get the file with git lfs pull"),
        (b"%PDF-1.7", "a PDF document; ask for the original"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C">', "a web page; download the file itself"),
        (b"<script>location='/login'</script>", "a web page; download the file itself"),
        ("<html>login</html>".encode("utf-16"), "a web page; download the file itself"),
        (b"x" * 257 + b"ustar", "a tar archive; unpack it"),
        (b"BZh91AY", "an archive of bzip2, xz or zstd; unpack it"),
        (b"\xfd7zXZ\0", "an archive of bzip2, xz or zstd; unpack it"),
        (b"\x93NUMPY\1\0", "a NumPy array; see the README"),
        (b"\x89PNG\r\n\x1a\n", "a picture; see the README"),
        (b"# Created by Octave 8.4.0\n", "a file of Octave's own format; save it there with save -v7"),
        (b'{"status": 404}', "an answer of a server in JSON; get the file itself"),
        (b"\1\2\3\4", "no MATLAB file"),
    ],
)
@pytest.mark.parametrize("size", [0, 180 * 2**20])
def test_other_files_are_named_for_what_they_are_whatever_their_size(tmp_path, start, found, size):
    with open(tmp_path / "b.mat", "wb") as handle:  # a sparse file
        handle.write(start + bytes(100))
        handle.truncate(max(size, len(start) + 100))
    with pytest.raises(ValueError, match=rf"b\.mat: expected a MATLAB 5 file, found {found}[^;]*\.$"):
        cohort.load(tmp_path / "b.mat")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file; get it again"),
        (b"image,patient,label\n" * 20, "no MATLAB file but text; get the file itself"),
        (b"Access denied\n", "no MATLAB file but text; get the file itself"),
    ],
)
def test_what_has_no_head_of_matlab_is_not_called_truncated(tmp_path, content, found):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.mat: expected a MATLAB 5 file, found {found}\.$"):
        cohort.load(tmp_path / "a.mat")


@pytest.mark.parametrize("value", [np.eye(3), np.zeros((200, 300), np.uint8), "text", 1j * np.eye(2)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_file_of_matlab_4_is_told_what_to_do(tmp_path, value, order):
    io.savemat(tmp_path / "a.mat", {"data": value}, format="4")
    content = (tmp_path / "a.mat").read_bytes()
    if order == ">":  # the head as a machine of the other byte order writes it
        kind, *others = np.frombuffer(content[:20], "<i4")
        content = np.array([1000 + kind, *others], ">i4").tobytes() + content[20:]
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"a MATLAB v4 file, which holds no structs; open it in MATLAB and save"):
        cohort.load(tmp_path / "a.mat")


def test_an_id_is_a_whole_number(tmp_path):
    with pytest.raises(ValueError, match=r"expected a whole number as id of record 3, found 1\.5"):
        cohort.load(saved(tmp_path, records(id=1.5)))


def test_other_endings_are_refused(tmp_path):
    (tmp_path / "c.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "d.nii").write_bytes(b"?")
    with pytest.raises(ValueError, match="found a zip archive; unpack it and name the file that is in it"):
        cohort.load(tmp_path / "c.zip")
    with pytest.raises(ValueError, match="found another kind of file; see the README"):
        cohort.load(tmp_path / "d.nii")
    with pytest.raises(ValueError, match="found nothing there"):
        cohort.load(tmp_path / "e.mat")


def test_the_variables_that_a_file_has_instead_are_named(tmp_path):
    with pytest.raises(ValueError, match="found no such variable, but Data;"):
        cohort.load(saved(tmp_path, records(), name="Data"))


def test_what_other_systems_leave_beside_the_file_is_no_second_one(tmp_path):
    for name in ("a.mat", "._a.mat", "~$a.mat"):
        (tmp_path / name).touch()
    assert loading.find(params.load("cpu").cohort, tmp_path, fetch=False) == tmp_path / "a.mat"


def test_a_cohort_of_other_frame_counts_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="expected 10 images of each of patients 1 to 6, found 4"):
        cohort.write_mat(tmp_path / "a.mat", toy().subset_frames(4))
    assert not list(tmp_path.iterdir())


def test_provenance_is_what_can_be_proved(tmp_path, monkeypatch):
    path = saved(tmp_path, records())
    assert cohort.load(path).provenance["kind"] == "other content"
    monkeypatch.setattr(loading, "KNOWN_CONTENT", toy().provenance["sha256"])
    assert cohort.load(path).provenance["kind"] == "same content"
    checksum = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    artifacts.save_json(download.record_path(path), {"doi": "10.1/x", "file": path.name, "checksum": checksum})
    found = cohort.load(path).provenance
    assert found["kind"] == "published file"
    assert checksum in found["text"]
    artifacts.save_json(download.record_path(path), {"doi": "10.1/x", "checksum": "md5:" + "0" * 32})
    assert cohort.load(path).provenance["kind"] == "same content"


@pytest.mark.skipif("NAFLD_COHORT" not in os.environ, reason="NAFLD_COHORT does not name the real cohort")
def test_the_real_cohort():
    found = cohort.load(os.environ["NAFLD_COHORT"])
    assert found.frames.shape == (55, 10, 434, 636)
    assert found.provenance["kind"] in ("same content", "published file")
    assert found.provenance["sha256"] == loading.KNOWN_CONTENT
    assert found.patients["label"].tolist() == [0] * 17 + [1] * 38
    assert found.images["sha256"].nunique() == 544
    groups = dict.fromkeys((6, 14), 1) | {43: 4}
    assert data.duplicates(found)["patient_id"].value_counts().to_dict() == groups
    table = cohort.summary_table(found.images, found.patients, ("healthy", "fatty"))
    assert table.loc["all"].filter(like="fat ").iloc[2:].tolist() == [17, 20, 8, 10]


# ---------------------------------------------------------------- finding and downloading


def settings(**values):
    return params.load("cpu", {f"cohort.{key}": value for key, value in values.items()}).cohort


def test_the_named_file_comes_before_the_one_in_data(tmp_path):
    lying = cohort.write_mat(tmp_path / "raw" / "a.mat", toy())
    named = cohort.write_mat(tmp_path / "b.mat", toy())
    assert loading.find(settings(), tmp_path / "raw") == lying
    assert loading.find(settings(path=str(named)), tmp_path / "raw") == named
    with pytest.raises(ValueError, match=r"cohort\.path: expected a .mat file or a folder, found nothing at /no/such"):
        loading.find(settings(path="/no/such"), tmp_path / "raw")
    cohort.write_mat(tmp_path / "raw" / "c.mat", toy())
    with pytest.raises(ValueError, match=r"expected one \.mat file, found a\.mat, c\.mat"):
        loading.find(settings(), tmp_path / "raw")


class _Record(http.server.BaseHTTPRequestHandler):
    """Serves one file with ranges; the first answers break off half way."""

    def __init__(self, content, state, *args):
        self.content, self.state = content, state
        super().__init__(*args)

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.state["asked"].append(start)
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = len(self.state["asked"]) <= self.state["faults"]
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def record(monkeypatch):
    """A stand-in for the published record: file, checksum and a server on this machine."""
    content = np.random.default_rng(0).bytes(300_000)
    state = {"asked": [], "faults": 0, "checksum": f"md5:{hashlib.md5(content).hexdigest()}", "content": content}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Record, content, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/cohort.mat"

    def registry(doi, folder):
        import pooch

        return pooch.create(path=folder, base_url=f"doi:{doi}/", registry={"cohort.mat": state["checksum"]})

    monkeypatch.setattr(download, "_registry", registry)
    monkeypatch.setattr(download, "_address", lambda url: address)
    yield state
    server.shutdown()
    server.server_close()


def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path, record):
    record["faults"] = 2
    path = download.fetch("10.1/x", tmp_path / "raw", ".mat", pause=0)
    assert path.read_bytes() == record["content"]
    assert len(record["asked"]) == 3
    assert 0 == record["asked"][0] < record["asked"][1] < record["asked"][2]
    assert json.loads(download.record_path(path).read_text()) == {
        "doi": "10.1/x",
        "file": "cohort.mat",
        "checksum": record["checksum"],
    }
    assert sorted(item.name for item in path.parent.iterdir()) == ["cohort.mat", "cohort.mat.record.json"]


def test_content_of_another_checksum_is_never_kept(tmp_path, record):
    record["checksum"] = "md5:" + "0" * 32
    with pytest.raises(ValueError, match=r"doi 10\.1/x: the cohort cannot be downloaded .* by hand into"):
        download.fetch("10.1/x", tmp_path / "raw", ".mat", attempts=2, pause=0)
    assert not list((tmp_path / "raw").glob("*.mat"))


def test_without_network_one_sentence_says_which_file_to_put_where(tmp_path, monkeypatch):
    def registry(doi, folder):
        raise OSError("Name or service not known")

    monkeypatch.setattr(download, "_registry", registry)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with pytest.raises(
        ValueError, match=r"\(Name or service not known\); download the \.mat file of https://doi\.org/10"
    ):
        loading.find(settings(), tmp_path / "raw")


# ---------------------------------------------------------------- the stage


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    values = {"cohort.source": "file", "cohort.path": None, "cohort.frames_per_patient": 3, "folds.n_splits": 2}
    values |= {"preprocess.crop_size": 64, "preprocess.image_size": 32, "preprocess.map_size": 32}
    made = toy(6, shape=(80, 90))
    path = cohort.write_mat(tmp_path / "data" / "raw" / "a.mat", made)
    return artifacts.open_run("smoke", values), path


def test_stage_units_are_made_once_and_read_back(run):
    run, _ = run
    unit = cohort.build_cohort(run)
    made = unit.file("run.json").stat().st_mtime_ns
    assert cohort.build_cohort(run).file("run.json").stat().st_mtime_ns == made
    found = cohort.open_cohort(run)
    assert found.frames.shape == (6, 3, 80, 90)
    assert isinstance(found.pixels, np.memmap)
    assert (found.pixels == toy(6, shape=(80, 90)).subset_frames(3).pixels).all()
    preprocessing.build_preprocessed(run)
    data = preprocessing.open_preprocessed(run)
    n, k = len(found.images), run.settings.preprocess.crops_per_image
    assert data.crops.shape == (n, 64, 64)
    assert data.pool.shape == data.augmented_pool("traditional").shape == (n, k, 32, 32)
    assert data.pool_maps.shape == (n, k, 32, 32)
    assert data.maps.shape == (n, 32, 32)
    assert data.tissue is None
    assert data.images["image_id"].tolist() == found.images["image_id"].tolist()
    assert data.images["fold"].notna().all()
    for i, j in ((0, 0), (7, 1)):
        box = tuple(data.pool_boxes[i, j])
        from nafld_utils import images
        from nafld_utils.images import semantic_maps

        assert (data.pool[i, j] == images.resize_box(data.crops[i], box, 32)).all()
        assert (
            data.pool_maps[i, j] == semantic_maps.semantic_maps(data.pool[i, j][None], run.settings.preprocess)
        ).all()


def test_the_stored_cohort_outlives_the_raw_file_but_not_another_one(run):
    run, path = run
    cohort.build_cohort(run)
    path.rename(path.with_name("a.away"))
    assert len(cohort.open_cohort(run).images) == 18
    cohort.write_mat(path, toy(6, seed=1, shape=(80, 90)))
    with pytest.raises(ValueError, match="made with other settings, inputs or code revision"):
        cohort.open_cohort(run)


def test_a_bad_cohort_leaves_nothing_behind(run):
    run, path = run
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"a\.mat: expected"):
        cohort.build_cohort(run)
    assert not run.root.exists() or not list(run.root.iterdir())


def test_too_many_folds_leave_nothing_behind(run):
    run, _ = run
    cohort.build_cohort(run)
    many = artifacts.open_run(
        "smoke", {**run.settings.model_dump(include={"cohort", "preprocess"}), "folds.n_splits": 4}
    )
    with pytest.raises(ValueError, match=r"folds\.n_splits is 4, .* found 3"):
        preprocessing.build_preprocessed(many)
    assert [item.name for item in run.root.iterdir()] == ["cohort"]


def test_a_warp_setting_does_not_cost_the_preprocessing(run):
    run, _ = run
    values = run.settings.model_dump(include={"cohort", "preprocess", "folds"})
    values["preprocess"]["warp_strength"] = 0.1
    assert (
        preprocessing.preprocess_unit(artifacts.open_run("smoke", values)).hash
        == preprocessing.preprocess_unit(run).hash
    )
    values["preprocess"]["map_blur"] = 3
    assert (
        preprocessing.preprocess_unit(artifacts.open_run("smoke", values)).hash
        != preprocessing.preprocess_unit(run).hash
    )


# ---------------------------------------------------------------- description


def test_similarity_tells_patients_apart():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 255, (4, 1, 40, 40))
    frames = np.clip(base + rng.normal(0, 20, (4, 10, 40, 40)), 0, 255).astype(np.uint8)
    made = data.from_arrays(frames, [0, 9, 1, 8], [0, 1, 0, 1], SIMULATED)
    pairs = description.similarity(made.images, made.pixels, np.ones((40, 40), bool), step=1)
    assert pairs["pair"].value_counts().to_dict() == {"same patient": 4 * 45, "different patients": 6}
    expected = np.corrcoef(made.pixels[0].ravel(), made.pixels[1].ravel())[0, 1]
    assert pairs["correlation"][0] == pytest.approx(expected, abs=1e-5)
    medians = pairs.groupby("pair")["correlation"].median()
    assert medians["same patient"] > 0.9 > 0.2 > medians["different patients"]


def test_profiles_find_what_was_painted():
    y, x = np.indices((434, 636))
    radius, angle = np.hypot(y - 8, x - 318), np.degrees(np.arctan2(x - 318, y - 8))
    mask = (np.abs(angle) <= 53) & (radius <= 358)
    row, column, half = description.sector_geometry(mask)
    assert (row, column, half) == pytest.approx((8, 318, 53), abs=0.7)
    falling = np.where(mask, 200 - radius / 2, 0).astype(np.uint8)
    tilted = np.where(mask, 100 + angle, 0).astype(np.uint8)
    frames = np.stack([falling, falling, tilted, tilted])[:, None].repeat(2, axis=1)
    made = data.from_arrays(frames, [0, 1, 9, 8], [0, 0, 1, 1], SIMULATED)
    curves = description.profiles(made.patients, made.images, made.pixels, np.stack([mask] * 4))
    depth = curves[(curves["kind"] == "depth") & (curves["patient_id"] == 1) & (curves["position"] > 30)]
    assert depth["grey"].to_numpy() == pytest.approx(199.5 - depth["position"].to_numpy() / 2, abs=1.5)
    lateral = curves[(curves["kind"] == "lateral") & (curves["patient_id"] == 3)]
    assert lateral["grey"].to_numpy() == pytest.approx(99.5 + lateral["position"].to_numpy(), abs=1.5)
    means = cohort.class_curves(curves)
    assert (means["high"] >= means["low"]).all()
    assert set(means["n_patients"]) == {2}


def test_bands_meet_at_their_edges():
    grades = pd.Series([0.0, 4.9, 5.0, 33.0, 33.1, 66.0, 67.0, 100.0])
    expected = ["below 5"] * 2 + ["5 to 33"] * 2 + ["above 33 to 66"] * 2 + ["above 66 to 100"] * 2
    assert description.grade_band(grades).tolist() == expected
