"""Reports that can be mailed: each executed notebook as a page, the front page of a run, a comparison, an archive.

Contract of the modules here: a page is one file that carries all it needs (figures and style embedded, code folded); a
policy in its head forbids scripts and every address, so opening it fetches nothing whatever its texts hold; what comes
from data is escaped; a page made from simulated patients says so on top. Pages are built from what a run has stored,
nothing is computed again, a stage that has not run is shown as such, and nothing in a page depends on the time it was
written.
"""

from nafld_utils.report.archive import write_archive
from nafld_utils.report.compare import comparison_html, write_comparison
from nafld_utils.report.facts import claims_table
from nafld_utils.report.index import index_html, write_index
from nafld_utils.report.notebooks import ANSWER_FIGURE, KEY_FIGURE, key_figures, notebook_html, write_notebook
from nafld_utils.report.pages import number

__all__ = [
    "ANSWER_FIGURE",
    "KEY_FIGURE",
    "claims_table",
    "comparison_html",
    "index_html",
    "key_figures",
    "notebook_html",
    "number",
    "write_archive",
    "write_comparison",
    "write_index",
    "write_notebook",
]
