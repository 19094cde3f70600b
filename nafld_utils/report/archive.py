"""A run's report pages in one archive.

Contract: the same pages give the same bytes, since entries are sorted and carry no time and no owner; the archive
appears whole or not at all. Left out are the executed notebooks, which hold what the pages hold, and, until raters'
answers are given, the page of the Turing test, which is its key. One form has no images of patients, neither real nor
synthetic, since a synthetic one may be a copy; its name and its front page say so.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from nafld_utils import artifacts, pipeline
from nafld_utils.artifacts import Run
from nafld_utils.report import index, notebooks, pictures, stored

KEY_PAGE = "08_turing_test"  # shows which images of the Turing test are real
_TIME = (1980, 1, 1, 0, 0, 0)  # the archive format's first


def left_out(run: Run) -> list[str]:
    """Stages whose pages stay behind: that of the Turing test as long as no answers of raters are given."""
    return [] if run.settings.turing.ratings else [KEY_PAGE]


def write_archive(run: Run, images: bool = True) -> Path:
    """Write ``reports/<run>/<run>-report.zip``: a front page and the pages of the stages.

    Without `images` it is ``<run>-report-no-images.zip``. ValueError: the run has no whole and current report.
    """
    stored.require_finished(run)
    behind, name = left_out(run), f"{run.name}-report{'' if images else '-no-images'}"
    entries = {"index.html": index.index_html(run, left_out=behind, executed=False, images=images)}
    for stage in pipeline.STAGES:
        if stage not in behind:
            page = notebooks.page_path(run, stage).read_text(encoding="utf-8")
            if not images:
                page = notebooks.notebook_html(run, stage, pictures.without_images(notebooks.read_notebook(run, stage)))
            entries[f"{stage}.html"] = _unlinked(page, behind)
    path = run.reports / f"{name}.zip"
    with artifacts.replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for page in sorted(entries):
            entry = zipfile.ZipInfo(f"{name}/{page}", _TIME)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, entries[page].encode())
    return path


def _unlinked(page: str, behind: list[str]) -> str:
    """A stage's page without links to pages that do not go along."""
    for stage in behind:
        for text in (f"← {stage}", f"{stage} →"):
            page = page.replace(f'<a href="{stage}.html">{text}</a>', "")
    return page
