"""Stage 01: a cohort of labelled images, loaded from a file or folder, checked, described, or simulated.

Contract: a cohort is a table of images (``image_id, patient_id, label, grade, sha256``), one of patients, and their
pixels. Whatever is wrong with a user's cohort is listed at once, by row and file, with what to do.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "data description download example explorer figures file_tags folder_files folder_table image_folder loading "
        "look_alikes one_person one_person_units outline problems simulation unit"
    ).split(),
    submod_attrs={
        "data": "Cohort".split(),
        "description": "class_curves summary_table".split(),
        "figures": "caption".split(),
        "file_tags": "tag_numbers tag_warnings tags_by_class".split(),
        "folder_files": "content_files mat_files".split(),
        "image_folder": "check".split(),
        "loading": "load write_mat".split(),
        "one_person": "alike".split(),
        "one_person_units": "build_pairs open_pairs pair_claims pairs_reading".split(),
        "outline": "outlined".split(),
        "problems": "CohortError WHOLE_LIST".split(),
        "simulation": "FEATURE_FAT simulate version".split(),
        "unit": (
            "build_cohort cohort_claims cohort_unit content_of likeness open_cohort region_of same_protocol"
        ).split(),
    },
)
