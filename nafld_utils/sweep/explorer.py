"""Explorer of notebook 06: AUC over the mixing rate of every way of training, and the scores behind each point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nafld_utils import views
from nafld_utils.sweep import comparisons, figures

if TYPE_CHECKING:
    import pandas as pd

    from nafld_utils.artifacts import Run

WORDS = {"backbone": "network", "freeze": "layers frozen", "balance": "class balance", "rate": "mixing rate"}


@views.interactive
def results(run: Run, scores: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> Any:
    """The sweep's results: choose a way of training and a level, then an arm, a rate and a seed.

    Parameters
    ----------
    run : Run
        The run whose data it shows.
    scores : pandas.DataFrame
        From `sweep.build_scores`.
    tables : mapping of str to pandas.DataFrame
        From `sweep.build_tables`: ``seeds`` and ``arms``.

    Returns
    -------
    ipywidgets.VBox
        `figures.boxes` and `figures.patient_scores` draw its static twins.
    """
    import ipywidgets as widgets

    group = comparisons.present(scores, comparisons.GROUP)
    keys = [*comparisons.present(scores), "seed"]
    tree = scores[keys].drop_duplicates()
    told = [name for name in group if name == "backbone" or len(set(tree[name])) > 1]
    boxes = {name: views.labelled(widgets.Dropdown, WORDS.get(name, name)) for name in keys}
    level = views.labelled(widgets.Dropdown, "AUC by", options=list(comparisons.LEVELS))
    curve, words, picture = widgets.HTML(), widgets.HTML(), widgets.HTML()

    def show_curve(_: Any) -> None:
        way = {name: boxes[name].value for name in group} | {"level": level.value}
        curve.value = _curve(run, tables, way, ", ".join(f"{WORDS[name]} {way[name]}" for name in told))

    def show(change: Any) -> None:
        for box in boxes.values() if change is not None else ():
            box.unobserve(show, "value")
        # a choice may leave no row of what was chosen below it, e.g. real images alone have one rate
        for i, name in enumerate(keys):
            above = {upper: boxes[upper].value for upper in keys[:i]}
            views.narrow(boxes[name], list(dict.fromkeys(tree.loc[comparisons.where(tree, above), name])))
        for box in boxes.values():
            box.observe(show, "value")
        if change is None or change["owner"] in [boxes[name] for name in group]:
            show_curve(change)
        words.value, picture.value = _scores(run, scores, {name: box.value for name, box in boxes.items()})

    level.observe(show_curve, "value")
    show(None)
    ways = views.row([*(boxes[name] for name in group), level])
    trainings = views.row([boxes[name] for name in keys if name not in group])
    return widgets.VBox([ways, curve, trainings, words, picture])


def _curve(run: Run, tables: Mapping[str, pd.DataFrame], way: dict[str, Any], title: str) -> str:
    """HTML of the AUC over the mixing rate of one way of training at one level."""
    by_seed, arms = (tables[name][comparisons.where(tables[name], way)] for name in ("seeds", "arms"))

    def panel(figure: Any) -> None:
        figures.boxes(by_seed, arms, figure.subplots()).set_title(f"{title}: AUC by {way['level']}")

    return views.image(views.draw_png(run, 9.0, 3.8, panel), f"AUC by {way['level']} over the mixing rate, {title}")


def _scores(run: Run, scores: pd.DataFrame, cell: dict[str, Any]) -> tuple[str, str]:
    """HTML of one training: its AUC in words, and the scores of its held-out images by patient."""
    part, names = scores[comparisons.where(scores, cell)], run.settings.cohort.class_names
    by_image, by_patient = (comparisons.auc_by_seed(part, name).iloc[0]["auc"] for name in comparisons.LEVELS)
    title = f"{figures.name_of(cell['arm'])}, r = {cell['rate']:g}, seed {cell['seed']}"
    said = f"{title}: image-level AUC {by_image:.3f}, patient-level AUC {by_patient:.3f}, one training, no interval"

    def panel(figure: Any) -> None:
        figures.patient_scores(part, names, figure.subplots()).set_title(title)

    png = views.draw_png(run, 9.0, 3.4, panel)
    return views.text(said, run), views.image(png, f"Scores of the held-out images by patient, {title}")
