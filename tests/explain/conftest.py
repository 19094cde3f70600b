"""A small run whose trainings the tests of this folder explain."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nafld_utils import artifacts, preprocessing, sweep
from nafld_utils.sampling import set_units

OVERRIDES = {
    "sweep.weights": "random",
    "sweep.backbones": ["resnet18"],
    "sweep.arms": ["semantic"],
    "sweep.steps": 2,
    "sweep.n_seeds": 1,
    "ldm.folds": [0],
    "engine.mode": "serial",
    "engine.device": "cpu",
}


@pytest.fixture(scope="session")
def overrides():
    """Settings of that run."""
    return OVERRIDES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small cohort and its synthetic set, in place of stages 01 to 04; one for all tests of a file."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NAFLD_ROOT", str(tmp_path_factory.mktemp("explained")))
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(1, 9), 2)
    images = pd.DataFrame({"patient_id": patient, "label": patient % 2, "fold": (patient > 4).astype(int)})
    images["image_id"] = images["sha256"] = [f"i{i}" for i in range(16)]
    pool = rng.integers(0, 256, (16, 2, 32, 32)).astype(np.uint8)
    data = SimpleNamespace(
        images=images, pool=pool, resized=pool[:, 0], tissue=rng.integers(0, 10, (16, 32, 32)).astype(np.uint8)
    )
    fakes = pd.DataFrame({"fold": 0, "source_patient": 5 + np.arange(12) % 4, "label": (5 + np.arange(12)) % 2})
    fakes["synthetic_id"] = [f"s{i}" for i in range(12)]
    pixels = rng.integers(0, 256, (12, 32, 32)).astype(np.uint8)
    run = artifacts.open_run("smoke", OVERRIDES)
    unit = run.unit("preprocess", settings={})
    patch.setattr(preprocessing.unit, "open_preprocessed", lambda run: data)
    patch.setattr(preprocessing.unit, "preprocess_unit", lambda run: unit)
    patch.setattr(
        set_units,
        "synthetic_unit",
        lambda run, conditioning, fold, **_: run.unit("synthetic", conditioning, fold, settings={}),
    )
    drawn = SimpleNamespace(images=pixels, table=fakes, split=None)
    patch.setattr(set_units, "open_synthetic", lambda run, conditioning, fold, **_: drawn)
    yield run
    patch.undo()


@pytest.fixture(scope="module")
def swept(run):
    assert (sweep.run_sweep(run)["state"] == "done").all()
    return run
