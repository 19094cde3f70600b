"""Forty trials that take a moment each, through the real engine and the real store; each writes down what it does.

``python tests/faults/toy_sweep.py STORE N_WORKERS`` ends the sweep in a process of its own, to be killed by a test.
"""

import collections
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from nafld_utils import engine, params, sweep
from nafld_utils.artifacts import unit_seed
from nafld_utils.sweep import trial_grid, trial_store

N_TRIALS, N_IMAGES = 40, 6


def trials():
    """A grid of 40 trials with their hashes."""
    rows = []
    for seed in range(N_TRIALS // 4):
        for fold in range(2):
            for arm, rate in (("real", 0.0), ("semantic", 0.5)):
                own = {"backbone": "net", "arm": arm, "rate": rate, "fold": fold, "seed": seed}
                rows.append({name: own.get(name, "plain") for name in sweep.TRIAL_COLUMNS})
    keys = [trial_grid.trial_hash(row, {"steps": 1}) for row in rows]
    return pd.DataFrame(rows).assign(hash=keys)


def note(store, what, key):
    """Add a line to the sweep's diary, whole even where several processes write: ``what key pid``."""
    line = f"{what} {key} {os.getpid()}\n".encode()
    handle = os.open(store / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line)
    os.close(handle)


def train(store, seconds, **trial):
    """Make one trial's scores, a function of its hash."""
    store, key = Path(store), trial["hash"]
    if trial_store.is_done(store, key):
        return
    note(store, "began", key)
    time.sleep(seconds)
    while (store / "hold").exists():  # until the test lets it go on
        time.sleep(0.02)
    patient = np.arange(N_IMAGES) + trial["fold"] * N_IMAGES
    table = pd.DataFrame({"image_id": [f"i{p}" for p in patient], "patient_id": patient, "label": patient % 2})
    scores = table.assign(score=np.random.default_rng(unit_seed(key)).random(N_IMAGES))
    trial_store.write_trial(store, key, scores, {"seconds": seconds})
    note(store, "wrote", key)


def files(store, seconds, **trial):
    """The file of a trial."""
    return [trial_store.trial_path(Path(store), trial["hash"])]


def run(store, n_workers=0, seconds=0.0, **engine_settings):
    """Train what the store lacks, here or in workers, and return the complete table in the grid's order."""
    store.mkdir(parents=True, exist_ok=True)
    chosen = {"mode": "local", "n_workers": n_workers} if n_workers else {"mode": "serial"}
    chosen = {f"engine.{key}": value for key, value in {**chosen, **engine_settings}.items()}
    settings = params.load("smoke", chosen).engine
    todo = sweep.to_train(trial_store.read_store(store, trials())[1])
    rows = todo[[*sweep.TRIAL_COLUMNS, "hash"]].to_dict("records")
    tasks = [{"store": str(store), "seconds": seconds, **row} for row in rows]
    engine.map_units(train, tasks, settings, "toy trainings", files_of=files)
    return trial_store.require_complete(*trial_store.read_store(store, trials()))[0]


def diary(store):
    """Lines of the diary as tuples ``what, key, pid``."""
    path = store / "diary"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def expected(store):
    """The table of a sweep that nothing disturbs, in this process."""
    return run(store)


def check(store, n_killed):
    """Nothing lost, nothing doubled, at most one trial of a killed worker begun again, the same table."""
    keys = set(trials()["hash"])
    assert {path.stem for path in store.glob("*.parquet")} == keys
    began = collections.Counter(key for what, key, _ in diary(store) if what == "began")
    wrote = collections.Counter(key for what, key, _ in diary(store) if what == "wrote")
    assert set(began) == keys
    assert sum(began.values()) - len(keys) <= n_killed, "more than one trial of a killed worker was begun again"
    assert max(wrote.values()) == 1, "a finished trial was trained again"
    assert len(keys) - len(wrote) <= n_killed
    found = run(store)
    pd.testing.assert_frame_equal(found, expected(store.with_name("undisturbed")), check_exact=True)
    assert sum(what == "began" for what, _, _ in diary(store)) == sum(began.values()), "reading it trained something"


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), seconds=0.15)
