"""Frozen networks: their weights with checksums, features of images, distances between sets of features.

Contract: weights come from a hub, a given path, or a package, and are opened only once their checksum matched.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "backbone_weights backbones copy_rules distances feature_networks nearest_frames quick_gradients weight_files"
    ).split(),
    submod_attrs={
        "backbone_weights": "WEIGHTS hub_facts load local_file".split(),
        "backbones": (
            "Decoder GreyClassifier channels_last features inference_batch normalisation split to_input"
        ).split(),
        "distances": "checked_pair frechet_distance inception_score kernel_distance nearest_distance typical".split(),
        "feature_networks": "FEATURES INCEPTION_SHA256 LITE0 METRICS extract".split(),
        "nearest_frames": "LEFT_OUT Nearest nearest_features nearest_pixels pixels_apart".split(),
        "quick_gradients": "quicken".split(),
        "weight_files": "hub_commit read".split(),
    },
)
