"""A sitting of the image Turing test: which images raters see, in which order, and answers of raters who do not exist.

Contract: tables and arrays in, tables out. The *set* is a table, one row per image, in the order in which every rater
sees it. A *rating* is one answer: rater, image, ``said_real`` (1 "real", 0 "synthetic") and, where given, how sure the
rater was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nafld_utils.params import TuringSettings

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

REVISION = ("turing_sitting", 2)

# What a results file calls itself; the version is raised when its fields change.
RESULTS_SCHEMA = "nafld-turing-results"
RESULTS_VERSION = 1
RATER_PATTERN = "^[A-Za-z0-9][A-Za-z0-9_-]{0,19}$"  # also fit for a file name
CONFIDENCE_LEVELS = (50, 60, 70, 80, 90, 100)  # per cent sure of one's own answer; 50 is a guess
# Settings with the numbers of images, and of which they are: ``is_real, label``.
NUMBERS = {
    "n_real_unhealthy": (1, 1),
    "n_real_healthy": (1, 0),
    "n_synthetic_unhealthy": (0, 1),
    "n_synthetic_healthy": (0, 0),
}
ITEM_COLUMNS = ["kind", "is_real", "label", "patient_id", "fold", "source_id", "row"]


# ---------------------------------------------------------------- the set


def draw_set(
    real: pd.DataFrame,
    synthetic: Mapping[str, pd.DataFrame],
    settings: TuringSettings,
    class_names: Sequence[str] = ("healthy", "unhealthy"),
) -> pd.DataFrame:
    """Draw the images that raters see, real ones first; `put_in_order` mixes them.

    `real` has ``image_id, patient_id, label, fold``, one row per image; `synthetic`, by model, ``synthetic_id, fold,
    label, source_patient`` (-1 or missing where there is none), ``row``. Numbers of images are those of `numbers`,
    which also says what is refused; the synthetic ones are divided evenly over the models (paper: 9 unhealthy and 6
    healthy each). Gives ``kind`` (real or the model), ``is_real, label, patient_id`` (of a real image, or of a semantic
    image's source; missing for the class model), ``fold, source_id, row`` (where the pixels are).

    Notes
    -----
    Source: paper, Synthetic image evaluation. Choice: one image per patient where the numbers allow it, since frames of
    one patient are near-duplicates; and semantic images from maps of patients who are not shown as real.
    """
    rng = np.random.default_rng(settings.seed)
    n = numbers(real, synthetic, settings, class_names)
    asked = {"real": (n["n_real_unhealthy"], n["n_real_healthy"])}
    asked |= _shares(list(synthetic), n["n_synthetic_unhealthy"], n["n_synthetic_healthy"])
    pools = {"real": _pool(real, "image_id", "patient_id", np.arange(len(real)))}
    pools |= {name: _pool(t, "synthetic_id", "source_patient", t["row"]) for name, t in synthetic.items()}
    shown: set[Any] = set()
    parts = []
    for kind, counts in asked.items():
        for label, count in zip((1, 0), counts, strict=True):
            pool = pools[kind][pools[kind]["label"] == label]
            part = _spread(pool, count, shown, rng)
            shown |= set(part["patient_id"].dropna())
            parts.append(part.assign(kind=kind, is_real=int(kind == "real")))
    return pd.concat(parts, ignore_index=True)[ITEM_COLUMNS]


def numbers(
    real: pd.DataFrame,
    synthetic: Mapping[str, pd.DataFrame],
    settings: TuringSettings,
    class_names: Sequence[str] = ("healthy", "unhealthy"),
) -> dict[str, int]:
    """How many images of each kind and class are shown, by `NUMBERS`: as many as asked for, or as there are.

    Takes what `draw_set` takes; refuses a source without any image of a class that is asked for, since rates by kind
    and class need one of each. Choice: where a class has too few images of one kind, the other kind of that class is
    lowered in proportion, in whole numbers downwards and to no less than one. So the share of real images, and with it
    the accuracy of someone who calls everything synthetic, stays about as asked for.
    """
    out = {}
    for label in (1, 0):
        names = [name for name, (_, of) in NUMBERS.items() if of == label]  # of real and of synthetic images
        asked = [getattr(settings, name) for name in names]
        pools = {name: int((table["label"] == label).sum()) for name, table in synthetic.items()}
        there = [min(asked[0], int((real["label"] == label).sum())), _most(pools, label, asked[1])]
        fewest = min(pools, key=lambda model: pools[model])
        sources = ("the cohort", f"the {fewest} model's synthetic sets")
        remedies = ("use a larger cohort", "raise sampling.n_images")
        for source, remedy, n, found in zip(sources, remedies, asked, there, strict=True):
            if n and not found:
                raise ValueError(
                    f"{source}: expected an image of each class for the Turing test, found none of"
                    f" {class_names[label]}; {remedy}."
                )
        lowered = [(found, n) for found, n in zip(there, asked, strict=True) if n]
        have, of = min(lowered, key=lambda pair: pair[0] / pair[1], default=(1, 1))
        shown = [max(1, n * have // of) if n else 0 for n in asked]
        out |= zip(names, shown, strict=True)
    return {name: out[name] for name in NUMBERS}


def _most(pools: Mapping[str, int], label: int, asked: int) -> int:
    """The largest number up to `asked` whose shares the models' images suffice for."""
    for n in range(asked, 0, -1):
        shares = _shares(list(pools), n, n)
        if all(shares[model][1 - label] <= size for model, size in pools.items()):
            return n
    return 0


def put_in_order(items: pd.DataFrame, images: np.ndarray, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Give the drawn images (n, S, S) uint8 their one order and their names: ``order`` (from 1), ``image_id`` in front.

    Choice: order and names are hashes of the seed and the pixels, which every rater sees anyhow. So they cannot tell
    what an image is, not even to someone who knows the seed and this code; a random number generator started from a
    known seed could be run again and its permutation undone.
    """
    seen: Counter[bytes] = Counter()
    places, names = [], []
    for image in images:
        pixels = np.ascontiguousarray(image).tobytes()
        seen[pixels] += 1  # keeps the names of equal images apart
        places.append(hashlib.sha256(f"order {seed} {seen[pixels]} ".encode() + pixels).hexdigest())
        # a letter in front, so that no spreadsheet takes it for a number
        names.append("t" + hashlib.sha256(f"name {seed} {seen[pixels]} ".encode() + pixels).hexdigest()[:8])
    order = np.argsort(places)
    out = items.iloc[order].reset_index(drop=True)
    out.insert(0, "order", np.arange(1, len(out) + 1))
    out.insert(1, "image_id", [names[i] for i in order])
    return out, images[order]


def _shares(models: Sequence[str], n_unhealthy: int, n_healthy: int) -> dict[str, tuple[int, int]]:
    """(unhealthy, healthy) images of each model; an odd unhealthy one goes to the first, an odd healthy to the last."""
    unhealthy = [n_unhealthy // len(models) + (i < n_unhealthy % len(models)) for i in range(len(models))]
    healthy = [n_healthy // len(models) + (i < n_healthy % len(models)) for i in range(len(models))][::-1]
    return {model: (unhealthy[i], healthy[i]) for i, model in enumerate(models)}


def _pool(table: pd.DataFrame, name: str, patient: str, row: Any) -> pd.DataFrame:
    """The columns of `ITEM_COLUMNS` that a source knows, nullable where an entry can be missing."""
    who = pd.to_numeric(table[patient])
    return pd.DataFrame(
        {
            "source_id": table[name].astype(str).to_numpy(),
            "patient_id": pd.array(who.where(who >= 0).to_numpy(), dtype="Int64"),
            "label": table["label"].to_numpy(),
            "fold": pd.array(table["fold"].to_numpy(), dtype="Int64"),
            "row": np.asarray(row),
        }
    )


def _spread(pool: pd.DataFrame, n: int, shown: set[Any], rng: np.random.Generator) -> pd.DataFrame:
    """Draw n rows at random, the second image of a patient only after the first of all, patients in `shown` last."""
    pool = pool.iloc[rng.permutation(len(pool))]
    patient = pool["patient_id"]
    turn = pool.groupby("patient_id").cumcount().where(patient.notna(), 0)
    order = pd.DataFrame({"turn": turn, "again": patient.isin(shown).to_numpy()})
    return pool.loc[order.sort_values(["turn", "again"], kind="stable").index[:n]]


# ---------------------------------------------------------------- raters who do not exist


def simulate_raters(
    items: pd.DataFrame, n_raters: int, seed: int, d_prime: float = 0.0, spread: float = 0.6
) -> pd.DataFrame:
    """Answers of raters who do not exist, so that the analysis can be tried before a sitting.

    Columns ``rater, image_id, said_real, confidence`` (per cent, of `CONFIDENCE_LEVELS`) and ``simulated``, True.

    Choice: equal-variance signal detection. Real and synthetic images look `d_prime` standard deviations apart (0:
    guessing). Raters' inclinations to say "synthetic" are evenly spaced normal quantiles with SD `spread`, so that
    raters differ as real ones do and the group leans neither way; images differ by half of it in looking real. Raters
    are as sure as their impression is strong, and overconfident, since by default nobody can tell; whatever these
    answers show is chance and says nothing about the images.
    """
    rng = np.random.default_rng(seed)
    looks = d_prime * (items["is_real"].to_numpy() - 0.5) + spread / 2 * rng.normal(size=len(items))
    criterion = spread * scipy_stats.norm.ppf((np.arange(n_raters)[:, None] + 0.5) / n_raters)
    evidence = looks + rng.normal(size=(n_raters, len(items))) - criterion
    sure = 100 * scipy_stats.norm.cdf(np.abs(evidence))
    width = len(str(n_raters))
    return pd.DataFrame(
        {
            "rater": np.repeat([f"simulated {i + 1:0{width}d}" for i in range(n_raters)], len(items)),
            "image_id": np.tile(items["image_id"].to_numpy(), n_raters),
            "said_real": (evidence > 0).astype(int).ravel(),
            "confidence": (np.round(sure / 10) * 10).ravel(),
            "simulated": True,
        }
    )
