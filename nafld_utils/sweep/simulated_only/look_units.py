"""Stage 06, how frames of this cohort look beside simulated ones, on its scanner and on others. Opens and writes files.

Contract: no label is read.
"""

from __future__ import annotations

import pandas as pd

from nafld_utils import cohort, phantom
from nafld_utils.artifacts import Run, Unit, save_table, unit_seed

REVISION = ("simulated_only_looks", 1)

OF_COHORT, WIDE, N_LOOKED = "this cohort", "wide", 40  # real frames, variant of other scanners, patients (choice)


def looks_unit(run: Run) -> Unit:
    """Unit of how frames of this cohort look beside simulated ones, whatever the labels say."""
    settings = {"variants": looked_at(run), "patients": _number(run), "seed": run.settings.seed}
    modules = ["phantom", "phantom_anatomy", "phantom_variants", "phantom_looks", "simulated_only_looks"]
    return run.unit("simulated_only", "looks", settings=settings, inputs=[cohort.cohort_unit(run)], modules=modules)


def looked_at(run: Run) -> list[str]:
    """Variants whose frames are shown beside the cohort's."""
    return list(dict.fromkeys([run.settings.simulated.variant, WIDE]))


def _number(run: Run) -> int:
    return min(N_LOOKED, run.settings.simulated_only.n_patients)


def make_looks(run: Run) -> None:
    """Measure frames of this cohort and simulated ones."""
    with looks_unit(run).writing() as folder:
        found = cohort.open_cohort(run)
        regions = [cohort.region_of(run, found, i, frame) for i, frame in enumerate(found.pixels)]
        parts = [phantom.looks.measure(found.pixels, regions, found.images["patient_id"]).assign(group=OF_COHORT)]
        seed = unit_seed(run.settings.seed, "simulated_only", "looks")
        for name in looked_at(run):
            parts.append(phantom.looks.simulated(phantom.VARIANTS[name], _number(run), seed).assign(group=name))
        save_table(folder / "looks.csv", pd.concat(parts, ignore_index=True))
