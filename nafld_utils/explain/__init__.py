"""Stage 07: SHAP attributions of a trained classifier, and the checks that tell whether they may be read."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "attribution_units check_units explainers explorer figures map_measures single_feature_study verdict"
    ).split(),
    submod_attrs={
        "attribution_units": "classifier_unit held_out_auc".split(),
        "check_units": "build_checks build_study explain_all side_by_side units".split(),
        "explainers": "missing_share shared_limit".split(),
        "verdict": "answer claims is_readable off_in_words what_shap_shows".split(),
    },
)
