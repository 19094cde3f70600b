"""Orientation, transparency, channels and depth of PNG, JPEG and TIFF files, and files that hold several images."""

import re
import shlex
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nafld_utils import images
from nafld_utils.images import frames

GREY = np.zeros((24, 32), np.uint8)
GREY[5:9, 8:24] = 200
GREY[:, 0] = 255
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
UPRIGHT = {  # TIFF 6.0, page 36: what lies in the first row and column
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 1),
}


def fault(path):
    with pytest.raises(images.ImageFault) as caught:
        images.read(path)
    return str(caught.value)


def kinds_of_tiff():
    deep = {"grey16": GREY.astype(np.uint16) * 257, "float": GREY.astype(np.float32)}
    grey = {"plain": {}, "lzw": {"compression": "tiff_lzw"}, "strips": {"compression": "raw", "rows": 4}}
    colour = {"rgb": "RGB", "rgba": "RGBA", "cmyk": "CMYK", "palette": "P"}
    return [
        *((name, Image.fromarray(GREY), options) for name, options in grey.items()),
        *((name, Image.fromarray(values), {}) for name, values in deep.items()),
        *((name, Image.fromarray(RGB).convert(mode), {}) for name, mode in colour.items()),
        ("bits", Image.fromarray(GREY > 99), {}),
    ]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_tiff_is_turned_as_its_entry_says(tmp_path, orientation):
    for name, picture, options in kinds_of_tiff():
        plain, turned = tmp_path / f"{name}.tif", tmp_path / f"{name}{orientation}.tif"
        tags = {278: options["rows"]} if "rows" in options else {}
        options = {key: value for key, value in options.items() if key != "rows"}
        picture.save(plain, tiffinfo=tags, **options)
        picture.save(turned, tiffinfo={**tags, 274: orientation}, **options)
        expected = UPRIGHT[orientation](images.read(plain).pixels)
        found = images.read(turned)
        assert images.read_header(turned).shape == expected.shape, name
        assert (found.pixels == expected).all(), name
        assert found.turned == (orientation > 1)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG"])
def test_an_orientation_that_stands_in_xmp_alone_is_followed(tmp_path, kind):
    name = "http://ns.adobe.com/tiff/1.0/"
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" xmlns:tiff="{name}"/></x:xmpmeta>'
    options = {"TIFF": {"tiffinfo": {700: xmp.encode()}}, "JPEG": {"xmp": xmp.encode()}, "PNG": {"pnginfo": PngInfo()}}
    options["PNG"]["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(GREY).save(tmp_path / "a", kind, **options[kind])
    found = images.read(tmp_path / "a")
    assert found.turned
    assert np.abs(found.pixels.astype(int) - UPRIGHT[6](GREY)).max() < 20


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, orientation):
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    assert (images.read(tmp_path / "a.tif").pixels == GREY).all()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_of_phones_are_turned_as_their_entry_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(tmp_path / f"plain.{suffix}")
    Image.fromarray(GREY).save(tmp_path / f"turned.{suffix}", exif=exif)
    found = images.read(tmp_path / f"turned.{suffix}").pixels
    assert (found == UPRIGHT[orientation](images.read(tmp_path / f"plain.{suffix}").pixels)).all()


@pytest.mark.parametrize(
    "options", [{}, {"tile": (16, 16)}, {"byteorder": ">"}, {"compression": "zlib"}, {"bigtiff": True}]
)
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colours_of_tiff_are_read_however_they_lie(tmp_path, options, planes):
    values = RGB if planes == "contig" else np.moveaxis(RGB, -1, 0).copy()
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planes, **options)
    found = images.read(tmp_path / "a.tif")
    assert found.colour
    assert (found.pixels == np.asarray(Image.fromarray(RGB).convert("L"))).all()


# ---------------------------------------------------------------- transparency


def test_the_same_picture_is_the_same_however_its_transparency_is_written(tmp_path):
    grey = np.full((24, 32), 85, np.uint8)  # a level that 2, 4, 8 and 16 bits have
    grey[4:20, 6:26], grey[:3] = 170, 255
    rgb, alpha = np.stack([grey] * 3, -1), np.where(grey == 255, 0, 255).astype(np.uint8)
    expected = np.where(grey == 255, 0, grey)
    palette = Image.fromarray(grey).convert("P")
    written = {
        "rgba": (Image.fromarray(np.dstack([rgb, alpha])), {}),
        "la": (Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), {}),
        "grey": (Image.fromarray(grey), {"transparency": 255}),
        "rgb": (Image.fromarray(rgb), {"transparency": (255, 255, 255)}),
        "palette": (palette, {"transparency": palette.getpixel((0, 0))}),
    }
    for name, (picture, options) in written.items():
        picture.save(tmp_path / f"{name}.png", **options)
        found = images.read(tmp_path / f"{name}.png")
        assert (found.pixels == expected).all(), name
        assert found.hidden
        assert not found.colour
        assert found.said["transparent"] == "yes"
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.tif")
    assert (images.read(tmp_path / "a.tif").pixels == expected).all()
    assert not images.read(opaque(tmp_path / "b.png", rgb)).hidden


def opaque(path, rgb):
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])).save(path)
    return path


def with_key(path, depth, values, key):
    """A grey PNG of 1, 2, 4 or 16 bits whose value `key` is transparent, written by hand."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    height, width = values.shape
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=-1)[..., 16 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=-1)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 0, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"tRNS", key.to_bytes(2, "big"))
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_value_is_meant_in_the_bits_of_the_file(tmp_path, depth):
    most = 2**depth - 1
    values = np.arange(24 * 32).reshape(24, 32) % (most + 1) if depth < 16 else GREY.astype(int) * 257
    found = images.read(with_key(tmp_path / "a.png", depth, values, most)).pixels
    expected = np.where(values == most, 0, values * 255 // most)
    if depth == 16:  # 0 and 200 of 255 are left, scaled from the darkest to the brightest that is seen
        expected = np.where(GREY == 200, 255, 0)
    assert (found == expected).all()


# ---------------------------------------------------------------- depth and channels


def test_values_of_32_bits_and_of_less_than_nothing_keep_their_order(tmp_path):
    ramp = np.arange(24 * 32).reshape(24, 32)
    expected = np.round(ramp * 255 / ramp.max())
    for values in (ramp.astype(np.uint32) * 5_000_000, ramp.astype(np.int32) - 300, ramp.astype(np.int16) - 300):
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
        found = images.read(tmp_path / "a.tif")
        assert (found.pixels == expected).all(), values.dtype
        assert found.own


def test_a_tiff_of_12_bits_has_their_range(tmp_path):
    values = GREY.astype(int).ravel() * 8
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    entries = {256: 32, 257: 24, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 24, 279: len(packed)}
    table = b"".join(k.to_bytes(2, "little") + b"\4\0\1\0\0\0" + v.to_bytes(4, "little") for k, v in entries.items())
    end = 8 + len(packed)
    head = b"II*\0" + end.to_bytes(4, "little") + packed + len(entries).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(head + table + bytes(4))
    found = images.read(tmp_path / "a.tif")
    assert (found.pixels == np.round(GREY * 8.0 / 4095 * 255)).all()
    assert found.deep
    assert not found.own


def without_meaning(path):
    """A grey TIFF without PhotometricInterpretation: the entry is renamed to a private one."""
    Image.fromarray(GREY).save(path)
    path.write_bytes(path.read_bytes().replace(b"\x06\x01\x03\x00", b"\x0a\x01\x03\x00", 1))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without_meaning, r"expected a tag PhotometricInterpretation \(262\) .*, found none; save it as PNG"),
        (
            lambda p: tifffile.imwrite(
                p, np.stack([GREY] * 2, -1), photometric="minisblack", planarconfig="contig", extrasamples=[0]
            ),
            "expected one grey channel, found 2; save the one that counts",
        ),
        (lambda p: Image.fromarray(RGB).convert("LAB").save(p), r"found CIE L\*a\*b\* colour; save it as RGB"),
        (lambda p: tifffile.imwrite(p, GREY.astype(np.float16)), "of a kind that is not read; save it as PNG"),
        (lambda p: tifffile.imwrite(p, GREY.astype(np.complex64)), "of a kind that is not read; save it as PNG"),
        (lambda p: tifffile.imwrite(p, np.stack([GREY] * 3), photometric="minisblack"), "in a file, found 3; make one"),
        (lambda p: tifffile.imwrite(p, np.stack([GREY] * 4), imagej=True), "in a file, found 4; make one"),
        (
            lambda p: tifffile.imwrite(p, np.stack([GREY] * 32), volumetric=True, tile=(16, 16, 16)),
            "found 32; make one",
        ),
    ],
)
def test_a_tiff_that_would_be_misread_is_refused(tmp_path, write, message):
    write(tmp_path / "a.tif")
    assert re.search(message, fault(tmp_path / "a.tif"))


# ---------------------------------------------------------------- several images, videos, other kinds


def animated(path, kind, **options):
    pictures = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], **options)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a b.gif", lambda p: animated(p, "GIF")),
        ("a.png", lambda p: animated(p, "PNG")),
        ("a.webp", lambda p: animated(p, "WEBP", lossless=True)),
        ("a.tif", lambda p: animated(p, "TIFF")),
        ("a.tiff", lambda p: tifffile.imwrite(p, np.stack([GREY, 255 - GREY]), imagej=True)),
    ],
)
def test_the_command_of_the_message_makes_a_file_of_each_image(tmp_path, name, write):
    write(tmp_path / name)
    said = fault(tmp_path / name)
    assert "found 2; make" in said or "of 2 frames; make" in said
    command = shlex.split(said[said.index("python -m") :])
    assert command[:3] == ["python", "-m", "nafld_utils.images.frames"]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    first, second = sorted(path for path in tmp_path.iterdir() if path.name != name)
    assert (images.read(first).pixels == GREY).all()
    assert (images.read(second).pixels == 255 - GREY).all()


def test_pages_of_deep_grey_whose_low_values_are_bright_stay_so(tmp_path):
    stack = np.stack([GREY, 255 - GREY]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="miniswhite")
    found = [images.read(path).pixels for path in frames.split(tmp_path / "a.tif")]
    assert (np.stack(found) == 255 - stack).all()
    assert frames.main([str(tmp_path / "none.tif")]) == 1


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video; make one PNG file of each frame with ffmpeg -i"),
        (b"\0\0\0\x20ftypisom", "an MP4 or QuickTime video; make one PNG file of each frame with ffmpeg -i"),
        (b"\0\0\0\x08moov", "an MP4 or QuickTime video; make"),
        (b"\x1aE\xdf\xa3", "a Matroska or WebM video; make"),
        (b"\0\0\x01\xba", "an MPEG video; make"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media video; make"),
        (b"\x5c\x01\0\0", "a NIfTI volume; save the slice that counts as PNG"),
        (b"NRRD0004\n", "an NRRD volume; save the slice that counts as PNG"),
        (b"\x93NUMPY\1\0", "a NumPy array; save it as PNG"),
        (b"\x1f\x8b\x08", "a gzip archive; unpack it"),
        (b"PK\x03\x04", "a zip archive; unpack it"),
        (b"<!DOCTYPE html>", "a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; get the file with git lfs pull"),
    ],
)
def test_what_is_no_image_is_named_with_what_to_do(tmp_path, head, found):
    (tmp_path / "a.png").write_bytes(head + bytes(40))
    said = fault(tmp_path / "a.png")
    assert said.startswith(f"expected a PNG, JPEG, TIFF or DICOM image, found {found}")
    assert "ffmpeg" not in said or said.endswith(f"ffmpeg -i {tmp_path}/a.png {tmp_path}/a_%04d.png")


def test_grey_that_a_tiff_says_is_multiplied_by_its_opacity_is_read(tmp_path):
    opacity = np.where(np.arange(32) < 5, 0, 255).astype(np.uint8) * np.ones_like(GREY)
    layers, path = np.dstack([np.where(opacity, GREY, 0), opacity]), tmp_path / "a.tif"
    tifffile.imwrite(path, layers, photometric="minisblack", extrasamples=["assocalpha"])
    found = images.read(path)
    assert found.hidden
    assert (found.pixels == layers[..., 0]).all()


def test_a_palette_of_8_bits_is_refused(tmp_path):
    for factor, refused in ((1, True), (257, False)):
        path = tmp_path / f"{factor}.tif"
        tifffile.imwrite(
            path, GREY, photometric="palette", colormap=np.stack([np.arange(256) * factor] * 3).astype("u2")
        )
        if refused:
            assert "expected a palette of 16 bits, found one of 8" in fault(path)
        else:
            assert (images.read(path).pixels == GREY).all()


def test_a_range_that_a_file_states_holds_for_dim_and_bright_pictures(tmp_path):
    for tags in ((280, 281), (340, 341)):
        for factor in (4, 16):
            values, path = GREY.astype(np.uint16) * factor, tmp_path / "a.tif"
            stated = [(tag, 3, 1, end, False) for tag, end in zip(tags, (0, 4080), strict=True)]
            tifffile.imwrite(path, values, extratags=stated)
            found = images.read(path)
            assert not found.own
            assert (found.pixels == np.round(GREY * (factor / 16))).all()
            assert found.said["levels"] == "stated 0 to 4080"
    tifffile.imwrite(path, values, extratags=[(281, 3, 1, 255, False)])
    assert "expected values of 0 to 255 as its tags say, found 0 to 4080" in fault(path)
    tifffile.imwrite(path, values, extratags=[(281, 3, 1, 65535, False)])
    assert images.read(path).own, "all that 16 bits can hold"


def test_a_png_that_counts_its_bits_has_its_white_at_65535(tmp_path):
    chunks = PngInfo()
    chunks.add(b"sBIT", b"\x0c")
    for factor in (64, 257):
        Image.fromarray(GREY.astype(np.uint16) * factor).save(tmp_path / "a.png", pnginfo=chunks)
        found = images.read(tmp_path / "a.png")
        assert not found.own
        assert (found.pixels == np.round(GREY * (factor / 257))).all()
