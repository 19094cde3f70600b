"""Patient-level cross-validation, and the guards against a patient on both sides of a split.

Frames of one patient are near-duplicates, so the patient is the unit that is split (paper, "Dataset"): split by image
the same features score an AUC near 1. The guards compare names and pixels, since a copied frame leaks as well as a
shared patient does.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nafld_utils.artifacts import digest

REVISION = ("folds", 1)


def make_folds(patients: pd.DataFrame, n_splits: int, seed: int) -> pd.DataFrame:
    """Assign every patient to one fold, classes spread evenly.

    Parameters
    ----------
    patients : pandas.DataFrame
        One row per patient: ``patient_id``, ``label``.
    n_splits : int
        Number of folds, at least 2; 5 in the paper (44 patients train, 11 validate).
    seed : int
        Shuffles patients within a class.

    Returns
    -------
    pandas.DataFrame
        ``patient_id, fold``, in the order of `patients`; fold in 0 .. n_splits-1 is the one that holds the patient out.

    Raises
    ------
    ValueError
        A patient has two rows, there is one class only, or a class has fewer patients than folds.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": [1, 2, 3, 4], "label": [0, 0, 1, 1]})
    >>> make_folds(table, n_splits=2, seed=0).groupby("fold").size().tolist()
    [2, 2]
    """
    from sklearn.model_selection import StratifiedKFold

    if n_splits < 2:
        raise ValueError(f"folds.n_splits: expected at least 2 folds, found {n_splits}; raise it.")
    repeated = patients.loc[patients["patient_id"].duplicated(), "patient_id"]
    if len(repeated):
        raise ValueError(
            f"patients table: expected one row per patient, found patient {repeated.iloc[0]} twice; merge its rows."
        )
    counts = patients["label"].value_counts().sort_index()
    if len(counts) < 2:
        raise ValueError(
            f"patients table: expected patients of two classes, found label {list(counts.index)} only; add the"
            " other class."
        )
    if counts.min() < n_splits:
        raise ValueError(
            f"folds.n_splits is {n_splits}, expected at most the patients of the smaller class, found {counts.min()}"
            f" with label {counts.idxmin()}; lower folds.n_splits or add patients."
        )
    fold = pd.Series(-1, index=patients.index)
    splitter = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(patients, patients["label"])):
        fold.iloc[held_out] = number
    return pd.DataFrame({"patient_id": patients["patient_id"], "fold": fold}).reset_index(drop=True)


def split(images: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and held-out rows of one fold; ValueError where the two sides share a patient or a frame.

    Parameters
    ----------
    images : pandas.DataFrame
        One row per image: ``patient_id``, ``sha256``, ``fold``.
    fold : int
        The fold that is held out; it has images, and so have the others.
    """
    held_out = images["fold"] == fold
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"fold {fold}: expected images on both sides of the split, found {int(held_out.sum())} of {len(images)}"
            f" held out; the folds are {sorted(images['fold'].unique().tolist())}."
        )
    assert_no_leak(images[~held_out], images[held_out])
    return images[~held_out], images[held_out]


def assert_no_leak(training: pd.DataFrame, held_out: pd.DataFrame) -> None:
    """Refuse a split that shares a patient (by id) or a frame (by pixel hash, where both have ``sha256``)."""
    shared = sorted(set(training["patient_id"]) & set(held_out["patient_id"]))
    if shared:
        raise ValueError(
            f"split: expected every patient on one side, found patient {shared[0]} in training and held-out images"
            f" ({len(shared)} such patients); split by patient."
        )
    if "sha256" not in training or "sha256" not in held_out:
        return
    frames = set(training["sha256"]) & set(held_out["sha256"])
    if frames:
        first = min(frames)
        a = training.loc[training["sha256"] == first, "patient_id"].iloc[0]
        b = held_out.loc[held_out["sha256"] == first, "patient_id"].iloc[0]
        raise ValueError(
            f"split: expected every frame on one side, found one of patient {a} in training that equals one of held-out"
            f" patient {b} ({len(frames)} such frames); remove the copies or merge the patients."
        )


def digest_of(images: pd.DataFrame) -> str:
    """What tells a split from another: a digest of who is held out in which fold (``patient_id, fold`` of images)."""
    pairs = images[["patient_id", "fold"]].drop_duplicates().itertuples(index=False)
    return digest(sorted([str(patient), int(fold)] for patient, fold in pairs))


def assert_same_split(images: pd.DataFrame, made_with: str | None, origin: str) -> None:
    """Refuse the synthetic set `origin` if made with another split: images without a source do not tell it themselves.

    `images` has ``patient_id, fold`` of the real images; `made_with` is the `digest_of` of the set's split, None for a
    set from before it was noted, whose unit's hash alone holds the split.
    """
    if made_with not in (None, digest_of(images)):
        raise ValueError(
            f"{origin}: expected a set made with this run's split of the patients, found one made with another, whose"
            " model may have seen held-out patients; make it again with notebooks 03 and 04."
        )


def assert_comparable(images: pd.DataFrame, used: Sequence[int], class_names: Sequence[str]) -> None:
    """Refuse folds with fewer than two held-out patients of a class, too few for an interval, before any training.

    Parameters
    ----------
    images : pandas.DataFrame
        ``patient_id, label, fold``.
    used : sequence of int
        Folds that are trained, taken together.
    class_names : sequence of str
        Of label 0 and 1.
    """
    held_out = images[images["fold"].isin(list(used))].drop_duplicates("patient_id")
    for label, name in enumerate(class_names):
        count = int((held_out["label"] == label).sum())
        if count < 2:
            raise ValueError(
                f"ldm.folds: expected two or more patients of each class held out of the folds {list(used)} together,"
                f" found {count} of {name}, which gives no interval over patients; use more folds or add patients."
            )


def assert_trained_without(images: pd.DataFrame, fold: int, source_patients: pd.Series) -> None:
    """Refuse a synthetic set that was made from a patient held out in this fold, and name the patient.

    `images` has ``patient_id, fold`` of the real images; `source_patients` the patient behind each synthetic image, -1
    where an image has no single source.
    """
    held_out = set(images.loc[images["fold"] == fold, "patient_id"])
    found = sorted(held_out & set(source_patients))
    if found:
        raise ValueError(
            f"synthetic set of fold {fold}: expected sources among its training patients, found patient {found[0]}, who"
            " is held out there; use the set that was made for this fold."
        )
