"""The nearest frame of every patient, by pixels and by features."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from toy_frames import smooth

from nafld_utils import images, networks
from nafld_utils.networks import nearest_frames


def rng(seed=0):
    return np.random.default_rng(seed)


def test_means_over_windows_and_quantiles_are_torchs_own():
    """To the bit, of grey levels that are averaged over a power of two of pixels; of any numbers beyond rounding."""
    grey = torch.from_numpy(rng().integers(0, 256 * 64, (3, 1, 64, 64)) / 64)
    for x, off in ((grey, 0.0), (torch.randn(3, 1, 64, 64, dtype=torch.float64), 1e-12)):
        for w in (5, 48, 64):
            wanted = torch.nn.functional.avg_pool2d(x, w, stride=1)
            torch.testing.assert_close(nearest_frames._mean_over(x, w), wanted, rtol=0, atol=off)
    for d in (7, 100, 2304):
        x = torch.from_numpy(rng(d).normal(size=(9, d)).round(1)).float()
        for q in (0.5, 1 - nearest_frames.LEFT_OUT):
            assert torch.equal(nearest_frames._quantile(x, q), x.quantile(q, 1, keepdim=True))


def test_an_image_correlates_fully_with_itself_and_little_with_others():
    frames = smooth(6)
    found = networks.nearest_pixels(frames, frames, np.arange(6))
    assert found.distance.shape == (6, 6)
    assert np.diag(found.distance) == pytest.approx(0.0, abs=2e-3)
    assert found.distance[~np.eye(6, dtype=bool)].min() > 0.1
    assert (found.row == np.arange(6)[None]).all()


def test_shift_scale_gain_and_offset_do_not_hide_a_copy():
    frames = smooth(5, side=128, seed=2)
    crop = images.resize_box(frames[0], (10.0, 14.0, 112.0, 112.0), 128)
    changed = np.stack([crop, np.roll(frames[1], (6, -8), (0, 1)), (frames[2] * 0.7 + 20).astype(np.uint8)])
    found = networks.nearest_pixels(changed, frames, np.arange(5))
    assert found.distance.argmin(axis=1).tolist() == [0, 1, 2]
    assert found.distance.min(axis=1).max() < 0.25  # others are beyond 0.8


def test_correlation_equals_a_plain_search():
    frames, query = smooth(2, seed=4), smooth(1, seed=9)
    one, two = (torch.from_numpy(x).float() for x in (frames, query))
    bank = nearest_frames.Bank(one, nearest_frames.SCALES, nearest_frames.LEAST_SD)
    found, side, top, left = bank.best(two).numpy()[:, 0]
    best, where = np.full(2, -1.0), [None, None]
    middle = torch.from_numpy(query).float()[:, None, 8:56, 8:56]
    for w in bank.norms:
        template = torch.nn.functional.interpolate(middle, (w, w), mode="bilinear", antialias=True)[0, 0].numpy()
        for k, frame in enumerate(frames.astype(float)):
            for i in range(64 - w + 1):
                for j in range(64 - w + 1):
                    value = np.corrcoef(template.ravel(), frame[i : i + w, j : j + w].ravel())[0, 1]
                    if value > best[k]:
                        best[k], where[k] = value, (w, i, j)
    assert found == pytest.approx(best, abs=1e-3)
    assert list(zip(side, top, left, strict=True)) == where


def test_an_alignment_undoes_a_turn_a_stretch_and_a_flip():
    """The same affine map by scipy: what is left is a tenth of what the nearest other frame has."""
    frames = smooth(5, side=128, seed=2).astype(float)
    middle = np.full(2, 63.5)
    turn = np.deg2rad(9.0)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([0.93, 0.85])
    changed = np.stack([ndimage.affine_transform(x, turned, middle - turned @ middle, order=1) for x in frames])
    for queries in (changed, changed[:, :, ::-1]):
        found = networks.nearest_pixels(queries.astype(np.uint8), frames.astype(np.uint8), np.arange(5))
        own = np.diag(found.distance)
        assert found.distance.argmin(axis=1).tolist() == list(range(5))
        assert own.max() < 0.1 * np.sort(found.distance, axis=1)[:, 1].min()


def test_a_flat_image_correlates_with_nothing():
    frames = smooth(3)
    flat = np.full((1, 64, 64), 90, np.uint8)
    assert networks.nearest_pixels(flat, frames, np.arange(3)).distance == pytest.approx(1.0)
    assert networks.nearest_pixels(frames[:1], flat.repeat(2, 0), np.arange(2)).distance == pytest.approx(1.0)


def test_batches_do_not_change_the_result():
    frames, queries = smooth(7), smooth(5, seed=1)
    patients = np.array([3, 3, 5, 5, 5, 9, 9])
    one, two = (networks.nearest_pixels(queries, frames, patients, chunk=n) for n in (2, 5))
    assert one.distance == pytest.approx(two.distance, abs=1e-5)
    a, b = (networks.nearest_features(queries, frames, patients, chunk=n) for n in (2, 5))
    assert a.distance == pytest.approx(b.distance, rel=1e-5)
    assert (a.row == b.row).all()


def test_some_patients_of_a_search_are_a_search_among_them():
    """Patients need not come in order, nor stand together."""
    frames, queries, patients = smooth(9), smooth(4, seed=1), np.array([5, 2, 5, 9, 2, 7, 9, 9, 5])
    rows = np.flatnonzero(np.isin(patients, [9, 2]))
    found = networks.nearest_pixels(queries, frames, patients).among(rows, patients[rows])
    wanted = networks.nearest_pixels(queries, frames[rows], patients[rows])
    assert found.patients.tolist() == [2, 9]
    assert (found.row == wanted.row).all()
    assert (found.row.dtype, found.row.flags.c_contiguous) == (wanted.row.dtype, True)
    assert found.distance == pytest.approx(wanted.distance, abs=1e-6)


def test_nearest_frame_of_every_patient():
    found = networks.nearest_features(np.array([[0.0], [10.0]]), np.array([[1.0], [4.0], [9.0]]), np.array([7, 7, 2]))
    assert found.patients.tolist() == [2, 7]
    assert found.distance.tolist() == [[9.0, 1.0], [1.0, 6.0]]
    assert found.row.tolist() == [[2, 0], [2, 1]]
    assert np.isinf(found.without_own(np.array([7, 2])).distance).tolist() == [[False, True], [True, False]]
