"""First stages: scaling, the three kinds behind one interface, and a small one that learns."""

import diffusers
import numpy as np
import pytest
import torch

from nafld_utils import ldm
from nafld_utils.ldm import autoencoder, shipped_autoencoder

CPU = torch.device("cpu")


def pictures(n=6, size=64, seed=0):
    """Smooth grey blobs with speckle, uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(20, 200, (n, 1, 4, 4))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[:, 0].numpy()
    return np.clip(smooth + rng.normal(0, 15, smooth.shape), 0, 255).astype(np.uint8)


def wrap(kind):
    torch.manual_seed(0)
    if kind == "kl":
        model = diffusers.AutoencoderKL(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        )  # fmt: skip
    elif kind == "vq":
        model = diffusers.VQModel(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, num_vq_embeddings=16,
        )  # fmt: skip
    else:
        model = autoencoder.build("tiny")
    channels = model.config.latent_channels
    zeros, ones = torch.zeros(channels), torch.full((channels,), 0.5)
    return ldm.FirstStage(model.eval().requires_grad_(False), kind, zeros, ones)


@pytest.mark.parametrize(("kind", "moments", "latent"), [("kl", 8, 4), ("vq", 3, 3), ("tiny", 4, 4)])
def test_every_kind_has_the_same_interface(kind, moments, latent):
    stage = wrap(kind)
    images = pictures(3)
    found = ldm.encode_images(stage, images, CPU, batch_size=2)
    assert found.shape[:2] == (3, moments)
    assert found.dtype == np.float32
    assert ldm.latent_shape(stage, 64) == (latent, *found.shape[2:])
    copies = autoencoder.reconstruct(stage, images, CPU)
    assert copies.shape == images.shape
    assert copies.dtype == np.uint8


def test_kl_draws_from_its_posterior_and_the_others_do_not():
    moments = torch.zeros(1, 8, 4, 4)
    moments[:, :4], moments[:, 4:] = 2.0, np.log(9.0)
    stage = wrap("kl")
    noise = torch.ones(1, 4, 4, 4)
    torch.testing.assert_close(stage.draw(moments, noise), torch.full((1, 4, 4, 4), 0.5 * (2 + 3)))
    torch.testing.assert_close(stage.draw(moments), torch.full((1, 4, 4, 4), 1.0))
    flat = torch.full((1, 3, 4, 4), 2.0)
    assert torch.equal(wrap("vq").draw(flat, noise[:, :3]), wrap("vq").draw(flat))


def test_decoding_undoes_the_latent_scale():
    stage = wrap("tiny")
    moments = stage.encode(autoencoder.to_unit(pictures(2)))
    plain = stage.decode(stage.draw(moments))
    stage.shift, stage.scale = torch.full((4,), 0.3), torch.full((4,), 7.0)
    torch.testing.assert_close(stage.decode(stage.draw(moments)), plain, rtol=1e-4, atol=1e-5)


def test_vq_quantises_inside_decode():
    stage = wrap("vq")
    latents = torch.randn(1, 3, 8, 8)
    code = (
        stage.model.quantize.embedding.weight[stage.model.quantize(latents)[2][2]].view(1, 8, 8, 3).permute(0, 3, 1, 2)
    )
    torch.testing.assert_close(stage.decode(0.5 * latents), stage.decode(0.5 * code), rtol=1e-4, atol=1e-5)


def test_grey_levels_round_trip():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(autoencoder.to_uint8(autoencoder.to_unit(images)).numpy(), images)
    assert autoencoder.to_unit(images).min() == -1
    assert autoencoder.to_unit(images).max() == 1


def test_standardised_latents_have_zero_mean_and_unit_variance():
    images = autoencoder.to_unit(pictures(12))
    stage = autoencoder.standardise(wrap("tiny").model, images)
    latents = stage.draw(stage.encode(images))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_weights_round_trip_through_tensors():
    stage = autoencoder.standardise(wrap("tiny").model, autoencoder.to_unit(pictures(4)))
    again = autoencoder.from_tensors(autoencoder.to_tensors(stage))
    images = pictures(2, seed=5)
    assert np.array_equal(autoencoder.reconstruct(stage, images, CPU), autoencoder.reconstruct(again, images, CPU))


def test_a_local_folder_is_read_and_a_wrong_one_is_named(tmp_path):
    wrap("kl").model.save_pretrained(tmp_path / "vae", safe_serialization=True)
    stage = autoencoder.load_pretrained("kl", 0.18215, path=str(tmp_path / "vae"))
    assert stage.scale.tolist() == pytest.approx([0.18215] * 4)
    assert stage.in_channels == 3
    with pytest.raises(ValueError, match=r"nowhere: expected diffusers weights of kind kl.*autoencoder\.\*\.path"):
        autoencoder.load_pretrained("kl", 1.0, path=str(tmp_path / "nowhere"))


def test_a_pickled_checkpoint_is_not_read(tmp_path):
    wrap("kl").model.save_pretrained(tmp_path / "vae", safe_serialization=False)
    with pytest.raises(ValueError, match="expected diffusers weights"):
        autoencoder.load_pretrained("kl", 1.0, path=str(tmp_path / "vae"))


def test_shipped_weights_are_small_and_better_than_a_blur():
    assert autoencoder.SHIPPED.stat().st_size < 2_000_000
    stage = autoencoder.load_shipped()
    images = pictures(4, 128)
    copies = autoencoder.reconstruct(stage, images, CPU)
    psnr = autoencoder.reconstruction_error(images, copies)["psnr"].mean()
    flat = np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape).astype(np.uint8)
    assert psnr > autoencoder.reconstruction_error(images, flat)["psnr"].mean() + 2


@pytest.mark.slow
def test_the_shipped_one_loses_a_third_of_what_patch_pca_loses_on_other_simulated_patients():
    found = shipped_autoencoder.measure(autoencoder.load_shipped(), n_patients=12).set_index("images")["frechet"]
    assert found["patch PCA"] > 3 * found["reconstructions"]


def test_a_missing_shipped_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="shipped autoencoder, found no file"):
        autoencoder.load_shipped(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("kind", "factor", "count"), [("vq", 4, 55_322_782), ("vq", 8, 67_717_295), ("kl", 8, 83_653_863)]
)
def test_published_first_stages_have_the_published_number_of_weights(kind, factor, count):
    with torch.device("meta"):
        model = autoencoder.build(kind, factor)
    assert sum(p.numel() for p in model.parameters()) == count


def test_an_architecture_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="autoencoder kl-f4: expected one of vq-f4, vq-f8, kl-f8, tiny-f8"):
        autoencoder.build("kl", 4)


@pytest.mark.parametrize(("kind", "factor"), [("vq", 4), ("kl", 8), ("tiny", 8)])
def test_every_architecture_survives_its_tensors_and_is_told_from_another(kind, factor):
    stage = autoencoder.untrained(kind, factor, 32, 0.5, seed=1)
    again = autoencoder.from_tensors(autoencoder.to_tensors(stage), kind, factor, 32)
    images = pictures(1)
    assert np.array_equal(autoencoder.reconstruct(stage, images, CPU), autoencoder.reconstruct(again, images, CPU))
    assert autoencoder.fingerprint(stage) == autoencoder.fingerprint(again)
    other = autoencoder.untrained(kind, factor, 32, 0.5, seed=2)
    assert autoencoder.fingerprint(stage) != autoencoder.fingerprint(other)
    rescaled = ldm.FirstStage(stage.model, kind, stage.shift, stage.scale * 2)
    assert autoencoder.fingerprint(stage) != autoencoder.fingerprint(rescaled)
