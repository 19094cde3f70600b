"""Whether synthetic images are copies of training patients: nearest frames, thresholds from real patients, a verdict.

Contract: images, features and patient numbers in; arrays and tables out. A *measure* is a distance between images: of
pixels (one minus the best normalised cross-correlation over shifts and scales), of autoencoder latents, of network
features (Euclidean). Frames of one patient are near-duplicates, so a distance is kept to the nearest frame of every
*patient*, and what counts as near is read from how near other real patients come, each counted once.

Sources: Carlini et al. 2023, arXiv 2301.13188 (relative distance); Alaa et al. 2022, arXiv 2102.08921 (authenticity);
Dar et al. 2024, arXiv 2402.01054 (copies of patients in medical latent diffusion); Bates et al. 2023, doi
10.1214/22-AOS2244, and Barber et al. 2021, doi 10.1214/20-AOS1965 (thresholds as order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

REVISION = ("memorization", 2)
SIDE = 64  # pixels at which images are compared
COARSE = 32  # pixels at which the nearest frame of a patient is found
WINDOW = 0.75  # share of the side of the middle square that is compared (choice: leaves room for shifts)
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0)  # a stored crop shows 0.8 to 1 of a frame's side
LEAST_SD = 2.0  # grey levels; a flatter window has no pattern to correlate with
LEVEL = 0.05  # share of new patients that a measure may call near, where there are patients enough
MEASURES = ("pixels", "latents", "features")
STATISTICS = ("distance", "relative")


# ---------------------------------------------------------------- nearest frame of every patient


class Nearest:
    """Distance (n, P) float32 of each query to its nearest frame of every one of P `patients`, and that frame's `row`.

    `patients` are in order of their number; `row` is (n, P) int32.
    """

    def __init__(self, patients: np.ndarray, distance: np.ndarray, row: np.ndarray):
        self.patients, self.distance, self.row = patients, distance, row

    @classmethod
    def unknown(cls, n: int, patients: np.ndarray) -> Nearest:
        """Of n queries, to be filled."""
        return cls(patients, np.empty((n, len(patients)), np.float32), np.empty((n, len(patients)), np.int32))

    def without_own(self, own: np.ndarray) -> Nearest:
        """The same with a query's own patient infinitely far away, for real images of the reference's patients."""
        distance = np.where(self.patients[None] == np.asarray(own)[:, None], np.inf, self.distance)
        return Nearest(self.patients, distance.astype(np.float32), self.row)


def nearest_features(
    queries: np.ndarray, reference: np.ndarray, patients: np.ndarray, device: Any = "cpu", chunk: int = 256
) -> Nearest:
    """Euclidean distance of features or latents (n, ...) to the nearest reference row (m, ...) of every patient (m,).

    `chunk` queries are read and compared at once, which does not change the result beyond rounding.
    """
    if queries.shape[1:] != reference.shape[1:] or len(reference) != len(patients):
        raise ValueError(
            "nearest frames: expected queries and reference of one shape and one patient per row, found"
            f" {queries.shape}, {reference.shape} and {len(patients)} patients; take both through the same network."
        )
    names, code = np.unique(patients, return_inverse=True)
    known = torch.from_numpy(np.array(reference, dtype=np.float32)).reshape(len(reference), -1).to(device)
    middle = known.mean(dim=0)  # distances do not change, their rounding does
    known = known - middle
    found = Nearest.unknown(len(queries), names)
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        x = torch.from_numpy(np.array(queries[some], dtype=np.float32)).to(device)
        apart = torch.cdist(x.reshape(len(x), -1) - middle, known)
        found.distance[some], found.row[some] = _by_patient(apart.cpu().numpy(), code)
    return found


def nearest_pixels(
    queries: np.ndarray, frames: np.ndarray, patients: np.ndarray, device: Any = "cpu", chunk: int = 8
) -> Nearest:
    """One minus the best correlation of a query's middle with any place of the nearest frame of every patient.

    Queries are crops (n, S, S) uint8, frames whole training images (m, S, S) uint8 of patients (m,). The middle of a
    query, three quarters of its side, is shrunk to each of five scales, because a crop shows 0.8 to 1 of a frame's
    side, and correlated with the frame at every shift at which it lies inside. Choice: which frame of a patient is
    nearest is found at 32 pixels a side, how near it is at 64; frames of one patient are so alike that the other
    frames would change the third digit.
    """
    names, code = np.unique(patients, return_inverse=True)
    coarse, fine = (Bank(frames, side, device) for side in (COARSE, SIDE))
    found = Nearest.unknown(len(queries), names)
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        images = np.asarray(queries[some])
        _, row = _by_patient(1.0 - coarse.correlation(images).cpu().numpy(), code)
        rows = torch.from_numpy(row.astype(np.int64)).to(device)
        found.distance[some], found.row[some] = (1.0 - fine.correlation(images, rows)).cpu().numpy(), row
    return found


def _by_patient(apart: np.ndarray, code: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Smallest distance and its row per patient, (n, P), from distances (n, m) to rows of the patients `code` (m,)."""
    members = [np.flatnonzero(code == patient) for patient in range(code.max() + 1)]
    row = np.stack([mine[apart[:, mine].argmin(axis=1)] for mine in members], axis=1)
    return np.take_along_axis(apart, row, axis=1), row


# ---------------------------------------------------------------- correlation of pixels


def _shrink(images: np.ndarray, side: int, device: Any) -> Tensor:
    x = torch.from_numpy(np.array(images)).to(device).float()
    return F.adaptive_avg_pool2d(x[:, None], side)[:, 0]


class Bank:
    """Frames at one size, ready to be correlated with: spectra and, per scale, the local spread of grey levels.

    `spectra` are (m, side, side // 2 + 1) complex; `norms` map the side of a window to (m, v, v), the root of the sum
    of squares about the window's own mean, infinite where a window is too flat.
    """

    def __init__(self, frames: np.ndarray, side: int, device: Any):
        self.side, self.device = side, device
        spectra, norms = [], {max(4, round(WINDOW * side * scale)): [] for scale in SCALES}
        for start in range(0, len(frames), 256):
            x = _shrink(frames[start : start + 256], side, device)
            spectra.append(torch.fft.rfft2(x))
            for w, parts in norms.items():
                mean = F.avg_pool2d(x[:, None].double(), w, stride=1)
                square = F.avg_pool2d(x[:, None].double().square(), w, stride=1)
                spread = (square - mean.square()).clamp_min(0.0)[:, 0]
                norm = (spread * w * w).sqrt()
                parts.append(torch.where(spread.sqrt() < LEAST_SD, torch.inf, norm).float())
        self.spectra, self.norms = torch.cat(spectra), {w: torch.cat(parts) for w, parts in norms.items()}

    def correlation(self, queries: np.ndarray, rows: Tensor | None = None) -> Tensor:
        """Best correlation (n, m) of each query with each frame, or (n, P) with the frames `rows` (n, P) of its own."""
        whole = round(WINDOW * self.side)
        edge = (self.side - whole) // 2
        images = _shrink(queries, self.side, self.device)
        middle = images[:, None, edge : edge + whole, edge : edge + whole]
        frames, found = slice(None, None) if rows is None else rows, []
        for w, norms in self.norms.items():
            template = F.interpolate(middle, (w, w), mode="bilinear", antialias=True, align_corners=False)[:, 0]
            template = template - template.mean((1, 2), keepdim=True)
            norm = template.square().sum((1, 2), keepdim=True).sqrt()
            template = torch.where(norm < LEAST_SD * w, 0.0, template / norm.clamp_min(1e-6))
            spectrum = torch.fft.rfft2(template, s=(self.side, self.side)).conj().resolve_conj()
            inside = _inside(self.spectra[frames] * spectrum[:, None], self.side, self.side - w + 1)
            found.append((inside / norms[frames]).amax((2, 3)))
        return torch.stack(found).amax(0).clamp(-1.0, 1.0)


def _inside(product: Tensor, side: int, n: int) -> Tensor:
    """First n x n values of the inverse real transform of (..., side, side // 2 + 1) spectra, `side` even.

    Only there does the window lie inside the frame; two matrix products give those values in a third of the time that
    the whole transform takes.
    """
    half, device = product.shape[-1], product.device
    place = torch.arange(n, device=device)
    weight = torch.full((half,), 2.0, device=device)
    weight[0] = weight[-1] = 1.0
    angle = 2j * math.pi / side
    columns = torch.exp(angle * torch.arange(half, device=device)[:, None] * place[None]) * weight[:, None] / side
    rows = torch.exp(angle * place[:, None] * torch.arange(side, device=device)[None]) / side
    partial = (product.reshape(-1, half) @ columns.to(product.dtype)).reshape(-1, side, n)
    return torch.matmul(rows.to(product.dtype), partial).real.reshape(*product.shape[:-2], n, n)


# ---------------------------------------------------------------- what is too near


def statistics(nearest: Nearest) -> pd.DataFrame:
    """What each query's distances amount to: ``patient`` (nearest), ``row`` (its frame), ``distance``, ``relative``.

    ``relative`` is the distance over the mean distance to the nearest frame of every other patient, after Carlini et
    al., who divide by the mean over the nearest images, which here would be frames of one patient.
    """
    apart = nearest.distance.astype(np.float64)
    order, place, known = np.arange(len(apart)), apart.argmin(axis=1), np.isfinite(apart)
    if len(apart) and known.sum(axis=1).min() < 2:
        raise ValueError("copies: expected at least two patients to compare an image with, found fewer; add patients.")
    distance = apart[order, place]
    others = (np.where(known, apart, 0.0).sum(axis=1) - distance) / (known.sum(axis=1) - 1)
    table = pd.DataFrame({"patient": nearest.patients[place], "row": nearest.row[order, place]})
    return table.assign(distance=distance, relative=distance / np.maximum(others, 1e-12))


def thresholds(real: pd.DataFrame, own: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """How near real patients come to each other: an image below both ``distance`` and ``relative`` is nearer than that.

    `real` are `statistics` of the training images without their `own` patients; a threshold is the `order`-th smallest
    of the patients' smallest values.
    """
    least = real.groupby(np.asarray(own))[list(STATISTICS)].min()
    return {name: float(np.sort(least[name])[order(len(least), level) - 1]) for name in STATISTICS}


def order(n: int, level: float = LEVEL) -> int:
    """Which of `n` training patients, the nearest first, is the threshold of a measure; the first where n is small.

    Examples
    --------
    >>> [order(n) for n in (12, 39, 78, 79)]
    [1, 1, 1, 2]
    """
    return max(1, int(level * (n + 1) / 2 + 1e-9))


def by_chance(n: int, level: float = LEVEL) -> dict[str, float]:
    """Largest share of new patients, exchangeable with `n` training patients, called near by a ``measure`` and copies.

    Among any n + 1 patients at most 2k are nearer to another one than all but k - 1 of the rest are to each other, k
    the `order`, as the two of a nearest pair are near at once; so a new patient is with a probability of at most
    2k / (n + 1). A patient and a nearest neighbour share their distance, therefore k / (n + 1) would be half of what
    is seen. The ``verdict`` adds that of pixels and that of latents and features together.

    Examples
    --------
    >>> by_chance(39)
    {'measure': 0.05, 'verdict': 0.1}
    """
    measure = min(1.0, 2 * order(n, level) / (n + 1))
    return {"measure": measure, "verdict": min(1.0, 2 * measure)}


def authentic(found: pd.DataFrame, real: pd.DataFrame) -> np.ndarray:
    """Whether each query is farther from its nearest training image than that image is from every other patient.

    `found` are `statistics` of the queries; `real` holds the ``distance`` of every row of the reference to others.
    """
    return found["distance"].to_numpy() > real["distance"].to_numpy()[found["row"].to_numpy()]


def flags(found: Mapping[str, pd.DataFrame], limits: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Which measures call each image a copy, and the verdict, from `statistics` and `thresholds` by measure.

    Columns ``pixels, latents, features`` (nearer than the threshold both in distance and relative to other patients),
    ``copy`` (see `verdict`), ``why`` (in words, empty where nothing was found).
    """
    table = pd.DataFrame(
        {name: np.all([one[s] < limits[name][s] for s in STATISTICS], axis=0) for name, one in found.items()}
    )
    near = "nearer to a training patient than real patients are, by "
    words = ["; ".join(near + name for name in found if row[name]) for row in table.to_dict("records")]
    table["copy"] = verdict(table)
    return table.assign(why=np.where(table["copy"], words, "").astype(object))


def verdict(table: pd.DataFrame) -> np.ndarray:
    """Whether an image is a copy: the pixels say so, or latents and features together.

    Choice: every measure has its own rate of false alarms, so that any one of three would triple it; pixels find
    copies that were cropped, brightened or made noisy, which move latents and features.
    """
    return (table["pixels"] | (table["latents"] & table["features"])).to_numpy()


# ---------------------------------------------------------------- planted copies


def plant(images: np.ndarray, augment: bool, resize: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Copies of training images (n, S, S) uint8 to test the audit with.

    Exact ones, or, with `augment`, ones under a random resized crop of 0.9 to 1 of the area, a gain within 5 %, and
    noise of SD 2 grey levels; `resize` is ``images.resize_box``.
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
