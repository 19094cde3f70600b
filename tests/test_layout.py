"""The package's shape: import order, nothing heavy at import, notebooks as the house wants them."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nafld_utils"

# A module imports only from those above it; modules on one line do not know each other.
ORDER = [
    ["arms"],
    ["params", "locks"],
    ["artifacts"],
    ["words"],
    ["parts"],
    ["workers"],
    ["engine"],
    ["download"],
    ["pixel_store", "image_files", "cohort_problems"],
    ["cohort_table"],
    ["cohort_data"],
    ["cohort_folder"],
    ["cohort"],
    ["phantom_anatomy"],
    ["phantom_scanner"],
    ["phantom", "example_cohort"],
    ["folds"],
    ["preprocess"],
    ["semantic_maps"],
    ["describe"],
    ["precision", "weight_files"],
    ["backbone_weights"],
    ["backbones"],
    ["autoencoder"],
    ["autoencoder_training", "ldm_checkpoint"],
    ["diffusion"],
    ["diffusion_training"],
    ["sampling", "gan"],
    ["timer"],
    ["resampling"],
    ["stats"],
    ["claims"],
    ["feature_networks", "quality"],
    ["manifolds", "small_samples", "condition_checks", "memorization"],
    ["quality_filter"],
    ["trial_draws"],
    ["trial"],
    ["trial_resident", "trial_store"],
    ["sweep", "sweep_speed"],
    ["baselines", "delong", "measures", "quality_tables"],
    ["sweep_tables"],
    ["turing_sitting"],
    ["turing_import", "turing_page"],
    ["explain", "turing"],
    ["turing_statistics"],
    ["turing_model"],
    ["explain_truth"],
    ["feature_study"],
    ["shipped"],
    ["figures"],
    ["explorers"],
    ["stages.cohort"],
    ["stages.prepare"],
    ["stages.first_stages"],
    ["stages.differences"],
    ["stages.ldm"],
    ["stages.gan"],
    ["stages.samples"],
    ["stages.comparison", "stages.features"],
    ["stages.cost"],
    ["stages.quality", "stages.copies", "stages.turing"],
    ["stages.patients", "stages.filtering", "stages.galleries"],
    ["stages.sweep_features"],
    ["stages.sweep"],
    ["stages.baselines", "stages.sweep_answer"],
    ["stages.conditions", "stages.explain"],
    ["stages.explain_truth"],
    ["stages.explain_answer"],
    ["graph", "doctor"],
    ["overview"],
    ["interval_study"],
    ["report.pages"],
    ["report.notebooks"],
    ["report.facts", "report.stored"],
    ["report.texts"],
    ["report.answers", "report.declared", "report.reforms"],
    ["report.index"],
    ["report.archive", "report.compare"],
    ["execute"],
    ["lab"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


FOLDERS = ("figures", "explorers")  # whose modules stand side by side


def rank(module):
    return RANK.get(module.split(".")[0], RANK.get(module))


def imported(module):
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nafld_utils"):
            base = node.module.removeprefix("nafld_utils").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}" if base else alias.name
                yield name if name in MODULES else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("nafld_utils."):
                    yield alias.name.removeprefix("nafld_utils.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_those_above_it(module):
    for name in imported(module):
        if name in ("", *FOLDERS, "stages"):
            continue
        beside = module.split(".")[0] in FOLDERS and name.split(".")[0] == module.split(".")[0]
        assert rank(name) < rank(module) or beside, f"{module} imports {name}, which stands below it"


def test_computing_modules_open_no_artifact():
    for module in MODULES:
        if not module.startswith("stages.") and rank(module) <= RANK["turing_model"]:
            assert not [name for name in imported(module) if name.startswith("stages.")], module


def test_torch_files_are_opened_in_one_place_and_for_their_tensors_alone():
    """Also under another name, and pickles by any other loader: nothing else may even speak of one."""
    opened = {}
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
        for node in ast.walk(tree):
            words = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            assert "joblib" not in words, module
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert "load" not in words, module
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                how = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                opened.setdefault(module, []).append((ast.unparse(node.func), how.get("weights_only")))
    assert opened == {"weight_files": [("torch.load", "True")]}


def test_importing_the_light_modules_loads_nothing_heavy():
    heavy = ("torch", "diffusers", "timm", "shap", "sklearn", "matplotlib", "distributed")
    code = (
        "import sys\nfrom nafld_utils import params, artifacts, engine, graph, cli\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


# What is beyond a limit of `house.py`, by its own name, so that moving a module changes nothing here. Names only leave.
BEYOND = {
    "file": {
        *("autoencoder_units.py", "comparisons.py", "denoiser_units.py", "training_units.py", "units.py", "verdict.py"),
    },
    "function": {"build_unet", "measure", "sample", "train"},
    "parameters": {"build_unet", "measure", "sample", "train"},
    "folder": set(),
}


@pytest.fixture(scope="module")
def measured():
    return house.measure()


@pytest.mark.parametrize("kind", house.LIMITS)
def test_the_package_keeps_its_limits_and_the_exceptions_only_shrink(kind, measured):
    beyond = measured.beyond(kind)
    found = {re.split("[/:.]", name)[-1] if ":" in name else name.rpartition("/")[2] for name in beyond}
    assert found <= BEYOND[kind], f"beyond the limit of {house.LIMITS[kind]} {house.UNITS[kind]}: {beyond}"
    assert found == BEYOND[kind], f"within the limit by now, remove from BEYOND: {BEYOND[kind] - found}"


def test_the_package_is_measured_as_stated(tmp_path):
    source = '''"""Two lines
of docstring."""

# a comment
import os


class Thing:
    """One line."""

    def act(self, a, *rest, b=1, **more):  # counted: a comment beside code
        """One line."""

        def inner():
            return """a text,

            no docstring"""

        return inner
'''
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "thing.py").write_text(source)
    (tmp_path / "empty.py").write_text("")
    found = house.measure(tmp_path)
    assert (found.modules, found.code, found.docstrings) == (2, 7, 4)
    assert found.sizes["file"] == {"room/thing.py": 19, "empty.py": 0}
    assert found.sizes["function"] == {"room/thing.py:Thing.act": 9, "room/thing.py:Thing.act.inner": 4}
    assert found.sizes["parameters"] == {"room/thing.py:Thing.act": 2, "room/thing.py:Thing.act.inner": 0}
    assert found.sizes["folder"] == {tmp_path.name: 1, f"{tmp_path.name}/room": 1}
    large = house.House(1, 401, 0, {**found.sizes, "file": house.Counter({"a.py": 401, "b.py": 400})})
    assert large.beyond("file") == {"a.py": 401}
    assert "largest file: 401 lines, a.py (limit 400, 1 beyond it)\n    401 a.py" in house.report(large)


def test_to_plan_an_unchanged_run_loads_no_array_or_table_library(tmp_path):
    code = (
        "import sys\nfrom nafld_utils import cli\ncli.main(['resolve', '--dry-run', '--profile', 'smoke'])\n"
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'torch') if m in sys.modules])"
    )
    environment = {**os.environ, "NAFLD_ROOT": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.splitlines()[-2:] == ["smoke: 8 of 8 stages would run.", "[]"]


NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_there_are_eight_notebooks():
    from nafld_utils import params

    assert [path.stem for path in NOTEBOOKS] == list(params.STAGE_SECTIONS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_follow_the_skeleton(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "committed with outputs"
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert ["".join(cell["source"]).split() for cell in tagged] == [["profile", "=", '"demo"', "overrides", "=", "{}"]]
    title = "".join(cells[0]["source"])
    assert title.startswith(f"# {path.stem[:2]}")
    assert "?" in title.splitlines()[0]
    assert "Paper" in title
    assert "artifacts.finish(" in "".join(code[-1]["source"])
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines()]
    assert len(lines) <= 170, "logic belongs in the package"
    text = "\n".join(lines)
    assert "artifacts.open_run(profile, overrides)" in text
    assert "run.show(" in text
    assert "record_claims(" in text
    for banned in ("!pip", "%pip", "filterwarnings", "simplefilter", "/tmp", "artifacts/"):
        assert banned not in text, banned
    tree = ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 5, f"{node.name} is over five lines"
