"""Stage 08: the images raters see, the page they take the test on, and the analysis of their answers. Opens files.

The page is a unit of its own beside the set that holds the key, ``artifacts/<run>/turing/page``, and not a report: the
report of notebook 08 shows the key, and what lies together is sent together. Only ``turing_test.html`` is for raters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, ldm, preprocessing, quality, sampling, views
from nafld_utils.artifacts import Run, Unit, remembered, unit_seed, work_root
from nafld_utils.turing import intervals, page, rater_model, results_files, sitting, table_1
from nafld_utils.turing.page import build, load_texts, separation

if TYPE_CHECKING:
    from nafld_utils.params import TuringSettings

REVISION = ("stages.turing", 3)

_NULLABLE = {"patient_id": "Int64", "fold": "Int64"}
_TEXT = ("note", "over", "rater", "file", "status")  # columns that stay text where they are empty
PAGE = "turing_test.html"


@dataclass(frozen=True)
class TuringSet:
    """The images of the test, in the order of every sitting.

    ``images`` is (n, S, S) uint8; row i of ``items`` belongs to image i: the columns of
    `nafld_utils.turing.sitting.put_in_order`, and ``crop``, which stored crop of a real image is shown (-1:
    synthetic). The items are the key of the test: they stay on the analyst's side.
    """

    items: pd.DataFrame
    images: np.ndarray
    unit: Unit


@dataclass(frozen=True)
class Analysis:
    """What the raters' answers amount to.

    ``tables`` are by name: ``ratings`` (answers beside the key), ``files`` (what was read, counted and refused) and
    those of `statistics`; ``equivalence`` is from `nafld_utils.turing.rater_model.equivalence_test`. Where the
    raters are simulated, every table has a column that says so.
    """

    tables: Mapping[str, pd.DataFrame]
    equivalence: Mapping[str, Any]
    simulated: bool
    unit: Unit

    def __getitem__(self, name: str) -> pd.DataFrame:
        """One of the tables."""
        return self.tables[name]

    @property
    def source(self) -> str:
        """Who answered, for titles and legends: ``"5 simulated raters"`` or ``"5 raters"``."""
        n = self["ratings"]["rater"].nunique()
        return f"{n} {'simulated ' if self.simulated else ''}rater{'' if n == 1 else 's'}"


@remembered
def set_unit(run: Run) -> Unit:
    """Unit of the image set."""
    section = run.settings.section("turing")
    inputs = [preprocessing.preprocess_unit(run)]
    for task in ldm.autoencoder_units.tasks(run):
        of_set = run, task["conditioning"], task["fold"]
        inputs += [sampling.synthetic_unit(*of_set), quality.audit_unit(*of_set)]
    settings = {name: section[name] for name in (*sitting.NUMBERS, "seed")}
    settings["synthetic"] = list(run.settings.ldm.conditionings)
    return run.unit("turing", "set", settings=settings, inputs=inputs, modules=["turing_sitting", "stages.turing"])


def make_set(run: Run) -> TuringSet:
    """Draw the set from the cohort's images and every fold's synthetic sets, unless it is there, and open it.

    Raises
    ------
    ValueError
        An earlier stage has not run, or the cohort or a synthetic set has no image of a class; one sentence says which.

    Notes
    -----
    Choice: a real image is shown as one of its stored random crops, because the models learnt from such crops; shown
    whole, real images would be recognised by their field of view. Both kinds are 8-bit and of one size. Synthetic
    images that the copy audit withholds are not shown.
    """
    unit = set_unit(run)
    if not unit.done():
        real = preprocessing.open_preprocessed(run)
        sets = {(t["conditioning"], t["fold"]): sampling.open_synthetic(**t) for t in ldm.autoencoder_units.tasks(run)}
        tables: dict[str, list[pd.DataFrame]] = {}
        for (model, fold), one in sets.items():
            table = one.table.assign(row=np.arange(len(one.table)))
            tables.setdefault(model, []).append(table[~quality.withheld(run, model, fold)])
        pools = {model: pd.concat(tables[model], ignore_index=True) for model in run.settings.ldm.conditionings}
        settings, seed = run.settings.turing, run.settings.turing.seed
        items = sitting.draw_set(real.images, pools, settings, run.settings.cohort.class_names)
        rng = np.random.default_rng(unit_seed(seed, "turing", "crop"))
        crops = rng.integers(real.pool.shape[1], size=len(items))
        items["crop"] = np.where(items["is_real"] == 1, crops, -1)
        pixels = [
            real.pool[item.row, item.crop] if item.is_real else sets[item.kind, int(item.fold)].images[item.row]
            for item in items.itertuples()
        ]
        items, images = sitting.put_in_order(items, np.stack(pixels), seed)
        with unit.writing() as folder:
            artifacts.save_table(folder / "items.csv", items)
            artifacts.save_array(folder / "images.npy", images)
    items = unit.load_table("items.csv").astype(_NULLABLE)
    return TuringSet(items, unit.load_array("images.npy"), unit)


def numbers(run: Run, shown: TuringSet) -> pd.DataFrame:
    """Images of each kind and class, asked for and shown.

    Parameters
    ----------
    run : Run
    shown : TuringSet
        Of `turing.make_set`.

    Returns
    -------
    pandas.DataFrame
        ``images`` (kind and class in words), ``setting, asked, shown``; four rows.
    """
    rows = []
    for name, (is_real, label) in sitting.NUMBERS.items():
        what = f"{'real' if is_real else 'synthetic'}, {run.settings.cohort.class_names[label]}"
        found = (shown.items["is_real"] == is_real) & (shown.items["label"] == label)
        rows.append((what, f"turing.{name}", getattr(run.settings.turing, name), int(found.sum())))
    return pd.DataFrame(rows, columns=["images", "setting", "asked", "shown"])


def shortfall(run: Run, shown: TuringSet) -> str:
    """Whether the set has the images that were asked for.

    Parameters
    ----------
    run : Run
    shown : TuringSet
        Of `turing.make_set`.

    Returns
    -------
    str
        One sentence, and what there is where images are missing.
    """
    table = numbers(run, shown)
    few = table[table["shown"] < table["asked"]]
    copied = quality.withheld_words(run, run.settings.ldm.conditionings)
    if few.empty:
        return f"Shown as asked for: {len(shown.items)} images.{copied}"
    parts = ", ".join(f"{row.shown} of {row.asked} ({row.images})" for row in few.itertuples())
    return (
        f"FEWER IMAGES than asked for: {parts}. The cohort or the synthetic sets hold no more; of a class both kinds"
        f" are lowered in proportion, so that the share of real images stays about as asked for.{copied}"
    )


def page_unit(run: Run, shown: Unit) -> Unit:
    """Unit of the page that shows the set `shown` to raters; a template that was edited makes it anew."""
    s = run.settings.turing
    settings = {"language": s.language, "contact": s.contact, "simulated": run.is_simulated}
    settings["subject"] = views.words_for(run).subject
    templates = [artifacts.file_sha256(path) for path in page.template_files(s.language)]
    modules = ["turing_page", "turing_sitting"]
    return run.unit("turing", "page", settings=settings, inputs=[shown, *templates], modules=modules)


def analysis_unit(run: Run, shown: Unit, files: Mapping[str, bytes]) -> Unit:
    """Unit of the analysed ratings: of the set `shown`, by the raters' `files`, or by simulated raters where none."""
    s = run.settings
    settings: dict[str, Any] = {"margin": s.turing.equivalence_margin_d_prime, "power": s.turing.equivalence_power}
    if files:
        settings["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    else:
        settings |= {"simulated_raters": s.turing.n_simulated_raters, "seed": s.seed}
    modules = ["stats", "turing", "turing_answers", "turing_import", "turing_model", "turing_page", "turing_sitting"]
    modules += ["turing_statistics", "stages.turing"]
    return run.unit("turing", "analysis", settings=settings, inputs=[shown], modules=modules)


def make_page(run: Run, shown: TuringSet) -> Unit:
    """Write the page that raters open, unless it is there.

    Parameters
    ----------
    run : Run
    shown : TuringSet
        Of `turing.make_set`.

    Returns
    -------
    Unit
        Its file `PAGE` never holds the key.
    """
    s = run.settings.turing
    texts = load_texts(s.language)
    unit = page_unit(run, shown.unit)
    if not unit.done():
        page = build(shown.images, shown.items, texts, run.is_simulated, s.contact, views.words_for(run).subject)
        with unit.writing() as folder:
            artifacts.save_text(folder / PAGE, page)
    return unit


def units(run: Run) -> list[Unit]:
    """Every unit stage 08 stands on."""
    shown = set_unit(run)
    return [shown, page_unit(run, shown), analysis_unit(run, shown, ratings_files(run))]


def page_separation(shown: TuringSet, page: Unit) -> pd.DataFrame:
    """What single numbers of the written page and its pictures tell.

    Parameters
    ----------
    shown : TuringSet
        Of `turing.make_set`.
    page : Unit
        Of `turing.make_page`.

    Returns
    -------
    pandas.DataFrame
        ``of, cue, auc, p``, see `nafld_utils.turing.page.separation`.
    """
    text = page.require().file(PAGE).read_text(encoding="utf-8")
    return separation(text, shown.images, shown.items)


def ratings_files(run: Run) -> dict[str, bytes]:
    """Content of the raters' files that ``turing.ratings`` names, a file or a folder's files, by name.

    None where raters are simulated; of an oversized file only so much is read as shows that it is. Refuses a path
    where nothing lies.
    """
    name = run.settings.turing.ratings
    if name is None:
        return {}
    path = work_root() / Path(name).expanduser()
    if not (path.is_dir() or path.is_file()):
        raise ValueError(f"{path}: expected a folder of results files, or one, found nothing; correct turing.ratings.")
    found = [item for item in sorted(path.iterdir()) if item.is_file()] if path.is_dir() else [path]
    contents = {}
    for item in found:
        if not artifacts.is_litter(Path(item.name)):
            with open(item, "rb") as handle:
                contents[item.name] = handle.read(results_files.MAX_BYTES + 1)
    return contents


def analyse(run: Run) -> Analysis:
    """Analyse the ratings that the settings name, or simulated ones where there are none, unless that is done.

    Returns
    -------
    Analysis
        Opened.

    Raises
    ------
    ValueError
        The set cannot be drawn, or there are files of answers and none of them counts; see
        `nafld_utils.turing.results_files.collect`. Simulated raters never stand in for answers that were refused.
    """
    shown, files, s = make_set(run), ratings_files(run), run.settings
    unit = analysis_unit(run, shown.unit, files)
    if not unit.done():
        ratings, report = _collect(run, shown, files)
        tables = {"files": report} | statistics(results_files.attach_key(ratings, shown.items), s.turing)
        panel = rater_model.panel_of(tables["ratings"])
        equivalence = rater_model.equivalence_test(panel, s.turing.equivalence_margin_d_prime)
        with unit.writing(simulated_raters=not files) as folder:
            for name, table in tables.items():
                artifacts.save_table(folder / f"{name}.csv", table.assign(simulated=not files))
            artifacts.save_json(folder / "equivalence.json", equivalence | {"simulated": not files})
    names = [path.stem for path in sorted(unit.path.glob("*.csv"))]
    opened = {name: _opened(unit.load_table(f"{name}.csv")) for name in names}
    equivalence = json.loads(unit.file("equivalence.json").read_text(encoding="utf-8"))
    return Analysis(opened, equivalence, not files, unit)


def _collect(run: Run, shown: TuringSet, files: Mapping[str, bytes]) -> tuple[pd.DataFrame, pd.DataFrame]:
    if files:
        return results_files.collect(files, shown.items, page.set_id(shown.images, shown.items))
    seed = unit_seed(run.settings.seed, "turing", "raters")
    ratings = sitting.simulate_raters(shown.items, run.settings.turing.n_simulated_raters, seed)
    return ratings, pd.DataFrame(columns=results_files.FILE_COLUMNS)


def statistics(ratings: pd.DataFrame, settings: TuringSettings) -> dict[str, pd.DataFrame]:
    """The tables of an analysis by name, ``summary`` being the paper's Table 1; ratings with the key attached."""
    panel, margin = rater_model.panel_of(ratings), settings.equivalence_margin_d_prime
    return {
        "ratings": ratings,
        "summary": table_1.summarize(ratings),
        "bounded": intervals.bounded_summary(ratings),
        "crossed": intervals.crossed_summary(ratings),
        "raters": table_1.per_rater(ratings),
        "model": rater_model.model_table(panel),
        "agreement": intervals.agreement_table(ratings),
        "calibration": intervals.calibration(ratings),
        "overconfidence": intervals.overconfidence(ratings),
        "images": table_1.per_image(ratings),
        "unanimous": intervals.unanimous(ratings),
        "plans": rater_model.plans(panel, margin, settings.equivalence_power),
        "chances": rater_model.chances(panel, margin),
    }


def _opened(table: pd.DataFrame) -> pd.DataFrame:
    """A stored table, in which columns of text are text although CSV does not tell."""
    text = {name: table[name].astype(object).fillna("").astype(str) for name in _TEXT if name in table}
    whole = {name: table[name].astype("Int64") for name in ("n_images", "n_answers") if name in table}
    return table.assign(**text, **whole)


def titled(run: Run, analysis: Analysis, table: pd.DataFrame, text: str, columns: Any = "", **options: Any) -> Any:
    """A table (`views.table`) under a caption that says whose answers it holds.

    Parameters
    ----------
    run : Run
        Its cohort, when simulated, is named too.
    analysis : Analysis
        Names the raters.
    table : pandas.DataFrame
        What to show; its column ``simulated`` is left out, since the caption says it.
    text : str
        What the table is.
    columns : str or mapping
        As `views.table` takes them, as are other options.
    """
    caption = f"{analysis.source}{', simulated cohort' if run.is_simulated else ''} · {text}"
    return views.table(table.drop(columns="simulated", errors="ignore"), caption, columns, **options)
