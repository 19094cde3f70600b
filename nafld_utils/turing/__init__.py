"""Stage 08: the page for raters, their results files, and what their answers amount to.

Contract: the page holds no key. Simulated raters are called simulated wherever their numbers stand.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="figures intervals mailed page rater_model results_files sitting table_1 units verdict".split(),
    submod_attrs={
        "page": "load_texts".split(),
        "sitting": "CONFIDENCE_LEVELS".split(),
        "table_1": "as_table_1 paper_ratings paper_summary per_rater summarize".split(),
        "units": "PAGE analyse make_page make_set numbers page_separation shortfall titled work_root".split(),
        "verdict": "answer claims protocol".split(),
    },
)
