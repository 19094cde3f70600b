"""The four answers of a run, in sentences: does it help, are they good, are they copies, can people tell.

Contract: every number is one of the run's claims, asked for by its key, with its interval and what the interval is
over; where a claim is missing, or cannot carry the sentence, the answer says so. An interval that holds "no difference"
is never turned into "there is none". What is said in which state stands in ``templates/report_texts.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nafld_utils.artifacts import Run
from nafld_utils.report import texts
from nafld_utils.report.facts import Claim, find, first

_FLOOR = "halves_of_real"  # real patients against other real patients
_FOUND = 0.9  # share of planted copies below which an audit that finds nothing proves nothing
_NOMINAL = 0.05  # share of held-out patients that chance lets the audit's measure of pixels flag


@dataclass(frozen=True)
class Answer:
    """One answer: the question, what is said in a few words, the sentences that carry it, the stage they come from."""

    key: str
    question: str
    verdict: str
    stage: str
    sentences: list[str]


def answers(run: Run, table: pd.DataFrame) -> list[Answer]:
    """The four answers, in the order help, quality, copies, people.

    Parameters
    ----------
    run : Run
        For class names, margins and whether the cohort is simulated.
    table : pandas.DataFrame
        From `nafld_utils.report.facts.claims_table`.
    """
    known, out = texts.values(run), []
    for key, read in {"help": _help, "quality": _quality, "copies": _copies, "people": _people}.items():
        part, found = texts.load()["answers"][key], read(run, table)
        if found:
            verdict = texts.fill(part["verdicts"][found["state"]], known | found)
            sentences = texts.fill_all(part["sentences"], known | found)
        else:
            nothing = texts.load()["unanswered"]
            old = (table["stage"] == part["stage"]) & (table["key"] == "")
            verdict, sentences = nothing["verdict"], [nothing["old"] if old.any() else part["nothing"]]
        if run.is_simulated:
            verdict = f"Simulated patients: {verdict[0].lower()}{verdict[1:]}"
        out.append(Answer(key, texts.fill(part["question"], known), verdict, part["stage"], sentences))
    return out


def _side(claim: Claim, middle: float) -> str:
    """Where the interval of a claim lies: above or below a value, or it holds it; or it has none that tells."""
    if not claim.bounded:
        return "unbounded"
    return "above" if claim.low > middle else "below" if claim.high < middle else "holds"


def _help(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Gains over patients, each with where it lies; empty where there is none."""
    gains = find(table, "sweep.gain.patients")
    if not gains:
        return {}
    states = [_side(gain, 0.0) for gain in gains]
    return {
        "state": states[0] if len(set(states)) == 1 else "mixed",
        "gains": list(zip(gains, states, strict=True)),
        "unmoved": gains[0].low is not None and gains[0].low == gains[0].high,
        "alone": first(table, "sweep.auc.image.real"),
        "smallest": first(table, "sweep.smallest_gain"),
        "seeds": first(table, "sweep.gain.seeds"),
    }


def _quality(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Distances to real patients at equal numbers of patients, beside that of other real patients."""
    found = {claim.parts[2]: claim for claim in find(table, "patients.frechet")
             if claim.parts[3] == "both" and claim.parts[4] != "infinite"}  # fmt: skip
    floor = found.pop(_FLOOR, None)
    if not found or floor is None:
        return {}
    kinds: dict[str, list[str]] = {"farther": [], "near": [], "unbounded": []}
    for name, claim in found.items():
        limit = floor.value if floor.high is None else floor.high
        kind = "unbounded" if claim.low is None else "farther" if claim.low > limit else "near"
        kinds[kind].append(name)
    states = [kind for kind, names in kinds.items() if names]
    condition = first(table, "condition.auc.class.with.folds")
    return {
        "state": states[0] if len(states) == 1 else "mixed",
        "kinds": kinds,
        "drawn": list(found.values()),
        "floor": floor,
        "n_patients": floor.parts[4].removeprefix("at_"),
        "over": next((claim.over for claim in found.values() if claim.bounded), ""),
        "condition": condition if condition is not None and condition.bounded else None,
    }


def _copies(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Shares of copies, beside what the audit finds of planted ones and flags among held-out patients."""
    found = {claim.parts[2]: claim for claim in find(table, "copies.share")}
    held_out, planted = found.pop("held_out", None), find(table, "copies.found.planted")
    if not found or held_out is None or not planted:
        return {}
    some = [name for name, claim in found.items() if claim.value > 0]
    more = [name for name in some if (found[name].low or 0.0) > (held_out.high or held_out.value)]
    blind = min(claim.value for claim in planted) < _FOUND
    alike, flagged = first(table, "cohort.one_person"), first(table, "copies.found.held_out")
    real = (alike is not None and alike.value > 0) or (flagged is not None and (flagged.low or 0.0) > _NOMINAL)
    state = "exceeds" if more else "some" if some else "blind" if blind else "alike" if real else "none"
    found = {"drawn": list(found.values()), "held_out": held_out, "planted": planted, "more": more}
    return {"state": state, **found, "one_person": texts.one_person(table)}


def _people(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """The accuracy that speaks for most: the one over raters and images where there is one."""
    margin = run.settings.turing.equivalence_margin
    for who in ("raters", "simulated_raters"):
        key = f"turing.{who}.accuracy"
        accuracy = first(table, f"{key}.others") or first(table, key)
        if accuracy:
            state = "simulated" if who == "simulated_raters" else _side(accuracy, 0.5)
            if state == "holds" and 0.5 - margin < accuracy.low and accuracy.high < 0.5 + margin:
                state = "within"
            return {"state": state, "accuracy": accuracy, "margin": 100 * margin}
    return {}
