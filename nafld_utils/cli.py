"""The command behind the Makefile, ``nafld``: settle the settings, run a notebook, write the reports.

Contract: a mistake of the user ends in one sentence on stderr and exit status 2, before any kernel starts; a notebook
that fails ends in one sentence, the place of its half-run copy, and exit status 1. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nafld_utils.artifacts import Run

Command = Callable[[argparse.Namespace], int]

USER_ERROR = 2
STAGE_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        Exit status: 0 done, 1 a notebook failed, 2 something given is wrong.
    """
    options = _parser().parse_args(arguments)
    # On import jsonschema compiles this grammar of addresses, for two seconds; without it, it leaves that check out.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    try:
        return options.command(options)
    except (ValueError, OSError) as error:
        print(f"nafld: {_sentence(error)}", file=sys.stderr)
        return USER_ERROR


def _resolve(options: argparse.Namespace) -> int:
    """Validate, look ahead, and move the stamps that make compares with."""
    from nafld_utils import artifacts, graph

    run, overrides = _open(options)
    todo = graph.plan(run, options.notebooks)
    if options.dry_run:
        graph.check_folder(run)
        for stage, reason in todo.items():
            print(f"{stage}  {reason}")
        print(f"{run.name}: {len(todo)} of {len(graph.STAGES)} stages would run.")
        return 0
    if todo:
        graph.preflight(run)
        given = {"profile": run.settings.profile, "overrides": overrides}
        artifacts.save_json(run.root / "settings" / "run.json", given)
        graph.write_stamps(run)
        graph.settle_times(run, todo, options.notebooks)
    return 0


def _execute(options: argparse.Namespace) -> int:
    from nafld_utils import execute, graph, report

    run, overrides = _open(options)
    graph.preflight(run)
    try:
        execute.run_notebook(run, options.stage, (options.notebooks / f"{options.stage}.ipynb").absolute(), overrides)
    except execute.StageError as error:
        where = f"\nnafld: the half-run notebook is {error.copy}" if error.copy else ""
        print(f"nafld: {error}{where}", file=sys.stderr)
        return STAGE_FAILED
    report.write_notebook(run, options.stage)  # now, not at the end: a later stage may fail
    return 0


def _render(options: argparse.Namespace) -> int:
    from nafld_utils import report

    run, _ = _open(options)
    report.write_notebook(run, options.stage)
    return 0


def _index(options: argparse.Namespace) -> int:
    from nafld_utils import report

    run, _ = _open(options)
    print(f"report: {report.write_index(run)}")
    return 0


def _archive(options: argparse.Namespace) -> int:
    from nafld_utils import report
    from nafld_utils.report import archive, stored

    run = stored.open_stored(options.run)
    path = report.write_archive(run)
    print(f"report: {path}, {path.stat().st_size / 2**20:.1f} MiB")
    for stage in archive.left_out(run):
        print(f"left out: {stage}.html, since it shows which images of the Turing test are real.")
    print("Its pages show images of patients: share them as the cohort's terms allow, and not with raters to come.")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from nafld_utils import report

    print(f"comparison: {report.write_comparison(options.a, options.b)}")
    return 0


def _lab(options: argparse.Namespace) -> int:
    from nafld_utils import lab

    run, overrides = _open(options)
    return lab.start(run, overrides, options.notebooks, options.jupyter)


def _doctor(options: argparse.Namespace) -> int:
    from nafld_utils import doctor

    return doctor.main(["--data", options.data] if options.data else [])


def _open(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    from nafld_utils import graph

    run, overrides = graph.open_run(options.profile, options.run, options.set, options.data)
    graph.check_same_cohort(run)
    return run, overrides


def _sentence(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    named = getattr(error, "filename", None)
    if hasattr(error, "problems"):  # of a folder cohort: a line each
        return text
    text = " ".join(text.split())
    return f"{text}: {named}" if named and str(named) not in text else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nafld", description="The command behind the Makefile; see `make help`.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, function: Command, text: str, stage: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        if stage:
            command.add_argument("stage", help="name of the notebook without its ending, e.g. 05_quality_metrics")
        command.add_argument("--profile", default="demo", help="smoke, demo, cpu or paper (default: demo)")
        command.add_argument("--run", default="", help="name of the run (default: the profile)")
        command.add_argument("--set", default="", metavar="'a.b=c ...'", help="settings to override")
        command.add_argument("--data", default="", metavar="PATH", help="cohort to use instead of the profile's")
        command.add_argument("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
        return command

    resolve = add("resolve", _resolve, "validate the settings and note which of them changed")
    resolve.add_argument("--dry-run", action="store_true", help="only say which stages would run, and why")
    add("execute", _execute, "run one notebook", stage=True)
    add("render", _render, "write one executed notebook as HTML", stage=True)
    add("index", _index, "write the front page of the reports")
    lab = add("lab", _lab, "open the notebooks of a run in JupyterLab")
    lab.add_argument("jupyter", nargs="*", metavar="-- OPTION", help="options of jupyter lab, e.g. -- --no-browser")
    add("doctor", _doctor, "check this machine")
    packed = commands.add_parser("report-zip", help="pack the report pages of a finished run")
    packed.set_defaults(command=_archive)
    packed.add_argument("run", help="name of the run")
    compared = commands.add_parser("compare", help="write a page that holds two finished runs against each other")
    compared.set_defaults(command=_compare)
    compared.add_argument("a", help="name of a run")
    compared.add_argument("b", help="name of another run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
