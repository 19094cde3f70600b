"""Kinds of values that settings share, and the error that names a setting."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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


def _leaves(annotation: Any) -> set[Any]:
    """The kinds of value that an annotation is made of, without None."""
    if get_origin(annotation) is Annotated:
        return _leaves(get_args(annotation)[0])
    if annotation in (None, type(None), Ellipsis) or get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return set().union(*map(_leaves, get_args(annotation))) or {annotation}


def _is_finite(number: Any) -> bool:
    return number.bit_length() < 1000 if isinstance(number, int) else math.isfinite(number)  # as a float is


class Section(BaseModel):
    """A section of the settings: unknown keys are refused, values stay as they are, and a number is a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would turn into a number or YAML into infinity: yes, 010, '3', inf."""
        kinds = _leaves(cls.model_fields[info.field_name].annotation)
        if kinds and kinds <= {int, float}:
            for leaf in value if isinstance(value, list | tuple) else [value]:
                if leaf is None or (isinstance(leaf, Real) and not isinstance(leaf, bool) and _is_finite(leaf)):
                    continue
                kind = "integer" if kinds == {int} else "number"
                raise ValueError(f"input should be a valid {kind}, in decimal digits and without quotes")
        return value
