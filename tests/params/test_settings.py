"""Settings: complete, merged, and refused with one sentence when wrong."""

import math
import os
import re
import subprocess

import numpy as np
import pytest
import yaml
from project import PROJECT

from nafld_utils import artifacts, params
from nafld_utils.params import merging

PROFILES = ("paper", "smoke", "demo", "cpu")


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_load_and_are_complete(profile):
    settings = params.load(profile)
    assert settings.profile == profile
    assert settings.name == profile
    base = yaml.safe_load((merging.PARAMS_DIR / "paper.yaml").read_text())
    dumped = settings.model_dump(mode="json", by_alias=True)
    assert set(params.flat(dumped)) == set(params.flat(base)) | {"profile"}


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_profiles_name_only_what_differs(profile):
    base = params.flat(yaml.safe_load((merging.PARAMS_DIR / "paper.yaml").read_text()))
    mine = params.flat(yaml.safe_load((merging.PARAMS_DIR / f"{profile}.yaml").read_text()))
    same = [key for key, value in mine.items() if base[key] == value]
    assert not same, f"{profile}.yaml repeats paper.yaml in {same}"


def test_paper_values():
    paper = params.load("paper")
    assert (paper.ldm.steps, paper.ldm.batch_size, paper.ldm.learning_rate) == (20000, 32, 2.4e-4)
    assert (paper.ldm.weight_decay, paper.ldm.warmup_steps, paper.ldm.gradient_clip) == (0.01, 100, 1.0)
    assert (paper.ldm.condition_dropout, paper.ldm.ema_decay, paper.ldm.min_snr_gamma) == (0.1, 0.9999, None)
    assert (paper.sampling.steps, paper.sampling.guidance, paper.sampling.n_images) == (500, 1.2, 2000)
    assert (paper.sampling.scheduler, paper.sampling.eta) == ("ddim", 1.0)
    assert (paper.ldm.prediction, paper.ldm.semantic.loss, paper.ldm.class_.loss) == ("epsilon", "l1", "l2")
    assert paper.ldm.balance == ("none", "oversample")
    assert (paper.sweep.steps, paper.sweep.learning_rate, paper.sweep.n_seeds) == (1000, 2e-5, 25)
    assert paper.sweep.rates == (0.5, 1.0, 1.5, 2.0)


def test_every_default_of_stages_03_and_04_says_where_it_is_from():
    """In paper.yaml, beside the value or in the comment's next lines: a source in brackets, a choice, or not read."""
    section, said = "", {}
    for line in (merging.PARAMS_DIR / "paper.yaml").read_text(encoding="utf-8").splitlines():
        value, _, comment = line.partition("#")
        if value.strip():
            section = value.partition(":")[0] if not value.startswith(" ") else section
            key = len(said), section, value.strip()
            said[key] = comment
        elif said:
            said[key] += comment
    kept = {key: text for key, text in said.items() if key[1] in ("autoencoder", "ldm", "gan", "sampling")}
    unsaid = [
        value
        for (_, section, value), text in kept.items()
        if not value.endswith(":") and not re.search(r"\[(paper|author|ldm|LDM|arXiv)|choice|read by the", text)
    ]
    assert len(kept) > 80
    assert unsaid == []


@pytest.mark.parametrize(("steps", "near"), [(600, "500"), (1000, "500"), (400, "333 or 500"), (501, "500")])
def test_steps_that_ddim_cannot_walk_are_refused_before_anything_is_trained(steps, near):
    with pytest.raises(params.SettingsError, match=rf"sampling\.steps must be {near} or another .* ddim, got {steps}"):
        params.load("paper", [f"sampling.steps={steps}"])
    fast = params.load("paper", [f"sampling.steps={steps}", "sampling.scheduler=unipc", "sampling.eta=0"])
    assert fast.sampling.steps == steps


@pytest.mark.parametrize("source", ["hub", "path", "ldm_checkpoint"])
def test_published_vq_latents_are_used_unscaled(source):
    """The class model's default scale is that of the KL autoencoder."""
    given = {"source": source, "kind": "vq", "path": "model.ckpt", "sha256": "0" * 64}
    with pytest.raises(params.SettingsError, match=r"scale must be 1\.0 with kind vq, .* got 0\.18215"):
        params.load("paper", {"autoencoder.class": given})
    assert params.load("paper", {"autoencoder.class": {**given, "scale": 1.0}}).autoencoder.class_.scale == 1.0


def test_the_paper_on_a_cpu_changes_counts_and_sources_of_weights_alone(tmp_path):
    """`paper_on_a_cpu.sh` hands make valid settings: steps, images, seeds, batches, folds to run and random weights."""
    (tmp_path / "make").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (tmp_path / "make").chmod(0o755)
    script = PROJECT / "tests" / "paper_on_a_cpu.sh"
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = subprocess.run([script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    words = dict(word.split("=", 1) for word in said.stdout.split("\0")[1:-1])
    run = artifacts.open_run("paper", words["SET"], run=words["RUN"])
    mine, paper = (params.flat(s.model_dump(mode="json", by_alias=True)) for s in (run.settings, params.load("paper")))
    changed = {key: mine[key] for key in mine if mine[key] != paper[key]}
    weights = {"autoencoder.semantic.source", "autoencoder.class.source", "quality.features", "sweep.weights"}
    assert {changed.pop(key) for key in weights} == {"random"}
    assert (changed.pop("run"), changed.pop("ldm.folds")) == ("paper-cpu", [0])
    assert changed.pop("engine.threads") == 2, "one unit at a time, on two cores"
    assert all(0 <= changed[key] < (paper[key] or math.inf) for key in changed)
    steps = r"steps|warmup_steps|(checkpoint|preview|log)_every"
    images = r"n_images|n_null|n_reference|n_planted|n_background|n_held_out|kid_subset_size|feature_patients"
    images += r"|n_compared|frames_per_patient|crops_per_image"
    counts = re.compile(rf"{steps}|{images}|n_seeds|n_classifiers|batch_size")
    assert [key for key in changed if not counts.fullmatch(key.rpartition(".")[2])] == []


def test_override_strings_and_mappings_agree():
    a = params.load("demo", ["sweep.n_seeds=7", "ldm.class.loss=l1", "ldm.folds=[0, 1]", "run=x"])
    b = params.load("demo", {"sweep": {"n_seeds": 7}, "ldm.class.loss": "l1", "ldm": {"folds": [0, 1]}, "run": "x"})
    assert a == b == params.load("demo", "sweep.n_seeds=7 ldm.class.loss=l1 ldm.folds=[0, 1] run=x")
    assert a.sweep.n_seeds == 7
    assert a.ldm.class_.loss == "l1"
    assert a.name == "x"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sweep.learning_rate=2e-5", 2e-5),
        ("ldm.steps=2e4", 20_000),
        ("seed=0", 0),
        ("sweep.rates=[.5, 1., 1.5]", [0.5, 1.0, 1.5]),
        ("run=010", "010"),
        ("run=2026-01-31", "2026-01-31"),
        ("turing.contact=no", "no"),
        ("turing.contact=room#5", "room#5"),
        ("turing.contact='room #5, tel. 123'", "room #5, tel. 123"),
        ("turing.contact=null", None),
        ("cohort.class_names=[no, yes]", ["no", "yes"]),
        ("gan.enabled=no", False),
        ("gan.enabled=true", True),
        ("engine.slurm={memory: 16GB, walltime: 12:00:00}", {"memory": "16GB", "walltime": "12:00:00"}),
        ("engine.slurm={walltime: 08:00:00}", {"walltime": "08:00:00"}),
        ("engine.slurm={walltime: 1-12}", {"walltime": "1-12"}),
    ],
)  # fmt: skip
def test_a_value_is_what_it_reads_like(override, value):
    assert params.load("demo", override).by_key()[override.partition("=")[0]] == value


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("sweep.n_seeds=yes", ["sweep.n_seeds", "integer", "found 'yes'"]),
        ("ldm.steps=true", ["ldm.steps", "integer", "found True"]),
        ("sweep.rates=[1, true]", ["sweep.rates", "number", "True"]),
        ("seed=010", ["seed", "found '010'"]),
        ("seed=0o10", ["seed", "found '0o10'"]),
        ("seed=0x10", ["seed", "found '0x10'"]),
        ("seed=1_000", ["seed", "found '1_000'"]),
        ("sweep.n_seeds=2:00", ["sweep.n_seeds", "found '2:00'"]),
        ("autoencoder.semantic.factor='8'", ["autoencoder.semantic.factor", "found '8'"]),
        ("ldm.learning_rate=inf", ["ldm.learning_rate", "found 'inf'"]),
        ("ldm.learning_rate=.inf", ["ldm.learning_rate", "found '.inf'"]),
        ("ldm.learning_rate=nan", ["ldm.learning_rate", "found 'nan'"]),
        ("ldm.learning_rate=1e999", ["ldm.learning_rate", "found inf"]),
        ("turing.contact=room #5, tel. 123", ["turing.contact", "'#5, tel. 123' for a comment", "quote it"]),
        ("turing.contact=#5", ["turing.contact", "'#5' for a comment", "quote it"]),
        ("turing.contact=5", ["turing.contact", "string", "found 5"]),
        ("engine.slurm={walltime: 43200}", ["slurm.walltime", "'08:00:00'", "got 43200"]),
        ("engine.slurm={walltime: eight hours}", ["slurm.walltime", "got 'eight hours'"]),
        ("engine.slurm={cores: 08}", ["slurm.cores", "got '08'"]),
        ("engine.slurm={processes: true}", ["slurm.processes", "got True"]),
        ("engine.slurm={memory: 16}", ["slurm.memory", "16GB", "got 16"]),
    ],
)
def test_a_value_that_would_be_read_as_another_is_refused(override, names):
    with pytest.raises(params.SettingsError) as caught:
        params.load("demo", override)
    for name in names:
        assert name in str(caught.value)


def test_numbers_of_a_mapping_are_numbers_too():
    assert params.load("demo", {"seed": np.int64(3), "sweep": {"learning_rate": np.float32(0.5)}}).seed == 3
    for value in (True, "3", float("inf"), float("nan")):
        with pytest.raises(params.SettingsError, match=r"sweep\.learning_rate"):
            params.load("demo", {"sweep.learning_rate": value})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sweep.n_seeds=5 seed=1 sweep.n_seeds=6", "expected every key once, found sweep.n_seeds twice"),
        ("ldm.semantic.channel_mult=[]", "at least 1 item"),
        (f"seed=1{'0' * 400}", "setting seed"),
        ("sweep.n_seeds=!!int '010'", "is not YAML, found .*010"),
    ],
)
def test_a_value_that_means_nothing_or_another_thing_is_refused(text, says):
    with pytest.raises(params.SettingsError, match=says):
        params.load("smoke", text)
    assert params.load("smoke", "sweep.n_seeds=!!int '10'").sweep.n_seeds == 10


def test_no_image_size_is_advised_that_the_crop_cannot_hold():
    text = "preprocess.crop_size=60 preprocess.image_size=56 ldm.semantic.channel_mult=[1,1,1,1]"
    with pytest.raises(params.SettingsError, match=r"preprocess.crop_size must be at least 64, got 60"):
        params.load("smoke", text)


def test_a_key_that_a_profile_names_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "paper.yaml").write_text("seed: 1\nfolds:\n  seed: 2\n  seed: 3\n")
    monkeypatch.setattr(merging, "PARAMS_DIR", tmp_path)
    with pytest.raises(params.SettingsError, match=r"paper\.yaml: expected YAML, found seed twice .*line 3"):
        params.load("paper")


@pytest.mark.parametrize(
    ("profile", "changes", "near"),
    [
        ("smoke", {"image_size": 40}, "32 or 48"),
        ("demo", {"image_size": 72}, "64 or 80"),
        ("cpu", {"image_size": 120}, "112 or 128"),
        ("paper", {"image_size": 264}, "256 or 272"),
        ("paper", {"image_size": 250}, "240 or 256"),
        ("paper", {"image_size": 318}, "304 or 320"),
        ("cpu", {"image_size": 60, "crop_size": 63}, "48"),
    ],
)
def test_an_image_size_that_a_network_cannot_halve_is_refused_with_the_nearest_that_fit(profile, changes, near):
    changes = {f"preprocess.{key}": value for key, value in changes.items()}
    size = changes["preprocess.image_size"]
    with pytest.raises(params.SettingsError, match=rf"preprocess\.image_size must be {near} or another .*, got {size}"):
        params.load(profile, changes)
    for fit in near.split(" or "):
        params.load(profile, changes | {"preprocess.image_size": int(fit)})


def test_what_each_network_can_halve_is_asked_of_it():
    deep = {"ldm.semantic.channel_mult": [1, 2, 2], "preprocess.image_size": 80}
    with pytest.raises(params.SettingsError, match="must be 64 or 96 or another multiple of 32"):
        params.load("cpu", deep)
    params.load("cpu", deep | {"ldm.conditionings": ["class"]})
    with pytest.raises(params.SettingsError, match="must be 72 or 80 or another multiple of 8"):
        params.load("cpu", {"ldm.conditionings": ["class"], "preprocess.image_size": 76})


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("sweep.n_seed=5", ["sweep.n_seed", "sweep.n_seeds"]),
        ("sweeps.n_seeds=5", ["sweeps", "sweep"]),
        ("sweep=5", ["sweep", "section"]),
        ("sweep.n_seeds=five", ["sweep.n_seeds", "integer", "'five'"]),
        ("sweep.n_seeds=0", ["sweep.n_seeds", "greater than or equal to 1", "found 0"]),
        ("sampling.guidance=0.5", ["sampling.guidance", "found 0.5"]),
        ("sampling.steps=2000", ["sampling.steps and sampling.compared_steps", "ldm.train_timesteps 1000", "2000"]),
        ("sampling.compared_steps=[5, 1001]", ["sampling.compared_steps", "ldm.train_timesteps 1000", "got 1001"]),
        ("ldm.train_timesteps=10", ["sampling.steps", "ldm.train_timesteps 10"]),
        ("ldm.class.loss=l3", ["ldm.class.loss", "'l3'"]),
        ("sweep.primary_rate=1.25", ["primary_rate", "1.25"]),
        ("shap.fold=9", ["shap.fold", "9"]),
        ("ldm.folds=[5]", ["ldm.folds", "[5]"]),
        ("preprocess.crop_scale=[1.0, 0.5]", ["crop_scale"]),
        ("run=../elsewhere", ["run", "'../elsewhere'"]),
        ("run=compare", ["run must be another name", "reports/compare holds the comparisons of runs"]),
        ("engine.device=gpu", ["engine.device", "'gpu'"]),
        ("n_seeds", ["n_seeds", "sweep.n_seeds=5"]),
        ("sweep.arms=[gam]", ["sweep.arms", "'gam'", "nearest is gan"]),
        ("sweep.experiments=[fig5]", ["sweep.experiments", "nearest is fig5b"]),
        ("experiments.s7.balance=over", ["experiments.s7.balance", "'over'"]),
        ("sweep.rates=[-0.5]", ["sweep.rates", "found -0.5"]),
        ("quality.second_features=lite0", ["second_features", "lite0"]),
        ("gan.enabled=false quality.filter_of=gan", ["quality.filter_of", "gan"]),
        ("autoencoder.semantic.source=path", ["autoencoder.semantic", "path"]),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(override, names):
    with pytest.raises(params.SettingsError) as caught:
        params.load("demo", override.split() if " " in override and "[" not in override else [override])
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for name in names:
        assert name in message


def test_unknown_profile_names_the_nearest():
    with pytest.raises(params.SettingsError, match=r"'dema' is not one of .*nearest is demo"):
        params.load("dema")


def test_a_yaml_key_that_is_no_setting_is_refused(tmp_path, monkeypatch):
    for name in ("paper", "demo"):
        (tmp_path / f"{name}.yaml").write_text((merging.PARAMS_DIR / f"{name}.yaml").read_text())
    (tmp_path / "demo.yaml").write_text("engine: {on: 1}\n")
    monkeypatch.setattr(merging, "PARAMS_DIR", tmp_path)
    with pytest.raises(params.SettingsError, match=r"engine\.on in params/demo\.yaml"):
        params.load("demo")


def test_broken_yaml_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "paper.yaml").write_text("seed: [1\n")
    monkeypatch.setattr(merging, "PARAMS_DIR", tmp_path)
    with pytest.raises(params.SettingsError, match=r"paper\.yaml: expected YAML"):
        params.load("paper")


def test_settings_are_frozen():
    settings = params.load("demo")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3


def test_every_section_is_read_by_a_stage_or_only_says_where_work_runs():
    read = {section for sections in params.STAGE_SECTIONS.values() for section in sections}
    assert set(params.Settings.model_fields) - read == {"profile", "run", "engine"}


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ([], 1.5),
        (["sweep.primary_rate=1.0"], 1.0),
        (["shap.arm=real"], 0.0),
        (["shap.rate=2.0", "sweep.primary_rate=1.0"], 2.0),
    ],
)
def test_shap_explains_the_declared_rate_unless_it_names_another(given, rate):
    assert params.load("paper", given).shap.rate == rate
