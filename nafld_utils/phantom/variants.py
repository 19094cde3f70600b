"""Variants of the simulator: which effects of steatosis show and how strongly, which scanners, which constants."""

from __future__ import annotations

from dataclasses import dataclass

REVISION = ("phantom_variants", 1)

# What fat changes in an image, and how: the label of a simulated patient shows in nothing else.
EFFECTS = {
    "echogenicity": "the liver is brighter than the kidney's cortex",
    "attenuation": "the liver takes more of the sound, so that deep parts are darker",
    "border_blur": "borders between tissues are blurred",
    "vessel_loss": "vessels are filled and lose their bright walls",
    "diaphragm_loss": "the diaphragm's line is weaker",
    "capsule_loss": "the lines of the capsules and of the body wall are weaker",
}


@dataclass(frozen=True)
class Variant:
    """One way to simulate patients; `VARIANTS` has those that are named.

    Attributes
    ----------
    name : str
    about : str
        What it is, as a sentence for readers.
    effects : tuple of str
        Those of `EFFECTS` that fat has on an image.
    effect_size : float > 0
        Every effect, in decibels or pixels, times this.
    scanner : {"cohort", "wide"}
        Settings as on the frames of the real cohort, or drawn wide for every patient.
    constants : {"all", "no_frames", "literature"}
        All; none measured on a frame of the real cohort; or besides none fitted to its labels.
    """

    name: str
    about: str
    effects: tuple[str, ...] = tuple(EFFECTS)
    effect_size: float = 1.0
    scanner: str = "cohort"
    constants: str = "all"

    @property
    def sets(self) -> tuple[str, ...]:
        """Sets of the table of constants, each over the one before."""
        more = {"all": (), "no_frames": ("no_frames",), "literature": ("no_frames", "literature")}[self.constants]
        return ("cohort", *(("wide",) if more or self.scanner == "wide" else ()), *more)


_NAMED = (
    Variant("full", "All that steatosis changes, on the scanner of the real cohort."),
    Variant("no_effects", "Fat changes nothing in the image, so that the label means nothing.", ()),
    Variant("half", "Every effect of steatosis is half as strong.", effect_size=0.5),
    Variant("double", "Every effect of steatosis is twice as strong.", effect_size=2.0),
    *(
        Variant(f"only_{name}", f"Of all effects of steatosis one alone: {text}.", (name,))
        for name, text in EFFECTS.items()
    ),
    Variant("wide", "Every patient is seen by a scanner with settings of its own, drawn wide.", scanner="wide"),
    Variant(
        "no_frames",
        "Scanners drawn wide, and no constant measured on a frame of the real cohort; those chosen by eye stay.",
        scanner="wide",
        constants="no_frames",
    ),
    Variant(
        "literature",
        "As no_frames, and no constant fitted to labels of the real cohort; fat is drawn evenly in each class.",
        scanner="wide",
        constants="literature",
    ),
)
VARIANTS = {variant.name: variant for variant in _NAMED}
FULL = VARIANTS["full"]
