"""The studies of stage 05: their toys are what they say, and their stored tables say what the room promises."""

import copy_study
import kernel_study
import numpy as np
import pandas as pd
import pytest

from nafld_utils.networks import copy_rules as copies


def stored(study):
    """Cells of a study, each with the stored value of every outcome."""
    table = pd.read_csv(study.STUDY.stored)
    for cell in study.CELLS:
        rows = (table[list(cell)] == pd.Series(cell)).all(axis=1)
        yield cell, table[rows].set_index("outcome")["value"].to_dict()


def test_the_true_kernel_distance_is_that_of_many_draws():
    """The closed form against a plain mean over pairs of 20,000 images each."""
    rng, means = np.random.default_rng(0), kernel_study.means("large")
    x, y = (mean + kernel_study.SPREAD**0.5 * rng.normal(size=(20_000, kernel_study.WIDTH)) for mean in means)
    kernel = ((x * y).sum(axis=1) / kernel_study.WIDTH + 1) ** 3
    error = kernel.std() / np.sqrt(len(kernel))
    assert kernel_study.third_moment(*means) == pytest.approx(kernel.mean(), abs=4 * error)
    assert error < 0.02 * kernel.mean()
    assert kernel_study.truth("none") == pytest.approx(0.0, abs=1e-12)


def test_the_kernel_distance_is_unbiased_and_its_interval_holds_the_truth():
    for cell, found in stored(kernel_study):
        true = kernel_study.truth(cell["shift"])
        assert abs(found["estimate minus truth"]) < 0.01 * max(true, 0.1), cell
        assert found["holds the truth"] > 0.93, cell
        if cell["shift"] == "none":
            assert found["lies above zero"] < 0.025, cell
        else:
            assert found["lies above zero"] > 0.8, cell


def test_new_patients_are_flagged_no_more_often_than_the_bound_says():
    for cell, found in stored(copy_study):
        bound = copies.by_chance(cell["patients"])
        error = 3 * (bound["measure"] / 2000) ** 0.5
        assert found["flagged by one measure"] < bound["measure"] + error, cell
        assert found["flagged by the verdict"] < bound["verdict"] + error, cell
        assert found["flagged by one measure"] <= found["interpolated quantile, one measure"] + error, cell


@pytest.mark.parametrize("study", [copy_study, kernel_study])
def test_a_repetition_answers_every_question_and_repeats_itself(study):
    one, two = (study.once(study.CELLS[0], np.random.default_rng(3)) for _ in range(2))
    assert one == two
    assert all(set(one) == set(found) for _, found in stored(study))
