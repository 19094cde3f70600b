"""Where a run is: what the start page and the top of a notebook say, and which run a notebook opens in JupyterLab."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import notebook_names
import pandas as pd
import pytest
import torch
from project import PROJECT

from nafld_utils import artifacts, cli, engine, pipeline, sweep
from nafld_utils.artifacts import Run
from nafld_utils.params import SettingsError
from nafld_utils.pipeline import execute, lab, overview
from nafld_utils.sweep import trial_store

NOTEBOOKS = PROJECT / "notebooks"
FIRST, SECOND, *_, LAST = pipeline.STAGES


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A run of which nothing is made."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("smoke")


def in_lab(monkeypatch, profile="smoke", overrides=None, notebooks=NOTEBOOKS):
    given = {"profile": profile, "overrides": overrides or {}, "notebooks": str(notebooks)}
    monkeypatch.setenv(artifacts.LAB, json.dumps(given))
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/01_data_analysis.ipynb")


def finish(run: Run, stage: str) -> None:
    """Let a stage have made one unit, and its report."""
    unit = run.unit(f"toy {stage}", settings={})
    with unit.writing() as folder:
        (folder / "made.txt").write_text("x")
    run.finish(stage, [unit])


def stages(run, notebooks=NOTEBOOKS):
    return pipeline.status(run, notebooks)


def seen(stage):
    return stage.state, stage.why, stage.report


# ---------------------------------------------------------------- which run a notebook opens


def test_a_notebook_in_jupyterlab_opens_the_run_that_make_was_asked_for(monkeypatch):
    in_lab(monkeypatch, "smoke", {"sweep.n_seeds": 3, "run": "three"})
    run = artifacts.open_run("demo", {})
    assert (run.name, run.settings.profile, run.settings.sweep.n_seeds) == ("three", "smoke", 3)
    assert overview.lab_run()[0].name == "three"
    assert overview.lab_run()[1] == NOTEBOOKS


def test_parameters_that_were_edited_win(monkeypatch):
    in_lab(monkeypatch, "smoke")
    assert artifacts.open_run("cpu", {}).name == "cpu"
    assert artifacts.open_run("demo", {"run": "mine"}).name == "mine"


@pytest.mark.parametrize("missing", [artifacts.LAB, "JPY_SESSION_NAME"])
def test_elsewhere_the_parameters_say_it_all(monkeypatch, missing):
    in_lab(monkeypatch, "smoke")
    monkeypatch.delenv(missing)
    assert artifacts.open_run("demo", {}).name == "demo"
    assert overview.lab_run()[0].name == "demo"


def test_make_within_jupyterlab_keeps_its_own_variables(monkeypatch):
    in_lab(monkeypatch, "smoke")
    assert artifacts.open_run("demo", in_lab=False).name == "demo"


def test_a_report_that_is_made_within_jupyterlab_is_of_its_own_run(empty, monkeypatch):
    in_lab(monkeypatch, "smoke")
    with execute._environment(empty):
        assert artifacts.open_run("demo", {}).name == "demo"


# ---------------------------------------------------------------- states


def test_nothing_is_done_in_an_empty_folder(empty):
    assert {seen(stage) for stage in stages(empty).values()} == {("not run", "", "none")}
    assert "Nothing" not in overview.here(empty, FIRST).data
    assert "**0 of 2 done**" in overview.here(empty, FIRST).data
    assert "cohort: not made yet" in overview.here(empty, FIRST).data.replace("\\", "")
    assert "8 not run" in overview.stages(empty, NOTEBOOKS).data
    assert not list(empty.root.parent.glob("*/*")), "looking writes nothing"


def test_what_was_made_in_jupyterlab_alone_is_done_without_a_report(empty):
    finish(empty, FIRST)
    assert seen(stages(empty)[FIRST]) == ("done", "", "none")
    assert stages(empty)[SECOND].state == "not run"


def test_a_stage_is_stale_by_its_units_its_settings_or_what_it_follows(empty):
    for stage in (FIRST, SECOND):
        finish(empty, stage)
        pipeline.report_path(empty, stage).parent.mkdir(parents=True, exist_ok=True)
    pipeline.write_stamps(empty)
    for stage in (FIRST, SECOND):
        pipeline.report_path(empty, stage).write_text("{}")
    assert [stages(empty)[name].state for name in (FIRST, SECOND)] == ["done", "done"]
    other = artifacts.open_run("smoke", {"cohort.simulation_seed": 5})
    assert stages(other)[FIRST].why == "cohort.simulation_seed 3 -> 5"
    assert stages(artifacts.open_run("smoke", {"folds.seed": 5}))[FIRST].state == "done"
    (empty.root / f"toy {FIRST}" / "made.txt").unlink()
    assert stages(empty)[FIRST].state == "stale"
    assert "made.txt is missing" in stages(empty)[FIRST].why
    assert seen(stages(empty)[SECOND])[:2] == ("stale", f"follows {FIRST}")


def test_a_notebook_that_was_saved_again_leaves_what_it_made_done(empty, tmp_path):
    folder = tmp_path / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(overview.START))
    finish(empty, FIRST)
    pipeline.write_stamps(empty)
    empty.reports.mkdir(parents=True)
    pipeline.report_path(empty, FIRST).write_text("{}")
    later = pipeline.report_path(empty, FIRST).stat().st_mtime + 1
    os.utime(folder / f"{FIRST}.ipynb", (later, later))
    found = stages(empty, folder)[FIRST]
    assert (*seen(found), found.due) == ("done", "", "older", "the notebook was edited")


def test_a_failed_notebook_is_named_with_its_copy(empty):
    empty.reports.mkdir(parents=True)
    (empty.reports / f"{SECOND}.failed.ipynb").write_text("{}")
    assert stages(empty)[SECOND].state == "failed"
    assert f"{SECOND}.failed.ipynb" in stages(empty)[SECOND].why


def test_an_interrupted_unit_goes_on(empty):
    unit = overview.units_of(empty, FIRST)[0]
    unit.work.mkdir(parents=True)
    assert overview.unit_states(empty, FIRST)["next"].iloc[0] == "cohort: goes on where it was interrupted"


def test_units_that_cannot_be_named_yet_say_why(empty):
    lost = artifacts.open_run("smoke", {"cohort.source": "file", "cohort.path": "/nowhere/cohort.mat"})
    text = overview.here(lost, FIRST).data
    assert "Nothing is done yet" in text
    assert "cohort.mat" in text


def test_a_headless_run_says_which_run_and_stage_alone(empty, monkeypatch):
    monkeypatch.setenv(engine.PROGRESS_FILE, "somewhere")
    assert overview.here(empty, LAST).data == f"**Run smoke** · profile smoke · stage 8 of 8, {LAST}"


def test_texts_are_shown_and_never_taken_for_markdown_or_html():
    table = pd.DataFrame({"what": ["a|b <script>x</script> *c*\n[d](e)"], "done": [1], "link_md": ["[a](b)"]})
    head, align, line = overview.markdown_table(table).splitlines()
    assert (head, align) == ("| what | done | link |", "| :--- | ---: | :--- |")
    assert line == r"| a\|b &lt;script&gt;x&lt;/script&gt; \*c\* \[d\](e) | 1 | [a](b) |"


# ---------------------------------------------------------------- the start page


def test_the_start_page_is_a_notebook_whose_cells_give_what_it_shows(empty, monkeypatch):
    finish(empty, FIRST)
    artifacts.save_json(empty.root / "settings" / "run.json", {"profile": "smoke", "overrides": {"sweep.n_seeds": 3}})
    in_lab(monkeypatch, "smoke")
    page = lab.start_page(empty, NOTEBOOKS)
    nbformat.validate(page)
    cells, names = [cell for cell in page.cells if cell.cell_type == "code"], {}
    for cell in cells:
        *before, last = cell.source.splitlines()
        exec("\n".join(before), names)
        assert eval(last, names).data == cell.outputs[0].data["text/markdown"]
    text = cells[0].outputs[0].data["text/markdown"]
    assert all(f"[{stage}]({stage}.ipynb)" in text for stage in pipeline.STAGES)
    assert "1 done, 7 not run" in text
    assert "simulated cohort" in text
    assert "`make lab PROFILE=smoke SET='sweep.n_seeds=3'`" in cells[1].outputs[0].data["text/markdown"]


def test_the_start_page_takes_outputs_out_as_lint_wants_it(empty):
    makefile = (NOTEBOOKS.parent / "Makefile").read_text(encoding="utf-8")
    checked = re.search(r"\$\(VENV\)(/bin/nbstripout .*) --verify \$\(wildcard (.*)\)", makefile)
    (shown,) = re.findall(r"`(\S*nbstripout [^`]*)`", lab.start_page(empty, NOTEBOOKS).cells[-1].source)
    assert shown == f".venv{checked[1]} {checked[2]}"


def test_a_command_survives_the_shell_whatever_a_path_or_a_name_holds(empty, tmp_path):
    cohort = tmp_path / "O'Brien's $HOME images"
    cohort.mkdir()
    overrides = "cohort.class_names=['no', 'no finding'] sweep.n_seeds=3"
    run = artifacts.open_run("smoke", overrides, run="mine", data=str(cohort))
    line = pipeline.command("all", "mine", {"profile": "smoke", "overrides": run.overrides})
    words = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    assert words["DATA"] == str(cohort)
    again = artifacts.open_run(words["PROFILE"], words["SET"], run=words["RUN"], data=words["DATA"])
    assert again == run


@pytest.mark.parametrize("profile", ["demo; rm -rf ~", "$(shell touch x)", "", None, "a" * 101])
def test_a_run_that_came_by_mail_gives_no_command_that_does_more_than_open_it(empty, profile):
    assert pipeline.command("lab", "a", {"profile": profile}) == ""
    assert pipeline.command("lab", "$(shell touch x)", {"profile": "smoke"}) == ""
    artifacts.save_json(empty.root.parent / "sent" / "settings" / "run.json", {"profile": profile})
    assert "not made by make" in overview.runs(empty).data


def test_the_commands_of_the_start_page_open_the_runs_that_they_name(empty, capsys):
    for given, words in (
        ({"profile": "smoke", "overrides": {"run": "a"}}, "make lab PROFILE=smoke RUN=a"),
        (
            {"profile": "cpu", "overrides": {"sweep.rates": [0.5, 1.5]}},
            "make lab PROFILE=cpu SET='sweep.rates=[0.5, 1.5]'",
        ),
    ):
        name = given["overrides"].get("run", given["profile"])
        assert pipeline.command("lab", name, given) == words
        overrides = words.partition("SET='")[2].rstrip("'")
        opened = artifacts.open_run(given["profile"], overrides, run=name)
        assert opened == artifacts.open_run(given["profile"], given["overrides"])


def test_links_lead_to_reports_within_the_servers_root_and_paths_are_shown_outside(empty, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    empty.reports.mkdir(parents=True)
    (empty.reports / "index.html").write_text("x")
    assert "(../reports/smoke/index.html)" in overview.stages(empty, folder).data
    assert f"`{empty.reports / 'index.html'}`" in overview.stages(empty, NOTEBOOKS).data


def test_the_server_fetches_nothing_and_inherits_no_make(empty, tmp_path, monkeypatch):
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.setenv(name, "x")
    command = lab.command(tmp_path / "notebooks", ["--no-browser"])
    assert command[1:3] == ["-m", "jupyterlab"]
    assert command[-1] == "--no-browser"
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert "--LabApp.default_url=/lab/tree/notebooks/start.ipynb" in command
    assert "--LabApp.news_url=None" in command
    environment = lab.environment(artifacts.open_run("smoke", run="a"), tmp_path / "notebooks")
    given = {"profile": "smoke", "overrides": {"run": "a"}, "notebooks": str(tmp_path / "notebooks")}
    assert json.loads(environment[artifacts.LAB]) == given
    assert not {"MAKEFLAGS", "MAKELEVEL"} & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    (folder,) = (word.partition("=")[2] for word in command if word.startswith("--LabApp.app_settings_dir="))
    overrides = json.loads((Path(folder) / "overrides.json").read_text())
    assert overrides["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert environment["NAFLD_ROOT"] == str(artifacts.work_root().absolute())


def test_a_wrong_setting_stops_before_a_server_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    started = []
    monkeypatch.setattr(lab.os, "execve", lambda *arguments: started.append(arguments))
    words = ["lab", "--profile", "smoke", "--notebooks", str(tmp_path / "notebooks")]
    assert cli.main([*words, "--set", "sweep.n_seed=3"]) == cli.USER_ERROR
    assert "sweep.n_seeds" in capsys.readouterr().err
    assert not started
    assert not (tmp_path / "notebooks").exists()
    (tmp_path / "notebooks").write_text("a file in its place")
    assert cli.main(words) == cli.USER_ERROR
    assert "notebooks" in capsys.readouterr().err
    (tmp_path / "notebooks").unlink()
    cli.main([*words, "--set", "sweep.n_seeds=3", "--", "--no-browser", "--port=9"])
    ((program, command, environment),) = started
    assert command[0] == program
    assert command[-2:] == ["--no-browser", "--port=9"]
    assert json.loads(environment[artifacts.LAB])["overrides"] == {"sweep.n_seeds": 3}
    assert (tmp_path / "notebooks" / overview.START).exists()
    with pytest.raises(SettingsError):
        artifacts.open_run("smoke", "sweep.n_seed=3")


# ---------------------------------------------------------------- cells in any order


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_a_name_that_cells_share_is_bound_by_one_of_them(stage):
    cells = notebook_names.code_cells(NOTEBOOKS / f"{stage}.ipynb")
    assert notebook_names.ambiguous(cells) == {}, "what it means depends on which cell was run last"
    found = {key: notebook_names.names(source) for key, source in cells.items()}
    known = set()
    for key, (bound, free) in found.items():
        assert free <= known, f"{key} takes {free - known}, which no cell above it binds"
        known |= bound
    top = notebook_names.needed(cells, next(key for key in cells if "pipeline.begin(" in cells[key]))
    assert len(top) == 3, "parameters, imports and the run suffice to see where it is"


def test_names_are_found_in_every_kind_of_statement():
    source = (
        "import a.b, c as d\nfrom e import f\nfor i, j in g: h[i] = [k for k in l if k > m]\nn = n0 = n + 1\no += 1"
    )
    assert notebook_names.names(source) == ({"a", "d", "f", "i", "j", "n", "n0", "o"}, {"g", "h", "l", "m", "n", "o"})
    lambdas = "p = sorted(q, key=lambda r: r + s)\nif t := u: print(t, [v for w in x for v in w])"
    assert notebook_names.names(lambdas) == ({"p", "t"}, {"q", "s", "u", "x"})
    cells = {"1": "a = 1", "2": "print(a)", "3": "a = 2\nb = a", "4": "print(b)"}
    assert notebook_names.ambiguous(cells) == {"a": ["1", "3"]}
    assert notebook_names.needed(cells, "4") == ["3", "4"]
    cells["3"] = "b = a"
    orders = {tuple(notebook_names.shuffled(cells, "1", seed)) for seed in range(50)}
    assert orders == {("1", *rest) for rest in (("2", "3", "4"), ("3", "2", "4"), ("3", "4", "2"))}


def test_a_unit_that_was_computed_with_other_threads_is_done_and_says_so(empty):
    before, unit = torch.get_num_threads(), overview.units_of(empty, FIRST)[0]
    engine.use_threads(3)
    with unit.writing():
        pass
    engine.use_threads(before)
    assert artifacts.read_manifest(unit.path)["threads"] == 3
    told = "1 computed with 3 threads, not 1: the last digits may differ"
    assert overview.unit_states(empty, FIRST)[["done", "next"]].to_numpy().tolist()[0] == [1, told]


# ---------------------------------------------------------------- the small run


@pytest.mark.slow
@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_the_units_that_a_stage_names_are_those_that_it_made(run, stage):
    recorded = json.loads((run.root / stage / "stage.json").read_text(encoding="utf-8"))["units"]
    named = overview.units_of(run, stage)
    assert {str(unit.path.relative_to(run.root)): unit.hash for unit in named} == {
        entry["unit"]: entry["hash"] for entry in recorded
    }
    table = overview.unit_states(run, stage)
    assert table["done"].equals(table["of"])
    assert table["next"].eq("").all()
    assert "all done" in overview.here(run, stage).data


@pytest.mark.slow
def test_a_finished_run_is_done_with_its_reports(run):
    assert {seen(stage) for stage in stages(run).values()} == {("done", "", "current")}
    assert "8 stages: 8 done" in overview.stages(run, NOTEBOOKS).data


def test_the_run_of_a_toy_is_not_confused_with_another(empty):
    for name in ("one", "two"):
        run = artifacts.open_run("smoke", {"run": name})
        finish(run, FIRST)
        artifacts.save_json(run.root / "settings" / "run.json", {"profile": "smoke", "overrides": {"run": name}})
    text = overview.runs(SimpleNamespace(name="two", root=run.root)).data
    assert "| two (open now) | 1 of 8 | `make lab PROFILE=smoke RUN=two` |" in text
    assert "| one | 1 of 8 | `make lab PROFILE=smoke RUN=one` |" in text


# ---------------------------------------------------------------- trainings that would be made again


def seal(unit, seconds):
    with unit.writing(seconds=seconds) as folder:
        (folder / "made.txt").write_text("x")


def trained(run):
    """Seal the denoisers, GANs and latents of a run and one of its classifiers, an hour each."""
    for unit in overview.units_of(run, "03_ldm_training"):
        seal(unit, 3600)
    trial, *_ = sweep.trials(run).to_dict("records")
    scores = pd.DataFrame({"image_id": ["a"], "patient_id": ["p"], "label": [0], "score": [0.5]})
    names = {name: trial[name] for name in sweep.TRIAL_COLUMNS}
    trial_store.write_trial(sweep.store(run), trial["hash"], scores, {**names, "seconds": 360.0})


def test_finished_trainings_that_settings_would_make_again_are_counted_with_their_hours(empty):
    assert overview.trained_again(empty) == {}, "nothing is finished yet"
    trained(empty)
    assert overview.trained_again(empty) == {}
    assert pipeline.trained_again_text(empty) == ""
    longer = artifacts.open_run("smoke", "ldm.steps=7")
    assert overview.trained_again(longer) == {"denoisers": [3600.0] * 4}, "the classifier is of real images alone"
    again = artifacts.open_run("smoke", "folds.seed=5")
    text = "would be made again: 4 denoisers (4.0 h), 2 GANs (2.0 h), 1 classifier (0.1 h)"
    assert pipeline.trained_again_text(again) == text
    assert overview.trained_again(artifacts.open_run("smoke", "sweep.steps=7 sweep.n_seeds=2")) == {
        "classifiers": [360]
    }
    lost = artifacts.open_run("smoke", {"cohort.source": "file", "cohort.path": "/nowhere/cohort.mat"})
    assert "cannot be told" in pipeline.trained_again_text(lost)


def test_plan_says_which_trainings_would_be_made_again_and_looks_only_where_something_changed(
    empty, monkeypatch, capsys
):
    words = ["resolve", "--dry-run", "--profile", "smoke", "--notebooks", str(NOTEBOOKS)]
    cli.main(words)
    trained(empty)
    finish(empty, FIRST)
    pipeline.write_stamps(empty)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(overview, "trained_again", lambda run: pytest.fail("nothing has changed"))
        cli.main(words)
    assert "again" not in capsys.readouterr().out
    cli.main([*words, "--set", "ldm.steps=7"])
    *_, again, last = capsys.readouterr().out.splitlines()
    assert again == "would be made again: 4 denoisers (4.0 h)"
    assert last == "smoke: 8 of 8 stages would run."
