"""Operations of a training, by which models get equal budgets whatever machine they are trained on. Opens no file.

Contract: counted are convolutions, matrix products and attention, forward and backward alike, two operations a
multiply-add; all else is little beside them. Networks and inputs are on torch's meta device, where nothing is
computed, so that a count is a function of the settings.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

REVISION = ("operations", 1)


class Operations(TorchDispatchMode):
    """Counts what is called within it, in ``total``, by torch's own formulas.

    torch's ``FlopCounterMode`` follows modules as well, and stops at gradients of gradients, which a GAN's penalty has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out
