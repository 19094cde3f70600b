"""Disks that are full or read-only, memory that lacks: one sentence, nothing half-written, and the next run goes on."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import faulty
import numpy as np
import pandas as pd
import pytest
from faulty import RUN, assert_same, fingerprint, perform
from PIL import Image
from project import PROJECT

pytestmark = pytest.mark.faults
PIXELS = Path("artifacts") / RUN / "cohort" / "pixels.npy"
# Every way of writing: savemat, npy, safetensors shards and checkpoints, a mapped array, Parquet, HTML.
WRITERS = ("cohort", "preprocessed", "denoisers", "gan", "sets", "trainings", "page")


@pytest.fixture
def place():
    """A folder for mounts, apart from pytest's own: another session could not clear those of a killed one away."""
    folder = Path(tempfile.mkdtemp(prefix="nafld-faults-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(root):
    """Files that a step which failed (and was not killed) must not leave."""
    return [path for path in root.rglob("*.tmp*") if path.is_file()]


@pytest.mark.promise("disk")
@pytest.mark.parametrize("step", WRITERS)
def test_a_full_disk_is_named_and_the_step_goes_on_when_there_is_room(calm, place, step, record_property):
    """On a tmpfs of its own where this process may mount one, else with writes refused; the table says which ran."""
    rng, root = random.Random(f"{faulty.SEED} {step}"), place / "disk"
    # a training that fails stops no other; the step after it refuses to do without
    names = [step, "answer"] if step == "trainings" else [step]
    with contextlib.ExitStack() as stack:
        if faulty.can_mount():
            needed = calm.pages(_next(step)) - calm.pages(step)
            resize = stack.enter_context(faulty.small_disk(root, 2**30))
            calm.before(step, root, link=False)
            found = os.statvfs(root)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            resize(f"size={used + int(rng.uniform(0.1, 0.8) * needed) * faulty.PAGE}")
            ended = perform(root, names)
            record_property("how", "a tmpfs too small for the step")
        else:
            calm.before(step, root)
            ended = perform(root, names, ("full", rng.randint(1, calm.events[step] // 2)))
            record_property("how", "writes refused with ENOSPC; no file system could be mounted here")
        note = f"repeat with NAFLD_FAULT_SEED={faulty.SEED}\n{ended.said[-3000:]}"
        assert ended.code == 1, note
        assert "no space left while writing" in ended.said, note
        assert str(root) in ended.said.split("no space left while writing", 1)[1][:200]
        assert leftovers(root) == []
        if faulty.can_mount():
            resize("size=1g")
        ended = perform(root, step)
        assert ended.code == 0, ended.said[-3000:]
        assert_same(fingerprint(root), calm.after(step))


def _next(step):
    order = [*faulty.STEPS, "end"]
    return order[order.index(step) + 1]


@pytest.mark.promise("disk")
def test_a_disk_without_room_is_refused_before_any_kernel(tmp_path):
    done = nafld(tmp_path, "resolve", "--set=engine.min_free_gib=1.0e+9")
    assert done.returncode == 2
    assert "GiB free, expected at least 1e+09 GiB (engine.min_free_gib)" in done.stderr
    assert "free disk space or point NAFLD_ROOT to another disk" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def nafld(root, *arguments, **environment):
    """The command behind make, under another root."""
    return subprocess.run(
        [sys.executable, "-m", "nafld_utils.cli", *arguments, "--profile=smoke"],
        cwd=PROJECT,
        env={**os.environ, "NAFLD_ROOT": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---------------------------------------------------------------- read-only folders


@contextlib.contextmanager
def read_only(folder):
    """The folder mounted read-only, so that root cannot write either; without mounts, without the right to write."""
    if faulty.can_mount():
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        try:
            yield "mounted read-only"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    if os.geteuid() == 0:
        pytest.skip("root that may not mount cannot be kept from writing")
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in places:
        path.chmod(0o555)
    try:
        yield "without the right to write"
    finally:
        for path in places:
            path.chmod(0o755)


@pytest.mark.promise("read-only")
def test_read_only_artifacts_are_refused_by_name_before_any_kernel_and_left_as_they_are(calm, place):
    root = calm.before("end", place / "work", link=False)
    before = fingerprint(root)
    with read_only(root):
        done = nafld(root, "resolve")
        assert done.returncode == 2
        assert "set NAFLD_ROOT" in done.stderr
        (said,) = done.stderr.splitlines()
        assert str(root) in said
    assert_same(fingerprint(root), before)


@pytest.mark.promise("read-only")
def test_a_finished_run_can_be_read_where_nothing_can_be_written(calm, place):
    root = calm.before("end", place / "work", link=False)
    with read_only(root):
        ended = perform(root, ["cohort", "preprocessed", "denoisers", "sets", "quality", "answer", "analysis"])
    assert ended.code == 0, ended.said[-3000:]
    assert ended.events == 0, "what is done is only read"


@pytest.mark.promise("read-only")
def test_a_step_on_read_only_artifacts_names_the_folder_and_leaves_nothing(calm, place):
    root = calm.before("page", place / "work", link=False)
    with read_only(root):
        ended = perform(root, "page")
    assert ended.code == 1
    assert "Read-only file system" in ended.said or "Permission denied" in ended.said
    assert str(root) in ended.said.rsplit("ended by", 1)[1]
    ended = perform(root, "page")
    assert ended.code == 0
    assert_same(fingerprint(root), calm.after("page"))


@pytest.mark.promise("read-only")
def test_a_cohort_in_a_read_only_folder_is_read_and_not_touched(calm, place):
    data = place / "data"
    data.mkdir()
    (mat,) = (calm.root / "artifacts" / RUN / "cohort").glob("*.mat")
    (data / "cohort.mat").write_bytes(mat.read_bytes())
    calm_pixels = np.load(calm.root / PIXELS)
    table = pd.read_csv(calm.root / "artifacts" / RUN / "cohort" / "images.csv")
    images = data / "images"
    images.mkdir()
    table["image"] = [f"{name}.png" for name in table["image_id"]]
    for name, pixels in zip(table["image"], calm_pixels, strict=True):
        Image.fromarray(pixels).save(images / name)
    table[["image", "patient_id", "label"]].rename(columns={"patient_id": "patient"}).to_csv(
        images / "images.csv", index=False
    )
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with read_only(data):
        for given in (data / "cohort.mat", images):
            root = place / f"work-{given.name}"
            chosen = {"cohort.source": "file", "cohort.path": str(given)}
            ended = perform(root, ["cohort", "preprocessed"], overrides=chosen)
            assert ended.code == 0, ended.said[-3000:]
            assert np.array_equal(np.load(root / PIXELS), calm_pixels), given.name
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


# ---------------------------------------------------------------- memory and devices


@pytest.mark.promise("memory")
@pytest.mark.parametrize(
    ("step", "mebibytes"), [("cohort", 24), ("preprocessed", 4), ("denoisers", 24), ("trainings", 32)]
)
def test_too_little_memory_is_said_and_the_step_goes_on_with_more(calm, tmp_path, step, mebibytes):
    root = calm.before(step, tmp_path / "work")
    ended = perform(root, step, ("memory", mebibytes))
    assert ended.code == 1, ended.said[-3000:]
    assert "MemoryError" in ended.said, ended.said[-3000:]
    assert leftovers(root) == []
    ended = perform(root, step)
    assert ended.code == 0, ended.said[-3000:]
    assert_same(fingerprint(root), calm.after(step))


@pytest.mark.promise("memory")
def test_an_error_of_any_allocator_says_what_to_do():
    import torch

    from nafld_utils import engine

    told = [
        engine.in_words(error)
        for error in (
            MemoryError(),
            MemoryError("Unable to allocate 9 GiB for an array"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            OSError(12, "Cannot allocate memory"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        )
    ]
    assert all(text.startswith("MemoryError: not enough memory (") for text in told)
    assert all("lower JOBS, engine.n_workers or the stage's batch_size" in text for text in told)
    assert engine.in_words(ValueError("x")) == "ValueError: x"


@pytest.mark.promise("device")
def test_a_gpu_that_is_not_there_is_refused_before_any_kernel_and_by_the_step(calm, tmp_path):
    done = nafld(tmp_path / "none", "resolve", "--set=engine.device=cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "engine.device is cuda, expected that GPU, found 0 GPUs" in done.stderr
    root = calm.before("denoisers", tmp_path / "work")
    ended = perform(root, "denoisers", overrides={"engine.device": "cuda"})
    assert ended.code == 1
    assert "engine.device is cuda, expected that GPU, found 0 GPUs" in ended.said
    assert not [path for path in (root / "artifacts" / RUN / "ldm").rglob("*") if path.is_file()]
