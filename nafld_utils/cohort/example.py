"""A worked example of another modality: a folder of simulated chest radiographs, with and without pleural effusion.

The pictures are drawn, not traced from anyone: two lungs, ribs, spine, heart and diaphragm of random size on a body of
random brightness, with quantum noise. In the class *effusion* fluid fills one or both lungs from below to a height that
is the patient's grade, in percent of the lung. The folder is as people's folders are: PNG, JPEG and TIFF, some in
colour, some of 16 bits, of several sizes, one to four images per patient, patients named by text::

    python -m nafld_utils.cohort.example data/chest
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from nafld_utils import artifacts
from nafld_utils.cohort import folder_files, image_folder

CLASSES = ("clear", "effusion")
SUBJECT = "chest radiographs"
GRADE = "fluid (% of the lung)"


def write(folder: str | Path, n_patients: int = 16, seed: int = 0) -> Path:
    """Write the example into a folder, over what is in it; half of the patients, two or more, have effusion."""
    folder = Path(folder)
    if n_patients < 2:
        raise ValueError(f"n_patients: expected at least 2, found {n_patients}; ask for more.")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(n_patients):
        rng = np.random.default_rng([seed, number])
        label = number % 2
        fluid = float(rng.uniform(25, 70)) if label else 0.0
        chest = _chest(rng)
        for view in range(int(rng.integers(1, 5))):
            side = int(rng.integers(320, 520))
            image = radiograph(chest, fluid, (side, int(side * rng.uniform(0.85, 1.1))), rng)
            name = _save(folder, f"chest_{number:02d}_{view}", image, int(rng.integers(4)))
            row = {"image": name, "patient": f"case {chr(65 + number % 26)}{number}", "label": CLASSES[label]}
            rows.append({**row, "grade": round(fluid)})
    text = f"Simulated chest radiographs: {n_patients} patients, {len(rows)} images, seed {seed}."
    artifacts.save_json(folder / folder_files.MARK_FILE, {image_folder.MARK: text})
    artifacts.save_table(folder / folder_files.TABLE, pd.DataFrame(rows))
    return folder


def _chest(rng: np.random.Generator) -> dict[str, float]:
    """One patient: sizes in shares of the image, grey of the body, share of the fluid in either lung."""
    spans = {"width": (0.15, 0.19), "height": (0.30, 0.36), "gap": (0.2, 0.23), "heart": (0.10, 0.15)}
    spans |= {"rib": (0.045, 0.06), "body": (150, 190), "left": (0.6, 1.0), "right": (0.6, 1.0)}
    return {name: rng.uniform(*span) for name, span in spans.items()}


def radiograph(chest: dict[str, float], fluid: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One image, uint8 of (height, width) `shape`, of a `_chest` with `fluid` up to so many percent of the lung."""
    y, x = np.indices(shape, dtype=float)
    y, x = y / shape[0] + rng.normal(0, 0.01), x / shape[1] + rng.normal(0, 0.01)
    grey = np.full(shape, chest["body"]) * (1 - 0.5 * np.abs(x - 0.5) ** 2)
    for side, name in ((-1, "left"), (1, "right")):
        across = (x - 0.5 - side * chest["gap"]) / chest["width"]
        down = (y - 0.46) / chest["height"]
        lung = across**2 + np.where(down > 0, (down / 1.0) ** 4, down**2) < 1
        grey = np.where(lung, 60 + 20 * down, grey)
        ribs = lung & (np.abs(np.mod(y - 0.12 * across**2, 2 * chest["rib"]) - chest["rib"]) < 0.16 * chest["rib"])
        grey = np.where(ribs, grey + 28, grey)
        level = 0.46 + chest["height"] * (1 - 2 * fluid * chest[name] / 100) - 0.04 * across**2
        grey = np.where(lung & (y > level) & (fluid > 0), 0.9 * chest["body"], grey)
    spine = np.abs(x - 0.5) < 0.03
    grey = np.where(spine, np.minimum(235, grey + 35), grey)
    heart = ((x - 0.55) / chest["heart"]) ** 2 + ((y - 0.6) / (1.2 * chest["heart"])) ** 2 < 1
    grey = np.where(heart, 0.85 * chest["body"], grey)
    grey = ndimage.gaussian_filter(grey, max(shape) / 200)
    grey += ndimage.gaussian_filter(rng.normal(0, 1, shape), 0.7) * 9
    return np.clip(grey, 0, 255).round().astype(np.uint8)


def _save(folder: Path, stem: str, image: np.ndarray, kind: int) -> str:
    """Write an image in one of four ways, as folders from several sources hold them; returns the file's name."""
    from PIL import Image

    name = stem + (".png", ".jpg", "_colour.png", "_16bit.tif")[kind]
    if kind == 2:
        image = np.stack([image, image, np.minimum(255, image.astype(int) + 12).astype(np.uint8)], axis=-1)
    elif kind == 3:
        image = image.astype(np.uint16) * 200
    with artifacts.replacing(folder / name) as temporary:
        Image.fromarray(image).save(temporary)
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the example from the command line and say how to run it."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.cohort.example", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        folder = write(options.folder, options.patients, options.seed)
    except (ValueError, OSError) as error:
        print(f"example: {error}", file=sys.stderr)
        return 2
    named = f"cohort.class_names=[{', '.join(CLASSES)}] cohort.subject='{SUBJECT}' cohort.grade_name='{GRADE}'"
    print(f"{folder}: {options.patients} simulated patients; now")
    print(f'make all PROFILE=smoke RUN=chest DATA={folder} SET="{named}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
