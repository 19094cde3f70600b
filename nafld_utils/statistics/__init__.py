"""Intervals and tests for AUCs of patients with several images.

Contract: every interval says what it is over. Images of one patient are never taken for independent.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="bootstrap delong readers roc".split(),
    submod_attrs={
        "bootstrap": "Resampled counts crossed_bootstrap".split(),
        "delong": "DelongTest compare".split(),
        "readers": "FEWEST_SEEDS cautious gain patients_needed planned power smallest_gain".split(),
        "roc": (
            "GIVEN OVER_PATIENTS auc auc_interval checked exact_interval "
            "mean_auc_interval over_folds paired_t patient_codes student_t_interval"
        ).split(),
    },
)
