"""Stage 05, one image at a time: what was measured of every synthetic image, and its picture. Opens files only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import preprocessing, sampling
from nafld_utils.artifacts import Run
from nafld_utils.quality import copy_units, metric_units

COLUMNS = [
    *("generator", "fold", "row", "synthetic_id", "label", "source_patient", "distance"),
    *("correlation", "nearest_image", "nearest_patient", "is_copy", "why"),
]


def judged_images(run: Run) -> pd.DataFrame:
    """Every synthetic image with its score and its nearest training frame, one row per image.

    Returns
    -------
    pandas.DataFrame
        ``generator, fold, row`` (place in its set), ``synthetic_id, label, source_patient`` (-1: none), ``distance`` to
        the held-out real images of its fold (feature units), ``correlation`` (-1 to 1) with ``nearest_image`` of
        ``nearest_patient``, the training frame nearest by pixels; ``is_copy``, and ``why`` (empty where it is none).

    Raises
    ------
    ValueError
        The copy audit has not been run.
    """
    audited = copy_units.audits(run)
    audited["row"] = audited.groupby(["generator", "fold"]).cumcount()  # an audit lists a set in its order
    scores = [metric_units.scored(run, name).assign(generator=name) for name in sampling.generators(run)]
    table = audited.merge(pd.concat(scores), on=["generator", "fold", "row"], validate="one_to_one")
    table = table.rename(columns={"pixels_image": "nearest_image", "pixels_patient": "nearest_patient"})
    why, is_copy = table["why"].astype(object).fillna(""), table["copy"].astype(bool)
    return table.assign(is_copy=is_copy, why=why, correlation=1.0 - table["pixels_distance"])[COLUMNS]


def shown(run: Run, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `quality.judged_images` with ``image`` and ``nearest``, its nearest training frame, (S, S) uint8 each."""
    sets = dict.fromkeys(zip(rows["generator"], rows["fold"], strict=True))
    sets = {key: sampling.open_set(run, *key).images for key in sets}
    data = preprocessing.open_preprocessed(run)
    places = pd.Index(data.images["image_id"])  # the whole crop of a real image, resized, is what was compared
    return [
        item
        | {
            "image": np.asarray(sets[item["generator"], item["fold"]][item["row"]]),
            "nearest": np.asarray(data.resized[places.get_loc(item["nearest_image"])]),
        }
        for item in rows.to_dict("records")
    ]


def closest(run: Run, table: pd.DataFrame, generator: str, n: int = 4) -> list[dict[str, Any]]:
    """The `n` images of a generator that come nearest to a training frame by pixels, as `shown`, withheld ones too.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.judged_images`.
    generator : str
        E.g. ``"semantic"``.
    n : int
    """
    return shown(run, table[table["generator"] == generator].nlargest(n, "correlation"))


def gallery(run: Run, table: pd.DataFrame, generator: str, n: int = 4) -> dict[str, list[dict[str, Any]]]:
    """``near`` and ``far``: `n` images nearest to and farthest from held-out real images of their fold, as `shown`.

    Images that are withheld as copies are left out.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.judged_images`.
    generator : str
    n : int
    """
    part = _released(table, generator)
    near, far = part.head(n), part.tail(n)[::-1]
    found = shown(run, pd.concat([near, far]))
    return {"near": found[: len(near)], "far": found[len(near) :]}


def spread(run: Run, table: pd.DataFrame, generator: str, n: int = 6) -> list[dict[str, Any]]:
    """Images evenly spread over a generator's scores, as `shown`, without those that are withheld as copies.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.judged_images`.
    generator : str
    n : int
        How many; the image nearest to real ones and the farthest are among them.
    """
    part = _released(table, generator)
    return shown(run, part.iloc[np.unique(np.rint(np.linspace(0, len(part) - 1, min(n, len(part)))).astype(int))])


def _released(table: pd.DataFrame, generator: str) -> pd.DataFrame:
    return table[(table["generator"] == generator) & ~table["is_copy"]].sort_values("distance", kind="stable")


def strip(run: Run, table: pd.DataFrame) -> dict[str, list[np.ndarray]]:
    """One image (S, S) uint8 of each class, real and of each generator: the first of the first fold, not chosen.

    `table` is that of `quality.judged_images`. Real ones are random crops of held-out patients, as in notebook 04;
    images withheld as copies are passed over, and a class without any is a white image.
    """
    data, judged = preprocessing.open_preprocessed(run), table[~table["is_copy"]]
    images, fold = data.images.reset_index(drop=True), judged["fold"].min()
    held_out = images[images["fold"] == fold].drop_duplicates("label")
    found = {("real", int(images["label"][i])): np.asarray(data.pool[i, 0]) for i in held_out.index}
    judged = judged[judged["fold"] == fold].drop_duplicates(["generator", "label"])
    found |= {(item["generator"], item["label"]): item["image"] for item in shown(run, judged)}
    white, labels = np.full_like(data.pool[0, 0], 255), range(len(run.settings.cohort.class_names))
    names = [name for name in ("real", *sampling.generators(run)) if any((name, label) in found for label in labels)]
    return {name: [found.get((name, label), white) for label in labels] for name in names}
