"""Whether synthetic images are copies of training patients: nearest frames, thresholds from real patients, a verdict.

Contract: images, features and patient numbers in; arrays and tables out. A *measure* is a distance between images: of
pixels (one minus the best normalised cross-correlation over shifts and scales), of autoencoder latents, of network
features (Euclidean). Frames of one patient are near-duplicates, so nothing is compared frame by frame: a distance is
kept to the nearest frame of every *patient*, and what counts as near is read from how near other real patients come,
each counted once.

Sources: Carlini et al. 2023, arXiv 2301.13188 (relative distance); Alaa et al. 2022, arXiv 2102.08921 (authenticity);
Dar et al. 2024, arXiv 2402.01054 (copies of patients in medical latent diffusion).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

REVISION = ("memorization", 1)
SIDE = 64  # pixels at which images are compared
COARSE = 32  # pixels at which the frame of a patient is looked for
WINDOW = 0.75  # share of the side of the middle square that is looked for (choice: leaves room for shifts)
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0)  # a stored crop shows 0.8 to 1 of a frame's side
LEAST_SD = 2.0  # grey levels; a flatter window has no pattern to correlate with
LEVEL = 0.05  # share of real patients that come nearer to another one than the threshold
MEASURES = ("pixels", "latents", "features")
STATISTICS = ("distance", "relative")


# ---------------------------------------------------------------- nearest frame of every patient


@dataclass(frozen=True)
class Nearest:
    """Distance of each query to its nearest frame of every patient.

    Attributes
    ----------
    patients : numpy.ndarray, shape (P,)
        Patients of the reference, in order of their number.
    distance : numpy.ndarray, shape (n, P), float32
    row : numpy.ndarray, shape (n, P), int32
        Row of the reference that is nearest.
    """

    patients: np.ndarray
    distance: np.ndarray
    row: np.ndarray

    def without_own(self, own: np.ndarray) -> Nearest:
        """The same with a query's own patient infinitely far away, for real images of the reference's patients."""
        distance = np.where(self.patients[None] == np.asarray(own)[:, None], np.inf, self.distance)
        return Nearest(self.patients, distance.astype(np.float32), self.row)


def nearest_features(
    queries: np.ndarray, reference: np.ndarray, patients: np.ndarray, device: Any = "cpu", chunk: int = 256
) -> Nearest:
    """Euclidean distance to the nearest reference row of every patient.

    Parameters
    ----------
    queries : array, shape (n, ...)
        Features or latents; trailing axes are flattened. Read `chunk` rows at a time.
    reference : array, shape (m, ...)
    patients : array, shape (m,)
        Patient of each reference row.
    device : torch.device or str
        Where to compute.
    chunk : int
        Queries at once; does not change the result beyond rounding.

    Raises
    ------
    ValueError
        Shapes differ.
    """
    if queries.shape[1:] != reference.shape[1:] or len(reference) != len(patients):
        raise ValueError(
            f"nearest frames: expected queries and reference of one shape and a patient a row, found {queries.shape},"
            f" {reference.shape} and {len(patients)} patients; take both through the same network."
        )
    names, code = np.unique(patients, return_inverse=True)
    known = torch.from_numpy(np.array(reference, dtype=np.float32)).reshape(len(reference), -1).to(device)
    middle = known.mean(dim=0)  # distances do not change, their rounding does
    known = known - middle
    parts = []
    for start in range(0, len(queries), chunk):
        x = torch.from_numpy(np.array(queries[start : start + chunk], dtype=np.float32)).to(device)
        apart = torch.cdist(x.reshape(len(x), -1) - middle, known)
        parts.append(_by_patient(apart.cpu().numpy(), code, len(names)))
    return _nearest(names, parts)


def nearest_pixels(
    queries: np.ndarray, frames: np.ndarray, patients: np.ndarray, device: Any = "cpu", chunk: int = 8
) -> Nearest:
    """One minus the best correlation of a query's middle with any place of the nearest frame of every patient.

    Parameters
    ----------
    queries : numpy.ndarray, shape (n, S, S), uint8
        Synthetic or real images, crops of a frame.
    frames : numpy.ndarray, shape (m, S, S), uint8
        Whole training images.
    patients : numpy.ndarray, shape (m,)
        Patient of each frame.
    device : torch.device or str
        Where to compute.
    chunk : int
        Queries at once; does not change the result beyond rounding.

    Notes
    -----
    The middle of a query, three quarters of its side, is shrunk to each of five scales, because a crop shows 0.8 to 1
    of a frame's side, and correlated with the frame at every shift at which it lies inside. Choice: which frame of a
    patient is nearest is found at 32 pixels a side, how near it is at 64; frames of one patient are so alike that the
    other frames would change the third digit.
    """
    names, code = np.unique(patients, return_inverse=True)
    coarse, fine = (_bank(frames, side, device) for side in (COARSE, SIDE))
    parts = []
    for start in range(0, len(queries), chunk):
        some = np.asarray(queries[start : start + chunk])
        _, row = _by_patient(1.0 - _correlation(some, coarse).cpu().numpy(), code, len(names))
        rows = torch.from_numpy(row.astype(np.int64)).to(device)
        parts.append(((1.0 - _correlation(some, fine, rows)).cpu().numpy(), row))
    return _nearest(names, parts)


def _by_patient(apart: np.ndarray, code: np.ndarray, n_patients: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest distance and its row a patient, from distances (n, m) to rows that belong to patients `code`."""
    distance = np.empty((len(apart), n_patients), np.float32)
    row = np.empty((len(apart), n_patients), np.int32)
    for patient in range(n_patients):
        mine = np.flatnonzero(code == patient)
        best = apart[:, mine].argmin(axis=1)
        row[:, patient] = mine[best]
        distance[:, patient] = apart[np.arange(len(apart)), mine[best]]
    return distance, row


def _nearest(names: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Nearest:
    if not parts:
        empty = np.empty((0, len(names)))
        return Nearest(names, empty.astype(np.float32), empty.astype(np.int32))
    return Nearest(names, np.concatenate([d for d, _ in parts]), np.concatenate([r for _, r in parts]))


# ---------------------------------------------------------------- correlation of pixels


@dataclass(frozen=True)
class _Bank:
    """Frames at one size, ready to be correlated with: spectra and, a scale, the local spread of grey levels."""

    side: int
    spectra: Tensor  # (m, side, side // 2 + 1) complex
    norms: dict[int, Tensor]  # window side to (m, v, v): root of the sum of squares about the window's own mean


def _shrink(images: np.ndarray, side: int, device: Any) -> Tensor:
    x = torch.from_numpy(np.array(images)).to(device).float()
    return F.adaptive_avg_pool2d(x[:, None], side)[:, 0]


def _windows(side: int) -> list[int]:
    return [max(4, round(WINDOW * side * scale)) for scale in SCALES]


def _bank(frames: np.ndarray, side: int, device: Any) -> _Bank:
    spectra, norms = [], {w: [] for w in _windows(side)}
    for part in _batches(frames, 256):
        x = _shrink(part, side, device)
        spectra.append(torch.fft.rfft2(x))
        for w in norms:
            mean = F.avg_pool2d(x[:, None].double(), w, stride=1)
            square = F.avg_pool2d(x[:, None].double().square(), w, stride=1)
            spread = (square - mean.square()).clamp_min(0.0)[:, 0]
            norm = (spread * w * w).sqrt()
            norms[w].append(torch.where(spread.sqrt() < LEAST_SD, torch.inf, norm).float())
    return _Bank(side, torch.cat(spectra), {w: torch.cat(parts) for w, parts in norms.items()})


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield np.asarray(images[start : start + size])


def _correlation(queries: np.ndarray, bank: _Bank, rows: Tensor | None = None) -> Tensor:
    """Best correlation (n, m) of each query with each frame, or (n, P) with the frames `rows` (n, P) of its own."""
    device, side = bank.spectra.device, bank.side
    images = _shrink(queries, side, device)
    whole = round(WINDOW * side)
    edge = (side - whole) // 2
    middle = images[:, None, edge : edge + whole, edge : edge + whole]
    best = None
    for w in _windows(side):
        template = F.interpolate(middle, (w, w), mode="bilinear", antialias=True, align_corners=False)[:, 0]
        template = template - template.mean((1, 2), keepdim=True)
        norm = template.square().sum((1, 2), keepdim=True).sqrt()
        flat = norm < LEAST_SD * w
        template = torch.where(flat, 0.0, template / norm.clamp_min(1e-6))
        spectrum = torch.fft.rfft2(template, s=(side, side)).conj().resolve_conj()
        spectra = bank.spectra[None] if rows is None else bank.spectra[rows]
        norms = bank.norms[w][None] if rows is None else bank.norms[w][rows]
        found = _inside(spectra * spectrum[:, None], side, side - w + 1) / norms
        found = found.amax((2, 3))
        best = found if best is None else torch.maximum(best, found)
    return best.clamp(-1.0, 1.0)


def _inside(product: Tensor, side: int, n: int) -> Tensor:
    """First n x n values of the inverse real transform of (..., side, side // 2 + 1) spectra.

    Only there does the window lie inside the frame; two matrix products give those values in a third of the time that
    the whole transform takes.
    """
    half = product.shape[-1]
    device = product.device
    place = torch.arange(n, device=device)
    weight = torch.full((half,), 2.0, device=device)
    weight[0] = 1.0
    if side % 2 == 0:
        weight[-1] = 1.0
    angle = 2j * math.pi / side
    columns = torch.exp(angle * torch.arange(half, device=device)[:, None] * place[None]) * weight[:, None] / side
    rows = torch.exp(angle * place[:, None] * torch.arange(side, device=device)[None]) / side
    shape = product.shape[:-2]
    partial = (product.reshape(-1, half) @ columns.to(product.dtype)).reshape(-1, side, n)
    return torch.matmul(rows.to(product.dtype), partial).real.reshape(*shape, n, n)


# ---------------------------------------------------------------- what is too near


def statistics(nearest: Nearest) -> pd.DataFrame:
    """What each query's distances amount to.

    Returns
    -------
    pandas.DataFrame
        ``patient`` (nearest), ``row`` (its nearest frame), ``distance``, ``relative``: the distance over the mean
        distance to the nearest frame of every other patient, after Carlini et al., who divide by the mean over the
        nearest images, which here would be frames of one patient.

    Raises
    ------
    ValueError
        Fewer than three patients to compare with.
    """
    apart = nearest.distance.astype(np.float64)
    order = np.arange(len(apart))
    place = apart.argmin(axis=1)
    known = np.isfinite(apart)
    if len(apart) and known.sum(axis=1).min() < 2:
        raise ValueError("copies: expected at least two patients to compare an image with, found fewer; add patients.")
    distance = apart[order, place]
    others = (np.where(known, apart, 0.0).sum(axis=1) - distance) / (known.sum(axis=1) - 1)
    return pd.DataFrame(
        {
            "patient": nearest.patients[place],
            "row": nearest.row[order, place],
            "distance": distance,
            "relative": distance / np.maximum(others, 1e-12),
        }
    )


def thresholds(real: pd.DataFrame, own: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """How near real patients come to each other: below these values an image is nearer than real patients are.

    Parameters
    ----------
    real : pandas.DataFrame
        `statistics` of the training images with their own patient left out.
    own : array, shape (n,)
        Their patients.
    level : float
        Percentile over patients of each patient's smallest value, as a share.

    Returns
    -------
    dict
        ``distance`` and ``relative``.
    """
    least = real.groupby(np.asarray(own))[list(STATISTICS)].min()
    return {name: float(least[name].quantile(level)) for name in STATISTICS}


def authentic(found: pd.DataFrame, real: pd.DataFrame) -> np.ndarray:
    """Whether each query is farther from its nearest training image than that image is from every other patient.

    Parameters
    ----------
    found : pandas.DataFrame
        `statistics` of the queries, `row` counting the reference's rows.
    real : pandas.DataFrame
        `statistics` of the reference's rows, their own patients left out; one row a reference row.

    Returns
    -------
    numpy.ndarray of bool, shape (n,)
    """
    return found["distance"].to_numpy() > real["distance"].to_numpy()[found["row"].to_numpy()]


def flags(found: Mapping[str, pd.DataFrame], limits: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Which measures call each image a copy, and the verdict.

    Parameters
    ----------
    found : mapping of str to pandas.DataFrame
        `statistics` of the same images by measure.
    limits : mapping of str to mapping
        `thresholds` by measure.

    Returns
    -------
    pandas.DataFrame
        ``pixels``, ``latents``, ``features``: nearer than the threshold both in distance and relative to other
        patients; ``copy``: see `verdict`; ``why``: in words, empty where nothing was found.
    """
    table = pd.DataFrame()
    for name, one in found.items():
        table[name] = np.logical_and.reduce([one[s].to_numpy() < limits[name][s] for s in STATISTICS])
    table["copy"] = verdict(table)
    words = {name: f"nearer to a training patient than real patients are, by {name}" for name in found}
    table["why"] = [
        "; ".join(words[name] for name in found if row[name]) if row["copy"] else "" for row in table.to_dict("records")
    ]
    return table


def verdict(table: pd.DataFrame) -> np.ndarray:
    """Whether an image is a copy: the pixels say so, or latents and features together.

    Choice: every measure has its own rate of false alarms, so that any one of three would triple it; pixels find
    copies that were cropped, brightened or made noisy, which move latents and features.
    """
    return (table["pixels"] | (table["latents"] & table["features"])).to_numpy()


# ---------------------------------------------------------------- planted copies


def plant(images: np.ndarray, augment: bool, resize: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Copies of training images to test the audit with.

    Parameters
    ----------
    images : numpy.ndarray, shape (n, S, S), uint8
        Training images.
    augment : bool
        False copies exactly; True takes a random resized crop of 0.9 to 1 of the area, a gain within 5 %, and noise
        of SD 2 grey levels.
    resize : callable
        ``images.resize_box``.
    rng : numpy.random.Generator
        Draws crop, gain and noise.

    Returns
    -------
    numpy.ndarray, shape (n, S, S), uint8
    """
    if not augment:
        return np.array(images)
    side, out = images.shape[1], []
    for image in images:
        extent = side * math.sqrt(rng.uniform(0.9, 1.0))
        top, left = rng.uniform(0, side - extent, size=2)
        crop = resize(np.asarray(image), (top, left, extent, extent), side).astype(float)
        noisy = crop * rng.uniform(0.95, 1.05) + rng.normal(0.0, 2.0, crop.shape)
        out.append(np.where(crop > 0, noisy, 0).round().clip(0, 255).astype(np.uint8))
    return np.stack(out)
