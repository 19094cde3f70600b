"""What an image's size and its crop tell of the class without the disease, and a warning where they do.

Contract: the table of `preprocessing.Preprocessed.images` and the sizes of the images in, tables and sentences out. A
crop that is fitted to a region is resized by its side, so that the side stays visible in every pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import statistics

LEVEL = 0.99  # of the interval that must not hold 0.5 for a warning; choice: as for the tags of files
FACTS = {
    "crop_side": "side of the crop (pixels)",
    "image_share": "share of the image that the crop keeps",
    "region_share": "share of the image that is region",
    "height": "height of the image (pixels)",
    "width": "width of the image (pixels)",
    "aspect": "width over height of the image",
}


def crop_facts(images: pd.DataFrame, sizes: np.ndarray) -> pd.DataFrame:
    """The table of images with what `FACTS` names; `sizes` (N, 2) are height and width of each in pixels.

    ``image_share`` counts the pixels that are in the region and in the crop: what the models see of the image.

    Examples
    --------
    >>> table = pd.DataFrame({"crop_side": [40], "region_pixels": [1000], "kept_share": [0.9]})
    >>> crop_facts(table, np.array([[50, 40]])).filter(["image_share", "region_share", "aspect"]).to_numpy().tolist()
    [[0.45, 0.5, 0.8]]
    """
    height, width = np.asarray(sizes).T
    share = images["region_pixels"] / (height * width)
    out = images.assign(height=height, width=width, aspect=width / height, region_share=share)
    return out.assign(image_share=share * images["kept_share"])


def by_class(facts: pd.DataFrame, class_names: tuple[str, str]) -> pd.DataFrame:
    """How far each of `FACTS` alone tells the classes, over patients, each the mean of its images.

    Parameters
    ----------
    facts : pandas.DataFrame
        From `crop_facts`, with ``patient_id, label``.
    class_names : tuple of str
        Names of class 0 and class 1.

    Returns
    -------
    pandas.DataFrame
        ``fact, what``, the median of each class under its name, ``auc, low, high, n, over`` (AUC of a larger value for
        class 1, 95 % over patients), ``differs`` (its 99 % interval lies beside 0.5).
    """
    patients = facts.groupby("patient_id").agg({"label": "first", **dict.fromkeys(FACTS, "mean")})
    label, rows = patients["label"].to_numpy(), []
    for fact, what in FACTS.items():
        values = patients[fact].to_numpy(float)
        medians = [float(np.median(values[label == code])) for code in (0, 1)]
        found, wide = (statistics.auc_interval(label, values, patients.index, level=level) for level in (0.95, LEVEL))
        over = "patients within class (Newcombe)" if np.ptp(values) > 0 else "no interval: all patients are alike"
        rows.append((fact, what, *medians, *found, len(values), over, not wide.low <= 0.5 <= wide.high))
    columns = ["fact", "what", *class_names, "auc", "low", "high", "n", "over", "differs"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(differs=table["differs"] & table["low"].notna())


def crop_warnings(table: pd.DataFrame, region: str) -> list[str]:
    """One sentence for each fact of the crops that differs by class, and what to do.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `preprocessing.by_class`.
    region : str
        ``preprocess.region`` of the settings.

    Returns
    -------
    list of str
        Empty where no fact differs; the last line says what to do.

    Examples
    --------
    >>> row = {"fact": "crop_side", "what": "side of the crop (pixels)", "a": 300.0, "b": 410.0, "auc": 0.7, "low": 0.6}
    >>> for line in crop_warnings(pd.DataFrame([{**row, "high": 0.8, "differs": True}]), "largest"): print(line)
    Warning: the side of the crop (pixels) differs by class: median 300 for a, 410 for b; by patient it alone has an \
AUC of 0.70 [0.60, 0.80].
    The automatic region may give the class away: SET="preprocess.region=none" shows the models the whole image.
    """
    names = list(table.columns[2:4])
    differing: Any = table[table["differs"].astype(bool)].to_dict("records")
    rows = [
        f"Warning: the {row['what']} differs by class: median {row[names[0]]:.3g} for {names[0]}, {row[names[1]]:.3g}"
        f" for {names[1]}; by patient it alone has an AUC of {row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]."
        for row in differing
    ]
    found = {row["fact"] for row in differing}
    if region != "none" and found & {"crop_side", "image_share", "region_share"}:
        rows.append(
            "The automatic region may give the class away:"
            ' SET="preprocess.region=none" shows the models the whole image.'
        )
    if found & {"height", "width", "aspect"} or (found and region == "none"):
        rows.append("The images themselves differ in size: export or cut them alike, whatever their class.")
    return rows
