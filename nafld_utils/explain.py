"""Which pixels speak for a fatty liver: expected gradients of a trained classifier on grey images.

Contract: images and a classifier in, attributions of the same size out; the same seed gives the same numbers and no
global random state is left changed.

Notes
-----
The paper names SHAP (Lundberg & Lee 2017, arXiv:1705.07874) and neither the explainer, nor the background, nor what is
explained. Choice: expected gradients (shap's GradientExplainer; Erion et al. 2021, doi 10.1038/s42256-021-00343-w),
since the deep explainer fails on these networks; the log-odds of "fatty", since probabilities saturate; the fold's real
training images as background. Attributions are with respect to the one grey channel, so they are the sum over the
three equal colour channels that the network sees.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nafld_utils import backbones

REVISION = 1


class GreyClassifier(nn.Module):
    """Log-odds of the second class (fatty) as a function of grey pixels.

    Parameters
    ----------
    prefix, tail : torch.nn.Module
        The frozen prefix and the trained tail of one network.
    name : str
        timm name, which fixes the normalisation.
    """

    def __init__(self, prefix: nn.Module, tail: nn.Module, name: str):
        super().__init__()
        self.prefix, self.tail = prefix, tail
        mean, std = backbones.normalisation(name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        # Gradients are wanted for pixels alone: half the time.
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Log-odds ``(N, 1)`` of images ``(N, 1, S, S)`` float32 in [-1, 1]."""
        inputs = ((images + 1.0) / 2.0 - self.mean) / self.std
        out = self.tail(self.prefix(inputs.contiguous(memory_format=torch.channels_last)))
        return out[:, 1:] - out[:, :1]


def to_pixels(images: np.ndarray) -> Tensor:
    """Grey levels ``(N, S, S)`` uint8 as the classifier's input ``(N, 1, S, S)`` float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32))[:, None] / 127.5 - 1.0


def log_odds(classifier: nn.Module, images: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Log-odds of "fatty" of images ``(N, S, S)`` uint8: ``(N,)`` float64."""
    classifier.to(device)
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 16):
            parts.append(classifier(to_pixels(images[start : start + 16]).to(device))[:, 0].double().cpu())
    return torch.cat(parts).numpy()


def attributions(
    classifier: nn.Module,
    background: np.ndarray,
    images: np.ndarray,
    n_samples: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Expected gradients: what each pixel adds to the log-odds of "fatty", against the background's mean.

    Parameters
    ----------
    classifier : torch.nn.Module
        A `GreyClassifier`.
    background : (B, S, S) uint8
        Real training images: what "nothing known about this pixel" means.
    images : (N, S, S) uint8
        Images to explain.
    n_samples : int
        Draws of a background image and of a point between it and the image, per image.
    seed : int
        Seed of these draws.
    device : torch.device or str
        Where to compute.

    Returns
    -------
    (N, S, S) float32
        In units of log-odds; positive speaks for fatty.

    Raises
    ------
    ValueError
        There is no background, or the sizes differ.
    """
    if len(background) == 0 or background.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"background: expected images of {images.shape[1:]} pixels, found {background.shape};"
            " raise shap.n_background or explain images of the background's size."
        )
    import shap

    classifier.to(device)
    state = np.random.get_state()  # noqa: NPY002  shap seeds numpy's global generator
    try:
        explainer = shap.GradientExplainer(classifier, to_pixels(background).to(device), batch_size=16)
        values = explainer.shap_values(to_pixels(images).to(device), nsamples=n_samples, rseed=seed)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return np.asarray(values, dtype=np.float32).reshape(images.shape)


def additivity(values: np.ndarray, outputs: np.ndarray, base: float) -> pd.DataFrame:
    """How far the attributions of an image are from adding up to what they explain.

    Parameters
    ----------
    values : (N, S, S) float
        From `attributions`.
    outputs : (N,) float
        Log-odds of the images.
    base : float
        Mean log-odds of the background.

    Returns
    -------
    pandas.DataFrame
        ``log_odds, base, explained`` (their difference), ``attributed`` (sum over pixels), ``error`` (attributed minus
        explained), all in log-odds, and ``relative_error`` (share of the explained difference). Expected gradients
        add up exactly for infinitely many samples.
    """
    attributed = values.reshape(len(values), -1).sum(axis=1, dtype=np.float64)
    explained = np.asarray(outputs, dtype=np.float64) - base
    table = pd.DataFrame({"log_odds": outputs, "base": base, "explained": explained, "attributed": attributed})
    table["error"] = table["attributed"] - table["explained"]
    return table.assign(relative_error=(table["error"] / table["explained"]).abs())


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average of attributions ``(N, S, S)`` over `width` pixels (SD), for the eye: single pixels are noise."""
    from scipy import ndimage

    return np.stack([ndimage.gaussian_filter(value, width, mode="constant") for value in values])


def shared_limit(values: np.ndarray, share: float = 0.998) -> float:
    """End of one symmetric colour scale for all maps: this quantile of the absolute values of all of them.

    Examples
    --------
    >>> shared_limit(np.array([[[-2.0, 1.0]]]), share=1.0)
    2.0
    """
    limit = float(np.quantile(np.abs(values), share))
    return limit if limit > 0 else 1.0


def pick(table: pd.DataFrame, drawn: np.ndarray, n_per_class: int) -> pd.DataFrame:
    """The first images of each class in the order in which the training drew them, fatty first.

    Choice: nothing is picked by eye. Where the training drew too few of a class, the set's first others follow.

    Parameters
    ----------
    table : pandas.DataFrame
        The synthetic set's table; needs ``label``.
    drawn : (n,) int
        Rows of the set that the training used, in its order.
    n_per_class : int
        Images a class.

    Returns
    -------
    pandas.DataFrame
        Rows of `table` with ``row`` (place in the set) and ``in_training``.

    Raises
    ------
    ValueError
        The whole set has too few images of a class.
    """
    others = np.setdiff1d(np.arange(len(table)), drawn)
    order = np.concatenate([drawn, others]).astype(int)
    listed = table.iloc[order].assign(row=order, in_training=np.isin(order, drawn))
    parts = []
    for label in (1, 0):
        part = listed[listed["label"] == label].head(n_per_class)
        if len(part) < n_per_class:
            raise ValueError(
                f"synthetic set: expected {n_per_class} images of class {label}, found {len(part)};"
                " lower shap.n_per_class or raise sampling.n_images."
            )
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
