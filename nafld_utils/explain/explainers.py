"""Which pixels speak for a fatty liver: expected gradients of a trained classifier on grey images.

Contract: images and a classifier in, attributions of the same size out; the same seed gives the same numbers and no
global random state is left changed.

Notes
-----
The paper names SHAP (Lundberg & Lee 2017, arXiv:1705.07874) and neither the explainer, nor the background, nor what is
explained. Choice: expected gradients (shap's GradientExplainer; Erion et al. 2021, doi 10.1038/s42256-021-00343-w),
since the deep explainer fails on these networks; the log-odds of "fatty", since probabilities saturate; the fold's real
training images as background. The other explainer, shap's PartitionExplainer, needs no gradient: it replaces ever
smaller rectangles by the background's mean image, draws nothing and adds up exactly, at the cost of blocky maps.
Attributions are with respect to the one grey channel, so they are the sum over the three equal colour channels that
the network sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nafld_utils import engine

if TYPE_CHECKING:
    from torch import Tensor, nn

torch = engine.Later("torch")

REVISION = ("explain", 3)

EXPLAINERS = ("gradient", "partition")
OUTCOMES = {(1, 1): "true positive", (0, 1): "false positive", (0, 0): "true negative", (1, 0): "false negative"}


def to_pixels(images: np.ndarray) -> Tensor:
    """Grey levels ``(N, S, S)`` uint8 as the classifier's input ``(N, 1, S, S)`` float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32))[:, None] / 127.5 - 1.0


def log_odds(classifier: nn.Module, images: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Log-odds of "fatty" of images ``(N, S, S)`` uint8: ``(N,)`` float64."""
    classifier.to(device)
    parts = []
    with torch.no_grad(), engine.arithmetic("fp32", device):
        for start in range(0, len(images), 16):
            pixels = engine.sent(to_pixels(images[start : start + 16]), torch.device(device))
            parts.append(classifier(pixels)[:, 0].double())
    return torch.cat(parts).cpu().numpy()


def attributions(
    classifier: nn.Module,
    background: np.ndarray,
    images: np.ndarray,
    n_samples: int,
    seed: int,
    device: torch.device | str = "cpu",
    explainer: str = "gradient",
) -> np.ndarray:
    """What each pixel adds to the log-odds of "fatty", against the background (see `base_value`): (N, S, S) float32.

    `background` (B, S, S) uint8 are real training images: what "nothing known about this pixel" means; `images` are
    (N, S, S) uint8. `n_samples` per image are draws of a background image and of a point between it and the image
    (gradient), or evaluations of the classifier (partition, which draws nothing); `explainer` is one of `EXPLAINERS`.
    """
    classifier.to(device)
    state = np.random.get_state()  # noqa: NPY002  shap seeds numpy's global generator
    try:
        if explainer == "partition":
            values = _owen_values(classifier, background, images, n_samples, device)
        else:
            values = _expected_gradients(classifier, background, images, n_samples, seed, device)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return np.asarray(values, dtype=np.float32).reshape(images.shape)


def _expected_gradients(
    classifier: nn.Module, background: np.ndarray, images: np.ndarray, n_samples: int, seed: int, device: Any
) -> np.ndarray:
    import shap

    with engine.arithmetic("fp32", device):
        found = shap.GradientExplainer(classifier, to_pixels(background).to(device), batch_size=16)
        return found.shap_values(to_pixels(images).to(device), nsamples=n_samples, rseed=seed)


def _owen_values(
    classifier: nn.Module, background: np.ndarray, images: np.ndarray, n_samples: int, device: Any
) -> np.ndarray:
    import shap

    def output(pixels: np.ndarray) -> np.ndarray:
        return log_odds(classifier, pixels[..., 0], device)

    masker = shap.maskers.Image(mean_image(background)[..., None], (*images.shape[1:], 1))
    found = shap.PartitionExplainer(output, masker)
    return found(images[..., None], max_evals=n_samples, batch_size=16, silent=True).values  # noqa: PD011  no table


def mean_image(background: np.ndarray) -> np.ndarray:
    """Mean of the background images, (S, S) uint8: the pixel that stands for "nothing known"."""
    return np.round(np.mean(background, axis=0)).astype(np.uint8)


def base_value(
    classifier: nn.Module, background: np.ndarray, device: torch.device | str = "cpu", explainer: str = "gradient"
) -> float:
    """Log-odds from which attributions count: the background's mean output, or the output at its mean image."""
    images = background if explainer == "gradient" else mean_image(background)[None]
    return float(log_odds(classifier, images, device).mean())


def additivity(values: np.ndarray, outputs: np.ndarray, base: float) -> pd.DataFrame:
    """How far attributions (N, S, S) are from adding up to what they explain, image by image.

    Columns ``log_odds`` (`outputs`, (N,)), ``base, explained`` (their difference), ``attributed`` (sum over pixels),
    ``error`` (attributed minus explained), all in log-odds, and ``relative_error`` (share of the explained difference).
    Expected gradients add up exactly for infinitely many samples.
    """
    attributed = values.reshape(len(values), -1).sum(axis=1, dtype=np.float64)
    explained = np.asarray(outputs, dtype=np.float64) - base
    table = pd.DataFrame({"log_odds": outputs, "base": base, "explained": explained, "attributed": attributed})
    table["error"] = table["attributed"] - table["explained"]
    return table.assign(relative_error=(table["error"] / table["explained"]).abs())


def missing_share(table: pd.DataFrame) -> float:
    """Additivity error of several images: summed absolute error over the summed absolute log-odds to be explained.

    Parameters
    ----------
    table : pandas.DataFrame
        ``table`` of an `Explanation`: ``error, explained``, in log-odds.

    Returns
    -------
    float
        0 where the attributions add up; above 1 where they miss by more than there is to explain.
    """
    return float(table["error"].abs().sum() / table["explained"].abs().sum())


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average of attributions ``(N, S, S)`` over `width` pixels (SD), for the eye: single pixels are noise."""
    from scipy import ndimage

    return np.stack([ndimage.gaussian_filter(value, width, mode="constant") for value in values])


def shared_limit(values: np.ndarray, share: float = 0.998) -> float:
    """End of one symmetric colour scale for all maps: a quantile of their absolute values.

    Parameters
    ----------
    values : numpy.ndarray
        Attributions of any shape, log-odds per pixel.
    share : float
        Quantile, 0 to 1; what lies beyond it has the colour of the end.

    Returns
    -------
    float
        Above 0.

    Examples
    --------
    >>> shared_limit(np.array([[[-2.0, 1.0]]]), share=1.0)
    2.0
    """
    limit = float(np.quantile(np.abs(values), share))
    return limit if limit > 0 else 1.0


def pick(table: pd.DataFrame, drawn: np.ndarray, n_per_class: int) -> pd.DataFrame:
    """The first images of each class in the order in which the training drew them, fatty first; none picked by eye.

    `drawn` (n,) int are the rows of the set that the training used, in its order; where these are too few of a class,
    the set's first others follow. Gives rows of `table` (needs ``label``) with ``row`` (place in the set) and
    ``in_training``, and refuses a set with too few images of a class.
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


def pick_patients(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """Rows of the first image of `n` patients, or of all if there are fewer; classes in turn, else in their order."""
    first = images[~images["patient_id"].duplicated()]
    turn = first.groupby("label").cumcount()
    return first.assign(turn=turn).sort_values(["turn", "label"], kind="stable").head(n).drop(columns="turn")


def outcome(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Outcome of each image by its label and its score against one half: ``(n,)`` of `OUTCOMES`.

    Examples
    --------
    >>> outcome(np.array([1, 0]), np.array([0.9, 0.8])).tolist()
    ['true positive', 'false positive']
    """
    called = np.asarray(score) > 0.5
    return np.array([OUTCOMES[int(a), int(b)] for a, b in zip(label, called, strict=True)])


def pick_outcomes(scores: pd.DataFrame) -> pd.DataFrame:
    """One image (``image_id, label, score``) of each outcome that occurs, with ``outcome``, in the order of `OUTCOMES`.

    It is the one with the middle score: typical, and not picked by eye.
    """
    named = scores.assign(outcome=outcome(scores["label"].to_numpy(), scores["score"].to_numpy()))
    named = named.sort_values(["score", "image_id"])
    middle = []
    for name in OUTCOMES.values():
        part = named[named["outcome"] == name]
        middle.append(part.iloc[len(part) // 2 :][:1])
    return pd.concat(middle, ignore_index=True)
