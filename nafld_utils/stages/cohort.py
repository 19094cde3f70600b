"""Stage 01: the cohort as a unit on disk, whatever it comes from. Opens and writes files."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from nafld_utils import cohort as cohorts
from nafld_utils import engine, phantom_folder, pixel_store, preprocess
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
    work_root,
)
from nafld_utils.cohort import Cohort
from nafld_utils.cohort_folder import SOURCES
from nafld_utils.cohort_table import WHOLE_LIST, CohortError, Problem, shown

COHORT = "cohort"
FOLDER_MODULES = ("cohort_checks", "cohort_folder", "cohort_table", "image_files", "pixel_store")


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
    return engine.once(unit, lambda: _build(run, unit))


def _build(run: Run, unit: Unit) -> None:
    simulated = run.settings.cohort.source == "simulated"
    if is_folder(run) or (simulated and run.settings.cohort.n_patients > phantom_folder.ABOVE):
        _build_streamed(run, unit)
        return
    with unit.writing() as folder:
        found = _simulated(run, folder) if simulated else _real(run)
        whole = len(found.images)
        found = found.subset_frames(run.settings.cohort.frames_per_patient)
        save_array(folder / "pixels.npy", found.pixels)
        if found.masks is not None:
            save_array(folder / "masks.npy", found.masks)
        _save_tables(folder, found, whole)


def _build_streamed(run: Run, unit: Unit) -> None:
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
    except ValueError as error:
        shutil.rmtree(unit.work, ignore_errors=True)
        raise error.written(run.root / WHOLE_LIST) if isinstance(error, CohortError) else error from None
    (run.root / WHOLE_LIST).unlink(missing_ok=True)  # of problems that are corrected
    with unit.writing() as folder:
        if isinstance(found.pixels, pixel_store.Ragged):
            save_array(folder / "shapes.npy", found.pixels.all_shapes)
        pixel_store.move(unit.work, folder, ["pixels", *["masks"] * (found.masks is not None)])
        _save_tables(folder, _traced(found, unit), len(found.images))


def _traced(found: Cohort, unit: Unit) -> Cohort:
    """The cohort whose text says where in the work folder the users' names of its patients lie."""
    before, mark, after = found.provenance["text"].rpartition(f", {SOURCES} has ")
    if not mark:
        return found
    path = unit.file(SOURCES).relative_to(work_root()).as_posix()
    return replace(found, provenance={**found.provenance, "text": f"{before}, {path} has {after}"})


def _save_tables(folder: Path, found: Cohort, whole: int) -> None:
    save_table(folder / "images.csv", found.images)
    save_table(folder / "patients.csv", found.patients)
    for name, table in (("given_folds.csv", found.folds), (SOURCES, found.sources)):
        if table is not None:
            save_table(folder / name, table)
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


def region_of(run: Run, found: Cohort, place: int, image: np.ndarray) -> np.ndarray:
    """Region of one image of the cohort, as `preprocess.find_region`.

    Parameters
    ----------
    run : Run
        Reads ``preprocess``.
    found : Cohort
        The run's cohort.
    place : int
        Row of its table.
    image : (H, W) uint8 ndarray
        That row's pixels.

    Returns
    -------
    (H, W) bool ndarray

    Raises
    ------
    CohortError
        The image has none; every image of the cohort that has none is named, by row and file of a folder's table.
    """
    try:
        return preprocess.find_region(image, run.settings.preprocess)
    except ValueError:
        raise _without_region(run, found).written(run.root / WHOLE_LIST) from None


def _without_region(run: Run, found: Cohort) -> CohortError:
    """What is wrong with each image without a region; a second look at all, since the first one stops nothing."""
    problems, of_user = [], is_folder(run) and found.sources is not None
    for place, image in enumerate(engine.progress(pixel_store.stream(found.pixels), "looking for regions")):
        try:
            preprocess.find_region(image, run.settings.preprocess)
        except ValueError as error:
            text = str(error).removeprefix("frame: ").removesuffix(".")
            name = found.images["image_id"].iloc[place]
            source = None if found.sources is None else found.sources.iloc[place]
            if of_user and isinstance(source["file"], str):
                name = shown(source["file"])
            problems.append(Problem(int(source["row"]) if of_user else None, f"{name}: {text}"))
    source = Path(run.settings.cohort.path).expanduser() if of_user else cohort_unit(run).path
    return CohortError(source, problems, whole="image")


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
        load_table(unit.file(name)) if unit.file(name).exists() else None for name in ("given_folds.csv", SOURCES)
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
