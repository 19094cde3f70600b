"""Stage 06: trainings of classifiers with and without synthetic images, what they score, and the answer.

Contract: a synthetic image meets only the fold whose training patients made it. One comparison is primary, a few that
are declared too are tested beside it, all others explore. Intervals are over patients, over seeds, or over both, and
say which.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "clinical_measures comparisons draws explorer families figures frozen_classifier_units frozen_classifiers "
        "gpu_training planning prefix_features simulated_only stage timing_units training training_units trial_grid "
        "trial_store trial_units verdict"
    ).split(),
    submod_attrs={
        "comparisons": "present where".split(),
        "elsewhere.classifier_units": (
            "build_classifiers classifier_unit held_out_scores of_arm save_tail tail_weights train_again"
        ).split(),
        "elsewhere.figures": ["draw_elsewhere"],
        "elsewhere.measures": "DECLARED measured patients".split(),
        "elsewhere.scored_units": "build_elsewhere elsewhere_words reliability score".split(),
        "families": "kinds".split(),
        "frozen_classifier_units": "build_baselines leaks no_pixels_note".split(),
        "stage": "claims class_shares report stored units".split(),
        "timing_units": "costs dry_run time_training".split(),
        "training": "Options Views fresh_tail predict train_tail".split(),
        "training_units": "build_scores experiments failures run_sweep summary train".split(),
        "trial_grid": "folds_of grid plan planned".split(),
        "trial_store": "TRIAL_COLUMNS finished_before read_trial to_train".split(),
        "trial_units": "held_out_images options_of require_capacity status store training_set trials".split(),
        "verdict": ("answer at build_tables declared differences grade_note networks shown").split(),
    },
)
