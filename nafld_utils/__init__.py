"""Synthetic liver ultrasounds for a classifier of fatty liver: do they help, are they any good, are they copies?

The package under the eight notebooks of this study: one room (a folder) per notebook, and below them the rooms that
these share. A room's ``__init__.py`` is its face, the names that notebooks and other rooms call. Rooms import
downwards, in the order that ``pyproject.toml`` holds for import-linter. A notebook opens its run with `open_run`.

This module uses the standard library alone: ``doctor.py`` is run before anything is installed.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "open_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nafld_utils.artifacts import open_run

    return open_run
