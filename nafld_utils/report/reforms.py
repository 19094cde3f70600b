"""The REFORMS checklist of a run: what the run knows is filled in from it, the rest is left to the authors.

Contract: an entry states what is stored or set, with a link to the section of the front page that shows it; nothing
is claimed for the authors. The items are worded in ``templates/report_texts.yaml`` after Kapoor et al. 2024, "REFORMS:
Consensus-based Recommendations for Machine-learning-based Science", Science Advances 10, eadk3452,
doi:10.1126/sciadv.adk3452 (Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nafld_utils.artifacts import Run
from nafld_utils.report import facts, texts

_LETTERS = "abcdefg"


@dataclass(frozen=True)
class Item:
    """One row of the checklist; `link` is the anchor on the front page that shows what `entry` says."""

    number: str
    asks: str
    by: str  # "run", "both" or "authors"
    entry: str
    link: str = ""


def checklist(run: Run, table: pd.DataFrame) -> list[Item]:
    """All 32 items, numbered 1a to 8b.

    Parameters
    ----------
    run : Run
        The run.
    table : pandas.DataFrame
        From `nafld_utils.report.facts.claims_table`.
    """
    known = texts.values(run) | _found(run, table)
    return [
        Item(
            f"{number}{letter}",
            item["asks"],
            *(texts.fill(item.get(part, ""), known) for part in ("by", "entry", "link")),
        )
        for number, module in enumerate(texts.load()["reforms"]["modules"], 1)
        for letter, item in zip(_LETTERS, module["items"], strict=False)
    ]


def _found(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """What the checklist names beside `texts.values`: provenance, code and machine, claims."""
    provenance, sizes = facts.provenance(run), dict(facts.cohort(run))
    return {
        "origin_known": bool(provenance),
        "provenance": {"kind": "unknown", "sha256": "unknown", "text": "", **provenance},
        "published": provenance.get("kind") in ("published file", "same content"),
        "made": dict(facts.environment(run)),
        "command": facts.command(run),
        "sizes": sizes if {"patients", "images"} <= set(sizes) else {},
        "missing_grades": facts.missing_grades(run),
        "one_person": texts.one_person(table),
        "alone": facts.find(table, "baselines.one_out"),
        "no_pixels": facts.first(table, "baselines.folds.no_pixels"),
        "by_image": facts.find(table, "baselines.by_image"),
        "shuffled": facts.find(table, "canary.auc"),
        "n_bounded": int(((table["low"] != "") & (table["high"] != "")).sum()),
        "n_claims": len(table),
    }


def for_page(items: list[Item]) -> dict[str, Any]:
    """The checklist for the template: ``modules`` (``name, rows``), ``counts`` by who fills in, ``citation``."""
    part = texts.load()["reforms"]
    return {
        "citation": part["citation"],
        "counts": {by: sum(item.by == by for item in items) for by in part["filled_by"]},
        "modules": [
            {
                "name": f"{number} {module['name']}",
                "rows": [
                    vars(item) | {"by": part["filled_by"][item.by]} for item in items if item.number[0] == str(number)
                ],
            }
            for number, module in enumerate(part["modules"], 1)
        ],
    }
