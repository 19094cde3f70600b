"""Settings of a run, what is declared before held-out labels are seen, and the grammar of overrides.

Contract: settings are validated here, once, before anything runs; whoever gets a `Settings` asks no further.
Nothing heavy is imported.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="arms declared fields generators loading merging sections set_names settings".split(),
    submod_attrs={
        "arms": "AUGMENTED BASELINES FILTERED REAL SIMULATED TRADITIONAL TRIVIAL parse".split(),
        "declared": "agreement as_yaml differences protocol".split(),
        "fields": "NAME PLAIN_NAME PLAIN_NAME_RULE SettingsError".split(),
        "generators": "ddim_strides".split(),
        "loading": "DEFAULT_PROFILE load".split(),
        "merging": "BASE_PROFILE flat listed nearest parse_overrides".split(),
        "sections": "CohortSettings EngineSettings ExperimentSettings PLAIN PreprocessSettings TuringSettings".split(),
        "set_names": "SET_KINDS SHARED SetName".split(),
        "settings": "STAGE_SECTIONS Settings".split(),
    },
)
