"""One DICOM file to one grey image, with the grey levels that its tags give.

Contract: stored values become those of the modality (slope and intercept, or a table), then those shown (a window, or a
table), then 0..255 over the range that the tags state: the window's, the table's, or that of the bits stored; else over
the picture's own. Padding becomes black. A tag that is empty, or zero where zero has no meaning, counts as absent; one
that contradicts another or cannot be read is named in an `ImageFault`. Source: DICOM PS3.3, C.7.6.3, C.7.5.1.1.2,
C.11.1 and C.11.2.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nafld_utils.images.grey_levels import Header, ImageFault, Picture, blackened, checked, luminance, reason, scaled

REVISION = ("dicom_files", 2)
SUFFIXES = (".dcm", ".dicom", ".ima")
EXTRA = "install the extra: pip install -e '.[dicom]'"
SAVE, AGAIN = "correct the tag or save it as PNG", "get it again, it may be cut off"
SAID_BITS = 15  # choice: many programs declare 16 bits as stored whatever they write, which so says no range
GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
# Choice: of an inflated file, more than the largest image that is read needs in 16-bit colour.
MOST_BYTES = 2**29
MOST_ITEMS, ITEM_TAGS = 10_000, (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # choice: one image has hundreds at most
VIDEOS = ("MPEG", "HEVC", "H.26")
Span = tuple[float, float] | None  # of values


def is_dicom(path: Path, named: bool = False) -> bool:
    """Whether a file is DICOM, by the mark behind its preamble, by a first tag without, or else as its ending says.

    Where its first bytes are known as those of another kind, `named`, its ending does not count.
    """
    with open(path, "rb") as handle:
        start = handle.read(132)
    if start[128:] == b"DICM" or re.match(rb"[\x02\x08]\0.\0", start, re.DOTALL):
        return True
    return path.suffix.lower() in SUFFIXES and not named


def dataset(path: Path, **options: Any) -> Any:
    """The tags of a file as pydicom reads them."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ImageFault(f"expected pydicom to read a DICOM file, found it not installed; {EXTRA}") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # values of other tags that break the standard
            warnings.filterwarnings("error", ".*end of file.*")  # of a file cut off, pydicom would give no tag at all
            _refuse_bomb(path)
            try:
                return pydicom.dcmread(path, **options)
            except pydicom.errors.InvalidDicomError:  # of an old program, which wrote no preamble
                data = pydicom.dcmread(path, force=True, **options)
                if "Rows" not in data:
                    raise
            if "TransferSyntaxUID" not in data.file_meta:
                implicit, little = data.original_encoding
                big_or_little = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
                data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else big_or_little
            return data
    except ImageFault:
        raise
    except Exception as error:
        raise ImageFault(f"expected a DICOM file, found damaged content ({reason(error)}); {AGAIN}") from None


def _refuse_bomb(path: Path) -> None:
    """Refuse a file that inflates to more than `MOST_BYTES`, or of more items, before pydicom makes objects of them."""
    total, items, before = 0, 0, b""
    with open(path, "rb") as handle:
        for part in _plain_parts(handle):
            total += len(part)
            items += sum((before + part).count(tag) for tag in ITEM_TAGS)
            before = part[-3:]
            size = path.stat().st_size
            if total > max(MOST_BYTES, size):
                found = f"found {size} bytes that inflate to more; save it uncompressed"
                raise ImageFault(f"expected at most {MOST_BYTES >> 20} MiB, {found}")
            if items > MOST_ITEMS:
                raise ImageFault(f"expected at most {MOST_ITEMS:,} items of sequences, found more; save it as PNG")


def _plain_parts(handle: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file, inflated where it is deflated, in parts."""
    from pydicom import filereader, uid

    filereader.read_preamble(handle, force=True)
    about = filereader.read_dataset(handle, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if about.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        yield from iter(lambda: handle.read(2**20), b"")
        return
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    while not unpack.eof and (packed := unpack.unconsumed_tail or handle.read(2**16)):
        yield unpack.decompress(packed, 2**20)


def read_header(path: Path, command: str) -> Header:
    """Size of a DICOM image; `command` is what makes single images of a file that holds several."""
    data = dataset(path, stop_before_pixels=True)
    try:
        height, width = int(data.Rows), int(data.Columns)
        pages = int(data.get("NumberOfFrames") or 1)
    except (AttributeError, TypeError, ValueError):
        raise ImageFault(
            "expected a DICOM image, found no Rows and Columns; take a report or a directory out of the table, and get"
            " a file again that is cut off"
        ) from None
    if video := video_of(data):
        raise ImageFault(f"expected one image, found a video ({video}); make one file of each frame with {command}")
    burned_in = str(data.get("BurnedInAnnotation") or "").strip().upper() == "YES"  # PS3.3, C.7.6.1
    return Header(checked(height, width, pages, command), "DICOM", burned_in)


def video_of(data: Any) -> str:
    """Name of the transfer syntax where it is a video's, else nothing."""
    name = getattr(getattr(data, "file_meta", {}).get("TransferSyntaxUID", ""), "name", "")
    return name if any(word in name for word in VIDEOS) else ""


def read(path: Path) -> Picture:
    """The grey picture of a file that `read_header` has let through."""
    data = dataset(path)
    meaning = str(data.get("PhotometricInterpretation") or "").strip()
    if meaning not in (*GREY, *COLOUR, PALETTE):
        known = ", ".join((*GREY, *COLOUR, PALETTE))
        raise ImageFault(f"expected PhotometricInterpretation to be one of {known}, found {meaning or 'none'}; {SAVE}")
    said = {"format": f"DICOM {meaning}"}
    with warnings.catch_warnings(action="ignore"):
        values, bits, hidden = _stored(data, meaning)
        if meaning == PALETTE:
            values = _palette_colours(values, data)
        if meaning not in GREY:
            pixels, colour = luminance(values)
            return Picture(pixels, colour=colour, said=said)
        return _grey(values, bits, hidden, data, said)


# ---------------------------------------------------------------- stored values


def _stored(data: Any, meaning: str) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Values as stored, (H, W) or (H, W, 3); how many bits mean something, 0 of no integers; where padding is."""
    import pydicom.pixels

    usual = {"SamplesPerPixel": 3 if meaning in COLOUR else 1, "PlanarConfiguration": 0, "PixelRepresentation": 0}
    usual |= {"BitsStored": data.get("BitsAllocated"), "NumberOfFrames": 1}
    for name, value in usual.items():  # what is empty, absent or zero has its usual value
        if not data.get(name):
            setattr(data, name, value)
    try:
        values = np.asarray(pydicom.pixels.pixel_array(data, correct_unused_bits=False))
    except Exception as error:
        if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ImageFault("expected an image, found a DICOM file without pixels; take it out of the table") from None
        if fewer := re.search(r"less than expected \((\d+) vs (\d+) bytes\)", str(error)):
            raise ImageFault(f"expected {fewer[2]} bytes of pixels, found {fewer[1]}; {AGAIN}") from None
        found = f"expected pixels that pydicom can decode, found {reason(error)}"
        raise ImageFault(f"{found}; save it uncompressed or as PNG") from None
    if values.ndim != (3 if meaning in COLOUR else 2):
        raise ImageFault(f"expected one image of {meaning}, found an array of shape {values.shape}; {SAVE}")
    bits = int(data.BitsStored) if values.dtype.kind in "iu" else 0
    if not bits or meaning in COLOUR:
        return values, bits, None
    unused = values.dtype.itemsize * 8 - bits
    hidden = _padding(values, data)
    if hidden is not None and (values != (values << unused) >> unused)[hidden].any():  # it needs more than these bits
        return _unused_bits_off(np.where(hidden, 0, values).astype(values.dtype), bits, data), bits, hidden
    values = _unused_bits_off(values, bits, data)
    return values, bits, _padding(values, data)


def _unused_bits_off(values: np.ndarray, bits: int, data: Any) -> np.ndarray:
    """Values without what lies in the bits that are not stored: old overlays, or the sign; a fault where it is else."""
    unused = values.dtype.itemsize * 8 - bits
    kept = (values << unused) >> unused  # of signed ones, the sign goes with it
    rest = (values >> bits) if values.dtype.kind == "u" else np.where(kept == values, 0, values >> bits)
    if not rest.any():
        return kept
    shift = int(_number(data, "HighBit") or 0) + 1 - bits
    if 0 < shift <= unused and not (values & (2**shift - 1)).any():
        return _unused_bits_off(values >> shift, bits, data)
    if any(tag.elem == 0x0102 and 0x6000 <= tag.group < 0x6020 and data[tag].value for tag in data.keys()):  # noqa: SIM118
        return kept  # OverlayBitPosition
    raise ImageFault(f"expected values of {bits} bits (BitsStored), found {values.min()} to {values.max()}; {SAVE}")


def _padding(values: np.ndarray, data: Any) -> np.ndarray | None:
    """Where a picture is padding, (H, W) bool; None where it has none."""
    value = _number(data, "PixelPaddingValue")
    if value is None or values.dtype.kind == "f":
        return None
    limit = _number(data, "PixelPaddingRangeLimit")
    width = values.dtype.itemsize * 8
    ends = [int(end) for end in (value, value if limit is None else limit)]
    if min(ends) < -(2 ** (width - 1)) or max(ends) >= 2**width:  # no pixel can have it
        return None
    ends = [end % 2**width for end in ends]
    if values.dtype.kind == "i":  # may be written as if it were unsigned, and the other way round
        ends = [end - 2**width * (end >= 2 ** (width - 1)) for end in ends]
    padding = (values >= min(ends)) & (values <= max(ends))
    if padding.all():
        raise ImageFault(f"expected a picture, found nothing but PixelPaddingValue {value:g}; remove it or {SAVE}")
    return padding if padding.any() else None


# ---------------------------------------------------------------- grey levels


def _grey(values: np.ndarray, bits: int, hidden: np.ndarray | None, data: Any, said: dict[str, str]) -> Picture:
    """Grey levels of stored values of so many bits."""
    seen = np.ones(values.shape, dtype=bool) if hidden is None else ~hidden
    known = bits if bits <= SAID_BITS else 0
    values, span, rescale = _modality(values, _span(values, known), data)
    shown, shown_span, window = _shown(values, span, data)
    pixels = scaled(shown, shown_span, hidden)
    if window and pixels[seen].min() == pixels[seen].max() and np.ptp(values[seen]):
        found = f"found a {window} that shows one level of {values[seen].min():g} to {values[seen].max():g}"
        raise ImageFault(f"expected a window or a table that shows the picture, {found}; {SAVE}")
    if data.PhotometricInterpretation == "MONOCHROME1":  # low values are bright
        pixels = blackened(255 - pixels, hidden)
    levels = window or (f"{known} bits" if shown_span else "own darkest to brightest")
    padding = "none" if hidden is None else f"{_number(data, 'PixelPaddingValue'):g}"
    said |= {"bits": str(bits), "rescale": rescale, "levels": levels, "padding": padding}
    how = {"deep": bits > 8 or not bits, "own": shown_span is None, "hidden": hidden is not None}
    return Picture(pixels, **how, windowed=bool(window), said=said)


def _span(values: np.ndarray, bits: int) -> Span:
    """Darkest and brightest value that so many bits can hold; None where nothing says how many."""
    if not bits:
        return None
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if values.dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _shown(values: np.ndarray, span: Span, data: Any) -> tuple[np.ndarray, Span, str]:
    """Values as a table or a window shows them, their range, and which it was; as they are where there is none."""
    item = _first(data, "VOILUTSequence")
    if item is not None:
        return *_looked_up(values, item, "VOILUTSequence"), "table"
    window = _window(data)
    if window is None:
        return values, span, ""
    center, width, function = window
    return *_through(values, *window), f"window {center:g}/{width:g}" + f" {function}" * (function != "LINEAR")


def _modality(values: np.ndarray, span: Span, data: Any) -> tuple[np.ndarray, Span, str]:
    """Values in the unit of the modality, their range, and what was done."""
    item = _first(data, "ModalityLUTSequence")
    if item is not None:
        return *_looked_up(values, item, "ModalityLUTSequence"), "table"
    slope, intercept = _number(data, "RescaleSlope"), _number(data, "RescaleIntercept") or 0.0
    slope, intercept = (1.0 if slope is None else slope), (0.0 if slope == 0 else intercept)
    slope = slope or 1.0
    if span is not None:
        low, high = sorted(slope * end + intercept for end in span)
        span = (low, high)
    return values * slope + intercept, span, f"{slope:g}, {intercept:g}"


def _window(data: Any) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None where there is none that shows more than two levels."""
    center, width = _number(data, "WindowCenter"), _number(data, "WindowWidth")
    function = str(_found(data, "VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageFault(f"expected VOILUTFunction to be LINEAR, LINEAR_EXACT or SIGMOID, found {function}; {SAVE}")
    if center is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return None
    return center, width, function


def _through(values: np.ndarray, center: float, width: float, function: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Values as a window shows them, and the range of what it shows (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))), (0.0, 1.0)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return values, (center - width / 2, center + width / 2)


def _looked_up(values: np.ndarray, item: Any, name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Entries of a table of the values, and the range of its entries; beyond its ends the nearest entry."""
    try:
        entries, first, bits = (int(value) for value in item.LUTDescriptor)
        entries, first = entries or 2**16, first - 2**16 * (first >= 2**15 and values.min() < 0)
        table = item.LUTData
        if isinstance(table, bytes):
            table = np.frombuffer(table, np.uint8 if len(table) < 2 * entries else np.uint16)
        table = np.asarray(table).astype(np.uint16)[:entries]
        assert len(table) == entries, f"{len(table)} entries of {entries}"
        assert bits in range(8, 17), f"{bits} bits"
    except Exception as error:
        raise ImageFault(f"expected a table in {name}, found {reason(error)}; {SAVE}") from None
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return table[places], (0.0, 2.0**bits - 1 if bits <= SAID_BITS else float(table.max()))


# ---------------------------------------------------------------- tags


def _places(data: Any) -> list[Any]:
    """Where a tag of the one frame may stand: the file's own tags, or groups of the newer, enhanced kinds of file."""
    places = [data]
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (data.get(groups) or [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                places += (group.get(name) or [])[:1]
    return places


def _found(data: Any, name: str) -> Any:
    """Value of a tag; of a list the first; None where it is absent or empty."""
    for place in _places(data):
        try:
            value = place.get(name)
        except Exception as error:
            raise ImageFault(f"expected {name} that can be read, found {reason(error)}; {SAVE}") from None
        value = value if isinstance(value, str | bytes) or not isinstance(value, Sequence) else next(iter(value), None)
        if value is not None and str(value).strip():
            return value
    return None


def _number(data: Any, name: str) -> float | None:
    value = _found(data, name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = np.nan
    if number is not None and not np.isfinite(number):
        raise ImageFault(f"expected a number in {name}, found {str(value)[:40]}; {SAVE}")
    return number


def _first(data: Any, name: str) -> Any:
    """First item of a sequence, None where there is none."""
    return next((item for place in _places(data) for item in place.get(name) or []), None)


def _palette_colours(indices: np.ndarray, data: Any) -> np.ndarray:
    """Colours (H, W, 3) uint8 of palette indices; entries of 16 bits are scaled from 0..65535."""
    import pydicom.pixels

    try:
        entries, first, bits = (int(value) for value in data.RedPaletteColorLookupTableDescriptor)
        last = first + (entries or 2**16) - 1
        indices = np.clip(indices.astype(np.int32), first, last)  # outside they take the nearest entry
        colours = pydicom.pixels.apply_color_lut(indices, data)[..., :3]  # without transparency
    except Exception as error:
        raise ImageFault(f"expected the colours of a palette, found {reason(error)}; save it as RGB") from None
    if indices.max() - first > np.iinfo(colours.dtype).max:  # pydicom's index would run over
        raise ImageFault(f"expected a palette of at most 256 colours of 8 bits, found {entries}; save it as RGB")
    return colours.astype(np.uint8) if bits <= 8 else np.round(colours / 257).astype(np.uint8)
