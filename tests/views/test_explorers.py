"""Explorers without a browser: what a control changes, what they say, and that a headless run holds none of them."""

import html
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from toy_scores import made_up

from nafld_utils import cohort, engine, explain, images, params, preprocessing, quality, sweep
from nafld_utils.cohort import explorer
from nafld_utils.sweep import comparisons
from nafld_utils.views import widgets

RUN = SimpleNamespace(settings=params.load("smoke"), is_simulated=True, is_foreign=False)
MARK = "simulated cohort: "


def controls(widget):
    """Controls of an explorer by the name before them, and its texts and pictures from the top."""
    import ipywidgets as widgets

    found, shown, rest = {}, [], [widget]
    while rest:
        item = rest.pop(0)
        if isinstance(item, widgets.HTML):
            shown.append(item)
        elif hasattr(item, "children"):
            rest = [*item.children, *rest]
        else:
            found[item.description] = item
    return found, shown


def assert_picture(shown):
    """The value is one picture with an alternative text, and nothing beside it."""
    found = re.fullmatch(r'<img alt="([^"]+)" src="data:image/png;base64,[A-Za-z0-9+/=]+" style="[^"]*">', shown.value)
    assert found, shown.value[:200]
    return html.unescape(found[1])


# ---------------------------------------------------------------- notebooks 01 and 02


@pytest.fixture(scope="module")
def patients():
    """Two patients of three and two frames."""
    found = cohort.simulate(2, 3, n_frames=3)
    keep = np.arange(5)
    return SimpleNamespace(images=found.images.iloc[keep], pixels=found.pixels[keep])


def test_every_frame_of_every_patient_can_be_shown(patients):
    found, (words, picture) = controls(explorer.frames(RUN, patients))
    ids, shown = list(dict.fromkeys(patients.images["patient_id"])), set()
    for patient, n in zip(ids, (3, 2), strict=True):
        found["patient"].value = patient
        assert found["frame"].max == n - 1
        for frame in range(n):
            found["frame"].value = frame
            image = patients.images[patients.images["patient_id"] == patient].iloc[frame]
            assert image["image_id"] in words.value
            assert image["image_id"] in assert_picture(picture)
            shown.add(picture.value)
    assert len(shown) == 5
    found["patient"].value = ids[0]
    found["frame"].value = 2
    found["patient"].value = ids[1]
    assert found["frame"].value == 1, "the slider follows a patient with fewer frames"


def test_a_crop_its_map_and_its_warp_follow_their_sliders(patients):
    settings = RUN.settings.preprocess
    regions = [images.region_mask(frame, settings.threshold, settings.closing_radius) for frame in patients.pixels]
    corners = np.array([images.crop_corner(region, settings.crop_size) for region in regions])
    facts = {"crop_top": corners[:, 0], "crop_left": corners[:, 1], "kept_share": 0.9}
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (5, 2, 64, 64), dtype=np.uint8)
    crops = rng.integers(0, 256, (5, settings.crop_size, settings.crop_size), dtype=np.uint8)
    facts["crop_side"] = crops.shape[1]
    data = SimpleNamespace(
        images=patients.images.assign(**facts), crops=crops, pool=pool, pool_maps=(pool // 52).astype(np.uint8)
    )
    found, (words, picture) = controls(preprocessing.explorer.crops(RUN, patients, data))
    assert "90%" in words.value
    seen = [picture.value]
    for name, value in {"random crop": 1, "draw of the warp": 5, "frame": 1, "patient": 2}.items():
        found[name].value = value if name != "patient" else list(dict.fromkeys(patients.images["patient_id"]))[1]
        assert_picture(picture)
        assert picture.value not in seen, name
        seen.append(picture.value)


def test_names_from_a_cohort_are_shown_and_never_run(patients):
    evil = "<script>alert(1)</script>"
    named = SimpleNamespace(images=patients.images.assign(image_id=evil), pixels=patients.pixels)
    real = SimpleNamespace(settings=params.load("smoke"), is_simulated=False, is_foreign=False)
    _, (words, picture) = controls(explorer.frames(real, named))
    assert MARK not in words.value
    assert "<script" not in words.value + picture.value
    assert evil in assert_picture(picture)


# ---------------------------------------------------------------- notebook 05


def judged(n=12):
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"generator": ["semantic", "gan"] * (n // 2), "fold": np.arange(n) // 2 % 2, "row": range(n)})
    facts = {"synthetic_id": [f"s{i}" for i in range(n)], "label": np.arange(n) // 4 % 2, "source_patient": -1}
    facts |= {"distance": rng.random(n), "correlation": rng.random(n), "nearest_image": "p1_0", "nearest_patient": 1}
    return table.assign(**facts, is_copy=np.arange(n) == 0, why=["near by pixels"] + [""] * (n - 1))


def shown(rows):
    black = np.zeros((8, 8), np.uint8)
    return [{**item, "image": black + np.uint8(10 * item["row"]), "nearest": black} for item in rows.to_dict("records")]


def test_synthetic_images_by_generator_fold_class_and_score():
    table = judged()
    found, (words, picture) = controls(quality.explorer.images(RUN, table, shown))
    best = table[table["generator"] == "semantic"].nsmallest(1, "distance")["synthetic_id"].item()
    assert words.value.startswith(f"{MARK}1 of 6: {best},")
    assert best in assert_picture(picture)
    first = picture.value
    found["place in this order"].value = 6
    worst = table[table["generator"] == "semantic"].nlargest(1, "distance")["synthetic_id"].item()
    assert f"6 of 6: {worst}," in words.value
    assert picture.value != first
    found["order"].value = list(quality.explorer.ORDERS)[2]
    found["place in this order"].value = 1
    nearest = table[table["generator"] == "semantic"].nlargest(1, "correlation")["synthetic_id"].item()
    assert f": {nearest}," in words.value
    found["generator"].value, found["fold"].value, found["class"].value = "gan", 1, 0
    part = table[(table["generator"] == "gan") & (table["fold"] == 1) & (table["label"] == 0)]
    assert f"1 of {len(part)}: " in words.value
    assert found["place in this order"].max == len(part)


def test_a_copy_is_called_withheld_and_an_empty_choice_says_so():
    table = judged()
    table.loc[table["generator"] == "gan", "label"] = 1
    found, (words, picture) = controls(quality.explorer.images(RUN, table, shown))
    found["order"].value = next(iter(quality.explorer.ORDERS))
    texts = []
    for place in range(1, 7):
        found["place in this order"].value = place
        texts.append(words.value)
    assert sum("withheld: near by pixels" in text for text in texts) == 1
    found["generator"].value, found["class"].value = "gan", 0
    assert "no image" in words.value
    assert picture.value == ""
    assert found["place in this order"].disabled
    found["class"].value = quality.explorer.ALL
    assert not found["place in this order"].disabled
    assert_picture(picture)


# ---------------------------------------------------------------- notebook 06


def tables_of(scores):
    seeds, arms = [], []
    for level in comparisons.LEVELS:
        seeds.append(comparisons.auc_by_seed(scores, level).assign(level=level))
        mean = seeds[-1].groupby(sweep.present(scores), sort=False)["auc"].mean().reset_index(name="mean_auc")
        arms.append(mean.assign(low=0.4, high=0.9, n_seeds=2, level=level))
    return {"seeds": pd.concat(seeds), "arms": pd.concat(arms)}


def test_sweep_shows_what_is_stored_and_never_a_cell_that_is_not():
    scores = pd.concat([made_up(n_seeds=2), made_up("other", {("real", 0.0): 0.0}, 1)], ignore_index=True)
    found, (curve, words, picture) = controls(sweep.explorer.results(RUN, scores, tables_of(scores)))
    assert list(found) == ["network", "AUC by", "arm", "mixing rate", "seed"]
    first, first_curve = picture.value, curve.value
    found["arm"].value = "semantic"
    assert found["mixing rate"].options == (0.5,)
    part = made_up(n_seeds=1).query("arm == 'semantic'")
    assert f"{comparisons.auc_by_seed(part)['auc'].iloc[0]:.3f}" in words.value
    assert_picture(picture)
    assert picture.value != first
    assert curve.value == first_curve, "the curve is of all arms"
    found["AUC by"].value = "patient"
    assert "AUC by patient" in assert_picture(curve)
    assert curve.value != first_curve
    found["network"].value = "other"
    assert (found["arm"].value, found["mixing rate"].value, found["seed"].options) == ("real", 0.0, (0,))
    assert "other" in assert_picture(curve)


# ---------------------------------------------------------------- notebook 07


def explanation(n, seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"name": [f"image{i}" for i in range(n)], "label": np.arange(n) % 2, "origin": "held-out"})
    table = table.assign(outcome=["", *["true positive"] * (n - 1)], log_odds=rng.normal(size=n))
    values = rng.normal(size=(n, 16, 16))
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    return SimpleNamespace(table=table, images=images, attributions=values, smoothed=lambda: values / 2)


def test_maps_of_an_image_by_the_classifiers_that_explained_it():
    everything = {"explained": explanation(4, 1), "untrained network": explanation(2, 2)}
    found, (words, picture) = controls(explain.explorer.maps(RUN, everything))
    assert found["beside it, explained by"].options == ("explained", "untrained network")
    assert "image0: healthy, held-out" in words.value
    seen = [assert_picture(picture) and picture.value]
    for name, value in {
        "beside it, explained by": "untrained network",
        "averaged over neighbours": False,
        "end of the scale, share of the largest value": 0.3,
        "image": "image1",
    }.items():
        found[name].value = value
        assert_picture(picture)
        assert picture.value not in seen, name
        seen.append(picture.value)
    assert found["beside it, explained by"].value == "untrained network", "it is kept where it can be"
    found["image"].value = "image3"
    assert found["beside it, explained by"].options == ("explained",)
    assert "true positive" in words.value


# ---------------------------------------------------------------- reports


def test_a_headless_run_gets_a_line_instead_of_a_widget(patients, monkeypatch):
    monkeypatch.setenv(engine.PROGRESS_FILE, "somewhere")
    for made in (
        explorer.frames(RUN, patients),
        preprocessing.explorer.crops(RUN, patients, None),
        quality.explorer.images(RUN, judged(), shown),
        sweep.explorer.results(RUN, None, {}),
        explain.explorer.maps(RUN, {}),
    ):
        assert made.data == widgets.HEADLESS
