"""Stage 08: the set of images raters see, and the analysis of their answers. Opens and writes files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import turing, turing_sitting
from nafld_utils.artifacts import Run, Unit, file_sha256, save_array, save_table, unit_seed, work_root
from nafld_utils.stages import ldm, prepare, samples

REVISION = 1

STAGE = "08_turing_test"
_NUMBERS = ("n_real_unhealthy", "n_real_healthy", "n_synthetic_unhealthy", "n_synthetic_healthy", "seed")
_NULLABLE = {"patient_id": "Int64", "fold": "Int64"}


@dataclass(frozen=True)
class TuringSet:
    """The images of the test, in the order of every sitting.

    Attributes
    ----------
    items : pandas.DataFrame
        From `nafld_utils.turing_sitting.draw_set`, and ``crop``: which stored crop of a real image is shown (-1:
        synthetic). The key of the test: it stays on the analyst's side.
    images : numpy.ndarray, shape (n, S, S), uint8
        Row i is item i.
    unit : Unit
        Where it lies.
    """

    items: pd.DataFrame
    images: np.ndarray
    unit: Unit


@dataclass(frozen=True)
class Analysis:
    """What the raters' answers amount to.

    Attributes
    ----------
    ratings : pandas.DataFrame
        From `nafld_utils.turing_sitting.attach_key`.
    summary, raters, images : pandas.DataFrame
        From `summarize`, `per_rater` and `per_image` of `nafld_utils.turing`.
    simulated : bool
        Whether the raters are simulated.
    unit : Unit
        Where it lies.
    """

    ratings: pd.DataFrame
    summary: pd.DataFrame
    raters: pd.DataFrame
    images: pd.DataFrame
    simulated: bool
    unit: Unit

    @property
    def source(self) -> str:
        """Who answered, for titles and legends: ``"5 simulated raters"`` or ``"5 raters"``."""
        n = self.ratings["rater"].nunique()
        return f"{n} {'simulated ' if self.simulated else ''}rater{'' if n == 1 else 's'}"


def set_unit(run: Run) -> Unit:
    """Unit of the image set."""
    section = run.settings.section("turing")
    inputs = [prepare.preprocess_unit(run)]
    inputs += [samples.synthetic_unit(run, task["conditioning"], task["fold"]) for task in ldm.tasks(run)]
    settings = {name: section[name] for name in _NUMBERS} | {"synthetic": list(run.settings.ldm.conditionings)}
    return run.unit("turing", "set", settings=settings, inputs=inputs, modules=["turing_sitting", "stages.turing"])


def make_set(run: Run) -> TuringSet:
    """Draw the set from the cohort's images and every fold's synthetic sets, unless it is there, and open it.

    Returns
    -------
    TuringSet
        Opened.

    Raises
    ------
    ValueError
        An earlier stage has not run, or the cohort or a synthetic set is too small; one sentence says which.

    Notes
    -----
    Choice: a real image is shown as one of its stored random crops, because the models learnt from such crops; shown
    whole, real images would be recognised by their field of view. Both kinds are 8-bit and of one size.
    """
    unit = set_unit(run)
    if not unit.done():
        real = prepare.open_preprocessed(run)
        sets = {(t["conditioning"], t["fold"]): samples.open_synthetic(**t) for t in ldm.tasks(run)}
        tables = {model: _all_folds(sets, model) for model in run.settings.ldm.conditionings}
        items = turing_sitting.draw_set(real.images, tables, run.settings.turing)
        rng = np.random.default_rng(unit_seed(run.settings.turing.seed, "turing", "crop"))
        crops = rng.integers(real.pool.shape[1], size=len(items))
        items["crop"] = np.where(items["is_real"] == 1, crops, -1)
        images = np.stack([_pixels(item, real.pool, sets) for item in items.itertuples()])
        with unit.writing() as folder:
            save_table(folder / "items.csv", items)
            save_array(folder / "images.npy", images)
    items = unit.load_table("items.csv").astype(_NULLABLE)
    return TuringSet(items, unit.load_array("images.npy"), unit)


def _all_folds(sets: Mapping[tuple[str, int], samples.Synthetic], model: str) -> pd.DataFrame:
    tables = [s.table.assign(row=np.arange(len(s.table))) for (name, _), s in sets.items() if name == model]
    return pd.concat(tables, ignore_index=True)


def _pixels(item: Any, pool: np.ndarray, sets: Mapping[tuple[str, int], samples.Synthetic]) -> np.ndarray:
    return pool[item.row, item.crop] if item.kind == "real" else sets[item.kind, int(item.fold)].images[item.row]


def ratings_path(run: Run) -> Path | None:
    """Where the ratings lie: ``turing.ratings``, relative to the work folder; None when raters are simulated."""
    name = run.settings.turing.ratings
    return None if name is None else work_root() / name


def analyse(run: Run) -> Analysis:
    """Analyse the ratings named in the settings, or simulated ones, unless that is done, and open the result.

    Returns
    -------
    Analysis
        Opened.

    Raises
    ------
    ValueError
        The set cannot be drawn, or the ratings do not answer it; see `nafld_utils.turing_sitting.read_ratings`.
    """
    shown, path = make_set(run), ratings_path(run)
    if path is None:
        answered: dict[str, Any] = {
            "simulated_raters": run.settings.turing.n_simulated_raters,
            "seed": run.settings.seed,
        }
    else:
        answered = {"ratings": file_sha256(path) if path.is_file() else "missing"}
    modules = ["turing", "turing_sitting", "stats"]
    unit = run.unit("turing", "analysis", settings=answered, inputs=[shown.unit], modules=modules)
    if not unit.done():
        ratings = turing_sitting.attach_key(_collect(run, shown.items, path), shown.items)
        tables = {
            "ratings": ratings,
            "summary": turing.summarize(ratings),
            "raters": turing.per_rater(ratings),
            "images": turing.per_image(ratings),
        }
        with unit.writing(simulated_raters=path is None) as folder:
            for name, table in tables.items():
                save_table(folder / f"{name}.csv", table.assign(simulated=path is None))
    opened = {name: unit.load_table(f"{name}.csv") for name in ("ratings", "summary", "raters", "images")}
    # a column of empty notes comes back from CSV as numbers
    opened["summary"]["note"] = opened["summary"]["note"].astype(object).fillna("")
    return Analysis(**opened, simulated=path is None, unit=unit)


def _collect(run: Run, items: pd.DataFrame, path: Path | None) -> pd.DataFrame:
    if path is None:
        seed = unit_seed(run.settings.seed, "turing", "raters")
        return turing_sitting.simulate_raters(items, run.settings.turing.n_simulated_raters, seed)
    return turing_sitting.read_ratings(path, items)


def titled(run: Run, analysis: Analysis, table: pd.DataFrame, text: str) -> Any:
    """A table for display under a caption that says whose answers it holds; cells are escaped.

    Parameters
    ----------
    run : Run
        Its cohort, when simulated, is named too.
    analysis : Analysis
        Names the raters.
    table : pandas.DataFrame
        What to show.
    text : str
        What the table is.

    Returns
    -------
    pandas.io.formats.style.Styler
        Shown by a notebook as its last expression.
    """
    caption = f"{analysis.source}{', simulated cohort' if run.is_simulated else ''} · {text}"
    style = table.style.format(precision=3, na_rep="–", escape="html").set_caption(caption)
    style = style.set_table_styles([{"selector": "caption", "props": "text-align: left; font-weight: bold"}])
    return style if table.index.name else style.hide(axis="index")


def protocol(run: Run, analysis: Analysis) -> str:
    """``"yes"`` where this test is the paper's, else what differs, in words."""
    s, n_raters = run.settings, len(analysis.raters)
    sizes = tuple(getattr(s.turing, name) for name in _NUMBERS[:4])
    wanted = (turing.PAPER_SIZES[0], turing.PAPER_SIZES[1], turing.PAPER_SIZES[2], turing.PAPER_SIZES[3])
    differs = {
        "simulated raters: not to be compared": analysis.simulated,
        "simulated cohort": run.is_simulated,
        f"{n_raters} raters, not 5": n_raters != len(turing.PAPER_COUNTS),
        f"{sum(sizes)} images, not 50": sizes != wanted,
        f"{s.preprocess.image_size} px, not 256": s.preprocess.image_size != 256,
        f"{s.ldm.steps} diffusion steps, not 20000": s.ldm.steps != 20000,
        "one model only": set(s.ldm.conditionings) != {"semantic", "class"},
    }
    return "; ".join(text for text, holds in differs.items() if holds) or "yes"


def claims(run: Run, analysis: Analysis) -> list[dict[str, Any]]:
    """Rows for the report's table "paper beside this run": the three rates over both classes."""
    paper = turing.paper_summary().set_index(["group", "metric"])["mean"]
    who = "simulated raters" if analysis.simulated else "raters"
    names = {"accuracy": "", "sensitivity": " (real recognised)", "specificity": " (synthetic recognised)"}
    rows = []
    for row in analysis.summary[analysis.summary["group"] == "both"].itertuples():
        rows.append(
            {
                "claim": f"Turing test, {who}: {row.metric}{names[row.metric]}",
                "paper": paper["both", row.metric],
                "this_run": row.mean,
                "low": row.low,
                "high": row.high,
                "over": who,
                "n": row.n_raters,
                "unit": "share of answers",
                "same_protocol": protocol(run, analysis),
            }
        )
    return rows
