"""The nearest frame of every patient: distances between images by pixels and by features.

Contract: images, features and patient numbers in, arrays out. The *distance of pixels* is one minus the best normalised
cross-correlation over shifts and scales; that of features or latents is Euclidean. Frames of one patient are
near-duplicates, so a distance is kept to the nearest frame of every *patient*.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

REVISION = ("nearest_frames", 1)  # raise ``memorization`` of quality.copies beside it, which the copy audit names
SIDE = 64  # pixels at which images are compared
COARSE = 32  # pixels at which the nearest frame of a patient is found
WINDOW = 0.75  # share of the side of the middle square that is compared (choice: leaves room for shifts)
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0)  # a stored crop shows 0.8 to 1 of a frame's side
LEAST_SD = 2.0  # grey levels; a flatter window has no pattern to correlate with


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


def pixels_apart(frames: np.ndarray, rows: np.ndarray, device: Any = "cpu", chunk: int = 8) -> np.ndarray:
    """One minus the best correlation, (n, k) float32, of the first n frames' middles with the frames `rows` (n, k).

    `frames` are (m, S, S) uint8, m at least n; compared as in `nearest_pixels`.
    """
    bank, found = Bank(frames, SIDE, device), np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), chunk):
        some = slice(start, min(start + chunk, len(rows)))
        named = torch.from_numpy(rows[some].astype(np.int64)).to(device)
        found[some] = 1.0 - bank.correlation(np.asarray(frames[some]), named).cpu().numpy()
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
