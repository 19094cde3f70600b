"""A folder of images as a cohort: formats, faults by row, memory maps, interrupted reading, large simulations."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
import zlib
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import tifffile
from dicom_files import write as dicom
from PIL import Image, ImageFile

from nafld_utils import artifacts, cli, cohort, images, params, phantom, pipeline, preprocessing, report, views
from nafld_utils.artifacts import claims
from nafld_utils.cohort import example, image_folder, simulation
from nafld_utils.images import Ragged, image_file, image_store
from nafld_utils.preprocessing import unit
from nafld_utils.report import facts, texts

NAMES = ("benign", "malignant")
ROWS = [
    {"image": f"{patient}{frame}.png", "patient": f"P-{patient}", "label": NAMES[patient % 2]}
    for patient in range(4)
    for frame in range(2)
]


def picture(seed, height=24, width=30, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(path, rows=ROWS, **columns):
    """Eight grey images of one size, four patients."""
    path.mkdir()
    for number, row in enumerate(ROWS):
        Image.fromarray(picture(number)).save(path / row["image"])
    pd.DataFrame(rows).assign(**columns).to_csv(path / "images.csv", index=False)
    return path


def changed(number, **values):
    return [{**row, **values} if i == number else row for i, row in enumerate(ROWS)]


def problems(path):
    """Row and text of everything that is wrong."""
    with pytest.raises(cohort.CohortError) as caught:
        cohort.load(path, NAMES)
    return [(problem.row, problem.text) for problem in caught.value.problems]


def test_a_folder_of_images_is_a_cohort(tmp_path):
    found = cohort.load(folder(tmp_path / "a", grade=[1, 1, 2, 2, 3, 3, 4, 4]), NAMES)
    assert found.patients["patient_id"].tolist() == [1, 2, 3, 4]
    assert found.patients["label"].tolist() == [0, 1, 0, 1]
    assert found.patients["grade"].tolist() == [1, 2, 3, 4]
    assert found.images["image_id"].tolist()[:3] == ["p001_f00", "p001_f01", "p002_f00"]
    assert found.sources["patient"].tolist()[:3] == ["P-0", "P-0", "P-1"]
    assert found.folds is None
    assert found.frames.shape == (4, 2, 24, 30)
    assert all((found.pixels[i] == picture(i)).all() for i in range(8))
    assert found.provenance["kind"] == "other content"
    assert "8 images of 4 patients, 30 x 24 pixels" in found.provenance["text"]


def test_hospital_numbers_are_counted_unless_a_setting_keeps_them(tmp_path):
    rows = [{**row, "patient": f"{4711 * (4 - int(row['patient'][2])):06d}"} for row in ROWS]
    path = folder(tmp_path / "a", rows)
    found = cohort.load(path, NAMES)
    assert found.patients["patient_id"].tolist() == [1, 2, 3, 4]
    assert found.images["image_id"].iloc[-1] == "p004_f01"
    assert (found.pixels[0] == picture(0)).all(), "patients come in the order of the table"
    assert found.sources["patient"].tolist()[::2] == ["018844", "014133", "009422", "004711"]
    assert "; patients are numbered in the order of the table, sources.csv has their names" in found.provenance["text"]
    kept = cohort.load(path, NAMES, people=("stop", None, "own"))
    assert kept.patients["patient_id"].tolist() == [4711, 9422, 14133, 18844]
    assert (kept.pixels[0] == picture(6)).all(), "patients come in the order of their ids"
    assert "; patients keep their numbers without leading zeros, sources.csv has them" in kept.provenance["text"]
    with pytest.raises(cohort.CohortError, match=r"where cohort\.patient_numbers is own, found P-0; correct the table"):
        cohort.load(folder(tmp_path / "b"), NAMES, people=("stop", None, "own"))


def test_numbers_from_1_stay_as_they_are(tmp_path):
    rows = [{**row, "patient": 4 - int(row["patient"][2])} for row in ROWS]
    found = cohort.load(folder(tmp_path / "a", rows), NAMES)
    assert found.patients["patient_id"].tolist() == [1, 2, 3, 4]
    assert (found.pixels[0] == picture(6)).all(), "patient 1 is the table's last"
    assert "patients are numbered" not in found.provenance["text"]
    assert "patients keep" not in found.provenance["text"]


@pytest.mark.parametrize(("said", "refused"), [("YES", True), ("NO", False), ("", False)])
def test_text_burned_into_dicom_pixels_stops_unless_it_is_allowed(tmp_path, said, refused):
    path = folder(tmp_path / "a")
    rows = [{**row, "image": f"{place}.dcm"} for place, row in enumerate(ROWS)]
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    for place in range(len(ROWS)):
        dicom(path / f"{place}.dcm", picture(place), BurnedInAnnotation=said if place == 3 else "NO")
    if not refused:
        assert len(cohort.load(path, NAMES).images) == len(ROWS)
        return
    [(row, text)] = problems(path)
    assert row == 5
    assert text.startswith("3.dcm: expected pixels without text, found BurnedInAnnotation YES")
    assert 'give SET="cohort.burned_in=allow"' in text
    assert len(cohort.load(path, NAMES, people=("stop", None, "counted", "allow")).images) == len(ROWS)


def test_numbers_that_are_two_names_of_one_number_are_names(tmp_path):
    rows = [{**row, "patient": ["1", "01", "2", "x"][int(row["patient"][2])]} for row in ROWS]
    found = cohort.load(folder(tmp_path / "a", rows), NAMES, people=("different", None))
    assert found.patients["patient_id"].tolist() == [1, 2, 3, 4]
    assert "; patients are numbered in the order of the table, sources.csv has their names" in found.provenance["text"]


def test_a_run_says_where_the_names_of_its_patients_lie(tmp_path, study):
    run = study(folder(tmp_path / "a"))
    cohort.build_cohort(run)
    said = cohort.open_cohort(run).provenance["text"]
    (path,) = re.findall(r", (\S+) has their names", said)
    assert path == "artifacts/smoke/cohort/sources.csv"
    table = pd.read_csv(tmp_path / path)
    assert table.iloc[0].to_dict() == {"image_id": "p001_f00", "patient": "P-0", "file": "00.png", "row": 2}
    assert path in facts.cohort(run)[0][1], "as every report says"
    assert cohort.open_cohort(run).file_tags["file_says"].str.startswith("format: PNG; mode: L;").sum() == 8
    assert path in dict(texts.methods(run))["Cohort"]


# ---------------------------------------------------------------- formats


DEEP_COLOUR = (
    "expected at most 8 bits a channel with colour or transparency, found 16; save it as 8-bit colour or as 16-bit grey"
)


def refused(path):
    """What is said of a file, by its header alone."""
    with pytest.raises(images.ImageFault) as caught:
        images.read_header(path)
    return str(caught.value)


def saved(path, image, **options):
    image.save(path, **options)
    return images.read(path)


def test_every_mode_becomes_grey_and_says_what_was_done(tmp_path):
    grey = picture(0)
    rgb = picture(1, channels=3)
    plain = saved(tmp_path / "a.png", Image.fromarray(grey))
    assert (plain.pixels == grey).all()
    assert not any((plain.colour, plain.deep, plain.turned))
    equal = saved(tmp_path / "b.png", Image.fromarray(np.stack([grey] * 3, axis=-1)))
    assert (equal.pixels == grey).all()
    assert not equal.colour, "three equal channels are grey"
    colour = saved(tmp_path / "c.png", Image.fromarray(rgb))
    assert colour.colour
    assert np.abs(colour.pixels - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 1
    deep = saved(tmp_path / "d.tif", Image.fromarray(grey.astype(np.uint16) * 13 + 100))
    assert deep.deep
    assert (deep.pixels == np.round((grey - float(grey.min())) * 255 / np.ptp(grey))).all()
    clear = np.dstack([rgb, np.zeros(grey.shape, np.uint8)])
    assert (saved(tmp_path / "e.png", Image.fromarray(clear)).pixels == 0).all(), "transparent is black"
    assert set(np.unique(saved(tmp_path / "f.png", Image.fromarray(grey > 99)).pixels)) == {0, 255}
    assert saved(tmp_path / "g.jpg", Image.fromarray(rgb).convert("CMYK")).pixels.shape == grey.shape


def chunk(name, content):
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def png(width, height, depth, colour_type, content):
    """A PNG of bytes: colour type 0 grey, 2 colour, 4 grey and transparency, 6 colour and transparency."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(path, channels, colour_type):
    rows = deep(channels).astype(">u2").reshape(24, -1)
    path.write_bytes(png(30, 24, 16, colour_type, b"".join(b"\0" + row.tobytes() for row in rows)))


def deep(channels=None):
    """Twelve bits, (24, 30) or (24, 30, channels)."""
    return picture(3, channels=channels).astype(np.uint16) * 16 + 5


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize(("channels", "options"), [(3, {}), (4, {"extrasamples": ["unassalpha"]})])
def test_a_tiff_of_deep_colour_is_refused(tmp_path, byte_order, channels, options):
    tifffile.imwrite(tmp_path / "a.tif", deep(channels), photometric="rgb", byteorder=byte_order, **options)
    assert refused(tmp_path / "a.tif") == DEEP_COLOUR


def test_a_tiff_of_deep_colour_in_planes_is_refused(tmp_path):
    values = np.moveaxis(deep(3), -1, 0).copy()
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate", compression="zlib")
    assert refused(tmp_path / "a.tif") == DEEP_COLOUR


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (2, 4), (4, 6)])
def test_a_png_of_deep_channels_is_refused(tmp_path, channels, colour_type):
    deep_png(tmp_path / "a.png", channels, colour_type)
    assert refused(tmp_path / "a.png") == DEEP_COLOUR


def test_a_png_of_deep_grey_is_read(tmp_path):
    deep_png(tmp_path / "a.png", None, 0)
    found = images.read(tmp_path / "a.png")
    assert found.deep
    assert (found.pixels == np.round((deep() - 5.0) * 255 / (255 * 16))).all(), "darkest 0, brightest 255"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_low_values_are_bright_is_inverted(tmp_path, kind):
    for name in ("minisblack", "miniswhite"):
        tifffile.imwrite(tmp_path / f"{name}.tif", picture(3).astype(kind), photometric=name)
    black, white = (images.read(tmp_path / f"{name}.tif") for name in ("minisblack", "miniswhite"))
    assert (black.pixels == picture(3)).all()
    assert (white.pixels == 255 - picture(3)).all()
    assert black.deep == white.deep == (kind != np.uint8)


def test_a_tiff_of_signed_bytes_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture(3).view(np.int8), photometric="minisblack")
    assert "found signed 8-bit values; save it as unsigned" in refused(tmp_path / "a.tif")


def test_dicom_is_read_windowed_and_inverted_where_it_says_so(tmp_path):
    deep = picture(0).astype(np.uint16) * 16
    bright = images.read(dicom(tmp_path / "a.dcm", deep)).pixels
    assert np.abs(bright.astype(int) - picture(0)).max() <= 1
    inverted = images.read(dicom(tmp_path / "b.dcm", deep, "MONOCHROME1")).pixels
    assert (inverted == 255 - bright).all()
    window = images.read(dicom(tmp_path / "c.dcm", deep, WindowCenter=2000, WindowWidth=1000)).pixels
    assert (window == 0).mean() > 0.3
    assert (window == 255).mean() > 0.3
    rgb = picture(1, channels=3)
    colour = images.read(dicom(tmp_path / "no_ending", rgb, "RGB"))
    assert colour.colour
    assert (colour.pixels == np.asarray(Image.fromarray(rgb).convert("L"))).all()
    plain = images.read(dicom(tmp_path / "d.dcm", picture(2)))
    assert (plain.pixels == picture(2)).all()
    assert not plain.deep


def test_what_pydicom_alone_decodes_is_read_and_the_rest_is_to_be_saved_otherwise(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dicom(tmp_path / "a.dcm", np.arange(16 * 20, dtype=np.uint16).reshape(16, 20))
    plain, data = images.read(tmp_path / "a.dcm").pixels, pydicom.dcmread(tmp_path / "a.dcm")
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "b.dcm")
    assert (images.read(tmp_path / "b.dcm").pixels == plain).all()
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8what\xff\xd9"])
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    data.save_as(tmp_path / "c.dcm")
    with pytest.raises(images.ImageFault, match=r"can decode, found .*; save it uncompressed or as PNG"):
        images.read(tmp_path / "c.dcm")


def test_dicom_without_pydicom_names_the_extra(tmp_path, monkeypatch):
    path = dicom(tmp_path / "a.dcm", picture(0))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(images.ImageFault, match=r"pydicom to read a DICOM file.*the extra: .*\[dicom\]"):
        images.read(path)


def palette(bits, entries=256, stored=None):
    """Tags of a palette that gives index i red i, green 255 - i and blue 7 (times 257 where entries are 16 bits)."""
    step, width = np.arange(entries), stored or bits
    colours = {"Red": step % 256, "Green": 255 - step % 256, "Blue": np.full(entries, 7)}
    tags = {}
    for name, values in colours.items():
        values = (values * (257 if bits == 16 else 1)).astype(np.uint8 if width == 8 else "<u2")
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [entries % 2**16, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return tags


@pytest.mark.parametrize(("bits", "stored"), [(8, 8), (8, 16), (16, 16)])
def test_dicom_palettes_become_their_colours(tmp_path, bits, stored):
    found = images.read(dicom(tmp_path / "a.dcm", picture(3), "PALETTE COLOR", **palette(bits, stored=stored)))
    rgb = np.stack([picture(3), 255 - picture(3), np.full((24, 30), 7, np.uint8)], axis=-1)
    assert found.colour
    assert (found.pixels == np.asarray(Image.fromarray(rgb).convert("L"))).all()


def test_dicom_palettes_that_cannot_be_looked_up_are_refused(tmp_path):
    with pytest.raises(images.ImageFault, match=r"^expected the colours of a palette, found .*; save it as RGB$"):
        images.read(dicom(tmp_path / "a.dcm", picture(3), "PALETTE COLOR"))
    wide = dicom(tmp_path / "b.dcm", deep(), "PALETTE COLOR", **palette(8, 4096))
    with pytest.raises(images.ImageFault, match=r"at most 256 colours of 8 bits, found 4096; save it as RGB"):
        images.read(wide)


def bomb(width, height):
    """A small PNG whose header promises `width` x `height` pixels."""
    return png(width, height, 8, 0, bytes(1000))


def pages(path):
    Image.fromarray(picture(0)).save(path, save_all=True, append_images=[Image.fromarray(picture(1))])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda p: p.write_bytes(bomb(60_000, 60_000)), "at most 50,000,000 pixels, found"),
        ("a.png", lambda p: p.write_bytes(bomb(9_000, 9_000)), "at most 50,000,000 pixels, found 9000 x 9000"),
        ("a.png", lambda p: p.write_bytes(bomb(100, 100)), "found damaged content"),
        ("a.tif", pages, "one image in a file, found 2"),
        ("a.png", lambda p: Image.fromarray(picture(0)[:4]).save(p), "at least 8 x 8 pixels, found 30 x 4"),
        ("a.tif", lambda p: Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(p), "NaN or infinity"),
        ("a.dcm", lambda p: p.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40), "a DICOM"),
        ("a.dcm", lambda p: dicom(p, picture(0), NumberOfFrames=7), "one image in a file, found 7"),
        ("a.dcm", lambda p: dicom(p, picture(0), Rows=65_000, Columns=65_000), "at most 50,000,000 pixels"),
        ("a.png", lambda p: p.mkdir(), "found none of that name"),
        ("a.png", lambda p: os.mkfifo(p), "found none of that name"),
    ],
)
def test_a_bad_file_is_refused_in_a_phrase(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(images.ImageFault, match=message):
        images.read(tmp_path / name)


def other(kind, mode="L"):
    """A file of another format, as Pillow writes it."""
    return lambda path: Image.fromarray(picture(0)).convert(mode).save(path, kind)


def test_a_png_named_dcm_is_read_and_a_bmp_named_so_is_named(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.dcm", "PNG")
    assert (images.read(tmp_path / "a.dcm").pixels == picture(0)).all()
    other("BMP")(tmp_path / "b.dcm")
    assert refused(tmp_path / "b.dcm").endswith("found a BMP image; save it as PNG")


def first(path, kind, n):
    """The first n bytes of a file in a format that is read."""
    Image.fromarray(picture(0)).save(path, kind)
    path.write_bytes(path.read_bytes()[:n])


NIFTI = b"\x5c\x01\0\0" + bytes(400)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (other("BMP"), "a BMP image; save it as PNG"),
        (other("BMP", "RGB"), "a BMP image; save it as PNG"),
        (other("GIF"), "a GIF image; save it as PNG"),
        (other("WEBP"), "a WebP image; save it as PNG"),
        (other("PPM"), "a PNM image; save it as PNG"),
        (other("PDF"), "a PDF document; save it as PNG"),
        (lambda p: p.write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50)), "a JPEG 2000 image; save it as PNG"),
        (lambda p: p.write_bytes(b"\xff\x4f\xff\x51" + bytes(50)), "a JPEG 2000 image; save it as PNG"),
        (lambda p: p.write_bytes(b"\0\0\0\x18ftypheic" + bytes(50)), "a HEIC image; save it as PNG"),
        (lambda p: first(p, "PNG", 20), "a PNG image that is damaged; get it again (Truncated File Read)"),
        (
            lambda p: first(p, "JPEG", 20),
            "a JPEG image that is damaged or of a kind that is not read; save it as PNG",
        ),
        (
            lambda p: first(p, "TIFF", 6),
            "a TIFF image that is damaged or of a kind that is not read; save it as PNG",
        ),
        (
            lambda p: tifffile.imwrite(p, picture(0).astype(np.float64), photometric="minisblack"),
            "a TIFF image that is damaged or of a kind that is not read; save it as PNG",
        ),
        (
            lambda p: p.write_bytes(b"BMI of all patients, a table"),
            "content of another kind, or damaged; save it as PNG or get it again",
        ),
        (lambda p: p.write_bytes(b""), "an empty file; get it again"),
        (lambda p: p.write_bytes(NIFTI), "a NIfTI volume; save the slice that counts as PNG"),
        (
            lambda p: p.write_bytes(gzip.compress(NIFTI)),
            "a NIfTI volume packed by gzip; save the slice that counts as PNG",
        ),
        (lambda p: p.write_bytes(gzip.compress(b"some text" * 99)), "a gzip archive; unpack it"),
    ],
)
def test_what_is_no_image_that_is_read_is_named(tmp_path, write, found):
    write(tmp_path / "a.png")
    assert refused(tmp_path / "a.png") == f"expected a PNG, JPEG, TIFF or DICOM image, found {found}"


def test_a_phones_jpeg_with_a_second_picture_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(0)).save(path, "MPO", save_all=True, append_images=[Image.fromarray(picture(1))])
    with Image.open(path) as opened:
        assert opened.format == "MPO"
        expected = np.asarray(opened.convert("L"))
    assert images.read_header(path).kind == "JPEG"
    assert (images.read(path).pixels == expected).all(), "the first picture"


def test_no_pixel_of_a_picture_beyond_the_limits_is_decoded(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: decoded.append(picture))
    (tmp_path / "a.png").write_bytes(bomb(9_000, 9_000))
    assert "at most 50,000,000 pixels" in refused(tmp_path / "a.png")
    assert not decoded


def test_a_large_file_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MAX_BYTES", 100)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    with pytest.raises(images.ImageFault, match="expected at most 0 MiB"):
        images.read(tmp_path / "a.png")


# ---------------------------------------------------------------- everything that is wrong, by row


@pytest.mark.parametrize("name", ["10", r"D:\study\10.PNG"])
def test_a_path_of_another_machine_and_a_name_without_ending_name_the_file(tmp_path, name):
    ((row, text),) = problems(folder(tmp_path / "a", changed(2, image=name)))
    assert row == 4
    assert text.endswith("; the nearest is 10.png")


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[1]["image"] = "01.pgn"
    rows[2]["label"] = "what"
    rows[3]["image"] = "../../etc/passwd"
    rows[5]["label"] = NAMES[1]
    path = folder(tmp_path / "a", rows)
    Image.fromarray(picture(0)).save(path / "30.png")  # a copy of the first patient's
    Image.fromarray(np.full((24, 30), 7, np.uint8)).save(path / "31.png")
    (path / "20.png").write_bytes(b"no image")
    found = problems(path)
    assert [row for row, _ in found] == [3, 4, 5, 6, 7, 8, 9]
    texts = dict(found)
    assert texts[3] == "expected an image file, found no 01.pgn; the nearest is 01.png"
    assert texts[4] == "expected benign, malignant, 0 or 1 as label, found what"
    assert texts[5].startswith("expected an image inside the folder, found ../../etc/passwd")
    assert texts[6].startswith("20.png: expected a PNG, JPEG, TIFF or DICOM image")
    assert texts[7] == "expected one label per patient, found malignant here and benign in row 6 for patient P-2"
    assert "pixels of 30.png of patient P-3 in row 2 under patient P-0 too" in texts[8]
    assert "one grey level (7) in the whole of 31.png" in texts[9]


@pytest.mark.parametrize(
    ("number", "values", "message"),
    [
        (1, {"image": "00.png"}, "row 3: expected each image once, found 00.png in row 2 too"),
        (1, {"image": "./00.png"}, "row 3: expected each image once, found 00.png in row 2 too"),
        (1, {"image": ".\\00.png"}, "row 3: expected each image once, found 00.png in row 2 too"),
        (1, {"image": ""}, "row 3: expected image, found nothing"),
        (1, {"patient": " "}, "row 3: expected patient, found nothing"),
        (1, {"label": ""}, "found nothing"),
        (1, {"image": "/etc/hostname"}, "inside the folder, found /etc/hostname"),
        (1, {"image": "x" * 5000 + ".png"}, r"row 3: expected an image file, found no x{77}\.\.\."),
        (1, {"image": "a\x1b[31m.png"}, r"found no a\\x1b\[31m\.png"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, number, values, message):
    with pytest.raises(cohort.CohortError, match=message):
        cohort.load(folder(tmp_path / "a", changed(number, **values)), NAMES)


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_are_composed_otherwise_are_the_same(tmp_path, here, there):
    written, stored = (unicodedata.normalize(form, "Ü/müde é.png") for form in (here, there))
    path = folder(tmp_path / "a", changed(1, image=written.replace("/", "\\")))
    (path / stored).parent.mkdir()
    (path / "01.png").rename(path / stored)
    assert (cohort.load(path, NAMES).pixels[1] == picture(1)).all()
    rows = [dict(row) for row in ROWS]
    rows[1]["image"], rows[0]["image"] = written, stored
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    ((row, text),) = problems(path)
    assert row == 3
    assert text == "expected each image once, found Ü/müde é.png in row 2 too"


def test_files_that_a_run_leaves_out_are_checked_too(tmp_path):
    path = folder(tmp_path / "a")
    (path / "01.png").write_bytes(b"no image")
    with pytest.raises(cohort.CohortError, match=r"row 3: 01\.png: expected a PNG"):
        cohort.load(path, NAMES, keep=1)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = folder(tmp_path / "a")
    Image.fromarray(picture(9)).save(tmp_path / "secret.png")
    (path / "00.png").unlink()
    (path / "00.png").symlink_to(tmp_path / "secret.png")
    said = "found 00.png, a link out of it; put the file there"
    assert problems(path) == [(2, f"expected an image inside the folder, {said}")]
    (path / "00.png").unlink()
    rows = changed(0, image="../secret.png")
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    assert problems(path) == [(2, "expected an image inside the folder, found ../secret.png; move it there")]


def test_links_in_the_folders_own_tree_are_followed_and_others_are_called_links(tmp_path):
    plain = cohort.load(folder(tmp_path / "plain"), NAMES)
    path = folder(tmp_path / "a", [{**row, "image": f"views/{row['image']}"} for row in ROWS])
    (path / ".git" / "annex").mkdir(parents=True)
    for row in ROWS:
        (path / row["image"]).rename(path / ".git" / "annex" / row["image"])
    (path / "raw").mkdir()
    (path / "views").symlink_to("raw")
    for row in ROWS:
        (path / "raw" / row["image"]).symlink_to(f"../.git/annex/{row['image']}")
    assert cohort.load(path, NAMES).images["sha256"].equals(plain.images["sha256"])
    (tmp_path / "link").symlink_to(path)
    assert cohort.load(tmp_path / "link", NAMES).images["sha256"].equals(plain.images["sha256"])
    (path / ".git" / "annex" / "00.png").unlink()  # as git-annex leaves a file that was not fetched
    lost = "expected an image, found views/00.png, a link to .git/annex/00.png, where nothing is; get that file"
    (path / "raw" / "01.png").unlink()
    (path / "raw" / "01.png").symlink_to("01.png")
    loop = "expected an image, found views/01.png, a link that leads back to itself; put the file there"
    assert problems(path) == [(2, lost), (3, loop)]
    (path / "views").unlink()
    (path / "raw").rename(tmp_path / "raw")
    (path / "views").symlink_to(tmp_path / "raw")
    assert problems(path)[2][1] == (
        "expected an image inside the folder, found views/10.png, a link out of it; put the file there"
    )


LITTER = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "ehthumbs.db", "Icon\r", "~$images.xlsx", ".~lock.images.csv#"),
    *("._00.png", "._images.csv", "images.csv~", "notes.txt", "99.png", "old/00.png", "images.xlsx", "read me.md"),
    *(".ipynb_checkpoints/images-checkpoint.csv", ".git/index", "__MACOSX/._00.png", "$RECYCLE.BIN/00.png"),
)  # fmt: skip


def test_what_else_lies_in_the_folder_makes_no_stage_stale_and_costs_no_model(tmp_path, study):
    path = folder(tmp_path / "a")
    run = study(path)

    def state():
        stages = ("01_data_analysis", "02_preprocessing")
        return [pipeline.staleness.stamp_content(run, stage) for stage in stages], cohort.cohort_unit(run).hash

    before = state()
    for name in LITTER:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x")
        assert state() == before, name
    cohort.build_cohort(run)
    assert cohort.cohort_unit(run).done()
    for name in LITTER:
        (path / name).unlink()
        assert state() == before, name
    os.utime(path / "00.png", (1, 1))
    touched = state()
    assert touched[0] != before[0], "make runs the stage"
    assert touched[1] == before[1], "and finds what it made"
    Image.fromarray(picture(99)).save(path / "00.png")
    assert state()[1] != before[1]
    Image.fromarray(picture(0)).save(path / "00.png")
    assert state()[1] == before[1]
    (path / "images.csv").write_text((path / "images.csv").read_text() + "99.png,P-9,benign\n")
    unread = state()
    assert unread[1] != before[1]
    (path / "99.png").write_bytes(b"x")
    assert state()[1] != unread[1], "a file that the table names"


def test_the_hash_of_a_folder_without_litter_is_that_of_all_its_files(tmp_path):
    path = folder(tmp_path / "a")
    (path / "cohort.json").write_text("{}")
    (path / "sub").mkdir()
    (path / "31.png").rename(path / "sub" / "31.png")
    pd.DataFrame(changed(7, image="sub\\31.png")).to_csv(path / "images.csv", index=False)
    assert cohort.content_files(path) == sorted(item for item in path.rglob("*") if item.is_file())
    (path / "images.csv").write_bytes(b"\xff")
    assert cohort.content_files(path) == [path / "cohort.json", path / "images.csv"], "a table that cannot be read"
    (path / "images.csv").unlink()
    assert cohort.content_files(path) == [path / "cohort.json"]


def test_masks_count_only_beside_the_array_that_they_belong_to(tmp_path):
    path = folder(tmp_path / "a")
    before = cohort.content_files(path)
    np.save(path / "masks.npy", np.zeros(3))
    assert cohort.content_files(path) == before
    np.save(path / "pixels.npy", np.zeros(3))
    assert {path / "masks.npy", path / "pixels.npy"} < {*cohort.content_files(path)}


def test_of_several_tables_the_one_with_the_columns_is_taken(tmp_path):
    path = folder(tmp_path / "a")
    (path / "images.csv").rename(path / "mine.csv")
    (path / "export.csv").write_text("image,score\n00.png,1\n")
    (path / "notes.csv").write_bytes(b"\xff\xff\0")
    assert len(cohort.load(path, NAMES).images) == len(ROWS)
    (path / "other.csv").write_text((path / "mine.csv").read_text())
    with pytest.raises(cohort.CohortError, match=r"found mine\.csv, other\.csv; keep one"):
        cohort.load(path, NAMES)


def test_a_table_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    path = folder(tmp_path / "a")
    (path / "images.csv").rename(tmp_path / "elsewhere.csv")
    (path / "images.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(cohort.CohortError, match=r"found images.csv, a link out of it; put the file there"):
        cohort.load(path, NAMES)
    assert path / "images.csv" not in cohort.content_files(path)


def test_one_class_only_is_refused(tmp_path):
    assert "found benign only" in problems(folder(tmp_path / "a", label="benign"))[0][1]


def test_a_folder_without_any_image_says_so_for_every_row(tmp_path):
    path = folder(tmp_path / "a")
    for row in ROWS:
        (path / row["image"]).write_bytes(b"")
    assert [row for row, _ in problems(path)] == list(range(2, 10))


def test_images_that_the_disk_cannot_hold_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    path, small = folder(tmp_path / "a"), namedtuple("usage", "free")(1000)
    monkeypatch.setattr("shutil.disk_usage", lambda place: small)
    with pytest.raises(OSError, match=r"no space for the decoded images: they need .* point NAFLD_ROOT"):
        cohort.load(path, NAMES, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 24), np.uint8), r"expected \(8, height, width\) uint8 as images.csv has rows, found \(8, 24\)"),
        (np.zeros((7, 24, 30), np.uint8), r"found \(7, 24, 30\) uint8"),
        (np.zeros((8, 24, 30), np.float32), r"found \(8, 24, 30\) float32"),
        (np.zeros((8, 0, 30), np.uint8), "found "),
        (None, "found a damaged file"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path, array, message):
    path = folder(tmp_path / "a")
    if array is None:
        np.save(path / "pixels.npy", np.array([{"an": "object"}]), allow_pickle=True)
    else:
        np.save(path / "pixels.npy", array)
    with pytest.raises(cohort.CohortError, match=message):
        cohort.load(path, NAMES)


def test_an_array_of_images_beyond_the_pixel_limit_is_refused_unread(tmp_path):
    path = folder(tmp_path / "a")
    np.lib.format.open_memmap(path / "pixels.npy", "w+", np.uint8, (8, 5001, 10_000)).flush()  # a hole on the disk
    with pytest.raises(cohort.CohortError, match="at most 50,000,000 pixels of an image, found 10000 x 5001; scale"):
        cohort.load(path, NAMES)


@pytest.mark.parametrize("name", ["pixels.npy", "masks.npy", "cohort.json", "notes.txt"])
def test_a_pipe_beside_the_images_holds_nothing_up(tmp_path, name):
    path = folder(tmp_path / "a")
    if name == "masks.npy":
        np.save(path / "pixels.npy", np.stack([picture(i) for i in range(8)]))
        (path / "cohort.json").write_text('{"simulated": "Simulated."}')
    os.mkfifo(path / name)
    code = f"from nafld_utils import cohort; print(len(cohort.load({str(path)!r}, {NAMES!r}).images))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "8\n", done.stderr


def test_labels_of_other_names_are_said_once_with_the_setting(tmp_path):
    path = folder(tmp_path / "a")
    with pytest.raises(cohort.CohortError, match=r"1 problem in 8 rows\n.*cohort.class_names=\[benign, malig"):
        cohort.load(path, ("healthy", "fatty"))


def test_numbers_are_not_offered_where_a_class_has_one_for_a_name(tmp_path):
    rows = [{**row, "label": {"benign": "1", "malignant": "2"}[row["label"]]} for row in ROWS]
    rows[0]["label"], rows[3]["label"] = "", "x"
    with pytest.raises(cohort.CohortError) as caught:
        cohort.load(folder(tmp_path / "a", rows), ("1", "2"))
    assert [text for _, text in caught.value.problems] == [
        "expected a class name as label, found nothing",
        "expected 1 or 2 as label, found x",
    ]


def labelled(path, *labels, **columns):
    """The eight images under other labels, one per patient or one per row."""
    labels = [label for label in labels for _ in range(8 // len(labels))]
    return folder(path, [{**row, "label": label} for row, label in zip(ROWS, labels, strict=True)], **columns)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["Pneumonia", "healthy"] * 2, "[healthy, Pneumonia]"),
        (["fatty", "Normal"] * 2, "[Normal, fatty]"),
        (["Normal", "NORMAL", "Pneumonia", "pneumonia"] * 2, "[Normal, Pneumonia]"),
        ([2, 1] * 2, "[1, 2]"),
        (["1.0", "2.0"] * 2, "[1, 2]"),
        (["Normal", 1] * 2, "[Normal, 1]"),
    ],
)
def test_two_labels_of_which_one_is_unknown_are_said_once_with_the_setting(tmp_path, labels, names):
    with pytest.raises(cohort.CohortError) as caught:
        cohort.load(labelled(tmp_path / "a", *labels))
    (problem,) = caught.value.problems
    assert problem.row is None
    assert names in problem.text.replace("'", "")


@pytest.mark.parametrize(
    "names",
    [
        ("Normal", "Pneumonia"),
        ("no", "yes"),
        ("No Finding", "Pleural Effusion"),
        ("A, B", "C"),
        ("1", "2"),
        ("12:30", "2024-01-01"),
        ("null", "a: b"),
        ("grade 0: none", "100 % (all)"),
        ("1_000", "Ärzte/Ödem"),
    ],
)
def test_the_setting_that_a_message_names_is_taken(tmp_path, monkeypatch, names):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    path = labelled(tmp_path / "a", *names * 2)
    run = artifacts.open_run("smoke", run="mine", data=str(path))
    with pytest.raises(cohort.CohortError) as caught:
        pipeline.check_folder(run)
    (given,) = re.findall(r'SET="(.*?)"', str(caught.value))
    run = artifacts.open_run("smoke", given, run="mine", data=str(path))
    assert run.settings.cohort.class_names == names
    pipeline.check_folder(run)
    assert cohort.load(path, names).patients["label"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "renamed"),
    [(("Normal", "R&D"), "R&D"), (("_x", "y"), "_x"), (("<5", ">=5"), "<5 and >=5"), (("a", "x" * 61), "x" * 61)],
)
def test_a_label_that_cannot_be_a_name_is_to_be_renamed(tmp_path, labels, renamed):
    ((row, text),) = problems(labelled(tmp_path / "a", *labels * 2))
    assert row is None
    assert f"starts with a letter or digit, so rename {renamed} in the table, or write 0 and 1 there" in text
    assert "SET=" not in text


def test_what_else_is_wrong_is_said_beside_the_setting(tmp_path):
    rows = [{**row, "label": {"benign": "Normal", "malignant": "Pneumonia"}[row["label"]]} for row in ROWS]
    rows[1]["label"], rows[3]["label"] = "", "Normal"
    with pytest.raises(cohort.CohortError) as caught:
        cohort.check(folder(tmp_path / "a", rows), ("healthy", "fatty"), n_splits=3)
    found = [(problem.row, problem.text.split(";")[0]) for problem in caught.value.problems]
    assert found == [
        (None, "expected the labels healthy and fatty (cohort.class_names), or 0 and 1, found Normal and Pneumonia"),
        (None, "expected at least folds.n_splits 3 patients of each class, found 2 of Normal"),
        (None, "expected at least folds.n_splits 3 patients of each class, found 2 of Pneumonia"),
        (3, "expected a class name, 0 or 1 as label, found nothing"),
        (5, "expected one label per patient, found Normal here and Pneumonia in row 4 for patient P-1"),
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["benign", "malignant", "normal", "malignant"],
            "expected two labels, class names or 0 and 1,"
            " found 3: benign (2 rows, first row 2), malignant (4 rows, first row 4),"
            " normal (2 rows, first row 6); keep the rows of two, or make one table per pair; or run each pair, its"
            " second name being the class to detect: make all RUN=benign-normal DATA={}"
            ' SET="cohort.class_names=[benign, normal] cohort.leave_out=[malignant]"; '
            "make all RUN=benign-malignant DATA={}"
            ' SET="cohort.class_names=[benign, malignant] cohort.leave_out=[normal]"; '
            "make all RUN=normal-malignant DATA={}"
            ' SET="cohort.class_names=[normal, malignant] cohort.leave_out=[benign]"',
        ),
        (
            ["benign", "benign", "cyst", "normal"],
            "expected two labels, class names or 0 and 1,"
            " found 3: benign (4 rows, first row 2), cyst (2 rows, first row 6), normal"
            " (2 rows, first row 8); keep the rows of two, or make one table per pair, and name the two in"
            " cohort.class_names; or run each pair, its second name being the class to detect: "
            'make all RUN=benign-normal DATA={} SET="cohort.class_names=[benign, normal] cohort.leave_out=[cyst]"; '
            'make all RUN=benign-cyst DATA={} SET="cohort.class_names=[benign, cyst] cohort.leave_out=[normal]"; '
            'make all RUN=normal-cyst DATA={} SET="cohort.class_names=[normal, cyst] cohort.leave_out=[benign]"',
        ),
        (
            ["cyst"],
            "expected two labels, class names or 0 and 1,"
            " found cyst (8 rows, first row 2) only; add the other class and name both in"
            " cohort.class_names",
        ),
    ],
)
def test_labels_that_are_not_two_are_counted_in_one_line(tmp_path, labels, message):
    path = labelled(tmp_path / "a", *labels, fold=[0, 0, 0, 0, 1, 1, 1, 1])
    assert problems(path) == [(None, message.replace("{}", str(path)))]


def test_each_command_for_a_pair_runs_that_pair(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path / "work"))
    path = folder(tmp_path / "a b")
    rows = []
    for number in range(12):  # six patients of two images
        Image.fromarray(picture(100 + number)).save(path / f"{number}.png")
        label = ("COVID", "normal", "no")[number // 2 % 3]
        rows.append({"image": f"{number}.png", "patient": f"P{number // 2}", "label": label})
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    ((_, text),) = problems(path)
    commands = [shlex.split(line.strip()) for line in text.partition("to detect: ")[2].split("; ")]
    seen = []
    for make, target, name, data, given in commands:
        assert (make, target) == ("make", "all")
        run = artifacts.open_run("smoke", given[4:], run=name[4:], data=data[5:])
        pipeline.check_folder(run)
        cohort.build_cohort(run)
        found = cohort.open_cohort(run)
        seen.append(run.settings.cohort.class_names)
        assert len(found.patients) == 4
        assert found.provenance["of_other_classes"] == 2 * 2, "two images of each of two patients"
    assert seen == [("normal", "no"), ("normal", "COVID"), ("no", "COVID")], "what is without is not the one to detect"


def test_both_orders_of_two_labels_are_offered_and_health_is_first(tmp_path):
    ((_, text),) = problems(labelled(tmp_path / "a", *("COVID", "normal") * 2))
    assert text.endswith(
        'to detect COVID, give SET="cohort.class_names=[normal, COVID]", or, to detect normal, the same with'
        " [COVID, normal]"
    )


def test_a_patient_of_a_class_that_is_left_out_is_of_no_other(tmp_path):
    rows = [{**row, "label": "cyst" if row["image"] == ROWS[0]["image"] else row["label"]} for row in ROWS]
    with pytest.raises(
        cohort.CohortError, match=r"row 2: .*found cyst, which cohort.leave_out leaves out, and another"
    ):
        cohort.load(folder(tmp_path / "a", rows), NAMES, people=("stop", None, "counted", "stop", ("cyst",)))
    with pytest.raises(params.SettingsError, match="leave_out must name none of class_names"):
        params.load("smoke", {"cohort.leave_out": ["Fatty"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,patient_name,label\n00.png,a,0\n", "a column patient, .*; the nearest is patient_name, rename it"),
        ("Diagnose,patient,label\n00.png,a,0\n", "a column image, .*; rename the one that holds it, or add it"),
        ("image,patient,label,folds\n00.png,a,0,1\n", "column folds is not read; rename it to fold"),
        ("image,patient,label,label\n00.png,a,0,1\n", "one column label, found 2"),
        ("image,patient,label\n", "one row per image, found none"),
        ("", "found an empty file"),
        ('image,patient,label\n"00.png,a,0\n', "expected a CSV table, found"),
        ("image,patient,label\n00.png,Müller,0\n".encode("latin-1"), "UTF-8 text, found byte 0xfc in line 2"),
        (b"image,patient,label\n00.png,\0,0\n", "found NUL characters"),
        (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "an Office document; export it as CSV UTF-8"),
        (b"<!doctype html><html>", "found a web page; download the file itself"),
        ("image,patient,label\n00.png,#N/A,0\n", "row 2: expected patient, found #N/A, an error of the spreadsheet"),
        ("image;patient;label\n#BEZUG!;a;0\n", "row 2: expected image, found #BEZUG!, an error of the spreadsheet"),
        (
            'image,patient,label,grade\n00.png,a,0,"1,234"\n',
            "row 2: expected a number or nothing as grade, found 1,234",
        ),
        ("image,patient,label\n00.png,a,0,extra\n", "row 2: expected 3 cells, found 4"),
        ("image,patient,label,grade\n00.png,a,0,much\n", "row 2: expected a number or nothing as grade, found much"),
        ("image,patient,label,grade\n00.png,a,0,1\n01.png,a,0,2\n", "row 3: expected one grade per patient, found 2"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content, message):
    path = folder(tmp_path / "a")
    (path / "images.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(cohort.CohortError, match=message):
        cohort.load(path, NAMES)


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("filename,subject,diagnosis", ["filename", "subject", "diagnosis"]),
        ("id,File,target", ["File", "id", "target"]),
        ("image_id,path,Patient ID,class,patients", ["path", "Patient ID", "class"]),
        ("id,patient_id,Image Path,category", ["Image Path", "patient_id", "category"]),
        ("image,id,label", [None, "id", None]),
    ],
)
def test_columns_under_other_names_are_recognized(tmp_path, header, meant):
    path = folder(tmp_path / "a")
    (path / "images.csv").write_text(f"{header}\n00.png,1,0\n")
    names = ("image", "patient", "label")
    wanted = [
        f"expected a column {name}, found {header.replace(',', ', ')}; if {other} is meant, rename it to {name}"
        for name, other in zip(names, meant, strict=True)
        if other
    ]
    assert [text for _, text in problems(path)] == wanted


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_tables_of_any_spreadsheet_are_read(tmp_path, encoding, separator):
    path = folder(tmp_path / "a")
    (path / "images.csv").unlink()
    rows = [(f" {row['image']} ", row["patient"], row["label"].upper(), f"{i // 2},5") for i, row in enumerate(ROWS)]
    text = pd.DataFrame(rows, columns=["Image", "PATIENT", "Label ", "grade"]).to_csv(index=False, sep=separator)
    (path / "export.csv").write_bytes(f"{text}\r\n{separator * 3}\r\n".encode(encoding))
    assert cohort.load(path, NAMES).patients["grade"].tolist() == [0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize("line", ["# exported in May", "image  patient  label", '[{"image":"00.png"}]', "<table><tr>"])
def test_a_first_line_without_columns_is_said_once(tmp_path, line):
    path = folder(tmp_path / "a")
    (path / "images.csv").write_text(f"{line}\n" + (path / "images.csv").read_text())
    ((row, text),) = problems(path)
    assert row is None
    assert f"found one column, {line}; save the table as CSV UTF-8" in text


def test_cells_that_a_spreadsheet_writes_otherwise_are_read(tmp_path):
    path = folder(tmp_path / "a")
    text = "\u200bImage;PATIENT\u00a0;\ufeffLabel;Grade ;fold\n\u00a0;\u200b;;;\n" + "".join(
        f"{row['image']};{row['patient']};{i // 2 % 2},0\u200b;\u22121,{i // 2}25;{1 + i // 4},0\n"
        for i, row in enumerate(ROWS)
    )
    (path / "images.csv").write_bytes(text.encode("utf-16-le"))
    found = cohort.load(path, NAMES)
    assert found.patients["grade"].tolist() == [-1.025, -1.125, -1.225, -1.325]
    assert found.patients["label"].tolist() == [0, 1, 0, 1]
    assert found.folds["fold"].tolist() == [0, 0, 1, 1]
    lines = [f'"{line}"' for line in pd.DataFrame(ROWS).to_csv(index=False).splitlines()]
    (path / "images.csv").write_text("\n".join([*lines[:3], "", *lines[3:]]))
    assert cohort.load(path, NAMES).sources["row"].tolist() == [2, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("first", ["sep=;\r\n", '"sep=;"\n', "SEP=;;;\n", "\ufeffsep=;\r\n"])
def test_a_first_line_that_tells_excel_the_separator_is_no_header(tmp_path, first):
    path = folder(tmp_path / "a", changed(2, patient="P-0, again"))
    text = (path / "images.csv").read_text().replace('"', "").replace(",", ";").replace("; again", ", again")
    (path / "images.csv").write_text(first + text)
    assert cohort.load(path, NAMES).sources["patient"][2] == "P-0, again"
    (path / "images.csv").write_text(first + text.replace("00.png", "no.png"))
    assert problems(path)[0][0] == 2, "a spreadsheet does not show that line"


def test_without_a_table_the_columns_are_named(tmp_path):
    with pytest.raises(cohort.CohortError, match=r"images\.csv with the columns image, patient and label, found"):
        cohort.load(tmp_path)


def test_a_sheet_is_to_be_saved_as_csv(tmp_path):
    path = folder(tmp_path / "a")
    (path / "images.csv").rename(path / "images.xlsx")
    for name in ("~$images.xlsx", "._images.xlsx", "._images.csv"):  # Excel has it open, macOS left it
        (path / name).write_bytes(b"")
    wanted = "expected a file images.csv with the columns image, patient and label, found"
    assert problems(path) == [
        (None, f"{wanted} images.xlsx; save the sheet as CSV UTF-8 under the name images.csv"),
    ]
    for name in ("b.csv", "c.csv"):
        (path / name).write_text("image\n")
    assert problems(path) == [(None, f"{wanted} b.csv, c.csv; keep one of them, or name it images.csv")]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("images.txt", "if that is the table, rename it to images.csv"),
        ("table.tsv", "if that is the table, rename it to images.csv"),
        ("images.parquet", "save the sheet as CSV UTF-8 under the name images.csv"),
        ("data/images.csv", "take the folder in which the table lies"),
        ("../images.csv", "take the folder in which the table lies"),
    ],
)
def test_a_table_of_another_name_or_place_is_named(tmp_path, name, remedy):
    path = folder(tmp_path / "a")
    (path / "notes.txt").write_text("Taken in May, by two people\n")
    (path / "data").mkdir()
    (path / "images.csv").rename(path / name)
    wanted = "expected a file images.csv with the columns image, patient and label, found"
    assert problems(path) == [(None, f"{wanted} {name}; {remedy}")]


def test_cells_that_a_spreadsheet_could_not_compute_are_one_problem_each(tmp_path):
    path = folder(tmp_path / "a")
    lines = (path / "images.csv").read_text().splitlines()
    lines[1] = "#REF!,#N/A,#NAME?"
    (path / "images.csv").write_text("\n".join(lines))
    found = [text for row, text in problems(path) if row == 2]
    assert [text.split(",")[0] for text in found] == ["expected image", "expected patient", "expected label"]


def test_one_picture_of_two_labels_asks_which_is_right(tmp_path):
    path = folder(tmp_path / "a")
    table = pd.read_csv(path / "images.csv")
    one, other = (table.index[table["label"] == name][0] for name in NAMES)
    shutil.copy(path / table["image"][one], path / table["image"][other])
    ((row, text),) = problems(path)
    assert row == max(one, other) + 2
    assert text.endswith("too, of another label; find out whose picture it is and remove it from the other")


def test_every_deviating_row_of_a_patient_is_named(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    for i in range(8):
        Image.fromarray(picture(i)).save(path / f"{i}.png")
    rows = pd.DataFrame([{"image": f"{i}.png", "patient": f"P-{i // 4}", "label": NAMES[i // 4]} for i in range(8)])
    labels = [NAMES[0], NAMES[1], NAMES[0], NAMES[1], NAMES[1], "", NAMES[1], NAMES[0]]
    rows.assign(label=labels).to_csv(path / "images.csv", index=False)
    here = "expected one {} per patient, found {} here and {} in row {} for patient {}"
    assert [one for one in problems(path) if "one label" in one[1]] == [
        (3, here.format("label", "malignant", "benign", 2, "P-0")),
        (5, here.format("label", "malignant", "benign", 2, "P-0")),
        (9, here.format("label", "benign", "malignant", 6, "P-1")),
    ]
    changes = {"grade": ["", 2, 3, 2.5, 1, 1, 1, 1], "fold": [0, 1, 0, 1, 1, 1, 0, 1]}
    rows.assign(**changes).to_csv(path / "images.csv", index=False)
    assert problems(path) == [
        (3, here.format("fold", "fold 1", "fold 0", 2, "P-0")),
        (4, here.format("grade", 3, 2, 3, "P-0")),
        (5, here.format("fold", "fold 1", "fold 0", 2, "P-0")),
        (5, here.format("grade", 2.5, 2, 3, "P-0")),
        (8, here.format("fold", "fold 0", "fold 1", 6, "P-1")),
    ]


def test_what_a_message_cannot_show_is_written_where_it_says(tmp_path, study, monkeypatch, capsys):
    path = uneven(tmp_path / "a", n=260, side=8)
    for i in range(10, 260):
        (path / f"{i}.png").write_bytes(b"")
    run = study(path)
    with pytest.raises(cohort.CohortError) as caught:
        cohort.build_cohort(run)
    lines = str(caught.value).splitlines()
    file = run.root / "cohort_problems.txt"
    assert (len(lines), lines[-1]) == (202, f"  and 50 more, all of them in {file}")
    written = file.read_text(encoding="utf-8").splitlines()
    assert written[:201] == lines[:201]
    assert written[-1].startswith("  row 261: 259.png: expected a PNG")
    file.unlink()
    with pytest.raises(cohort.CohortError, match="and 50 more; correct these to see them"):
        cohort.load(path)
    table = pd.read_csv(path / "images.csv")
    table.assign(label="x").to_csv(path / "images.csv", index=False)
    with pytest.raises(cohort.CohortError, match=r"all of them in .*cohort_problems\.txt"):
        pipeline.check_folder(run)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 252
    table.head(10).to_csv(path / "images.csv", index=False)
    cohort.build_cohort(run)
    assert not file.exists(), "what is corrected is no longer listed"


def test_names_stay_text_and_are_safe_in_a_spreadsheet(tmp_path):
    names = ["=HYPERLINK(1)", "<script>alert(1)</script>", "@x", "-1"]
    rows = [{**row, "patient": names[int(row["patient"][2])]} for row in ROWS]
    found = cohort.load(folder(tmp_path / "a", rows), NAMES)
    safe = found.sources["patient"].tolist()[::2]
    assert safe == ["'=HYPERLINK(1)", "<script>alert(1)</script>", "'@x", "'-1"]
    assert "&lt;script&gt;" in found.sources.to_html()
    assert not any(name in found.provenance["text"] for name in names)


def test_the_command_line_lists_every_problem_before_a_kernel_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    path = folder(tmp_path / "a", changed(1, image="no.png", label="x"))
    (path / "20.png").write_bytes(b"no image")
    Image.fromarray(picture(0)).save(path / "30.png")  # a copy of the first patient's
    arguments = ["--profile", "smoke", "--run", "mine", "--data", str(path)]
    for way in ([], ["--dry-run"]):
        classes = ["--set", "cohort.class_names=[benign, malignant]"]
        assert cli.main(["resolve", *arguments, *classes, *way]) == cli.USER_ERROR
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["nafld", *["  row 3"] * 2, "  row 6", "  row 8"]
        assert "20.png: expected a PNG" in lines[3]
        assert "pixels of 30.png of patient P-3 in row 2 under patient P-0 too" in lines[4]
        assert not [left for left in tmp_path.rglob("*") if path not in (left, left.parent) and not left.is_dir()]
        assert not list(tmp_path.rglob(".check-*"))


def test_images_are_opened_before_a_kernel_starts_only_where_the_table_is_wrong(tmp_path, study, monkeypatch):
    path, opened = folder(tmp_path / "a"), []
    read = images.read
    monkeypatch.setattr(images, "read", lambda file: opened.append(file.name) or read(file))
    run = study(path, folds__n_splits=2)
    pipeline.preflight(run)
    assert opened == []
    with pytest.raises(cohort.CohortError, match=r"folds\.n_splits 3"):
        pipeline.preflight(study(path, folds__n_splits=3, cohort__frames_per_patient=1))
    assert opened == ["00.png", "10.png", "20.png", "30.png"], "those that the run would decode"


def test_a_table_is_checked_where_its_images_cannot_be_decoded(tmp_path, study, monkeypatch):
    small = namedtuple("usage", "free")(1000)
    monkeypatch.setattr("shutil.disk_usage", lambda place: small)
    with pytest.raises(cohort.CohortError, match=r"found no no\.png"):
        pipeline.check_folder(study(folder(tmp_path / "a", changed(1, image="no.png"))))


# ---------------------------------------------------------------- folds


def test_folds_of_the_table_are_honoured(tmp_path):
    found = cohort.load(folder(tmp_path / "a", fold=[2, 2, 1, 1, 1, 1, 2, 2]), NAMES)
    assert found.folds["fold"].tolist() == [1, 0, 0, 1], "counted from 0"


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (
            [0, 1, 0, 0, 1, 1, 1, 1],
            "row 3: expected one fold per patient, found fold 1 here and fold 0 in row 2 for patient P-0",
        ),
        ([0, 0, 1, 1, 0, 0, 1, 1], "both classes in every fold, found label 0 only in fold 0"),
        ([0, 0, 0, 0, 2, 2, 2, 2], "without a gap"),
        ([0, 0, 0, 0, 0, 0, 0, 0], "without a gap"),
        ([0, 0, 0, 0, 1, 1, 1, "a"], "row 9: expected a whole number from 0 as fold, found a"),
        ([0, 0, 0, 0, 1, 1, 1, ""], "row 9: expected a whole number from 0 as fold, found nothing"),
        ([0, 0, 0, 0, 1, 1, 1, 1.5], "row 9: expected a whole number from 0 as fold, found 1.5"),
    ],
)
def test_wrong_folds_are_refused(tmp_path, fold, message):
    with pytest.raises(cohort.CohortError, match=message):
        cohort.load(folder(tmp_path / "a", fold=fold), NAMES)


# ---------------------------------------------------------------- many images, little memory


def uneven(path, n=40, side=64):
    """Images of several sizes, two to a patient."""
    path.mkdir()
    rows = []
    for i in range(n):
        Image.fromarray(picture(i, side + i % 3, side + i % 5)).save(path / f"{i}.png")
        rows.append({"image": f"{i}.png", "patient": f"w{i // 2}", "label": i // 2 % 2})
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    return path


def test_an_interrupted_reading_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "COMMIT_EVERY", 4)
    path, work = uneven(tmp_path / "a"), tmp_path / "work"
    whole = cohort.load(path)
    read, names = images.read, []

    def breaking(file):
        names.append(file.name)
        if len(names) == 11:
            raise KeyboardInterrupt
        return read(file)

    monkeypatch.setattr(images, "read", breaking)
    with pytest.raises(KeyboardInterrupt):
        cohort.load(path, work=work)
    found = cohort.load(path, work=work)
    assert names[11:] == [f"{i}.png" for i in range(8, 40)], "eight of ten were committed"
    assert found.images.equals(whole.images)
    assert isinstance(found.pixels.flat, np.memmap)
    assert all((a == b).all() for a, b in zip(found.pixels, whole.pixels, strict=True))
    assert all((image == picture(i, 64 + i % 3, 64 + i % 5)).all() for i, image in enumerate(found.pixels))


def test_memory_does_not_grow_with_the_images(tmp_path):
    path = uneven(tmp_path / "a", side=256)
    cohort.load(path, work=tmp_path / "first")  # what is imported on first use
    tracemalloc.start()
    found = cohort.load(path, work=tmp_path / "second")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.pixels.flat.nbytes > 40 * 256 * 256
    assert peak < 0.35 * found.pixels.flat.nbytes


def test_ragged_images_are_indexed_like_an_array(tmp_path):
    images = [picture(i, 8 + i, 20 - i) for i in range(5)]
    shapes = [image.shape for image in images]
    ragged = Ragged(np.concatenate([image.ravel() for image in images]), shapes)
    part = ragged[[3, 1]]
    assert len(ragged) == 5
    assert len(part) == 2
    assert (part[0] == images[3]).all()
    assert (part[-1] == images[1]).all()
    assert (ragged[1:][0] == images[1]).all()
    assert part.shapes.tolist() == [list(images[3].shape), list(images[1].shape)]
    with pytest.raises(IndexError):
        ragged[5]


def test_a_store_of_other_arrays_starts_anew_or_is_refused(tmp_path):
    with images.Store(tmp_path, {"a": ((4, 2), np.uint8)}) as store:
        for row in store.remaining(4):
            store.put("a", row, np.full(2, row))
    with images.Store(tmp_path, {"a": ((4, 2), np.uint8)}) as store:
        assert store.done == 4
        assert store.read("a").tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match="expected no other arrays"):
        images.Store(tmp_path, {"a": ((5, 2), np.uint8)}, refuse_other=True)
    with images.Store(tmp_path, {"a": ((5, 2), np.uint8)}) as store:
        assert store.done == 0
        assert not store.read("a").any()


# ---------------------------------------------------------------- stages


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Open a run of the smoke profile on a folder."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))

    def opened(path, **values):
        base = {"cohort.source": "file", "cohort.path": str(path), "cohort.class_names": list(NAMES)}
        base |= {"preprocess.crop_size": 64, "preprocess.image_size": 32, "preprocess.map_size": 32}
        return artifacts.open_run("smoke", base | {name.replace("__", "."): value for name, value in values.items()})

    return opened


def test_stages_take_unequal_images_and_the_tables_folds(tmp_path, study):
    path = uneven(tmp_path / "a", n=16)
    table = pd.read_csv(path / "images.csv")
    table.assign(fold=table["patient"].str[1:].astype(int) // 4).to_csv(path / "images.csv", index=False)
    run = study(path, cohort__frames_per_patient=3)
    unit = cohort.build_cohort(run)
    assert not unit.work.exists(), "a finished unit leaves no work folder"
    preprocessing.build_preprocessed(run)
    data = preprocessing.open_preprocessed(run)
    assert data.folds["fold"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.crops.shape == (16, 64, 64)
    assert (data.images["kept_share"] == 1).all(), "the square is fitted to the region"
    assert data.augmented_pool("traditional").shape == data.pool.shape
    assert run.is_foreign
    assert len(cohort.likeness(run).pairs.query("pair == 'same patient'")) == 8
    with pytest.raises(ValueError, match=r"folds.n_splits is 3, expected the 2 folds .* column fold"):
        preprocessing.build_preprocessed(study(path, cohort__frames_per_patient=3, folds__n_splits=3))
    path.rename(tmp_path / "gone")
    assert len(cohort.open_cohort(run).images) == 16, "what is stored outlives the folder"


def test_a_bad_folder_leaves_nothing_behind(tmp_path, study):
    path = uneven(tmp_path / "a", n=8)
    (path / "3.png").write_bytes(b"")
    run = study(path)
    with pytest.raises(cohort.CohortError, match=r"row 5: 3\.png"):
        cohort.build_cohort(run)
    assert not list(run.root.iterdir())


def test_no_number_of_the_papers_stands_beside_a_foreign_cohort(tmp_path, study):
    run = study(uneven(tmp_path / "a", n=8), cohort__subject="skin photographs")
    row = {"key": "a", "claim": "patients (paper: all)", "paper": 55, "this_run": 4, "same_protocol": "yes"}
    cohort.build_cohort(run)
    table = run.record_claims(
        "01_data_analysis", [row, {**row, "key": "b", "paper": None, "same_protocol": "not in it"}]
    )
    assert table["paper"].isna().all()
    assert set(table["claim"]) == {"patients"}
    assert table["same_protocol"].tolist() == [claims.OTHER_COHORT, "not in it"]
    said = views.words_for(run)
    assert (said.subject, said.positive, said.grade) == ("skin photographs", "malignant", "grade")
    assert "class 1 is malignant" in said.note
    assert "The shipped autoencoder has seen simulated images of another organ alone" in said.note
    assert not re.search("liver|fat|ECG|kidney", said.note), "words of another organ"
    assert views.words_for(artifacts.open_run("smoke")).note == ""


def test_labels_that_are_numbers_under_the_papers_names_are_noted(tmp_path, study):
    """A liver cohort may keep the names, and whether they were chosen cannot be told; so nothing is refused."""
    path = uneven(tmp_path / "a", n=8)
    said = "its label 0 is read as healthy and 1 as fatty; where they mean something else give SET="
    run = study(path, cohort__class_names=["healthy", "fatty"])
    assert said not in views.words_for(run).note, "nothing is loaded yet"
    cohort.build_cohort(run)
    (given,) = re.findall(r'SET="(cohort.*?)"', views.words_for(run).note)
    assert said in views.words_for(run).note
    assert said in report.pages.simulated(run), "the head of every report"
    named = study(path, **params.parse_overrides(given))
    cohort.build_cohort(named)
    assert "class 0 is name of 0, class 1 is name of 1" in views.words_for(named).note
    assert "is read as" not in views.words_for(named).note
    table = pd.read_csv(path / "images.csv")
    table.assign(label=table["label"].map({0: "healthy", 1: "fatty"})).to_csv(path / "images.csv", index=False)
    cohort.build_cohort(run)
    assert run.is_foreign
    assert "is read as" not in views.words_for(run).note
    simulation.write_folder(tmp_path / "liver", 2, 5, n_frames=1)
    liver = study(tmp_path / "liver", cohort__class_names=["healthy", "fatty"])
    cohort.build_cohort(liver)
    assert views.words_for(liver).note == "", "simulated here, its numbers mean what they mean"


def test_regions_and_crops_are_settings(study, tmp_path):
    image = np.zeros((60, 100), np.uint8)
    image[10:50, 20:80] = 200
    chosen = study(tmp_path).settings.preprocess
    largest = images.find_region(image, chosen)
    assert largest.sum() == 40 * 60
    whole = images.find_region(image, chosen.model_copy(update={"region": "none"}))
    assert whole.all()
    box = chosen.model_copy(update={"region": "box", "region_box": (5, 10, 20, 500)})
    assert images.find_region(image, box).sum() == 20 * 90, "a box is cut at the border"
    with pytest.raises(ValueError, match="a box inside the image of 100 x 60 pixels"):
        images.find_region(image, chosen.model_copy(update={"region": "box", "region_box": (99, 0, 5, 5)}))
    square = images.crop_window(whole, chosen, fit=True)
    assert (square.top, square.left, square.side) == (-20, 0, 100)
    assert square.share_of(whole) == 1
    assert square.cut(image, 50).shape == (50, 50)
    plain = images.crop_window(largest, chosen, fit=False)
    assert (plain.top, plain.left, plain.side) == (-2, 18, 64)
    with pytest.raises(ValueError, match="region_box must be"):
        study(tmp_path, preprocess__region="box")


def test_every_image_without_a_region_is_named_by_row_and_file(study, tmp_path):
    path = uneven(tmp_path / "a", n=8)
    for i in (2, 5):
        Image.fromarray(picture(i) % 4).save(path / f"{i}.png")
    run = study(path, preprocess__threshold=4)
    cohort.build_cohort(run)
    dark = "expected pixels above grey level 4 (preprocess.threshold), found none; lower the threshold or remove"
    for act in (cohort.likeness, preprocessing.build_preprocessed):
        with pytest.raises(cohort.CohortError) as caught:
            act(run)
        assert str(caught.value).splitlines() == [
            f"{path}: 2 problems",
            f"  row 4: 2.png: {dark} the frame",
            f"  row 7: 5.png: {dark} the frame",
        ]
    run = study(path, preprocess__region="box", preprocess__region_box=[64, 0, 10, 10])
    with pytest.raises(cohort.CohortError) as caught:
        cohort.likeness(run)
    assert [row for row, _ in caught.value.problems] == [2, 4, 5, 7, 8], "the other images are higher"
    assert "row 5: 3.png: preprocess.region_box: expected a box inside the image of 67 x 64 pixels" in str(caught.value)


def test_without_a_table_images_without_a_region_go_by_their_ids(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    box = {"preprocess.region": "box", "preprocess.region_box": [4000, 0, 5, 5]}
    run = artifacts.open_run("smoke", {"cohort.n_patients": 2, "cohort.frames_per_patient": 1, **box})
    cohort.build_cohort(run)
    with pytest.raises(cohort.CohortError, match=r"artifacts/smoke/cohort: 2 problems\n  image: p001_f\d\d: prep"):
        cohort.likeness(run)


@pytest.mark.parametrize(
    ("region", "box"),
    [("largest", None), ("box", [2, 3, 20, 30]), ("none", None)],
)
def test_the_asked_region_is_what_the_models_see(region, box, study, tmp_path):
    """A bright rectangle, a bright mark apart from it, and a floor that is above black and below the threshold."""
    path, rectangle = tmp_path / "a", (slice(10, 34), slice(16, 56))
    path.mkdir()
    rows, frames = [], []
    for i in range(8):
        frame = np.full((48, 64), 3, np.uint8)
        frame[rectangle] = 40 + picture(i, 24, 40) // 2
        frame[2:5, 2:6] = 250
        frames.append(frame)
        Image.fromarray(frame).save(path / f"{i}.png")
        rows.append({"image": f"{i}.png", "patient": f"w{i}", "label": NAMES[i % 2]})
    pd.DataFrame(rows).to_csv(path / "images.csv", index=False)
    run = study(path, preprocess__region=region, preprocess__region_box=box, preprocess__threshold=4)
    cohort.build_cohort(run)
    preprocessing.build_preprocessed(run)
    data = preprocessing.open_preprocessed(run)
    inside = {"largest": rectangle, "box": (slice(2, 22), slice(3, 33)), "none": (slice(0, 48), slice(0, 64))}[region]
    height, width = (part.stop - part.start for part in inside)
    side, pad = max(height, width), (max(height, width) - min(height, width)) // 2
    assert (data.images["region_pixels"] == height * width).all()
    assert (data.images["crop_side"] == side).all()
    assert (data.images["crop_left"] == inside[1].start).all()
    assert (data.images["crop_top"] == inside[0].start - pad).all()
    for frame, crop, resized in zip(frames, data.crops, data.resized, strict=True):
        square = np.zeros((side, side), np.uint8)  # black outside the region, whatever lies there in the frame
        square[pad : pad + height] = frame[inside]
        assert (crop == images.resize_box(square, images.whole_box(square), 64)).all()
        assert (resized == images.resize_box(crop, images.whole_box(crop), 32)).all()
    assert (data.crops.max() > 200) == (region != "largest"), "the mark apart is seen where it was asked for"


@pytest.mark.parametrize("name", ["=1", "<b>", "a\nb", "", "$x$", "-x", "x" * 61])
def test_class_names_are_plain(study, tmp_path, name):
    with pytest.raises(ValueError, match=r"cohort\.class_names"):
        study(tmp_path, cohort__class_names=["healthy", name])


def test_equal_class_names_are_refused(study, tmp_path):
    with pytest.raises(ValueError, match="two different names"):
        study(tmp_path, cohort__class_names=["Benign", "benign"])


# ---------------------------------------------------------------- simulated folders


def test_a_simulated_folder_is_the_simulated_cohort(tmp_path, monkeypatch):
    small = cohort.simulate(3, 5, n_frames=2)
    simulate, calls = phantom.simulate_patient, []

    def breaking(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return simulate(*arguments)

    monkeypatch.setattr(phantom, "simulate_patient", breaking)
    with pytest.raises(KeyboardInterrupt):
        simulation.write_folder(tmp_path / "a", 3, 5, n_frames=2)
    simulation.write_folder(tmp_path / "a", 3, 5, n_frames=2)
    assert calls == [0, 1, 2, 2], "only the patient that was cut short is simulated again"
    for found in (cohort.load(tmp_path / "a"), image_folder.read(tmp_path / "a", ("healthy", "fatty"), in_place=True)):
        assert (found.pixels == small.pixels).all()
        assert (found.masks == small.masks).all()
        assert found.images["sha256"].equals(small.images["sha256"])
        assert found.images["image_id"].equals(small.images["image_id"])
        assert found.provenance["kind"] == "simulated"
    with pytest.raises(ValueError, match="expected no other cohort"):
        simulation.write_folder(tmp_path / "a", 3, 6, n_frames=2)


def test_a_large_simulated_run_is_the_small_one_on_disk(study, tmp_path, monkeypatch):
    values = {"cohort.source": "simulated", "cohort.n_patients": 2, "cohort.frames_per_patient": 1}
    small = artifacts.open_run("smoke", {**values, "run": "small"})
    large = artifacts.open_run("smoke", {**values, "run": "large"})
    assert small.root != study(tmp_path).root
    cohort.build_cohort(small)
    monkeypatch.setattr(simulation, "ABOVE", 1)
    cohort.build_cohort(large)
    a, b = cohort.open_cohort(small), cohort.open_cohort(large)
    assert (a.pixels == b.pixels).all()
    assert (a.masks == b.masks).all()
    assert a.images.equals(b.images)
    assert large.is_simulated
    assert not large.is_foreign
    assert not unit.fits(large)


def test_the_example_is_a_cohort_of_every_kind_of_file(tmp_path, study, capsys):
    path = tmp_path / "chest"
    assert example.main([str(path), "--patients", "8"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith(f"make all PROFILE=smoke RUN=chest DATA={path} SET=")
    named = params.parse_overrides(command.split("SET=")[1].strip('"'))
    kinds = {name.rsplit(".")[-1] for name in os.listdir(path)}
    assert kinds == {"png", "jpg", "tif", "csv", "json"}
    run = study(path, **named)
    cohort.build_cohort(run)
    found = cohort.open_cohort(run)
    assert found.provenance["kind"] == "simulated"
    assert "Simulated chest radiographs" in found.provenance["text"]
    assert "converted from colour" in found.provenance["text"]
    assert run.is_simulated
    assert run.is_foreign
    assert unit.fits(run)
    assert isinstance(found.pixels, images.Ragged)
    shapes = found.pixels.shapes
    assert len(np.unique(shapes, axis=0)) > 4


def test_a_full_disk_names_the_file_and_keeps_what_was_committed(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with images.Store(tmp_path, {"a": ((300, 4096), np.uint8)}) as store:
        for row in store.remaining(64):
            store.put("a", row, np.ones(4096))
        store._files["a"][0].close()
        handle = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
        store._files["a"] = (handle, 0, 4096)
        with pytest.raises(OSError, match=r"no space left while writing .*a\.npy; free disk space"):
            store.put("a", 64, np.ones(4096))
        handle.close()
        store._files["a"] = (open(tmp_path / "a.npy", "rb"), 0, 4096)  # noqa: SIM115
        with pytest.raises(OSError, match="write") as caught:
            store.put("a", 64, np.ones(4096))
        assert caught.value.__cause__ is None, "any other error is as it was"
    with images.Store(tmp_path, {"a": ((300, 4096), np.uint8)}) as store:
        assert store.done == 64
        assert store.read("a")[:64].all()


def test_a_store_that_begins_anew_forgets_what_was_done_before(tmp_path):
    """Killed while its arrays were moved, begun again, killed before the first row: nothing of it counts as done."""
    arrays = {"a": ((4, 2), np.uint8), "b": ((4,), np.uint8)}
    with images.Store(tmp_path, arrays) as store:
        for row in store.remaining(4):
            store.put("a", row, np.full(2, 7))
            store.put("b", row, np.full((), 7))
    (tmp_path / "a.npy").unlink()  # moved away
    with images.Store(tmp_path, arrays) as store:
        assert store.done == 0
    with images.Store(tmp_path, arrays) as store:
        assert store.done == 0, "rows that were never written count as done"
