"""Explorers of notebooks 01 and 02: every frame, and what preprocessing makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import explorers, preprocess, semantic_maps
from nafld_utils.figures import bare
from nafld_utils.figures import cohort as draw
from nafld_utils.words import of as words_of

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run
    from nafld_utils.cohort import Cohort

_WIDEST = 640  # CSS pixels of a raw frame


class _Place:
    """Two sliders that name an image: its patient, and which of the patient's images."""

    def __init__(self, patients: Any) -> None:
        import ipywidgets as widgets

        self._groups = {p: np.flatnonzero(patients == p) for p in dict.fromkeys(patients.tolist())}
        self.patient = explorers.labelled(widgets.SelectionSlider, "patient", options=list(self._groups))
        self.frame = explorers.labelled(widgets.IntSlider, "frame", min=0, max=0)
        self.fit()

    def fit(self) -> int:
        """Let the frame's slider end at the patient's last image; the place of the image that is named."""
        places = self._groups[self.patient.value]
        self.frame.max = len(places) - 1  # the slider moves its value along
        return int(places[self.frame.value])


@explorers.interactive
def frames(run: Run, cohort: Cohort) -> Any:
    """Every frame of the cohort: choose a patient and a frame.

    Parameters
    ----------
    run : Run
        The run whose data it shows.
    cohort : Cohort
        Its cohort.

    Returns
    -------
    ipywidgets.VBox
        `figures.cohort.frame_grid` draws its static twin.
    """
    import ipywidgets as widgets

    names, place = run.settings.cohort.class_names, _Place(cohort.images["patient_id"].to_numpy())
    grade = words_of(run).grade_text
    words, picture = widgets.HTML(), widgets.HTML()

    def show(_: Any) -> None:
        i = place.fit()
        caption, pixels = draw.caption(cohort.images.iloc[i], names, grade), np.asarray(cohort.pixels[i])
        words.value = explorers.text(caption, run)
        width = min(_WIDEST, max(256, pixels.shape[1]))
        picture.value = explorers.image(explorers.grey_png(pixels), f"Frame {caption}", width)

    explorers.watch([place.patient, place.frame], show)
    return widgets.VBox([explorers.row([place.patient, place.frame]), words, picture])


@explorers.interactive
def crops(run: Run, cohort: Cohort, data: Any) -> Any:
    """From frame to map: choose a patient, a frame, one of its random crops and a draw of the map's warp.

    Parameters
    ----------
    run : Run
        The run whose data it shows.
    cohort : Cohort
        Its cohort.
    data : stages.prepare.Preprocessed
        What was made of it.

    Returns
    -------
    ipywidgets.VBox
        `figures.cohort.steps` and `figures.cohort.label_map` draw its static twins.
    """
    import ipywidgets as widgets

    names, settings, said = run.settings.cohort.class_names, run.settings.preprocess, words_of(run)
    place = _Place(data.images["patient_id"].to_numpy())
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
            corner = (facts["crop_top"], facts["crop_left"])
            pool, side = data.pool[i, k : k + 1], facts["crop_side"]
            draw.steps(frame, region, corner, data.crops[i], pool, axes[:3], "region and crop", side)
            bare(axes[2], f"random crop {k}")
            draw.label_map(map_, settings.map_classes, axes[3], "its map")
            draw.label_map(warped, settings.map_classes, axes[4], f"warped, draw {warp.value}")

        caption = draw.caption(facts, names, said.grade_text)
        words.value = explorers.text(f"{caption}; the crop keeps {facts['kept_share']:.0%} of the region", run)
        alt = f"{caption}: region and crop, centre crop, random crop {k}, its map, the map warped"
        picture.value = explorers.image(explorers.draw_png(run, 10.5, 2.6, panels), alt)

    explorers.watch([place.patient, place.frame, crop, warp], show)
    return widgets.VBox([explorers.row([place.patient, place.frame, crop, warp]), words, picture])
