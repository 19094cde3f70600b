"""Every command of README.md and CONTRIBUTING.md: run, or asked what it would do; and what these pages promise.

A line of a ``sh`` block, or inline code that begins with a command, is looked up by its program and target in the
tables below; one that is not there fails, so that no command is written without a test.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest
import yaml
from commands import CHECK, COMMANDS, PAGES, PYTHON, SMALL, TEXT, UV, blocks, words
from project import PROJECT, run_make

from nafld_utils import artifacts, params, pipeline


def variables(arguments):
    return dict(word.split("=", 1) for word in arguments if re.match(r"[A-Z_]+=", word))


# ---------------------------------------------------------------- what is done with a command


def valid(arguments, tmp_path):
    """Arguments whose settings, profile and run were accepted; an example path stands for a file that is there."""
    given, used = variables(arguments), list(arguments)
    if "DATA" in given:
        stand_in = tmp_path / "cohort"
        stand_in.touch()
        used = [f"DATA={stand_in}" if word.startswith("DATA=") else word for word in used]
        given["DATA"] = str(stand_in)
    named = {key: given.get(key.upper(), "") for key in ("run", "data")}
    artifacts.open_run(given.get("PROFILE", "demo"), given.get("SET", ""), **named)
    return used


def asked(says):
    """Ask make what it would do; `says` is part of the answer."""

    def check(arguments, tmp_path):
        done = run_make("-n", *valid(arguments, tmp_path), root=tmp_path, check=0)
        assert says in done.stdout

    return check


def run_here(says):
    """Run it with an empty work folder."""

    def check(arguments, tmp_path):
        done = run_make(*valid(arguments, tmp_path), root=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout

    return check


def bench(arguments, tmp_path):
    """The page is written really; what would be measured is parsed."""
    options = variables(arguments).get("BENCH", "")
    if options == "page":
        run_here("report: ")(arguments, tmp_path)
        return
    asked("tests/benchmarks/bench.py")(arguments, tmp_path)
    asked_for = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            subprocess, "run", lambda command, check: asked_for.append(command) or types.SimpleNamespace(returncode=0)
        )
        assert script("bench").main(options.split()) == 0
    assert asked_for
    for _, path, *own in asked_for:
        parsed(script(pathlib.Path(path).stem), own)


def script(name):
    """A module of tests/benchmarks, as it is when it runs as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "tests" / "benchmarks")
        return importlib.import_module(name)


MAKE = {
    "all": asked("nafld execute 01_data_analysis"),
    "plan": run_here("stages would run"),
    "clean": run_here("nothing at"),
    "help": run_here("profiles: smoke"),
    "doctor": asked("-m nafld_utils.doctor"),  # run by tests/test_setup.py
    "lab": asked(" lab"),
    "report-zip": asked("nafld report-zip"),
    "export": asked("nafld export"),
    "predict": asked("nafld predict"),
    "compare": asked("nafld compare"),
    "dry-run": asked("nafld dry-run"),  # run by tests/engine/test_timer.py
    "test": asked("-m pytest"),
    "test-faults": asked("-m pytest -m faults"),
    "lint": asked("ruff check ."),
    "bench": bench,
    ".venv/.ready": asked(""),  # run by tests/test_setup.py
    **{stage: asked(f"nafld execute {stage}") for stage in pipeline.STAGES},
}


class Parsed(Exception):
    """The command line was understood."""


def parsed(module, arguments):
    """Let the own parser of a module's `main` read a command line, and stop there."""
    real = argparse.ArgumentParser.parse_args

    def parse(parser, given=None, namespace=None):
        real(parser, given, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed):
            module.main(arguments)


def store_study(module, arguments, tmp_path):
    """`explain.check_units` takes no argument: its command runs but for the hour of training."""
    import pandas as pd

    check_units = importlib.import_module(f"nafld_utils.{module}")
    columns = ["feature", "explainer", "auc", "low", "high", "finding", "verdict"]
    made = types.SimpleNamespace(table=pd.DataFrame([dict.fromkeys(columns, "made")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_units, "STORED", tmp_path / "study.json")
        patch.setattr(check_units, "build_study", lambda run: made)
        check_units.main()
    assert '"made"' in (tmp_path / "study.json").read_text(encoding="utf-8")
    assert not arguments


def shipped(module, arguments, tmp_path):
    """Both commands whole, on two patients and a step a phase, beside the shipped file."""
    options = dict.fromkeys(("--patients", "--crops", "--structure-steps", "--texture-steps", "--polish-steps"), "1")
    small = [word for pair in (options | {"--patients": "2", "--image-size": "64"}).items() for word in pair]
    made = importlib.import_module(f"nafld_utils.{module}")
    before = made.autoencoder.SHIPPED.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *small, "--out", str(tmp_path / "small.safetensors")])
        made.main()
        measure = made.measure
        patch.setattr(made, "measure", lambda stage, size: measure(stage, size, n_patients=2))
        patch.setattr(
            sys, "argv", [module, *arguments, "--image-size", "64", "--out", str(tmp_path / "small.safetensors")]
        )
        made.main()
    facts = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
    assert (facts["patients"], facts["image_size"], facts["first_seed"]) == (2, 64, 9000)
    assert 1e5 < (tmp_path / "small.safetensors").stat().st_size < 2e6
    assert made.autoencoder.SHIPPED.read_bytes() == before


def example(module, arguments, tmp_path):
    """The folder is written really, in another place."""
    (at,) = [i for i, word in enumerate(arguments) if not word.startswith("-")][:1]
    used = [*arguments[:at], str(tmp_path / "example"), *arguments[at + 1 :]]
    assert importlib.import_module(f"nafld_utils.{module}").main(used) == 0
    assert (tmp_path / "example" / "images.csv").exists()


MODULES = {
    "ldm.shipped_autoencoder": shipped,
    "cohort.example": example,
    "explain.check_units": store_study,
}


@pytest.mark.parametrize(("page", "line", "setting"), COMMANDS, ids=[f"{page}: {line}" for page, line, _ in COMMANDS])
def test_a_command_of_the_pages_works(page, line, setting, tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    program, *arguments = words(line, setting)
    if program == "make":
        (target,) = (word for word in arguments if "=" not in word)
        assert target in MAKE, f"{page}: make {target} is not in this file's table MAKE; add how it is tested"
        MAKE[target](arguments, tmp_path)
    elif program == PYTHON and arguments[0].startswith("tests/benchmarks/"):
        parsed(script(pathlib.Path(arguments[0]).stem), arguments[1:])  # run small by the tests beside it
    elif program == PYTHON and arguments == ["tests/house.py"]:
        told = subprocess.run([sys.executable, PROJECT / arguments[0]], capture_output=True, text=True, check=True)
        assert "lines of code" in told.stdout
    elif program == PYTHON and arguments[0] == "tests/readme_pictures.py":
        parsed(importlib.import_module("readme_pictures"), arguments[1:])  # run by tests/notebooks/test_notebooks.py
    elif program == PYTHON:
        assert arguments[0] == "-m"
        module = arguments[1].removeprefix("nafld_utils.")
        assert module in MODULES, f"{page}: {arguments[1]} is not in this file's table MODULES; add how it is tested"
        MODULES[module](module, arguments[2:], tmp_path)
    elif program == UV:
        told = subprocess.run([f"{sys.prefix}/bin/uv", *arguments[:2], "--help"], capture_output=True, text=True)
        assert told.returncode == 0
        assert all(word in told.stdout for word in arguments if word.startswith("-"))
        extras = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--extra"]
        assert all(f"\n{extra} = [" in (PROJECT / "pyproject.toml").read_text(encoding="utf-8") for extra in extras)
    else:
        assert program == CHECK, f"{page}: no test knows the program {program}; name it as it lies in the project"
        assert os.access(PROJECT / program, os.X_OK)
        subprocess.run(["bash", "-n", PROJECT / program], check=True)


def test_every_block_is_seen_and_unknown_targets_would_fail():
    assert len(SMALL) >= 3
    assert len([page for page, *_ in COMMANDS if page == "README.md"]) >= 15
    assert len([page for page, *_ in COMMANDS if page == "CONTRIBUTING.md"]) >= 10
    other = re.findall(r"^```(\w*)$", "".join(TEXT.values()), re.MULTILINE)
    assert set(other) == {"sh", ""}, "a block of another language holds commands that no test sees"
    assert words('make all SET="a=[0, 1] b=2" RUN=x  # comment') == ["make", "all", "SET=a=[0, 1] b=2", "RUN=x"]
    assert words("make all SET=$job", "job='{a: b}'\n") == ["make", "all", "SET={a:", "b}"], "unquoted, so split"
    with pytest.raises(params.SettingsError, match=r"sweep\.n_seeds"):
        valid(["all", "SET=sweep.n_seedz=5"], None)


# how many cores, or which GPU
DEVICE = r"(?:(?:\d+|one|two|four|eight|sixteen) CPU cores?|(?:one |\d )?NVIDIA \w+)\b"


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_the_large_profiles_say_when_and_on_what_they_were_last_run(page):
    for block in blocks(page):
        before = ""
        for line in block.splitlines():
            if re.search(r"PROFILE=(cpu|paper)\b", line):
                found = re.search(rf"last run (\d{{4}}-\d\d-\d\d) on {DEVICE}", f"{before}\n{line}")
                assert found, f"{page}: {line}"
                tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # where the day begins earlier
                assert datetime.date(2026, 11, 23) <= datetime.date.fromisoformat(found[1]) <= tomorrow, line
            before = line if line.startswith("#") else ""


# ---------------------------------------------------------------- the pages themselves


def test_the_readme_is_one_page_and_files_that_the_pages_name_exist():
    assert len(TEXT["README.md"].splitlines()) <= 150
    for page, text in TEXT.items():
        named = re.findall(
            r"`((?:nafld_utils|tests|params|reports|notebooks|\.ci)/[\w./-]+|[A-Z]\w+\.\w+|Makefile)`", text
        )
        assert named, page
        for name in (name for name in named if not name.startswith("reports/bench")):  # made by a run
            assert (PROJECT / name).exists(), f"{page} names {name}"


def test_the_recipes_name_what_is_there():
    recipes = TEXT["CONTRIBUTING.md"].replace("\n", " ")
    found = re.findall(r"`(\w+)`,? (?:of|in) (?:the )?`([\w/]+\.py|Makefile)`", recipes)
    assert len(found) >= 8
    for name, file in found:
        assert re.search(rf"\b{name}\b", (PROJECT / file).read_text(encoding="utf-8")), f"{name} in {file}"


def test_every_successor_that_the_changelog_names_is_there():
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = [line.strip(" |").split(" | ") for line in text.splitlines() if line.startswith("  | `")]
    assert len(rows) > 20
    parts = {*script("records").PARTS, script("bench").PAGE}
    for before, now in rows:
        for name in re.findall(r"`([^`]+)`", before if now == "the same" else now):
            if found := re.match(r"python -m ([\w.]+)|python (tests/\S+)", name):
                module, path = found.groups()
                assert importlib.util.find_spec(module) if module else (PROJECT / path).exists(), name
            elif re.fullmatch(r"\w+\.[a-z]\w+", name) and not name.endswith(".py"):
                room, function = name.split(".")
                assert callable(getattr(importlib.import_module(f"nafld_utils.{room}"), function)), name
            elif re.fullmatch(r"[a-z]\w+", name):
                assert (PROJECT / "nafld_utils" / name).is_dir() or name in {*parts, "figures", "explorer"}, name


def test_the_citation_file_is_valid():
    """The keys of CFF 1.2.0 that this file uses, checked as its schema asks; cffconvert accepted the file."""
    cited = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    assert cited["type"] in ("software", "dataset")
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["title"], cited["version"], cited["license"]) == (
        project["name"], project["version"], project["license"]
    )  # fmt: skip
    for work in (cited, *cited["references"]):
        assert work["authors"]
        for author in work["authors"]:
            assert set(author) <= {"name", "family-names", "given-names", "orcid"}
            assert "name" in author or "family-names" in author
    kinds = {work["doi"]: work["type"] for work in cited["references"]}
    assert kinds == {"10.1038/s41598-023-48062-z": "article", "10.5281/zenodo.1009146": "data"}
    assert all(re.fullmatch(r"10\.\d{4,9}/\S+", doi) and f"doi.org/{doi}" in TEXT["README.md"] for doi in kinds)
    assert all(isinstance(work["year"], int) and work["title"] for work in cited["references"])
