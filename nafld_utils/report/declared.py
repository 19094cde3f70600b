"""What the front page says of the declared analysis: whether the run agrees with it, and whether its units did.

Contract: see `nafld_utils.report`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from nafld_utils import artifacts, params
from nafld_utils.artifacts import Run
from nafld_utils.report import facts


def declared(run: Run) -> dict[str, Any]:
    """``sentence, units, decisions, settings``: texts for the head of the page, rows for its section on settings."""
    protocol = params.protocol()
    differs = {item.key: item.here for item in params.differences(run.settings)}
    settings = [
        {"name": key, "declared": params.as_yaml(entry.value), "here": differs.get(key, ""), "why": entry.why}
        for key, entry in protocol.settings.items()
    ]
    decisions = [(name, f"{item.decision} Why: {item.why}") for name, item in protocol.decisions.items()]
    return {
        "sentence": params.declared.declared(run.settings),
        "units": _units(run),
        "decisions": decisions,
        "settings": settings,
    }


def _units(run: Run) -> str:
    """Hash of today's declared analysis, and how many units were made under another one or before any was recorded."""
    today = artifacts.declared_hash()
    made = Counter(str(item.get("declared", "")) for item in facts.manifests(run))
    text = [f"The declared analysis has the hash {today}."]
    for found, count in sorted(made.items()):
        units = f"{count} of {made.total()} units {'was' if count == 1 else 'were'} made"
        if not found:
            text.append(f"{units} before the hash was recorded.")
        elif found != today:
            text.append(f"{units} under another declared analysis ({found}): it was changed after that.")
    return " ".join(text)
