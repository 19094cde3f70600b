"""The simulated cohort: patients of `phantom` in memory or, for large cohorts, one by one into a folder.

The folder is a cohort of `image_folder`, read through a memory map: ``images.csv``, ``pixels.npy``, ``masks.npy`` and
the mark ``cohort.json``. A killed simulation goes on with the patient it was at, and the bytes are those of `simulate`
for the same patients::

    python -m nafld_utils.cohort.simulation --patients 500 --seed 1 data/raw/five-hundred
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, images, phantom
from nafld_utils.cohort import folder_files, image_folder
from nafld_utils.cohort.data import Cohort, from_arrays, image_id, spread

REVISION = ("phantom_folder", 1)
ABOVE = 200  # patients; from here on a run's simulated cohort is written so (choice: 200 hold 1.1 GB in memory)
FATTY_FROM = 5  # percent of hepatocytes; label 1 from here on, as in the real cohort
FEATURE_FAT = 80  # percent, of the patients with the feature where only one depends on the label; the effect is full


def simulate(
    n_patients: int,
    seed: int,
    n_frames: int = 10,
    n_jobs: int = 1,
    feature: str | None = None,
    variant: phantom.Variant = phantom.FULL,
) -> Cohort:
    """Simulate a cohort in the structure of the real one.

    Parameters
    ----------
    n_patients : int >= 1
        Both classes are present from two patients on.
    seed : int >= 0
        With the patient's number it decides everything about a patient.
    n_frames : int >= 1
        Frames per patient; frame f does not depend on how many follow.
    n_jobs : int >= 1
        Processes that share the patients; the result does not depend on it.
    feature : str, optional
        One of `phantom.FEATURES`: the one thing in the images that depends on the label (see `phantom.anatomy`);
        half of the patients then have no fat, the others `FEATURE_FAT` percent. None: all that steatosis changes.
    variant : phantom.Variant
        What fat changes, and by which scanners the patients are seen.

    Returns
    -------
    Cohort
        `pixels` and `masks` are (n_patients * n_frames, 434, 636) uint8; mask codes are `phantom.TISSUES`;
        patients are numbered from 1; `provenance["kind"]` is "simulated".

    Raises
    ------
    ValueError
        When a count is below its minimum, or `feature` is unknown.
    """
    _check_counts(n_patients=n_patients, seed=seed, n_frames=n_frames, n_jobs=n_jobs)
    fats = draw_fat(n_patients, seed, variant) if feature is None else _with_and_without(n_patients, seed)
    pixels = np.empty((n_patients, n_frames, *phantom.FRAME_SHAPE), np.uint8)
    masks = np.empty_like(pixels)
    for i, made in enumerate(_patients(range(n_patients), fats, (seed, n_frames, feature, variant), n_jobs)):
        pixels[i], masks[i] = made
    text = _sentence(n_patients, n_frames, seed, variant) + (f" The label shows in {feature} alone." if feature else "")
    return from_arrays(pixels, fats, fats >= FATTY_FROM, {"kind": "simulated", "text": text}, masks)


def write_folder(
    folder: str | Path,
    n_patients: int,
    seed: int,
    n_frames: int = 10,
    keep: int | None = None,
    n_jobs: int = 1,
    variant: phantom.Variant = phantom.FULL,
) -> Path:
    """Simulate a cohort as `simulate` does into a folder, and return it; an unfinished one is completed.

    Of every patient's images `keep` are written, spread evenly; all by default. ValueError also where the folder holds
    another simulation.
    """
    _check_counts(n_patients=n_patients, seed=seed, n_frames=n_frames, n_jobs=n_jobs)
    folder, chosen = Path(folder), spread(n_frames, keep)
    text, fats = _sentence(n_patients, n_frames, seed, variant), draw_fat(n_patients, seed, variant)
    if len(chosen) < n_frames:
        text += f" {len(chosen)} frames of each are kept."
    array = ((n_patients * len(chosen), *phantom.FRAME_SHAPE), np.uint8)
    with images.Store(folder, {"pixels": array, "masks": array}, refuse_other=True) as store:
        if store.facts not in ({}, {"text": text}):
            raise ValueError(
                f"{folder}: expected no other cohort, found {store.facts.get('text')}; name another folder."
            )
        store.facts = {"text": text}
        missing = range(store.done // len(chosen), n_patients)
        made = _patients(missing, fats, (seed, n_frames, None, variant), n_jobs)
        for i in engine.progress(missing, "simulating patients"):
            frames, masks = next(made)
            for j, frame in enumerate(chosen):
                store.put("pixels", i * len(chosen) + j, frames[frame])
                store.put("masks", i * len(chosen) + j, masks[frame])
            store.commit((i + 1) * len(chosen))
    artifacts.save_json(folder / folder_files.MARK_FILE, {image_folder.MARK: text, "model": "phantom"})
    names = [image_id(patient + 1, frame) for patient in range(n_patients) for frame in chosen]
    table = {"patient": np.arange(n_patients) + 1, "label": (fats >= FATTY_FROM).astype(int), "grade": fats}
    table = pd.DataFrame(table).loc[np.repeat(np.arange(n_patients), len(chosen))]
    table.insert(0, "image", names)
    artifacts.save_table(folder / folder_files.TABLE, table)
    return folder


def version() -> str:
    """Revisions of the simulator and its anatomy, as provenances state them."""
    return f"{artifacts.revision('phantom')}.{artifacts.revision('phantom_anatomy')}"


def _sentence(n_patients: int, n_frames: int, seed: int, variant: phantom.Variant) -> str:
    text = f"Simulated cohort: {n_patients} patients x {n_frames} frames, seed {seed}, phantom revision {version()}."
    return text if variant == phantom.FULL else f"{text} Variant {variant.name}: {variant.about}"


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        least = 0 if name == "seed" else 1
        if int(value) != value or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, found {value!r}; pass a valid one.")


def _patients(
    numbers: range, fats: np.ndarray, how: tuple[int, int, str | None, phantom.Variant], n_jobs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames and masks of each patient; with processes a few patients ahead of the reader, never all of them."""
    seed, *rest = how
    tasks = [(seed, i, float(fats[i]), *rest) for i in numbers]
    if n_jobs == 1:
        yield from (phantom.simulate_patient(*task) for task in tasks)
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(n_jobs) as pool:
        for start in range(0, len(tasks), 4 * n_jobs):
            yield from pool.map(phantom.simulate_patient, *zip(*tasks[start : start + 4 * n_jobs], strict=True))


def draw_fat(n_patients: int, seed: int, variant: phantom.Variant = phantom.FULL) -> np.ndarray:
    """Fat of each patient, (n_patients,) int64 in 0..85 percent of hepatocytes, spread as in the real cohort.

    Fatty from 5 on. Of every 55 patients 17 are below 5, 20 in 5..33, 8 in 34..66 and 10 in 67..85, as in the real
    cohort (evenly in each class where the variant wants it); entry i does not depend on `n_patients`, and the first two
    differ in class.
    """
    fats = []
    for block in range(-(-n_patients // 55)):
        rng = np.random.default_rng([seed, 7, block])
        healthy, fatty = phantom.fat_of_55(rng)
        fatty = iter(fatty)
        for triple in range(17):
            # A triple holds one healthy patient; the very first has it among its first two.
            place = rng.integers(2 if block == 0 and triple == 0 else 3)
            fats += [healthy[triple] if k == place else next(fatty) for k in range(3)]
            if triple % 4 == 3:
                fats.append(next(fatty))
    if variant.constants == "literature":
        rng = np.random.default_rng([seed, 9])
        fats = [phantom.draw_fat(int(fat >= FATTY_FROM), rng, variant) for fat in fats]
    return np.array(fats[:n_patients], dtype=np.int64)


def _with_and_without(n_patients: int, seed: int) -> np.ndarray:
    """Fat of a cohort about one feature: pairs of patients in random order, one without, one with."""
    rng = np.random.default_rng([seed, 8])
    pairs = [rng.permutation([0, FEATURE_FAT]) for _ in range(-(-n_patients // 2))]
    return np.concatenate(pairs)[:n_patients].astype(np.int64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate a cohort into a folder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.cohort.simulation", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", choices=phantom.VARIANTS, default="full", help="what fat changes, which scanners")
    parser.add_argument("--jobs", type=int, default=engine.cores())
    options = parser.parse_args(arguments)
    try:
        how = {"n_jobs": options.jobs, "variant": phantom.VARIANTS[options.variant]}
        folder = write_folder(options.folder, options.patients, options.seed, options.frames, **how)
    except (ValueError, OSError) as error:
        print(f"simulation: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {options.patients} simulated patients, use it with DATA={folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
