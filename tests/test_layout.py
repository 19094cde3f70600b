"""The package's shape: import order, nothing heavy at import, notebooks as the house wants them."""

import ast
import importlib
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

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)
# What makes units and is not called so.
MAKERS = {"sampling.sampler_comparison", "sweep.prefix_features", "sweep.verdict"}
# Modules that another room still names, not its face. Names only leave.
DEEP = {"artifacts.files", "cohort.explorer", "cohort.figures", "cohort.unit"}


def source(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def test_rooms_import_downwards():
    """The contract is in pyproject.toml; a room that it does not name breaks it too."""
    command = [f"{sys.prefix}/bin/lint-imports", "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout
    assert "1 kept, 0 broken" in told.stdout


def test_a_room_names_modules_of_another_only_through_its_face():
    """``from nafld_utils.ldm import gan`` is the face's own word; ``from nafld_utils.ldm.gan import sample`` is not."""
    rooms, deep = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}, []
    for module in MODULES:
        room = module.split(".")[0]
        for node in ast.walk(ast.parse(source(module))):
            parts = (getattr(node, "module", None) or "").split(".") if isinstance(node, ast.ImportFrom) else []
            if len(parts) > 2 and parts[1] in rooms - {room}:
                deep.append(f"{module}: {node.module}")
    assert {line.partition(": nafld_utils.")[2] for line in deep} <= DEEP, deep


def test_faces_name_what_is_there():
    """They load nothing until they are asked, so that a wrong word would be found by its first user."""
    for face in sorted(PACKAGE.glob("*/__init__.py")):
        room = importlib.import_module(f"nafld_utils.{face.parent.name}")
        assert [name for name in room.__all__ if not hasattr(room, name)] == []


def test_units_are_made_where_the_name_says_so():
    made = {module for module in MODULES if re.search(r"\b(run|self)\.unit\(|\.writing\(\)", source(module))}
    others = {module for module in made if not module.rpartition(".")[2].endswith(("unit", "units"))}
    assert others - {"artifacts.run"} == MAKERS


def test_torch_files_are_opened_in_one_place_and_for_their_tensors_alone():
    """Also under another name, and pickles by any other loader: nothing else may even speak of one."""
    opened = {}
    for module in MODULES:
        tree = ast.parse(source(module))
        for node in ast.walk(tree):
            words = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            assert "joblib" not in words, module
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert "load" not in words, module
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                how = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                opened.setdefault(module, []).append((ast.unparse(node.func), how.get("weights_only")))
    assert opened == {"networks.weight_files": [("torch.load", "True")]}


def test_importing_the_light_modules_loads_nothing_heavy():
    heavy = ("torch", "diffusers", "timm", "shap", "sklearn", "matplotlib", "distributed")
    code = (
        "import sys\nfrom nafld_utils import params, artifacts, engine, pipeline, cli\n"
        "params.load, artifacts.open_run, engine.map_units, pipeline.status\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


# What is beyond a limit of `house.py`, by its own name, so that moving a module changes nothing here. Names only leave.
BEYOND = {
    "file": set(),
    "function": set(),
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
    assert found.sizes["file"] == {"room/thing.py": 7, "empty.py": 0}
    assert found.sizes["function"] == {"room/thing.py:Thing.act": 5, "room/thing.py:Thing.act.inner": 3}
    assert found.sizes["parameters"] == {"room/thing.py:Thing.act": 2, "room/thing.py:Thing.act.inner": 0}
    assert found.sizes["folder"] == {tmp_path.name: 1, f"{tmp_path.name}/room": 1}
    large = house.House(1, 401, 0, {**found.sizes, "file": house.Counter({"a.py": 401, "b.py": 400})})
    assert large.beyond("file") == {"a.py": 401}
    assert "largest file: 401 lines of code, a.py (limit 400, 1 beyond it)\n    401 a.py" in house.report(large)


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
