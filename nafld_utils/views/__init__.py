"""What figures, widgets and pages share: one style, the mark of simulated data, words for the cohort at hand."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="figure_style tables widgets words".split(),
    submod_attrs={
        "figure_style": (
            "CLASS_COLORS COLORS SIMULATED bar_lengths bare color_of mark_simulated name_rows picture picture_row "
            "picture_rows spread_dots style tiles"
        ).split(),
        "tables": "claims files interval number settings table told unit_beside".split(),
        "widgets": "draw_png grey_png image interactive labelled narrow on_page row text watch".split(),
        "words": "named verdict words_for".split(),
    },
)
