"""Stage 06, how far one gets without a real image: its tables, its sentences and its claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import params, phantom, preprocessing, views
from nafld_utils.artifacts import Run, claim, key_of, of_row
from nafld_utils.sweep import clinical_measures, frozen_classifiers, verdict
from nafld_utils.sweep.simulated_only import look_units, tables, units

KEY, ALONE = "sweep.simulated_only", "not in the paper"
GUESSING = 0.9


def build(run: Run) -> dict[str, pd.DataFrame]:
    """Make what is missing and every table of the section; none where it is off or the cohort shows no livers.

    Parameters
    ----------
    run : Run
        Reads ``simulated_only``, ``simulated``, ``sweep`` and ``preprocess``.

    Returns
    -------
    dict of str to pandas.DataFrame
        From `tables`: ``auc, curve, optimistic, measures, reliability, ratio``, where real patients are trained on
        ``worth, equivalents``; ``looks`` (`phantom.looks`, by ``group``), ``constants`` (`phantom.provenance.kinds`);
        ``losses`` (`units.last_losses`).
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
        "looks": look_units.looks_unit(run).load_table("looks.csv"),
        "constants": phantom.provenance.kinds().reset_index(),
        "losses": units.last_losses(run),
    }
    if len(worth):
        made["worth"], made["equivalents"] = tables.worth_table(worth), tables.equivalents(worth, found, *how)
    return made


def _ratio(run: Run, patients: np.ndarray) -> np.ndarray:
    """Mean upper-to-lower-half ratio of the images of each of some patients."""
    data = preprocessing.open_preprocessed(run)
    values = pd.Series(frozen_classifiers.half_ratio(data.crops)).groupby(data.images["patient_id"].to_numpy()).mean()
    return values[patients].to_numpy()


def shown(found: dict[str, pd.DataFrame]) -> list[Any]:
    """The tables of `build` but for the curve, as `views.table`; none where one is empty.

    Parameters
    ----------
    found : dict of str to pandas.DataFrame
        From `build`.
    """
    return [
        views.table(found[name], **chosen)
        for name, chosen in verdict.listed_tables()["simulated_only"].items()
        if name in found
    ]


# ---------------------------------------------------------------- sentences


def answer(run: Run, found: dict[str, pd.DataFrame], swept: dict[str, pd.DataFrame]) -> str:
    """How far one gets without a real image, and why, a line per matter; all from the numbers of `build`.

    Parameters
    ----------
    run : Run
    found : dict of str to pandas.DataFrame
        From `build`.
    swept : dict of str to pandas.DataFrame
        From `sweep.build_tables`, for the AUC of real images alone.

    Returns
    -------
    str
        One sentence where nothing was trained.
    """
    if not found:
        return "Nothing is trained without a real image: simulated_only.n_cohorts is 0, or the cohort shows no livers."
    row, auc = _declared(found), found["auc"]
    of = "of this simulated cohort, who are others" if run.is_simulated else "who are real"
    text = [
        f"No real image in training: {row.n_cohorts} x {row.n_seeds} trainings, each on"
        f" {run.settings.simulated_only.n_patients} simulated patients. Their AUC on the {row.n_patients} patients"
        f" {of}, is {_bounds(row.auc, row.low, row.high)} by patient, mean of the folds (95 % over {row.over}).",
        f"As a standard deviation it varies by {_sd(row.sd_patients)} between cohorts of {row.n_patients} patients like"
        f" these, by {_sd(row.sd_cohorts)} between simulated cohorts, by {_sd(row.sd_seeds)} between training seeds.",
        _beside_real(run, row, swept),
        _attenuation(found["ratio"]),
        _listed("Controls, of which the first two must stand near 0.5", auc.query("kind == 'control'")),
    ]
    variants = auc.query("kind == 'variant'")
    if len(variants):
        text.append(_listed("Variants of the simulator, one cohort each, exploratory", variants))
        text.append(_not_learnt(found["losses"], run.settings.simulated.share))
    if "equivalents" in found:
        text += [_worth(next(found["equivalents"].itertuples())), _first(found["worth"])]
    text.append(_origin(found["constants"].set_index("variant")))
    return "\n".join(filter(None, text))


def _beside_real(run: Run, row: Any, swept: dict[str, pd.DataFrame]) -> str:
    """The same AUC of trainings with real images alone; empty where a fold has too few patients."""
    arms = verdict.at(run, swept["arms"], "patient")
    real = arms[arms["arm"] == params.REAL].iloc[0]
    if not np.isfinite(real.fold_auc):
        return ""
    bounds, more = _bounds(real.fold_auc, real.fold_low, real.fold_high), row.auc - real.fold_auc
    return f"Real images alone, in this run: {bounds}; without any it is {more:+.3f} from that (no test)."


def _declared(found: dict[str, pd.DataFrame]) -> Any:
    return found["auc"].query("kind == 'declared' and level == 'patient'").iloc[0]


def _bounds(value: float, low: float, high: float, signed: str = "") -> str:
    bounds = f" [{low:{signed}.3f}, {high:{signed}.3f}]" if np.isfinite(low) else " (no interval)"
    return f"{value:{signed}.3f}{bounds}"


def _sd(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "an unknown amount (there is one)"


def _listed(words: str, rows: pd.DataFrame) -> str:
    """Rows of `tables.auc_table` in one sentence."""
    each = [
        f"{row.name.replace('_', ' ')} {_bounds(row.auc, row.low, row.high)}" for row in rows.itertuples(index=False)
    ]
    return f"{words}: {'; '.join(each)}."


def _not_learnt(losses: pd.DataFrame, share: float) -> str:
    """Which variants were not learnt even on their own simulated patients; empty where all were.

    Choice: above `GUESSING` times the entropy of the class mix, at which a network ends that says the same of all.
    """
    guess = float(-share * np.log(share) - (1 - share) * np.log(1 - share))
    each = losses[~losses["shuffled"]].groupby("variant", sort=False)["loss"].mean()
    names = [name.replace("_", " ") for name in each.index[each > GUESSING * guess]]
    if not names:
        return ""
    return (
        f"Not learnt: trainings on {', '.join(names)} end at the loss of guessing ({guess:.2f}). Their AUC is that of a"
        " network that has learnt nothing, and says nothing of what their effects would carry to these patients."
    )


def _attenuation(ratio: pd.DataFrame) -> str:
    """Whether more than attenuation is learnt: judged by the AUC within strata of the half ratio."""
    alone, gain, within = (row for _, row in ratio.head(3).iterrows())
    halves = f"The {views.named(tables.HALVES)}, nothing learnt: {_bounds(*alone[['value', 'low', 'high']])}"
    text = f"{halves}; the trainings minus it {_bounds(*gain[['value', 'low', 'high']], '+')}; among patients of like"
    text += f" ratio the trainings have {_bounds(*within[['value', 'low', 'high']])}: "
    if not np.isfinite(within["low"]):
        return text + "too few patients to say whether more than attenuation is learnt."
    more = "more than this attenuation is learnt." if within["low"] > 0.5 else "this shows no more than attenuation."
    return text + more


def _origin(constants: pd.DataFrame) -> str:
    """That no real image is not no real data, in numbers."""
    frames, labels = constants.loc["full", ["frames", "labels"]]
    return (
        f"No real image is not no real data: {frames} of the simulator's {constants.loc['full'].sum()} constants were"
        f" measured on unlabelled frames of the published cohort and {labels} fitted to statistics of its labels;"
        " variant no_frames has none of the first kind, literature none of both."
    )


def _worth(row: Any) -> str:
    """What the AUC without a real image is worth in real patients."""

    def number(n: float) -> str:
        return f"more than {row.most:.0f}" if n >= row.most - 1e-6 else f"{n:.0f}"

    bounds = "no interval"
    if np.isfinite(row.low):
        bounds = f"{number(row.low)} to {number(row.high)}; 95 % over held-out patients"
    return f"Real patients, alone, that reach the AUC without any: {number(row.equals)} ({bounds})."


def _first(worth: pd.DataFrame) -> str:
    each = [
        f"{row.n} patients {_bounds(row.difference, row.low_difference, row.high_difference, '+')}"
        for row in worth[worth["first"]].sort_values("n").itertuples()
    ]
    return f"Simulated patients first, then real ones, minus real ones alone in as many steps: {'; '.join(each)}."


# ---------------------------------------------------------------- claims


def claims(run: Run, found: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Headline numbers of `build`, none where it is empty."""
    if not found:
        return []
    of, rows = f"no real image in training{', on simulated patients' * run.is_simulated}", []
    unit = "AUC, mean of the folds"
    for row in found["auc"].to_dict("records"):
        declared = row["kind"] == "declared"
        key = key_of(KEY, "auc", row["level"]) if declared else key_of(KEY, row["kind"], row["name"])
        text = of if declared else f"{of}, {row['kind']} {row['name'].replace('_', ' ')}"
        rows.append(of_row(key, text, row, ALONE, f"{row['level']}-level {unit}", columns=("auc", "n_patients")))
    row = _declared(found)
    none = (None, None, "no interval")
    for part, text in {"patients": "patients", "cohorts": "simulated cohorts", "seeds": "seeds"}.items():
        value, words = row[f"sd_{part}"], f"{of}: standard deviation between {text}"
        if np.isfinite(value):
            rows.append(claim(f"{KEY}.sd.{part}", words, value, ALONE, interval=none, unit="AUC"))
    n = int(row.n_patients)
    named = {"ratio.auc": 0, "ratio.difference": 1, "ratio.within": 2}
    for key, place in named.items():
        one = found["ratio"].iloc[place].to_dict()
        text = f"{of}, {one['what']}"
        rows.append(of_row(f"{KEY}.{key}", text, {**one, "n": n}, ALONE, unit, columns=("value", "n")))
    for one in found["measures"].to_dict("records"):
        text = f"{of}: {one['measure']}"
        key = key_of(f"{KEY}.measure", one["measure"])
        rows.append(of_row(key, text, {**one, "n": n}, ALONE, "by patient", columns=("value", "n")))
    best = found["optimistic"].iloc[-1]
    over = (None, None, "no interval: a maximum")
    text = f"{of}: {best.what}, an optimistic maximum"
    rows.append(claim(f"{KEY}.best", text, best.auc, ALONE, interval=over, n=int(best["of"]), unit=unit))
    return rows + (_worth_claims(found, run.is_simulated, n) if "worth" in found else [])


def _worth_claims(found: dict[str, pd.DataFrame], simulated: bool, n: int) -> list[dict[str, Any]]:
    rows = []
    for one in found["equivalents"].to_dict("records"):
        then = f" followed by {one['real']:.0f} real ones" if one["real"] else ""
        what = f"real patients, alone, that reach the AUC of simulated ones{then} ({one['most']:.0f}: that or more)"
        text, key = what + ", on simulated patients" * simulated, key_of(f"{KEY}.worth", f"n{one['real']:.0f}")
        rows.append(of_row(key, text, {**one, "n": n}, ALONE, "patients", columns=("equals", "n")))
    for one in found["worth"].query("first").to_dict("records"):
        facts = {"interval": (one["low_difference"], one["high_difference"], one["over"]), "n": n}
        text = f"simulated patients first, then {one['n']} real ones, minus these alone"
        text, key = text + ", on simulated patients" * simulated, f"{KEY}.first.n{one['n']}"
        rows.append(claim(key, text, one["difference"], ALONE, unit="AUC by patient, mean of the folds", **facts))
    return rows
