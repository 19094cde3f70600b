"""What leaves the house: which images, whose names, what is refused, and whether its classifiers score as the run."""

import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from nafld_utils import artifacts, cohort, preprocessing, quality, release, sampling, sweep
from nafld_utils.quality import copy_units
from nafld_utils.release import export


@pytest.fixture(scope="module")
def exported(smoke, tmp_path_factory):
    """The export of a copy of the small run, its release list and the run; one for all tests of this file."""
    root, patch = tmp_path_factory.mktemp("exported"), pytest.MonkeyPatch()
    shutil.copytree(
        smoke.root / "artifacts", root / "artifacts", copy_function=os.link
    )  # others look at the run itself
    patch.setenv("NAFLD_ROOT", str(root))
    run = artifacts.open_run("smoke")
    listed = export.released(run)
    yield SimpleNamespace(run=run, folder=release.write_export(run), listed=listed)
    patch.undo()


@pytest.mark.slow
def test_the_images_are_those_that_the_audit_kept_and_a_cohort_of_the_projects_own_format(exported):
    run, folder, listed = exported.run, exported.folder, exported.listed
    kept = listed[listed["release"] == "kept"]
    table = pd.read_csv(folder / "images.csv")
    assert table["patient"].tolist() == kept["synthetic_id"].tolist()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {*table["image"]}
    for row in kept.groupby(["generator", "fold"]).head(2).itertuples():
        drawn = sampling.open_set(run, row.generator, row.fold)
        place = drawn.table["synthetic_id"].tolist().index(row.synthetic_id)
        with Image.open(folder / f"images/fold{row.fold}/{row.generator}/{row.synthetic_id}.png") as picture:
            assert picture.mode == "L"
            assert not picture.info, "no text, no time"
            assert np.array_equal(np.asarray(picture), drawn.images[place])
    found = cohort.load(folder, run.settings.cohort.class_names)
    assert len(found.images) == len(kept)
    assert found.images["label"].tolist() == kept["label"].tolist()
    assert found.provenance["kind"] == "simulated", "synthetic images never pass for patients"
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert len(sums) == sum(path.is_file() for path in folder.rglob("*")) - 1


def test_sixteen_bits_stay_sixteen(tmp_path, monkeypatch):
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64) * 16
    drawn = SimpleNamespace(images=deep, table=pd.DataFrame({"synthetic_id": ["class_f0_00000"]}))
    monkeypatch.setattr(sampling.set_units, "open_set", lambda run, generator, fold: drawn)
    row = {"synthetic_id": "class_f0_00000", "generator": "class", "fold": 0, "release": "kept"}
    export._write_images(None, pd.DataFrame([row]), tmp_path)
    with Image.open(tmp_path / "images/fold0/class/class_f0_00000.png") as picture:
        assert np.array_equal(np.asarray(picture), deep[0])


@pytest.mark.slow
def test_nothing_names_or_shows_a_patient(exported):
    run, folder = exported.run, exported.folder
    data = preprocessing.open_preprocessed(run)
    real = {image.tobytes() for array in (data.resized, data.pool.reshape(-1, *data.pool.shape[2:])) for image in array}
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture).tobytes() not in real
    copied = exported.listed[exported.listed["copy"]]["synthetic_id"]
    assert not {path.stem for path in folder.rglob("*.png")} & {*copied}
    private = re.compile(r"p\d{3,}(_f\d+)?\b|source_(patient|image)|nearest|_patient\b|sha256|sources\.csv")
    written = [path for path in folder.rglob("*") if path.suffix in (".csv", ".md", ".cff", ".json", ".py")]
    assert len(written) == 6
    for path in written:
        assert not private.search(path.read_text(encoding="utf-8")), path.name
    assert str(run.root.parent.parent) not in "".join(path.read_text(encoding="utf-8") for path in written)
    assert list(pd.read_csv(folder / "images.csv")) == ["image", "patient", "label", "generator", "drawn_in"]
    for path in folder.rglob("*.safetensors"):
        assert artifacts.files.load_weight_facts(path) == {}


@pytest.mark.slow
def test_the_cards_are_filled_from_the_run(exported):
    data, model = (" ".join((exported.folder / f"{name}_CARD.md").read_text().split()) for name in ("DATA", "MODEL"))
    kept = exported.listed["release"] == "kept"
    for generator, part in exported.listed.groupby("generator"):
        for label, name in enumerate(exported.run.settings.cohort.class_names):
            mine = kept[part.index][part["label"] == label]
            assert f"| {generator} | {name} | {mine.sum()} | {(~mine).sum()} |" in data
    assert "of 8 patients (2 healthy, 6 fatty)" in data
    assert "planted: exact copies" in data
    assert "To be named by the owner" in data
    assert "**Simulated.**" in data
    assert "**No meaning.**" in model, "the smoke profile"
    assert "can betray who they were" in model
    assert "Intended use" in data
    assert "Intended use" in model
    citation = yaml.safe_load((exported.folder / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "to be named by the owner"}]
    assert [work["type"] for work in citation["references"]] == ["software", "article"], "no data set of patients"


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(exported):
    before = (exported.folder / "SHA256SUMS").read_bytes()
    (exported.folder / "left.txt").touch()
    release.write_export(exported.run)
    assert (exported.folder / "SHA256SUMS").read_bytes() == before
    assert not (exported.folder / "left.txt").exists()
    assert [path.name for path in exported.folder.parent.glob(".*export*")] == []


def fresh(folder, *names):
    """What some distributions install, with what they require and nothing else, as links in a folder for PYTHONPATH."""
    todo, seen = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # another system's
            continue
        if name not in seen:
            seen.add(name)
            todo += [re.match(r"[\w.-]+", line)[0] for line in found.requires or [] if "extra ==" not in line]
            for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(found.locate_file(top))


@pytest.mark.slow
def test_the_script_gives_the_runs_scores_where_only_its_four_libraries_are_installed(exported, tmp_path):
    run, data = exported.run, preprocessing.open_preprocessed(exported.run)
    site, crops, away = tmp_path / "site", tmp_path / "crops", tmp_path / "away"
    site.mkdir()
    crops.mkdir()
    fresh(site, "torch", "timm", "safetensors", "pillow")
    shutil.copytree(exported.folder, away)
    for name, image in zip(data.images["image_id"], data.resized, strict=True):
        Image.fromarray(np.array(image)).save(crops / f"{name}.png")

    def python(*arguments):
        command = [sys.executable, "-S", "-P", *map(str, arguments)]
        env = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    for missing in ("nafld_utils", "pandas", "sklearn"):
        assert "No module named" in python("-c", f"import {missing}").stderr
    done = python(away / "predict.py", crops)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(io.StringIO(done.stdout))
    found.index = found["image"].str.extract(r"(p\d+_f\d+)\.png", expand=False)
    trials = sweep.of_arm(run, run.settings.sweep.primary_arm)
    kept = sweep.held_out_scores(run, trials)
    ours = np.array([found.loc[row.image_id, f"fold{row.fold}"] for row in kept.itertuples()])
    stated = re.search(r"files is ([\d.e-]+)\.", " ".join((away / "MODEL_CARD.md").read_text(encoding="utf-8").split()))
    limit = float(stated[1])
    assert limit < 1e-3
    assert np.abs(ours - kept["score"]).max() <= 1.05 * limit + 1e-9
    folds = [f"fold{trial['fold']}" for trial in trials]
    assert found["score"].to_numpy() == pytest.approx(found[folds].mean(axis=1).to_numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["small.png"], r"expected 64 x 64 pixels, found \(9, 9\); raw frames go through make predict"),
        ([], "python predict.py"),
    ],
)
def test_the_script_says_what_it_takes(exported, tmp_path, monkeypatch, given, said):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["predict.py", *given])
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(str(exported.folder / "predict.py"), run_name="__main__")


@pytest.mark.slow
def test_an_export_is_refused_where_the_audit_was_not_run_or_is_blind(exported, monkeypatch):
    other = artifacts.open_run("smoke", {"quality.n_planted": 4})
    with pytest.raises(ValueError, match=r"expected the copy audit of notebook 05, found none that holds \(made with"):
        release.write_export(other)
    found = quality.calibration(exported.run)
    assert (found.loc[found["set"].isin(export.MUST_FIND), "copy"] >= export.LEAST_FOUND).all()
    for name in export.MUST_FIND:
        blind = found.assign(copy=found["copy"].where(found["set"] != name, 0.85))
        monkeypatch.setattr(copy_units, "calibration", lambda run, blind=blind: blind)
        with pytest.raises(ValueError, match=rf"expected a copy audit that finds 90% of {name}, found 85% of 6"):
            release.write_export(exported.run)
        monkeypatch.setattr(copy_units, "calibration", lambda run, name=name: found[found["set"] != name])
        with pytest.raises(ValueError, match="so its release list proves nothing"):
            release.write_export(exported.run)
