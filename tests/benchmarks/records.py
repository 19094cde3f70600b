"""The one table writer of the benchmarks: a printed table, a record in ``reports/bench``, and the page of all records.

Contract: a benchmark yields rows, dicts with keys of `ROW`; what does not apply is left out. ``a_second`` counts steps
or images; ``ratio`` says how many times faster than ``against`` a row is, both measured in the same run; ``share`` is
that of the matrix rate of the same run. A row may hold ``broken``, a sentence on a bound that it breaks. Seconds of two
machines, or of one machine on two days, are not compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nafld_utils import artifacts, engine
from nafld_utils.report import pages

ROW = ("stage", "what", "per", "seconds", "a_second", "ratio", "against", "peak_gib", "share")
FACTS = ("device", "date", "commit", "command")
# Scripts of this folder, what each measures and how long it takes on two CPU cores.
PARTS = {
    "ldm": ("Stages 03 and 04: training step and image against a plain diffusers loop", "4 min"),
    "quality": ("Stage 05: features and nearest training frames", "2 min"),
    "sweep": ("Stage 06: trainings per hour against a plain loop over whole networks", "5 min"),
    "attributions": ("Stage 07: SHAP of four images, time, memory and additivity", "2 min"),
    "cohort_size": ("Stages 01, 02, 05 and 06: seconds and memory against the size of the cohort", "6 min"),
    "copying": ("Stage 03: when models of 4 and 10 simulated patients start to copy them", "2 min"),
    "rater_study": ("Equivalence of raters: size at the margin, planned and found power", "2 min"),
    "gate_study": ("Whether stage 07 lets maps be read that must not be, by simulation", "2 min"),
    "kernel_study": ("Whether the kernel distance's interval over patients holds it", "2 min"),
    "copy_study": ("Whether the copy audit flags no more new patients than it says", "2 min"),
    "interval_study": ("Whether intervals of an AUC hold it, simulated: a part of the stored study", "2 min"),
    "gain_study": ("Simulated: size and coverage of the test of a gain over patients and seeds", "2 min"),
    "patients_study": ("Simulated: how often studies of the planned number of patients show a declared gain", "2 min"),
    "nested_study": ("Simulated: coverage of the interval over patients and simulated cohorts", "2 min"),
    "waiting": ("All stages: the smoke run, the same again, and its notebooks opened as in JupyterLab", "4 min"),
}
NOT_RUN = "not run"

Rows = Iterable[dict[str, Any]]


def command(part: str) -> str:
    """How to run a part alone."""
    return f"python tests/benchmarks/{part}.py"


def default_folder() -> Path:
    """Where records and the page go."""
    return artifacts.work_root() / "reports" / "bench"


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(where: torch.device) -> str:
    """The device in words: the GPU's name, or the processor and the cores that are used."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else f'{platform.machine()} CPU'}, {engine.cores()} cores"


def run(
    part: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, torch.device], Rows],
    arguments: Sequence[str] | None = None,
    on_cpu: bool = False,
) -> int:
    """A benchmark's command line: measure, keep every row at once, print the table and write the page anew.

    Returns
    -------
    int
        1 where a row breaks a bound, 2 where something cannot be measured or written.
    """
    parser.add_argument("--out", type=Path, default=default_folder(), help="folder of the record and the page")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, where = parser.parse_args(given), torch.device("cpu") if on_cpu else device()
    rows, started = [], time.perf_counter()
    try:
        for row in measure(options, where):
            # what is measured must not be lost with what comes after it
            save(options.out, part, [*rows, row], where, time.perf_counter() - started, given)
            rows.append(row)
            print(f"{row['stage']} {row['what']}, {row['per']}: {row['seconds']:.3g} s", flush=True)
        page = write_page(options.out)
    except (ValueError, OSError) as error:
        print(f"{part}: {error}", file=sys.stderr)
        return 2
    print(pd.DataFrame(rows).reindex(columns=list(ROW)).dropna(axis=1, how="all").round(4).to_string(index=False))
    print(f"{device_name(where)}; page: {page}")
    broken = [row["broken"] for row in rows if row.get("broken")]
    for sentence in broken:
        print(f"{part}: {sentence}", file=sys.stderr)
    return int(bool(broken))


def save(
    folder: Path, part: str, rows: Rows, where: torch.device, seconds: float, arguments: Sequence[str] = ()
) -> Path:
    """Write the record of a part; its command leaves out the folder, which is this machine's own."""
    parser, known = argparse.ArgumentParser(add_help=False, allow_abbrev=False), artifacts.environment()
    parser.add_argument("--out")
    value = {
        "part": part,
        "command": shlex.join([*command(part).split(), *parser.parse_known_args(list(arguments))[1]]),
        "device": device_name(where),
        "commit": known["commit"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "seconds": seconds,
        "rows": [{key: _plain(row.get(key)) for key in ROW} for row in rows],
        "versions": known["versions"],
    }
    return artifacts.save_json(folder / f"{part}.json", value)


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN is None."""
    if value is None or isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else None


def load(folder: Path, part: str) -> dict[str, Any] | None:
    """The record of a part, or None where it has not been run; ValueError says how to mend a damaged one."""
    path = folder / f"{part}.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        whole = value["part"] == part and {*FACTS, "seconds"} <= set(value)
        whole &= all(set(ROW) <= set(row) for row in value["rows"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: expected a record of `{command(part)}`, found something else; run it again.")
    return value


def write_page(folder: Path, failed: Mapping[str, int] | None = None) -> Path:
    """Write ``index.html`` from the latest record of every part; `failed`: exit statuses of what just failed."""
    found = {part: load(folder, part) for part in PARTS}
    missing = [part for part, record in found.items() if record is None]
    summary = f"{len(PARTS) - len(missing)} of {len(PARTS)} benchmarks have been run."
    summary += f" Not run: {', '.join(missing)}." if missing else ""
    failures = [
        f"{part}: just failed or broke its bound (exit status {status}); what stands below is its last record."
        for part, status in (failed or {}).items()
    ]
    groups = [_group(part, record) for part, record in found.items()]
    title = "What the study costs"
    texts = {"title": title, "simulated": "", "summary": summary, "failures": failures}
    return artifacts.save_text(
        folder / "index.html", pages.render(Path(__file__).parent / "bench.html.j2", groups=groups, **texts)
    )


def _group(part: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rows of one part under a line that says on what, when, from which commit and by which command it was measured."""
    title, rows = f"{part}: {PARTS[part][0]}.", []
    if record is None:
        return {"title": f"{title} {NOT_RUN.capitalize()}", "command": command(part), "rows": rows}
    facts = f"{record['device']}, {record['date'].replace('T', ' ')}, commit {record['commit']}"
    for row in record["rows"]:
        shown = {key: "" if row[key] is None else str(row[key]) for key in ROW}
        for key in ("seconds", "a_second", "ratio", "peak_gib"):
            value = row[key]
            shown[key] = "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        shown["share"] = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        rows.append(shown)
    title = f"{title} {facts}, took {record['seconds'] / 60:.1f} min"
    return {"title": title, "command": record["command"], "rows": rows}
