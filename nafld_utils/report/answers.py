"""The four answers of a run, in sentences: does it help, are they good, are they copies, can people tell.

Contract: every number is one of the run's claims, asked for by its key, with its interval and what the interval is
over; where a claim is missing, or cannot carry the sentence, the answer says so. An interval that holds "no difference"
is never turned into "there is none". What is said in which state stands in ``templates/report_texts.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nafld_utils import statistics
from nafld_utils.artifacts import Run, key_of
from nafld_utils.report import texts
from nafld_utils.report.facts import Claim, find, first, numeric

_FLOOR = "halves_of_real"  # real patients against other real patients
_SIMULATED = "simulated"  # images that no network has learnt from patients
_FOUND = 0.9  # share of planted copies, little changed, below which an audit that finds nothing proves nothing
_BEYOND = 0.95  # share of planted copies below which a change is beyond the audit
_LITTLE = ("exact_copies", "augmented_copies")
_NOMINAL = 0.05  # share of held-out patients that the audit may flag by chance, where no claim says it


@dataclass(frozen=True)
class Answer:
    """One answer: the question, what is said in a few words, the sentences that carry it, the stage they come from.

    `short` is the verdict in three words, `card` two sentences at most, `of` whom they are said of.
    """

    key: str
    question: str
    verdict: str
    stage: str
    sentences: list[str]
    short: str
    card: list[str]
    of: str = ""


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
            short, of = (texts.fill(text, known | found) for text in (part["short"][found["state"]], part["of"]))
            card = texts.fill_all(part["card"], known | found)
        else:
            nothing = texts.load()["unanswered"]
            old = (table["stage"] == part["stage"]) & (table["key"] == "")
            verdict, sentences = nothing["verdict"], [nothing["old"] if old.any() else part["nothing"]]
            short, card, of = verdict, sentences, ""
        if run.is_smoke and found:
            verdict, short = (texts.load()["unanswered"][name] for name in ("smoke", "short"))
        elif run.is_simulated:
            verdict = f"Simulated patients: {verdict[0].lower()}{verdict[1:]}"
        question = texts.fill(part["question"], known)
        out.append(Answer(key, question, verdict, part["stage"], sentences, short, card, of))
    return out


def _side(claim: Claim, middle: float) -> str:
    """Where the interval of a claim lies: above or below a value, or it holds it; or it has none that tells."""
    if not claim.bounded:
        return "unbounded"
    return "above" if claim.low > middle else "below" if claim.high < middle else "holds"


def _help(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Gains over patients, each with where it lies, the primary one first; empty where there is none.

    The verdict is that of the primary gain; those of other networks explore.
    """
    gains, seeds = find(table, "sweep.gain.patients"), first(table, "sweep.gain.seeds")
    if not gains:
        return {}
    states, smallest = [_side(gain, 0.0) for gain in gains], first(table, "sweep.smallest_gain")
    alone = first(table, "sweep.auc.image.real")
    few = seeds is not None and (numeric(seeds.n) or statistics.FEWEST_SEEDS) < statistics.FEWEST_SEEDS
    return {
        "state": "few" if few else states[0],
        "secondary_gains": find(table, "sweep.gain.secondary"),
        "kinds": find(table, "sweep.kind"),
        "gains": list(zip(gains, states, strict=True)),
        "unmoved": not gains[0].bounded and smallest is None,
        "planned": _planned(run, table),
        "few": few,
        "fewest": statistics.FEWEST_SEEDS,
        "alone": alone,
        **_no_pixels(table),
        **_strongest(table),
        "elsewhere": _elsewhere(table),
        "smallest": smallest,
        "beyond": smallest is not None and alone is not None and smallest.value > 1 - alone.value,
        "narrow": smallest is not None
        and gains[0].bounded
        and statistics.is_narrow(smallest.value, gains[0].low, gains[0].high),
        "seeds": seeds,
    }


def _planned(run: Run, table: pd.DataFrame) -> list[tuple[float, Claim, Claim | None]]:
    """Each declared gain with the power of these patients and, where a number is enough, the patients needed."""
    keys = {gain: key_of("", f"gain {gain:g}") for gain in run.settings.sweep.declared_gains}
    found = (
        (gain, *(first(table, f"sweep.{name}{key}") for name in ("power", "patients_needed")))
        for gain, key in keys.items()
    )
    return [one for one in found if one[1] is not None]


def _no_pixels(table: pd.DataFrame) -> dict[str, Any]:
    """The baseline that sees no pixel beside the network on real images, where both judge the same patients."""
    blind, network = first(table, "baselines.folds.no_pixels"), first(table, "sweep.auc.patient.real")
    network = network if blind and network and blind.n == network.n else None
    tells = blind is not None and _side(blind, 0.5) == "above"
    return {"no_pixels": blind, "network": network, "no_pixels_tells": tells}


def _elsewhere(table: pd.DataFrame) -> dict[str, Claim] | None:
    """What the locked test on another cohort says; None where there is none."""
    keys = ("patients", "auc.real", "auc.declared", "auc.baseline", "gain")
    found = {key.rpartition(".")[2]: claim for key in keys if (claim := first(table, f"elsewhere.{key}"))}
    return found if len(found) == len(keys) else None


def _strongest(table: pd.DataFrame) -> dict[str, Any]:
    """The best baseline on the run's folds and the classifier beside it, by patient; ``beaten``: it outdoes both."""
    found = sorted(find(table, "baselines.folds"), key=lambda claim: claim.value)
    ours = [claim for part in ("real", "declared") if (claim := first(table, f"sweep.auc.patient.{part}"))]
    best = found[-1] if found and len(ours) == 2 else None
    alike = best is not None and all(claim.n == best.n for claim in ours)
    beaten = alike and best is not None and all(claim.value < best.value for claim in ours)
    return {"strongest": best, "n_baselines": len(found), "ours": ours, "alike": alike, "beaten": beaten}


def _quality(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Distances to real patients at equal numbers of patients, beside that of other real patients."""
    found = {claim.parts[2]: claim for claim in find(table, "patients.frechet") if claim.parts[3] == "both"}
    floor, gap = found.pop(_FLOOR, None), first(table, "quality.frechet.gan_minus_ceiling")
    untrained = gap is not None and not (gap.value if gap.high is None else gap.high) < 0
    if untrained:
        found.pop("gan", None)
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
        "unlearnt": kinds["near"] == [_SIMULATED] and len(found) > 1,
        "drawn": list(found.values()),
        "floor": floor,
        "n_patients": floor.parts[4].removeprefix("at_"),
        "kernel": [
            claim for claim in find(table, "patients.kernel") if claim.parts[3] == "both" and claim.parts[2] in found
        ],
        "untrained": gap if untrained else None,
        "over": next((claim.over for claim in found.values() if claim.bounded), ""),
        "condition": condition if condition is not None and condition.bounded else None,
    }


def _copies(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Shares of copies, beside what the audit finds of planted ones and flags among held-out patients."""
    found = {claim.parts[2]: claim for claim in find(table, "copies.share")}
    held_out, planted = found.pop("held_out", None), find(table, "copies.found.planted")
    if not found or held_out is None or not planted:
        return {}
    alike, flagged = first(table, "cohort.one_person"), first(table, "copies.found.held_out")
    chance = first(table, "copies.by_chance.verdict")
    # what real patients reach: no bound, no "exceeds"
    ends = [claim.high for claim in (held_out, flagged) if claim]
    limit = max([1.0 if end is None else end for end in ends] + ([chance.value] if chance else []))
    some = [name for name, claim in found.items() if claim.value > 0]
    more = [name for name in some if (found[name].low or 0.0) > limit]
    blind = min(claim.value for claim in planted if claim.parts[3] in _LITTLE) < _FOUND
    beyond = [claim.parts[3].replace("_", " ") for claim in planted if claim.value < _BEYOND]
    real = (alike is not None and alike.value > 0) or (
        flagged is not None and (flagged.low or 0.0) > (chance.value if chance else _NOMINAL)
    )
    state = "exceeds" if more else "some" if some else "blind" if blind else "alike" if real else "none"
    known = {"held_out": held_out, "planted": planted, "more": more, "chance": chance, "limit": limit, "beyond": beyond}
    return {"state": state, "drawn": list(found.values()), **known, "one_person": texts.one_person(table)}


def _people(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Where d' over raters and images lies, and whether it is shown to be within the declared margin of 0."""
    margin = run.settings.turing.equivalence_margin_d_prime
    for who in ("raters", "simulated_raters"):
        accuracy = first(table, f"turing.{who}.accuracy.others") or first(table, f"turing.{who}.accuracy")
        if accuracy:
            d_prime, least = (first(table, f"turing.{who}.d_prime{end}") for end in ("", ".margin"))
            state = "simulated" if who == "simulated_raters" else _side(d_prime, 0.0) if d_prime else "unbounded"
            if state in ("above", "below", "holds") and least is not None and least.value < margin:
                state = "within"
            return {"state": state, "accuracy": accuracy, "d_prime": d_prime, "margin": margin}
    return {}
