"""The store of finished trials: a folder with one ``<hash>.parquet`` per training.

Contract: a trial's file is whole or absent, its content checked when it is read, so that a killed worker or two
sweeps at once cost time and never rows. A failed trial leaves ``<hash>.error.json``. No table is made from an
incomplete grid unless that is asked for, and then it says so.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils.artifacts import digest, load_record, read_once, remove_orphans, replacing, save_json, sealed, unsealed

TRIAL_COLUMNS = ("backbone", "freeze", "balance", "arm", "rate", "fold", "seed")
SCORE_COLUMNS = ("image_id", "patient_id", "label", "score")
_METADATA = b"nafld_trial"


def trial_path(store: Path, key: str) -> Path:
    """File of a finished trial."""
    return store / f"{key}.parquet"


def _error_path(store: Path, key: str) -> Path:
    return store / f"{key}.error.json"


def write_trial(store: Path, key: str, scores: pd.DataFrame, facts: Mapping[str, Any]) -> Path:
    """Write `SCORE_COLUMNS`, a row per held-out image, and JSON-able facts atomically.

    Clears an earlier failure, and what a killed process left of it: who trains a trial holds its lock.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(scores[list(SCORE_COLUMNS)], preserve_index=False)
    content = _content(table.to_pandas(ignore_metadata=True))
    record = sealed({"hash": key, "rows": len(scores), **facts, "content": content})
    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(record).encode()}
    path = trial_path(store, key)
    remove_orphans(store, f".{path.name}.*.tmp*")
    with replacing(path) as temporary, open(temporary, "wb") as handle:  # pyarrow takes every path for UTF-8
        pq.write_table(table.replace_schema_metadata(metadata), handle)
    _error_path(store, key).unlink(missing_ok=True)
    return path


def _content(scores: pd.DataFrame) -> str:
    """Digest of names, types and values."""
    return digest([[name, str(scores[name].dtype), scores[name].tolist()] for name in scores.columns])


def read_trial(store: Path, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Scores and facts of one finished trial.

    FileNotFoundError where it is not trained yet; ValueError where its file is truncated, altered or another trial's.
    """
    scores, facts = read_once(_read_trial, trial_path(store, key), key)
    return scores.copy(), copy.deepcopy(facts)


@functools.lru_cache(maxsize=8192)
def _read_trial(path: Path, key: str, _mark: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """`read_trial`, once for all that ask for a file as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as handle:
            table = pq.read_table(handle, page_checksum_verification=True)  # which trials of earlier versions have
        facts = json.loads(table.schema.metadata[_METADATA])
        scores = table.select(list(SCORE_COLUMNS)).to_pandas(ignore_metadata=True)
        content = _content(scores)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path}: expected a whole trial, found a damaged file ({reason}); it is trained again."
        ) from None
    if {"seal", "content"} & set(facts):  # the first versions sealed nothing
        facts = unsealed(facts)
        if facts is None or facts.pop("content", content) != content:
            raise ValueError(f"{path}: expected a whole trial, found its content changed; it is trained again.")
    if facts.get("hash") != key or facts.get("rows") != len(scores):
        raise ValueError(f"{path}: expected trial {key}, found {facts.get('hash')}; it is trained again.")
    return scores, facts


def finished_before(store: Path) -> dict[tuple[Any, ...], float]:
    """Seconds that the finished trials of a store took, of any recipe, by what `TRIAL_COLUMNS` say of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[tuple[Any, ...], float] = {}
    for path in sorted(store.glob("*.parquet")):
        with contextlib.suppress(pa.ArrowException, OSError, KeyError, TypeError, ValueError):  # a damaged one
            facts = json.loads(pq.read_metadata(path).metadata[_METADATA])
            found[tuple(facts[name] for name in TRIAL_COLUMNS)] = float(facts["seconds"])
    return found


def is_done(store: Path, key: str) -> bool:
    """Whether a trial is in the store, whole."""
    try:
        read_trial(store, key)
    except (FileNotFoundError, ValueError):
        return False
    return True


def record_failure(store: Path, trial: Mapping[str, Any], key: str, error: BaseException) -> Path:
    """Note why a trial failed, so that it is listed and the others go on."""
    text = f"{type(error).__name__}: {error}"
    return save_json(_error_path(store, key), {"hash": key, **{n: trial[n] for n in TRIAL_COLUMNS}, "error": text})


def _failure(store: Path, key: str) -> str | None:
    path = _error_path(store, key)
    if not path.exists():
        return None
    return (load_record(path) or {}).get("error", "its error record is damaged")


def read_store(store: Path, trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the finished trials of a grid (`TRIAL_COLUMNS`, `SCORE_COLUMNS`), and the state of every trial.

    The latter are the rows of `trials` (`TRIAL_COLUMNS`, ``hash``) with ``state`` (done, not trained yet,
    damaged or failed), ``reason`` (empty where done) and, NaN where it is not done, ``seconds, n_real, n_synthetic,
    fatty_share, first_loss, last_loss``.
    Trials of other grids in the store are left alone.
    """
    numbers = ("seconds", "n_real", "n_synthetic", "fatty_share", "first_loss", "last_loss")
    parts, rows = {}, []
    for place, trial in enumerate(trials.to_dict("records")):
        state, reason, facts = "done", "", {}
        try:
            parts[place], facts = read_trial(store, trial["hash"])
        except FileNotFoundError:
            reason = _failure(store, trial["hash"]) or ""
            state = "failed" if reason else "not trained yet"
        except ValueError as error:
            state, reason = "damaged", str(error)
        rows.append({**trial, "state": state, "reason": reason, **{n: facts.get(n, float("nan")) for n in numbers}})
    if not parts:
        return pd.DataFrame(columns=[*TRIAL_COLUMNS, *SCORE_COLUMNS]), pd.DataFrame(rows)
    names = trials[[*TRIAL_COLUMNS]].reset_index(drop=True)
    return names.join(pd.concat(parts).droplevel(1), how="inner").reset_index(drop=True), pd.DataFrame(rows)


def to_train(status: pd.DataFrame, retry_failed: bool = False) -> pd.DataFrame:
    """Trials that are still to be trained; those that failed before only on request."""
    states = ["not trained yet", "damaged"] + (["failed"] if retry_failed else [])
    return status[status["state"].isin(states)]


def require_complete(
    scores: pd.DataFrame, status: pd.DataFrame, allow_missing: bool = False
) -> tuple[pd.DataFrame, str]:
    """Scores of `read_store` that may be compared, and a sentence on what is missing from them (empty: nothing).

    ValueError where a trial is missing, unless `allow_missing`: then the seeds that every arm and fold has finished,
    each backbone, freeze and balance apart, so that nothing is averaged over less; ValueError where no seed is
    complete.
    """
    missing = status[status["state"] != "done"]
    if not len(missing):
        return scores, ""
    counts = ", ".join(f"{n} {state}" for state, n in missing["state"].value_counts().items())
    first = missing.iloc[0]
    name = ", ".join(f"{n} {first[n]}" for n in TRIAL_COLUMNS)
    text = f"{len(missing)} of {len(status)} trials are missing ({counts}; the first: {name})"
    if not allow_missing:
        raise ValueError(
            f"{text}; run the sweep again (sweep.retry_failed=true tries failed ones again), or"
            " ask for the finished seeds alone with sweep.allow_missing=true."
        )
    network = ["backbone", "freeze", "balance"]
    bad = pd.MultiIndex.from_frame(missing[[*network, "seed"]].drop_duplicates())
    kept = scores[~pd.MultiIndex.from_frame(scores[[*network, "seed"]]).isin(bad)]
    if not len(kept):
        raise ValueError(f"{text}; no seed is complete, run the sweep again.")
    seeds = kept.groupby(network)["seed"].nunique()
    shown = "; ".join(f"{', '.join(name)}: {n}" for name, n in seeds.items())
    return kept.reset_index(drop=True), f"{text}: only complete seeds are shown ({shown})."
