"""Where work runs: one call that maps a function over independent units, the devices it may use, progress and locks.

Contract: the store of finished units is the queue. A killed worker costs at most the unit in flight, a killed
driver nothing that was finished.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=["devices", "mapping", "precision", "progress_lines", "timer", "workers"],
    submod_attrs={
        "devices": ["compute_threads", "cores", "device", "worker_threads"],
        "mapping": ["UnitError", "in_words", "lacked_memory", "map_units", "once"],
        "precision": ["arithmetic", "autocast"],
        "progress_lines": ["PROGRESS_FILE", "StepMeter", "announce", "is_headless", "notice", "progress"],
        "timer": ["side_by_side", "timed", "wait"],
    },
)
