"""What the trainings without a real image are chosen by: simulated patients on other scanners, and no real one.

Trains on a simulated cohort of the declared variant, and scores the patients of a cohort of the variant ``wide`` every
50 steps, with the BatchNorm layers of the tail trained and frozen. Prints the AUC by patient of every look. The choice
is what stands in ``params/protocol.yaml``: `simulated_only.norm` and `simulated_only.steps`::

    python tests/benchmarks/simulated_only_choice.py --image-size 160
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import engine, networks, statistics, sweep
from nafld_utils.artifacts import Run, open_run, unit_seed
from nafld_utils.sweep.simulated_only import units

OTHER = ("wide", 1000)  # variant and number of the cohort that is scored; no training cohort has so high a number


def looks(run: Run, norm: str, seed: int) -> pd.DataFrame:
    """AUC of the other scanners' patients at each look of one training: ``norm, seed, step, auc``."""
    chosen, own_how, rows = run.settings.sweep, run.settings.simulated_only, []
    made, other = units.cohort_unit(run, units.main_variant(run), seed), units.cohort_unit(run, *OTHER)
    labels, table = made.load_table("images.csv")["label"].to_numpy(), other.load_table("images.csv")
    whole = np.zeros(len(table), np.int64)  # the first view is the whole crop
    held_out = sweep.Views(other.load_array("views.npy"), table["label"].to_numpy(), np.arange(len(table)), whole)
    decoder, device = networks.Decoder(chosen.backbones[0]), engine.device(run.settings.engine)

    def look(step: int, tail: Any) -> None:
        if step % 50 == 0:
            score = sweep.predict(tail, held_out, decoder, device)
            patients = table.assign(score=score).groupby("patient_id")[["label", "score"]].mean()
            rows.append((norm, seed, step, statistics.auc(patients["label"].astype(int), patients["score"])))

    own = unit_seed(run.settings.seed, "choice", seed)
    options = sweep.Options(own_how.steps, chosen.batch_size, own_how.learning_rate, chosen.weight_decay, norm=norm)
    tail = sweep.fresh_tail(units.pretrained(run), own)
    parts = [sweep.Views(made.load_array("views.npy"), labels, np.arange(len(labels)))]
    sweep.train_tail(tail, parts, options, own, decoder, device, look)
    return pd.DataFrame(rows, columns=["norm", "seed", "step", "auc"])


def main() -> None:
    """Print the table of all looks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2, help="trainings, each on a simulated cohort of its own")
    parser.add_argument("--norms", nargs="+", default=["train", "frozen"], choices=("train", "frozen"))
    given = parser.parse_args()
    named = {"run": "simulated-only-choice", "preprocess.image_size": given.image_size}
    run = open_run("cpu", {**named, "simulated_only.steps": given.steps})
    engine.use_threads(run.settings.engine.threads)
    cohorts = [(units.main_variant(run), seed) for seed in range(given.seeds)]
    tasks = [{"run": run, "variant": variant, "cohort": cohort} for variant, cohort in [*cohorts, OTHER]]
    engine.map_units(units.make_cohort, tasks, run.settings.engine, "simulated cohorts", unit_of=units.cohort_unit)
    found = pd.concat([looks(run, norm, seed) for seed in range(given.seeds) for norm in given.norms])
    print(found.pivot_table(index="step", columns=["norm", "seed"], values="auc").round(3).to_string())


if __name__ == "__main__":
    main()
