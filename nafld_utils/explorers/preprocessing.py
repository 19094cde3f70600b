"""Explorer of notebook 02: what preprocessing makes of a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import explorers, preprocess, semantic_maps
from nafld_utils.explorers.cohort import Place
from nafld_utils.figures import bare
from nafld_utils.figures import preprocessing as draw
from nafld_utils.figures.cohort import caption as caption_of
from nafld_utils.words import of as words_of

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run
    from nafld_utils.cohort import Cohort


@explorers.interactive
def crops(run: Run, cohort: Cohort, data: Any) -> Any:
    """From frame to map: choose a patient, a frame, one of its random crops and a draw of the map's warp.

    `data` is the `stages.prepare.Preprocessed` of the cohort. `figures.preprocessing.steps` and `label_map` draw its
    static twins.
    """
    import ipywidgets as widgets

    names, settings, said = run.settings.cohort.class_names, run.settings.preprocess, words_of(run)
    place = Place(data.images["patient_id"].to_numpy())
    crop = explorers.labelled(widgets.IntSlider, "random crop", min=0, max=data.pool.shape[1] - 1)
    warp = explorers.labelled(widgets.IntSlider, "draw of the warp", min=0, max=20)
    for slider in (place.patient, place.frame, crop, warp):
        slider.continuous_update = False  # a picture takes a third of a second
    words, picture = widgets.HTML(), widgets.HTML()

    def show(_: Any) -> None:
        i, k = place.fit(), crop.value
        facts = data.images.iloc[i]
        frame, map_ = cohort.pixels[i], data.pool_maps[i, k]
        region = preprocess.find_region(frame, settings)
        warped = semantic_maps.warp_map(
            map_, np.random.default_rng(warp.value), settings.warp_points, settings.warp_strength
        )

        def panels(figure: Any) -> None:
            axes = figure.subplots(1, 5, width_ratios=[1.5, 1, 1, 1, 1])
            draw.steps(frame, region, facts, data.crops[i], data.pool[i, k : k + 1], axes[:3], "region and crop")
            bare(axes[2], f"random crop {k}")
            draw.label_map(map_, settings.map_classes, axes[3], "its map")
            draw.label_map(warped, settings.map_classes, axes[4], f"warped, draw {warp.value}")

        caption = caption_of(facts, names, said.grade_text)
        words.value = explorers.text(f"{caption}; the crop keeps {facts['kept_share']:.0%} of the region", run)
        alt = f"{caption}: region and crop, centre crop, random crop {k}, its map, the map warped"
        picture.value = explorers.image(explorers.draw_png(run, 10.5, 2.6, panels), alt)

    explorers.watch([place.patient, place.frame, crop, warp], show)
    return widgets.VBox([explorers.row([place.patient, place.frame, crop, warp]), words, picture])
