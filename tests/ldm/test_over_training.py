"""When a model starts to copy: the test of each checkpoint, the step that is taken, and who has no say in it."""

import copy
import math

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, engine, ldm, params, preprocessing
from nafld_utils.ldm import denoiser_units, over_training_units
from nafld_utils.networks import copy_rules


def table(copies, n=20, nominal=0.1, model="class"):
    rows = pd.DataFrame({"step": np.arange(1, len(copies) + 1) * 10, "copies": copies})
    p = [over_training_units.at_least(k, n, nominal) for k in copies]
    facts = {"model": model, "fold": 0, "n": n, "nominal": nominal, "to_training": 50.0, "to_held_out": 70.0}
    facts |= {"patients": 12}
    return rows.assign(p=p, share=rows["copies"] / n, passes=rows["step"] / 5, **facts)


def test_the_test_is_the_binomial_tail():
    expected = sum(math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(5, 21))
    assert over_training_units.at_least(5, 20, 0.1) == pytest.approx(expected)
    assert over_training_units.at_least(0, 20, 0.1) == 1.0


@pytest.mark.parametrize(
    ("copies", "begins", "step"),
    [
        ([0, 1, 4, 5, 9], 3, 30),  # P(X >= 4) is 0.13, P(X >= 5) 0.043
        ([0, 0, 1, 2, 4], None, 50),
        ([8, 9, 9, 9, 9], 0, 10),  # the first one copies already
        ([0, 6, 2, 7, 9], 1, 10),
    ],
)
def test_the_step_before_copies_is_the_checkpoint_before_the_first_that_is_above_chance(copies, begins, step):
    found = table(copies)
    assert over_training_units.begins(found) == begins
    assert over_training_units.before_copies(found) == step


def test_what_is_said_brackets_the_step():
    text, over = over_training_units.reading(table([0, 1, 4, 5, 9]))
    assert text.startswith("class, fold 0: copies exceed the nominal 10 % of 12 training patients first at step 40")
    assert "given these training patients" in over
    assert "first at step 40 (8 passes over the training images; 5 of 20, p 0.043), not yet at 30" in text
    assert "distance there 50 to training patients, 70 to held-out ones" in text
    text, _ = over_training_units.reading(table([0, 0, 1, 2, 4]))
    assert "at none of 5 checkpoints is the share of copies shown to exceed the nominal 10 %" in text
    assert over_training_units.reading(table([])) == []
    keys = [row["key"] for row in over_training_units.claims(table([0, 1, 4, 5, 9]))]
    assert keys == ["ldm.over_training.share.class.fold_0", "ldm.over_training.begins.class.fold_0"]
    assert len(over_training_units.claims(table([0, 0, 1, 2, 4]))) == 1


def test_a_model_may_only_stop_before_copies_where_checkpoints_are_kept():
    with pytest.raises(params.SettingsError, match="checked must be 2 to steps"):
        params.load("smoke", ["ldm.stop=before_copies", "ldm.checked=0"])


def test_no_hash_of_a_training_depends_on_what_is_kept_of_it():
    plain = artifacts.open_run("smoke", {})
    other = artifacts.open_run("smoke", {"ldm.stop": "before_copies", "ldm.checked": 6, "ldm.checked_images": 9})
    assert ldm.ldm_unit(plain, "class", 0).hash == ldm.ldm_unit(other, "class", 0).hash
    assert ldm.weights_unit(plain, "class", 0).path == ldm.ldm_unit(plain, "class", 0).path
    assert ldm.weights_unit(other, "class", 0).path.parts[-3:] == ("over_training", "class", "fold0")


@pytest.mark.slow
def test_checkpoints_are_kept_and_the_last_is_the_model(run):
    for name in ("semantic", "class", "gan"):
        steps = over_training_units.checkpoints(run, name, 0)
        assert len(steps) == run.settings.ldm.checked
        unit = over_training_units.training_unit(run, name, 0)
        last, average = (
            artifacts.load_weights(unit.file(file))[0]
            for file in (denoiser_units.kept_name(steps[-1]), "averaged.safetensors")
        )
        assert all((last[key] == value).all() for key, value in average.items())
        assert over_training_units.checkpoints(run, name, 1) == [], "of the first fold only"
    assert set(ldm.look(run)["model"]) == {"semantic", "class", "gan"}


@pytest.mark.slow
def test_held_out_patients_have_no_say_in_the_thresholds_or_the_copies(run, monkeypatch):
    """Held-out images become noise: their own distance changes, and nothing of what the step is chosen by."""
    kept = over_training_units.Frames(run, "semantic", 0, "lite0")
    data = preprocessing.open_preprocessed(run)
    held = np.flatnonzero(data.images["fold"].to_numpy() == 0)
    rng = np.random.default_rng(0)
    pool, resized = np.array(data.pool), np.array(data.resized)
    for images in (pool, resized):
        images[held] = rng.integers(0, 256, images[held].shape)
    changed = over_training_units.Frames(run, "semantic", 0, "lite0")
    changed.data = copy.copy(data)
    vars(changed.data).update(pool=pool, resized=resized)
    changed.moments = np.array(changed.moments)
    changed.moments[held] = rng.normal(size=changed.moments[held].shape)
    drawn = over_training_units.draw(run, "class", 0, over_training_units.checkpoints(run, "class", 0)[-1], kept)
    limits, near, nominal = [], [], []
    for frames in (kept, changed):
        own = frames.patients[frames.training]
        real = frames.near_real(frames.training, own)
        limits.append({name: copy_rules.thresholds(found, own) for name, found in real.items()})
        near.append(copy_rules.flags(frames.near(drawn), limits[-1]))
        nominal.append(copy_rules.nominal(copy_rules.left_out(frames.nearest_real(frames.training), own), own))
    assert limits[0] == limits[1]
    assert nominal[0] == nominal[1] < 1
    pd.testing.assert_frame_equal(*near)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("semantic", 0), ("class", 0), ("gan", 0)]),
        ({"gan.enabled": False}, [("semantic", 0), ("class", 0)]),
        ({"ldm.checked": 0}, []),
        ({"ldm.stop": "before_copies"}, [("semantic", 0), ("semantic", 1), ("class", 0), ("class", 1), ("gan", 0)]),
    ],
)
def test_what_will_be_measured_is_known_before_anything_is_trained(tmp_path, monkeypatch, changes, expected):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    fresh, seen = artifacts.open_run("smoke", changes), {}
    assert over_training_units.tasks(fresh) == []
    found = over_training_units.tasks(fresh, ahead=True)
    assert [(task["name"], task["fold"]) for task in found] == expected
    monkeypatch.setattr(engine, "map_kinds", lambda kinds, *_: seen.update(kinds))
    ldm.train_all(fresh)
    units = [unit_of(**task) for _, tasks, unit_of in seen.values() for task in tasks]
    made = {unit.hash for unit in units}
    for task in found:
        reads = over_training_units.unit_of(**task)
        assert reads.hash in made
        assert len(made & set(reads.recipe["inputs"])) == 2, "its training and its latents"


def test_nothing_is_measured_of_a_training_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="not made yet"):
        over_training_units.measure(artifacts.open_run("smoke"), "class", 0)
    assert not list(tmp_path.rglob("table.csv"))


def test_curves_of_one_model_are_not_cut_by_the_panel_of_another():
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 2, sharey="row")
    for name, far, (top, bottom) in zip(("class", "gan"), (50.0, 800.0), axes.T, strict=True):
        ldm.figures.over_training(table([0, 1], model=name).assign(to_training=far, to_held_out=2 * far), top, bottom)
    (low, high), _ = axes[0, 0].get_ylim(), plt.close(fig)
    assert low <= 0 < 1600 < high
