"""What the demo promises of its conditions, asked of its stored numbers: ``python tests/demo_promises.py``.

Exit status 1 and a sentence a broken promise: a condition has no effect, or an effect is there without it.
"""

import sys

from nafld_utils import artifacts
from nafld_utils.sampling import condition_units

AUC = "AUC of a classifier that saw real images only"
OWN = "own minus shuffled condition"


def broken(summary):
    """Sentences on what ``summary.csv`` of `stages.conditions` does not hold; empty where it holds all."""
    drawn, null = (summary[summary["drawn_with"] == how] for how in ("condition", "no condition"))
    is_class = (drawn["effect"] == AUC) & (drawn["conditioning"] == "class")
    is_semantic = drawn["effect"].str.endswith(OWN) & (drawn["conditioning"] == "semantic")
    found = []
    for name, rows, bound in (
        ("AUC of the class model's images", drawn[is_class], 0.5),
        ("gain of the semantic model's maps", drawn[is_semantic], 0.0),
    ):
        if not len(rows):
            found.append(f"{name}: expected rows drawn with their condition, found none.")
        for row in rows[~(rows["low"] > bound)].itertuples():
            found.append(
                f"{name} ({row.effect}) over {row.over}: expected a lower bound above {bound}, found {row.low}."
            )
    if set(null["conditioning"]) != {"semantic", "class"}:
        found.append(f"null condition: expected both models, found {sorted(set(null['conditioning']))}.")
    outside = ~((null["low"] <= null["expected_without"]) & (null["expected_without"] <= null["high"]))
    for row in null[outside].itertuples():
        interval = f"[{row.low}, {row.high}]"
        found.append(
            f"{row.conditioning} model without condition, {row.effect} over {row.over}: expected an interval that holds"
            f" {row.expected_without}, found {interval}."
        )
    return found


if __name__ == "__main__":
    lines = broken(condition_units.unit_of(artifacts.open_run("demo")).load_table("summary.csv"))
    print("\n".join(lines) or "demo: conditions matter, and without them no effect is left")
    sys.exit(bool(lines))
