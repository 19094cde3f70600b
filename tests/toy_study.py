"""A study of two toy notebooks in place of the first two stages, run by make."""

import nbformat
from project import run_make

from nafld_utils import artifacts, pipeline

FIRST, SECOND = pipeline.STAGES[:2]
TOY = """
from nafld_utils import engine, open_run
run = open_run(profile, overrides)
unit = run.unit("toy", "{stage}", settings={settings})
if not unit.done():
    with unit.writing() as folder:
        (folder / "made.txt").write_text("x")
engine.announce("half of it done")
run.finish("{stage}", [unit]);
"""
SETTINGS = {FIRST: 'run.settings.section("cohort")', SECOND: 'run.settings.section("folds")'}


def write_notebook(path, stage, body=""):
    """A notebook of the project's shape that makes one unit of its stage."""
    cells = [
        nbformat.v4.new_markdown_cell(f"# Toy {stage}\nDoes the graph work?", id="title"),
        nbformat.v4.new_code_cell(
            'profile = "demo"\noverrides = {}', id="parameters", metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_markdown_cell("## Compute", id="heading"),
        nbformat.v4.new_code_cell(TOY.format(stage=stage, settings=SETTINGS[stage]) + body, id="compute"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


class Study:
    """A folder for artifacts and reports, toy notebooks, and make."""

    def __init__(self, root):
        self.root, self.notebooks = root / "work", root / "notebooks"
        for stage in (FIRST, SECOND):
            write_notebook(self.notebooks / f"{stage}.ipynb", stage)

    def make(self, *arguments, **options):
        return run_make(*arguments, f"NOTEBOOKS={self.notebooks}", "PROFILE=smoke", root=self.root, **options)

    def plan(self, overrides=""):
        found = pipeline.status(artifacts.open_run("smoke", overrides), self.notebooks)
        return {name: stage.due for name, stage in found.items() if stage.due}

    def report(self, stage, run="smoke"):
        return self.root / "reports" / run / f"{stage}.ipynb"

    def times(self, run="smoke"):
        return {stage: self.report(stage, run).stat().st_mtime_ns for stage in (FIRST, SECOND)}
