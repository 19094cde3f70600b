"""``make dry-run``: how many trainings the sweep has, what of them is done, and the time the rest takes here.

Nothing is trained and nothing is written. Where the stages before the sweep have not run, what is done cannot be
known; the trainings are then counted from the settings alone, and the reason is printed.
"""

from __future__ import annotations

import argparse

import pandas as pd

from nafld_utils import graph, sweep, timer
from nafld_utils.artifacts import Run
from nafld_utils.stages import sweep as stage


def tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Experiments (`sweep.experiments`), the plan by network (`sweep.plan`), and why nothing is known to be done."""
    try:
        return stage.experiments(run), stage.dry_run(run), ""
    except ValueError as error:
        status = sweep.grid(run.settings).assign(state="not trained yet", seconds=float("nan"))
        networks = status[["backbone", "freeze"]].drop_duplicates().itertuples(index=False, name=None)
        seconds = {key: stage.time_training(run, *key)[0] for key in networks}
        plan = sweep.plan(status, seconds, timer.side_by_side(run.settings.engine))
        return sweep.experiments(run.settings, status), plan, str(error)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="What the sweep would train, and how long it would take here.")
    for name in ("profile", "run", "set", "data"):
        parser.add_argument(f"--{name}", default="demo" if name == "profile" else "")
    given = parser.parse_args()
    run, _ = graph.open_run(given.profile, given.run, given.set, given.data)
    experiments, plan, reason = tables(run)
    print(experiments.to_string(index=False))
    print()
    print(plan.round(2).to_string(index=False))
    if reason:
        print(f"\nCounted from the settings alone, without the minutes of features and scores: {reason}")


if __name__ == "__main__":
    main()
