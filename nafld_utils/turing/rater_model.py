"""A crossed rater-and-image model of the answers, and what it would take to show that nobody can tell.

Contract: tables in, tables out, ratings as `nafld_utils.turing.table_1.summarize` describes them. Raters and images
are both drawn from many: an interval here is about other raters and other such images, not about this panel alone. "No
difference found" is not "no difference": equivalence within a margin has to be shown, and `equivalence_plan` says with
how many raters and images it can be.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from nafld_utils.turing import intervals, table_1

REVISION = ("turing_model", 1)

# Priors (choice: weak on the log-odds scale, where 4 is 98 % right): fixed effects N(0, 3^2), log SDs N(0, 1^2).
FIXED_PRIOR, LOG_SD_PRIOR = 3.0, 1.0
_TERMS = ("inclination over raters", "discrimination over raters", "looking real over images")
N_RATERS = (3, 5, 8, 12, 20, 30, 50, 100)
MAX_IMAGES = 10_000


# ---------------------------------------------------------------- the mixed model


def mixed_model(ratings: pd.DataFrame) -> pd.DataFrame:
    """Logistic mixed model with crossed random effects: who says "real", and does it depend on the image being real?

    Columns ``term, estimate, low, high, over, note``, on the log-odds scale: *inclination* of an average rater to say
    "real" (0: as often as not), *discrimination* (the log odds ratio of saying "real" for a real and for a synthetic
    image; 0: cannot tell), and the SDs of both over raters and of looking real over images. Raters may have seen
    different images; with one rater, or one answer only, the numbers are missing and the note says why.

    Notes
    -----
    ``logit P(said real) = a + b x + a_rater + b_rater x + c_image`` with x = 1/2 for real and -1/2 for synthetic
    images. The model is statsmodels' ``BinomialBayesMixedGLM``, fitted by variational Bayes, from which the SDs are
    taken. Its own intervals of a and b ignore that they share their uncertainty with the random effects (in 200
    simulated panels of five raters and 50 images the one of b held the truth 85 % of the time); so theirs come from
    the joint posterior's curvature at its mode, given those SDs (Laplace's approximation): 98 % in the same panels.
    SDs and their intervals remain variational and are rough with few raters; with five raters the prior still shows.
    """
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    table = table_1.checked(ratings)
    columns = ["term", "estimate", "low", "high", "over", "note"]
    if table["rater"].nunique() < 2 or table["said_real"].nunique() < 2:
        found = "one rater" if table["rater"].nunique() < 2 else "one answer only"
        row = {"term": "discrimination", "over": "", "note": f"{found}: nothing to model"}
        return pd.DataFrame([row], columns=columns).astype({"estimate": float, "low": float, "high": float})
    said, (fixed, random, group) = table["said_real"].to_numpy(), _design(table)
    model = BinomialBayesMixedGLM(said, fixed, random, group, vcp_p=LOG_SD_PRIOR, fe_p=FIXED_PRIOR)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # starting widths are given, since the library would draw them
        fit = model.fit_vb(sd=np.full(fixed.shape[1] + len(_TERMS) + random.shape[1], 0.6))
    note = "the variational fit did not converge" if caught else ""
    half = scipy_stats.norm.ppf(0.975)
    estimate, se = _laplace(said, fixed, random, np.exp(fit.vcp_mean)[group])
    rows = [
        (name, estimate[i], estimate[i] - half * se[i], estimate[i] + half * se[i], "raters and images (Laplace)", note)
        for i, name in enumerate(("inclination", "discrimination"))
    ]
    for name, mean, sd in zip(_TERMS, fit.vcp_mean, fit.vcp_sd, strict=True):
        rows.append((f"SD of {name}", *np.exp([mean, mean - half * sd, mean + half * sd]), "variational, rough", note))
    return pd.DataFrame(rows, columns=columns)


def _design(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fixed effects (n, 2), random effects (n, q), and to which of `_TERMS` each of the latter belongs (q,)."""
    real = table["is_real"].to_numpy() - 0.5
    rater, image = (np.eye(table[name].nunique())[pd.factorize(table[name])[0]] for name in ("rater", "image_id"))
    parts = (rater, rater * real[:, None], image)
    group = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    return np.stack([np.ones(len(table)), real], axis=1), np.hstack(parts), group


def _laplace(said: np.ndarray, fixed: np.ndarray, random: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mode and standard errors of the fixed effects, random effects integrated out at given SDs (Newton's method)."""
    design = np.hstack([fixed, random])
    precision = np.concatenate([np.full(fixed.shape[1], FIXED_PRIOR**-2), sd**-2.0])
    at = np.zeros(design.shape[1])
    for _ in range(100):
        mean = scipy_stats.logistic.cdf(design @ at)
        curvature = (design * (mean * (1 - mean))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.solve(curvature, design.T @ (said - mean) - precision * at)
        at = at + step
        if np.abs(step).max() < 1e-9:
            break
    n = fixed.shape[1]
    return at[:n], np.sqrt(np.diag(np.linalg.inv(curvature))[:n])


# ---------------------------------------------------------------- how much raters and images differ


class Spread(NamedTuple):
    """How much raters and images differ in the share of right answers (a balanced accuracy), as SDs in [0, 0.5]."""

    rater: float
    rater_high: float  # one-sided upper 80 % limit: a test planned on five raters' estimate would often be too small
    image: float
    n_raters: int


def spread(ratings: pd.DataFrame) -> Spread:
    """Variance components of being right, by the method of moments, negative ones set to 0.

    Refuses one rater, one image of a kind, or raters with different images. A rater's rate is the mean of sensitivity
    and specificity: in the plain accuracy of 20 real and 30 synthetic images an inclination to say "synthetic" would
    pass for skill.
    """
    grid, images = intervals.right_answers(ratings)
    real = images["is_real"].to_numpy()
    if len(grid) < 2 or grid.isna().to_numpy().any() or min((real == 1).sum(), (real == 0).sum()) < 2:
        raise ValueError(
            "ratings: expected two or more raters with the same images, two of each kind at least, found"
            f" {len(grid)} raters and {(real == 1).sum()} real, {(real == 0).sum()} synthetic images."
        )
    values = grid.to_numpy()
    squares = intervals.mean_squares(values, real)
    balanced = (values[:, real == 1].mean(1) + values[:, real == 0].mean(1)) / 2
    noise = squares.rest * (1 / (real == 1).sum() + 1 / (real == 0).sum()) / 4
    image = max(0.0, (squares.images - squares.rest) / len(values))
    return Spread(*_rater_spread(balanced, noise), float(np.sqrt(image)), len(values))


def paper_spread() -> Spread:
    """The same for the paper's raters; its Table 1 tells nothing about single images, so their SD is missing."""
    counts, (ru, rh, su, sh) = np.array(table_1.PAPER_COUNTS), table_1.PAPER_SIZES
    rates = np.stack([counts[:, :2].sum(1) / (ru + rh), counts[:, 2:].sum(1) / (su + sh)])
    noise = float((rates * (1 - rates)).mean()) * (1 / (ru + rh) + 1 / (su + sh)) / 4
    return Spread(*_rater_spread(rates.mean(0), noise), float("nan"), len(counts))


def _rater_spread(rates: np.ndarray, noise: float) -> tuple[float, float]:
    """SD of raters' true rates and its upper 80 % limit, from rates of which `noise` is the variance by chance."""
    seen, df = float(rates.var(ddof=1)), len(rates) - 1
    high = df * seen / scipy_stats.chi2.ppf(0.2, df)
    return float(np.sqrt(max(0.0, seen - noise))), float(np.sqrt(max(0.0, high - noise)))


# ---------------------------------------------------------------- equivalence


def equivalence_power(n_raters: int, n_images: int, sd_rater: float, sd_image: float, margin: float = 0.05) -> float:
    """Chance to show that accuracy is within `margin` of 0.5, when it is 0.5: two one-sided tests at 5 %.

    Every rater sees every image, half of them real; the SDs are of the share of right answers, in [0, 0.5].

    Notes
    -----
    ``var(mean) = sd_rater^2 / R + sd_image^2 / I + rest / (R I)``, where the three variances add up to that of a
    coin, 1/4; degrees of freedom as in `nafld_utils.turing.intervals.crossed_summary` at the expected mean squares.
    A formula, checked against simulated panels in the tests.

    Examples
    --------
    >>> bool(equivalence_power(50, 200, 0.02, 0.05) > 0.8 > equivalence_power(5, 50, 0.02, 0.05))
    True
    """
    rest = max(0.0, 0.25 - sd_rater**2 - sd_image**2)
    df_raters, df_images = n_raters - 1, n_images - 2
    squares = intervals.MeanSquares(
        *(rest + n_images * sd_rater**2, rest + n_raters * sd_image**2, rest),
        *(df_raters, df_images, df_raters * df_images),
    )
    se, df = intervals.crossed_error(squares, n_raters * n_images)
    reach = margin - scipy_stats.t.ppf(0.95, df) * se
    return float(max(0.0, 2 * scipy_stats.norm.cdf(reach / se) - 1))


def equivalence_plan(
    sd_rater: float,
    sd_image: float,
    margin: float = 0.05,
    power: float = 0.8,
    n_raters: Sequence[int] = N_RATERS,
) -> pd.DataFrame:
    """How many images each rater of panels of `n_raters` must see to show equivalence with a given `power`.

    The power is the chance to succeed if nobody can tell at all; the rest as in `equivalence_power`. Columns
    ``n_raters, n_images`` (even; missing where no number up to 10,000 is enough), ``n_answers, power`` (reached),
    ``note``.
    """
    even = range(4, MAX_IMAGES + 1, 2)
    rows = []
    for raters in n_raters:
        reached = functools.partial(equivalence_power, raters, sd_rater=sd_rater, sd_image=sd_image, margin=margin)
        if reached(MAX_IMAGES) < power:
            rows.append((raters, None, None, None, "raters differ too much: no number of images is enough"))
        else:
            n_images = even[bisect.bisect_left(even, power, hi=len(even) - 1, key=reached)]
            rows.append((raters, n_images, n_images * raters, reached(n_images), ""))
    out = pd.DataFrame(rows, columns=["n_raters", "n_images", "n_answers", "power", "note"])
    return out.astype({"n_images": "Int64", "n_answers": "Int64", "power": float})


def plans(ratings: pd.DataFrame, margin: float = 0.05, power: float = 0.8) -> pd.DataFrame:
    """`equivalence_plan` for raters who differ as these do, as the paper's do, and as either might at worst.

    Columns ``basis, sd_rater, sd_image`` before those of `equivalence_plan`. What the paper prints says nothing about
    images: there their SD is 0, and no test with fewer images could be enough.
    """
    found, basis, parts = {"the paper's raters": paper_spread()}, {}, []
    with contextlib.suppress(ValueError):  # one rater says nothing about how raters differ; the paper's remain
        found = {"these raters": spread(ratings)} | found
    for name, one in found.items():
        image = np.nan_to_num(one.image)
        basis |= {name: (one.rater, image), f"{name}, upper limit": (one.rater_high, image)}
    for name, (rater, image) in basis.items():
        parts.append(equivalence_plan(rater, image, margin, power).assign(basis=name, sd_rater=rater, sd_image=image))
    out = pd.concat(parts, ignore_index=True)
    return out[["basis", "sd_rater", "sd_image", "n_raters", "n_images", "n_answers", "power", "note"]]


def equivalence_test(ratings: pd.DataFrame, margin: float = 0.05) -> dict[str, float | str | bool]:
    """Do these ratings show that accuracy is within a margin of 0.5? Two one-sided tests over raters and images.

    Gives ``mean, low, high`` (the 90 % interval that decides), ``p`` (the larger of the two one-sided ones), ``shown``
    (p below 0.05), ``note`` (why there is no interval).
    """
    found = intervals.crossed_mean(ratings)
    mean, se, df = found["mean"], found["se"], found["df"]
    half = float(scipy_stats.t.ppf(0.95, df) * se)
    p = float(scipy_stats.t.sf((margin - abs(mean - 0.5)) / se, df))
    shown = bool(p < 0.05)
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": p, "shown": shown, "note": found["note"]}
