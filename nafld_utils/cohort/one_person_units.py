"""Stage 01: pairs of patients that look like one person, as a unit on disk, and what is said of them."""

from __future__ import annotations

import time

import pandas as pd

from nafld_utils import artifacts, engine
from nafld_utils.artifacts import Run, Unit, claim
from nafld_utils.cohort.data import Cohort
from nafld_utils.cohort.look_alikes import COARSE, FEWEST, FRAMES, LEVEL, NEAREST, look_alikes
from nafld_utils.cohort.unit import cohort_unit, open_cohort, same_protocol, squares

FOLDER, ALL, FLAGGED = "one_person", "pairs.csv", "look_alikes.csv"


def pairs_unit(run: Run) -> Unit:
    """Unit of the pairs: each patient's nearest other patient, and whether the two look like one person."""
    region = run.settings.section("preprocess")
    settings = {key: region[key] for key in ("region", "region_box", "threshold", "closing_radius")}
    modules = ("one_person", "nearest_frames", "regions")
    return run.unit(FOLDER, settings=settings, inputs=[cohort_unit(run)], modules=modules)


def build_pairs(run: Run) -> Unit:
    """Compare the patients of the stored cohort with each other; does nothing when the unit is done.

    Writes ``pairs.csv`` (see `open_pairs`; with the user's names) and of it ``look_alikes.csv``, the pairs that are
    flagged, which ``cohort.join`` reads once those that are two persons are taken out.
    """
    unit = pairs_unit(run)
    return engine.once(unit, lambda: _build(run, unit))


def _build(run: Run, unit: Unit) -> None:
    started, found = time.perf_counter(), open_cohort(run)
    device = engine.device(run.settings.engine)
    seen = squares(run, found, "comparing patients")
    table = look_alikes(seen, found.images["patient_id"].to_numpy(), device)
    for side in ("a", "b"):
        table[f"image_{side}"] = found.images["image_id"].to_numpy()[table[f"row_{side}"].astype(int)]
    names = _names(found)
    table.insert(0, "patient", table["patient_a"].map(names))
    table.insert(1, "same_as", table["patient_b"].map(names))
    table = table.drop(columns=["row_a", "row_b"])
    with unit.writing(seconds=time.perf_counter() - started, device=str(device)) as folder:
        artifacts.save_table(folder / ALL, table)
        artifacts.save_table(folder / FLAGGED, table[table["flagged"].astype(bool)])


def _names(found: Cohort) -> pd.Series:
    """What the user calls each patient: the first name in a folder's table, else the number."""
    if found.sources is None:
        return found.patients.set_index("patient_id").index.to_series().astype(str)
    named = found.images[["patient_id"]].assign(name=found.sources["patient"].astype(str).to_numpy())
    return named.groupby("patient_id")["name"].first()


def open_pairs(run: Run) -> pd.DataFrame:
    """Each patient's nearest other patient by pixels, most alike first.

    Returns
    -------
    pandas.DataFrame
        ``patient_a, patient_b``, ``image_a, image_b`` (their most alike images), ``correlation`` (-1 to 1, over shifts
        and scales), ``usual`` (with the fifth nearest patient), ``left_out`` (share of pixels without which they are
        compared), ``p`` (chance of so near a patient, 0 to 1) and ``flagged`` bool, as `look_alikes.look_alikes`. The
        user's names of them stay in the file.
    """
    table = pairs_unit(run).require().load_table(ALL).drop(columns=["patient", "same_as"])
    return table.assign(flagged=table["flagged"].astype(bool))


def pairs_reading(run: Run) -> str:
    """What was found, and what to do, in sentences."""
    table, found = open_pairs(run), open_cohort(run)
    n, patients = int(table["flagged"].sum()), len(found.patients)
    if table.empty:
        return f"With {patients} patients nothing is said: {FEWEST} or more are needed."
    level = f"in at most {LEVEL:.0%} of cohorts without such persons is any pair flagged"
    searched = (
        f"All {len(found.images)} images of {patients} patients were searched at {COARSE} pixels a side, and"
        f" at most {FRAMES} of each patient compared closely with the {NEAREST} nearest patients."
        f" Mirrored, turned or inverted images are not found, nor a person under more than {NEAREST} numbers or a"
        " cohort in which most persons have many, and a caption over more than a twentieth of an image may hide one."
    )
    if not n:
        first = table.iloc[0]
        text = (
            f"No pair of {patients} patients stands out; the first of the list, patients {first['patient_a']} and"
            f" {first['patient_b']} (correlation {first['correlation']:.3f}, p {first['p']:.2g}), are as near by pixels"
            " as different patients of this cohort may be"
        )
        return f"{text}; {level}. Look at the first pairs all the same. {searched}"
    path = pairs_unit(run).file(FLAGGED).relative_to(artifacts.work_root()).as_posix()
    return (
        f"Warning: {n} pair{'s' * (n != 1)} of patients look{'s' * (n == 1)} like one person; {level}. Look at each."
        f" To join those that are, copy {path}, take out the rows of different persons, and give"
        f' SET="cohort.join=<the copy>"; then the folds are made anew. {searched}'
    )


def pair_claims(run: Run) -> list[dict[str, object]]:
    """Claim of stage 01: how many pairs of patients look like one person; none where too few were compared."""
    table = open_pairs(run)
    own = same_protocol(run) if run.is_simulated else "not in the paper"
    n = open_cohort(run).patients["patient_id"].nunique()
    row = claim(
        "cohort.one_person", "pairs of patients that look like one person", int(table["flagged"].sum()), own, n=n,
        unit="pairs of patients",
    )  # fmt: skip
    return [] if table.empty else [row]
