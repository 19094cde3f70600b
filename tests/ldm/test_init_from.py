"""Models that start from another run's weights: those of the same network and latents, and no others."""

from types import SimpleNamespace

import pandas as pd
import pytest
from safetensors.torch import save_file

from nafld_utils import artifacts, ldm, preprocessing
from nafld_utils.artifacts import load_weights
from nafld_utils.ldm import autoencoder, denoiser_units
from nafld_utils.preprocessing import unit

SHAPE = (4, 8, 8)
TRAINED = {"source": "train", "train_steps": 2}


@pytest.fixture
def pretrained(tmp_path, monkeypatch):
    """A function that leaves a run named `other`, on a cohort of its own, with a semantic and a class model."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    images = pd.DataFrame({"fold": [0, 1], "sha256": ["a", "b"]})
    monkeypatch.setattr(unit, "open_preprocessed", lambda _: SimpleNamespace(images=images))

    def make(stage=None, **changes):
        other = artifacts.open_run("smoke", {"run": "other", "cohort.simulation_seed": 77, **changes})
        with preprocessing.preprocess_unit(other).writing() as folder:
            images.assign(sha256=["c", "d"]).to_csv(folder / "images.csv", index=False)
        facts = {"autoencoder": autoencoder.fingerprint(stage or autoencoder.load_shipped())}
        for conditioning in ("semantic", "class"):
            denoiser = ldm.new_denoiser(other, conditioning, 0, SHAPE)
            with ldm.ldm_unit(other, conditioning, 0).writing() as folder:
                save_file(denoiser.state_dict(), folder / "averaged.safetensors", metadata=facts)
        return other

    return make


def following(**changes):
    return artifacts.open_run("smoke", {"run": "following", "ldm.init_from": "other", **changes})


@pytest.mark.parametrize("conditioning", ["semantic", "class"])
def test_a_model_of_the_same_latents_is_started_from_whatever_its_cohort_length_and_loss(pretrained, conditioning):
    other = pretrained(**{"ldm.steps": 40, "ldm.class.loss": "l1", "ldm.semantic.cross_attention_dim": 96})
    origin = denoiser_units._origin(following(), conditioning, 0, "none")
    assert origin == ldm.ldm_unit(other, conditioning, 0).file("averaged.safetensors")
    ldm.new_denoiser(following(), conditioning, 0, SHAPE).load_state_dict(load_weights(origin)[0])


@pytest.mark.parametrize(
    ("conditioning", "theirs", "words"),
    [
        ("class", {"ldm.prediction": "epsilon"}, "ldm.prediction epsilon instead of v_prediction"),
        ("class", {"ldm.train_timesteps": 500}, "ldm.train_timesteps 500 instead of 1000"),
        ("class", {"ldm.class.beta_end": 0.02}, "ldm.class.beta_end 0.02 instead of 0.0195"),
        ("class", {"ldm.class.model_channels": 64}, "ldm.class.model_channels 64 instead of 32"),
        ("class", {"ldm.class.cross_attention_dim": 64}, "ldm.class.cross_attention_dim 64 instead of 32"),
        ("semantic", {"ldm.semantic.channel_mult": [1, 4]}, r"ldm.semantic.channel_mult \[1, 4\] instead of \[1, 2\]"),
        ("semantic", {"ldm.semantic.heads": 4}, "ldm.semantic.heads 4 instead of 2"),
        ("semantic", {"preprocess.map_classes": 4}, "preprocess.map_classes 4 instead of 5"),
    ],
)
def test_weights_of_another_network_or_schedule_are_refused(pretrained, conditioning, theirs, words):
    pretrained(**theirs)
    expected = rf"init_from is other: expected a {conditioning} model of these settings, found one of {words}; give"
    with pytest.raises(ValueError, match=expected):
        ldm.ldm_unit(following(), conditioning, 0)


def test_weights_of_another_latent_space_are_refused(pretrained):
    pretrained(autoencoder.untrained("tiny", 8, 128, 1.0, seed=5))
    expected = r"in force \([0-9a-f]{12}\), found one of another \([0-9a-f]{12}\), .*source shipped, hub, path or"
    with pytest.raises(ValueError, match=expected):
        ldm.ldm_unit(following(), "class", 0)


def test_the_latents_that_are_there_say_which_autoencoder_is_in_force(pretrained):
    pretrained()
    with ldm.latents_unit(following(), "class", 0).writing(autoencoder={"fingerprint": "f" * 64}):
        pass
    with pytest.raises(ValueError, match=r"autoencoder in force \(f{12}\), found one of another"):
        ldm.ldm_unit(following(), "class", 0)


def test_an_autoencoder_that_each_cohort_trains_is_refused_before_it_is_trained(pretrained):
    """Another cohort's own autoencoder has other latents; one of the same images and settings has the same."""
    pretrained(**{"autoencoder.class": TRAINED})
    mine = following(**{"autoencoder.class": TRAINED})
    with pytest.raises(ValueError, match=r"in force \(still to be trained on this cohort\), found one of another"):
        ldm.ldm_unit(mine, "class", 0)
    place = ldm.autoencoder_unit(mine, "class", 0)
    theirs = artifacts.work_root() / "artifacts" / "other" / place.path.relative_to(mine.root)
    with artifacts.Unit(theirs, place.hash, place.recipe).writing() as folder:
        (folder / "autoencoder.safetensors").touch()
    assert denoiser_units._origin(mine, "class", 0, "none").is_file()


def test_a_model_of_another_split_than_its_run_lists_now_is_refused(pretrained):
    """Held-out images are told from that list: after another split it no longer says what the weights have seen."""
    other = pretrained()
    shifted = artifacts.open_run("smoke", {"run": "other", "cohort.simulation_seed": 77, "folds.seed": 5})
    stored = (preprocessing.preprocess_unit(other).path / "images.csv").read_bytes()
    with preprocessing.preprocess_unit(shifted).writing() as folder:
        (folder / "images.csv").write_bytes(stored)
    with pytest.raises(ValueError, match=r"init_from is other: .* found that ldm/class/fold0 is of another split than"):
        ldm.ldm_unit(following(), "class", 0)


def test_a_model_that_began_with_a_third_runs_weights_is_refused(pretrained):
    """What trained that one is listed nowhere here."""
    pretrained()
    chain = following()
    with ldm.ldm_unit(chain, "class", 0).writing() as folder:
        weights, facts = load_weights(denoiser_units._origin(chain, "class", 0, "none"))
        save_file(weights, folder / "averaged.safetensors", metadata=facts)
    with preprocessing.preprocess_unit(chain).writing() as folder:
        pd.DataFrame({"fold": [0, 1], "sha256": ["a", "b"]}).to_csv(folder / "images.csv", index=False)
    third = artifacts.open_run("smoke", {"run": "third", "ldm.init_from": "following"})
    with pytest.raises(
        ValueError, match=r"found that ldm/class/fold0 began with the weights of a third run; run stages"
    ):
        ldm.ldm_unit(third, "class", 0)


def test_a_model_without_its_manifest_is_refused(pretrained):
    other = pretrained()
    (ldm.ldm_unit(other, "class", 0).path / artifacts.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"with its manifest and images\.csv of that run, found one of them missing"):
        ldm.ldm_unit(following(), "class", 0)
