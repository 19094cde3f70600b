"""The image Turing test as one HTML file that raters open, and a check that it gives nothing away.

Contract: arrays and tables in, text or tables out; only the page's own templates are read. The page holds images under
the ids and in the order of `nafld_utils.turing.sitting.put_in_order` and never the key; it fetches nothing and sends
nothing (its content security policy forbids both), keeps an unfinished sitting in the browser, and ends in a results
file that `nafld_utils.turing.results_files` reads. All its texts are in ``templates/turing_texts.<language>.json``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from nafld_utils import statistics
from nafld_utils.turing.sitting import CONFIDENCE_LEVELS, RATER_PATTERN, RESULTS_SCHEMA, RESULTS_VERSION

REVISION = ("turing_page", 1)

SECONDS_PER_IMAGE = 10  # choice: for the duration told to raters; a glance, an answer, a confidence
_TEMPLATES = Path(__file__).parent / "templates"
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


# ---------------------------------------------------------------- pictures


def encode_png(image: np.ndarray) -> bytes:
    """An 8-bit grey image (S, S) uint8 as PNG without metadata, whose length depends on the image's size alone.

    Choice: stored, not compressed. A compressed image is as long as its content is complicated, and the smoother of
    the two kinds would be the shorter. 64 KiB at 256 pixels, 4.2 MiB in base64 for 50 images.
    """
    from PIL import Image

    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (S, S) uint8, found {image.shape} {image.dtype}; scale it to 8 bits first.")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def practice_pattern(size: int) -> np.ndarray:
    """The picture of the practice item, (size, size) uint8: a fan of speckle above twelve grey steps.

    Choice: a practice image of either kind would teach raters what that kind looks like; this one teaches the
    controls, and the grey steps show whether the screen is bright enough.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    angle, depth = np.arctan2(x - 0.5, y + 0.15), np.hypot(x - 0.5, y + 0.15)
    fan = (np.abs(angle) < 0.6) & (depth > 0.25) & (depth < 0.85)
    image = np.where(fan, 90 * rng.rayleigh(0.7, (size, size)) * np.exp(-depth), 0)
    steps = np.round(np.minimum(x * 12, 11).astype(int) * 255 / 11)
    return np.clip(np.where(y >= 0.84, steps, np.where(y > 0.8, 0, image)), 0, 255).astype(np.uint8)


def set_id(images: np.ndarray, items: pd.DataFrame) -> str:
    """Name of a set, from its ids and pixels in their order: 12 hex digits that tie a results file to its page."""
    content = hashlib.sha256(" ".join(items["image_id"]).encode())
    content.update(np.ascontiguousarray(images).tobytes())
    return content.hexdigest()[:12]


# ---------------------------------------------------------------- the page


def template_files(language: str) -> list[Path]:
    """The files that a page in one language is made from."""
    return [_TEMPLATES / name for name in ("turing.html.j2", "turing.css", "turing.js", _texts(language))]


def _texts(language: str) -> str:
    return f"turing_texts.{language}.json"


def load_texts(language: str) -> dict[str, Any]:
    """Texts of the page in one language, checked against the English ones.

    Parameters
    ----------
    language : str
        The middle of ``turing_texts.<language>.json``.

    Returns
    -------
    dict
        Key to text, or to a list of texts.

    Raises
    ------
    ValueError
        No such file, a key too many or too few, or a placeholder such as ``{n}`` lost or invented.
    """
    path, english = _TEMPLATES / _texts(language), _TEMPLATES / _texts("en")
    if not path.is_file():
        there = sorted(p.name.split(".")[1] for p in _TEMPLATES.glob(_texts("*")))
        raise ValueError(
            f"turing.language: expected one of {', '.join(there)}, found {language!r}; translate"
            f" {english.name} into {path.name} or choose another."
        )
    texts = json.loads(path.read_text(encoding="utf-8"))
    check_texts(texts, json.loads(english.read_text(encoding="utf-8")), path.name)
    return texts


def check_texts(texts: dict[str, Any], english: dict[str, Any], name: str) -> None:
    """Refuse a translation that lacks a text, has one too many, or changed a placeholder; see `load_texts`."""
    for key in english.keys() | texts.keys():
        if key not in texts or key not in english:
            what = "no" if key not in texts else "an unknown"
            raise ValueError(f"{name}: expected the keys of turing_texts.en.json, found {what} {key!r}; correct it.")
        wanted, found = (sorted(re.findall(r"\{\w+\}", json.dumps(table[key]))) for table in (english, texts))
        if wanted != found or type(texts[key]) is not type(english[key]):
            raise ValueError(
                f"{name}: expected {wanted or 'no'} placeholders in {key!r} as in English, found {found}; correct it."
            )


def build(
    images: np.ndarray,
    items: pd.DataFrame,
    texts: dict[str, Any],
    simulated: bool = False,
    contact: str | None = None,
    subject: str = "liver ultrasounds",
) -> str:
    """The whole test as one HTML page, of images (n, S, S) uint8 in the order of the sitting.

    Of `items` only ``image_id`` enters the page; `texts` are from `load_texts`. `simulated` says on every screen that
    the patients are; `contact` is to whom results are returned (default: the sender of the page); `subject` what the
    images are, in the plural.
    """
    import jinja2

    css, script = ((_TEMPLATES / f"turing.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    values = {"n": len(images), "minutes": max(1, round(len(images) * SECONDS_PER_IMAGE / 60)), "subject": subject}
    shown = {key: _filled(text, values) if isinstance(text, str) else text for key, text in texts.items()}
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return page.get_template("turing.html.j2").render(
        texts=shown,
        contact=texts["done_contact"].replace("{contact}", contact) if contact else texts["done_sender"],
        simulated=simulated,
        n=len(images),
        size=images.shape[1],
        levels=CONFIDENCE_LEVELS,
        policy=_policy(css, script),
        css=_Own(css),
        script=_Own(script),
        data=_Own(_data(images, items, texts)),
    )


class _Own(str):
    """Text of ours that the template takes as it is."""

    def __html__(self) -> str:
        return self


def _filled(text: str, values: dict[str, Any]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)


def _address(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def _data(images: np.ndarray, items: pd.DataFrame, texts: dict[str, Any]) -> str:
    """What the page's script reads, as JSON that cannot end its element, whatever its strings hold; never the key."""
    content = {
        "schema": RESULTS_SCHEMA,
        "version": RESULTS_VERSION,
        "set_id": set_id(images, items),
        "rater_pattern": RATER_PATTERN,
        "levels": list(CONFIDENCE_LEVELS),
        "practice": _address(practice_pattern(images.shape[1])),
        "items": [{"id": name, "src": _address(image)} for name, image in zip(items["image_id"], images, strict=True)],
        "texts": texts,
    }
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(css: str, script: str) -> str:
    """Content security policy: this style, this script and embedded images; no connection, form target or frame."""
    style, code = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{code}';"
        " connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def page_items(page: str) -> pd.DataFrame:
    """What a page holds of its images: ``image_id, position`` (from 1), ``n_bytes`` (of the embedded picture)."""
    found = _DATA.search(page)
    if not found:
        raise ValueError("page: expected a page of the Turing test, found no data in it; build it again.")
    items = json.loads(found[1])["items"]
    rows = [(item["id"], i + 1, len(item["src"])) for i, item in enumerate(items)]
    return pd.DataFrame(rows, columns=["image_id", "position", "n_bytes"])


# ---------------------------------------------------------------- does anything but the picture tell?


def separation(page: str, images: np.ndarray, items: pd.DataFrame) -> pd.DataFrame:
    """How well single numbers tell real from synthetic: those of the file, and the plainest ones of the pictures.

    Takes a page from `build`, its images (n, S, S) uint8 and items (``image_id, is_real``, row i for image i). Columns
    ``cue, of`` (file or picture), ``auc`` (0.5: does not tell; 0 and 1: tells all), ``p`` (two-sided Mann-Whitney test
    against 0.5, over the images of this set; not corrected for the number of cues).

    A cue of the file must not separate. A cue of the pictures may: it is a flaw of the generator that raters can use
    without any medicine, and worth knowing before they sit down.
    """
    table = page_items(page).merge(items[["image_id", "is_real"]], on="image_id", validate="one_to_one")
    real = table["is_real"].to_numpy()
    as_float = images.astype(np.float64)
    laplacian = np.diff(as_float, 2, axis=1)[:, :, 1:-1] + np.diff(as_float, 2, axis=2)[:, 1:-1]
    cues = {
        ("file", "bytes of the embedded picture"): table["n_bytes"],
        ("file", "position in the order"): table["position"],
        ("file", "id read as a number"): table["image_id"].str[1:].map(lambda digits: int(digits, 16)),
        ("picture", "mean grey level"): as_float.mean((1, 2)),
        ("picture", "share of black pixels"): (images == 0).mean((1, 2)),
        ("picture", "contrast (SD of grey levels)"): as_float.std((1, 2)),
        ("picture", "sharpness (SD of the Laplacian)"): laplacian.std((1, 2)),
        ("picture", "grey levels in use"): [len(np.unique(image)) for image in images],
        ("picture", "bytes when compressed"): [len(zlib.compress(image.tobytes())) for image in images],
    }
    rows = [(cue, of, *_separates(real, np.asarray(values, dtype=float))) for (of, cue), values in cues.items()]
    return pd.DataFrame(rows, columns=["cue", "of", "auc", "p"])


def _separates(real: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    if np.ptp(values) == 0:
        return 0.5, 1.0
    test = scipy_stats.mannwhitneyu(values[real == 1], values[real == 0])
    return statistics.auc(real, values), float(test.pvalue)
