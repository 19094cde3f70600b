"""Explorer of notebook 02: what preprocessing makes of a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import cohort, images, views
from nafld_utils.preprocessing import figures

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run


@views.interactive
def crops(run: Run, found: cohort.Cohort, data: Any) -> Any:
    """From frame to map: choose a patient, a frame, one of its random crops and a draw of the map's warp.

    Parameters
    ----------
    run : Run
    found : Cohort
        Of `preprocessing.open_cohort`.
    data : Preprocessed
        Of `preprocessing.open_preprocessed`.

    Returns
    -------
    ipywidgets.VBox
        In a headless run a text in its place; `figures.steps` and `label_map` draw the static twins.
    """
    import ipywidgets as widgets

    names, settings, said = run.settings.cohort.class_names, run.settings.preprocess, views.words_for(run)
    place = cohort.explorer.Place(data.images["patient_id"].to_numpy())
    crop = views.labelled(widgets.IntSlider, "random crop", min=0, max=data.pool.shape[1] - 1)
    warp = views.labelled(widgets.IntSlider, "draw of the warp", min=0, max=20)
    for slider in (place.patient, place.frame, crop, warp):
        slider.continuous_update = False  # a picture takes a third of a second
    words, picture = widgets.HTML(), widgets.HTML()

    def show(_: Any) -> None:
        i, k = place.fit(), crop.value
        facts = data.images.iloc[i]
        frame, map_ = found.pixels[i], data.pool_maps[i, k]
        region = images.find_region(frame, settings)
        warped = images.warp_map(map_, np.random.default_rng(warp.value), settings.warp_points, settings.warp_strength)

        def panels(figure: Any) -> None:
            axes = figure.subplots(1, 5, width_ratios=[1.5, 1, 1, 1, 1])
            figures.steps(frame, region, facts, data.crops[i], data.pool[i, k : k + 1], axes[:3], "region and crop")
            views.bare(axes[2], f"random crop {k}")
            figures.label_map(map_, settings.map_classes, axes[3], "its map")
            figures.label_map(warped, settings.map_classes, axes[4], f"warped, draw {warp.value}")

        caption = cohort.figures.caption(facts, names, said.grade_text)
        kept = facts["kept_share"]
        words.value = views.text(
            f"{caption}; the crop keeps {kept:.0%} of the region, {kept * region.mean():.0%} of the image", run
        )
        alt = f"{caption}: region and crop, centre crop, random crop {k}, its map, the map warped"
        picture.value = views.image(views.draw_png(run, 10.5, 2.6, panels), alt)

    views.watch([place.patient, place.frame, crop, warp], show)
    return widgets.VBox([views.row([place.patient, place.frame, crop, warp]), words, picture])
