"""Intervals and tests for AUCs of patients with several images.

Contract: every interval says what it is over. Images of one patient are never taken for independent.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="auc_intervals bootstrap cross_validated delong nested readers roc".split(),
    submod_attrs={
        "auc_intervals": "METHODS auc_interval mean_auc_interval over".split(),
        "bootstrap": "Resampled counts crossed_bootstrap".split(),
        "cross_validated": ["fold_mean_auc"],
        "delong": "DelongTest compare".split(),
        "nested": "Nested auc_within nested_auc".split(),
        "readers": (
            "FEWEST_SEEDS cautious fewest_patients gain is_narrow patients_needed planned power smallest_effect"
        ).split(),
        "roc": (
            "ANY GIVEN GIVEN_SEEDS Interval MeanInterval NO_SPREAD OVER_PATIENTS POSITIVE SHARE SIGNED auc "
            "checked clustered_share exact_interval over_folds paired_t patient_codes stated student_t_interval"
        ).split(),
    },
)
