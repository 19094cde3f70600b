"""Every path of a run, units of work that are either whole or absent, and their provenance.

Contract: a *unit* is a folder ``artifacts/<run>/<stage>/<keys>`` sealed by its manifest ``run.json``. It is written
under a temporary name, synced to disk and renamed, so a reader sees all of it or nothing. Its hash covers the
settings it reads, the hashes of its inputs and the ``REVISION`` of the modules that made it; a unit whose manifest
is missing, carries another hash, or lists a file of other content is not done and is made again.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nafld_utils import locks, params

if TYPE_CHECKING:  # else imported where they are needed: `make plan` needs neither
    import numpy as np
    import pandas as pd

PROJECT_ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "run.json"
LAB = "NAFLD_LAB"  # environment of JupyterLab: JSON of what `make lab` was given
CLAIM_COLUMNS = ("claim", "paper", "this_run", "low", "high", "over", "n", "unit", "same_protocol", "key")
OTHER_COHORT = "no: another cohort"
_LIBRARIES = (
    "torch",
    "diffusers",
    "timm",
    "numpy",
    "scikit-image",
    "scikit-learn",
    "shap",
    "torchmetrics",
    "nafld-ldm",
)


def work_root() -> Path:
    """Folder that holds ``artifacts/``, ``reports/`` and ``data/``: ``$NAFLD_ROOT``, else the project."""
    return Path(os.environ.get("NAFLD_ROOT", PROJECT_ROOT))


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON-able value, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unit_seed(*parts: Any) -> int:
    """Seed in [0, 2**63) from the names of a unit, so that any unit can be rerun alone.

    Examples
    --------
    >>> unit_seed(0, "ldm", "class", 3) == unit_seed(0, "ldm", "class", 3)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def revision(key: str) -> int:
    """Revision that a key stands at in today's code; every unit's hash holds those of what made it.

    A module that makes results says ``REVISION = ("<key>", <int>)``. The key stays when the module moves, so that
    moving costs nobody a trained model; the number is raised by hand when results change.

    Raises
    ------
    ValueError
        No module, or more than one, has the key.
    """
    found = _revisions().get(key, ())
    if len(found) != 1:
        raise ValueError(f"REVISION {key!r}: expected it in one module, found it in {len(found)}; name it in one.")
    return found[0]


@functools.cache
def _revisions() -> dict[str, tuple[int, ...]]:
    """Revisions by key, read from the package's source: importing every module that has one would take seconds."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for line in re.findall(r"^REVISION\s*=\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            for key, number in re.findall(r'\("([\w.]+)", (\d+)\)', line):
                found[key] = (*found.get(key, ()), int(number))
    return found


# ---------------------------------------------------------------- atomic files


_FULL = (errno.ENOSPC, errno.EDQUOT)


def no_space(error: BaseException, path: Path) -> BaseException:
    """The error in words where the disk is full, however the library that met it said so; any other as it is."""
    number = getattr(error, "errno", None)
    words = any(f"{word} {code})" in f"{error})" for word in ("os error", "errno") for code in _FULL)
    # numpy counts what it could not write and keeps the reason to itself
    unsaid = isinstance(error, OSError) and number is None and _is_full(path.parent)
    if not (number in _FULL or words or unsaid):
        return error
    text = f"no space left while writing {path}; free disk space and run again"
    return OSError(number or errno.ENOSPC, text, str(path))


def _is_full(folder: Path) -> bool:
    return folder.exists() and shutil.disk_usage(folder).free < 2**20


@contextlib.contextmanager
def or_nothing(temporary: Path, path: Path) -> Iterator[None]:
    """Remove a temporary file or folder where an error ends its writing; a full disk is told as that of `path`."""
    try:
        yield
    except BaseException as error:
        told = no_space(error, path)  # asked before room is made
        locks.remove(temporary)
        if told is error:
            raise
        raise told from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it, on error leave nothing.

    Raises
    ------
    OSError
        The disk is full or read-only; the message names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{unique_ending()}.tmp{path.suffix}")
    with or_nothing(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def unique_ending() -> str:
    """Twelve hex digits that no other temporary name has."""
    return uuid.uuid4().hex[:12]


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def save_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically, indented, keys in the given order."""
    return save_text(path, json.dumps(value, indent=1, default=str) + "\n")


def load_record(path: str | Path) -> dict[str, Any] | None:
    """Mapping in a JSON file; None where there is none, or no JSON."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def save_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table atomically as CSV or Parquet, by the ending of `path`; the index is not kept."""
    with replacing(path) as temporary:
        if Path(path).suffix == ".parquet":
            temporary.write_bytes(table.to_parquet(index=False))  # pyarrow takes every path for UTF-8
        else:
            table.to_csv(temporary, index=False)
    return Path(path)


def save_array(path: str | Path, array: np.ndarray) -> Path:
    """Write an array atomically as .npy, without pickle."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.asarray(array), allow_pickle=False)
    return Path(path)


@contextlib.contextmanager
def array_in_parts(path: str | Path, leading: Sequence[int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an array atomically as .npy, part after part, so that it may be larger than memory.

    Parameters
    ----------
    path : path
        Where it goes.
    leading : sequence of int
        First axes of the array; their product is the number of rows that the parts have together.

    Yields
    ------
    callable
        Takes the next rows, ``(m, ...)``, all of one dtype and shape but for m.

    Raises
    ------
    ValueError
        There is no part, they do not have that many rows, or differ in dtype or shape; nothing is left behind.
    """
    import numpy as np

    rows, kind = 0, None
    with replacing(path) as temporary:
        with open(temporary, "wb") as handle:

            def append(part: np.ndarray) -> None:
                nonlocal rows, kind
                found = part.dtype.str, part.shape[1:]
                if kind is None:
                    kind = found
                    header = {"descr": found[0], "fortran_order": False, "shape": (*leading, *found[1])}
                    np.lib.format.write_array_header_1_0(handle, header)
                if found != kind:
                    raise ValueError(f"{path}: expected rows {kind}, found {found}; make all parts alike.")
                handle.write(np.ascontiguousarray(part).data)
                rows += len(part)

            yield append
        if kind is None or rows != math.prod(leading):
            raise ValueError(f"{path}: expected {math.prod(leading)} rows, found {rows}; append every part once.")


def load_table(path: str | Path) -> pd.DataFrame:
    """Read a table written by `save_table`."""
    import pandas as pd

    return pd.read_parquet(path) if Path(path).suffix == ".parquet" else pd.read_csv(path)


class NotEnoughMemoryError(MemoryError):
    """Memory lacks, and the text says what to do."""


def load_array(path: str | Path, mmap: bool = False) -> np.ndarray:
    """Read an array written by `save_array`, memory-mapped read-only when `mmap`.

    Raises
    ------
    ValueError
        The file is no array: an archive, a pickle, or damaged.
    NotEnoughMemoryError
        The system gives no memory for it.
    """
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        pickled = re.search("pickle|Python objects", str(error))
        reason = "a pickle, which is never opened" if pickled else " ".join(str(error).split())
        raise ValueError(f"{path}: expected an array, found {reason}; remove it and run its stage again.") from None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise NotEnoughMemoryError(
            f"not enough memory to open {path}; free memory, or lower JOBS or engine.n_workers, and run again"
        ) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"{path}: expected an array, found an archive; remove it and run its stage again.")
    return found


def create_array(path: str | Path, shape: tuple[int, ...], dtype: Any = "uint8") -> np.memmap:
    """A new .npy file that is filled piece by piece, for arrays larger than memory.

    Its room on the disk is taken now, which raises OSError where the disk is too small: else the process would be
    killed at a later write.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    return array


def load_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of one of our own weight files, which are safetensors and never anything else.

    Raises
    ------
    ValueError
        The file is missing, damaged, or a pickle.
    """
    with _open_weights(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118


def load_weight_facts(path: str | Path) -> dict[str, str]:
    """Metadata of one of our own weight files, whose tensors are not read; raises what `load_weights` does."""
    with _open_weights(path) as handle:
        return handle.metadata() or {}


@contextlib.contextmanager
def _open_weights(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        found = _kind(Path(path)) or str(error)
        raise ValueError(
            f"{path}: expected safetensors weights, found {found}; remove it and run its stage again."
        ) from None


def _kind(path: Path) -> str | None:
    """What a file that is not safetensors is, where that is easily told."""
    if not path.is_file():
        return "no file"
    with open(path, "rb") as handle:
        start = handle.read(4)
    # torch.save writes a zip archive of a pickle, older versions the pickle itself
    return "a pickle, which is never opened" if start.startswith((b"PK", b"\x80")) else None


# ---------------------------------------------------------------- integrity


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON gives it back, with the digest of its content as ``seal``."""
    plain = json.loads(json.dumps(record, default=str))
    plain.pop("seal", None)
    return {**plain, "seal": digest(plain)}


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is as it was when it was sealed; those of earlier versions have no seal."""
    return "seal" not in record or record["seal"] == sealed(record)["seal"]


def unsealed(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A record without its seal; None where it has none, or is not as it was sealed."""
    whole = "seal" in record and is_whole(record)
    return {key: value for key, value in record.items() if key != "seal"} if whole else None


def damage_of(folder: Path, record: Mapping[str, Any], name: str = MANIFEST) -> str | None:
    """What differs from a sealed record, the file `name`, and the files that it lists; None where nothing does."""
    if not is_whole(record):
        return f"its file {name} has other content than when it was written"
    for name, (size, sha256) in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size or _content(path, path.stat().st_mtime_ns) != sha256:
            return f"its file {name} has other content than when it was written"
    return None


@functools.lru_cache(maxsize=4096)
def _content(path: Path, _mtime: int) -> str:
    return file_sha256(path)


# ---------------------------------------------------------------- units


@dataclass(frozen=True)
class Unit:
    """One piece of finished or unfinished work; see the module's contract."""

    path: Path
    hash: str
    recipe: dict[str, Any] = field(repr=False, default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of one of the unit's files."""
        return self.path / name

    def done(self) -> bool:
        """Whether the manifest is there, carries this hash, and every listed file has its content."""
        return self.fault() is None

    def fault(self) -> str | None:
        """Why the unit is not done, in words; None when it is."""
        manifest = read_manifest(self.path)
        if manifest is None:
            return "not made yet"
        if manifest.get("hash") != self.hash:
            return "made with other settings, inputs or code revision"
        return damage_of(self.path, manifest)

    def require(self) -> Unit:
        """Return the unit, or raise if it is not done.

        Raises
        ------
        ValueError
            Names the unit, what is wrong with it and what to run.
        """
        fault = self.fault()
        if fault:
            raise ValueError(f"{self.path}: {fault}; run the stage that makes it first.")
        return self

    @property
    def work(self) -> Path:
        """Folder for resumable, unfinished work of exactly this recipe; removed when the unit is sealed."""
        return self.path.with_name(f"{self.path.name}.{self.hash}.part")

    @contextlib.contextmanager
    def writing(self, **facts: Any) -> Iterator[Path]:
        """Yield an empty folder; on success seal it as the unit, on error leave nothing behind.

        Parameters
        ----------
        **facts
            JSON-able entries added to the manifest (device, counts).
        """
        temporary = self._beside(f"{unique_ending()}.tmp")
        started = time.perf_counter()
        with or_nothing(temporary, self.path):
            locks.remove_orphans(self.path.parent, f".{self.path.name}.*.tmp")
            with locks.locked(temporary):
                temporary.mkdir()
                yield temporary
                facts["seconds"] = round(facts.get("seconds", time.perf_counter() - started), 3)
                save_json(temporary / MANIFEST, self._manifest(temporary, facts))
                for item in temporary.iterdir():
                    sync(item)
                self._put_in_place(temporary)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{ending}")

    def _manifest(self, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        files = {p.name: [p.stat().st_size, file_sha256(p)] for p in sorted(folder.iterdir()) if p.is_file()}
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {**facts, **environment(), "declared": declared_hash()}
        return sealed({"hash": self.hash, **self.recipe, "files": files, "made": made, **facts})

    def _put_in_place(self, temporary: Path) -> None:
        with locks.locked(self._beside("swap")):
            old = self._beside(f"{unique_ending()}.old.tmp")
            if self.done():  # another process was faster; whoever reads its files keeps them
                locks.remove(temporary)
            else:
                if self.path.exists():
                    os.replace(self.path, old)
                os.replace(temporary, self.path)
                sync(self.path.parent)
            locks.remove(self.work)  # first of all: nobody would look for it any more
            locks.remove(old)

    def load_table(self, name: str) -> pd.DataFrame:
        """Read one of the unit's tables."""
        return load_table(self.require().file(name))

    def load_array(self, name: str, mmap: bool = False) -> np.ndarray:
        """Read one of the unit's arrays."""
        return load_array(self.require().file(name), mmap)

    def seconds(self) -> float:
        """How long the unit took to make, in seconds."""
        return float((read_manifest(self.path) or {}).get("seconds", float("nan")))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Manifest of a folder, or None where there is none or it is no JSON."""
    return load_record(folder / MANIFEST)


def declared_hash() -> str:
    """Hash of the declared analysis (`params.protocol`) without its reasons, 16 hex digits.

    A unit's manifest records it; no unit's own hash holds it, so that declaring another analysis costs no unit. It is
    "unknown" where the file has become unreadable since the run began: no finished work is lost for that.
    """
    try:
        return digest(params.protocol().decided())
    except params.SettingsError:
        return "unknown"


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, machine and commit of this process: ``versions``, ``python``, ``machine``, ``commit``."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    command = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True)
        commit = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"versions": versions, "python": platform.python_version(), "machine": machine, "commit": commit}


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """A named run: its settings, what was given that differs from the profile, by dotted key, and its folders."""

    settings: params.Settings
    overrides: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    remembered: dict[Any, Unit] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        """Whether the cohort is simulated, here or in a file that carries the mark of `cohort.write_mat`."""
        return self.settings.cohort.source == "simulated" or self._provenance().get("kind") == "simulated"

    @property
    def is_foreign(self) -> bool:
        """Whether the cohort is a folder of other images than liver ultrasounds, which the paper says nothing about."""
        stored = self._provenance()
        given = self.settings.cohort.source == "file" and stored.get("format") == "folder"
        return given and stored.get("model") != "phantom"

    @property
    def has_numbered_labels(self) -> bool:
        """Whether the table of a folder says 0 and 1, so that the names of its classes come from the settings alone."""
        return self._provenance().get("labels") == "numbers"

    def _provenance(self) -> dict[str, Any]:
        """Provenance of the stored cohort; empty where none is loaded yet."""
        return load_record(self.root / "cohort" / "provenance.json") or {}

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
        """Settings in force as a table: ``setting, value, unchanged`` (whether it is the paper profile's value)."""
        import pandas as pd

        paper = params.flat(params.load(params.BASE_PROFILE).model_dump(mode="json", by_alias=True))
        mine = params.flat(self.settings.model_dump(mode="json", by_alias=True))
        rows = [
            (key, str(value), str(paper[key]) if value != paper[key] else "")
            for key, value in mine.items()
            if key in sections or key.split(".")[0] in sections
        ]
        return pd.DataFrame(rows, columns=["setting", "this run", "paper profile, where it differs"])


def remembered(function: Callable[..., Unit]) -> Callable[..., Unit]:
    """Let a function ``(run, *keys) -> Unit`` name each of its units once per open run.

    A unit's hash stands on those of all units before it, so that naming one anew names its whole ancestry anew. The
    run is a view of the settings and files that it was opened with; open it again to see others.
    """

    @functools.wraps(function)
    def named(run: Run, *keys: Any, **options: Any) -> Unit:
        key = (function.__module__, function.__qualname__, keys, tuple(sorted(options.items())))
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
    return Run(params.load(profile, values), values)


def _cohort_at(data: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Settings that stand for ``DATA``."""
    clash = sorted({"cohort.source", "cohort.path"} & set(values))
    if clash:
        raise params.SettingsError(f"DATA and SET both say where the cohort is ({', '.join(clash)}); give one of them.")
    path = Path(data).expanduser().absolute()
    if not path.exists():
        raise params.SettingsError(
            f"DATA={data}: expected the path of a cohort, found nothing there; correct the path."
        )
    return {"cohort.source": "file", "cohort.path": str(path)}


def stored_runs() -> list[str]:
    """Names of the runs under the work folder, sorted."""
    return sorted(path.parent.parent.name for path in (work_root() / "artifacts").glob("*/settings/run.json"))


def _open_stored(name: str) -> Run:
    there = f"runs here: {', '.join(stored_runs()) or 'none'}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
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


def existing(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above it that does."""
    return next(place for place in (path, *path.parents) if place.exists())


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


def record_claims(run: Run, stage: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Write the stage's headline numbers to its ``claims.csv``.

    Parameters
    ----------
    run : Run
        The run.
    stage : str
        Stage name, e.g. ``"05_quality_metrics"``.
    rows : iterable of mapping
        As `nafld_utils.claims.claim` makes them: `key` names the claim for reports, `over` says what the interval is
        over, `same_protocol` is "yes" or says what differs from the paper.

    Raises
    ------
    ValueError
        A row has an unknown column or lacks ``key``, ``claim``, ``this_run`` or ``same_protocol``, or a key stands
        twice in the run.

    Notes
    -----
    Beside the numbers of a foreign cohort (`Run.is_foreign`) no number of the paper's is written.
    """
    import pandas as pd

    rows = list(rows)
    for row in rows:
        unknown = set(row) - set(CLAIM_COLUMNS)
        missing = {"key", "claim", "this_run", "same_protocol"} - {name for name, value in row.items() if value != ""}
        if unknown or missing:
            raise ValueError(
                f"claim {row.get('claim')!r} of {stage}: unknown {sorted(unknown)}, missing {sorted(missing)}."
            )
    taken = _claim_keys(run, stage)
    for row in rows:
        if row["key"] in taken:
            raise ValueError(
                f"claim {row['claim']!r} of {stage}: expected a key of its own, found {row['key']!r}, which"
                f" {taken[row['key']]} has; give one of them another key."
            )
        taken[row["key"]] = f"claim {row['claim']!r} of {stage}"
    table = pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))
    if run.is_foreign:
        stated = table["paper"].notna() | (table["same_protocol"] == "yes")
        claim = table["claim"].str.replace(r" \(paper: [^)]*\)", "", regex=True)
        table = table.assign(claim=claim, paper=None, same_protocol=table["same_protocol"].where(~stated, OTHER_COHORT))
    save_table(run.root / stage / "claims.csv", table)
    return table


def _claim_keys(run: Run, stage: str) -> dict[str, str]:
    """Keys that the claims of other stages have, each with whose it is."""
    found = {}
    for path in sorted(run.root.glob("*/claims.csv")):
        if path.parent.name != stage:
            with contextlib.suppress(OSError, ValueError):  # a damaged one is another stage's matter
                table = pd.read_csv(path, dtype=str, keep_default_na=False)
                found |= dict.fromkeys(table.get("key", ()), f"a claim of {path.parent.name}")
    return found


def finish(run: Run, stage: str, units: Iterable[Unit]) -> pd.DataFrame:
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
    entries = [{"unit": str(unit.path.relative_to(run.root)), "hash": unit.hash} for unit in units]
    claims = run.root / stage / "claims.csv"
    files = {claims.name: [claims.stat().st_size, file_sha256(claims)]} if claims.is_file() else {}
    record = {"stage": stage, "units": entries, "files": files}
    save_json(run.root / stage / "stage.json", sealed(record))
    rows = []
    for unit in units:
        seconds = unit.seconds()
        for path in sorted(unit.path.iterdir()):
            size = round(path.stat().st_size / 1024, 1)
            rows.append((str(path.relative_to(work_root())), size, seconds))
    for path in sorted((run.root / stage).iterdir()):
        rows.append((str(path.relative_to(work_root())), round(path.stat().st_size / 1024, 1), float("nan")))
    return pd.DataFrame(rows, columns=["file", "size_kib", "made_in_s"])


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
