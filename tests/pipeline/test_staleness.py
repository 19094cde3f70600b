"""The graph, with toy notebooks in place of the first two: what runs, what does not, and what a failure leaves."""

import os
import re
import resource
import shutil
import subprocess

import nbformat
import pytest
from project import PROJECT, run_make
from toy_study import FIRST, SECOND, Study, write_notebook

from nafld_utils import artifacts, cli, params, pipeline
from nafld_utils.params import SettingsError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study whose two toy stages have run; tests copy it."""
    study = Study(tmp_path_factory.mktemp("graph"))
    done = study.make(SECOND, check=0)
    return study, done.stdout


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    """A copy of the finished study, times and all."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    for name in ("work", "notebooks"):
        shutil.copytree(finished[0].root.parent / name, tmp_path / name, copy_function=shutil.copy2)
    copy = object.__new__(Study)
    copy.root, copy.notebooks = tmp_path / "work", tmp_path / "notebooks"
    return copy


def test_a_stage_runs_with_what_it_needs_and_shows_its_progress(finished):
    study, shown = finished
    assert all(
        study.report(stage).with_suffix(ending).exists() for stage in (FIRST, SECOND) for ending in (".ipynb", ".html")
    )
    assert re.search(rf"{SECOND}\s+\d+:\d\d  \[ 3/3\] Compute", shown), shown
    assert re.search(rf"{SECOND}\s+\d+:\d\d  half of it done", shown), shown
    note = nbformat.read(study.report(SECOND), as_version=4).metadata.papermill
    assert note.parameters == {"profile": "smoke", "overrides": {}}
    assert str(study.root) not in f"{note.input_path} {note.output_path}"


STUB = """#!/bin/sh
command=$1 stage=$2 made=$NAFLD_ROOT/reports/$NAFLD_RUN stamps=$NAFLD_ROOT/artifacts/$NAFLD_RUN/settings
said() { echo "$1 $stage" >> $NAFLD_ROOT/said; }
wait_for() { for turn in $(seq 100); do grep -qx "$1" $NAFLD_ROOT/said && return; sleep 0.1; done; exit 1; }
mkdir -p $made $stamps
case $command in
resolve) for name in $STAGES; do [ -e $stamps/$name.json ] || touch $stamps/$name.json; done;;
execute) said begin; if [ $stage = "$MEETS" ]; then wait_for "page $PAGE"; fi
  if [ $stage = "$FAILS" ]; then exit 1; fi; said end; touch $made/$stage.ipynb;;
render) if [ $stage = "$PAGE" ]; then wait_for "begin $MEETS"; fi; said page; touch $made/$stage.html;;
index) stage=; said front; touch $made/index.html;;
esac
"""


@pytest.fixture
def stubbed(tmp_path):
    """Make with a command that only says what it is asked; gives what was said, of each stage its number."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / ".ready").touch()
    command = tmp_path / "venv" / "bin" / "nafld"
    command.write_text(STUB)
    command.chmod(0o755)
    said = tmp_path / "said"

    def make(*arguments, check=0, **environment):
        said.write_text("")
        venv = tmp_path / "venv"
        given = {"STAGES": " ".join(pipeline.STAGES), "MEETS": "", "PAGE": "", "FAILS": "", **environment}
        done = run_make("-o", f"{venv}/.ready", f"VENV={venv}", *arguments, root=tmp_path, check=check, **given)
        assert "is up to date." not in done.stdout
        return [line[:-1] if line == "front " else re.sub(r"_\w+", "", line) for line in said.read_text().splitlines()]

    return make


def test_with_one_job_each_page_follows_its_notebook(stubbed):
    numbers = [stage[:2] for stage in pipeline.STAGES]
    in_turn = [f"{step} {number}" for number in numbers for step in ("begin", "end", "page")]
    assert stubbed("all", "JOBS=1") == [*in_turn, "front"]
    assert stubbed("all", "JOBS=1") == []
    assert stubbed(pipeline.STAGES[4], "RUN=other", "JOBS=1") == in_turn[:15], "with the pages of what it reads"
    turing = [line for line in in_turn[15:] if line.endswith("08")]
    assert stubbed(pipeline.STAGES[7], "RUN=other", "JOBS=1") == turing


@pytest.mark.parametrize(("page", "beside"), [(0, 1), (3, 4), (4, 5), (5, 6)])
def test_with_two_jobs_a_page_is_written_beside_the_next_stage(stubbed, page, beside):
    said = stubbed("all", PAGE=pipeline.STAGES[page], MEETS=pipeline.STAGES[beside])
    begins, ends = said.index(f"begin 0{beside + 1}"), said.index(f"end 0{beside + 1}")
    assert begins < said.index(f"page 0{page + 1}") < ends
    steps = [f"{step} {stage[:2]}" for step in ("begin", "end", "page") for stage in pipeline.STAGES]
    assert sorted(said) == sorted([*steps, "front"])


def test_when_a_stage_fails_the_pages_of_those_before_it_are_there(stubbed):
    said = stubbed("all", check=2, FAILS=pipeline.STAGES[2])
    assert {line for line in said if line.startswith("page")} == {"page 01", "page 02"}
    assert stubbed("all", "JOBS=1")[:3] == ["begin 03", "end 03", "page 03"]


def test_a_page_is_written_again_only_where_it_is_older_or_gone(stubbed, tmp_path):
    stubbed("all")
    page = tmp_path / "reports" / "demo" / f"{SECOND}.html"
    page.unlink()
    assert stubbed("all") == ["page 02"]
    os.utime(page, ns=(0, 0))
    assert stubbed("all") == ["page 02"]
    page.unlink()
    page.with_suffix(".ipynb").unlink()
    assert stubbed(SECOND) == ["begin 02", "end 02", "page 02"]


def test_a_second_make_does_nothing_and_is_quick(study):
    before, spent = study.times(), cpu_seconds()
    done = study.make(SECOND, check=0)
    assert cpu_seconds() - spent < 5
    assert study.times() == before
    assert not re.search(r"\d:\d\d  ", done.stdout), done.stdout


def cpu_seconds():
    """Seconds of computing of all ended child processes; a busy machine does not stretch them as it does the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_setting_redoes_only_what_reads_it(study):
    before = study.times()
    planned = study.plan("folds.seed=7")
    assert planned[SECOND] == "folds.seed 0 -> 7"
    assert FIRST not in planned
    assert study.times() == before, "plan only looks"
    study.make(SECOND, "SET=folds.seed=7", check=0)
    after = study.times()
    assert after[FIRST] == before[FIRST]
    assert after[SECOND] > before[SECOND]


def test_deleted_units_and_edited_notebooks_make_stale(study):
    unit = study.root / "artifacts" / "smoke" / "toy" / SECOND
    assert set(study.plan()) == set(pipeline.STAGES[2:]), "the toy study has two notebooks"
    (unit / "made.txt").write_text("y")
    assert study.plan()[SECOND] == f"toy/{SECOND}: its file made.txt has other content than when it was written"
    shutil.rmtree(unit)
    assert study.plan()[SECOND] == f"toy/{SECOND} is missing"
    assert FIRST not in study.plan()
    write_notebook(study.notebooks / f"{FIRST}.ipynb", FIRST, "2 + 2\n")
    assert study.plan()[FIRST] == "the notebook was edited"


def test_a_failing_notebook_fails_twice_and_leaves_its_copy(study):
    good = study.report(SECOND).read_bytes()
    write_notebook(
        study.notebooks / f"{SECOND}.ipynb", SECOND, 'raise ValueError("first line\\nfold 3 has no patients")\n'
    )
    for _ in range(2):
        done = study.make(SECOND)
        assert done.returncode != 0
        assert "fold 3 has no patients" in done.stderr
        assert f"{SECOND}.failed.ipynb" in done.stderr
        assert "Traceback" not in done.stderr
        copy = nbformat.read(study.report(SECOND).with_name(f"{SECOND}.failed.ipynb"), as_version=4)
        assert any(output.output_type == "error" for cell in copy.cells for output in cell.get("outputs", []))
    assert study.report(SECOND).read_bytes() == good, "the last good report stays"
    assert not list(study.report(SECOND).parent.glob(".*"))
    write_notebook(study.notebooks / f"{SECOND}.ipynb", SECOND)
    study.make(SECOND, check=0)
    assert not study.report(SECOND).with_name(f"{SECOND}.failed.ipynb").exists()


def test_a_notebook_that_records_no_units_or_takes_no_parameters_is_refused(study):
    path = study.notebooks / f"{SECOND}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = "1 + 1"
    nbformat.write(notebook, path)
    shutil.rmtree(study.root / "artifacts" / "smoke" / SECOND)
    done = study.make(SECOND)
    assert done.returncode != 0
    assert "must call run.finish" in done.stderr
    notebook.cells[1].metadata.tags = []
    nbformat.write(notebook, path)
    run = artifacts.open_run("smoke")
    with pytest.raises(ValueError, match="expected one cell tagged parameters that sets profile and overrides"):
        pipeline.run_notebook(run, SECOND, path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected a notebook, found .*; restore it from git\."):
        pipeline.run_notebook(run, SECOND, path)


def test_runs_live_side_by_side_and_clean_removes_one(study):
    before = study.times()
    study.make(FIRST, "RUN=other", "SET=cohort.simulation_seed=4 cohort.n_patients=9", check=0)
    assert study.report(FIRST, "other").exists()
    assert study.times() == before
    (study.root / "data" / "raw").mkdir(parents=True)
    said = study.make("clean", "RUN=other", check=0).stdout
    assert said.count("removing") == 2
    assert not (study.root / "artifacts" / "other").exists()
    assert study.times() == before
    assert (study.root / "data" / "raw").exists()


@pytest.mark.parametrize("name", ["../smoke", "..", "a b", "-rf", "bench", "compare", "photos", "notes"])
def test_clean_refuses_what_is_not_a_run(study, name):
    mine = study.root / "artifacts" / "photos" / "holiday.png", study.root / "reports" / "notes" / "text.html"
    for path in (*mine, study.root / "reports" / "bench" / "index.html"):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    before = study.times()
    assert study.make("clean", f"RUN={name}").returncode != 0
    assert study.times() == before
    assert all(path.exists() for path in mine)
    assert (study.root / "reports" / "bench" / "index.html").exists()


def test_a_run_whose_name_is_too_long_for_its_files_is_refused_before_anything_is_written(study):
    done = study.make("all", f"RUN={'r' * 101}")
    assert done.returncode != 0
    assert "run" in done.stderr
    assert not list((study.root / "artifacts").glob("rrr*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set=sweep.n_sedes=3"], "sweep.n_sedes in the overrides is not a setting; the nearest is sweep.n_seeds"),
        (["--set=sweep.n_seeds=many"], "sweep.n_seeds"),
        (["--set=sweep.n_seeds=0"], "sweep.n_seeds"),
        (["--set=sweep.n_seeds"], "expected pairs such as \"sweep.n_seeds=5\", found 'sweep.n_seeds'"),
        (["--set=run=other"], "name the run with RUN=<name>"),
        (["--run=../up"], "run"),
        (["--data=/nowhere/a b.mat"], "DATA=/nowhere/a b.mat: expected the path of a cohort"),
        (["--profile=dmeo"], "'dmeo' is not one of cpu, demo, paper, smoke; the nearest is demo"),
        (["--set=engine.min_free_gib=1.0e+9"], "GiB free, expected at least 1e+09 GiB (engine.min_free_gib)"),
        (
            ["--set=turing.ratings=/nowhere.csv"],
            "setting turing.ratings: expected a file or a folder, found none",
        ),
        (
            ["--set=quality.weights=/dev/zero"],
            "setting quality.weights: expected a file or a folder, found none",
        ),
        (["--data=/dev/zero"], "DATA=/dev/zero: expected the path of a cohort"),
        (["--set=cohort={source: file, path: /dev/zero}"], "cohort.path: expected a file or a folder, found none at"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert cli.main(["resolve", "--profile=smoke", *arguments]) == cli.USER_ERROR
    (said,) = capsys.readouterr().err.splitlines()
    assert sentence in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("is_interrupt", [True, False])
def test_ctrl_c_within_an_import_is_told_from_a_failure_of_the_program(monkeypatch, capsys, is_interrupt):
    def loads():  # as Python 3.11 does while it names the fields of a class
        raise RuntimeError("Error calling __set_name__") from (KeyboardInterrupt() if is_interrupt else TypeError())

    monkeypatch.setattr(cli.engine, "collect_seldom", loads)
    if not is_interrupt:
        with pytest.raises(RuntimeError, match="__set_name__"):
            cli.main(["doctor"])
        return
    assert cli.main(["doctor"]) == cli.INTERRUPTED
    assert capsys.readouterr().err.splitlines() == [
        "nafld: interrupted; what is finished is kept, run the same command again to go on."
    ]


@pytest.mark.parametrize("key", ["RUN", "SET", "DATA", "A", "B", "IMAGES", "JOBS", "PROFILE"])
def test_make_runs_nothing_that_a_value_says(tmp_path, key):
    for place, value in enumerate(("$(shell touch {})", "2;touch${{IFS}}{}")):
        made = tmp_path / f"made{place}"
        for arguments in (["help"], ["-n", "all"]):
            run_make(*arguments, f"{key}={value.format(made)}", root=tmp_path / "work")
        assert not made.exists()


def test_make_stops_before_any_kernel(tmp_path):
    done = run_make(FIRST, "PROFILE=smoke", "SET=sweep.n_sedes=3", root=tmp_path)
    assert done.returncode != 0
    assert "nearest is sweep.n_seeds" in done.stderr
    assert not list(tmp_path.rglob("*.ipynb"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "artifacts").write_text("a file in the way")
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert cli.main(["resolve", "--profile=smoke"]) == cli.USER_ERROR
    assert "artifacts" in capsys.readouterr().err


def test_no_gpu_is_said_before_any_kernel(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert cli.main(["resolve", "--profile=smoke", "--set=engine.device=cuda"]) == cli.USER_ERROR
    assert "engine.device is cuda, expected that GPU, found 0 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("sweep.n_seeds=5", {"sweep.n_seeds": 5}),
        (" a.b = 1   c=x ", {"a.b": 1, "c": "x"}),
        ("ldm.folds=[0, 1] seed=3", {"ldm.folds": [0, 1], "seed": 3}),
        ("turing.ratings='my ratings=a.csv' seed=3", {"turing.ratings": "my ratings=a.csv", "seed": 3}),
        ('cohort.path="a \\"b\\" c.mat"', {"cohort.path": 'a "b" c.mat'}),
        ("cohort.path=it's mine.mat seed=1", {"cohort.path": "it's mine.mat", "seed": 1}),
        ("cohort.path=null", {"cohort.path": None}),
    ],
)
def test_overrides_hold_blanks_and_quotes(text, values):
    assert params.parse_overrides(text) == values


@pytest.mark.parametrize("text", ["5", "a.b", "=5", "a=[1, 2"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(SettingsError, match="SET"):
        params.parse_overrides(text)


def test_blanks_and_quotes_reach_python_through_make(tmp_path):
    text = """turing.ratings="it's a 'file' $HOME.csv" seed=3"""
    done = run_make("plan", "PROFILE=smoke", f"SET={text.replace('$', '$$')}", root=tmp_path, check=0)
    assert "8 of 8" in done.stdout
    run = artifacts.open_run("smoke", text)
    assert run.overrides == {"turing.ratings": "it's a 'file' $HOME.csv", "seed": 3}
    assert run.settings.turing.ratings == "it's a 'file' $HOME.csv"


def test_data_means_a_file_cohort_in_any_profile(tmp_path, monkeypatch):
    path = tmp_path / "my cohort.mat"
    path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    run = artifacts.open_run("demo", data=os.path.relpath(path, tmp_path))
    assert run.overrides == {"cohort.source": "file", "cohort.path": str(path)}
    assert not run.is_simulated
    with pytest.raises(SettingsError, match="DATA and SET both"):
        artifacts.open_run("demo", "cohort.path=x", data=str(path))


def test_a_changed_cohort_file_moves_the_stamp(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    path = tmp_path / "cohort.mat"
    path.write_bytes(b"x")
    run = artifacts.open_run("smoke", data=str(path))
    assert set(pipeline.write_stamps(run).values()) == {"not run yet"}
    assert pipeline.write_stamps(run) == {}
    path.write_bytes(b"xy")
    assert set(pipeline.write_stamps(run)) == {"01_data_analysis", "02_preprocessing"}


def test_a_raised_revision_makes_its_stage_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke")
    unit = run.unit("toy", settings={}, modules=("cohort",))
    with unit.writing() as folder:
        (folder / "a.txt").write_text("a")
    run.finish(FIRST, [unit])
    artifacts.save_text(pipeline.report_path(run, FIRST), "{}")
    pipeline.write_stamps(run)
    assert pipeline.status(run)[FIRST].moved == ""
    monkeypatch.setattr(artifacts.run, "revision", lambda module: 99)
    assert "by revision 1 of cohort, today's is 99" in pipeline.status(run)[FIRST].moved


def test_makefile_and_package_hold_the_same_graph():
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    edges = dict(re.findall(r"^READS_(\w+)\s+:= (\w+)$", text, re.MULTILINE))
    assert edges == {stage: upstream[0] for stage, upstream in pipeline.UPSTREAM.items() if upstream}
    named = re.search(r"^STAGES\s+:= ((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", " ").split()
    assert tuple(named) == pipeline.STAGES == tuple(params.STAGE_SECTIONS)


def test_help_names_every_target():
    said = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in said for name in ("all", "plan", "test", "lint", "lab", "doctor", "clean", "help"))
    assert all(stage in said for stage in pipeline.STAGES)


def test_a_run_is_not_made_anew_of_another_cohort(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    one, other = tmp_path / "one.mat", tmp_path / "other.mat"
    one.touch(), other.touch()
    run = artifacts.open_run("smoke", run="mine", data=str(one))
    pipeline.write_stamps(run)
    assert cli.main(["resolve", "--dry-run", "--profile", "smoke", "--run", "mine"]) == 0, "nothing was made of it yet"
    run.reports.mkdir(parents=True)
    pipeline.report_path(run, FIRST).touch()
    before = pipeline.stamp_path(run, FIRST).read_text(encoding="utf-8")
    capsys.readouterr()
    for data, asked in (([], "simulated patients"), (["--data", str(other)], f"the cohort at {other}")):
        for command in (["resolve"], ["resolve", "--dry-run"], ["lab"]):
            assert cli.main([*command, "--profile", "smoke", "--run", "mine", *data]) == cli.USER_ERROR
            said = capsys.readouterr().err
            assert f"run mine was made of the cohort at {one}, found {asked} asked for" in said
            assert "make clean RUN=mine" in said
    assert pipeline.stamp_path(run, FIRST).read_text(encoding="utf-8") == before
    one.rename(tmp_path / "moved.mat")
    assert cli.main(["resolve", "--dry-run", "--profile", "smoke", "--run", "mine", "--data", f"{other}"]) == 0
