"""The four answers, the methods and the checklist: what they say of which claims, and what they refuse to say."""

import itertools
import re

import jinja2
import pandas as pd
import pytest

from nafld_utils import artifacts, report, statistics, sweep, views
from nafld_utils.report import answers, facts, reforms, texts

PATIENTS = sweep.comparisons.OVER_GAIN
SWEEP, QUALITY, TURING = "06_classification_sweep", "05_quality_metrics", "08_turing_test"
GAIN = "gain by semantic images, r = 1.5"
POWERS = {"0_02": 0.08, "0_05": 0.31, "0_1": 0.88}


def table(*rows):
    """Claims as `report.claims_table` gives them, from (stage, key, claim, value, low, high, over)."""
    keys = ("stage", "key", "claim", "this_run", "low", "high", "over")
    empty = dict.fromkeys(("stage", *artifacts.CLAIM_COLUMNS), "")
    entries = [empty | dict(zip(keys, map(str, row), strict=True)) for row in rows]
    return pd.DataFrame(entries, columns=list(empty), dtype=str)


def answered(run, claims, key):
    return next(answer for answer in answers.answers(run, claims) if answer.key == key)


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A run on a real cohort that has stored nothing."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("cpu")


@pytest.mark.parametrize(
    ("low", "high", "verdict", "said"),
    [
        (0.01, 0.2, "Yes", "lies above 0"),
        (-0.2, -0.01, "No, it harms", "lies below 0"),
        (-0.1, 0.2, "Not shown", "it shows neither help nor harm, nor that there is none"),
        ("", "", "Cannot be said", "nothing is said about other patients"),
    ],
)
def test_help_follows_the_interval_over_patients(real, low, high, verdict, said):
    seeds = (SWEEP, "sweep.gain.seeds", GAIN, 0.05, 0.04, 0.06, "training seeds (Student t)")
    patients = (SWEEP, "sweep.gain.patients", GAIN, 0.05, low, high, PATIENTS)
    found = answered(real, table(seeds, patients), "help")
    assert found.verdict == verdict
    text = " ".join(found.sentences)
    assert said in text
    assert "[0.04, 0.06]" in text, "the interval over seeds is told, and does not decide"
    assert "0.05 [" in text or "0.05 (no interval)" in text
    assert PATIENTS in text or not low


@pytest.mark.parametrize(
    ("blind", "n", "says", "warns"),
    [
        ((0.77, 0.65, 0.87), 70, "over patients): no less than the network on real images, 0.7 [0.6, 0.8].", True),
        ((0.6, 0.45, 0.74), 70, "over patients); the network on real images, 0.7 [0.6, 0.8].", False),
        ((0.77, 0.65, 0.87), 14, "0.77 [0.65, 0.87] (95 % interval over patients).", True),
        ((0.5, "", ""), 70, "0.5 (no interval); the network on real images, 0.7 [0.6, 0.8].", False),
    ],
)
def test_a_baseline_without_pixels_is_shown_and_shown_winning(real, blind, n, says, warns):
    rows = table(
        (SWEEP, "sweep.gain.patients", GAIN, 0.05, 0.01, 0.2, PATIENTS),
        (SWEEP, "sweep.auc.patient.real", "any words", 0.7, 0.6, 0.8, "patients"),
        (SWEEP, "baselines.folds.no_pixels", "any words", *blind, "patients"),
    ).assign(n=["70", str(n), "70"])
    (text,) = [line for line in answered(real, rows, "help").sentences if line.startswith("Without a pixel")]
    assert says in text
    assert ("how the images were made tells the class" in text) == warns
    assert text.endswith("preprocess.region=none shows the whole image.") == warns
    entry = {item.number: item.entry for item in reforms.checklist(real, rows)}["6c"]
    assert f"a forest reaches an AUC by patient of {blind[0]}" in entry


def test_a_difference_that_no_resample_moves_tells_nothing_of_smaller_ones(real):
    gain = (SWEEP, "sweep.gain.patients", GAIN, 0)
    shown = (SWEEP, "sweep.smallest_gain", "any words", 0.1, "", "", "")
    unmoved = table((*gain, "", "", statistics.NO_SPREAD))
    found = answered(real, unmoved, "help")
    assert found.verdict == "Cannot be said"
    text = " ".join(found.sentences)
    assert "cannot be told" in text
    assert "changed by 0 (no interval: cannot be said, since nothing varies)" in text
    text = " ".join(answered(real, table((*gain, -0.1, 0.1, PATIENTS), shown), "help").sentences)
    assert "would find a true gain of 0.1 (80 % power), and fewer a smaller one." in text
    assert "cannot be told" not in text
    assert "wider interval" not in text
    text = " ".join(answered(real, table((*gain, -0.02, 0.02, PATIENTS), shown), "help").sentences)
    assert "Most of them would have a wider interval: the seeds of this run agree more than" in text


def test_patients_that_a_declared_gain_takes_stand_on_the_front_page(real):
    rows = [
        (SWEEP, "sweep.gain.patients", GAIN, 0.01, -0.1, 0.1, PATIENTS),
        *((SWEEP, f"sweep.power.gain_{gain}", "any words", power, "", "", "") for gain, power in POWERS.items()),
        (SWEEP, "sweep.patients_needed.gain_0_05", "any words", 312, "", "", ""),
        (SWEEP, "sweep.patients_needed.gain_0_1", "any words", 55, "", "", ""),
    ]
    claims = table(*rows).assign(n="55")
    text = " ".join(" ".join(answered(real, claims, "help").sentences).split())
    assert (
        "With 80 % power a gain of 0.02 takes more seeds, however many patients (these cannot show it);"
        " one of 0.05 takes about 312 patients (these show it with about 31 %);"
        " one of 0.1 takes about these patients or fewer (these show it with about 88 %)."
    ) in text


@pytest.mark.parametrize(("n", "few"), [("1", True), ("2", True), ("3", False)])
def test_one_or_two_seeds_are_too_few(real, n, few):
    claims = table(
        (SWEEP, "sweep.gain.seeds", GAIN, 0.05, "", "", "training seeds (Student t)"),
        (SWEEP, "sweep.gain.patients", GAIN, 0.05, 0.01, 0.2, "patients"),
    )
    claims.loc[0, "n"] = n
    found = answered(real, claims, "help")
    assert found.verdict == ("Too few training seeds" if few else "Yes")
    text = " ".join(found.sentences)
    assert ("whether the images help a network that is trained again takes 3 seeds" in text) == few
    assert (f"With {n} training seed{'s' if n != '1' else ''} this is of these trained models alone" in text) == few


def test_networks_are_told_one_by_one_and_the_primary_one_decides(real):
    rows = [
        (SWEEP, f"sweep.gain.patients.{name}", f"{GAIN} [{name}]", 0.05, low, 0.2, PATIENTS)
        for name, low in (("one", 0.01), ("two", -0.1))
    ]
    found = answered(real, table(*rows), "help")
    assert found.verdict == "Yes"
    one, two = found.sentences[0].split("[two]")
    assert "[one]" in one
    assert "lies above 0" in one
    assert "holds 0" in two


def by_patient(real, declared, n=70, **baselines):
    """Claims at the patient level: classifiers with and without synthetic images, and baselines on the same folds."""
    rows = [
        ("sweep.auc.patient.real", "real images alone", real, n),
        ("sweep.auc.patient.declared", "semantic, r = 1.5", declared, n),
        *((f"baselines.folds.{key}", f"{key}, folds of this run", value, 70) for key, value in baselines.items()),
        ("baselines.one_out.never", "never, one patient left out", 0.99, 70),
    ]
    found = table(*[(SWEEP, key, text, value, value - 0.1, value + 0.1, PATIENTS) for key, text, value, _ in rows])
    return found.assign(n=[str(count) for *_, count in rows])


def test_the_first_answer_tells_the_locked_test_on_another_cohort_where_there_is_one(real):
    gain = (SWEEP, "sweep.gain.patients", GAIN, 0.05, 0.01, 0.2, PATIENTS)
    assert "Elsewhere" not in " ".join(answered(real, table(gain), "help").sentences)
    keys = {"auc.real": 0.8, "auc.declared": 0.75, "auc.baseline": 0.7, "gain": -0.05}
    rows = [(SWEEP, f"elsewhere.{key}", key, value, value - 0.1, value + 0.1, "x") for key, value in keys.items()]
    patients = (SWEEP, "elsewhere.patients", "simulated patients of the other cohort", 24, "", "", "")
    claims = table(gain, *rows, patients).assign(n="24")
    text = " ".join(answered(real, claims, "help").sentences)
    assert (
        "Elsewhere, on 24 simulated patients of the other cohort, to which nothing was fitted, the AUC by patient is"
        " 0.8 [0.7, 0.9] with real images alone, 0.75 [0.65, 0.85] with synthetic ones (changed by"
        " -0.05 [-0.15, 0.05]) and 0.7 [0.6, 0.8] for the strongest baseline; intervals are 95 % over these patients."
    ) in text


def test_the_first_answer_names_the_strongest_baseline_on_the_same_folds(real):
    gain = table((SWEEP, "sweep.gain.patients", GAIN, 0.05, 0.01, 0.2, PATIENTS))

    def found(*args, **baselines):
        answer = answered(real, pd.concat([gain, by_patient(*args, **baselines)]), "help")
        return answer.verdict, " ".join(answer.sentences)

    verdict, text = found(0.591, 0.641, frozen=0.871, texture=0.6)
    assert verdict == "Yes, but a simpler classifier without them does better"
    assert (
        "strongest of 2 baselines without fine-tuning, frozen, reaches an AUC by patient of 0.871 [0.771, 0.971]"
        in text
    )
    assert "0.591 [0.491, 0.691] with real images alone and 0.641 [0.541, 0.741] with synthetic ones" in text
    assert "ranks these patients better" in text
    assert "never" not in text, "one left out is another split"
    verdict, text = found(0.591, 0.9, frozen=0.871)
    assert verdict == "Yes"
    assert "0.871" in text
    assert "better" not in text
    verdict, text = found(0.591, 0.641, 14, frozen=0.871)
    assert verdict == "Yes", "fewer patients: not the same folds"
    assert "other numbers of patients (70 and 14), so these numbers must not be compared" in text
    verdict, text = found(0.591, 0.641)
    assert verdict == "Yes"
    assert "baselines" not in text


def test_no_verdict_is_given_of_the_smoke_profile(real):
    smoke = artifacts.open_run("smoke")
    gain = table((SWEEP, "sweep.gain.patients", GAIN, 0.05, 0.01, 0.2, PATIENTS))
    found = answered(smoke, gain, "help")
    assert found.verdict == "No verdict, since the numbers of the smoke profile mean nothing"
    assert answered(smoke, gain, "copies").verdict.endswith("ot answered"), "what was not asked is not answered"
    assert "SMOKE PROFILE: the numbers of smoke mean nothing" in report.pages.simulated(smoke)
    assert "SMOKE" not in report.pages.simulated(real)
    assert views.verdict(real, "so they help") == "so they help"
    assert views.verdict(smoke, "so they help").startswith("No verdict: this is the smoke profile")


def test_frames_that_are_left_out_are_counted(real):
    run = artifacts.open_run("cpu", {"cohort.frames_per_patient": 3, "cohort.leave_out": ["mass"]})
    path = run.root / "cohort" / "provenance.json"
    artifacts.save_json(path, {"kind": "other content", "text": "x", "images": 550, "used": 165})
    assert facts.left_out(run) == [("left out", "385 of 550 images, by cohort.frames_per_patient 3")]
    assert "left out: 385 of 550 images, by cohort.frames_per_patient 3." in dict(texts.methods(run))["Cohort"]
    found = {"kind": "other content", "text": "x", "images": 40, "used": 30, "format": "folder"}
    artifacts.save_json(path, {**found, "of_other_classes": 6})
    assert facts.left_out(run)[1] == ("other classes", "6 images of mass, by cohort.leave_out")
    artifacts.save_json(path, found)
    assert "not counted" in facts.left_out(run)[0][1], "older code counted what it had read"
    page = report.index_html(run)
    assert "Paper beside this run" not in page, "no number of the paper's, no table"
    assert "Numbers of this run" in page
    assert "fatty liver" not in page


def distances(**values):
    return table(
        *[
            (QUALITY, f"patients.frechet.{name}.{part}", "any words", *row, "patients (jackknife)")
            for name, row in values.items()
            for part in ("both.at_8", "label_0.at_8")
        ]
    )


def test_quality_is_judged_against_real_images_of_other_patients(real):
    floor = {"halves_of_real": (100, "", "")}
    assert answered(real, distances(semantic=(300, 250, 350), **floor), "quality").verdict == "No"
    near = answered(real, distances(semantic=(110, 90, 130), **floor), "quality")
    control = answered(real, distances(semantic=(300, 250, 350), simulated=(110, 90, 130), **floor), "quality")
    assert (control.short, len(control.card)) == ("No", 2), "no network has passed"
    assert control.verdict == "No; simulated images alone are not told apart, and no network has learnt those"
    assert near.verdict == "Not told apart"
    assert "does not show that they are the same" in " ".join(near.sentences)
    both = answered(real, distances(semantic=(300, 250, 350), gan=(110, 90, 130), **floor), "quality")
    assert both.verdict.startswith("Not told apart: GAN")
    assert answered(real, distances(semantic=(300, "", ""), **floor), "quality").verdict == "Cannot be said"
    assert answered(real, distances(semantic=(300, 250, 350)), "quality").verdict == "Not answered", "no floor"
    assert near.sentences[0].startswith("Frechet distance (EfficientNet-Lite0) to real patients, at 8 patients")
    assert "not FID" in " ".join(near.sentences)
    kernel = table((QUALITY, "patients.kernel.semantic.both", "any words", 0.5, 0.4, 0.6, "patients (jackknife)"))
    both = answered(real, pd.concat([distances(semantic=(300, 250, 350), **floor), kernel]), "quality")
    assert "Kernel distance" not in " ".join(near.sentences)
    assert "semantic 0.5 [0.4, 0.6]; 95 % intervals over patients (jackknife)." in " ".join(both.sentences)


@pytest.mark.parametrize(
    ("gap", "told"),
    [((612, 500, 700), True), ((-30, -70, 10), True), ((-30, -50, -10), False), ((-30, "", ""), False)],
)
def test_a_gan_that_is_not_trained_enough_is_compared_with_nothing(real, gap, told):
    """By the claim of stage 05: shown to lie below every ceiling of its own, or no number of it beside the models'."""
    drawn = distances(semantic=(300, 250, 350), gan=(110, 90, 130), halves_of_real=(100, "", ""))
    kernel = [
        (QUALITY, f"patients.kernel.{name}.both", "any words", 0.5, 0.4, 0.6, "x") for name in ("semantic", "gan")
    ]
    claim = (QUALITY, "quality.frechet.gan_minus_ceiling", "GAN minus the ceiling", *gap, "folds")
    found = answered(real, pd.concat([drawn, table(*kernel, claim)]), "quality")
    text = " ".join([found.verdict, *found.sentences])
    assert ("not trained enough to compare, so no difference to it is stated" in text) == told
    assert ("The GAN is not trained enough to compare." in found.card) == told
    assert found.verdict == ("No" if told else "Not told apart: GAN; the others are farther or cannot be said")
    assert ("GAN 110" in text, "GAN 0.5" in text, "GAN 110" in found.card[0]) == (not told,) * 3
    assert (f"GAN minus the ceiling: {gap[0]}" in text) == told


def copies(share, low, high, held=(0.04, 0.01, 0.08), planted=1.0, turned=1.0):
    rows = [
        ("copies.found.planted.rotated_copies", "any words", turned, 0.5, 1, "images (binomial)"),
        ("copies.share.semantic", "any words", share, low, high, "images"),
        ("copies.share.held_out", "any words", *held, "patients"),
        ("copies.found.planted.exact_copies", "any words", planted, 0.5, 1, "images (binomial)"),
    ]
    return table(*[(QUALITY, *row) for row in rows])


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        (copies(0, 0, 0), "None was found"),
        (copies(0, 0, 0, planted=0.5), "Cannot be said"),
        (copies(0, 0, 0, turned=0.5), "None was found"),
        (copies(0.02, 0, 0.05), "Some may be"),
        (copies(0.3, 0.2, 0.4), "Yes, some of semantic"),
        (copies(0.3, 0.2, 0.4).iloc[:2], "Not answered"),
    ],
)
def test_copies_are_held_against_the_search_itself(real, claims, verdict):
    found = answered(real, claims, "copies")
    assert found.verdict == verdict
    if verdict != "Not answered":
        assert "not thereby anonymous" in " ".join(found.sentences)


def test_a_change_that_the_audit_does_not_find_is_named(real):
    words = "Beyond it, as it finds fewer than 95 % of them, are rotated copies."
    assert words in " ".join(answered(real, copies(0, 0, 0, turned=0.9), "copies").sentences)
    assert "Beyond it" not in " ".join(answered(real, copies(0, 0, 0), "copies").sentences)


def test_one_flagged_image_is_not_more_than_real_patients_may_reach(real):
    """Above the held-out patients' exact bound, and above what chance may flag; without a bound nothing is above."""
    clear, bound = copies(0.3, 0.2, 0.4), ("", "", "a bound, from 30 training patients")
    for held, chance, verdict in (
        ((0.0, 0.0, 0.09), 0.129, "Yes, some of semantic"),
        ((0.0, 0.0, 0.09), 0.25, "Some may be"),
        ((0.0, 0.0, 0.21), 0.129, "Some may be"),
        ((0.0, "", ""), 0.129, "Some may be"),
    ):
        known = [
            (QUALITY, "copies.found.held_out", "any words", *held, "patients (binomial)"),
            (QUALITY, "copies.by_chance.verdict", "any words", chance, *bound),
        ]
        assert answered(real, pd.concat([clear, table(*known)]), "copies").verdict == verdict
    one = copies(1 / 256, 0.0001, 0.02, held=(0.0, 0.0, 0.09))
    said = " ".join(answered(real, one, "copies").sentences)
    assert "not shown to exceed what the audit may flag among patients no model has seen, 9 %" in said
    assert "over images, and over held-out patients" in said


def test_copies_by_chance_are_said_with_what_they_stand_on(real):
    bound = table(
        (QUALITY, "copies.by_chance.verdict", "any words", 0.129, "", "", "a bound, from 30 training patients")
    )
    found = answered(real, pd.concat([copies(0.3, 0.2, 0.4), bound]), "copies")
    assert "at most 12.9 % by chance; a bound, from 30 training patients." in " ".join(found.sentences)


@pytest.mark.parametrize(
    ("alike", "held", "verdict", "said", "never"),
    [
        (
            2,
            (0.05, 0.01, 0.15),
            "real patients look like one person",
            "2 pairs of patients look like one person",
            "0 pairs",
        ),
        (
            1,
            (0.0, 0.0, 0.06),
            "real patients look like one person",
            "1 pair of patients looks like one",
            "copy audit flags",
        ),
        (
            0,
            (13 / 70, 0.103, 0.297),
            "real patients look like",
            "flags 13 of 70 held-out patients",
            "not been looked for",
        ),
        (
            0,
            (2 / 70, 0.003, 0.1),
            "None was found",
            "0 pairs of 70 patients look like one person",
            "not been looked for",
        ),
    ],
)
def test_patients_that_look_like_one_are_said_wherever_none_could_be(real, alike, held, verdict, said, never):
    claims = pd.concat(
        [
            copies(0, 0, 0),
            table(("01_data_analysis", "cohort.one_person", "pairs", alike, "", "", "")).assign(n="70"),
            table((QUALITY, "copies.found.held_out", "any words", *held, "patients (binomial)")).assign(n="70"),
        ],
        ignore_index=True,
    )
    found = answered(real, claims, "copies")
    (duplicates,) = (item.entry for item in reforms.checklist(real, claims) if item.asks.startswith("Dependencies"))
    assert verdict in found.verdict
    for text in (" ".join(found.sentences), duplicates, " ".join(texts.limits(real, {}, claims))):
        assert said in text
        assert never not in text


def rated(low, high, margin, who="raters"):
    key, over = f"turing.{who.replace(' ', '_')}", f"{who} and images"
    rows = [(TURING, f"{key}.accuracy", "any words", 0.9, 0.8, 1.0, who)]
    if margin:
        rows.append((TURING, f"{key}.d_prime", "any words", 0.1, low, high, over))
        rows.append((TURING, f"{key}.d_prime.margin", "any words", margin, "", "", ""))
    return table(*rows)


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        (rated(0.3, 0.8, 0.75), "Yes"),
        (rated(-0.8, -0.3, 0.75), "They are misled"),
        (rated(-0.1, 0.22, 0.2), "No: d' within 0.25 of 0"),
        (rated(0.01, 0.24, 0.22), "No: d' within 0.25 of 0"),
        (rated(-0.3, 0.7, 0.65), "Not shown"),
        (rated("", "", None), "Cannot be said"),
        (rated(0.6, 0.8, 0.75, "simulated raters"), "Not known, nobody has rated them"),
        (table(), "Not answered"),
    ],
)
def test_people_are_spoken_of_only_where_people_rated(real, claims, verdict):
    assert answered(real, claims, "people").verdict == verdict


def test_simulated_patients_are_named_in_every_verdict(real):
    run = artifacts.open_run("demo")
    assert all(one.verdict.startswith("Simulated patients: ") for one in answers.answers(run, table()))
    assert not any("imulated" in one.verdict for one in answers.answers(real, table()))


@pytest.mark.parametrize("profile", ["smoke", "demo", "cpu", "paper"])
def test_methods_follow_the_settings(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run(profile)
    found = dict(texts.methods(run))
    s = run.settings
    assert f"{s.folds.n_splits} folds by patient, stratified by class, split seed {s.folds.seed}." in found["Folds"]
    assert f"for {s.ldm.steps} steps" in found["Generators"]
    assert f"{s.sampling.n_images} images per model and fold" in found["Sampling"]
    assert f"{s.sweep.n_seeds} training seeds" in found["Classifiers"]
    assert "None" not in " ".join(found.values())
    limits = " ".join(texts.limits(run, {}, table()))
    assert ("patients are simulated" in limits) == (profile in ("smoke", "demo"))
    assert "Not run: 01_data_analysis" in limits


@pytest.mark.parametrize(
    ("subject", "says"),
    [("chest radiographs", "people, their chest radiographs or"), (None, "people, their images or")],
)
def test_limits_of_simulated_patients_name_the_cohorts_subject(subject, says, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    values = {"cohort.source": "file", "cohort.path": str(tmp_path), "cohort.subject": subject}
    run = artifacts.open_run("smoke", values)
    marked = {"kind": "simulated", "format": "folder"}
    artifacts.save_json(run.root / "cohort" / "provenance.json", marked)
    assert run.is_simulated
    assert run.is_foreign
    limits = texts.limits(run, {}, table())
    assert f"nothing here is a finding about {says} scanners" in limits[0]
    assert "liver" not in " ".join(limits)
    ours = texts.limits(artifacts.open_run("demo"), {}, table())
    assert "people, their liver ultrasounds or scanners" in ours[0]


def test_claims_of_before_the_keys_are_said_to_be_old(real):
    old = table((SWEEP, "", GAIN, 0.05, 0.01, 0.2, PATIENTS))
    found = answered(real, old, "help")
    assert found.verdict == "Not answered"
    assert "run it again" in found.sentences[0]
    assert "has recorded no" in answered(real, table(), "help").sentences[0]


def test_a_key_finds_itself_and_what_continues_it(real):
    rows = [(SWEEP, key, key, 1, "", "", "") for key in ("a.b", "a.b.c", "a.bc", "a")]
    assert [claim.key for claim in facts.find(table(*rows, (SWEEP, "a.b.d", "no number", "", "", "", "")), "a.b")] == [
        "a.b",
        "a.b.c",
    ]


def test_a_text_that_names_what_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="nowhere"):
        texts.fill("{{ nowhere }}", {})
    assert texts.fill_all(["{% if no %}a{% endif %}", "b\n  c {{ text }}"], {"no": 0, "text": "{{ s }}"}) == [
        "b c {{ s }}"
    ]


# ---------------------------------------------------------------- REFORMS


@pytest.mark.parametrize("profile", ["demo", "cpu"])
def test_the_checklist_has_its_32_items_in_eight_modules(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run(profile)
    items = reforms.checklist(run, table())
    sizes = {"1": 3, "2": 5, "3": 7, "4": 3, "5": 6, "6": 3, "7": 3, "8": 2}
    assert [item.number for item in items] == [f"{m}{letter}" for m, n in sizes.items() for letter in "abcdefg"[:n]]
    assert {item.by for item in items} == {"run", "both", "authors"}
    assert all(item.entry for item in items if item.by != "authors"), "filled in means that something is said"
    assert [item.number for item in items if item.by == "authors"][:3] == ["1a", "1b", "1c"]
    entries = {item.number: item.entry for item in items}
    assert "semantic diffusion (L1 loss), class diffusion (L2 loss), GAN (relativistic" in entries["5a"]
    for number in ("5d", "7c"):
        assert f"declared beforehand (semantic at {run.settings.sweep.primary_rate:g})." in entries[number]
        assert (
            "one family and Holm-adjusted, are the same with a patient counted once and the gain by class and"
            in (entries[number])
        )
        assert entries[number].rstrip().endswith("DeLong's test among it.")
    page = report.index_html(run)
    assert all(f'id="{item.link}"' in page for item in items if item.link)
    assert sum(len(module["rows"]) for module in reforms.for_page(items)["modules"]) == 32
    assert sum(reforms.for_page(items)["counts"].values()) == 32


@pytest.mark.parametrize(
    ("region", "says"),
    [
        ("largest", "inside its largest connected region; marks outside that region are blacked out, and marks inside"),
        ("box", "inside the box of preprocess.region_box; marks outside it are blacked out, and marks inside it stay"),
        ("none", "the whole image, since preprocess.region is none: letters, scales and marks burned into it stay in"),
    ],
)
def test_the_checklist_says_which_marks_stay_in_the_image(region, says, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    box = {"preprocess.region_box": [0, 0, 20, 20]} if region == "box" else {}
    run = artifacts.open_run("cpu", {"preprocess.region": region, **box})
    entry = {item.number: item.entry for item in reforms.checklist(run, table())}["6c"]
    assert says in entry
    assert ("blacked out" in entry) == (region != "none")
    assert entry.endswith("Whether the image holds traces of how it was acquired is for the authors.")


def filled(run, *claims):
    return {item.number: item.entry for item in reforms.checklist(run, table(*claims))}


ALONE = (SWEEP, "baselines.one_out.svm", "frozen features + SVM, one patient left out", 0.7, "", "", "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Real images alone; traditional augmentation; a GAN, whose images are judged and train no classifier."),
        ({"gan.enabled": False}, "Real images alone; traditional augmentation. Without"),
        ({"gan.enabled": False, "sweep.arms": ["semantic"]}, "Real images alone. Without"),
        ({"sweep.experiments": ["gan"]}, "Real images alone; a GAN. Without"),
        ({"sweep.experiments": ["gan", "fig5a"]}, "Real images alone; traditional augmentation; a GAN. Without"),
    ],
)
def test_baselines_are_those_of_the_run(changes, said, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert filled(artifacts.open_run("cpu", changes), ALONE)["5f"].startswith(said)
    assert filled(artifacts.open_run("cpu", changes))["5f"] == "", "stage 06 has not run"


def test_networks_and_rates_are_those_of_the_experiments(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("paper", {"sweep.experiments": ["fig5b", "r10"]})
    entries, said = filled(run), dict(texts.methods(run))["Classifiers"]
    for name in ("resnet50.tv_in1k", "tf_efficientnet_b0.in1k", "tf_efficientnetv2_s.in1k"):
        assert name in entries["5a"]
        assert name in said
    assert "Rates 1.5, 3, 5, 10 are all shown" in entries["5e"]
    assert "1.5, 3, 5 and 10 times as many images of an arm: semantic and class." in said


def test_folds_and_seeds_are_those_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("cpu")
    entries = filled(run)
    assert entries["5c"] == "5 folds by patient, stratified by class, split seed 0; each patient is held out once."
    assert "paired t over training seeds" in entries["7c"]
    artifacts.save_table(run.root / "cohort" / "given_folds.csv", pd.DataFrame({"patient_id": [1], "fold": [0]}))
    given = "5 folds by patient, as the cohort's own column fold says"
    assert filled(run)["5c"].startswith(given)
    assert dict(texts.methods(run))["Folds"].startswith(f"Cross-validation in {given}.")
    some = filled(artifacts.open_run("cpu", {"ldm.folds": [0, 2], "sweep.n_seeds": 1}))
    assert some["5c"].endswith("folds 0 and 2 are trained, so that their patients alone are judged, once each.")
    assert not any("paired t" in some[number] or "and seeds" in some[number] for number in ("5d", "7b", "7c"))
    one = artifacts.open_run("cpu", {"sweep.arms": ["semantic"]})
    assert "with a patient counted once. All else explores" in filled(one)["7c"], "no other arm is trained"


@pytest.mark.parametrize(
    ("grade", "said"),
    [
        ([1.0, None, 9.0, 9.0, 9.0], "Without fat: 1 of 2 healthy and 0 of 3 fatty patients."),
        ([1.0, 1.0, 9.0, 9.0, 9.0], "Without fat: 0 of 2 healthy and 0 of 3 fatty patients."),
        ([None] * 5, "The cohort has no fat of any patient."),
    ],
)
def test_missing_grades_are_counted_by_class(grade, said, real):
    assert filled(real)["3f"].endswith("Not loaded yet.")
    patients = pd.DataFrame({"patient_id": range(5), "label": [0, 0, 1, 1, 1], "grade": grade})
    artifacts.save_table(real.root / "cohort" / "patients.csv", patients)
    assert filled(real)["3f"] == f"No image and no label: a cohort that lacks one is refused when it is loaded. {said}"


@pytest.mark.slow
def test_a_finished_run_fills_in_what_it_knows(run):
    claims = report.claims_table(run)
    found = {answer.key: answer for answer in answers.answers(run, claims)}
    assert not [key for key, answer in found.items() if "not answered" in answer.verdict.lower()]
    assert re.search(
        r"the image-level AUC changed by -?[\d.e-]+ \[-?[\d.e-]+, -?[\d.e-]+\]", found["help"].sentences[0]
    )
    assert "simulated raters" in found["people"].sentences[0]
    items = {item.number: item for item in reforms.checklist(run, claims)}
    assert "8: 2 healthy, 6 fatty; 24 images" in items["3e"].entry
    assert "frozen features + SVM, one patient left out" in items["5f"].entry
    assert "split by image" in items["6b"].entry
    bounded = sum(bool(low and high) for low, high in zip(claims["low"], claims["high"], strict=True))
    assert items["7b"].entry.startswith(f"{bounded} of {len(claims)} claims")
    page = report.index_html(run)
    headings = [int(level) for level in re.findall(r"<h([1-4])", page)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
