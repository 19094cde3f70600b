"""Operations: torch's own counter and numbers worked out by hand, and the budget that they give a GAN."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nafld_utils import artifacts, ldm, params
from nafld_utils.ldm import denoiser_units, gan, gan_units
from nafld_utils.ldm.operations import Operations


def opened(profile="smoke", **changes):
    return artifacts.open_run(profile, {"gan.steps": None, **changes})


def test_a_product_is_counted_forward_and_backward_and_so_is_the_gradient_of_a_gradient():
    """(2, 3) times (3, 5): 2 * 2 * 3 * 5 = 60 operations; backward once for each factor; y is linear in x, so that the
    slope takes one product, and the gradient of its square one more for w."""
    x, w = torch.ones(2, 3, device="meta", requires_grad=True), torch.ones(3, 5, device="meta", requires_grad=True)
    with Operations() as counted:
        y = x @ w
    assert counted.total == 60
    with Operations() as counted:
        (x @ w).sum().backward()
    assert counted.total == 3 * 60
    with Operations() as counted:
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert counted.total == 60
    with Operations() as counted:
        slope.square().sum().backward()
    assert counted.total == 60


@pytest.mark.parametrize("name", ["class", "semantic"])
def test_a_denoisers_training_step_is_counted_as_torch_counts_it(name):
    settings = params.load("smoke").section("ldm")
    with torch.device("meta"):
        network = ldm.denoiser.build_denoiser(name, settings[name], (4, 8, 8), 5, 0)
        condition = torch.zeros(2).long() if name == "class" else torch.empty(2, 5, 64, 64)
        with FlopCounterMode(display=False) as theirs:
            network(torch.empty(2, 4, 8, 8), torch.zeros(2), condition).sum().backward()
    mine = ldm.denoiser.training_operations(network, (4, 8, 8), 64)
    assert 2 * mine == theirs.get_total_flops()
    assert 2.8 < mine / ldm.forward_flops(network, (4, 8, 8), 64) <= 3.0


def test_a_gans_step_on_the_cpu_takes_the_operations_that_are_counted_without_computing():
    """The generator draws twice, once with a backward pass; a step with penalties costs more than the three others."""
    settings = params.load("smoke").section("gan")
    shape, device = (4, 8, 8), torch.device("cpu")
    counts, latents = gan.step_operations(shape, settings), torch.zeros(4, *shape)
    steps = gan.train(gan.start_training(shape, settings, 0, device), latents, np.arange(4) % 2, settings, 4, 0, device)
    for count in counts:
        with Operations() as counted:
            next(steps)
        assert counted.total == count
    assert counts[0] > counts[1] == counts[2] == counts[3]


def test_the_steps_of_a_gan_are_those_nearest_to_the_class_models_operations():
    run = opened()
    with torch.device("meta"):
        network = denoiser_units.new_denoiser(run, "class", 0, (4, 8, 8))
    given = ldm.denoiser.training_operations(network, (4, 8, 8), 64) * 8 * 12  # images of a batch, steps
    assert gan_units.budget(run) == given
    counts = gan.step_operations((4, 8, 8), run.settings.section("gan"))
    n = gan_units.steps(run)
    assert abs(sum(counts) / 4 * n - given) <= sum(counts) / 8
    assert gan_units.steps(opened(**{"gan.steps": 7})) == 7
    assert gan_units.budget(opened(**{"ldm.conditionings": ["semantic"]})) != given


def test_the_demo_trains_its_gans_for_298_steps_on_any_machine():
    """Budgets of seconds gave other numbers beside other work than on an idle machine."""
    assert gan_units.steps(opened("demo")) == 298


def test_the_autoencoder_that_both_share_counts_for_neither():
    """GANs of older runs, where it counted, are made again, those with a ready-made one are not."""
    trained = opened(**{"autoencoder.class": {"source": "train", "kind": "tiny", "train_steps": 10}})
    assert gan_units.budget(trained) == gan_units.budget(opened())
    marked = ["budget" in gan_units.gan_unit(run, 0).recipe["settings"] for run in (trained, opened())]
    assert marked == [True, False]
