"""The loss of the small autoencoder: blind where it should be, and training that depends on its seeds alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nafld_utils import artifacts, ldm, networks, preprocessing
from nafld_utils.ldm import autoencoder, autoencoder_training
from nafld_utils.ldm.autoencoder_training import Phase

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features():
    return autoencoder_training.feature_maps(networks.load("tf_efficientnet_lite0", "bundled"))


def speckle(n, seed, size=32):
    """Rayleigh noise: the same texture everywhere, never the same pixels."""
    rng = np.random.default_rng(seed)
    field = np.hypot(*rng.normal(size=(2, n, size, size)))
    return np.clip(50 * field, 0, 255).astype(np.uint8)


def test_texture_terms_prefer_other_speckle_to_a_smooth_image(features):
    """Pixel by pixel the mean image wins; what the texture phase compares says the opposite."""
    images, other = (autoencoder.to_unit(speckle(4, seed)) for seed in (0, 1))
    smooth = torch.full_like(images, images.mean())
    loss = autoencoder_training.ReconstructionLoss("texture", features, images)
    same, flat = loss.terms(other, images), loss.terms(smooth, images)
    assert flat["pixels"] < same["pixels"]
    for name in ("texture", "moments"):
        assert flat[name] > 2 * same[name], name
    assert set(same) == set(autoencoder_training.PHASES["texture"])
    assert all(term.item() == pytest.approx(0, abs=1e-5) for term in loss.terms(images, images).values())


def test_structure_phase_compares_place_by_place_only(features):
    images = autoencoder.to_unit(speckle(2, 0))
    loss = autoencoder_training.ReconstructionLoss("structure", features, images)
    assert set(loss.terms(images, images)) == set(autoencoder_training.PHASES["structure"])


def test_reconstruction_terms_reach_the_decoder_and_the_encoder(features):
    model = autoencoder.build("tiny")
    images = autoencoder.to_unit(speckle(2, 0))
    loss = autoencoder_training.ReconstructionLoss("texture", features, images)
    sum(loss.terms(model.decode(model.encode(images).latents).sample, images).values()).backward()
    for part in (model.encoder, model.decoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize(
    ("kind", "factor", "whole"), [("vq", 4, 136), ("vq", 8, 136), ("kl", 8, 136), ("tiny", 8, 128)]
)
def test_published_networks_end_with_whole_images_that_train_the_decoder_alone(kind, factor, whole, monkeypatch):
    """Images of 136 pixels, with the fewest channels that norms of 32 groups allow."""
    model = autoencoder.untrained(kind, factor, 32, 1.0, seed=0).model
    sides, before, draw = [], {}, autoencoder_training._patches

    def patches(images, n, side, generator):
        sides.append(side)
        before.update({name: value.clone() for name, value in model.state_dict().items()})
        return draw(images, 2, side, generator)

    monkeypatch.setattr(autoencoder_training, "_patches", patches)
    run = SimpleNamespace(settings=SimpleNamespace(seed=0))
    planned = ldm.phases(kind, 5)
    _, curve = ldm.train_phases(run, model, kind, speckle(2, 0, 136), planned, 0, CPU)
    assert sides == [64, 64, 64, 64, whole]
    assert curve["phase"].iloc[-1] == "polish"
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"decoder"} if kind == "tiny" else {"decoder", "post_quant_conv"})


def test_only_what_is_trained_in_new_phases_is_made_anew(monkeypatch):
    monkeypatch.setattr(preprocessing.unit, "preprocess_unit", lambda run: "preprocessed")
    tiny = {"source": "train", "kind": "tiny", "factor": 8, "train_steps": 200}
    recipes = [
        ldm.autoencoder_unit(artifacts.open_run("smoke", {"autoencoder.class": chosen}), "class", 0).recipe
        for chosen in (tiny, {**tiny, "kind": "kl"})
    ]
    assert set(recipes[0]["settings"]) == {"kind", "factor", "base_channels", "train_steps", "seed"}
    assert recipes[1]["settings"]["phases"] == {"structure": 80, "texture": 80, "polish": 40}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "factor", "phase"),
    [("tiny", 8, "structure"), ("tiny", 8, "texture"), ("kl", 8, "structure"), ("vq", 4, "structure")],
)
def test_training_lowers_the_loss_and_depends_on_seeds_alone(features, kind, factor, phase):
    def train(steps):
        model = autoencoder.untrained(kind, factor, 32, 1.0, seed=0).model
        return autoencoder_training.train(
            speckle(8, 2), model, kind, features, range(steps), Phase(phase, steps, batch_size=2), CPU
        )

    stage, curve = train(21)
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    once, again = (autoencoder.to_tensors(train(3)[0]) for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    latents = stage.draw(stage.encode(autoencoder.to_unit(speckle(8, 2))))
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(latents.shape[1]), atol=0.3, rtol=0)


def test_a_loss_that_is_not_finite_stops(features):
    model = autoencoder.build("tiny")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="autoencoder: the loss is nan at step 0; lower the learning rate"):
        autoencoder_training.train(speckle(2, 0), model, "tiny", features, range(1), Phase("texture", 1, 2), CPU)
