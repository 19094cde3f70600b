"""The answer of stage 06 on made-up scores: what is declared, what is claimed, what an arm cost, and the figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from toy_scores import ARMS, ToyData, features_of, learners, made_up

from nafld_utils import artifacts, engine, params, statistics, sweep, views
from nafld_utils.preprocessing import unit
from nafld_utils.sweep import comparisons, families, figures, frozen_classifier_units, frozen_classifiers, verdict

OVERRIDES = {"sweep.backbones": ["tf_efficientnet_lite0"], "sweep.n_resamples": 100, "engine.mode": "serial"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    monkeypatch.setattr(unit, "open_preprocessed", lambda run: ToyData)
    return artifacts.open_run("smoke", OVERRIDES)


BUILT = {}


def built(run, **made):
    """Tables of scores that are made up so; they are computed once for all tests, and nothing is stored."""
    if str(made) not in BUILT:
        BUILT[str(made)] = sweep.build_tables(run, made_up(**made), note="for several tests")
    return dict(BUILT[str(made)])


# ---------------------------------------------------------------- what is declared


def test_tables_are_stored_once_and_come_back_alike(run, monkeypatch):
    tables = sweep.build_tables(run, made_up())
    assert set(tables) == set(verdict.TABLES)
    assert tables["comparisons"].groupby("level")["primary"].sum().to_dict() == {"image": 1, "patient": 0}

    def again(*args, **kwargs):
        raise AssertionError("computed twice")

    monkeypatch.setattr(comparisons, "compare_arms", again)
    kept = sweep.build_tables(run, made_up())
    for name, table in tables.items():
        pd.testing.assert_frame_equal(kept[name], table, check_dtype=False)


def test_an_incomplete_grid_stores_nothing(run):
    sweep.build_tables(run, made_up(), note="1 of 12 trials are missing.")
    assert not verdict.tables_unit(run).done()


def test_one_comparison_is_declared_whatever_else_the_run_holds(run):
    groups = [
        made_up(freeze="paper", balance="none"),
        made_up(freeze="all", balance="none"),
        made_up(freeze="paper", balance="oversample"),
        made_up("resnet18", freeze="paper", balance="none"),
    ]
    scores = pd.concat(groups[::-1], ignore_index=True)
    tables = sweep.build_tables(run, scores)
    row = verdict.primary(run, tables)
    assert (row.backbone, row.freeze, row.balance) == ("tf_efficientnet_lite0", "paper", "none")
    assert (row.arm, row.rate) == ("semantic", 0.5)
    assert tables["comparisons"]["primary"].sum() == 1
    secondary = tables["comparisons"][lambda t: t["role"] == families.SECONDARY]
    assert secondary[["level", "arm"]].to_numpy().tolist() == [["image", "traditional"], ["patient", "semantic"]]
    assert set(secondary["backbone"] + secondary["freeze"]) == {"tf_efficientnet_lite0paper"}
    assert len(sweep.at(run, tables["comparisons"])) == 2
    assert sweep.networks(run, tables) == ["tf_efficientnet_lite0", "resnet18"]
    # a run that trains every layer and nothing else declares its comparison there
    only = sweep.declared(run, made_up(freeze="none", balance="none"))
    assert only["freeze"] == "none"


def test_verdict_says_whether_a_gain_is_one_of_seeds_alone(run):
    row = verdict.primary(run, built(run))
    text = {
        "helped": {"low_patients": 0.1, "high_patients": 0.2},
        "did harm": {"low_patients": -0.2, "high_patients": -0.1},
        "over seeds alone": {"low_patients": -0.2, "high_patients": 0.1, "low_seeds": 0.01, "high_seeds": 0.02},
        "this run does not tell": {"low_patients": -0.2, "high_patients": 0.1, "low_seeds": np.nan},
    }
    for words, change in text.items():
        assert words in families.verdict_in_words(pd.Series({**row.to_dict(), **change})), words


def test_answer_names_both_intervals_the_size_it_could_see_and_that_patients_are_simulated(run):
    tables = built(run)
    text = sweep.answer(run, tables)
    row = verdict.primary(run, tables)
    assert f"{row.difference:+.3f} on simulated patients" in text
    assert "(95 %, Student t over 3 seeds)." in text
    assert "(95 % over 20 patients and 3 training seeds)" in text
    assert "given this split, these generators and training patients" in text
    assert row.smallest_effect > 1 - row.mean_auc_base
    assert "no possible gain would be found by four in five such studies; these patients are too few" in text
    possible = families.power_in_words(pd.Series({**row.to_dict(), "smallest_effect": 0.1}))
    assert possible.startswith("about four in five such studies would find a true difference of 0.100")
    assert "wider interval" not in text + possible
    lucky = {"smallest_effect": 0.1, "low_patients": -0.02, "high_patients": 0.028}  # 4.2 half-widths
    said = families.power_in_words(pd.Series({**row.to_dict(), **lucky}))
    assert said.endswith("a wider interval, since these 3 seeds agree more than 20 patients let expect")
    assert "wider" not in families.power_in_words(pd.Series({**row.to_dict(), **lucky, "high_patients": 0.032}))
    # a noncentral t of that shift lies above the critical value in 80 % and more: it is planned cautiously
    shift, limit = row.smallest_effect / row.se_patients, scipy_stats.t.ppf(0.975, row.df_patients)
    assert scipy_stats.nct.sf(limit, row.df_patients, shift) > 0.8
    times = (row.high_patients - row.low_patients) / (row.high_seeds - row.low_seeds)
    assert f"{times:.2g} times as wide as that over seeds" in text
    over = "95 % over 20 patients and 3 training seeds"
    assert f"\nSecondary, as declared ({over}, intervals unadjusted): traditional images" in text
    assert "\nOne more is exploratory.\n" in text
    assert text.count("Holm p = ") + text.count("not tested") == 2
    assert text.endswith(params.agreement(run.settings))
    assert "differs from the declared analysis (params/protocol.yaml) in sweep.primary_rate (1.5 declared, 0.5" in text


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_one_or_two_seeds_are_too_few_for_a_verdict_whatever_the_gain(run, n_seeds):
    tables = built(run, arms={**ARMS, ("semantic", 0.5): 0.9}, n_seeds=n_seeds)
    row, text = verdict.primary(run, tables), sweep.answer(run, tables)
    assert row.low_patients > 0
    assert f"too few training seeds ({n_seeds}; 3 are needed) to say whether the images help" in text
    assert "the images helped" not in text
    assert f"Given these trained models and this split: {row.difference:+.3f}, [" in text
    assert f"] (95 % over {row.n_patients} patients)." in text
    assert "times as wide" not in text
    (gain,) = (one for one in verdict.claims(run, tables) if one["key"] == "sweep.gain.patients")
    assert gain["over"] == comparisons.OVER_FEW
    with views.style():
        fig, ax = plt.subplots()
        legend = figures.differences(sweep.at(run, tables["comparisons"]), ax).get_legend()
        plt.close(fig)
    assert legend.get_texts()[-1].get_text() == "95 % over patients"


def test_equal_scores_do_not_say_that_the_smallest_gain_is_none(run):
    tables = sweep.build_tables(run, made_up().assign(score=0.5))
    row = verdict.primary(run, tables)
    assert np.isnan([row.low_patients, row.high_patients, row.p_patients, row.smallest_effect]).all()
    said = sweep.answer(run, tables)
    assert "no interval, since it is the same for all of them." in said
    assert "cannot be told" in said
    assert "nan" not in said
    claims = verdict.claims(run, tables)
    assert not any(claim["key"] == "sweep.smallest_gain" for claim in claims)
    of_arms = [claim for claim in claims if claim["key"].startswith("sweep.auc")]
    assert of_arms
    assert {claim["over"] for claim in of_arms} == {statistics.NO_SPREAD}
    with views.style():
        fig, axes = plt.subplots(1, 2)
        arms = sweep.at(run, tables["arms"])
        figures.roc(sweep.at(run, tables["roc"], None), arms, axes[0])
        assert "(no interval)" in axes[0].get_legend().get_texts()[0].get_text()
        figures.differences(sweep.at(run, tables["comparisons"]), axes[1])
        assert any("cannot be said" in text.get_text() for text in axes[1].texts)
        plt.close(fig)


def test_the_notebook_shows_columns_that_its_tables_have(run, monkeypatch):
    tables = sweep.build_tables(run, made_up(freeze="paper", balance="none"))
    monkeypatch.setattr(artifacts.Unit, "seconds", lambda unit: 60.0)
    tables["costs"] = sweep.costs(run, pd.DataFrame([{"arm": "real", "state": "done", "seconds": 1.0}]), tables)
    tables |= dict.fromkeys(("gain", "intervals", "seeds", "by patient"), tables["comparisons"])
    tables["kinds"] = sweep.kinds(tables["comparisons"])
    listed = verdict.listed_tables()["sweep"]
    for name in set(listed) - {"baselines"}:
        rows, columns = listed[name]["rows"], listed[name]["columns"]
        assert {part for column in f"{rows} {columns}".split() for part in column.split("|")} <= {*tables[name]}, name
        shown = sweep.shown(tables[name], name).data
        assert len(shown) == len(tables[name]), name
        assert len(shown.columns) == len(columns.split()), name
    alone = sweep.shown(tables["arms"].drop(columns=["freeze", "balance"]), "arms").data
    assert [*alone.index.names][-2:] == ["images mixed in", "mixing rate"]


# ---------------------------------------------------------------- claims and cost


def test_claims_say_what_their_interval_is_over(run):
    tables = built(run)
    rows = verdict.claims(run, tables)
    table = run.record_claims("06_classification_sweep", rows)
    assert {row["over"] for row in rows if row["claim"].startswith("gain") and np.isfinite(row["low"])} == {
        comparisons.OVER_SEEDS,
        comparisons.OVER_GAIN,
        f"{comparisons.OVER_GAIN}; unadjusted",
    }
    assert all(row["same_protocol"].startswith("no") for row in rows if not row["claim"].startswith("best single seed"))
    bounded = table.dropna(subset=["low"])
    assert bounded["over"].notna().all()
    assert (bounded["low"] <= bounded["high"]).all()
    assert table["claim"].str.contains("Spearman").any()
    assert table["claim"].str.contains("true gain that about four in five such studies find").any()


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_every_interval_over_patients_says_what_it_is_given(run, n_seeds):
    tables = built(run, n_seeds=n_seeds)
    features = features_of(ToyData.images, 1.0)
    made = frozen_classifiers.baseline_table(frozen_classifiers.split_scores(learners(features), ToyData.images))
    shuffled = frozen_classifiers.canary(features, ToyData.images, 2, range(2))
    tables |= {"auc": made, "canary": shuffled, "claims": pd.DataFrame(verdict.claims(run, tables))}
    bounded = {name: table for name, table in tables.items() if any(c.startswith("low") for c in table)}
    assert {"variants", "reliability", "roc", "measures", "canary"} < set(bounded)
    for name, table in bounded.items():
        said = [text for column in table if column.startswith("over") for text in table[column].unique()]
        parts = [part for text in said for part in text.split(" | ") if "patients" in part.partition(";")[0]]
        assert parts, name
        for part in parts:
            given = statistics.GIVEN_SEEDS if "training seeds" in part else "these trained models"
            assert given in part or "no interval" in part, (name, part)
            assert "this split" in part or "no interval" in part, (name, part)
    given = {1: "these trained models and this split", 3: "this split, these generators and training patients"}
    assert f"given {given[n_seeds]}:" in sweep.answer(run, tables).replace("Given", "given")
    spread = frozen_classifiers.split_spread(learners(features), ToyData.images, 2, range(2))
    assert spread["over"].str.startswith("no interval").all()
    assert frozen_classifiers.canary_summary(shuffled)["over"].str.startswith("shuffles").all()


def test_two_networks_have_claims_each(run, tmp_path):
    both = artifacts.open_run("smoke", {**OVERRIDES, "sweep.backbones": ["tf_efficientnet_lite0", "resnet50.tv_in1k"]})
    scores = pd.concat([made_up(), made_up("resnet50.tv_in1k")], ignore_index=True)
    rows = verdict.claims(both, sweep.build_tables(both, scores))
    secondary = [row for row in rows if row["key"].startswith("sweep.gain.secondary")]
    assert len(secondary) == 2, "the first network alone has a secondary family"
    assert sum(row["claim"].startswith("gain") for row in rows) == 4 + 2
    other = [row["claim"] for row in rows if row["claim"].endswith("[resnet50.tv_in1k]")]
    assert len(other) == (len(rows) - 2) / 2, "each names its network"
    assert all("(exploratory)" in text for text in other if text.startswith("gain"))


def test_paper_settings_are_the_papers_protocol():
    assert sweep.differences(artifacts.open_run("paper")) == []
    found = sweep.differences(artifacts.open_run("demo"))
    assert found[0] == "simulated cohort"
    assert "tf_efficientnet_lite0 instead of ResNet-50" in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep.experiments": ["s5"]}, "freeze none"),
        ({"sweep.experiments": ["s7"]}, "balance oversample"),
        ({"sweep.freeze": "none"}, "freeze none"),
        ({"sweep.weights": "random"}, "weights random"),
        ({"folds.n_splits": 3}, "n_splits 3"),
        ({"folds.seed": 3}, "seed 3"),
        ({"sweep.crops": "fixed"}, "crops fixed"),
        ({"sweep.weight_decay": 0.5}, "weight_decay 0.5"),
        ({"sweep.rotation": 20.0}, "rotation 20.0"),
        ({"preprocess.crops_per_image": 1}, "crops_per_image 1"),
        ({"sampling.scheduler": "dpmsolver++", "sampling.eta": 0.0}, "scheduler dpmsolver++"),
        ({"ldm.steps": 2}, "steps 2"),
        ({"sweep.n_seeds": 2}, "n_seeds 2"),
    ],
)
def test_whatever_differs_from_the_papers_protocol_is_named(changes, said):
    assert said in "; ".join(sweep.differences(artifacts.open_run("paper", changes)))


def test_each_network_is_held_against_the_papers_own(run):
    three = list(params.load("paper").experiments["fig5b"].backbones)
    for first in three:
        others = [name for name in three if name != first]
        paper = artifacts.open_run("paper", {"sweep.backbones": [first, *others]})
        assert [sweep.differences(paper, name) for name in three] == [[]] * 3
    both = artifacts.open_run("paper", {"sweep.backbones": ["resnet50.tv_in1k", "resnet18.tv_in1k"]})
    assert sweep.differences(both) == []
    assert sweep.differences(both, "resnet18.tv_in1k") == ["resnet18.tv_in1k instead of ResNet-50"]


@pytest.mark.parametrize(
    ("freeze", "way"), [("paper", ""), ("none", ", every layer trained (S5)"), ("layer1", ", freeze layer1")]
)
def test_the_papers_auc_stands_beside_its_main_way_of_training_alone(run, freeze, way):
    mine = artifacts.open_run("smoke", {**OVERRIDES, "sweep.backbones": ["resnet50.tv_in1k"], "sweep.freeze": freeze})
    rows = verdict.claims(mine, sweep.build_tables(mine, made_up("resnet50.tv_in1k", freeze=freeze)))
    told = [row for row in rows if row["unit"] == "image-level AUC" and row.get("paper") is not None]
    assert bool(told) == (freeze == "paper")
    assert any(row["claim"].startswith(f"gain by semantic images, r = 0.5{way}") for row in rows)
    assert any(row["claim"].startswith(f"real images alone{way}") for row in rows)
    assert any(row["claim"].startswith("paired t") for row in rows) == (freeze == "paper")
    protocol = next(row["same_protocol"] for row in rows if row["claim"].startswith("gain"))
    assert (f"freeze {freeze}" in protocol) == (freeze != "paper")


@pytest.mark.parametrize(
    "changes", [{"sweep.n_resamples": 500}, {"sweep.at_once": 2}, {"sweep.experiments": ["fig5a"]}]
)
def test_statistics_and_speed_are_not_the_protocol(changes):
    assert sweep.differences(artifacts.open_run("paper", changes)) == []


@pytest.mark.parametrize("name", list(params.load("paper").experiments))
def test_every_experiment_alone_ends_in_an_answer_with_the_declared_comparison(run, name):
    alone = artifacts.open_run("smoke", {**OVERRIDES, "sweep.experiments": [name], "sweep.n_seeds": 2})
    grid = sweep.grid(alone.settings).drop(columns="fold").drop_duplicates()
    parts = []
    for key, cell in grid.groupby(["backbone", "freeze", "balance"]):
        group = dict(zip(("freeze", "balance"), key[1:], strict=True))
        shifts = {
            (arm, rate): 0.1 * (arm != "real")
            for arm, rate in cell[["arm", "rate"]].drop_duplicates().itertuples(index=False)
        }
        parts.append(made_up(key[0], arms=shifts, n_seeds=cell["seed"].nunique(), **group))
    tables = sweep.build_tables(alone, pd.concat(parts, ignore_index=True))
    assert verdict.primary(alone, tables).arm == alone.settings.sweep.primary_arm
    assert verdict.claims(alone, tables)
    assert "this split" in sweep.answer(alone, tables)


def test_the_papers_best_seed_stands_beside_its_own_network_alone(run):
    for backbone, paper in (("resnet50.tv_in1k", None), ("tf_efficientnet_b0.in1k", verdict.PAPER_BEST_SEED[1])):
        mine = artifacts.open_run("smoke", {**OVERRIDES, "sweep.backbones": [backbone]})
        rows = verdict.claims(mine, sweep.build_tables(mine, made_up(backbone)))
        (best,) = (row for row in rows if row["claim"].startswith("best single seed"))
        assert best.get("paper") == paper
        assert ("(paper: EfficientNet v1)" in best["claim"]) == (paper is not None)


def test_cost_of_an_arm_counts_everything_that_made_its_images(run, monkeypatch):
    tables = built(run)
    # a model and its set a fold; latents of the shipped first stage are those of both models and all folds
    made = {"real": 0, "traditional": 0, "semantic": 2 * 2 + 1, "class_matched_only": 2 * 2 + 1, "gan": 2 * 2}
    made["semantic+class"] = 2 * 4 + 1
    made["filtered"] = 2 * 5 + 2  # and a fold's features, copy audit and choice; features of real images once
    cells = [(arm, 0.0 if arm == "real" else 0.5) for arm in made]
    status = pd.DataFrame([{"arm": a, "rate": r, "state": "done", "seconds": 30.0} for a, r in cells for _ in range(4)])

    monkeypatch.setattr(artifacts.Unit, "seconds", lambda unit: 60.0)
    cost = sweep.costs(run, status, tables).set_index("arm")
    assert cost["classifier_minutes"].eq(2).all()
    assert len(sweep.folds_of(run.settings)) == 2
    assert cost["generator_minutes"].to_dict() == made
    # real images and the arm's own set: one traditional set for all folds, one of a generator a fold
    assert cost["feature_minutes"][["real", "traditional", "semantic", "gan"]].tolist() == [1, 2, 3, 3]
    first = {"autoencoder.semantic.source": "train", "autoencoder.semantic.factor": 8}
    trained = artifacts.open_run("smoke", {**OVERRIDES, **first})
    more = sweep.costs(trained, status, tables).set_index("arm")
    assert more["generator_minutes"]["semantic"] == 2 * 4, "each fold has a first stage and latents of its own"


def test_cost_shows_the_gain_at_the_declared_rate_and_not_the_best(run, monkeypatch):
    tables = built(run, arms={**ARMS, ("semantic", 1.0): 0.9, ("traditional", 1.0): 0.1})
    monkeypatch.setattr(artifacts.Unit, "seconds", lambda unit: 60.0)
    rows = [{"arm": arm, "rate": 0.5, "state": "done", "seconds": 1.0} for arm in ("real", "semantic", "class")]
    cost = sweep.costs(run, pd.DataFrame(rows), tables).set_index("arm")["difference"]
    declared = verdict.primary(run, tables)["difference"]
    best = tables["comparisons"].query("arm == 'semantic' and level == 'image'")["difference"].max()
    assert cost["semantic"] == declared < best
    assert cost[["real", "class"]].isna().all()


# ---------------------------------------------------------------- the baselines' stage


def test_a_cluster_is_sent_the_canary_alone_and_after_what_it_reads(run, monkeypatch):
    far, order = artifacts.open_run("smoke", {**OVERRIDES, "engine.mode": "cluster"}), []
    alone = ["frozen", "texture", "scores", "no_pixels", "spread"]
    for name in alone:
        monkeypatch.setattr(frozen_classifier_units, f"make_{name}", lambda run, name=name: order.append(name))

    def sent(kinds, *_):
        raise InterruptedError(*kinds)

    monkeypatch.setattr(engine, "map_kinds", sent)
    with pytest.raises(InterruptedError) as kinds:
        sweep.build_baselines(far)
    assert order == alone
    assert [name.split()[0] for name in kinds.value.args] == ["frozen", "texture", "scores", "no", "spread", "canary"]


def test_baselines_are_made_once_resumably_and_claimed(run, monkeypatch):
    features = features_of(ToyData.images, 1.0)
    crops = np.random.default_rng(0).integers(1, 256, (60, 16, 16)).astype(np.uint8)
    monkeypatch.setattr(ToyData, "crops", crops, raising=False)
    calls = []
    monkeypatch.setattr(frozen_classifier_units, "frozen_features", lambda run, crops: calls.append(1) or features)
    label = ToyData.images.groupby("patient_id")["label"].first()
    known = pd.DataFrame({"crop_side": 300 + 50 * label + label.index % 7})
    monkeypatch.setattr(frozen_classifier_units, "without_pixels", lambda run: known)
    tables = sweep.build_baselines(run)
    assert set(tables["auc"]["baseline"]) == {
        frozen_classifiers.FEATURES_SVM,
        frozen_classifiers.FEATURES_LOGISTIC,
        frozen_classifiers.GLCM_SVM,
        frozen_classifiers.HALVES,
        frozen_classifiers.NO_PIXELS,
    }
    blind = tables["auc"].query("baseline == @frozen_classifiers.NO_PIXELS").set_index("level")["auc"]
    assert blind.to_dict() == {"image": 1.0, "patient": 1.0}, "the crop's side tells the class alone"
    note = sweep.no_pixels_note(run, tables)
    assert note.startswith("Without a pixel, a forest reaches an AUC by patient of 1.00 [0.")
    assert frozen_classifiers.HALVES in note
    assert 'SET="preprocess.region=none"' in note
    blank = tables["auc"].assign(low=np.nan, high=np.nan, auc=0.5)
    assert sweep.no_pixels_note(run, {"auc": blank}).startswith("What is known without a pixel is the same for all")
    assert len(tables["canary"]) == 2 * run.settings.sweep.canary_shuffles
    again = sweep.build_baselines(run)
    assert calls == [1]
    pd.testing.assert_frame_equal(again["auc"], tables["auc"])
    rows = frozen_classifier_units.claims(run, tables)
    (row,) = (row for row in rows if row["key"] == "baselines.folds.no_pixels")
    assert (row["this_run"], row["n"]) == (1.0, 20)
    published = {row["claim"]: row["paper"] for row in rows if row.get("paper")}
    assert published == {
        "frozen features + SVM, one patient left out": 0.977,
        "GLCM texture + SVM, one patient left out": 0.893,
    }
    assert all("simulated" in row["same_protocol"] for row in rows if row.get("paper"))
    assert sum("shuffled diagnoses" in row["claim"] for row in rows) == 4
    assert all(unit.done() for unit in frozen_classifier_units.units(run))
    more = artifacts.open_run("smoke", {**OVERRIDES, "sweep.canary_shuffles": 45})
    assert [len(frozen_classifier_units.canary_seeds(more, i)) for i in range(3)] == [20, 20, 5]


# ---------------------------------------------------------------- figures


@pytest.fixture
def tables(run):
    return built(run, n_seeds=6)


def test_figures_draw_what_they_are_given(run, tables):
    with views.style():
        fig, axes = plt.subplots(2, 4, figsize=(20, 9))
        arms = sweep.at(run, tables["arms"])
        figures.boxes(sweep.at(run, tables["seeds"]), arms, axes[0, 0])
        assert [t.get_text() for t in axes[0, 0].get_xticklabels()] == ["0", "0.5"]
        figures.roc(sweep.at(run, tables["roc"], None), arms, axes[0, 1])
        assert len(axes[0, 1].collections) == 2, "a band a curve"
        compared = sweep.at(run, tables["comparisons"])
        figures.differences(compared.assign(low_seeds=-9.0, high_seeds=9.0), axes[0, 2])
        assert max(np.abs(axes[0, 2].get_xlim())) < 2, "an absurd interval over seeds does not set the scale"
        figures.differences(compared.assign(low_seeds=np.nan, high_seeds=np.nan, note="one seed"), axes[0, 2])
        figures.reliability(sweep.at(run, tables["reliability"], None), axes[0, 3])
        scores = frozen_classifiers.split_scores(learners(features_of(ToyData.images, 1.0)), ToyData.images)
        whole = frozen_classifiers.baseline_table(scores).query("level == 'patient'")
        figures.baseline_bars(whole, sweep.at(run, tables["arms"], "patient"), axes[1, 0])
        assert len(axes[1, 0].get_yticklabels()) == 2 + 3
        spread = pd.DataFrame({"baseline": "b", "split_by": ["patient", "image"] * 3, "seed": 0})
        figures.leak(spread.assign(auc=np.linspace(0.7, 1, 6)), axes[1, 1])
        canary = pd.DataFrame({"auc": [0.4, 0.6], "low": [0.3, 0.55], "high": [0.5, 0.7], "covers": [True, False]})
        figures.canary(canary, axes[1, 2])
        figures.patient_scores(made_up(n_seeds=1).query("arm == 'real'"), ("healthy", "fatty"), axes[1, 3])
        fig.canvas.draw()
        plt.close(fig)


def test_networks_of_some_folds_are_not_passed_off_as_judged_on_all_patients(run):
    scores = frozen_classifiers.split_scores(learners(features_of(ToyData.images, 1.0)), ToyData.images)
    whole = frozen_classifiers.baseline_table(scores).query("level == 'patient'")
    for part, says in (
        (made_up(), "trained network, folds of this run"),
        (made_up().query("fold == 0"), "trained network, 10 of the 20 patients, not those of the baselines"),
    ):
        arms = comparisons.arm_intervals(part, "patient")
        with views.style():
            fig, ax = plt.subplots()
            labels = [text.get_text() for text in figures.baseline_bars(whole, arms, ax).get_legend().get_texts()]
            plt.close(fig)
        assert [label for label in labels if label.startswith("trained network")] == [says]
        assert f"{frozen_classifiers.ONE_OUT} (biased low)" in labels
        assert ax.get_xlabel().endswith("bars are 95 % over patients (of networks, over patients and seeds)")


@pytest.mark.parametrize(("n_seeds", "over"), [(1, "95 % over patients"), (3, "95 % over patients and seeds")])
def test_figures_and_answer_say_seeds_where_there_are_several(run, n_seeds, over):
    found = built(run, n_seeds=n_seeds)
    arms, compared = sweep.at(run, found["arms"]), sweep.at(run, found["comparisons"])
    with views.style():
        fig, axes = plt.subplots(1, 3)
        figures.boxes(sweep.at(run, found["seeds"]), arms, axes[0])
        figures.roc(sweep.at(run, found["roc"], None), arms, axes[1])
        figures.differences(compared, axes[2])
        labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in axes]
        title = axes[1].get_legend().get_title().get_text()
        several = figures.small_multiples(found["variants"])
        assert several.legends[0].get_texts()[-1].get_text() == over
        plt.close(several)
        plt.close(fig)
    assert labels[0][-1] == labels[2][-1] == over
    assert title == f"AUC [{over}]"
    assert ("95 % over training seeds, these patients" in labels[2]) == (n_seeds > 1)
    text = sweep.answer(run, found)
    assert ("20 patients and 3 training seeds)" in text) == ("as that over seeds" in text) == (n_seeds > 1)
    (smallest,) = (row["over"] for row in verdict.claims(run, found) if row["key"] == "sweep.smallest_gain")
    assert ("seeds" in smallest) == (n_seeds > 1)


def test_legends_do_not_call_one_seed_several():
    assert figures.over_words(pd.Series([5, 25])) == "patients and seeds"
    assert figures.over_words(pd.Series([1, 1])) == "patients"
    assert figures.over_words(pd.Series([1, 25])) == "patients, and seeds where there are 3 or more"
    assert figures.over_words(pd.Series([2, 2])) == "patients", "two seeds carry no verdict over seeds"


def test_small_multiples_have_a_panel_a_variant_and_one_scale(run, tables):
    with views.style():
        fig = figures.small_multiples(tables["variants"])
        shown = [ax for ax in fig.axes if ax.get_visible()]
        assert len(shown) == tables["variants"].groupby(["backbone", "variant"]).ngroups == 3
        assert len({ax.get_ylim() for ax in shown}) == 1
        fig.canvas.draw()
        plt.close(fig)


def test_every_arm_has_a_colour_of_its_own():
    names = ["simulated_first", "gan", "filtered", "real", "semantic+class", "semantic"]
    arms = figures.arms_of(pd.DataFrame({"arm": names}))
    assert arms[:2] == ["real", "semantic"]
    assert len(set(figures.arm_colors(arms).values())) == len(arms)
