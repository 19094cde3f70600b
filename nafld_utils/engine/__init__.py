"""Where work runs: one call that maps a function over independent units, the devices it may use, progress and locks.

Contract: the store of finished units is the queue. A killed worker costs at most the unit in flight, a killed
driver nothing that was finished.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="cluster devices mapping precision progress_lines timer workers".split(),
    submod_attrs={
        "devices": "Later THREAD_VARIABLES collect_seldom cores device gpus keep_strings sent use_threads".split(),
        "mapping": "UnitError in_words lacked_memory map_kinds map_units once".split(),
        "precision": "arithmetic autocast in_full".split(),
        "progress_lines": "PROGRESS_FILE StepMeter announce is_headless notice progress".split(),
        "timer": "side_by_side timed wait".split(),
    },
)
