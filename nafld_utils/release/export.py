"""A run's released images and the classifiers of its declared arm, as a folder for a colleague.

Contract: the same run gives the same bytes; the folder appears whole or not at all. It holds images that the copy audit
kept, in the project's own cohort format, and nothing else that was made for one patient: no source, no nearest frame,
no patient's number.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import artifacts, engine, networks, preprocessing, quality, sampling, sweep
from nafld_utils.artifacts import Run
from nafld_utils.release import cards

MUST_FIND = ("planted: exact copies", "planted: augmented copies")  # an audit that misses these says nothing
LEAST_FOUND = 0.9  # share of them (choice: as on the front page)
IMAGES, CLASSIFIERS, SUMS = "images", "classifiers", "SHA256SUMS"


def write_export(run: Run) -> Path:
    """Write ``reports/<run>/<run>-export`` anew and return it.

    Raises
    ------
    ValueError
        The copy audit has not been run on these images, or does not find planted copies; a training of the declared arm
        is not finished.
    """
    table, audit = released(run), trusted_audit(run)
    engine.use_threads(run.settings.engine.threads)
    trials = sweep.of_arm(run, run.settings.sweep.primary_arm)
    sweep.build_classifiers(run, trials)
    path = run.reports / f"{run.name}-export"
    temporary, old = (path.with_name(f".{path.name}.{word}") for word in ("tmp", "old"))
    with artifacts.files.or_nothing(temporary, path):
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_images(run, table, temporary)
        facts = _write_classifiers(run, trials, temporary)
        kept = table[table["release"] == "kept"]
        artifacts.save_table(temporary / "images.csv", _listed(run, kept))
        for name, text in cards.filled(cards.facts(run, table, audit, trials) | facts).items():
            artifacts.save_text(temporary / name, text)
        _write_sums(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
    return path


# ---------------------------------------------------------------- what may leave


def released(run: Run) -> pd.DataFrame:
    """The copy audit's release list, one row per synthetic image; ValueError where the audit was not run on them.

    Of a set that serves every fold each image stands once, with the first fold, withheld where any fold withholds it.
    """
    unit = quality.release_unit(run)
    fault = unit.fault()
    if fault:
        raise ValueError(
            f"run {run.name!r}: expected the copy audit of notebook 05, found none that holds ({fault}), so nobody"
            f" knows which images are copies of patients; run make 05_quality_metrics RUN={run.name}."
        )
    table = unit.load_table("synthetic_release.csv")
    shared = table["generator"].map(sampling.is_shared)
    each = table["synthetic_id"].str.rpartition("_")[2].where(shared, table["synthetic_id"])
    withheld = (table["release"] == "withheld").groupby([table["generator"], each]).transform("any")
    table.loc[shared & withheld, "release"] = "withheld"
    return table[~shared | (table["fold"] == table["fold"].min())].reset_index(drop=True)


def trusted_audit(run: Run) -> pd.DataFrame:
    """What the copy audit finds of planted copies and flags of held-out patients, of ``quality.calibration``.

    ValueError where it misses planted copies.
    """
    found = quality.calibration(run)
    planted = found[found["set"].isin(MUST_FIND)]
    missed = planted[planted["copy"] < LEAST_FOUND]
    if len(missed) or set(planted["set"]) != set(MUST_FIND):
        row = missed.iloc[0] if len(missed) else {"set": MUST_FIND[0], "copy": 0.0, "n": 0}
        raise ValueError(
            f"run {run.name!r}: expected a copy audit that finds {LEAST_FOUND:.0%} of {row['set']}, found"
            f" {row['copy']:.0%} of {row['n']}, so its release list proves nothing; raise quality.n_planted, take other"
            " features (quality.features), and run notebook 05 again."
        )
    return found


def _write_images(run: Run, table: pd.DataFrame, folder: Path) -> None:
    """PNG files of the kept images, 8 bits as the sets hold them (16 where one holds uint16), without metadata."""
    from PIL import Image

    for (generator, fold), part in table.groupby(["generator", "fold"], sort=False):
        drawn = sampling.open_set(run, generator, int(fold))
        if drawn.table["synthetic_id"].tolist() != part["synthetic_id"].tolist():
            raise ValueError(
                f"{drawn.unit.path}: expected the images that the copy audit judged, found others; run notebook 05."
            )
        for row in np.flatnonzero(part["release"] == "kept"):
            path = folder / _place(part.iloc[row])
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(drawn.images[row])).save(path)


def _place(row: Any) -> str:
    return f"{IMAGES}/fold{row['fold']}/{row['generator']}/{row['synthetic_id']}.png"


def _listed(run: Run, kept: pd.DataFrame) -> pd.DataFrame:
    """The table of a folder cohort: each image is a patient of its own, since none of them is one."""
    names = run.settings.cohort.class_names
    columns = {"image": kept.apply(_place, axis=1), "patient": kept["synthetic_id"]}
    columns |= {"label": kept["label"].map(dict(enumerate(names))), "generator": kept["generator"]}
    return pd.DataFrame({**columns, "drawn_in": "fold " + kept["fold"].astype(str)})


# ---------------------------------------------------------------- classifiers


def _write_classifiers(run: Run, trials: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Weights under timm's own names, those that no fold trained once for all; gives what ``predict.py`` must know.

    ``largest_score_difference``: between the run's scores of held-out images and those that the written weights give on
    this machine's CPU, image by image as ``predict.py`` computes them.
    """
    name, freeze, differences = trials[0]["backbone"], trials[0]["freeze"], []
    for trial in trials:
        model = networks.load(name, run.settings.sweep.weights, num_classes=2)
        prefix, tail = networks.split(model, name, freeze)
        tail.load_state_dict(sweep.tail_weights(sweep.classifier_unit(run, trial)))
        trained = {id(tensor) for tensor in (*tail.parameters(), *tail.buffers())}
        state = model.state_dict(keep_vars=True)
        for file, mine in (("shared", False), (f"fold{trial['fold']}", True)):
            part = {key: it.detach().contiguous() for key, it in state.items() if (id(it) in trained) == mine}
            artifacts.save_weights(folder / CLASSIFIERS / f"{file}.safetensors", part)
        names = {id(module): key for key, module in model.named_modules()}
        last = [names[id(module)] for module in prefix][-1:]
        rounded = last[0] if last and run.settings.sweep.features == "float16" else None
        differences.append(_difference(run, trial, model, rounded))
    mean, std = networks.normalisation(name)
    known = {"architecture": name, "rounded": rounded, "mean": list(mean), "std": list(std)}
    return {**known, "largest_score_difference": max(differences)}


def _difference(run: Run, trial: dict[str, Any], model: Any, rounded: str | None) -> float:
    """Largest difference of a network's scores of its held-out images from the run's."""
    import torch

    if rounded:  # as the run keeps the features of its frozen layers
        rounding = model.get_submodule(rounded)
        rounding.register_forward_hook(lambda module, given, features: features.half().float())
    model.to(memory_format=torch.channels_last)
    data, stored = preprocessing.open_preprocessed(run), sweep.held_out_scores(run, [trial])
    rows = pd.Index(data.images["image_id"]).get_indexer(stored["image_id"])
    found = []
    with torch.inference_mode():
        for row in rows:
            image = networks.channels_last(networks.to_input(data.resized[row][None], trial["backbone"]))
            found.append(float(torch.softmax(model(image).double(), dim=1)[0, 1]))
    return float(np.abs(np.array(found) - stored["score"].to_numpy()).max())


def _write_sums(folder: Path) -> None:
    """SHA-256 of every file, as ``sha256sum -c`` reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{artifacts.file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    artifacts.save_text(folder / SUMS, "".join(lines))
