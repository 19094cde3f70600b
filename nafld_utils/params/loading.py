"""A run's settings from a profile: ``params/paper.yaml``, the profile, and the overrides, merged and validated.

Contract: pure but for reading ``params/*.yaml``; a bad key or value raises `SettingsError` with one sentence that
names the key, what was expected and what was found, before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nafld_utils.params import declared, merging
from nafld_utils.params.fields import SettingsError
from nafld_utils.params.merging import BASE_PROFILE, merge, nearest, nest, parse_overrides, read_yaml
from nafld_utils.params.settings import Settings, validated

DEFAULT_PROFILE = "demo"  # of make and of the notebooks as committed


def load(profile: str, overrides: str | Iterable[str] | Mapping[str, Any] = ()) -> Settings:
    """Merge ``paper.yaml``, the profile and the overrides, and validate the result.

    Parameters
    ----------
    profile : str
        Name of a file in ``params/`` without its ending: smoke, demo, cpu or paper.
    overrides : str, iterable of str, or mapping
        As `parse_overrides` reads them.

    Returns
    -------
    Settings
        Frozen, complete.

    Raises
    ------
    SettingsError
        Unknown profile; unknown, misspelled, mistyped or out-of-range key, in the declared analysis too. One sentence
        names the key.

    Examples
    --------
    >>> load("smoke", ["sweep.n_seeds=3"]).sweep.n_seeds
    3
    """
    names = sorted(path.stem for path in merging.PARAMS_DIR.glob("*.yaml") if path.stem != declared.PROTOCOL)
    if profile not in names:
        raise SettingsError(f"profile {profile!r} is not one of {', '.join(names)}{nearest(profile, names)}.")
    merged = read_yaml(merging.PARAMS_DIR / f"{BASE_PROFILE}.yaml")
    if profile != BASE_PROFILE:
        merged = merge(merged, read_yaml(merging.PARAMS_DIR / f"{profile}.yaml"), f"params/{profile}.yaml")
    for key, value in parse_overrides(overrides).items():
        merged = merge(merged, nest(key, value), "the overrides")
    declared.protocol()  # a fault in it stops a run before it starts, not when the first unit is sealed
    return validated(merged, profile, f"profile {profile}", f"params/{profile}.yaml or in SET")
