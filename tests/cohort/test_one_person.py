"""Patients that look like one person: planted twins are found, different patients are not, real ones neither."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nafld_utils import images, params
from nafld_utils.cohort import look_alikes


def people(n, seed=0, frames=2):
    """Squares (n * frames, 64, 64) of patients: smooth pictures, moved, dimmed and made noisy from frame to frame."""
    rng, out = np.random.default_rng(seed), []
    common = ndimage.gaussian_filter(rng.normal(size=(80, 80)), 8)
    for _ in range(n):
        whole = common + ndimage.gaussian_filter(rng.normal(size=(80, 80)), 4)
        for _ in range(frames):
            top, left = rng.integers(4, 12, 2)
            part = whole[top : top + 64, left : left + 64] + rng.normal(0, 0.003, (64, 64))
            out.append((128 + 400 * rng.uniform(0.8, 1.0) * part).clip(0, 255))
    return np.array(out, dtype=np.uint8), np.repeat(np.arange(1, n + 1), frames)


def flagged(squares, patients):
    table = look_alikes.look_alikes(squares, patients)
    return {(a, b) for a, b, found in table[["patient_a", "patient_b", "flagged"]].itertuples(index=False) if found}


def test_one_person_under_two_and_under_three_numbers_is_found():
    squares, patients = people(16, frames=3)
    assert flagged(squares, patients) == set()
    twice = np.where(np.arange(48) % 3 == 2, patients + 100 * (patients == 5), patients)
    assert flagged(squares, twice) == {(5, 105)}
    thrice = patients + 100 * (np.arange(48) % 3) * (patients == 5)
    found = flagged(squares, thrice)
    assert found & {(5, 105), (5, 205)}
    assert {number for pair in found for number in pair} == {5, 105, 205}


def test_a_cohort_in_which_everybody_has_two_numbers():
    squares, patients = people(20)
    twice = patients + 100 * (np.arange(40) % 2)
    found = flagged(squares, twice)
    assert len(found) >= 15
    assert all(b - a == 100 for a, b in found)


def test_the_numbers_of_a_pair_by_hand():
    distance = {1: 0.00001, 2: 0.10, 3: 0.20, 4: 0.30, 5: 0.40, 6: 0.50, 7: 0.60, 8: 0.70, 9: 0.80}
    rows = [
        (p, (p + k) % 12, d * (1 if p < 2 or k > 1 else 9000), p, 0) for p in range(12) for k, d in distance.items()
    ]
    pairs = pd.DataFrame(rows, columns=["patient", "other", "distance", "row", "other_row"]).astype({"distance": float})
    pairs.loc[(pairs["patient"] > 1) & (pairs["distance"] < 0.1), "distance"] = 0.09
    table = look_alikes.judged(pairs)
    # The median of log(third / eighth) is log(2 / 7); the median of beta(3, 5) is 0.36412.
    dimension = np.log(0.36412) / np.log(0.2 / 0.7)
    # Beside the fifth and the ninth nearest; with 12 patients there is no seventeenth.
    p = 2 * min(1 - (1 - (0.00001 / far) ** dimension) ** (k - 1) for k, far in ((5, 0.4), (9, 0.8)))
    first = table.iloc[0]
    assert first["p"] == pytest.approx(p, rel=1e-3)
    assert (first["correlation"], first["usual"]) == (pytest.approx(0.99999), pytest.approx(0.6))
    assert table["flagged"].tolist().count(True) == (2 if p * 12 < 0.05 else 0) == 2


def test_chance_alone_flags_few_cohorts():
    """Points in three dimensions: at most 5 percent is asked for, 16 of 200 are two standard errors above."""
    alarms = 0
    for seed in range(200):
        points = np.random.default_rng(seed).normal(size=(20, 3))
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        rows = [(a, b, apart[a, b], a, b) for a in range(20) for b in np.argsort(apart[a])[1:9]]
        table = pd.DataFrame(rows, columns=["patient", "other", "distance", "row", "other_row"])
        alarms += look_alikes.judged(table)["flagged"].any()
    assert alarms <= 16


@pytest.mark.parametrize("numbers", [6, 9, 12])
def test_one_person_under_many_numbers(numbers):
    squares, patients = people(30 + numbers, frames=1)
    assert flagged(squares, patients) == set()
    noise = np.random.default_rng(1).normal(0, 3, (numbers, 64, 64))
    squares[:numbers] = (squares[0] + noise).clip(0, 255)
    found = flagged(squares, patients)
    assert {number for pair in found for number in pair} == set(range(1, numbers + 1))


def test_one_image_of_twenty_that_two_patients_share():
    squares, patients = people(12, frames=20)
    squares[7 * 20 + 13] = squares[2 * 20 + 9]
    squares[7 * 20 + 13, 2:8, 4:40] = 255  # a caption
    table = look_alikes.look_alikes(squares, patients)
    assert table.loc[table["flagged"], ["patient_a", "patient_b", "row_a", "row_b"]].to_numpy().tolist() == [
        [3, 8, 49, 153]
    ]


@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("place", [(slice(20, 28), slice(10, 38)), (slice(2, 58), slice(40, 44))])
def test_a_caption_over_a_twentieth_of_an_image_hides_no_twin(grey, place):
    squares, patients = people(20)
    twin = np.roll(squares[9], (2, -1), (0, 1)) * 0.9 + np.random.default_rng(2).normal(0, 2, (64, 64))
    twin[place] = grey
    assert twin[place].size / 4096 > 0.05
    found = flagged(np.concatenate([squares, [twin.clip(0, 255).astype(np.uint8)]]), np.append(patients, 99))
    assert found == {(5, 99)}


def test_of_fewer_than_six_patients_nothing_is_said():
    assert look_alikes.look_alikes(*people(5)).empty


def test_no_two_real_patients_look_like_one_and_halves_of_one_do(real_patients):
    found, settings = real_patients, params.load("paper").preprocess
    rows = np.concatenate([np.arange(first, first + 10, 3) for first in range(0, 550, 10)])
    squares = []
    for row in rows:
        if row % 10 == 0:
            region = images.find_region(found.pixels[row], settings)
            window = images.crop_window(region, settings, fit=True)
        squares.append(window.cut(np.where(region, found.pixels[row], 0).astype(np.uint8), 64))
    squares, patients = np.stack(squares), found.images["patient_id"].to_numpy()[rows]
    table = look_alikes.look_alikes(squares, patients)
    assert not table["flagged"].any()
    assert table["p"].min() > 0.05, "nothing is near being flagged"
    second = np.arange(len(rows)) % 4 > 1
    pairs = flagged(squares, patients + 100 * (second & (patients % 5 == 1)))
    assert len(pairs) >= 9, "of eleven patients with the second half of their frames under a second number"
    assert all(b - a == 100 for a, b in pairs)
