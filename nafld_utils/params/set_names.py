"""Names of synthetic sets, in tables and folders: ``[null_|untrained_|gaussian_]generator[_balanced]``.

Contract: pure functions of a name; nothing else takes one apart or puts one together.
"""

from __future__ import annotations

from dataclasses import dataclass

# Prefix of a set's name, to the kind of its unit: drawn as asked, with every condition dropped, from untrained weights,
# from Gaussian latents.
SET_KINDS = {
    "": "synthetic",
    "null_": "synthetic_null",
    "untrained_": "synthetic_untrained",
    "gaussian_": "synthetic_gaussian",
}
BALANCED = "_balanced"
SHARED = -1  # fold of a set that every fold shares


@dataclass(frozen=True)
class SetName:
    """A set's name, taken apart.

    Attributes
    ----------
    conditioning : str
        Diffusion model, or a baseline such as ``gan``.
    balance : {"none", "oversample"}
        Whether its training batches hold both classes alike.
    kind : str
        A value of `SET_KINDS`.

    Examples
    --------
    >>> SetName.of("untrained_class")
    SetName(conditioning='class', balance='none', kind='synthetic_untrained')
    >>> str(SetName("semantic", "oversample"))
    'semantic_balanced'
    """

    conditioning: str
    balance: str = "none"
    kind: str = "synthetic"

    @classmethod
    def of(cls, name: str) -> SetName:
        """Parts of a name."""
        prefix = next((known for known in SET_KINDS if known and name.startswith(known)), "")
        model = name.removeprefix(prefix)
        conditioning = model.removesuffix(BALANCED)
        return cls(conditioning, "none" if conditioning == model else "oversample", SET_KINDS[prefix])

    def __str__(self) -> str:
        prefix = next(prefix for prefix, kind in SET_KINDS.items() if kind == self.kind)
        return f"{prefix}{self.conditioning}{'' if self.balance == 'none' else BALANCED}"

    @property
    def is_balanced(self) -> bool:
        """Whether its model was trained on batches of both classes alike."""
        return self.balance != "none"

    @property
    def has_labels(self) -> bool:
        """Whether an image has a class: Gaussian latents have the moments of all training images."""
        return self.kind != "synthetic_gaussian"
