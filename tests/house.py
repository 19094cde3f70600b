"""Size of the package against its limits: ``python tests/house.py``. Standard library only.

A line of code is neither blank, comment nor docstring. Files and functions are measured whole, with blank lines,
comments and docstrings: a file as ``wc -l`` counts it, a function from its ``def`` to its last line. Parameters are
those with a name, ``self`` and ``cls`` left out. A folder counts its own ``.py`` files.
"""

import ast
from collections import Counter
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "nafld_utils"
LIMITS = {"file": 400, "function": 60, "parameters": 8, "folder": 20}
UNITS = {"file": "lines", "function": "lines", "parameters": "parameters", "folder": "files"}
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class House(NamedTuple):
    """Numbers of a package; `sizes` maps each kind of `LIMITS` to the size of every one, by name."""

    modules: int
    code: int
    docstrings: int
    sizes: dict[str, Counter]

    def beyond(self, kind):
        """Those above the limit, largest first."""
        return {name: size for name, size in self.sizes[kind].most_common() if size > LIMITS[kind]}


def _docstring_lines(tree):
    """Numbers of the lines that docstrings stand on."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, SCOPES) and ast.get_docstring(node, clean=False) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def _functions(node, prefix=""):
    """Every function below a node with its dotted name, methods and inner functions too."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, SCOPES)
        name = f"{prefix}{child.name}" if named else prefix
        if isinstance(child, FUNCTIONS):
            yield name, child
        yield from _functions(child, f"{name}." if named else prefix)


def measure(package=PACKAGE):
    """Numbers of a package's `.py` files, all folders below it."""
    sizes = {kind: Counter() for kind in LIMITS}
    code = docstrings = 0
    for path in sorted(package.rglob("*.py")):
        name, source = path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        within = _docstring_lines(tree)
        written = {n for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"}
        code += len(written - within)
        docstrings += len(within)
        sizes["file"][name] = len(lines)
        sizes["folder"][path.parent.relative_to(package.parent).as_posix()] += 1
        for function, node in _functions(tree):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            key = f"{name}:{function}"
            # a name may be defined twice, e.g. by a property and its setter
            sizes["function"][key] = max(node.end_lineno - node.lineno + 1, sizes["function"][key])
            sizes["parameters"][key] = max(len(set(given) - {"self", "cls"}), sizes["parameters"][key])
    return House(len(sizes["file"]), code, docstrings, sizes)


def report(house):
    """The numbers as text: totals, the largest of each kind, and what is beyond its limit."""
    lines = [f"{house.code} lines of code, {house.docstrings} docstring lines, {house.modules} modules"]
    for kind, limit in LIMITS.items():
        (name, size), beyond = house.sizes[kind].most_common(1)[0], house.beyond(kind)
        what = "longest parameter list" if kind == "parameters" else f"largest {kind}"
        lines.append(f"{what}: {size} {UNITS[kind]}, {name} (limit {limit}, {len(beyond)} beyond it)")
        lines += [f"  {size:5} {name}" for name, size in beyond.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(measure()))
