"""Units are whole or absent, and done only while settings, inputs, code revision and content agree."""

import contextlib
import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from nafld_utils import artifacts, cli, pipeline, views
from nafld_utils.artifacts import files, locks, units


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("smoke")


def make(unit, value=1.0):
    with unit.writing() as folder:
        np.save(folder / "a.npy", np.full(3, value))


def fail_inside(unit, error):
    with unit.writing() as folder:
        (folder / "half").write_text("x")
        raise error


def test_a_unit_is_done_after_writing_and_says_why_it_is_not(run):
    unit = run.unit("toy", "fold0", settings={"a": 1})
    assert unit.fault() == "not made yet"
    make(unit)
    assert unit.done()
    assert unit.path == run.root / "toy" / "fold0"
    manifest = json.loads(unit.file("run.json").read_text())
    assert manifest["settings"] == {"a": 1}
    assert manifest["versions"]["torch"]
    assert set(manifest["files"]) == {"a.npy"}


def test_what_file_managers_leave_in_a_unit_is_no_part_of_it(run):
    unit = run.unit("toy", settings={"a": 1})
    with unit.writing() as folder:
        np.save(folder / "a.npy", np.full(3, 1.0))
        (folder / ".DS_Store").write_text("x")
    (unit.path / ".DS_Store").unlink()
    assert unit.done()
    (unit.path / "Thumbs.db").write_text("x")
    assert unit.done()


def test_a_checkpoint_of_an_edited_module_is_no_second_module(tmp_path, monkeypatch):
    for name in ("artifacts/units.py", ".ipynb_checkpoints/units-checkpoint.py", "artifacts/._units.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('REVISION = ("toy", 3)\n')
    monkeypatch.setattr(units, "__file__", str(tmp_path / "artifacts" / "units.py"))
    assert units._revisions.__wrapped__() == {"toy": (3,)}


@pytest.mark.parametrize("change", [{"settings": {"a": 2}}, {"inputs": ["other"]}, {"modules": ["diffusion"]}])
def test_another_recipe_is_another_unit(run, change):
    base = {"settings": {"a": 1}}
    make(run.unit("toy", **base))
    assert run.unit("toy", **base).done()
    assert not run.unit("toy", **(base | change)).done()


def test_a_new_revision_undoes_a_unit(run, monkeypatch):
    make(run.unit("toy", settings={}, modules=["diffusion"]))
    assert run.unit("toy", settings={}, modules=["diffusion"]).done()
    monkeypatch.setattr("nafld_utils.artifacts.run.revision", lambda name: 10**6)
    assert not run.unit("toy", settings={}, modules=["diffusion"]).done()


def test_changes_travel_down_the_chain(run):
    first = run.unit("one", settings={"a": 1})
    assert run.unit("two", settings={}, inputs=[first]).hash == run.unit("two", settings={}, inputs=[first.hash]).hash
    other = run.unit("one", settings={"a": 2})
    assert run.unit("two", settings={}, inputs=[first]).hash != run.unit("two", settings={}, inputs=[other]).hash


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damage_is_named_and_undoes_the_unit(run, damage):
    unit = run.unit("toy", settings={})
    make(unit)
    path = unit.file("run.json" if damage == "manifest" else "a.npy")
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content[: len(content) // 2])
    assert not unit.done()
    with pytest.raises(ValueError, match=r"toy: .*run the stage"):
        unit.load_array("a.npy")


def test_a_link_in_place_of_a_unit_is_replaced_and_what_it_leads_to_stays(run, tmp_path):
    unit, elsewhere = run.unit("a", settings={}), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("x")
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    unit.path.symlink_to(elsewhere)
    make(unit)
    assert unit.done()
    assert not unit.path.is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["kept.txt"]
    assert [path.name for path in unit.path.parent.iterdir()] == ["a"], "the old link is not left under another name"


def test_an_error_inside_leaves_nothing(run):
    unit = run.unit("toy", settings={})
    with pytest.raises(KeyError):
        fail_inside(unit, KeyError("boom"))
    assert list(unit.path.parent.iterdir()) == []


def test_an_error_keeps_the_unit_that_was_there(run):
    unit = run.unit("toy", settings={})
    make(unit, 1.0)
    with pytest.raises(KeyError):
        fail_inside(unit, KeyError("boom"))
    assert unit.load_array("a.npy")[0] == 1.0


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(run):
    unit = run.unit("toy", settings={})
    with pytest.raises(OSError, match=r"no space left while writing .*toy; free disk space"):
        fail_inside(unit, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(unit.path.parent.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_refused_before_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.run.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(OSError, match=r"0\.1 GiB free, expected at least 0\.5 GiB \(engine\.min_free_gib\)"):
        artifacts.check_disk(run)
    for stage in pipeline.STAGES:
        with pytest.raises(OSError, match="GiB free"):
            pipeline.begin(run, stage)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_unit_and_its_remains_are_swept(run, tmp_path):
    code = (
        "import os\nfrom nafld_utils import artifacts\n"
        "unit = artifacts.open_run('smoke').unit('toy', settings={})\n"
        "with unit.writing() as folder:\n    (folder / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NAFLD_ROOT": str(tmp_path)}, check=False)
    assert done.returncode == -9
    unit = run.unit("toy", settings={})
    assert not unit.done()
    assert {p.suffix for p in unit.path.parent.iterdir()} == {".tmp", ".lock"}
    make(unit)
    assert [p.name for p in unit.path.parent.iterdir()] == ["toy"]


def test_what_another_process_writes_now_is_not_swept(run, tmp_path):
    """Its process id says nothing: it may run on another host."""
    code = (
        "import sys\nfrom nafld_utils import artifacts\n"
        "unit = artifacts.open_run('smoke').unit('toy', settings={})\n"
        "with unit.writing() as folder:\n    (folder / 'a').write_text('x')\n    print('in', flush=True)\n"
        "    sys.stdin.read()\n    (folder / 'b').write_text('y')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "NAFLD_ROOT": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    unit = run.unit("toy", settings={})
    assert process.stdout.readline() == b"in\n"
    artifacts.remove_orphans(unit.path.parent, ".toy.*.tmp")
    process.communicate(b"", timeout=60)
    assert process.returncode == 0
    assert unit.done()
    assert [p.name for p in unit.path.parent.iterdir()] == ["toy"]


def test_without_locks_units_are_written_and_nothing_of_others_is_removed(run, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    unit = run.unit("toy", settings={})
    other = unit.path.with_name(".toy.0123.tmp")
    other.mkdir(parents=True)
    make(unit)
    assert unit.done()
    assert sorted(p.name for p in unit.path.parent.iterdir()) == [other.name, "toy"]


def test_two_threads_write_a_unit_one_after_the_other(run):
    unit, inside, most = run.unit("toy", settings={}), [], []

    def write(value):
        with unit.writing() as folder:
            inside.append(value)
            most.append(len(inside))
            time.sleep(0.05)
            files.save_array(folder / "a.npy", np.full(3, value))
            inside.remove(value)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert most == [1, 1, 1]
    assert unit.done()
    assert [p.name for p in unit.path.parent.iterdir()] == ["toy"]


def test_who_holds_a_unit_may_write_it(run):
    unit = run.unit("toy", settings={})
    with artifacts.locked(unit.path):
        make(unit)
        assert unit.path.with_name(".toy.lock").exists(), "it is still held"
    assert unit.done()


@pytest.mark.parametrize("change", [{"a": 2}, {"b": 1}, {"seal": "0" * 16}])
def test_a_sealed_record_that_was_changed_is_not_whole_and_an_old_one_without_seal_is(change):
    record = artifacts.sealed({"a": 1, "path": Path("x")})
    assert artifacts.is_whole(json.loads(json.dumps(record)))
    assert not artifacts.is_whole({**record, **change})
    assert artifacts.is_whole({"a": 1})


def test_finished_work_removes_the_resumable_part(run):
    unit = run.unit("toy", settings={})
    unit.work.mkdir(parents=True)
    make(unit)
    assert not unit.work.exists()


def test_work_that_a_process_killed_after_sealing_left_goes_when_its_stage_ends(run):
    unit = run.unit("scores", settings={"n": 1})
    make(unit)
    unit.work.mkdir(parents=True)
    (unit.work / "half.npy").write_bytes(b"0")
    other = run.unit("scores", settings={"n": 2})  # not done: its work stays
    other.work.mkdir(parents=True)
    assert unit.done(), "a question changes nothing"
    assert unit.work.exists()
    run.finish("toy", [unit])
    assert (unit.work.exists(), other.work.exists()) == (False, True)


def test_the_commit_is_that_of_the_checkout_whoever_owns_it_and_of_no_other(tmp_path, monkeypatch):
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    git = ["git", "-C", str(outer), "-c", "user.name=x", "-c", "user.email=x@y.z"]
    (outer / "file").write_text("x")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:12]
    assert units.commit_of(outer) == commit
    assert units.commit_of(inner) == "unknown", "a checkout around it is another project's"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run([*git, "describe", "--always"], check=False, capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nothing"))
    assert units.commit_of(outer) == commit
    (outer / "file").write_text("y")
    assert units.commit_of(outer) == f"{commit}-dirty"


def test_too_many_open_files_is_told_as_that_with_advice_and_blames_no_file(run, tmp_path, monkeypatch, capsys):
    unit = run.unit("toy", settings={})
    make(unit)
    run.finish("01_data_analysis", [unit])
    weights = tmp_path / "w.safetensors"
    files.save_weights(weights, {"a": torch.zeros(1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 9, hard))
        with contextlib.suppress(OSError):
            while True:
                handles.append(open(os.devnull))  # noqa: SIM115
        for ask in (
            unit.done,
            lambda: artifacts.stage_fault(run, "01_data_analysis"),
            lambda: artifacts.load_weights(weights),
            lambda: unit.load_array("a.npy"),
        ):
            with pytest.raises(OSError, match="Too many open files") as caught:
                ask()
            assert caught.value.errno == errno.EMFILE
    finally:
        for handle in handles:
            handle.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert unit.done()
    advice = "raise the limit with `ulimit -n 8192`, or lower JOBS and engine.n_workers, and run again"
    told = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.npy")
    assert pipeline.execute._reason(told) == "OSError: [Errno 24] Too many open files: 'a.npy'"
    assert artifacts.advised(pipeline.execute._reason(told)).endswith(advice)
    assert artifacts.advised(artifacts.advised("x: Too many open files")).count(advice) == 1
    assert artifacts.advised("No such file") == "No such file"
    monkeypatch.setattr(cli, "_archive", lambda _: (_ for _ in ()).throw(told))
    assert cli.main(["report-zip", "x"]) == 2
    assert capsys.readouterr().err == f"nafld: Too many open files: a.npy; {advice}\n"


def test_a_key_stays_when_its_module_moves_and_stands_in_one_module_alone(monkeypatch):
    assert artifacts.revision("diffusion") >= 1
    with pytest.raises(ValueError, match="expected it in one module, found it in 0"):
        artifacts.revision("nothing_of_that_name")
    monkeypatch.setattr(units, "_revisions", lambda: {"twice": (1, 1)})
    with pytest.raises(ValueError, match="found it in 2"):
        artifacts.revision("twice")


def test_a_run_names_a_unit_once_and_sends_none_to_a_worker(run):
    named = []

    @artifacts.remembered
    def unit(run, fold):
        named.append(fold)
        return run.unit("toy", fold, settings={})

    assert unit(run, 1) is unit(run, 1)
    assert unit(run, 2).path != unit(run, 1).path
    assert named == [1, 2]
    assert not pickle.loads(pickle.dumps(run)).remembered
    assert len(run.remembered) == 3, "two units and the marks of files"


def test_every_setting_that_names_a_file_of_the_user_is_looked_at():
    keys = [key for named in pipeline.USER_FILES.values() for key in named]
    assert {key.rpartition(".")[2] for key in keys} <= set(artifacts.run.NAME_FILES)


def test_units_are_named_anew_when_the_stored_cohort_or_a_file_of_the_settings_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    run = artifacts.open_run("smoke", {"quality.weights": str(weights)})

    @artifacts.remembered
    def unit(run):
        return run.unit("toy", settings={}, inputs=[artifacts.file_sha256(weights)])

    first = unit(run)
    assert unit(run) is first
    weights.write_bytes(b"two")
    second = unit(run)
    assert second.hash != first.hash
    artifacts.save_json(run.root / "cohort" / artifacts.MANIFEST, {"hash": "another"})
    assert unit(run) is not second
    assert unit(run).hash == second.hash


def test_tables_and_arrays_round_trip_without_pickle(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    for name in ("t.csv", "t.parquet"):
        pd.testing.assert_frame_equal(artifacts.load_table(artifacts.save_table(tmp_path / name, table)), table)
        own = artifacts.load_table(tmp_path / name)
        own.loc[0, "a"] = 7
        assert artifacts.load_table(tmp_path / name)["a"].tolist() == [1, 2]
        artifacts.save_table(tmp_path / name, table.assign(a=[2, 1]))  # of the same size
        assert artifacts.load_table(tmp_path / name)["a"].tolist() == [2, 1]
    files.save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert files.load_array(tmp_path / "a.npy", mmap=True)[1, 2] == 5
    with pytest.raises(ValueError, match="allow_pickle"):
        files.save_array(tmp_path / "bad.npy", np.array([{}], dtype=object))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "t.csv", "t.parquet"]


def test_a_stage_is_valid_until_one_of_its_units_changes(run):
    unit = run.unit("toy", settings={})
    make(unit)
    assert artifacts.stage_fault(run, "01_data_analysis") == "it has not finished"
    files = run.finish("01_data_analysis", [unit])
    assert any(name.endswith("toy/a.npy") for name in files["file"])
    assert artifacts.stage_fault(run, "01_data_analysis") is None
    unit.file("a.npy").unlink()
    assert "toy" in artifacts.stage_fault(run, "01_data_analysis")


def test_a_stage_does_not_finish_on_a_unit_that_is_not_done(run):
    with pytest.raises(ValueError, match="not made yet"):
        run.finish("01_data_analysis", [run.unit("toy", settings={})])


def test_claims_have_fixed_columns(run):
    row = {"key": "cohort.patients", "claim": "patients", "this_run": 8, "same_protocol": "no: simulated"}
    table = run.record_claims("01_data_analysis", [row])
    stored = pd.read_csv(run.root / "01_data_analysis" / "claims.csv")
    assert tuple(stored.columns) == artifacts.CLAIM_COLUMNS
    assert stored["key"].tolist() == ["cohort.patients"]
    shown = views.claims(table).data
    assert shown.index.name == "claim"
    assert "cohort.patients" not in shown.to_csv(), "people read the sentence, programs the key"
    with pytest.raises(ValueError, match="protocl"):
        run.record_claims("01_data_analysis", [{**row, "protocl": 1}])
    with pytest.raises(ValueError, match=r"missing \['key'\]"):
        run.record_claims("01_data_analysis", [{**row, "key": ""}])


def test_a_key_stands_once_in_a_run(run):
    row = {"key": "cohort.patients", "claim": "patients", "this_run": 8, "same_protocol": "yes"}
    with pytest.raises(ValueError, match=r"found 'cohort\.patients', which claim 'patients' of 01_data_analysis has"):
        run.record_claims("01_data_analysis", [row, {**row, "claim": "people"}])
    run.record_claims("01_data_analysis", [row])
    run.record_claims("01_data_analysis", [row])
    with pytest.raises(ValueError, match=r"which a claim of 01_data_analysis has; give one of them another key"):
        run.record_claims("02_preprocessing", [row])
    path = run.root / "01_data_analysis" / "claims.csv"
    pd.read_csv(path).drop(columns="key").to_csv(path, index=False)
    assert len(run.record_claims("02_preprocessing", [row])) == 1, "claims of old runs have no key"


def test_seeds_are_stable_and_differ_by_every_part():
    assert artifacts.unit_seed(0, "ldm", 1) == 2963892326978513372
    seeds = {artifacts.unit_seed(*parts) for parts in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1")]}
    assert len(seeds) == 5


def test_show_names_what_differs_from_the_paper(run):
    table = run.show("folds", "ldm.prediction").set_index("setting")
    assert table.loc["folds.n_splits", "this run"] == "2"
    assert table.loc["folds.n_splits", "paper profile, where it differs"] == "5"
    assert "ldm.prediction" in table.index
    assert "ldm.steps" not in table.index
    assert run.show("cohort.class_names").iloc[0].tolist() == ["cohort.class_names", "[healthy, fatty]", ""]
    other = artifacts.open_run("smoke", {"cohort.class_names": ["no", "yes"]}).show("cohort")
    assert not other.astype(str).apply(lambda column: column.str.contains("healthy|fatty")).any(axis=None)


def test_a_cohort_file_that_carries_the_mark_counts_as_simulated(run):
    real = artifacts.open_run("smoke", {"cohort.source": "file", "cohort.path": "somewhere.mat"})
    assert run.is_simulated
    assert not real.is_simulated
    artifacts.save_json(real.root / "cohort" / "provenance.json", {"kind": "simulated"})
    assert real.is_simulated
    artifacts.save_json(real.root / "cohort" / "provenance.json", {"kind": "other content"})
    assert not real.is_simulated


# ---------------------------------------------------------------- arrays larger than memory


def test_an_array_in_parts_is_the_array_at_once(tmp_path):
    whole = np.random.default_rng(0).normal(size=(3, 4, 2, 5)).astype(np.float16)
    flat = whole.reshape(12, 2, 5)
    with artifacts.array_in_parts(tmp_path / "parts.npy", (3, 4)) as append:
        for start in range(0, 12, 5):
            append(flat[start : start + 5])
    files.save_array(tmp_path / "whole.npy", whole)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert files.load_array(tmp_path / "parts.npy", mmap=True).shape == whole.shape


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "expected 4 rows, found 0"),
        ([(3, 2)], "expected 4 rows, found 3"),
        ([(3, 2), (2, 2)], "expected 4 rows, found 5"),
        ([(3, 2), (1, 3)], "make all parts alike"),
    ],
)
def test_parts_that_do_not_make_the_array_leave_nothing(tmp_path, parts, text):
    def write():
        with artifacts.array_in_parts(tmp_path / "a.npy", (2, 2)) as append:
            for shape in parts:
                append(np.zeros(shape))

    with pytest.raises(ValueError, match=text):
        write()
    assert not list(tmp_path.iterdir())
