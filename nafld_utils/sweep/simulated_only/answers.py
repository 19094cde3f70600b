"""Stage 06, how far one gets without a real image: its tables, its sentences and its claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import preprocessing
from nafld_utils.artifacts import Run, claim, key_of, of_row
from nafld_utils.sweep import clinical_measures, frozen_classifiers, verdict
from nafld_utils.sweep.simulated_only import tables, units

KEY, ALONE = "sweep.simulated_only", "not in the paper"


def build(run: Run) -> dict[str, pd.DataFrame]:
    """Make what is missing and every table of the section; none where it is off or the cohort shows no livers.

    Parameters
    ----------
    run : Run
        Reads ``simulated_only``, ``simulated``, ``sweep`` and ``preprocess``.

    Returns
    -------
    dict of str to pandas.DataFrame
        From `tables`: ``auc, curve, optimistic, measures, reliability, ratio`` and, where real patients are trained on,
        ``worth, equivalents``.
    """
    if not units.is_on(run):
        return {}
    units.make_all(run)
    scores, worth = units.scores(run)
    variant, how = units.main_variant(run), (run.settings.sweep.n_resamples, run.settings.seed)
    found = tables.scored(tables.main_part(scores, variant))
    graded, looks = verdict.grades(run), tables.curve(scores, variant)
    grade = [graded.get(patient, np.nan) for patient in found.patient]
    made = {
        "auc": tables.auc_table(scores, variant),
        "curve": looks,
        "optimistic": tables.optimistic(looks),
        "measures": tables.measures(found, grade, *how),
        "reliability": clinical_measures.calibration_bins(found.label, found.flat),
        "ratio": tables.beside_ratio(found, _ratio(run, found.patient), grade),
    }
    if len(worth):
        made["worth"], made["equivalents"] = tables.worth_table(worth), tables.equivalents(worth, found, *how)
    return made


def _ratio(run: Run, patients: np.ndarray) -> np.ndarray:
    """Mean upper-to-lower-half ratio of the images of each of some patients."""
    data = preprocessing.open_preprocessed(run)
    values = pd.Series(frozen_classifiers.half_ratio(data.crops)).groupby(data.images["patient_id"].to_numpy()).mean()
    return values[patients].to_numpy()


def shown(found: dict[str, pd.DataFrame], name: str) -> Any:
    """One of the tables of `build` as a styled table of three digits; None where there is none."""
    if name not in found:
        return None
    return found[name].style.format(precision=3, na_rep="").hide(axis="index")


# ---------------------------------------------------------------- sentences


def answer(run: Run, found: dict[str, pd.DataFrame]) -> str:
    """How far one gets without a real image, and why, a line per matter; all from the numbers of `build`."""
    if not found:
        return "Not asked for: simulated_only.n_cohorts is 0, or the cohort does not show livers."
    row, auc = _declared(found), found["auc"]
    whose = "patients of this simulated cohort, which are others" if run.is_simulated else "real patients"
    text = [
        f"No real image in training: {row.n_cohorts} x {row.n_seeds} trainings, each on"
        f" {run.settings.simulated_only.n_patients} simulated patients, tell {row.n_patients} {whose} at an AUC of"
        f" {_bounds(row.auc, row.low, row.high)} by patient (mean of the folds; 95 % over {row.over}).",
        f"It varies, as a standard deviation, by {_sd(row.sd_patients)} between cohorts of {row.n_patients} patients like"
        f" these, by {_sd(row.sd_cohorts)} between simulated cohorts and by {_sd(row.sd_seeds)} between training seeds.",
        _attenuation(found["ratio"]),
        _listed("Controls, of which the first two must stand near 0.5", auc.query("kind == 'control'")),
    ]
    variants = auc.query("kind == 'variant'")
    if len(variants):
        text.append(_listed("Variants of the simulator, one cohort each, exploratory", variants))
    if "equivalents" in found:
        text += [_worth(one) for one in found["equivalents"].head(1).itertuples()] + [_first(found["worth"])]
    kind = "Simulated patients stand in for real ones here" if run.is_simulated else "No real image is not no real data"
    return "\n".join(
        [*text, f"{kind}: some constants of the simulator come from the published cohort (see its table)."]
    )


def _declared(found: dict[str, pd.DataFrame]) -> Any:
    return found["auc"].query("kind == 'declared' and level == 'patient'").iloc[0]


def _bounds(value: float, low: float, high: float, signed: str = "") -> str:
    bounds = f" [{low:{signed}.3f}, {high:{signed}.3f}]" if np.isfinite(low) else " (no interval)"
    return f"{value:{signed}.3f}{bounds}"


def _sd(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "an unknown amount (there is one)"


def _listed(words: str, rows: pd.DataFrame) -> str:
    return (
        f"{words}: "
        + "; ".join(
            f"{r['name'].replace('_', ' ')} {_bounds(r['auc'], r['low'], r['high'])}" for r in rows.to_dict("records")
        )
        + "."
    )


def _attenuation(ratio: pd.DataFrame) -> str:
    """Whether more than attenuation is learnt: judged by the AUC within strata of the half ratio."""
    by = ratio.set_index("what")
    alone, gain, within = by.iloc[0], by.iloc[1], by.iloc[2]
    told = f"Beside the {tables.HALVES} ratio ({_bounds(*alone[['value', 'low', 'high']])}, nothing learnt): "
    told += f"{_bounds(*gain[['value', 'low', 'high']], '+')}; among patients of like ratio {_bounds(*within[['value', 'low', 'high']])}: "
    if not np.isfinite(within["low"]):
        return told + "too few patients to say whether more than attenuation is learnt."
    if within["low"] > 0.5:
        return told + "more than this attenuation is learnt."
    return told + "this does not tell more than attenuation rediscovered."


def _worth(row: Any) -> str:
    """What the AUC without a real image is worth in real patients."""

    def number(n: float) -> str:
        return f"more than {row.most:.0f}" if n >= row.most - 1e-6 else f"{n:.0f}"

    bounds = (
        f"{number(row.low)} to {number(row.high)}; 95 % over held-out patients"
        if np.isfinite(row.low)
        else "no interval"
    )
    return f"As many real patients, alone, as reach the AUC without any: {number(row.equals)} ({bounds})."


def _first(worth: pd.DataFrame) -> str:
    rows = worth[worth["first"]].sort_values("n")
    gains = "; ".join(
        f"{row.n} patients {_bounds(row.difference, row.low_difference, row.high_difference, '+')}"
        for row in rows.itertuples()
    )
    return f"Simulated patients first, then real ones, minus real ones alone in as many steps: {gains}."


# ---------------------------------------------------------------- claims


def claims(run: Run, found: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers of `build`, none where it is empty."""
    if not found:
        return []
    of = ", on simulated patients" if run.is_simulated else ""
    rows, unit = [], "AUC, mean of the folds"
    for row in found["auc"].to_dict("records"):
        part = {"declared": ("auc", row["level"])}.get(row["kind"], (row["kind"], row["name"]))
        text = {"declared": f"no real image in training{of}"}.get(
            row["kind"], f"no real image in training{of}, {row['name'].replace('_', ' ')}"
        )
        columns = ("auc", "n_patients")
        rows.append(of_row(key_of(KEY, *part), text, row, ALONE, f"{row['level']}-level {unit}", columns=columns))
    row = _declared(found)
    for part, text in (
        ("patients", "between patients"),
        ("cohorts", "between simulated cohorts"),
        ("seeds", "between seeds"),
    ):
        value, words = row[f"sd_{part}"], f"no real image in training{of}: standard deviation {text}"
        if np.isfinite(value):
            rows.append(
                claim(f"{KEY}.sd.{part}", words, value, ALONE, interval=(None, None, "no interval"), unit="AUC")
            )
    n = int(row.n_patients)
    named = {"ratio.auc": 0, "ratio.difference": 1, "ratio.within": 2}
    for key, place in named.items():
        one = found["ratio"].iloc[place].to_dict()
        text = f"no real image in training{of}, {one['what']}"
        rows.append(of_row(f"{KEY}.{key}", text, {**one, "n": n}, ALONE, unit, columns=("value", "n")))
    for one in found["measures"].to_dict("records"):
        text = f"no real image in training{of}: {one['measure']}"
        key = key_of(f"{KEY}.measure", one["measure"])
        rows.append(of_row(key, text, {**one, "n": n}, ALONE, "by patient", columns=("value", "n")))
    best = found["optimistic"].iloc[-1]
    over = (None, None, "no interval: a maximum")
    text = f"no real image in training{of}: {best.what}, an optimistic maximum"
    rows.append(claim(f"{KEY}.best", text, best.auc, ALONE, interval=over, n=int(best["of"]), unit=unit))
    return rows + (_worth_claims(found, of, n) if "worth" in found else [])


def _worth_claims(found: dict[str, pd.DataFrame], of: str, n: int) -> list[dict[str, Any]]:
    rows = []
    for one in found["equivalents"].to_dict("records"):
        what = f"after {one['real']:.0f} real ones" if one["real"] else "without a real image"
        text = f"real patients, alone, that reach the AUC of simulated patients {what}{of}; {one['most']:.0f}: that or more"
        if one["real"]:
            text = text.replace("after", "followed by")
        key = key_of(f"{KEY}.worth", f"n{one['real']}")
        rows.append(of_row(key, text, {**one, "n": n}, ALONE, "patients", columns=("equals", "n")))
    for one in found["worth"].query("first").to_dict("records"):
        bounds = (one["low_difference"], one["high_difference"], one["over"])
        text = f"simulated patients first, then {one['n']} real ones, minus these alone{of}"
        rows.append(
            claim(
                f"{KEY}.first.n{one['n']}", text, one["difference"], ALONE, interval=bounds, n=n, unit="AUC by patient"
            )
        )
    return rows
