"""Whether the equivalence test of raters keeps its size and its planned power, by simulation with known d'."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import studies
from scipy import special
from scipy import stats as scipy_stats

from nafld_utils.turing import rater_model

MARGIN = 0.25
RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
# SDs of d' over raters, of looking real over images and of the criterion over raters, and correlation of the first and
# the last: raters who can tell are those who lean to "synthetic". "half tell": half have twice d', half none.
RATERS = {
    "alike": (0.0, 0.0, 0.3, 0.0),
    "differ": (0.2, 0.2, 0.6, 0.0),
    "lean": (0.2, 0.0, 0.6, 0.5),
    "lean most": (0.2, 0.0, 0.6, 1.0),
    "half tell": (0.25, 0.0, 1.0, 1.0),
}


def simulate(cell: Mapping[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Answers (R, n) and key (n,); on average raters say "real" at the cell's rate. d' is over images, as a rater's."""
    sizes = [int(n) for n in cell["images"].split("+")]
    sd_rater, sd_image, sd_criterion, together = RATERS[cell["raters_who"]]
    real = np.repeat([1, 0], sizes)
    # the criterion, in SDs of what a rater sees, that gives the rate: both kinds mixed, raters averaged
    tries, shares = np.linspace(-6, 6, 4001), []
    for side in (1, -1):
        reach = np.sqrt(1 + sd_criterion**2 + sd_rater**2 / 4 - side * together * sd_rater * sd_criterion)
        shares.append(special.ndtr((side * cell["d_prime"] / 2 - tries) / reach))
    middle = np.interp(-cell["said_real"], -np.average(shares, axis=0, weights=sizes), tries)
    skill, lean = rng.standard_normal((cell["raters"], 1)), rng.standard_normal((cell["raters"], 1))
    if cell["raters_who"] == "half tell":
        skill = np.where(np.arange(cell["raters"])[:, None] % 2, 1.0, -1.0)
    d = cell["d_prime"] + sd_rater * skill
    criterion = middle + sd_criterion * (together * skill + np.sqrt(1 - together**2) * lean)
    looks = rng.normal(0, sd_image, len(real)) + rng.standard_normal((cell["raters"], len(real)))
    seen = d * (real - 0.5) - criterion + looks / np.sqrt(1 + sd_image**2)
    return (seen > 0).astype(float), real


def once(cell: Mapping[str, Any], rng: np.random.Generator) -> dict[str, bool | float | None]:
    """Is equivalence shown, does the 95 % interval hold d', what is found, and the planner's power for these raters."""
    said, real = simulate(cell, rng)
    panel = rater_model.crossed_d_prime(said, real)
    verdict = rater_model.equivalence_test(panel, MARGIN)["verdict"]
    out: dict[str, bool | float | None] = {
        "answered": verdict != "cannot be said",
        "shown": verdict == "shown",
        "holds": None,
        "found": None,
    }
    if not panel.note:
        se, df = panel.error()
        out["holds"] = bool(abs(panel.d_prime - cell["d_prime"]) < scipy_stats.t.ppf(0.975, df) * se)
        out["found"] = panel.d_prime
    rates = ((said[:, real == kind].sum(1) + 0.5) / ((real == kind).sum() + 1) for kind in (1, 0))  # Hautus (1995)
    hit, false_alarm = (special.ndtri(rate) for rate in rates)
    out["mean_of_raters"] = float((hit - false_alarm).mean())
    if cell["d_prime"] == 0:
        sd_rater, sd_image, *_ = RATERS[cell["raters_who"]]
        out["planned"] = None
        if not panel.note:  # true SDs; how much chance adds depends on how these raters lean
            lean = rater_model.spread(panel)._replace(rater=sd_rater, image=sd_image / np.sqrt(1 + sd_image**2))
            out["planned"] = rater_model.equivalence_power(cell["raters"], panel.sizes, lean, MARGIN)
    return out


def cells() -> list[dict[str, Any]]:
    """Panels of 30 raters at every rate, of 10 with ten times the images, of few, and of raters whose d' and criterion
    go together; at the margin and at 0.

    A d' of -0.25 is not simulated: it is 0.25 at the mirrored rate, real and synthetic answers exchanged.
    """
    few, mixes, many = (0.1, 0.5, 0.9), ("20+30", "25+25"), ("200+300", "250+250")
    kinds = [
        *itertools.product((30,), mixes, RATES, ("alike", "differ")),
        *itertools.product((10,), many, RATES, ("differ",)),
        *itertools.product((3, 5), ("20+30", "200+300", "250+250"), few, ("differ",)),
        *itertools.product((5, 30), ("20+30",), (0.02,), ("differ",)),
        *itertools.product((30,), ("25+25", "250+250"), (0.1, 0.3), ("lean", "lean most", "half tell")),
        *itertools.product((5, 10), ("250+250",), (0.1,), ("lean most",)),
    ]
    names = ("raters", "images", "said_real", "raters_who")
    return [dict(zip(names, kind, strict=True)) | {"d_prime": d} for kind in kinds for d in (MARGIN, 0.0)]


STUDY = studies.Study(
    script="rater_study",
    about="Equivalence of raters in d': size at the margin, planned and found power",
    cells=cells(),
    once=once,
    modules=["turing_model", "turing_statistics"],
)

main = functools.partial(studies.main, STUDY)

if __name__ == "__main__":
    raise SystemExit(main())
