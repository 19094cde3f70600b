"""What attributions are held against: known maps give known shares, curves and verdicts; the stage on a small run."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, engine, explain, params, phantom, preprocessing, views
from nafld_utils.explain import attribution_units, check_units, explainers, figures, map_measures, verdict
from nafld_utils.phantom import TISSUES

pytestmark = pytest.mark.filterwarnings("ignore:The set_(bad|over|under) function:PendingDeprecationWarning")
LIVER, VESSEL = map_measures.REGIONS.index("liver"), map_measures.REGIONS.index("vessel border")


# ---------------------------------------------------------------- tissue


def test_every_pixel_has_one_region_and_borders_are_bands():
    tissue = np.full((1, 9, 9), TISSUES["liver"], np.uint8)
    tissue[0, 4, 4] = TISSUES["vessel"]
    tissue[0, 8] = TISSUES["diaphragm"]
    tissue[0, 0] = TISSUES["outside"]
    tissue[0, 1] = TISSUES["kidney_sinus"]
    parts = map_measures.regions(tissue, TISSUES, border=1)[0]
    named = np.array(map_measures.REGIONS)[parts]
    assert (named[0] == "outside").all()
    assert (named[1] == "other tissue").all()
    assert (named[3:6, 3:6] == "vessel border").all()
    assert (named[7:] == "diaphragm border").all()
    assert (named == "vessel border").sum() == 9
    assert (named[2] == "liver").all()


def test_a_border_never_reaches_outside_the_sector():
    tissue = np.full((1, 3, 3), TISSUES["outside"], np.uint8)
    tissue[0, 1, 1] = TISSUES["vessel"]
    assert (map_measures.regions(tissue, TISSUES, 1)[0] > 0).sum() == 1


def halves_of_liver_and_vessel():
    parts = np.zeros((1, 2, 4), np.uint8)
    parts[0, :, 1:3], parts[0, :, 3] = LIVER, VESSEL
    return parts


def test_shares_checkable_by_eye():
    """Liver is two thirds of the sector; three of four units lie on it; what lies outside does not count."""
    values = np.array([[[9.0, 1.0, -2.0, 0.0], [9.0, 0.0, 0.0, 1.0]]])
    table = map_measures.shares(values, halves_of_liver_and_vessel()).set_index("region")
    assert table.loc["liver", ["area", "share"]].tolist() == pytest.approx([2 / 3, 3 / 4])
    assert table.loc["liver", "ratio"] == pytest.approx(9 / 8)
    assert table.loc["liver", "net"] == -1.0
    assert table["peak"].tolist() == [region == "liver" for region in table.index]
    assert np.isnan(table.loc["kidney cortex", "ratio"])
    assert table[["area", "share"]].sum().tolist() == pytest.approx([1.0, 1.0])


def test_constant_attribution_lies_by_area_and_none_lies_nowhere():
    parts = halves_of_liver_and_vessel()
    table = map_measures.shares(np.ones(parts.shape), parts).dropna()
    np.testing.assert_allclose(table["ratio"], 1.0)
    nothing = map_measures.shares(np.zeros(parts.shape), parts)
    assert nothing["share"].sum() == 0
    assert not nothing["peak"].any()


def test_an_image_without_a_sector_is_refused():
    with pytest.raises(ValueError, match="image 1: expected pixels inside the sector"):
        map_measures.shares(
            np.ones((2, 2, 4)), np.concatenate([halves_of_liver_and_vessel(), np.zeros((1, 2, 4), np.uint8)])
        )


def test_summary_counts_the_images_that_hold_a_region():
    parts = np.concatenate([halves_of_liver_and_vessel()] * 3)
    parts[2][parts[2] == VESSEL] = LIVER
    values = np.random.default_rng(0).standard_normal(parts.shape)
    table = map_measures.summarise_shares(map_measures.shares(values, parts)).set_index("region")
    assert table["n"].to_dict() == {"other tissue": 0, "liver": 3, "kidney cortex": 0, "vessel border": 2} | {
        "diaphragm border": 0
    }
    assert table.loc["liver", "low"] < table.loc["liver", "ratio"] < table.loc["liver", "high"]
    assert np.isnan(table.loc["kidney cortex", "ratio"])
    assert table["share"].sum() == pytest.approx(1.0)


def test_no_interval_leaves_what_is_possible():
    """Two images with shares far apart: Student t reaches below 0, a share cannot."""
    table = pd.DataFrame({"region": "liver", "area": 0.5, "share": [0.1, 0.9], "ratio": [0.2, 1.8], "net": 0.0})
    row = map_measures.summarise_shares(table.assign(peak=False)).iloc[0]
    assert row.ratio == pytest.approx(1.0)
    assert 0 < row.low < 1 < row.high
    row = check_units._agreement_row(check_units.Against.SEED, 1, np.array([-0.9, 0.9]), np.array([0.9, -0.9]))
    assert -1 <= row["low"] < 0 < row["high"] <= 1
    assert (row["below_low"], row["below_high"]) == (-2, 2)


def test_a_missing_interval_is_no_finding():
    """One image, one comparison, equal images: neither more nor less, neither yes nor no, and no "nan" in words."""
    shares = pd.DataFrame(
        [{"image": 0, "region": "liver", "area": 0.1, "share": 0.4, "ratio": 4.0, "net": 1.0, "peak": 1.0}]
    )
    auc = pd.DataFrame([{"auc": 0.95, "low": 0.8, "high": 0.99, "n_patients": 40, "n_folds": 5, "unsaid": ""}])
    row = check_units._agreement_row(check_units.Against.UNTRAINED, 1, np.array([0.1]), np.array([0.9]))
    gains = pd.DataFrame([{"mode": "deletion", "gain": 0.5, "low": np.nan, "high": np.nan}])
    checks = SimpleNamespace(tissue=map_measures.summarise_shares(shares), gains=gains, agreement=pd.DataFrame([row]))
    rows = [*verdict._tissue(auc, checks), verdict._matters(checks), *verdict._agreement(checks)]
    assert len(rows) == 3
    for _, measured, said in rows:
        assert said == verdict.UNSAID
        assert "nan" not in measured
    assert "[no interval]" in rows[1][1]
    bounded = SimpleNamespace(gains=gains.assign(low=0.1, high=0.9))
    assert verdict._matters(bounded)[2] == "yes"


# ---------------------------------------------------------------- agreement


def test_agreement_is_scipys_spearman_and_reads_ranks_alone():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 6, 6))
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(map_measures.agreement(a, b), expected)
    np.testing.assert_allclose(map_measures.agreement(a, np.exp(a)), 1.0)
    np.testing.assert_allclose(map_measures.agreement(a, -a), -1.0)
    inside = np.zeros(a.shape, bool)
    inside[:, :3] = True
    changed = np.where(inside, b, 7.0)
    np.testing.assert_allclose(map_measures.agreement(a, changed, inside), map_measures.agreement(a[:, :3], b[:, :3]))
    assert map_measures.agreement(a, np.zeros_like(a)).tolist() == [0, 0, 0]


def test_pairwise_averages_every_pair():
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((3, 2, 5, 5))
    expected = np.mean(
        [map_measures.agreement(a, b), map_measures.agreement(a, c), map_measures.agreement(b, c)], axis=0
    )
    np.testing.assert_allclose(map_measures.pairwise([a, b, c]), expected)


# ---------------------------------------------------------------- deletion and insertion


def brightness(images):
    return images.reshape(len(images), -1).mean(axis=1, dtype=float) / 255


def test_curves_of_a_score_that_is_known():
    """The score is the mean brightness: the map that ranks the bright pixels first deletes them first."""
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, 0] = 255
    best, worst = (image > 0).astype(float), (image == 0).astype(float)
    table = map_measures.curves(
        brightness, image, {"best": best, "worst": worst}, np.zeros((4, 4), np.uint8), (0, 0.25, 1)
    )
    kept = {key: part["kept"].tolist() for key, part in table.groupby(["map", "mode"])}
    assert kept["best", "deletion"] == [0.25, 0, 0]
    assert kept["best", "insertion"] == [0, 0.25, 0.25]
    assert kept["worst", "deletion"] == [0.25, 0.25, 0]
    gain = map_measures.curve_gain(table, "best", "worst").set_index("mode")
    assert gain.loc["deletion", "gain"] == pytest.approx(0.25 * (0.125 + 0.375))
    assert gain.loc["insertion", "gain"] == pytest.approx(gain.loc["deletion", "gain"])
    assert np.isnan(gain["low"]).all()


def test_an_image_below_the_baseline_is_judged_by_what_speaks_against():
    image, baseline = np.full((1, 4, 4), 255, np.uint8), np.full((4, 4), 255, np.uint8)
    image[0, 0] = 0
    against = -(image == 0).astype(float)
    table = map_measures.curves(brightness, image, {"map": against}, baseline, (0, 0.25, 1))
    assert table[table["mode"] == "deletion"]["kept"].tolist() == [0.25, 0, 0]


# ---------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def everything(swept):
    return explain.explain_all(swept)


def test_the_stage_holds_the_maps_against_all_and_says_what_follows(swept, everything, monkeypatch):
    found = everything["explained"]
    checks = explain.build_checks(swept, everything)
    agreement = checks.agreement.set_index("with_")
    assert list(agreement.index) == [
        check_units.Against.DRAWS,
        check_units.Against.SEED,
        check_units.Against.NETWORK,
        check_units.Against.UNTRAINED,
        check_units.Against.SHUFFLED,
        check_units.Against.DIFFERENCE,
    ]
    assert agreement["n_maps"].tolist() == [1, 0, 0, 1, 1, 1], "one network and one seed in this sweep"
    assert agreement.loc[check_units.Against.DRAWS, "below"] == 0
    assert (agreement["agreement"].dropna().abs() <= 1).all()
    assert checks.tissue["share"].sum() == pytest.approx(1.0)
    deleted = checks.curves[(checks.curves["mode"] == "deletion") & (checks.curves["map"] == "SHAP")]
    ends = deleted[deleted["fraction"].isin([0.0, 1.0])].pivot_table(index="image", columns="fraction", values="kept")
    assert (ends[0.0] >= 0).all()
    np.testing.assert_allclose(ends[1.0], 0, atol=1e-6)
    monkeypatch.setattr(check_units, "compare", None)
    pd.testing.assert_frame_equal(explain.build_checks(swept, everything).agreement, checks.agreement)

    study, auc = check_units.stored_study(), explain.held_out_auc(swept)
    table = explain.what_shap_shows(swept, found, auc, checks, study)
    assert table.notna().all(axis=None)
    assert len(explain.answer(swept, auc, checks, study)) > 100
    claims = explain.claims(swept, found, auc, checks, study)
    values = {row["key"]: row["this_run"] for row in claims}
    assert [values["shap.gate"], values["shap.auc"]] == auc["auc"].tolist()
    swept.record_claims("07_shap", claims)
    assert len(swept.finish("07_shap", explain.units(swept)))


def maps_of(everything, signal, noise, seed):
    """The explained classifier's explanation with known maps of 30 images: a signal and noise of their own."""
    rng, one = np.random.default_rng(seed), everything["explained"]
    images = np.full((30, 32, 32), 9, np.uint8)
    table = pd.DataFrame({"compared": np.ones(30, bool)})
    values = signal + noise * rng.standard_normal(images.shape)
    return replace(one, images=images, attributions=values, table=table, smoothing=1e-3)


def test_a_classifier_with_equal_maps_agrees_as_well_as_the_draws_allow(swept, everything):
    """Signal and noise of equal variance: two maps correlate by 1/2, which is 6 / pi asin(1/4) in ranks.

    Another classifier with the same signal is at that ceiling; one whose signal is half another lies below it, at a
    correlation of 1/4. Maps of half as many draws, with twice the noise, would put the ceiling at 1/3.
    """
    signal, other = np.random.default_rng(0).standard_normal((2, 30, 32, 32))
    known = {"explained": maps_of(everything, signal, 1.0, 1)}
    mixed = (signal + np.sqrt(3) * other) / 2
    for against, truth, seed in (("DRAWS", signal, 2), ("NETWORK", signal, 3), ("UNTRAINED", mixed, 4)):
        which = check_units.Against[against]
        known[which.value] = replace(maps_of(everything, truth, 1.0, seed), against=which)
    table = check_units.compare(swept, known).set_index("with_")
    draws, twin, half = (table.loc[check_units.Against[name]] for name in ("DRAWS", "NETWORK", "UNTRAINED"))
    assert draws.agreement == pytest.approx(6 / np.pi * np.arcsin(1 / 4), abs=0.01)
    assert twin.agreement == pytest.approx(draws.agreement, abs=0.01)
    assert twin.below == pytest.approx(0, abs=0.01)
    assert half.agreement == pytest.approx(6 / np.pi * np.arcsin(1 / 8), abs=0.01)
    assert half.below_low > 0.2
    assert (draws.n_images, draws.below) == (30, 0)


def test_maps_side_by_side_are_of_the_same_images(everything):
    rows, shown = explain.side_by_side(everything, n_images=1, n_others=0)
    assert list(shown) == ["explained", check_units.Against.UNTRAINED, check_units.Against.SHUFFLED]
    own = everything["explained"]
    assert own.table["compared"].iloc[rows].all()
    np.testing.assert_array_equal(shown["explained"][0], own.smoothed()[rows])
    for name, (values, limit) in shown.items():
        one = everything[name]
        assert values.shape == (1, *own.images.shape[1:])
        assert limit > 0
        image = one.images[rows[0] if name == "explained" else 0]
        np.testing.assert_array_equal(image, own.images[rows[0]])


def auc_table(low):
    """What `explain.held_out_auc` gives, with this lower bound of the mean; the explained classifier's own is high."""
    mean = {"of": "3 folds' classifiers, mean", "auc": 0.8, "low": low, "high": 0.9, "n_patients": 27, "n_folds": 3}
    one = {"of": "this classifier", "auc": 0.9, "low": 0.8, "high": 0.95, "n_patients": 9, "n_folds": 1}
    return pd.DataFrame([{**mean, "unsaid": "" if low > 0 else "fold 1 is small"}, {**one, "unsaid": ""}])


def test_nothing_is_interpreted_where_the_auc_is_not_shown_to_be_good(swept, everything):
    found, checks, study = everything["explained"], explain.build_checks(swept, everything), check_units.stored_study()
    checks = checks._replace(tissue=checks.tissue.assign(ratio=2.0, low=1.5, high=2.5))
    for low, starts in ((0.7, "not interpreted"), (np.nan, "not interpreted"), (0.71, "more than its area")):
        auc = auc_table(low)
        table = explain.what_shap_shows(swept, found, auc, checks, study)
        told = table[table["question"].str.startswith("Do the maps lie on")]["answer"]
        assert len(told) == len(map_measures.JUDGED)
        assert told.str.startswith(starts).all(), low
        verdict = {0.7: "no: its lower bound 0.70", 0.71: "yes"}.get(low, "cannot be said: fold 1 is small")
        assert table["answer"].iloc[0].startswith(verdict)
        answer = explain.answer(swept, auc, checks, study)
        assert ("Maps are shown and not interpreted." in answer) == (not low > 0.7)
        assert "AUC of 3 folds' classifiers made like the explained one is 0.80" in answer
        assert "over 27 patients" in answer


def test_a_cohort_without_masks_is_told_so_and_keeps_the_rest(swept, everything, overrides, monkeypatch):
    # other checks of the same explanations, so that those with masks stay
    other = artifacts.open_run("smoke", {**overrides, "shap.border": 0.05})
    monkeypatch.setattr(preprocessing.open_preprocessed(other), "tissue", None)
    checks = explain.build_checks(other, everything)
    assert checks.tissue is None
    assert len(checks.gains) == 2
    auc = auc_table(0.8)
    table = explain.what_shap_shows(swept, everything["explained"], auc, checks, check_units.stored_study())
    assert table["answer"].str.contains("this cohort has no tissue masks").any()
    assert "not known for these images" in explain.answer(swept, auc, checks, check_units.stored_study())


def test_labels_are_shuffled_by_patient():
    images = pd.DataFrame({"patient_id": np.repeat(np.arange(20), 3), "label": np.repeat(np.arange(20) % 2, 3)})
    label = attribution_units.shuffle_by_patient(images, np.random.default_rng(0))
    by_patient = images.assign(label=label).groupby("patient_id")["label"]
    assert (by_patient.min() == by_patient.max()).all()
    assert by_patient.first().sum() == 10
    assert not np.array_equal(label, images["label"])


def test_the_seeds_of_a_network_are_all_compared(swept, overrides):
    from nafld_utils import sweep

    other = artifacts.open_run("smoke", {**overrides, "sweep.n_seeds": 2})
    sweep.run_sweep(other)
    table = check_units.compare(other, explain.explain_all(other)).set_index("with_")
    assert table.loc[check_units.Against.SEED, ["n_maps", "n_images"]].tolist() == [2, other.settings.shap.n_compared]
    assert np.isfinite(table.loc[check_units.Against.SEED, "agreement"])


def test_beside_the_study_the_same_is_made_and_a_failed_feature_takes_nothing_down(swept, overrides, monkeypatch):
    """Attributions to the bit, in one call with a study that fails; the next call makes the study and nothing else."""
    alone = explain.explain_all(artifacts.open_run("smoke", {**overrides, "shap.n_samples": 6}))
    other = artifacts.open_run("smoke", {**overrides, "shap.n_samples": 6, "shap.feature_patients": 8})
    for one in alone.values():
        shutil.rmtree(one.unit.path)
    shutil.rmtree(attribution_units.shuffled_unit(other).path)

    def fails(run, feature):
        raise ValueError("a word")

    monkeypatch.setattr(check_units, "make_feature", fails)
    said = r"single-feature study: 3 of 9 units failed, the first \(kind=single-feature study, .*a word; the others are"
    with pytest.raises(engine.UnitError, match=said):
        explain.explain_all(other)
    for one in alone.values():
        np.testing.assert_array_equal(one.unit.load_array("attributions.npy"), one.attributions)

    made = []

    def makes(run, feature):
        made.append(feature)
        with check_units.feature_unit(run, feature).writing() as folder:
            artifacts.save_json(folder / "rows.json", check_units.stored_study().table.to_dict("records")[:1])

    monkeypatch.setattr(check_units, "make_feature", makes)
    monkeypatch.setattr(explainers, "attributions", None)
    assert list(explain.explain_all(other)) == list(alone)
    assert made == list(phantom.FEATURES)
    assert len(explain.build_study(other).table) == len(made) == 3
    assert {unit.path for unit in explain.units(other) if not unit.done()} == {
        check_units.checks_unit(other, [one.unit for one in alone.values()]).path
    }


def test_no_attributions_begin_before_the_training_that_they_are_of(swept, overrides, monkeypatch):
    """By what a unit says that it reads, since another process would train the same a second time."""
    other, seen = artifacts.open_run("smoke", {**overrides, "shap.n_samples": 7, "shap.feature_patients": 8}), {}
    monkeypatch.setattr(engine, "map_kinds", lambda kinds, *_: seen.update(kinds))
    explain.explain_all(other)
    units = {kind: [unit_of(**task) for task in tasks] for kind, (_, tasks, unit_of) in seen.items()}
    trained = {unit.hash for kind in ("classifier", "shuffled labels") for unit in units[kind]}
    reads = [len(trained & set(unit.recipe["inputs"])) for unit in units["attributions"]]
    assert reads == [1, 1, 0, 1], "explained, other draws, untrained, shuffled"
    assert [*seen][-1] == "attributions", "what comes before is looked at for what a task needs"
    made = {unit.path for some in units.values() for unit in some}
    left = [unit.path.name for unit in explain.units(other) if unit.path not in made]
    assert left == ["images", "checks"]


# ---------------------------------------------------------------- what is stored


def test_the_stored_study_is_of_this_code_and_of_the_paper_profile():
    stored = json.loads(check_units.STORED.read_text(encoding="utf-8"))
    assert stored["revisions"] == check_units.study_revisions(), f"make it anew: {check_units.STORE_COMMAND}"
    options = vars(check_units.feature_options(artifacts.open_run("paper", {})))
    assert stored["options"] == json.loads(json.dumps(options)), f"make it anew: {check_units.STORE_COMMAND}"
    study = check_units.stored_study()
    assert len(study.table) == 3 * len(explainers.EXPLAINERS)
    assert "Not made in this run" in study.note


def test_a_stored_study_of_other_code_says_so(monkeypatch):
    monkeypatch.setattr(check_units, "study_revisions", lambda: {"phantom": 99})
    assert "made by other revisions of phantom and may not hold" in check_units.stored_study().note


# ---------------------------------------------------------------- figures


def test_figures_of_the_checks_draw_what_the_tables_hold():
    import matplotlib.pyplot as plt

    with views.style():
        fig, axes = plt.subplots(1, 3)
        figures.intervals(["a", "b"], [0.5, np.nan], [0.4, np.nan], [0.6, np.nan], 0.0, axes[0])
        assert [text.get_text() for text in axes[0].texts] == [" none"]
        table = map_measures.curves(brightness, np.full((2, 4, 4), 9, np.uint8), {"SHAP": np.ones((2, 4, 4))} | {
            "random": np.zeros((2, 4, 4))
        }, np.zeros((4, 4), np.uint8))  # fmt: skip
        figures.curves(table, "deletion", axes[1])
        assert [line.get_label() for line in axes[1].lines] == ["SHAP order", "random order"]
        figures.features(check_units.stored_study().table, axes[2])
        assert len(axes[2].get_yticklabels()) == 6
        fig.canvas.draw()
        plt.close(fig)


def test_beside_another_cohort_the_study_names_no_organ():
    ours = check_units.build_study(SimpleNamespace(settings=params.load("smoke"), is_foreign=False)).table
    others = check_units.build_study(SimpleNamespace(settings=params.load("smoke"), is_foreign=True)).table
    assert ours["verdict"].str.contains("the liver and kidney cortex carries").any()
    assert not others.astype(str).apply(lambda column: column.str.contains("liver|kidney")).any(axis=None)
    assert others["verdict"].str.contains("the place of the feature carries").any()
    numbers = ours.select_dtypes("number").columns
    pd.testing.assert_frame_equal(ours[numbers], others[numbers])
