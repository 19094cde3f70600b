"""The package's shape: rooms and faces, nothing heavy at import, limits of size, notebooks as the house wants them."""

import ast
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import house
import notebook_names
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
DEEP = {"cohort.explorer", "cohort.unit"}


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
        assert room.__doc__
        hidden = {name for name in room.__all__ if f"{face.parent.name}.{name}" in MODULES}
        assert all(isinstance(getattr(room, name), ModuleType) for name in hidden), "a module hides a function"


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
        "import sys\nfrom nafld_utils import params, artifacts, engine, pipeline, cli, open_run\n"
        "params.load, artifacts.open_run, engine.map_units, pipeline.status\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("room", ["", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))])
def test_importing_a_face_loads_nothing_and_takes_no_time(room):
    """``doctor.py`` is run by a Python that has nothing installed, so the package itself needs its library alone."""
    name = f"nafld_utils.{room}".rstrip(".")
    code = (
        f"import sys, time\nbefore, start = {{*sys.modules}}, time.process_time()\nimport {name}\n"
        "print(time.process_time() - start)\n"
        "known = {*sys.stdlib_module_names, 'nafld_utils', 'lazy_loader', 'packaging'}\n"
        "print(sorted({name.split('.')[0] for name in {*sys.modules} - before} - known))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, loaded = told.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 1


def test_the_package_is_imported_by_a_python_that_has_nothing_installed():
    code = "import sys, nafld_utils\nprint(sorted({*sys.modules} & {'lazy_loader', 'numpy'}))\nnafld_utils.nothing"
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert told.stdout.strip() == "[]"
    assert "AttributeError: module 'nafld_utils' has no attribute 'nothing'" in told.stderr
    import nafld_utils

    assert nafld_utils.open_run is importlib.import_module("nafld_utils.artifacts").open_run


# What people outside of the notebooks call.
CALLED = [
    *("params.load", "cohort.load", "cohort.simulate", "cohort.write_mat", "preprocessing.make_folds"),
    *("ldm.build_unet", "quality.frechet_distance", "statistics.auc_interval", "turing.summarize"),
]


@pytest.mark.parametrize("name", CALLED)
def test_what_outsiders_call_is_callable_and_described(name):
    room, _, function = name.partition(".")
    found = getattr(importlib.import_module(f"nafld_utils.{room}"), function)
    assert callable(found)
    assert "Parameters\n" in found.__doc__, "whoever calls it from outside reads what it takes"


def test_what_outsiders_call_loads_no_torch_but_where_it_computes_with_it():
    rooms = sorted({name.partition(".")[0] for name in CALLED} - {"ldm"})
    names = ", ".join(name for name in CALLED if not name.startswith("ldm"))
    code = f"import sys\nfrom nafld_utils import {', '.join(rooms)}\n{names}\nprint('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert told.strip() == "False"


def asked_of_rooms(code):
    """What code names of a room: ``room.word`` and ``from nafld_utils.room import word``, as pairs of room and word."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nafld_utils."):
            yield from ((node.module.split(".")[1], alias.name) for alias in node.names)


def test_every_word_of_a_face_is_asked_for_outside_of_its_room():
    asked = {tuple(name.split(".")) for name in CALLED}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        asked |= {pair for pair in asked_of_rooms(path.read_text(encoding="utf-8")) if pair[0] != path.parent.name}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        asked |= {pair for code in notebook_names.code_cells(path).values() for pair in asked_of_rooms(code)}
    for face in sorted(PACKAGE.glob("*/__init__.py")):
        room = importlib.import_module(f"nafld_utils.{face.parent.name}")
        words = {name for name in room.__all__ if not isinstance(getattr(room, name), ModuleType)}
        unused = {name for name in words if (face.parent.name, name) not in asked}
        assert unused == set(), f"remove from the face of {face.parent.name}, nobody outside of it asks for them"


def called_by_notebooks():
    """Functions that notebooks call, by dotted name; of figures the room's contract says what they take."""
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        nodes = [*ast.walk(ast.parse("\n".join(notebook_names.code_cells(path).values())))]
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "nafld_utils"]
        rooms = {alias.name for node in imports for alias in node.names}
        for name in {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}:
            words = name.split(".") if re.fullmatch(r"\w+(\.\w+)+", name) else [""]
            if words[0] in rooms and "figures" not in words:
                yield name, functools.reduce(getattr, words[1:], importlib.import_module(f"nafld_utils.{words[0]}"))


# Arguments that are the same everywhere.
KNOWN = {"run", "ax", "figure", "title", "conditioning", "fold"}


def test_what_notebooks_call_says_what_it_takes():
    """A function that takes one thing beside what is known needs no list: its first line says what that is."""
    called = {name: one for name, one in called_by_notebooks() if inspect.isfunction(one)}
    assert len(called) > 100
    taken = {name: {*inspect.signature(one).parameters} - KNOWN for name, one in called.items()}
    assert [n for n, one in called.items() if len(taken[n]) > 1 and "Parameters\n" not in one.__doc__] == []


def test_every_file_of_data_goes_into_an_installed_copy():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {path for pattern in settings["package-data"]["*"] for path in PACKAGE.glob(f"*/{pattern}")}
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there
    assert there == {path for path in packed if path.is_file()}


# What is beyond a limit of `house.py`, by its own name, so that moving a module changes nothing here. Names only leave.
BEYOND = {
    "file": set(),
    "function": set(),
    "parameters": set(),
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
    assert "run.finish(STAGE, " in "".join(code[-1]["source"])
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines()]
    assert len(lines) <= 170, "logic belongs in the package"
    text = "\n".join(lines)
    assert "run = open_run(profile, overrides)\ndisplay(pipeline.begin(run, STAGE))" in text
    assert "run.show(" in text
    assert "run.record_claims(STAGE, " in text
    for banned in ("!pip", "%pip", "filterwarnings", "simplefilter", "/tmp", "artifacts/"):
        assert banned not in text, banned
    tree = ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 5, f"{node.name} is over five lines"


OWN_ROOMS = {
    "01_data_analysis": "cohort",
    "02_preprocessing": "preprocessing",
    "03_ldm_training": "ldm",
    "04_sampling": "sampling",
    "05_quality_metrics": "quality",
    "06_classification_sweep": "sweep",
    "07_shap": "explain",
    "08_turing_test": "turing",
}


def faults_of_imports(source, own):
    """What a notebook's code imports against the rule: its own room, `open_run` and two rooms more, by their names."""
    faults, rooms = [], set()
    for node in ast.walk(ast.parse(source)):
        deep = isinstance(node, ast.Import) and any(alias.name.startswith("nafld_utils") for alias in node.names)
        if deep or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nafld_utils.")):
            faults.append(f"from inside of a room: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and node.module == "nafld_utils":
            faults += [f"under another name: {alias.name}" for alias in node.names if alias.asname]
            rooms |= {alias.name for alias in node.names}
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    hidden = {node.id for node in nodes if isinstance(node.ctx, ast.Store)} & rooms
    faults += [f"hidden by a variable: {name}" for name in sorted(hidden)]
    faults += [f"not imported: {name}" for name in ("open_run", own) if name not in rooms]
    others = rooms - {"open_run", own}
    return faults + ([f"more than two other rooms: {sorted(others)}"] if len(others) > 2 else [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_its_own_room_and_two_more(path):
    source = "\n".join(notebook_names.code_cells(path).values())
    assert faults_of_imports(source, OWN_ROOMS[path.stem]) == []


def test_the_rule_of_imports_finds_what_breaks_it():
    good = "import numpy as np\nfrom nafld_utils import ldm, open_run, pipeline, views\ndata = ldm.a(run)\n"
    assert faults_of_imports(good, "ldm") == []
    assert faults_of_imports(good, "sweep") == [
        "not imported: sweep",
        "more than two other rooms: ['ldm', 'pipeline', 'views']",
    ]
    assert faults_of_imports(good + "from nafld_utils import engine", "ldm")
    assert faults_of_imports(good + "from nafld_utils.ldm import figures", "ldm")
    assert faults_of_imports(good + "import nafld_utils.ldm", "ldm")
    assert faults_of_imports(good + "from nafld_utils import ldm as rooms", "ldm") == ["under another name: ldm"]
    assert faults_of_imports(good + "for ldm in rows: pass", "ldm") == ["hidden by a variable: ldm"]
