"""The tables of a sweep and their summaries: by eye, against other code, and that nothing is averaged over a gap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score, roc_curve
from toy_scores import LABEL, PATIENT, SCORE, cohort

from nafld_utils import statistics
from nafld_utils.sweep import clinical_measures, comparisons


def sweep_table(arms, n_seeds=3, frames=4):
    """A store's table; `arms` maps (arm, rate) to a shift of the fatty images' scores."""
    rows = []
    for i, ((arm, rate), shift) in enumerate(arms.items()):
        label, scores, patient = cohort(5, 8, 12, frames, n_seeds=n_seeds)
        noise = 0.05 * np.random.default_rng(100 + i).normal(size=scores.shape)
        for seed, row in enumerate(scores + noise + shift * label):
            facts = {"arm": arm, "rate": rate, "seed": seed, "fold": patient % 2, "patient_id": patient}
            names = [f"p{p:03d}_f{k % frames:02d}" for k, p in enumerate(patient)]
            rows.append(pd.DataFrame({**facts, "image_id": names, "label": label, "score": row}))
    return pd.concat(rows, ignore_index=True)


# ---------------------------------------------------------------- tables


def test_patient_level_is_the_mean_of_a_patients_images():
    table = pd.DataFrame({"image_id": list("12345678"), "patient_id": PATIENT, "label": LABEL, "score": SCORE})
    assert comparisons.patient_level(table)["score"].tolist() == [1.5, 3.5, 3.75, 6.5]
    assert comparisons.patient_level(table)["n_images"].tolist() == [2, 2, 2, 2]


def test_auc_by_seed_pools_folds_and_averages_over_them():
    table = sweep_table({("real", 0.0): 0.0}, n_seeds=2)
    out = comparisons.auc_by_seed(table)
    part = table[table["seed"] == 1]
    assert out.loc[1, "auc"] == pytest.approx(roc_auc_score(part["label"], part["score"]))
    folds = [roc_auc_score(f["label"], f["score"]) for _, f in part.groupby("fold")]
    assert out.loc[1, "fold_auc"] == pytest.approx(np.mean(folds))
    assert out.loc[1, "n_folds"] == 2


def test_compare_arms_puts_seeds_and_patients_side_by_side():
    table = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.4, ("class", 0.5): 0.0, ("class", 1.0): 0.2})
    out = comparisons.compare_arms(table)
    row = out.iloc[0]
    assert (row.arm, row.rate, row.n_seeds, row.n_patients) == ("semantic", 1.5, 3, 20)
    assert 0 < row.low_patients < row.difference < row.high_patients
    assert row.high_patients - row.low_patients > row.high_seeds - row.low_seeds
    assert row.difference == pytest.approx(row.mean_auc - row.mean_auc_base)
    each = comparisons.auc_by_seed(table).set_index(["arm", "seed"])["auc"]
    expected = scipy_stats.ttest_rel(each["semantic"], each["real"])
    assert (row.t, row.p) == pytest.approx((expected.statistic, expected.pvalue))
    gains = each["semantic"] - each["real"]
    half = scipy_stats.t.ppf(0.975, 2) * scipy_stats.sem(gains)
    assert [row.low_seeds, row.high_seeds] == pytest.approx([gains.mean() - half, gains.mean() + half])
    assert "seeds" in row.over
    assert "patients" in row.over


def test_compare_arms_works_on_patients_and_keeps_backbones_apart():
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3})
    both = pd.concat([table.assign(backbone="a"), table.assign(backbone="b")])
    out = comparisons.compare_arms(both, "patient")
    assert out["backbone"].tolist() == ["a", "b"]
    one = comparisons.compare_arms(table, "patient")
    pd.testing.assert_frame_equal(out.iloc[[1]][one.columns].reset_index(drop=True), one)


def test_one_seed_says_why_there_is_no_test_over_seeds():
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3}, n_seeds=1)
    row = comparisons.compare_arms(table).iloc[0]
    assert np.isnan([row.t, row.p, row.low_seeds]).all()
    assert row.note == "one seed: no test over seeds"
    over = "patients within class (Newcombe); these trained models, this split"
    assert comparisons.arm_intervals(table)["over"].eq(over).all()
    assert comparisons.arm_intervals(table, method="logit")["over"].str.contains("logit DeLong").all()


def test_arm_intervals_agree_with_auc_interval_for_one_seed():
    table = sweep_table({("real", 0.0): 0.0}, n_seeds=1)
    row = comparisons.arm_intervals(table).iloc[0]
    expected = statistics.auc_interval(table["label"], table["score"], table["patient_id"])
    assert (row.mean_auc, row.low, row.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t[~((t["arm"] == "class") & (t["seed"] == 2))], r"seeds \[.*\] against"),
        (lambda t: t.drop(index=t.index[-1]), "1 missing"),
        (lambda t: pd.concat([t, t.iloc[[0]]]), "once with seed 0"),
        (lambda t: t[t["arm"] == "class"], "expected arm 'real' at one rate"),
        (lambda t: t[t["arm"] == "real"], "expected an arm beside 'real'"),
        (lambda t: t.assign(score=np.nan), "missing or not a number"),
    ],
)
def test_no_table_averages_over_what_is_missing(spoil, says):
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3})
    with pytest.raises(ValueError, match=says):
        comparisons.compare_arms(spoil(table))


# ---------------------------------------------------------------- groups, DeLong


def grouped():
    """Two ways of training: frozen as in the paper with a gain, all layers trained without one."""
    helped = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.5}).assign(freeze="paper")
    useless = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.0}).assign(freeze="none")
    return pd.concat([helped, useless]).assign(backbone="net", balance="none")


def test_an_arm_is_compared_with_real_images_of_its_own_group():
    out = comparisons.compare_arms(grouped())
    assert out["freeze"].tolist() == ["paper", "none"]
    assert out["difference"].iloc[0] > 0.05 > abs(out["difference"].iloc[1])
    one = comparisons.compare_arms(grouped().query("freeze == 'paper'"))
    assert one.iloc[0]["difference"] == out.iloc[0]["difference"]
    broken = grouped()[lambda t: ~((t["freeze"] == "none") & (t["arm"] == "real"))]
    with pytest.raises(ValueError, match="expected arm 'real' at one rate, found it at 0"):
        comparisons.compare_arms(broken)


def test_delong_stands_beside_the_bootstrap_at_patient_level_alone():
    table = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.4}, n_seeds=1)
    row = comparisons.compare_arms(table, "patient").iloc[0]
    whole = comparisons.patient_level(table)
    parts = {arm: part.sort_values("image_id") for arm, part in whole.groupby("arm")}
    expected = statistics.compare(parts["real"]["label"], parts["semantic"]["score"], parts["real"]["score"])
    assert (row.delong_low, row.delong_high, row.delong_p) == pytest.approx((*expected[4:], expected.p))
    assert row.se_patients == pytest.approx(expected.error)
    assert row.p_patients > expected.p, "a t, not a normal"
    image_level = comparisons.compare_arms(table).iloc[0]
    assert np.isnan(image_level.delong_p)
    assert "DeLong" in row.over
    assert "DeLong" not in image_level.over


def test_an_arm_planned_with_fewer_seeds_meets_real_images_with_those_seeds():
    table = sweep_table({("real", 0.0): 0.0, ("class", 1.0): 0.3})
    fewer = table[~((table["arm"] == "class") & (table["seed"] == 2))]
    row = comparisons.compare_arms(fewer, fewer_seeds=True).iloc[0]
    expected = comparisons.compare_arms(table[table["seed"] < 2]).iloc[0]
    assert row.n_seeds == 2
    assert row.note == "2 of the 3 seeds of real"
    columns = ["mean_auc_base", "difference", "low_patients", "high_patients", "t"]
    assert row[columns].tolist() == expected[columns].tolist()
    # seeds that real images lack are never invented
    other = table.assign(seed=table["seed"].where(table["arm"] == "real", table["seed"] + 5))
    with pytest.raises(ValueError, match="expected the seeds and images of the base arm"):
        comparisons.compare_arms(other, fewer_seeds=True)


def test_fold_average_has_an_interval_of_its_own_and_none_where_a_fold_is_too_small():
    table = sweep_table({("real", 0.0): 0.0})
    row = comparisons.arm_intervals(table).iloc[0]
    assert row.fold_low < row.fold_auc < row.fold_high
    assert row.fold_auc == pytest.approx(comparisons.auc_by_seed(table)["fold_auc"].mean())
    tiny = table.assign(fold=table["patient_id"])
    assert np.isnan(comparisons.arm_intervals(tiny).iloc[0].fold_low)


# ---------------------------------------------------------------- summaries


def test_maxima_are_named_optimistic():
    table = sweep_table({("real", 0.0): 0.0, ("class", 0.5): 0.0, ("class", 1.0): 0.3})
    arms = comparisons.arm_intervals(table)
    row = comparisons.optimistic(arms).set_index("arm").loc["class"]
    assert (row.best_rate, row.n_rates, row.trainings) == (1.0, 2, 6)
    assert row.best_rate_auc == arms["mean_auc"].max()
    assert row.best_seed_auc == arms["best_seed_auc"].max() >= row.best_rate_auc > row.mean_auc
    assert row["is"].startswith("optimistic")


def probabilities(n_seeds=2):
    table = sweep_table({("real", 0.0): 0.0, ("semantic", 1.5): 0.4}, n_seeds=n_seeds)
    return table.assign(score=1 / (1 + np.exp(-table["score"])))


def test_measures_by_patient_name_what_they_are_over():
    table = probabilities()
    grade = {who: 3.0 * who for who in table["patient_id"].unique()}
    out = clinical_measures.patient_measures(table, grade, 0.75, n_resamples=200)
    assert out.groupby("arm")["measure"].nunique().eq(3).all()
    assert (out["low"] <= out["value"]).all()
    assert (out["value"] <= out["high"]).all()
    assert out["over"].eq(comparisons.OVER_BOTH).all()
    brier = out[(out["measure"] == "Brier score") & (out["arm"] == "real")].iloc[0]
    assert brier.reference == pytest.approx(0.4 * 0.6)
    unknown = clinical_measures.patient_measures(table, {}, 0.75, n_resamples=100)
    assert "Spearman correlation with fat" not in set(unknown["measure"])


def test_roc_bands_equal_scikit_learn_and_hold_their_curve():
    table = probabilities(n_seeds=1).query("arm == 'real'").assign(score=lambda t: t["score"].round(1))
    out = clinical_measures.roc_bands(table, n_resamples=100, n_points=401)
    fpr, tpr, _ = roc_curve(table["label"], table["score"], drop_intermediate=False)
    np.testing.assert_allclose(out["tpr"][1:], np.interp(out["fpr"], fpr, tpr)[1:], atol=1e-12)
    assert np.trapezoid(out["tpr"], out["fpr"]) == pytest.approx(
        roc_auc_score(table["label"], table["score"]), abs=0.01
    )
    assert (out["low"] <= out["tpr"]).mean() > 0.95
    assert (out["high"] >= out["tpr"]).mean() > 0.95
    assert (out["high"] - out["low"]).max() > 0.1


def test_variants_show_only_what_the_run_holds():
    scores = grouped()
    arms = pd.concat([comparisons.arm_intervals(scores, level).assign(level=level) for level in comparisons.LEVELS])
    names = list(dict.fromkeys(comparisons.variants(arms)["variant"]))
    assert [name.split("(")[1] for name in names] == ["Fig. 5)", "S3)", "S6)", "S5)"]
    plain = comparisons.variants(arms[arms["freeze"] == "paper"].drop(columns=["freeze", "balance"]))
    assert plain["variant"].nunique() == 3


def test_reliability_of_every_cell():
    out = clinical_measures.reliability(probabilities(), n_bins=4)
    assert out.groupby("arm")["n"].sum().eq(20).all()
