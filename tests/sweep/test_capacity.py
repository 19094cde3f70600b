"""Sets too small for a training are refused once the folds are known: the same count as the training's own draw."""

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, cohort, params, pipeline, preprocessing, quality, sweep
from nafld_utils.cohort import simulation
from nafld_utils.sweep import draws, trial_grid


def table(n_patients, n_images, n_folds, share=0.69):
    """Images of a cohort with `share` of its patients in class 1, dealt to folds."""
    label = (np.arange(n_patients) < round(share * n_patients)).astype(int)
    patients = pd.DataFrame({"patient_id": np.arange(n_patients), "label": label})
    dealt = patients.merge(preprocessing.make_folds(patients, n_folds, 0), on="patient_id")
    return dealt.loc[dealt.index.repeat(n_images)].reset_index(drop=True)


@pytest.mark.parametrize(
    ("profile", "cohort"),
    [("smoke", (8, 3, 2)), ("demo", (40, 4, 4)), ("cpu", (55, 10, 5)), ("paper", (55, 10, 5))],
)
def test_every_profile_draws_enough_for_its_cohort(profile, cohort):
    trial_grid.check_capacity(table(*cohort), params.load(profile))


def test_the_papers_robustness_variants_are_drawn_from_its_2000_images():
    names = [name for name in params.load("paper").experiments if name != "r10"]
    every = params.load("paper", {"sweep.experiments": names})
    found = trial_grid.shortages(table(55, 10, 5), every)
    assert not len(found), found.to_string()
    ten = params.load("paper", {"sweep.experiments": ["r10"]})
    assert set(trial_grid.shortages(table(55, 10, 5), ten)["least"]) == {4400}


def test_a_larger_cohort_is_told_the_number_to_give():
    """69 patients of ten images: 56 of them, 560 images, train the folds that hold 13 out."""
    images = table(69, 10, 5)
    assert (images["fold"].value_counts().min(), len(images)) == (130, 690)
    with pytest.raises(ValueError, match=r"sampling\.n_images is 660, expected 840 or more") as caught:
        trial_grid.check_capacity(images, params.load("cpu"))
    said = str(caught.value)
    assert "takes 840 semantic images for the 560 training images of fold" in said
    assert said.endswith('give SET="sampling.n_images=840" or lower sweep.rates.')
    assert "\n" not in said
    trial_grid.check_capacity(images, params.load("cpu", ["sampling.n_images=840"]))
    with pytest.raises(ValueError, match=r"is 839, expected 840"):
        trial_grid.check_capacity(images, params.load("cpu", ["sampling.n_images=839"]))


def least(arm, *overrides, images=None):
    """Images a set needs for one arm at rate 1; the arm declared beforehand takes next to none beside it."""
    changes = [f"experiments.gan.arms=[{arm}]", "experiments.gan.rates=[1.0]", "sweep.experiments=[gan]"]
    changes += ["sweep.arms=[semantic]", "sweep.rates=[0.01]", "sweep.primary_rate=0.01", "folds.n_splits=2"]
    settings = params.load("cpu", [*changes, "sampling.n_images=10", *overrides])
    found = trial_grid.shortages(table(10, 10, 2, share=0.6) if images is None else images, settings)
    assert set(found["setting"]) == {trial_grid.N_IMAGES}
    return int(found["least"].max())


def test_each_arm_takes_what_its_training_draws():
    assert least("semantic") == 50
    assert least("semantic_only") == 50
    assert least("semantic+class") == 25, "half of r each"
    assert least("class_matched") == 60, "30 of class 1, who are half of the set"
    assert least("semantic", "sweep.balance=oversample") == 60, "20 healthy images are counted as 30"
    assert least("filtered", "quality.filter_keep=0.5", "quality.filter_of=class") == 100
    assert least("filtered", "quality.filter_keep=1.0") == 50
    assert least("gan_matched") == 60


def test_sets_whose_labels_are_drawn_leave_room_for_chance():
    n = least("semantic_matched")
    counts = np.random.default_rng(0).binomial(n, 0.6, size=20_000)
    assert n < 150
    assert (counts >= 30).all()
    assert (n - counts >= 20).all()
    n = least("filtered", "quality.filter_keep=0.55")
    kept = [quality.quota(a, 0.55) + quality.quota(n - a, 0.55) for a in range(n + 1)]
    assert min(kept) == 50


@pytest.mark.parametrize("arm", ["semantic", "class_matched", "semantic+gan", "class_only"])
@pytest.mark.parametrize("balance", ["none", "oversample"])
def test_the_number_that_is_told_is_the_number_that_the_draw_needs(arm, balance):
    images = table(10, 10, 2, share=0.6)
    n, label = least(arm, f"sweep.balance={balance}", images=images), images["label"].to_numpy()
    rows = draws.training_rows(np.flatnonzero(images["fold"] != 0), label, balance, seed=3)

    def draw(size):
        part = (0, 2 if "+" in arm else 1)
        if "matched" in arm:
            return draws.draw_matched(label[rows], 1.0, np.arange(size) % 2, 3, part)
        return draws.draw_synthetic(len(rows), 1.0, size, 3, part)

    assert len(draw(n)) == -(-len(rows) // (2 if "+" in arm else 1))
    with pytest.raises(ValueError, match=r"lower sweep\.rates or raise sampling\.n_images"):
        draw(n - 1)


def test_crops_of_the_traditional_arm_are_counted_too():
    changes = ["sweep.rates=[6.0]", "sweep.primary_rate=6.0", "folds.n_splits=2", "sampling.n_images=10"]
    with pytest.raises(ValueError, match=r'give SET="sampling.n_images=300 preprocess.crops_per_image=6"') as caught:
        trial_grid.check_capacity(table(10, 10, 2), params.load("cpu", changes))
    assert "; and preprocess.crops_per_image is 4, expected 6 or more" in str(caught.value)


def test_the_largest_rate_of_each_arm_is_the_hardest():
    settings = params.load("paper")
    found = trial_grid.hardest(sweep.grid(settings)).set_index("arm")["rate"]
    assert found["semantic"].unique().tolist() == [2.0]
    assert found["real"].unique().tolist() == [0.0]


def test_the_stage_refuses_before_anything_is_preprocessed(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    simulation.write_folder(tmp_path / "a", 8, 3, n_frames=1)
    values = {"cohort.source": "file", "cohort.path": str(tmp_path / "a"), "cohort.class_names": ["healthy", "fatty"]}
    run = artifacts.open_run("smoke", {**values, "sampling.n_images": 1})
    with pytest.raises(ValueError, match="not made yet"):
        sweep.require_capacity(run)
    cohort.build_cohort(run)
    with pytest.raises(ValueError, match=r'sampling.n_images is 1, .* give SET="sampling.n_images=\d+"'):
        sweep.require_capacity(run)
    for stage in pipeline.STAGES[1:3]:
        with pytest.raises(ValueError, match=r"sampling.n_images is 1"):
            pipeline.begin(run, stage)
    assert "stage 1 of 8" in pipeline.begin(run, pipeline.STAGES[0]).data, "what is there may be looked at"
    enough = artifacts.open_run("smoke", values)
    sweep.require_capacity(enough)
    assert "**0 of" in pipeline.begin(enough, pipeline.STAGES[1]).data
