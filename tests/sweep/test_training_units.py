"""The grid, its store, its guards, what is read from it, the stage on a toy run, and the check on the real cohort."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from project import PROJECT

from nafld_utils import artifacts, networks, params, preprocessing, quality, sampling, sweep
from nafld_utils.artifacts import locks
from nafld_utils.quality import filter_units
from nafld_utils.sampling import set_units
from nafld_utils.sweep import (
    gpu_training,
    prefix_features,
    timing_units,
    training,
    training_units,
    trial_grid,
    trial_store,
    trial_units,
    verdict,
)

TRIAL = {
    "backbone": "net", "freeze": "paper", "balance": "none", "arm": "real", "rate": 0.0, "fold": 1, "seed": 2
}  # fmt: skip


def images_table(n_patients=10, frames=2, n_folds=5):
    patient = np.repeat(np.arange(1, n_patients + 1), frames)
    table = pd.DataFrame({"patient_id": patient, "label": patient % 2, "fold": (patient - 1) // 2 % n_folds})
    names = [f"p{p:03d}_f{i % frames:02d}" for i, p in enumerate(patient)]
    return table.assign(image_id=names, sha256=[f"{i:064d}" for i in range(len(table))])


def scores_table(n=6, seed=0):
    rng = np.random.default_rng(seed)
    table = images_table(n, 1)[["image_id", "patient_id", "label"]]
    return table.assign(score=rng.random(n))


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("overrides", "n"),
    [
        ({}, 1625),  # Fig. 5A: 13 cells x 5 folds x 25 seeds
        ({"sweep.backbones": ["a", "b"], "sweep.arms": ["semantic"], "sweep.rates": [1.5]}, 500),  # Fig. 5B
        ({"sweep.n_seeds": 5, "ldm.folds": [0, 3]}, 130),
        ({"sweep.experiments": ["fig5a"]}, 1625),
        ({"sweep.experiments": ["fig5a", "fig5b"]}, 2125),
        ({"sweep.experiments": ["fig5a", "fig5b", "s3", "s6a", "s6b"]}, 2125),  # read again
        ({"sweep.experiments": ["s4", "s5"]}, 3250),
        ({"sweep.experiments": ["s7"]}, 325),
        ({"sweep.experiments": ["fig5a", "fig5b", "s3", "s4", "s5", "s6a", "s6b", "s7"]}, 5700),
        ({"sweep.experiments": ["plain", "fig5a", "matched"]}, 1625 + 500),
        ({"sweep.experiments": ["s7"], "sweep.n_seeds": 2}, 130),  # never more seeds than the run's
    ],
)
def test_the_papers_numbers_of_trainings(overrides, n):
    table = sweep.grid(params.load("paper", overrides))
    assert len(table) == n
    assert not table.duplicated().any()
    real = table[table["arm"] == "real"]
    assert set(real["rate"]) == {0.0}
    assert set(table.loc[table["rate"] == 0, "arm"]) == {"real"}


def test_every_experiment_is_a_grid_of_its_own_and_can_be_read_again():
    settings = params.load("paper", {"sweep.experiments": list(params.load("paper").experiments)})
    table = sweep.grid(settings)
    assert not table.duplicated().any()
    parts = {name: trial_grid.of_experiment(table, settings, name) for name in settings.experiments}
    for name, part in parts.items():
        wanted = trial_grid.experiment(settings, name)
        assert set(part["backbone"]) == set(wanted.backbones), name
        assert set(part["freeze"]) == {wanted.freeze}, name
        assert set(part["balance"]) == {wanted.balance}, name
        assert set(part["arm"]) == {"real", *wanted.arms}, name
        assert (part.groupby(["backbone", "arm", "rate", "fold"])["seed"].nunique() == wanted.n_seeds).all(), name
    assert trial_grid.experiment(settings, "s3").level == "fold"
    assert trial_grid.experiment(settings, "s6a").level == "patient"
    levels = trial_grid.experiments(settings, table.assign(state="done")).set_index("experiment")["level"]
    assert levels["s3"] == "image level, mean of the folds' AUCs"
    assert levels[["s6a", "s6b"]].tolist() == ["patient level"] * 2
    assert set(levels.drop(["s3", "s6a", "s6b"])) == {"image level, folds together"}
    pd.testing.assert_frame_equal(parts["s3"], parts["fig5a"])
    listed = trial_grid.experiments(settings, table.assign(state="not trained yet"))
    assert listed["of these new"].sum() == len(table)
    assert listed.set_index("experiment").loc["s3", "of these new"] == 0


def test_an_arm_without_its_model_is_refused():
    with pytest.raises(ValueError, match=r"expected generators of this run .*, found 'semantic'; make it"):
        sweep.grid(params.load("paper", {"ldm.conditionings": ["class"]}))
    with pytest.raises(ValueError, match=r"found 'gan'; make it \(ldm.conditionings, gan.enabled, "):
        sweep.grid(params.load("smoke", {"gan.enabled": False}))


def test_the_hash_follows_the_trial_and_its_recipe():
    key = trial_grid.trial_hash(TRIAL, {"steps": 3})
    assert key == trial_grid.trial_hash(dict(reversed(TRIAL.items())), {"steps": 3})
    assert (
        len(
            {key, trial_grid.trial_hash({**TRIAL, "seed": 3}, {"steps": 3}), trial_grid.trial_hash(TRIAL, {"steps": 4})}
        )
        == 3
    )


def test_the_hash_follows_the_revision_of_every_module_that_makes_a_training(monkeypatch):
    known = {name: artifacts.revision(name) for name in trial_units.MODULES}
    assert {"arms", "trial_resident", "stages.sweep_trials", "stages.sweep_features"} <= set(known)
    monkeypatch.setattr(trial_units, "read_unit", lambda *args: SimpleNamespace(hash="x"))
    monkeypatch.setattr(trial_units, "identity", lambda *args: "weights")
    run, trial = artifacts.open_run("smoke"), {**TRIAL, "arm": "real", "freeze": "paper"}

    def hashed():
        return trial_grid.trial_hash(trial, trial_units.recipe(run, trial))

    before = hashed()
    for name in known:
        monkeypatch.setattr(trial_units, "revision", lambda module, name=name: known[module] + (module == name))
        assert hashed() != before, name


def test_the_declared_comparison_is_trained_whatever_the_experiment():
    settings = params.load("paper", {"sweep.experiments": ["gan"]})
    table = sweep.grid(settings)
    added = table[(table["arm"] == "semantic") & (table["rate"] == 1.5)]
    assert len(added) == 5 * settings.sweep.n_seeds
    assert set(table["arm"]) == {"real", "gan", "semantic"}
    assert len(sweep.grid(params.load("paper", {"sweep.experiments": ["fig5a"]}))) == 1625, "nothing is added there"


# ---------------------------------------------------------------- guards


def test_rows_held_out_are_those_of_the_fold():
    images = images_table()
    assert np.array_equal(trial_grid.check_fold(images, 2), images["fold"] == 2)


def synthetic_table(fold=0, source=(3, 4, -1)):
    return pd.DataFrame({"fold": fold, "source_patient": list(source)})


@pytest.mark.parametrize(
    ("change", "synthetic", "words"),
    [
        ({"fold": [0, 1] * 10}, None, "in training and held-out"),
        ({"sha256": ["0" * 64] * 20}, None, "expected every frame on one side"),
        ({"label": [1] * 20}, None, r"expected both classes among the training images, found \[1\]"),
        ({"fold": [1] * 20}, None, "expected images on both sides"),
        ({}, synthetic_table(fold=1), r"expected images of fold 0, found folds \[1\]"),
        ({}, synthetic_table(source=(3, 1)), "found patient 1, who is held out there"),
        ({}, synthetic_table(source=(3, 77)), r"expected sources in this cohort, found patients \[77\]"),
    ],
)
def test_leaks_are_refused_before_training(change, synthetic, words):
    with pytest.raises(ValueError, match=words):
        trial_grid.check_fold(images_table().assign(**change), 0, synthetic)


# ---------------------------------------------------------------- the store


def grid_of(n, store):
    """A grid of n trials; the even ones are done."""
    table = pd.DataFrame([{**TRIAL, "seed": i, "hash": f"hash{i}"} for i in range(n)])
    for i in range(0, n, 2):
        trial_store.write_trial(store, f"hash{i}", scores_table(seed=i), {"seconds": 2.0 + i, "n_real": 8})
    return table


def test_a_trial_comes_back_as_it_was_written(tmp_path):
    trial_store.write_trial(tmp_path, "abc", scores_table(), {"seconds": 3.0, "losses": [0.7, 0.6]})
    scores, facts = sweep.read_trial(tmp_path, "abc")
    pd.testing.assert_frame_equal(scores, scores_table()[list(trial_store.SCORE_COLUMNS)], check_dtype=False)
    assert facts["losses"] == [0.7, 0.6]
    assert [path.name for path in tmp_path.iterdir()] == ["abc.parquet"]


def test_the_state_of_every_trial(tmp_path):
    trials = grid_of(4, tmp_path)
    trial_store.record_failure(tmp_path, {**TRIAL, "seed": 1}, "hash1", ArithmeticError("loss at step 3"))
    scores, status = trial_store.read_store(tmp_path, trials)
    assert status["state"].tolist() == ["done", "failed", "done", "not trained yet"]
    assert status["reason"].tolist() == ["", "ArithmeticError: loss at step 3", "", ""]
    assert sorted(scores["seed"].unique()) == [0, 2]
    assert len(scores) == 12
    assert sweep.to_train(status)["seed"].tolist() == [3]
    assert sweep.to_train(status, retry_failed=True)["seed"].tolist() == [1, 3]


def test_an_empty_store_and_a_trial_that_succeeds_after_all(tmp_path):
    trials = grid_of(2, tmp_path / "other")
    scores, status = trial_store.read_store(tmp_path / "none", trials)
    assert not len(scores)
    assert (status["state"] == "not trained yet").all()
    trial_store.record_failure(tmp_path, TRIAL, "k", ValueError("x"))
    trial_store.write_trial(tmp_path, "k", scores_table(), {})
    assert [path.name for path in tmp_path.glob("k.*")] == ["k.parquet"]


def test_a_trial_clears_what_a_process_killed_in_its_writing_left(tmp_path):
    half = [tmp_path / f".{name}.parquet.{where}.0123456789ab.tmp.parquet" for name, where in (
        ("k", locks.here()), ("other", locks.here()), ("k", "another1"))]  # fmt: skip
    for path in half:
        path.write_bytes(b"PAR1")
    trial_store.write_trial(tmp_path, "k", scores_table(), {})
    assert sorted(tmp_path.iterdir()) == sorted([*half[1:], tmp_path / "k.parquet"])


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _flip_data(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 0xFF
    path.write_bytes(bytes(content))


def _empty(path):
    path.write_bytes(b"")


def _of_another_trial(path):
    path.write_bytes(trial_store.trial_path(path.parent, "hash2").read_bytes())


@pytest.mark.parametrize("damage", [_truncate, _flip_data, _empty, _of_another_trial])
def test_a_damaged_file_is_named_and_trained_again(tmp_path, damage):
    trials = grid_of(4, tmp_path)
    damage(trial_store.trial_path(tmp_path, "hash0"))
    with pytest.raises(ValueError, match=r"hash0\.parquet: expected .* it is trained again"):
        sweep.read_trial(tmp_path, "hash0")
    scores, status = trial_store.read_store(tmp_path, trials)
    assert status["state"].tolist()[0] == "damaged"
    assert "hash0.parquet" in status["reason"][0]
    assert sweep.to_train(status)["hash"].tolist() == ["hash0", "hash1", "hash3"]
    assert set(scores["seed"]) == {2}


def test_a_killed_writer_leaves_no_trial(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        trial_store.write_trial(tmp_path, "abc", scores_table(), {})
    assert not list(tmp_path.iterdir())


def test_no_table_from_an_incomplete_grid_unless_asked_and_then_it_says_so(tmp_path):
    rows = [{**TRIAL, "arm": arm, "seed": s, "hash": f"{arm}{s}"} for arm in ("real", "semantic") for s in range(3)]
    trials = pd.DataFrame(rows)
    for row in rows:
        if row["hash"] != "semantic1":
            trial_store.write_trial(tmp_path, row["hash"], scores_table(), {"seconds": 1.0})
    scores, status = trial_store.read_store(tmp_path, trials)
    with pytest.raises(ValueError, match=r"1 of 6 trials are missing \(1 not trained yet; the first: .*arm semantic"):
        trial_store.require_complete(scores, status)
    kept, note = trial_store.require_complete(scores, status, allow_missing=True)
    assert set(kept["seed"]) == {0, 2}, "a seed that one arm lacks is dropped from both"
    assert set(kept.groupby(["arm", "seed"]).size()) == {6}
    assert "1 of 6 trials are missing" in note
    assert "only complete seeds" in note
    done = status.assign(state="done")
    assert trial_store.require_complete(scores, done)[1] == ""
    with pytest.raises(ValueError, match="no seed is complete"):
        trial_store.require_complete(scores, status.assign(state="failed"), allow_missing=True)


def test_plan_counts_and_estimates(tmp_path):
    _, status = trial_store.read_store(tmp_path, grid_of(5, tmp_path))
    table = sweep.plan(status, {}, n_workers=2)
    row, total = table.iloc[0], table.iloc[-1]
    assert (total.backbone, total.to_do, total.minutes_left) == ("all", 2, row.minutes_left)
    assert (row.trainings, row.done, row.to_do) == (5, 3, 2)
    assert row.seconds_each == 4.0
    assert row.minutes_left == pytest.approx(4.0 * 2 / 2 / 60)
    fresh = sweep.plan(status.assign(state="not trained yet"), {("net", "paper"): 30.0}, n_workers=1).iloc[0]
    assert fresh.minutes_left == pytest.approx(2.5)
    assert fresh.estimate_from == "a few timed steps"


def test_minutes_left_hold_features_and_what_is_tried_again(tmp_path):
    _, status = trial_store.read_store(tmp_path, grid_of(5, tmp_path))
    status.loc[status["state"] != "done", "state"] = "failed"
    left = sweep.plan(status, {}, 2, {("net", "paper"): 240.0}).iloc[0]
    assert (left.to_do, left.features_minutes, left.minutes_left) == (0, 2.0, 2.0)
    again = sweep.plan(status, {}, 2, {("net", "paper"): 240.0}, retry_failed=True)
    assert again["to_do"].tolist() == [2, 2]
    assert again["minutes_left"].tolist() == pytest.approx([2 + 4.0 * 2 / 2 / 60] * 2)


def test_the_plan_counts_the_images_whose_features_are_missing(run, monkeypatch):
    # 16 images of 2 crops and 1 resize, 16 of 2 rotated crops, two folds' sets of 10
    network = ("resnet18", "paper")
    assert timing_units.images_without_features(run) == {network: 48 + 32 + 20}
    monkeypatch.setattr(timing_units, "time_training", lambda run, backbone, freeze, n: (10.0 + n, 3.0))
    row = sweep.dry_run(run).iloc[0]
    assert row.seconds_each == 10 + 8, "scores of a fold's held-out images"
    assert row.features_minutes == pytest.approx(100 * 3 / 60)
    assert row.minutes_left == pytest.approx(row.features_minutes + 12 * 18 / 60)
    prefix_features.build_features(run)
    assert sweep.dry_run(run).iloc[0].features_minutes == 0


def test_an_impossible_grid_is_refused_by_the_plan_before_any_feature(run, monkeypatch):
    cells = json.loads((PROJECT / "notebooks" / "06_classification_sweep.ipynb").read_text(encoding="utf-8"))["cells"]
    calls = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"] if "sweep." in line]
    work = [line for line in calls if "(run" in line and "artifacts" not in line]
    assert "dry_run" in work[0], "the notebook refuses before it computes"
    monkeypatch.setattr(prefix_features, "make_features", None)
    with pytest.raises(ValueError, match=r"expected at most 1\.25"):
        sweep.dry_run(artifacts.open_run("smoke", {**OVERRIDES, "sweep.rates": [0.5, 2.0]}))


# ---------------------------------------------------------------- the stage on a toy run


OVERRIDES = {
    "sweep.weights": "random",
    "sweep.backbones": ["resnet18"],
    "sweep.steps": 2,
    "sweep.arms": ["traditional", "semantic"],
    "sweep.n_resamples": 100,
    "engine.mode": "serial",
    "engine.device": "cpu",
}
SIZE, N_SYNTHETIC = 32, 10
OPEN_SET, SET_UNIT = quality.open_set, quality.set_unit


class ToyData(SimpleNamespace):
    """What stages 02 and 04 would leave."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    rng = np.random.default_rng(0)
    images = images_table(8, 2, n_folds=2).assign(fold=np.repeat([0, 0, 0, 0, 1, 1, 1, 1], 2), grade=0.0)
    n = len(images)
    pool = rng.integers(0, 256, (n, 2, SIZE, SIZE)).astype(np.uint8)
    data = ToyData(images=images, pool=pool, resized=pool[:, 0], augmented_pool=lambda kind: pool[:, ::-1])
    run = artifacts.open_run("smoke", OVERRIDES)
    unit = run.unit("preprocess", settings={})
    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda run: data)
    monkeypatch.setattr(preprocessing.unit, "preprocess_unit", lambda run: unit)
    monkeypatch.setattr(preprocessing.unit, "augmented_unit", lambda run, kind: unit)
    monkeypatch.setattr(preprocessing.unit, "build_augmented", lambda run, kind: unit)
    monkeypatch.setattr(
        filter_units,
        "set_unit",
        lambda run, conditioning, fold, **_: run.unit("synthetic", conditioning, fold, settings={}),
    )
    monkeypatch.setattr(filter_units, "open_set", _synthetic)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a sweep of `run`, empty until one has been made."""
    return tmp_path_factory.mktemp("whole") / "swept"


@pytest.fixture
def swept(run, whole):
    """The run after its sweep, which is made once for all tests."""
    if whole.exists():
        shutil.copytree(whole, run.root, dirs_exist_ok=True)
    else:
        sweep.run_sweep(run)
        shutil.copytree(run.root, whole)
    return run


def _synthetic(run, conditioning, fold):
    images = preprocessing.open_preprocessed(run).images
    source = images.loc[images["fold"] != fold, "patient_id"].to_numpy()[np.arange(N_SYNTHETIC) % 8]
    table = pd.DataFrame({"fold": fold, "source_patient": source, "label": source % 2})
    table["synthetic_id"] = [f"s{i}" for i in range(N_SYNTHETIC)]
    pixels = np.random.default_rng(fold + 1).integers(0, 256, (N_SYNTHETIC, SIZE, SIZE)).astype(np.uint8)
    unit = run.unit("synthetic", conditioning, fold, settings={})
    return SimpleNamespace(images=pixels, table=table, unit=unit, split=preprocessing.digest_of(images))


def test_the_stage_from_features_to_scores_and_nothing_is_done_twice(run, monkeypatch):
    assert sweep.dry_run(run)["to_do"].tolist() == [12, 12]
    assert training_units.experiments(run)["trainings"].tolist() == [12]
    status = sweep.run_sweep(run)
    assert (status["state"] == "done").all()
    assert status.groupby("arm")["n_synthetic"].first().to_dict() == {"real": 0, "semantic": 4, "traditional": 4}
    scores, note = sweep.build_scores(run)
    assert note == ""
    held_out = sweep.held_out_images(run)
    assert len(scores) == 3 * 2 * len(held_out)
    merged = scores.merge(held_out, on="image_id", suffixes=("", "_wanted"))
    assert (merged["fold"] == merged["fold_wanted"]).all()

    def again(*args, **kwargs):
        raise AssertionError("trained twice")

    monkeypatch.setattr(training_units, "train_seeds", again)
    assert (sweep.run_sweep(run)["state"] == "done").all()


def test_every_kind_of_arm_balance_and_freezing_trains_on_what_it_says(run):
    """One fold, every way to make a training set: who is in it, in which class mix, and no leak."""
    arms_of = ["semantic", "semantic+class", "class_matched", "semantic_only", "traditional_only", "gan", "filtered"]
    arms_of += ["semantic_first", "trivial", "simulated", "simulated_only", "semantic+simulated_first"]
    changes = {"sweep.arms": ["semantic"], "sweep.n_seeds": 1, "ldm.folds": [0], "sweep.crops": "fixed"}
    run = artifacts.open_run("smoke", {**OVERRIDES, **changes})
    trial = {**TRIAL, "backbone": "resnet18", "fold": 0, "seed": 0, "rate": 0.5}
    images = preprocessing.open_preprocessed(run).images
    inside = set(np.flatnonzero(images["fold"] != 0))
    for freeze, balance in (("none", "oversample"), ("all", "none")):
        for arm in ["real", *arms_of]:
            this = {**trial, "arm": arm, "freeze": freeze, "balance": balance, "rate": 0.5 * (arm != "real")}
            for kind in trials_made_of(arm):
                if freeze != "none":
                    fold = params.SHARED if prefix_features.is_shared(kind) else 0
                    stage_features(run, "resnet18", kind, fold, freeze)
            data = sweep.training_set(run, this)
            real = len(inside) if not arm.endswith("_only") else 0
            assert (data["n_real"], data["n_synthetic"]) == (real, 0 if arm == "real" else 4), arm
            assert set(data["drawn"]) == set(trials_made_of(arm)) - {"real"}
            assert not set(data["images"].index) & inside
            if real:
                assert set(data["parts"][0].rows) <= inside
                assert data["parts"][0].n_views == 1, "one fixed crop"
            assert trial_units.options_of(run, arm).first == arm.endswith("_first"), "one of two steps"
    data = sweep.training_set(run, {**trial, "arm": "class_matched"} | {"freeze": "none"})
    assert data["parts"][1].labels.mean() == data["parts"][0].labels.mean()
    _, scores, facts = sweep.train(run, {**trial, "arm": "semantic+class", "freeze": "none", "balance": "oversample"})
    assert (facts["n_real"], facts["n_synthetic"]) == (8, 4)
    assert set(scores["image_id"]) == set(images.loc[images["fold"] == 0, "image_id"])


def trials_made_of(arm):
    return prefix_features.kinds_of([arm])


def stage_features(run, *which):
    prefix_features.make_features(run, *which)
    assert prefix_features.features_unit(run, *which).done()


def test_feature_caches_written_in_parts_are_those_computed_at_once(run, monkeypatch):
    from nafld_utils import sampling
    from nafld_utils.sampling import feature_units

    pool = preprocessing.open_preprocessed(run).pool
    flat = pool.reshape(-1, *pool.shape[2:])
    network, _ = prefix_features.network("resnet18", "random", "paper")
    whole = training.prefix_features(network, flat, "resnet18", precision="float16")
    pooled = networks.extract(flat, "lite0", batch_size=16)
    for module in (prefix_features, feature_units):
        monkeypatch.setattr(module, "CHUNK", 16)  # two parts
    stage_features(run, "resnet18", "real")
    kept = prefix_features.stored(run, "resnet18", "paper", "real")
    np.testing.assert_array_equal(kept, whole.reshape(*pool.shape[:2], *whole.shape[1:]))
    feature_units.make_features(run, "lite0", sampling.REAL)
    for found, wanted in zip(sampling.load_features(run, "lite0", "real"), pooled, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_oversampling_is_of_the_training_images_and_rates_count_them(run, monkeypatch):
    data = preprocessing.open_preprocessed(run)
    label = np.where(np.arange(len(data.images)) % 8 < 2, 0, 1)
    monkeypatch.setattr(data, "images", data.images.assign(label=label, patient_id=np.repeat(np.arange(1, 9), 2)))
    trial = {**TRIAL, "backbone": "resnet18", "arm": "semantic", "rate": 0.5, "fold": 0, "freeze": "none"}
    plain, balanced = (sweep.training_set(run, {**trial, "balance": balance}) for balance in ("none", "oversample"))
    assert np.bincount(plain["parts"][0].labels).tolist() == [2, 6]
    assert np.bincount(balanced["parts"][0].labels).tolist() == [6, 6]
    assert set(balanced["parts"][0].rows) == set(plain["parts"][0].rows)
    assert (plain["n_synthetic"], balanced["n_synthetic"]) == (4, 6)
    rotated = sweep.training_set(run, {**trial, "balance": "oversample", "arm": "traditional"})["parts"][1]
    pairs = set(zip(rotated.rows.tolist(), rotated.views.tolist(), strict=True))
    assert len(pairs) == len(rotated.rows) == 6, "drawn without replacement, from training images"
    assert set(rotated.rows) <= set(plain["parts"][0].rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep.rates": [0.5, 2.0]}, r"expected at most 1\.25, since it takes 16 synthetic images for 8 real"),
        ({"sweep.backbones": ["resnet81"]}, "nearest is resnet18"),
        ({"sweep.freeze": "layr3"}, "nearest is layer3"),
        ({"sweep.freeze": "head"}, "a stage of resnet18"),
        ({"sweep.weights": "/no/such/file"}, "found no such file"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_training(run, monkeypatch, changes, words):
    monkeypatch.setattr(training_units, "run_trials", None)
    run = artifacts.open_run("smoke", {**OVERRIDES, **changes})
    with pytest.raises(ValueError, match=words):
        sweep.run_sweep(run)
    assert not sweep.store(run).exists()


def test_a_fold_with_one_class_is_refused_before_training(run, monkeypatch):
    data = preprocessing.open_preprocessed(run)
    fold = data.images["fold"]
    monkeypatch.setattr(data, "images", data.images.assign(label=np.where(fold == 0, data.images["label"], 1)))
    with pytest.raises(ValueError, match="fold 0: expected both classes among the training images"):
        sweep.run_sweep(run)


def test_too_little_memory_asks_for_a_smaller_batch_and_is_recorded(run, monkeypatch):
    import torch

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(training, "train_tail", full)
    status = sweep.run_sweep(run)
    assert set(status["state"]) == {"failed"}
    assert status["reason"].str.contains("a batch of 8 .* does not fit its memory; lower sweep.batch_size").all()


def test_a_loss_that_is_not_finite_is_recorded_and_the_others_go_on(run, monkeypatch):
    fresh = sweep.fresh_tail

    def spoilt(tail, seed):
        tail = fresh(tail, seed)
        if seed == trial_units.seed_of(run, {"fold": 0, "seed": 1}):
            tail[-1].weight.data[:] = float("nan")
        return tail

    monkeypatch.setattr(training, "fresh_tail", spoilt)
    status = sweep.run_sweep(run)
    failed = status[status["state"] == "failed"]
    assert set(zip(failed["fold"], failed["seed"], strict=True)) == {(0, 1)}
    assert failed["reason"].str.startswith("DivergedError: loss at step 0").all()
    assert (status["state"] == "done").sum() == 9


def test_seeds_of_one_task_are_stored_apart_and_a_failed_one_alone_is_missing(run, monkeypatch):
    """What a GPU does with several seeds at once, on a CPU: one task, one file a seed."""
    train_tail = sweep.train_tail

    def sometimes(tail, parts, options, seed, *args):
        if seed == trial_units.seed_of(run, {"fold": 1, "seed": 0}):
            raise training.DivergedError("loss at step 0")
        return train_tail(tail, parts, options, seed, *args)

    monkeypatch.setattr(training, "train_tail", sometimes)
    prefix_features.build_features(run)
    table = sweep.trials(run)
    group = table[(table["arm"] == "semantic") & (table["fold"] == 1)].to_dict("records")
    with pytest.raises(training.DivergedError):
        training_units.run_trials(run, group[1:], **group[0])
    states = sweep.status(run).query("arm == 'semantic' and fold == 1").set_index("seed")["state"]
    assert states.to_dict() == {0: "failed", 1: "done"}
    monkeypatch.setattr(training, "train_tail", train_tail)
    training_units.run_trials(run, group[1:], **group[0])
    assert (sweep.status(run).query("arm == 'semantic' and fold == 1")["state"] == "done").all()


def test_weights_from_a_local_file_enter_the_hash_by_their_content(run, tmp_path):
    from safetensors.torch import save_file

    from nafld_utils import networks

    found = []
    for seed in (0, 1, 0):
        save_file(networks.load("resnet18", "random", seed=seed).state_dict(), tmp_path / "resnet18.safetensors")
        local = artifacts.open_run("smoke", {**OVERRIDES, "sweep.weights": str(tmp_path)})
        found.append(sweep.trials(local)["hash"].iloc[0])
    assert found[0] == found[2] != found[1]


def test_a_failed_trial_is_listed_the_others_go_on_and_a_retry_mends_it(run, monkeypatch):
    train = training_units.train_seeds

    def sometimes(run, group):
        if group[0]["seed"] == 1 and group[0]["arm"] == "semantic":
            raise ArithmeticError("loss at step 0: expected a finite number, found nan")
        return train(run, group)

    monkeypatch.setattr(training_units, "train_seeds", sometimes)
    status = sweep.run_sweep(run)
    assert status["state"].value_counts().to_dict() == {"done": 10, "failed": 2}
    with pytest.raises(ValueError, match=r"2 of 12 trials are missing \(2 failed"):
        sweep.build_scores(run)
    listed = sweep.failures(status)
    assert listed[["arm", "seed", "state"]].to_numpy().tolist() == [["semantic", 1, "failed"]] * 2
    assert listed["reason"].str.fullmatch("ArithmeticError: loss at step 0: expected a finite number, found nan").all()
    left = artifacts.open_run("smoke", {**OVERRIDES, "sweep.allow_missing": True, "sweep.retry_failed": False})
    kept, note = sweep.build_scores(left)
    assert set(kept["seed"]) == {0}
    assert not training_units.scores_unit(run).done(), "an incomplete table is never sealed"
    assert "2 of 12" in note
    assert len(verdict.units(left)) == len(verdict.units(run)) - 2, "the stage can be finished without them"
    monkeypatch.setattr(training_units, "train_seeds", train)
    assert (sweep.run_sweep(left)["state"] == "failed").sum() == 2, "not retried unless asked for"
    assert (sweep.run_sweep(run)["state"] == "done").all()


def test_a_training_whose_workers_were_all_killed_is_recorded_and_named(run, monkeypatch):
    mapped = training_units.engine.map_units

    def killed(function, tasks, settings, label, **how):
        if label != "trainings":
            return mapped(function, tasks, settings, label, **how)
        return pd.DataFrame(
            {"seconds": float("nan"), "error": ["KilledWorker: out of memory"] * len(tasks), "killed": True}
        )

    monkeypatch.setattr(training_units.engine, "map_units", killed)
    status = sweep.run_sweep(run)
    assert (status["state"] == "failed").all()
    assert status["reason"].str.contains("KilledWorker: out of memory").all()
    monkeypatch.setattr(training_units.engine, "map_units", mapped)
    left = artifacts.open_run("smoke", {**OVERRIDES, "sweep.retry_failed": False})
    assert (sweep.run_sweep(left)["state"] == "failed").all(), "not retried unless asked for"


def test_a_long_reason_is_shown_in_one_short_line():
    status = pd.DataFrame([{**TRIAL, "state": "failed", "reason": "RuntimeError: a\n" + 400 * "word "}])
    (reason,) = sweep.failures(status)["reason"]
    assert reason.startswith("RuntimeError: a word")
    assert reason.endswith(" ...")
    assert len(reason) <= training_units.REASON_LENGTH
    assert not len(sweep.failures(status.assign(state="done")))


def test_the_summary_averages_over_what_is_done_alone():
    numbers = {"n_real": 8.0, "n_synthetic": 4.0, "fatty_share": 0.5, "last_loss": 0.1}
    rows = [
        {**TRIAL, "seed": i, "state": "done", "seconds": 2.0 * i, "first_loss": 0.2 * i, **numbers} for i in range(3)
    ]
    rows.append({**TRIAL, "seed": 3, "state": "failed"})
    rows.append({**TRIAL, "arm": "semantic", "rate": 0.5, "state": "not trained yet"})
    table = sweep.summary(pd.DataFrame(rows))
    assert table[["trainings", "done"]].to_numpy().tolist() == [[4, 3], [1, 0]]
    assert table.iloc[0][["mixed in", "loss, first steps", "seconds each"]].tolist() == [4.0, 0.2, 2.0]
    assert table.iloc[1].drop(["trainings", "done"]).isna().all()


def test_a_truncated_trial_is_announced_and_gives_the_same_scores_again(swept, monkeypatch, tmp_path):
    run = swept
    before, _ = sweep.build_scores(run)
    path = next(iter(sorted(sweep.store(run).glob("*.parquet"))))
    _truncate(path)
    monkeypatch.setenv("NAFLD_PROGRESS", str(tmp_path / "progress"))
    assert (sweep.run_sweep(run)["state"] == "done").all()
    assert path.name in (tmp_path / "progress").read_text()
    after, _ = trial_store.read_store(sweep.store(run), sweep.trials(run))
    pd.testing.assert_frame_equal(before, after, check_dtype=False)


def test_a_set_from_another_split_is_refused_before_training(swept, monkeypatch):
    run = swept
    foreign = lambda run, c, k: _synthetic(run, c, 1 - k)  # noqa: E731
    monkeypatch.setattr(filter_units, "open_set", foreign)
    with pytest.raises(ValueError, match="found folds"):
        sweep.train(run, {**TRIAL, "backbone": "resnet18", "arm": "semantic", "rate": 0.5, "fold": 0})
    monkeypatch.setattr(training_units, "train_seeds", None)
    with pytest.raises(ValueError, match="found folds"):
        sweep.run_sweep(run)


@pytest.mark.parametrize("generator", ["class", "gan"])
def test_images_without_a_source_tell_the_split_that_they_were_made_with(run, monkeypatch, generator):
    """Neither model names a source patient; the same fold of another ``folds.seed`` has other patients."""
    monkeypatch.setattr(filter_units, "open_set", OPEN_SET)
    monkeypatch.setattr(filter_units, "set_unit", SET_UNIT)
    size = run.settings.preprocess.image_size
    blank = lambda *_: lambda rows, labels: np.zeros((len(rows), size, size), np.uint8)  # noqa: E731
    monkeypatch.setattr(set_units, "_painter", blank)
    data, whole = preprocessing.open_preprocessed(run), preprocessing.open_preprocessed(run).images
    patients = whole.drop_duplicates("patient_id")
    first, second = (
        whole.assign(
            fold=whole["patient_id"].map(preprocessing.make_folds(patients, 2, seed).set_index("patient_id")["fold"])
        )
        for seed in (0, 4)
    )
    assert not first["fold"].equals(second["fold"])
    monkeypatch.setattr(data, "images", first)
    for fold in (0, 1):
        sampling.make_set(run, generator, fold)
    trial = {**TRIAL, "arm": generator, "rate": 0.5}
    assert [kind for kind, _ in trial_units.composition(run, trial)] == ["real", generator]
    monkeypatch.setattr(data, "images", second)
    words = rf"{generator}.fold0.*: expected a set made with this run's split of the patients, found one made with"
    arms = {"sweep.arms": [generator], "sweep.primary_arm": generator}
    with pytest.raises(ValueError, match=words):
        sweep.run_sweep(artifacts.open_run("smoke", {**OVERRIDES, **arms}))
    assert not sweep.store(run).exists()
    table = pd.DataFrame({"fold": 1, "source_patient": [-1, -1]})
    with pytest.raises(ValueError, match=r"synthetic set of fold 1: expected a set made with this run's split"):
        trial_grid.check_fold(second, 1, table, preprocessing.digest_of(first))
    assert trial_grid.check_fold(first, 1, table, preprocessing.digest_of(first)).any()


def test_changing_a_setting_changes_every_trial_and_another_stages_none(run):
    before = set(sweep.trials(run)["hash"])
    longer = artifacts.open_run("smoke", {**OVERRIDES, "sweep.steps": 3})
    assert not before & set(sweep.trials(longer)["hash"])
    elsewhere = artifacts.open_run("smoke", {**OVERRIDES, "shap.n_samples": 3, "sweep.n_seeds": 3})
    assert before < set(sweep.trials(elsewhere)["hash"]), "more seeds add trials and repeat none"
    how = {"sweep.retry_failed": False, "sweep.allow_missing": True}
    as_asked = artifacts.open_run("smoke", {**OVERRIDES, **how})
    assert before == set(sweep.trials(as_asked)["hash"])
    for which in (
        training_units.scores_unit,
        verdict.tables_unit,
        lambda r: prefix_features.features_unit(r, "resnet18", "real"),
    ):
        assert which(as_asked).hash == which(run).hash


TRAINED_BY = [
    "arms", "backbones", "sweep", "trial", "trial_draws", "trial_resident", "stages.sweep_features",
    "stages.sweep_trials",
]  # fmt: skip


@pytest.mark.parametrize("freeze", ["paper", "none"])
def test_raising_any_revision_that_a_training_goes_through_makes_it_another(run, monkeypatch, freeze):
    def hashes():
        return sweep.trials(artifacts.open_run("smoke", {**OVERRIDES, "sweep.freeze": freeze}))["hash"]

    before, revision = hashes(), artifacts.revision
    for raised in TRAINED_BY:
        higher = lambda name, raised=raised: revision(name) + (name == raised)  # noqa: E731
        monkeypatch.setattr(artifacts.run, "revision", higher)
        monkeypatch.setattr(trial_units, "revision", higher)
        assert not set(before) & set(hashes()), raised


@pytest.mark.parametrize(
    ("device", "mode", "n_gpus", "precision", "wanted"),
    [
        ("cpu", "serial", 1, "bf16", "fp32"),
        ("auto", "local", 0, "bf16", "fp32"),
        ("auto", "local", 1, "bf16", "bf16"),
        ("auto", "serial", 1, "fp32", "fp32"),
        ("cuda", "serial", 0, "tf32", "tf32"),  # where a finished sweep is read without a GPU
        ("cuda:1", "cluster", 0, "bf16", "bf16"),
        ("cpu", "cluster", 0, "bf16", "fp32"),
        ("auto", "cluster", 0, "bf16", "bf16 on a GPU, fp32 on a CPU"),
        ("auto", "cluster", 1, "bf16", "bf16 on a GPU, fp32 on a CPU"),
    ],
)
def test_trainings_are_kept_apart_by_their_arithmetic(run, monkeypatch, device, mode, n_gpus, precision, wanted):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    change = {"engine.device": device, "engine.mode": mode, "sweep.precision": precision}
    other = artifacts.open_run("smoke", {**OVERRIDES, **change})
    assert trial_units.arithmetic(other) == wanted
    same = set(sweep.trials(other)["hash"]) == set(sweep.trials(run)["hash"])  # the run of these tests has a CPU
    assert same == (wanted == "fp32")


def test_a_recorded_step_serves_trainings_of_its_own_sizes_alone(run, monkeypatch):
    """Runs of one kernel may differ in pixels or in how features are kept; a GPU's trainers stay for the next run."""
    import torch

    made = []
    monkeypatch.setattr(gpu_training, "Resident", lambda *_, view, dtype, record: made.append((tuple(view), dtype)))
    monkeypatch.setattr(gpu_training, "train_side_by_side", lambda ready, jobs: [None] * len(jobs))
    wanted = [((8, 4, 4), torch.float16), ((8, 4, 4), torch.float32), ((8, 2, 2), torch.float32)]
    for view, dtype in wanted:
        parts = [sweep.Views(torch.zeros(4, 1, *view, dtype=dtype), np.arange(4) % 2)]
        for _ in range(2):
            job = gpu_training.Job(torch.nn.Identity(), parts, 0)
            gpu_training.train_jobs([job], None, sweep.options_of(run), torch.device("cuda"), ("resnet18", "paper"))
    assert made == wanted


def test_facts_of_a_trial_are_json(swept):
    run = swept
    path = next(iter(sweep.store(run).glob("*.parquet")))
    _, facts = sweep.read_trial(sweep.store(run), path.stem)
    assert json.loads(json.dumps(facts)) == facts
    assert len(facts["losses"]) == 2
