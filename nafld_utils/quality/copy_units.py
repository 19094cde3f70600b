"""Stage 05, the search for copies: references a fold, an audit a set, the release list. Opens and writes files.

Contract: a fold's audit sees its own training patients, whom its generators saw, and its held-out patients only as
what is known to be no copy. Thresholds come from the training patients alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from nafld_utils import engine, ldm, preprocessing, sampling, statistics
from nafld_utils.artifacts import Run, Unit, key_of, of_row, remembered, save_json, save_table, unit_seed
from nafld_utils.artifacts.files import save_array
from nafld_utils.images import resize_box
from nafld_utils.networks import extract
from nafld_utils.params import SetName
from nafld_utils.quality import copies
from nafld_utils.quality.copies import MEASURES, STATISTICS

REVISION = ("stages.copies", 1)
FOLDER = "memorization"
PLANTED = {"exact copies": False, "augmented copies": True}
HELD_OUT = "real, held out"


def conditioning_of(run: Run, generator: str) -> str:
    """Model whose autoencoder measures a generator's images: its own; a baseline's is that of the model beside it."""
    name = ldm.reference(run) if generator in sampling.BASELINES else SetName.of(generator).conditioning
    return ldm.owner(run, name)


# ---------------------------------------------------------------- what real patients look like


def reference_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (fold, autoencoder)."""
    owners = dict.fromkeys(conditioning_of(run, name) for name in sampling.generators(run))
    return [{"run": run, "owner": owner, "fold": k} for owner in owners for k in ldm.folds_of(run)]


@remembered
def reference_unit(run: Run, owner: str, fold: int) -> Unit:
    """Unit of a fold's thresholds, with held-out images and planted copies judged by them."""
    kind = run.settings.quality.features
    return run.unit(
        FOLDER,
        "reference",
        owner,
        f"fold{fold}",
        settings={"n_planted": run.settings.quality.n_planted, "kind": kind, "seed": run.settings.seed, "fold": fold},
        inputs=[
            preprocessing.preprocess_unit(run),
            ldm.latents_unit(run, owner, fold),
            sampling.features_unit(run, kind, sampling.REAL),
        ],
        modules=["memorization", "autoencoder", "feature_networks", "stages.copies"],
    )


def make_reference(run: Run, owner: str, fold: int) -> None:
    """Measure how near real patients come to each other; does nothing when the unit is done.

    Writes ``thresholds.json``, ``real.csv`` (training images, their own patient left out), ``held_out.csv``,
    ``planted.csv`` and ``apart.npy``, the distance of every training crop to the nearest one of another patient.
    """
    unit = reference_unit(run, owner, fold)
    if unit.done():
        return
    search = Search(run, owner, fold)
    everyone = search.real(search.training)
    n_crops = search.data.pool.shape[1]
    own = search.data.images["patient_id"].to_numpy()[search.training]
    real = {name: copies.statistics(found.without_own(own)) for name, found in everyone.items()}
    limits = {name: copies.thresholds(found, own) for name, found in real.items()}
    crops = copies.nearest_features(search.known["features"], search.known["features"], search.crop_patients)
    apart = copies.statistics(crops.without_own(search.crop_patients))["distance"].to_numpy()
    assert len(apart) == len(own) * n_crops
    held = {name: copies.statistics(found) for name, found in search.real(search.held_out).items()}
    parts = []
    for name, augment in PLANTED.items():
        rng = np.random.default_rng(unit_seed(run.settings.seed, "planted", fold, augment))
        rows = rng.choice(search.training, min(run.settings.quality.n_planted, len(own)), replace=False)
        originals = np.stack(
            [search.data.pool[i, j] for i, j in zip(rows, rng.integers(0, n_crops, len(rows)), strict=True)]
        )
        images = copies.plant(originals, augment, resize_box, rng)
        found = {key: copies.statistics(one) for key, one in search(images).items()}
        parts.append(search.table(found, limits, rows).assign(planted=name))
    with unit.writing(device=str(search.device)) as folder:
        save_json(folder / "thresholds.json", limits)
        save_table(folder / "real.csv", search.table(real, limits, search.training))
        save_table(folder / "held_out.csv", search.table(held, limits, search.held_out))
        save_table(folder / "planted.csv", pd.concat(parts, ignore_index=True))
        save_array(folder / "apart.npy", apart)


class Search:
    """Nearest training frames of images under every measure, for one fold and autoencoder.

    Parameters
    ----------
    run, owner, fold
        As `reference_unit`.
    """

    def __init__(self, run: Run, owner: str, fold: int):
        self.run, self.fold = run, fold
        self.device = engine.device(run.settings.engine)
        self.data = preprocessing.open_preprocessed(run)
        held = self.data.images["fold"].to_numpy() == fold
        self.training, self.held_out = np.flatnonzero(~held), np.flatnonzero(held)
        self.patients = self.data.images["patient_id"].to_numpy()
        self.stage = ldm.first_stage(run, owner, fold).to(self.device)
        self.n_crops = self.data.pool.shape[1]
        self.crop_patients = np.repeat(self.patients[self.training], self.n_crops)
        moments = ldm.latents_unit(run, owner, fold).load_array("moments.npy", mmap=True)
        found, _ = sampling.load_features(run, run.settings.quality.features, sampling.REAL)
        self.moments = moments
        self.features = found.reshape(len(self.patients), self.n_crops, -1)
        shape = (len(self.crop_patients), -1)
        self.known = {
            "latents": self._latents(moments[self.training].reshape(-1, *moments.shape[2:])).reshape(shape),
            "features": self.features[self.training].reshape(shape),
        }

    def _latents(self, moments: np.ndarray) -> np.ndarray:
        return self.stage.draw(torch.from_numpy(np.array(moments)).to(self.device)).cpu().numpy()

    def real(self, rows: np.ndarray) -> dict[str, copies.Nearest]:
        """Nearest frames of the first stored crop of real images."""
        latents = self._latents(self.moments[rows, 0])
        return self._nearest(self.data.pool[rows, 0], latents, self.features[rows, 0])

    def __call__(self, images: np.ndarray, found: np.ndarray | None = None) -> dict[str, copies.Nearest]:
        """Nearest frames of images (n, S, S) uint8, whose features may be known already."""
        if found is None:
            chosen = self.run.settings.quality
            found, _ = extract(images, chosen.features, chosen.weights, self.device, 16)
        parts = [self._latents(ldm.encode_images(self.stage, part, self.device)) for part in _chunks(images)]
        return self._nearest(images, np.concatenate(parts), found)

    def _nearest(self, images: np.ndarray, latents: np.ndarray, found: np.ndarray) -> dict[str, copies.Nearest]:
        frames = np.asarray(self.data.resized[self.training])
        own = self.patients[self.training]
        out = {"pixels": copies.nearest_pixels(images, frames, own, self.device)}
        for name, queries in (("latents", latents), ("features", found)):
            flat = queries.reshape(len(queries), -1)
            out[name] = copies.nearest_features(flat, self.known[name], self.crop_patients, self.device)
        return out

    def table(
        self, found: dict[str, pd.DataFrame], limits: dict[str, dict[str, float]], rows: np.ndarray | None = None
    ) -> pd.DataFrame:
        """Statistics and flags side by side, with the image and patient of `rows` where these are real images."""
        table = pd.DataFrame(index=range(len(found["pixels"])))
        if rows is not None:
            table["image_id"] = self.data.images["image_id"].to_numpy()[rows]
            table["patient_id"] = self.patients[rows]
        ids = self.data.images["image_id"].to_numpy()[self.training]
        for name, one in found.items():
            place = one["row"].to_numpy() // (1 if name == "pixels" else self.n_crops)
            table[f"{name}_patient"], table[f"{name}_image"] = one["patient"].to_numpy(), ids[place]
            for statistic in STATISTICS:
                table[f"{name}_{statistic}"] = one[statistic].to_numpy()
        flags = copies.flags(found, limits)
        return pd.concat([table, flags.rename(columns={name: f"{name}_near" for name in MEASURES})], axis=1)


def _chunks(images: np.ndarray, size: int = 256) -> list[np.ndarray]:
    return [np.asarray(images[start : start + size]) for start in range(0, len(images), size)]


# ---------------------------------------------------------------- the audit


def audit_tasks(run: Run) -> list[dict[str, Any]]:
    """One task a (generator, fold)."""
    return [{"run": run, "generator": g, "fold": k} for g in sampling.generators(run) for k in ldm.folds_of(run)]


@remembered
def audit_unit(run: Run, generator: str, fold: int) -> Unit:
    """Unit of a set's audit."""
    return run.unit(
        FOLDER,
        "audit",
        generator,
        f"fold{fold}",
        settings={},
        inputs=[
            reference_unit(run, conditioning_of(run, generator), fold),
            sampling.features_unit(run, run.settings.quality.features, generator, fold),
        ],
        modules=["memorization", "stages.copies"],
    )


def audit(run: Run, generator: str, fold: int) -> None:
    """Compare every image of a set with the training frames; does nothing when the unit is done.

    Writes ``table.csv``: ``synthetic_id, label, source_patient``, nearest image and patient, distance and relative
    distance under every measure, ``*_near``, ``authentic``, ``copy``, ``why``.
    """
    unit = audit_unit(run, generator, fold)
    if unit.done():
        return
    owner = conditioning_of(run, generator)
    reference = reference_unit(run, owner, fold).require()
    limits = pd.read_json(reference.file("thresholds.json")).to_dict()
    drawn = sampling.open_synthetic(**sampling.task_of(run, generator, fold))
    search = Search(run, owner, fold)
    found, _ = sampling.load_features(run, run.settings.quality.features, generator, fold)
    near = {name: copies.statistics(one) for name, one in search(drawn.images, found).items()}
    own = pd.DataFrame({"distance": reference.load_array("apart.npy")})
    table = search.table(near, limits).assign(authentic=copies.authentic(near["features"], own))
    facts = drawn.table[["synthetic_id", "label", "source_patient"]].reset_index(drop=True)
    with unit.writing(device=str(search.device)) as folder:
        save_table(folder / "table.csv", pd.concat([facts, table], axis=1))


def build(run: Run) -> None:
    """Everything of the search that is not there yet, and the release list."""
    engine.map_units(make_reference, reference_tasks(run), run.settings.engine, "real patients", unit_of=reference_unit)
    engine.map_units(audit, audit_tasks(run), run.settings.engine, "search for copies", unit_of=audit_unit)
    unit = release_unit(run)
    if not unit.done():
        table = audits(run)
        why = (
            table["why"]
            .astype(object)
            .where(table["copy"], "no measure that counts finds a training patient this near")
        )
        out = table.assign(release=np.where(table["copy"], "withheld", "kept"), why=why)
        first = ["synthetic_id", "generator", "fold", "label", "release", "why"]
        with unit.writing() as folder:
            save_table(folder / "synthetic_release.csv", out[[*first, *[c for c in out if c not in first]]])


@remembered
def release_unit(run: Run) -> Unit:
    """Unit of ``synthetic_release.csv``: every synthetic image, kept or withheld, and why."""
    inputs = [audit_unit(**task) for task in audit_tasks(run)]
    return run.unit(FOLDER, "release", settings={}, inputs=inputs, modules=["stages.copies"])


def audits(run: Run) -> pd.DataFrame:
    """All audits, one row an image, with ``generator, fold``."""
    parts = [
        audit_unit(**task).load_table("table.csv").assign(generator=task["generator"], fold=task["fold"])
        for task in audit_tasks(run)
    ]
    return pd.concat(parts, ignore_index=True)


def units(run: Run) -> list[Unit]:
    """Every unit of the search."""
    tasks = [reference_unit(**task) for task in reference_tasks(run)]
    return [*tasks, *(audit_unit(**task) for task in audit_tasks(run)), release_unit(run)]


# ---------------------------------------------------------------- what is read from it


def _references(run: Run, name: str) -> pd.DataFrame:
    """One of the references' tables, of all folds, under the first autoencoder."""
    owner = reference_tasks(run)[0]["owner"]
    mine = [task for task in reference_tasks(run) if task["owner"] == owner]
    return pd.concat([reference_unit(**t).load_table(name).assign(fold=t["fold"]) for t in mine], ignore_index=True)


def calibration(run: Run) -> pd.DataFrame:
    """Whether the search finds what it should and nothing else, over all folds.

    Returns
    -------
    pandas.DataFrame
        ``set, unit, n``, and the share found by each measure and by the verdict (``copy``), with an exact binomial
        interval of the latter (``low, high``): planted copies a row an image, held-out patients a row a PATIENT, found
        where any of their images is; their nominal rate is `copies.LEVEL` a measure.
    """
    planted, held = _references(run, "planted.csv"), _references(run, "held_out.csv")
    columns = [*(f"{name}_near" for name in MEASURES), "copy"]
    rows = [
        _share(part[columns], {"set": f"planted: {name}", "unit": "images"})
        for name, part in planted.groupby("planted", sort=False)
    ]
    by_patient = held.groupby("patient_id")[columns].any()
    return pd.DataFrame([*rows, _share(by_patient, {"set": HELD_OUT, "unit": "patients"})])


def _share(found: pd.DataFrame, facts: dict[str, Any]) -> dict[str, Any]:
    low, high = statistics.exact_interval(int(found["copy"].sum()), len(found))
    return {**facts, "n": len(found), **found.mean().to_dict(), "low": low, "high": high}


def summary(run: Run) -> pd.DataFrame:
    """Share of each generator's images that are copies, beside held-out real images.

    Returns
    -------
    pandas.DataFrame
        ``set, n_images``, share near a training patient by each measure, ``copy`` with ``low, high`` (Student t over
        folds), ``authentic`` (synthetic only), ``patients_copied``: training patients whom a copy shows.
    """
    rows = []
    table, held = audits(run), _references(run, "held_out.csv")
    for name, part in [*table.groupby("generator", sort=False), (HELD_OUT, held)]:
        mean, low, high = statistics.over_folds(part.groupby("fold")["copy"].mean())
        row = {"set": name, "n_images": len(part), **{m: part[f"{m}_near"].mean() for m in MEASURES}}
        row |= {"copy": mean, "low": max(low, 0.0), "high": min(high, 1.0)}
        row["authentic"] = part["authentic"].mean() if "authentic" in part else float("nan")
        rows.append({**row, "patients_copied": part.loc[part["copy"], "pixels_patient"].nunique()})
    return pd.DataFrame(rows)


def copied_patients(run: Run) -> pd.DataFrame:
    """Which training patients copies show: ``patient_id, label, generator, copies, own_map``, most copied first.

    ``own_map`` counts the copies that were drawn from a map of the very patient they show.
    """
    table = audits(run)
    found = table[table["copy"]]
    images = preprocessing.open_preprocessed(run).images.drop_duplicates("patient_id").set_index("patient_id")
    found = found.assign(own_map=found["pixels_patient"] == found["source_patient"])
    grouped = found.groupby(["pixels_patient", "generator"])["own_map"].agg(copies="size", own_map="sum").reset_index()
    grouped = grouped.rename(columns={"pixels_patient": "patient_id"})
    grouped.insert(1, "label", images["label"].reindex(grouped["patient_id"]).to_numpy())
    return grouped.sort_values("copies", ascending=False, kind="stable", ignore_index=True)


def closest(run: Run, generator: str, n: int = 4) -> pd.DataFrame:
    """The `n` images of a generator that come nearest to a training frame by pixels, each with that frame.

    Returns
    -------
    pandas.DataFrame
        ``synthetic_id, fold, patient, correlation, copy``, ``image`` and ``nearest`` ((S, S) uint8).
    """
    table = audits(run)
    table = table[table["generator"] == generator].nsmallest(n, "pixels_distance")
    rows = []
    for item in table.to_dict("records"):
        drawn = sampling.open_synthetic(**sampling.task_of(run, generator, item["fold"]))
        place = int(np.flatnonzero(drawn.table["synthetic_id"] == item["synthetic_id"])[0])
        row = {"synthetic_id": item["synthetic_id"], "fold": item["fold"], "patient": item["pixels_patient"]}
        row |= {"correlation": 1.0 - item["pixels_distance"], "copy": item["copy"]}
        rows.append({**row, "image": np.asarray(drawn.images[place]), "nearest": frame(run, item["pixels_image"])})
    return pd.DataFrame(rows)


def frame(run: Run, image_id: str) -> np.ndarray:
    """A real image as synthetic ones are compared with it, (S, S) uint8: its whole crop, resized."""
    data = preprocessing.open_preprocessed(run)
    return np.asarray(data.resized[int(np.flatnonzero(data.images["image_id"] == image_id)[0])])


def reading(run: Run) -> list[str]:
    """What the search found, in sentences."""
    found, checked = summary(run), calibration(run).set_index("set")
    held = checked.loc[HELD_OUT]
    lines = [
        f"{row.set}: {row.copy:.1%} of {row.n_images} images are copies [{row.low:.1%}, {row.high:.1%} over folds];"
        f" they show {row.patients_copied} training patients."
        for row in found[found["set"] != HELD_OUT].itertuples()
    ]
    planted = ", ".join(f"{row['copy']:.0%} of {row['n']} {name.removeprefix('planted: ')}" for name, row in
                        checked.drop(index=HELD_OUT).iterrows())  # fmt: skip
    return [*lines, f"The search finds {planted}; it flags {held['copy']:.0%} of {held['n']} held-out patients."]


def claims(run: Run) -> list[dict[str, Any]]:
    """Headline numbers of the copy audit; the paper has none."""
    rows, n_folds = [], len(ldm.folds_of(run))
    for row in summary(run).to_dict("records"):
        numbers = row | {"mean": row["copy"], "over": "folds", "n": n_folds}
        key = key_of("copies.share", "held_out" if row["set"] == HELD_OUT else row["set"])
        rows.append(of_row(key, f"copies of training patients, {row['set']}", numbers, unit="share of images"))
    for row in calibration(run).to_dict("records"):
        numbers = row | {"mean": row["copy"], "over": f"{row['unit']} (binomial)"}
        parts = ("held_out",) if row["set"] == HELD_OUT else ("planted", row["set"].removeprefix("planted: "))
        text = f"search for copies, {row['set']}: share found"
        rows.append(of_row(key_of("copies.found", *parts), text, numbers, unit=f"share of {row['unit']}"))
    return rows
