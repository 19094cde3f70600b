"""Stages 03 and 04 on a finished small run: what they refuse, what they store, and how models of a fold stay apart."""

import dataclasses
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from nafld_utils import artifacts, cohort, engine, ldm, networks, params, preprocessing, sampling
from nafld_utils.engine import timer
from nafld_utils.ldm import autoencoder, autoencoder_units, denoiser_training, denoiser_units, gan_units
from nafld_utils.preprocessing import unit
from nafld_utils.sampling import sampler_comparison, set_units, time_estimate

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def test_a_fold_model_does_not_take_another_folds_maps(run):
    stage = autoencoder.load_shipped()
    options = {"scheduler": "ddim", "steps": 2, "eta": 0.0, "guidance": 1.0}
    draw = set_units.sampler(run, "semantic", 0, ldm.load_denoiser(run, "semantic", 0), stage, CPU, options)
    table, maps = set_units.draw_conditions(run, "semantic", 0, 3)
    assert draw(table, maps).shape[0] == 3
    foreign, maps = set_units.draw_conditions(run, "semantic", 1, 12)
    with pytest.raises(ValueError, match="expected those of its own fold 0, found some drawn for fold 1"):
        draw(foreign, maps)
    with pytest.raises(ValueError, match=r"conditions of the semantic model: source patients .* held out in fold 0"):
        draw(foreign.assign(fold=0), maps)
    own = preprocessing.open_preprocessed(run).images.query("fold != 0")["patient_id"]
    shared = foreign.assign(source_patient=own.iloc[0])  # with more folds most patients train several models
    with pytest.raises(ValueError, match="found some drawn for fold 1"):
        draw(shared, maps)


@pytest.fixture
def copied(smoke, tmp_path, monkeypatch):
    """A function that opens a run which begins with what the small run has made, but for the units of some folders."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    base = tmp_path / "artifacts" / "smoke"
    shutil.copytree(smoke.artifacts, base, copy_function=os.link)

    def opened(*without, **changes):
        for folder in without:
            shutil.rmtree(base / folder)
        return artifacts.open_run("smoke", changes)

    return opened


@pytest.mark.parametrize("mode", ["serial", "local"])
def test_a_set_is_the_same_whatever_the_batch_size_and_the_number_of_workers(run, copied, mode):
    """The small run drew 12 at once, in one process."""
    kept = {fold: sampling.open_synthetic(run, "semantic", fold) for fold in (0, 1)}
    kept = {fold: (np.array(found.images), found.table) for fold, found in kept.items()}
    changes = {"sampling.batch_size": 7, "engine.mode": mode, "engine.n_workers": 2, "engine.device": "cpu"}
    again = copied("synthetic/semantic", **changes)
    tasks = [sampling.task_of(again, "semantic", fold) for fold in kept]
    engine.map_units(sampling.make_set, tasks, again.settings.engine, "sets")
    for fold, (images, table) in kept.items():
        made = sampling.open_synthetic(again, "semantic", fold)
        assert np.array_equal(made.images, images)
        pd.testing.assert_frame_equal(made.table, table)


def test_a_training_that_breaks_keeps_the_state_before_it_and_goes_on_from_there(run, copied, monkeypatch):
    whole = load_file(ldm.ldm_unit(run, "class", 0).file("last.safetensors"))
    again, train = copied("ldm/class/fold0"), ldm.train

    def breaking(*args):
        for state in train(*args):
            yield state
            if state.step == 7:  # the last checkpoint is that of step 6
                raise FloatingPointError("the loss is nan at step 7")

    monkeypatch.setattr(denoiser_training, "train", breaking)
    with pytest.raises(FloatingPointError, match="nan at step 7"):
        ldm.train_ldm(again, "class", 0)
    unit = ldm.ldm_unit(again, "class", 0)
    assert sorted(path.stem for path in unit.work.glob("step-*"))[-1] == "step-00000007"
    begun = []
    monkeypatch.setattr(denoiser_training, "train", lambda *args: begun.append(args[0].step) or train(*args))
    ldm.train_ldm(again, "class", 0)
    assert begun == [7]
    found = load_file(unit.file("last.safetensors"))
    assert all(torch.equal(value, found[name]) for name, value in whole.items())


def test_weights_of_another_run_are_where_a_training_begins(run, copied):
    """A rate so small that nothing is learnt shows where it began."""
    origin = load_file(ldm.ldm_unit(run, "class", 0).file("averaged.safetensors"))
    changes = {"ldm.init_from": "smoke", "ldm.steps": 1, "ldm.learning_rate": 1e-12, "ldm.weight_decay": 0.0}
    following = copied("ldm/class/fold1", **changes, run="following")
    shutil.copytree(run.root / "preprocess", following.root / "preprocess")
    cohort.build_cohort(following)
    preprocessing.build_preprocessed(following)
    ldm.make_latents(following, "class", 0)
    ldm.train_ldm(following, "class", 0)
    found = load_file(ldm.ldm_unit(following, "class", 0).file("last.safetensors"))
    for name, value in origin.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    drawn = ldm.new_denoiser(following, "class", 0, (4, 8, 8)).state_dict()
    assert not all(torch.allclose(found[name], value, atol=1e-4) for name, value in drawn.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_networks_are_compiled_where_the_setting_says_so(run, copied, monkeypatch, compiled):
    seen = []
    monkeypatch.setattr(ldm.denoiser, "compile_network", seen.append)
    again = copied("ldm/class/fold0", **{"engine.compile": compiled})
    ldm.train_ldm(again, "class", 0)
    denoiser = ldm.load_denoiser(again, "class", 0)
    options = {"scheduler": "ddim", "steps": 2, "eta": 0.0, "guidance": 1.0}
    set_units.sampler(again, "class", 0, denoiser, autoencoder.load_shipped(), CPU, options)
    assert len(seen) == (2 if compiled else 0), "one that is trained, one that is drawn from"
    assert all(isinstance(network, ldm.denoiser.ClassDenoiser) for network in seen)


def test_conditions_are_drawn_uniformly_over_training_frames_and_hand_on_patient_and_label(run):
    table, _ = set_units.draw_conditions(run, "semantic", 0, 1200)
    images = preprocessing.open_preprocessed(run).images
    training = images[images["fold"] != 0]
    counts = table["source_image"].value_counts().reindex(training["image_id"], fill_value=0)
    assert counts.sum() == 1200, "no image that is held out"
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    source = images.set_index("image_id").loc[table["source_image"]]
    assert table["source_patient"].tolist() == source["patient_id"].tolist()
    assert table["label"].tolist() == source["label"].tolist()
    half, labels = set_units.draw_conditions(run, "class", 0, 9)
    assert half["label"].tolist() == labels.tolist() == [0, 1] * 4 + [0]
    assert set(half["source_patient"]) == {-1}


def test_the_class_mix_of_a_set_is_stored_with_it_and_shown(run):
    shown = sampling.class_mix(run).set_index(["model", "fold"])
    assert set(shown.index.get_level_values("model")) == {"semantic", "class", "gan", "simulated"}
    for (name, fold), row in shown.iterrows():
        made = sampling.open_synthetic(**sampling.task_of(run, name, fold))
        assert artifacts.read_manifest(made.unit.path)["class_mix"] == row.to_dict()
        assert list(row) == [int((made.table["label"] == label).sum()) for label in (0, 1)]
    assert (shown.loc["class"] == 12).all(axis=None), "half and half"


def test_latents_and_denoisers_of_another_autoencoder_are_refused(run, monkeypatch):
    other = autoencoder.untrained("tiny", 8, 128, 1.0)
    with pytest.raises(ValueError, match="expected latents of the autoencoder in force, found those of another one"):
        autoencoder_units.latent_pools(run, "class", 0, other)
    monkeypatch.setattr(autoencoder_units, "first_stage", lambda *_: other)
    with pytest.raises(ValueError, match="expected a denoiser of the autoencoder in force, found one of another"):
        ldm.load_denoiser(run, "class", 0)


def test_a_model_starts_from_another_runs_weights_unless_they_saw_held_out_images(run, monkeypatch):
    following = artifacts.open_run("smoke", {"run": "following", "ldm.init_from": "smoke"})
    mine = preprocessing.open_preprocessed(run)
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: mine)
    origin = denoiser_units._origin(following, "class", 0, "none")
    assert origin == ldm.ldm_unit(run, "class", 0).file("averaged.safetensors")
    assert ldm.ldm_unit(following, "class", 0).hash != ldm.ldm_unit(run, "class", 0).hash
    shifted = dataclasses.replace(mine, images=mine.images.assign(fold=(mine.images["fold"] + 1) % 2))
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: shifted)
    with pytest.raises(ValueError, match=r"ldm\.init_from is smoke: \d+ images that are held out in fold 0 trained"):
        denoiser_units._origin(following, "class", 0, "none")
    with pytest.raises(ValueError, match=r"ldm\.init_from is nobody: expected"):
        denoiser_units._origin(artifacts.open_run("smoke", {"ldm.init_from": "nobody"}), "class", 0, "none")


def test_the_balanced_models_are_units_of_their_own_and_draw_from_both_classes_alike(run):
    both = artifacts.open_run("smoke", {"ldm.balance": ["none", "oversample"]})
    assert [unit.hash for unit in denoiser_units.units(run)] == [unit.hash for unit in denoiser_units.units(both)][
        : len(denoiser_units.units(run))
    ]
    assert len(ldm.balanced_tasks(both)) == len(autoencoder_units.tasks(both)) == 4
    assert ldm.ldm_unit(both, "class", 1, "oversample").path.parts[-2:] == ("class_balanced", "fold1")
    plain, _ = set_units.draw_conditions(both, "semantic", 0, 200)
    balanced, _ = set_units.draw_conditions(both, "semantic", 0, 200, "oversample")
    share = preprocessing.open_preprocessed(run).images.query("fold != 0")["label"].mean()
    assert plain["label"].mean() == pytest.approx(share, abs=0.12)
    assert balanced["label"].mean() == pytest.approx(0.5, abs=0.12)
    pool, _ = autoencoder_units.latent_pools(both, "class", 0, autoencoder.load_shipped(), "oversample")
    labels = pool.batch(400, torch.Generator().manual_seed(0))[1]
    assert labels.double().mean() == pytest.approx(0.5, abs=0.1)


def test_a_balanced_model_is_trained_on_balanced_batches_and_draws_its_own_set(run, copied, monkeypatch):
    changes = {"ldm.balance": ["none", "oversample"], "sampling.n_images": 6, "engine.mode": "serial"}
    both = copied(**changes, **{"engine.device": "cpu"})
    chosen, train = [], ldm.train

    def watched(training, pool, *rest):
        chosen.append(pool)
        return train(training, pool, *rest)

    monkeypatch.setattr(denoiser_training, "train", watched)
    ldm.train_ldm(both, "class", 0, "oversample")
    (pool,) = chosen
    labels = pool.batch(400, torch.Generator().manual_seed(0))[1]
    plain = preprocessing.open_preprocessed(both).images.query("fold != 0")["label"].mean()
    assert labels.double().mean() == pytest.approx(0.5, abs=0.1)
    assert abs(plain - 0.5) > 0.1, "without balance it would be another share"
    opened, load = [], denoiser_units.load_denoiser
    monkeypatch.setattr(denoiser_units, "load_denoiser", lambda *args: opened.append(args[1:]) or load(*args))
    sampling.make_set(both, "class", 0, balance="oversample")
    assert opened == [("class", 0, "oversample", None)]
    made = sampling.open_synthetic(both, "class", 0, balance="oversample")
    assert made.unit.path != sampling.synthetic_unit(both, "class", 0).path
    assert len(made.images) == 6


def test_samples_are_drawn_from_averaged_weights(run):
    unit = ldm.ldm_unit(run, "class", 0)
    used = ldm.load_denoiser(run, "class", 0).state_dict()
    averaged, last = (load_file(unit.file(f"{name}.safetensors")) for name in ("averaged", "last"))
    assert all(torch.equal(value, averaged[name]) for name, value in used.items())
    assert any(not torch.equal(value, last[name]) for name, value in used.items())


def test_a_set_that_was_broken_off_goes_on_with_the_shards_that_it_has(run, copied, monkeypatch):
    """The small run draws 24 images, 12 at once."""
    kept = np.array(sampling.open_synthetic(run, "class", 0).images)
    again, painted, painter = copied("synthetic/class"), [], set_units._painter

    def breaking(*args):
        paint = painter(*args)

        def one(rows, conditions):
            if len(painted) == 1:
                painted.append("broken off")
                raise KeyboardInterrupt
            painted.append(rows.index.tolist())
            return paint(rows, conditions)

        return one

    monkeypatch.setattr(set_units, "_painter", breaking)
    with pytest.raises(KeyboardInterrupt):
        sampling.make_set(again, "class", 0)
    sampling.make_set(again, "class", 0)
    assert painted == [list(range(12)), "broken off", list(range(12, 24))]
    assert np.array_equal(sampling.open_synthetic(again, "class", 0).images, kept)


def test_a_small_set_begins_a_large_one_and_lies_beside_it(run):
    large = artifacts.open_run("smoke", {"sampling.n_images": 4400})
    assert sampling.synthetic_unit(large, "class", 0).path.name == "n04400"
    assert sampling.synthetic_unit(run, "class", 0).path.name == "n00024"
    few, maps = set_units.draw_conditions(run, "semantic", 1, 5)
    many, more = set_units.draw_conditions(run, "semantic", 1, 9)
    pd.testing.assert_frame_equal(few, many.iloc[:5])
    assert np.array_equal(maps, more[:5])


def test_crops_drawn_on_the_fly_depend_on_the_generator_alone_and_on_training_images_only(run):
    fresh = artifacts.open_run("smoke", {"ldm.latents": "on_the_fly"})
    for conditioning in ("semantic", "class"):
        pool, _ = autoencoder_units.latent_pools(fresh, conditioning, 0, autoencoder.load_shipped())
        (a, maps), (b, _) = (pool.batch(3, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(a, b)
        assert a.shape == (3, 4, 8, 8)
        assert maps.shape == ((3, 64, 64) if conditioning == "semantic" else (3,))
        images = preprocessing.open_preprocessed(run).images
        assert (images.iloc[pool.rows]["fold"] != 0).all()
    stored, _ = autoencoder_units.latent_pools(run, "class", 0, autoencoder.load_shipped())
    assert not torch.isin(a[0], stored.moments).all(), "a new crop, not a stored one"


@pytest.mark.parametrize("conditioning", ["semantic", "class"])
def test_every_kind_of_set_is_drawn_where_latents_are_drawn_on_the_fly(run, conditioning, monkeypatch):
    changes = {"run": f"fresh-{conditioning}", "ldm.latents": "on_the_fly", "ldm.steps": 1, "ldm.preview_every": 0}
    fresh = artifacts.open_run("smoke", {**changes, "sampling.n_images": 2, "sampling.n_null": 2})
    stored = preprocessing.open_preprocessed(run)
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: stored)
    ldm.make_latents(fresh, conditioning, 0)
    ldm.train_ldm(fresh, conditioning, 0)
    for kind in params.SET_KINDS.values():
        sampling.make_set(fresh, conditioning, 0, kind)
        made = sampling.open_synthetic(fresh, conditioning, 0, kind).images
        assert len(made) == (2 if kind in ("synthetic", "synthetic_null") else 12)
    pooled = sampling.open_synthetic(run, conditioning, 0, "synthetic_gaussian").images
    assert np.array_equal(made, pooled), "Gaussian latents have the moments of the stored crops, whatever trains"


def test_previews_and_scalars_are_kept(run):
    looks = ldm.previews(run, "class", 0)
    assert list(looks) == [6, 12]
    assert looks[12].shape == (ldm.N_PREVIEW, 64, 64)
    assert not np.array_equal(looks[6], looks[12])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run.root / "tensorboard" / "class" / "fold0")).Reload()
    curve = denoiser_units.curves(run).query("model == 'class' and fold == 0")
    assert [event.step for event in log.Scalars("loss")] == curve["step"].tolist()
    assert [event.value for event in log.Scalars("validation")] == pytest.approx(curve["validation"].tolist())


def test_one_fold_alone_has_claims_without_an_interval(run):
    one = artifacts.open_run("smoke", {"ldm.folds": [0]})
    table = pd.DataFrame(denoiser_units.claims(one))
    assert (table["n"] == 1).all()
    assert table["this_run"].notna().all()
    assert table[["low", "high"]].isna().all().all()
    assert pd.DataFrame(denoiser_units.claims(run)).query("over == 'folds'")[["low", "high"]].notna().all().all()


def test_steps_stand_beside_the_papers_only_where_they_are_trained_as_there(run, monkeypatch):
    """As `PROFILE=paper SET="ldm.steps=2"`: the tables are those of the small run, the settings the paper's."""
    tables = {name: getattr(denoiser_units, name)(run) for name in ("network_table", "curves")}
    table, lost = (getattr(autoencoder_units, f"reconstruction_{name}")(run, "class") for name in ("table", "distance"))
    monkeypatch.setattr(autoencoder_units, "reconstruction_table", lambda *_: table)
    monkeypatch.setattr(autoencoder_units, "reconstruction_distance", lambda *_: lost)
    for name, found in tables.items():
        monkeypatch.setattr(denoiser_units, name, lambda _, found=found: found)
    found = {}
    for overrides in ([], ["ldm.steps=2"], ["sampling.steps=2"]):
        claims = denoiser_units.claims(artifacts.open_run("paper", overrides))
        found[tuple(overrides)] = next(
            c["same_protocol"] for c in claims if c["claim"].startswith("training steps, sem")
        )
    assert found == {(): "yes", ("ldm.steps=2",): "no: other training (steps 2)", ("sampling.steps=2",): "yes"}


def test_the_estimate_counts_what_is_left(run):
    table = sampling.estimate(run)
    assert (table["minutes_left"] == 0).all(), "all is done"
    assert (table["minutes_in_all"] > 0).all()
    more = artifacts.open_run("smoke", {"ldm.steps": 1000, "sampling.n_images": 500, "engine.n_workers": 1})
    table = sampling.estimate(more)
    kept = table["units"] == table["done"]
    untouched = [["latents", "semantic and class"], ["training", "gan"]]
    assert table.loc[kept, ["work", "model"]].to_numpy().tolist() == untouched, "they read neither setting"
    assert (table.loc[~kept, "minutes_left"] > 0).all()
    assert table["minutes_left"].iloc[-1] == pytest.approx(table["minutes_left"].iloc[:-1].sum())
    shown = sampling.networks(run).set_index("model")
    assert shown.loc["class", "parameters"] == 1_055_044


def test_the_estimate_has_every_unit_of_stages_03_and_04_that_a_network_makes(run):
    for overrides in ({}, {"ldm.balance": ["none", "oversample"]}, {"gan.enabled": False, "sampling.n_compared": 0}):
        mine = artifacts.open_run("smoke", overrides)
        denoisers = [ldm.ldm_unit(**task) for task in [*autoencoder_units.tasks(mine), *ldm.balanced_tasks(mine)]]
        units = [*denoisers, *autoencoder_units.units(mine), *gan_units.units(mine), *set_units.units(mine)]
        units += sampler_comparison.units(mine)
        table = sampling.estimate(mine)
        assert table["units"].iloc[-1] == table["units"].iloc[:-1].sum() == len(units)
        assert table["done"].iloc[-1] == sum(unit.done() for unit in units)
    works = sampling.estimate(run).groupby("work", sort=False)["units"].sum().to_dict()
    counts = {"latents": 1, "training": 6, "sampling": 7, "reference sets": 12, "comparison of samplers": 2, "all": 28}
    assert works == counts


def test_the_estimate_holds_the_autoencoders_that_are_trained_and_their_latents(run, monkeypatch):
    """Where a step, an encoder's pass and a decoder's pass take a second each."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time_estimate, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(timer, "timed", lambda call, *_, **__: [call()] and 1.0)

    def train(run, model, kind, images, planned, fold, device, report):
        (steps,) = planned.values()
        assert steps, "a phase of no steps, which is not trained"
        for step in range(steps):
            report(step, 0.0)

    monkeypatch.setattr(autoencoder_units, "train_phases", train)
    chosen = {"source": "train", "kind": "tiny", "train_steps": 60}
    mine = artifacts.open_run("smoke", {"autoencoder.class": chosen, "sampling.n_compared": 0})
    table = sampling.estimate(mine).set_index(["work", "model"])["minutes_a_unit"]
    assert table["autoencoder", "class"] == pytest.approx(1.0)
    images = preprocessing.open_preprocessed(run).images
    held_out = (images["fold"] == 0).sum()
    passes = 2 * len(images) + held_out + held_out  # two stored crops an image; held-out images there and back
    assert table["latents", "class"] == pytest.approx(passes / ldm.CPU_GROUP / 60)
    assert ("autoencoder", "semantic") not in table, "the shipped one is ready"
    few = artifacts.open_run("smoke", {"autoencoder.class": {**chosen, "train_steps": 2}, "sampling.n_compared": 0})
    assert sampling.estimate(few).set_index(["work", "model"])["minutes_a_unit"]["autoencoder", "class"] == 2 / 60


def test_a_gan_is_estimated_with_the_steps_that_its_budget_gives(run, monkeypatch):
    """Where a call takes a second: the steps, and one eighth per image of a call that draws eight."""
    monkeypatch.setattr(timer, "timed", lambda call, *_, **__: [call()] and 1.0)
    mine = artifacts.open_run("smoke", {"gan.steps": None, "ldm.steps": 100, "sampling.n_compared": 0})
    table = sampling.estimate(mine).set_index(["work", "model"])["minutes_a_unit"]
    assert table["training", "gan"] == pytest.approx(gan_units.steps(mine) / 60)
    assert table["sampling", "gan"] == pytest.approx(mine.settings.sampling.n_images / 8 / 60)


def test_passes_are_counted_from_the_settings_alone():
    """10 steps of 4 images; 3 images of 5 guided steps; the comparison draws the run's own setting a second time."""
    changes = {"ldm.steps": 10, "ldm.batch_size": 4, "ldm.log_every": 4, "ldm.preview_every": 6}
    changes |= {"sampling.n_images": 3, "sampling.n_null": 2, "sampling.steps": 5, "sampling.guidance": 1.2}
    changes |= {"sampling.n_compared": 2, "sampling.compared_guidance": [1.0, 1.2], "sampling.compared_steps": [20]}
    found = time_estimate.passes(artifacts.open_run("paper", {**changes, "quality.n_reference": 7}))
    assert found == {
        "training": 3 * 4 * 10,
        "looks": 3 * 32 + 2 * 4 * 10 * 2,
        "synthetic": 3 * 5 * 2,
        "synthetic_null": 2 * 5,
        "synthetic_untrained": 7 * 5 * 2,
        "synthetic_gaussian": 0,
        "comparison": 2 * (5 * 2 + 5 * 1 + 20 * 2 + 5 * 2),
    }


def test_the_comparison_holds_every_setting_once_and_another_set_of_seeds(run):
    table = sampler_comparison.compare_samplers(run)
    wanted = sampler_comparison.variants(run)
    assert len(table) == 2 * (len(wanted) + 1)
    assert (table["seeds"] == "other").sum() == 2
    assert np.isfinite(table[["frechet", "condition", "seconds"]]).all().all()


@pytest.mark.parametrize("sampler", [{}, {"sampling.scheduler": "dpmsolver++", "sampling.compared_steps": [3, 4, 9]}])
def test_guidance_is_compared_at_the_runs_own_sampler_and_steps_alone(sampler):
    """Also where the run's sampler is the one whose steps are compared."""
    mine = artifacts.open_run("smoke", {"sampling.compared_guidance": [1.0, 1.2, 3.0], **sampler})
    variants = pd.DataFrame(sampler_comparison.variants(mine))
    found = sampling.at_own_sampler(pd.concat([variants, variants[:1]]))
    assert found["guidance"].tolist() == [1.2, 1.0, 3.0, 1.2]
    assert set(found["steps"]) == {mine.settings.sampling.steps}


@pytest.mark.parametrize("source", ["random", "train"])
def test_first_stages_of_the_published_shapes_pass_through_the_stage(run, source, monkeypatch):
    changed = {"source": source, "kind": "vq", "factor": 4, "base_channels": 32, "train_steps": 2}
    mine = artifacts.open_run("smoke", {"autoencoder.semantic": changed, "run": "published"})
    stored = preprocessing.open_preprocessed(run)
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: stored)
    if source == "train":
        assert [task["conditioning"] for task in ldm.autoencoder_tasks(mine)] == ["semantic", "semantic"]
        ldm.train_autoencoder(mine, "semantic", 1)
    ldm.make_latents(mine, "semantic", 1)
    stage = ldm.first_stage(mine, "semantic", 1)
    pool, held_out = autoencoder_units.latent_pools(mine, "semantic", 1, stage)
    assert pool.moments.shape[2:] == held_out.moments.shape[2:] == (3, 16, 16)
    rows, copies = ldm.reconstructions(mine, "semantic", 1)
    assert len(rows) == len(copies) == (stored.images["fold"] == 1).sum()


def test_an_autoencoder_is_trained_on_images_that_are_not_held_out_and_on_no_other(run, monkeypatch):
    """The weights of three trainings: on the images, on inverted held-out ones, and on inverted others."""
    chosen, stored = {"source": "train", "kind": "tiny", "train_steps": 2}, preprocessing.open_preprocessed(run)
    held_out, weights = (stored.images["fold"] == 1).to_numpy(), []
    for name, rows in (("none", held_out & False), ("held-out", held_out), ("others", ~held_out)):
        pool = np.where(rows[:, None, None, None], 255 - np.asarray(stored.pool), stored.pool)
        changed = dataclasses.replace(stored)
        vars(changed)["pool"] = pool
        monkeypatch.setattr(unit, "open_preprocessed", lambda _, changed=changed: changed)
        mine = artifacts.open_run("smoke", {"autoencoder.semantic": chosen, "run": f"inverted-{name}"})
        ldm.train_autoencoder(mine, "semantic", 1)
        weights.append(load_file(ldm.autoencoder_unit(mine, "semantic", 1).file("autoencoder.safetensors")))
    as_it_was, same, other = weights
    assert all(torch.equal(value, same[name]) for name, value in as_it_was.items())
    assert any(not torch.equal(value, other[name]) for name, value in as_it_was.items())


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers gives it
def test_a_first_stage_from_the_hub_says_the_commit_it_was(run, tmp_path, monkeypatch):
    """A hub's cache with one commit, without a network; the setting's revision is null and means the newest."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--vae"
    published = autoencoder.untrained("kl", 8, 32, 0.18215).model
    published.save_pretrained(folder / "snapshots" / commit / "vae", safe_serialization=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    chosen = {"source": "hub", "kind": "kl", "hub_id": "someone/vae", "subfolder": "vae", "revision": None}
    mine = artifacts.open_run("smoke", {"run": "hub", "ldm.conditionings": ["class"], "autoencoder.class": chosen})
    stored = preprocessing.open_preprocessed(run)
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: stored)
    ldm.make_latents(mine, "class", 0)
    (row,) = ldm.origins(mine).to_dict("records")
    assert (row["models"], row["source"], row["origin"], row["commit"]) == ("class", "hub", "someone/vae/vae", commit)
    assert networks.hub_commit("someone/other", "config.json") is None
    newer = commit[::-1]
    later = autoencoder.untrained("kl", 8, 32, 0.18215, seed=5).model
    later.save_pretrained(folder / "snapshots" / newer / "vae", safe_serialization=True)
    (folder / "refs" / "main").write_text(newer)
    for revision, wanted in ((commit, published), (None, later)):
        options = {"ldm.conditionings": ["class"], "autoencoder.class": {**chosen, "revision": revision}}
        found = ldm.first_stage(artifacts.open_run("smoke", options), "class", 0).model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in wanted.state_dict().items()), "pinned, newest"


def test_models_that_share_an_autoencoder_show_it_once(run):
    assert ldm.shared(run) == {"semantic": ["semantic", "class"]}
    (row,) = ldm.origins(run).to_dict("records")
    assert (row["models"], row["source"], row["commit"]) == ("semantic and class", "shipped", "")
    (line,) = ldm.reading(run)
    assert line.startswith("The small autoencoder of the semantic and class models (shipped) keeps structure")
    paper = artifacts.open_run("paper")
    assert ldm.shared(paper) == {"semantic": ["semantic"], "class": ["class"]}
    assert [line[: line.index("(")] for line in ldm.reading(paper)] == [
        "The VQ autoencoder of the semantic model ",
        "The KL autoencoder of the class model ",
    ]
    assert not any("small" in line or "speckle" in line for line in ldm.reading(paper))
    alone = artifacts.open_run("smoke", {"ldm.conditionings": ["class"], "quality.filter_of": "class"})
    assert ldm.shared(alone) == {"class": ["class"]}


def test_settings_that_contradict_each_other_are_named():
    for overrides, words in (
        (["ldm.accumulate=3"], "accumulate must divide batch_size 32, got 3"),
        (["ldm.balance=[oversample]"], "balance must hold none"),
        (["sampling.scheduler=unipc"], "eta must be 0 with unipc"),
        (["autoencoder.class.source=ldm_checkpoint"], "path and sha256 must name a checkpoint"),
        (["autoencoder.class.source=train", "autoencoder.class.factor=4"], "kind and factor must be one of"),
    ):
        with pytest.raises(params.SettingsError, match=words):
            params.load("paper", overrides)
