"""Stage 07, the answer: what SHAP can and cannot show in this run, in words that follow from the stored numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import ldm, params, statistics, sweep, views
from nafld_utils.artifacts import Run, claim, key_of, of_row
from nafld_utils.explain import check_units, explainers, map_measures
from nafld_utils.explain.attribution_units import Explanation
from nafld_utils.explain.check_units import Against

# Choice: from here on a number is called good; below it the sentence says what that forbids.
ADDS_UP, READABLE_SIGNS, STABLE = 0.1, 0.5, 0.7
UNSAID = "cannot be said: no interval, since there are too few images or none differs"


def interval(middle: float, low: float, high: float) -> str:
    """``0.82 [0.61, 0.97]``, or without bounds where there are none."""
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(low) else f"{middle:.2f} [no interval]"


def named(feature: str) -> str:
    """A feature's name as a reader writes it."""
    return feature.replace("_", " ")


def _judged(checks: check_units.Checks) -> pd.DataFrame:
    """Attribution on what readers look at, a row per region; none where no tissue is known."""
    tissue = checks.tissue
    return pd.DataFrame() if tissue is None else tissue[tissue["region"].isin(map_measures.JUDGED)]


def is_readable(auc: pd.DataFrame) -> bool:
    """Whether maps of classifiers made like the explained one are read.

    Parameters
    ----------
    auc : pandas.DataFrame
        Of `explain.held_out_auc`.

    Returns
    -------
    bool
        Whether the lower bound of the first row is above 0.7.
    """
    return map_measures.readable(auc["low"].iloc[0])


def _gate(auc: pd.DataFrame) -> tuple[str, str]:
    """The AUC that decides, and its value with what that is over, in words."""
    mean = auc.iloc[0]
    many = f"mean held-out AUC of {mean.n_folds} folds' classifiers made like the explained one"
    name = many if mean.n_folds > 1 else "held-out AUC of the only fold's classifier"
    return name, f"{interval(mean.auc, mean.low, mean.high)} over {mean.n_patients} patients"


def what_shap_shows(
    run: Run, found: Explanation, auc: pd.DataFrame, checks: check_units.Checks, study: check_units.Study
) -> pd.DataFrame:
    """The table of what SHAP can and cannot show here.

    Parameters
    ----------
    run : Run
    found : Explanation
        ``explained`` of `explain.explain_all`.
    auc : pandas.DataFrame
        Of `explain.held_out_auc`.
    checks : Checks
        Of `explain.build_checks`.
    study : Study
        Of `explain.build_study`.

    Returns
    -------
    pandas.DataFrame
        ``question, measured, answer``, one question per row.
    """
    rows = [_quality(auc), _adds_up(found), *_agreement(checks), _matters(checks)]
    rows += _tissue(auc, checks)
    for row in study.table.itertuples():
        question = f"Does SHAP ({row.explainer}) find {named(row.feature)} where the label shows in nothing else?"
        rows.append((question, f"held-out AUC {interval(row.auc, row.low, row.high)}", row.verdict))
    said = views.words_for(run)
    where = f"Where is {'what makes it ' + said.positive if said.foreign else 'the fat'}?"
    rows.append((where, "nothing", "no map can show it: maps show what this classifier uses"))
    question = f"Would another patient with such pixels be {said.classes[1]}?"
    rows.append((question, "nothing", "no map can show it: maps state no cause"))
    return pd.DataFrame(rows, columns=["question", "measured", "answer"])


def _quality(auc: pd.DataFrame) -> tuple[str, str, str]:
    verdict = "yes: their maps are interpreted"
    if not is_readable(auc):
        reason = auc["unsaid"].iloc[0]
        verdict = f"cannot be said: {reason}" if reason else f"no: {map_measures.why_unread(auc.iloc[0])}"
        verdict += "; maps are shown and not interpreted"
    return "Are classifiers made like this one good enough for their maps to be read?", " ".join(_gate(auc)), verdict


def _adds_up(found: Explanation) -> tuple[str, str, str]:
    error = explainers.missing_share(found.table)
    verdict = "yes" if error <= ADDS_UP else "no: signs and places may be read, sizes may not; raise shap.n_samples"
    if error > READABLE_SIGNS:
        verdict = "no: too few draws for a reading of single images; raise shap.n_samples"
    return (
        "Do the attributions add up to the log-odds?",
        f"{off_in_words(error)}, over {len(found.table)} images",
        verdict,
    )


def off_in_words(share: float) -> str:
    """How far attributions are from adding up.

    Parameters
    ----------
    share : float
        Of `explain.missing_share`.

    Returns
    -------
    str

    Examples
    --------
    >>> off_in_words(0.28), off_in_words(2.95)
    ('off by 28 % of the amount to explain', 'off by 3 times the amount to explain')
    """
    return f"off by {f'{share:.2g} times' if share > 1 else f'{100 * share:.0f} % of'} the amount to explain"


_QUESTIONS = {
    Against.DRAWS: "Is the map the same with other draws?",
    Against.SEED: "Is the map the same after another training seed?",
    Against.NETWORK: "Is the map the same with another network?",
    Against.UNTRAINED: "Does the map change when the network is untrained?",
    Against.SHUFFLED: "Does the map change when labels are shuffled?",
    Against.DIFFERENCE: "Is the map more than the image minus the mean?",
}


def _agreement(checks: check_units.Checks) -> list[tuple[str, str, str]]:
    rows = []
    for row in checks.agreement.itertuples():
        measured = f"rank correlation {interval(row.agreement, row.low, row.high)}"
        if not row.n_maps:
            measured, verdict = "nothing to compare", "not measured: this run has no other"
        elif row.with_ in (Against.DRAWS, Against.SEED, Against.NETWORK):  # a good map stays the same
            measured += f" over {row.n_images} images"
            verdict = "yes" if row.agreement >= STABLE else "no: single spots of a map must not be read"
        else:  # a good map changes
            below = interval(row.below, row.below_low, row.below_high)
            measured += f", {below} below that of the same classifier with other draws"
            verdict = "yes" if row.below_low > 0 else "not shown: it differs no more than with other draws alone"
            verdict = verdict if np.isfinite(row.below_low) else UNSAID
        rows.append((_QUESTIONS[row.with_], measured, verdict))
    return rows


def _matters(checks: check_units.Checks) -> tuple[str, str, str]:
    measured = "; ".join(f"{row.mode} {interval(row.gain, row.low, row.high)}" for row in checks.gains.itertuples())
    yes, no = ([row.mode for row in checks.gains.itertuples() if (row.low > 0) == shown] for shown in (True, False))
    parts = [f"{word} for {params.listed(modes)}" for word, modes in (("shown", yes), ("not shown", no)) if modes]
    verdict = ", ".join(parts) if no else "yes"
    verdict = verdict if np.isfinite(checks.gains["low"]).all() else UNSAID
    question = "Do the pixels that the map ranks first move the classifier more than random ones?"
    return question, f"log-odds over a random order: {measured}", verdict


def _tissue(auc: pd.DataFrame, checks: check_units.Checks) -> list[tuple[str, str, str]]:
    question = "Do the maps lie on what readers look at?"
    if checks.tissue is None:
        return [(question, "nothing", "cannot be measured: this cohort has no tissue masks")]
    readable, rows = is_readable(auc), []
    for row in _judged(checks).itertuples():
        measured = f"{interval(row.ratio, row.low, row.high)} times its share of the area, {row.n} images"
        if not readable:
            verdict = "not interpreted: see the first row"
        elif not np.isfinite(row.low):
            verdict = UNSAID
        elif row.low > 1:
            verdict = "more than its area"
        else:
            verdict = "less than its area" if row.high < 1 else "neither more nor less than its area"
        rows.append((f"{question[:-1]}: {row.region}?", measured, verdict))
    return rows


def answer(run: Run, auc: pd.DataFrame, checks: check_units.Checks, study: check_units.Study) -> str:
    """The stage's answer in a few sentences.

    Parameters
    ----------
    run : Run
    auc : pandas.DataFrame
        Of `explain.held_out_auc`.
    checks : Checks
        Of `explain.build_checks`.
    study : Study
        Of `explain.build_study`.

    Returns
    -------
    str
        Whether maps may be read, what they show, how steady they are.
    """
    simulated = " (simulated)" if run.is_simulated else ""
    text = f"The {' is '.join(_gate(auc))}{simulated}"
    if not is_readable(auc):
        text += f"; {map_measures.why_unread(auc.iloc[0])}. Maps are shown and not interpreted."
    elif checks.tissue is None:
        text += (
            ", so maps of such classifiers may be read; where tissue lies is not known for these images, so no share is"
            " measured."
        )
    else:
        judged = _judged(checks)
        more, unsaid = (judged[rows]["region"].tolist() for rows in (judged["low"] > 1, judged["low"].isna()))
        text += ", so maps of such classifiers may be read; the explained one's "
        text += f"lie more than by area on {', '.join(more)}" if more else "are not shown to favour a tissue"
        text += f" ({', '.join(unsaid)}: cannot be said)." if unsaid else "."
    agreed = checks.agreement.set_index("with_")["agreement"]
    text += f" Two maps of one classifier with other draws agree by {agreed[Against.DRAWS]:.2f} in rank"
    seeds = agreed[Against.SEED]
    text += f", two training seeds by {seeds:.2f}." if np.isfinite(seeds) else "; no other training seed was explained."
    return f"{text} {_of_features(study.table)}"


def _of_features(table: pd.DataFrame) -> str:
    """What the single-feature study found, in a sentence."""
    parts = [
        f"{named(feature)} ({', '.join(f'{row.explainer}: {row.finding}' for row in part.itertuples())})"
        for feature, part in table.groupby("feature", sort=False)
    ]
    return f"Where the label shows in one simulated feature alone: {'; '.join(parts)}."


def protocol(run: Run) -> str:
    """What differs from the paper's analysis."""
    chosen, paper = run.settings, params.load(params.BASE_PROFILE)
    backbone = chosen.shap.backbone or chosen.sweep.backbones[0]
    differs, other = sweep.differences(run, backbone), f"{backbone} instead of ResNet-50"
    if backbone not in paper.sweep.backbones and other not in differs:
        differs.append(other)
    return ldm.in_words([*differs, "the paper shows maps and no number"])


def claims(
    run: Run, found: Explanation, auc: pd.DataFrame, checks: check_units.Checks, study: check_units.Study
) -> list[dict[str, Any]]:
    """Headline numbers of the stage.

    Parameters
    ----------
    run : Run
    found : Explanation
        ``explained`` of `explain.explain_all`.
    auc : pandas.DataFrame
        Of `explain.held_out_auc`.
    checks : Checks
        Of `explain.build_checks`.
    study : Study
        Of `explain.build_study`.

    Returns
    -------
    list of dict
        As `artifacts.claim` makes them.
    """
    table, same, n = found.table, protocol(run), len(found.table)
    mean, one = (row for _, row in auc.iterrows())
    right = int(((table["called"] > 0.5) == (table["label"] == 1)).sum())
    error, few = 100 * explainers.missing_share(table), (None, None, "no interval: a handful of images")
    bounds, own = (
        (row.low, row.high, f"no interval: {row.unsaid}" if row.unsaid else f"held-out patients; {statistics.GIVEN}")
        for row in (mean, one)
    )
    decides = f"{_gate(auc)[0]}, which decides whether maps are read"
    single = (
        ("gate", decides, mean.auc, bounds, mean.n_patients, "image-level AUC"),
        ("auc", "held-out AUC of the explained classifier", one.auc, own, one.n_patients, "image-level AUC"),
        ("own_side", "images on the side of their own class", right, few, n, f"of {n} images"),
        ("additivity", "additivity error", error, few, n, "% of the explained log-odds"),
    )
    rows = [
        claim(f"shap.{key}", f"SHAP: {text}", value, same, interval=interval, n=over, unit=unit)
        for key, text, value, interval, over, unit in single
    ]
    for row in checks.agreement[checks.agreement["n_maps"] > 0].assign(over="images").to_dict("records"):
        key, text = key_of("shap.agreement", row["with_"]), f"SHAP: agreement of maps, {row['with_']}"
        rows.append(of_row(key, text, row, same, "rank correlation", columns=("agreement", "n_images")))
    for row in _judged(checks).assign(over="images, one per patient").to_dict("records"):
        key, text = key_of("shap.region", row["region"]), f"SHAP: attribution on {row['region']} over its area"
        rows.append(of_row(key, text, row, same, "times", columns=("ratio", "n")))
    for row in study.table.itertuples():
        text = f"SHAP ({row.explainer}): {named(row.feature)} alone, attribution on it over its area"
        facts = {"interval": (row.ratio_low, row.ratio_high, "simulated patients"), "n": row.n_explained}
        key, own = key_of("shap.feature", row.explainer, row.feature), "not in the paper; simulated patients"
        rows.append(claim(key, text, row.ratio, own, unit=f"times; {row.finding}", **facts))
    return rows
