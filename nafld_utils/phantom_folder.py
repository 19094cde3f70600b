"""Simulate a large cohort patient by patient into a folder that is read through a memory map, instead of into memory.

The folder is a cohort of `cohort_folder`: ``images.csv``, ``pixels.npy``, ``masks.npy`` and the mark ``cohort.json``,
and every loader takes it. A killed simulation goes on with the patient it was at, and the bytes are those of
`phantom.simulate` for the same patients::

    python -m nafld_utils.phantom_folder --patients 500 --seed 1 data/raw/five-hundred
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, cohort_folder, engine, pixel_store
from nafld_utils.cohort_table import TABLE

REVISION = ("phantom_folder", 1)
ABOVE = 200  # patients; from here on a run's simulated cohort is written so (choice: 200 hold 1.1 GB in memory)


def write(
    folder: str | Path, n_patients: int, seed: int, n_frames: int = 10, keep: int | None = None, n_jobs: int = 1
) -> Path:
    """Simulate a cohort into a folder; nothing to do where it is complete.

    Parameters
    ----------
    folder : str or Path
        Folder to write; one that holds the unfinished beginning of the same simulation is completed.
    n_patients, seed, n_frames : int
        As in `phantom.simulate`.
    keep : int, optional
        Images a patient that are written, spread evenly over the `n_frames`; all by default.
    n_jobs : int
        Processes that share the patients; the result does not depend on it.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    ValueError
        A count is below 1, or the folder holds another simulation.
    """
    from nafld_utils import phantom

    folder = Path(folder)
    if min(n_patients, n_frames, n_jobs) < 1:
        raise ValueError(f"{folder}: expected at least one patient, frame and process, found a count below 1.")
    chosen = cohort_folder.spread(n_frames, keep)
    text = f"Simulated cohort: {n_patients} patients x {n_frames} frames, seed {seed}, phantom revision"
    text += f" {phantom.version()}."
    if len(chosen) < n_frames:
        text += f" {len(chosen)} frames of each are kept."
    n, shape = n_patients * len(chosen), phantom.FRAME_SHAPE
    fats = phantom.draw_fat(n_patients, seed)
    arrays: dict[str, Any] = {name: ((n, *shape), np.uint8) for name in ("pixels", "masks")}
    with pixel_store.Store(folder, arrays, refuse_other=True) as store:
        if store.facts not in ({}, {"text": text}):
            raise ValueError(
                f"{folder}: expected no other cohort, found {store.facts.get('text')}; name another folder."
            )
        store.facts = {"text": text}
        first = store.done // len(chosen)
        made = _patients(range(first, n_patients), fats, seed, n_frames, n_jobs)
        for i in engine.progress(range(first, n_patients), "simulating patients"):
            frames, masks = next(made)
            for j, frame in enumerate(chosen):
                store.put("pixels", i * len(chosen) + j, frames[frame])
                store.put("masks", i * len(chosen) + j, masks[frame])
            store.commit((i + 1) * len(chosen))
    patient = np.repeat(np.arange(n_patients), len(chosen))
    table = pd.DataFrame(
        {
            "image": [f"p{p + 1:03d}_f{f:02d}" for p, f in zip(patient, np.tile(chosen, n_patients), strict=True)],
            "patient": patient + 1,
            "label": (fats[patient] >= phantom.FATTY_FROM).astype(int),
            "grade": fats[patient],
        }
    )
    artifacts.save_json(folder / cohort_folder.MARK_FILE, {cohort_folder.MARK: text, "model": "phantom"})
    artifacts.save_table(folder / TABLE, table)
    return folder


def _patients(
    numbers: range, fats: np.ndarray, seed: int, n_frames: int, n_jobs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames and masks of each patient; with processes a few patients ahead of the writer, never all of them."""
    from nafld_utils import phantom

    if n_jobs == 1:
        yield from (phantom.simulate_patient(seed, i, float(fats[i]), n_frames) for i in numbers)
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(n_jobs) as pool:
        for start in range(numbers.start, numbers.stop, 4 * n_jobs):
            batch = range(start, min(start + 4 * n_jobs, numbers.stop))
            tasks = [(seed, i, float(fats[i]), n_frames) for i in batch]
            yield from pool.map(phantom.simulate_patient, *zip(*tasks, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate a cohort into a folder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.phantom_folder", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=engine.cores())
    options = parser.parse_args(arguments)
    try:
        folder = write(options.folder, options.patients, options.seed, options.frames, n_jobs=options.jobs)
    except (ValueError, OSError) as error:
        print(f"phantom_folder: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {options.patients} simulated patients, use it with DATA={folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
