"""The simulated scanner: a physical B-mode model of right liver and kidney under a 2.5 MHz sector probe.

Point scatterers, weighted by the patient's tissue map (`anatomy`), are carried by the patient's motion, put
on a polar grid with their two-way phase, attenuated, and convolved with a depth-dependent point spread function; the
envelope is averaged over frames (persistence), log compressed and scan converted into the geometry of the real frames,
and the scanner's overlays are drawn around it. Numbers stand in the table of `provenance`. Results are of revision
``phantom``: raise that when they change.

Notes
-----
What the physics leaves out: propagation is linear and straight (no refraction, reverberation, side lobes, clutter or
second harmonic); the point spread function is a separable Gaussian whose width in angle depends on depth alone;
motion is in the plane, out-of-plane motion is a share of scatterers drawn anew for every frame; attenuation is taken
along the beams of the resting anatomy, at one frequency; interfaces are rows of coherent points weighted by
incidence, not solved boundaries; shadows of ribs and lung are smooth functions of angle. Sizes are in pixels of the
real frames, 0.373 mm each as published with the data set (the depth digits burned into the real frames would give
about 0.445 mm; the overlays are drawn where the real ones are). A scanner of another depth has pixels of another size:
its polar grid is finer or coarser than the anatomy's map.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from nafld_utils.phantom import overlays
from nafld_utils.phantom.anatomy import draw_anatomy
from nafld_utils.phantom.provenance import Draws
from nafld_utils.phantom.variants import FULL

REVISION = ("phantom", 2)

_COHORT = Draws(np.random.default_rng(0))
FRAME_SHAPE = _COHORT["frame_shape"]
N_RANGE, N_ANGLE, MAX_ANGLE = (_COHORT[name] for name in ("n_range", "n_angle", "max_angle"))
N_SCATTERERS = _COHORT["n_scatterers"]


def simulate_patient(seed, index, fat, n_frames=10, feature=None, variant=FULL):
    """Simulate one patient.

    Parameters
    ----------
    seed : int >= 0
        Of a cohort below 2**32; of a unit of work up to 2**64. The two never meet, whatever the index.
    index : int >= 0
        The patient's number; with the seed it decides everything but the fat.
    fat : float
        0 to 100 percent of hepatocytes.
    n_frames : int >= 1
        Frame f does not depend on how many follow.
    feature : str, optional
        As in `cohort.simulate`.
    variant : Variant
        What fat changes, which scanners, which constants.

    Returns
    -------
    frames, masks : (n_frames, 434, 636) uint8
        Grey levels, and codes of `TISSUES`; masks are 0 outside the sector.
    """
    patient = Patient(seed, index, fat, feature, variant)
    frames = np.zeros((n_frames, *FRAME_SHAPE), np.uint8)
    masks = np.zeros_like(frames)
    intensity = patient.envelope(-1) ** 2
    if patient.d["contrast"]:
        patient.adjust(intensity, patient.envelope(0) ** 2)
    for f in range(n_frames):
        # Persistence: the scanner shows a running average of frames.
        intensity += (1 - patient.persistence) * (patient.envelope(f) ** 2 - intensity)
        if patient.d["overlays"]:
            overlays.draw(frames[f], patient.overlay, f)
        scan_convert(patient.compress(intensity), frames[f], patient.sector)
        masks[f] = patient.mask(f)
    return frames, masks


class Patient:
    """What the frames of one simulated patient share; arguments as in `simulate_patient`."""

    def __init__(self, seed, index, fat, feature=None, variant=FULL):
        self._key = [seed, 11, index]
        rng = np.random.default_rng([*self._key, 0])
        self.d = d = Draws(rng, variant)
        self.frequency, self.step = d.draw("frequency"), d.draw("mm_per_pixel") / d["anatomy_mm"]
        self.sector = Sector(*d["apex"], d.draw("half_angle"), d["arc"], d["top_row"])
        self.spread = Spread(*(d.draw(name) for name in ("axial", "beam", "focus", "focus_loss")), d["near_beam"])
        self.anatomy = draw_anatomy(rng, fat, feature, variant)
        self.persistence = d.draw("persistence")
        self.static_share = d.draw("static_share")  # of scatterer amplitude squared; the rest is new in every frame
        self.dynamic_range, self.gain = d.draw("dynamic_range"), d.draw("gain")
        self.kept = d.draw("speckle_reduction")  # share of power that speckle reduction leaves where it is
        self.path = _draw_path(d)
        self.overlay = overlays.draw_settings(rng)
        self.gain_map, self.noise_map = self._draw_gain(d)
        self._place_scatterers(rng)
        self._last = (None, ())

    def _draw_gain(self, d):
        """Amplitude of signal and of noise on the polar grid: attenuation, time-gain, contact and shadows."""
        row, angle = np.arange(N_RANGE)[:, None], np.linspace(-MAX_ANGLE, MAX_ANGLE, N_ANGLE)[None]
        radius, along = row * self.step, np.radians(angle)
        codes = self.anatomy.at(self.anatomy.labels, radius * np.sin(along), radius * np.cos(along))
        centimetre = d["anatomy_mm"] / 10
        loss = 2 * self.frequency * centimetre * np.cumsum(self.anatomy.attenuation[codes], axis=0) * self.step
        tgc = 2 * self.frequency * centimetre * radius * (d["tgc"] + d.draw("tgc_spread"))
        curve = np.interp(row, d["tgc_places"], d.rng.normal(d["tgc_curve"], d["tgc_curve_spread"]))
        # Contact and shadows by angle: the right side falls into the shadow of lung or rib, the left edge less.
        right, left = d.draw("shadow_right"), d.draw("shadow_left")
        edge = right + d.draw("shadow_lean") * (row - d["shadow_lean_from"])
        edge = edge + np.interp(row, np.arange(0, 401, 50), d.draw("shadow_wave", 9))
        shadow = -d.draw("shadow_right_depth") / (1 + np.exp(-(angle - edge) / d.draw("shadow_right_soft")))
        shadow -= d.draw("shadow_left_depth") / (1 + np.exp((angle - left) / d.draw("shadow_left_soft")))
        shadow += np.interp(angle, np.linspace(-64, 64, 17), d.draw("contact", 17))
        (onset, soft), (dark, dark_at, dark_size) = d["shadow_onset"], d["near_dark"]
        signal = -loss + tgc + curve + shadow / (1 + np.exp(-(row - onset) / soft)) - d.draw("angle_loss") * angle**2
        blank = dark * np.exp(-(((row - dark_at) / dark_size) ** 2))
        blank = blank + d.draw("near_bright") * np.exp(-((row / d["near_bright_size"]) ** 2))
        noise = d["noise"] + min(d.draw("noise_spread"), d["noise_most"]) + d.draw("noise_slope") * row + 0 * angle
        return _amplitude(signal + blank), _amplitude(noise)

    def _place_scatterers(self, rng):
        radius = (rng.uniform(0, N_RANGE, N_SCATTERERS) * self.step).astype(np.float32)
        angle = np.radians(rng.uniform(-MAX_ANGLE, MAX_ANGLE, N_SCATTERERS)).astype(np.float32)
        x, z = radius * np.sin(angle), radius * np.cos(angle)
        self._weight = _amplitude(self.anatomy.at(self.anatomy.echo, x, z))
        self._static = rng.standard_normal(N_SCATTERERS, dtype=np.float32)
        c = self.anatomy.curves
        # Interfaces reflect by incidence, and their points keep one phase over a few millimetres.
        radial = np.hypot(c[:, 0], c[:, 1]) + 1e-6
        incidence = np.abs(c[:, 0] * c[:, 2] + c[:, 1] * c[:, 3]) / radial
        wander = np.cumsum(self.d.draw("specular_phase", len(c)))
        (size, base, share), power = self.d["specular"], self.d["specular_power"]
        weight = size * c[:, 4] * (base + share * incidence**power)
        self._specular = (weight * np.exp(1j * wander)).astype(np.complex64)
        spread = rng.normal(0, 1, len(c)) * c[:, 5]
        x = np.concatenate([x, c[:, 0] + spread * c[:, 2]])
        z = np.concatenate([z, c[:, 1] + spread * c[:, 3]])
        self._x, self._z = x.astype(np.float32), z.astype(np.float32)

    def envelope(self, frame):
        """Envelope of the echo before compression, (364, 400) float32, non-negative linear amplitude.

        Range (one pixel apart, from the apex) by angle (-62 to 62 degrees); `frame` -1 is the one before the first,
        which persistence needs. In homogeneous tissue its mean over its standard deviation is 1.91 (Rayleigh).
        """
        cell, along, across, fresh, noise = self._drawn(frame)
        share = np.float32(self.static_share)
        amplitude = self._weight * (np.sqrt(share) * self._static + np.sqrt(1 - share) * fresh)
        real = np.concatenate([amplitude * along, self._specular.real])
        imag = np.concatenate([amplitude * across, self._specular.imag])
        grid = np.empty((N_RANGE, N_ANGLE), np.complex64)
        grid.real = np.bincount(cell, real, N_RANGE * N_ANGLE).reshape(grid.shape)
        grid.imag = np.bincount(cell, imag, N_RANGE * N_ANGLE).reshape(grid.shape)
        grid *= self.gain_map
        grid += self.noise_map * noise
        return np.abs(_blur(grid, self.spread))

    def _drawn(self, frame):
        """What a frame is made of, whatever `adjust` has changed.

        Cell of the polar grid of every point, cosine and sine of every scatterer's two-way phase, the scatterers that
        are new in this frame, and the noise, (N_RANGE, N_ANGLE) complex64. The last frame's are kept: `adjust` needs
        the first frame before it is drawn.
        """
        if self._last[0] != frame:
            dx, dz = self._displacement(frame, self._x, self._z)
            x, z = self._x + dx, self._z + dz
            radius, angle = np.hypot(x, z), np.arctan2(x, z)
            # radians per pixel of the anatomy, one way
            wave_number = 2 * np.pi / (self.d["speed_of_sound"] / self.frequency) * self.d["anatomy_mm"]
            phase = np.float32(2 * wave_number) * radius[:N_SCATTERERS]
            step = np.radians(2 * MAX_ANGLE) / (N_ANGLE - 1)
            row, col = (
                np.rint(radius / np.float32(self.step)).astype(np.int32),
                np.rint((angle + np.radians(MAX_ANGLE)) / step).astype(np.int32),
            )
            np.clip(row, 0, N_RANGE - 1, out=row)
            np.clip(col, 0, N_ANGLE - 1, out=col)
            rng = np.random.default_rng([*self._key, 1, frame + 1])
            fresh = rng.standard_normal(N_SCATTERERS, dtype=np.float32)
            noise = rng.standard_normal((N_RANGE, 2 * N_ANGLE), dtype=np.float32).view(np.complex64)
            self._last = frame, (row * N_ANGLE + col, np.cos(phase), np.sin(phase), fresh, noise)
        return self._last[1]

    def compress(self, intensity):
        """Log compression of a squared envelope, (364, 400) float32, to grey levels in [0, 255] of the same shape."""
        return self._shown(self._levels(intensity))

    def _levels(self, intensity):
        """Levels in dB of a squared envelope, as the scanner's speckle reduction leaves it."""
        # Part of the intensity spreads to the neighbourhood and fills the nulls.
        smooth = ndimage.gaussian_filter(intensity, self.d["speckle_reduction_size"], truncate=2.5)
        intensity = self.kept * intensity + (1 - self.kept) * smooth
        return 10 * np.log10(intensity + 1e-9) + self.gain

    def _shown(self, levels):
        return np.clip(levels * (255 / self.dynamic_range) + self.d["mid_grey"], *self.d["grey_range"])

    def adjust(self, before, first):
        """Fit display and decorrelation to the ranges of the real cohort, from squared envelopes of frames -1 and 0.

        The dynamic range brings the contrast inside ``contrast``, then the share of scatterers that stay in the plane
        and the persistence bring the correlation of the two frames towards ``correlation``.

        Two fields that share a part s of their scatterers' power have speckle correlated by s**2 in intensity, so
        frames whose organs make up a part a of the variance correlate by a + (1 - a) s**2.
        """
        weight = np.broadcast_to(np.arange(N_RANGE)[:, None], before.shape)  # a row's area grows with its range
        levels = self._levels(before)
        grey = self._shown(levels)
        mean = np.average(grey, weights=weight)
        spread = np.sqrt(np.average((grey - mean) ** 2, weights=weight))
        self.dynamic_range *= spread / np.clip(spread, *self.d["contrast"])
        pair = np.cov(self._shown(levels).ravel(), self.compress(first).ravel(), aweights=weight.ravel())
        found, shared = pair[0, 1] / np.sqrt(pair[0, 0] * pair[1, 1]), self.static_share**2
        organs = (found - shared) / (1 - shared)
        wanted = (np.clip(found, *self.d["correlation"]) - organs) / (1 - organs)
        turn, low, least, most = self.d["correlation_turn"]
        self.static_share = float(np.sqrt(np.clip(wanted, least, most)))
        # Where noise, new in every frame, or contrast decides, only the persistence is left to turn.
        self.persistence += turn * (np.clip(found, low, self.d["correlation"][1]) - found)

    def mask(self, frame):
        """Tissue codes of one frame, (434, 636) uint8."""
        rows, cols, *_ = _gather(self.sector)
        x = ((cols - self.sector.column) * self.step).astype(np.float32)
        z = ((rows - self.sector.row) * self.step).astype(np.float32)
        dx, dz = self._displacement(frame, x, z)
        codes = np.zeros(FRAME_SHAPE, np.uint8)
        codes[rows, cols] = self.anatomy.at(self.anatomy.labels, x - dx, z - dz)
        return codes

    def _displacement(self, frame, x, z):
        """Motion (dx, dz) in pixels: none at the probe, full in the organs, compressed along their breathing."""
        tx, tz, rotation = self.path[:, (frame + 1) % self.path.shape[1]].astype(np.float32)
        start, over, size, length, centre = self.d["motion"]
        share = np.clip((z - start) / over, 0, 1)
        stretch = 1 + np.float32(size) * np.sin(x / length)
        return share * (tx * stretch - rotation * (z - centre)), share * (tz * stretch + rotation * x)


def _amplitude(decibel):
    return (10 ** (decibel / 20)).astype(np.float32)


def _draw_path(d, n=64):
    """Displacement (pixels) and rotation (radians) of the organs in every frame: slow breathing plus small jitter."""
    t = np.arange(-1, n - 1)
    breath = np.sin(2 * np.pi * t / d.draw("breath_period") + d.draw("breath_phase"))
    breath *= min(d.draw("breath_size"), d["breath_most"])
    breath -= breath[1]
    direction, jitter = d.draw("breath_direction"), d.draw("jitter", (3, n))
    x, z = breath * np.cos(direction) + jitter[0], breath * np.sin(direction) + jitter[1]
    return np.stack([x, z, d["jitter_turn"] * jitter[2]])


class Sector(NamedTuple):
    """Where the frame shows the patient, in pixels; rows and columns from the frame's upper left corner."""

    row: float  # of the apex
    column: float
    half_angle: float  # degrees
    arc: tuple[float, float, float]  # centre row, centre column, radius of the lower border
    top: int  # first row


class Spread(NamedTuple):
    """The point spread function: standard deviations of pulse and beam."""

    axial: float  # pixels of the frame
    beam: float  # degrees
    focus: float  # depth, pixels
    focus_loss: float  # degrees at twice the depth of the focus
    near: tuple[float, float]  # what stays of the aperture's width close to it: degrees x pixels, pixels


COHORT = Sector(*_COHORT["apex"], _COHORT["half_angle"], _COHORT["arc"], _COHORT["top_row"])


@lru_cache(maxsize=4)
def _filters(spread):
    """Transfer functions of the point spread function: axial (N_RANGE, 1) and lateral (N_RANGE, N_ANGLE)."""
    axial = np.exp(-2 * (np.pi * spread.axial * fft.fftfreq(N_RANGE)[:, None]) ** 2)
    radius = np.arange(N_RANGE)[:, None]
    step = 2 * MAX_ANGLE / (N_ANGLE - 1)
    # Diffraction keeps the width in angle; close to the aperture the width in pixels stays instead.
    sigma = np.hypot(spread.beam, spread.near[0] / (radius + spread.near[1]))
    sigma = np.hypot(sigma, spread.focus_loss * (1 - radius / spread.focus)) / step
    lateral = np.exp(-2 * (np.pi * sigma * fft.fftfreq(N_ANGLE)) ** 2)
    # Unit noise gain in both directions: speckle keeps its level at every depth.
    axial /= np.sqrt(np.mean(axial**2))
    lateral /= np.sqrt(np.mean(lateral**2, axis=1, keepdims=True))
    return axial.astype(np.float32), lateral.astype(np.float32)


def _blur(grid, spread):
    axial, lateral = _filters(spread)
    grid = fft.ifft(fft.fft(grid, axis=1, overwrite_x=True) * lateral, axis=1, overwrite_x=True)
    return fft.ifft(fft.fft(grid, axis=0, overwrite_x=True) * axial, axis=0, overwrite_x=True)


@lru_cache(maxsize=4)
def _gather(sector):
    """Rows and columns of the sector's pixels, and the bilinear gather from the polar grid that fills them."""
    row, col = np.mgrid[: FRAME_SHAPE[0], : FRAME_SHAPE[1]]
    inside = np.abs(col - sector.column) <= np.tan(np.radians(sector.half_angle)) * (row - sector.row)
    inside &= (np.hypot(row - sector.arc[0], col - sector.arc[1]) <= sector.arc[2]) & (row >= sector.top)
    row, col = np.nonzero(inside)
    radius = np.hypot(row - sector.row, col - sector.column)
    angle = np.degrees(np.arctan2(col - sector.column, row - sector.row)) + MAX_ANGLE
    angle = angle * (N_ANGLE - 1) / (2 * MAX_ANGLE)
    r0, a0 = radius.astype(int), angle.astype(int)
    fr, fa = (radius - r0).astype(np.float32), (angle - a0).astype(np.float32)
    base = r0 * N_ANGLE + a0
    cells = np.stack([base, base + 1, base + N_ANGLE, base + N_ANGLE + 1])
    weights = np.stack([(1 - fr) * (1 - fa), (1 - fr) * fa, fr * (1 - fa), fr * fa])
    return row, col, cells, weights


def sector_mask(sector=COHORT):
    """The sector of the real frames, or another one, (434, 636) bool."""
    mask = np.zeros(FRAME_SHAPE, bool)
    rows, cols, *_ = _gather(sector)
    mask[rows, cols] = True
    return mask


def scan_convert(polar, frame, sector=COHORT):
    """Fill the sector of a (434, 636) uint8 frame from the polar grid, (364, 400) in [0, 255], bilinearly, in place."""
    rows, cols, cells, weights = _gather(sector)
    flat = polar.ravel()
    frame[rows, cols] = sum(flat[c] * w for c, w in zip(cells, weights, strict=True)) + 0.5
