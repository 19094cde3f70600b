"""Does the interval of the AUC of trainings on simulated cohorts hold the true one, over patients and cohorts?

Simulated: 17 and 38 patients in five folds, three simulated cohorts of two trainings each, normal scores whose
separation varies between cohorts and between seeds. The true AUC is that of an endless number of trainings on endless
patients.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies
from scipy import stats

from nafld_utils import statistics

LABEL = np.repeat([0, 1], [17, 38])
FOLD = np.concatenate([np.arange(17) % 5, np.arange(38) % 5])
OWN = 0.5  # standard deviation of what each training adds to a patient's score, whose own is 1


def truth(cell: Mapping[str, Any]) -> float:
    """AUC of the mean of all trainings: the chance that a normal difference of two patients' scores is above 0."""
    return float(stats.norm.cdf(cell["apart"] / np.sqrt(2 * (1 + OWN**2) + cell["cohorts"] ** 2 + cell["seeds"] ** 2)))


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """One study: ``holds, below, above`` (the interval lies wholly there), ``width``, ``patients`` (their part)."""
    apart = cell["apart"] + rng.normal(0, cell["cohorts"], (3, 1, 1)) + rng.normal(0, cell["seeds"], (3, 2, 1))
    scores = rng.normal(size=55) + apart * LABEL + OWN * rng.normal(size=(3, 2, 55))
    found, true = statistics.nested_auc(LABEL, scores, np.arange(55), FOLD), truth(cell)
    if np.isnan(found.low):
        return dict.fromkeys(("holds", "below", "above", "width", "patients"))
    low, high = bool(found.low > true), bool(found.high < true)
    told = {"width": found.high - found.low, "patients": found.patients}
    return {"holds": not (low or high), "below": high, "above": low, **told}


CELLS = [
    {"apart": apart, "cohorts": cohorts, "seeds": seeds}
    for cohorts, seeds in ((0.0, 0.0), (0.15, 0.15), (0.4, 0.3))
    for apart in (1.0, 1.8, 2.4)
]
STUDY = studies.Study(
    "nested_study",
    "Simulated: coverage of the interval over patients and simulated cohorts",
    CELLS,
    once,
    ["nested", "delong", "readers"],
    repetitions=2000,
    block=200,
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
