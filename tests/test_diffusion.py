"""The two networks, the schedule, and a training loop that learns and resumes to the bit."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from nafld_utils import diffusion, params
from nafld_utils.stages import ldm as stage

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def count(**options):
    with torch.device("meta"):
        return sum(p.numel() for p in diffusion.build_unet(**options).parameters())


def test_paper_size_networks_have_the_published_number_of_weights():
    assert count(conditioning="semantic", channel_mult=(1, 2, 4)) == 57_570_435
    assert count(conditioning="semantic", channel_mult=(1, 4, 8)) == 215_229_315
    assert count(conditioning="class") == 394_984_196


def test_the_paper_profile_builds_the_paper_networks():
    ldm = params.load("paper").section("ldm")
    with torch.device("meta"):
        semantic = diffusion.build_denoiser("semantic", ldm["semantic"], (3, 64, 64), 5, 0)
        label = diffusion.build_denoiser("class", ldm["class"], (4, 32, 32), 5, 0)
    assert diffusion.count_parameters(semantic) == {"denoiser": 57_570_435, "conditioner": 15}
    assert diffusion.count_parameters(label) == {"denoiser": 394_984_196, "conditioner": 3 * 512}


def test_unknown_conditioning_is_refused():
    with pytest.raises(ValueError, match="'semantic' or 'class', got 'text'"):
        diffusion.build_unet("text")


def tiny(conditioning, seed=0):
    network = params.load("smoke").section(f"ldm.{conditioning}")
    return diffusion.build_denoiser(conditioning, network, SHAPE, 5, seed)


def settings(**changes):
    base = params.load("smoke").section("ldm")
    return base | {"steps": 12, "log_every": 1, "warmup_steps": 2, "batch_size": 4} | changes


def pool(conditioning, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moments = torch.randn(n, 2, *SHAPE, generator=generator)
    maps = torch.randint(5, (n, 2, 16, 16), generator=generator, dtype=torch.uint8)
    conditions = maps if conditioning == "semantic" else torch.arange(n) % 2
    return diffusion.LatentPool(moments, conditions, lambda m, noise: m)


def noiser(conditioning, prediction="v_prediction"):
    network = params.load("smoke").section(f"ldm.{conditioning}")
    return DDPMScheduler(**diffusion.schedule_options(network, prediction, 1000))


def fit(conditioning, training=None, stop=None, seed=3, **changes):
    chosen = settings(**changes)
    training = training or diffusion.start_training(tiny(conditioning), chosen)
    loss = chosen[conditioning]["loss"]
    data = pool(conditioning)
    for state in diffusion.train(training, data, data, chosen, loss, noiser(conditioning), seed, CPU):
        if state.step == stop:
            break
    return training


def test_initial_weights_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    a, b, c = tiny("class", 1), tiny("class", 1), tiny("class", 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.embed.weight, b.embed.weight)
    assert not torch.equal(a.embed.weight, c.embed.weight)


def test_null_condition_is_zeros_or_the_third_label():
    keep = torch.tensor([True, False])
    planes = tiny("semantic").condition(torch.full((2, 16, 16), 3), keep)
    assert planes.shape == (2, 5, 16, 16)
    assert planes[0].sum() == 16 * 16
    assert planes[1].abs().sum() == 0
    assert tiny("class").condition(torch.tensor([1, 1]), keep).tolist() == [1, diffusion.NULL_LABEL]


def test_averaging_a_map_equals_bilinear_at_half_size():
    planes = tiny("semantic").condition(torch.randint(5, (2, 32, 32)))
    half = torch.nn.functional.interpolate(planes, size=(16, 16), mode="area")
    bilinear = torch.nn.functional.interpolate(planes, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(half, bilinear)


@pytest.mark.parametrize("conditioning", ["semantic", "class"])
def test_training_resumes_to_the_bit_through_a_checkpoint_file(conditioning, tmp_path):
    whole = fit(conditioning)
    interrupted = fit(conditioning, stop=7)
    stage.checkpoint(interrupted, tmp_path)
    resumed = diffusion.start_training(tiny(conditioning, seed=99), settings())
    assert stage.resume(resumed, tmp_path)
    assert resumed.step == 7
    fit(conditioning, training=resumed)
    for name, value in whole.tensors().items():
        assert torch.equal(value, resumed.tensors()[name]), name
    assert whole.facts() == resumed.facts()


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path):
    stage.checkpoint(fit("class", stop=3), tmp_path)
    stage.checkpoint(fit("class", stop=6), tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    training = diffusion.start_training(tiny("class"), settings())
    assert stage.resume(training, tmp_path)
    assert training.step == 3
    assert not newest.exists()


def test_only_the_last_checkpoints_are_kept(tmp_path):
    training = fit("class", stop=1)
    for step in (1, 2, 3, 4):
        training.step = step
        stage.checkpoint(training, tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000003.safetensors", "step-00000004.safetensors"]


def test_average_differs_from_the_raw_weights_after_ten_steps_and_keeps_every_name():
    training = fit("semantic", stop=10)
    raw, averaged = training.denoiser.state_dict(), training.averaged()
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [row["learning_rate"] for row in fit("class").curve]
    assert rates[1] == max(rates)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_one_step_agrees_with_a_plain_diffusers_loop():
    chosen = settings(condition_dropout=0.0)
    training = diffusion.start_training(tiny("class"), chosen)
    plain = copy.deepcopy(training.denoiser)
    data, process = pool("class"), noiser("class")
    next(diffusion.train(training, data, None, chosen, "l2", process, 3, CPU))

    generator = torch.Generator().manual_seed(diffusion.unit_seed(3, "step", 0))
    latents, labels = data.batch(4, generator)
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(1000, (4,), generator=generator)
    predicted = plain.unet(process.add_noise(latents, noise, t), t, plain.embed(labels)[:, None]).sample
    alpha = process.alphas_cumprod[t][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    loss = ((predicted - velocity) ** 2).mean()
    assert training.recent == [] or math.isclose(training.recent[-1], loss.item(), rel_tol=1e-6)
    assert training.curve[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    chosen = settings()
    training = diffusion.start_training(tiny("class"), chosen)
    before = training.tensors()
    data = pool("class")
    data.moments[:] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        next(diffusion.train(training, data, None, chosen, "l2", noiser("class"), 0, CPU))
    assert all(torch.equal(value, before[name]) for name, value in training.tensors().items())


def test_validation_loss_is_the_same_at_every_call_and_missing_without_images():
    denoiser, data = tiny("class"), pool("class")
    first = diffusion.validation_loss(denoiser, noiser("class"), data, "l2", 0, CPU)
    torch.rand(3)
    assert diffusion.validation_loss(denoiser, noiser("class"), data, "l2", 0, CPU) == first
    assert math.isnan(diffusion.validation_loss(denoiser, noiser("class"), None, "l2", 0, CPU))


@pytest.mark.slow
def test_the_training_code_can_learn_four_images():
    chosen = settings(steps=300, batch_size=8, learning_rate=2e-3, warmup_steps=10, condition_dropout=0.0, log_every=20)
    data = pool("class", n=4)
    data.moments = data.moments[:, :1, :, :1, :1].expand(-1, 1, -1, 8, 8)  # four flat images, one crop each
    training = diffusion.start_training(tiny("class"), chosen)
    for _ in diffusion.train(training, data, data, chosen, "l2", noiser("class"), 0, CPU):
        pass
    losses = np.array([row["loss"] for row in training.curve])
    assert losses[-1] < 0.35 * losses[0]
