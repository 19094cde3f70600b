"""One training: equal to the plain loop, draws that depend on seed and step alone, the mixing rate, refusals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nafld_utils import engine, networks, sweep
from nafld_utils.sweep import draws, gpu_training, training

NAME = "resnet18"
SIZE = 32
CPU = torch.device("cpu")


def options(steps=4, batch_size=6, learning_rate=1e-3, **other):
    return sweep.Options(steps, batch_size, learning_rate, weight_decay=0.01, **other)


def pictures(n, views, seed=0):
    """Random pictures whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, views, SIZE, SIZE)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def network():
    model = networks.load(NAME, "random")
    return model, *networks.split(model, NAME)


def decoder():
    return networks.Decoder(NAME)


def views_of(prefix, images, labels, precision="float32"):
    out = training.prefix_features(prefix, images.reshape(-1, SIZE, SIZE), NAME, precision=precision)
    return sweep.Views(out.reshape(*images.shape[:2], *out.shape[1:]), labels)


# ---------------------------------------------------------------- against the plain loop


def plain_loop(prefix, tail, real, synthetic, chosen, seed):
    """The textbook: whole images through the whole network, its frozen part in eval mode, torch's plain AdamW."""
    (images, labels), (more, more_labels) = real, synthetic
    optimizer = torch.optim.AdamW(tail.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    prefix.eval()
    tail.train()
    losses = []
    for step in range(chosen.steps):
        n = len(labels) + len(more_labels)
        rows, views = draws.draw_batch(n, images.shape[1], chosen.batch_size, seed, step)
        mine, other = rows < len(labels), rows[rows >= len(labels)] - len(labels)
        batch = np.concatenate([images[rows[mine], views[mine]], more[other, 0]])
        wanted = torch.from_numpy(np.concatenate([labels[rows[mine]], more_labels[other]]))
        loss = nn.functional.cross_entropy(tail(prefix(networks.to_input(batch, NAME))), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_on_cached_features_equals_the_plain_loop(network):
    _, prefix, pretrained = network
    real, synthetic = pictures(12, 3), pictures(8, 1, seed=1)
    tail = sweep.fresh_tail(pretrained, seed=7)
    plain = copy.deepcopy(tail)
    chosen = options(steps=6)
    wanted = plain_loop(prefix, plain, real, synthetic, chosen, seed=7)
    parts = [views_of(prefix, *real), views_of(prefix, *synthetic)]
    tail, losses = sweep.train_tail(tail, parts, chosen, 7, decoder())
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    for (name, mine), other in zip(tail.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
    held_out = pictures(5, 1, seed=2)
    scores = sweep.predict(tail, views_of(prefix, *held_out), decoder())
    with torch.no_grad():
        whole = plain.eval()(prefix(networks.to_input(held_out[0][:, 0], NAME))).softmax(1)[:, 1]
    np.testing.assert_allclose(scores, whole, atol=1e-4)


@pytest.mark.parametrize("quick", [True, False])
def test_gradients_are_quickened_on_a_cpu_where_the_options_say_so(network, monkeypatch, quick):
    _, prefix, pretrained = network
    seen, tail = [], sweep.fresh_tail(pretrained, seed=0)
    monkeypatch.setattr(networks, "quicken", seen.append)
    sweep.train_tail(tail, [views_of(prefix, *pictures(4, 1))], options(steps=1, quick=quick), 0, decoder())
    assert seen == [tail] * quick


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_gpu_computes_features_and_scores_in_full_and_trains_as_asked(network, precision, monkeypatch):
    """On a CPU that takes a GPU's place. By itself torch lets a GPU's convolutions round to 19 bits."""
    monkeypatch.setattr(engine.precision, "GPU", "cpu")
    model, prefix, tail = (copy.deepcopy(part) for part in network)
    seen = []
    for part in (model, prefix, tail):
        part.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    images, labels = pictures(4, 1)
    networks.features(model, images[:, 0], NAME)
    parts = views_of(prefix, images, labels)
    assert set(seen) == {False}
    seen.clear()
    sweep.train_tail(tail, [parts], options(steps=2, precision=precision), 0, decoder())
    assert seen == [precision == "tf32"] * 2
    seen.clear()
    sweep.predict(tail, parts, decoder())
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32, "as it was"


def test_half_precision_moves_the_loss_by_less_than_a_thousandth(network):
    _, prefix, pretrained = network
    real = pictures(12, 2)
    both = [
        sweep.train_tail(sweep.fresh_tail(pretrained, 0), [views_of(prefix, *real, kept)], options(), 0, decoder())[1]
        for kept in ("float32", "float16")
    ]
    assert views_of(prefix, *real, "float16").features.dtype == np.float16
    np.testing.assert_allclose(both[0][:2], both[1][:2], atol=1e-3)


def test_it_learns_what_can_be_learnt(network):
    _, prefix, pretrained = network
    tail, losses = sweep.train_tail(
        sweep.fresh_tail(pretrained, 0), [views_of(prefix, *pictures(24, 2))], options(steps=30), 0, decoder()
    )
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    images, labels = pictures(20, 1, seed=9)
    scores = sweep.predict(tail, views_of(prefix, images, labels), decoder())
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_the_prefix_stays_frozen_and_the_global_generators_untouched(network):
    _, prefix, pretrained = network
    before = {key: value.clone() for key, value in prefix.state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    views = views_of(prefix, *pictures(8, 2))
    sweep.train_tail(sweep.fresh_tail(pretrained, 1), [views], options(), 1, decoder())
    assert torch.equal(torch.rand(2), wanted)
    assert all(torch.equal(before[key], value) for key, value in prefix.state_dict().items())


def test_the_same_seed_gives_the_same_training_and_another_seed_another(network):
    _, prefix, pretrained = network
    views = views_of(prefix, *pictures(10, 2))
    runs = [sweep.train_tail(sweep.fresh_tail(pretrained, s), [views], options(), s, decoder())[1] for s in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_with_nothing_frozen_the_stored_images_are_trained_on(network):
    """The plain loop again, with an empty prefix: uint8 images are normalised by the decoder alone."""
    prefix, pretrained = networks.split(network[0], NAME, "none")
    assert len(prefix) == 0
    images, labels = pictures(8, 2)
    tail = sweep.fresh_tail(pretrained, seed=3)
    plain = copy.deepcopy(tail)
    chosen = options(steps=3, learning_rate=1e-4)
    wanted = plain_loop(prefix, plain, (images, labels), (images[:0], labels[:0]), chosen, seed=3)
    _, losses = sweep.train_tail(tail, [sweep.Views(images, labels)], chosen, 3, decoder())
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    network[0].requires_grad_(True)


def test_with_all_frozen_the_features_are_vectors_and_one_layer_trains(network):
    model = networks.load(NAME, "random")
    prefix, pretrained = networks.split(model, NAME, "all")
    views = views_of(prefix, *pictures(12, 2))
    assert views.features.shape == (12, 2, 512)
    tail = sweep.fresh_tail(pretrained, 0)
    before = {key: value.clone() for key, value in tail.state_dict().items()}
    tail, losses = sweep.train_tail(tail, [views], options(steps=20, learning_rate=1e-2), 0, decoder())
    assert set(before) == {"1.weight", "1.bias"}
    assert not any(torch.equal(before[key], value) for key, value in tail.state_dict().items())
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------- trainings that live on a device


def resident_parts(prefix, dtype="float16"):
    real, synthetic, other = pictures(12, 3), pictures(8, 1, seed=1), pictures(6, 2, seed=2)
    parts = []
    for (images, labels), rows, views in (
        (real, None, None),
        (synthetic, np.array([7, 0, 3]), None),
        (other, np.array([5, 5, 1, 2]), np.array([1, 0, 0, 1])),
    ):
        stored = views_of(prefix, images, labels, dtype).features if prefix is not None else images
        chosen = labels if rows is None else labels[rows]
        parts.append(sweep.Views(stored, chosen, rows, views))
    return parts


def test_added_images_first_then_real_ones_alone_equals_two_plain_loops(network):
    """A tail trained with `first` ends as one that saw the added images, then the real ones, with one optimizer."""
    _, prefix, pretrained = network
    (real, labels), (more, more_labels) = pictures(10, 3), pictures(8, 1, seed=1)
    parts = [views_of(prefix, real, labels), views_of(prefix, more, more_labels)]
    chosen = options(steps=5, first=2)
    _, losses = sweep.train_tail(sweep.fresh_tail(pretrained, 7), parts, chosen, 7, decoder())
    tail = sweep.fresh_tail(pretrained, 7).train()
    optimizer = torch.optim.AdamW(tail.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    for step, found in enumerate(losses):
        images, wanted = (more, more_labels) if step < 2 else (real, labels)
        rows, views = draws.draw_batch(len(images), 3, chosen.batch_size, 7, step)
        batch = networks.to_input(images[rows, views % images.shape[1]], NAME)
        loss = nn.functional.cross_entropy(tail(prefix.eval()(batch)), torch.from_numpy(wanted[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(found, rel=1e-3)


def as_tensors(parts):
    return [sweep.Views(torch.from_numpy(p.features), p.labels, p.rows, p.views) for p in parts]


def resident_on(tail, parts, chosen, device=CPU, record=True):
    like = parts[0].features
    return gpu_training.Resident(
        copy.deepcopy(tail), decoder(), chosen, device, like.shape[2:], like.dtype, record=record
    )


@pytest.mark.parametrize(("frozen", "first"), [(True, 0), (False, 0), (True, 2)])
def test_resident_batches_are_those_of_the_loop(network, frozen, first):
    parts = resident_parts(network[1] if frozen else None)
    chosen = options(steps=5, batch_size=16, first=first)
    batches = gpu_training.Batches(as_tensors(parts), chosen, 4, CPU)
    stored = torch.zeros(16, *parts[0].features.shape[2:], dtype=torch.from_numpy(parts[0].features).dtype)
    labels = torch.zeros(16, dtype=torch.int64)
    for step in range(5):
        batches.fill(step, stored, labels)
        rows, views = training.batch_of(parts, chosen, 4, step)
        wanted, wanted_labels = training.gather(parts, rows, views, "cpu")
        order = np.argsort(np.searchsorted(np.cumsum([len(p) for p in parts]), rows, side="right"), kind="stable")
        assert torch.equal(stored[order], wanted), "the loop puts a batch's parts one after the other"
        assert torch.equal(labels[order], wanted_labels)


def test_seeds_side_by_side_are_trained_as_alone_and_a_trainer_keeps_nothing(network):
    """Two trainers take three jobs in two rounds: losses and weights as of the loop, whatever ran before."""
    _, prefix, pretrained = network
    parts, chosen = resident_parts(prefix), options(steps=3, batch_size=8)
    wanted = {s: sweep.train_tail(sweep.fresh_tail(pretrained, s), parts, chosen, s, decoder()) for s in (1, 2, 3)}
    there = as_tensors(parts)
    trainers = [resident_on(pretrained_tail(pretrained), there, chosen) for _ in range(2)]
    for seeds in ((1, 2), (3,), (1,)):
        jobs = [gpu_training.Job(sweep.fresh_tail(pretrained, s), there, s) for s in seeds]
        for seed, (tail, losses) in zip(seeds, gpu_training.train_side_by_side(trainers, jobs), strict=True):
            np.testing.assert_allclose(losses, wanted[seed][1], rtol=1e-4)
            for mine, other in zip(tail.state_dict().values(), wanted[seed][0].state_dict().values(), strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def pretrained_tail(pretrained):
    return sweep.fresh_tail(pretrained, 0)


def test_a_diverged_seed_stops_no_other(network):
    _, prefix, pretrained = network
    there, chosen = as_tensors(resident_parts(prefix)), options(steps=3, batch_size=8)
    spoilt = [sweep.Views(there[0].features * float("nan"), there[0].labels)]
    trainers = [resident_on(pretrained_tail(pretrained), there, chosen) for _ in range(2)]
    jobs = [gpu_training.Job(sweep.fresh_tail(pretrained, s), p, s) for s, p in ((0, spoilt), (1, there))]
    failed, (_, losses) = gpu_training.train_side_by_side(trainers, jobs)
    assert isinstance(failed, training.DivergedError)
    assert "loss at step 0" in str(failed)
    assert np.isfinite(losses).all()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_on_a_gpu_equals_the_plain_one(network, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    _, prefix, pretrained = network
    chosen, device = options(steps=6, batch_size=8, learning_rate=1e-4, precision=precision), torch.device("cuda", 0)
    parts = resident_parts(prefix.cpu())
    there = [sweep.Views(torch.from_numpy(p.features).to(device), p.labels, p.rows, p.views) for p in parts]
    plain = sweep.train_tail(sweep.fresh_tail(pretrained, 1), parts, options(steps=6, batch_size=8), 1, decoder())[1]
    for record in (True, False):
        trainers = [resident_on(pretrained_tail(pretrained), there, chosen, device, record) for _ in range(2)]
        for _ in range(2):
            jobs = [gpu_training.Job(sweep.fresh_tail(pretrained, s), there, s) for s in (1, 2)]
            (_, losses), _ = gpu_training.train_side_by_side(trainers, jobs)
            np.testing.assert_allclose(losses[0], plain[0], rtol=0.01 if precision == "fp32" else 0.05)
            alone = sweep.train_tail(sweep.fresh_tail(pretrained, 1), there, chosen, 1, decoder(), device)[1]
            np.testing.assert_allclose(losses, alone, rtol=0.01 if precision == "fp32" else 0.05)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(("rate", "n"), [(0.0, 0), (0.5, 20), (1.5, 60), (2.0, 80)])
def test_mixing_rate_is_synthetic_to_real(rate, n):
    drawn = draws.draw_synthetic(40, rate, 100, seed=0)
    assert len(drawn) == len(set(drawn.tolist())) == n
    assert set(drawn) <= set(range(100))


def test_a_larger_rate_adds_to_what_a_smaller_one_drew_and_seeds_differ():
    small, large = (draws.draw_synthetic(40, rate, 200, seed=4) for rate in (0.5, 1.5))
    assert np.array_equal(large[: len(small)], small)
    assert set(small) != set(draws.draw_synthetic(40, 0.5, 200, seed=5))


def test_a_rate_that_the_set_cannot_serve_is_refused():
    with pytest.raises(ValueError, match=r"expected at most 2\.50, since it takes 120 synthetic images for 40 real"):
        draws.draw_synthetic(40, 3.0, 100, seed=0)


def test_two_sets_share_the_rate_and_the_first_takes_what_is_left_over():
    parts = [draws.draw_synthetic(10, 1.5, 40, seed=0, part=(i, 2)) for i in (0, 1)]
    assert [len(part) for part in parts] == [8, 7]
    with pytest.raises(ValueError, match=r"expected at most 1\.60, since it takes 15 synthetic images for 10 real"):
        draws.draw_synthetic(10, 3.0, 8, seed=0, part=(0, 2))


def test_a_matched_draw_has_the_class_mix_of_the_real_images():
    real = np.repeat([0, 1], [31, 69])
    labels = np.arange(400) % 2
    drawn = draws.draw_matched(real, 1.5, labels, seed=0)
    assert len(set(drawn.tolist())) == 150
    assert labels[drawn].sum() == round(150 * 0.69)
    assert labels[draws.draw_synthetic(100, 1.5, 400, seed=0)].mean() == pytest.approx(0.5, abs=0.1)
    larger = draws.draw_matched(real, 2.0, labels, seed=0)
    assert set(drawn) <= set(larger), "a larger rate adds to a smaller one"
    with pytest.raises(
        ValueError, match=r"expected at most 2\.90, since it takes 207 .* and the set has 200 of class 1"
    ):
        draws.draw_matched(real, 3.0, labels, seed=0)


@pytest.mark.parametrize(("healthy", "fatty"), [(17, 38), (10, 30), (8, 8), (30, 7)])
def test_oversampling_repeats_the_smaller_class_evenly_until_both_are_alike(healthy, fatty):
    labels = np.repeat([0, 1], [healthy, fatty])
    counts = np.bincount(draws.oversample(labels, seed=1), minlength=len(labels))
    larger = max(healthy, fatty)
    assert [counts[labels == k].sum() for k in (0, 1)] == [larger, larger]
    small = counts[labels == (0 if healthy <= fatty else 1)]
    assert small.max() - small.min() <= 1
    assert counts.min() == 1
    with pytest.raises(ValueError, match="expected both classes"):
        draws.oversample(np.ones(4, int), seed=0)


def test_a_fixed_crop_is_the_seeds():
    a, again, b = (draws.fixed_crops(50, 8, seed) for seed in (0, 0, 1))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    assert set(a) <= set(range(8))


def test_a_batch_depends_on_seed_and_step_alone_and_repeats_no_image():
    first = draws.draw_batch(60, 4, 32, seed=3, step=5)
    np.random.default_rng().random()  # no state is shared
    again = draws.draw_batch(60, 4, 32, seed=3, step=5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(set(first[0])) == 32
    other = draws.draw_batch(60, 4, 32, seed=3, step=6)
    assert not np.array_equal(first[0], other[0])


def test_every_image_of_the_union_is_equally_likely():
    """40 real and 60 synthetic: 60 % of what is drawn is synthetic, every view of a real image comes up alike."""
    rows, views = (
        np.concatenate(x) for x in zip(*(draws.draw_batch(100, 4, 10, 0, s) for s in range(2000)), strict=True)
    )
    assert (rows >= 40).mean() == pytest.approx(0.6, abs=0.01)
    counts = np.bincount(rows, minlength=100)
    assert counts.min() > 140
    assert counts.max() < 260
    np.testing.assert_allclose(np.bincount(views) / len(views), 0.25, atol=0.01)


def test_a_small_set_is_drawn_with_repeats():
    rows, _ = draws.draw_batch(3, 1, 8, seed=0, step=0)
    assert len(rows) == 8


def test_views_take_rows_of_a_store_without_copying_it():
    store = np.arange(5 * 2 * 1, dtype=np.float16).reshape(5, 2, 1, 1, 1)
    free = sweep.Views(store, np.array([0, 1]), rows=np.array([4, 1]))
    assert free.n_views == 2
    assert free.take(np.array([0, 1]), np.array([1, 0]), "cpu").ravel().tolist() == [9.0, 2.0]
    fixed = sweep.Views(torch.from_numpy(store), np.array([0, 1]), rows=np.array([4, 1]), views=np.array([0, 1]))
    assert fixed.n_views == 1
    assert fixed.take(np.array([0, 1]), np.array([0, 0]), "cpu").ravel().tolist() == [8.0, 3.0]
    assert fixed.take(np.array([0]), np.array([0]), "cpu").dtype == torch.float16, "as stored"


# ---------------------------------------------------------------- refusals


def tiny():
    tail = sweep.fresh_tail(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seed=0)
    rng = np.random.default_rng(0)
    return tail, sweep.Views(rng.normal(size=(8, 1, 4, 1, 1)).astype(np.float32), np.arange(8) % 2)


def test_one_class_is_refused():
    tail, views = tiny()
    with pytest.raises(ValueError, match=r"expected both classes \(0 and 1\), found \[1\]"):
        sweep.train_tail(tail, [sweep.Views(views.features, np.ones(8, int))], options(), 0, decoder())
    with pytest.raises(ValueError, match=r"expected both classes \(0 and 1\), found \[1\]"):
        sweep.train_tail(tail, [views, sweep.Views(views.features, np.ones(8, int))], options(first=1), 0, decoder())


def test_a_loss_that_is_not_finite_names_its_step():
    tail, views = tiny()
    views.features[:] = np.nan
    with pytest.raises(training.DivergedError, match=r"loss at step 0: expected a finite number, found nan; lower"):
        sweep.train_tail(tail, [views], options(), 0, decoder())


def test_features_that_overflow_half_precision_are_refused():
    class Loud(nn.Module):
        def forward(self, x):
            return x * 1e6 + 1e6

    with pytest.raises(ValueError, match="expected finite float16, found overflow"):
        training.prefix_features(Loud(), pictures(2, 1)[0][:, 0], NAME, precision="float16")
