"""Runs: opening one, its paths, naming its units, and the record of a stage that has finished.

Contract: to open a run or to name a unit writes nothing. A stage is finished while every unit of its record is whole,
has the hash it had then, and was made by today's revisions.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils import params
from nafld_utils.artifacts.claims import claims_table
from nafld_utils.artifacts.files import existing, file_sha256, load_record, mark_of, save_json, save_table
from nafld_utils.artifacts.seals import MANIFEST, damage_of, digest, sealed
from nafld_utils.artifacts.units import Unit, read_manifest, revision, work_root

if TYPE_CHECKING:
    import pandas as pd

NAME_FILES = ("path", "join", "external", "weights", "baseline_weights", "ratings")  # ends of keys of files
NO_FILES = ("", "hub", "bundled", "random")  # what such a setting may say instead
MARK_FILE = "cohort.json"  # in a folder of simulated patients, says so
LIVERS = "liver ultrasounds"  # `cohort.subject` of a folder that holds them
LEFT_OUT = "(left out)"  # stands for what names a patient or this machine
LAB = "NAFLD_LAB"  # environment of JupyterLab: JSON of what `make lab` was given


@dataclass(frozen=True)
class Run:
    """A named run: its settings, what was given that differs from the profile, by dotted key, and its folders."""

    settings: params.Settings
    overrides: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    remembered: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a worker gets: the settings; it names the units that it needs itself."""
        return Run, (self.settings,)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.settings.name

    @property
    def root(self) -> Path:
        """Folder of everything computed, ``artifacts/<run>``."""
        return work_root() / "artifacts" / self.name

    @property
    def reports(self) -> Path:
        """Folder of the rendered output, ``reports/<run>``."""
        return work_root() / "reports" / self.name

    @property
    def data(self) -> Path:
        """Folder of raw cohorts, ``data/raw``."""
        return work_root() / "data" / "raw"

    @property
    def is_simulated(self) -> bool:
        """Whether the cohort is simulated, here or in a file with the mark of `cohort.write_mat`."""
        return self.settings.cohort.source == "simulated" or self._provenance().get("kind") == "simulated"

    @property
    def is_foreign(self) -> bool:
        """Whether the cohort is a folder of other images than liver ultrasounds, which the paper says nothing about."""
        stored, given = self._provenance(), self.settings.cohort
        if not stored and given.path and (path := Path(given.path).expanduser()).is_dir():  # before stage 01
            stored = {"format": "folder", **(load_record(path / MARK_FILE) or {})}
        return given.source == "file" and stored.get("format") == "folder" and stored.get("model") != "phantom"

    @property
    def shows_livers(self) -> bool:
        """Whether images are of the paper's organ: published, simulated, or a folder that is said to be."""
        return not self.is_foreign or self.settings.cohort.subject == LIVERS

    @property
    def is_smoke(self) -> bool:
        """Whether the run is of the tests' profile, whose numbers mean nothing: no verdict is given of it."""
        return self.settings.profile == "smoke"

    @property
    def has_numbered_labels(self) -> bool:
        """Whether the table of a folder says 0 and 1, so that the names of its classes come from the settings alone."""
        return self._provenance().get("labels") == "numbers"

    def _provenance(self) -> dict[str, Any]:
        """Provenance of the stored cohort; empty where none is loaded yet."""
        return load_record(self.root / "cohort" / "provenance.json") or {}

    @functools.cached_property
    def _files(self) -> list[Path]:
        """The stored cohort's manifest, and what the settings name that may be a file of the user."""
        given = self.settings.by_key().items()
        named = [value for key, value in given if value and key.rpartition(".")[2] in NAME_FILES]
        return [self.root / "cohort" / MANIFEST, *(Path(value).expanduser() for value in named)]

    def marks(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Marks of the stored cohort and of the files that settings name, by which a change is noticed."""
        return tuple(map(mark_of, self._files))

    def unit(
        self,
        stage: str,
        *keys: Any,
        settings: Mapping[str, Any],
        inputs: Sequence[Unit | str] = (),
        modules: Iterable[str] = (),
    ) -> Unit:
        """Name a unit and compute its hash; nothing is read or written.

        Parameters
        ----------
        stage : str
            First folder below the run, e.g. ``"ldm"``.
        *keys
            Further folders, outer to inner, e.g. ``"class", "fold3"``.
        settings : mapping
            The JSON-able settings that the unit reads, and no others.
        inputs : sequence of Unit or str
            Units it reads, or content hashes.
        modules : iterable of str
            Modules whose ``REVISION`` enters the hash.
        """
        recipe = {
            "unit": "/".join([stage, *map(str, keys)]),
            "settings": json.loads(json.dumps(settings, default=str)),
            "inputs": [item.hash if isinstance(item, Unit) else item for item in inputs],
            "revisions": {name: revision(name) for name in sorted(modules)},
        }
        return Unit(self.root.joinpath(stage, *map(str, keys)), digest(recipe), recipe)

    def show(self, *sections: str) -> pd.DataFrame:
        """Settings in force beside the paper profile's: ``setting, this run, paper profile, where it differs``.

        Names of files and machines are left out, before a table cuts them short, and the paper's classes beside others.
        """
        import pandas as pd

        paper = params.load(params.BASE_PROFILE).by_key()
        beside, rows = paper | {"cohort.class_names": "those of the paper's cohort"}, []
        for key, value in self.settings.by_key().items():
            if key in sections or key.split(".")[0] in sections:
                shown = LEFT_OUT if is_private(key, value) else params.as_yaml(value)
                rows.append((key, shown, params.as_yaml(beside.get(key, "not set")) if value != paper.get(key) else ""))
        return pd.DataFrame(rows, columns=["setting", "this run", "paper profile, where it differs"])

    def record_claims(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Write the stage's headline numbers to its ``claims.csv``.

        Parameters
        ----------
        stage : str
            Stage name, e.g. ``"05_quality_metrics"``.
        rows : iterable of mapping
            As `artifacts.claim` makes them: `key` names the claim for reports, `over` says what the interval is over,
            `same_protocol` is "yes" or says what differs from the paper.

        Returns
        -------
        pandas.DataFrame
            The rows, as they are written.

        Raises
        ------
        ValueError
            A row has an unknown column or lacks ``key``, ``claim``, ``this_run`` or ``same_protocol``, or a key stands
            twice in the run.

        Notes
        -----
        Beside the numbers of a foreign cohort (`is_foreign`) no number of the paper's is written.
        """
        table = claims_table(self.root, stage, rows, self.is_foreign)
        save_table(self.root / stage / "claims.csv", table)
        return table

    def finish(self, stage: str, units: Iterable[Unit]) -> pd.DataFrame:
        """Record the units a stage stands on, so that make can tell when it is stale; return the files as a table.

        Returns
        -------
        pandas.DataFrame
            ``file`` (relative to the work folder), ``size_kib``, ``made_in_s`` (of its unit, in seconds).
        """
        import pandas as pd

        units = [unit.require() for unit in units]
        for unit in units:  # of processes that were killed between sealing and clearing up
            shutil.rmtree(unit.work, ignore_errors=True)
        entries = [{"unit": str(unit.path.relative_to(self.root)), "hash": unit.hash} for unit in units]
        claims = self.root / stage / "claims.csv"
        files = {claims.name: [claims.stat().st_size, file_sha256(claims)]} if claims.is_file() else {}
        record = {"stage": stage, "units": entries, "files": files}
        save_json(self.root / stage / "stage.json", sealed(record))
        rows = []
        for unit in units:
            seconds = unit.seconds()
            for path in sorted(unit.path.iterdir()):
                size = round(path.stat().st_size / 1024, 1)
                rows.append((str(path.relative_to(work_root())), size, seconds))
        for path in sorted((self.root / stage).iterdir()):
            rows.append((str(path.relative_to(work_root())), round(path.stat().st_size / 1024, 1), float("nan")))
        return pd.DataFrame(rows, columns=["file", "size_kib", "made_in_s"])


def is_private(key: str, value: Any) -> bool:
    """Whether a setting names a file, a folder, an account or a machine of the user."""
    if key == "engine.address" or key.startswith(("engine.slurm", "engine.tls")):
        return bool(value)
    return key.rpartition(".")[2] in NAME_FILES and isinstance(value, str) and value not in NO_FILES


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function ``(run, *keys)`` name each of its units, or its trainings, once per open run.

    A unit's hash stands on those of all units before it, so that naming one anew names its whole ancestry anew. All are
    forgotten when the stored cohort, or a file that the settings name, is no longer the one that they were named with.
    """

    @functools.wraps(function)
    def named(run: Run, *keys: Any, **options: Any) -> Any:
        key = (function.__module__, function.__qualname__, keys, tuple(sorted(options.items())))
        files = run.marks()
        if run.remembered.get("files") != files:
            run.remembered.clear()
            run.remembered["files"] = files
        if key not in run.remembered:
            run.remembered[key] = function(run, *keys, **options)
        return run.remembered[key]

    return named


def open_run(
    profile: str | None = None,
    overrides: str | Iterable[str] | Mapping[str, Any] = (),
    *,
    run: str = "",
    data: str = "",
    in_lab: bool = True,
) -> Run:
    """Validate the settings and return the run; creates nothing on disk.

    Parameters
    ----------
    profile : str, optional
        Name of a profile. Without one, `run` is opened as make was last asked for it.
    overrides : str, iterable of str, or mapping
        As `params.parse_overrides` reads them.
    run : str
        Name of the run; empty: as the settings say, by default the profile's.
    data : str
        Path of a cohort; stands for ``cohort.source=file cohort.path=<its absolute path>`` in any profile, the
        simulated ones included.
    in_lab : bool
        In JupyterLab a notebook whose parameters are as committed, the default profile and no overrides, opens the run
        that ``make lab`` was started for (`given_to_lab`); parameters that were edited win. False: as elsewhere.

    Raises
    ------
    SettingsError
        One sentence that names the setting.
    ValueError
        There is no such run, or it was made with settings that this code does not have.
    """
    if profile is None:
        return _open_stored(run)
    given = given_to_lab() if in_lab else None
    if given and profile == params.DEFAULT_PROFILE and not (overrides or run or data):
        profile, overrides = given["profile"], given["overrides"]
    values = params.parse_overrides(overrides)
    if data:
        values |= _cohort_at(data, values)
    if run and run != profile:
        values["run"] = run
    opened = Run(params.load(profile, values), values)
    left_out = opened.settings.simulated.enabled == "auto" and not opened.shows_livers
    return Run(opened.settings.without_simulated(), values) if left_out else opened


def _cohort_at(data: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Settings that stand for ``DATA``."""
    clash = sorted({"cohort.source", "cohort.path"} & set(values))
    if clash:
        raise params.SettingsError(f"DATA and SET both say where the cohort is ({', '.join(clash)}); give one of them.")
    path = Path(data).expanduser().absolute()
    if not (path.is_file() or path.is_dir()):  # a pipe or device may never end
        raise params.SettingsError(
            f"DATA={data}: expected the path of a cohort, found nothing there; correct the path."
        )
    return {"cohort.source": "file", "cohort.path": str(path)}


def stored_runs() -> list[str]:
    """Names of the runs under the work folder, sorted."""
    return sorted(path.parent.parent.name for path in (work_root() / "artifacts").glob("*/settings/run.json"))


def _open_stored(name: str) -> Run:
    there = f"runs here: {', '.join(stored_runs()) or 'none'}"
    if not params.NAME.fullmatch(name):
        raise ValueError(f"expected the name of a run, found {name!r}; {there}.")
    given = load_record(work_root() / "artifacts" / name / "settings" / "run.json")
    if given is None or not isinstance(given.get("overrides", {}), dict):
        raise ValueError(
            f"run {name!r}: expected it under artifacts/, found none; {there}. Make it with make all RUN={name}."
        )
    try:
        run = open_run(str(given.get("profile")), given.get("overrides", {}), in_lab=False)
    except params.SettingsError as error:
        raise ValueError(f"run {name!r} was made with settings that this code does not have: {error}") from None
    if run.name != name:
        raise ValueError(f"run {name!r}: its settings name the run {run.name!r}; the folder was renamed, make it anew.")
    return run


def given_to_lab() -> dict[str, Any] | None:
    """What ``make lab`` was given, ``profile, overrides``, in a notebook that is open there; else None.

    A terminal within JupyterLab inherits ``NAFLD_LAB`` and is not asked: make has its own variables. The Jupyter server
    sets ``JPY_SESSION_NAME`` for the kernels of its notebooks alone.
    """
    text = os.environ.get(LAB)
    return json.loads(text) if text and "JPY_SESSION_NAME" in os.environ else None


def check_disk(run: Run) -> None:
    """Refuse to start on a disk that is nearly full.

    Raises
    ------
    OSError
        Less than ``engine.min_free_gib`` is free where the artifacts go.
    """
    folder = existing(run.root)
    free = shutil.disk_usage(folder).free / 2**30
    needed = run.settings.engine.min_free_gib
    if free < needed:
        message = (
            f"{folder} has {free:.1f} GiB free, expected at least {needed:g} GiB (engine.min_free_gib);"
            " free disk space or point NAFLD_ROOT to another disk"
        )
        raise OSError(errno.ENOSPC, message)


def stage_fault(run: Run, stage: str) -> str | None:
    """Why a stage is not finished or no longer valid, in words; None when every unit it stands on is whole.

    A unit is missing, changed, damaged, or was made by another revision of its modules than today's.
    """
    folder = run.root / stage
    try:
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        entries = [(entry["unit"], entry["hash"]) for entry in record["units"]]
        damage = damage_of(folder, record, "stage.json")
    except FileNotFoundError:
        return "it has not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):  # it says nothing about the file
            raise
        return "its file stage.json has other content than when it was written"
    return damage or next(filter(None, (_unit_fault(run, *entry) for entry in entries)), None)


def _unit_fault(run: Run, name: str, wanted: str) -> str | None:
    """Why a unit, by its folder below the run's and its hash, is not what a finished stage stands on."""
    manifest = read_manifest(run.root / name)
    if manifest is None:
        return f"{name} is missing"
    if manifest.get("hash") != wanted:
        return f"{name} was made anew with other settings"
    damage = damage_of(run.root / name, manifest)
    if damage:
        return f"{name}: {damage}"
    for module, made_by in manifest.get("revisions", {}).items():
        try:
            today = revision(module)
        except ValueError:
            today = None
        if today != made_by:
            return f"{name} was made by revision {made_by} of {module}, today's is {today}"
    return None
