"""Studies by simulation: how often a method is right where the truth is known.

Contract: a study is a list of cells (settings of the simulation) and one function that simulates a cell once and says
what a method found there. ``--store`` makes the whole study in blocks, units below ``artifacts/<part>``, so that a run
that was stopped goes on where it was, and writes one table. Without it a part of the study is simulated anew with
other random numbers, for ``--minutes``, and compared with the stored table: a share that differs by more than chance
(Fisher's exact test or Welch's t, Holm-adjusted over the table, 1 %) fails the benchmark. Everything is simulated.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import records
import torch

from nafld_utils import artifacts, engine
from nafld_utils.artifacts import Run, Unit

STORED = Path(__file__).parent / "stored"
ALPHA = 0.01  # of the comparison with the stored table, over all its rows


@dataclass(frozen=True)
class Study:
    """What is simulated.

    `once(cell, rng)` returns outcomes of one repetition by name: a bool is counted as a share, a number is averaged,
    and None, where the method gave no answer, is left out of both. `modules`: keys of the revisions that it depends on.
    `script` is the name of the module that offers it as ``STUDY``, so that workers can import it; `folder` holds its
    table, in the package where a notebook shows it.
    """

    script: str
    about: str
    cells: Sequence[Mapping[str, Any]]
    once: Callable[[Mapping[str, Any], np.random.Generator], Mapping[str, bool | float | None]]
    modules: Sequence[str]
    repetitions: int = 2000
    block: int = 100
    folder: Path = STORED

    @property
    def stored(self) -> Path:
        """Where its table is kept."""
        return self.folder / f"{self.script}.csv"


# ---------------------------------------------------------------- blocks of repetitions


def block_unit(run: Run, script: str, cell: Mapping[str, Any], first: int, n: int, seed: int) -> Unit:
    """Unit of `n` repetitions of a cell, from the `first` on."""
    settings = {"cell": dict(cell), "first": first, "n": n, "seed": seed}
    name = "_".join(f"{key}-{value}" for key, value in cell.items()).replace(" ", "-")
    return run.unit(script, f"{name}_seed{seed}_{first}", settings=settings, modules=list(_study(script).modules))


def make_block(run: Run, script: str, cell: Mapping[str, Any], first: int, n: int, seed: int) -> None:
    """Simulate the repetitions of a block; each has its own random numbers, so that the block's size changes none."""
    unit, study = block_unit(run, script, cell, first, n, seed), _study(script)
    place = list(study.cells).index(cell)
    found = [dict(study.once(cell, np.random.default_rng([seed, place, first + i]))) for i in range(n)]
    with unit.writing() as folder:
        artifacts.save_table(folder / "outcomes.csv", pd.DataFrame(found))


@functools.cache
def _study(script: str) -> Study:
    return importlib.import_module(script).STUDY


def simulate(run: Run, study: Study, n: int, seed: int) -> pd.DataFrame:
    """Outcomes of `n` repetitions of every cell, one row each: its columns and those of `Study.once`."""
    starts = range(0, n, study.block)
    tasks = [
        {
            "run": run,
            "script": study.script,
            "cell": cell,
            "seed": seed,
            "first": i,
            "n": min(study.block, n - i),
        }
        for i in starts
        for cell in study.cells
    ]
    engine.map_units(make_block, tasks, run.settings.engine, "blocks of repetitions", unit_of=block_unit)
    parts = [block_unit(**task).load_table("outcomes.csv").assign(**task["cell"]) for task in tasks]
    return pd.concat(parts, ignore_index=True)


def summarise(outcomes: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per cell and outcome: the cell, ``outcome, kind, n, value, low, high, sd``.

    `kind` is ``share`` (Wilson's 95 % interval over repetitions) or ``mean`` (normal); `n` leaves out repetitions
    without an answer.
    """
    from statsmodels.stats.proportion import proportion_confint

    rows = []
    for key, part in outcomes.groupby(list(keys), sort=False, dropna=False):
        cell = dict(zip(keys, key, strict=True))
        for outcome in part.columns.difference(list(keys), sort=False):
            known = part[outcome].dropna()
            n, share = len(known), known.isin([True, False]).all()
            value = float(known.astype(float).mean()) if n else float("nan")
            sd = float(known.astype(float).std(ddof=1)) if n > 1 else float("nan")
            half = 1.96 * sd / np.sqrt(n) if n > 1 else float("nan")
            low, high = value - half, value + half
            if share and n:
                low, high = proportion_confint(int(known.sum()), n, method="wilson")
            kind = "share" if share else "mean"
            rows.append(
                {**cell, "outcome": outcome, "kind": kind, "n": n, "value": value, "low": low, "high": high, "sd": sd}
            )
    return pd.DataFrame(rows)


def differing(fresh: pd.DataFrame, stored: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Sentences on rows of `summarise` in which a repeated part differs from the stored study by more than chance."""
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    both = fresh.merge(stored, on=[*keys, "outcome"], suffixes=("", "_stored"))
    if len(both) < len(fresh):
        return [f"expected {len(fresh)} rows in the stored table, found {len(both)}; run the whole study with --store"]
    p = []
    for row in both.itertuples():
        if row.kind == "share":
            table = [
                [round(v * n), n - round(v * n)] for v, n in ((row.value, row.n), (row.value_stored, row.n_stored))
            ]
            p.append(stats.fisher_exact(np.nan_to_num(table)).pvalue)
        else:
            sides = (row.value, row.sd, row.n), (row.value_stored, row.sd_stored, row.n_stored)
            p.append(stats.ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)
    refused = multipletests(np.nan_to_num(p, nan=1.0), ALPHA, "holm")[0]
    return [
        f"{', '.join(f'{key} {row[key]}' for key in keys)}: {row['outcome']} is {row['value']:.3f} in {row['n']}"
        f" repetitions, stored {row['value_stored']:.3f} in {row['n_stored']}"
        for row in both[refused].to_dict("records")
    ]


# ---------------------------------------------------------------- the command


def measure(study: Study, options: argparse.Namespace, device: torch.device) -> records.Rows:
    """Make the whole study and store its table, or repeat a part and compare; yields one row."""
    run = artifacts.open_run("demo", {"run": study.script.replace("_", "-"), "engine.mode": options.mode})
    keys, started = list(study.cells[0]), time.perf_counter()
    if options.store:
        n, seed = options.repetitions or study.repetitions, 0
        outcomes = simulate(run, study, n, seed)
    else:
        seed = options.seed or int(time.time())
        first = simulate(run, study, study.block, seed)  # says how long a block takes
        each = time.perf_counter() - started
        n = study.block * max(1, int(60 * options.minutes / each))
        outcomes = simulate(run, study, n, seed) if n > study.block else first
    table, broken = summarise(outcomes, keys), []
    print(table.drop(columns=["sd", "kind"]).round(3).to_string(index=False))
    if options.store:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        artifacts.save_table(options.result, table)
    else:
        broken = differing(table, artifacts.load_table(options.result), keys)
    per = (
        f"{len(study.cells)} cells, {n} repetitions each{'' if options.store else f', seed {seed}, against the stored'}"
    )
    row = {"stage": "study", "what": study.about, "per": per, "seconds": time.perf_counter() - started}
    yield row | ({"broken": "; ".join(broken)} if broken else {})


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Command line of a study, see `records.run`."""
    parser = argparse.ArgumentParser(description=study.about)
    parser.add_argument("--store", action="store_true", help="make the whole study and store its table")
    parser.add_argument("--repetitions", type=int, help=f"of each cell with --store (default {study.repetitions})")
    parser.add_argument(
        "--minutes", type=float, default=10 / 7, help="how long to repeat a part: ten minutes for all seven studies"
    )
    parser.add_argument("--seed", type=int, help="of the repeated part; by default another one each time")
    parser.add_argument("--mode", choices=("serial", "local"), default="local")
    parser.add_argument("--result", type=Path, default=study.stored, help="the stored table")
    return records.run(study.script, parser, functools.partial(measure, study), arguments)
