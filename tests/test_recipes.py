"""CONTRIBUTING's recipes, followed in a scratch copy of the code: each is a dozen lines of change, and takes effect."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from project import PROJECT, make_command

# File, the text that a step of a recipe finds there, and what stands in its place afterwards.
METRIC = [
    (
        "nafld_utils/networks/distances.py",
        "def kernel_distance(",
        "def spread(features):\n    return float(features.std())\n\n\n{}",
    ),
    ("nafld_utils/networks/__init__.py", '"distances": "', "{}spread "),
    ("nafld_utils/networks/feature_networks.py", '    "score": (', '    "spread": ("Spread", "Spread"),\n{}'),
    ("nafld_utils/quality/metric_tables.py", '        "score": incep', '        "spread": spread(a),\n{}'),
    ("nafld_utils/quality/metric_tables.py", "score, kernel_distance", "{}, spread"),
]
BACKBONE = [
    (
        "nafld_utils/networks/backbones.py",
        '    else:\n        raise ValueError(f"network {type(model)',
        '    elif hasattr(model, "final_conv"):\n'
        '        parts = {{"stem": [model.stem]}}\n'
        '        parts |= {{f"s{{i}}": [getattr(model, f"s{{i}}")] for i in range(1, 5)}}\n'
        "        head = model.head\n"
        '        return {{**parts, "neck": [model.final_conv], "head": [head.global_pool, head.drop, head.fc]}}\n{}',
    ),
    ("nafld_utils/networks/backbones.py", '"blocks.4")', '"blocks.4", "s3")'),
    ("tests/networks/test_backbones.py", '"tf_efficientnetv2_b0"]', '"tf_efficientnetv2_b0", "regnetx_002"]'),
]
PAINTER = '''"""A generator that paints one grey per label."""
import numpy as np

REVISION = ("flat", 1)


def unit(run, fold):
    return run.unit("flat", f"fold{fold}", settings={}, modules=["flat"])


def painter(run, fold, device):
    size = run.settings.preprocess.image_size
    return lambda labels, seeds: np.stack([np.full((size, size), 50 + 100 * label, np.uint8) for label in labels])
'''
FLAT = '"flat": Baseline(ldm.flat_units.unit, ldm.flat_units.painter, ("flat",)), '
GENERATOR = [
    ("nafld_utils/ldm/__init__.py", " gan_units ", "{}flat_units "),
    ("nafld_utils/sampling/set_units.py", "BASELINES = {", f"{{}}{FLAT}"),
    ("nafld_utils/params/arms.py", 'BASELINES = ("gan",', '{} "flat",'),
    (
        "nafld_utils/params/generators.py",
        "class GanSettings(",
        'class FlatSettings(Section):\n    """Images of one grey."""\n\n    enabled: bool\n\n\n{}',
    ),
    ("nafld_utils/params/settings.py", "    GanSettings,\n", "    FlatSettings,\n{}"),
    ("nafld_utils/params/settings.py", "    gan: GanSettings\n", "{}    flat: FlatSettings\n"),
    ("params/paper.yaml", "\ngan: ", "\nflat:\n  enabled: true  # choice: a reason\n{}"),
    ("nafld_utils/views/figure_style.py", '    "gan": ', '    "flat": "#000000",\n{}'),
    ("nafld_utils/quality/figures.py", '    "gan": ', '    "flat": "one grey",\n{}'),
]
STAGE = [
    ("pyproject.toml", '    "turing",\n', '    "echo",\n{}'),
    ("nafld_utils/pipeline/staleness.py", '    "08_turing_test": (', '{}"05_quality_metrics",),\n    "09_echo": ('),
    ("nafld_utils/params/settings.py", '    "08_turing_test": (', '    "09_echo": ("seed", "turing"),\n{}'),
    (
        "nafld_utils/pipeline/overview.py",
        '    "08_turing_test": (',
        '    "09_echo": ("nafld_utils.echo.units.units",),\n{}',
    ),
    ("Makefile", "07_shap 08_turing_test", "{} 09_echo"),
    (
        "Makefile",
        "READS_08_turing_test ",
        "READS_09_echo := 04_sampling\n{}",
    ),
    ("README.md", "\n08_turing_test ", "\n09_echo                  echo           Does it come back?{}"),
]
FACE = '''"""Stage 09: an echo."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, submodules=["units"])
'''
UNITS = '''"""Units of stage 09."""

from nafld_utils import {room}


def units(run):
    return [run.unit("echo", settings={{}})]
'''
RECIPES = {"metric": METRIC, "backbone": BACKBONE, "generator": GENERATOR, "stage": STAGE}

# What is seen of each in a process of the copy.
LOOK = """
import json, numpy as np, torch
from nafld_utils import artifacts, networks, sampling
from nafld_utils.networks import backbones
from nafld_utils.quality import figures, metric_tables
from nafld_utils.views import color_of
seen = {"metric": networks.FEATURES["lite0"].metrics["spread"]}
made = metric_tables.FeatureSet("a", "model", np.eye(4), np.eye(4))
rows = np.arange(4)
seen["value"] = metric_tables._values(made, made, (2, 4), np.random.default_rng(0))["spread"]
network = networks.load("regnetx_002", "random", num_classes=2).eval()
prefix, tail = backbones.split(network, "regnetx_002")
images = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    seen["backbone"] = bool(torch.allclose(tail(prefix(images)), network(images), atol=1e-5))
run = artifacts.open_run("smoke")
seen["generators"] = sampling.generators(run)
paint = sampling.BASELINES["flat"].painter(run, 0, torch.device("cpu"))
seen["painted"] = paint(np.array([0, 1]), [1, 2]).mean(axis=(1, 2)).tolist()
unit = sampling.synthetic_unit(**sampling.task_of(run, "flat", 0))
seen["unit"] = unit.recipe["unit"]
seen["look"] = [color_of("flat"), figures.WORDS["flat"]]
print(json.dumps(seen))
"""
LOOK_AT_STAGE = """
import json
from nafld_utils import artifacts, pipeline
from nafld_utils.pipeline import overview
from nafld_utils.report import compare
run = artifacts.open_run("smoke")
seen = {"stages": len(pipeline.STAGES), "units": [unit.recipe["unit"] for unit in overview.units_of(run, "09_echo")]}
keys = ("turing.seed", "folds.seed", "shap.seed")
seen["compared by"] = [key for key in keys if key.startswith(tuple(compare._read_by("09_echo")))]
print(json.dumps(seen))
"""


def lines_of(find, put):
    """How many lines a step changes or adds, blank ones apart."""
    before = find.splitlines()
    return sum(bool(line.strip()) and line not in before for line in put.format(find).splitlines())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the code in which all recipes were followed."""
    root = tmp_path_factory.mktemp("recipes")
    for name in ("nafld_utils", "params", "notebooks", "tests"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "start.ipynb"))
    for name in ("Makefile", "README.md", "pyproject.toml"):
        shutil.copy2(PROJECT / name, root)
    for steps in RECIPES.values():
        for file, find, put in steps:
            text = (root / file).read_text(encoding="utf-8")
            assert find in text, f"{file}: a recipe expects {find!r}"
            (root / file).write_text(text.replace(find, put.format(find), 1), encoding="utf-8")
    (root / "nafld_utils" / "ldm" / "flat_units.py").write_text(PAINTER, encoding="utf-8")
    room = root / "nafld_utils" / "echo"
    room.mkdir()
    (room / "__init__.py").write_text(FACE, encoding="utf-8")
    (room / "units.py").write_text(UNITS.format(room="sampling"), encoding="utf-8")
    shutil.copy2(root / "notebooks" / "08_turing_test.ipynb", root / "notebooks" / "09_echo.ipynb")
    return root


def seen(scratch, code):
    """What a process of the copy prints."""
    env = {**os.environ, "PYTHONPATH": str(scratch), "NAFLD_ROOT": str(scratch / "work")}
    done = subprocess.run([sys.executable, "-c", code], cwd=scratch, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_dozen_lines_in_the_files_that_it_names(name):
    assert sum(lines_of(find, put) for _, find, put in RECIPES[name]) <= 12
    pages = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (recipe,) = [part for part in pages.split("\n## Add a ") if part.startswith(name)]
    recipe = recipe.partition("\n## ")[0]
    for file in dict.fromkeys(file for file, *_ in RECIPES[name]):
        short = file.removeprefix("nafld_utils/")
        assert f"`{file}`" in recipe or f"`{short}`" in recipe or file == "README.md", f"{name}: {file}"


def test_metric_backbone_and_generator_take_effect(scratch):
    assert seen(scratch, LOOK) == {
        "metric": "Spread (EfficientNet-Lite0)",
        "value": pytest.approx(3**0.5 / 4),
        "backbone": True,
        "generators": ["semantic", "class", "gan", "flat", "simulated"],
        "painted": [50, 150],
        "unit": "synthetic/flat/fold0/n00024",
        "look": ["#000000", "one grey"],
    }


def test_a_ninth_stage_takes_effect(scratch):
    assert seen(scratch, LOOK_AT_STAGE) == {
        "stages": 9,
        "units": ["echo"],
        "compared by": ["turing.seed", "folds.seed"],
    }
    command, env = make_command("-n", "09_echo", "PROFILE=smoke", root=scratch / "work")
    env["PYTHONPATH"] = str(scratch)
    told = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "nafld execute 09_echo" in told.stdout
    assert "nafld execute 08_turing_test" not in told.stdout


def lint_imports(scratch):
    command = [f"{sys.prefix}/bin/lint-imports", "--no-logo", "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(scratch)}
    return subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)


def test_the_new_code_keeps_the_direction_of_imports_and_a_room_that_looks_up_does_not(scratch):
    told = lint_imports(scratch)
    assert told.returncode == 0, told.stdout
    units = scratch / "nafld_utils" / "echo" / "units.py"
    kept = units.read_text(encoding="utf-8")
    units.write_text(UNITS.format(room="sweep"), encoding="utf-8")
    told = lint_imports(scratch)
    units.write_text(kept, encoding="utf-8")
    assert told.returncode == 1
    assert "nafld_utils.echo is not allowed to import nafld_utils.sweep" in told.stdout


def test_a_stage_without_units_is_named(monkeypatch):
    from nafld_utils import artifacts, pipeline
    from nafld_utils.pipeline import overview

    assert tuple(overview.UNITS) == pipeline.STAGES
    with pytest.raises(ValueError, match=r"stage 09_echo: expected an entry in UNITS of \S+overview\.py"):
        overview.units_of(artifacts.open_run("smoke"), "09_echo")
