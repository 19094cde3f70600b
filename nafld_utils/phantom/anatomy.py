"""Anatomy of a simulated patient: what lies where behind the probe, and how strongly it scatters.

The scan plane is the one of the real cohort: right intercostal or subcostal, through the right liver lobe and the
right kidney. Coordinates are pixels of the real frames (`x` to the right of the beam axis, `z` down from the apex of
the sector). Only the generator passed in decides what is drawn. Choice: shapes, sizes and contrasts were set by eye
and by measured grey levels beside the real frames; they are plausible, not anatomical statistics.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from nafld_utils.phantom.variants import EFFECTS, FULL

REVISION = ("phantom_anatomy", 2)

TISSUES = {
    "outside": 0,  # no ultrasound: outside the sector
    "wall": 1,  # skin, subcutaneous fat, muscle
    "liver": 2,
    "vessel": 3,  # portal and hepatic veins, always inside the liver
    "renal_fat": 4,  # between liver and kidney
    "kidney_cortex": 5,
    "kidney_sinus": 6,  # always inside the kidney
    "diaphragm": 7,
    "beyond": 8,  # behind the diaphragm
    "retroperitoneum": 9,  # muscle and bowel below and beside the kidney
}

X0, Z0 = -330, -12  # pixel coordinates of the map's first column and row
STEATOSIS_GAIN = 9.5  # dB, liver over cortex at full load; Choice: gives the published overlap of the classes
SHAPE = (424, 661)  # rows, columns of the map; it reaches past the sector on all sides
# Attenuation of each tissue code in dB/cm/MHz, one way; Choice: textbook soft-tissue values, liver set per patient.
_ATTENUATION = np.array([0.5, 0.75, 0.5, 0.1, 0.5, 0.5, 0.6, 0.8, 0.6, 0.6])
# What a reader looks for, one at a time, and the effects that it is made of (see `draw_anatomy`).
FEATURES = {
    "echogenicity": ("echogenicity",),
    "vessel_blur": ("vessel_loss", "border_blur"),
    "diaphragm_blur": ("diaphragm_loss", "border_blur"),
}
_BLUR_REACH = 9  # pixels around a vessel or the diaphragm in which a feature of its own blurs the map


class Anatomy(NamedTuple):
    """One patient's scan plane."""

    labels: np.ndarray  # (424, 661) uint8, codes of `TISSUES` on the map's pixel grid
    echo: np.ndarray  # (424, 661) float32, backscatter in dB relative to healthy liver
    attenuation: np.ndarray  # (10,) float64, dB/cm/MHz, one way, by tissue code
    # (n, 6) float32, points of specular interfaces: x, z (pixels), normal x, normal z (unit), strength (amplitude,
    # liver = 1), thickness (pixels, standard deviation)
    curves: np.ndarray


def draw_anatomy(rng, fat, feature=None, variant=FULL):
    """Draw one patient's anatomy; the generator `rng` decides everything.

    `fat`, 0 to 100 percent of hepatocytes, has the effects of the variant. No draw depends on it: the same generator
    with another fat gives the same patient with and without a feature. With a `feature`, one of `FEATURES`, it is the
    only thing that the fat changes, and every patient has vessels and a diaphragm inside the centre crop, since what is
    not in the picture cannot be learnt from it.
    """
    if feature is not None and feature not in FEATURES:
        raise ValueError(f"feature: expected one of {', '.join(FEATURES)} or None, found {feature!r}; choose one.")
    z, x = np.mgrid[Z0 : Z0 + SHAPE[0], X0 : X0 + SHAPE[1]].astype(np.float32)
    kidney = _draw_kidney(rng)
    labels, lines = _draw_layout(rng, x, z, kidney, shown=feature is not None)
    load = variant.effect_size * (1 - np.exp(-fat / 20))  # Choice: the effect saturates, as brightness grades do
    seen = variant.effects if feature is None else FEATURES[feature]
    loads = {name: load if name in seen else 0.0 for name in EFFECTS}
    echo = _draw_echo(rng, x, z, labels, kidney, loads, feature)
    attenuation = _ATTENUATION.copy()
    attenuation[TISSUES["liver"]] = 0.52 + 0.10 * loads["attenuation"] + rng.normal(0, 0.03)
    curves = []
    for kind, line in lines:
        points = _trace(rng, *line)
        points[:, 4] *= max(1 - 0.65 * loads[f"{kind}_loss"], 0)
        curves.append(points)
    curves = np.concatenate(curves)
    return Anatomy(labels, echo.astype(np.float32), attenuation, curves.astype(np.float32))


def _draw_kidney(rng):
    """Centre, half axes (pixels) and tilt (radians, right end down) of the kidney and its sinus."""
    tilt = math.radians(min(max(rng.normal(22, 13), -5), 45))
    x = rng.normal(-88, 40)
    a, b = rng.normal(103, 13), rng.normal(47, 6.5)
    top = rng.normal(165, 20)  # depth of the kidney's upper border at its centre
    return {
        "x": x, "z": top + b / math.cos(tilt), "a": a, "b": b, "tilt": tilt,
        "sinus": (rng.normal(0.02, 0.06), rng.normal(0.08, 0.08), rng.uniform(0.5, 0.68), rng.uniform(0.30, 0.52)),
        "fat": rng.gamma(2.0, 4.0) + 2, "wedge": rng.gamma(1.2, 9.0),
    }  # fmt: skip


def _kidney_frame(k, x, z):
    """Coordinates along the kidney's axes, in half axes: inside where u**2 + v**2 < 1."""
    c, s = math.cos(k["tilt"]), math.sin(k["tilt"])
    return ((x - k["x"]) * c + (z - k["z"]) * s) / k["a"], (-(x - k["x"]) * s + (z - k["z"]) * c) / k["b"]


def _from_kidney_frame(k, u, v):
    c, s = math.cos(k["tilt"]), math.sin(k["tilt"])
    return k["x"] + k["a"] * u * c - k["b"] * v * s, k["z"] + k["a"] * u * s + k["b"] * v * c


def _lift(k, u):
    """Thickness of the fat between liver and kidney (pixels), thicker towards the left end."""
    return k["fat"] * np.clip(0.7 - 0.6 * u, 0.15, 1.3) + k["wedge"] * np.clip(-u, 0, 1.2)


def _ripple(rng, t, scale):
    """A smooth random function of the angle t, standard deviation about `scale`."""
    grid = np.linspace(-np.pi, np.pi, 512)
    table = sum(1.5 * scale / k * rng.normal() * np.cos(k * grid + rng.uniform(0, 2 * np.pi)) for k in range(2, 8))
    return table.astype(np.float32)[((t + np.pi) * (511 / (2 * np.pi))).astype(np.int16).clip(0, 511)]


def _draw_layout(rng, x, z, kidney, shown=False):
    """Tissue codes, and the interfaces as pairs of their kind and an (x, z, strength, thickness, grain) point list.

    `shown` brings the diaphragm and enough vessels into the centre crop of every patient.
    """
    codes, radius = TISSUES, np.hypot(x, z)
    u, v = _kidney_frame(kidney, x, z)
    t = np.arctan2(v, u)
    rim = 1 + _ripple(rng, t, 0.075)
    rho = np.hypot(u, v) / rim
    du, dv, su, sv = kidney["sinus"]
    sinus = np.hypot((u - du) / su, (v - dv) / sv) < 1 + _ripple(rng, np.arctan2(v - dv, u - du), 0.38)
    # Retroperitoneal surface: along the kidney's axis, then down behind the liver.
    axis = kidney["z"] + math.tan(kidney["tilt"]) * (x - kidney["x"])
    end = kidney["x"] + kidney["a"] * math.cos(kidney["tilt"])
    surface = axis + 0.25 * kidney["b"] + np.where(x > end - 30, 0.35 * (x - end + 30), 0) + _ripple(rng, x / 110, 14)
    dx, dz, dr = rng.normal(70, 25), rng.normal(95, 20), rng.normal(240, 16)
    if shown:
        dr -= 55  # the liver's lower end, not the lower edge of the crop
    bowl = np.hypot(x - dx, z - dz) + _ripple(rng, np.arctan2(z - dz, x - dx), 5)
    thickness = min(max(rng.normal(56, 9), 34), 80)
    wall_depth = thickness + 0.03 * np.abs(x) + _ripple(rng, x / 110, 2.5)

    labels = np.full(x.shape, codes["liver"], np.uint8)
    # Fat cap of the kidney, thicker towards its upper left end.
    cap = 1 + _lift(kidney, u) / kidney["b"]
    labels[(np.hypot(u, v) < cap * rim) & (v < 0.4)] = codes["renal_fat"]
    labels[(z > surface) | ((u < -0.95) & (v > -0.9 - 0.4 * (u + 1)))] = codes["retroperitoneum"]
    labels[bowl > dr] = codes["beyond"]
    labels[(np.abs(bowl - dr) < 2.5) & (labels != codes["retroperitoneum"]) & (z < surface)] = codes["diaphragm"]
    labels[(bowl > dr) & (z > surface)] = codes["retroperitoneum"]
    labels[rho < 1] = codes["kidney_cortex"]
    labels[(rho < 0.9) & sinus] = codes["kidney_sinus"]
    labels[radius < wall_depth] = codes["wall"]
    lines = [("capsule", line) for line in _cap_lines(rng, kidney)]
    lines.append(("diaphragm", _diaphragm_line(rng, (dx, dz, dr), labels, shown)))
    lines += [("capsule", line) for line in _wall_lines(rng, thickness)]
    lines += [("vessel", line) for line in _draw_vessels(rng, x, z, labels, shown)]
    return labels, lines


def _cap_lines(rng, kidney):
    """Liver capsule over the renal fat, the renal capsule below it, and the kidney's lower border."""
    u = np.linspace(-1.15, 0.98, 900)
    v = -np.sqrt(np.clip(1 - (u / 1.16) ** 2, 0.02, 1)) + _ripple(rng, 2.5 * u, 0.03)
    x, z = _from_kidney_frame(kidney, u, v)
    lift = _lift(kidney, u)
    upper = x + lift * math.sin(kidney["tilt"]), z - lift * math.cos(kidney["tilt"])
    low_x, low_z = _from_kidney_frame(kidney, u[100:800], 1.02 * np.sqrt(1 - u[100:800] ** 2))
    return [
        (*upper, np.full(u.size, rng.gamma(3, 0.8)), 1.1, 4),
        (x, z, np.full(u.size, rng.gamma(1.5, 0.8)), 1.0, 4),
        (low_x, low_z, np.full(low_x.size, rng.gamma(1.2, 0.8)), 1.0, 6),
    ]


def _diaphragm_line(rng, circle, labels, shown=False):
    """The stretch of the diaphragm that shows: often short, in some patients none; with `shown` long and strong."""
    dx, dz, dr = circle
    degrees, half = ((60, 75), (40, 50)) if shown else ((35, 85), (15, 45))
    centre, width = np.radians(rng.uniform(*degrees)), np.radians(rng.uniform(*half))
    t = np.linspace(centre - width, centre + width, 900)
    x, z = dx + dr * np.cos(t), dz + dr * np.sin(t)
    row, col = (z - Z0).astype(int).clip(0, SHAPE[0] - 1), (x - X0).astype(int).clip(0, SHAPE[1] - 1)
    keep = np.isin(labels[row, col], [TISSUES["diaphragm"], TISSUES["beyond"], TISSUES["liver"]])
    strength = max(rng.gamma(1.3, 1.6), 3.0 if shown else 0.0) * np.cos((t - centre) / width * np.pi / 2)
    return x[keep], z[keep], strength[keep], rng.uniform(1.2, 2.8), 6


def _wall_lines(rng, thickness):
    """Fascia: short bright arcs around the apex, flatter than circles, down to the liver's capsule."""
    lines = []
    for _ in range(rng.integers(18, 40)):
        r, start, width = rng.uniform(14, thickness + 14), rng.uniform(-0.85, 0.2), rng.uniform(0.3, 1.1)
        t = np.linspace(start, start + width, 120)
        bend = r / np.cos(t) ** rng.uniform(-0.2, 0.9)
        lines.append((bend * np.sin(t), bend * np.cos(t), np.full(t.size, rng.gamma(2, 0.6)), rng.uniform(0.3, 0.8), 5))
    return lines


def _draw_vessels(rng, x, z, labels, shown=False):
    """Cut a few vessels into the liver; portal ones get bright walls. With `shown` there are more, all with walls."""
    lines = []
    for _ in range(60 if shown else rng.integers(1, 6)):
        xc, zc = rng.uniform(-150, 150), rng.uniform(100, 330)
        a, b, tilt = rng.uniform(3, 17), rng.uniform(1.8, 4.0), rng.uniform(-0.9, 0.9)
        near = np.s_[int(zc) - Z0 - 24 : int(zc) - Z0 + 25, int(xc) - X0 - 24 : int(xc) - X0 + 25]
        c, s = math.cos(tilt), math.sin(tilt)
        u = ((x[near] - xc) * c + (z[near] - zc) * s) / a
        v = (-(x[near] - xc) * s + (z[near] - zc) * c - 0.15 * a * u**2) / b
        inside = np.hypot(u, v) < 1
        if not np.all(labels[near][inside] == TISSUES["liver"]):
            continue  # vessels stay clear of the liver's border
        labels[near][inside] = TISSUES["vessel"]
        if rng.random() < 0.5 or shown:
            t = np.linspace(0, 2 * np.pi, 100)
            p, q = a * np.cos(t), 1.25 * b * np.sin(t) + 0.15 * a * np.cos(t) ** 2
            lines.append((
                xc + p * c - q * s, zc + p * s + q * c,
                np.full(t.size, rng.uniform(0.5, 1.6)), 0.8, 3,
            ))  # fmt: skip
    return lines


def _trace(rng, x, z, strength, thickness, grain):
    """Points of one interface, a quarter pixel apart, with normals and a strength that varies every `grain` pixels."""
    if len(x) < 8:
        return np.zeros((0, 6))
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    even = np.arange(0, along[-1], 0.25)
    x, z, strength = (np.interp(even, along, a) for a in (x, z, strength))
    tx, tz = np.gradient(x), np.gradient(z)
    length = np.hypot(tx, tz) + 1e-6
    patchy = ndimage.gaussian_filter1d(rng.standard_normal(even.size), 4 * grain)
    patchy *= np.sqrt(8 * grain * np.sqrt(np.pi))  # back to unit variance
    patchy = np.exp(0.7 * patchy) * np.sin(np.linspace(0.02, 0.98, even.size) * np.pi) ** 0.6
    return np.column_stack([x, z, -tz / length, tx / length, strength * patchy, np.full(even.size, thickness)])


def _noise(rng, sigma):
    """Smooth Gaussian noise of unit variance on the map; drawn on a coarser grid where `sigma` allows."""
    sigma = np.broadcast_to(sigma, 2).astype(float)
    step = np.maximum(1, sigma / 1.5)
    shape = np.ceil(np.array(SHAPE) / step).astype(int) + 1
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma / step, truncate=3)
    field /= field.std()
    rows = np.linspace(0, shape[0] - 1.001, SHAPE[0]).astype(np.float32)
    cols = np.linspace(0, shape[1] - 1.001, SHAPE[1]).astype(np.float32)
    r, c = rows.astype(int), cols.astype(int)
    field = field[r] + (field[r + 1] - field[r]) * (rows - r)[:, None]
    return field[:, c] + (field[:, c + 1] - field[:, c]) * (cols - c)


def _streaks(rng, x, z, radial, angular):
    """Noise along arcs around the apex, sigma `radial` pixels by `angular` degrees, skewed to the bright side."""
    field = ndimage.gaussian_filter(rng.standard_normal((450, 180), dtype=np.float32), (radial, angular), truncate=3)
    field /= field.std()
    field += 0.35 * (field**2 - 1)
    row = np.hypot(x, z).astype(np.int16).clip(0, 449)
    return field[row, (np.degrees(np.arctan2(x, z)) + 90).astype(np.int16).clip(0, 179)]


def _blur_borders(echo, labels, loads, share, feature):
    """The map blurred by the load: everywhere, or with a `feature` around the tissue that it is about."""
    blurred = ndimage.gaussian_filter(echo, 0.8 + 2.2 * loads["border_blur"] * share, truncate=3)
    if feature in (None, "echogenicity"):
        return blurred
    sharp = ndimage.gaussian_filter(echo, 0.8, truncate=3)
    near = ndimage.distance_transform_edt(labels != TISSUES[feature.removesuffix("_blur")])
    weight = np.clip(2 - 2 * near / _BLUR_REACH, 0, 1)  # full at the border, none from the reach on
    return sharp + weight * (blurred - sharp)


def _draw_echo(rng, x, z, labels, kidney, loads, feature=None):
    """Backscatter map in dB relative to healthy liver; `loads` by effect."""
    codes = TISSUES
    level = np.zeros(len(codes), np.float32)
    contrast = rng.normal(1.0, 1.4) + STEATOSIS_GAIN * loads["echogenicity"]  # liver over cortex in dB
    level[codes["liver"]] = 0.5 * STEATOSIS_GAIN * loads["echogenicity"]
    level[codes["kidney_cortex"]] = level[codes["liver"]] - contrast
    level[codes["kidney_sinus"]] = level[codes["kidney_cortex"]] + rng.normal(8.0, 2.5)
    level[codes["renal_fat"]] = rng.normal(4.5, 2.5)
    level[codes["wall"]] = rng.normal(3.0, 1.5)
    level[codes["diaphragm"]] = rng.normal(4.0, 3.0)
    level[codes["beyond"]] = rng.normal(0.0, 3.0)
    level[codes["retroperitoneum"]] = rng.normal(5.0, 2.5)
    level[codes["vessel"]] = -14 + 7 * loads["vessel_loss"]
    echo = level[labels]
    # To the right of the kidney the retroperitoneum turns into what looks like liver.
    right = x - kidney["x"] - kidney["a"] * math.cos(kidney["tilt"])
    echo = np.where(labels == codes["retroperitoneum"], echo / (1 + np.exp((right - 25) / 25)), echo)
    echo = _blur_borders(echo, labels, loads, rng.uniform(0.6, 1.2), feature).astype(np.float32)
    echo += rng.uniform(0.3, 0.8) * _noise(rng, 3) + rng.uniform(0.4, 1.0) * _noise(rng, 20)
    rough = np.isin(labels, [codes["kidney_sinus"], codes["retroperitoneum"], codes["renal_fat"]])
    streaks = 2.2 * _streaks(rng, x, z, 0.8, 1.8)
    echo += np.where(rough, streaks + 1.4 * _noise(rng, (8, 24)), 0)
    echo += np.where(
        labels == codes["kidney_cortex"], 0.5 * streaks + 1.0 * _noise(rng, 6) + 1.5 * _noise(rng, (12, 25)), 0
    )
    # Medullary pyramids: dark patches around the sinus.
    u, v = _kidney_frame(kidney, x, z)
    t = np.arctan2(v, u)
    ring = np.exp(-(((np.hypot(u, v) - 0.7) / 0.13) ** 2)) * np.clip(np.cos(6 * t + rng.uniform(0, 6)), 0, 1)
    echo -= np.where(labels == codes["kidney_cortex"], rng.uniform(0, 3) * ring, 0)
    # Muscle and fascia lie along the skin.
    layers = rng.uniform(2, 3.5) * _streaks(rng, x, z, 0.8, 9) + rng.uniform(1, 3) * _streaks(rng, x, z, 4, 25)
    echo += np.where(labels == codes["wall"], layers, 0)
    return echo
