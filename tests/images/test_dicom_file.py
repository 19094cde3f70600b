"""Grey levels of DICOM files: rescale, windows, tables, bits, padding, empty tags, and what contradicts itself."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from dicom_files import item, table, write
from PIL import Image
from pydicom.dataset import FileMetaDataset

from nafld_utils import images
from nafld_utils.images import dicom_file, frames, grey_levels

Y, X = np.mgrid[:24, :32]
RAMP = (X + Y) / 54
DIM, BRIGHT = (5 + 55 * RAMP).round().astype(np.uint8), (15 + 165 * RAMP).round().astype(np.uint8)
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}
TWELVE = {"BitsStored": 12, "HighBit": 11}


def levels(path, values, photometric="MONOCHROME2", **tags):
    return images.read(write(path / "a.dcm", values, photometric, **tags)).pixels


def fault(path, values, photometric="MONOCHROME2", **tags):
    with pytest.raises(images.ImageFault) as caught:
        levels(path, values, photometric, **tags)
    return str(caught.value)


@pytest.mark.parametrize("frame", [DIM, BRIGHT])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"RescaleSlope": 1, "RescaleIntercept": 0},
        {"RescaleSlope": 2, "RescaleIntercept": -30},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"RescaleSlope": None, "RescaleIntercept": 5},
        {"RescaleIntercept": 5},
        {"PixelPaddingValue": 255},
        {"PixelPaddingValue": None},
        {"VOILUTSequence": []},
        {"ModalityLUTSequence": []},
        {"BitsStored": None},
        {"PixelRepresentation": None},
        {"leave_out": ("PixelRepresentation", "HighBit")},
        {"NumberOfFrames": 0},
        WINDOW,
        WINDOW | {"RescaleSlope": None, "RescaleIntercept": None},
        WINDOW | {"VOILUTFunction": ""},
        {"WindowCenter": [128, 40], "WindowWidth": [256, 80]},
        {"WindowCenter": 127.5, "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 1, "WindowWidth": 1},
        {"WindowCenter": 40, "WindowWidth": -5},
        {"WindowCenter": None, "WindowWidth": 256},
        {"WindowCenter": 128},
    ],
)
def test_an_8_bit_frame_keeps_its_grey_levels(tmp_path, frame, tags):
    found = images.read(write(tmp_path / "a.dcm", frame, **tags))
    assert (found.pixels == frame).all()
    assert not any((found.deep, found.own, found.hidden, found.colour, found.turned))
    assert found.windowed == (tags.get("WindowWidth") in (256, 255, [256, 80]) and bool(tags["WindowCenter"]))


@pytest.mark.parametrize("frame", [DIM, BRIGHT])
def test_the_bits_stored_decide_the_range(tmp_path, frame):
    wide = frame.astype(np.uint16)
    assert (levels(tmp_path, wide, BitsStored=8, HighBit=7) == frame).all()
    twelve = np.round(wide * 16 / 4095 * 255)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    for tags in (TWELVE, TWELVE | window, window, TWELVE | {"RescaleSlope": 3, "RescaleIntercept": -1024}):
        assert (levels(tmp_path, wide * 16, **tags) == twelve).all(), tags
    signed = (wide.astype(np.int16) - 128) * 16
    assert np.abs(levels(tmp_path, signed, **TWELVE).astype(int) - frame).max() <= 1, "-2048 to 2047"
    assert (levels(tmp_path, frame // 2, BitsStored=7, HighBit=6) == np.round(frame // 2 / 127 * 255)).all()
    found = images.read(write(tmp_path / "a.dcm", wide * 16, **TWELVE))
    assert found.deep
    assert not found.own


def test_only_where_nothing_says_the_range_a_picture_has_its_own(tmp_path):
    hounsfield = DIM.astype(np.int16) * 40 - 1024
    found = images.read(write(tmp_path / "a.dcm", hounsfield, RescaleSlope=1, RescaleIntercept=-1024))
    assert found.own
    assert (found.pixels.min(), found.pixels.max()) == (0, 255)
    assert found.said["levels"] == "own darkest to brightest"


def test_16_bits_declared_say_no_range_whatever_the_brightest_value_is(tmp_path):
    """One scanner's pictures, brightest values about 12 bits: a range by each one's brightest gave means 125 and 8."""
    for brightest in (255, 4000, 4280, 65535):
        values = np.round(RAMP * brightest).astype(np.uint16)
        found = images.read(write(tmp_path / "a.dcm", values))
        assert found.own
        assert np.abs(found.pixels - RAMP * 255).max() <= 1, brightest


WINDOWS = [
    {"WindowCenter": 60, "WindowWidth": 80},
    {"WindowCenter": 60, "WindowWidth": 80, "VOILUTFunction": "LINEAR_EXACT"},
    {"WindowCenter": 60, "WindowWidth": 80, "VOILUTFunction": "SIGMOID"},
    {"WindowCenter": [60, 5], "WindowWidth": [80, 7]},
    {"WindowCenter": -40, "WindowWidth": 400, "RescaleSlope": 2, "RescaleIntercept": -100},
]


@pytest.mark.parametrize("tags", WINDOWS)
@pytest.mark.parametrize("values", [BRIGHT, BRIGHT.astype(np.int16) - 90, BRIGHT.astype(np.uint16)])
def test_windows_are_those_of_pydicom(tmp_path, tags, values):
    tags = tags | (TWELVE if values.itemsize == 2 else {})
    path = write(tmp_path / "a.dcm", values, **tags)
    data = pydicom.dcmread(path)
    shown = pydicom.pixels.apply_windowing(pydicom.pixels.apply_modality_lut(data.pixel_array, data), data)
    span = np.array([-(2.0**11), 2**11 - 1] if values.dtype.kind == "i" else [0, 255 if values.itemsize == 1 else 4095])
    low, high = span * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    assert np.abs(images.read(path).pixels - (shown - low) / (high - low) * 255).max() <= 0.5 + 1e-6


def test_tables_are_looked_up_and_have_the_range_of_their_bits(tmp_path):
    squares = (np.arange(256) ** 2 // 255).astype(int)
    assert (levels(tmp_path, DIM, VOILUTSequence=table(squares)) == squares[DIM]).all()
    assert (levels(tmp_path, DIM, ModalityLUTSequence=table(squares)) == squares[DIM]).all()
    wide = DIM.astype(np.uint16) * 16
    expected = np.clip(wide.astype(int) - 300, 0, 255)
    assert (levels(tmp_path, wide, VOILUTSequence=table(range(256), 300), **TWELVE) == expected).all(), "the nearest"
    four = np.arange(4096) // 2
    expected = np.round(four[wide] / 4095 * 255)
    assert (levels(tmp_path, wide, VOILUTSequence=table(four, 0, 12), **TWELVE) == expected).all()
    found = images.read(write(tmp_path / "a.dcm", DIM, VOILUTSequence=table(squares), **WINDOW))
    assert found.windowed
    assert found.said["levels"] == "table", "which counts where there is a window too"
    broken = item(LUTDescriptor=[256, 0, 8], LUTData=b"\1\2")
    assert "a table in VOILUTSequence, found 2 entries of 256" in fault(tmp_path, DIM, VOILUTSequence=broken)


@pytest.mark.parametrize("tags", [{}, WINDOW, {"RescaleSlope": 1, "RescaleIntercept": 0}, TWELVE])
def test_low_values_that_are_bright_are_inverted(tmp_path, tags):
    values = DIM.astype(np.uint16) * 16 if tags is TWELVE else DIM
    expected = 255 - levels(tmp_path, values, **tags)
    assert (levels(tmp_path, values, "MONOCHROME1", **tags) == expected).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_nothing(tmp_path, photometric):
    """The picture of a signed scanner in a square of padding, written as signed and as unsigned number."""
    inside = DIM.astype(np.int16) * 20
    padded = np.pad(inside, 4, constant_values=-2000)
    for value in (-2000, 63536):
        path = write(tmp_path / "a.dcm", padded, photometric)
        data = pydicom.dcmread(path)
        data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        data.save_as(path)
        found = images.read(path)
        assert found.hidden
        assert (found.pixels[4:-4, 4:-4] == levels(tmp_path, inside, photometric)).all()
        assert found.pixels[0].max() == found.pixels[:, -1].max() == 0
    ends = {"PixelPaddingValue": 200, "PixelPaddingRangeLimit": 255}
    found = levels(tmp_path, np.where(X > 20, 200 + X, BRIGHT).astype(np.uint8), **ends)
    assert (found[:, 21:] == 0).all()
    assert (found[:, :20] == BRIGHT[:, :20]).all()
    white = np.where(X > 20, 255, BRIGHT).astype(np.uint8)
    assert (levels(tmp_path, white, PixelPaddingValue=65535) == white).all(), "no pixel of 8 bits can have it"
    alone = fault(tmp_path, np.full((24, 32), 7, np.uint8), PixelPaddingValue=7)
    assert "nothing but PixelPaddingValue 7" in alone


def test_bits_that_are_not_stored_do_not_count(tmp_path):
    values = BRIGHT.astype(np.uint16) * 16
    expected = levels(tmp_path, values, **TWELVE)
    overlaid = values | np.where(X > 9, 0x8000, 0).astype(np.uint16)
    assert "expected values of 12 bits (BitsStored), found" in fault(tmp_path, overlaid, **TWELVE)
    path = write(tmp_path / "a.dcm", overlaid, **TWELVE)
    data = pydicom.dcmread(path)
    data.add_new(0x60000102, "US", 15)
    data.save_as(path)
    assert (images.read(path).pixels == expected).all(), "an overlay in a bit of the picture's"
    assert (levels(tmp_path, values * 16, BitsStored=12, HighBit=15) == expected).all(), "written from the top"
    assert (levels(tmp_path, values, BitsStored=12, HighBit=15) == expected).all(), "only said so"
    low = (BRIGHT.astype(np.int16) - 128) * 16
    extended = levels(tmp_path, low, **TWELVE)
    assert (levels(tmp_path, low & 0x0FFF, **TWELVE) == extended).all(), "a sign at the 12th bit"


def test_windows_of_enhanced_files_are_found(tmp_path):
    expected = levels(tmp_path, DIM, WindowCenter=30, WindowWidth=40)
    group = item(FrameVOILUTSequence=item(WindowCenter=30, WindowWidth=40))
    assert (levels(tmp_path, DIM, SharedFunctionalGroupsSequence=group) == expected).all()
    assert (levels(tmp_path, DIM, PerFrameFunctionalGroupsSequence=group, NumberOfFrames=1) == expected).all()
    rescale = item(PixelValueTransformationSequence=item(RescaleSlope=-1, RescaleIntercept=255))
    assert (levels(tmp_path, DIM, SharedFunctionalGroupsSequence=rescale) == 255 - DIM).all()


def test_colours_of_every_kind_are_those_of_the_picture(tmp_path):
    rgb = np.stack([DIM, BRIGHT, 255 - DIM], axis=-1)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    assert (levels(tmp_path, rgb, "RGB", **WINDOW) == grey).all(), "a window means nothing for colour"
    assert (levels(tmp_path, rgb, "RGB", leave_out=("PlanarConfiguration", "SamplesPerPixel")) == grey).all()
    planes = np.moveaxis(rgb, -1, 0).copy()
    written = write(tmp_path / "b.dcm", planes, "RGB", Rows=24, Columns=32, SamplesPerPixel=3, PlanarConfiguration=1)
    assert (images.read(written).pixels == grey).all()
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(levels(tmp_path, ybr, "YBR_FULL").astype(int) - grey).max() <= 2


@pytest.mark.parametrize(
    ("values", "photometric", "tags", "message"),
    [
        (DIM, "MONOCHROME2", {"VOILUTFunction": "CURVE", **WINDOW}, "VOILUTFunction to be LINEAR, .* found CURVE"),
        (DIM, "MONOCHROME2", {"WindowCenter": 900, "WindowWidth": 50}, "shows one level of 5 to 60; correct the tag"),
        (DIM, "", {}, "expected PhotometricInterpretation to be one of MONOCHROME1, .* found none; correct"),
        (np.stack([DIM] * 3, -1), "YBR_PARTIAL_422", {}, "found YBR_PARTIAL_422; correct the tag or save it as PNG"),
        (np.stack([DIM] * 3, -1), "HSV", {}, "found HSV"),
        (np.stack([DIM] * 3, -1), "MONOCHROME2", {}, r"expected one image of MONOCHROME2, found .*\(24, 32, 3\)"),
        (DIM, "RGB", {}, r"expected one image of RGB, found an array of shape \(24, 32\)"),
        (np.stack([DIM] * 3, -1).astype(np.uint16), "RGB", {}, "expected 8-bit colour of three channels, found uint16"),
        (DIM, "MONOCHROME2", {"BitsStored": 12}, "BitsStored|Bits Stored"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(tmp_path, values, photometric, tags, message):
    with pytest.raises(images.ImageFault, match=message):
        images.read(write(tmp_path / "a.dcm", values, photometric, **tags))


def test_a_number_that_is_none_is_named(tmp_path):
    path = write(tmp_path / "a.dcm", DIM, RescaleSlope="1.5", RescaleIntercept=0)
    path.write_bytes(path.read_bytes().replace(b"1.5 ", b"1,5 "))
    with pytest.raises(images.ImageFault, match=r"expected a number in RescaleSlope, found 1,5; correct"):
        images.read(path)


# ---------------------------------------------------------------- several frames


def command_of(message):
    return message[message.index("python -m nafld_utils.images.frames") :].split("python ", 1)[1].split()


def test_the_command_of_the_message_makes_frames_with_the_tags_of_the_whole(tmp_path):
    stack = np.stack([DIM, BRIGHT, DIM // 2])
    path = write(tmp_path / "scan.dcm", stack, NumberOfFrames=3, RescaleSlope=1, RescaleIntercept=0)
    with pytest.raises(
        images.ImageFault, match="expected one image in a file, found 3; make one file of each"
    ) as caught:
        images.read_header(path)
    done = subprocess.run([sys.executable, *command_of(str(caught.value))], capture_output=True, text=True, check=True)
    made = sorted(tmp_path.glob("scan_*.dcm"))
    assert done.stdout == f"3 files, {made[0]} to scan_0002.dcm\n"
    assert all((images.read(one).pixels == frame).all() for one, frame in zip(made, stack, strict=True))
    assert len({pydicom.dcmread(one).SOPInstanceUID for one in made}) == 3


def test_frames_keep_their_own_groups_and_are_unpacked(tmp_path):
    windows = [item(FrameVOILUTSequence=item(WindowCenter=center, WindowWidth=40))[0] for center in (30, 60)]
    path = write(tmp_path / "a.dcm", np.stack([DIM, DIM]), NumberOfFrames=2, PerFrameFunctionalGroupsSequence=windows)
    data = pydicom.dcmread(path)
    data.compress(pydicom.uid.RLELossless)
    data.save_as(path)
    expected = [levels(tmp_path / "..", DIM, WindowCenter=center, WindowWidth=40) for center in (30, 60)]
    assert all((images.read(p).pixels == e).all() for p, e in zip(frames.split(path), expected, strict=True))


def test_a_video_in_dicom_is_refused_and_its_stream_is_written(tmp_path, capsys):
    path = write(tmp_path / "a.dcm", DIM)
    data = pydicom.dcmread(path)
    data.PixelData = pydicom.encaps.encapsulate([b"a stream"])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
    data.save_as(path)
    with pytest.raises(images.ImageFault, match=r"found a video \(MPEG-4 AVC/H.264 High Profile .*images.frames"):
        images.read_header(path)
    assert frames.main([str(path)]) == 1
    assert "ffmpeg -i" in capsys.readouterr().out
    assert (tmp_path / "a.stream").read_bytes() == b"a stream"
    assert dicom_file.video_of(data).startswith("MPEG-4")


def test_a_deflated_file_is_read_unless_it_is_a_bomb(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = deflated(tmp_path / "a.dcm", values)
    assert (images.read(path).pixels == values).all()
    bomb = deflated(tmp_path / "b.dcm", np.zeros((3000, 1000), np.uint8))
    assert bomb.stat().st_size < 10_000
    monkeypatch.setattr(dicom_file, "MOST_BYTES", 2**20)
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("inflated whole"))
    with pytest.raises(images.ImageFault, match=r"at most 1 MiB, found \d+ bytes that inflate to more; save it"):
        images.read_header(bomb)


@pytest.mark.parametrize("n", [1_000, 20_000])
def test_a_file_of_more_items_than_any_image_has_is_refused_before_they_become_objects(tmp_path, monkeypatch, n):
    """20,000 empty items of 8 bytes are 20,000 data sets in memory: 60 million deflate to less than a MB."""
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = write(tmp_path / "a.dcm", values)
    content = path.read_bytes()
    first = content.index(b"\x28\x00\x02\x00US")  # SamplesPerPixel; before it ReferencedImageSequence
    items = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * n
    items += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(content[:first] + items + content[first:])
    if n < dicom_file.MOST_ITEMS:
        assert (images.read(path).pixels == values).all()
        return
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("made objects"))
    with pytest.raises(images.ImageFault, match=r"expected at most 10,000 items of sequences, found more"):
        images.read_header(path)


def test_a_bomb_of_the_usual_limit_takes_little_memory(tmp_path):
    import tracemalloc

    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)  # which may follow itself
    small = deflated(tmp_path / "small.dcm", np.zeros((8, 8), np.uint8)).read_bytes()
    length = int.from_bytes(small[140:144], "little")  # of the part of the file that is not deflated
    with open(tmp_path / "b.dcm", "wb") as handle:
        handle.write(small[: 144 + length])
        handle.write(block * (dicom_file.MOST_BYTES // 2**24 + 1) + packer.flush())
    tracemalloc.start()
    with pytest.raises(images.ImageFault, match=r"at most 512 MiB, found \d+ bytes that inflate to more"):
        images.read_header(tmp_path / "b.dcm")
    assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    tracemalloc.stop()


def deflated(path, values):
    """The file of `write`, saved with the transfer syntax of PS3.5, A.5."""
    data = pydicom.dcmread(write(path, values))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    return path


def test_padding_may_need_more_bits_than_are_stored(tmp_path):
    values = DIM.astype(np.uint16) * 16
    values[:, :4] = 63536  # -2000 in 16 bits
    found = images.read(write(tmp_path / "a.dcm", values, PixelPaddingValue=63536, **TWELVE))
    assert found.hidden
    assert not found.pixels[:, :4].any()
    assert (found.pixels[:, 4:] == np.round(DIM * 16.0 / 4095 * 255)[:, 4:]).all()


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_a_file_without_preamble_is_read(tmp_path, ending):
    data = pydicom.dcmread(write(tmp_path / "a.dcm", DIM, SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1"))
    data.file_meta, data.preamble = FileMetaDataset(), None
    path = tmp_path / f"old{ending}"
    data.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:2] == b"\x08\0"
    assert (images.read(path).pixels == DIM).all()
    path.write_bytes(b"\x08\0\x05\0" + b"no tags" * 40)
    with pytest.raises(images.ImageFault, match="expected a DICOM file"):
        images.read(path)


def test_a_report_without_pixels_is_called_so(tmp_path):
    path = write(tmp_path / "a.dcm", np.full((8, 8), 7, np.uint8))
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)
    with pytest.raises(images.ImageFault, match="found a DICOM file without pixels; take it out of the table"):
        images.read(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0.97, 0.7, 0.4])
def test_a_file_that_is_cut_off_is_to_be_got_again(tmp_path, share, compressed):
    path = write(tmp_path / "a.dcm", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    if compressed:
        whole = pydicom.dcmread(path)
        whole.compress(pydicom.uid.RLELossless)
        whole.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(images.ImageFault, match=r"; get it again, it may be cut off$") as caught:
        images.read(path)
    assert str(tmp_path) not in str(caught.value)
    assert ("expected 4096 bytes of pixels, found" in str(caught.value)) != compressed


def test_what_a_decoder_says_is_cut_between_words():
    assert grey_levels.reason(ValueError("word " * 40)) == "word " * 23 + "..."
