"""The GAN: shapes, augmentation, learning, exact resume, images that depend on their own seed alone."""

import itertools
import json

import numpy as np
import pytest
import torch

from nafld_utils.ldm import gan

CPU = torch.device("cpu")
SETTINGS = {
    "base_channels": 8,
    "max_channels": 32,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "penalty": 1.0,
    "ema_decay": 0.9,
    "log_every": 1,
}


def blobs(n=24, side=32):
    """Dark images with a bright disc, left for label 0 and right for label 1."""
    labels = np.arange(n) % 2
    y, x = np.mgrid[:side, :side]
    centre = np.where(labels, 0.72 * side, 0.28 * side)
    discs = np.hypot(y[None] - side / 2, x[None] - centre[:, None, None]) < side / 5
    return (20 + 200 * discs).astype(np.uint8), labels


def trained(steps, training=None, settings=SETTINGS):
    images, labels = blobs()
    training = training or gan.start_training(32, settings, 0, CPU)
    for _ in gan.train(training, images, labels, settings, steps, 5, CPU):
        pass
    return training


@pytest.mark.parametrize("size", [32, 40, 64])
def test_sizes_come_out_as_asked(size):
    levels = gan.widths(size, 8, 32)
    assert levels[-1] == (size, 8)
    assert max(width for _, width in levels) <= 32
    assert all(b == 2 * a for (a, _), (b, _) in itertools.pairwise(levels))
    network = gan.Generator(size, 8, 32).eval()
    images = gan.sample(network, np.array([0, 1]), [1, 2], CPU)
    assert images.shape == (2, size, size)
    assert images.dtype == np.uint8
    logits = gan.Discriminator(size, 8, 32)(torch.zeros(3, 1, size, size), torch.tensor([0, 1, 1]))
    assert logits.shape == (3,)


def test_an_image_depends_on_its_own_seed_and_label_alone():
    network = gan.Generator(32, 8, 32).eval()
    together = gan.sample(network, np.array([0, 1, 0]), [4, 5, 6], CPU)
    assert (gan.sample(network, np.array([1]), [5], CPU)[0] == together[1]).all()
    assert (gan.sample(network, np.array([0]), [5], CPU)[0] != together[1]).any()
    assert (together[0] != together[2]).any()


def test_augmentation_is_differentiable_and_stays_in_range():
    x = torch.zeros(4, 1, 16, 16, requires_grad=True)
    y = gan.augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert y.min() >= -1.0
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    again = gan.augment(x, torch.Generator().manual_seed(0))
    assert torch.equal(again, y)


def test_it_learns_classes_and_brightness():
    training = trained(160)
    labels = np.arange(16) % 2
    images = gan.sample(training.average, labels, list(range(16)), CPU).astype(float)
    left, right = images[:, :, :16].mean((1, 2)), images[:, :, 16:].mean((1, 2))
    sided = (right - left)[labels == 1].mean() - (right - left)[labels == 0].mean()
    assert sided > 10.0, "label 1 is brighter on the right than label 0"
    assert np.abs(images - blobs(16)[0]).mean() < 60.0


def test_a_resumed_training_ends_bit_for_bit_where_an_uninterrupted_one_ends():
    whole = trained(9).tensors()
    half = trained(5)
    other = gan.start_training(32, SETTINGS, 0, CPU)
    other.restore(half.tensors(), json.loads(json.dumps(half.facts())))
    again = trained(9, other).tensors()
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_average_differs_from_the_raw_weights_and_global_randomness_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    training = trained(3)
    assert torch.equal(torch.rand(3), expected)
    pairs = zip(training.average.parameters(), training.generator.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_loss_that_is_not_finite_stops_within_a_step():
    training = gan.start_training(32, SETTINGS, 0, CPU)
    with torch.no_grad():
        training.generator.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"lower gan\.learning_rate"):
        trained(2, training)
    assert training.step == 0
