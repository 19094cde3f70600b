"""Explorer of notebook 01: every frame of the cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nafld_utils import views
from nafld_utils.cohort import figures

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run
    from nafld_utils.cohort.data import Cohort

_WIDEST = 640  # CSS pixels of a raw frame


class Place:
    """Two sliders that name an image: its patient, and which of the patient's images."""

    def __init__(self, patients: Any) -> None:
        import ipywidgets as widgets

        self._groups = {p: np.flatnonzero(patients == p) for p in dict.fromkeys(patients.tolist())}
        self.patient = views.labelled(widgets.SelectionSlider, "patient", options=list(self._groups))
        self.frame = views.labelled(widgets.IntSlider, "frame", min=0, max=0)
        self.fit()

    def fit(self) -> int:
        """Let the frame's slider end at the patient's last image; the place of the image that is named."""
        places = self._groups[self.patient.value]
        self.frame.max = len(places) - 1  # the slider moves its value along
        return int(places[self.frame.value])


@views.interactive
def frames(run: Run, cohort: Cohort) -> Any:
    """Every frame of the cohort: choose a patient and a frame; `figures.frame_grid` draws its static twin.

    Parameters
    ----------
    run : Run
    cohort : Cohort
        Of `cohort.open_cohort`.

    Returns
    -------
    ipywidgets.VBox
        In a headless run a text in its place.
    """
    import ipywidgets as widgets

    names, place = run.settings.cohort.class_names, Place(cohort.images["patient_id"].to_numpy())
    grade = views.words_for(run).grade_text
    words, picture = widgets.HTML(), widgets.HTML()

    def show(_: Any) -> None:
        i = place.fit()
        caption, pixels = figures.caption(cohort.images.iloc[i], names, grade), np.asarray(cohort.pixels[i])
        words.value = views.text(caption, run)
        width = min(_WIDEST, max(256, pixels.shape[1]))
        picture.value = views.image(views.grey_png(pixels), f"Frame {caption}", width)

    views.watch([place.patient, place.frame], show)
    return widgets.VBox([views.row([place.patient, place.frame]), words, picture])
