"""DDIM with guidance: timesteps as in the original, one seed an image, guidance that means what it says."""

import re

import pytest
import torch

from nafld_utils import ldm, params
from nafld_utils.ldm import sampler

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def denoiser():
    return ldm.denoiser.build_denoiser("class", params.load("smoke").section("ldm.class"), SHAPE, 5, 0).eval()


@pytest.fixture(scope="module")
def options():
    return ldm.denoiser.schedule_options(params.load("smoke").section("ldm.class"), "v_prediction", 1000)


def draw(denoiser, options, seeds, labels=None, steps=5, eta=0.0, guidance=1.5, null=False, scheduler="ddim"):
    labels = torch.zeros(len(seeds), dtype=torch.long) if labels is None else torch.tensor(labels)
    return sampler.sample(
        denoiser,
        options,
        labels,
        seeds,
        SHAPE,
        CPU,
        steps=steps,
        eta=eta,
        guidance=guidance,
        null=null,
        scheduler=scheduler,
    )


def test_timesteps_are_those_of_the_original_sampler(options):
    sampler = ldm.sampler.build_sampler(options)
    sampler.set_timesteps(500)
    assert sampler.timesteps[:3].tolist() == [999, 997, 995]
    assert sampler.timesteps[-1] == 1


def test_ddim_walks_the_numbers_of_steps_whose_strides_reach_the_last_timestep(options):
    """Against what diffusers walks: an index beyond the last timestep, or a start a stride or more before it."""
    sampler = ldm.sampler.build_sampler(options)
    for steps in range(1, 1001):
        sampler.set_timesteps(steps)
        first, stride = int(sampler.timesteps[0]), 1000 // steps
        assert params.ddim_strides(steps, 1000) == (first < 1000 and 1000 - first < 2 * stride - 1), steps
    assert all(params.ddim_strides(steps, 1000) for steps in (2, 4, 5, 10, 20, 25, 50, 100, 200, 250, 500))


@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0), ("unipc", 0.0)])
def test_an_image_depends_to_the_bit_on_its_seed_and_not_on_its_neighbours(denoiser, options, scheduler, eta):
    seeds = list(range(11))  # more than one group
    together = draw(denoiser, options, seeds, [i % 2 for i in seeds], eta=eta, scheduler=scheduler)
    for few in ([3], [9, 10], [4, 3, 7, 8, 9, 0]):
        alone = draw(denoiser, options, few, [i % 2 for i in few], eta=eta, scheduler=scheduler)
        assert torch.equal(alone, together[few])
    assert not torch.allclose(together[0], together[2])


def test_fast_solvers_end_where_ddim_ends_in_far_more_steps(denoiser, options):
    slow = draw(denoiser, options, [1, 2], steps=125)
    coarse = draw(denoiser, options, [1, 2], steps=25)
    for scheduler in ("dpmsolver++", "unipc"):
        fast = draw(denoiser, options, [1, 2], steps=25, scheduler=scheduler)
        assert (fast - slow).abs().mean() < 0.45 * (coarse - slow).abs().mean(), scheduler
    with pytest.raises(ValueError, match="scheduler must be ddim"):
        sampler.build_sampler(options, "euler")


def test_ddim_is_deterministic_and_eta_adds_noise(denoiser, options, monkeypatch):
    drawn, noise = [], sampler._noise
    monkeypatch.setattr(sampler, "_noise", lambda *args: drawn.append(args) or noise(*args))
    assert torch.equal(draw(denoiser, options, [7]), draw(denoiser, options, [7]))
    assert len(drawn) == 2, "where each begins; no step draws noise"
    draw(denoiser, options, [7], steps=5, eta=1.0)
    assert len(drawn) == 2 + 1 + 5
    assert not torch.allclose(draw(denoiser, options, [7]), draw(denoiser, options, [7], eta=1.0))


def test_guidance_one_is_the_conditional_prediction_in_one_pass(denoiser):
    z, t, labels = torch.randn(2, *SHAPE), torch.tensor(500), torch.tensor([0, 1])
    plain = denoiser(z, t.expand(2), labels)
    assert torch.equal(sampler.predict(denoiser, z, t, labels, 1.0, null=False), plain)
    calls = []
    hook = denoiser.unet.register_forward_hook(lambda *_: calls.append(1))
    sampler.predict(denoiser, z, t, labels, 1.0, null=False)
    sampler.predict(denoiser, z, t, labels, 3.0, null=False)
    hook.remove()
    assert len(calls) == 2


def test_guidance_extrapolates_from_the_null_prediction(denoiser):
    z, t, labels = torch.randn(2, *SHAPE), torch.tensor(500), torch.tensor([0, 1])
    conditional = denoiser(z, t.expand(2), labels)
    null = denoiser(z, t.expand(2), torch.full((2,), ldm.denoiser.NULL_LABEL))
    expected = null + 1.2 * (conditional - null)
    found = sampler.predict(denoiser, z, t, labels, 1.2, null=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_null_samples_do_not_see_the_condition(denoiser, options):
    a = draw(denoiser, options, [5], labels=[0], null=True)
    assert torch.equal(a, draw(denoiser, options, [5], labels=[1], null=True))
    assert not torch.allclose(draw(denoiser, options, [5], labels=[0]), draw(denoiser, options, [5], labels=[1]))


def test_bad_requests_are_named(denoiser, options):
    with pytest.raises(ValueError, match="one condition a seed, found 1 and 2"):
        sampler.sample(denoiser, options, torch.zeros(1), [1, 2], SHAPE, CPU, steps=5, eta=0.0, guidance=1.0)
    for steps, scheduler in ((2000, "dpmsolver++"), (0, "unipc"), (2000, "ddim"), (1000, "ddim"), (600, "ddim")):
        with pytest.raises(
            ValueError, match=rf"sampling\.steps must be 1 to 1000, .*; got {steps} with {re.escape(scheduler)}"
        ):
            draw(denoiser, options, [1], steps=steps, scheduler=scheduler)


def test_gaussian_latents_match_the_moments_and_nothing_else():
    latents = torch.randn(200, 2, 4, 4) * 3 + 1
    drawn = ldm.gaussian_latents(latents, range(4000))
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=0.25, rtol=0)
    torch.testing.assert_close(drawn.std(0), latents.std(0), atol=0.25, rtol=0)
    assert torch.equal(drawn[5], ldm.gaussian_latents(latents, [5])[0])
