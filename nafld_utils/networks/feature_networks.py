"""Frozen ImageNet networks that turn images into features, and the names their metrics may carry.

Contract: checked images in, features and logits out, batch by batch. Only Inception-v3's features earn the names FID,
KID and IS; the same formulas on other features are named for what they are. Weight files are opened only after their
checksum was compared, and never as whole pickles.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils.networks import weight_files

REVISION = ("feature_networks", 1)
LITE0, LITE1 = "tf_efficientnet_lite0", "tf_efficientnet_lite1"
LITE = {"lite0": LITE0, "lite1": LITE1}
INCEPTION = "Inception-v3"
# Of the published file, whose name holds its first eight digits.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_HINT = "set quality.weights to a copy of weights-inception-2015-12-05-6726825d.pth, or quality.features=lite0"


# Metrics of a set's features and logits: their name on any network's features, and on Inception-v3's.
METRICS: dict[str, tuple[str, str]] = {
    "frechet": ("Frechet distance", "FID"),
    "kernel": ("Kernel distance", "KID"),
    "score": ("Classifier score", "IS"),
}


@dataclass(frozen=True)
class FeatureKind:
    """A frozen ImageNet network, its number of features per image, and the names its metrics may carry."""

    network: str
    width: int

    @property
    def metrics(self) -> dict[str, str]:
        """Key of `METRICS` to the name in tables and on axes."""
        own = self.network == INCEPTION
        return {key: f"{names[own]} ({self.network})" for key, names in METRICS.items()}


FEATURES: dict[str, FeatureKind] = {
    "inception": FeatureKind(INCEPTION, 2048),
    "lite0": FeatureKind("EfficientNet-Lite0", 1280),
    "lite1": FeatureKind("EfficientNet-Lite1", 1280),
    # for tests of the machinery at full size: no metric of it means anything
    "random": FeatureKind("untrained Inception-v3", 2048),
}


# ---------------------------------------------------------------- features


def checked_images(images: Any, name: str = "the set") -> np.ndarray:
    """A set of grey 8-bit images as an array (N, S, S), without copying it: a memory map stays one.

    Raises
    ------
    ValueError
        The set is empty, images differ in size, have colours, are not 8-bit or hold NaN: one sentence names the set,
        what was found and what to do.
    """
    expected = f"{name}: expected grey images (N, S, S), uint8 from 0 to 255"
    if not isinstance(images, np.ndarray):
        sizes = sorted({np.shape(image) for image in images})
        if len(sizes) > 1:
            raise ValueError(f"{expected}, found sizes {', '.join(map(str, sizes[:4]))}; resize them to one size.")
        images = np.asarray(images)
    if not images.size:
        raise ValueError(f"{expected}, found none; make the set first.")
    if images.ndim == 4:
        raise ValueError(f"{expected}, found {images.shape[-1]} channels {images.shape}; convert them to grey.")
    if images.ndim != 3:
        raise ValueError(f"{expected}, found shape {images.shape}; stack them to (N, S, S).")
    if images.dtype != np.uint8:
        low, high = images.min(), images.max()
        found = "NaN" if np.isnan(low) or np.isnan(high) else f"values from {low:g} to {high:g}"
        raise ValueError(f"{expected}, found {images.dtype} with {found}; scale them to 0..255 and convert.")
    return images


def extract(
    images: np.ndarray,
    kind: str,
    weights: str | None = None,
    device: Any = "cpu",
    batch_size: int = 64,
    name: str = "the set",
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (N, d) and class logits (N, C), float32, of images from a frozen ImageNet network.

    Parameters
    ----------
    images : numpy.ndarray, shape (N, S, S), uint8
        Grey images; the channel is repeated.
    kind : {"inception", "lite0", "lite1", "random"}
        Key of `FEATURES`. Inception-v3 is the TensorFlow network of the published FID with its own bilinear resize to
        299 pixels and without its bias (torchmetrics' ``antialias=False``), C is 1008; Lite0 and Lite1 see the images
        at their own size, C is 1000.
    weights : str, optional
        Path of Inception-v3's weight file; None downloads it once. Lite's weights are installed with packages.
    device : torch.device or str
    batch_size : int
        Images at once, read as they are needed from a memory map; does not change the result beyond rounding.
    name : str
        What the set is called in an error.

    Raises
    ------
    ValueError
        Unknown `kind`, what `checked_images` refuses, or a weight file of other content.
    """
    import torch

    from nafld_utils import engine
    from nafld_utils.engine import arithmetic

    if kind not in FEATURES:
        raise ValueError(f"quality.features: expected one of {', '.join(FEATURES)}, found {kind!r}.")
    images = checked_images(images, name)
    network = _network(kind, weights, str(device))
    if kind in LITE:
        from nafld_utils.networks import backbones

        features = np.asarray(backbones.features(network, images, LITE[kind], device, batch_size=batch_size))
        with torch.no_grad(), arithmetic("fp32", device):  # the head alone: one pass over the images gives both
            logits = network.get_classifier()(torch.from_numpy(features).to(device)).cpu().numpy()
        return features, logits
    parts = []
    with torch.inference_mode(), arithmetic("fp32", device):
        for start in range(0, len(images), batch_size):
            x = engine.sent(torch.from_numpy(np.array(images[start : start + batch_size])), torch.device(device))
            x = x.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            parts.append([part.float() for part in network(x)])
    pooled, logits = (torch.cat(of_one).cpu().numpy() for of_one in zip(*parts, strict=True))
    return pooled, logits


@functools.lru_cache(maxsize=2)
def _network(kind: str, weights: str | None, device: str) -> Any:
    import torch

    if kind in LITE:
        from nafld_utils.networks import backbone_weights

        return backbone_weights.load(LITE[kind], weights="bundled").to(device)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        """Without the reading of weights at construction, which would open a pickle whole."""

        def load_state_dict(self, state: Any, **options: Any) -> Any:
            return super().load_state_dict(state, **options) if state else None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = ["2048", "logits_unbiased"]
        network = Bare("inception-v3-compat", outputs, feature_extractor_weights_path=nothing)
    if kind == "inception":
        stated = "of the published file"
        network.load_state_dict(weight_files.read(inception_file(weights), INCEPTION_SHA256, stated, INCEPTION_HINT))
    return network.to(device, memory_format=torch.channels_last)


def inception_file(path: str | None = None) -> Path:
    """Weight file of the published FID's Inception-v3: the given one, or torch-fidelity's download."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not file.is_file():
        if path:
            raise ValueError(f"{file}: expected Inception-v3's weights, found no file; {INCEPTION_HINT}.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file.name}: expected a download, found {error}; {INCEPTION_HINT}.") from None
    return file
