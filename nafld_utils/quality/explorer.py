"""Explorer of notebook 05: every synthetic image by fold, class and score, with the nearest training frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nafld_utils import views
from nafld_utils.quality import figures

if TYPE_CHECKING:
    import pandas as pd

    from nafld_utils.artifacts import Run

ALL = "all"
ORDERS = {
    "distance to held-out real images, nearest first": ("distance", True),
    "distance to held-out real images, farthest first": ("distance", False),
    "correlation with a training frame, highest first": ("correlation", False),
}


@views.interactive
def images(run: Run, table: pd.DataFrame, shown: Callable[[pd.DataFrame], list[dict[str, Any]]]) -> Any:
    """Every synthetic image: choose generator, fold, class and an order, and walk through them.

    Parameters
    ----------
    run : Run
    table : pandas.DataFrame
        Of `quality.judged_images`.
    shown : callable
        From rows of the table to those rows with the image and the training frame nearest to it, as `quality.shown`.

    Returns
    -------
    ipywidgets.VBox
        In a headless run a text in its place; `figures.beside_nearest` draws the static twin.
    """
    import ipywidgets as widgets

    names = run.settings.cohort.class_names
    folds = [(ALL, ALL), *((str(fold), fold) for fold in sorted(table["fold"].unique()))]
    choices = {"generator": list(dict.fromkeys(table["generator"])), "fold": folds}
    choices |= {"class": [(ALL, ALL), (names[0], 0), (names[1], 1)], "order": list(ORDERS)}
    boxes = [views.labelled(widgets.Dropdown, name, options=options) for name, options in choices.items()]
    generator, fold, label, order = boxes
    rank = views.labelled(widgets.IntSlider, "place in this order", min=1, max=1, continuous_update=False)
    words, picture = widgets.HTML(), widgets.HTML()

    def chosen() -> pd.DataFrame:
        keep = table["generator"] == generator.value
        for column, box in (("fold", fold), ("label", label)):
            if box.value != ALL:
                keep &= table[column] == box.value
        column, ascending = ORDERS[order.value]
        return table[keep].sort_values(column, ascending=ascending, kind="stable")

    def show(_: Any) -> None:
        found = chosen()
        rank.max = max(1, len(found))
        rank.disabled = not len(found)
        if not len(found):
            words.value, picture.value = views.text("no image of this fold and class", run), ""
            return
        item = found.iloc[rank.value - 1]
        pair = shown(found.iloc[[rank.value - 1]])
        png = views.draw_png(run, 7.4, 3.9, lambda figure: figures.beside_nearest(pair, figure.subplots(1, 2), names))
        words.value = views.text(f"{rank.value} of {len(found)}: {describe(item, names)}", run)
        picture.value = views.image(png, f"{item.synthetic_id} and the training frame nearest to it")

    views.watch([*boxes, rank], show)
    return widgets.VBox([views.row([*boxes, rank]), words, picture])


def describe(item: Any, names: tuple[str, str]) -> str:
    """One line about a row of `quality.judged_images`."""
    origin = f", from a map of patient {item.source_patient}" if item.source_patient >= 0 else ""
    verdict = f"withheld: {item.why}" if item.is_copy else "kept"
    return (
        f"{item.synthetic_id}, fold {item.fold}, drawn as {names[int(item.label)]}{origin};"
        f" distance {item.distance:.3g} to held-out real images; correlation {item.correlation:.2f} with"
        f" training frame {item.nearest_image}; {verdict}"
    )
