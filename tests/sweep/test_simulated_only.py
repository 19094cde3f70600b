"""Trainings without a real image: what is simulated and changed, their tables by hand, and all on a small cohort."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nafld_utils import artifacts, cohort, preprocessing, statistics, sweep
from nafld_utils.sweep import frozen_classifiers, training
from nafld_utils.sweep.simulated_only import answers, changes, figures, tables, units

# ---------------------------------------------------------------- real images changed at test time


def test_the_border_is_black_so_many_pixels_deep_and_the_crops_own_edge_is_none():
    crop = np.zeros((80, 100), np.uint8)
    crop[:60, 20:] = 7  # the region is cut by the crop at the top and at the right
    (found,) = changes.without_border(crop[None])
    kept = np.zeros_like(crop)
    kept[: 60 - changes.BORDER, 20 + changes.BORDER :] = 7
    assert np.array_equal(found, kept)


def test_a_flattened_depth_profile_has_no_upper_and_lower_half():
    rng = np.random.default_rng(0)
    crop = np.clip(np.linspace(150, 50, 120)[:, None] + rng.normal(0, 5, (120, 90)), 1, 255).astype(np.uint8)
    crop[:, :10] = 0
    (flat,) = changes.without_depth(crop[None])
    assert frozen_classifiers.half_ratio(crop[None])[0] > 1.5
    assert frozen_classifiers.half_ratio(flat[None])[0] == pytest.approx(1, abs=0.01)
    assert flat[:, 10:].mean(axis=1) == pytest.approx(np.full(120, 100), abs=6)
    assert flat[:, 10:].std(axis=1).mean() == pytest.approx(5, abs=0.5)  # what varies along a row stays
    assert not flat[:, :10].any()


# ---------------------------------------------------------------- a training that is watched


def tail(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def toy_views(n=12):
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2
    return training.Views(
        (rng.normal(size=(n, 1, 2, 6, 6)) + label[:, None, None, None, None]).astype(np.float32), label
    )


def decoder():
    return nn.Identity()


def test_a_watched_training_is_the_unwatched_one_and_is_seen_before_its_first_and_after_its_last_step():
    options, views, seen = training.Options(3, 4, 1e-2, 0.0), toy_views(), {}
    plain, losses = training.train_tail(tail(), [views], options, 1, decoder())

    def look(step, one):
        seen[step] = training.predict(one, views, decoder())  # leaves it in eval mode

    watched, same = training.train_tail(tail(), [views], options, 1, decoder(), watch=look)
    assert sorted(seen) == [0, 1, 2, 3]
    assert np.array_equal(losses, same)
    assert np.array_equal(seen[3], training.predict(plain, views, decoder()))
    assert seen[0] == pytest.approx(training.predict(tail(), views, decoder()), abs=1e-6)  # before any step
    assert watched[1].running_mean.abs().sum() > 0


def test_frozen_batchnorm_keeps_its_statistics_and_its_weights_learn():
    options = training.Options(3, 4, 1e-2, 0.0, norm="frozen")
    found, _ = training.train_tail(tail(), [toy_views()], options, 1, decoder())
    assert not found[1].running_mean.any()
    assert not torch.equal(found[1].weight, torch.ones(4))


# ---------------------------------------------------------------- parts of the real patients


@pytest.mark.parametrize(("n", "healthy"), [(4, 2), (11, 4), (22, 7), (33, 10), (44, 14)])
def test_a_part_of_the_patients_is_nested_and_in_their_class_mix(n, healthy):
    patients = pd.DataFrame({"patient_id": np.arange(44) + 100, "label": (np.arange(44) >= 14).astype(int)})
    label = patients.set_index("patient_id")["label"]
    found, all_of = units.subset(patients, n, 3), units.subset(patients, 44, 3)
    assert len(set(found)) == n
    assert (label[found] == 0).sum() == healthy  # 14 / 44 of n, rounded, two at least
    assert set(found) <= set(all_of) == set(label.index)
    assert set(found) <= set(units.subset(patients, min(n + 5, 44), 3))
    if n == 22:
        assert set(found) != set(units.subset(patients, n, 4)), "another seed is another part"


# ---------------------------------------------------------------- tables


def toy_scores(aucs, size=20, folds=2, frames=2, **facts):
    """A training by its AUC: patients of class 1 above so many of class 0; two images of each patient."""
    label = np.arange(size) % 2
    fold = np.arange(size) // 2 % folds
    rows = []
    for (cohort_, seed), auc in aucs.items():
        score = np.zeros(size)
        for k in range(folds):
            mine, negatives = fold == k, (label == 0) & (fold == k)
            score[negatives] = np.arange(negatives.sum())
            score[mine & (label == 1)] = auc * negatives.sum() - 0.5
        for i in range(size):
            one = {"patient_id": i, "label": label[i], "fold": fold[i], "cohort": cohort_, "seed": seed, **facts}
            rows += [{**one, "image_id": f"{i}_{f}", "score": score[i] + (-0.1, 0.1)[f]} for f in range(frames)]
    return pd.DataFrame(rows)


def all_toy_scores():
    kept = {"variant": "full", "shuffled": False, "seen": "as they are"}
    last = toy_scores({(0, 0): 0.8, (0, 1): 1.0, (1, 0): 0.6, (1, 1): 0.8}, step=4, **kept)
    first = toy_scores({(0, 0): 0.4, (0, 1): 0.6, (1, 0): 0.4, (1, 1): 0.6}, step=0, **kept)
    parts = [last, first, *(last.assign(seen=seen) for seen in tables.SEEN)]
    parts.append(toy_scores({(0, 0): 0.6, (1, 0): 0.4}, step=4, **{**kept, "shuffled": True}))
    parts.append(toy_scores({(0, 0): 0.6}, step=4, **{**kept, "variant": "no_effects"}))
    return pd.concat(parts, ignore_index=True)


def test_aucs_and_paired_differences_of_every_kind():
    found = tables.auc_table(all_toy_scores(), "full").query("level == 'patient'").set_index("name")
    assert found["auc"].round(6).to_dict() == {
        "full": 0.8, "untrained tail": 0.5, "shuffled labels": 0.5, "overlays and border masked": 0.8,
        "depth profile flattened": 0.8, "no_effects": 0.6,
    }  # fmt: skip
    partners = {"untrained tail": 0.8, "shuffled labels": 0.7, "no_effects": 0.8}  # of the same cohorts and seeds
    for name, base in partners.items():
        assert found.loc[name, "difference"] == pytest.approx(found.loc[name, "auc"] - base)
    assert found.loc["full", "sd_seeds"] == pytest.approx(np.sqrt(0.02), abs=0.05)
    assert found.loc["depth profile flattened", "difference"] == 0
    assert np.isnan(found.loc["full", "difference"])
    assert found["over"].eq(tables.OVER_PATIENTS).all()


def test_a_training_that_lacks_an_image_is_refused():
    part = tables.main_part(all_toy_scores(), "full")
    with pytest.raises(ValueError, match="every image once by each of 2 x 2 trainings"):
        tables.scored(part.drop(part.index[part["patient_id"] == 3][:2]))


def test_a_fold_with_one_patient_of_a_class_ranks_all_together():
    part = tables.main_part(all_toy_scores(), "full")
    assert tables.scored(part).fold is not None
    lonely = part[~part["patient_id"].isin([0, 4, 8, 12])]  # of fold 0 one patient of class 0 is left
    assert tables.scored(lonely).fold is None


def test_the_curve_and_its_maxima():
    looks = tables.curve(all_toy_scores(), "full")
    assert looks.query("step == 4")["auc"].round(6).tolist() == [0.8, 1.0, 0.6, 0.8]
    best = tables.optimistic(looks).set_index("what")
    assert best.loc["best training at the last step", "auc"] == pytest.approx(1.0)
    assert best.loc["best step on average (4)", "auc"] == pytest.approx(0.8)


def test_more_than_the_half_ratio_is_told_within_its_strata():
    """Scores that separate the classes whatever the ratio says, and the ratio itself, which tells little in a third."""
    label, patient = np.repeat([0, 1], 30), np.arange(60)
    ratio = np.concatenate([np.linspace(0, 2, 30), np.linspace(1, 3, 30)])
    rng = np.random.default_rng(0)
    own = tables.Scored(label, patient, None, (label + rng.normal(0, 0.4, (2, 1, 60))))
    found = tables.beside_ratio(own, ratio, np.arange(60)).set_index("what")
    assert found.loc["upper / lower half: AUC", "value"] == pytest.approx(statistics.auc(label, ratio))
    assert found.loc["trainings: AUC within 3 strata of upper / lower half", "low"] > 0.8
    copied = tables.Scored(label, patient, None, ratio[None, None])
    alike = tables.beside_ratio(copied, ratio, np.arange(60)).set_index("what")
    assert alike.loc["trainings minus upper / lower half", "value"] == 0
    assert (
        alike.loc["trainings: AUC within 3 strata of upper / lower half", "value"]
        < found.loc["upper / lower half: AUC", "value"]
    )
    assert alike.loc["rank correlation with upper / lower half, within a class", "value"] == pytest.approx(1)
    assert "this shows no more than attenuation" in answers._attenuation(alike.reset_index().assign(low=0.4, value=0.5))


def worth_scores(real, after):
    facts = [
        ({(0, 0): auc}, {"n": k, "first": first})
        for first, by in ((False, real), (True, after))
        for k, auc in by.items()
    ]
    return pd.concat([toy_scores(aucs, size=40, **more) for aucs, more in facts], ignore_index=True)


def test_what_simulated_patients_are_worth_is_read_from_the_curve_of_real_ones():
    """0.5 without a patient, 0.6 with ten, 0.8 with twenty: 0.7 is worth fifteen, and 0.9 more than twenty."""
    worth = worth_scores({10: 0.6, 20: 0.8}, {10: 0.7, 20: 0.9})
    alone = tables.scored(toy_scores({(0, 0): 0.6}, size=40))
    found = tables.equivalents(worth, alone, 200, 0).set_index("real")
    assert found["equals"].tolist() == pytest.approx([10, 15, 20], abs=1e-6)
    assert (found["low"] <= found["equals"]).all()
    assert (found["high"] <= found["most"]).all()
    by_n = tables.worth_table(worth).set_index(["n", "first"])
    assert by_n.loc[(10, True), "difference"] == pytest.approx(0.1)
    words = answers._worth(next(found.loc[[20]].reset_index().itertuples()))
    assert words.startswith("Real patients, alone, that reach the AUC without any: more than 20 (")


# ---------------------------------------------------------------- the whole, on a small simulated cohort

SETTINGS = {
    "run": "toy", "engine.mode": "serial", "cohort.n_patients": 12, "cohort.frames_per_patient": 1, "folds.n_splits": 2,
    "preprocess.image_size": 64, "preprocess.crops_per_image": 1, "sweep.steps": 2, "sweep.n_resamples": 100,
    "simulated_only.n_cohorts": 2, "simulated_only.n_seeds": 1, "simulated_only.n_patients": 4,
    "simulated_only.n_frames": 1, "simulated_only.steps": 2, "simulated_only.look_every": 1,
    "simulated_only.variants": ["no_effects"], "simulated_only.variant_seeds": 1,
    "simulated_only.real_patients": [4, 40, 50], "simulated_only.real_seeds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAFLD_ROOT", str(tmp_path_factory.mktemp("alone")))
        run = artifacts.open_run("demo", SETTINGS)
        cohort.build_cohort(run)
        preprocessing.build_preprocessed(run)
        yield run, answers.build(run)


def test_no_real_image_is_an_input_of_a_simulated_cohort_and_a_variant_has_the_same_patients(built):
    run, _ = built
    assert units.cohort_unit(run, "full", 0).recipe["inputs"] == []
    full, off = (units.cohort_unit(run, variant, 0).load_table("images.csv") for variant in ("full", "no_effects"))
    assert full.equals(off)
    assert full["label"].tolist() == [0, 1, 0, 1]
    assert (full["grade"] >= 5).tolist() == [False, True, False, True]
    views = [units.cohort_unit(run, variant, 0).load_array("views.npy") for variant in ("full", "no_effects")]
    assert not np.array_equal(views[0][1], views[1][1])
    assert len({unit.path for unit in units.units(artifacts.open_run("demo", {**SETTINGS, "run": "fresh"}))}) > 10
    other = units.cohort_unit(run, "full", 1).load_array("views.npy")
    assert not np.array_equal(views[0], other)


def test_shuffled_labels_are_those_of_patients_in_another_order(built):
    run, _ = built
    shuffled = [units._simulated(run, "full", 0, seed).labels for seed in range(8)]
    assert all(sorted(labels) == [0, 0, 1, 1] for labels in shuffled)
    assert len({tuple(labels) for labels in shuffled}) > 1


def test_every_patient_is_scored_once_by_each_training_and_what_is_done_is_not_made_again(built, monkeypatch):
    run, found = built
    alone, worth = units.scores(run)
    images = preprocessing.open_preprocessed(run).images
    assert set(alone["step"]) == {0, 1, 2}
    each = alone.groupby(["variant", "cohort", "seed", "shuffled", "step", "seen"])["image_id"].nunique()
    assert (each == len(images)).all()
    assert sorted(worth["n"].unique()) == [4, 6], "more than there are is all of them, once"
    assert (worth.groupby(["n", "first", "seed"])["image_id"].nunique() == len(images)).all()
    monkeypatch.setattr(units, "make_training", None)
    assert answers.build(run)["auc"].equals(found["auc"])
    assert all(unit.done() for unit in units.units(run))


def test_what_is_said_follows_from_the_numbers_and_says_that_all_is_simulated(built):
    run, found = built
    arms = pd.DataFrame([{"backbone": run.settings.sweep.backbones[0], "arm": "real", "rate": 0.0, "level": "patient"}])
    text = answers.answer(run, found, {"arms": arms.assign(fold_auc=0.75, fold_low=0.6, fold_high=0.9)})
    declared = found["auc"].iloc[0]
    assert f"is {declared.auc:.3f}" in text
    assert "patients of this simulated cohort, who are others" in text
    assert "Real images alone, in this run: 0.750 [0.600, 0.900]" in text
    rows = {row["key"]: row for row in answers.claims(run, found)}
    assert len(rows) == len(answers.claims(run, found))
    assert rows["sweep.simulated_only.auc.patient"]["this_run"] == declared.auc
    assert {"sweep.simulated_only.control.shuffled_labels", "sweep.simulated_only.variant.no_effects"} <= set(rows)
    assert {"sweep.simulated_only.worth.n0", "sweep.simulated_only.first.n6"} <= set(rows)
    assert all("on simulated patients" in row["claim"] for row in rows.values())
    import matplotlib.pyplot as plt

    drawn = figures.drawn(found)
    assert len(drawn) == 3
    assert [label.get_text() for label in drawn[1].axes[0].get_yticklabels()][-1] == "no effects"
    plt.close("all")


def test_a_variant_whose_trainings_end_at_guessing_is_named_and_one_with_another_class_mix_by_its_own_entropy(built):
    run, found = built
    assert len(found["losses"]) == len(units.trainings(run))
    assert found["losses"]["loss"].between(0, 5).all()
    rows = [("full", False, 0.02), ("full", True, 0.7), ("half_way", False, 0.69), ("half_way", False, 0.69)]
    losses = pd.DataFrame(rows, columns=["variant", "shuffled", "loss"])
    text = answers._not_learnt(losses, 0.5)
    assert "trainings on half way end at the loss of guessing (0.69)" in text
    assert answers._not_learnt(losses[:2], 0.5) == "", "shuffled labels are to be guessed"
    assert "on half way end" in answers._not_learnt(losses.replace(0.69, 0.3), 0.1)  # entropy 0.325
    assert answers._not_learnt(losses.replace(0.69, 0.3), 0.5) == ""


def test_nothing_is_made_where_it_is_off(built, monkeypatch):
    run, _ = built
    off = artifacts.open_run("demo", {**SETTINGS, "simulated_only.n_cohorts": 0})
    assert answers.build(off) == {}
    assert (units.units(off), answers.claims(off, {}), figures.drawn({})) == ([], [], [])
    assert "n_cohorts is 0" in answers.answer(off, {}, {})
    monkeypatch.setattr(artifacts.Run, "shows_livers", False)
    assert not units.is_on(run)
    assert sweep.simulated_only.units.units(run) == []


def test_no_simulated_patient_of_these_trainings_is_one_of_the_arm_or_of_a_cohort():
    seeds = {artifacts.unit_seed(0, "simulated_only", cohort_, i) for cohort_ in range(3) for i in range(300)}
    arm = {artifacts.unit_seed(0, "synthetic", "simulated", -1, i) for i in range(2000)}
    assert len(seeds) == 900
    assert not seeds & arm
    assert min(seeds) > 1_000_000  # seeds of simulated cohorts and of the shipped autoencoder are small
