"""Stage 02: folds, crops and semantic maps as units on disk; the claims of stage 02. Opens and writes files."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, images
from nafld_utils.artifacts import Run, Unit, claim, load_table, of_row, remembered, save_table, unit_seed
from nafld_utils.cohort import Cohort, cohort_unit, open_cohort, region_of, same_protocol
from nafld_utils.params import TRADITIONAL, TRIVIAL
from nafld_utils.preprocessing import crop_facts, folds

PREPROCESS = "preprocess"


# ---------------------------------------------------------------- 02 preprocessing


def _mapped(name: str) -> Any:
    """An array of the unit as an attribute, which is opened when it is first asked for."""
    return functools.cached_property(lambda data: data.unit.load_array(f"{name}.npy", mmap=True))


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """What every later stage reads; row ``i`` of the table belongs to row ``i`` of each array (memory-mapped).

    Attributes
    ----------
    images : pandas.DataFrame
        The cohort's ``image_id, patient_id, label, grade, sha256``, and ``fold``; ``crop_top, crop_left,
        crop_side`` (pixels of the frame), ``region_pixels``, ``kept_share`` (share of the region that the crop keeps).
    folds : pandas.DataFrame
        ``patient_id, fold``.
    crops : (N, C, C) uint8 ndarray
        Regions, centre cropped; at original spacing, or resized (setting ``preprocess.crop``).
    resized : (N, S, S) uint8 ndarray
        The whole crop resized; what held-out images use.
    pool : (N, K, S, S) uint8 ndarray
        K random resized crops per image.
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
        The run, from which pools of changed crops are opened.
    """

    images: pd.DataFrame
    folds: pd.DataFrame
    unit: Unit
    run: Run
    crops, resized, maps = map(_mapped, ("crops", "resized", "maps"))
    pool, pool_boxes, pool_maps = map(_mapped, ("pool", "pool_boxes", "pool_maps"))

    @functools.cached_property
    def tissue(self) -> np.ndarray | None:
        """As above; None where no masks are known."""
        there = self.unit.file("tissue.npy").exists()
        return self.unit.load_array("tissue.npy", mmap=True) if there else None

    def augmented_pool(self, kind: str) -> np.ndarray:
        """(N, K, S, S) uint8 random resized crops, changed as the arm `kind` does; made when first asked for."""
        return build_augmented(self.run, kind).load_array("pool.npy", mmap=True)


@remembered
def preprocess_unit(run: Run) -> Unit:
    """Unit of folds, crops and semantic maps."""
    s = run.settings
    read = {key: value for key, value in s.section("preprocess").items() if not key.startswith("warp_")}
    settings = {"seed": s.seed, "folds": s.section("folds"), "preprocess": read}
    return run.unit(
        PREPROCESS, settings=settings, inputs=[cohort_unit(run)], modules=("folds", "preprocess", "regions")
    )


def build_preprocessed(run: Run) -> Unit:
    """Make the folds, crops, random resized crops and semantic maps of a run; nothing to do when done."""
    unit = preprocess_unit(run)
    return engine.once(unit, lambda: _preprocess(run, unit))


def _preprocess(run: Run, unit: Unit) -> None:
    found = open_cohort(run)
    table = _folded(run, found)
    for fold in range(run.settings.folds.n_splits):
        folds.split(table, fold)
    arrays = _arrays(run, found)
    placed = _fill(run, found, unit, arrays)
    with unit.writing() as folder:
        images.move(unit.work, folder, list(arrays))
        save_table(folder / "folds.csv", table[["patient_id", "fold"]].drop_duplicates())
        save_table(folder / "images.csv", pd.concat([table, placed], axis=1))


def folded_images(run: Run) -> pd.DataFrame:
    """The cohort's table of images with the folds of this run, of the stored table where there is one."""
    return open_preprocessed(run).images if preprocess_unit(run).done() else _folded(run, open_cohort(run))


def _folded(run: Run, found: Cohort) -> pd.DataFrame:
    """The table of images with the cohort's own folds where it states them, else with folds made here."""
    s, assigned = run.settings.folds, found.folds
    if assigned is None:
        assigned = folds.make_folds(found.patients, s.n_splits, s.seed)
    n = int(assigned["fold"].max()) + 1
    if n != s.n_splits:
        raise ValueError(
            f"folds.n_splits is {s.n_splits}, expected the {n} folds of the cohort's own column fold;"
            f' give SET="folds.n_splits={n}" or remove the column.'
        )
    return found.images.merge(assigned, on="patient_id", how="left", validate="many_to_one")


def fits(run: Run) -> bool:
    """Whether crops are fitted to the region instead of cut at original spacing (setting ``preprocess.crop``)."""
    chosen = run.settings.preprocess.crop
    return chosen == "fit" or (chosen == "auto" and run.is_foreign)


def _arrays(run: Run, found: Cohort) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array of the unit."""
    s = run.settings.preprocess
    n, k, size, side = len(found.images), s.crops_per_image, s.image_size, s.map_size
    arrays = {
        "crops": ((n, s.crop_size, s.crop_size), np.uint8),
        "resized": ((n, size, size), np.uint8),
        "pool": ((n, k, size, size), np.uint8),
        "pool_boxes": ((n, k, 4), np.float32),
        "pool_maps": ((n, k, side, side), np.uint8),
        "maps": ((n, side, side), np.uint8),
    }
    if found.masks is not None:
        arrays["tissue"] = ((n, size, size), np.uint8)
    return arrays


def _fill(run: Run, found: Cohort, unit: Unit, arrays: dict[str, tuple[tuple[int, ...], type]]) -> pd.DataFrame:
    """Write every array of the unit image by image, and return, row by row, where the crops lie in the frames."""
    n, fit = len(found.images), fits(run)
    with images.Store(unit.work, {**arrays, "placed": ((n, len(_PLACED)), np.float64)}) as store:
        for i in engine.progress(store.remaining(n), "preprocessing", total=n - store.done):
            for name, values in _prepared(run, found, i, fit).items():
                store.put(name, i, values)
            if (i + 1) % images.COMMIT_EVERY == 0:
                images.release(found.pixels)
                images.release(found.masks)
        placed = pd.DataFrame(np.array(store.read("placed")), columns=list(_PLACED))
    return placed.astype({name: np.int64 for name in _PLACED if name != "kept_share"})


_PLACED = ("crop_top", "crop_left", "crop_side", "region_pixels", "kept_share")


def _prepared(run: Run, found: Cohort, i: int, fit: bool) -> dict[str, np.ndarray]:
    """Row `i` of every array of the unit, and of ``placed``: crops are black outside the region."""
    s, frame = run.settings.preprocess, found.pixels[i]
    region = region_of(run, found, i, frame)
    square, crop, resized = _centred(frame, region, s, fit)
    placed = (square.top, square.left, square.side, region.sum(), square.share_of(region))
    boxes = []
    for j in range(s.crops_per_image):
        rng = np.random.default_rng(unit_seed(run.settings.seed, "crop", found.images["image_id"][i], j))
        boxes.append(images.random_box(crop.shape, s.crop_scale, s.crop_ratio, rng))
    pool = np.stack([images.resize_box(crop, box, s.image_size) for box in boxes])
    row = {"placed": np.array(placed, dtype=np.float64), "crops": crop, "resized": resized, "pool": pool}
    row |= {"pool_boxes": np.array(boxes), "maps": images.semantic_maps.semantic_maps(resized[None], s)}
    row["pool_maps"] = images.semantic_maps.semantic_maps(pool, s)
    if found.masks is not None:
        tissue = square.cut(found.masks[i], s.crop_size, labels=True)
        row["tissue"] = images.resize_box(tissue, images.whole_box(tissue), s.image_size, labels=True)
    return row


def _centred(frame: np.ndarray, region: np.ndarray, s: Any, fit: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """The window about a frame's region, its crop (C, C), black outside the region, and that resized (S, S), uint8."""
    square = images.crop_window(region, s, fit)
    crop = square.cut(np.where(region, frame, 0).astype(np.uint8), s.crop_size)
    return square, crop, images.resize_box(crop, images.whole_box(crop), s.image_size)


def as_held_out(run: Run, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Another cohort's frame, (H, W) uint8, as a run's held-out ones: its crop (C, C) and that resized (S, S), uint8.

    ValueError as `images.find_region`.
    """
    s = run.settings.preprocess
    return _centred(frame, images.find_region(frame, s), s, fits(run))[1:]


def open_preprocessed(run: Run) -> Preprocessed:
    """The preprocessed images of a run, memory-mapped; ValueError where stage 02 has not been run so."""
    unit = preprocess_unit(run).require()
    return Preprocessed(*(load_table(unit.file(name)) for name in ("images.csv", "folds.csv")), unit, run)


def facts_of(run: Run) -> pd.DataFrame:
    """The table of preprocessed images with the size of each, and the share of it that its crop keeps.

    Returns
    -------
    pandas.DataFrame
        ``images`` of `Preprocessed`, and ``height, width, aspect, region_share, image_share`` of
        `crop_facts.crop_facts`.
    """
    pixels, table = open_cohort(run).pixels, open_preprocessed(run).images
    sizes = pixels.shapes if isinstance(pixels, images.Ragged) else np.tile(pixels.shape[1:], (len(table), 1))
    return crop_facts.crop_facts(table, sizes)


# ---------------------------------------------------------------- the arms of changed real images


@remembered
def augmented_unit(run: Run, kind: str) -> Unit:
    """Unit of an arm's changed crops, ``traditional`` or ``trivial``; what changes them belongs to the sweep."""
    s, settings, modules = run.settings, {"seed": run.settings.seed}, ["preprocess"]
    if kind == TRADITIONAL:
        settings |= {"rotation": s.sweep.rotation, "rotation_probability": s.sweep.rotation_probability}
    else:
        modules.append("trivial_augment")
    return run.unit(kind, settings=settings, inputs=[preprocess_unit(run)], modules=modules)


def build_augmented(run: Run, kind: str) -> Unit:
    """Random resized crops of other draws than the pool's, changed as the arm does; skipped when done.

    Parameters
    ----------
    run : Run
    kind : str
        ``"traditional"`` [paper]: "random resized crops of the original images, rotated between -5 and 5 degrees
        with a 25% chance". ``"trivial"``: one change of random kind and strength per crop (TrivialAugment, arXiv
        2103.10158).

    Returns
    -------
    Unit
    """
    unit = augmented_unit(run, kind)
    return engine.once(unit, lambda: _augment(run, unit, kind))


def _augment(run: Run, unit: Unit, kind: str) -> None:
    data, change = open_preprocessed(run), {TRADITIONAL: _rotated, TRIVIAL: _trivial}[kind]
    with images.Store(unit.work, {"pool": (data.pool.shape, np.uint8)}) as store:
        for i in store.remaining(len(data.images)):
            store.put("pool", i, change(run, data.images["image_id"][i], data.crops[i]))
    with unit.writing() as folder:
        images.move(unit.work, folder, ["pool"])


def _drawn(run: Run, kind: str, name: str, crop: np.ndarray) -> Iterator[tuple[np.random.Generator, images.Box]]:
    """A generator and a random box of a crop for each of an image's stored views."""
    s = run.settings.preprocess
    for j in range(s.crops_per_image):
        rng = np.random.default_rng(unit_seed(run.settings.seed, kind, name, j))
        yield rng, images.random_box(crop.shape, s.crop_scale, s.crop_ratio, rng)


def _rotated(run: Run, name: str, original: np.ndarray) -> np.ndarray:
    """The traditional arm's crops of one image, (K, S, S) uint8."""
    s, pool = run.settings, []
    for rng, box in _drawn(run, TRADITIONAL, name, original):
        crop = original
        if rng.random() < s.sweep.rotation_probability:
            degrees = np.float32(rng.uniform(-s.sweep.rotation, s.sweep.rotation))
            crop = images.rotate_about(crop, box, float(degrees))
        pool.append(images.resize_box(crop, box, s.preprocess.image_size))
    return np.stack(pool)


def _trivial(run: Run, name: str, original: np.ndarray) -> np.ndarray:
    """The trivial arm's crops of one image, (K, S, S) uint8."""
    size, pool = run.settings.preprocess.image_size, []
    for rng, box in _drawn(run, TRIVIAL, name, original):
        pool.append(images.trivial_augment(images.resize_box(original, box, size), int(rng.integers(2**31))))
    return np.stack(pool)


def preprocess_claims(run: Run) -> list[dict[str, object]]:
    """Claims of stage 02: sizes of folds, crops and maps beside the paper's."""
    data, same, s = open_preprocessed(run), same_protocol(run), run.settings.preprocess
    held_out, facts = data.folds["fold"].value_counts(), facts_of(run)

    def span(key: str, text: str, values: pd.Series, of: str, unit: str, same: str, paper: int | None = None) -> Any:
        low, high = (round(float(bound), 1) for bound in (values.min(), values.max()))
        bounds = (low, high, f"{of}, least to most")
        mean = round(float(values.mean()), 1)
        return claim(key, f"{text} (mean)", mean, same, interval=bounds, n=len(values), unit=unit, paper=paper)

    held_images, training = data.images["fold"].value_counts(), len(data.folds) - held_out
    rows = [
        span("folds.patients.held_out", "patients held out of a fold", held_out, "folds", "patients", same, 11),
        span("folds.patients.training", "patients training in a fold", training, "folds", "patients", same, 44),
        span("folds.images.held_out", "images held out of a fold", held_images, "folds", "images", same, 110),
    ]
    for key, text, paper, value, unit in (
        ("crop.side", "side of the centre crop", 320, s.crop_size, "pixels"),
        ("image.side", "side of an image", 256, s.image_size, "pixels"),
        ("map.side", "side of a semantic map", 128, s.map_size, "pixels"),
        ("map.classes", "classes of a semantic map", 5, s.map_classes, "classes"),
    ):
        differs = "yes" if value == paper else f"scaled down to {value}" if value < paper else f"raised to {value}"
        rows.append(claim(f"preprocessing.{key}", text, value, differs, unit=unit, paper=paper))
    own = same if run.is_simulated else "not in the paper"
    for key, of, column in (("kept", "region", "kept_share"), ("of_image", "image", "image_share")):
        text = f"share of the {of} that the crop keeps"
        rows.append(span(f"preprocessing.crop.{key}", text, 100 * facts[column], "images", "percent", own))
    for row in crop_facts.by_class(facts, run.settings.cohort.class_names).to_dict("records")[:2]:
        key, text = f"preprocessing.crop.tells.{row['fact']}", f"class told by the {row['what']} alone"
        rows.append(of_row(key, text, row, own, "patient-level AUC", columns=("auc", "n")))
    return rows
