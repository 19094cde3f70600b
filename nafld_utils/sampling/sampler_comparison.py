"""Stage 04's comparison of samplers: what guidance and number of steps do, on a small set. Opens and writes files."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, preprocessing, statistics
from nafld_utils.artifacts import Run, Unit, remembered, save_table, unit_seed
from nafld_utils.images import semantic_maps
from nafld_utils.sampling import condition_effect, set_units

REVISION = ("stages.comparison", 1)


def tasks(run: Run) -> list[dict[str, Any]]:
    """One task per model, on the first fold; none where ``sampling.n_compared`` is 0."""
    names = run.settings.ldm.conditionings if run.settings.sampling.n_compared else []
    return [{"run": run, "conditioning": name} for name in names]


def variants(run: Run) -> list[dict[str, Any]]:
    """Settings that are compared, each once: guidance at the run's sampler, then steps of DPM-Solver++."""
    s = run.settings.sampling
    base = {"scheduler": s.scheduler, "steps": s.steps, "eta": s.eta, "guidance": s.guidance}
    found = [base, *({**base, "guidance": g} for g in s.compared_guidance)]
    found += [{**base, "scheduler": "dpmsolver++", "eta": 0.0, "steps": k} for k in s.compared_steps]
    return [item for i, item in enumerate(found) if item not in found[:i]]


@remembered
def unit_of(run: Run, conditioning: str) -> Unit:
    """Unit of one model's comparison."""
    fold, s = ldm.folds_of(run)[0], run.settings
    settings = {"n": s.sampling.n_compared, "variants": variants(run), "precision": s.sampling.precision}
    settings |= {"seed": s.seed, "fold": fold}
    inputs = [ldm.weights_unit(run, conditioning, fold), preprocessing.preprocess_unit(run)]
    modules = ["sampling", "backbones", "condition_checks", "preprocess", "stages.comparison"]
    return run.unit("comparison", conditioning, f"fold{fold}", settings=settings, inputs=inputs, modules=modules)


def compare(run: Run, conditioning: str) -> None:
    """Draw the same few images under every variant and judge each set.

    Writes ``table.csv``: ``scheduler, steps, eta, guidance, seeds, seconds`` (per image), ``frechet`` (Lite0 features,
    against crops of held-out patients), ``condition`` (semantic: accuracy of the map, own minus shuffled condition;
    class: AUC of a classifier that saw real images only). The run's own setting is drawn a second time with other
    seeds, which shows how far two sets of one model lie apart.
    """
    unit = unit_of(run, conditioning)
    fold, device = ldm.folds_of(run)[0], engine.device(run.settings.engine)
    stage = ldm.first_stage(run, conditioning, fold).to(device)
    denoiser = ldm.load_denoiser(run, conditioning, fold)
    judge = Judge(run, conditioning, fold, str(device))
    rows, wanted = [], variants(run)
    for seeds, options in [*(("own", item) for item in wanted), ("other", wanted[0])]:
        table, conditions = set_units.draw_conditions(run, conditioning, fold, run.settings.sampling.n_compared)
        if seeds == "other":
            table["seed"] = [unit_seed(seed, "other") for seed in table["seed"]]
        draw = set_units.sampler(run, conditioning, fold, denoiser, stage, device, options)
        engine.wait(device)
        started = time.perf_counter()
        latents = draw(table, conditions)
        engine.wait(device)
        seconds = (time.perf_counter() - started) / len(table)
        images = ldm.decode_latents(stage, latents, device)
        engine.announce(f"comparison {conditioning}: {len(rows) + 1}/{len(wanted) + 1} settings")
        rows.append({**options, "seeds": seeds, "seconds": seconds, **judge(images, table, conditions)})
    with unit.writing(device=str(device)) as folder:
        save_table(folder / "table.csv", pd.DataFrame(rows))


class Judge:
    """Distance to held-out patients and effect of the condition, of one model and fold."""

    def __init__(self, run: Run, conditioning: str, fold: int, device: str):
        self.run, self.conditioning, self.fold, self.device = run, conditioning, fold, device
        self.network = networks.load(networks.LITE0)
        data = preprocessing.open_preprocessed(run)
        held = data.images["fold"].to_numpy() == fold
        self.held_out = self._features(data.pool[held, 0])
        self.training = self._features(data.pool[~held, 0]) if conditioning == "class" else None
        self.labels = data.images["label"].to_numpy()[~held]

    def _features(self, images: np.ndarray) -> np.ndarray:
        return networks.features(self.network, np.asarray(images), networks.LITE0, self.device)

    def __call__(self, images: np.ndarray, table: pd.DataFrame, conditions: np.ndarray) -> dict[str, float]:
        """``frechet`` and ``condition`` of (n, S, S) uint8 images with their rows and conditions, see `compare`."""
        features, s = self._features(images), self.run.settings
        if self.conditioning == "class":
            score = condition_effect.condition_separation(self.training, self.labels, features)
            effect = statistics.auc(table["label"], score)
        else:
            rng = np.random.default_rng(unit_seed(s.seed, "comparison", self.fold))
            maps, patients = semantic_maps.semantic_maps(images, s.preprocess), table["source_patient"].to_numpy()
            agreed = condition_effect.condition_agreement(maps, conditions, patients, s.preprocess.map_classes, rng)
            effect = float((agreed["accuracy"] - agreed["accuracy_shuffled"]).mean())
        return {"frechet": networks.frechet_distance(features, self.held_out), "condition": effect}


def compare_samplers(run: Run) -> pd.DataFrame:
    """Every model's comparison: the columns of `compare` and ``model``; empty where nothing is compared."""
    engine.map_units(compare, tasks(run), run.settings.engine, "comparison of samplers", unit_of=unit_of)
    tables = [unit_of(**task).load_table("table.csv").assign(model=task["conditioning"]) for task in tasks(run)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def at_own_sampler(table: pd.DataFrame) -> pd.DataFrame:
    """What was drawn by the run's own sampler in its own number of steps.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `sampling.compare_samplers`.

    Returns
    -------
    pandas.DataFrame
        Rows that only guidance and seeds tell apart.
    """
    same = ["scheduler", "eta", "steps"]
    return table[(table[same] == table[same].iloc[0]).all(axis=1)]


def units(run: Run) -> list[Unit]:
    """Every unit of the comparison."""
    return [unit_of(**task) for task in tasks(run)]
