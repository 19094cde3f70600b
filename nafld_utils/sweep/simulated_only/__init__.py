"""How far one gets without a real image in training: trainings on simulated patients, scored on real ones.

Contract: no real image and no real label enters a training; its steps and settings are declared beforehand
(``params/protocol.yaml``). "No real image in training" is not "no real data": `phantom.provenance` says which constants
of the simulator were measured on frames of the published cohort or fitted to its labels.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="answers changes figures look_units tables units".split(),
    submod_attrs={"answers": "answer build claims shown".split()},
)
