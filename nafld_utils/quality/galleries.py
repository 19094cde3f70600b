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


def pictures(run: Run, item: Any) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic image and the training frame nearest to it.

    Parameters
    ----------
    run : Run
    item : mapping
        A row of `quality.judged_images`.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        (S, S) uint8 each.
    """
    drawn = sampling.open_set(run, item["generator"], int(item["fold"]))
    return np.asarray(drawn.images[int(item["row"])]), copy_units.frame(run, item["nearest_image"])


def spread(run: Run, table: pd.DataFrame, generator: str, n: int = 6) -> list[dict[str, Any]]:
    """Images evenly spread over a generator's scores, without those that are withheld as copies.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.judged_images`.
    generator : str
    n : int
        How many; the image nearest to real ones and the farthest are among them.

    Returns
    -------
    list of dict
        Rows of `table` with ``image`` and ``nearest``, (S, S) uint8.
    """
    part = table[(table["generator"] == generator) & ~table["is_copy"]].sort_values("distance", kind="stable")
    places = np.unique(np.rint(np.linspace(0, len(part) - 1, min(n, len(part)))).astype(int))
    rows = part.iloc[places].to_dict("records")
    return [{**item, **dict(zip(("image", "nearest"), pictures(run, item), strict=True))} for item in rows]


def strip(run: Run) -> dict[str, list[np.ndarray]]:
    """One image (S, S) uint8 of each class, real and of each generator: the first of the first fold, not chosen.

    Real ones are random crops of held-out patients, as in notebook 04; images withheld as copies are passed over.
    """
    judged, data = judged_images(run).query("not is_copy"), preprocessing.open_preprocessed(run)
    judged = judged[judged["fold"] == judged["fold"].min()]
    images = data.images.reset_index(drop=True)
    held_out = images[images["fold"] == judged["fold"].min()].drop_duplicates("label").sort_values("label")
    first = judged.drop_duplicates(["generator", "label"]).sort_values("label")
    drawn = {name: part.to_dict("records") for name, part in first.groupby("generator", sort=False)}
    return {"real": [np.asarray(data.pool[i, 0]) for i in held_out.index]} | {
        name: [pictures(run, item)[0] for item in drawn[name]] for name in sampling.generators(run) if name in drawn
    }
