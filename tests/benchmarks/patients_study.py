"""Do as many patients as a study plans for show the gain that they are planned for?

Simulated as in `gain_study`: a study of 17 and 38 patients without any gain plans for a declared one, and a new study
of as many patients as it asks for, with that gain, is tested. Beside it stands the power that the first study gives its
own patients, and how often new studies of its size show the gain; and whether one finds the gain that the first study
says about four in five of them find, whatever gain is declared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gain_study
import numpy as np
import studies

from nafld_utils import statistics

COHORT = gain_study.COHORTS["17+38"]
HIGHEST = 0.99 - gain_study.AUC  # gain that is simulated
MOST = 1000  # patients of a planned study that is simulated; larger plans are counted as such


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """One plan and, where it asks for at most `MOST` patients, whether they show the gain.

    ``affordable, log10_needed`` (of affordable plans), ``shows`` (the planned study); ``power_here, shows_here`` (one
    of the first study's size); ``half_widths`` (of the first study's interval in its smallest effect), ``narrow``
    (whether that is called narrow), ``finds_smallest`` (one of its size, where the effect is below `HIGHEST`).
    """
    n, n_seeds, gain, spread = sum(COHORT), cell["seeds"], cell["gain"], cell["spread"]
    label, new, base, patient = gain_study.scores(rng, COHORT, n_seeds, 0.0, spread)
    first = statistics.gain(label, new, base, patient)
    plan = statistics.cautious(first.spread, n_seeds)
    needed, smallest = statistics.patients_needed(plan, n_seeds, n, gain), statistics.smallest_effect(first, n_seeds)

    def shows(sizes: tuple[int, int], gain: float = gain) -> bool:
        label, new, base, patient = gain_study.scores(rng, sizes, n_seeds, gain, spread)
        found = statistics.gain(label, new, base, patient)
        return found.low > 0

    affordable = needed <= MOST
    healthy = round(COHORT[0] * needed / n) if affordable else 0
    return {
        "affordable": affordable,
        "log10_needed": float(np.log10(needed)) if affordable else None,
        "shows": shows((healthy, int(needed) - healthy)) if affordable else None,
        "power_here": float(statistics.power(gain, *statistics.planned(plan, n_seeds, 1.0))),
        "shows_here": shows(COHORT),
        "half_widths": 2 * smallest / (first.high - first.low),
        "narrow": statistics.is_narrow(smallest, first.low, first.high),
        "finds_smallest": shows(COHORT, smallest) if smallest < HIGHEST else None,
    }


CELLS = [
    {"seeds": seeds, "gain": gain, "spread": spread}
    for spread in ("as seen", "seeds agree")
    for seeds in (3, 5, 25)
    for gain in (0.02, 0.05, 0.1)
]
STUDY = studies.Study(
    "patients_study",
    "Simulated: how often studies of the planned number of patients show a declared gain",
    CELLS,
    once,
    ["readers", "stats"],
    repetitions=1000,
    block=100,
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
