"""Does new code open an old run as it is? ``python tests/unchanged.py note RUN`` before, ``... compare RUN`` after.

Between the two, ``make all RUN=...`` with the new code, in the same `NAFLD_ROOT`. Notebooks may run again; no unit and
no training may be made again, and every number of every ``claims.csv`` must be the same to the last digit.
"""

import csv
import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(os.environ.get("NAFLD_ROOT", Path(__file__).resolve().parents[1]))
NUMBERS = ("paper", "this_run", "low", "high", "n")


def state(run):
    """Files of all units and trainings with time and SHA-256, and the numbers of all claims as they are written."""
    folder = ROOT / "artifacts" / run
    made = [path for path in folder.rglob("*") if path.is_file() and not path.relative_to(folder).parts[0][0].isdigit()]
    files = {
        str(path.relative_to(folder)): [path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(made)
        if path.relative_to(folder).parts[0] not in ("settings", "tensorboard")
    }
    claims = {}
    for path in sorted(folder.glob("*/claims.csv")):
        with open(path, encoding="utf-8", newline="") as handle:
            claims[path.parent.name] = [[row[name] for name in NUMBERS] for row in csv.DictReader(handle)]
    return {"files": files, "claims": claims}


def main(action, run):
    """Write the state beside the run, or compare with what was written; the exit status is 1 where they differ."""
    note, now = ROOT / "artifacts" / f"{run}.unchanged.json", state(run)
    if action == "note":
        note.write_text(json.dumps(now), encoding="utf-8")
        return 0
    before = json.loads(note.read_text(encoding="utf-8"))
    again = [name for name, known in before["files"].items() if now["files"].get(name) != known]
    other = [stage for stage, rows in before["claims"].items() if now["claims"].get(stage) != rows]
    print(f"{run}: {len(before['files'])} files, {len(again)} made again or gone: {', '.join(again[:5]) or 'none'}")
    print(f"{run}: {sum(map(len, before['claims'].values()))} claims, other numbers in: {', '.join(other) or 'none'}")
    return int(bool(again or other))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
