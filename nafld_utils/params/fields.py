"""Kinds of values that settings share, and the error that names a setting."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Precision = Literal["fp32", "tf32", "bf16"]
Features = Literal["inception", "lite0", "lite1", "random"]
# Names that stand in tables and figures: no character that HTML, a spreadsheet or matplotlib gives a meaning.
PLAIN_NAME = re.compile(r"[^\W_][\w .,:;%°/()+-]{0,59}")
PLAIN_NAME_RULE = (
    "a name of at most 60 letters, digits, blanks and . , : ; % / ( ) + - that starts with a letter or digit"
)


def _plain(name: str) -> str:
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(f"expected {PLAIN_NAME_RULE}")
    return name


PlainName = Annotated[str, AfterValidator(_plain)]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # a folder's: with another one and an ending below 255 bytes
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
OTHER_REPORTS = {"compare": "the comparisons of runs", "bench": "the records of `make bench`"}


class SettingsError(ValueError):
    """A setting is unknown, misspelled, mistyped or out of range."""


class Section(BaseModel):
    """A section of the settings: unknown keys are refused, values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
