"""Stage 05: how close synthetic sets are to real ones, whether they are copies of patients, and which images to keep.

Contract: a distance stands between its floor (real images of other patients) and its ceilings, and carries the name
of its features. The copy audit is calibrated on planted copies and on held-out images.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "agreement_units copies copy_units explorer figures filter filter_units galleries metric_tables metric_units "
        "patient_distance_units patient_distances precision_recall stage"
    ).split(),
    submod_attrs={
        "agreement_units": "agreement compare_spaces spaces".split(),
        "copy_units": (
            "audit_copies audit_unit calibration copied_patients release_unit summary withheld withheld_words"
        ).split(),
        "filter": "quota".split(),
        "filter_units": "NAME choose_images kept_against_rest open_set set_unit unit_of".split(),
        "galleries": "closest gallery judged_images shown spread strip".split(),
        "metric_tables": "BOTH LEARNT PLAIN frechet_distance".split(),
        "metric_units": "build_table load_intervals quoted table_tasks untrained".split(),
        "patient_distance_units": "build_patient_distances with_intervals".split(),
        "stage": (
            "FEATURES build_features claims drawn_table folds_of generators open_preprocessed reading units"
        ).split(),
    },
)
