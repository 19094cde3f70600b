"""The declared analysis: agrees with the paper profile, is refused when wrong, and every run says how it differs."""

import html
import json
import re

import pytest
import yaml

from nafld_utils import artifacts, params, report
from nafld_utils.params import merging
from nafld_utils.sweep import comparisons

PROFILES = ("demo", "cpu", "smoke")


def declare(folder, monkeypatch, change=lambda values: None):
    """Another params folder with the declared analysis as `change` leaves it."""
    for path in merging.PARAMS_DIR.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    values = yaml.safe_load((folder / "protocol.yaml").read_text(encoding="utf-8"))
    change(values)
    (folder / "protocol.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(merging, "PARAMS_DIR", folder)


def test_the_paper_profile_is_the_declared_analysis():
    """Both files state these values; here they are held against each other."""
    paper = params.load("paper")
    assert params.differences(paper) == []
    assert "as declared" in params.agreement(paper)
    stated = params.load("paper").by_key()
    written = yaml.safe_load((merging.PARAMS_DIR / "protocol.yaml").read_text(encoding="utf-8"))["settings"]
    assert {key: entry["value"] for key, entry in written.items()} == {key: stated[key] for key in written}


def test_what_issue_and_statistics_call_primary_is_declared():
    found = params.protocol()
    assert {"level", "interval", "significance", "exclusions"} <= set(found.decisions)
    assert found.decisions["level"].decision.partition(":")[0] in comparisons.LEVELS
    wanted = {"sweep.primary_arm", "sweep.primary_rate", "sweep.n_seeds", "sweep.steps", "sweep.n_resamples"}
    wanted |= {"seed", "folds.seed", "shap.seed", "turing.seed", "ldm.steps", "sampling.n_images"}
    assert wanted <= set(found.settings)


@pytest.mark.parametrize("profile", PROFILES)
def test_scaled_down_profiles_say_so(profile):
    settings = params.load(profile)
    found = {item.key: item for item in params.differences(settings)}
    assert {"sweep.steps", "ldm.steps", "sampling.steps"} <= set(found)
    assert found["sweep.n_seeds"][1:3] == ("25", str(settings.sweep.n_seeds))
    text = params.agreement(settings)
    assert text.startswith("This run differs from the declared analysis (params/protocol.yaml) in ")
    assert f"sweep.n_seeds (25 declared, {settings.sweep.n_seeds} here)" in params.agreement(settings, most=99)
    assert f"and {len(found) - 5} more settings: the front page's section Settings lists them." in text


def test_one_changed_setting_is_named_and_settings_of_speed_are_not():
    assert params.agreement(params.load("paper", ["sweep.rates=[0.5, 1.5]"])) == (
        "This run differs from the declared analysis (params/protocol.yaml) in sweep.rates ([0.5, 1.0, 1.5, 2.0]"
        " declared, [0.5, 1.5] here)."
    )
    two = params.agreement(params.load("paper", ["sweep.n_seeds=5", "cohort.frames_per_patient=3"]))
    assert "in sweep.n_seeds (25 declared, 5 here) and cohort.frames_per_patient (null declared, 3 here)." in two
    assert params.differences(params.load("paper", ["engine.threads=3", "ldm.accumulate=2", "run=x"])) == []


def test_the_hash_covers_what_is_decided_and_not_the_reasons(tmp_path, monkeypatch):
    first = artifacts.declared_hash()
    assert re.fullmatch("[0-9a-f]{16}", first)

    def reason(values):
        values["settings"]["sweep.n_seeds"]["why"] = "Another reason."

    def value(values):
        values["settings"]["sweep.n_seeds"]["value"] = 24

    def words(values):
        values["decisions"]["exclusions"]["decision"] = "Patients with masses are left out."

    def setting(values):
        del values["settings"]["sweep.n_seeds"]

    hashes = []
    for number, change in enumerate((reason, value, words, setting)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as context:
            declare(folder, context, change)
            hashes.append(artifacts.declared_hash())
    assert hashes[0] == first
    assert len({first, *hashes[1:]}) == 4


def wrong_key(values):
    values["settings"]["sweep.n_seed"] = {"value": 25, "why": "[paper]"}


def a_section(values):
    values["settings"]["sweep"] = {"value": {"n_seeds": 25}, "why": "[paper]"}


def wrong_value(values):
    values["settings"]["sweep.n_seeds"]["value"] = 0


def no_reason(values):
    del values["settings"]["sweep.n_seeds"]["why"]


def unknown_part(values):
    values["setings"] = {}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (wrong_key, ["sweep.n_seed in params/protocol.yaml is not a setting", "the nearest is sweep.n_seeds"]),
        (a_section, ["sweep in params/protocol.yaml is not a setting"]),
        (wrong_value, ["sweep.n_seeds of the declared analysis", "found 0", "correct it in params/protocol.yaml"]),
        (no_reason, ["sweep.n_seeds.why", "params/protocol.yaml"]),
        (unknown_part, ["setings", "params/protocol.yaml"]),
    ],
)
def test_a_wrong_declaration_stops_a_run_before_it_starts(tmp_path, monkeypatch, change, names):
    declare(tmp_path, monkeypatch, change)
    with pytest.raises(params.SettingsError) as caught:
        artifacts.open_run("demo")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for name in names:
        assert name in message


def test_a_missing_declaration_is_named_and_is_no_profile(tmp_path, monkeypatch):
    with pytest.raises(params.SettingsError, match=r"'protocol' is not one of cpu, demo, paper, smoke"):
        params.load("protocol")
    declare(tmp_path, monkeypatch)
    (tmp_path / "protocol.yaml").unlink()
    with pytest.raises(params.SettingsError, match=r"params/protocol\.yaml: expected the declared analysis"):
        params.load("demo")


def sealed(run, name):
    unit = run.unit("thing", name, settings={"a": 1})
    with unit.writing() as folder:
        artifacts.save_json(folder / "facts.json", {})
    return unit


def test_manifests_record_the_hash_which_no_unit_depends_on(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke")
    unit = sealed(run, "one")
    assert artifacts.read_manifest(unit.path)["declared"] == artifacts.declared_hash()
    folder = tmp_path / "params"
    folder.mkdir()
    declare(folder, monkeypatch, lambda values: values["settings"].pop("sweep.n_seeds"))
    again = artifacts.open_run("smoke").unit("thing", "one", settings={"a": 1})
    assert again.hash == unit.hash
    assert again.done()


def test_finished_work_is_sealed_though_the_declaration_was_broken_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("smoke")
    folder = tmp_path / "params"
    folder.mkdir()
    declare(folder, monkeypatch, wrong_key)
    assert artifacts.read_manifest(sealed(run, "one").path)["declared"] == "unknown"


def forget(unit):
    """Make a manifest what it was before the hash was recorded, its seal included."""
    path = unit.path / artifacts.MANIFEST
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("declared", "seal")}
    path.write_text(json.dumps({**manifest, "seal": artifacts.digest(manifest)}))


def test_the_front_page_says_whether_run_and_units_are_as_declared(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    run = artifacts.open_run("paper", ["sweep.n_seeds=5"])
    old = sealed(run, "old")
    sealed(run, "new")
    forget(old)
    assert old.done()
    artifacts.save_json(run.root / "settings" / "run.json", {"profile": "paper", "overrides": {}})  # make's, no unit
    page = html.unescape(report.index_html(run))
    hashed = artifacts.declared_hash()
    assert "This run differs from the declared analysis (params/protocol.yaml) in sweep.n_seeds (25 declared, 5" in page
    assert f"The declared analysis has the hash {hashed}. 1 of 2 units was made before the hash was recorded." in page
    row = (
        page.partition("Settings of the declared analysis</caption>")[2]
        .partition("<code>sweep.n_seeds</code>")[2]
        .partition("</tr>")[0]
    )
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["25", "5", "[paper]"]
    assert params.protocol().decisions["exclusions"].decision in page
    agrees = html.unescape(report.index_html(artifacts.open_run("paper", ["engine.threads=2"])))
    assert "The analysis is as declared (params/protocol.yaml)." in agrees
    assert "differs from the declared analysis in" not in agrees
    folder = tmp_path / "params"
    folder.mkdir()
    declare(folder, monkeypatch, lambda values: values["settings"].pop("sweep.n_seeds"))
    later = html.unescape(report.index_html(run))
    assert "is as declared" in later
    assert f"1 of 2 units was made under another declared analysis ({hashed}): it was changed after that." in later
