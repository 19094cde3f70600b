"""Check a machine before and after set-up, with a remedy for each fault.

Contract: only the standard library is imported in this process, so that it runs with any Python 3.11 before anything
is installed; the heavy libraries are imported in a subprocess, where a crash is a finding and not the end. Exit
status 1 when something needed is missing, 0 when only optional things are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
INSTALLED_GIB = 6.3  # what the lock installs, compiled
SET_UP_GIB = 8.0  # with the downloads that lie beside it for a while
RUN_GIB = 5.0  # what the larger profiles write; engine.min_free_gib is the gate itself

_PROBE = """
import json, sys
import torch, torchvision, timm
from torchvision.ops import nms
nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
json.dump({"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__,
           "gpus": gpus, "cuda": torch.version.cuda}, sys.stdout)
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``state`` is "ok", "optional" (missing, the study runs without it) or "fault"; ``remedy`` is empty where nothing is
    wrong.
    """

    what: str
    state: str
    found: str
    remedy: str = ""


def check_python(version: tuple[int, int] | None = None) -> Finding:
    """Python 3.11 or 3.12."""
    found = version or (sys.version_info[0], sys.version_info[1])
    text = ".".join(map(str, found))
    if (3, 11) <= found < (3, 13):
        return Finding("Python", "ok", text)
    return Finding("Python", "fault", text, "install Python 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.12")


def check_disk(folder: Path, needed: float, purpose: str) -> Finding:
    """Free disk, in GiB, where a folder is or will be; `purpose` is what the space is for."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    what, found = f"disk for {purpose}", f"{free:.1f} GiB free at {place}, {needed:g} GiB needed"
    if free >= needed:
        return Finding(what, "ok", found)
    return Finding(what, "fault", found, f"free {needed - free:.1f} GiB there, or work on another disk")


def check_libraries(python: str = sys.executable) -> list[Finding]:
    """Import torch, torchvision and timm in a subprocess, and ask torch for its GPUs."""
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=False, env=environment)
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        remedy = "remove .venv and run make test: torch and torchvision must come as the pair in requirements.lock"
        return [Finding("libraries", "fault", reason, remedy)]
    names = ", ".join(f"{name} {facts[name]}" for name in ("torch", "torchvision", "timm"))
    return [Finding("libraries", "ok", names), check_gpu(facts["gpus"], facts["cuda"], _driver())]


def check_gpu(gpus: Sequence[str], cuda: str | None, driver: str) -> Finding:
    """What torch sees, built for a CUDA version, beside what ``nvidia-smi`` says; empty where that is not there."""
    if gpus:
        return Finding("GPU", "ok", f"{', '.join(gpus)}; driver {driver or 'unknown'}; torch built for CUDA {cuda}")
    if driver:
        remedy = f"update the NVIDIA driver until it supports CUDA {cuda}, then run make doctor again"
        return Finding("GPU", "optional", f"driver {driver}, but torch cannot use it", remedy)
    return Finding("GPU", "optional", "none", "none needed for smoke, demo and cpu; the paper profile wants one")


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


def check_cohort(data: str = "", raw: Path | None = None) -> Finding:
    """The real cohort: where it was found, and its checksum beside the one that the record states.

    `data` is the user's path; empty looks into `raw`, by default ``data/raw`` of the work folder.
    """
    raw = raw or Path(os.environ.get("NAFLD_ROOT", PROJECT_ROOT)) / "data" / "raw"
    files = [Path(data).expanduser()] if data else sorted(raw.glob("[!.]*.mat"))
    if data and not files[0].exists():
        return Finding("cohort", "fault", f"nothing at {data}", "correct DATA=<path of the .mat file>")
    if not files:
        remedy = f"only cpu and paper need it: they download it, or put the .mat file into {raw}, or give DATA=<path>"
        return Finding("cohort", "optional", "none", remedy)
    if files[0].is_dir():
        return Finding("cohort", "ok", f"folder {files[0]}")
    with open(files[0], "rb") as handle:
        md5 = hashlib.file_digest(handle, "md5").hexdigest()
    found = f"{files[0]} ({files[0].stat().st_size:,} bytes, md5 {md5})"
    stated = _stated_md5(files[0])
    if stated is None:
        return Finding("cohort", "ok", f"{found}; no record beside it states its checksum, notebook 01 says more")
    if stated == md5:
        return Finding("cohort", "ok", f"{found}; the published file, as its record states")
    return Finding("cohort", "fault", f"{found}; its record states {stated}", "remove the file, it is downloaded again")


def _stated_md5(path: Path) -> str | None:
    """Checksum that the record of the DOI states for this file; the record is kept beside a downloaded file."""
    for record in (path.with_suffix(".record.json"), path.with_name(path.name + ".record.json")):
        try:
            text = record.read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.findall(r"\b[0-9a-f]{32}\b", text)
        if found:
            return found[0]
    return None


def check_kernel(python: str = sys.executable) -> Finding:
    """The Jupyter kernel that the notebooks name."""
    spec = Path(python).parent.parent / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
    if spec.exists():
        return Finding("kernel", "ok", str(spec))
    return Finding("kernel", "fault", "python3 is not registered", "remove .venv/.ready and run make test")


def examine(data: str = "") -> list[Finding]:
    """All checks of this machine, in the order of the report."""
    ready = Path(sys.prefix, ".ready").exists()
    work = Path(os.environ.get("NAFLD_ROOT", PROJECT_ROOT))
    findings = [check_python(), check_disk(work / "artifacts", RUN_GIB, "artifacts")]
    if ready:
        findings += [check_kernel(), *check_libraries()]
    else:
        findings.append(check_disk(PROJECT_ROOT, SET_UP_GIB, f"the set-up ({INSTALLED_GIB} GiB installed)"))
        findings.append(Finding("set-up", "optional", "not made yet", "make all and make test each make it"))
    return [*findings, check_cohort(data)]


def report(findings: Sequence[Finding], write: Callable[[str], None] = print) -> int:
    """Print findings, one per line and its remedy below; return the exit status."""
    for finding in findings:
        write(f"{finding.state:<9} {finding.what}: {finding.found}")
        if finding.remedy:
            write(f"{'':<9} -> {finding.remedy}")
    faults = sum(finding.state == "fault" for finding in findings)
    write(f"{faults} to mend." if faults else "Nothing needs mending.")
    return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; ``--before-set-up FOLDER`` only asks whether there is room, and is silent when there is."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="path of the real cohort")
    parser.add_argument("--before-set-up", type=Path, metavar="FOLDER", help="check the disk for a virtual environment")
    options = parser.parse_args(arguments)
    if options.before_set_up is None:
        return report(examine(options.data))
    if (options.before_set_up / "bin").exists():  # an update replaces files, it hardly adds any
        return 0
    room = check_disk(options.before_set_up, SET_UP_GIB, f"the set-up ({INSTALLED_GIB} GiB installed)")
    return 0 if room.state == "ok" else report([room])


if __name__ == "__main__":
    sys.exit(main())
