"""The command behind the Makefile, ``nafld``: settle the settings, run a notebook, write the reports.

Contract: a mistake of the user ends in one sentence on stderr and exit status 2, before any kernel starts; a notebook
that fails ends in one sentence, the place of its half-run copy, and exit status 1; Ctrl-C in one sentence and 130, as
shells count it, or 1 within a notebook. A command loads only the modules that it uses, since rooms are lazy.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nafld_utils import artifacts, engine, params, pipeline, release, report, sweep

Command = Callable[[argparse.Namespace], int]

USER_ERROR = 2
STAGE_FAILED = 1
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; status 0: done, 1: a notebook failed, 2: something given is wrong, 130: interrupted."""
    try:
        options = _parser().parse_args(arguments)
        # On import jsonschema compiles this grammar of addresses for two seconds; without it, it skips that check.
        sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
        engine.collect_seldom()
        return options.command(options)
    except (Exception, KeyboardInterrupt) as error:
        if _is_interrupt(error):
            print("nafld: interrupted; what is finished is kept, run the same command again to go on.", file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, ValueError | OSError):
            raise
        print(f"nafld: {artifacts.advised(_sentence(error))}", file=sys.stderr)
        return USER_ERROR


def _is_interrupt(error: BaseException) -> bool:
    """Whether an error is Ctrl-C, or made of it: Python 3.11 raises a RuntimeError for what `__set_name__` raises."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)


def _resolve(options: argparse.Namespace) -> int:
    """Validate, look ahead, and move the stamps that make compares with."""
    run = _open(options)
    found = pipeline.status(run, options.notebooks)
    todo = {name: stage.due for name, stage in found.items() if stage.due}
    if options.dry_run:
        pipeline.check_folder(run)
        if todo and run.settings.cohort.source == "file":
            print(pipeline.plan_text(run))
        for stage, reason in todo.items():
            print(f"{stage}  {reason}")
        if pipeline.has_changed(run, found):
            again = pipeline.trained_again_text(run)
            print(again, end="\n" if again else "")
        print(f"{run.name}: {len(todo)} of {len(found)} stages would run.")
        return 0
    if todo:
        pipeline.preflight(run)
        given = {"profile": run.settings.profile, "overrides": run.overrides}
        artifacts.save_json(run.root / "settings" / "run.json", given)
        pipeline.write_stamps(run)
        pipeline.settle_times(run, todo, options.notebooks)
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    """Count the sweep's trainings and time what remains; nothing is trained and nothing is written.

    Where the stages before the sweep have not run, what is done cannot be known: all are counted, from the settings.
    """
    run, reason = _open(options), ""
    engine.use_threads(run.settings.engine.threads)
    try:
        experiments, plan = sweep.training_units.experiments(run), sweep.dry_run(run)
    except ValueError as error:
        reason = f"\nCounted from the settings alone, without the minutes of features and scores: {error}"
        trainings = sweep.grid(run.settings).assign(state="not trained yet", seconds=float("nan"))
        networks = trainings[["backbone", "freeze"]].drop_duplicates().itertuples(index=False, name=None)
        seconds = {key: sweep.time_training(run, *key)[0] for key in networks}
        plan = sweep.plan(trainings, seconds, engine.side_by_side(run.settings.engine))
        experiments = sweep.trial_grid.experiments(run.settings, trainings)
    print(experiments.to_string(index=False), plan.round(2).to_string(index=False), sep="\n\n")
    print(reason, end="\n" if reason else "")
    return 0


def _execute(options: argparse.Namespace) -> int:
    run = _open(options, settled=True)
    pipeline.preflight(run)
    try:
        pipeline.run_notebook(run, options.stage, (options.notebooks / f"{options.stage}.ipynb").absolute())
    except pipeline.StageError as error:
        where = f"\nnafld: the half-run notebook is {error.copy}" if error.copy else ""
        print(f"nafld: {error}{where}", file=sys.stderr)
        return STAGE_FAILED
    return 0


def _render(options: argparse.Namespace) -> int:
    report.write_notebook(_open(options, settled=True), options.stage)
    return 0


def _index(options: argparse.Namespace) -> int:
    print(f"report: {report.write_index(_open(options, settled=True))}")
    return 0


def _archive(options: argparse.Namespace) -> int:
    run = artifacts.open_run(run=options.run)
    images = options.images == "yes"
    path = report.write_archive(run, images)
    print(f"report: {path}, {path.stat().st_size / 2**20:.1f} MiB")
    for stage in report.left_out(run):
        print(f"left out: {stage}.html, since it shows which images of the Turing test are real.")
    if images:
        print("With images of patients: share it as the cohort's terms allow, and not with raters to come.")
        print("IMAGES=no packs pages without any.")
    else:
        print("Without images of patients, real or synthetic; its tables still have a row per patient, by number.")
    return 0


def _export(options: argparse.Namespace) -> int:
    path = release.write_export(artifacts.open_run(run=options.run))
    print(f"export: {path}")
    print("It names and shows no patient; whoever gets its classifiers should read the risks in MODEL_CARD.md.")
    print("The licence is to be named by the owner of the cohort.")
    return 0


def _predict(options: argparse.Namespace) -> int:
    run = artifacts.open_run(run=options.run)
    found = release.write_prediction(run, options.data)
    again = found.facts["again"]
    chosen = run.settings.sweep
    print(
        f"{found.facts['images']} images of {len(found.patients)} patients, scored by the folds' classifiers of arm"
        f" {chosen.primary_arm}, r = {chosen.primary_rate:g}"
        f"{f'; {again} of them were trained again, since the run keeps scores alone' if again else ''}."
    )
    if found.measures is not None:
        print(found.measures.round(3).to_string(index=False, na_rep=""))
    print(f"prediction: {found.folder} holds the names of patients as DATA gives them")
    return 0


def _compare(options: argparse.Namespace) -> int:
    print(f"comparison: {report.write_comparison(options.a, options.b)}")
    return 0


def _lab(options: argparse.Namespace) -> int:
    return pipeline.start(_open(options), options.notebooks, options.jupyter)


def _doctor(options: argparse.Namespace) -> int:
    from nafld_utils import doctor  # which needs no set-up, and so loads what no other command needs

    return doctor.main(["--data", options.data] if options.data else [])


def _open(options: argparse.Namespace, settled: bool = False) -> artifacts.Run:
    """The run that make was asked for, never the one that JupyterLab has open; `settled`: after make's ``resolve``."""
    if "run" in params.parse_overrides(options.set):
        raise params.SettingsError("SET: expected settings, found run; name the run with RUN=<name>.")

    def opened(settings: str | dict[str, object]) -> artifacts.Run:
        return artifacts.open_run(options.profile, settings, run=options.run, data=options.data, in_lab=False)

    run = opened(options.set)
    own = run.is_smoke and run.settings.cohort.source == "file"
    if own and (more := pipeline.images_for_smoke(run, settled)):
        run = opened({**params.parse_overrides(options.set), "sampling.n_images": more})
    pipeline.check_same_cohort(run)
    return run


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
    add("dry-run", _dry_run, "count the trainings of the sweep, what is done, and how long the rest takes here")
    add("execute", _execute, "run one notebook", stage=True)
    add("render", _render, "write one executed notebook as HTML", stage=True)
    add("index", _index, "write the front page of the reports")
    lab = add("lab", _lab, "open the notebooks of a run in JupyterLab")
    lab.add_argument("jupyter", nargs="*", metavar="-- OPTION", help="options of jupyter lab, e.g. -- --no-browser")
    add("doctor", _doctor, "check this machine")
    packed = commands.add_parser("report-zip", help="pack the report pages of a finished run")
    packed.set_defaults(command=_archive)
    packed.add_argument("--images", choices=("yes", "no"), default="yes", help="whether pages show images of patients")
    packed.add_argument("run", help="name of the run")
    exported = commands.add_parser(
        "export", help="write released images and classifiers of a run into a folder to give away"
    )
    exported.set_defaults(command=_export)
    exported.add_argument("run", help="name of the run")
    predicted = commands.add_parser("predict", help="score a folder of images with the classifiers of a run")
    predicted.set_defaults(command=_predict)
    predicted.add_argument("--data", default="", metavar="PATH", help="folder of images with a table, or .mat file")
    predicted.add_argument("run", help="name of the run")
    compared = commands.add_parser("compare", help="write a page that holds two finished runs against each other")
    compared.set_defaults(command=_compare)
    compared.add_argument("a", help="name of a run")
    compared.add_argument("b", help="name of another run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
