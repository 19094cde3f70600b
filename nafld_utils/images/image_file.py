"""One image file to one grey image: PNG, JPEG, TIFF, and DICOM where pydicom is installed; bounded, and never trusted.

Contract: size and kind are read from the header first, and a file beyond the limits is refused before its pixels are
decoded. A fault raises `ImageFault` with a phrase that says what was expected and what was found; the caller names the
file and the row.

Choice: the study works on one grey channel. A picture in colour becomes its luminance (ITU-R 601: 0.299 red + 0.587
green + 0.114 blue), and what is transparent becomes black. A DICOM file has the grey levels that its tags give
(`dicom_file`). A PNG or TIFF of more than 8 bits is scaled from its own darkest and brightest pixel to 0..255, since it
does not say where its white is; but a TIFF of 12 bits, one with tags of its least and greatest value, and a PNG with a
chunk sBIT, whose white is 65535, do. All are counted, and reports say so. What would come out otherwise than it was
meant, colour of more than 8 bits a channel for one, is refused with what to save instead.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils import artifacts
from nafld_utils.images import dicom_file
from nafld_utils.images.grey_levels import (
    MAX_PIXELS,
    Header,
    ImageFault,
    Picture,
    blackened,
    checked,
    luminance,
    reason,
    scaled,
)

REVISION = ("image_files", 4)
FORMATS = ("PNG", "JPEG", "TIFF")  # for Pillow, whose JPEG reader gives MPO too: of phones, with a second picture
MAX_BYTES = 256 * 2**20  # of a file (choice)
FRAMES = "python -m nafld_utils.images.frames"
UNKNOWN = "content of another kind, or damaged; save it as PNG or get it again"
VIDEO = "make one PNG file of each frame with ffmpeg -i"


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
    "a NIfTI volume": (rb"\x5c\x01\0\0", rb"\0\0\x01\x5c", rb"\x1c\x02\0\0", rb"\0\0\x02\x1c"),
    "an NRRD volume": (rb"NRRD0",),
    "a MetaImage volume": (rb"ObjectType\s*=",),
    "a NumPy array": (rb"\x93NUMPY",),
    "an HDF5 file": (rb"\x89HDF\r\n",),
}
_VIDEOS = {
    "an AVI video": (rb"RIFF.{4}AVI ",),
    "an MP4 or QuickTime video": (rb".{4}(?:ftyp|moov|mdat|wide|free)",),
    "a Matroska or WebM video": (rb"\x1aE\xdf\xa3",),
    "an MPEG video": (rb"\0\0\x01[\xba\xb3]",),
    "a Windows Media video": (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",),
    "an Ogg video": (rb"OggS",),
}
_OURS = {
    "PNG": (rb"\x89PNG\r\n\x1a\n",),
    "JPEG": (rb"\xff\xd8\xff",),
    "TIFF": (rb"II[\x2a\x2b]\0", rb"MM\0[\x2a\x2b]"),
}


def read_header(path: Path) -> Header:
    """Size and kind of an image file; one that is refused (`ImageFault`) is not decoded."""
    if not path.is_file():
        raise ImageFault("expected an image file, found none of that name")
    size, command = path.stat().st_size, f"{FRAMES} {shlex.quote(str(path))}"
    if size > MAX_BYTES:
        several = f"scale it down or, where it holds several, make one file of each with {command}"
        raise ImageFault(f"expected at most {MAX_BYTES >> 20} MiB, found {size >> 20} MiB; {several}")
    if dicom_file.is_dicom(path, named=_found(path) != UNKNOWN):
        return dicom_file.read_header(path, command)
    with _opened(path) as picture:
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)
        pages = 1 if picture.format == "MPO" else _pages(picture)
        height, width = checked(picture.height, picture.width, pages, command)
        _refuse_misread(picture)
        # last, since it decodes a PNG, whose entry may lie behind its pixels; Pillow's size of a TIFF is turned already
        # where its own entry says so, but not where its XMP does
        lying = (5, 6, 7, 8)
        if _orientation(picture) in lying and getattr(picture, "tag_v2", {}).get(0x0112) not in lying:
            height, width = width, height
    return Header((height, width), kind)


def read(path: Path) -> Picture:
    """Decode an image file to grey levels; `ImageFault` as `read_header`, or where the pixels cannot be decoded."""
    header = read_header(path)
    try:
        found = dicom_file.read(path) if header.kind == "DICOM" else _read_picture(path)
    except ImageFault:
        raise
    except Exception as error:  # decoders raise a dozen kinds, none of which names the file
        raise ImageFault(f"expected an image, found damaged content ({reason(error)}); get it again") from None
    if found.pixels.shape != header.shape:
        raise ImageFault(f"expected {_size(header.shape)} pixels as its header says, found {_size(found.pixels.shape)}")
    return found


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape[::-1])


# ---------------------------------------------------------------- PNG, JPEG, TIFF


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The picture of a file; by a handle, since Pillow maps what it opens by name, and then turns it wrongly."""
    from PIL import Image

    with open(path, "rb") as handle:
        try:
            # `checked` has a lower limit
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                picture = Image.open(handle, formats=FORMATS)
        except Image.DecompressionBombError:
            raise ImageFault(f"expected at most {MAX_PIXELS:,} pixels, found far more in its header") from None
        except Exception as error:
            found = _found(path) + ("" if "cannot identify" in str(error) else f" ({reason(error)})")
            raise ImageFault(f"expected a PNG, JPEG, TIFF or DICOM image, found {found}") from None
        yield picture


def _found(path: Path) -> str:
    """What a file that Pillow does not open is, by its first bytes, and what to do."""
    with open(path, "rb") as handle:
        head = handle.read(512)
    if not head:
        return "an empty file; get it again"
    packed = head.startswith(b"\x1f\x8b")
    with contextlib.suppress(zlib.error):
        head = zlib.decompressobj(31).decompress(head, 512) if packed else head

    def named(kinds: dict[str, tuple[bytes, ...]]) -> str | None:
        begins = (n for n, patterns in kinds.items() if any(re.match(p, head, re.DOTALL) for p in patterns))
        return next(begins, None)

    place = shlex.quote(str(path))
    if name := named(_OTHERS):
        if name in ("a GIF image", "a WebP image") and (pages := _count(path)) > 1:
            return f"{name} of {pages} frames; make one file of each with {FRAMES} {place}"
        how = " packed by gzip" * packed
        return f"{name}{how}; save {'the slice that counts' if 'volume' in name else 'it'} as PNG"
    if packed:
        return "a gzip archive; unpack it"
    if name := named(_VIDEOS):
        return f"{name}; {VIDEO} {place} {shlex.quote(str(path.with_suffix('')))}_%04d.png"
    if name := named(_OURS):
        kinds = "; get it again" if name == "PNG" else " or of a kind that is not read; save it as PNG"
        return f"a {name} image that is damaged{kinds}"
    return artifacts.file_kind(head) or UNKNOWN


def _count(path: Path) -> int:
    """Frames of a file in any format of Pillow; 1 where it cannot tell."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:
        return 1


def _pages(picture: Any) -> int:
    """Images in a file; ImageJ writes those of a large stack behind one page, and its description counts them."""
    pages = int(getattr(picture, "n_frames", 1))
    if picture.format == "TIFF":
        told = re.match(r"ImageJ=[^\n]*\nimages=(\d+)", str(picture.tag_v2.get(270, "")))
        pages = max(pages, int(told[1]) if told else 1, int(picture.tag_v2.get(32997, 1)))  # ImageDepth
    return pages


def _orientation(picture: Any) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF entry is no reason to refuse the picture
        return 1


def _refuse_misread(picture: Any) -> None:
    """Refuse what Pillow opens and then decodes otherwise than it was meant."""
    bits = 8
    if picture.format == "PNG" and not picture.mode.startswith("I"):  # 16-bit grey comes whole
        bits = 16 if any(";16" in str(tile.args) for tile in picture.tile) else 8
    elif picture.format == "TIFF":
        stored = picture.tag_v2.get(258, (1,))  # BitsPerSample, one per channel
        bits = max(stored) if len(stored) > 1 else 8
    if bits > 8:
        raise ImageFault(
            f"expected at most 8 bits a channel with colour or transparency, found {bits}; save it as 8-bit colour or"
            " as 16-bit grey"
        )
    if picture.format == "TIFF":
        _refuse_misread_tiff(picture.tag_v2, max(stored))


def _refuse_misread_tiff(tags: Any, bits: int) -> None:
    meaning, extra = tags.get(262), tags.get(338, ())  # PhotometricInterpretation, ExtraSamples
    if bits <= 8 and 2 in tags.get(339, (1,)):  # SampleFormat
        raise ImageFault("expected grey levels from 0, found signed 8-bit values; save it as unsigned 8-bit grey")
    if meaning is None:
        raise ImageFault("expected a tag PhotometricInterpretation (262) that says which value is black, found none;"
                         " save it as PNG")  # fmt: skip
    if meaning in (0, 1) and 0 in extra:
        raise ImageFault(f"expected one grey channel, found {1 + len(extra)}; save the one that counts as PNG")
    if meaning == 3 and 0 < max(tags.get(320, (0,))) < 256:  # ColorMap, of which 65535 is white
        raise ImageFault("expected a palette of 16 bits, found one of 8, whose colours would be black; save it as PNG")
    if meaning == 8:
        raise ImageFault("expected grey, RGB, a palette, YCbCr or CMYK, found CIE L*a*b* colour; save it as RGB")


def _read_picture(path: Path) -> Picture:
    from PIL import ImageOps

    # oddities of metadata are ignored; what cannot be decoded raises
    with warnings.catch_warnings(action="ignore"), _opened(path) as opened:
        mode, tags = opened.mode, dict(getattr(opened, "tag_v2", {}))
        depth = {"L;2": 2, "L;4": 4}.get(str(opened.tile[0].args), 8) if opened.format == "PNG" else 8
        turn, deep_white = _orientation(opened), opened.format == "PNG" and _has_sbit(path)
        opened.load()  # turns a TIFF
        picture, hidden = _flat(opened if opened.format == "TIFF" else ImageOps.exif_transpose(opened), depth)
        how = {"turned": turn in range(2, 9), "hidden": hidden is not None and bool(hidden.any())}
        said = {"format": "JPEG" if opened.format == "MPO" else str(opened.format), "mode": mode}
        said |= {"orientation": str(turn), "transparent": _yes(how["hidden"])}
        said |= {"gamma": f"{opened.info.get('gamma') or 0:g}", "profile": _yes("icc_profile" in opened.info)}
        if mode.startswith(("I", "F")):
            values, span = _deep(np.asarray(picture), tags, deep_white)
            pixels = scaled(values, span, hidden)
            # low values are bright; Pillow inverts those of 8 bits itself
            if tags.get(262) == 0:
                pixels = blackened(255 - pixels, hidden)
            known = "12 bits" if span == (0, 4095) else f"stated {span[0]:g} to {span[1]:g}" if span else ""
            said["levels"] = known or "own darkest to brightest"
            return Picture(pixels, deep=True, own=span is None, said=said, **how)
        if picture.mode in ("1", "L"):
            return Picture(blackened(np.array(picture.convert("L")), hidden), said=said, **how)
        pixels, colour = luminance(np.asarray(picture.convert("RGB")))
        return Picture(blackened(pixels, hidden), colour=colour, said={**said, "colour": _yes(colour)}, **how)


def _flat(picture: Any, depth: int) -> tuple[Any, np.ndarray | None]:
    """A picture before black, and where it is transparent, (H, W) bool; `depth`: bits of its grey before Pillow."""
    from PIL import Image

    key = picture.info.get("transparency")
    if picture.mode == "La":  # grey already times its opacity, which Pillow turns into no colour
        picture = picture.convert("LA")
    if picture.mode in ("RGBA", "LA", "RGBa", "PA") or (picture.mode == "P" and key is not None):
        picture = picture.convert("RGBA")
        hidden = np.asarray(picture)[..., 3] == 0
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB"), hidden
    if key is None:
        return picture, None
    if picture.mode == "L":  # the key is as stored, the pixels are brought to 8 bits
        key = int(key) * 255 // (2**depth - 1)
    values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    return picture, np.reshape(values == np.asarray(key), (*values.shape[:2], -1)).all(axis=-1)


def _deep(values: np.ndarray, tags: dict[int, Any], deep_white: bool) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Grey levels of more than 8 bits as they are meant, and their range where a file says it."""
    if tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):  # BitsPerSample, SampleFormat: Pillow reads them signed
        values = values.view(np.uint32)
    if deep_white:
        return values, (0.0, 65535.0)
    span = (0.0, 4095.0) if tags.get(258) == (12,) else None
    for least, greatest in ((340, 341), (280, 281)):  # SMinSampleValue and SMaxSampleValue, then those of integers
        if span is None and greatest in tags:
            low, high = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (least, greatest))
            whole = values.dtype.kind in "iu" and high in (2**16 - 1, 2**32 - 1)  # all that the type can hold
            span = None if whole else (low, high)
    if span and not (span[0] < span[1] and span[0] <= values.min() and values.max() <= span[1]):
        found = f"{values.min():g} to {values.max():g}"
        raise ImageFault(
            f"expected values of {span[0]:g} to {span[1]:g} as its tags say, found {found}; save it as PNG"
        )
    return values, span


def _has_sbit(path: Path) -> bool:
    """Whether a PNG says how many bits of its pixels mean something, so that white is 65535 (PNG, 11.3.2.7)."""
    with open(path, "rb") as handle:
        return b"\0\0\0\1sBIT" in handle.read(4096).partition(b"IDAT")[0]


def _yes(what: object) -> str:
    return "yes" if what else "no"
