"""Stage 04 as its notebook calls it: the sets, the check of the condition, and what the stage stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nafld_utils import engine
from nafld_utils.artifacts import Run, Unit
from nafld_utils.ldm import folds_of as folds_of
from nafld_utils.preprocessing import open_preprocessed as open_preprocessed
from nafld_utils.sampling import condition_units, feature_units, sampler_comparison, set_units

if TYPE_CHECKING:
    import pandas as pd


def draw_sets(run: Run) -> None:
    """Draw every synthetic set of the run, and the sets that it is judged against."""
    tasks = set_units.tasks(run)
    engine.map_units(set_units.make_set, tasks, run.settings.engine, "synthetic sets", unit_of=set_units.synthetic_unit)


def open_sets(run: Run) -> dict[tuple[str, int], set_units.Synthetic]:
    """The synthetic set of every generator and fold, by (generator, fold)."""
    names, folds = set_units.generators(run), folds_of(run)
    return {(m, k): set_units.open_synthetic(**set_units.task_of(run, m, k)) for m in names for k in folds}


def check_conditions(run: Run) -> pd.DataFrame:
    """What drawing with the condition changes, each effect beside that of images drawn without: ``summary.csv``."""
    feature_units.build_features(run, condition_units.feature_tasks(run))
    return condition_units.build(run).load_table("summary.csv")


def units(run: Run) -> list[Unit]:
    """Every unit stage 04 stands on."""
    return [*set_units.units(run), *condition_units.units(run), *sampler_comparison.units(run)]
