"""After how many passes over the data does a model start to copy its patients? Simulated cohorts of several sizes.

For each size one class model of the smoke profile's networks is trained on as many simulated patients, with one crop of
one frame of each, in the product's own stages and for the same passes over their images. Its checkpoints are drawn from
and audited as notebook 03 does.
``--store`` takes all sizes and keeps the table and its figure; without it the two smallest are trained anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import records
import torch

from nafld_utils import artifacts, cohort, ldm, preprocessing
from nafld_utils.ldm import over_training_units
from nafld_utils.ldm.figures import LEVEL

STORED = Path(__file__).parent / "stored" / "copying.csv"
SIZES = (4, 10, 20, 40, 80)  # training patients
BATCH, CHECKED = 8, 6  # images of a step, checkpoints
COLUMNS = ["patients", "step", "passes", "n", "copies", "share", "nominal", "p", "to_training", "to_held_out"]


def trained(n_patients: int, passes: int, images: int) -> pd.DataFrame:
    """`over_training_units.measure`'s rows of a class model of so many training patients, half of a cohort."""
    changes = {"run": f"copying-{n_patients}", "cohort.n_patients": 2 * n_patients, "folds.n_splits": 2}
    changes |= {"cohort.frames_per_patient": 1, "preprocess.crops_per_image": 1, "preprocess.image_size": 128}
    changes |= {"ldm.conditionings": ["class"], "ldm.folds": [0], "ldm.batch_size": BATCH}
    changes |= {"ldm.steps": max(CHECKED, passes * n_patients // BATCH), "ldm.learning_rate": 3e-3}
    changes |= {"ldm.ema_decay": 0.98, "ldm.warmup_steps": 20, "ldm.preview_every": 0}
    changes |= {"ldm.checked": CHECKED, "ldm.checked_images": images, "ldm.checkpoint_every": 1000, "ldm.log_every": 50}
    changes |= {"gan.enabled": False, "sweep.arms": ["class"], "sweep.primary_arm": "class", "engine.mode": "serial"}
    run = artifacts.open_run("smoke", changes)
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    ldm.make_latents(run, ldm.owner(run, "class"), 0)
    ldm.train_ldm(run, "class", 0)
    return ldm.look(run)[COLUMNS]


def measure(options: argparse.Namespace, device: torch.device) -> records.Rows:
    """A row per size; ``broken`` where the fewest patients are not copied, or the most are copied as often."""
    tables: dict[int, pd.DataFrame] = {}
    for n in SIZES if options.store else SIZES[:2]:
        started = time.perf_counter()
        table = tables[n] = trained(n, options.passes, options.images)
        print(table.round(3).to_string(index=False), flush=True)
        row = {"stage": "03", "what": told(table), "per": f"{n} simulated patients, {options.images} images"}
        yield row | {"seconds": time.perf_counter() - started} | broken(tables)
    if options.store:
        table = pd.concat(tables.values(), ignore_index=True)
        artifacts.save_table(STORED, table)
        draw(table, STORED.with_suffix(".svg"))


def told(table: pd.DataFrame) -> str:
    """Between which passes a test first finds copies, with the shares of all checkpoints."""
    first, passes = over_training_units.begins(table), [0.0, *table["passes"]]
    text = "copies never exceed the nominal rate"
    if first is not None:
        text = f"copies exceed the nominal rate within passes {passes[first]:.0f} to {passes[first + 1]:.0f}"
    shares = ", ".join(f"{100 * share:.0f}" for share in table["share"])
    return f"{text}: {shares} % (nominal {100 * table['nominal'].iloc[-1]:.1f} %)"


def broken(tables: dict[int, pd.DataFrame]) -> dict[str, str]:
    """What the sizes so far must show and do not, by `records`' key; empty where they do."""
    *others, last = tables
    if not others:
        missed = over_training_units.begins(tables[last]) is None
        return (
            {"broken": f"{last} patients: expected copies that exceed the nominal rate, found none."} if missed else {}
        )
    most = [tables[n]["share"].iloc[-1] for n in (others[0], last)]
    return {} if most[1] < most[0] else {"broken": f"{last} patients: expected fewer copies than with {others[0]}."}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Share of copies over passes, a line per size; a ring where a test finds it above the nominal rate."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "copying", "svg.fonttype": "none", "font.size": 9}):
        fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for i, (n, part) in enumerate(table.groupby("patients")):
            color = plt.get_cmap("viridis")(0.9 * i / max(1, table["patients"].nunique() - 1))
            label = f"{n} patients (nominal {100 * part['nominal'].iloc[0]:.0f} %)"
            ax.plot(part["passes"], 100 * part["share"], "o-", ms=4, color=color, label=label)
            above = part[part["p"] < LEVEL]
            ax.plot(above["passes"], 100 * above["share"], "o", ms=9, mfc="none", color=color)
        ax.set(xlabel="passes over the training images", ylabel="copies (% of drawn images)", ylim=(-3, 103))
        ax.set_title("Simulated patients; rings: above the nominal rate", fontsize=9)
        ax.legend(frameon=False)
        fig.savefig(path, metadata={"Date": None})
        plt.close(fig)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `records.run`."""
    parser = argparse.ArgumentParser(description="When models start to copy, by the number of patients.")
    parser.add_argument("--store", action="store_true", help="all sizes; keeps the table and the figure")
    parser.add_argument("--passes", type=int, default=480, help="over the training images")
    parser.add_argument("--images", type=int, default=64, help="drawn from each checkpoint")
    return records.run("copying", parser, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
