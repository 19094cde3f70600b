"""What leaves the house: released images and classifiers for a colleague, and scores of a colleague's images.

Contract: an export names and shows no real patient, and is refused where nobody knows whether its images are copies.
Scores of other images change nothing in the run: no threshold, scale or choice comes from them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="cards export prediction".split(),
    submod_attrs={"export": ["write_export"], "prediction": ["write_prediction"]},
)
