"""The front page of a run: answers first, then what they rest on.

Contract: see `nafld_utils.report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, pipeline, views
from nafld_utils.artifacts import Run
from nafld_utils.report import answers, facts, pages, pictures, reforms, texts
from nafld_utils.report.notebooks import key_figures, read_notebooks


def write_index(run: Run) -> Path:
    """Write ``index.html``, the front page of a run."""
    return artifacts.save_text(run.reports / "index.html", index_html(run))


def index_html(run: Run, left_out: Iterable[str] = (), executed: bool = True, images: bool = True) -> str:
    """The front page of a run, from what its stages have stored.

    Parameters
    ----------
    run : Run
        The run, finished or not.
    left_out : iterable of str
        Stages whose page does not go along; they are named and not linked.
    executed : bool
        Whether executed notebooks lie beside the page, so that it may link to them.
    images : bool
        Whether this page and those beside it show images of patients.

    Returns
    -------
    str
        HTML.
    """
    notebooks = {
        stage: found if images else pictures.without_images(found) for stage, found in read_notebooks(run).items()
    }
    left_out, table = set(left_out), facts.claims_table(run)
    claims, legend = facts.claims(table, notebooks)
    page = pages.render(
        "index.html.j2",
        title=f"{run.name} · synthetic {views.words_for(run).subject}",
        subject=views.words_for(run).subject,
        foreign=run.is_foreign,
        run=run.name,
        profile=run.settings.profile,
        finished=facts.finished(notebooks.values()),
        simulated=pages.simulated(run),
        answers=answers.answers(run, table),
        claims=claims,
        legend=legend,
        words=texts.load()["unanswered"]["words"],
        cards=pictures.cards(notebooks),
        beside=any(row["beside_paper"] for stage in claims for row in stage["rows"]),
        figures=_figures(notebooks),
        methods=texts.methods(run),
        cohort=facts.cohort(run),
        stages=facts.stages(run, notebooks, left_out),
        executed=executed,
        images=images,
        pages=set(notebooks) - left_out,
        declared=facts.declared(run),
        settings=facts.settings(run),
        command=facts.command(run),
        environment=facts.environment(run),
        limits=texts.limits(run, notebooks, table),
        reforms=reforms.for_page(reforms.checklist(run, table)),
    )
    return pipeline.redacted(run, page)


def _figures(notebooks: dict[str, Any]) -> list[dict[str, str]]:
    return [figure for stage, notebook in notebooks.items() for figure in key_figures(stage, notebook)]
