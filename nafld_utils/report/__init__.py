"""Pages to mail: each executed notebook, the front page of a run, two runs compared, an archive.

Contract: a page is one file that carries all it needs; a policy in its head forbids scripts and every address, so
that opening it fetches nothing whatever its texts hold; what comes from data is escaped. Pages are built from what
a run has stored, by the keys of ``claims.csv``; nothing is computed again, and nothing depends on the time a page
was written.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="answers archive compare facts index notebooks pages pictures reforms stored texts".split(),
    submod_attrs={
        "archive": "left_out write_archive".split(),
        "compare": "comparison_html write_comparison".split(),
        "facts": "claims_table".split(),
        "index": "index_html write_index".split(),
        "notebooks": "write_notebook".split(),
        "pictures": "KEY_FIGURE".split(),
    },
)
