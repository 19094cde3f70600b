"""The study of the intervals at a tiny size: resumable, honest about its counts, and shown as it was stored."""

import interval_study
import numpy as np
import pandas as pd
import pytest
import records

from nafld_utils import artifacts, statistics, sweep
from nafld_utils.artifacts import files

TINY = ["--cohorts", "1", "--patients", "15", "--frames", "1", "--new-patients", "6", "--block", "3", "--pixels", "64"]


@pytest.fixture
def quick_patients(monkeypatch):
    """Features drawn from the class instead of simulated frames: the study's own arithmetic is what is tested."""

    def make(run, seed, n_patients, n_frames, pixels):
        unit = interval_study.block_unit(run, seed, n_patients, n_frames, pixels)
        made.append(seed)
        rng = np.random.default_rng(seed)
        label = np.arange(n_patients) % 3 > 0
        images = pd.DataFrame({"patient_id": np.arange(n_patients), "label": label.astype(int)})
        images = images.loc[images.index.repeat(n_frames)].reset_index(drop=True)
        own = rng.normal(size=(n_patients, 5))[images["patient_id"]] + 1.2 * images[["label"]].to_numpy()
        with unit.writing() as folder:
            files.save_array(folder / "features.npy", own + 0.3 * rng.normal(size=own.shape))
            artifacts.save_table(folder / "images.csv", images.assign(image_id=[f"i{i}" for i in range(len(images))]))

    made = []
    monkeypatch.setattr(interval_study, "make_block", make)
    return made


def run_of(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("demo", {"run": "interval-study", "engine.mode": "serial"})


def test_cohorts_and_new_patients_share_no_seed_and_hold_the_numbers_asked_for(tmp_path, monkeypatch):
    run = run_of(tmp_path, monkeypatch)
    tasks = interval_study.tasks(run, interval_study.Size())
    assert len({task["seed"] for task in tasks}) == len(tasks) == 50 + 40
    assert sum(task["n_patients"] for task in tasks[50:]) == 2000
    odd = interval_study.tasks(run, interval_study.Size(cohorts=1, new_patients=7, block=3))
    assert [task["n_patients"] for task in odd] == [55, 3, 3, 1]


def test_study_counts_intervals_that_hold_and_makes_nothing_twice(tmp_path, monkeypatch, quick_patients):
    run = run_of(tmp_path, monkeypatch)
    size = interval_study.Size(cohorts=10, patients=30, frames=2, new_patients=300, n_resamples=200)
    table = interval_study.study(run, size).set_index("method")
    assert list(table.index) == list(interval_study.METHODS)
    over_patients, over_images = table.loc["patients, percentile"], table.loc[interval_study.METHODS[-1]]
    assert over_patients.cohorts == 10
    assert over_patients.holds * 10 + over_patients.below + over_patients.above == pytest.approx(10)
    assert over_patients.holds >= 0.7
    assert over_images.mean_width < over_patients.mean_width
    assert over_patients.mean_truth == pytest.approx(over_patients.mean_auc, abs=0.1)
    assert over_patients.new_patients == 300
    before = len(quick_patients)
    again = interval_study.study(run, size).set_index("method")
    assert len(quick_patients) == before, "a block was made twice"
    pd.testing.assert_frame_equal(again, table)


def test_truth_is_the_auc_of_the_models_that_scored_the_cohort(tmp_path, monkeypatch, quick_patients):
    run = run_of(tmp_path, monkeypatch)
    size = interval_study.Size(cohorts=1, patients=30, frames=2, new_patients=60)
    tasks = interval_study.tasks(run, size)
    for task in tasks:
        interval_study.make_block(**task)
    cohort, new = interval_study.open_block(**tasks[0]), interval_study.open_block(**tasks[1])
    table = interval_study.one_cohort(cohort, new, seed=0, n_resamples=100)
    # new patients whom the features tell apart perfectly make the truth 1, whatever the cohort's own AUC is
    telling = (10 * new[1][["label"]].to_numpy() + np.zeros((1, 5)), new[1])
    perfect = interval_study.one_cohort(cohort, telling, seed=0, n_resamples=100)
    assert perfect["truth"].eq(1).all()
    assert perfect["auc"].tolist() == table["auc"].tolist()
    assert (perfect["holds"] == (perfect["high"] >= 1)).all()
    assert 0.5 < table["truth"].iloc[0] < 1
    assert statistics.auc(cohort[1]["label"], cohort[0].mean(axis=1)) > 0.5


def test_command_stores_and_reports(tmp_path, monkeypatch, capsys, quick_patients):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    result = tmp_path / "result.csv"
    assert "has not been run: python tests/benchmarks/interval_study.py" in sweep.report(result)
    assert sweep.stored(result) is None
    where = ["--result", str(result), "--out", str(tmp_path / "bench")]
    assert interval_study.main([*TINY, "--n-resamples", "50", "--mode", "serial", *where]) == 0
    assert records.load(tmp_path / "bench", "interval_study")["rows"][0]["seconds"] > 0
    said = capsys.readouterr().out
    assert "1 simulated cohorts of 15 patients, 1 frames each at 64 px" in said
    assert "6 new patients" in said
    table = sweep.stored(result)
    assert table["method"].tolist() == list(interval_study.METHODS)
    assert sweep.report(result) in said


def test_the_result_in_the_package_is_whole():
    assert sweep.verdict.STUDY.is_file()
    assert sweep.stored()["method"].tolist() == list(interval_study.METHODS)
    assert "50 simulated cohorts of 55 patients" in sweep.report()


def test_a_block_holds_features_of_simulated_patients_of_both_classes(tmp_path, monkeypatch):
    run = run_of(tmp_path, monkeypatch)
    task = {"run": run, "seed": 20_000, "n_patients": 2, "n_frames": 1, "pixels": 64}
    interval_study.make_block(**task)
    features, images = interval_study.open_block(**task)
    assert features.shape == (2, 1280)
    assert np.isfinite(features).all()
    assert sorted(images["label"]) == [0, 1]
    manifest = interval_study.block_unit(**task).file("run.json")
    before = manifest.stat().st_mtime_ns
    interval_study.make_block(**task)
    assert manifest.stat().st_mtime_ns == before, "made twice"
