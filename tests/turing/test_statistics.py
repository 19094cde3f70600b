"""What fits five raters better than Table 1: bounded and crossed intervals, agreement, calibration, model, planning."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from nafld_utils import turing
from nafld_utils.turing import intervals, rater_model, sitting, table_1


def panel(right, is_real, label=None, **more):
    """Ratings from a (raters, images) grid of right answers."""
    right, is_real = np.asarray(right), np.asarray(is_real)
    n_raters, n = right.shape
    table = pd.DataFrame({"rater": np.repeat([f"r{i}" for i in range(n_raters)], n)})
    table["image_id"] = np.tile([f"t{i:03d}" for i in range(n)], n_raters)
    table["is_real"] = np.tile(is_real, n_raters)
    table["label"] = np.tile(np.arange(n) % 2 if label is None else label, n_raters)
    table["said_real"] = np.where(right.ravel() == 1, table["is_real"], 1 - table["is_real"])
    return table.assign(**more)


def guesses(seed, n_raters=5, n=50, p=0.5):
    rng = np.random.default_rng(seed)
    return panel(rng.random((n_raters, n)) < p, (np.arange(n) // 2) % 2)


# ---------------------------------------------------------------- bounded intervals


@pytest.mark.parametrize("seed", range(3))
def test_bounded_intervals_hold_the_mean_and_stay_inside(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, np.array(table_1.PAPER_SIZES) + 1, size=(5, 4))
    table = intervals.bounded_summary(table_1.from_counts(counts, table_1.PAPER_SIZES))
    assert (table[["low", "high"]].ge(0) & table[["low", "high"]].le(1)).all(axis=None)
    assert (table["low"].lt(table["mean"] + 1e-12) & table["high"].gt(table["mean"] - 1e-12)).all()
    plain = turing.summarize(table_1.from_counts(counts, table_1.PAPER_SIZES))
    np.testing.assert_allclose(table["mean"], plain["mean"], rtol=0, atol=1e-15)


def test_the_papers_bound_above_one_comes_back_inside():
    table = intervals.bounded_summary(turing.paper_ratings()).set_index(["group", "metric"])
    assert turing.summarize(turing.paper_ratings())["high"].max() > 1
    row = table.loc[("healthy", "sensitivity")]
    # by the formula: p = 22/35 at the effective number of answers, with t's of 4 and 34 degrees of freedom
    rates = np.array([1, 5, 4, 7, 5]) / 7
    effective = row["mean"] * (1 - row["mean"]) / (rates.var(ddof=1) / 5)
    effective *= (scipy_stats.t.ppf(0.975, 34) / scipy_stats.t.ppf(0.975, 4)) ** 2
    assert row["high"] == pytest.approx(scipy_stats.beta.ppf(0.975, 22 / 35 * effective + 1, 13 / 35 * effective))
    assert row["high"] < 1


def test_one_rater_has_the_exact_binomial_interval_over_images():
    row = intervals.bounded_summary(table_1.from_counts([[8, 5, 9, 4]], table_1.PAPER_SIZES)).iloc[6]
    assert (row["low"], row["high"]) == pytest.approx(tuple(scipy_stats.binomtest(26, 50).proportion_ci(0.95, "exact")))
    assert row["note"] == "one rater: nothing about other raters"


def test_bounded_intervals_cover_where_the_unbounded_ones_do_not():
    # sensitive raters near 1, five of them, 20 images: beta-distributed rates of mean 0.95
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(400):
        rates = rng.binomial(20, rng.beta(19, 1, 5)) / 20
        low, high = intervals._korn_graubard(rates, 100)
        t = scipy_stats.t.ppf(0.975, 4) * rates.std(ddof=1) / np.sqrt(5)
        held += [low <= 0.95 <= high, rates.mean() - t <= 0.95 <= rates.mean() + t]
    bounded, plain = held / 400
    assert bounded >= 0.93
    assert plain < bounded


# ---------------------------------------------------------------- crossed intervals


def test_mean_squares_equal_the_library():
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(1)
    grid = (rng.random((4, 12)) < 0.6).astype(float)
    mine = intervals.mean_squares(grid, np.zeros(12, int))
    long = pd.DataFrame({"y": grid.ravel(), "r": np.repeat(range(4), 12), "i": np.tile(range(12), 4)})
    theirs = anova_lm(ols("y ~ C(r) + C(i)", long).fit())["mean_sq"]
    assert [mine.raters, mine.images, mine.rest] == pytest.approx(theirs.tolist())
    # images within three cells: the cells' own analyses add up
    nested = intervals.mean_squares(grid, np.arange(12) % 3)
    cells = [anova_lm(ols("y ~ C(r) + C(i)", part).fit())["sum_sq"] for _, part in long.groupby(long["i"] % 3)]
    assert nested.images == pytest.approx(sum(cell["C(i)"] for cell in cells) / 9)
    assert nested.rest == pytest.approx(sum(cell["Residual"] for cell in cells) / 27)
    assert nested.raters == pytest.approx(mine.raters)


def test_crossed_intervals_cover_other_raters_and_images():
    rng, held = np.random.default_rng(2), 0
    real = (np.arange(50) < 20).astype(int)
    for _ in range(400):
        skill, lean, looks = rng.normal(0, 0.5, (5, 1)), rng.normal(0, 0.5, (5, 1)), rng.normal(0, 0.5, 50)
        said = rng.random((5, 50)) < scipy_stats.logistic.cdf(skill * (real - 0.5) + lean + looks)
        right = (said == real).astype(float)
        se, df = intervals.crossed_error(intervals.mean_squares(right, real), right.size)
        held += abs(right.mean() - 0.5) < scipy_stats.t.ppf(0.975, df) * se
    assert held / 400 >= 0.93


def test_crossed_intervals_are_wider_where_images_differ_and_say_why_there_is_none():
    rng = np.random.default_rng(3)
    hard = np.tile(rng.random(60) < 0.5, (5, 1)) ^ (rng.random((5, 60)) < 0.05)  # raters agree which images are hard
    both = ("both", "accuracy")
    ratings = panel(hard, (np.arange(60) // 2) % 2)
    crossed = intervals.crossed_summary(ratings).set_index(["group", "metric"]).loc[both]
    bounded = intervals.bounded_summary(ratings).set_index(["group", "metric"]).loc[both]
    assert crossed["high"] - crossed["low"] > 1.3 * (bounded["high"] - bounded["low"])
    perfect = intervals.crossed_summary(table_1.from_counts([table_1.PAPER_SIZES] * 3, table_1.PAPER_SIZES))
    assert perfect["note"].eq("no answer differs within a kind: no spread to build an interval on").all()
    assert turing.as_table_1(perfect).loc["both", "accuracy"] == "1.000 [no interval]"
    one = intervals.crossed_summary(ratings[ratings["rater"] == "r0"])
    assert one["note"].eq("one rater: no interval over raters and images").all()
    gaps = intervals.crossed_mean(ratings.iloc[1:])
    assert gaps["note"] == "raters saw different images: no crossed analysis"


# ---------------------------------------------------------------- agreement, unanimity, confidence


def test_d_prime_by_hand_and_its_inclination():
    ratings = table_1.from_counts([[6, 4, 9, 6]], table_1.PAPER_SIZES)  # 10 of 20 real, 15 of 30 synthetic recognised
    row = turing.per_rater(ratings).iloc[0]
    assert row.d_prime == pytest.approx(0, abs=1e-12)
    assert row.criterion == pytest.approx(0, abs=1e-12)
    assert row.d_high == pytest.approx(1.96 * np.sqrt(0.25 / 20 + 0.25 / 30) / scipy_stats.norm.pdf(0), abs=1e-3)
    assert row.chance == pytest.approx(0.5)
    always = turing.per_rater(table_1.from_counts([[0, 0, 18, 12]], table_1.PAPER_SIZES)).iloc[0]
    assert always.chance == always.accuracy == 0.6
    assert always.p == 1
    # R: fisher.test(matrix(c(10, 190, 15, 285), 2)) of a rater who guesses and says "real" in 5 %: accuracy 0.59
    guess = turing.per_rater(table_1.from_counts([[5, 5, 143, 142]], (100, 100, 150, 150))).iloc[0]
    assert guess.accuracy == pytest.approx(0.59)
    assert scipy_stats.binomtest(int(guess.n_right), 500, 0.5).pvalue < 1e-4
    assert guess.p == pytest.approx(scipy_stats.fisher_exact([[10, 190], [15, 285]]).pvalue)
    assert guess.p > 0.9


def test_agreement_equals_fleiss_formula_and_needs_two_raters():
    ratings = table_1.from_counts([[2, 1, 2, 3], [1, 2, 2, 1], [3, 3, 0, 2]], [3, 3, 3, 3])
    yes = ratings.groupby("image_id")["said_real"].sum().to_numpy()
    pairs = (yes * (yes - 1) + (3 - yes) * (2 - yes)) / 6  # share of rater pairs who agree, an image
    chance = (yes.mean() / 3) ** 2 + (1 - yes.mean() / 3) ** 2
    assert intervals.agreement(ratings) == pytest.approx((pairs.mean() - chance) / (1 - chance))
    assert intervals._kappas(yes, 3) == pytest.approx(intervals.agreement(ratings))
    with pytest.raises(ValueError, match="two or more raters"):
        intervals.agreement(ratings[ratings["rater"] == "rater 1"])
    with pytest.raises(ValueError, match="kappa is not defined"):
        intervals.agreement(ratings.assign(said_real=1))


def test_agreement_table_has_intervals_or_says_why_not():
    table = intervals.agreement_table(guesses(1, n=60), n_resamples=400)
    assert (table["low"].lt(table["kappa"]) & table["high"].gt(table["kappa"])).all()
    assert table["low"].lt(0.05).all(), "guessing raters do not agree"
    perfect = intervals.agreement_table(table_1.from_counts([table_1.PAPER_SIZES] * 3, table_1.PAPER_SIZES))
    assert perfect["kappa"].fillna(-9).tolist() == [1, -9, -9]
    assert perfect["note"].str.contains("kappa is not defined").tolist() == [False, True, True]


def test_unanimous_images_beside_what_chance_gives():
    ratings = panel([[1, 0, 1, 0], [1, 0, 0, 1]], [1, 1, 0, 0], label=[1, 1, 0, 0])
    table = intervals.unanimous(ratings)
    assert table["found"].tolist() == [1, 1]
    assert table["expected"].tolist() == [1.0, 1.0]  # 4 images, each recognised by each rater with 1/2


def test_calibration_counts_answers_and_overconfidence_is_over_raters():
    right = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])
    confidence = [100, 50, 100, np.nan, 100, 50, 100, 50]
    ratings = panel(right, [1, 1, 0, 0], label=[1, 1, 0, 0], confidence=confidence)
    table = intervals.calibration(ratings).set_index("confidence")
    assert table["n"].to_dict() == {50: 3, 100: 4}
    assert table["right"].to_dict() == pytest.approx({50: 1 / 3, 100: 0.75})
    over = intervals.overconfidence(ratings).set_index("quantity")
    assert over.loc["overconfidence", "value"] == pytest.approx(((0 - 0.5 + 1) / 3 + (0 + 0.5 + 0 + 0.5) / 4) / 2)
    assert over.loc["Brier score", "value"] == pytest.approx(((0 + 0.25 + 1) / 3 + (0.25 + 0.25) / 4) / 2)
    # two raters, Student's t of whom leaves [-1, 1] and [0, 1]
    each = np.array([(0 - 0.5 + 1) / 3, 1.0 / 4])
    half = (
        scipy_stats.t.ppf(0.975, 1) * abs(np.diff(each)[0]) / 2 / 2 / (0.5 + each.mean() / 2) / (0.5 - each.mean() / 2)
    )
    logit = scipy_stats.logistic.ppf(0.5 + each.mean() / 2)
    expected = 2 * scipy_stats.logistic.cdf([logit - half, logit + half]) - 1
    assert over.loc["overconfidence", ["low", "high"]].tolist() == pytest.approx(expected.tolist())
    brier = over.loc["Brier score"]
    assert 0 < brier["low"] < brier["value"] < brier["high"] < 1
    none = ratings.drop(columns="confidence")
    assert intervals.calibration(none).empty
    assert intervals.overconfidence(none)["note"].eq("nobody stated a confidence").all()


# ---------------------------------------------------------------- the crossed probit model


def seen(seed, n_raters, sizes, d_prime=0.0, lean=0.0, sd=(0.2, 0.2, 0.6)):
    """Ratings by raters who differ in d', see images that differ, and lean to "real" (below 0) or "synthetic"."""
    rng, real = np.random.default_rng(seed), np.repeat([1, 0], sizes)
    d, criterion = d_prime + sd[0] * rng.normal(size=(n_raters, 1)), lean + sd[2] * rng.normal(size=(n_raters, 1))
    looks = (sd[1] * rng.normal(size=len(real)) + rng.normal(size=(n_raters, len(real)))) / np.sqrt(1 + sd[1] ** 2)
    return panel(((d * (real - 0.5) + looks > criterion) == real).astype(int), real)


@pytest.mark.parametrize("lean", [0.0, 1.0])
def test_the_crossed_probit_equals_another_programs(lean):
    import statsmodels.api as sm

    ratings = seen(1, 30, (20, 30), 0.4, lean).sort_values(["rater", "image_id"])
    found = rater_model.panel_of(ratings)
    rater, image = (pd.factorize(ratings[name])[0] for name in ("rater", "image_id"))
    design = np.column_stack([np.eye(30)[rater], ratings["is_real"] - 0.5])
    model = sm.GLM(ratings["said_real"].to_numpy(), design, sm.families.Binomial(sm.families.links.Probit()))
    clusters = {"groups": np.column_stack([rater, image]), "use_correction": False}
    theirs = model.fit(cov_type="cluster", cov_kwds=clusters)
    assert found.d_prime == pytest.approx(theirs.params[-1], abs=1e-5)
    assert found.criterion == pytest.approx(-theirs.params[:-1].mean(), abs=1e-5)
    # theirs, clustered by raters and by images, has no correction for their numbers
    assert theirs.bse[-1] < found.error()[0] < 1.15 * theirs.bse[-1]


def test_d_prime_moves_by_the_influence_of_an_answer():
    said, sizes = np.array([[9, 8], [12, 11], [5, 10], [15, 20]]), np.array([20, 30])
    found = rater_model.fit(said, sizes)
    for column in (0, 1):
        more = said + 0.0
        more[1, column] += 1e-4
        moved = (rater_model.fit(more, sizes).d_prime - found.d_prime) / 1e-4
        assert moved == pytest.approx(found.influence[1, column], rel=0.01)
    assert found.weight.sum() == pytest.approx(1)
    assert (found.influence * (said - sizes * found.share)).sum() == pytest.approx(0, abs=1e-9)


def test_d_prime_depends_neither_on_the_inclination_nor_on_the_mix():
    for lean in (-1.0, 0.0, 1.0):
        for sizes in ((200, 300), (250, 250)):
            found = rater_model.panel_of(seen(2, 30, sizes, 0.55, lean))
            assert found.d_prime == pytest.approx(0.55, abs=2.5 * found.error()[0]), (lean, sizes)
            assert found.error()[0] < 0.1
            verdict = rater_model.equivalence_test(found)["verdict"]
            assert verdict == "not shown", "raters who can tell, however they lean"
            nobody = rater_model.equivalence_test(rater_model.panel_of(seen(3, 30, sizes, 0.0, lean)))
            assert nobody["verdict"] == "shown", "raters who guess, however they lean"


@pytest.mark.parametrize(
    ("ratings", "why"),
    [
        (guesses(10, n_raters=1), "1 raters who gave both answers, 24 real"),
        (guesses(10).iloc[1:], "raters saw different images"),
        (seen(4, 5, (20, 30), 0.0, 2.5, (0, 0, 0)), "answers of the rarer kind"),
        (table_1.from_counts([table_1.PAPER_SIZES] * 3, table_1.PAPER_SIZES), "no finite estimate"),
        (table_1.from_counts([[6, 4, 9, 6], [1, 0, 18, 12], [0, 0, 17, 12]], table_1.PAPER_SIZES), "raters by weight"),
    ],
)
def test_extreme_answers_and_one_rater_give_no_verdict(ratings, why):
    found = rater_model.panel_of(ratings)
    test = rater_model.equivalence_test(found)
    assert test["verdict"] == "cannot be said"
    assert why in test["note"]
    assert why in rater_model.model_table(found)["note"].iloc[0]
    assert rater_model.plans(found)["basis"].str.startswith("the paper's").all()
    assert len(rater_model.chances(found)) == 1


def test_model_table_and_test_share_one_interval():
    found = rater_model.panel_of(seen(5, 10, (20, 30), 0.3))
    table, test = rater_model.model_table(found).set_index("term"), rater_model.equivalence_test(found, 0.5)
    se, df = found.error()
    assert table.loc["d'", "high"] - table.loc["d'", "estimate"] == pytest.approx(scipy_stats.t.ppf(0.975, df) * se)
    assert test["high"] - test["d_prime"] == pytest.approx(scipy_stats.t.ppf(0.95, df) * se)
    assert test["smallest_margin"] == pytest.approx(max(abs(test["low"]), abs(test["high"])))
    for margin, verdict in ((1.001 * test["smallest_margin"], "shown"), (0.999 * test["smallest_margin"], "not shown")):
        assert rater_model.equivalence_test(found, margin)["verdict"] == verdict


def test_raters_who_lean_and_can_tell_are_not_outvoted_by_those_who_guess():
    """Half guess, half have d' 0.6 and say "real" in 2 %: each counted once the mean is 0.3, by weight 0.1."""
    real, who = np.repeat([1, 0], 250), np.arange(30)[:, None] % 2
    for skill in (0.6, 0.0):
        rng = np.random.default_rng(1)
        sees = skill * who * (real - 0.5) - 2.0 * who + rng.normal(size=(30, 500))
        found = rater_model.crossed_d_prime((sees > 0).astype(float), real)
        test = rater_model.equivalence_test(found)
        if skill:
            assert abs(found.d_prime) + 1.7 * found.error()[0] < 0.25, "by weight alone it would be shown"
            assert found.mean == pytest.approx(0.3, abs=0.1)
            assert test["verdict"] == "cannot be said"
            assert "hardly count" in test["note"]
            assert test["smallest_margin"] > 0.25
        else:
            assert test["verdict"] == "shown", "who leans and guesses as the others do"
            assert test["smallest_margin"] < 0.25


def test_the_mean_by_weight_of_raters_own_d_prime_is_that_of_the_panel():
    """By the formula: own d' is one Newton step away; only its unweighted mean differs."""
    found = rater_model.panel_of(seen(5, 12, (60, 40), 0.3, sd=(0.3, 0, 0.8)))
    assert abs(found.mean - found.d_prime) < 4 * found.apart
    even = rater_model.panel_of(seen(5, 12, (60, 40), 0.3, sd=(0, 0, 0)))
    assert even.mean == pytest.approx(even.d_prime, abs=0.02)
    assert even.uneven < 0.05 < found.uneven
    # raters of whom most said one thing alone leave nothing to say
    few = rater_model.equivalence_test(found._replace(n_raters=20), 5.0)
    assert few["verdict"] == "cannot be said"
    assert "12 of 20 raters gave both answers" in few["note"]


# ---------------------------------------------------------------- planning


def test_spread_finds_what_was_put_in():
    found = rater_model.spread(rater_model.panel_of(seen(7, 60, (200, 200), 0.3, sd=(0.3, 0.4, 0.5))))
    assert found.rater == pytest.approx(0.3, abs=0.08)
    assert found.image == pytest.approx(0.4 / np.sqrt(1.16), abs=0.06)
    assert found.rater < found.rater_high < 0.45
    lean = rater_model.spread(rater_model.panel_of(seen(7, 60, (200, 200), sd=(0, 0, 0.8))))
    assert lean.rater < 0.1, "an inclination is no skill"
    assert lean.effective < 0.98, "who leans tells less"
    # an answer of a rater without inclination: variance 1/4 over the squared density at 0
    even = rater_model.spread(rater_model.panel_of(seen(8, 30, (400, 400), sd=(0, 0, 0))))
    assert even.noise == pytest.approx(np.pi / 2, rel=0.02)


def test_the_papers_spread_is_that_of_its_answers_where_images_are_alike():
    here = rater_model.spread(rater_model.panel_of(turing.paper_ratings()))
    paper = rater_model.paper_spread()
    assert paper.effective == pytest.approx(here.effective)
    assert paper.noise == pytest.approx(np.pi / 2, rel=0.15)
    # by hand: variance of the five raters' d' less the expected one by chance
    own = turing.per_rater(turing.paper_ratings())["d_prime"]
    assert paper.rater == pytest.approx(np.sqrt(own.var() - paper.noise * (1 / 20 + 1 / 30)), abs=0.06)
    assert np.isnan(paper.image)


def test_the_power_formula_agrees_with_simulated_panels():
    sizes, shown = (40, 60), 0
    for seed in range(400):
        rng, real = np.random.default_rng(seed), np.repeat([1, 0], sizes)
        looks = (0.2 * rng.normal(size=100) + rng.normal(size=(20, 100))) / np.sqrt(1.04)
        said = 0.2 * rng.normal(size=(20, 1)) * (real - 0.5) + looks > 0
        found = rater_model.crossed_d_prime(said.astype(float), real)
        shown += rater_model.equivalence_test(found)["verdict"] == "shown"
    spread = rater_model.Spread(0.2, 0.2, 0.2 / np.sqrt(1.04), np.pi / 2 - 0.04, 1.0)
    formula = rater_model.equivalence_power(20, sizes, spread)
    assert formula == pytest.approx(shown / 400, abs=0.07)
    assert 0.3 < formula < 0.95, "a case where the two could differ"


def test_a_plan_is_the_least_number_and_no_number_is_said():
    spread = rater_model.Spread(0.15, 0.15, 0.1, 1.6, 1.0)
    plan = rater_model.equivalence_plan(spread).set_index("n_raters")
    for raters, row in plan.dropna(subset=["n_images"]).iterrows():
        assert row["power"] >= 0.8
        fewer = rater_model.equivalence_power(raters, (int(row["n_images"]) // 2 - 1,) * 2, spread)
        assert fewer < 0.8 or row["n_images"] == 4
    assert pd.isna(plan.loc[3, "n_images"])
    assert plan.loc[3, "note"] == "raters differ too much: no number of images is enough"
    assert plan["n_images"].dropna().is_monotonic_decreasing
    easiest = rater_model.Spread(0.0, 0.0, 0.0, np.pi / 2, 1.0)
    assert rater_model.equivalence_power(5, (20, 30), easiest) < 0.1, "the paper's size cannot show it even at best"
    assert rater_model.chances(rater_model.panel_of(turing.paper_ratings()))["chance"].max() < 0.1


def test_plans_name_what_they_stand_on():
    table = rater_model.plans(rater_model.panel_of(guesses(9)))
    assert table["basis"].unique().tolist() == [
        "these raters", "these raters, upper limit", "the paper's raters", "the paper's raters, upper limit"
    ]  # fmt: skip
    here, high, _, _ = table["sd_rater"].groupby(table["basis"], sort=False).first()
    assert here < high


def test_simulated_raters_state_a_confidence_on_offer():
    items = pd.DataFrame({"image_id": [f"t{i}" for i in range(50)], "is_real": np.arange(50) % 2})
    sure = sitting.simulate_raters(items, 5, seed=0)["confidence"]
    assert sure.isin(turing.CONFIDENCE_LEVELS).all()
    assert sure.nunique() == 6
