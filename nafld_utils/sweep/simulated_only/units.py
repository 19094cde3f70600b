"""Stage 06, trainings without a real image and what simulated patients are worth. Opens and writes files.

Contract: no unit of a training without a real image reads a real label, and real images enter it after its last step.
A simulated patient's seed is `unit_seed` of its name and the same in every variant, so that variants differ in nothing
but what they say. Each training is a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images, networks, params, preprocessing, sampling
from nafld_utils.artifacts import Run, Unit, remembered, save_array, save_table, unit_seed
from nafld_utils.sweep import prefix_features, trial_grid, trial_units
from nafld_utils.sweep.simulated_only import changes, look_units

REVISION = ("simulated_only", 1)

AS_THEY_ARE = "as they are"  # held-out images
_MODULES = ("backbones", "trial", "trial_draws", "simulated_only")
_IMAGES = (*sampling.simulated.MODULES, "backbones", "trial", "simulated_only_images")


def is_on(run: Run) -> bool:
    """Whether the run trains without a real image: it is asked for, and the cohort shows livers."""
    return run.settings.simulated_only.n_cohorts > 0 and run.shows_livers


def main_variant(run: Run) -> str:
    """The simulator's variant that the declared training is of."""
    return run.settings.simulated.variant


# ---------------------------------------------------------------- simulated patients and changed real images


def _network(run: Run) -> dict[str, str]:
    """What tells one frozen prefix from another."""
    chosen = run.settings.sweep
    backbone = chosen.backbones[0]
    weights = prefix_features.identity(backbone, chosen.weights)
    return {"backbone": backbone, "weights": weights, "freeze": chosen.freeze, "kept_in": chosen.features}


def _features(run: Run, stack: np.ndarray) -> np.ndarray:
    """Prefix features (n, K, ...) of images (n, K, S, S); the images themselves where nothing is frozen."""
    chosen, flat = run.settings.sweep, stack.reshape(-1, *stack.shape[2:])
    found = prefix_features.computed(run, chosen.backbones[0], chosen.freeze, flat)
    return found.reshape(*stack.shape[:2], *found.shape[1:])


@remembered
def cohort_unit(run: Run, variant: str, cohort: int) -> Unit:
    """Unit of a simulated cohort: what a training reads of its images; no real image is an input."""
    chosen = run.settings.simulated_only
    settings = {**sampling.simulated.recipe(run), "variant": variant, "cohort": cohort, "seed": run.settings.seed}
    settings |= {"n_patients": chosen.n_patients, "n_frames": chosen.n_frames, "crops": chosen.crops, **_network(run)}
    return run.unit("simulated_only", "cohorts", f"{variant}_{cohort}", settings=settings, modules=_IMAGES)


def make_cohort(run: Run, variant: str, cohort: int) -> None:
    """Simulate the patients of a cohort and compute their features."""
    unit, n = cohort_unit(run, variant, cohort), run.settings.simulated_only.n_patients
    labels = np.diff(np.floor(run.settings.simulated.share * np.arange(n + 1))).astype(np.int64)  # the classes in turn
    seeds = [unit_seed(run.settings.seed, "simulated_only", cohort, i) for i in range(n)]
    with unit.writing() as folder:
        made = [
            changes.patient_views(run, variant, int(label), seed) for label, seed in zip(labels, seeds, strict=True)
        ]
        table = pd.DataFrame({"patient_id": np.arange(n), "label": labels, "grade": [fat for _, fat in made]})
        save_table(folder / "images.csv", table.loc[np.repeat(np.arange(n), len(made[0][0]))])
        save_array(folder / "views.npy", _features(run, np.concatenate([views for views, _ in made])))


def changed_unit(run: Run) -> Unit:
    """Unit of what a tail reads of real images that were changed at test time (`changes.CHANGES`)."""
    settings, inputs = {"changes": list(changes.CHANGES), **_network(run)}, [preprocessing.preprocess_unit(run)]
    return run.unit("simulated_only", "changed", settings=settings, inputs=inputs, modules=_IMAGES)


def make_changed(run: Run) -> None:
    """Change the real crops and compute their features."""
    with changed_unit(run).writing() as folder:
        crops, size = preprocessing.open_preprocessed(run).crops, run.settings.preprocess.image_size
        for name, change in changes.CHANGES.items():
            resized = [images.resize_box(crop, images.whole_box(crop), size) for crop in change(crops)]
            save_array(folder / f"{name}.npy", _features(run, np.stack(resized)[:, None]))


# ---------------------------------------------------------------- trainings without a real image


def _how(run: Run) -> dict[str, Any]:
    """Settings that every training here has in common with the sweep's."""
    chosen = run.settings.sweep
    names = ("batch_size", "weight_decay")
    return {**{name: getattr(chosen, name) for name in names}, "arithmetic": trial_units.arithmetic(run)}


@remembered
def training_unit(run: Run, variant: str, cohort: int, seed: int, shuffled: bool = False) -> Unit:
    """Unit of one training's losses and scores of real images."""
    chosen, made = run.settings.simulated_only, cohort_unit(run, variant, cohort)
    settings = {"training": seed, "shuffled": shuffled, "seed": run.settings.seed, **_how(run)}
    settings |= {name: getattr(chosen, name) for name in ("steps", "look_every", "learning_rate", "norm")}
    real = prefix_features.read_unit(run, *_real(run))
    name = f"{variant}_{cohort}_{seed}{'_shuffled' * shuffled}"
    inputs = [made, real, changed_unit(run)]
    return run.unit("simulated_only", "trainings", name, settings=settings, inputs=inputs, modules=_MODULES)


def _real(run: Run) -> tuple[str, str, str, int]:
    """Which features of real images: network, freeze, set and fold."""
    return run.settings.sweep.backbones[0], run.settings.sweep.freeze, params.REAL, params.SHARED


def make_training(run: Run, variant: str, cohort: int, seed: int, shuffled: bool = False) -> None:
    """Train on a simulated cohort and score real images every few steps."""
    from nafld_utils.sweep import training

    unit, chosen = training_unit(run, variant, cohort, seed, shuffled), run.settings.simulated_only
    own, parts = unit_seed(run.settings.seed, "simulated_only", "training", cohort, seed), []
    held_out, device = trial_units.held_out_images(run), engine.device(run.settings.engine)
    rows, decoder = _rows(run, held_out), networks.Decoder(run.settings.sweep.backbones[0])
    seen = {AS_THEY_ARE: prefix_features.stored(run, *_real(run), "resized")}
    seen |= {name: changed_unit(run).load_array(f"{name}.npy", mmap=True) for name in changes.CHANGES}

    def look(step: int, tail: Any) -> None:
        last = step == chosen.steps
        for name in seen if last else [AS_THEY_ARE] * (step % chosen.look_every == 0):
            views = training.Views(seen[name], held_out["label"].to_numpy(), rows)
            score = training.predict(tail, views, decoder, device)
            parts.append(held_out.assign(step=step, seen=name, score=score))

    how = run.settings.sweep.batch_size, chosen.learning_rate, run.settings.sweep.weight_decay
    options = training.Options(chosen.steps, *how, run.settings.sweep.precision, norm=chosen.norm)
    with unit.writing(device=str(device)) as folder:
        simulated = _simulated(run, variant, cohort, own if shuffled else None)
        tail = training.fresh_tail(pretrained(run), own)
        _, losses = training.train_tail(tail, [simulated], options, own, decoder, device, look)
        save_array(folder / "losses.npy", losses)
        save_table(folder / "scores.parquet", pd.concat(parts, ignore_index=True))


def _simulated(run: Run, variant: str, cohort: int, shuffled: int | None = None) -> Any:
    """A simulated cohort as `sweep.Views`; with a seed its labels shuffled among patients, who keep one label each."""
    from nafld_utils.sweep import training

    made = cohort_unit(run, variant, cohort)
    table = made.load_table("images.csv")
    if shuffled is not None:
        patients = table.drop_duplicates("patient_id").set_index("patient_id")["label"]
        drawn = np.random.default_rng([shuffled, 6]).permutation(patients)
        table["label"] = table["patient_id"].map(dict(zip(patients.index, drawn, strict=True)))
    return training.Views(made.load_array("views.npy", mmap=True), table["label"].to_numpy())


def pretrained(run: Run) -> Any:
    """The pretrained tail of the network; a training copies it."""
    chosen = run.settings.sweep
    return prefix_features.network(chosen.backbones[0], chosen.weights, chosen.freeze)[1]


def _rows(run: Run, held_out: pd.DataFrame) -> np.ndarray:
    """Places of held-out images in the preprocessed cohort."""
    return pd.Index(preprocessing.open_preprocessed(run).images["image_id"]).get_indexer(held_out["image_id"])


# ---------------------------------------------------------------- how many real patients it is worth


def most_patients(run: Run) -> int:
    """Training patients of the fold that has fewest."""
    patients = preprocessing.open_preprocessed(run).folds
    return len(patients) - int(patients["fold"].value_counts().max())


def subset(patients: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """Ids of `n` training patients in the class mix of all, nested: a larger number holds those of a smaller one.

    `patients` has ``patient_id, label``. Two of a class at least, where `n` is four or more.
    """
    order = patients.sample(frac=1, random_state=np.random.default_rng([seed, 5]))
    counts = order["label"].value_counts()
    small = counts.idxmin()
    few = int(np.clip(round(n * counts[small] / len(order)), min(2, n // 2), n - 1))
    wanted = {small: few, 1 - small: n - few}
    return np.concatenate([order.loc[order["label"] == label, "patient_id"][:k] for label, k in wanted.items()])


@remembered
def worth_unit(run: Run, fold: int, seed: int, n: int) -> Unit:
    """Unit of two trainings on `n` real patients of a fold, alone and after simulated ones: scores of its held-out.

    Where the smallest fold has fewer training patients, these are all.
    """
    settings = {"fold": fold, "training": seed, "n": n, "seed": run.settings.seed, **_how(run)}
    settings |= {name: getattr(run.settings.sweep, name) for name in ("steps", "pretrain_share", "learning_rate")}
    inputs = [prefix_features.read_unit(run, *_real(run)), cohort_unit(run, main_variant(run), _cohort(run, seed))]
    name = f"fold{fold}_seed{seed}_n{n:04d}"
    return run.unit("simulated_only", "worth", name, settings=settings, inputs=inputs, modules=_MODULES)


def _cohort(run: Run, seed: int) -> int:
    """The simulated cohort that a training with real patients begins with: the next one for each seed."""
    return seed % run.settings.simulated_only.n_cohorts


def make_worth(run: Run, fold: int, seed: int, n: int) -> None:
    """Train on a part of a fold's real patients, alone and after simulated ones."""
    from nafld_utils.sweep import training

    unit, chosen = worth_unit(run, fold, seed, n), run.settings.sweep
    table = preprocessing.open_preprocessed(run).images
    own = unit_seed(run.settings.seed, "simulated_only", "worth", fold, seed)
    train = table[table["fold"] != fold]
    n = min(n, most_patients(run))
    kept = subset(train.drop_duplicates("patient_id")[["patient_id", "label"]], n, own)
    rows = np.flatnonzero(table["patient_id"].isin(kept) & (table["fold"] != fold))
    outside = np.flatnonzero(table["fold"] == fold)
    label = table["label"].to_numpy()
    real = training.Views(prefix_features.stored(run, *_real(run)), label[rows], rows)
    simulated = _simulated(run, main_variant(run), _cohort(run, seed))
    held_out = training.Views(prefix_features.stored(run, *_real(run), "resized"), label[outside], outside)
    decoder, device, parts = networks.Decoder(chosen.backbones[0]), engine.device(run.settings.engine), []
    with unit.writing(device=str(device)) as folder:
        for arm, sets in ((params.REAL, [real]), (f"{params.SIMULATED}_first", [real, simulated])):
            tail, options = training.fresh_tail(pretrained(run), own), trial_units.options_of(run, arm)
            training.train_tail(tail, sets, options, own, decoder, device)
            score = training.predict(tail, held_out, decoder, device)
            facts = table.iloc[outside][["image_id", "patient_id", "label", "fold"]]
            parts.append(facts.assign(first=options.first > 0, n=n, seed=seed, score=score))
        save_table(folder / "scores.parquet", pd.concat(parts, ignore_index=True))


# ---------------------------------------------------------------- all of them


def trainings(run: Run) -> pd.DataFrame:
    """Every training without a real image: ``variant, cohort, seed, shuffled``.

    Of the main variant every cohort and seed, and of each cohort one with shuffled labels; of each other variant one
    cohort. Those of a first seed come first.
    """
    chosen, main = run.settings.simulated_only, main_variant(run)
    rows = [(main, c, s, False) for s in range(chosen.n_seeds) for c in range(chosen.n_cohorts)]
    rows += [(main, c, 0, True) for c in range(chosen.n_cohorts)]
    others = [name for name in chosen.variants if name != main]
    rows += [(name, 0, seed, False) for seed in range(chosen.variant_seeds) for name in others]
    return pd.DataFrame(rows, columns=["variant", "cohort", "seed", "shuffled"])


def tasks(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Keyword arguments of every simulated cohort, every training without a real image, and every `worth_unit`."""
    table, chosen = trainings(run), run.settings.simulated_only
    cohorts = table[["variant", "cohort"]].drop_duplicates()
    folds, numbers = trial_grid.folds_of(run.settings), sorted(set(chosen.real_patients))
    worth = [(f, s, n) for s in range(chosen.real_seeds) for n in numbers for f in folds]
    return (
        [{"run": run, **row} for row in cohorts.to_dict("records")],
        [{"run": run, **row} for row in table.to_dict("records")],
        [{"run": run, "fold": fold, "seed": seed, "n": n} for fold, seed, n in worth],
    )


def make_all(run: Run) -> None:
    """Make every unit that is not there yet."""
    cohorts, alone, worth = tasks(run)
    if run.settings.sweep.freeze != prefix_features.NOTHING_FROZEN:
        prefix_features.make_features(run, *_real(run)[:1], params.REAL, freeze=run.settings.sweep.freeze)
    kinds = {
        "cohort": (make_cohort, cohorts, cohort_unit),
        "looks": (look_units.make_looks, [{"run": run}], look_units.looks_unit),
        "changed": (make_changed, [{"run": run}], changed_unit),
        "training": (make_training, alone, training_unit),
        "training with real patients": (make_worth, worth, worth_unit),
    }
    engine.map_kinds(kinds, run.settings.engine, "simulated patients")


def scores(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of trainings without a real image (`trainings`, image, ``step, seen, score``) and of `make_worth`'s."""
    _, alone, worth = tasks(run)
    parts = []
    for task in alone:
        facts = {name: task[name] for name in ("variant", "cohort", "seed", "shuffled")}
        parts.append(training_unit(**task).load_table("scores.parquet").assign(**facts))
    real = [worth_unit(**task).load_table("scores.parquet") for task in worth]
    some = pd.concat(real).drop_duplicates(["n", "first", "seed", "image_id"]) if real else pd.DataFrame()
    return pd.concat(parts, ignore_index=True), some.reset_index(drop=True)


def last_losses(run: Run) -> pd.DataFrame:
    """Mean loss over the last tenth of the steps of each of `trainings`: its row and ``loss``."""
    ends = [training_unit(**task).load_array("losses.npy") for task in tasks(run)[1]]
    return trainings(run).assign(loss=[float(losses[-max(1, len(losses) // 10) :].mean()) for losses in ends])


def units(run: Run) -> Sequence[Unit]:
    """Every unit; none where the run trains none of them."""
    if not is_on(run):
        return []
    cohorts, alone, worth = tasks(run)
    made = [cohort_unit(**task) for task in cohorts] + [training_unit(**task) for task in alone]
    return [*made, changed_unit(run), look_units.looks_unit(run), *(worth_unit(**task) for task in worth)]
