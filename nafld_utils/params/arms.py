"""Names of the sweep's arms: which images a training set is made of.

Contract: pure functions of a name. An arm is ``real``, or one generator or two joined by ``+`` (half of r each), with
``_matched`` where the images added are drawn in the class mix of the real training images, ``_only`` where no real
image is among the training images, and ``_first`` where a training sees the added images alone first and real ones
alone after. Nothing else reads an arm's name.

Notes
-----
At equal r the arms differ in class mix: semantic images inherit the cohort's (31/69 in the paper), class images are
half and half. Choice: the matched arm brings a generator to the mix of the real images, not the real ones to 50/50,
because then the arm, real images alone and the traditional arm differ in nothing but where images come from.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from nafld_utils.params.merging import nearest

REVISION = ("arms", 1)

REAL, TRADITIONAL, TRIVIAL, SIMULATED, FILTERED = "real", "traditional", "trivial", "simulated", "filtered"
AUGMENTED = (TRADITIONAL, TRIVIAL)  # real images, changed
BASELINES = ("gan", SIMULATED)  # generators beside the diffusion models, each a section of the settings with `enabled`
# choice: two generators are enough to ask whether the two models complement each other
GENERATORS = (*AUGMENTED, "semantic", "class", *BASELINES, FILTERED)
MATCHED, ONLY, FIRST = "_matched", "_only", "_first"


@dataclass(frozen=True)
class Arm:
    """What an arm's training set holds: its generators (none: real images alone), and how they are mixed in."""

    name: str
    generators: tuple[str, ...]  # each with an equal part of r
    with_real: bool = True  # the fold's real training images are in the set
    matched: bool = False  # images added are drawn in the class mix of the real training images
    first: bool = False  # a training's first steps are on the added images alone, the others on real ones alone

    @property
    def models(self) -> tuple[str, ...]:
        """Generators that make new images: all but changes of real ones."""
        return tuple(name for name in self.generators if name not in AUGMENTED)

    def used(self, use: str) -> str:
        """The arm's name where its images are used as asked: ``mix``, or ``pretrain`` where a real image follows."""
        return f"{self.name}{FIRST}" if use == "pretrain" and self.generators and self.with_real else self.name


def parse(name: str) -> Arm:
    """What an arm's name stands for.

    Raises
    ------
    ValueError
        The name is not an arm's; the nearest is named.

    Examples
    --------
    >>> parse("semantic+class").generators
    ('semantic', 'class')
    >>> parse("class_matched_only")
    Arm(name='class_matched_only', generators=('class',), with_real=False, matched=True, first=False)
    """
    if name == REAL:
        return Arm(name, ())
    stem = name.removesuffix(ONLY)
    stem = stem if stem != name else name.removesuffix(FIRST)
    generators = tuple(stem.removesuffix(MATCHED).split("+"))
    # one order of the two, or the same training would have two names
    if len(generators) > 2 or list(generators) != [known for known in GENERATORS if known in generators]:
        raise ValueError(
            f"arm {name!r}: expected real, or one or two of {', '.join(GENERATORS)} joined by + in this order, with"
            f" {MATCHED}, {ONLY} or {FIRST} behind, found no such arm{nearest(name, every(), 0.3)}."
        )
    return Arm(name, generators, not name.endswith(ONLY), stem.endswith(MATCHED), name.endswith(FIRST))


def every() -> list[str]:
    """Every arm's name."""
    stems = [*GENERATORS, *("+".join(pair) for pair in itertools.combinations(GENERATORS, 2))]
    ends = [f"{matched}{last}" for matched in ("", MATCHED) for last in ("", ONLY, FIRST)]
    return [REAL, *(f"{stem}{suffix}" for stem in stems for suffix in ends)]
