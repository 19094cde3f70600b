"""Files that are whole or absent, units of work with their provenance, and the run that holds them.

Contract: a *unit* is a folder ``artifacts/<run>/<stage>/<keys>`` sealed by its manifest ``run.json``. Its hash
covers the settings it reads, the hashes of its inputs and the revisions of the modules that made it. Whatever is
written goes to a temporary name, is synced to disk and renamed. No pickle is written or read.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="checkpoints claims files locks run seals units user_files".split(),
    submod_attrs={
        "checkpoints": "load_state save_state".split(),
        "claims": "CLAIM_COLUMNS UNSTATED claim key_of of_row over_folds".split(),
        "files": (
            "NotEnoughMemoryError advised array_in_parts create_array existing file_sha256 is_formula load_array "
            "load_record load_table load_weight_facts load_weights no_space read_once replacing save_array save_json "
            "save_table save_text save_weights spreadsheet_safe"
        ).split(),
        "locks": "Busy locked remove_orphans".split(),
        "run": (
            "LAB LEFT_OUT LIVERS MARK_FILE Run check_disk given_to_lab is_private open_run remembered stage_fault "
            "stored_runs"
        ).split(),
        "seals": "MANIFEST digest is_whole sealed unsealed".split(),
        "units": (
            "PROJECT_ROOT Unit declared_hash environment read_manifest revision threads unit_seed work_root"
        ).split(),
        "user_files": (
            "CELL_ERROR INVISIBLE SHEETS Sheet column_name decoded file_kind is_litter plain read_sheet"
        ).split(),
    },
)
