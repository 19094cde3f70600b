"""The generator `simulated`: reads nothing of the cohort, one set for all folds, refused where no liver is shown."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from nafld_utils import artifacts, params, phantom, preprocessing, sampling
from nafld_utils.sampling import set_units, simulated

FEW = {"sampling.n_images": 5, "simulated.share": 0.4}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("smoke", FEW)


def test_one_set_serves_every_fold_and_no_cohort_is_there_to_be_read(run, monkeypatch):
    assert not run.root.exists()
    sampling.make_set(run, "simulated", 0)
    own = [task for task in sampling.tasks(run) if task["conditioning"] == "simulated"]
    assert len(own) == 1
    table = preprocessing_table()
    monkeypatch.setattr(preprocessing.unit, "open_preprocessed", lambda run: table)
    first, second = (sampling.open_set(run, "simulated", fold) for fold in (0, 1))
    assert np.array_equal(first.images, second.images)
    assert (first.table["fold"].unique().tolist(), second.table["fold"].unique().tolist()) == ([0], [1])
    assert first.table["label"].sum() == 2, "two of five, as the share says"
    assert first.images.shape == (5, 64, 64)
    assert len({image.tobytes() for image in first.images}) == 5
    assert all(image.std() > 10 for image in first.images), "a picture"


def preprocessing_table():
    from types import SimpleNamespace

    import pandas as pd

    return SimpleNamespace(images=pd.DataFrame({"patient_id": [1, 2], "fold": [0, 1]}))


def test_an_image_is_a_function_of_its_own_seed(run):
    paint = simulated.painter(run, set_units.SHARED, None)
    both = paint(np.array([1, 0]), [11, 12])
    assert np.array_equal(paint(np.array([0]), [12])[0], both[1])


def test_no_patient_is_one_of_a_simulated_cohort_or_of_the_shipped_autoencoder(run):
    table, _ = set_units.draw_conditions(run, "simulated", 0, 400)
    assert table["seed"].is_unique
    assert table["seed"].min() > 2**32, "seeds of cohorts and of the autoencoder are small numbers"


def folder_of_images(path):
    path.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,patient,label"]
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (80, 90), dtype=np.uint8)).save(path / f"{i}.png")
        rows.append(f"{i}.png,{i},{('healthy', 'fatty')[i % 2]}")
    (path / "images.csv").write_text("\n".join(rows))
    return path


def test_where_no_liver_is_shown_it_is_left_out_or_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    folder = str(folder_of_images(tmp_path / "chest"))
    run = artifacts.open_run("smoke", {}, data=folder)
    assert "simulated" not in run.settings.generators
    sampling.require_liver(run)
    asked = artifacts.open_run("smoke", {"simulated.enabled": True}, data=folder)
    with pytest.raises(
        params.SettingsError, match=r"simulated.enabled: expected .* of the liver, .* found a folder of"
    ):
        sampling.require_liver(asked)
    livers = artifacts.open_run("smoke", {"cohort.subject": artifacts.LIVERS}, data=folder)
    assert "simulated" in livers.settings.generators
    sampling.require_liver(livers)


@pytest.mark.parametrize("setting", ["simulated.variant=fulll", "simulated_only.variants=[half, fulll]"])
def test_an_unknown_variant_is_refused_with_the_settings_and_the_known_are_named(setting):
    with pytest.raises(params.SettingsError, match=r"simulated.*variant.*'full', .*'literature', found 'fulll'"):
        params.load("smoke", [setting])


def test_the_variants_that_settings_name_are_those_of_the_simulator():
    assert get_args(params.generators.Variant) == tuple(phantom.VARIANTS)
