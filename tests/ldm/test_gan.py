"""The GAN: shapes, augmentation, learning, exact resume, latents that depend on their own seed alone."""

import itertools
import json

import numpy as np
import pytest
import torch

from nafld_utils.ldm import gan

CPU = torch.device("cpu")
SHAPE = (2, 16, 16)
SETTINGS = {
    "base_channels": 8,
    "max_channels": 32,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "penalty": 1.0,
    "ema_decay": 0.9,
    "log_every": 1,
}


def blobs(n=24, side=16):
    """Low latents with a high disc, left for label 0 and right for label 1, the second channel reversed."""
    labels = np.arange(n) % 2
    y, x = np.mgrid[:side, :side]
    centre = np.where(labels, 0.72 * side, 0.28 * side)
    discs = np.hypot(y[None] - side / 2, x[None] - centre[:, None, None]) < side / 5
    one = torch.from_numpy(2.0 * discs - 1.0).float()
    return torch.stack([one, -one], 1), labels


def trained(steps, training=None, settings=SETTINGS):
    latents, labels = blobs()
    training = training or gan.start_training(SHAPE, settings, 0, CPU)
    for _ in gan.train(training, latents, labels, settings, steps, 5, CPU):
        pass
    return training


@pytest.mark.parametrize("size", [8, 12, 32])
def test_sizes_come_out_as_asked(size):
    levels = gan.widths(size, 8, 32)
    assert levels[-1] == (size, 8)
    assert max(width for _, width in levels) <= 32
    assert all(b == 2 * a for (a, _), (b, _) in itertools.pairwise(levels))
    network = gan.Generator((3, size, size), 8, 32).eval()
    assert gan.sample(network, np.array([0, 1]), [1, 2], CPU).shape == (2, 3, size, size)
    logits = gan.Discriminator((3, size, size), 8, 32)(torch.zeros(3, 3, size, size), torch.tensor([0, 1, 1]))
    assert logits.shape == (3,)


def test_a_latent_depends_on_its_own_seed_and_label_alone():
    network = gan.Generator(SHAPE, 8, 32).eval()
    together = gan.sample(network, np.array([0, 1, 0]), [4, 5, 6], CPU)
    assert (gan.sample(network, np.array([1]), [5], CPU)[0] == together[1]).all()
    assert (gan.sample(network, np.array([0]), [5], CPU)[0] != together[1]).any()
    assert (together[0] != together[2]).any()


def test_augmentation_shifts_and_blanks_every_channel_alike():
    """Of latents that number their own places; what is not 0 is moved by one shift, within an eighth of the side."""
    x = torch.arange(1.0, 257.0).reshape(1, 1, 16, 16).expand(4, 2, 16, 16).clone().requires_grad_(True)
    y = gan.augment(x, torch.Generator().manual_seed(0))
    assert torch.equal(y[:, 0], y[:, 1])
    place = torch.arange(256).reshape(16, 16)
    for one in y[:, 0].detach():
        shown = one != 0
        apart = one[shown].long() - 1 - place[shown]
        assert len(apart.unique()) == 1
        rows, columns = divmod(apart[0].item() + 8, 16)
        assert abs(rows) <= 2
        assert abs(columns - 8) <= 2
        assert 0.3 < shown.float().mean() < 1.0
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    assert torch.equal(gan.augment(x, torch.Generator().manual_seed(0)), y)


def test_it_learns_classes_and_levels():
    training = trained(160)
    labels = np.arange(16) % 2
    latents = gan.sample(training.average, labels, list(range(16)), CPU).numpy()
    left, right = latents[:, 0, :, :8].mean((1, 2)), latents[:, 0, :, 8:].mean((1, 2))
    sided = (right - left)[labels == 1].mean() - (right - left)[labels == 0].mean()
    assert sided > 0.08, "label 1 is higher on the right than label 0"
    assert np.abs(latents - blobs(16)[0].numpy()).mean() < 0.5


def test_a_resumed_training_ends_bit_for_bit_where_an_uninterrupted_one_ends():
    whole = trained(9).tensors()
    half = trained(5)
    other = gan.start_training(SHAPE, SETTINGS, 0, CPU)
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
    training = gan.start_training(SHAPE, SETTINGS, 0, CPU)
    with torch.no_grad():
        training.generator.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"lower gan\.learning_rate"):
        trained(2, training)
    assert training.step == 0
