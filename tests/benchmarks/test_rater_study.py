"""The study of raters: panels as the cell says, both mixes and all rates asked for, and a small panel of each kind."""

import numpy as np
import pandas as pd
import pytest
import rater_study


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_simulated_panels_have_the_cells_d_prime_and_rate(rate):
    cell = {"raters": 400, "images": "200+300", "said_real": rate, "raters_who": "differ", "d_prime": 0.25}
    said, real = rater_study.simulate(cell, np.random.default_rng(0))
    assert said.shape == (400, 500)
    assert real.sum() == 200
    assert said.mean() == pytest.approx(rate, abs=0.03)
    # d' over raters and images: rates of each kind, apart by d' in SDs of criterion and of what is seen together
    hit, false_alarm = (rater_study.scipy_stats.norm.ppf(said[:, real == kind].mean()) for kind in (1, 0))
    assert (hit - false_alarm) * np.sqrt(1 + 0.6**2 + 0.1**2) == pytest.approx(0.25, abs=0.06)


def test_the_study_asks_what_the_test_promises_and_answers_within_its_cell():
    cells = pd.DataFrame(rater_study.STUDY.cells)
    assert not cells.duplicated().any()
    large = cells[(cells["raters"] == 30) & cells["raters_who"].isin(["alike", "differ"])]
    asked = large.groupby("images")["said_real"].agg(set)
    assert {"20+30", "25+25"} == set(asked.index)
    assert all(set(rater_study.RATES) <= rates for rates in asked)
    few = rater_study.once(cells[(cells["raters"] == 3) & (cells["d_prime"] == 0)].iloc[0], np.random.default_rng(1))
    assert set(few) == {"answered", "shown", "holds", "found", "mean_of_raters", "planned"}
    many = {"raters": 30, "images": "200+300", "said_real": 0.5, "raters_who": "alike", "d_prime": 0.0}
    found = rater_study.once(many, np.random.default_rng(2))
    assert found["answered"]
    assert found["shown"]
    assert found["planned"] > 0.99
    assert found["found"] == pytest.approx(found["mean_of_raters"], abs=0.01), "the same where nobody leans"
    assert {"lean", "lean most", "half tell"} < set(cells["raters_who"])
    assert not rater_study.once(many | {"d_prime": 1.0}, np.random.default_rng(2))["shown"]
