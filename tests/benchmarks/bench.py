"""``make bench``: run the benchmarks of this folder one after the other and write the page of their latest records.

``BENCH="quality sweep"`` runs some, ``BENCH="ldm --run demo"`` hands one its own options, ``BENCH="page"`` writes the
page from what was measured before; without words all run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import records

PAGE = "page"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where a part failed, which keeps no other from running, 2 without a page."""
    known = (*records.PARTS, PAGE)
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        allow_abbrev=False,
        usage=f'make bench BENCH="[{" | ".join(known)} ...] [--out FOLDER] [options of the one part named]"',
    )
    parser.add_argument("--out", type=Path, default=records.default_folder(), help="folder of the records and the page")
    given = list(sys.argv[1:] if arguments is None else arguments)
    n = next((i for i, word in enumerate(given) if word.startswith("-")), len(given))
    parts = given[:n] or list(records.PARTS)
    options, own = parser.parse_known_args(given[n:])
    if set(parts) - set(known):
        parser.error(f"expected some of {', '.join(known)}, found {', '.join(parts)}.")
    if own and (len(parts) > 1 or parts == [PAGE]):
        parser.error(f"expected one benchmark before {' '.join(own)}, found {', '.join(parts)}; name the one meant.")
    failed = {}
    for part in (part for part in parts if part != PAGE):
        about, length = records.PARTS[part]
        print(f"== {part}: {about}, about {length} on two CPU cores", flush=True)
        script = Path(__file__).with_name(f"{part}.py")
        status = subprocess.run([sys.executable, str(script), *own, "--out", str(options.out)], check=False).returncode
        if status:
            failed[part] = status
    try:
        page = records.write_page(options.out, failed)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for part, status in failed.items():
        print(f"bench: {part} failed with exit status {status}; the others were measured.", file=sys.stderr)
    print(f"report: {page}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
