"""The simulator: a physical model of B-mode images of right liver and kidney, its variants, and its constants' origin.

Contract: a seed, a number and the percent of fat in, frames and tissue masks of one patient out. The variant `FULL`
makes the patients of every simulated cohort.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="anatomy fat looks overlays provenance scanner variants".split(),
    submod_attrs={
        "anatomy": "FEATURES TISSUES".split(),
        "fat": "draw_fat fat_of_55".split(),
        "scanner": "FRAME_SHAPE sector_mask simulate_patient".split(),
        "variants": "FULL VARIANTS Variant".split(),
    },
)
