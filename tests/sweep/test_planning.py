"""How many patients a declared gain takes: from a table of scores, in words, claims, a figure and on the front page."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from toy_scores import ARMS, made_up

from nafld_utils import statistics, views
from nafld_utils.sweep import comparisons, figures, planning

GAINS = (0.02, 0.05, 0.1)
PRIMARY = {"arm": "semantic", "rate": 0.5}


def table(n_seeds=6, **options):
    return planning.power_table(made_up(n_seeds=n_seeds, **options), PRIMARY, GAINS)


def test_a_plan_is_made_of_the_declared_comparison_at_image_level():
    found = planning.each_gain(table())
    scores = made_up(n_seeds=6)
    arms = {
        arm: part
        for _, arm, part in ((0, c["arm"], s) for c, s in comparisons.cells(scores))
        if arm in ("real", "semantic")
    }
    gain = statistics.gain(arms["real"].label, arms["semantic"].scores, arms["real"].scores, arms["real"].patient)
    spread = statistics.cautious(gain.spread, 6)
    for row in found.itertuples():
        assert row.needed == statistics.patients_needed(spread, 6, 20, row.gain)
        assert row.power_here == pytest.approx(statistics.power(row.gain, *statistics.planned(spread, 6, 1.0)))
    assert found["over"].eq(comparisons.OVER_GAIN).all()
    assert found["power_here"].is_monotonic_increasing
    curve = table().query("gain == 0.1")
    assert curve["patients"].iloc[0] == 20
    assert curve["power"].is_monotonic_increasing


def test_the_gain_that_was_seen_changes_no_plan():
    """Only the scores' spread counts: a plan of a useless arm and one of the same arm moved apart are alike."""
    scores = made_up(n_seeds=6)
    other = scores.assign(score=scores["score"].where(scores["arm"] != "class", 0.5))
    found = planning.power_table(other, PRIMARY, GAINS)
    assert found.equals(table())


@pytest.mark.parametrize("n_seeds", [1, 2, 6])
def test_words_claims_and_figure_say_the_same(n_seeds):
    found = table(n_seeds)
    text, claims = planning.report(found), {row["key"]: row for row in planning.claims(found)}
    assert ("at least" in text) == ("how far trainings vary is not known" in text) == (n_seeds < 3)
    assert ("too low more often than too high" in text) == (n_seeds > 2)
    for row in planning.each_gain(found).itertuples():
        key = f"gain_{row.gain:g}".replace(".", "_")
        assert claims[f"sweep.power.{key}"]["this_run"] == row.power_here
        assert "no interval" in claims[f"sweep.power.{key}"]["over"]
        about = "at most" if n_seeds < 3 else "about"
        shows = f"show it with {about} {100 * row.power_here:.0f} %." if row.power_here >= 0.1 else "cannot show it."
        assert f"these 20 {shows}" in text
        assert ("how far trainings vary is not known" in claims[f"sweep.power.{key}"]["claim"]) == (n_seeds < 3)
        needed = claims.get(f"sweep.patients_needed.{key}")
        assert (needed is not None) == np.isfinite(row.needed)
        assert needed is None or ("how far trainings vary is not known" in needed["claim"]) == (n_seeds < 3)
    with views.style():
        fig, ax = plt.subplots()
        labels = [one.get_text() for one in figures.power(found, ax, "6 fatty : 2 healthy").get_legend().get_texts()]
        plt.close(fig)
    assert all(planning.UNKNOWN in label or "more than" in label for label in labels) == (n_seeds < 3)
    assert [label.split(":")[0] for label in labels] == ["gain of 0.02", "gain of 0.05", "gain of 0.1"]


def test_a_gain_that_seeds_hide_and_scores_that_never_vary_are_told():
    hidden = table().assign(needed=np.inf)
    assert "takes more than 6 seeds, however many patients there are" in planning.report(hidden)
    assert not any(row["key"].startswith("sweep.patients_needed") for row in planning.claims(hidden))
    scores = made_up(arms=ARMS, n_seeds=3).assign(score=0.5)
    equal = planning.power_table(scores, PRIMARY, GAINS)
    assert planning.report(equal).startswith("How many patients a gain takes cannot be told: nothing varies")
    assert planning.claims(equal) == []


def test_patients_too_few_for_any_p_of_five_per_cent_have_no_power():
    scores = made_up(n_seeds=6)
    ids = scores.drop_duplicates("patient_id").groupby("label").head(3)["patient_id"]
    few = scores[scores["patient_id"].isin(ids)]
    found = planning.power_table(few, PRIMARY, (0.9,))
    assert found["n_patients"].eq(6).all()
    assert found["power_here"].eq(0).all()
    assert found["needed"].iloc[0] >= 8
    assert "these 6 cannot show it" in planning.report(found)
