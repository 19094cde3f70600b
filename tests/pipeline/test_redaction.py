"""What redaction takes out of a text, and what it leaves alone; a run's notebooks stand in tests/faults."""

import json
import re
import unicodedata
from pathlib import Path

from nafld_utils import artifacts, pipeline
from nafld_utils.report import facts


def test_what_is_no_path_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke", run="r")
    for text in (
        "https://doi.org/10.5281/zenodo.1",
        "<b>x</b> and/or 3/4",
        "artifacts/r/cohort/sources.csv",
        "I/II",
        "see https://a.b//c/d",
        "</div></div>",
        "n ~/ 2",
        "data:image/jpeg;base64,/9j/abc/def=",
        "file: x",
    ):
        assert pipeline.redacted(run, text) == text
    png = "data:image/png;base64,iVBOR/mnt/abc+/abcd/efgh=="
    assert pipeline.redacted(run, png) == png


def test_words_behind_the_keys_of_files_and_accounts_are_left_out_and_stay_elsewhere(tmp_path, monkeypatch):
    """Values without a slash: a folder below the work folder, an account, an address, a list of options."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    slurm = {"account": "gpu", "job_extra_directives": ["--mail-user=e.meier@clinic.de", "--comment=Meier"]}
    given = {
        "turing.ratings": "Meier",
        "engine.slurm": slurm,
        "engine.tls": dict.fromkeys(("ca", "cert", "key"), "/Meier.pem"),
    }
    run = artifacts.open_run("smoke", given, run="r")
    shown = run.show("turing", "engine").set_index("setting")["this run"]
    for key in ("turing.ratings", "engine.slurm", "engine.tls.ca"):
        assert shown[key] == artifacts.LEFT_OUT
    for text in (f"overrides = {given}", f"overrides = {json.dumps(given)}", f"{run.settings.turing!r}", f"{slurm}"):
        assert not re.search("eier|clinic", pipeline.redacted(run, text))
    assert pipeline.redacted(run, "Meier/a/b c.csv: expected a GPU") == "(left out): expected a GPU"
    assert pipeline.redacted(run, "a gpu of 16GB in Meierhofen") == "a gpu of 16GB in Meierhofen"
    given = {"engine.slurm.job_extra_directives": slurm["job_extra_directives"], "cohort": {"path": "Meier"}}
    run = artifacts.open_run("smoke", given, run="r")
    artifacts.save_json(run.root / "settings" / "run.json", {"profile": "smoke", "overrides": run.overrides})
    assert not re.search("eier|clinic", facts.command(run))


def test_paths_of_every_form_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    monkeypatch.setenv("HOME", "/home/Erika Meier")
    (tmp_path / "Müller's clinic").mkdir()
    run = artifacts.open_run("smoke", run="r", data=str(tmp_path / "Müller's clinic"))
    path = Path(run.settings.cohort.path)
    known = [path.as_uri(), unicodedata.normalize("NFD", str(path)), repr(bytes(path)), f"{path}/Meier 1.png"]
    other = ["//nas/Meier/x.csv", "a,/mnt/Meier/x.csv,b", "|/mnt/Meier/x|", "</mnt/Meier/x>", "~/Meier.mat", "~meier/x"]
    other += ["../Meier/x.csv", "/mnt/D'Angelo/Meier.csv", "file:///mnt/Meier", "/home/Erika Meier/.cache/x"]
    for text in [*known, *other]:
        assert not re.search("(?i)meier|m(ü|u\u0308|%C3%BC)ller|clinic|Angelo", pipeline.redacted(run, text)), text
