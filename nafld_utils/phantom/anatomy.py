"""Anatomy of a simulated patient: what lies where behind the probe, and how strongly it scatters.

The scan plane is the one of the real cohort: right intercostal or subcostal, through the right liver lobe and the
right kidney. Coordinates are pixels of the real frames (`x` to the right of the beam axis, `z` down from the apex of
the sector). Only the generator passed in decides what is drawn. Shapes, sizes and contrasts are plausible, not
anatomical statistics; `provenance` has all numbers and their origin.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from nafld_utils.phantom.provenance import Draws
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

# What a reader looks for, one at a time, and the effects that it is made of (see `draw_anatomy`).
FEATURES = {
    "echogenicity": ("echogenicity",),
    "vessel_blur": ("vessel_loss", "border_blur"),
    "diaphragm_blur": ("diaphragm_loss", "border_blur"),
}


class Anatomy(NamedTuple):
    """One patient's scan plane."""

    labels: np.ndarray  # (rows, columns) uint8, codes of `TISSUES` on the map's pixel grid
    echo: np.ndarray  # (rows, columns) float32, backscatter in dB relative to healthy liver
    attenuation: np.ndarray  # (10,) float64, dB/cm/MHz, one way, by tissue code
    # (n, 6) float32, points of specular interfaces: x, z (pixels), normal x, normal z (unit), strength (amplitude,
    # liver = 1), thickness (pixels, standard deviation)
    curves: np.ndarray
    origin: tuple[int, int]  # x and z (pixels) of the map's first column and row

    def at(self, image, x, z):
        """Values of a map of this anatomy at the pixels nearest to coordinates; beyond the map those of its border."""
        col = np.clip(np.rint(x - self.origin[0]), 0, image.shape[1] - 1).astype(np.intp)
        row = np.clip(np.rint(z - self.origin[1]), 0, image.shape[0] - 1).astype(np.intp)
        return image[row, col]


def draw_anatomy(rng, fat, feature=None, variant=FULL):
    """Draw one patient's anatomy; the generator `rng` decides everything.

    `fat`, 0 to 100 percent of hepatocytes, has the effects of the variant. No draw depends on it: the same generator
    with another fat gives the same patient with and without a feature. With a `feature`, one of `FEATURES`, it is the
    only thing that the fat changes, and every patient has vessels and a diaphragm inside the centre crop, since what is
    not in the picture cannot be learnt from it.
    """
    if feature is not None and feature not in FEATURES:
        raise ValueError(f"feature: expected one of {', '.join(FEATURES)} or None, found {feature!r}; choose one.")
    d = Draws(rng, variant)
    grid = _grid(d["map_shape"], d["map_origin"])
    kidney = _draw_kidney(d)
    labels, lines, within = _draw_layout(d, grid, kidney, shown=feature is not None)
    load = variant.effect_size * (1 - np.exp(-fat / d["fat_saturation"]))
    seen = variant.effects if feature is None else FEATURES[feature]
    loads = {name: load if name in seen else 0.0 for name in EFFECTS}
    echo = _draw_echo(d, grid, labels, kidney, within, loads, feature)
    attenuation = np.array(d["attenuation"])
    raised = d["liver_attenuation"] + d["steatosis_attenuation"] * loads["attenuation"]
    attenuation[TISSUES["liver"]] = raised + d.draw("liver_attenuation_spread")
    curves = []
    for kind, line in lines:
        points = _trace(d, *line)
        points[:, 4] *= max(1 - d["steatosis_lines"] * loads[f"{kind}_loss"], 0)
        curves.append(points)
    curves = np.concatenate(curves)
    return Anatomy(labels, echo, attenuation, curves.astype(np.float32), d["map_origin"])


class _Grid(NamedTuple):
    """Where the pixels of a map lie."""

    x: np.ndarray  # (1, columns) float32, pixels to the right of the beam axis
    z: np.ndarray  # (rows, 1) float32, pixels down from the apex
    radius: np.ndarray  # (rows, columns) float32, pixels from the apex
    arcs: np.ndarray  # (rows, columns) int32, place in a flat field of whole pixels of range by whole degrees, `_ARCS`


_ARCS = (450, 180)


@lru_cache(maxsize=2)
def _grid(shape, origin):
    (rows, cols), (x0, z0) = shape, origin
    z, x = (axis.astype(np.float32) for axis in np.ogrid[z0 : z0 + rows, x0 : x0 + cols])
    radius, angle = np.hypot(x, z), np.degrees(np.arctan2(x, z)) + 90
    ranges, degrees = (a.astype(np.int32).clip(0, n - 1) for a, n in zip((radius, angle), _ARCS, strict=True))
    grid = _Grid(x, z, radius, ranges * _ARCS[1] + degrees)
    for shared in grid:
        shared.flags.writeable = False
    return grid


def _draw_kidney(d):
    """Centre, half axes (pixels) and tilt (radians, right end down) of the kidney and its sinus."""
    least, most = d["kidney_tilt_range"]
    tilt = math.radians(min(max(d.draw("kidney_tilt"), least), most))
    x, a, b = d.draw("kidney_x"), d.draw("kidney_length"), d.draw("kidney_thickness")
    top = d.draw("kidney_top")  # depth of the kidney's upper border at its centre
    return {
        "x": x, "z": top + b / math.cos(tilt), "a": a, "b": b, "tilt": tilt,
        "sinus": [d.draw(f"sinus_{name}") for name in ("along", "across", "length", "thickness")],
        "fat": d.draw("renal_fat") + d["renal_fat_least"], "wedge": d.draw("renal_wedge"),
    }  # fmt: skip


def _kidney_frame(k, x, z):
    """Coordinates along the kidney's axes, in half axes: inside where u**2 + v**2 < 1."""
    c, s = math.cos(k["tilt"]), math.sin(k["tilt"])
    return ((x - k["x"]) * c + (z - k["z"]) * s) / k["a"], (-(x - k["x"]) * s + (z - k["z"]) * c) / k["b"]


def _from_kidney_frame(k, u, v):
    c, s = math.cos(k["tilt"]), math.sin(k["tilt"])
    return k["x"] + k["a"] * u * c - k["b"] * v * s, k["z"] + k["a"] * u * s + k["b"] * v * c


def _lift(d, k, u):
    """Thickness of the fat between liver and kidney (pixels), thicker towards the left end."""
    middle, slope, least, most, end = d["renal_fat_shape"]
    return k["fat"] * np.clip(middle - slope * u, least, most) + k["wedge"] * np.clip(-u, 0, end)


def _ripple(d, t, scale):
    """A smooth random function of the angle t, standard deviation about `scale`."""
    return _at_angle(_waves(d, scale), t)


def _waves(d, scale):
    """The values of `_ripple` at 512 angles from -pi to pi, (512,) float32."""
    grid = np.linspace(-np.pi, np.pi, 512)
    (share, *waves), rng = d["ripple"], d.rng
    table = sum(share * scale / k * rng.normal() * np.cos(k * grid + rng.uniform(0, 2 * np.pi)) for k in range(*waves))
    return table.astype(np.float32)


def _at_angle(waves, t):
    return waves[((t + np.pi) * (511 / (2 * np.pi))).astype(np.int16).clip(0, 511)]


def _draw_layout(d, grid, kidney, shown=False):
    """Tissue codes, and the interfaces as pairs of their kind and an (x, z, strength, thickness, grain) point list.

    `shown` brings the diaphragm and enough vessels into the centre crop of every patient. The third value is where the
    map lies in the kidney: along and across its axes, distance from its centre, in half axes; angles are worked out
    only where a border may run.
    """
    codes, (x, z, radius, _) = TISSUES, grid
    u, v = _kidney_frame(kidney, x, z)
    from_centre = np.hypot(u, v)
    # Fat cap of the kidney, thicker towards its upper left end.
    cap, waves = 1 + _lift(d, kidney, u) / kidney["b"], _waves(d, d["kidney_rim"])
    near, rim = from_centre < 0.02 + cap.max() * (1 + np.abs(waves).max()), np.ones_like(u)
    rim[near] += _at_angle(waves, np.arctan2(v[near], u[near]))
    rho = from_centre / rim
    du, dv, su, sv = kidney["sinus"]
    inner = np.nonzero(rho < d["sinus_inside"])
    du, dv = u[inner] - du, v[inner] - dv
    is_sinus = np.hypot(du / su, dv / sv) < 1 + _ripple(d, np.arctan2(dv, du), d["sinus_ripple"])
    # Retroperitoneal surface: along the kidney's axis, then down behind the liver.
    axis = kidney["z"] + math.tan(kidney["tilt"]) * (x - kidney["x"])
    end = kidney["x"] + kidney["a"] * math.cos(kidney["tilt"])
    below, reach, slope, wave = d["surface"]
    surface = axis + below * kidney["b"] + np.where(x > end - reach, slope * (x - end + reach), 0)
    surface = surface + _ripple(d, x / d["ripple_length"], wave)
    dx, dz, dr = (d.draw(f"diaphragm_{name}") for name in ("x", "z", "radius"))
    if shown:
        dr -= d["diaphragm_shown"]  # the liver's lower end, not the lower edge of the crop
    bowl, waves = np.hypot(x - dx, z - dz), _waves(d, d["diaphragm_ripple"])
    row, col = np.nonzero(np.abs(bowl - dr) < 1 + d["diaphragm_thickness"] + np.abs(waves).max())
    bowl[row, col] += _at_angle(waves, np.arctan2(z[row, 0] - dz, x[0, col] - dx))
    (least, most), (slope, wave) = d["wall_range"], d["wall_shape"]
    thickness = min(max(d.draw("wall"), least), most)
    wall_depth = thickness + slope * np.abs(x) + _ripple(d, x / d["ripple_length"], wave)

    labels = np.full(u.shape, codes["liver"], np.uint8)
    fat_end, left, top, lean = d["kidney_ends"]
    labels[(from_centre < cap * rim) & (v < fat_end)] = codes["renal_fat"]
    labels[(z > surface) | ((u < left) & (v > top + lean * (u + 1)))] = codes["retroperitoneum"]
    labels[bowl > dr] = codes["beyond"]
    line = np.abs(bowl - dr) < d["diaphragm_thickness"]
    labels[line & (labels != codes["retroperitoneum"]) & (z < surface)] = codes["diaphragm"]
    labels[(bowl > dr) & (z > surface)] = codes["retroperitoneum"]
    labels[rho < 1] = codes["kidney_cortex"]
    labels[inner[0][is_sinus], inner[1][is_sinus]] = codes["kidney_sinus"]
    labels[radius < wall_depth] = codes["wall"]
    lines = [("capsule", line) for line in _cap_lines(d, kidney)]
    lines.append(("diaphragm", _diaphragm_line(d, (dx, dz, dr), labels, shown)))
    lines += [("capsule", line) for line in _wall_lines(d, thickness)]
    lines += [("vessel", line) for line in _draw_vessels(d, x, z, labels, shown)]
    return labels, lines, (u, v, from_centre)


def _cap_lines(d, kidney):
    """Liver capsule over the renal fat, the renal capsule below it, and the kidney's lower border."""
    left, right, length, least, turn, wave, low = d["capsule_lines"]
    widths, (grain, low_grain, *_) = d["capsule_width"], d["line_grain"]
    u = np.linspace(-left, right, 900)
    v = -np.sqrt(np.clip(1 - (u / length) ** 2, least, 1)) + _ripple(d, turn * u, wave)
    x, z = _from_kidney_frame(kidney, u, v)
    lift = _lift(d, kidney, u)
    upper = x + lift * math.sin(kidney["tilt"]), z - lift * math.cos(kidney["tilt"])
    low_x, low_z = _from_kidney_frame(kidney, u[100:800], low * np.sqrt(1 - u[100:800] ** 2))
    return [
        (*upper, np.full(u.size, d.draw("liver_capsule")), widths[0], grain),
        (x, z, np.full(u.size, d.draw("renal_capsule")), widths[1], grain),
        (low_x, low_z, np.full(low_x.size, d.draw("renal_border")), widths[2], low_grain),
    ]


def _diaphragm_line(d, circle, labels, shown=False):
    """The stretch of the diaphragm that shows: often short, in some patients none; with `shown` long and strong."""
    dx, dz, dr = circle
    kind, (x0, z0) = "_shown" if shown else "", d["map_origin"]
    centre, width = (np.radians(d.draw(f"diaphragm_{name}{kind}")) for name in ("centre", "half"))
    t = np.linspace(centre - width, centre + width, 900)
    x, z = dx + dr * np.cos(t), dz + dr * np.sin(t)
    rows, cols = labels.shape
    row, col = (z - z0).astype(int).clip(0, rows - 1), (x - x0).astype(int).clip(0, cols - 1)
    keep = np.isin(labels[row, col], [TISSUES["diaphragm"], TISSUES["beyond"], TISSUES["liver"]])
    strength = max(d.draw("diaphragm_line"), d["diaphragm_line_shown"] if shown else 0.0)
    strength = strength * np.cos((t - centre) / width * np.pi / 2)
    return x[keep], z[keep], strength[keep], d.draw("diaphragm_width"), d["line_grain"][1]


def _wall_lines(d, thickness):
    """Fascia: short bright arcs around the apex, flatter than circles, down to the liver's capsule."""
    lines = []
    first = d["fascia_depth"]
    for _ in range(d.draw("fascia")):
        r, start, width = d.rng.uniform(first, thickness + first), d.draw("fascia_start"), d.draw("fascia_length")
        t = np.linspace(start, start + width, 120)
        bend = r / np.cos(t) ** d.draw("fascia_bend")
        strength = np.full(t.size, d.draw("fascia_line"))
        lines.append((bend * np.sin(t), bend * np.cos(t), strength, d.draw("fascia_width"), d["line_grain"][2]))
    return lines


def _draw_vessels(d, x, z, labels, shown=False):
    """Cut a few vessels into the liver; portal ones get bright walls. With `shown` there are more, all with walls."""
    lines = []
    (bend, distance, reach), (x0, z0) = d["vessel_bend"], d["map_origin"]
    for _ in range(d["vessels_shown"] if shown else d.draw("vessels")):
        xc, zc, a, b, tilt = (d.draw(f"vessel_{name}") for name in ("x", "z", "length", "width", "tilt"))
        row, col = int(zc) - z0, int(xc) - x0
        near = np.s_[row - reach : row + reach + 1, col - reach : col + reach + 1]
        right, down = x[:, near[1]] - xc, z[near[0]] - zc
        c, s = math.cos(tilt), math.sin(tilt)
        u = (right * c + down * s) / a
        v = (-right * s + down * c - bend * a * u**2) / b
        inside = np.hypot(u, v) < 1
        if not np.all(labels[near][inside] == TISSUES["liver"]):
            continue  # vessels stay clear of the liver's border
        labels[near][inside] = TISSUES["vessel"]
        if d.rng.random() < d["vessel_walled"] or shown:
            t = np.linspace(0, 2 * np.pi, 100)
            p, q = a * np.cos(t), distance * b * np.sin(t) + bend * a * np.cos(t) ** 2
            lines.append((
                xc + p * c - q * s, zc + p * s + q * c,
                np.full(t.size, d.draw("vessel_line")), d["vessel_line_width"], d["line_grain"][3],
            ))  # fmt: skip
    return lines


def _trace(d, x, z, strength, thickness, grain):
    """Points of one interface, a quarter pixel apart, with normals and a strength that varies every `grain` pixels."""
    if len(x) < 8:
        return np.zeros((0, 6))
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    even, (spread, ends) = np.arange(0, along[-1], d["line_step"]), d["line_patches"]
    x, z, strength = (np.interp(even, along, a) for a in (x, z, strength))
    tx, tz = np.gradient(x), np.gradient(z)
    length = np.hypot(tx, tz) + 1e-6
    patchy = ndimage.gaussian_filter1d(d.rng.standard_normal(even.size), 4 * grain)
    patchy *= np.sqrt(8 * grain * np.sqrt(np.pi))  # back to unit variance
    patchy = np.exp(spread * patchy) * np.sin(np.linspace(0.02, 0.98, even.size) * np.pi) ** ends
    return np.column_stack([x, z, -tz / length, tx / length, strength * patchy, np.full(even.size, thickness)])


def _noise(d, sigma):
    """Smooth Gaussian noise of unit variance on the map; drawn on a coarser grid where `sigma` allows."""
    sigma = np.broadcast_to(sigma, 2).astype(float)
    step = np.maximum(1, sigma / 1.5)
    whole = d["map_shape"]
    shape = np.ceil(np.array(whole) / step).astype(int) + 1
    field = ndimage.gaussian_filter(d.rng.standard_normal(shape, dtype=np.float32), sigma / step, truncate=3)
    field /= field.std()
    rows = np.linspace(0, shape[0] - 1.001, whole[0]).astype(np.float32)
    cols = np.linspace(0, shape[1] - 1.001, whole[1]).astype(np.float32)
    r, c = rows.astype(int), cols.astype(int)
    field = field[r] + (field[r + 1] - field[r]) * (rows - r)[:, None]
    return field[:, c] + (field[:, c + 1] - field[:, c]) * (cols - c)


def _streaks(d, radial, angular):
    """Noise along arcs around the apex, sigma `radial` pixels by `angular` degrees, flat, by the grid's `arcs`."""
    field = ndimage.gaussian_filter(d.rng.standard_normal(_ARCS, dtype=np.float32), (radial, angular), truncate=3)
    field /= field.std()
    field += d["streak_skew"] * (field**2 - 1)
    return field.ravel()


def _blur_borders(d, echo, labels, load, feature):
    """The map blurred by the load: everywhere, or with a `feature` around the tissue that it is about."""
    least = d["map_blur"]
    blurred = ndimage.gaussian_filter(echo, least + d["steatosis_blur"] * load * d.draw("blur_share"), truncate=3)
    if feature in (None, "echogenicity"):
        return blurred
    sharp = ndimage.gaussian_filter(echo, least, truncate=3)
    near = ndimage.distance_transform_edt(labels != TISSUES[feature.removesuffix("_blur")])
    weight = np.clip(2 - 2 * near / d["feature_reach"], 0, 1)  # full at the border, none from the reach on
    return sharp + weight * (blurred - sharp)


def _draw_echo(d, grid, labels, kidney, within, loads, feature=None):
    """Backscatter map (rows, columns) float32 in dB relative to healthy liver.

    `within` is where the map lies in the kidney, of `_draw_layout`, and `loads` are by effect.
    """
    codes = TISSUES
    level = np.zeros(len(codes), np.float32)
    gain = d["steatosis_gain"]
    contrast = d.draw("liver_over_cortex") + gain * loads["echogenicity"]  # dB
    level[codes["liver"]] = d["steatosis_gain_liver"] * gain * loads["echogenicity"]
    level[codes["kidney_cortex"]] = level[codes["liver"]] - contrast
    level[codes["kidney_sinus"]] = level[codes["kidney_cortex"]] + d.draw("sinus_over_cortex")
    for name in ("renal_fat", "wall", "diaphragm", "beyond", "retroperitoneum"):
        level[codes[name]] = d.draw(f"{name}_level")
    level[codes["vessel"]] = d["vessel_level"] + d["steatosis_vessel"] * loads["vessel_loss"]
    echo = level[labels]
    # To the right of the kidney the retroperitoneum turns into what looks like liver.
    fade = d["retroperitoneum_fade"]
    right = grid.x - kidney["x"] - kidney["a"] * math.cos(kidney["tilt"])
    echo = np.where(labels == codes["retroperitoneum"], echo / (1 + np.exp((right - fade) / fade)), echo)
    echo = _blur_borders(d, echo, labels, loads["border_blur"], feature).astype(np.float32)
    fine, coarse = d["texture_sizes"]
    echo += d.draw("texture_fine") * _noise(d, fine) + d.draw("texture_coarse") * _noise(d, coarse)
    rough = np.isin(np.arange(len(codes)), [codes[name] for name in ("kidney_sinus", "retroperitoneum", "renal_fat")])
    size, radial, angular, patches, *patch = d["rough"]
    streaks = size * _streaks(d, radial, angular)
    here = rough[labels]
    echo[here] += streaks[grid.arcs[here]] + (patches * _noise(d, patch))[here]
    share, fine, grain, patches, *patch = d["cortex_texture"]
    here = labels == codes["kidney_cortex"]
    echo[here] += share * streaks[grid.arcs[here]] + fine * _noise(d, grain)[here] + patches * _noise(d, patch)[here]
    # Medullary pyramids: dark patches around the sinus.
    u, v, from_centre = (of[here] for of in within)
    at, width, number = d["pyramids"]
    ring = np.exp(-(((from_centre - at) / width) ** 2))
    ring = ring * np.clip(np.cos(number * np.arctan2(v, u) + d.draw("pyramid_phase")), 0, 1)
    echo[here] -= d.draw("pyramid_depth") * ring
    # Muscle and fascia lie along the skin.
    sizes, here = d["layer_sizes"], labels == codes["wall"]
    layers = d.draw("layers_fine") * _streaks(d, *sizes[:2])
    layers = layers + d.draw("layers_coarse") * _streaks(d, *sizes[2:])
    echo[here] += layers[grid.arcs[here]]
    return echo
