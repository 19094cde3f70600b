"""The simulated scanner: a physical B-mode model of right liver and kidney under a 2.5 MHz sector probe.

Point scatterers, weighted by the patient's tissue map (`anatomy`), are carried by the patient's motion, put
on a polar grid with their two-way phase, attenuated, and convolved with a depth-dependent point spread function; the
envelope is averaged over frames (persistence), log compressed and scan converted into the geometry of the real frames,
and the scanner's overlays are drawn around it. Results are of revision ``phantom``: raise that when they change.

Notes
-----
What the physics leaves out: propagation is linear and straight (no refraction, reverberation, side lobes, clutter or
second harmonic); the point spread function is a separable Gaussian whose width in angle depends on depth alone;
motion is in the plane, out-of-plane motion is a share of scatterers drawn anew for every frame; attenuation is taken
along the beams of the resting anatomy, at one frequency; interfaces are rows of coherent points weighted by
incidence, not solved boundaries; shadows of ribs and lung are smooth functions of angle. Sizes are in pixels of the
real frames, 0.373 mm each as published with the data set (the depth digits burned into the real frames would give
about 0.445 mm; the overlays are drawn where the real ones are).
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import fft, ndimage

from nafld_utils.phantom import anatomy
from nafld_utils.phantom.anatomy import draw_anatomy
from nafld_utils.phantom.variants import FULL

REVISION = ("phantom", 2)

# Geometry of the real frames, measured on all 550 (fit residual below 0.6 pixel; pixels, row first).
FRAME_SHAPE = (434, 636)
APEX = (7.25, 317.5)  # where the two straight edges meet
HALF_ANGLE = 52.52  # degrees, either side of straight down
ARC = (5.51, 317.5, 360.9)  # centre row, centre column, radius of the lower border
TOP_ROW = 9  # first row of the sector
MM_PER_PIXEL = 0.373  # as published with the data set
FREQUENCY = 2.5  # MHz

N_RANGE, N_ANGLE = 364, 400  # polar grid: one pixel in range, angles a third of a degree apart
CONTRAST = (25.5, 35.0)  # grey levels, SD on the polar grid: 22 to 32 in a frame; real patients 20.5 to 34.2
CORRELATION = (0.60, 0.72)  # of two frames before persistence, which adds 0.1 to 0.2; real patients 0.65 to 0.92
MAX_ANGLE = 62.0  # degrees; wider than the sector so that the filters' wrap-around stays outside
N_SCATTERERS = 180_000
_WAVE_NUMBER = 2 * np.pi / (1.54 / FREQUENCY) * MM_PER_PIXEL  # radians per pixel, one way


def simulate_patient(seed, index, fat, n_frames=10, feature=None, variant=FULL):
    """Frames and tissue masks of one patient, both (n_frames, 434, 636) uint8; masks hold codes of `TISSUES`.

    Arguments as in `Patient`. Masks are 0 outside the sector.
    """
    patient = Patient(seed, index, fat, feature, variant)
    frames = np.zeros((n_frames, *FRAME_SHAPE), np.uint8)
    masks = np.zeros_like(frames)
    intensity = patient.envelope(-1) ** 2
    patient.adjust(intensity, patient.envelope(0) ** 2)
    for f in range(n_frames):
        # Persistence: the scanner shows a running average of frames.
        intensity += (1 - patient.persistence) * (patient.envelope(f) ** 2 - intensity)
        draw_overlays(frames[f], patient.overlay, f)
        scan_convert(patient.compress(intensity), frames[f])
        masks[f] = patient.mask(f)
    return frames, masks


class Patient:
    """What the frames of one simulated patient share; `seed` of the cohort and `index` decide all but `fat`.

    `fat` is 0 to 100 percent of hepatocytes; `feature` as in `cohort.simulate`.
    """

    def __init__(self, seed, index, fat, feature=None, variant=FULL):
        self._key = [seed, 11, index]
        rng = np.random.default_rng([*self._key, 0])
        self.anatomy = draw_anatomy(rng, fat, feature, variant)
        self.persistence = rng.uniform(0.08, 0.26)
        self.static_share = rng.uniform(0.24, 0.34)  # of scatterer amplitude squared; the rest is new in every frame
        self.dynamic_range, self.gain = rng.uniform(42, 54), rng.normal(0, 2.0)
        self.path = _draw_path(rng)
        self.overlay = _draw_overlay_settings(rng)
        self.gain_map, self.noise_map = self._draw_gain(rng)
        self._place_scatterers(rng)

    def _draw_gain(self, rng):
        """Amplitude of signal and of noise on the polar grid: attenuation, time-gain, contact and shadows."""
        radius, angle = np.arange(N_RANGE)[:, None], np.linspace(-MAX_ANGLE, MAX_ANGLE, N_ANGLE)[None]
        codes = _lookup(self.anatomy.labels, radius * np.sin(np.radians(angle)), radius * np.cos(np.radians(angle)))
        centimetre = MM_PER_PIXEL / 10
        loss = 2 * FREQUENCY * centimetre * np.cumsum(self.anatomy.attenuation[codes], axis=0)
        tgc = 2 * FREQUENCY * centimetre * radius * (0.56 + rng.normal(0, 0.015))
        curve = np.interp(radius, [0, 60, 140, 220, 300, 360], rng.normal([2, 5, 2, -2, -1, 0], 1.0))
        # Contact and shadows by angle: the right side falls into the shadow of lung or rib, the left edge less.
        right, left = rng.normal(19, 10), rng.normal(-42, 9)
        edge = (
            right + rng.normal(0, 0.03) * (radius - 180) + np.interp(radius, np.arange(0, 401, 50), rng.normal(0, 2, 9))
        )
        shadow = -rng.gamma(4, 1.9) / (1 + np.exp(-(angle - edge) / rng.uniform(2.5, 8)))
        shadow -= rng.gamma(2, 1.7) / (1 + np.exp((angle - left) / rng.uniform(2, 6)))
        shadow += np.interp(angle, np.linspace(-64, 64, 17), rng.normal(0, 0.6, 17))
        onset = 1 / (1 + np.exp(-(radius - 45) / 14))
        signal = -loss + tgc + curve + shadow * onset - 0.0022 * angle**2
        blank = -9 * np.exp(-(((radius - 22) / 8.0) ** 2)) + 8 * np.exp(-((radius / 8.0) ** 2))
        noise = -20.5 + min(rng.normal(0, 2), 3) + 0.032 * radius + 0 * angle
        return _amplitude(signal + blank), _amplitude(noise)

    def _place_scatterers(self, rng):
        radius = rng.uniform(0, N_RANGE, N_SCATTERERS).astype(np.float32)
        angle = np.radians(rng.uniform(-MAX_ANGLE, MAX_ANGLE, N_SCATTERERS)).astype(np.float32)
        x, z = radius * np.sin(angle), radius * np.cos(angle)
        self._weight = _amplitude(_lookup(self.anatomy.echo, x, z))
        self._static = rng.standard_normal(N_SCATTERERS, dtype=np.float32)
        c = self.anatomy.curves
        # Interfaces reflect by incidence, and their points keep one phase over a few millimetres.
        radial = np.hypot(c[:, 0], c[:, 1]) + 1e-6
        incidence = np.abs(c[:, 0] * c[:, 2] + c[:, 1] * c[:, 3]) / radial
        wander = np.cumsum(rng.normal(0, 0.22, len(c)))
        self._specular = (0.85 * c[:, 4] * (0.15 + 0.85 * incidence**4) * np.exp(1j * wander)).astype(np.complex64)
        spread = rng.normal(0, 1, len(c)) * c[:, 5]
        x = np.concatenate([x, c[:, 0] + spread * c[:, 2]])
        z = np.concatenate([z, c[:, 1] + spread * c[:, 3]])
        self._x, self._z = x.astype(np.float32), z.astype(np.float32)

    def envelope(self, frame):
        """Envelope of the echo before compression, (364, 400) float32, non-negative linear amplitude.

        Range (one pixel apart, from the apex) by angle (-62 to 62 degrees); `frame` -1 is the one before the first,
        which persistence needs. In homogeneous tissue its mean over its standard deviation is 1.91 (Rayleigh).
        """
        rng = np.random.default_rng([*self._key, 1, frame + 1])
        dx, dz = _displacement(self.path, frame, self._x, self._z)
        x, z = self._x + dx, self._z + dz
        radius, angle = np.hypot(x, z), np.arctan2(x, z)
        share = np.float32(self.static_share)
        fresh = rng.standard_normal(N_SCATTERERS, dtype=np.float32)
        amplitude = self._weight * (np.sqrt(share) * self._static + np.sqrt(1 - share) * fresh)
        phase = np.float32(2 * _WAVE_NUMBER) * radius[:N_SCATTERERS]
        real = np.concatenate([amplitude * np.cos(phase), self._specular.real])
        imag = np.concatenate([amplitude * np.sin(phase), self._specular.imag])
        step = np.radians(2 * MAX_ANGLE) / (N_ANGLE - 1)
        row, col = np.rint(radius).astype(np.int32), np.rint((angle + np.radians(MAX_ANGLE)) / step).astype(np.int32)
        np.clip(row, 0, N_RANGE - 1, out=row)
        np.clip(col, 0, N_ANGLE - 1, out=col)
        cell = row * N_ANGLE + col
        grid = np.empty((N_RANGE, N_ANGLE), np.complex64)
        grid.real = np.bincount(cell, real, N_RANGE * N_ANGLE).reshape(grid.shape)
        grid.imag = np.bincount(cell, imag, N_RANGE * N_ANGLE).reshape(grid.shape)
        grid *= self.gain_map
        grid += self.noise_map * rng.standard_normal((N_RANGE, 2 * N_ANGLE), dtype=np.float32).view(np.complex64)
        return np.abs(_blur(grid))

    def compress(self, intensity):
        """Log compression of a squared envelope, (364, 400) float32, to grey levels in [0, 255] of the same shape."""
        # The scanner's speckle reduction: part of the intensity spreads to the neighbourhood and fills the nulls.
        smooth = ndimage.gaussian_filter(intensity, (2.0, 5.0), truncate=2.5)
        intensity = 0.82 * intensity + 0.18 * smooth
        grey = (10 * np.log10(intensity + 1e-9) + self.gain) * (255 / self.dynamic_range) + 87
        return np.clip(grey, 1, 226)

    def adjust(self, before, first):
        """Fit display and decorrelation to the ranges of the real cohort, from squared envelopes of frames -1 and 0.

        The dynamic range brings the contrast inside `CONTRAST`, then the share of scatterers that stay in the plane
        and the persistence bring the correlation of the two frames towards `CORRELATION`.

        Two fields that share a part s of their scatterers' power have speckle correlated by s**2 in intensity, so
        frames whose organs make up a part a of the variance correlate by a + (1 - a) s**2.
        """
        weight = np.broadcast_to(np.arange(N_RANGE)[:, None], before.shape)  # a row's area grows with its range
        grey = self.compress(before)
        mean = np.average(grey, weights=weight)
        spread = np.sqrt(np.average((grey - mean) ** 2, weights=weight))
        self.dynamic_range *= spread / np.clip(spread, *CONTRAST)
        pair = np.cov(self.compress(before).ravel(), self.compress(first).ravel(), aweights=weight.ravel())
        found, shared = pair[0, 1] / np.sqrt(pair[0, 0] * pair[1, 1]), self.static_share**2
        organs = (found - shared) / (1 - shared)
        wanted = (np.clip(found, *CORRELATION) - organs) / (1 - organs)
        self.static_share = float(np.sqrt(np.clip(wanted, 0.01, 0.8)))
        # Where noise, new in every frame, or contrast decides, only the persistence is left to turn.
        self.persistence += 0.4 * (np.clip(found, 0.5, CORRELATION[1]) - found)

    def mask(self, frame):
        """Tissue codes of one frame, (434, 636) uint8."""
        rows, cols, *_ = _sector()
        x, z = (cols - APEX[1]).astype(np.float32), (rows - APEX[0]).astype(np.float32)
        dx, dz = _displacement(self.path, frame, x, z)
        codes = np.zeros(FRAME_SHAPE, np.uint8)
        codes[rows, cols] = _lookup(self.anatomy.labels, x - dx, z - dz)
        return codes


def _amplitude(decibel):
    return (10 ** (decibel / 20)).astype(np.float32)


def _lookup(image, x, z):
    col = np.clip(np.rint(x - anatomy.X0), 0, image.shape[1] - 1).astype(np.intp)
    row = np.clip(np.rint(z - anatomy.Z0), 0, image.shape[0] - 1).astype(np.intp)
    return image[row, col]


def _draw_path(rng, n=64):
    """Displacement (pixels) and rotation (radians) of the organs in every frame: slow breathing plus small jitter."""
    t = np.arange(-1, n - 1)
    breath = np.sin(2 * np.pi * t / rng.uniform(30, 80) + rng.uniform(0, 6)) * min(rng.gamma(1.6, 2.0), 3.6)
    breath -= breath[1]
    direction = rng.uniform(-0.5, 0.5)
    jitter = rng.normal(0, 0.25, (3, n))
    return np.stack([breath * np.cos(direction) + jitter[0], breath * np.sin(direction) + jitter[1], 0.002 * jitter[2]])


def _displacement(path, frame, x, z):
    """Motion (dx, dz) in pixels: none at the probe, full in the organs, compressed along the breathing direction."""
    tx, tz, rotation = path[:, (frame + 1) % path.shape[1]].astype(np.float32)
    share = np.clip((z - 25) / 70, 0, 1)
    stretch = 1 + np.float32(0.2) * np.sin(x / 130)
    return share * (tx * stretch - rotation * (z - 180)), share * (tz * stretch + rotation * x)


@lru_cache(maxsize=1)
def _filters():
    """Transfer functions of the point spread function: axial (N_RANGE, 1) and lateral (N_RANGE, N_ANGLE)."""
    axial = np.exp(-2 * (np.pi * 0.60 * fft.fftfreq(N_RANGE)[:, None]) ** 2)
    radius = np.arange(N_RANGE)[:, None]
    step = 2 * MAX_ANGLE / (N_ANGLE - 1)
    # Diffraction keeps the width in angle; close to the aperture the width in pixels stays instead.
    sigma = np.hypot(0.62, 70.0 / (radius + 8)) / step
    lateral = np.exp(-2 * (np.pi * sigma * fft.fftfreq(N_ANGLE)) ** 2)
    # Unit noise gain in both directions: speckle keeps its level at every depth.
    axial /= np.sqrt(np.mean(axial**2))
    lateral /= np.sqrt(np.mean(lateral**2, axis=1, keepdims=True))
    return axial.astype(np.float32), lateral.astype(np.float32)


def _blur(grid):
    axial, lateral = _filters()
    grid = fft.ifft(fft.fft(grid, axis=1, overwrite_x=True) * lateral, axis=1, overwrite_x=True)
    return fft.ifft(fft.fft(grid, axis=0, overwrite_x=True) * axial, axis=0, overwrite_x=True)


@lru_cache(maxsize=1)
def _sector():
    """Rows and columns of the sector's pixels, and the bilinear gather from the polar grid that fills them."""
    row, col = np.mgrid[: FRAME_SHAPE[0], : FRAME_SHAPE[1]]
    inside = np.abs(col - APEX[1]) <= np.tan(np.radians(HALF_ANGLE)) * (row - APEX[0])
    inside &= (np.hypot(row - ARC[0], col - ARC[1]) <= ARC[2]) & (row >= TOP_ROW)
    row, col = np.nonzero(inside)
    radius = np.hypot(row - APEX[0], col - APEX[1])
    angle = (np.degrees(np.arctan2(col - APEX[1], row - APEX[0])) + MAX_ANGLE) * (N_ANGLE - 1) / (2 * MAX_ANGLE)
    r0, a0 = radius.astype(int), angle.astype(int)
    fr, fa = (radius - r0).astype(np.float32), (angle - a0).astype(np.float32)
    base = r0 * N_ANGLE + a0
    cells = np.stack([base, base + 1, base + N_ANGLE, base + N_ANGLE + 1])
    weights = np.stack([(1 - fr) * (1 - fa), (1 - fr) * fa, fr * (1 - fa), fr * fa])
    return row, col, cells, weights


def sector_mask():
    """The sector of the real frames, (434, 636) bool."""
    mask = np.zeros(FRAME_SHAPE, bool)
    rows, cols, *_ = _sector()
    mask[rows, cols] = True
    return mask


def scan_convert(polar, frame):
    """Fill the sector of a (434, 636) uint8 frame from the polar grid, (364, 400) in [0, 255], bilinearly, in place."""
    rows, cols, cells, weights = _sector()
    flat = polar.ravel()
    frame[rows, cols] = sum(flat[c] * w for c, w in zip(cells, weights, strict=True)) + 0.5


def _draw_overlay_settings(rng):
    return {
        "rate": int(np.clip(rng.normal(68, 11), 46, 112)),
        "marks": rng.uniform(0.25, 0.99, rng.integers(1, 4)),
        "t_wave": rng.uniform(2, 14), "r_wave": rng.uniform(10, 36), "first": int(rng.integers(1, 30)),
        "total": int(rng.integers(45, 70)),
    }  # fmt: skip


@lru_cache(maxsize=4)
def _font(size):
    return ImageFont.load_default(size)


def draw_overlays(frame, settings, number):
    """Draw into a (434, 636) uint8 frame what the scanner burns in around the sector.

    `settings` are one patient's, from `_draw_overlay_settings`; the frame's number moves the frame counter and the mark
    on the electrocardiogram.
    """
    image = Image.fromarray(frame)
    pen = ImageDraw.Draw(image)
    for k in range(17):  # depth ticks beside the left edge
        r, c = 2.0 + 13.66 * k, 311.8 - 17.8 * k
        size = 3.5 if k % 5 == 0 else 2
        pen.line([c - size * 0.8, r - size, c + size * 0.8, r + size], fill=162 if k % 5 == 0 else 130, width=1)
        if k in (5, 10, 15):
            pen.text((c - 5, r - 2), str(k), fill=160, font=_font(13), anchor="rm")
    for place in settings["marks"]:
        r, c = 205 * place, 305 - 267 * place - 24 - 10 * place
        pen.polygon([(c - 4, r), (c + 4, r - 4), (c + 3, r + 3)], fill=226)
    pen.line([336, 11, 341, 19, 346, 11], fill=226, width=3)
    bar = np.asarray(image).copy()
    bar[26:124, 610:629] = np.linspace(203, 1, 98)[:, None]
    image = Image.fromarray(bar)
    pen = ImageDraw.Draw(image)
    pen.text((632, 418), str(settings["rate"]), fill=162, font=_font(13), anchor="rs")
    pen.text((632, 432), "HR", fill=162, font=_font(13), anchor="rs")
    pen.text((603, 431), f"{settings['first'] + number}:{settings['total']}", fill=162, font=_font(11), anchor="rs")
    _draw_ecg(pen, settings, number)
    frame[:] = np.asarray(image)


def _draw_ecg(pen, settings, number):
    length = 8125 / settings["rate"]
    phase = np.arange(0, length + 1) / length

    def bump(at, width):
        return np.exp(-(((phase - at) / width) ** 2))

    trace = 407 - settings["t_wave"] * bump(0.32, 0.07) - 3 * bump(0.86, 0.03)
    trace -= settings["r_wave"] * (bump(0.0, 0.018) + bump(1.0, 0.012)) - 12 * bump(0.045, 0.02)
    pen.line([(31 + i, y) for i, y in enumerate(trace)], fill=190, width=1)
    for c in (31, 31 + length):
        pen.line([c, 381, c, 433], fill=162, width=1)
    pen.polygon([(27, 404), (27, 411), (30, 407)], fill=162)
    pen.polygon([(36 + length, 404), (36 + length, 411), (33 + length, 407)], fill=162)
    c = 33 + (number * 7) % int(length - 4)
    pen.line([c, trace[c - 31] - 3, c, trace[c - 31] + 3], fill=140)
