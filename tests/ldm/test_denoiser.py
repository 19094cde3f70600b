"""The two networks: sizes, conditions, schedule and loss."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from nafld_utils import ldm, params
from nafld_utils.ldm import count_parameters, denoiser

SHAPE = (4, 8, 8)


def count(**options):
    with torch.device("meta"):
        return sum(p.numel() for p in ldm.build_unet(**options).parameters())


def test_latents_that_the_semantic_network_cannot_halve_are_refused_in_a_sentence():
    network = params.load("cpu").section("ldm.semantic")
    with pytest.raises(
        ValueError, match=r"preprocess\.image_size: expected latents of a side .* multiple of 2 .* found 9"
    ):
        denoiser.build_denoiser("semantic", network, (4, 9, 9), 5, 0)
    label = denoiser.build_denoiser("class", params.load("cpu").section("ldm.class"), (4, 9, 9), 5, 0)
    assert label(torch.zeros(1, 4, 9, 9), torch.zeros(1), torch.zeros(1).long()).shape == (1, 4, 9, 9)


def test_paper_size_networks_have_the_published_number_of_weights():
    assert count(conditioning="semantic", channel_mult=(1, 2, 4)) == 57_570_435
    assert count(conditioning="semantic", channel_mult=(1, 4, 8)) == 215_229_315
    assert count(conditioning="class") == 394_984_196


def test_the_paper_profile_builds_the_paper_networks():
    ldm = params.load("paper").section("ldm")
    with torch.device("meta"):
        semantic = denoiser.build_denoiser("semantic", ldm["semantic"], (3, 64, 64), 5, 0)
        label = denoiser.build_denoiser("class", ldm["class"], (4, 32, 32), 5, 0)
    assert count_parameters(semantic) == {"denoiser": 57_570_435, "conditioner": 15}
    assert count_parameters(label) == {"denoiser": 394_984_196, "conditioner": 3 * 512}


def test_unknown_conditioning_is_refused():
    with pytest.raises(ValueError, match="'semantic' or 'class', got 'text'"):
        ldm.build_unet("text")


def tiny(conditioning, seed=0):
    network = params.load("smoke").section(f"ldm.{conditioning}")
    return denoiser.build_denoiser(conditioning, network, SHAPE, 5, seed)


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
    assert tiny("class").condition(torch.tensor([1, 1]), keep).tolist() == [1, denoiser.NULL_LABEL]


def test_averaging_a_map_equals_bilinear_at_half_size():
    planes = tiny("semantic").condition(torch.randint(5, (2, 32, 32)))
    half = torch.nn.functional.interpolate(planes, size=(16, 16), mode="area")
    bilinear = torch.nn.functional.interpolate(planes, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(half, bilinear)


@pytest.mark.parametrize(
    ("options", "gflop"),
    [
        ({"conditioning": "semantic"}, 65.7),
        ({"conditioning": "semantic", "channel_mult": [1, 4, 8]}, 207.6),
        ({"conditioning": "class"}, 114.1),
    ],
)
def test_paper_size_networks_cost_the_published_operations(options, gflop):
    name = options["conditioning"]
    network = params.load("paper").section(f"ldm.{name}") | options
    shape = (3, 64, 64) if name == "semantic" else (4, 32, 32)
    with torch.device("meta"):
        denoiser = ldm.denoiser.build_denoiser(name, network, shape, 5, 0)
    assert ldm.forward_flops(denoiser, shape) / 1e9 == pytest.approx(gflop, rel=0.005)


@pytest.fixture
def graphs():
    """A backend for torch.compile that computes as it is, and what every graph was made for."""
    seen = []

    def backend(module, inputs):
        seen.append([tuple(i.shape) if isinstance(i, torch.Tensor) else i for i in inputs])
        return module.forward

    torch.compiler.reset()
    yield SimpleNamespace(backend=backend, seen=seen)
    torch.compiler.reset()


def test_two_networks_in_a_process_are_compiled_for_the_sizes_they_meet(graphs):
    """Without `compile_network` the second size of a batch, and then the class model, are of any size."""
    for conditioning, shape in (("semantic", (4, 16, 16)), ("class", SHAPE)):
        denoiser = tiny(conditioning)
        ldm.compile_network(denoiser, graphs.backend)
        for n in (2, 3, 2):
            condition = denoiser.condition(torch.zeros((n, 16, 16) if conditioning == "semantic" else n).long())
            with torch.no_grad():
                denoiser(torch.zeros(n, *shape), torch.zeros(n).long(), condition)
    assert len(graphs.seen) == 4, "a graph for each network and size"
    sizes = [
        size for graph in graphs.seen for shape in graph for size in (shape if isinstance(shape, tuple) else [shape])
    ]
    assert {type(size) for size in sizes} == {int}, "no size is a symbol"


def test_more_sizes_are_compiled_than_torch_allows_by_itself(graphs):
    class Small(torch.nn.Module):
        def forward(self, z):
            return 2 * z

    one, allowed = SimpleNamespace(unet=Small()), 8
    with torch._dynamo.config.patch(recompile_limit=allowed):  # monkeypatch would take the name away for good
        ldm.compile_network(one, graphs.backend)
        for n in range(2, 14):
            one.unet(torch.zeros(n))
    assert len(graphs.seen) == 12 > allowed


def test_networks_are_compiled_in_one_place():
    package = Path(denoiser.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "unet.compile(" in path.read_text()] == ["denoiser.py"]


@pytest.mark.parametrize(("conditioning", "last"), [("semantic", 0.0205), ("class", 0.0195)])
def test_noise_of_the_paper_profile_is_that_of_the_published_configurations(conditioning, last):
    """The square root of beta rises in equal steps over 1,000 timesteps."""
    ldm = params.load("paper").section("ldm")
    options = denoiser.schedule_options(ldm[conditioning], ldm["prediction"], ldm["train_timesteps"])
    betas = np.linspace(0.0015**0.5, last**0.5, 1000) ** 2
    np.testing.assert_allclose(DDPMScheduler(**options).alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_as_published_and_not_at_all_without_gamma(prediction):
    network = params.load("smoke").section("ldm.class")
    noiser = DDPMScheduler(**ldm.denoiser.schedule_options(network, prediction, 1000))
    t = torch.tensor([0, 400, 999])
    alpha = noiser.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    assert snr[0] > 5 > snr[2], "both sides of gamma"
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(ldm.denoiser.min_snr_weight(noiser, t, 5.0), expected)
    denoiser, z, noise = tiny("class").eval(), torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    arguments = (denoiser, noiser, z, torch.tensor([0, 1, 2]), noise, t, "l2")
    single = [
        ldm.denoiser.diffusion_loss(
            denoiser, noiser, z[i : i + 1], torch.tensor([i]), noise[i : i + 1], t[i : i + 1], "l2"
        )
        for i in range(3)
    ]
    weighted = sum(w * value for w, value in zip(expected, single, strict=True)) / 3
    torch.testing.assert_close(ldm.denoiser.diffusion_loss(*arguments, 5.0), weighted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ldm.denoiser.diffusion_loss(*arguments), sum(single) / 3, rtol=1e-4, atol=1e-5)
