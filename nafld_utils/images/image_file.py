"""One image file to one grey image: PNG, JPEG, TIFF, and DICOM where pydicom is installed; bounded, and never trusted.

Contract: size and kind are read from the header first, and a file beyond the limits is refused before its pixels are
decoded. A fault raises `ImageFault` with a phrase that says what was expected and what was found; the caller names the
file and the row.

Choice: the study works on one grey channel. A picture in colour becomes its luminance (ITU-R 601: 0.299 red + 0.587
green + 0.114 blue), and a picture of more than 8 bits is scaled from its own darkest and brightest pixel to 0..255,
since files of 10, 12 and 16 bits do not say where their white is. Both are counted, and reports say so. What would come
out otherwise than it was meant, colour of more than 8 bits a channel for one, is refused with what to save instead.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REVISION = ("image_files", 2)
FORMATS = ("PNG", "JPEG", "TIFF")  # for Pillow, whose JPEG reader gives MPO too: of phones, with a second picture
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_BYTES = 256 * 2**20  # of a file (choice)
MAX_PIXELS = 50_000_000  # of an image (choice): 7000 x 7000, more than any radiograph
MIN_SIDE = 8  # pixels (choice): below it there is nothing to crop
EXTRA = "install the extra: pip install -e '.[dicom]'"


# How files begin that are often taken for images that are read; "." stands for any byte.
_OTHERS = {
    "a BMP image": (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",),
    "a GIF image": (rb"GIF8[79]a",),
    "a JPEG 2000 image": (rb"\0\0\0\x0cjP  \r\n\x87\n", rb"\xff\x4f\xff\x51"),
    "a JPEG XL image": (rb"\0\0\0\x0cJXL \r\n\x87\n", rb"\xff\x0a"),
    "a WebP image": (rb"RIFF.{4}WEBP",),
    "a HEIC image": (rb".{4}ftyp(?:heic|heix|hevc|mif1|msf1)",),
    "an AVIF image": (rb".{4}ftypavi[fs]",),
    "a Photoshop image": (rb"8BPS\0",),
    "a PNM image": (rb"P[1-7]\s",),
    "a PDF document": (rb"%PDF-",),
}
_OURS = {
    "PNG": (rb"\x89PNG\r\n\x1a\n",),
    "JPEG": (rb"\xff\xd8\xff",),
    "TIFF": (rb"II[\x2a\x2b]\0", rb"MM\0[\x2a\x2b]"),
}


class ImageFault(ValueError):
    """A file that is no usable image; the message is a phrase without the file's name."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself: ``shape`` (height, width) after turning, ``kind`` PNG, JPEG, TIFF or DICOM."""

    shape: tuple[int, int]
    kind: str


@dataclass(frozen=True)
class Picture:
    """A decoded image: grey ``pixels`` (H, W) uint8, and whether they were converted.

    ``colour``: from colour; ``deep``: scaled from more than 8 bits; ``turned``: as its EXIF entry says.
    """

    pixels: np.ndarray
    colour: bool = False
    deep: bool = False
    turned: bool = False


def read_header(path: Path) -> Header:
    """Size and kind of an image file; one that is refused (`ImageFault`) is not decoded."""
    if not path.is_file():
        raise ImageFault("expected an image file, found none of that name")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ImageFault(f"expected at most {MAX_BYTES >> 20} MiB, found {size >> 20} MiB")
    if is_dicom(path):
        return _dicom_header(path)
    with _opened(path) as picture:
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        pages = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
        height, width = _checked(picture.height, picture.width, pages)
        _refuse_misread(picture)
        # last, since it decodes a PNG, whose entry may lie behind its pixels
        if _orientation(picture) in (5, 6, 7, 8):
            height, width = width, height
    return Header((height, width), kind)


def read(path: Path) -> Picture:
    """Decode an image file to grey levels; `ImageFault` as `read_header`, or where the pixels cannot be decoded."""
    header = read_header(path)
    try:
        found = _read_dicom(path) if header.kind == "DICOM" else _read_picture(path)
    except ImageFault:
        raise
    except Exception as error:  # decoders raise a dozen kinds, none of which names the file
        raise ImageFault(f"expected an image, found damaged content ({_reason(error)})") from None
    if found.pixels.shape != header.shape:
        raise ImageFault(f"expected {_size(header.shape)} pixels as its header says, found {_size(found.pixels.shape)}")
    return found


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its ending or the mark behind its preamble."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with open(path, "rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def _checked(height: int, width: int, pages: int) -> tuple[int, int]:
    if pages != 1:
        raise ImageFault(f"expected one image in a file, found {pages}; write each to a file of its own")
    if height * width > MAX_PIXELS:
        raise ImageFault(f"expected at most {MAX_PIXELS:,} pixels, found {width} x {height}; scale it down")
    if min(height, width) < MIN_SIDE:
        raise ImageFault(f"expected at least {MIN_SIDE} x {MIN_SIDE} pixels, found {width} x {height}")
    return height, width


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[::-1])


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


# ---------------------------------------------------------------- PNG, JPEG, TIFF


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        # `_checked` has a lower limit
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageFault(f"expected at most {MAX_PIXELS:,} pixels, found far more in its header") from None
    except Exception as error:
        found = _found(path) + ("" if "cannot identify" in str(error) else f" ({_reason(error)})")
        raise ImageFault(f"expected a PNG, JPEG, TIFF or DICOM image, found {found}") from None


def _found(path: Path) -> str:
    """What a file that Pillow does not open is, by its first bytes, and what to do."""
    with open(path, "rb") as handle:
        head = handle.read(32)
    if not head:
        return "an empty file"

    def begins(patterns: tuple[bytes, ...]) -> bool:
        return any(re.match(pattern, head, re.DOTALL) for pattern in patterns)

    for name, patterns in _OTHERS.items():
        if begins(patterns):
            return f"{name}; save it as PNG"
    for name, patterns in _OURS.items():
        if begins(patterns):
            kinds = "" if name == "PNG" else " or of a kind that is not read; save it as PNG"
            return f"a {name} image that is damaged{kinds}"
    return "content of another kind, or damaged"


def _orientation(picture: Any) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF entry is no reason to refuse the picture
        return 1


def _refuse_misread(picture: Any) -> None:
    """Refuse what Pillow opens and then decodes otherwise than it was meant."""
    bits, signed = 8, False
    if picture.format == "PNG" and not picture.mode.startswith("I"):  # 16-bit grey comes whole
        bits = 16 if any(";16" in str(tile.args) for tile in picture.tile) else 8
    elif picture.format == "TIFF":
        stored = picture.tag_v2.get(258, (1,))  # BitsPerSample, one per channel
        bits = max(stored) if len(stored) > 1 else 8
        signed = max(stored) <= 8 and 2 in picture.tag_v2.get(339, (1,))  # SampleFormat
    if bits > 8:
        raise ImageFault(
            f"expected at most 8 bits a channel with colour or transparency, found {bits}; save it as 8-bit colour or"
            " as 16-bit grey"
        )
    if signed:
        raise ImageFault("expected grey levels from 0, found signed 8-bit values; save it as unsigned 8-bit grey")


def _read_picture(path: Path) -> Picture:
    from PIL import Image, ImageOps

    # oddities of metadata are ignored; what cannot be decoded raises
    with warnings.catch_warnings(action="ignore"), _opened(path) as opened:
        turned = _orientation(opened) not in (0, 1)
        picture = ImageOps.exif_transpose(opened) if turned else opened
        picture.load()
        if picture.mode.startswith(("I", "F")):
            pixels = _scaled(np.asarray(picture))
            # low values are bright; Pillow inverts those of 8 bits itself
            if opened.format == "TIFF" and opened.tag_v2.get(262) == 0:
                pixels = 255 - pixels
            return Picture(pixels, deep=True, turned=turned)
        if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            transparent = picture.mode == "PA" or "transparency" in picture.info
            picture = picture.convert("RGBA" if transparent else "RGB")
        if picture.mode in ("RGBA", "LA", "La", "RGBa"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
        colour = picture.mode == "RGB" and _has_colour(np.asarray(picture))
        return Picture(np.array(picture.convert("L"), dtype=np.uint8), colour=colour, turned=turned)


def _has_colour(rgb: np.ndarray) -> bool:
    """Whether the channels differ anywhere; many grey images are stored as three equal channels."""
    return bool((rgb[..., 0] != rgb[..., 1]).any() or (rgb[..., 1] != rgb[..., 2]).any())


def _scaled(values: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 from the image's own darkest and brightest value; a constant image stays constant."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageFault("expected finite grey levels, found NaN or infinity")
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return np.round((values - low) * (255 / (high - low))).astype(np.uint8)


# ---------------------------------------------------------------- DICOM


def _dicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ImageFault(f"expected pydicom to read a DICOM file, found it not installed; {EXTRA}") from None
    return pydicom


def _dataset(path: Path, **options: Any) -> Any:
    pydicom = _dicom()
    try:
        with warnings.catch_warnings(action="ignore"):  # values of other tags that break the standard
            return pydicom.dcmread(path, **options)
    except Exception as error:
        raise ImageFault(f"expected a DICOM file, found damaged content ({_reason(error)})") from None


def _dicom_header(path: Path) -> Header:
    data = _dataset(path, stop_before_pixels=True)
    try:
        height, width = int(data.Rows), int(data.Columns)
        pages = int(data.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError):
        raise ImageFault(
            "expected a DICOM image, found no Rows and Columns; it may be a report or a directory"
        ) from None
    return Header(_checked(height, width, pages), "DICOM")


def _read_dicom(path: Path) -> Picture:
    pydicom, data = _dicom(), _dataset(path)
    meaning = str(data.get("PhotometricInterpretation", "")).strip()
    with warnings.catch_warnings(action="ignore"):
        try:
            values = pydicom.pixels.pixel_array(data)
        except Exception as error:
            found = f"expected pixels that pydicom can decode, found {_reason(error)}"
            raise ImageFault(f"{found}; save it uncompressed or as PNG") from None
        if meaning == "PALETTE COLOR" and values.ndim == 2:
            values = _palette_colours(values, data)
        if values.ndim == 3:
            return Picture(*_luminance(values))
        if values.ndim != 2:
            raise ImageFault(f"expected one image, found an array of shape {values.shape}")
        stored = int(data.get("BitsStored") or 16)
        values = pydicom.pixels.apply_modality_lut(values, data)
        windowed = pydicom.pixels.apply_voi_lut(values, data)
    plain = stored <= 8 and windowed.dtype == np.uint8 and windowed is values
    pixels = np.array(windowed, dtype=np.uint8) if plain else _scaled(windowed)
    if meaning == "MONOCHROME1":  # low values are bright
        pixels = 255 - pixels
    return Picture(pixels, deep=not plain)


def _palette_colours(indices: np.ndarray, data: Any) -> np.ndarray:
    """Colours (H, W, 3) uint8 of palette indices; entries of 16 bits are scaled from 0..65535."""
    import pydicom.pixels

    try:
        entries, first, bits = (int(value) for value in data.RedPaletteColorLookupTableDescriptor)
        last = first + (entries or 2**16) - 1
        indices = np.clip(indices.astype(np.int32), first, last)  # outside they take the nearest entry
        colours = pydicom.pixels.apply_color_lut(indices, data)[..., :3]  # without transparency
    except Exception as error:
        raise ImageFault(f"expected the colours of a palette, found {_reason(error)}; save it as RGB") from None
    if indices.max() - first > np.iinfo(colours.dtype).max:  # pydicom's index would run over
        raise ImageFault(f"expected a palette of at most 256 colours of 8 bits, found {entries}; save it as RGB")
    return colours.astype(np.uint8) if bits <= 8 else np.round(colours / 257).astype(np.uint8)


def _luminance(rgb: np.ndarray) -> tuple[np.ndarray, bool]:
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.shape[2] != 3:
        raise ImageFault(f"expected 8-bit colour of three channels, found {rgb.dtype} of shape {rgb.shape}; save it so")
    return np.array(Image.fromarray(rgb).convert("L"), dtype=np.uint8), _has_colour(rgb)
