"""Cells that show images of patients are marked, so that a report can be given away without them."""

import ast
import json
from pathlib import Path

from nafld_utils.report import pictures

ROOT = Path(__file__).resolve().parents[2]
NO_PICTURE = {"fooled"}  # draws a table of shades


def called(tree):
    """Names of functions and methods that are called."""
    found = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "") for item in found}


def drawing():
    """Names of functions of the package's figures that draw pixels, themselves or through another one."""
    found, functions = {"imshow"}, {}
    for path in [*ROOT.glob("nafld_utils/*/figures.py"), ROOT / "nafld_utils/views/figure_style.py"]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name not in NO_PICTURE:
                functions.setdefault(node.name, set()).update(called(node))
    while new := {name for name, calls in functions.items() if calls & found} - found:
        found |= new
    return found


def test_every_cell_that_draws_an_image_is_marked():
    draws, seen = drawing(), 0
    assert {"picture", "contact_sheet", "mosaic", "frame_grid", "closest_pairs", "overlay"} <= draws
    assert not {"roc", "rates", "fold_bars"} & draws
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                shows = bool(called(ast.parse("".join(cell["source"]))) & draws)
                marked = pictures.SHOWS_IMAGES in cell["metadata"].get("tags", [])
                assert shows == marked, f"{path.name}, cell {cell['id']}: tag {pictures.SHOWS_IMAGES}"
                seen += shows
    assert seen > 15
