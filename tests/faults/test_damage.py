"""Every kind of artifact damaged in turn: it is named, and made again or refused; never used."""

import json
import os
import random
import re
import shutil

import faulty
import numpy as np
import pandas as pd
import pytest
import torch
from faulty import RUN, assert_same, fingerprint, perform

pytestmark = [pytest.mark.faults, pytest.mark.promise("damage")]
DAMAGES = {
    "truncated": lambda content, rng: content[: rng.randrange(1, len(content))] if len(content) > 1 else b"",
    "one bit flipped": lambda content, rng: flip(content, rng.randrange(len(content)), rng.randrange(8)),
    "emptied": lambda content, rng: b"",
    "another file's content": lambda content, rng: content[::-1],
    "removed": lambda content, rng: None,
}
# Every ending of a file that a run keeps, and what holds it: a unit's manifest, the trial store, or make's stamps.
KINDS = {".csv", ".html", ".json", ".mat", ".npy", ".parquet", ".safetensors"}


def flip(content, place, bit):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def damage(path, how, rng):
    """Damage a file; its times stay, as on a disk that fails."""
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    changed = DAMAGES[how](content, rng)
    path.unlink()
    if changed is not None:
        assert changed != content
        path.write_bytes(changed)
        os.utime(path, ns=times)


def moved(run):
    """Stages whose stamps have to move, so that make runs them."""
    from nafld_utils import pipeline

    return {name: stage.moved for name, stage in pipeline.status(run).items() if stage.moved}


@pytest.fixture(scope="module")
def whole(calm, tmp_path_factory):
    """A copy of the calm run whose stages have recorded their units, as the notebooks do."""
    root = calm.before("end", tmp_path_factory.mktemp("damage") / "work", link=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAFLD_ROOT", str(root))
        from nafld_utils import artifacts, pipeline

        run = faulty.open_run()
        units = {path.parent: json.loads(path.read_text()) for path in run.root.rglob("run.json")}
        sealed = [artifacts.Unit(path, manifest["hash"], manifest) for path, manifest in units.items()]
        for number, stage in enumerate(pipeline.STAGES):
            run.record_claims(stage, [{"key": stage, "claim": "x", "this_run": 1, "same_protocol": "no"}])
            run.finish(stage, sealed[number :: len(pipeline.STAGES)])
            artifacts.save_text(pipeline.report_path(run, stage), "{}")
        pipeline.write_stamps(run)
        assert moved(run) == {}
        yield run, sealed


def test_every_kind_of_file_is_among_those_damaged(whole):
    run, _ = whole
    kept = [p for p in run.root.rglob("*") if p.is_file() and "tensorboard" not in p.relative_to(run.root).parts]
    assert {path.suffix for path in kept} == KINDS


@pytest.mark.parametrize("how", DAMAGES)
def test_no_damaged_file_of_a_unit_passes_for_whole(whole, how, record_property):
    from nafld_utils import artifacts, pipeline
    from nafld_utils.artifacts import seals

    run, sealed = whole
    rng, cases = random.Random(f"{faulty.SEED} {how}"), 0
    for unit in sealed:
        for path in sorted(unit.path.iterdir()):
            before = path.stat()
            copy = path.read_bytes()
            damage(path, how, rng)
            seals._content.cache_clear()  # another process has not seen the file before
            fault = unit.fault()
            note = f"{path} was damaged ({how}) and is used; repeat with NAFLD_FAULT_SEED={faulty.SEED}"
            assert fault or says_nothing(path, copy), note
            if not fault:
                continue
            if path.name != artifacts.MANIFEST:
                assert path.name in fault
            with pytest.raises(ValueError, match=re.escape(str(unit.path))):
                unit.require()
            if cases % 40 == 0:
                named = moved(run)  # what `make plan` says, and what make runs
                assert list(named) == [pipeline.STAGES[sealed.index(unit) % len(pipeline.STAGES)]]
                assert all(str(unit.path.relative_to(run.root)) in reason for reason in named.values())
            path.write_bytes(copy)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            cases += 1
    seals._content.cache_clear()
    assert all(unit.done() for unit in sealed), "the test has put everything back"
    record_property("cases", cases)


def test_records_and_stamps_that_are_damaged_run_their_stage_again(whole, record_property):
    from nafld_utils import pipeline
    from nafld_utils.artifacts import seals

    run, _ = whole
    rng, cases = random.Random(faulty.SEED), 0
    for name in ("stage.json", "claims.csv", "stamp"):
        for how in DAMAGES:
            for stage in pipeline.STAGES:
                path = pipeline.stamp_path(run, stage) if name == "stamp" else run.root / stage / name
                before, copy = path.stat(), path.read_bytes()
                damage(path, how, rng)
                seals._content.cache_clear()
                blank = name != "claims.csv" and how == "one bit flipped" and says_nothing(path, copy)
                assert blank or list(moved(run)) == [stage], f"{path} {how}"
                path.write_bytes(copy)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
                cases += 1
    seals._content.cache_clear()
    assert moved(run) == {}
    record_property("cases", cases)


def says_nothing(path, copy):
    """Whether a flipped bit has changed only blanks, or the name of the seal, and nothing that anybody reads."""
    try:
        found, was = json.loads(path.read_bytes()), json.loads(copy)
    except ValueError:
        return False
    if not isinstance(found, dict):
        return False
    kept = {key: value for key, value in found.items() if key in was}
    return kept == was or ("seal" not in found and kept == {key: was[key] for key in was if key != "seal"})


# One file of each kind a step reads: damaged, then the run goes on as it would after `make all`.
READ = {
    "cohort/cohort.mat": "cohort",
    "cohort/images.csv": "cohort",
    "cohort/provenance.json": "cohort",
    "preprocess/pool.npy": "preprocessed",
    "latents/*/fold0/moments.npy": "latents",
    "ldm/class/fold0/averaged.safetensors": "denoisers",
    "gan/fold1/run.json": "gan",
    "sweep/*.parquet": "trainings",
    "turing/page/turing_test.html": "page",
}


@pytest.mark.parametrize("pattern", READ)
def test_what_is_damaged_is_made_again_with_equal_content(calm, tmp_path, pattern, record_property):
    root = calm.before("end", tmp_path / "work", link=False)
    (path, *_) = sorted((root / "artifacts" / RUN).glob(pattern))
    cases = ("truncated", "one bit flipped", "emptied") if READ[pattern] in ("cohort", "page") else ("one bit flipped",)
    for how in cases:
        damage(path, how, random.Random(faulty.SEED))
        ended = perform(root, READ[pattern])
        assert ended.code == 0, ended.said[-3000:]
        assert_same(fingerprint(root), calm.after("analysis"))
    record_property("cases", len(cases))


# Folder of the unit that is damaged: the step that reads it, and the folder that this step makes.
READERS = {
    "preprocess": ("latents", "latents"),
    "latents": ("denoisers", "ldm"),
    "ldm": ("sets", "synthetic"),
    "synthetic": ("features", "features"),
}


@pytest.mark.parametrize("folder", READERS)
def test_a_step_that_reads_a_damaged_unit_stops_and_names_it(calm, tmp_path, folder):
    step, made = READERS[folder]
    base = calm.before("end", tmp_path / "work", link=False) / "artifacts" / RUN
    shutil.rmtree(base / made)
    path = min(p for p in (base / folder).rglob("*") if p.suffix in (".npy", ".safetensors"))
    damage(path, "one bit flipped", random.Random(faulty.SEED))
    ended = perform(tmp_path / "work", step)
    assert ended.code == 1, f"{path} was damaged and {step} used it"
    assert f"its file {path.name} has other content than when it was written" in ended.said, ended.said[-2000:]
    assert "run the stage that makes it first" in ended.said


# ---------------------------------------------------------------- what is not sealed yet


def test_any_flipped_byte_of_a_trial_is_seen_or_says_nothing(calm, tmp_path, record_property):
    from nafld_utils import sweep

    (path, *_) = sorted((calm.root / "artifacts" / RUN / "sweep").glob("*.parquet"))
    content, rng = path.read_bytes(), random.Random(faulty.SEED)
    scores, facts = sweep.read_trial(path.parent, path.stem)
    copy, seen, refused = tmp_path / path.name, 0, 0
    places = rng.sample(range(len(content)), min(1500, len(content)))
    for place in places:
        copy.write_bytes(flip(content, place, rng.randrange(8)))
        try:
            again, other = sweep.read_trial(tmp_path, path.stem)
        except ValueError as error:
            seen += copy.name in str(error) and "it is trained again" in str(error)
            refused += 1
            continue
        assert facts == other, f"byte {place}"
        pd.testing.assert_frame_equal(again, scores)
    assert seen == refused > len(places) / 2
    record_property("cases", len(places))


def test_any_flipped_byte_of_unfinished_work_is_seen_or_says_nothing(tmp_path, record_property):
    from nafld_utils import artifacts
    from nafld_utils.artifacts import checkpoints

    rng = random.Random(faulty.SEED)
    array = np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype(np.uint8)
    tensors = {"model.a": torch.arange(40.0), "ema.0": torch.ones((), dtype=torch.bfloat16)}
    checkpoints.save_array(tmp_path / "shard.safetensors", array)
    np.savez(tmp_path / "old.npz", array=array)  # as earlier versions wrote it
    artifacts.save_state(tmp_path / "step.safetensors", tensors, {"step": 3}, "abc")
    state = artifacts.load_state(tmp_path / "step.safetensors")
    assert state[1:] == ({"step": 3}, "abc")
    cases = 0
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(flip(content, place, rng.randrange(8)))
            check_part(path, array, state)
            cases += 1
        for n in range(0, len(content), 7):
            path.write_bytes(content[:n])
            check_part(path, array, state)
            cases += 1
        path.write_bytes(content)
    record_property("cases", cases)


def check_part(path, array, state):
    """The part is refused, or what was flipped says nothing."""
    from nafld_utils import artifacts
    from nafld_utils.artifacts import checkpoints

    if path.stem in ("shard", "old"):
        found = checkpoints.load_array(path.with_suffix(".safetensors"))
        assert found is None or np.array_equal(found, array)
    else:
        try:
            tensors, *rest = artifacts.load_state(path)
        except ValueError:
            return
        assert tuple(rest) == state[1:]
        assert tensors.keys() == state[0].keys()
        assert all(torch.equal(value, tensors[name]) for name, value in state[0].items())


@pytest.mark.parametrize("step", ["denoisers", "gan", "sets"])
def test_damaged_unfinished_work_is_redone_and_ends_alike(calm, tmp_path, step, record_property):
    root, rng, found = calm.before(step, tmp_path / "work"), random.Random(f"{faulty.SEED} {step}"), []
    for at in range(calm.events[step] // 2, 4, -3):  # a place where something resumable lies
        ended = perform(root, step, ("kill", at))
        found = [path for path in root.rglob("*.part/*") if not path.name.startswith(".")]
        if found:
            break
        if ended.code == 0:
            root = calm.before(step, tmp_path / f"work{at}")
    assert found, "no unfinished work to damage"
    for path in found:
        damage(path, "one bit flipped", rng)
    ended = perform(root, step)
    assert ended.code == 0, ended.said[-3000:]
    assert_same(fingerprint(root), calm.after(step))
    assert "not a whole checkpoint" in ended.said or not any("step-" in path.name for path in found)
    # its checkpoint was damaged too, so that the training drew it again
    assert "damaged preview" not in ended.said
    record_property("cases", len(found))
