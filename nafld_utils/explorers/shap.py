"""Explorer of notebook 07: the attributions of every explained image, by every classifier that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nafld_utils import explain, explorers
from nafld_utils.figures import explain as draw

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run


@explorers.interactive
def maps(run: Run, everything: Mapping[str, Any]) -> Any:
    """Attributions: choose an image, a classifier, whether to average over neighbours, and the end of the scale.

    Parameters
    ----------
    run : Run
        The run whose data it shows.
    everything : mapping of str to stages.explain.Explanation
        From `stages.explain_truth.explain_all`; the explained classifier, whose images are those of all, comes first.

    Returns
    -------
    ipywidgets.VBox
        `figures.explain.overlay` and `figures.explain.by_classifier` draw its static twins.
    """
    import ipywidgets as widgets

    names = run.settings.cohort.class_names
    own = next(iter(everything.values()))
    smooth = {name: one.smoothed() for name, one in everything.items()}
    rows = {name: {image: i for i, image in enumerate(one.table["name"])} for name, one in everything.items()}
    options = [(draw.caption(item, names), item["name"]) for item in own.table.to_dict("records")]
    picked = explorers.labelled(widgets.Dropdown, "image", options=options)
    other = explorers.labelled(widgets.Dropdown, "beside it, explained by", options=list(everything))
    averaged = explorers.labelled(widgets.Checkbox, "averaged over neighbours", value=True, indent=False)
    scale = explorers.labelled(
        widgets.FloatSlider, "end of the scale, share of the largest value", min=0.1, max=1.0, step=0.05, value=1.0
    )
    scale.continuous_update = False
    words, picture = widgets.HTML(), widgets.HTML()

    def fill() -> None:
        explorers.narrow(other, [name for name in everything if picked.value in rows[name]])

    def show(change: Any) -> None:
        if change is not None and change["owner"] is picked:
            fill()
        shown = list(dict.fromkeys([next(iter(everything)), other.value]))
        found = {name: everything[name].table.iloc[rows[name][picked.value]] for name in shown}
        sources = smooth if averaged.value else {name: everything[name].attributions for name in shown}
        values = {name: sources[name][rows[name][picked.value]] for name in shown}
        limits = {name: scale.value * explain.shared_limit(value) for name, value in values.items()}
        image = own.images[rows[shown[0]][picked.value]]

        def panels(figure: Any) -> None:
            axes = figure.subplots(1, 1 + len(shown))
            draw.picture(image, draw.caption(found[shown[0]], names), axes[0])
            for ax, name in zip(axes[1:], shown, strict=True):
                draw.overlay(image, values[name], limits[name], ax)
                facts = f"log-odds {found[name]['log_odds']:+.2f}, scale to ±{limits[name]:.2g}"
                ax.set_title(f"{name}\n{facts}", fontsize=10, fontweight="normal")

        words.value = explorers.text(
            f"{draw.caption(found[shown[0]], names)}; log-odds that a pixel adds, red for {names[1]}, blue against", run
        )
        alt = f"{picked.value} and its attributions by {' and by '.join(shown)}"
        picture.value = explorers.image(explorers.draw_png(run, 3.2 * (1 + len(shown)), 4.1, panels), alt)

    fill()
    explorers.watch([picked, other, averaged, scale], show)
    return widgets.VBox([explorers.row([picked, other]), explorers.row([averaged, scale]), words, picture])
