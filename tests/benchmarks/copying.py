"""After how many passes over the data does a model start to copy its patients? Simulated cohorts of several sizes.

For each size one class model of the small profile's networks is trained on as many simulated patients, in the product's
own stages, for the same passes over their images. Its checkpoints are drawn from and audited as notebook 03 does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import pandas as pd
import records
import torch

from nafld_utils import artifacts, cohort, ldm, preprocessing
from nafld_utils.ldm import over_training_units

FRAMES, BATCH, SIDE = 2, 16, 128  # frames per patient, images of a step, pixels: the shipped autoencoder's own
COLUMNS = ["patients", "step", "passes", "n", "copies", "share", "nominal", "p", "to_training", "to_held_out"]


def trained(n_patients: int, passes: int, images: int) -> pd.DataFrame:
    """`over_training_units.measure`'s rows of a class model of so many training patients, half of a cohort."""
    steps = max(12, round(passes * n_patients * FRAMES / BATCH))
    changes = {"run": f"copying-{n_patients}", "cohort.n_patients": 2 * n_patients, "folds.n_splits": 2}
    changes |= {
        "preprocess.image_size": SIDE,
        "cohort.frames_per_patient": FRAMES,
        "ldm.conditionings": ["class"],
        "ldm.folds": [0],
    }
    changes |= {"ldm.steps": steps, "ldm.batch_size": BATCH, "ldm.learning_rate": 2e-3, "ldm.ema_decay": 0.98}
    changes |= {"ldm.checked": 6, "ldm.checked_images": images, "ldm.preview_every": 0, "ldm.log_every": 50}
    changes |= {"ldm.checkpoint_every": 500, "gan.enabled": False, "engine.mode": "serial", "sweep.arms": ["class"]}
    changes |= {"sweep.primary_arm": "class"}
    run = artifacts.open_run("smoke", changes)
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    ldm.make_latents(run, ldm.owner(run, "class"), 0)
    ldm.train_ldm(run, "class", 0)
    return ldm.look(run).assign(patients=n_patients)


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """A row per size; ``broken`` where the fewest patients are not copied, or the most are copied as often."""
    last = {}
    for n in options.patients:
        started = time.perf_counter()
        table = trained(n, options.passes, options.images)
        print(table[COLUMNS].round(3).to_string(index=False), flush=True)
        first, end = over_training_units.begins(table), table.iloc[-1]
        last[n] = end["share"] - end["nominal"]
        what = "copies never exceed the nominal rate"
        if first is not None:
            after = f"after {table['passes'].iloc[first - 1]:.0f}" if first else "within the first"
            what = f"copies exceed the nominal rate {after} to {table['passes'].iloc[first]:.0f} passes"
        shares = ", ".join(f"{share:.0%}" for share in table["share"])
        per = f"{n} patients, {end['passes']:.0f} passes; shares {shares}; nominal {end['nominal']:.1%}"
        row = {"stage": "03", "what": what, "per": per, "seconds": time.perf_counter() - started}
        if n == min(options.patients) and first is None:
            row["broken"] = f"{n} patients: expected copies that exceed the nominal rate, found none."
        if n == max(options.patients) and len(last) > 1 and not last[n] < last[min(options.patients)]:
            row["broken"] = f"{n} patients: expected fewer copies beyond the nominal rate than with fewer patients."
        yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="When models start to copy, by the number of patients.")
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 10, 20, 40, 80], help="training patients")
    parser.add_argument("--passes", type=int, default=1000, help="over the training images")
    parser.add_argument("--images", type=int, default=64, help="drawn from each checkpoint")
    return records.run("copying", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
