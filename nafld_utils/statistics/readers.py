"""The gain of one arm over another, over patients and training seeds: each seed reads all patients in both arms.

Contract: arrays in, numbers or named tuples out; nothing is drawn. The estimator is the one for many readers of many
cases, with seeds for readers and patients for cases, both random. Given, and so missing from every interval made here:
the split, the generators and the training patients. Trained anew on other patients the gain varies more (Nadeau and
Bengio 2003, doi:10.1023/A:1024068626366).

References
----------
Obuchowski and Rockette 1995, doi:10.1080/03610919508813243; degrees of freedom of Hillis 2007, doi:10.1002/sim.2532,
and Satterthwaite's of the patients; several images of a patient as in Obuchowski 1997, doi:10.2307/2533958.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from nafld_utils.statistics import delong

REVISION = ("readers", 2)

# With two seeds the spread between seeds has one degree of freedom: an interval would hold every gain there can be.
FEWEST_SEEDS = 3
POWER, ALPHA = 0.8, 0.05
NARROW = 4.0  # half-widths of an interval in its `smallest_effect`, of which most studies have at most three (choice)


class Spread(NamedTuple):
    """Where a gain's variance comes from, each for one seed and all patients, in AUC squared.

    `seeds`: between the true gains of seeds, below 0 where seeds agree more than their patients let expect; `patients`:
    between cohorts, alike for all seeds; `both`: between cohorts, of each seed by itself. `df`: degrees of freedom of
    the patients' parts.
    """

    seeds: float
    patients: float
    both: float
    df: float


class Gain(NamedTuple):
    """A gain in AUC (-1 to 1) with its standard error, degrees of freedom, p, interval and spread.

    With fewer than `FEWEST_SEEDS` seeds they are over patients alone, given these trainings, and ``spread.seeds`` is
    NaN. Where nothing varies, or an arm's scores are constant, error, p and interval are NaN: no spread is not
    certainty. p is never below what a permutation of so few patients could give, and the error is then as large as that
    p asks for. Bounds are cut at -1 and 1. `least` is that least p.
    """

    difference: float
    error: float
    df: float
    p: float
    low: float
    high: float
    spread: Spread
    least: float = 0.0


def gain(label: Any, new: Any, base: Any, patient: Any, level: float = 0.95) -> Gain:
    """Mean AUC of `new` minus that of `base`, over patients and seeds.

    Parameters
    ----------
    label : (n,) array of 0 and 1
        Class of each image; one class per patient.
    new, base : (n_seeds, n) array of float
        Row s of both was trained with the same seed.
    patient : (n,) array
        Patient of each image.
    level : float
        Coverage of the interval.

    Returns
    -------
    Gain

    Raises
    ------
    ValueError
        The two arms are not scored by the same seeds on the same images.

    Notes
    -----
    With `MS` the variance of the seeds' gains and `C` the mean covariance of two seeds' gains over patients, the
    squared error is ``MS / n_seeds + max(C, 0)``. Its degrees of freedom are `degrees` at the median-unbiased ratio of
    the two parts: as `MS` is more often too small than too large, the ratio itself is too large, and with three seeds
    the test would reject in 6.3 %.
    """
    new, base = np.atleast_2d(np.asarray(new, dtype=float)), np.atleast_2d(np.asarray(base, dtype=float))
    if new.shape != base.shape:
        raise ValueError(
            f"new and base: expected equal shapes (seeds, images), found {new.shape} and {base.shape}; pair them."
        )
    n, least = len(new), delong.least_p(label, patient)
    if min(np.ptp(new, axis=1).max(), np.ptp(base, axis=1).max()) == 0:
        least = float("nan")
    aucs, found = delong.placements(label, np.concatenate([new, base]), patient)
    each, found = aucs[:n] - aucs[n:], [part[:n] - part[n:] for part in found]
    over = sum(part @ part.T for part in found)  # covariance (n_seeds, n_seeds) of the gains over patients
    own = float(np.trace(over)) / n
    shared = float(over.sum() - np.trace(over)) / (n * (n - 1)) if n > 1 else own
    by_class = [(float((part.mean(axis=0) ** 2).sum()), part.shape[1] - 1) for part in found]
    df = _pooled(by_class)
    if n < FEWEST_SEEDS:
        spread = Spread(float("nan"), max(shared, 0.0), own - shared, df)
        return tested(float(each.mean()), float(over.mean()), df, spread, level, least)
    between = float(each.var(ddof=1))
    spread = Spread(between - (own - shared), max(shared, 0.0), own - shared, df)
    known = spread.patients * float(scipy.stats.chi2.median(n - 1)) / (n - 1)
    df = degrees(between / n, known, n, df)
    return tested(float(each.mean()), between / n + spread.patients, df, spread, level, least)


def degrees(seeds: float, patients: float, n_seeds: int, df_patients: float = np.inf) -> float:
    """Degrees of freedom of a variance with a part of `n_seeds` seeds and one of patients.

    Hillis's with infinite `df_patients`: he leaves the patients' own error out, as there are many in his studies. Here
    there may be 17 of a class, and with many seeds, where it is all the error, the test would reject in 6 to 7 %.
    """
    return _pooled([(seeds, n_seeds - 1), (patients, df_patients)])


def _pooled(variances: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    error = sum(variance**2 / df for variance, df in variances)
    return sum(variance for variance, _ in variances) ** 2 / error if error > 0 else np.inf


def tested(difference: float, variance: float, df: float, spread: Spread, level: float, least: float) -> Gain:
    """Two-sided t test and interval of a gain, p at least `least`; rounding alone may leave a variance of 1e-17."""
    error, nan = float(np.sqrt(max(variance, 0.0))), float("nan")
    if error <= 1e-8 or np.isnan(least):
        return Gain(difference, nan, nan, nan, nan, nan, spread, least)
    p = float(2 * scipy.stats.t.sf(abs(difference) / error, df))
    if p < least:
        p, error = least, abs(difference) / float(scipy.stats.t.isf(least / 2, df))
    half = scipy.stats.t.ppf((1 + level) / 2, df) * error
    low, high = (float(np.clip(difference + side, -1, 1)) for side in (-half, half))
    return Gain(difference, error, df, p, low, high, spread, least)


def smallest_gain(error: Any, df: Any, level: float = 0.95) -> Any:
    """The gain that a two-sided t test shows with 80 % power; of arrays or numbers, NaN where the error is.

    Examples
    --------
    >>> round(float(smallest_gain(1.0, np.inf)), 2), round(float(smallest_gain(1.0, 4)), 2)
    (2.8, 3.76)
    """
    df = np.minimum(df, 1e5)  # the normal's, to five digits
    return error * scipy.special.nctdtrinc(df, 1 - POWER, scipy.stats.t.ppf((1 + level) / 2, df))


# ---------------------------------------------------------------- how many patients would it take


def smallest_effect(found: Gain, n_seeds: int) -> float:
    """About the gain that four in five studies like this one find, by the `cautious` spread; NaN where nothing varies,
    infinite where the patients are so few that p cannot be 0.05.

    By the error found itself it is too small where that happens to be, as with few seeds it often is.
    ``tests/benchmarks/patients_study.py`` counts how often new studies find such a gain.
    """
    if np.isnan(found.error) or found.least > ALPHA:
        return float("nan") if np.isnan(found.error) else float("inf")
    error, df = planned(cautious(found.spread, n_seeds), n_seeds, 1.0)
    return float(smallest_gain(max(float(error), found.error), df))


def is_narrow(smallest: float, low: float, high: float) -> bool:
    """Whether an interval is so short beside `smallest_effect` that most such studies have a wider one.

    It happens where few seeds agree by chance: with three, their variance has two degrees of freedom.
    """
    return bool(np.inf > smallest > NARROW * (high - low) / 2)


def cautious(spread: Spread, n_seeds: int) -> Spread:
    """The spread to plan with: upper 80 % limits of its parts, by chi-squared, as a pilot study is used (Browne 1995,
    doi:10.1002/sim.4780141709). Planned with the estimates themselves, studies with few seeds show the gain too seldom.

    What the seeds' gains vary by together, `seeds` and `both`, has the limit that few seeds give, and never less than
    that of `both`, which the patients tell: `seeds` is not below 0 (Hillis, Obuchowski and Berbaum 2011).
    """
    patients, both = spread.patients * _upper(spread.df), spread.both * _upper(spread.df)
    if n_seeds < FEWEST_SEEDS:
        return spread._replace(patients=patients, both=both)
    together = (spread.seeds + spread.both) * _upper(n_seeds - 1)
    return spread._replace(patients=patients, both=both, seeds=max(together - both, 0.0))


def _upper(df: float) -> float:
    """A variance's upper 80 % limit over its estimate with `df` degrees of freedom."""
    return float(df / scipy.stats.chi2.ppf(0.2, df)) if np.isfinite(df) else 1.0


def planned(spread: Spread, n_seeds: int, times: Any) -> tuple[Any, Any]:
    """Standard error and degrees of freedom of a gain with `times` as many patients, of numbers or arrays.

    What is between patients falls with their number, what is between seeds stays (Hillis, Obuchowski and Berbaum 2011,
    doi:10.1016/j.acra.2010.09.007). With fewer than `FEWEST_SEEDS` seeds that part is unknown and left out.
    """
    times = np.asarray(times, dtype=float)
    patients, both = spread.patients / times, spread.both / times
    if n_seeds < FEWEST_SEEDS:
        return np.sqrt(patients + both / n_seeds), spread.df * times
    seeds = (spread.seeds + both) / n_seeds
    error = seeds**2 / (n_seeds - 1) + patients**2 / (spread.df * times)
    return np.sqrt(seeds + patients), (seeds + patients) ** 2 / np.maximum(error, 1e-300)


def power(gain: float, error: Any, df: Any, level: float = 0.95) -> Any:
    """How often a two-sided t test shows a true gain as one, of numbers or arrays: the noncentral t's upper tail."""
    df = np.minimum(df, 1e5)
    limit, shift = scipy.stats.t.ppf((1 + level) / 2, df), np.minimum(gain / error, 30.0)
    return 1 - scipy.special.nctdtr(df, shift, limit)


def patients_needed(spread: Spread, n_seeds: int, n_patients: int, gain: float) -> float:
    """Patients, in these classes' shares, who show a declared gain with 80 % power.

    Never fewer than those that the spread is known from; infinite where the spread between so few seeds hides the gain.
    """

    def excess(log_times: float) -> float:
        return float(smallest_gain(*planned(spread, n_seeds, np.exp(log_times)))) - gain

    most = np.log(1e6)
    if excess(most) > 0:
        return float("inf")
    times = 0.0 if excess(0.0) <= 0 else scipy.optimize.brentq(excess, 0.0, most, xtol=1e-9)
    return float(np.ceil(round(n_patients * np.exp(times), 6)))


def fewest_patients(n_pos: int, n: int) -> int:
    """Patients, in the shares of `n` with `n_pos` of class 1, from whom on p can be 0.05; at least `n`."""
    most = n
    while delong.least_p_of(round(n_pos * most / n), most) > ALPHA:
        most += 1
    return most
