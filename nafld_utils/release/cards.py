"""The texts of an export, filled in from the run: cards of data and model, citation, the script that scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils import artifacts, cohort, quality, statistics, sweep, views
from nafld_utils.artifacts import Run

TEMPLATES = Path(__file__).parent / "templates"
PUBLISHED = ("published file", "same content")  # kinds of cohorts whose source is known


def facts(run: Run, table: pd.DataFrame, audit: pd.DataFrame, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What the texts may say of a run; nothing in it is of one patient.

    `table` is the release list, `audit` of ``quality.calibration``, `trials` the exported classifiers'.
    """
    found, s, said = cohort.open_cohort(run), run.settings, views.words_for(run)
    held = sweep.held_out_scores(run, trials).groupby(["patient_id", "label"], as_index=False)["score"].mean()
    auc = statistics.auc_interval(held["label"], held["score"], held["patient_id"], method=s.sweep.interval_method)
    kept = table["release"] == "kept"
    counts = table.assign(kept=kept, withheld=~kept).groupby(["generator", "label"], sort=False)[["kept", "withheld"]]
    counts = counts.sum().reset_index()
    kind = found.provenance["kind"]
    versions = artifacts.environment()["versions"]
    return {
        "run": run.name,
        "s": s,
        "subject": said.subject,
        "classes": s.cohort.class_names,
        "simulated": run.is_simulated,
        "smoke": run.is_smoke,
        "published": kind in PUBLISHED,
        "origin": found.provenance["text"] if kind in (*PUBLISHED, "simulated") else "",
        "patients": [int((found.patients["label"] == label).sum()) for label in (0, 1)],
        "n_images": len(found.images),
        "counts": counts.assign(label=counts["label"].map(dict(enumerate(s.cohort.class_names)))).to_dict("records"),
        "size": s.preprocess.image_size,
        "audit": audit.to_dict("records"),
        "audit_says": quality.copy_units.reading(run, quality.summary(run), audit),
        "trials": trials,
        "auc": auc,
        "n_judged": len(held),
        "versions": {name: versions[name].partition("+")[0] for name in ("torch", "timm") if name in versions},
    }


def filled(known: dict[str, Any]) -> dict[str, str]:
    """The texts of an export by file name, templates filled in; a name that nobody gives is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,  # a text that asks for what nobody gives is an error
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["python"] = repr
    made.filters["percent"] = lambda share: f"{100 * share:.3g} %"
    texts = {name.removesuffix(".j2"): made.get_template(name).render(known) for name in made.list_templates()}
    mark = f"Synthetic {known['subject']} of run {known['run']}, drawn by generative models; no patient was imaged."
    return {**texts, "cohort.json": json.dumps({"simulated": mark}) + "\n"}
