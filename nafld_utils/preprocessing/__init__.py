"""Stage 02: folds of patients, and what the models get to see of a frame.

Contract: no patient is on both sides of a split; what a split holds is compared by patient and by pixel hash.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="crop_facts explorer figures folds stage unit".split(),
    submod_attrs={
        "crop_facts": "by_class crop_warnings".split(),
        "folds": "assert_comparable assert_same_split assert_trained_without digest_of make_folds split".split(),
        "stage": "find_region open_cohort to_float warp_map".split(),
        "unit": (
            "Preprocessed as_held_out augmented_unit build_augmented build_preprocessed facts_of fits folded_images "
            "open_preprocessed preprocess_claims preprocess_unit"
        ).split(),
    },
)
