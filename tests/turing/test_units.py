"""The Turing test: the set that raters see, their answers, and the paper's Table 1."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from nafld_utils import artifacts, params, preprocessing, turing, views
from nafld_utils.quality import copy_units
from nafld_utils.report import facts
from nafld_utils.sampling import set_units
from nafld_utils.turing import figures, intervals, rater_model, results_files, sitting, table_1, verdict

NAMES = sitting.NUMBERS


def settings(*numbers, seed=0):
    """The paper's numbers, or others in the order of `NAMES`."""
    chosen = dict(zip(NAMES, numbers or table_1.PAPER_SIZES, strict=True))
    return params.load("paper").turing.model_copy(update={**chosen, "seed": seed})


def real_table(n_healthy=17, n_unhealthy=38, frames=10):
    patient = np.repeat(np.arange(1, n_healthy + n_unhealthy + 1), frames)
    names = [f"p{p:03d}_f{i % frames:02d}" for i, p in enumerate(patient)]
    label = (patient > n_healthy).astype(int)
    return pd.DataFrame({"image_id": names, "patient_id": patient, "label": label, "fold": patient % 5})


def synthetic_table(model, n=400):
    rng = np.random.default_rng(len(model))
    source = rng.integers(1, 56, n) if model == "semantic" else np.full(n, -1)
    label = (source > 17).astype(int) if model == "semantic" else np.arange(n) % 2
    table = pd.DataFrame({"label": label, "source_patient": source, "fold": np.arange(n) % 5, "row": np.arange(n)})
    return table.assign(synthetic_id=[f"{model}_{i:05d}" for i in range(n)])


def both_models(n=400):
    return {model: synthetic_table(model, n) for model in ("semantic", "class")}


def drawn(seed=0, of=None):
    """A set in its order; image i shows noise of its own."""
    items = sitting.draw_set(real_table(), both_models(), of or settings(seed=seed))
    images = np.random.default_rng(seed + 100).integers(0, 256, (len(items), 8, 8), dtype=np.uint8)
    return sitting.put_in_order(items, images, seed)[0]


@pytest.fixture(scope="module")
def items():
    return drawn()


# ---------------------------------------------------------------- the set


def test_set_has_the_papers_numbers(items):
    counts = items.groupby(["kind", "label"]).size().to_dict()
    assert counts == {
        ("real", 1): 13,
        ("real", 0): 7,
        ("semantic", 1): 9,
        ("semantic", 0): 6,
        ("class", 1): 9,
        ("class", 0): 6,
    }
    assert items["order"].tolist() == list(range(1, 51))
    assert (items["is_real"] == (items["kind"] == "real")).all()


def test_set_keeps_the_labels_and_rows_of_its_sources(items):
    real, synthetic = real_table(), both_models()
    for item in items.itertuples():
        source = (real if item.kind == "real" else synthetic[item.kind]).iloc[item.row]
        name = source["image_id"] if item.kind == "real" else source["synthetic_id"]
        assert (item.source_id, item.label, item.fold) == (name, source["label"], source["fold"])


def test_no_patient_is_shown_twice_where_there_are_enough(items):
    assert items["patient_id"].dropna().is_unique
    assert items.loc[items["kind"] == "class", "patient_id"].isna().all()


def test_patients_repeat_only_after_every_one_was_shown():
    few = sitting.draw_set(real_table(4, 5, frames=3), both_models(), settings())
    per_patient = few[few["kind"] == "real"].groupby(["label", "patient_id"]).size()
    assert sorted(per_patient[0]) == [1, 2, 2, 2]  # 7 images of 4 patients
    assert sorted(per_patient[1]) == [2, 2, 3, 3, 3]  # 13 images of 5 patients
    assert few["source_id"].is_unique


def test_draw_and_order_are_fixed_by_the_seed(items):
    pd.testing.assert_frame_equal(items, drawn())
    assert drawn(seed=1)["source_id"].tolist() != items["source_id"].tolist()


def test_ids_and_order_do_not_tell_what_an_image_is(items):
    assert items["image_id"].str.fullmatch("t[0-9a-f]{8}").all()
    assert items["image_id"].is_unique
    assert items["kind"].nunique() == 3
    assert items["kind"].ne(items["kind"].shift()).sum() > 20  # mixed, not in blocks
    # over many seeds a real image stands in the middle of the order, and its name in the middle of the names
    sets = [drawn(seed) for seed in range(30)]
    assert np.mean([d.loc[d["is_real"] == 1, "order"].mean() for d in sets]) == pytest.approx(25.5, abs=2)
    assert np.mean([d["image_id"].rank()[d["is_real"] == 1].mean() for d in sets]) == pytest.approx(25.5, abs=2)


def test_order_and_names_are_functions_of_the_pixels_alone():
    # so that nobody, knowing seed and code, can undo them: the key could be the other way round
    key = sitting.draw_set(real_table(), both_models(), settings())
    images = np.random.default_rng(3).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    one, pixels = sitting.put_in_order(key, images, 0)
    other, again = sitting.put_in_order(key.iloc[::-1], images[::-1], 0)
    assert one["image_id"].tolist() == other["image_id"].tolist()
    np.testing.assert_array_equal(pixels, again)
    assert one["source_id"].tolist() == other["source_id"].tolist()
    assert sitting.put_in_order(key, images, 1)[0]["image_id"].tolist() != one["image_id"].tolist()


def test_equal_images_keep_names_of_their_own():
    key = sitting.draw_set(real_table(), both_models(), settings())
    assert sitting.put_in_order(key, np.zeros((50, 4, 4), np.uint8), 0)[0]["image_id"].is_unique


def test_odd_numbers_are_divided_so_that_models_stay_equal():
    odd = sitting.draw_set(real_table(), both_models(), settings(1, 1, 5, 3))
    assert odd[odd["kind"] != "real"]["kind"].value_counts().to_dict() == {"semantic": 4, "class": 4}
    alone = sitting.draw_set(real_table(), {"class": synthetic_table("class")}, settings(1, 1, 5, 3))
    assert (alone["kind"] == "class").sum() == 8


def kinds(items):
    """Images of the set in the order of `NAMES`."""
    found = items.groupby(["is_real", "label"]).size()
    return tuple(found.get(cell, 0) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))


@pytest.mark.parametrize(
    ("real", "n_synthetic", "expected"),
    [
        (real_table(), 400, (13, 7, 18, 12)),
        (real_table(6, 6, 1), 400, (6, 6, 8, 10)),  # 18 x 6/13 and 12 x 6/7, whole ones
        (real_table(17, 1, 10), 400, (10, 7, 13, 12)),
        (real_table(1, 1, 1), 400, (1, 1, 1, 1)),
        (real_table(), 16, (12, 7, 17, 12)),  # of label 1 the class model has 8, so 9 and 8
    ],
)
def test_a_small_source_lowers_both_kinds_of_its_class_in_proportion(real, n_synthetic, expected):
    synthetic = {"semantic": synthetic_table("semantic"), "class": synthetic_table("class", n_synthetic)}
    items = sitting.draw_set(real, synthetic, settings())
    assert kinds(items) == expected
    assert tuple(sitting.numbers(real, synthetic, settings()).values()) == expected
    assert items["source_id"].is_unique


def test_shares_that_fit_are_not_lowered():
    short = {"semantic": synthetic_table("semantic"), "class": synthetic_table("class", 4)}
    items = sitting.draw_set(real_table(), short, settings(3, 1, 5, 1))
    assert kinds(items) == (3, 1, 5, 1), "of label 1 the models give 3 and 2"


@pytest.mark.parametrize(
    ("real", "synthetic", "says"),
    [
        (real_table(3, 0), both_models(), "^the cohort: expected an image of each class .* none of ill; use a larger"),
        (
            real_table(),
            both_models() | {"class": synthetic_table("class").query("label == 1")},
            "^the class model's synthetic sets: expected an image .* none of well; raise sampling.n_images",
        ),
    ],
)
def test_a_source_without_a_class_is_named(real, synthetic, says):
    with pytest.raises(ValueError, match=says):
        sitting.draw_set(real, synthetic, settings(), ("well", "ill"))


# ---------------------------------------------------------------- Table 1


def test_summary_by_eye():
    # Two raters, one image in each cell: the first recognises everything, the second only the healthy ones.
    ratings = table_1.from_counts([[1, 1, 1, 1], [0, 1, 0, 1]], [1, 1, 1, 1])
    table = turing.summarize(ratings).set_index(["group", "metric"])
    assert table["mean"].xs("accuracy", level="metric").to_dict() == {"unhealthy": 0.5, "healthy": 1.0, "both": 0.75}
    half = 12.706204736 * 0.5  # t of one degree of freedom times the standard error
    assert table.loc[("unhealthy", "sensitivity"), ["low", "high"]].tolist() == pytest.approx([0.5 - half, 0.5 + half])
    assert table.loc[("healthy", "accuracy"), "note"] == "all raters alike: no interval, nothing can be said"


def test_sensitivity_is_of_real_and_specificity_of_synthetic_images():
    ratings = table_1.from_counts([[3, 2, 0, 0], [3, 2, 0, 0]], [3, 2, 4, 5])  # "real" to everything
    table = turing.summarize(ratings).set_index(["metric", "group"])["mean"]
    assert ratings["said_real"].eq(1).all()
    assert table["sensitivity"].eq(1).all()
    assert table["specificity"].eq(0).all()
    assert table["accuracy", "both"] == pytest.approx(5 / 14)


def test_summary_reproduces_the_papers_table_1():
    mine, paper = turing.summarize(turing.paper_ratings()), turing.paper_summary()
    assert mine[["group", "metric", "n_raters"]].equals(paper[["group", "metric", "n_raters"]])
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(mine[column], paper[column], atol=0.00051)
    pd.testing.assert_frame_equal(turing.as_table_1(mine), turing.as_table_1(paper))
    assert turing.as_table_1(mine).loc["healthy", "sensitivity"] == "0.629 [0.240, 1.017]"


def test_no_other_answers_of_five_raters_give_the_papers_table_1():
    t = scipy_stats.t.ppf(0.975, 4)

    def rounds_to(counts, size, printed):
        rates = np.asarray(counts) / size
        half = t * rates.std(ddof=1, axis=-1) / np.sqrt(5)
        numbers = np.stack([rates.mean(axis=-1), rates.mean(axis=-1) - half, rates.mean(axis=-1) + half], axis=-1)
        return (np.abs(numbers - printed) <= 0.00051).all(axis=-1)

    def ways(size, printed):
        every = np.array(list(itertools.combinations_with_replacement(range(size + 1), 5)))
        return every[rounds_to(every, size, printed)]

    def joined(first, second, size, printed):
        orders = np.array(list(itertools.permutations(range(5))))
        pairs = {
            (tuple(a), tuple(b[order]))
            for a in first
            for b in second
            for order in orders
            if rounds_to(a + b[order], size, printed)
        }
        return [np.array(pair) for pair in sorted(pairs)]

    (_, sens_u, spec_u), (_, sens_h, spec_h), (acc, sens, spec) = table_1.PAPER_TABLE.values()
    acc_u, acc_h = table_1.PAPER_TABLE["unhealthy"][0], table_1.PAPER_TABLE["healthy"][0]
    n_ru, n_rh, n_su, n_sh = table_1.PAPER_SIZES
    real = joined(ways(n_ru, sens_u), ways(n_rh, sens_h), n_ru + n_rh, sens)
    fake = joined(ways(n_su, spec_u), ways(n_sh, spec_h), n_su + n_sh, spec)
    orders = np.array(list(itertools.permutations(range(5))))
    found = set()
    for (ru, rh), (su, sh) in itertools.product(real, fake):
        fits = rounds_to(ru + su[orders], n_ru + n_su, acc_u) & rounds_to(rh + sh[orders], n_rh + n_sh, acc_h)
        fits &= rounds_to(ru + rh + su[orders] + sh[orders], 50, acc)
        found |= {tuple(sorted(map(tuple, np.stack([ru, rh, su[o], sh[o]], axis=1).tolist()))) for o in orders[fits]}
    assert found == {tuple(sorted(table_1.PAPER_COUNTS))}


@pytest.mark.parametrize("seed", range(3))
def test_intervals_equal_scipy_for_any_counts(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 4)
    counts = rng.integers(0, sizes + 1, size=(int(rng.integers(2, 9)), 4))
    table = turing.summarize(table_1.from_counts(counts, sizes)).set_index(["group", "metric"])
    rates = {
        ("both", "accuracy"): counts.sum(1) / sizes.sum(),
        ("unhealthy", "accuracy"): counts[:, [0, 2]].sum(1) / sizes[[0, 2]].sum(),
        ("healthy", "specificity"): counts[:, 3] / sizes[3],
        ("both", "sensitivity"): counts[:, :2].sum(1) / sizes[:2].sum(),
    }
    for key, rate in rates.items():
        assert table.loc[key, "mean"] == pytest.approx(rate.mean(), abs=1e-12)
        if np.ptp(rate):
            expected = scipy_stats.t.interval(0.95, len(rate) - 1, rate.mean(), scipy_stats.sem(rate))
            np.testing.assert_allclose(table.loc[key, ["low", "high"]].astype(float), expected, rtol=0, atol=1e-12)


def test_unbalanced_raters_count_once_each():
    long = table_1.from_counts([[4, 4, 4, 4]], [4, 4, 4, 4], ["a"])
    short = table_1.from_counts([[0, 0, 0, 0]], [1, 1, 1, 1], ["b"])
    table = turing.summarize(pd.concat([long, short]))
    assert table["mean"].eq(0.5).all()


def test_one_rater_has_means_and_says_why_there_is_no_interval():
    table = turing.summarize(table_1.from_counts([[1, 1, 1, 1]], [2, 2, 2, 2]))
    assert table["mean"].eq(0.5).all()
    assert table["low"].isna().all()
    assert table["note"].eq("one rater: no interval over raters").all()
    assert turing.as_table_1(table).loc["both", "accuracy"] == "0.500 [one rater]"


def test_perfect_raters_are_finite():
    ratings = table_1.from_counts([[13, 7, 18, 12]] * 3, table_1.PAPER_SIZES)
    table = turing.summarize(ratings)
    assert table["mean"].eq(1).all()
    assert table[["low", "high"]].isna().all(axis=None), "no spread is not certainty"
    assert np.isfinite(turing.per_rater(ratings)[["d_prime", "criterion", "p"]]).all(axis=None)
    assert intervals.agreement(ratings) == pytest.approx(1)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t[~((t["label"] == 0) & (t["is_real"] == 1))], "found no real healthy one"),
        (lambda t: t[t["is_real"] == 1], "found no synthetic unhealthy one"),
        (lambda t: t[t["label"] == 1], "found no healthy one"),
        (lambda t: t[(t["rater"] != "rater 2") | (t["is_real"] == 0)], "ratings of 'rater 2'"),
        (lambda t: t.assign(said_real=0.5), "0 or 1 in said_real, found 0.5"),
        (lambda t: t.assign(said_real=np.nan), "0 or 1 in said_real"),
        (lambda t: t.assign(rater=None), "a rater and an image in every row"),
        (lambda t: pd.concat([t, t.iloc[[3]]]), "found a second for 'real unhealthy 04'"),
        (lambda t: t.drop(columns="label"), "found no label"),
        (lambda t: t.iloc[:0], "found no row"),
    ],
)
def test_ratings_that_cannot_be_summarized_are_refused(spoil, says):
    with pytest.raises(ValueError, match=says) as caught:
        turing.summarize(spoil(turing.paper_ratings()))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- raters and images


def test_discrimination_is_free_of_the_inclination_to_say_synthetic():
    always = table_1.from_counts([[0, 0, 18, 12]], table_1.PAPER_SIZES)  # "synthetic" to all 50
    row = turing.per_rater(always).iloc[0]
    assert row.accuracy == 0.6
    assert row.said_real == 0
    assert row.d_prime == pytest.approx(0, abs=0.25)  # not exactly 0: the correction depends on the number of images
    assert row.criterion > 1.5
    expected = scipy_stats.binomtest(30, 50).proportion_ci(0.95, "exact")
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))


def test_per_image_counts_raters():
    ratings = table_1.from_counts([[1, 0, 1, 1], [1, 0, 0, 1]], [1, 1, 1, 1])
    right = table_1.per_image(ratings).set_index("image_id")["right"].to_dict()
    assert right == {
        "real unhealthy 01": 1.0,
        "real healthy 01": 0.0,
        "synthetic unhealthy 01": 0.5,
        "synthetic healthy 01": 1.0,
    }


def test_simulated_raters_guess_by_default_and_say_that_they_are_simulated(items):
    guesses = sitting.simulate_raters(items, 200, seed=1)
    assert guesses["simulated"].all()
    assert guesses["rater"].str.startswith("simulated").all()
    truth = guesses["image_id"].map(items.set_index("image_id")["is_real"])
    told = guesses.groupby(truth.to_numpy())["said_real"].mean()
    assert told[1] - told[0] == pytest.approx(0, abs=0.15)
    sharp = sitting.simulate_raters(items, 20, seed=1, d_prime=4.0)
    assert (sharp["said_real"].to_numpy() == truth[: len(sharp)].to_numpy()).mean() > 0.9


def written(tmp_path, table, name="ratings.csv"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    table.drop(columns="simulated", errors="ignore").to_csv(path, index=False)
    return path


# ---------------------------------------------------------------- the stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """The stage on a made-up upstream: image content names its source, so that mixed-up pixels are seen."""
    from nafld_utils.turing import units

    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    real = real_table(4, 5, frames=3)
    pool = np.broadcast_to(np.arange(len(real), dtype=np.uint8)[:, None, None, None], (len(real), 2, 8, 8))
    upstream = SimpleNamespace(images=real, pool=pool)

    def open_synthetic(run, conditioning, fold):
        table = synthetic_table(conditioning, 40).assign(fold=fold).drop(columns="row")
        base = 100 + 50 * (conditioning == "class") + 10 * fold
        return SimpleNamespace(table=table, images=np.full((40, 8, 8), base, dtype=np.uint8))

    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda run: upstream)
    monkeypatch.setattr(preprocessing.unit, "preprocess_unit", lambda run: "preprocess")
    monkeypatch.setattr(set_units, "open_synthetic", open_synthetic)
    monkeypatch.setattr(set_units, "synthetic_unit", lambda run, *key: "-".join(map(str, key)))
    monkeypatch.setattr(copy_units, "audit_unit", lambda run, *key: "-".join(["audit", *map(str, key)]))
    monkeypatch.setattr(copy_units, "withheld", lambda *_: np.zeros(40, dtype=bool))
    return units


def test_withheld_images_are_not_shown_to_raters(stage, monkeypatch):
    run = artifacts.open_run("smoke")
    monkeypatch.setattr(copy_units, "withheld", lambda run, model, fold: np.arange(40) % 4 < (3 if fold else 2))
    shown = stage.make_set(run)
    made = shown.items[shown.items["is_real"] == 0]
    assert len(made) == 10
    assert (made["row"] % 4 >= np.where(made["fold"] > 0, 3, 2)).all(), "3 in 4 or 2 in 4 are copies"
    assert stage.shortfall(run, shown) == (
        "Shown as asked for: 18 images. 100 of 160 synthetic images are withheld as copies of patients and not shown."
    )


def test_stage_shows_every_item_with_its_own_pixels(stage):
    run = artifacts.open_run("smoke")
    shown = stage.make_set(run)
    assert shown.images.dtype == np.uint8
    assert len(shown.images) == len(shown.items) == 18
    assert shown.items["image_id"].is_unique
    for image, item in zip(shown.images, shown.items.itertuples(), strict=True):
        value = item.row if item.kind == "real" else 100 + 50 * (item.kind == "class") + 10 * item.fold
        assert (image == value).all()
        assert (item.crop >= 0) == (item.kind == "real")
    again = stage.make_set(run)
    pd.testing.assert_frame_equal(again.items, shown.items)


@pytest.mark.parametrize(("patients", "sizes"), [(12, (6, 6, 8, 10)), (2, (1, 1, 1, 1))])
def test_a_small_cohort_on_demos_counts_is_shown_and_says_so(stage, monkeypatch, patients, sizes):
    real = real_table(patients // 2, patients // 2, frames=1)
    pool = np.broadcast_to(np.arange(patients, dtype=np.uint8)[:, None, None, None], (patients, 2, 8, 8))
    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda run: SimpleNamespace(images=real, pool=pool))
    run = artifacts.open_run("demo", {"cohort.class_names": ["clear", "effusion"]})
    done, shown = stage.analyse(run), stage.make_set(run)
    table = stage.numbers(run, shown)
    assert table["asked"].tolist() == list(table_1.PAPER_SIZES)
    assert tuple(table["shown"]) == kinds(shown.items) == sizes
    said = stage.shortfall(run, shown)
    assert f"FEWER IMAGES than asked for: {sizes[0]} of 13 (real, effusion), {sizes[1]} of 7 (real, clear)" in said
    assert "healthy" not in said
    assert f"{sum(sizes)} images, not 50" in verdict.protocol(run, done)
    assert done["summary"]["mean"].notna().all()
    assert facts.turing_images(run) == (sum(sizes[:2]), sum(sizes[2:]))
    assert turing.answer(run, done)


def test_a_set_as_asked_for_says_so(stage):
    run = artifacts.open_run("smoke")
    assert facts.turing_images(run) == (8, 10), "as asked for, before there is a set"
    assert stage.shortfall(run, stage.make_set(run)) == "Shown as asked for: 18 images."


def test_stage_says_simulated_on_every_table_and_compares_nothing(stage):
    run = artifacts.open_run("smoke")
    done = stage.analyse(run)
    assert done.simulated
    assert done.source == "5 simulated raters"
    assert len(done.tables) == 14
    assert all(table["simulated"].all() for table in done.tables.values())
    assert "SIMULATED" in turing.answer(run, done)
    claims = verdict.claims(run, done)
    assert [row["paper"] for row in claims][:3] == [0.512, 0.590, 0.460]
    assert all(row["same_protocol"].startswith("simulated raters: not to be compared; ") for row in claims)
    run.record_claims("08_turing_test", claims)


def test_no_table_has_a_number_missing_without_a_word(stage):
    done = stage.analyse(artifacts.open_run("smoke"))
    for name, table in done.tables.items():
        numbers = table.select_dtypes("number").drop(columns=["confidence", "seconds", "minutes"], errors="ignore")
        missing = table[numbers.isna().any(axis=1)]
        words = missing["note"] if "note" in missing else missing.get("over", pd.Series("", missing.index))
        assert words.astype(str).str.len().gt(0).all(), name


def test_stage_reads_real_ratings_and_notices_when_they_change(stage, tmp_path):
    items = stage.make_set(artifacts.open_run("smoke")).items
    answers = sitting.simulate_raters(items, 3, seed=0)
    run = artifacts.open_run("smoke", ["turing.ratings=returned"])
    for name, own in answers.groupby("rater"):
        written(tmp_path, own.astype({"confidence": int}), f"returned/{name}.csv")
    (tmp_path / "returned" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "returned" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "returned" / "torn.json").write_text('{"schema": "nafld-turing-results", "rater": "<b>x</b>", "ver')
    first = stage.analyse(run)
    assert not first.simulated
    assert not any(table["simulated"].any() for table in first.tables.values())
    assert first.source == "3 raters"
    assert "simulated raters" not in verdict.protocol(run, first)
    report = first["files"].set_index("file")
    assert report["status"].tolist() == 3 * ["counted"] + ["refused"]
    assert "truncated" in report.loc["torn.json", "note"]
    page = stage.titled(run, first, first["files"], "files")._repr_html_()
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x" not in page
    for name, own in answers.groupby("rater"):
        flipped = own.assign(said_real=1 - own["said_real"])
        written(tmp_path, flipped.astype({"confidence": int}), f"returned/{name}.csv")
    second = stage.analyse(run)
    assert second.unit.hash != first.unit.hash
    np.testing.assert_allclose(second["summary"]["mean"], 1 - first["summary"]["mean"])


def test_an_empty_folder_means_simulated_raters_and_a_bad_file_never_does(stage, tmp_path):
    (tmp_path / "returned").mkdir()
    run = artifacts.open_run("smoke", ["turing.ratings=returned"])
    assert stage.analyse(run).simulated
    (tmp_path / "returned" / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: expected JSON"):
        stage.analyse(run)


def test_stage_refuses_missing_ratings_and_leaves_nothing(stage, tmp_path):
    run = artifacts.open_run("smoke", ["turing.ratings=nowhere"])
    with pytest.raises(ValueError, match="nowhere: expected a folder of results files, or one, found nothing"):
        stage.analyse(run)
    assert not (run.root / "turing" / "analysis").exists()


def test_an_edited_file_in_the_folder_makes_the_stage_stale(stage, tmp_path):
    from nafld_utils.pipeline import staleness

    path = written(tmp_path, pd.DataFrame({"rater": ["a"]}), "returned/a.csv")
    run = artifacts.open_run("smoke", ["turing.ratings=returned"])
    before = staleness.stamp_content(run, "08_turing_test")
    path.write_text("rater\nabc\n")
    assert staleness.stamp_content(run, "08_turing_test") != before


def test_stage_writes_the_page_apart_from_the_key_and_anew_when_it_must(stage):
    run = artifacts.open_run("smoke")
    shown = stage.make_set(run)
    page = stage.make_page(run, shown)
    assert page.path != shown.unit.path
    assert stage.page_separation(shown, page).set_index("cue").loc["bytes of the embedded picture", "auc"] == 0.5
    named = artifacts.open_run("smoke", ["turing.contact='Dr <b>'"])
    other = stage.page_unit(named, shown.unit)
    assert other.hash != page.hash
    assert "Dr &lt;b&gt;" in stage.make_page(named, shown).file(stage.PAGE).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"turing.language: expected one of en, found 'xx'"):
        stage.make_page(artifacts.open_run("smoke", ["turing.language=xx"]), shown)


# ---------------------------------------------------------------- figures


def test_figures_draw_what_they_are_given(items):
    import matplotlib.pyplot as plt

    from nafld_utils import turing

    answers = sitting.simulate_raters(items, 5, seed=0).replace("simulated 1", "$x_")
    ratings = results_files.attach_key(answers, items)
    images = np.random.default_rng(0).integers(0, 255, (50, 16, 16), dtype=np.uint8)
    with views.style():
        fig, axes = plt.subplots(2, 4, figsize=(16, 8))
        axes = axes.ravel()
        assert len(figures.contact_sheet(images, items, axes[0], reveal=True).texts) == 50
        summaries = {"a": turing.summarize(ratings), "b": turing.paper_summary()}
        assert len(figures.rates(summaries, axes[1]).get_yticklabels()) == 9
        assert len(figures.recognised(table_1.per_image(ratings), axes[2]).get_yticklabels()) == 6
        texts = turing.load_texts("en")
        shown = [text.get_text() for text in figures.preview(images[0], texts, 50, (50, 100), axes[3]).texts]
        assert {"Image 1 of 50", "Real  [R]", texts["next"]} <= set(shown)
        ax = figures.fooled(ratings, axes[4])
        cells = ax.get_images()[0].get_array()
        wrong = (ratings["said_real"] != ratings["is_real"]).sum()
        assert (cells.min(axis=2) < 1).sum() == wrong
        assert ax.get_yticklabels()[0].get_text() == r"\$x_"
        assert len(figures.calibrated(intervals.calibration(ratings), axes[5]).texts) == 6
        assert (
            "nobody"
            in figures.calibrated(intervals.calibration(ratings.drop(columns="confidence")), axes[6])
            .texts[0]
            .get_text()
        )
        assert len(figures.planned(rater_model.plans(rater_model.panel_of(ratings)), axes[7]).get_lines()) == 3
        figures.mark(fig, SimpleNamespace(is_simulated=False), True)
        assert "simulated raters" in [text.get_text() for text in fig.texts]
        fig.canvas.draw()
        plt.close(fig)
