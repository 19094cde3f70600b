"""``make bench``: measure what the stages cost here, and collect the latest of all benchmarks into one table and page.

Each part runs in a process of its own and leaves a record (`bench_records`); the page ``reports/bench/index.html`` and
the table ``bench.csv`` beside it hold the latest record of every part, and say of a part that it has not been run.
"""

from __future__ import annotations

import argparse
import base64
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nafld_utils import artifacts, bench_records, figures, size_bench
from nafld_utils.figures import bench as draw
from nafld_utils.report import pages

NOT_RUN = "not run"
USUAL = tuple(part.name for part in bench_records.PARTS if part.name not in bench_records.LONG)
COLUMNS = ("part", *bench_records.ROW, "device", "date", "commit", "command")


def run_parts(names: Sequence[str], folder: Path, more: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Run benchmarks one after the other; a part that fails does not keep the others from running.

    Parameters
    ----------
    names : sequence of str
        Of `bench_records.PARTS`.
    folder : Path
        Where their records go.
    more : mapping
        Part to further arguments of its command line.

    Returns
    -------
    dict
        Part to exit status, of those that did not end with 0.
    """
    failed = {}
    for name in names:
        part = bench_records.part(name)
        arguments = [*more.get(name, ()), part.out, str(folder)]
        print(f"== {name}: {part.about}, about {part.length} on two CPU cores", flush=True)
        status = subprocess.run(
            [sys.executable, "-m", f"nafld_utils.{part.module}", *arguments], check=False
        ).returncode
        if status:
            failed[name] = status
    return failed


def collect(folder: Path) -> pd.DataFrame:
    """Rows of all records, `COLUMNS`, in the order of the parts; a part that was not run has one row that says so."""
    rows = []
    for part in bench_records.PARTS:
        found = bench_records.load(folder, part.name)
        if found is None:
            rows.append({"part": part.name, "what": NOT_RUN, "command": part.command})
            continue
        facts = {key: found[key] for key in ("device", "date", "commit", "command")}
        rows += [{"part": part.name, **row, **facts} for row in found["rows"]]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def page(folder: Path, failed: Mapping[str, int] | None = None) -> str:
    """The page as HTML, from the records in a folder.

    Parameters
    ----------
    folder : Path
        Where the records lie.
    failed : mapping, optional
        Parts that just failed, with their exit status.
    """
    table, parts = collect(folder), [_part(part, folder) for part in bench_records.PARTS]
    measured = table[table["what"] != NOT_RUN]
    missing = [part["name"] for part in parts if part["date"] == NOT_RUN]
    summary = f"{len(parts) - len(missing)} of {len(parts)} benchmarks have been run."
    summary += f" Not run: {', '.join(missing)}." if missing else ""
    failures = [
        f"{name}: just failed or broke its bound (exit status {status}); what stands below is its last record."
        for name, status in (failed or {}).items()
    ]
    return pages.render(
        "bench.html.j2",
        title="What the study costs",
        simulated="",
        summary=summary,
        failures=failures,
        groups=[_group(name, part) for name, part in measured.groupby("part", sort=False)],
        figures=_figures(folder, measured),
        parts=parts,
    )


def _group(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Rows of one part under a line that says on what, when and from which commit they were measured."""
    first = rows.iloc[0]
    title = f"{bench_records.part(name).about}. {first['device']}, {first['date'][:10]}, commit {first['commit']}"
    return {"title": title, "rows": [_cells(row) for row in rows.to_dict("records")]}


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    shown = {key: "" if pd.isna(value) else str(value) for key, value in row.items()}
    shown["share"] = "" if pd.isna(row["share"]) else f"{100 * row['share']:.0f} %"
    for key, digits in (("seconds", 3), ("a_second", 3), ("ratio", 3), ("peak_gib", 2)):
        shown[key] = "" if pd.isna(row[key]) else f"{row[key]:.{digits}g}" if row[key] < 1000 else f"{row[key]:,.0f}"
    return shown


def _part(part: bench_records.Part, folder: Path) -> dict[str, str]:
    found = bench_records.load(folder, part.name)
    shown = {"name": part.name, "about": part.about}
    if found is None:
        return shown | {"date": NOT_RUN, "device": "", "commit": "", "took": "", "command": part.command}
    took = "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f} min"
    keys = ("device", "commit", "command")
    return shown | {key: found[key] for key in keys} | {"date": found["date"].replace("T", " "), "took": took}


def _figures(folder: Path, measured: pd.DataFrame) -> list[dict[str, str]]:
    from matplotlib.figure import Figure

    found = []
    with figures.style():
        compared = measured.dropna(subset=["ratio"])
        if len(compared):
            figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(compared)))
            draw.ratios(compared, figure.subplots())
            alt = "; ".join(f"{row.stage} {row.what}: {row.ratio:.3g} times" for row in compared.itertuples())
            text = "How many times faster than the plain loop of the same run, see the table for what that is."
            found.append(_encoded(figure, f"Bars of how many times faster: {alt}.", text))
        record = bench_records.load(folder, "size")
        if record is not None:
            found.append(_size_figure(record))
    return found


def _size_figure(record: Mapping[str, Any]) -> dict[str, str]:
    from matplotlib.figure import Figure

    curve = pd.DataFrame(record["curve"])
    fitted = size_bench.fit(curve).set_index("step")
    figure = Figure(figsize=(9.5, 4.8))
    left, right = figure.subplots(1, 2)
    draw.seconds(curve, fitted["exponent"].to_dict(), left).set_title("Time")
    draw.memory(curve, right).set_title("Memory")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.supxlabel(figures.SIMULATED, x=0.99, ha="right", fontsize=9, style="italic", color="#8C2D04")
    sizes = f"{curve['patients'].min()} to {curve['patients'].max()} simulated patients"
    text = "; ".join(
        f"{line.Index}: power {line.exponent:.2f}, {line.ms_an_image:.0f} ms an image,"
        f" memory {line.memory_growth:+.2f} GiB"
        for line in fitted.itertuples()
    )
    caption = (
        f"Cost against the size of the cohort, {sizes} of {record['frames']} frames, preprocessing of profile"
        f" {record['profile']}, one process a step. A power of 1 of the images is linear growth of processor seconds;"
        f" memory is the difference between the largest and the smallest cohort. {text}."
    )
    return _encoded(figure, f"Processor seconds and peak memory of each step against images, {sizes}: {text}.", caption)


def _encoded(figure: Any, alt: str, caption: str) -> dict[str, str]:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, bbox_inches="tight")
    return {"data": base64.b64encode(target.getvalue()).decode(), "alt": alt, "caption": caption}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where a part failed, 2 where a record cannot be read or the page cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.bench", description=__doc__.splitlines()[0])
    known = [part.name for part in bench_records.PARTS]
    text = "default: all but intervals, which takes long; none: only write the page"
    parser.add_argument("--parts", nargs="+", choices=[*known, "none"], default=list(USUAL), help=text)
    parser.add_argument("--networks", choices=bench_records.NETWORKS, help="of models: profile of the networks")
    parser.add_argument("--compile", action="store_true", help="of models: torch.compile of this project's networks")
    parser.add_argument("--run", help="of models: profile of a finished run whose denoisers are drawn from as well")
    parser.add_argument("--n", type=int, default=64, help="of models: images a sampler and set of seeds with --run")
    parser.add_argument("--patients", type=int, nargs="+", help="of size: numbers of patients")
    parser.add_argument("--frames", type=int, help="of size: frames a patient; the full measurement takes 10")
    parser.add_argument("--out", type=Path, default=bench_records.default_folder())
    options = parser.parse_args(arguments)
    more: dict[str, list[str]] = {"models": ["--run", options.run, "--n", str(options.n)] if options.run else []}
    more["models"] += ["--networks", options.networks] if options.networks else []
    more["models"] += ["--compile"] if options.compile else []
    more["size"] = ["--patients", *map(str, options.patients)] if options.patients else []
    more["size"] += ["--frames", str(options.frames)] if options.frames else []
    failed = run_parts([name for name in options.parts if name != "none"], options.out, more)
    try:
        artifacts.save_table(options.out / "bench.csv", collect(options.out))
        path = artifacts.save_text(options.out / "index.html", page(options.out, failed))
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for name, status in failed.items():
        print(f"bench: {name} failed with exit status {status}; the others were measured.", file=sys.stderr)
    print(f"report: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
