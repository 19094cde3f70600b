"""What a benchmark leaves behind: one JSON file a part, with command, device, commit and date, which `bench` tables.

Contract: a record holds rows of ``stage, what, per, seconds, a_second, ratio, against, peak_gib, share``; what does not
apply is None. ``a_second`` counts steps or images; ``ratio`` says how many times faster than ``against`` a row is, both
measured in the same run; ``share`` is that of the matrix rate which the same run measured. Seconds of two machines, or
of one machine on two days, are not compared.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import resource
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nafld_utils import artifacts

ROW = ("stage", "what", "per", "seconds", "a_second", "ratio", "against", "peak_gib", "share")
FORMAT = 2
PEAK_RESET = Path("/proc/self/clear_refs")  # of Linux; elsewhere the peak counts from a process's start


@dataclass(frozen=True)
class Part:
    """One benchmark of ``make bench``.

    Attributes
    ----------
    name : str
        Its name on the command line, and of its record.
    module : str
        Module that measures it, below ``nafld_utils``.
    about : str
        What it measures, in a sentence.
    length : str
        About how long it takes on two CPU cores.
    out : str
        Option that takes the folder of the record.
    """

    name: str
    module: str
    about: str
    length: str
    out: str = "--out"

    @property
    def command(self) -> str:
        """How to run it alone."""
        return f"python -m nafld_utils.{self.module}"


PARTS = (
    Part("models", "benchmarks", "Stages 03 and 04: training step and image against a plain diffusers loop", "4 min"),
    Part("quality", "quality_bench", "Stage 05: features, nearest training frames, search for copies", "2 min"),
    Part("sweep", "sweep_bench", "Stage 06: trainings an hour against a plain loop over whole networks", "5 min"),
    Part("shap", "explain_benchmark", "Stage 07: SHAP of four images, time, memory and additivity", "2 min"),
    Part("size", "size_bench", "Stages 01, 02, 05 and 06: seconds and memory against the size of the cohort", "6 min"),
    Part(
        "intervals",
        "interval_study",
        "Whether intervals of an AUC hold it on new patients",
        "20 min",
        "--record",
    ),
)
LONG = ("intervals",)  # run only when named
# Profiles whose networks are measured; auto: paper on a GPU, demo elsewhere.
NETWORKS = ("auto", "demo", "cpu", "paper")


def part(name: str) -> Part:
    """The part of that name."""
    return next(one for one in PARTS if one.name == name)


def default_folder() -> Path:
    """Where records, tables and the page go: ``reports/bench``."""
    return artifacts.work_root() / "reports" / "bench"


def record_path(folder: Path, name: str) -> Path:
    """The record of a part."""
    return folder / f"{name}.json"


def device_name(device: Any = "cpu", threads: int | None = None) -> str:
    """The device in words: the GPU's name, or the processor with its cores and the threads used, by default torch's."""
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {threads or torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else f"{platform.machine()} CPU"


def save(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    device: Any = "cpu",
    seconds: float | None = None,
    arguments: Sequence[str] | None = None,
    threads: int | None = None,
    **facts: Any,
) -> Path:
    """Write the record of a part that has just been measured.

    Parameters
    ----------
    folder : Path
        Where.
    name : str
        One of `PARTS`.
    rows : sequence of mapping
        `ROW`; keys that are left out count as None.
    device : torch.device or str
        Where it was measured.
    seconds : float, optional
        How long the whole part took.
    arguments : sequence of str, optional
        Of the command line; default: those of the process.
    threads : int, optional
        That computed, all processes together; default: torch's number now.
    **facts
        JSON-able entries besides, e.g. the curve of `size_bench`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    known = artifacts.environment()
    value = {
        "format": FORMAT,
        "part": name,
        "command": shlex.join([*part(name).command.split(), *_without_folder(arguments, part(name).out)]),
        "device": device_name(device, threads),
        "commit": known["commit"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "seconds": seconds,
        "rows": [{key: _plain(row.get(key)) for key in ROW} for row in rows],
        **facts,
        "versions": known["versions"],
    }
    return artifacts.save_json(record_path(folder, name), value)


def _without_folder(arguments: Sequence[str], option: str) -> list[str]:
    """Arguments without the folder that the record goes to, which is this machine's own."""
    kept = list(arguments)
    while option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return [text for text in kept if not text.startswith(f"{option}=")]


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN is None."""
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a part; None where it has not been run.

    Raises
    ------
    ValueError
        The file is damaged or of another format; the message names it and the command that makes it anew.
    """
    path = record_path(folder, name)
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        whole = value["format"] == FORMAT and value["part"] == name
        whole &= {"command", "device", "commit", "date", "seconds"} <= set(value)
        whole &= all(set(ROW) <= set(row) for row in value["rows"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: expected a record of `{part(name).command}`, found something else; run it again.")
    return value


def reset_peak() -> None:
    """Let `peak_gib` count from what the process holds now, where `PEAK_RESET` exists; elsewhere does nothing."""
    if PEAK_RESET.exists():
        PEAK_RESET.write_text("5", encoding="ascii")


def peak_gib() -> float:
    """Most memory that this process has held since its start or `reset_peak`, GiB, libraries and mapped pages included.

    Notes
    -----
    On Linux ``VmHWM``: ``ru_maxrss`` of a child process begins at what its parent held when it was started.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes


class Watched:
    """Most memory that this process and all that it started have held together, GiB, while a ``with`` block runs.

    Pages that several processes share, libraries above all, count once on Linux (the sum of proportional set sizes);
    elsewhere once a process. Looked at ten times a second.

    Attributes
    ----------
    gib : float
        The most so far.
    """

    def __enter__(self) -> Watched:
        self.gib, self._over = 0.0, threading.Event()
        self._look = threading.Thread(target=self._until_over, daemon=True)
        self._look.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._look.join()

    def _until_over(self) -> None:
        while not self._over.wait(0.1):
            mine = psutil.Process()
            self.gib = max(self.gib, sum(_share(one) for one in [mine, *mine.children(recursive=True)]) / 2**30)


def _share(process: psutil.Process) -> int:
    """Bytes of a process; 0 of one that has ended meanwhile."""
    try:
        held = process.memory_full_info() if psutil.LINUX else process.memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(held, "pss", held.rss)
