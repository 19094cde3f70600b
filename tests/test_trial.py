"""One training: equal to the plain loop, draws that depend on seed and step alone, the mixing rate, refusals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nafld_utils import backbones, trial

NAME = "resnet18"
SIZE = 32


def options(steps=4, batch_size=6, learning_rate=1e-3, **other):
    return trial.Options(steps, batch_size, learning_rate, weight_decay=0.01, **other)


def pictures(n, views, seed=0):
    """Random pictures whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, views, SIZE, SIZE)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def network():
    model = backbones.load(NAME, "random")
    return model, *backbones.split(model, NAME)


def views_of(prefix, images, labels, precision="float32"):
    out = trial.prefix_features(prefix, images.reshape(-1, SIZE, SIZE), NAME, precision=precision)
    return trial.Views(out.reshape(*images.shape[:2], *out.shape[1:]), labels)


# ---------------------------------------------------------------- against the plain loop


def plain_loop(prefix, tail, real, synthetic, chosen, seed):
    """The textbook: whole images through the whole network, its frozen part in eval mode, torch's plain AdamW."""
    (images, labels), (more, more_labels) = real, synthetic
    optimizer = torch.optim.AdamW(tail.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    prefix.eval()
    tail.train()
    losses = []
    for step in range(chosen.steps):
        rows, views = trial.draw_batch(len(labels), images.shape[1], len(more_labels), chosen.batch_size, seed, step)
        mine, other = rows < len(labels), rows[rows >= len(labels)] - len(labels)
        batch = np.concatenate([images[rows[mine], views[mine]], more[other, 0]])
        wanted = torch.from_numpy(np.concatenate([labels[rows[mine]], more_labels[other]]))
        loss = nn.functional.cross_entropy(tail(prefix(backbones.to_input(batch, NAME))), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_on_cached_features_equals_the_plain_loop(network):
    _, prefix, pretrained = network
    real, synthetic = pictures(12, 3), pictures(8, 1, seed=1)
    tail = trial.fresh_tail(pretrained, seed=7)
    plain = copy.deepcopy(tail)
    chosen = options(steps=6)
    wanted = plain_loop(prefix, plain, real, synthetic, chosen, seed=7)
    tail, losses = trial.train_tail(tail, views_of(prefix, *real), views_of(prefix, *synthetic), chosen, seed=7)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    for (name, mine), other in zip(tail.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
    held_out = pictures(5, 1, seed=2)
    scores = trial.predict(tail, views_of(prefix, *held_out))
    with torch.no_grad():
        whole = plain.eval()(prefix(backbones.to_input(held_out[0][:, 0], NAME))).softmax(1)[:, 1]
    np.testing.assert_allclose(scores, whole, atol=1e-4)


def test_half_precision_moves_the_loss_by_less_than_a_thousandth(network):
    _, prefix, pretrained = network
    real = pictures(12, 2)
    both = [
        trial.train_tail(trial.fresh_tail(pretrained, 0), views_of(prefix, *real, kept), None, options(), 0)[1]
        for kept in ("float32", "float16")
    ]
    assert views_of(prefix, *real, "float16").features.dtype == np.float16
    np.testing.assert_allclose(both[0][:2], both[1][:2], atol=1e-3)


def test_it_learns_what_can_be_learnt(network):
    _, prefix, pretrained = network
    tail, losses = trial.train_tail(
        trial.fresh_tail(pretrained, 0), views_of(prefix, *pictures(24, 2)), None, options(steps=30), 0
    )
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    images, labels = pictures(20, 1, seed=9)
    scores = trial.predict(tail, views_of(prefix, images, labels))
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_the_prefix_stays_frozen_and_the_global_generators_untouched(network):
    _, prefix, pretrained = network
    before = {key: value.clone() for key, value in prefix.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    views = views_of(prefix, *pictures(8, 2))
    trial.train_tail(trial.fresh_tail(pretrained, 1), views, None, options(), 1)
    assert torch.equal(torch.rand(2), wanted)
    assert all(torch.equal(before[key], value) for key, value in prefix.state_dict().items())


def test_the_same_seed_gives_the_same_training_and_another_seed_another(network):
    _, prefix, pretrained = network
    views = views_of(prefix, *pictures(10, 2))
    runs = [trial.train_tail(trial.fresh_tail(pretrained, s), views, None, options(), s)[1] for s in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(("rate", "n"), [(0.0, 0), (0.5, 20), (1.5, 60), (2.0, 80)])
def test_mixing_rate_is_synthetic_to_real(rate, n):
    drawn = trial.draw_synthetic(40, rate, 100, seed=0)
    assert len(drawn) == len(set(drawn.tolist())) == n
    assert set(drawn) <= set(range(100))


def test_a_larger_rate_adds_to_what_a_smaller_one_drew_and_seeds_differ():
    small, large = (trial.draw_synthetic(40, rate, 200, seed=4) for rate in (0.5, 1.5))
    assert np.array_equal(large[: len(small)], small)
    assert set(small) != set(trial.draw_synthetic(40, 0.5, 200, seed=5))


def test_a_rate_that_the_set_cannot_serve_is_refused():
    with pytest.raises(ValueError, match=r"expected at most 2\.50, since it takes 120 synthetic images for 40 real"):
        trial.draw_synthetic(40, 3.0, 100, seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        trial.draw_synthetic(40, -0.5, 100, seed=0)


def test_a_batch_depends_on_seed_and_step_alone_and_repeats_no_image():
    first = trial.draw_batch(40, 4, 20, 32, seed=3, step=5)
    np.random.default_rng().random()  # no state is shared
    again = trial.draw_batch(40, 4, 20, 32, seed=3, step=5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(set(first[0])) == 32
    other = trial.draw_batch(40, 4, 20, 32, seed=3, step=6)
    assert not np.array_equal(first[0], other[0])


def test_every_image_of_the_union_is_equally_likely():
    """40 real and 60 synthetic: 60 % of what is drawn is synthetic, every view of a real image comes up alike."""
    rows, views = (
        np.concatenate(x) for x in zip(*(trial.draw_batch(40, 4, 60, 10, 0, s) for s in range(2000)), strict=True)
    )
    assert (rows >= 40).mean() == pytest.approx(0.6, abs=0.01)
    counts = np.bincount(rows, minlength=100)
    assert counts.min() > 140
    assert counts.max() < 260
    np.testing.assert_allclose(np.bincount(views) / len(views), 0.25, atol=0.01)


def test_a_small_set_is_drawn_with_repeats():
    rows, _ = trial.draw_batch(3, 1, 0, 8, seed=0, step=0)
    assert len(rows) == 8


def test_views_take_rows_of_a_store_without_copying_it():
    store = np.arange(5 * 2 * 1, dtype=np.float16).reshape(5, 2, 1, 1, 1)
    free = trial.Views(store, np.array([0, 1]), rows=np.array([4, 1]))
    assert free.n_views == 2
    assert free.take(np.array([0, 1]), np.array([1, 0]), "cpu").ravel().tolist() == [9.0, 2.0]
    fixed = trial.Views(torch.from_numpy(store), np.array([0, 1]), rows=np.array([4, 1]), views=np.array([0, 1]))
    assert fixed.n_views == 1
    assert fixed.take(np.array([0, 1]), np.array([0, 0]), "cpu").ravel().tolist() == [8.0, 3.0]
    assert fixed.take(np.array([0]), np.array([0]), "cpu").dtype == torch.float32


# ---------------------------------------------------------------- refusals


def tiny():
    tail = trial.fresh_tail(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seed=0)
    rng = np.random.default_rng(0)
    return tail, trial.Views(rng.normal(size=(8, 1, 4, 1, 1)).astype(np.float32), np.arange(8) % 2)


def test_one_class_is_refused():
    tail, views = tiny()
    with pytest.raises(ValueError, match=r"expected both classes \(0 and 1\), found \[1\]"):
        trial.train_tail(tail, trial.Views(views.features, np.ones(8, int)), None, options(), 0)


def test_a_loss_that_is_not_finite_names_its_step():
    tail, views = tiny()
    views.features[:] = np.nan
    with pytest.raises(trial.DivergedError, match=r"loss at step 0: expected a finite number, found nan; lower"):
        trial.train_tail(tail, views, None, options(), 0)


def test_features_that_overflow_half_precision_are_refused():
    class Loud(nn.Module):
        def forward(self, x):
            return x * 1e6 + 1e6

    with pytest.raises(ValueError, match="expected finite float16, found overflow"):
        trial.prefix_features(Loud(), pictures(2, 1)[0][:, 0], NAME, precision="float16")


def test_schedules():
    seen = []
    for schedule in trial.SCHEDULES:
        tail, views = tiny()
        _, losses = trial.train_tail(tail, views, None, options(steps=30, schedule=schedule), 0)
        seen.append(losses)
    assert np.allclose(seen[0][:2], seen[1][:2], rtol=1e-3)
    assert not np.allclose(seen[0][-1], seen[1][-1], rtol=1e-4)
    tail, views = tiny()
    with pytest.raises(ValueError, match="constant, cosine"):
        trial.train_tail(tail, views, None, options(schedule="step"), 0)
