"""Profiles and overrides as one nested mapping; the grammar of overrides: ``key=value`` pairs, values in YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ValidationError

from nafld_utils.params.fields import SettingsError

PARAMS_DIR = Path(__file__).resolve().parents[2] / "params"
BASE_PROFILE = "paper"


class _Values(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's gives the same values ten times faster
    """YAML whose numbers are decimal, and whose other words are text: no ``yes``, ``010``, ``12:00:00`` or date.

    Source: the core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#103-core-schema, without its octal, hexadecimal
    and infinite numbers; a number with zeros in front is text too, and so no number.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without a key twice, of which YAML would keep the last."""
        out = super().construct_mapping(node, deep)
        if len(out) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.MarkedYAMLError(problem=f"{twice} twice", problem_mark=node.start_mark)
        return out


def _decimal(loader: Any, node: yaml.ScalarNode) -> int:
    """A whole number, also where its tag is written: YAML 1.1 would read ``010`` as eight."""
    if not re.fullmatch(_INT, node.value):
        raise yaml.MarkedYAMLError(problem=f"{node.value}, no decimal number", problem_mark=node.start_mark)
    return int(node.value)


_INT = r"[-+]?(0|[1-9][0-9]*)"
_Values.add_constructor("tag:yaml.org,2002:int", _decimal)
for _tag, _text, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Values.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"({_text})\Z"), _first)
_KEY = r"[A-Za-z_][\w.]*\s*="
_OVERRIDE = re.compile(
    rf"""\s*(?P<key>[A-Za-z_][\w.]*)\s*=\s*
    (?P<value>"(?:\\.|[^"\\])*" | '(?:''|[^'])*' | .*?)
    (?= \s+{_KEY} | \s*$ )""",
    re.VERBOSE | re.DOTALL,
)


def parse_overrides(overrides: str | Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value of overrides, however they are given, in their order.

    Parameters
    ----------
    overrides : str, iterable of str, or mapping
        Text of ``SET``: ``key=value`` pairs apart from each other by blanks, values in YAML, so they may hold blanks
        too; several such texts; or a mapping, nested or with dotted keys.

    Raises
    ------
    SettingsError
        Something is not ``key=value``, a key is there twice, or a value is not YAML.

    Examples
    --------
    >>> parse_overrides("ldm.folds=[0, 1] turing.ratings='a b.csv'")
    {'ldm.folds': [0, 1], 'turing.ratings': 'a b.csv'}
    """
    if isinstance(overrides, Mapping):
        return flat(overrides)
    text = overrides if isinstance(overrides, str) else " ".join(overrides)
    pairs: dict[str, Any] = {}
    position = 0
    while text[position:].strip():
        found = _OVERRIDE.match(text, position)
        if not found:
            raise SettingsError(f'SET: expected pairs such as "sweep.n_seeds=5", found {text[position:].strip()!r}.')
        if found["key"] in pairs:
            raise SettingsError(f"SET: expected every key once, found {found['key']} twice; remove one of them.")
        try:
            pairs[found["key"]] = read_value(found["value"])
        except ValueError as error:
            raise SettingsError(f"SET: the value of {found['key']} {error}; quote it.") from None
        position = found.end()
    return flat(pairs)


def read_value(text: str) -> Any:
    """Value of one setting; a ValueError says why YAML cannot read it, or would read a part of it only."""
    try:
        node, value = yaml.compose(text, _Values), yaml.load(text, _Values)
    except yaml.YAMLError:
        raise ValueError(f"is not YAML, found {text!r}") from None
    rest = text[node.end_mark.index if node else 0 :].strip()
    if rest:
        raise ValueError(f"is cut by YAML, which takes {rest!r} for a comment, found {text!r}")
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys, in order; `engine.slurm` stays a mapping."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "engine.slurm":
            out.update(flat(value, f"{name}."))
        else:
            out[name] = value
    return out


def read_yaml(path: Path) -> dict[str, Any]:
    """Sections of a YAML file; `SettingsError` names the file and the line that is none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Values) or {}
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise SettingsError(f"{path.name}: expected YAML, found {place}; correct that line.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path.name}: expected sections with keys, found {type(values).__name__}.")
    return values


def nest(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as nested sections."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merge(base: dict[str, Any], new: Mapping[Any, Any], origin: str, prefix: str = "") -> dict[str, Any]:
    """`base` with the values of `new`; a key that `base` lacks is refused, since paper.yaml is complete."""
    out = dict(base)
    for key, value in new.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise SettingsError(f"{name} in {origin} is not a setting{nearest(name, _every_key())}.")
        if isinstance(base[key], dict) and name != "engine.slurm":
            if not isinstance(value, Mapping):
                raise SettingsError(f"{name} in {origin}: expected a section with keys, found {value!r}.")
            out[key] = merge(base[key], value, origin, f"{name}.")
        else:
            out[key] = value
    return out


def _every_key() -> list[str]:
    complete = read_yaml(PARAMS_DIR / f"{BASE_PROFILE}.yaml")
    return [*flat(complete), *complete]


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a sentence that names the nearest of `names`; empty where none is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; the nearest is {close[0]}" if close else ""


def listed(words: Iterable[str]) -> str:
    """Words as a sentence has them.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def sentence(error: ValidationError, source: str, place: str) -> str:
    """The first fault of a validation in one sentence: key, what was expected, what was found, where to correct it."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = "" if isinstance(first["input"], dict | BaseModel) else f", found {first['input']!r}"
    more = f" ({error.error_count() - 1} more settings are wrong)" if error.error_count() > 1 else ""
    return f"setting {key} of {source}: {message}{found}; correct it in {place}{more}."
