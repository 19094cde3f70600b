"""What stage 06 claims and stands on: the sweep and its baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nafld_utils.artifacts import Run, Unit
from nafld_utils.sweep import frozen_classifier_units, planning, verdict

if TYPE_CHECKING:
    import pandas as pd


def claims(run: Run, tables: dict[str, pd.DataFrame], baselines: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers of stage 06, from `build_tables` and `build_baselines`."""
    return [
        *verdict.claims(run, tables),
        *planning.claims(tables["power"]),
        *frozen_classifier_units.claims(run, baselines),
    ]


def units(run: Run) -> list[Unit]:
    """Every unit stage 06 stands on."""
    return [*verdict.units(run), *frozen_classifier_units.units(run)]
