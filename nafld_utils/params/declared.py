"""The declared analysis, ``params/protocol.yaml``: what is decided before held-out labels are seen."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from nafld_utils.params import merging
from nafld_utils.params.fields import Name, Section, SettingsError
from nafld_utils.params.merging import BASE_PROFILE, flat, listed, merge, nearest, nest, read_yaml, sentence
from nafld_utils.params.settings import Settings, validated

PROTOCOL = "protocol"  # params/protocol.yaml, the declared analysis: no profile


class Decision(Section):
    """What is decided beforehand and no setting holds, in words."""

    decision: Annotated[str, Field(min_length=1)]
    why: Annotated[str, Field(min_length=1)]


class DeclaredSetting(Section):
    """The value that a setting has in the declared analysis."""

    value: Any
    why: Annotated[str, Field(min_length=1)]


class Protocol(Section):
    """The declared analysis, ``params/protocol.yaml``: decisions by name, settings by dotted key."""

    decisions: dict[Name, Decision]
    settings: dict[str, DeclaredSetting]

    def decided(self) -> dict[str, Any]:
        """What its hash covers: decisions and values without their reasons."""
        return {
            "decisions": {name: item.decision for name, item in self.decisions.items()},
            "settings": {key: item.value for key, item in self.settings.items()},
        }


class Difference(NamedTuple):
    """A setting whose value is another than the declared one; values as in YAML."""

    key: str
    declared: str
    here: str
    why: str


def protocol() -> Protocol:
    """The declared analysis; every value as the settings hold it (e.g. 1 as 1.0).

    Raises
    ------
    SettingsError
        ``params/protocol.yaml`` is missing or no YAML, lacks a reason, or names an unknown setting or a wrong value.
    """
    return _protocol(merging.PARAMS_DIR)


@functools.cache
def _protocol(folder: Path) -> Protocol:
    place = f"params/{PROTOCOL}.yaml"
    try:
        read = Protocol.model_validate(read_yaml(folder / f"{PROTOCOL}.yaml"))
    except FileNotFoundError:
        raise SettingsError(f"{place}: expected the declared analysis, found no file; restore it.") from None
    except ValidationError as error:
        raise SettingsError(sentence(error, "the declared analysis", place)) from None
    merged = read_yaml(folder / f"{BASE_PROFILE}.yaml")
    known = flat(merged)
    for key, entry in read.settings.items():
        if key not in known:
            raise SettingsError(f"{key} in {place} is not a setting{nearest(key, known)}.")
        merged = merge(merged, nest(key, entry.value), place)
    valid = validated(merged, BASE_PROFILE, "the declared analysis", place).by_key()
    settings = {key: DeclaredSetting(value=valid[key], why=entry.why) for key, entry in read.settings.items()}
    return Protocol(decisions=read.decisions, settings=settings)


def differences(settings: Settings) -> list[Difference]:
    """Settings whose values are not those of the declared analysis, in its order; none where a run is as declared."""
    mine = settings.by_key()
    return [
        Difference(key, as_yaml(entry.value), as_yaml(mine[key]), entry.why)
        for key, entry in protocol().settings.items()
        if mine[key] != entry.value
    ]


def agreement(settings: Settings, most: int = 5, rest: str = "the front page's section Settings lists them") -> str:
    """Whether settings are those of the declared analysis, in a sentence that names the first `most` differences.

    `rest` says where the others stand.
    """
    found = differences(settings)
    if not found:
        return f"The analysis is as declared (params/{PROTOCOL}.yaml)."
    named = [f"{item.key} ({item.declared} declared, {item.here} here)" for item in found[:most]]
    more = len(found) - len(named)
    if more:
        named.append(f"{more} more setting{'s' if more > 1 else ''}: {rest}")
    return f"This run differs from the declared analysis (params/{PROTOCOL}.yaml) in {listed(named)}."


def as_yaml(value: Any) -> str:
    """A setting's value for reading, as in YAML, e.g. ``[0.5, 1.0]`` or ``null``."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
