"""The check that new code opens an old run as it is, on a run of a few files."""

import pytest
import unchanged

CLAIMS = "claim,paper,this_run,low,high,over,n,unit,same_protocol\npatients,,{},,,,,,yes\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(unchanged, "ROOT", tmp_path)
    folder = tmp_path / "artifacts" / "toy"
    for name, text in (("ldm/a.txt", "a"), ("settings/01.json", "{}"), ("01_data/claims.csv", CLAIMS.format(0.1))):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    unchanged.main("note", "toy")
    return folder


def test_a_notebook_that_ran_again_changes_nothing(run, capsys):
    (run / "settings" / "01.json").write_text("{ }")
    (run / "01_data" / "claims.csv").write_text(CLAIMS.format(0.1).replace("patients", "in other words"))
    assert unchanged.main("compare", "toy") == 0
    assert "toy: 1 files, 0 made again or gone: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ldm/a.txt", "a", "1 made again or gone: ldm/a.txt"),
        ("01_data/claims.csv", CLAIMS.format(0.10000000000000002), "other numbers in: 01_data"),
    ],
)
def test_a_unit_made_again_and_a_number_of_another_last_digit_are_named(run, capsys, name, text, said):
    (run / name).unlink()
    (run / name).write_text(text)
    assert unchanged.main("compare", "toy") == 1
    assert said in capsys.readouterr().out
