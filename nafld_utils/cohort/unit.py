"""Stage 01: the cohort as a unit on disk, whatever it comes from, and what its images have in common."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, images
from nafld_utils.artifacts import Run, Unit, claim, key_of
from nafld_utils.cohort import description, folder_files, image_folder, loading, simulation
from nafld_utils.cohort.data import Cohort, array_sha256, duplicates
from nafld_utils.cohort.image_folder import SOURCES
from nafld_utils.cohort.one_person import People
from nafld_utils.cohort.problems import WHOLE_LIST, CohortError, Problem, shown
from nafld_utils.images import crop_window, stream

COHORT = "cohort"
FOLDER_MODULES = tuple(
    ["cohort_checks", "cohort_folder", "cohort_table", "dicom_files", "file_tags", "image_files", "pixel_store"]
)
FOLDS, MAT, TAGS = "given_folds.csv", "cohort.mat", "file_tags.csv"
SIDE = 64  # pixels of the square in which images of any shape are compared (choice): coarser than texture
SECTOR = (("depth", "Over depth, central half of the sector"), ("lateral", "Over angle, middle third of the depths"))
SQUARE = (("rows", "Over the region's height"), ("columns", "Over the region's width"))


def cohort_unit(run: Run, fetch: bool = False) -> Unit:
    """Unit of the cohort: images, patients, pixels, provenance; tissue masks where it is simulated.

    With `fetch` a missing real cohort is downloaded; else ValueError where it is neither found nor stored.
    """
    s = run.settings.cohort
    settings = {"frames_per_patient": s.frames_per_patient, "fat_threshold": s.fat_threshold, "classes": s.class_names}
    if s.source == "simulated":
        settings |= {"n_patients": s.n_patients, "simulation_seed": s.simulation_seed}
        return run.unit(COHORT, settings=settings, modules=("cohort", "phantom", "phantom_anatomy"))
    settings |= {"leave_out": s.leave_out} if s.leave_out else {}
    modules = ["cohort", *FOLDER_MODULES] if is_folder(run) else ["cohort"]
    if (s.alike_names, s.join) != People()[:2]:  # the units of runs before these settings stay as they are
        settings |= {"alike_names": s.alike_names, "join": _joins(run)}
        modules += ["patient_names"]
    usual = {"patient_numbers": People().numbers, "burned_in": People().burned_in} if is_folder(run) else {}
    settings |= {name: getattr(s, name) for name, value in usual.items() if getattr(s, name) != value}
    return run.unit(COHORT, settings=settings, inputs=_source(run, fetch), modules=modules)


def _joins(run: Run) -> str | None:
    """Content hash of the table ``cohort.join``; that of the stored unit where the table has gone away since."""
    join = run.settings.cohort.join
    if join is None or Path(join).expanduser().is_file():
        return join and content_of(Path(join).expanduser())
    stored = artifacts.read_manifest(run.root / COHORT) or {}
    return stored.get("settings", {}).get("join", join)


def is_folder(run: Run) -> bool:
    """Whether the cohort is a folder of images; told by its path, or by what is stored where that has gone away."""
    path = run.settings.cohort.path
    if run.settings.cohort.source != "file" or path is None:
        return False
    given = Path(path).expanduser()
    if given.exists():
        return given.is_dir()
    return "cohort_folder" in (artifacts.read_manifest(run.root / COHORT) or {}).get("revisions", {})


def _source(run: Run, fetch: bool) -> list[str]:
    """Content hash of the raw cohort; of the stored unit where the raw file has gone away since."""
    try:
        return [content_of(loading.find(run.settings.cohort, run.data, fetch))]
    except ValueError:
        stored = artifacts.read_manifest(run.root / COHORT)
        if fetch or stored is None:
            raise
        return stored["inputs"]


def content_of(path: Path) -> str:
    """Hash of a file, or of the files that a folder cohort is made of."""
    files = [path] if path.is_file() else folder_files.content_files(path)
    facts = [(os.path.relpath(f, path), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return _content(path, tuple(facts))


@functools.lru_cache(maxsize=8)
def _content(path: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    if path.is_file():
        return artifacts.file_sha256(path)
    return array_sha256(np.array([f"{name} {artifacts.file_sha256(path / name)}" for name, _, _ in facts]))


# ---------------------------------------------------------------- making and opening


def build_cohort(run: Run) -> Unit:
    """Load (or simulate, write in the real format and load) the cohort and seal its unit; nothing to do when done.

    ValueError where the cohort cannot be used; nothing is left behind.
    """
    unit = cohort_unit(run, fetch=True)
    return engine.once(unit, lambda: _build(run, unit))


def _build(run: Run, unit: Unit) -> None:
    started = time.perf_counter()
    try:
        found = _load(run, unit.work)
        decoded = found.provenance.get("format") == "folder"  # image by image into the work folder
        part = found if decoded else found.subset_frames(run.settings.cohort.frames_per_patient)
    except ValueError as error:
        shutil.rmtree(unit.work, ignore_errors=True)
        raise error.written(run.root / WHOLE_LIST) if isinstance(error, CohortError) else error from None
    (run.root / WHOLE_LIST).unlink(missing_ok=True)  # of problems that are corrected
    with unit.writing(seconds=time.perf_counter() - started) as folder:
        if (unit.work / MAT).exists():
            os.replace(unit.work / MAT, folder / MAT)
        if isinstance(part.pixels, images.Ragged):
            artifacts.files.save_array(folder / "shapes.npy", part.pixels.all_shapes)
        for name, values in (("pixels", part.pixels), ("masks", part.masks)):
            if decoded and values is not None:
                images.move(unit.work, folder, [name])
            elif values is not None:
                artifacts.files.save_array(folder / f"{name}.npy", values)
        _save_tables(folder, _traced(part, unit), found.provenance.get("images", len(found.images)))


def _load(run: Run, work: Path) -> Cohort:
    """The cohort found or simulated; what lies on disk until it is stored lies in the folder `work`."""
    s = run.settings.cohort
    if s.source != "simulated":
        people = People.of(s)
        found = loading.find(s, run.data)
        return loading.load(found, s.class_names, s.fat_threshold, work, s.frames_per_patient, people)
    engine.announce(f"simulating {s.n_patients} patients")
    jobs = 1 if run.settings.engine.mode == "serial" else run.settings.engine.n_workers or engine.cores()
    jobs = min(jobs, s.n_patients)
    if s.n_patients > simulation.ABOVE:
        simulation.write_folder(work, s.n_patients, s.simulation_seed, keep=s.frames_per_patient, n_jobs=jobs)
        return image_folder.read(work, s.class_names, in_place=True)
    made = simulation.simulate(s.n_patients, s.simulation_seed, n_jobs=jobs)
    path = loading.write_mat(work / MAT, made)  # the real format, read by the real loader
    return replace(loading.load(path, s.class_names, s.fat_threshold), masks=made.masks)


def _traced(found: Cohort, unit: Unit) -> Cohort:
    """The cohort whose text says where in the work folder the users' names of its patients lie."""
    before, mark, after = found.provenance["text"].rpartition(f", {SOURCES} has ")
    if not mark:
        return found
    path = unit.file(SOURCES).relative_to(artifacts.work_root()).as_posix()
    return replace(found, provenance={**found.provenance, "text": f"{before}, {path} has {after}"})


def _save_tables(folder: Path, found: Cohort, whole: int) -> None:
    artifacts.save_table(folder / "images.csv", found.images)
    artifacts.save_table(folder / "patients.csv", found.patients)
    for name, table in ((FOLDS, found.folds), (SOURCES, found.sources), (TAGS, found.file_tags)):
        if table is not None:
            artifacts.save_table(folder / name, table)
    artifacts.save_json(folder / "provenance.json", {**found.provenance, "images": whole, "used": len(found.images)})
    artifacts.save_table(folder / "duplicates.csv", duplicates(found))


def open_cohort(run: Run) -> Cohort:
    """The stored cohort of a run, pixels and masks memory-mapped; ValueError where stage 01 has not been run so."""
    unit = cohort_unit(run).require()
    stored = {path.name for path in unit.path.iterdir()}
    pixels = unit.load_array("pixels.npy", mmap=True)
    if "shapes.npy" in stored:
        pixels = images.Ragged(pixels, artifacts.files.load_array(unit.file("shapes.npy")))
    return Cohort(
        images=unit.load_table("images.csv"),
        patients=unit.load_table("patients.csv"),
        pixels=pixels,
        provenance=json.loads(unit.file("provenance.json").read_text(encoding="utf-8")),
        masks=unit.load_array("masks.npy", mmap=True) if "masks.npy" in stored else None,
        folds=unit.load_table(FOLDS) if FOLDS in stored else None,
        sources=unit.load_table(SOURCES) if SOURCES in stored else None,
        file_tags=unit.load_table(TAGS) if TAGS in stored else None,
    )


# ---------------------------------------------------------------- regions and likeness


def region_of(run: Run, found: Cohort, place: int, image: np.ndarray) -> np.ndarray:
    """Region, (H, W) bool, of the image in row `place` of a run's cohort, as `images.find_region`.

    A `CohortError` names every image of the cohort that has none, by row and file of a folder's table.
    """
    try:
        return images.find_region(image, run.settings.preprocess)
    except ValueError:
        raise _without_region(run, found).written(run.root / WHOLE_LIST) from None


def _without_region(run: Run, found: Cohort) -> CohortError:
    """What is wrong with each image without a region; a second look at all, since the first one stops nothing."""
    problems, of_user = [], is_folder(run) and found.sources is not None
    for place, image in enumerate(engine.progress(images.stream(found.pixels), "looking for regions")):
        try:
            images.find_region(image, run.settings.preprocess)
        except ValueError as error:
            row, name = None, found.images["image_id"].iloc[place]
            if of_user:
                source = found.sources.iloc[place]
                row = int(source["row"])
                name = shown(source["file"]) if isinstance(source["file"], str) else name
            text = str(error).removeprefix("frame: ").removesuffix(".")
            problems.append(Problem(row, f"{name}: {text}"))
    source = Path(run.settings.cohort.path).expanduser() if of_user else cohort_unit(run).path
    return CohortError(source, problems, whole="image")


class Likeness(NamedTuple):
    """``pairs`` of `description.similarity`; ``curves``, one per patient; ``panels``: their kinds and titles."""

    pairs: pd.DataFrame
    curves: pd.DataFrame
    panels: tuple[tuple[str, str], ...]


def likeness(run: Run) -> Likeness:
    """Likeness of images and brightness over the region, one image at a time in memory.

    The paper's frames are sectors of one shape, compared pixel by pixel and read over depth and angle. Images of a
    folder may have any size and shape: each one's region is brought to one square, and read over its height and width.
    """
    found = open_cohort(run)
    if run.is_foreign:
        seen = squares(run, found, "comparing images")
        pairs = description.similarity(found.images, seen, np.ones((SIDE, SIDE), dtype=bool), step=1)
        return Likeness(pairs, description.square_profiles(found.patients, found.images, seen), SQUARE)
    first = found.images.groupby("patient_id", sort=False).head(1).index
    inside = np.stack([region_of(run, found, i, found.pixels[i]) for i in first])
    pairs = description.similarity(found.images, found.pixels, inside.all(axis=0))
    return Likeness(pairs, description.profiles(found.patients, found.images, found.pixels, inside), SECTOR)


def squares(run: Run, found: Cohort, label: str) -> np.ndarray:
    """(N, SIDE, SIDE) uint8: the bounding square of each image's region, resized; `label` is what progress says."""
    out = np.empty((len(found.images), SIDE, SIDE), dtype=np.uint8)
    own: dict[int, np.ndarray] = {}  # frames of the paper's kind show one sector per patient
    for row, image in enumerate(engine.progress(stream(found.pixels), label, total=len(out))):
        patient = int(found.images["patient_id"].iloc[row])
        region = None if run.is_foreign else own.get(patient)
        region = own[patient] = region_of(run, found, row, image) if region is None else region
        square = crop_window(region, run.settings.preprocess, fit=True)
        out[row] = square.cut(np.where(region, image, 0).astype(np.uint8), SIDE)
    return out


# ---------------------------------------------------------------- claims


def same_protocol(run: Run) -> str:
    """Whether the cohort is the paper's, in the words of the claims table."""
    if run.is_simulated:
        return "simulated cohort"
    provenance = open_cohort(run).provenance
    if provenance["kind"] not in ("published file", "same content"):
        return f"another cohort ({provenance['kind']})"
    k = run.settings.cohort.frames_per_patient
    return "yes" if k is None else f"{k} frames per patient"


def cohort_claims(run: Run, pairs: pd.DataFrame) -> list[dict[str, object]]:
    """Claims of stage 01: sizes beside the paper's, and how alike frames are.

    Parameters
    ----------
    run : Run
    pairs : pandas.DataFrame
        Of `cohort.likeness`: ``pair, correlation``.

    Returns
    -------
    list of dict
        As `artifacts.claim` makes them.
    """
    found, same = open_cohort(run), same_protocol(run)
    label = found.patients["label"]
    healthy, fatty = run.settings.cohort.class_names
    counts = (
        ("patients", "patients", 55, len(label)),
        ("patients.label_0", f"patients, {healthy}", 17, int((label == 0).sum())),
        ("patients.label_1", f"patients, {fatty}", 38, int((label == 1).sum())),
        ("images", "images", 550, len(found.images)),
        ("images.distinct", "images that differ from every other", None, found.images["sha256"].nunique()),
    )
    rows = [
        claim(f"cohort.{key}", text, value, same, n=value, unit=key.split(".")[0], paper=paper)
        for key, text, paper, value in counts
    ]
    for pair, part in pairs.groupby("pair", sort=False)["correlation"]:
        low, middle, high = (round(value, 3) for value in part.quantile([0.05, 0.5, 0.95]))
        bounds = (low, high, "pairs of frames, 5th to 95th percentile")
        key, text = key_of("cohort.correlation", pair), f"correlation of frames, {pair} (median)"
        own = same if run.is_simulated else "not in the paper"
        rows.append(claim(key, text, middle, own, interval=bounds, n=len(part), unit="correlation"))
    return rows
