"""Can these raters tell, in d': a probit model crossed over raters and images, equivalence within a margin, and plans.

Contract: ratings in as `nafld_utils.turing.table_1.summarize` describes them, tables out. d' is how far apart real and
synthetic images look to a rater, in standard deviations over images. It is free of the rater's inclination to say
"real" and of the share of real images, on which accuracy depends. Raters and images are both drawn from many: an
interval is about other raters and other such images. "No difference found" is not "no difference": equivalence within
a margin has to be shown, and `equivalence_plan` says with how many raters and images it can be.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special
from scipy import stats as scipy_stats

from nafld_utils.turing import intervals, table_1

REVISION = ("turing_model", 2)

MIN_ANSWERS = 10  # of the rarer answer, over all raters; see `crossed_d_prime`
MIN_RATERS = 2.0  # by weight
# Raters by weight and raters counted once: differences of d' beyond these (normal 90 %, share of the margin) matter.
APART, NEAR = 1.645, 0.08
MIN_TOLD = 0.8  # share of raters who gave both answers
N_RATERS = (3, 5, 8, 12, 20, 30, 50, 100)
MAX_IMAGES = 10_000
OVER = "raters and images (crossed probit)"
_NAN = float("nan")
_DIFFERENT = "raters saw different images: no crossed analysis"
_SIDE = np.array([0.5, -0.5])  # part of d' in how real a real and a synthetic image look


# ---------------------------------------------------------------- the crossed probit model


class Probit(NamedTuple):
    """One d' for all raters and a criterion for each; columns of (R, 2) are real and synthetic images."""

    d_prime: float
    criterion: np.ndarray  # (R,), above 0: inclined to say "synthetic"
    share: np.ndarray  # (R, 2), fitted probability of "real"
    influence: np.ndarray  # (R, 2), change of d' by one answer "real" more
    weight: np.ndarray  # (R,), part of the information on d' that is this rater's; the sum is 1
    information: float  # on d', of answers that are independent


def fit(counts: np.ndarray, sizes: np.ndarray) -> Probit | None:
    """Maximum likelihood from counts (R, 2) of "real" among `sizes` (2,) images; None where d' has no finite estimate.

    Every rater has given both answers. Newton's method, the criteria eliminated.
    """
    at, d = -special.ndtri(counts.sum(1) / sizes.sum()), 0.0
    for _ in range(50):
        z = d * _SIDE - at[:, None]
        p, density = special.ndtr(z), np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        slope = density / np.maximum(p * (1 - p), 1e-12)
        score, curve = (counts - sizes * p) * slope, sizes * density * slope
        own, cross = np.maximum(curve.sum(1), 1e-12), curve @ _SIDE
        part = curve @ _SIDE**2 - cross**2 / own
        if part.sum() < 1e-6 or abs(d) > 5:
            return None
        step = float(np.clip((score @ _SIDE - cross / own * score.sum(1)).sum() / part.sum(), -1, 1))
        moves = np.clip((score.sum(1) - cross * step) / own, -1, 1)
        d, at = d + step, at - moves
        if max(abs(step), float(np.abs(moves).max())) < 1e-9:
            break
    influence = slope * (_SIDE - (cross / own)[:, None]) / part.sum()
    return Probit(float(d), at, p, influence, part / part.sum(), float(part.sum()))


class Panel(NamedTuple):
    """What a panel's answers say of d'; `note` says why nothing can be said."""

    d_prime: float
    criterion: float  # mean over raters
    criterion_sd: float  # over raters
    squares: intervals.MeanSquares  # of the answers' parts of d', of which d' is the mean
    n_raters: int
    n_told: int  # raters who gave both answers, of whom the rest is
    sizes: tuple[int, int]  # real and synthetic images
    effective: float  # raters by weight
    mean: float  # of raters' own d', each counted once
    apart: float  # standard error of its difference from d', which counts raters by their information
    uneven: float  # of that information: mean of 1 / (raters * weight), less 1
    note: str

    def error(self) -> tuple[float, float]:
        """Standard error of d' and its degrees of freedom."""
        return intervals.crossed_error(self.squares, self.n_told * sum(self.sizes))


def crossed_d_prime(said: np.ndarray, real: np.ndarray) -> Panel:
    """What answers (R, n) of 0 or 1 ("real") and the key (n,) say of d'.

    Choice: a probit model with one d' and a criterion for each rater (DeCarlo 1998, doi 10.1037/1082-989X.3.2.186),
    by maximum likelihood. Answers enter its variance by their influence on d', in a raters-by-images analysis of
    variance as that of `nafld_utils.turing.intervals.crossed_summary` (Dorfman, Berbaum and Metz 1992, doi
    10.1097/00004424-199209000-00015). A rater's deviation is that from the panel without this rater, and the degrees
    of freedom are those of the raters by weight, since raters who lean to one answer tell little. The mean of raters'
    own d', corrected as Hautus (1995) does, pulls such raters towards a value that depends on the numbers of images: at
    20 + 30 images and 90 % "real" it finds 0.14 where d' is 0.25, and so shows equivalence too often. Nothing can be
    said where d' has no finite estimate, with fewer than
    `MIN_ANSWERS` of one answer (of 3 to 5 among 5 raters and 50 images, three in four simulated panels have none), or
    where fewer than `MIN_RATERS` raters by weight gave both. `tests/benchmarks/rater_study.py` simulates all this.
    """
    n_raters, n = said.shape
    sizes = (int((real == 1).sum()), int((real == 0).sum()))
    rarer, said = int(min(said.sum(), said.size - said.sum())), said[(said.sum(1) > 0) & (said.sum(1) < n)]
    n_told = len(said)
    nothing = Panel(_NAN, _NAN, _NAN, intervals.MeanSquares(*[_NAN] * 6), n_raters, n_told, sizes, *[_NAN] * 4, "")
    if rarer < MIN_ANSWERS:
        return nothing._replace(
            note=f'{rarer} answers of the rarer kind, "real" or "synthetic": {MIN_ANSWERS} are needed'
        )
    if n_told < 2 or min(sizes) < 2:
        found = f"{n_told} raters who gave both answers, {sizes[0]} real and {sizes[1]} synthetic images"
        return nothing._replace(note=f"{found}: two of each are needed")
    kind = np.where(real == 1, 0, 1)
    counts = np.stack([said[:, kind == k].sum(1) for k in (0, 1)], axis=1)
    model = fit(counts, np.array(sizes))
    if model is None:
        return nothing._replace(note="the answers part real from synthetic images wholly: d' has no finite estimate")
    effective = float(1 / (model.weight**2).sum())
    if effective < MIN_RATERS:
        return nothing._replace(note=f"{effective:.1f} raters by weight, the others gave hardly more than one answer")
    parts = n_told * n * model.influence[:, kind] * (said - model.share[:, kind])
    alone = _without_each(parts.mean(1), model.weight)
    squares = intervals.mean_squares(parts, kind)._replace(raters=n * alone, df_raters=effective - 1)
    middle, sd = float(model.criterion.mean()), float(model.criterion.std(ddof=1))
    # a rater's own d' by one step from the panel's, which is their mean by weight
    own = model.d_prime + (model.influence * (counts - np.array(sizes) * model.share)).sum(1) / model.weight
    off = (1 / n_told - model.weight) * (own - own.mean())
    apart = (float(own.mean()), float(np.sqrt(n_told / (n_told - 1) * (off**2).sum())), _uneven(model.weight))
    return Panel(model.d_prime, middle, sd, squares, n_raters, n_told, sizes, effective, *apart, "")


def _uneven(weight: np.ndarray) -> float:
    """By how much the mean over raters, each counted once, has more variance by chance than d', as a share."""
    return float((1 / (len(weight) * weight)).mean() - 1)


def _without_each(parts: np.ndarray, weight: np.ndarray) -> float:
    """Variance of raters' parts of d', each against the panel without this rater, which has `weight` in it."""
    n = len(parts)
    return float((((n - 1) / n * parts / (1 - weight)) ** 2).sum() / (n - 1))


def panel_of(ratings: pd.DataFrame) -> Panel:
    """`crossed_d_prime` of a table of ratings; nothing can be said where raters have different images."""
    table = table_1.checked(ratings)
    grid = table.pivot_table(index="rater", columns="image_id", values="said_real")
    if grid.isna().to_numpy().any():
        return crossed_d_prime(np.zeros((len(grid), 1)), np.zeros(1))._replace(note=_DIFFERENT)
    real = table.drop_duplicates("image_id").set_index("image_id").loc[grid.columns, "is_real"]
    return crossed_d_prime(grid.to_numpy(), real.to_numpy())


def model_table(panel: Panel) -> pd.DataFrame:
    """What the crossed probit says of other raters and images: ``term, estimate, low, high`` (95 %), ``over, note``.

    d' and the mean criterion, and the SDs of d' and of the criterion over raters and of looking real over images. SDs
    are by the method of moments, negative variances set to 0, and rough with few raters.
    """
    se, df = panel.error()
    half, found = scipy_stats.t.ppf(0.975, df) * se, spread(panel)
    rows = [
        ("d'", panel.d_prime, panel.d_prime - half, panel.d_prime + half, OVER, panel.note),
        ("criterion, mean over raters", panel.criterion, _NAN, _NAN, "", panel.note or "of these raters"),
    ]
    sds = {"d' over raters": found.rater, "looking real over images": found.image}
    for name, value in ({"criterion over raters": panel.criterion_sd} | sds).items():
        rows.append((f"SD of {name}", value, _NAN, _NAN, "", panel.note or "by moments, rough with few raters"))
    return pd.DataFrame(rows, columns=["term", "estimate", "low", "high", "over", "note"])


# ---------------------------------------------------------------- how much raters and images differ


class Spread(NamedTuple):
    """How much d' differs, as SDs, and what one answer's chance adds."""

    rater: float
    rater_high: float  # one-sided upper 80 % limit: a test planned on five raters' estimate would often be too small
    image: float
    noise: float  # by which one answer adds variance; pi / 2 for a rater without inclination
    effective: float  # raters by weight, share of all
    uneven: float = 0.0  # see `Panel`


def spread(panel: Panel) -> Spread:
    """Variance components of a panel by the method of moments, negative ones set to 0; NaN where nothing is said."""
    if panel.note:
        return Spread(*[_NAN] * 6)
    squares, n = panel.squares, sum(panel.sizes)
    per, share = n * (1 / panel.sizes[0] + 1 / panel.sizes[1]), panel.effective / panel.n_raters
    image = float(np.sqrt(max(0.0, (squares.images - squares.rest) / (panel.n_told * per))))
    raters = _rater_spread(squares, panel.effective / (panel.n_told * n))
    return Spread(*raters, image, squares.rest / per * panel.n_raters / panel.n_told, share, panel.uneven)


@functools.cache
def paper_spread() -> Spread:
    """The same for the paper's raters; its Table 1 tells nothing about single images, so their SD is missing."""
    (ru, rh, su, sh), counts = table_1.PAPER_SIZES, np.array(table_1.PAPER_COUNTS)
    sizes = np.array([ru + rh, su + sh])
    said = np.stack([counts[:, :2].sum(1), sizes[1] - counts[:, 2:].sum(1)], axis=1)
    model, n_raters, n = fit(said, sizes), len(said), int(sizes.sum())
    assert model is not None
    effective = float(1 / (model.weight**2).sum())
    parts = n_raters * (model.influence * (said - sizes * model.share)).sum(1)
    squares = intervals.MeanSquares(n * _without_each(parts, model.weight), _NAN, n_raters * n / model.information,
                                    effective - 1, _NAN, _NAN)  # fmt: skip
    raters = _rater_spread(squares, effective / (n_raters * n))
    noise = n_raters / float(model.information * (1 / sizes).sum())
    return Spread(*raters, _NAN, noise, effective / n_raters, _uneven(model.weight))


def _rater_spread(squares: intervals.MeanSquares, scale: float) -> tuple[float, float]:
    """SD of raters' true d' and its upper 80 % limit; `scale`: variance of d' per unit of the mean square."""
    high = squares.df_raters * squares.raters / scipy_stats.chi2.ppf(0.2, squares.df_raters)
    return tuple(float(np.sqrt(max(0.0, scale * (value - squares.rest)))) for value in (squares.raters, high))


# ---------------------------------------------------------------- equivalence


def equivalence_test(panel: Panel, margin: float = 0.25) -> dict[str, float | str]:
    """Do these answers show that d' is within a margin of 0? Two one-sided tests at 5 %, over raters and images.

    Gives ``d_prime, low, high`` (its 90 % interval), ``p`` (the larger of the one-sided ones), ``smallest_margin``
    (within which equivalence would be shown; NaN where none), ``verdict`` ("shown", "not shown", "cannot be said"),
    ``note`` (why nothing can be said).

    Notes
    -----
    Choice: d' counts raters by what their answers tell, so that raters who lean to one answer hardly count. Where they
    are the ones who can tell, d' is far below the mean over raters. So the tests must also succeed for the mean with
    each rater counted once, the two must not differ by more than `APART` standard errors and `NEAR` margins, and
    `MIN_TOLD` of the raters must have given both answers; else "cannot be said" stands for "shown".
    """
    d, (se, df) = panel.d_prime, panel.error()
    quantile, wide = float(scipy_stats.t.ppf(0.95, df)), float(np.hypot(se, panel.apart))
    half, away = quantile * se, abs(panel.mean - d)
    reach = {"weighted": abs(d) + half, "once": abs(panel.mean) + quantile * wide}
    p = max(float(scipy_stats.t.sf((margin - abs(at)) / error, df)) for at, error in ((d, se), (panel.mean, wide)))
    note = panel.note
    if not note and reach["weighted"] < margin:
        if panel.n_told < MIN_TOLD * panel.n_raters:
            note = f"{panel.n_told} of {panel.n_raters} raters gave both answers, of the others nothing is known"
        elif away > max(APART * panel.apart, NEAR * margin) or reach["once"] >= margin:
            note = (
                f"raters who lean to one answer hardly count in d' {d:.2f}, and differ from the others too much or"
                f" tell too little: each counted once, the mean is {panel.mean:.2f}"
            )
    verdict = "cannot be said" if note else "shown" if reach["weighted"] < margin else "not shown"
    least = _NAN if panel.n_told < MIN_TOLD * panel.n_raters else max(*reach.values(), _least(panel, away))
    numbers = {"d_prime": d, "low": d - half, "high": d + half, "p": p, "smallest_margin": least}
    return numbers | {"verdict": verdict, "note": note}


def _least(panel: Panel, away: float) -> float:
    """The margin from which on a difference of raters by weight and counted once does not matter."""
    return 0.0 if away <= APART * panel.apart else away / NEAR


def equivalence_power(n_raters: int, sizes: tuple[int, int], spread: Spread, margin: float = 0.25) -> float:
    """Chance to show that d' is within `margin` of 0 when it is 0: two one-sided tests at 5 %.

    Every rater sees the same `sizes` real and synthetic images, and raters lean as those of `spread` do.

    Notes
    -----
    ``var(d') = sd_rater^2 / R' + (sd_image^2 + noise / R) (1 / n_real + 1 / n_synthetic)`` with R' raters by weight of
    R; their d' and their inclination are taken for unrelated. The chance is averaged over what the analysis of variance
    may find, whose mean squares are those expected times chi-square over its degrees of freedom; checked against
    simulated panels in `tests/benchmarks/rater_study.py`.

    Examples
    --------
    >>> few, many = (equivalence_power(n, (25, 25), Spread(0.1, 0.2, 0.1, 1.6, 1.0)) for n in (5, 50))
    >>> few < 0.2 < 0.8 < many
    True
    """
    n, df = sum(sizes), (spread.effective * n_raters - 1, sum(sizes) - 2.0)
    if df[0] < MIN_RATERS - 1:
        return 0.0
    per = n * (1 / sizes[0] + 1 / sizes[1])
    rest, image = spread.noise * per, np.nan_to_num(spread.image)
    expected = rest + n * spread.rater**2 / spread.effective, rest + n_raters * per * image**2
    true = np.sqrt((sum(expected) - rest) / (n_raters * n))
    chances = (np.arange(25) + 0.5) / 25
    found = (mean * scipy_stats.chi2.ppf(chances, k) / k for mean, k in zip(expected, df, strict=True))
    raters, images = np.meshgrid(*found)
    squares = intervals.MeanSquares(raters, images, rest, *df, (n_raters - 1) * (n - 2))
    se, free = intervals.crossed_error(squares, n_raters * n)
    # raters counted once: their mean is away from d' by what is uneven, independently of it
    away = np.sqrt(
        spread.uneven * spread.noise * (1 / sizes[0] + 1 / sizes[1]) / n_raters
        + spread.rater**2 * max(0.0, 1 / spread.effective - 1) / n_raters
    )
    quantile, off = special.stdtrit(free, 0.95)[..., None], away * special.ndtri(chances)
    reach, once = margin - quantile * se[..., None], margin - quantile * np.hypot(se, away)[..., None]
    ends = np.minimum(reach, once - off), np.maximum(-reach, -once - off)
    shown = np.maximum(0, special.ndtr(ends[0] / true) - special.ndtr(ends[1] / true))
    return float((shown * (np.abs(off) <= max(APART * away, NEAR * margin))).mean())


def equivalence_plan(
    spread: Spread, margin: float = 0.25, power: float = 0.8, n_raters: Sequence[int] = N_RATERS
) -> pd.DataFrame:
    """How many images each rater of panels of `n_raters` must see to show equivalence with a given `power`.

    The power is the chance to succeed if nobody can tell at all, half of the images real; the rest as in
    `equivalence_power`. Columns ``n_raters, n_images`` (even; missing where no number up to 10,000 is enough),
    ``n_answers, power`` (reached), ``note``.
    """
    halves = range(2, MAX_IMAGES // 2 + 1)
    rows = []
    for raters in n_raters:

        def reached(half: int, raters: int = raters) -> float:
            return equivalence_power(raters, (half, half), spread, margin)

        if reached(halves[-1]) < power:
            rows.append((raters, None, None, None, "raters differ too much: no number of images is enough"))
        else:
            half = halves[bisect.bisect_left(halves, power, hi=len(halves) - 1, key=reached)]
            rows.append((raters, 2 * half, 2 * half * raters, reached(half), ""))
    out = pd.DataFrame(rows, columns=["n_raters", "n_images", "n_answers", "power", "note"])
    return out.astype({"n_images": "Int64", "n_answers": "Int64", "power": float})


def plans(panel: Panel, margin: float = 0.25, power: float = 0.8) -> pd.DataFrame:
    """`equivalence_plan` for raters who differ as these do, as the paper's do, and as either might at worst.

    Columns ``basis, sd_rater, sd_image`` (of d') before those of `equivalence_plan`. What the paper prints says nothing
    about images: there their SD is 0, and no test with fewer images could be enough.
    """
    found, parts = {"the paper's raters": paper_spread()}, []
    if not panel.note:  # else these raters say nothing of how raters differ
        found = {"these raters": spread(panel)} | found
    for name, one in found.items():
        for basis, rater in ((name, one.rater), (f"{name}, upper limit", one.rater_high)):
            plan = equivalence_plan(one._replace(rater=rater), margin, power)
            parts.append(plan.assign(basis=basis, sd_rater=rater, sd_image=np.nan_to_num(one.image)))
    out = pd.concat(parts, ignore_index=True)
    return out[["basis", "sd_rater", "sd_image", "n_raters", "n_images", "n_answers", "power", "note"]]


def chances(panel: Panel, margin: float = 0.25) -> pd.DataFrame:
    """Chance of the panels at hand, this one and the paper's, to show equivalence if nobody can tell.

    Columns ``panel, n_raters, n_images, chance``; the paper's is an upper limit, since its images may differ.
    """
    sizes = (sum(table_1.PAPER_SIZES[:2]), sum(table_1.PAPER_SIZES[2:]))
    n_raters = len(table_1.PAPER_COUNTS)
    rows = [("the paper's, at most", n_raters, sum(sizes), equivalence_power(n_raters, sizes, paper_spread(), margin))]
    if not panel.note:
        here = equivalence_power(panel.n_raters, panel.sizes, spread(panel), margin)
        rows.insert(0, ("this one", panel.n_raters, sum(panel.sizes), here))
    return pd.DataFrame(rows, columns=["panel", "n_raters", "n_images", "chance"])
