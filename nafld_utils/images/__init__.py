"""Pixels: image files, arrays larger than memory, regions, crops and semantic maps.

Contract: arrays in, arrays out; grey images are ``(N, H, W) uint8`` unless a name says otherwise.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules="crops dicom_file frames grey_levels image_file image_store semantic_maps textures".split(),
    submod_attrs={
        "crops": (
            "crop_corner crop_window cut extract_crop find_region random_box region_mask resize_box "
            "rotate_about to_float trivial_augment whole_box"
        ).split(),
        "grey_levels": "ImageFault MAX_PIXELS Picture".split(),
        "image_file": "read read_header".split(),
        "image_store": "COMMIT_EVERY Ragged Store move release stream".split(),
        "semantic_maps": "warp_map".split(),
        "textures": "texture_features".split(),
    },
)
