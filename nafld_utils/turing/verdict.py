"""Stage 08 in words: what was found, how far it reaches, and what it would take to know more; opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from nafld_utils.artifacts import Run, claim, key_of
from nafld_utils.turing import table_1
from nafld_utils.turing.units import Analysis


def answer(run: Run, analysis: Analysis) -> str:
    """Whether raters can tell real from synthetic images.

    Parameters
    ----------
    run : Run
    analysis : Analysis
        Of `turing.analyse`.

    Returns
    -------
    str
        A line per matter.
    """
    chosen = run.settings.turing
    accuracy = analysis["crossed"].set_index(["group", "metric"]).loc[("both", "accuracy")]
    reach = accuracy["note"] or f"95 % over raters and images: {_percent(accuracy.low)} to {_percent(accuracy.high)}"
    lines = [
        f"{analysis.source} recognised {_percent(accuracy['mean'])} of the images ({reach}).",
        equivalence(analysis.equivalence, chosen.equivalence_margin_d_prime),
        chance(analysis["chances"].iloc[0]),
        *plan(analysis["plans"], chosen.equivalence_power),
    ]
    if analysis.simulated:
        lines.append(
            "These raters are SIMULATED and guess: skill is luck here, and nothing of this is about the images."
        )
    return "\n".join(lines)


def equivalence(test: Mapping[str, Any], margin: float) -> str:
    """The verdict of `rater_model.equivalence_test` in words."""
    if test["note"]:
        return f"Whether their skill d' lies within {margin:g} of 0 cannot be said: {test['note']}."
    right = _percent(special.ndtr(margin / 2))
    shown = "shown" if test["verdict"] == "shown" else "NOT shown"
    return (
        f"Skill d' (0: cannot tell; {margin:g}: {right} right without inclination) is {test['d_prime']:.2f}"
        f" (90 % over raters and images: {test['low']:.2f} to {test['high']:.2f}). It is {shown} to lie within"
        f" {margin:g} of 0 (two one-sided tests, p = {test['p']:.2g})."
    )


def chance(row: pd.Series) -> str:
    """What a panel could show, this one or the paper's: a row of `rater_model.chances`."""
    at_most = "at most" in row.panel
    panel = f"{'Such a panel as the paper had, of' if at_most else 'A panel of'} {row.n_raters} raters"
    panel += f" with {row.n_images} images each"
    if row.chance < 0.005:
        return f"{panel} cannot show it, even if nobody can tell."
    return f"{panel} shows it with a chance of {'at most ' * at_most}{_percent(row.chance)} if nobody can tell."


def plan(plans: pd.DataFrame, power: float) -> list[str]:
    """How many raters and images it takes, by `rater_model.plans`: for these raters, and for raters like the paper's.

    These raters' upper limit counts: a few tell badly how much raters differ, and their own spread is often too small.
    """
    by, lines = dict(tuple(plans.groupby("basis", sort=False))), []
    head = f"To show it with a chance of {_percent(power)}, if nobody can tell, half of the images real:"
    if "these raters" in by:
        worst = by["these raters, upper limit"]
        who = "for raters who differ as much as these may at most"
        if not worst["sd_rater"].iloc[0]:
            who = "at least so many, since these few raters show no difference in skill (SD 0)"
        lines.append(f"{head} {_least(worst)}; {who}.")
    own, worst = (_least(by[f"the paper's raters{end}"]) for end in ("", ", upper limit"))
    text = f"or raters like the paper's: {own}; at the upper limit of their differences: {worst}."
    return [*lines, f"F{text}" if lines else f"{head} f{text}"]


def _least(part: pd.DataFrame) -> str:
    """The panel with the fewest answers among the plans of one basis, in words."""
    enough = part[part["n_images"].notna()]
    if enough.empty:
        return f"no panel of up to {part['n_raters'].max()} raters is enough"
    one = enough.loc[enough["n_answers"].astype(int).idxmin()]
    return f"about {one.n_raters} raters with {one.n_images} images each"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def protocol(run: Run, analysis: Analysis) -> str:
    """Whether this test is the paper's.

    Parameters
    ----------
    run : Run
    analysis : Analysis
        Of `turing.analyse`.

    Returns
    -------
    str
        "yes" where this test is the paper's, else what differs, in words.
    """
    s, n_raters = run.settings, len(analysis["raters"])
    shown = analysis["images"].groupby(["is_real", "label"]).size()
    sizes = tuple(int(shown.get(cell, 0)) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))
    differs = {
        "simulated raters: not to be compared": analysis.simulated,
        "simulated cohort": run.is_simulated,
        "another cohort": run.is_foreign,
        f"{n_raters} raters, not 5": n_raters != len(table_1.PAPER_COUNTS),
        f"{sum(sizes)} images, not 50": sizes != table_1.PAPER_SIZES,
        f"{s.preprocess.image_size} px, not 256": s.preprocess.image_size != 256,
        f"{s.ldm.steps} diffusion steps, not 20000": s.ldm.steps != 20000,
        "one model only": set(s.ldm.conditionings) != {"semantic", "class"},
    }
    return "; ".join(text for text, holds in differs.items() if holds) or "yes"


def claims(run: Run, analysis: Analysis) -> list[dict[str, Any]]:
    """Claims of stage 08: Table 1 over both classes, then what the paper lacks.

    Parameters
    ----------
    run : Run
    analysis : Analysis
        Of `turing.analyse`.

    Returns
    -------
    list of dict
        As `artifacts.claim` makes them.
    """
    paper = table_1.paper_summary().set_index(["group", "metric"])["mean"]
    who, same = ("simulated raters" if analysis.simulated else "raters"), protocol(run, analysis)
    names = {"accuracy": "", "sensitivity": " (real recognised)", "specificity": " (synthetic recognised)"}
    rows: list[dict[str, Any]] = []

    def add(key: str, text: str, row: Any, over: str, unit: str, paper: float | None = None) -> None:
        facts = {"interval": (row[1], row[2], over), "n": row[3], "unit": unit, "paper": paper}
        rows.append(claim(f"{key_of('turing', who)}.{key}", f"Turing test, {who}: {text}", row[0], same, **facts))

    both = {
        name: analysis[name][analysis[name]["group"] == "both"].set_index("metric") for name in ("summary", "crossed")
    }
    for metric, row in both["summary"].iterrows():
        cells = row[["mean", "low", "high", "n_raters"]]
        add(metric, f"{metric}{names[metric]}", list(cells), who, "share of answers", paper["both", metric])
    if not both["crossed"]["low"].isna().loc["accuracy"]:
        cells = both["crossed"].loc["accuracy", ["mean", "low", "high", "n_raters"]]
        text, over = "accuracy, for other raters and images", f"{who} and images"
        add("accuracy.others", text, list(cells), over, "share of answers")
    found = analysis["model"].iloc[0]
    if not found["note"]:
        cells, scale = [*found[["estimate", "low", "high"]], len(analysis["raters"])], "standard deviations"
        add("d_prime", "d' (0: cannot tell)", cells, f"{who} and images", scale)
        least = [analysis.equivalence["smallest_margin"], None, None, cells[3]]
        over = f"no interval: two one-sided tests at 5 %, over {who} and images"
        add("d_prime.margin", "smallest margin around 0 that d' is shown to be within", least, over, scale)
    kappa = analysis["agreement"].iloc[0]
    if np.isfinite(kappa["kappa"]):
        add("kappa", "agreement, Fleiss' kappa", list(kappa[["kappa", "low", "high", "n_images"]]), "images", "kappa")
    return rows
