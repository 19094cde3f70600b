"""Stage 05, the copy audit: real patients per fold, an audit per set, the release list. Opens and writes files.

Contract: a fold's audit sees its own training patients, whom its generators saw, and its held-out patients only as
what is known to be no copy. Thresholds come from the training patients alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, ldm, networks, preprocessing, sampling, statistics
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_array, save_json, save_table, unit_seed
from nafld_utils.networks import copy_rules
from nafld_utils.params import SHARED, SetName, listed
from nafld_utils.quality import copies
from nafld_utils.quality.figures import WORDS

REVISION = ("stages.copies", 1)
FOLDER = "memorization"
HELD_OUT = "real, held out"
_OVER_DRAWN = "images, those of one map together (exact); these generators"
NO_COPY = "no measure that counts finds a training patient this near"


def conditioning_of(run: Run, generator: str) -> str:
    """Model whose autoencoder measures a generator's images: its own; a baseline's is that of the model beside it."""
    name = ldm.reference(run) if generator in sampling.BASELINES else SetName.of(generator).conditioning
    return ldm.owner(run, name)


# ---------------------------------------------------------------- what every fold compares


@remembered
def search_unit(run: Run, name: str) -> Unit:
    """Unit of the distances by pixels of a set that all folds share, real or synthetic, to every patient.

    It spares folds the same search. A fold that searched by itself would find the same, so no unit has it among its
    inputs.
    """
    inputs = [preprocessing.preprocess_unit(run)]
    if name != sampling.REAL:
        inputs.append(sampling.synthetic_unit(**sampling.task_of(run, name, SHARED)))
    return run.unit(FOLDER, "search", name, settings={}, inputs=inputs, modules=["memorization", "stages.copies"])


def search(run: Run, name: str) -> None:
    """Find every patient's frame that is nearest to each image; writes ``patients.npy, distance.npy, row.npy``."""
    data, device = preprocessing.open_preprocessed(run), engine.device(run.settings.engine)
    images = data.pool[:, 0] if name == sampling.REAL else sampling.open_set(run, name, SHARED).images
    with search_unit(run, name).writing(device=str(device)) as folder:
        patients = data.images["patient_id"].to_numpy()
        found = networks.nearest_pixels(images, np.asarray(data.resized), patients, device)
        for key, array in vars(found).items():
            save_array(folder / f"{key}.npy", array)


def searched(run: Run, name: str, frames: ldm.Frames, rows: Any = slice(None)) -> networks.Nearest:
    """What the search found of a set's images `rows` among a fold's training frames."""
    unit = search_unit(run, name).require()
    patients, *found = (unit.load_array(f"{key}.npy") for key in ("patients", "distance", "row"))
    found = networks.Nearest(patients, *(array[rows] for array in found))
    return found.among(frames.training, frames.patients[frames.training])


# ---------------------------------------------------------------- what real patients look like


def reference_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per fold and autoencoder."""
    owners = dict.fromkeys(conditioning_of(run, name) for name in sampling.generators(run))
    return [{"run": run, "owner": owner, "fold": k} for owner in owners for k in ldm.folds_of(run)]


@remembered
def reference_unit(run: Run, owner: str, fold: int) -> Unit:
    """Unit of a fold's thresholds, with held-out images and planted copies judged by them."""
    kind, n = run.settings.quality.features, run.settings.quality.n_planted
    settings = {"n_planted": n, "kind": kind, "seed": run.settings.seed, "fold": fold}
    inputs = [preprocessing.preprocess_unit(run), ldm.latents_unit(run, owner, fold)]
    inputs.append(sampling.features_unit(run, kind, sampling.REAL))
    modules = ["memorization", "planted", "autoencoder", "feature_networks", "stages.copies"]
    return run.unit(FOLDER, "reference", owner, f"fold{fold}", settings=settings, inputs=inputs, modules=modules)


def make_reference(run: Run, owner: str, fold: int) -> None:
    """Measure how near real patients come to each other.

    Writes ``thresholds.json``, ``real.csv`` (training images, their own patient left out), ``held_out.csv``,
    ``planted.csv`` and ``apart.npy``, the distance of every training crop to the nearest one of another patient.
    """
    unit = reference_unit(run, owner, fold)
    frames = frames_of(run, owner, fold)
    own, crop_patients, crops = frames.patients[frames.training], frames.crop_patients, frames.known["features"]
    pixels = [searched(run, sampling.REAL, frames, rows) for rows in (frames.training, frames.held_out)]
    real, held = frames.near_real(frames.training, own, pixels[0]), frames.near_real(frames.held_out, None, pixels[1])
    limits = {name: copy_rules.thresholds(found, own) for name, found in real.items()}
    apart = copy_rules.statistics(networks.nearest_features(crops, crops, crop_patients).without_own(crop_patients))
    parts = []
    for name in copies.CHANGES:
        rng = np.random.default_rng(unit_seed(run.settings.seed, "planted", fold, name))
        rows = rng.choice(frames.training, min(run.settings.quality.n_planted, len(own)), replace=False)
        drawn = zip(rows, rng.integers(0, frames.n_crops, len(rows)), strict=True)
        images = copies.plant(np.stack([frames.data.pool[i, j] for i, j in drawn]), name, rng)
        parts.append(frames.table(frames.near(images), limits, rows).assign(planted=name))
    with unit.writing(device=str(frames.device)) as folder:
        save_json(folder / "thresholds.json", limits)
        save_table(folder / "real.csv", frames.table(real, limits, frames.training))
        save_table(folder / "held_out.csv", frames.table(held, limits, frames.held_out))
        save_table(folder / "planted.csv", pd.concat(parts, ignore_index=True))
        save_array(folder / "apart.npy", apart["distance"].to_numpy())


def frames_of(run: Run, owner: str, fold: int) -> ldm.Frames:
    """Training frames of a fold with the stored features of stage 05."""
    found, _ = sampling.load_features(run, run.settings.quality.features, sampling.REAL)
    return ldm.Frames(run, owner, fold, run.settings.quality.features, found)


# ---------------------------------------------------------------- the audit


def audit_tasks(run: Run) -> list[dict[str, Any]]:
    """One task per generator and fold."""
    return [{"run": run, "generator": g, "fold": k} for g in sampling.generators(run) for k in ldm.folds_of(run)]


@remembered
def audit_unit(run: Run, generator: str, fold: int) -> Unit:
    """Unit of a set's audit."""
    reference = reference_unit(run, conditioning_of(run, generator), fold)
    inputs = [reference, sampling.features_unit(run, run.settings.quality.features, generator, fold)]
    modules = ["memorization", "stages.copies"]
    return run.unit(FOLDER, "audit", generator, f"fold{fold}", settings={}, inputs=inputs, modules=modules)


def audit(run: Run, generator: str, fold: int) -> None:
    """Compare every image of a set with the training frames.

    Writes ``table.csv``: ``synthetic_id, label, source_patient``, nearest image and patient, distance and relative
    distance under every measure, ``*_near``, ``authentic``, ``copy``, ``why``.
    """
    unit = audit_unit(run, generator, fold)
    owner = conditioning_of(run, generator)
    reference = reference_unit(run, owner, fold).require()
    limits = pd.read_json(reference.file("thresholds.json")).to_dict()
    drawn, frames = sampling.open_set(run, generator, fold), frames_of(run, owner, fold)
    features, _ = sampling.load_features(run, run.settings.quality.features, generator, fold)
    pixels = searched(run, generator, frames) if sampling.is_shared(generator) else None
    near = frames.near(drawn.images, features, pixels)
    apart = pd.DataFrame({"distance": reference.load_array("apart.npy")})
    table = frames.table(near, limits).assign(authentic=copy_rules.authentic(near["features"], apart))
    facts = drawn.table[["synthetic_id", "label", "source_patient"]].reset_index(drop=True)
    with unit.writing(device=str(frames.device)) as folder:
        save_table(folder / "table.csv", pd.concat([facts, table], axis=1))


@remembered
def release_unit(run: Run) -> Unit:
    """Unit of ``synthetic_release.csv``: every synthetic image, kept or withheld, and why."""
    inputs = [audit_unit(**task) for task in audit_tasks(run)]
    return run.unit(FOLDER, "release", settings={}, inputs=inputs, modules=["stages.copies"])


def audit_copies(run: Run) -> None:
    """Everything of the copy audit that is not there yet, and the release list."""
    needed = [sampling.REAL] * any(not reference_unit(**task).done() for task in reference_tasks(run))
    left = [task["generator"] for task in audit_tasks(run) if not audit_unit(**task).done()]
    needed += filter(sampling.is_shared, dict.fromkeys(left))
    tasks = [{"run": run, "name": name} for name in needed]
    engine.map_units(search, tasks, run.settings.engine, "nearest patients", unit_of=search_unit)
    engine.map_units(make_reference, reference_tasks(run), run.settings.engine, "real patients", unit_of=reference_unit)
    engine.map_units(audit, audit_tasks(run), run.settings.engine, "copy audit", unit_of=audit_unit)
    unit = release_unit(run)
    if not unit.done():
        table = audits(run)
        release = np.where(table["copy"], "withheld", "kept")
        why = table["why"].astype(object).where(table["copy"], NO_COPY)
        first = table[["synthetic_id", "generator", "fold", "label"]].assign(release=release, why=why)
        with unit.writing() as folder:
            rest = table.drop(columns=first.columns, errors="ignore")
            save_table(folder / "synthetic_release.csv", pd.concat([first, rest], axis=1))


def withheld(run: Run, generator: str, fold: int) -> np.ndarray:
    """Which images of a set may not be given away, since the audit calls them copies: (n,) bool, in the set's order."""
    return audit_unit(run, generator, fold).require().load_table("table.csv")["copy"].to_numpy(bool)


def withheld_words(run: Run, names: Iterable[str]) -> str:
    """A sentence, after a blank, on how many images of these generators are withheld; empty where none is."""
    found = np.concatenate([withheld(run, name, fold) for name in names for fold in ldm.folds_of(run)])
    n = int(found.sum())
    return f" {n} of {len(found)} synthetic images are withheld as copies of patients and not shown." if n else ""


def audits(run: Run) -> pd.DataFrame:
    """All audits, one row per image, with ``generator, fold``."""
    return _tables(audit_unit, audit_tasks(run), "table.csv")


def _tables(unit_of: Any, tasks: list[dict[str, Any]], name: str) -> pd.DataFrame:
    """A table of several units, with what tells their tasks apart."""
    parts = [unit_of(**task).load_table(name).assign(**{**task, "run": ""}) for task in tasks]
    return pd.concat(parts, ignore_index=True).drop(columns="run")


def units(run: Run) -> list[Unit]:
    """Every unit of the copy audit."""
    references = [reference_unit(**task) for task in reference_tasks(run)]
    return [*references, *(audit_unit(**task) for task in audit_tasks(run)), release_unit(run)]


# ---------------------------------------------------------------- what is read from it


def _references(run: Run, name: str) -> pd.DataFrame:
    """One of the references' tables, of all folds, under the first autoencoder."""
    tasks = reference_tasks(run)
    return _tables(reference_unit, [task for task in tasks if task["owner"] == tasks[0]["owner"]], name)


def calibration(run: Run) -> pd.DataFrame:
    """Whether the audit finds what it should and nothing else, over all folds.

    Returns
    -------
    pandas.DataFrame
        ``set, unit, n``, and the share found by each measure and by the verdict (``copy``), with an exact binomial
        interval of the latter (``low, high``): planted copies a row per image, held-out patients a row per PATIENT,
        found where any of their images is. ``by_chance``, of held-out patients: the largest share that the verdict
        flags of patients like the training patients (`copy_rules.by_chance`).
    """
    columns = [*(f"{name}_near" for name in copy_rules.MEASURES), "copy"]
    planted = _references(run, "planted.csv").groupby("planted", sort=False)
    sets = [(f"planted: {name}", "images", part[columns]) for name, part in planted]
    by_patient = _references(run, "held_out.csv").groupby("patient_id")[columns].any()
    rows = []
    for name, unit, found in [*sets, (HELD_OUT, "patients", by_patient)]:
        low, high = statistics.exact_interval(int(found["copy"].sum()), len(found))
        row = {"set": name, "unit": unit, "n": len(found), **found.mean().to_dict()}
        chance = _by_chance(run)[0]["verdict"] if name == HELD_OUT else float("nan")
        rows.append({**row, "low": low, "high": high, "by_chance": chance})
    return pd.DataFrame(rows)


def _by_chance(run: Run) -> tuple[dict[str, float], int]:
    """`copy_rules.by_chance` of the fold with the fewest training patients, and their number."""
    n = int(_references(run, "real.csv").groupby("fold")["patient_id"].nunique().min())
    return copy_rules.by_chance(n), n


def summary(run: Run) -> pd.DataFrame:
    """Share of each generator's images that are copies, beside held-out real images.

    Returns
    -------
    pandas.DataFrame
        ``set, n_images``, share near a training patient by each measure, ``copy`` with its exact ``low, high`` and what
        they are ``over`` (see `statistics.clustered_share`), ``authentic`` (synthetic only), ``patients_copied``:
        training patients whom a copy shows. Images of one fold and source patient, or of one held-out patient, count
        together.
    """
    rows = []
    held = _references(run, "held_out.csv").assign(authentic=float("nan"))
    for name, part in [*audits(run).groupby("generator", sort=False), (HELD_OUT, held)]:
        source = part["patient_id" if name == HELD_OUT else "source_patient"].astype(str)
        alone = source.where(source != "-1", [f"image {i}" for i in range(len(part))])  # drawn without a map
        cluster = part["fold"].astype(str) + ": " + alone
        mean, low, high = statistics.clustered_share(part["copy"], cluster)
        over = "patients (exact); this split" if name == HELD_OUT else _OVER_DRAWN
        row = {"set": name, "n_images": len(part), **{m: part[f"{m}_near"].mean() for m in copy_rules.MEASURES}}
        row |= {"copy": mean, "low": low, "high": high, "over": over, "authentic": part["authentic"].mean()}
        rows.append({**row, "patients_copied": part.loc[part["copy"], "pixels_patient"].nunique()})
    return pd.DataFrame(rows)


def copied_patients(run: Run) -> pd.DataFrame:
    """Which training patients copies show: ``patient_id, label, generator, copies, own_map``, most copied first.

    ``own_map`` counts the copies that were drawn from a map of the very patient they show.
    """
    table = audits(run).query("copy").rename(columns={"pixels_patient": "patient_id"})
    table["own_map"] = table["patient_id"] == table["source_patient"]
    grouped = table.groupby(["patient_id", "generator"])["own_map"].agg(copies="size", own_map="sum").reset_index()
    label = preprocessing.open_preprocessed(run).images.groupby("patient_id")["label"].first()
    grouped.insert(1, "label", label.reindex(grouped["patient_id"]).to_numpy())
    return grouped.sort_values("copies", ascending=False, kind="stable", ignore_index=True)


def reading(run: Run, found: pd.DataFrame, checked: pd.DataFrame) -> list[str]:
    """What the copy audit found, in sentences.

    Parameters
    ----------
    run : Run
    found : pandas.DataFrame
        Of `summary`.
    checked : pandas.DataFrame
        Of `calibration`.

    Returns
    -------
    list of str
    """
    lines = [
        f"{WORDS.get(row.set, row.set)}: {row.copy:.1%} of {row.n_images} images are copies"
        f" [{row.low:.1%}, {row.high:.1%} over images]; they show {row.patients_copied} training patients."
        for row in found.itertuples()
        if row.set != HELD_OUT
    ]
    *planted, held = checked.to_dict("records")
    names = {row["set"].removeprefix("planted: "): row for row in planted}
    whole = listed(name.removesuffix(" copies") for name, row in names.items() if row["copy"] == 1)
    parts = [f"{row['copy']:.0%} of {row['n']} {name}" for name, row in names.items() if row["copy"] < 1]
    seen = "; ".join([f"all {planted[0]['n']} planted copies of each of these kinds: {whole}"] * bool(whole) + parts)
    beyond = [row["set"].removeprefix("planted: ") for row in planted if row["copy"] < copies.FOUND]
    seen += f". Beyond it, as it finds fewer than {copies.FOUND:.0%} of them, are {listed(beyond)}" if beyond else ""
    chance, n = _by_chance(run)
    few = f"It flags {round(held['copy'] * held['n'])} of {held['n']} held-out patients."
    verdict, rule = (f"{100 * chance[name]:.3g} %" for name in ("verdict", "measure"))
    each = f"({rule} by pixels, {rule} by latents and features together)"
    if chance["measure"] > copy_rules.LEVEL:
        needed = int(np.ceil(2 / copy_rules.LEVEL)) - 1  # training patients, by `copy_rules.by_chance`
        few += f" With only {n} training patients to set the thresholds, up to {verdict} of new patients could be"
        few += f" flagged by chance {each}, so this audit shows little:"
        few += f" {100 * copy_rules.LEVEL:g} % per rule needs {needed}."
    else:
        few += f" With thresholds from {n} training patients, at most {verdict} are flagged by chance {each}."
    return [*lines, f"The copy audit finds {seen}.", few]


def claims(run: Run, found: pd.DataFrame, checked: pd.DataFrame) -> list[dict[str, Any]]:
    """Headline numbers of the copy audit, from what `reading` takes; the paper has none."""
    rows = []
    for row in found.to_dict("records"):
        numbers = row | {"mean": row["copy"], "n": row["n_images"]}
        key = key_of("copies.share", "held_out" if row["set"] == HELD_OUT else row["set"])
        text = f"copies of training patients, {WORDS.get(row['set'], row['set'])}"
        rows.append(of_row(key, text, numbers, unit="share of images"))
    for row in checked.to_dict("records"):
        numbers = row | {"mean": row["copy"], "over": f"{row['unit']} (binomial)"}
        parts = ("held_out",) if row["set"] == HELD_OUT else ("planted", row["set"].removeprefix("planted: "))
        text = f"copy audit, {row['set']}: share found"
        rows.append(of_row(key_of("copies.found", *parts), text, numbers, unit=f"share of {row['unit']}"))
    chance, n = _by_chance(run)
    for name, words in (("measure", "one measure calls near"), ("verdict", "the copy audit flags")):
        bound = {
            "mean": chance[name],
            "low": None,
            "high": None,
            "over": f"a bound, from {n} training patients",
            "n": n,
        }
        text = f"share of new patients that {words} by chance, at most"
        rows.append(of_row(key_of("copies.by_chance", name), text, bound, unit="share of patients"))
    return rows
