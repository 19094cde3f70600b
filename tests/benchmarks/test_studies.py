"""Studies by simulation: counted rightly, the same whatever the blocks, and a repeated part that differs is told."""

import sys
import types

import pandas as pd
import pytest
import records
import studies

from nafld_utils import artifacts


def coin(cell, rng):
    head = bool(rng.random() < cell["share"])
    return {"head": head, "value": rng.normal(cell["share"], 0.1), "told": head if head else None}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    cells = [{"share": 0.2, "patients": 3}, {"share": 0.7, "patients": 3}]
    study = studies.Study("coin_study", "Coins", cells, coin, ["stats"], repetitions=400, block=100)
    monkeypatch.setitem(sys.modules, "coin_study", types.SimpleNamespace(STUDY=study))
    monkeypatch.setitem(records.PARTS, "coin_study", ("Coins", "1 s"))
    studies._study.cache_clear()
    yield study
    studies._study.cache_clear()


def command(study, tmp_path, *words):
    where = ["--mode", "serial", "--result", str(tmp_path / "stored.csv"), "--out", str(tmp_path / "bench")]
    return studies.main(study, [*words, *where])


def test_shares_means_and_missing_answers_are_counted(study, tmp_path):
    assert command(study, tmp_path, "--store") == 0
    table = pd.read_csv(tmp_path / "stored.csv").set_index(["share", "outcome"])
    for share in (0.2, 0.7):
        head, value, told = (table.loc[(share, name)] for name in ("head", "value", "told"))
        assert (head.kind, value.kind, told.kind) == ("share", "mean", "share")
        assert head.n == 400
        assert told.n == round(400 * head.value), "what is not answered is left out"
        assert told.value == 1
        assert head.low < head.value < head.high
        assert head.value == pytest.approx(share, abs=0.08)
        assert value.value == pytest.approx(share, abs=0.02)


def test_the_size_of_a_block_changes_no_outcome(study, tmp_path):
    run = artifacts.open_run("demo", {"run": "coin", "engine.mode": "serial"})
    cell = study.cells[0]
    for first, n in ((0, 4), (2, 2)):
        studies.make_block(run, study.script, cell, first, n, seed=5)
    whole = studies.block_unit(run, study.script, cell, 0, 4, 5).load_table("outcomes.csv")
    part = studies.block_unit(run, study.script, cell, 2, 2, 5).load_table("outcomes.csv")
    assert part["value"].tolist() == whole["value"].tolist()[2:]


def test_a_repeated_part_agrees_unless_the_method_or_the_table_has_changed(study, tmp_path, capsys):
    command(study, tmp_path, "--store")
    assert command(study, tmp_path, "--minutes", "0", "--seed", "7") == 0
    stored = pd.read_csv(tmp_path / "stored.csv")
    stored.loc[stored["outcome"].eq("head") & stored["share"].eq(0.7), "value"] = 0.2
    stored.to_csv(tmp_path / "stored.csv", index=False)
    assert command(study, tmp_path, "--minutes", "0", "--seed", "8") == 1
    assert "share 0.7, patients 3: head is 0." in capsys.readouterr().err
    stored[stored["share"] == 0.2].to_csv(tmp_path / "stored.csv", index=False)
    assert command(study, tmp_path, "--minutes", "0", "--seed", "9") == 1
    assert "run the whole study with --store" in capsys.readouterr().err
