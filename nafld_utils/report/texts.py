"""The texts of the front page: methods, limits, and how any text of ``templates/report_texts.yaml`` is filled in.

Contract: a text says what its template makes of settings and of what is stored; a name that a template asks for and
nobody gives is an error; what a run left out is left out here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import yaml

from nafld_utils import params, pipeline, statistics, sweep, views
from nafld_utils.artifacts import Run
from nafld_utils.report import facts, pages
from nafld_utils.report import notebooks as notebooks_module


@functools.cache
def load() -> dict[str, Any]:
    """All templates of texts, by part."""
    return yaml.safe_load((pages.TEMPLATES / "report_texts.yaml").read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)  # escapes nothing: pages do
    environment.filters |= {
        "g": lambda value: f"{value:g}",
        "listed": lambda values: params.listed(map(str, values)),
        "named": views.named,
        "number": views.number,
        "short": lambda value: f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}",
        "upper_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment


@functools.cache
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def fill(template: str, known: Mapping[str, Any]) -> str:
    """A text with its values, on one line."""
    return " ".join(_compiled(template).render(known).split())


def fill_all(templates: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """Those of several texts that say anything."""
    return [text for template in templates if (text := fill(template, known))]


def values(run: Run) -> dict[str, Any]:
    """What every text may name: settings, what was planned from them, and what is stored of cohort and code."""
    s, said = run.settings, views.words_for(run)
    word = {
        part: {name: fill(text, {"s": s}) for name, text in entries.items()}
        for part, entries in load()["words"].items()
    }
    arms, rates, backbones = (sweep.planned(s, field) for field in ("arms", "rates", "backbones"))
    known = {
        "s": s,
        "word": word,
        "classes": s.cohort.class_names,
        "simulated": run.is_simulated,
        "smoke": run.is_smoke,
        "foreign": run.is_foreign,
        "subject": said.subject,
        "grade": said.grade,
        "grade_column": said.grade_column,
        "counts": facts.patients_by_class(run),
        "left_out": facts.left_out(run),
        "folds_are_given": (run.root / "cohort" / "given_folds.csv").exists(),
        "turing_images": facts.turing_images(run),
        "many_seeds": s.sweep.n_seeds > 1,
        "enough_seeds": s.sweep.n_seeds >= statistics.FEWEST_SEEDS,
        "judged": sweep.folds_of(s),
        "arms": arms,
        "firsts": [arm for arm in arms if params.parse(arm).first],
        "rates": [f"{rate:g}" for rate in rates],
        "backbones": backbones,
        "experiments": () if s.sweep.experiments == (params.PLAIN,) else s.sweep.experiments,
        "secondary": [arm for arm in s.sweep.secondary_arms if arm in arms and arm != s.sweep.primary_arm],
        "conditions": [f"one conditioned on {word['condition'][name]}" for name in s.ldm.conditionings],
        "losses": {name: s.section(f"ldm.{name}")["loss"].upper() for name in s.ldm.conditionings},
    }
    sources = [s.section(f"autoencoder.{name}")["source"] for name in s.ldm.conditionings]
    known["first_stages"] = list(dict.fromkeys(word["first_stage"][source] for source in sources))
    origin = facts.provenance(run).get("text") or ("Simulated patients" if run.is_simulated else "A file of the user")
    known["origin"] = str(origin).rstrip(".")
    known["phrase"] = {name: fill(text, known) for name, text in load()["phrases"].items()}
    return known


def methods(run: Run) -> list[tuple[str, str]]:
    """The methods as paragraphs: heading and text, in the order of the stages."""
    known = values(run)
    return [(heading, fill(text, known)) for heading, text in load()["methods"].items()]


def one_person(table: pd.DataFrame) -> str:
    """Whether two patients look like one person, by notebook 01 and by the copy audit; from `facts.claims_table`."""
    known = {"alike": facts.first(table, "cohort.one_person"), "held": facts.first(table, "copies.found.held_out")}
    known["chance"] = facts.first(table, "copies.by_chance.verdict")
    return fill(load()["one_person"], known)


def limits(run: Run, notebooks: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """What the results of this run cannot show, most weighty first; then what notebooks say of their own limits."""
    missing = [stage for stage in pipeline.STAGES if stage not in notebooks]
    own = [text for stage in notebooks if (text := notebooks_module.limits(notebooks[stage]))]
    return fill_all(load()["limits"], values(run) | {"missing": missing, "one_person": one_person(table)}) + own
