"""Stage 06: trainings of classifiers with and without synthetic images, what they score, and the answer.

Contract: a synthetic image meets only the fold whose training patients made it. One comparison is declared
beforehand; all others are adjusted. Intervals are over patients, over seeds, or over both, and say which.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "clinical_measures comparisons draws explorer figures frozen_classifier_units frozen_classifiers "
        "gpu_training interval_study prefix_features timing training training_units trial_grid "
        "trial_store verdict"
    ).split(),
    submod_attrs={
        "comparisons": "present where".split(),
        "frozen_classifier_units": "build leaks".split(),
        "interval_study": "report stored".split(),
        "training": "Options Views fresh_tail predict train_tail".split(),
        "training_units": (
            "build_scores dry_run failures held_out_images options_of require_capacity run_sweep status store "
            "summary time_training train training_set trials"
        ).split(),
        "trial_grid": "folds_of grid plan planned".split(),
        "trial_store": "TRIAL_COLUMNS finished_before read_trial to_train".split(),
        "verdict": "answer at build_tables costs declared differences grade_note networks shown".split(),
    },
)
