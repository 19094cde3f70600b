"""The four answers of a run, in sentences: does it help, are they good, are they copies, can people tell.

Contract: every number is one of the run's claims, read by the words that its stage gives it, with its interval and
what the interval is over; where a claim is missing, or cannot carry the sentence, the answer says so. An interval that
holds "no difference" is never turned into "there is none".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd

from nafld_utils.artifacts import Run
from nafld_utils.report import facts, pages

HELD_OUT = "real, held out"  # as stage 05 names real patients in its search for copies
FLOOR = "halves_of_real"  # as stage 05 names real patients against other real patients
_FOUND = 0.9  # share of planted copies below which a search that finds nothing proves nothing


@dataclass(frozen=True)
class Answer:
    """One answer: the question, what is said in a few words, the sentences that carry it, the stage they come from."""

    key: str
    question: str
    verdict: str
    stage: str
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """One row of a stage's claims."""

    text: str
    value: float
    low: float | None
    high: float | None
    over: str
    n: str
    unit: str

    @property
    def bounded(self) -> bool:
        """Whether it has an interval; one of no width, as of folds that are all alike, tells nothing."""
        return self.low is not None and self.high is not None and self.low < self.high

    def shown(self, over: bool = True, factor: float = 1.0, unit: str = "") -> str:
        """Value and interval in words, e.g. ``0.012 [-0.07, 0.11] (95 % interval over patients)``."""
        text = f"{pages.number(factor * self.value)}{unit}"
        if not self.bounded:
            return f"{text} (no interval)"
        text += f" {pages.interval(factor * self.low, factor * self.high)}"  # type: ignore[operator]
        return f"{text} (95 % interval over {self.over})" if over else text


def answers(run: Run, table: pd.DataFrame) -> list[Answer]:
    """The four answers.

    Parameters
    ----------
    run : Run
        For class names, margins and whether the cohort is simulated.
    table : pandas.DataFrame
        From `nafld_utils.report.facts.claims_table`.

    Returns
    -------
    list of Answer
        In the order help, quality, copies, people.
    """
    found = [_help(run, table), _quality(run, table), _copies(run, table), _people(run, table)]
    if not run.is_simulated:
        return found
    return [replace(one, verdict=f"Simulated patients: {one.verdict[0].lower()}{one.verdict[1:]}") for one in found]


def find(table: pd.DataFrame, stage: str, pattern: str, **has: str) -> list[Claim]:
    """Claims of a stage whose text matches `pattern` from its start, with a number; `has` asks how a column starts."""
    rows = table[(table["stage"] == stage) & table["claim"].str.match(pattern)]
    for column, words in has.items():
        rows = rows[rows[column].str.startswith(words)]
    out = []
    for row in rows.to_dict("records"):
        value = facts.numeric(row["this_run"])
        if value is not None:
            low, high = facts.numeric(row["low"]), facts.numeric(row["high"])
            n = pages.number(row["n"])
            out.append(Claim(row["claim"], value, low, high, row["over"], n, row["unit"]))
    return out


def _unanswered(key: str, question: str, stage: str, why: str) -> Answer:
    return Answer(key, question, "Not answered", stage, [why])


def _helps(gain: Claim) -> str:
    if not gain.bounded:
        return "Cannot be said"
    assert gain.low is not None
    assert gain.high is not None
    return "Yes" if gain.low > 0 else "No, it harms" if gain.high < 0 else "Not shown"


_READ_HELP = {
    "Yes": "The interval lies above 0.",
    "No, it harms": "The interval lies below 0.",
    "Not shown": "The interval holds 0: neither help nor harm is shown, and their absence is not shown either.",
    "Cannot be said": "Without an interval over patients nothing is said about other patients.",
}


def _help(run: Run, table: pd.DataFrame) -> Answer:
    key, stage = "help", "06_classification_sweep"
    zero, one = run.settings.cohort.class_names
    question = f"Do synthetic images help a classifier to tell {zero} from {one}?"
    gains = find(table, stage, r"gain by .+ images, r = ", over="patients", unit="image-level")
    if not gains:
        return _unanswered(key, question, stage, "Notebook 06 has recorded no gain over patients.")
    verdicts = [_helps(gain) for gain in gains]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "It depends on the network"
    sentences = []
    for gain, each in zip(gains, verdicts, strict=True):
        named = gain.text.removeprefix("gain by ")
        sentences.append(
            f"Adding {named}, changed the image-level AUC by {gain.shown()}, {gain.n} patients. {_READ_HELP[each]}"
        )
    for text, claim in (
        ("Real images alone reach an image-level AUC of", find(table, stage, "real images alone", unit="image-level")),
        ("The smallest gain that these patients could have shown with 80 % power is", find(table, stage, "smallest")),
    ):
        if claim:
            sentences.append(f"{text} {_bare(claim[0])}.")
    if gains[0].low is not None and gains[0].low == gains[0].high:
        sentences.append(
            "How small a gain these patients could have shown cannot be told: every resample of them gives this one."
        )
    seeds = find(table, stage, r"gain by .+ images, r = ", over="training seeds", unit="image-level")
    if seeds:
        sentences.append(
            f"Over training seeds alone, as in the paper, the interval of the gain is"
            f" {pages.interval(seeds[0].low, seeds[0].high) or 'not there'}: that is how far training repeats itself"
            " on these patients, and says nothing about others."
        )
    return Answer(key, question, verdict, stage, sentences)


def _bare(claim: Claim) -> str:
    return claim.shown(over=False) if claim.bounded else pages.number(claim.value)


def _quality(run: Run, table: pd.DataFrame) -> Answer:
    key, stage = "quality", "05_quality_metrics"
    question = "Are the synthetic images as close to real ones as real images of other patients are?"
    rows = find(table, stage, r".+, both, at \d+ patients$")
    named = {claim.text.split(", ")[-3]: claim for claim in rows}
    floor = named.pop(FLOOR, None)
    if not named or floor is None:
        why = "Notebook 05 has recorded no distance to real images with that of real images beside it."
        return _unanswered(key, question, stage, why)
    metric, _, sizes = floor.text.partition(f", {FLOOR}, both, ")
    verdicts = {name: _farther(claim, floor) for name, claim in named.items()}
    kinds = set(verdicts.values())
    if len(kinds) == 1:
        verdict = {"farther": "No", "near": "Not told apart", "unknown": "Cannot be said"}[kinds.pop()]
    else:
        near = [name for name, each in verdicts.items() if each == "near"]
        verdict = f"Not told apart: {pages.listed(near)}; the others are farther or cannot be said" if near else "No"
    over = next((claim.over for claim in named.values() if claim.bounded), "")
    sentences = [
        f"{metric} to real patients, {sizes} (smaller is closer): "
        + "; ".join(f"{name} {claim.shown(over=False)}" for name, claim in named.items())
        + f"; real images of other patients {pages.number(floor.value)}."
        + (f" 95 % intervals are over {over}." if over else "")
    ]
    words = {
        "farther": "farther from real patients than real images of other patients are",
        "near": "not told apart from the real patients by this distance, which does not show that they are the same",
        "unknown": "without an interval, so nothing is said",
    }
    for kind, text in words.items():
        those = [name for name, each in verdicts.items() if each == kind]
        if those:
            sentences.append(f"{pages.listed(those).capitalize()}: {text}.")
    if "Inception" not in metric and not metric.startswith("FID"):
        sentences.append(
            "The features are not Inception-v3's, so these numbers are not FID and stand beside no paper's."
        )
    sentences += _condition(table)
    return Answer(key, question, verdict, stage, sentences)


def _farther(claim: Claim, floor: Claim) -> str:
    if claim.low is None:
        return "unknown"
    return "farther" if claim.low > (floor.value if floor.high is None else floor.high) else "near"


def _condition(table: pd.DataFrame) -> list[str]:
    pattern = r"class model drawn with its condition: AUC of a classifier that saw real images only"
    found = find(table, "04_sampling", pattern, over="folds")
    if not found or not found[0].bounded:
        return []
    shows = "shows in them" if (found[0].low or 0.0) > 0.5 else "is not shown to show in them"
    text = f"The class that the class model was asked for {shows}: AUC {found[0].shown()}"
    return [f"{text} of a classifier that saw real images only."]


def _copies(run: Run, table: pd.DataFrame) -> Answer:
    key, stage, question = "copies", "05_quality_metrics", "Are they copies of patients?"
    pattern = "copies of training patients, "
    rows = {claim.text.removeprefix(pattern): claim for claim in find(table, stage, pattern)}
    held = rows.pop(HELD_OUT, None)
    planted = find(table, stage, "search for copies, planted")
    if not rows or held is None or not planted:
        return _unanswered(key, question, stage, "Notebook 05 has recorded no search for copies with its calibration.")
    more = [name for name, claim in rows.items() if claim.value > 0 and (claim.low or 0.0) > (held.high or held.value)]
    some = [name for name, claim in rows.items() if claim.value > 0]
    blind = min(claim.value for claim in planted) < _FOUND
    if more:
        verdict = f"Yes, some of {pages.listed(more)}"
    elif some:
        verdict = "Some may be"
    else:
        verdict = "Cannot be said" if blind else "None was found"
    share = "; ".join(f"{name} {claim.shown(False, 100, ' %')}" for name, claim in rows.items())
    sentences = [
        f"Share of images that the search calls copies of a training patient: {share};"
        f" real images of held-out patients {held.shown(False, 100, ' %')}. 95 % intervals are over {held.over}."
    ]
    if some and not more:
        sentences.append("These shares are not shown to exceed what the search flags among patients no model has seen.")
    found = "; ".join(
        f"{claim.text.partition('planted: ')[2].partition(':')[0]} {claim.shown(False, 100, ' %')} of {claim.n}"
        for claim in planted
    )
    sentences.append(f"The search finds planted copies: {found}.")
    if blind and not some:
        sentences.append("It misses planted copies, so that none was found does not show that there are none.")
    sentences.append(
        "It looks for whole frames. A patient's anatomy drawn anew is beyond it, and an image that passes is not"
        " thereby anonymous; synthetic_release.csv names every image to withhold."
    )
    return Answer(key, question, verdict, stage, sentences)


def _people(run: Run, table: pd.DataFrame) -> Answer:
    key, stage, question = "people", "08_turing_test", "Can people tell them from real images?"
    rows = find(table, stage, r"Turing test, (simulated )?raters: accuracy")
    if not rows:
        return _unanswered(key, question, stage, "Notebook 08 has recorded no accuracy of raters.")
    # the interval over raters and images, where there is one, speaks for others than these
    best = next((row for row in rows if "other raters and images" in row.text), rows[0])
    shown = f"{best.shown()}, {best.n} raters, 0.5 by guessing"
    if "simulated raters" in best.text:
        return Answer(
            key,
            question,
            "Not known, nobody has rated them",
            stage,
            [
                f"The numbers of notebook 08 come from simulated raters and show only that the analysis runs:"
                f" accuracy {shown}.",
                "No claim about people is made.",
            ],
        )
    margin = run.settings.turing.equivalence_margin
    verdict, read = _told(best, margin)
    return Answer(key, question, verdict, stage, [f"Accuracy {shown}.", read])


def _told(claim: Claim, margin: float) -> tuple[str, str]:
    if not claim.bounded:
        return "Cannot be said", "Without an interval nothing is said about other raters."
    assert claim.low is not None
    assert claim.high is not None
    if claim.low > 0.5:
        return "Yes", "The interval lies above guessing."
    if claim.high < 0.5:
        return "They are misled", "The interval lies below guessing: synthetic images are taken for real ones."
    if claim.low > 0.5 - margin and claim.high < 0.5 + margin:
        return f"No, within {100 * margin:g} points", "The whole interval lies within the declared margin of guessing."
    return (
        "Not shown",
        f"The interval holds guessing and reaches beyond the declared margin of {100 * margin:g} points: that they can"
        " tell is not shown, nor that they cannot.",
    )
