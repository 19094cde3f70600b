"""Stage 07: the classifier that is explained, and its attributions on synthetic images. Opens and writes files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import backbones, engine, explain
from nafld_utils import sweep as grid
from nafld_utils.artifacts import Run, Unit, save_array, save_table, unit_seed
from nafld_utils.stages import prepare, samples, sweep, sweep_answer

REVISION = 1
STAGE = "07_shap"
SMOOTHING = 1 / 64  # SD of the average that the figure shows, as a share of the image's side


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attributions of a handful of synthetic images.

    Attributes
    ----------
    images : (n, S, S) uint8 ndarray
    attributions : (n, S, S) float32 ndarray
        Log-odds that each pixel adds.
    table : pandas.DataFrame
        ``synthetic_id, label, in_training, score`` and the columns of `explain.additivity`; row i belongs to image i.
    unit : Unit
        Where it lies.
    """

    images: np.ndarray
    attributions: np.ndarray
    table: pd.DataFrame
    unit: Unit

    def smoothed(self) -> np.ndarray:
        """Attributions averaged over neighbours, as the figure shows them; their sum hardly changes."""
        return explain.smooth(self.attributions, SMOOTHING * self.images.shape[1])


def trial(run: Run) -> dict[str, Any]:
    """The sweep's trial that is explained: the first backbone at ``shap.arm, rate, fold, seed``.

    Raises
    ------
    ValueError
        The sweep has no such trial, or its arm has no synthetic images.
    """
    chosen, swept = run.settings.shap, run.settings.sweep
    wanted = {"backbone": swept.backbones[0], "arm": chosen.arm, "rate": float(chosen.rate)}
    wanted |= {"fold": chosen.fold, "seed": chosen.seed, "freeze": swept.freeze, "balance": swept.balance}
    trials = sweep.trials(run)
    found = trials[np.logical_and.reduce([trials[name] == value for name, value in wanted.items()])]
    if chosen.arm not in run.settings.ldm.conditionings or not len(found):
        raise ValueError(
            f"section shap: expected a trial of the sweep with synthetic images, found arm {chosen.arm}, rate"
            f" {chosen.rate:g}, fold {chosen.fold}, seed {chosen.seed}; choose it among sweep.arms, rates and n_seeds."
        )
    return found.iloc[0].to_dict()


def classifier_unit(run: Run) -> Unit:
    """Unit of the explained classifier."""
    wanted = trial(run)
    settings = {name: wanted[name] for name in grid.TRIAL_COLUMNS}
    return run.unit("shap", "classifier", settings=settings, inputs=[wanted["hash"]], modules=["trial", "sweep"])


def train_classifier(run: Run) -> Unit:
    """Train the sweep's trial again and keep its tail; does nothing when that is done.

    A training is a function of its settings, so the sweep keeps scores and no weights. The largest difference between
    the two trainings' scores goes into the unit's manifest.
    """
    from safetensors.torch import save_file

    unit = classifier_unit(run)
    if unit.done():
        return unit
    wanted = trial(run)
    stored, _ = grid.read_trial(sweep.store(run), wanted["hash"])
    with engine.worker_threads(run.settings.engine):
        tail, scores, facts = sweep.train(run, wanted)
    paired = stored.merge(scores, on="image_id", validate="one_to_one", suffixes=("_stored", "_again"))
    paired["difference"] = (paired["score_stored"] - paired["score_again"]).abs()
    with unit.writing(device=facts["device"], largest_score_difference=float(paired["difference"].max())) as folder:
        save_file({k: v.cpu().contiguous() for k, v in tail.state_dict().items()}, folder / "tail.safetensors")
        save_table(folder / "scores.csv", paired[["image_id", "score_stored", "score_again", "difference"]])
    return unit


def open_classifier(run: Run) -> explain.GreyClassifier:
    """The explained classifier as a function of grey pixels, on the CPU."""
    from safetensors.torch import load_file

    from nafld_utils import trial as training

    wanted = trial(run)
    backbone = wanted["backbone"]
    model = backbones.load(backbone, run.settings.sweep.weights)
    prefix, tail = backbones.split(model, backbone, wanted["freeze"])
    tail = training.fresh_tail(tail, seed=0)
    tail.load_state_dict(load_file(classifier_unit(run).require().file("tail.safetensors")))
    return explain.GreyClassifier(prefix, tail, backbone)


def explanation_unit(run: Run) -> Unit:
    """Unit of the attributions."""
    chosen = run.settings.shap
    settings = {"n_per_class": chosen.n_per_class, "n_background": chosen.n_background, "n_samples": chosen.n_samples}
    settings["root_seed"] = run.settings.seed
    inputs = [
        classifier_unit(run),
        prepare.preprocess_unit(run),
        samples.synthetic_unit(run, chosen.arm, chosen.fold),
    ]
    return run.unit("shap", "attributions", settings=settings, inputs=inputs, modules=["explain"])


def explain_classifier(run: Run) -> Explanation:
    """Explain the classifier on synthetic images of its own training set, unless that is done, and open the result.

    Notes
    -----
    Paper, Fig. 6: four images of the semantic model, two a class, "taken from the training set of the classifier".
    Choice: background images are random crops of the fold's real training patients, as the classifier saw them; whole
    images would show more of the sector, and its edge would be explained instead of the liver.
    """
    unit = explanation_unit(run)
    if not unit.done():
        _make(run, unit)
    return Explanation(
        images=unit.load_array("images.npy"),
        attributions=unit.load_array("attributions.npy"),
        table=unit.load_table("table.csv"),
        unit=unit,
    )


def _make(run: Run, unit: Unit) -> None:
    wanted, chosen = trial(run), run.settings.shap
    synthetic = samples.open_synthetic(run, wanted["arm"], wanted["fold"])
    drawn = sweep.training_set(run, wanted)["drawn"][wanted["arm"]]
    picked = explain.pick(synthetic.table, drawn, chosen.n_per_class)
    images = np.array(synthetic.images[picked["row"].to_numpy()])
    background = draw_background(run, wanted["fold"], chosen.n_background)
    classifier, device = open_classifier(run), engine.device(run.settings.engine)
    seed = unit_seed(run.settings.seed, "shap") % 2**32  # shap hands it to numpy's global generator
    threads = engine.compute_threads(engine.cores())  # nothing else runs meanwhile
    with threads, unit.writing(device=str(device), n_background=len(background)) as folder:
        outputs = explain.log_odds(classifier, images, device)
        base = float(explain.log_odds(classifier, background, device).mean())
        values = explain.attributions(classifier, background, images, chosen.n_samples, seed, device)
        facts = picked[["synthetic_id", "label", "in_training"]].assign(score=1.0 / (1.0 + np.exp(-outputs)))
        save_table(folder / "table.csv", pd.concat([facts, explain.additivity(values, outputs, base)], axis=1))
        save_array(folder / "attributions.npy", values)
        save_array(folder / "images.npy", images)


def draw_background(run: Run, fold: int, n: int) -> np.ndarray:
    """Random crops of the fold's real training images, each image at most once: ``(at most n, S, S)`` uint8."""
    data = prepare.open_preprocessed(run)
    training = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "shap background", fold))
    rows = rng.permutation(training)[:n]
    return np.array(data.pool[rows, rng.integers(data.pool.shape[1], size=len(rows))])


def protocol(run: Run) -> str:
    """What differs from the paper's analysis."""
    swept = sweep_answer.protocol(run)
    differs = [] if swept == "yes" else [swept.removeprefix("no: ")]
    return f"no: {'; '.join([*differs, 'the paper shows maps and no number'])}"


def claims(run: Run, found: Explanation) -> list[dict[str, Any]]:
    """Headline numbers of the stage."""
    table = found.table
    share = 100 * table["error"].abs().sum() / table["explained"].abs().sum()
    right = ((table["score"] > 0.5) == (table["label"] == 1)).sum()
    common = {"n": len(table), "same_protocol": protocol(run)}
    rows = [
        {"claim": "SHAP: images on the side of their own class", "this_run": right, "unit": f"of {len(table)} images"},
        {"claim": "SHAP: additivity error", "this_run": share, "unit": "% of the explained log-odds"},
    ]
    return [{**row, "over": "no interval: a handful of images", **common} for row in rows]


def units(run: Run) -> list[Unit]:
    """Every unit stage 07 stands on."""
    return [classifier_unit(run), explanation_unit(run)]
