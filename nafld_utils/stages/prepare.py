"""Stages 01 and 02: the cohort and its preprocessed images as units on disk. Opens and writes files."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nafld_utils import cohort as cohorts
from nafld_utils import engine, folds, phantom_folder, pixel_store, preprocess
from nafld_utils.artifacts import (
    Run,
    Unit,
    file_sha256,
    load_array,
    load_table,
    read_manifest,
    save_array,
    save_json,
    save_table,
    unit_seed,
)
from nafld_utils.cohort import Cohort

COHORT, PREPROCESS, TRADITIONAL = "cohort", "preprocess", "traditional"
FOLDER_MODULES = ("cohort_folder", "cohort_table", "image_files", "pixel_store")


# ---------------------------------------------------------------- 01 the cohort


def cohort_unit(run: Run, fetch: bool = False) -> Unit:
    """Unit of the cohort: images, patients, pixels, provenance; tissue masks where it is simulated.

    Parameters
    ----------
    run : Run
        The run.
    fetch : bool
        Whether a missing real cohort may be downloaded.

    Raises
    ------
    ValueError
        The cohort is neither found nor stored.
    """
    s = run.settings.cohort
    settings = {"frames_per_patient": s.frames_per_patient, "fat_threshold": s.fat_threshold, "classes": s.class_names}
    if s.source == "simulated":
        settings |= {"n_patients": s.n_patients, "simulation_seed": s.simulation_seed}
        return run.unit(COHORT, settings=settings, modules=("cohort", "phantom", "phantom_anatomy"))
    modules = ["cohort", *FOLDER_MODULES] if is_folder(run) else ["cohort"]
    return run.unit(COHORT, settings=settings, inputs=_source(run, fetch), modules=modules)


def is_folder(run: Run) -> bool:
    """Whether the cohort is a folder of images; told by its path, or by what is stored where that has gone away."""
    path = run.settings.cohort.path
    if run.settings.cohort.source != "file" or path is None:
        return False
    given = Path(path).expanduser()
    if given.exists():
        return given.is_dir()
    return "cohort_folder" in (read_manifest(run.root / COHORT) or {}).get("revisions", {})


def _source(run: Run, fetch: bool) -> list[str]:
    """Content hash of the raw cohort; of the stored unit where the raw file has gone away since."""
    try:
        return [_content_of(cohorts.find(run.settings.cohort, run.data, fetch))]
    except ValueError:
        stored = read_manifest(run.root / COHORT)
        if fetch or stored is None:
            raise
        return stored["inputs"]


def _content_of(path: Path) -> str:
    """Hash of a file, or of everything in a folder but hidden files, which file managers leave."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    files = [item for item in files if not item.relative_to(path).name.startswith(".")]
    facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return _content(path, tuple(facts))


@functools.lru_cache(maxsize=8)
def _content(path: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    if path.is_file():
        return file_sha256(path)
    return cohorts.array_sha256(np.array([f"{name} {file_sha256(path / name)}" for name, _, _ in facts]))


def build_cohort(run: Run) -> Unit:
    """Load (or simulate, write in the real format and load) the cohort and seal its unit; nothing to do when done.

    Raises
    ------
    ValueError
        The cohort cannot be used; nothing is left behind.
    """
    unit = cohort_unit(run, fetch=True)
    if unit.done():
        return unit
    simulated = run.settings.cohort.source == "simulated"
    if is_folder(run) or (simulated and run.settings.cohort.n_patients > phantom_folder.ABOVE):
        return _build_streamed(run, unit)
    with unit.writing() as folder:
        found = _simulated(run, folder) if simulated else _real(run)
        whole = len(found.images)
        found = found.subset_frames(run.settings.cohort.frames_per_patient)
        save_array(folder / "pixels.npy", found.pixels)
        if found.masks is not None:
            save_array(folder / "masks.npy", found.masks)
        _save_tables(folder, found, whole)
    return unit


def _build_streamed(run: Run, unit: Unit) -> Unit:
    """The cohort of a folder, or a large simulated one: image by image into the unit's work folder, then sealed."""
    s, jobs = run.settings.cohort, _jobs(run)
    try:
        if s.source == "simulated":
            engine.announce(f"simulating {s.n_patients} patients")
            phantom_folder.write(unit.work, s.n_patients, s.simulation_seed, keep=s.frames_per_patient, n_jobs=jobs)
            found = cohorts.open_array_folder(unit.work, s.class_names)
        else:
            path = cohorts.find(s, run.data)
            found = cohorts.load(path, s.class_names, s.fat_threshold, unit.work, s.frames_per_patient)
    except ValueError:
        shutil.rmtree(unit.work, ignore_errors=True)
        raise
    with unit.writing() as folder:
        if isinstance(found.pixels, pixel_store.Ragged):
            save_array(folder / "shapes.npy", found.pixels.all_shapes)
        pixel_store.move(unit.work, folder, ["pixels", *["masks"] * (found.masks is not None)])
        _save_tables(folder, found, len(found.images))
    return unit


def _save_tables(folder: Path, found: Cohort, whole: int) -> None:
    save_table(folder / "images.csv", found.images)
    save_table(folder / "patients.csv", found.patients)
    for name, table in (("given_folds", found.folds), ("sources", found.sources)):
        if table is not None:
            save_table(folder / f"{name}.csv", table)
    save_json(folder / "provenance.json", {**found.provenance, "images": whole, "used": len(found.images)})
    save_table(folder / "duplicates.csv", cohorts.duplicates(found))


def _real(run: Run) -> Cohort:
    s = run.settings.cohort
    return cohorts.load(cohorts.find(s, run.data), s.class_names, s.fat_threshold)


def _jobs(run: Run) -> int:
    s = run.settings
    jobs = 1 if s.engine.mode == "serial" else s.engine.n_workers or engine.cores()
    return min(jobs, s.cohort.n_patients)


def _simulated(run: Run, folder: Path) -> Cohort:
    from nafld_utils import phantom

    s = run.settings.cohort
    engine.announce(f"simulating {s.n_patients} patients")
    made = phantom.simulate(s.n_patients, s.simulation_seed, n_jobs=_jobs(run))
    path = cohorts.write_mat(folder / "cohort.mat", made)
    return replace(cohorts.load(path, s.class_names, s.fat_threshold), masks=made.masks)


def open_cohort(run: Run) -> Cohort:
    """The stored cohort of a run; pixels and masks are memory-mapped.

    Raises
    ------
    ValueError
        Stage 01 has not been run with these settings.
    """
    unit = cohort_unit(run).require()
    masks, shapes = unit.file("masks.npy"), unit.file("shapes.npy")
    pixels = unit.load_array("pixels.npy", mmap=True)
    folds, sources = (
        load_table(unit.file(name)) if unit.file(name).exists() else None for name in ("given_folds.csv", "sources.csv")
    )
    return Cohort(
        images=unit.load_table("images.csv"),
        patients=unit.load_table("patients.csv"),
        pixels=pixel_store.Ragged(pixels, load_array(shapes)) if shapes.exists() else pixels,
        provenance=cohorts.read_provenance(unit.file("provenance.json")),
        masks=load_array(masks, mmap=True) if masks.exists() else None,
        folds=folds,
        sources=sources,
    )


# ---------------------------------------------------------------- 02 preprocessing


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """What every later stage reads; row ``i`` of the table belongs to row ``i`` of each array (memory-mapped).

    Attributes
    ----------
    images : pandas.DataFrame
        The cohort's ``image_id, patient_id, label, grade, sha256``, and ``fold``; ``crop_top, crop_left`` (pixels of
        the frame), ``region_pixels``, ``kept_share`` (share of the region that the crop keeps).
    folds : pandas.DataFrame
        ``patient_id, fold``.
    crops : (N, C, C) uint8 ndarray
        Regions, centre cropped, at original spacing.
    resized : (N, S, S) uint8 ndarray
        The whole crop resized; what held-out images use.
    pool : (N, K, S, S) uint8 ndarray
        K random resized crops an image.
    pool_boxes : (N, K, 4) float32 ndarray
        Their boxes: top, left, height, width in crop pixels.
    pool_maps : (N, K, M, M) uint8 ndarray
        Semantic maps of the pool.
    maps : (N, M, M) uint8 ndarray
        Semantic maps of `resized`.
    tissue : (N, S, S) uint8 ndarray or None
        Tissue codes of simulated images, cropped and resized like `resized`.
    unit : Unit
        Where this is stored.
    run : Run
        The run, from which the traditional arm's pool is opened.
    """

    images: pd.DataFrame
    folds: pd.DataFrame
    crops: np.ndarray
    resized: np.ndarray
    pool: np.ndarray
    pool_boxes: np.ndarray
    pool_maps: np.ndarray
    maps: np.ndarray
    tissue: np.ndarray | None
    unit: Unit
    run: Run

    @functools.cached_property
    def traditional_pool(self) -> np.ndarray:
        """(N, K, S, S) uint8 random resized crops, a share of them rotated; made when first asked for."""
        return build_traditional(self.run).load_array("pool.npy", mmap=True)


def preprocess_unit(run: Run) -> Unit:
    """Unit of folds, crops and semantic maps."""
    s = run.settings
    read = {key: value for key, value in s.section("preprocess").items() if not key.startswith("warp_")}
    settings = {"seed": s.seed, "folds": s.section("folds"), "preprocess": read}
    return run.unit(PREPROCESS, settings=settings, inputs=[cohort_unit(run)], modules=("folds", "preprocess"))


def build_preprocessed(run: Run) -> Unit:
    """Make the folds, crops, random resized crops and semantic maps of a run; nothing to do when done."""
    unit = preprocess_unit(run)
    if unit.done():
        return unit
    found, s = open_cohort(run), run.settings
    assigned = folds.make_folds(found.patients, s.folds.n_splits, s.folds.seed)
    images = found.images.merge(assigned, on="patient_id", how="left", validate="many_to_one")
    for fold in range(s.folds.n_splits):
        folds.split(images, fold)
    with unit.writing() as folder:
        arrays, placed = _arrays(run, found)
        save_table(folder / "folds.csv", assigned)
        save_table(folder / "images.csv", pd.concat([images, placed], axis=1))
        for name, array in arrays.items():
            save_array(folder / f"{name}.npy", array)
    return unit


def _arrays(run: Run, found: Cohort) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Every array of the unit and, row by row, where its crop lies in the frame."""
    s = run.settings.preprocess
    n, k, size, side = len(found.images), s.crops_per_image, s.image_size, s.map_size
    out = {
        "crops": np.empty((n, s.crop_size, s.crop_size), np.uint8),
        "resized": np.empty((n, size, size), np.uint8),
        "pool": np.empty((n, k, size, size), np.uint8),
        "pool_boxes": np.empty((n, k, 4), np.float32),
        "pool_maps": np.empty((n, k, side, side), np.uint8),
        "maps": np.empty((n, side, side), np.uint8),
    }
    if found.masks is not None:
        out["tissue"] = np.empty((n, size, size), np.uint8)
    rows = []
    for i, name in enumerate(engine.progress(found.images["image_id"], "preprocessing", total=n)):
        crop, facts = _place(found.pixels[i], s, name)
        rows.append(facts)
        out["crops"][i] = crop
        out["resized"][i] = preprocess.resize_box(crop, preprocess.whole_box(crop), size)
        for j, box in enumerate(_boxes(run, name, crop.shape)):
            out["pool_boxes"][i, j] = box
            out["pool"][i, j] = preprocess.resize_box(crop, box, size)
        out["maps"][i] = preprocess.semantic_maps(out["resized"][i : i + 1], s)[0]
        out["pool_maps"][i] = preprocess.semantic_maps(out["pool"][i], s)
        if found.masks is not None:
            tissue = preprocess.cut(found.masks[i], (facts["crop_top"], facts["crop_left"]), s.crop_size)
            out["tissue"][i] = preprocess.resize_box(tissue, preprocess.whole_box(tissue), size, labels=True)
    return out, pd.DataFrame(rows)


def _place(frame: np.ndarray, s: object, name: str) -> tuple[np.ndarray, dict[str, float]]:
    """Crop of a frame and where it lies."""
    try:
        region = preprocess.region_mask(frame, s.threshold, s.closing_radius)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    corner = preprocess.crop_corner(region, s.crop_size)
    crop = preprocess.cut(np.where(region, frame, 0).astype(np.uint8), corner, s.crop_size)
    kept = preprocess.cut(region, corner, s.crop_size).sum() / region.sum()
    facts = {
        "crop_top": corner[0],
        "crop_left": corner[1],
        "region_pixels": int(region.sum()),
        "kept_share": float(kept),
    }
    return crop, facts


def _boxes(run: Run, name: str, shape: tuple[int, int]) -> Iterator[tuple[float, float, float, float]]:
    s = run.settings.preprocess
    for j in range(s.crops_per_image):
        rng = np.random.default_rng(unit_seed(run.settings.seed, "crop", name, j))
        yield preprocess.random_box(shape, s.crop_scale, s.crop_ratio, rng)


def open_preprocessed(run: Run) -> Preprocessed:
    """The preprocessed images of a run; arrays are memory-mapped.

    Raises
    ------
    ValueError
        Stage 02 has not been run with these settings.
    """
    unit = preprocess_unit(run).require()
    names = ("crops", "resized", "pool", "pool_boxes", "pool_maps", "maps")
    tissue = unit.file("tissue.npy")
    return Preprocessed(
        images=unit.load_table("images.csv"),
        folds=unit.load_table("folds.csv"),
        **{name: load_array(unit.file(f"{name}.npy"), mmap=True) for name in names},
        tissue=load_array(tissue, mmap=True) if tissue.exists() else None,
        unit=unit,
        run=run,
    )


# ---------------------------------------------------------------- the traditional arm


def traditional_unit(run: Run) -> Unit:
    """Unit of the traditional arm's pool: its rotation belongs to the sweep's settings, so it is a unit of its own."""
    s = run.settings
    settings = {"seed": s.seed, "rotation": s.sweep.rotation, "rotation_probability": s.sweep.rotation_probability}
    return run.unit(TRADITIONAL, settings=settings, inputs=[preprocess_unit(run)], modules=("preprocess",))


def build_traditional(run: Run) -> Unit:
    """Random resized crops of other draws than the pool's, rotated with the sweep's probability; skipped when done.

    Notes
    -----
    Paper: "random resized crops of the original images, rotated between -5 and 5 degrees with a 25% chance".
    """
    unit = traditional_unit(run)
    if unit.done():
        return unit
    with unit.writing() as folder:
        pool, angles = _rotated_pool(run, open_preprocessed(run))
        save_array(folder / "pool.npy", pool)
        save_array(folder / "angles.npy", angles)
    return unit


def _rotated_pool(run: Run, data: Preprocessed) -> tuple[np.ndarray, np.ndarray]:
    s = run.settings
    pool, angles = np.empty(data.pool.shape, np.uint8), np.zeros(data.pool.shape[:2], np.float32)
    for i, name in enumerate(data.images["image_id"]):
        for j in range(pool.shape[1]):
            rng = np.random.default_rng(unit_seed(s.seed, "traditional", name, j))
            crop = data.crops[i]
            box = preprocess.random_box(crop.shape, s.preprocess.crop_scale, s.preprocess.crop_ratio, rng)
            if rng.random() < s.sweep.rotation_probability:
                angles[i, j] = rng.uniform(-s.sweep.rotation, s.sweep.rotation)
                crop = preprocess.rotate_about(crop, box, float(angles[i, j]))
            pool[i, j] = preprocess.resize_box(crop, box, s.preprocess.image_size)
    return pool, angles


# ---------------------------------------------------------------- claims


def _same(run: Run) -> str:
    """Whether the cohort is the paper's, in the words of the claims table."""
    if run.is_simulated:
        return "simulated cohort"
    provenance = open_cohort(run).provenance
    if provenance["kind"] not in ("published file", "same content"):
        return f"another cohort ({provenance['kind']})"
    k = run.settings.cohort.frames_per_patient
    return "yes" if k is None else f"{k} frames a patient"


def cohort_claims(run: Run, pairs: pd.DataFrame) -> list[dict[str, object]]:
    """Claims of stage 01: sizes beside the paper's, and how alike frames are.

    Parameters
    ----------
    run : Run
        The run.
    pairs : pandas.DataFrame
        From `describe.similarity`.
    """
    found, same = open_cohort(run), _same(run)
    label = found.patients["label"]
    healthy, fatty = run.settings.cohort.class_names
    counts = [
        ("patients", 55, len(label), "patients"),
        (f"patients, {healthy}", 17, int((label == 0).sum()), "patients"),
        (f"patients, {fatty}", 38, int((label == 1).sum()), "patients"),
        ("images", 550, len(found.images), "images"),
        ("images that differ from every other", None, found.images["sha256"].nunique(), "images"),
    ]
    rows = [
        {"claim": claim, "paper": paper, "this_run": value, "n": value, "unit": unit, "same_protocol": same}
        for claim, paper, value, unit in counts
    ]
    for pair, part in pairs.groupby("pair", sort=False)["correlation"]:
        low, middle, high = part.quantile([0.05, 0.5, 0.95])
        rows.append(
            {
                "claim": f"correlation of frames, {pair} (median)",
                "this_run": round(middle, 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "over": "pairs of frames, 5th to 95th percentile",
                "n": len(part),
                "unit": "correlation",
                "same_protocol": same if run.is_simulated else "not in the paper",
            }
        )
    return rows


def preprocess_claims(run: Run) -> list[dict[str, object]]:
    """Claims of stage 02: sizes of folds, crops and maps beside the paper's."""
    data, same = open_preprocessed(run), _same(run)
    held_out = data.folds["fold"].value_counts()
    kept = 100 * data.images["kept_share"]
    spans = [
        ("patients held out of a fold", 11, held_out, "patients"),
        ("patients training in a fold", 44, len(data.folds) - held_out, "patients"),
        ("images held out of a fold", 110, data.images["fold"].value_counts(), "images"),
    ]
    rows = [
        {
            "claim": f"{claim} (mean)",
            "paper": paper,
            "this_run": round(float(values.mean()), 1),
            "low": int(values.min()),
            "high": int(values.max()),
            "over": "folds, least to most",
            "n": len(values),
            "unit": unit,
            "same_protocol": same,
        }
        for claim, paper, values, unit in spans
    ]
    rows.extend(_size_claims(run))
    rows.append(
        {
            "claim": "share of the sector that the crop keeps (mean)",
            "this_run": round(float(kept.mean()), 1),
            "low": round(float(kept.min()), 1),
            "high": round(float(kept.max()), 1),
            "over": "images, least to most",
            "n": len(kept),
            "unit": "percent",
            "same_protocol": same if run.is_simulated else "not in the paper",
        }
    )
    return rows


def _size_claims(run: Run) -> list[dict[str, object]]:
    s, rows = run.settings.preprocess, []
    for claim, paper, value in (
        ("side of the centre crop", 320, s.crop_size),
        ("side of an image", 256, s.image_size),
        ("side of a semantic map", 128, s.map_size),
        ("classes of a semantic map", 5, s.map_classes),
    ):
        unit = "classes" if claim.startswith("classes") else "pixels"
        differs = "yes" if value == paper else f"scaled down to {value}" if value < paper else f"raised to {value}"
        rows.append({"claim": claim, "paper": paper, "this_run": value, "unit": unit, "same_protocol": differs})
    return rows
