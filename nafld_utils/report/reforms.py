"""The REFORMS checklist of a run: what the run knows is filled in from it, the rest is left to the authors.

Contract: an entry states what is stored or set, with a link to the section of the front page that shows it; nothing
is claimed for the authors. Items are worded by us after Kapoor et al. 2024, "REFORMS: Consensus-based Recommendations
for Machine-learning-based Science", Science Advances 10, eadk3452, doi:10.1126/sciadv.adk3452 (Table 1: 32 items in
eight modules): 1a to 3d after the table itself, 3e to 8b after a published summary of its items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nafld_utils import sweep, words
from nafld_utils.artifacts import Run
from nafld_utils.params import Settings
from nafld_utils.report import facts, methods, pages
from nafld_utils.report.answers import find

CITATION = (
    "Kapoor et al. 2024, REFORMS: Consensus-based Recommendations for Machine-learning-based Science, Science Advances"
    " 10, eadk3452, doi:10.1126/sciadv.adk3452"
)
AUTHORS = "for the authors"
RUN = "from the run"
BOTH = "from the run, and for the authors"
FILLED_BY = {"run": RUN, "both": BOTH, "authors": AUTHORS}
MODULES = {
    "1": "Study goals",
    "2": "Computational reproducibility",
    "3": "Data quality",
    "4": "Data preprocessing",
    "5": "Modelling",
    "6": "Data leakage",
    "7": "Metrics and uncertainty",
    "8": "Generalizability and limitations",
}


_SEEN = {
    "largest": "the image inside its largest connected region; marks outside that region are blacked out, and"
               " marks inside it stay in",
    "box": "the image inside the box of preprocess.region_box; marks outside it are blacked out, and marks"
           " inside it stay in",
    "none": "the whole image, since preprocess.region is none: letters, scales and marks burned into it stay in, and"
            " may tell the class or the device",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One row of the checklist; `link` is the anchor on the front page that shows what `entry` says."""

    number: str
    asks: str
    by: str
    entry: str
    link: str = ""


def checklist(run: Run, table: pd.DataFrame) -> list[Item]:
    """All 32 items.

    Parameters
    ----------
    run : Run
        The run.
    table : pandas.DataFrame
        From `nafld_utils.report.facts.claims_table`.

    Returns
    -------
    list of Item
        In the order of the checklist, numbered 1a to 8b.
    """
    parts: tuple[Callable[[Run, pd.DataFrame], list[Item]], ...] = (
        _goals, _reproducibility, _data, _preprocessing, _modelling, _leakage, _metrics, _limits,
    )  # fmt: skip
    return [item for part in parts for item in part(run, table)]


def modules(items: list[Item]) -> list[dict[str, Any]]:
    """The checklist for the template: ``name, items`` of each module."""
    return [
        {"name": f"{number} {name}", "rows": [vars(item) for item in items if item.number[0] == number]}
        for number, name in MODULES.items()
    ]


def _goals(run: Run, table: pd.DataFrame) -> list[Item]:
    return [
        Item("1a", "Population or distribution that the scientific claim is about", AUTHORS, ""),
        Item("1b", "Why this population or distribution", AUTHORS, ""),
        Item("1c", "Why machine learning", AUTHORS, ""),
    ]


def _reproducibility(run: Run, table: pd.DataFrame) -> list[Item]:
    found, known = facts.provenance(run), dict(facts.environment(run))
    doi = f" DOI of the published record: {run.settings.cohort.doi}." if _published(found) else ""
    data = f"{found['kind']}, sha256 {found['sha256']} of the decoded pixels.{doi}" if found else "Not loaded yet."
    return [
        Item("2a", "Data set, with a link or DOI that names it uniquely", RUN if _published(found) or run.is_simulated
             else BOTH, data, "cohort"),
        Item("2b", "Code, with a link or DOI that names its version", BOTH,
             f"Commit {known['commit']}. The link to a public copy is for the authors.", "provenance"),
        Item("2c", "Computing infrastructure", RUN,
             f"{known['machine']}; device {known['device']}; Python {known['Python']};"
             f" {known['libraries']}.", "provenance"),
        Item("2d", "README with instructions", RUN, "README.md of the code: set-up, profiles, every command."),
        Item("2e", "Script that reproduces all results", RUN,
             f"{facts.command(run) or 'make all'} runs every stage and writes this page.", "settings"),
    ]  # fmt: skip


def _published(found: dict[str, Any]) -> bool:
    return found.get("kind") in ("published file", "same content")


def _data(run: Run, table: pd.DataFrame) -> list[Item]:
    found, counts = facts.provenance(run), facts.patients_by_class(run)
    zero, one = run.settings.cohort.class_names
    sizes = dict(facts.cohort(run))
    n = f"{sizes['patients']}; {sizes['images']} images." if {"patients", "images"} <= set(sizes) else "Not loaded yet."
    threshold = f"; {words.of(run).grade_column} of {run.settings.cohort.fat_threshold:g} and more where it is known"
    label = f"as the cohort's label says{'' if run.is_foreign else threshold}"
    label = "simulated with the patient" if run.is_simulated else label
    share = f" {counts[1]} of {sum(counts)} patients are {one}." if counts else ""
    source = str(found.get("text") or "Not loaded yet.")
    return [
        Item("3a", "Sources of training and evaluation data, time of collection, how the truth was established",
             RUN if run.is_simulated else BOTH, f"{source} Training and evaluation data are folds of one"
                                                " cohort.", "cohort"),
        Item("3b", "Sampling frame", RUN if run.is_simulated else AUTHORS,
             "Draws of the simulator; no people were sampled." if run.is_simulated else ""),
        Item("3c", "Why the data suit the task", AUTHORS, ""),
        Item("3d", "Outcome variable, with descriptive statistics by class", RUN,
             f"{zero} (0) or {one} (1), {label}.{share}", "cohort"),
        Item("3e", "Sample size, in all and by class", RUN, n, "cohort"),
        Item("3f", "Missing data, by class", RUN,
             "No image and no label: a cohort that lacks one is refused when it is loaded."
             f" {_missing(run, counts)}", "cohort"),
        Item("3g", "Why the data represent the population of 1a", AUTHORS,
             "Simulated patients represent no population." if run.is_simulated else ""),
    ]  # fmt: skip


def _missing(run: Run, counts: list[int]) -> str:
    """For how many patients of each class the grade is not known, from the cohort's table."""
    missing, said = facts.missing_grades(run), words.of(run).grade
    if not missing:
        return "Not loaded yet."
    if missing == counts:
        return f"The cohort has no {said} of any patient."
    named = zip(missing, counts, run.settings.cohort.class_names, strict=True)
    return f"Without {said}: {pages.listed(f'{few} of {n} {name}' for few, n, name in named)} patients."


def _preprocessing(run: Run, table: pd.DataFrame) -> list[Item]:
    p, frames = run.settings.preprocess, run.settings.cohort.frames_per_patient
    kept = f"{frames} frames a patient, spread evenly over what there is" if frames else "every frame of every patient"
    return [
        Item("4a", "Data left out, and why", BOTH if not run.is_simulated else RUN,
             f"Used: {kept}. What was left out before the cohort was given is for the authors." if not run.is_simulated
             else f"Used: {kept}.", "methods"),
        Item("4b", "Impossible or damaged samples", RUN,
             "Loading refuses unreadable and empty images, two labels of one patient, and a frame under two patients;"
             " frames repeated within a patient stay in and are listed (notebook 01)."),
        Item("4c", "Transformations before modelling", RUN,
             f"{methods.region(p)}; {p.crops_per_image} random crops an image resized to {p.image_size} px;"
             " by settings fixed beforehand, each image by itself.", "methods"),
    ]  # fmt: skip


def _modelling(run: Run, table: pd.DataFrame) -> list[Item]:
    s = run.settings
    baselines = find(table, "06_classification_sweep", r".+, one patient left out$")
    shown = "; ".join(f"{one.text} {one.shown(over=False)}" for one in baselines)
    losses = {name: s.section(f"ldm.{name}")["loss"].upper() for name in s.ldm.conditionings}
    generators = [f"{name} diffusion ({loss} loss)" for name, loss in losses.items()]
    generators += ["GAN (relativistic logistic loss)"] * s.gan.enabled
    return [
        Item("5a", "All models: type, inputs, outputs, loss", RUN,
             f"Generators: {', '.join(generators)}. Classifiers:"
             f" {', '.join(sweep.planned(s, 'backbones'))}, from an image to the log-odds of {s.cohort.class_names[1]}"
             " (cross-entropy).", "methods"),
        Item("5b", "Why these types of model", AUTHORS,
             "Latent diffusion models and the fine-tuning of pretrained classifiers follow Hardy et al. 2023; the"
             " reason is the authors'."),
        Item("5c", "How models are evaluated, with the splits", RUN,
             f"{facts.split(run)}; {_held_out(s)}.", "methods"),
        Item("5d", "How the final models are selected", RUN,
             f"None is selected: scores are those of the last step. {_declared(run)}", "methods"),
        Item("5e", "How hyperparameters were chosen, with the ranges", BOTH,
             "None is searched for by this run. Rates"
             f" {', '.join(f'{rate:g}' for rate in sweep.planned(s, 'rates'))} are all shown."
             " Where the settings come from is for the authors.", "settings"),
        Item("5f", "Suitable baselines", RUN if baselines else AUTHORS,
             f"{_baselines(s)}. Without training, AUC by patient: {shown};"
             " scores of patients left out one by one, put together, rank a little too low."
             if baselines else "", "paper"),
    ]  # fmt: skip


def _held_out(s: Settings) -> str:
    used = sweep.folds_of(s)
    if len(used) == s.folds.n_splits:
        return "each patient is held out once"
    folds = f"fold {used[0]} is" if len(used) == 1 else f"folds {pages.listed(map(str, used))} are"
    return f"{folds} trained, so that their patients alone are judged, once each"


def _baselines(s: Settings) -> str:
    """What the classifiers and the generators of this run are compared with."""
    shown, arms = ["Real images alone"], sweep.planned(s, "arms")
    shown += ["traditional augmentation"] * ("traditional" in arms)
    if s.gan.enabled:
        shown.append("a GAN" if "gan" in arms else "a GAN, whose images are judged and train no classifier")
    return "; ".join(shown)


def _leakage(run: Run, table: pd.DataFrame) -> list[Item]:
    copies = find(table, "06_classification_sweep", r".+, split by image$")
    leak = "; ".join(f"{one.text}: {pages.number(one.value)}" for one in copies)
    measured = f" What a split by image would have given: {leak} (image-level AUC)." if leak else ""
    canary = find(table, "06_classification_sweep", r"shuffled diagnoses, .+: AUC$")
    null = "; ".join(f"{one.text.partition(':')[0]} {one.shown(over=False)}" for one in canary)
    return [
        Item("6a", "Training and test data kept apart through preprocessing, modelling and evaluation", RUN,
             "Split by patient before anything is fitted; generators, classifiers and filters of a fold see its"
             " training patients alone, and guards stop a run otherwise."
             f"{f' AUC with shuffled diagnoses: {null}; pooled scores lie a little below 0.5.' if null else ''}",
             "methods"),
        Item("6b", "Dependencies and duplicates between training and test data", RUN,
             f"No frame is under two patients (compared by pixels); all frames of a patient lie in one fold.{measured}",
             "paper"),
        Item("6c", "Why every feature is legitimate for the task", BOTH,
             f"The only input is {_SEEN[run.settings.preprocess.region]}. Whether the image holds traces of how it was"
             " acquired is for the authors.", "methods"),
    ]  # fmt: skip


def _metrics(run: Run, table: pd.DataFrame) -> list[Item]:
    s = run.settings.sweep
    paired = "; the paper's paired t over training seeds stands beside it" if s.n_seeds > 1 else ""
    seeds = " and seeds" if s.n_seeds > 1 else ""
    bounded = int(((table["low"] != "") & (table["high"] != "")).sum())
    return [
        Item("7a", "Metrics, and why they suit the claim", BOTH,
             "Area under the ROC curve by image and by patient, Brier score, sensitivity at fixed specificity;"
             " distances between image sets with a floor and ceilings. Why they suit the claim is for the authors.",
             "paper"),
        Item("7b", "Uncertainty, and how it was computed", RUN,
             f"{bounded} of {len(table)} claims carry an interval that says what it is over; bootstrap of patients with"
             f" {s.n_resamples} resamples, Student's t over folds{seeds}.", "paper"),
        Item("7c", "Statistical tests, and their assumptions", RUN,
             f"The gain is judged by its interval over patients{paired}. {_declared(run)}{_adjusted(run)}",
             "answer"),
    ]  # fmt: skip


def _adjusted(run: Run) -> str:
    """How the comparisons that were not declared are corrected; nothing where there are none."""
    arms, rates, networks = (sweep.planned(run.settings, field) for field in ("arms", "rates", "backbones"))
    if len(set(arms) - {sweep.REAL}) * len(rates) * len(networks) == 1:
        return ""
    return (
        " The p values of exploratory comparisons are Holm-adjusted, a family being one test at one level (image or"
        " patient; notebook 06)."
    )


def _declared(run: Run) -> str:
    """Which comparison was declared beforehand, and what is primary of it."""
    s = run.settings.sweep
    over, paired = (" and seeds", ", the paired t") if s.n_seeds > 1 else ("", "")
    return (
        f"One comparison was declared beforehand ({s.primary_arm} at {s.primary_rate:g}). Primary is its image-level"
        f" difference with the bootstrap interval over patients{over}; the patient level{paired} and DeLong's test are"
        " sensitivity analyses of it, unadjusted."
    )


def _limits(run: Run, table: pd.DataFrame) -> list[Item]:
    return [
        Item("8a", "Evidence of external validity", RUN if run.is_simulated else BOTH,
             "None: simulated patients." if run.is_simulated
             else "None in this run: one cohort, cross-validated. Evidence from elsewhere is for the authors.",
             "limits"),
        Item("8b", "Where the findings are not expected to hold", BOTH,
             "What the run itself cannot show is under Limits; other contexts are for the authors.", "limits"),
    ]  # fmt: skip
