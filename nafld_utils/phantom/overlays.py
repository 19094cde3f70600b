"""What the scanner of the real cohort burns in around the sector: places and grey levels as in its frames."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def draw_settings(rng):
    """Heart rate, marks and counters of one patient."""
    return {
        "rate": int(np.clip(rng.normal(68, 11), 46, 112)),
        "marks": rng.uniform(0.25, 0.99, rng.integers(1, 4)),
        "t_wave": rng.uniform(2, 14), "r_wave": rng.uniform(10, 36), "first": int(rng.integers(1, 30)),
        "total": int(rng.integers(45, 70)),
    }  # fmt: skip


@lru_cache(maxsize=4)
def _font(size):
    return ImageFont.load_default(size)


def draw(frame, settings, number):
    """Draw into a (434, 636) uint8 frame what the scanner burns in around the sector.

    `settings` are one patient's, from `draw_settings`; the frame's number moves the frame counter and the mark
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
