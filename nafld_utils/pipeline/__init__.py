"""Which stages are current, and how their notebooks are run: headless, in JupyterLab, by hand."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="cost execute lab overview plan redaction staleness start_checks".split(),
    submod_attrs={
        "cost": "estimate networks".split(),
        "execute": "StageError run_notebook".split(),
        "lab": "start".split(),
        "overview": "begin command trained_again_text".split(),
        "plan": "images_for_smoke plan_text".split(),
        "redaction": "redact_notebook redacted".split(),
        "staleness": (
            "Age STAGES UPSTREAM USER_FILES age has_changed report_path settle_times stamp_path status write_stamps"
        ).split(),
        "start_checks": "check_folder check_same_cohort preflight".split(),
    },
)
