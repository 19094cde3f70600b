"""Stage 07: the classifiers that are explained, and their attributions. Opens and writes files.

Contract: any trained trial of the sweep can be explained; which one the notebook shows is named by section ``shap``.
Images and background are the same for every classifier that is compared, so that maps differ by the classifier alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, networks, preprocessing, sampling, sweep
from nafld_utils.artifacts import Run, Unit, save_array, save_table, unit_seed
from nafld_utils.explain import explainers, map_measures

REVISION = ("stages.explain", 3)  # for `train_shuffled`, raise ``stages.explain_truth`` of check_units


class Against(StrEnum):
    """What the explained classifier's maps are compared with, in the words that tables show and store."""

    DRAWS = "same classifier, other draws"
    SEED = "other training seed"
    NETWORK = "other network"
    UNTRAINED = "untrained network"
    SHUFFLED = "labels shuffled between patients"
    DIFFERENCE = "image minus the background's mean, no classifier"


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attributions of one classifier.

    ``images`` are (n, S, S) uint8; ``attributions`` (n, S, S) float32 the log-odds that each pixel adds. Row i of
    ``table`` belongs to image i: the columns of `pick_images`, ``called`` (the classifier's probability of fatty), and
    those of `explainers.additivity`. ``smoothing`` is the SD of the average over neighbours, as a share of the side.
    ``against`` is what the classifier is to the explained one, of `Against`; empty for that one itself.
    """

    images: np.ndarray
    attributions: np.ndarray
    table: pd.DataFrame
    unit: Unit
    smoothing: float
    against: str = ""

    def smoothed(self) -> np.ndarray:
        """Attributions averaged over neighbours, as figures and measures take them; their sum hardly changes."""
        return explainers.smooth(self.attributions, self.smoothing * self.images.shape[1])


# ---------------------------------------------------------------- which classifiers


def find_trials(run: Run, **wanted: Any) -> pd.DataFrame:
    """Trials of the sweep with these values, e.g. ``backbone=, arm=, fold=, seed=``; the section's own freezing."""
    trials, swept = sweep.trials(run), run.settings.sweep
    asked = {"freeze": swept.freeze, "balance": swept.balance, **wanted}
    chosen = np.logical_and.reduce([trials[name] == value for name, value in asked.items()])
    return trials[chosen].reset_index(drop=True)


def trial(run: Run) -> dict[str, Any]:
    """The sweep's trial that is explained: section ``shap``'s backbone, arm, rate, fold and seed, if there is one."""
    chosen, swept = run.settings.shap, run.settings.sweep
    backbone = chosen.backbone or swept.backbones[0]
    wanted = {"backbone": backbone, "arm": chosen.arm, "rate": float(chosen.rate)}
    found = find_trials(run, **wanted, fold=chosen.fold, seed=chosen.seed)
    if not len(found):
        raise ValueError(
            f"section shap: expected a trial of the sweep, found none of network {backbone}, arm {chosen.arm}, rate"
            f" {chosen.rate:g}, fold {chosen.fold}, seed {chosen.seed}; choose it among sweep.backbones, arms, rates"
            " and n_seeds."
        )
    return found.iloc[0].to_dict()


def peers(run: Run) -> pd.DataFrame:
    """Trials whose maps are compared: the explained one first, then its other training seeds and the other networks.

    All have its arm, rate and fold, so that they saw the same patients. ``shap.n_classifiers`` seeds per network.
    """
    wanted = trial(run)
    found = find_trials(run, arm=wanted["arm"], rate=wanted["rate"], fold=wanted["fold"])
    keys = [found["hash"] != wanted["hash"], found["backbone"] != wanted["backbone"], found["backbone"], found["seed"]]
    order = pd.concat(keys, axis=1, keys=range(4)).sort_values([0, 1, 2, 3]).index
    listed = found.loc[order].groupby("backbone", sort=False).head(run.settings.shap.n_classifiers)
    return listed.reset_index(drop=True)


def classifier_unit(run: Run) -> Unit:
    """Unit of the explained classifier."""
    return sweep.classifier_unit(run, trial(run))


def stored_scores(run: Run, wanted: dict[str, Any]) -> pd.DataFrame:
    """Held-out scores that the sweep keeps of a trial: ``image_id, patient_id, label, score``."""
    return sweep.read_trial(sweep.store(run), wanted["hash"])[0]


def open_classifier(
    run: Run, wanted: dict[str, Any] | None = None, unit: Unit | None = None
) -> networks.GreyClassifier:
    """A trial's network with the tail that `unit` keeps, as a function of grey pixels; None: the trial's own."""
    wanted = wanted or trial(run)
    classifier = fresh_classifier(run, wanted, seed=0)
    classifier.tail.load_state_dict(sweep.tail_weights(unit or sweep.classifier_unit(run, wanted)))
    return classifier


def fresh_classifier(
    run: Run, wanted: dict[str, Any], seed: int, weights: str | None = None
) -> networks.GreyClassifier:
    """A trial's network with a head that has learnt nothing; `weights` "random" leaves nothing learnt at all."""
    prefix, tail = network(run, wanted, weights)
    return networks.GreyClassifier(prefix, sweep.fresh_tail(tail, seed), wanted["backbone"])


def network(run: Run, wanted: dict[str, Any], weights: str | None = None) -> tuple[Any, Any]:
    """Frozen prefix and pretrained tail of a trial's network, cut where the trial cuts it."""
    model = networks.load(wanted["backbone"], weights or run.settings.sweep.weights)
    return networks.split(model, wanted["backbone"], wanted["freeze"])


def held_out_auc(run: Run) -> pd.DataFrame:
    """How good classifiers made as the explained one are on patients that they have not seen, over those patients.

    Returns
    -------
    pandas.DataFrame
        ``of, auc, low, high, n_patients, n_folds, unsaid`` of `statistics.fold_mean_auc`. The first row is the mean
        over all folds' classifiers of the explained one's network, arm, rate and seed, and decides whether maps are
        read: one fold has too few patients for that. The second row is the explained classifier alone.
    """
    wanted = trial(run)
    folds = find_trials(run, **{name: wanted[name] for name in ("backbone", "arm", "rate", "seed")}).to_dict("records")
    rows = []
    for name, trials in {f"{len(folds)} folds' classifiers, mean": folds, "this classifier": [wanted]}.items():
        scores = pd.concat([stored_scores(run, one).assign(fold=one["fold"]) for one in trials])
        rows.append({"of": name, **map_measures.auc_over_patients(scores)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- a classifier that has learnt nothing


def shuffled_unit(run: Run) -> Unit:
    """Unit of the explained trial, trained with labels shuffled between patients."""
    wanted = trial(run)
    return run.unit("shap", "shuffled", settings={}, inputs=[wanted["hash"]], modules=["trial", "stages.explain_truth"])


def train_shuffled(run: Run) -> Unit:
    """Train the explained trial with the labels of its training patients shuffled; does nothing when that is done.

    Whole patients change labels, and synthetic images those of their place in the set, so that nothing is left to learn
    but what tells these images apart by chance.
    """
    unit, wanted = shuffled_unit(run), trial(run)
    if unit.done():
        return unit
    data = sweep.training_set(run, wanted)
    seed = unit_seed(run.settings.seed, "shap shuffled", wanted["fold"])
    rng, images = np.random.default_rng(seed), preprocessing.open_preprocessed(run).images
    parts = [replace(part, labels=rng.permutation(part.labels)) for part in data["parts"]]
    if data["n_real"]:  # the first part is of real images
        real = data["parts"][0]
        parts[0] = replace(real, labels=shuffle_by_patient(images.iloc[real.rows], rng))
    device, (_, pretrained) = engine.device(run.settings.engine), network(run, wanted)
    decoder = networks.Decoder(wanted["backbone"])
    with unit.writing(device=str(device)) as folder:
        tail = sweep.fresh_tail(pretrained, seed)
        tail, _ = sweep.train_tail(tail, parts, sweep.options_of(run, wanted["arm"]), seed, decoder, device)
        scores = data["images"][["image_id", "patient_id", "label"]]
        scores = scores.assign(score=sweep.predict(tail, data["held_out"], decoder, device))
        sweep.save_tail(folder, tail)
        save_table(folder / "scores.csv", scores)
    return unit


def shuffle_by_patient(images: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Labels of the images after the patients have exchanged theirs: ``(n,)`` int64, as many patients per class."""
    patients = images.drop_duplicates("patient_id").set_index("patient_id")["label"]
    exchanged = pd.Series(rng.permutation(patients.to_numpy()), index=patients.index)
    return images["patient_id"].map(exchanged).to_numpy(dtype=np.int64)


# ---------------------------------------------------------------- which images


def source_arm(run: Run) -> str:
    """Model whose synthetic images are explained: the explained trial's own, else the run's first."""
    arm, models = trial(run)["arm"], run.settings.ldm.conditionings
    return arm if arm in models else models[0]


def images_unit(run: Run) -> Unit:
    """Unit of the explained images and of the background."""
    chosen, wanted = run.settings.shap, trial(run)
    names = ("n_per_class", "n_background", "n_held_out", "n_compared")
    settings = {**{name: getattr(chosen, name) for name in names}, "root_seed": run.settings.seed}
    synthetic = sampling.synthetic_unit(run, source_arm(run), chosen.fold)
    inputs = [wanted["hash"], preprocessing.preprocess_unit(run), synthetic]
    return run.unit("shap", "images", settings=settings, inputs=inputs, modules=["explain", "stages.explain"])


def pick_images(run: Run) -> Unit:
    """Choose what is explained, none of it by eye; does nothing when that is done.

    Writes ``images.npy`` (n, S, S), ``background.npy`` (at most n_background, S, S) and ``table.csv``: ``name, origin``
    (synthetic, held-out), ``patient_id`` (-1 where synthetic), ``label, in_training, outcome`` (empty where synthetic),
    ``shown`` (in the figure), ``judged`` (one image per held-out patient), ``compared`` (between classifiers), ``row``.

    Notes
    -----
    Paper, Fig. 6: four images of the semantic model, two per class, "taken from the training set of the classifier".
    Choice: besides them one held-out image of each outcome, and one image each of some held-out patients. Background
    images are random crops of the fold's real training patients, as the classifier saw them; whole images would show
    more of the sector, and its edge would be explained instead of the liver.
    """
    unit = images_unit(run)
    if unit.done():
        return unit
    wanted, chosen, arm = trial(run), run.settings.shap, source_arm(run)
    synthetic, data = sampling.open_synthetic(run, arm, wanted["fold"]), preprocessing.open_preprocessed(run)
    drawn = sweep.training_set(run, wanted)["drawn"].get(arm, np.empty(0, int))
    fakes = explainers.pick(synthetic.table, drawn, chosen.n_per_class).rename(columns={"synthetic_id": "name"})
    fakes = fakes.assign(origin="synthetic", patient_id=-1, outcome="", shown=True, judged=False)
    real = _held_out(run, data, wanted)
    columns = ["name", "origin", "patient_id", "label", "in_training", "outcome", "shown", "judged", "row"]
    table = pd.concat([fakes[columns], real[columns]], ignore_index=True)
    table["compared"] = table["judged"] & (table["judged"].cumsum() <= chosen.n_compared)
    pictures = [
        (synthetic.images if row.origin == "synthetic" else data.resized)[row.row] for row in table.itertuples()
    ]
    with unit.writing() as folder:
        save_table(folder / "table.csv", table)
        save_array(folder / "images.npy", np.stack(pictures))
        save_array(folder / "background.npy", draw_background(run, wanted["fold"], chosen.n_background))
    return unit


def _held_out(run: Run, data: Any, wanted: dict[str, Any]) -> pd.DataFrame:
    """Real images that are explained: one of each outcome, and one each of some held-out patients."""
    held_out = data.images[data.images["fold"] == wanted["fold"]]
    scores = stored_scores(run, wanted)[["image_id", "score"]]
    listed = held_out.assign(row=held_out.index).merge(scores, on="image_id", validate="one_to_one")
    typical = explainers.pick_outcomes(listed)["image_id"]
    judged = explainers.pick_patients(listed, run.settings.shap.n_held_out)["image_id"]
    names = list(dict.fromkeys([*typical, *judged]))
    out = listed.set_index("image_id", drop=False).loc[names].reset_index(drop=True)
    named = explainers.outcome(out["label"].to_numpy(), out["score"].to_numpy())
    out = out.assign(name=out["image_id"], origin="held-out", in_training=False, outcome=named)
    return out.assign(shown=out["image_id"].isin(typical), judged=out["image_id"].isin(judged))


def draw_background(run: Run, fold: int, n: int) -> np.ndarray:
    """Random crops of the fold's real training images, each image at most once: ``(at most n, S, S)`` uint8."""
    data = preprocessing.open_preprocessed(run)
    training = np.flatnonzero(data.images["fold"].to_numpy() != fold)
    rng = np.random.default_rng(unit_seed(run.settings.seed, "shap background", fold))
    rows = rng.permutation(training)[:n]
    return np.array(data.pool[rows, rng.integers(data.pool.shape[1], size=len(rows))])


# ---------------------------------------------------------------- attributions


def explained(run: Run) -> dict[str, dict[str, Any]]:
    """Tasks of `explain` by the names that readers see, the explained classifier's first (`peers`)."""
    first, *others = peers(run).to_dict("records")
    tasks = {"explained": {"name": first["hash"], "which": "all", "against": ""}}
    tasks[Against.DRAWS.value] = {"name": "again", "against": Against.DRAWS}
    for one in others:
        against = Against.SEED if one["backbone"] == first["backbone"] else Against.NETWORK
        tasks[f"{one['backbone']}, seed {one['seed']}"] = {"name": one["hash"], "trial": one, "against": against}
    tasks[Against.UNTRAINED.value] = {"name": "untrained", "against": Against.UNTRAINED}
    tasks[Against.SHUFFLED.value] = {"name": "shuffled", "against": Against.SHUFFLED}
    return {key: {"run": run, "trial": first, "which": "compared", **task} for key, task in tasks.items()}


def _source(run: Run, trial: dict[str, Any], against: str) -> Unit | str:
    """Unit or name of the weights that are explained."""
    if against == Against.UNTRAINED:
        return trial["backbone"]
    return shuffled_unit(run) if against == Against.SHUFFLED else sweep.classifier_unit(run, trial)


def attributions_unit(run: Run, name: str, trial: dict[str, Any], which: str, against: str) -> Unit:
    """Unit of the attributions of one of `explained`."""
    chosen = run.settings.shap
    settings = {"explainer": chosen.explainer, "n_samples": chosen.n_samples, "which": which}
    settings |= {"root_seed": run.settings.seed, "name": name}
    inputs = [_source(run, trial, against), images_unit(run)]
    return run.unit("shap", "attributions", name, settings=settings, inputs=inputs, modules=["explain"])


def explain(run: Run, name: str, trial: dict[str, Any], which: str, against: str) -> Explanation:
    """Train and explain one of `explained`, unless that is done, and open the result.

    `name` is the unit's folder and seeds its draws, so that no two maps share their noise. `which` images: ``all``, or
    those of a column of their table (``compared``). `against` is of `Against`; empty for the explained classifier.
    """
    if against == Against.SHUFFLED:
        train_shuffled(run)
    elif against != Against.UNTRAINED:
        sweep.train_again(run, trial)
    unit, picked = attributions_unit(run, name, trial, which, against), pick_images(run)
    table = picked.load_table("table.csv").assign(outcome=lambda t: t["outcome"].fillna(""))
    rows = np.arange(len(table)) if which == "all" else np.flatnonzero(table[which])
    images = picked.load_array("images.npy")[rows]
    if not unit.done():
        chosen, device = run.settings.shap, engine.device(run.settings.engine)
        seed = unit_seed(run.settings.seed, "shap", name) % 2**32  # shap hands it to numpy's global generator
        background = picked.load_array("background.npy")
        if against == Against.UNTRAINED:
            model = fresh_classifier(run, trial, seed=1, weights="random")
        else:
            model = open_classifier(run, trial, _source(run, trial, against))
        engine.announce(f"explaining {len(images)} images ({name})")
        with unit.writing(device=str(device), n_background=len(background)) as folder:
            outputs = explainers.log_odds(model, images, device)
            base = explainers.base_value(model, background, device, chosen.explainer)
            values = explainers.attributions(
                model, background, images, chosen.n_samples, seed, device, chosen.explainer
            )
            facts = explainers.additivity(values, outputs, base)
            save_table(folder / "additivity.csv", facts.assign(called=1.0 / (1.0 + np.exp(-outputs))))
            save_array(folder / "attributions.npy", values)
    joined = pd.concat([table.iloc[rows].reset_index(drop=True), unit.load_table("additivity.csv")], axis=1)
    values, smoothing = unit.load_array("attributions.npy"), run.settings.shap.smoothing
    return Explanation(images, values, joined, unit, smoothing, against)
