"""The grid of classifier trainings: its experiments, what is left to do, what is refused before one starts.

Contract: a *trial* is one training, named by ``backbone, freeze, balance, arm, rate, fold, seed`` and by the hash of
everything it depends on; what is finished lies in the store (`nafld_utils.sweep.trial_store`). An experiment is a named
grid; experiments that share a training share its row, so a run trains their union without repeats. Whether the images
that a run will draw suffice is told from settings and folds alone, before any model is trained: what a training takes
is counted by `draws`, which later draws it, and what the filter keeps by `quality.quota`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import params, preprocessing, quality
from nafld_utils.artifacts import digest
from nafld_utils.params import AUGMENTED, BASELINES, FILTERED, PLAIN, REAL, SIMULATED, ExperimentSettings, Settings
from nafld_utils.sweep import draws
from nafld_utils.sweep.trial_store import TRIAL_COLUMNS, to_train

REVISION = ("sweep", 2), ("capacity", 1)

# How an experiment's figure is read, in the words of the robustness variants.
READ_AT = {
    "image": "image level, folds together",
    "fold": "image level, mean of the folds' AUCs",
    "patient": "patient level",
}
N_IMAGES, CROPS = "sampling.n_images", "preprocess.crops_per_image"
# Labels of semantic images are drawn with their maps. Choice: room for four SDs, one fold in thirty thousand.
MARGIN = 4.0
Offer = tuple[int, np.ndarray]  # images in all, and of each class at least

# ---------------------------------------------------------------- the grid


def folds_of(settings: Settings) -> list[int]:
    """Folds that are trained: those with a diffusion model, so that every arm is compared on the same patients."""
    return list(settings.ldm.folds) if settings.ldm.folds is not None else list(range(settings.folds.n_splits))


def experiment(settings: Settings, name: str) -> ExperimentSettings:
    """An experiment with nothing left out: what its line does not say is as in section ``sweep``.

    Its arms are named as they are used (`params.arms.Arm.used`).
    """
    chosen = settings.sweep
    own = ExperimentSettings(about="the grid of section sweep") if name == PLAIN else settings.experiments[name]
    fields = ("backbones", "freeze", "balance", "arms", "rates", "use")
    filled = {field: getattr(chosen, field) if getattr(own, field) is None else getattr(own, field) for field in fields}
    used = [params.parse(arm).used(use) for use in filled["use"] for arm in filled["arms"]]
    filled["arms"] = tuple(dict.fromkeys(used))
    n_seeds = chosen.n_seeds if own.n_seeds is None else min(own.n_seeds, chosen.n_seeds)
    return own.model_copy(update={**filled, "n_seeds": n_seeds, "level": own.level or "image"})


def planned(settings: Settings, field: str) -> list[Any]:
    """Every value of ``backbones``, ``arms`` or ``rates`` in a run's experiments and declared comparison, each once."""
    declared = {"arms": settings.sweep.primary_arm, "rates": settings.sweep.primary_rate}
    values = [value for name in settings.sweep.experiments for value in getattr(experiment(settings, name), field)]
    return list(dict.fromkeys([*values, declared.get(field, settings.sweep.backbones[0])]))


def experiment_grid(settings: Settings, name: str) -> pd.DataFrame:
    """Every trial of one experiment, `TRIAL_COLUMNS`; real images alone are arm ``real`` at rate 0, once for all arms.

    Raises
    ------
    ValueError
        An arm asks for a generator that the run does not train.
    """
    chosen, made = experiment(settings, name), settings.generators
    for arm in chosen.arms:
        lacking = set(params.parse(arm).models) - {FILTERED, *made}
        if lacking:
            raise ValueError(
                f"arm {arm} of experiment {name}: expected generators of this run {made}, found {min(lacking)!r};"
                f" make it (ldm.conditionings, {', '.join(f'{name}.enabled' for name in BASELINES)}) or drop the arm."
            )
    cells = [(REAL, 0.0), *((arm, float(rate)) for arm in chosen.arms if arm != REAL for rate in chosen.rates)]
    rows = [
        (backbone, chosen.freeze, chosen.balance, arm, rate, fold, seed)
        for backbone in chosen.backbones
        for fold in folds_of(settings)
        for seed in range(chosen.n_seeds)
        for arm, rate in cells
    ]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS)).drop_duplicates(ignore_index=True)


def grid(settings: Settings) -> pd.DataFrame:
    """Every trial of a run: the union of its experiments, no training twice, and always the declared comparison.

    Parameters
    ----------
    settings : Settings
        Reads ``sweep``, ``experiments``, ``folds.n_splits`` and ``ldm.folds, ldm.conditionings``.

    Returns
    -------
    pandas.DataFrame
        `TRIAL_COLUMNS`, one row per trial. The paper's Fig. 5A is 13 cells x 5 folds x 25 seeds, 1,625 rows; Fig. 5B
        adds 500, Supplementary Figs. 4 and 5 1,625 each, Fig. 7 325; Figs. 3 and 6 add none. Where no experiment holds
        the arm and rate declared beforehand (``sweep.primary_arm, sweep.primary_rate``), these are added to the first.

    Raises
    ------
    ValueError
        As in `experiment_grid`.
    """
    chosen = settings.sweep
    parts = [experiment_grid(settings, name) for name in chosen.experiments]
    declared = {"backbone": chosen.backbones[0], "arm": chosen.primary_arm, "rate": float(chosen.primary_rate)}
    whole = pd.concat(parts)
    if not (whole[list(declared)] == pd.Series(declared)).all(axis=1).any():
        real = parts[0][(parts[0]["arm"] == REAL) & (parts[0]["backbone"] == parts[0]["backbone"].iloc[0])]
        real = real.assign(backbone=declared["backbone"])
        whole = pd.concat([whole, real, real.assign(**declared)])
    return whole.drop_duplicates(ignore_index=True)


def hardest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each balance, arm and fold of a grid the trial that takes the most images: its largest rate, in any seed."""
    return table.sort_values("rate").drop_duplicates(["balance", "arm", "fold"], keep="last")


def of_experiment(table: pd.DataFrame, settings: Settings, name: str) -> pd.DataFrame:
    """Rows of a table with `TRIAL_COLUMNS` (scores, status) that belong to an experiment, in their order."""
    wanted = pd.MultiIndex.from_frame(experiment_grid(settings, name))
    return table[pd.MultiIndex.from_frame(table[list(TRIAL_COLUMNS)]).isin(wanted)].reset_index(drop=True)


def experiments(settings: Settings, status: pd.DataFrame) -> pd.DataFrame:
    """The experiments of a run, one per row, from the status of its trials (`read_store`).

    ``experiment, about, level, trainings, of these new, done, failed``; ``level`` is how its figure is read
    (`READ_AT`), ``of these new`` are trainings that no experiment above it has.
    """
    rows, seen = [], set()
    for name in settings.sweep.experiments:
        own, mine = experiment(settings, name), of_experiment(status, settings, name)
        trials = set(mine[list(TRIAL_COLUMNS)].itertuples(index=False, name=None))
        states = [int((mine["state"] == state).sum()) for state in ("done", "failed")]
        rows.append((name, own.about, READ_AT[own.level], len(mine), len(trials - seen), *states))
        seen |= trials
    return pd.DataFrame(rows, columns=["experiment", "about", "level", "trainings", "of these new", "done", "failed"])


def trial_hash(trial: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Hash of a trial's name and of all it depends on (settings, inputs' hashes, code revisions)."""
    return digest({"trial": {name: trial[name] for name in TRIAL_COLUMNS}, **recipe})


def plan(
    status: pd.DataFrame,
    seconds: Mapping[tuple[str, str], float],
    n_workers: int,
    features: Mapping[tuple[str, str], float] | None = None,
    retry_failed: bool = False,
) -> pd.DataFrame:
    """How much is done and how long the rest will take, one row per network (backbone and what is frozen of it).

    Parameters
    ----------
    status : pandas.DataFrame
        From `read_store`.
    seconds : mapping of (backbone, freeze) to float
        Estimate of one training, used where none is finished yet.
    n_workers : int
        Trainings at once.
    features : mapping of (backbone, freeze) to float, optional
        Seconds that the features of the frozen prefix still take, one set after another.
    retry_failed : bool
        Whether trainings that failed are to be done again.

    Returns
    -------
    pandas.DataFrame
        ``backbone, freeze, trainings, done, failed, to_do, seconds_each, features_minutes, minutes_left,
        estimate_from``; minutes left hold those of the features, a last row the sums.
    """
    rows, features = [], features or {}
    for network, part in status.groupby(["backbone", "freeze"], sort=False):
        done, to_do = part[part["state"] == "done"], len(to_train(part, retry_failed))
        each = float(done["seconds"].median()) if len(done) else float(seconds.get(network, float("nan")))
        before = features.get(network, 0.0) / n_workers / 60
        row = dict(zip(("backbone", "freeze"), network, strict=True)) | {"trainings": len(part), "done": len(done)}
        row |= {"failed": int((part["state"] == "failed").sum()), "to_do": to_do, "seconds_each": each}
        row |= {"features_minutes": before, "minutes_left": before + (each * to_do / n_workers / 60 if to_do else 0.0)}
        rows.append({**row, "estimate_from": f"{len(done)} finished trainings" if len(done) else "a few timed steps"})
    table, counts = pd.DataFrame(rows), ["trainings", "done", "failed", "to_do"]
    total = table[[*counts, "features_minutes", "minutes_left"]].sum(skipna=False)
    whole = pd.concat([table, pd.DataFrame([{"backbone": "all", "freeze": "", **total}])], ignore_index=True)
    return whole.astype(dict.fromkeys(counts, int))


# ---------------------------------------------------------------- guards


def check_fold(
    images: pd.DataFrame, fold: int, synthetic: pd.DataFrame | None = None, made_with: str | None = None
) -> np.ndarray:
    """Rows (N,) bool held out in a fold, after making sure that nothing of them can be in the training set.

    `images` has ``patient_id, label, fold, sha256``; `synthetic` is a set's table with ``fold, source_patient`` (-1
    where an image has none), made with the split whose `preprocessing.digest_of` is `made_with`. ValueError where a
    patient or a frame is on both sides, the training side has one class, no image is held out, or a synthetic image was
    made for another fold, with another split, from a held-out patient or from an unknown one.
    """
    training, _ = preprocessing.split(images, fold)
    classes = sorted(set(training["label"]))
    if classes != [0, 1]:
        raise ValueError(
            f"fold {fold}: expected both classes among the training images, found {classes};"
            " use fewer folds or more patients of the other class."
        )
    if synthetic is not None:
        made_for = sorted(set(synthetic["fold"]))
        if made_for != [fold]:
            raise ValueError(
                f"synthetic set: expected images of fold {fold}, found folds {made_for}; use that fold's own set."
            )
        preprocessing.assert_same_split(images, made_with, f"synthetic set of fold {fold}")
        preprocessing.assert_trained_without(images, fold, synthetic["source_patient"])
        foreign = sorted(set(synthetic["source_patient"]) - set(images["patient_id"]) - {-1})
        if foreign:
            raise ValueError(
                f"synthetic set of fold {fold}: expected sources in this cohort, found patients {foreign[:5]};"
                " draw it again."
            )
    return images["fold"].to_numpy() == fold


# ---------------------------------------------------------------- whether enough images will be drawn


def shortages(images: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Sets that are too small for a training of the grid; no row where all suffice.

    ``setting`` (that the set's size follows from), ``given``, ``least`` (value that suffices), ``balance, arm, rate,
    fold, generator``, ``n_real`` (training images, counted as often as they are repeated), ``taken`` (images of the set
    that the training takes). `images` has one row per real image: ``label`` (0 or 1), ``fold``. How many copies the
    filter will leave out cannot be known beforehand; stage 06 refuses what is then missing.
    """
    label, fold, rows = images["label"].to_numpy(), images["fold"].to_numpy(), []
    for trial in hardest(grid(settings)).to_dict("records"):
        arm, training = params.parse(trial["arm"]), np.flatnonzero(fold != trial["fold"])
        real = label[draws.training_rows(training, label, trial["balance"], seed=0)]
        for i, generator in enumerate(arm.generators):
            part = (i, len(arm.generators))
            taken = draws.count_synthetic(len(real), trial["rate"], part)
            by_class = draws.count_matched(real, trial["rate"], part) if arm.matched else (0, 0)
            name, given, offered = _set(generator, label[training], settings)
            least = _least(offered, taken, np.array(by_class), given)
            if least > given:
                facts = {"setting": name, "given": given, "least": least, "generator": generator}
                rows.append({**facts, **trial, "n_real": len(real), "taken": taken})
    columns = ["setting", "given", "least", "balance", "arm", "rate", "fold", "generator", "n_real", "taken"]
    return pd.DataFrame(rows, columns=columns)


def least_images(images: pd.DataFrame, settings: Settings) -> int:
    """Smallest ``sampling.n_images`` that suffices for the grid, as `shortages` counts; 1 where nothing is drawn."""
    one = settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"n_images": 1})})
    found = shortages(images, one)
    return int(found.loc[found["setting"] == N_IMAGES, "least"].max()) if (found["setting"] == N_IMAGES).any() else 1


def check_capacity(images: pd.DataFrame, settings: Settings) -> None:
    """Refuse a run whose sets are too small for its trainings (`shortages`).

    Raises
    ------
    ValueError
        One sentence names the setting, the training that takes most, and what to give.
    """
    found = shortages(images, settings)
    if not len(found):
        return
    most = found.sort_values("least", ascending=False, kind="stable").drop_duplicates("setting").to_dict("records")
    lines = [
        f"{row['setting']} is {row['given']}, expected {row['least']} or more, since arm {row['arm']} at rate"
        f" {row['rate']:g} takes {row['taken']} {row['generator']} images for the {row['n_real']} training images of"
        f" fold {row['fold']}{' with the smaller class repeated' if row['balance'] == 'oversample' else ''}"
        for row in most
    ]
    values = " ".join(f"{row['setting']}={row['least']}" for row in most)
    raise ValueError(f'{"; and ".join(lines)}; give SET="{values}" or lower sweep.rates.')


def _set(generator: str, label: np.ndarray, settings: Settings) -> tuple[str, int, Callable[[int], Offer]]:
    """The setting that a set's size follows from, its value, and what a value offers to these training images."""
    if generator in AUGMENTED:
        counts = np.bincount(label, minlength=2)
        return CROPS, settings.preprocess.crops_per_image, lambda k: (len(label) * k, counts * k)
    filtered = generator == FILTERED
    source = settings.filtered_generator if filtered else generator
    keep, share = settings.quality.filter_keep, np.array([1 - label.mean(), label.mean()])

    def offered(n: int) -> Offer:
        if source == "semantic":  # labels are drawn with these shares
            by_class = np.maximum(0, np.floor(n * share - MARGIN * np.sqrt(n * share.prod()))).astype(np.int64)
        else:  # the classes in turn
            second = int(n * (settings.simulated.share if source == SIMULATED else 0.5))
            by_class = np.array([n - second, second])
        if not filtered:
            return n, by_class
        # of each class a whole number, whatever the classes' sizes
        sizes = np.arange(n + 1) if source == "semantic" else by_class[:1]
        whole = quality.quota(sizes, keep) + quality.quota(n - sizes, keep)
        return int(whole.min()), quality.quota(by_class, keep)

    return N_IMAGES, settings.sampling.n_images, offered


def _least(offered: Callable[[int], Offer], taken: int, by_class: np.ndarray, given: int) -> int:
    """Smallest value from `given` on that offers enough."""

    def enough(value: Any) -> bool:
        total, classes = offered(int(value))
        return total >= taken and bool((classes >= by_class).all())

    high = given
    while not enough(high):
        high *= 2
    return given + bisect.bisect_left(range(given, high), True, key=enough)
