"""Explorer of notebook 07: the attributions of every explained image, by every classifier that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import views
from nafld_utils.explain import explainers, figures

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run


@views.interactive
def maps(run: Run, everything: Mapping[str, Any]) -> Any:
    """Attributions: choose an image, a classifier, whether to average over neighbours, and the end of the scale.

    Parameters
    ----------
    run : Run
        The run whose data it shows.
    everything : mapping of str to stages.explain.Explanation
        From `explain.explain_all`; the explained classifier, whose images are those of all, comes first.

    Returns
    -------
    ipywidgets.VBox
        `figures.overlay` and `figures.by_classifier` draw its static twins.
    """
    import ipywidgets as widgets

    names, first = run.settings.cohort.class_names, next(iter(everything))
    smooth = {name: one.smoothed() for name, one in everything.items()}
    rows = {name: {image: i for i, image in enumerate(one.table["name"])} for name, one in everything.items()}
    options = [(figures.caption(item, names), item["name"]) for item in everything[first].table.to_dict("records")]
    picked = views.labelled(widgets.Dropdown, "image", options=options)
    other = views.labelled(widgets.Dropdown, "beside it, explained by", options=list(everything))
    averaged = views.labelled(widgets.Checkbox, "averaged over neighbours", value=True, indent=False)
    scale = views.labelled(
        widgets.FloatSlider, "end of the scale, share of the largest value", min=0.1, max=1.0, step=0.05, value=1.0
    )
    scale.continuous_update = False
    words, picture = widgets.HTML(), widgets.HTML()

    def fill() -> None:
        views.narrow(other, [name for name in everything if picked.value in rows[name]])

    def show(change: Any) -> None:
        if change is not None and change["owner"] is picked:
            fill()
        shown = {}
        for name in dict.fromkeys([first, other.value]):
            one, i = everything[name], rows[name][picked.value]
            shown[name] = (smooth[name] if averaged.value else one.attributions)[i], one.table["log_odds"].iloc[i]
        i = rows[first][picked.value]
        caption = figures.caption(everything[first].table.iloc[i], names)
        words.value = views.text(f"{caption}; log-odds that a pixel adds, red for {names[1]}, blue against", run)
        alt = f"{picked.value} and its attributions by {' and by '.join(shown)}"
        picture.value = views.image(_drawn(run, everything[first].images[i], caption, shown, scale.value), alt)

    fill()
    views.watch([picked, other, averaged, scale], show)
    return widgets.VBox([views.row([picked, other]), views.row([averaged, scale]), words, picture])


def _drawn(
    run: Run, image: np.ndarray, caption: str, shown: Mapping[str, tuple[np.ndarray, float]], end: float
) -> bytes:
    """An image (S, S) uint8 and its maps by classifier (map, log-odds of the image) as PNG; `end` of the scale."""

    def panels(figure: Any) -> None:
        axes = figure.subplots(1, 1 + len(shown))
        figures.picture(image, caption, axes[0])
        for ax, (name, (values, log_odds)) in zip(axes[1:], shown.items(), strict=True):
            limit = end * explainers.shared_limit(values)
            figures.overlay(image, values, limit, ax)
            facts = f"log-odds {log_odds:+.2f}, scale to ±{limit:.2g}"
            ax.set_title(f"{name}\n{facts}", fontsize=10, fontweight="normal")

    return views.draw_png(run, 3.2 * (1 + len(shown)), 4.1, panels)
