"""The nearest frame of every patient: distances between images by pixels and by features.

Contract: images, features and patient numbers in, arrays out. The *distance of pixels* is one minus the normalised
cross-correlation where two images are aligned best; that of features or latents is Euclidean. Frames of one patient
are near-duplicates, so a distance is kept to the nearest frame of every *patient*.

Sources: Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113 (alignment by the correlation's own gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nafld_utils import engine
from nafld_utils.engine import in_full

REVISION = ("nearest_frames", 1)  # raise ``memorization`` of copy_rules beside it, which the copy audit names
SIDE = 64  # pixels at which `pixels_apart` compares images
WINDOW = 0.75  # share of the side of the middle square that is compared (choice: leaves room for shifts)
SCALES = (0.8, 0.85, 0.9, 0.95, 1.0)  # a stored crop shows 0.8 to 1 of a frame's side
EDGE = 3 / 64  # SD, as a share of the side, of the Gaussian about whose mean edges are (choice)
LEFT_OUT = 0.15  # share of pixels (choice: a caption over a twelfth of an image may cover as much of its middle)
LEAST_SD = 2.0  # grey levels; a flatter window has no pattern to correlate with
# Of `nearest_pixels`. Choices, made on planted copies in simulated and published frames: anatomy that is coarser than
# speckle and finer than attenuation, which all livers share, tells patients apart even where speckle is drawn anew.
FOUND, ALIGNED = 24, 32  # pixels per side at which the nearest frame of a patient is found, and aligned
SPECKLE, SHADE = 2 / 64, 10 / 64  # SD, as shares of the side, of the Gaussian that takes speckle out, and of the mean
CROPPED = (0.65, 0.72, 0.8, 0.9, 1.0)  # shares of a frame's side: a stored crop, cropped once more
ANGLES = (-7, 0, 7)  # degrees at which an alignment begins; it turns on from there
TURNS = 4  # Gauss-Newton steps of an alignment
BLACK = 4  # grey levels; darker pixels lie outside the region


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

    def among(self, rows: np.ndarray, patients: np.ndarray) -> Nearest:
        """What a search of `rows` alone would give; these ascend, and are all frames of `patients`."""
        kept = np.flatnonzero(np.isin(self.patients, patients))
        row = np.searchsorted(rows, self.row.take(kept, axis=1)).astype(np.int32)
        return Nearest(self.patients[kept], self.distance.take(kept, axis=1), row)


@in_full
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
    device, (names, code) = torch.device(device), np.unique(patients, return_inverse=True)
    known = torch.from_numpy(np.array(reference, dtype=np.float32)).reshape(len(reference), -1).to(device)
    middle = known.mean(dim=0)  # distances do not change, their rounding does
    known = known - middle
    parts, members = [], _members(code, device)
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        x = engine.sent(torch.from_numpy(np.array(queries[some], dtype=np.float32)), device)
        parts.append(_by_patient(torch.cdist(x.reshape(len(x), -1) - middle, known), members))
    return _nearest(names, parts)


@in_full
def nearest_pixels(
    queries: np.ndarray, frames: np.ndarray, patients: np.ndarray, device: Any = "cpu", chunk: int = 8
) -> Nearest:
    """One minus the correlation of a query's middle with the nearest frame of every patient, aligned as well as it can.

    Queries are crops (n, S, S) uint8, frames whole training images (m, S, S) uint8 of patients (m,). Speckle and shade
    are taken out of both (`_anatomy`). The middle of a query, three quarters of its side, and its mirror image are
    correlated with every frame at every shift and five scales; with the best frame of each patient at three angles too;
    and from the best of these an affine map is refined by the correlation's gradient, so that a copy is found where
    it is flipped, turned, cropped, stretched, brightened or warped a little.
    """
    device, (names, code) = torch.device(device), np.unique(patients, return_inverse=True)
    coarse, fine = (_anatomy(frames, side, device) for side in (FOUND, ALIGNED))
    bank, parts, members = Bank(coarse, CROPPED), [], _members(code, device)
    whole = round(WINDOW * ALIGNED)
    inner = slice((ALIGNED - whole) // 2, (ALIGNED + whole) // 2)
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        x, y = (_both_ways(_anatomy(np.asarray(queries[some]), side, device)) for side in (FOUND, ALIGNED))
        begun = []
        for mirrored, way in enumerate(x):
            _, rows = _by_patient(1.0 - bank.best(way)[0], members)
            for angle in ANGLES:
                place = bank.best(_turned(way, angle), rows)
                facts = torch.stack([torch.full_like(place[0], value) for value in (mirrored, angle)])
                begun.append(torch.cat([place, facts, rows[None].float()]))
        begun = torch.stack(begun)
        pick = begun[:, 0].argmax(0)[None, None].expand(1, *begun.shape[1:])
        _, w, top, left, mirrored, angle, row = begun.gather(0, pick)[0]
        maps, rows, order = _maps(w, top, left, angle), row.long(), torch.arange(len(row), device=row.device)
        windows = y[mirrored.long(), order[:, None]][..., inner, inner]
        apart = 1.0 - _aligned(windows.flatten(0, 1), fine[rows.flatten()], maps.flatten(0, 1))
        parts.append((apart.reshape(rows.shape), rows))
    return _nearest(names, parts)


@in_full
def pixels_apart(
    frames: np.ndarray, rows: np.ndarray, device: Any = "cpu", captions: bool = False, chunk: int = 8
) -> np.ndarray:
    """One minus the best correlation, (n, k) float32, of the first n frames' middles with the frames `rows` (n, k).

    `frames` are (m, S, S) uint8, m at least n; at every shift and five scales (`Bank`). Where they may have `captions`,
    edges are laid upon each other, and grey levels correlated there without the pixels that fit least (`LEFT_OUT`).
    """
    device = torch.device(device)
    x = _shrink(frames, SIDE, device)
    edges, parts, whole = _edges(x) if captions else x, [], round(WINDOW * SIDE)
    bank = Bank(edges, SCALES, LEAST_SD / 4 if captions else LEAST_SD)  # a root has a smaller spread
    inner = slice((SIDE - whole) // 2, (SIDE + whole) // 2)
    for start in range(0, len(rows), chunk):
        some = slice(start, min(start + chunk, len(rows)))
        named = engine.sent(torch.from_numpy(rows[some].astype(np.int64)), device)
        value, w, top, left = bank.best(edges[some], named)
        if not captions:
            parts.append(1.0 - value)
            continue
        maps = _maps(w, top, left, torch.zeros_like(w), SIDE).flatten(0, 1)
        grid = F.affine_grid(maps, [len(maps), 1, whole, whole], False)
        seen = F.grid_sample(x[named.flatten()][:, None], grid, align_corners=False).flatten(1)
        middle = x[some, inner, inner].flatten(1).repeat_interleave(named.shape[1], 0)
        parts.append(1.0 - _best_fitting(middle, seen).reshape(named.shape))
    return torch.cat(parts).cpu().numpy() if parts else np.empty(rows.shape, np.float32)


def _members(code: np.ndarray, device: torch.device) -> list[Tensor]:
    """Rows of each patient of `code` (m,), on the device."""
    return [engine.sent(torch.from_numpy(np.flatnonzero(code == patient)), device) for patient in range(code.max() + 1)]


def _by_patient(apart: Tensor, members: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Smallest distance and its row per patient, (n, P), from distances (n, m) to the rows that patients have."""
    row = torch.stack([mine[apart[:, mine].argmin(dim=1)] for mine in members], dim=1)
    return apart.gather(1, row), row


def _nearest(names: np.ndarray, parts: Sequence[tuple[Tensor, Tensor]]) -> Nearest:
    """Distances and rows of all queries, brought from the device at once."""
    if not parts:
        return Nearest.unknown(0, names)
    distance, row = (torch.cat(of_one).cpu().numpy() for of_one in zip(*parts, strict=True))
    return Nearest(names, distance, row.astype(np.int32))


# ---------------------------------------------------------------- correlation of pixels


def _shrink(images: np.ndarray, side: int, device: Any) -> Tensor:
    stored = (torch.from_numpy(np.array(images[i : i + 256])) for i in range(0, len(images), 256))
    parts = [engine.sent(part, device).float() for part in stored]
    return torch.cat([F.adaptive_avg_pool2d(x[:, None], side)[:, 0] for x in parts])


def _edges(x: Tensor) -> Tensor:
    """Images (n, s, s) less their local mean, as signed roots, so that those of a caption weigh little more."""
    sd = EDGE * x.shape[-1]
    x = x - _blurred(x, sd) / _blurred(torch.ones_like(x[:1]), sd)
    return x.sign() * x.abs().sqrt()


def _best_fitting(a: Tensor, b: Tensor) -> Tensor:
    """Correlation (N,) of pixels (N, d) without the share `LEFT_OUT` that fit least, which four turns find."""
    a, b = (x - _quantile(x, 0.5) for x in (a, b))
    apart = torch.sub(*(x / _quantile(x.abs(), 0.5).clamp_min(LEAST_SD) for x in (a, b))).abs()
    for _ in range(4):
        kept = (apart <= _quantile(apart, 1 - LEFT_OUT)).to(a.dtype)
        n = kept.sum(1, keepdim=True)
        a, b = (x - (x * kept).sum(1, keepdim=True) / n for x in (a, b))
        spread = [(x.square() * kept).sum(1, keepdim=True).sqrt() for x in (a, b)]
        apart = torch.sub(*(x / size.clamp_min(1e-6) for x, size in zip((a, b), spread, strict=True))).abs()
    flat = torch.minimum(*spread) < LEAST_SD * n.sqrt()
    value = (a * b * kept).sum(1, keepdim=True) / (spread[0] * spread[1]).clamp_min(1e-6)
    return torch.where(flat, 0.0, value)[:, 0].clamp(-1.0, 1.0)


def _quantile(x: Tensor, q: float) -> Tensor:
    """`Tensor.quantile` (N, 1) of each row of (N, d), to the bit, without sorting it."""
    rank = torch.tensor(q) * (x.shape[1] - 1)
    low, high = (x.kthvalue(int(rank) + k, 1, keepdim=True).values for k in (1, 2))
    return low.lerp(high, float(rank - int(rank)))


def _anatomy(images: np.ndarray, side: int, device: Any) -> Tensor:
    """Images (n, S, S) uint8 at `side` pixels without speckle and less their local mean within the region, else 0."""
    x = _shrink(images, side, device)
    x = _blurred(x, SPECKLE * side) / _blurred(torch.ones_like(x[:1]), SPECKLE * side)
    inside = (x > BLACK).float()
    mean = _blurred(x * inside, SHADE * side) / _blurred(inside, SHADE * side).clamp_min(1e-3)
    return (x - mean) * inside


def _blurred(x: Tensor, sd: float) -> Tensor:
    """Images (n, s, s) under a Gaussian of `sd` pixels, 0 beyond the border."""
    reach = int(3 * sd + 0.5)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sd).square())
    weight = weight / weight.sum()
    x = F.conv2d(x[:, None], weight[None, None, :, None], padding=(reach, 0))
    return F.conv2d(x, weight[None, None, None], padding=(0, reach))[:, 0]


class Bank:
    """Frames at one size, ready to be correlated with: spectra and, per scale, the local spread of grey levels.

    `frames` are (m, side, side); `scales` shares of the side; `least` the SD below which a window is too flat.
    ``spectra`` are (m, side, side // 2 + 1) complex; ``norms`` map the side of a window to (m, v, v), the root of the
    sum of squares about the window's own mean, infinite where it is too flat.
    """

    def __init__(self, frames: Tensor, scales: Sequence[float], least: float = LEAST_SD / 2):
        self.side, self.least = frames.shape[-1], least
        self.spectra = torch.fft.rfft2(frames)
        norms = {max(4, round(WINDOW * self.side * scale)): [] for scale in scales}
        for x in frames[:, None].split(256):
            for w, parts in norms.items():
                mean, square = (_mean_over(y, w) for y in (x.double(), x.double().square()))
                spread = (square - mean.square()).clamp_min(0.0)[:, 0]
                norm = (spread * w * w).sqrt()
                parts.append(torch.where(spread.sqrt() < least, torch.inf, norm).float())
        self.norms = {w: torch.cat(parts) for w, parts in norms.items()}

    def best(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Where the middles of images (n, side, side) lie best in each frame, or in the frames `rows` (n, P) of each.

        (4, n, m or P): correlation (-1 to 1), side of the window, its top row and left column.
        """
        whole = round(WINDOW * self.side)
        edge = (self.side - whole) // 2
        middle = images[:, None, edge : edge + whole, edge : edge + whole]
        frames, found = slice(None) if rows is None else rows, []
        for w, norms in self.norms.items():
            template = F.interpolate(middle, (w, w), mode="bilinear", antialias=True, align_corners=False)[:, 0]
            template = template - template.mean((1, 2), keepdim=True)
            norm = template.square().sum((1, 2), keepdim=True).sqrt()
            template = torch.where(norm < self.least * w, 0.0, template / norm.clamp_min(1e-6))
            spectrum = torch.fft.rfft2(template, s=(self.side, self.side)).conj().resolve_conj()
            n = self.side - w + 1
            inside = _inside(self.spectra[frames] * spectrum[:, None], self.side, n) / norms[frames]
            value, place = inside.flatten(2).max(2)
            top, left = (place // n).float(), (place % n).float()
            found.append(torch.stack([value.clamp(-1.0, 1.0), torch.full_like(value, w), top, left]))
        table = torch.stack(found)
        return table.gather(0, table[:, 0].argmax(0)[None, None].expand(1, *table.shape[1:]))[0]


def _mean_over(x: Tensor, w: int) -> Tensor:
    """Means over windows of w x w at stride 1, (n, 1, v, v), of (n, 1, s, s): by columns and then by rows, 2 w sums."""
    columns = F.avg_pool2d(x, (w, 1), stride=1, divisor_override=1)
    return F.avg_pool2d(columns, (1, w), stride=1, divisor_override=w * w)


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


# ---------------------------------------------------------------- alignment


def _both_ways(x: Tensor) -> Tensor:
    """Images (n, s, s) and their mirror images, (2, n, s, s)."""
    return torch.stack([x, x.flip(2)])


def _turned(x: Tensor, degrees: float) -> Tensor:
    """Images (n, s, s) turned about their middle, bilinear, 0 from outside."""
    if not degrees:
        return x
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = engine.sent(torch.tensor([[c, -s, 0.0], [s, c, 0.0]]), x.device).expand(len(x), 2, 3)
    return F.grid_sample(x[:, None], F.affine_grid(turn, [len(x), 1, *x.shape[1:]], False), align_corners=False)[:, 0]


def _maps(w: Tensor, top: Tensor, left: Tensor, degrees: Tensor, side: int = FOUND) -> Tensor:
    """Affine maps (..., 2, 3) from an unturned window to the frame, both from -1 to 1, of places of `Bank.best`."""
    scale, angle = w / side, torch.deg2rad(-degrees)
    c, s = torch.cos(angle) * scale, torch.sin(angle) * scale
    x, y = ((first + w / 2) / side * 2 - 1 for first in (left, top))
    return torch.stack([torch.stack([c, -s, x], -1), torch.stack([s, c, y], -1)], -2)


def _aligned(windows: Tensor, frames: Tensor, maps: Tensor) -> Tensor:
    """Best correlation (N,) of windows (N, w, w) with frames (N, s, s), in `TURNS` steps from `maps` (N, 2, 3)."""
    n, w, _ = windows.shape
    line = (torch.arange(w, device=windows.device) + 0.5) / w * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    base = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    wanted = windows.flatten(1) - windows.mean((1, 2))[:, None]
    size, flat = wanted.norm(dim=1, keepdim=True), LEAST_SD / 2 * w
    wanted = torch.where(size < flat, 0.0, wanted / size.clamp_min(1e-6))
    half = frames.shape[-1] / 4  # a central difference per unit of the frame's own coordinates
    across = F.pad(frames, (1, 1))[:, :, 2:] - F.pad(frames, (1, 1))[:, :, :-2]
    along = F.pad(frames, (0, 0, 1, 1))[:, 2:] - F.pad(frames, (0, 0, 1, 1))[:, :-2]
    stack, best = torch.stack([frames, across * half, along * half], 1), windows.new_full((n,), -1.0)
    for turn in range(TURNS + 1):
        grid = (base @ maps.transpose(1, 2)).reshape(n, w, w, 2)
        seen, dx, dy = F.grid_sample(stack, grid, align_corners=False).flatten(2).unbind(1)
        seen = seen - seen.mean(1, keepdim=True)
        size = seen.norm(dim=1, keepdim=True)
        size = torch.where(size < flat, torch.inf, size)
        seen = seen / size
        value = (seen * wanted).sum(1)
        best = torch.maximum(best, value)
        if turn == TURNS:
            return best.clamp(-1.0, 1.0)
        slope = torch.cat([dx[:, None] * base.T, dy[:, None] * base.T], 1)
        slope = (slope - slope.mean(2, keepdim=True)) / size[:, :, None]
        slope = slope - (slope * seen[:, None]).sum(2, keepdim=True) * seen[:, None]
        curved = slope @ slope.transpose(1, 2)
        curved = curved + torch.diag_embed(0.02 * curved.diagonal(dim1=1, dim2=2) + 1e-6)  # damped (choice)
        step = torch.linalg.solve(curved, slope @ (wanted - seen * value[:, None])[..., None])
        maps = maps + step.reshape(n, 2, 3).clamp(-0.08, 0.08)
    return best
