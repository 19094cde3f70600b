"""Stage 04: synthetic sets of a fold, and whether the condition matters.

Contract: every synthetic image has its own seed, whatever the batch; a set carries the split that it was made with.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "condition_effect condition_units feature_units figures sampler_comparison set_units simulated stage "
        "time_estimate"
    ).split(),
    submod_attrs={
        "condition_effect": "condition_separation".split(),
        "condition_units": "claims".split(),
        "feature_units": (
            "NOISE REAL TRADITIONAL build_features drawn_table features_unit load_features patients_of "
            "prefixed real_table"
        ).split(),
        "sampler_comparison": "at_own_sampler compare_samplers".split(),
        "set_units": (
            "BASELINES Synthetic class_mix generators is_shared make_set open_set open_synthetic synthetic_unit "
            "task_of tasks"
        ).split(),
        "simulated": "require_liver".split(),
        "stage": "check_conditions draw_sets folds_of open_preprocessed open_sets units".split(),
        "time_estimate": "estimate networks".split(),
    },
)
