"""Stage 05 as its notebook calls it: features, sentences, claims, and what the stage stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nafld_utils import sampling
from nafld_utils.artifacts import Run, Unit
from nafld_utils.ldm import folds_of as folds_of
from nafld_utils.networks import FEATURES as FEATURES
from nafld_utils.preprocessing import open_preprocessed as open_preprocessed
from nafld_utils.quality import agreement_units, copy_units, filter_units, metric_units, patient_distance_units
from nafld_utils.sampling import drawn_table as drawn_table
from nafld_utils.sampling import generators as generators

if TYPE_CHECKING:
    import pandas as pd


def build_features(run: Run) -> pd.DataFrame:
    """Make the features of every set that the quality tables need, as `sampling.build_features`."""
    return sampling.build_features(run, metric_units.table_tasks(run))


def reading(run: Run, places: pd.DataFrame, by_patients: pd.DataFrame) -> list[str]:
    """How near the sets are to real patients, in sentences.

    Parameters
    ----------
    run : Run
    places : pandas.DataFrame
        ``places.csv`` of `quality.build_table`.
    by_patients : pandas.DataFrame
        Of `quality.build_patient_distances`.

    Returns
    -------
    list of str
    """
    metrics = FEATURES[run.settings.quality.features].metrics
    return [
        *patient_distance_units.reading(
            by_patients, metrics["frechet"], metrics["kernel"], metric_units.untrained(run)
        ),
        *metric_units.reading(places, run.settings.cohort.class_names),
        *metric_units.gan_reading(run),
    ]


def claims(
    run: Run,
    intervals: pd.DataFrame,
    by_patients: pd.DataFrame,
    copied: tuple[pd.DataFrame, pd.DataFrame],
    scores: pd.DataFrame,
    agreed: pd.DataFrame,
) -> list[dict[str, Any]]:
    """Headline numbers of stage 05.

    Parameters
    ----------
    run : Run
    intervals : pandas.DataFrame
        Of `quality.load_intervals`.
    by_patients : pandas.DataFrame
        Of `quality.build_patient_distances`.
    copied : tuple of pandas.DataFrame
        Of `quality.summary` and `quality.calibration`.
    scores : pandas.DataFrame
        Of `quality.choose_images`.
    agreed : pandas.DataFrame
        Of `quality.compare_spaces`.

    Returns
    -------
    list of dict
        As `artifacts.claim` makes them.
    """
    return [
        *metric_units.claims(run, intervals),
        *patient_distance_units.claims(run, by_patients),
        *agreement_units.claims(run, agreed),
        *copy_units.claims(run, *copied),
        *filter_units.claims(run, scores),
    ]


def units(run: Run) -> list[Unit]:
    """Every unit stage 05 stands on."""
    parts = (metric_units, agreement_units, patient_distance_units, copy_units, filter_units)
    return [unit for part in parts for unit in part.units(run)]
