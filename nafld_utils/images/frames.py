"""Makes one file of each image in a file that holds several: ``python -m nafld_utils.images.frames scan.dcm``.

The files lie beside it: ``scan_0000.dcm`` and so on, with the tags of the whole; TIFF for a TIFF, PNG for other formats
of Pillow. A table of a cohort names each in a row, all under the one patient whose images they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nafld_utils.images import dicom_file
from nafld_utils.images.image_file import VIDEO, ImageFault


def split(path: Path) -> list[Path]:
    """Write one file of each image in a DICOM file, TIFF stack, GIF, WebP or animated PNG; returns the new files.

    `ImageFault` where the file holds a video, whose stream is then written for another program, or cannot be read.
    """
    if dicom_file.is_dicom(path):
        return list(_dicom_frames(path))
    from PIL import Image

    suffix, found = (".tif" if path.suffix.lower() in (".tif", ".tiff") else ".png"), []
    with path.open("rb") as handle, Image.open(handle) as picture:
        for number, page in enumerate(_pages(picture, path)):
            found.append(path.with_name(f"{path.stem}_{number:04d}{suffix}"))
            page.save(found[-1])
    return found


def _pages(picture: Any, path: Path) -> Iterator[Any]:
    from PIL import Image

    if "ImageJ=" in str(getattr(picture, "tag_v2", {}).get(270, "")):  # the other pages may lie behind the only one
        import tifffile

        stack = tifffile.imread(path)
        yield from (Image.fromarray(page) for page in stack.reshape(-1, *stack.shape[-2:]))
        return
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        inverted = getattr(picture, "tag_v2", {}).get(262) == 0 and picture.mode.startswith(("I", "F"))
        page = picture.convert("RGBA") if picture.mode == "P" else picture.copy()
        if inverted:  # low values are bright, which Pillow does not write
            values = np.asarray(page)
            page = Image.fromarray(values.max() - values)
        yield page


def _dicom_frames(path: Path) -> Iterator[Path]:
    data = dicom_file.dataset(path)
    import pydicom

    if name := dicom_file.video_of(data):
        stream = path.with_suffix(".stream")
        stream.write_bytes(b"".join(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))
        raise ImageFault(f"the file holds a video ({name}), now in {stream}; {VIDEO} {stream} {path.stem}_%04d.png")
    if data.file_meta.TransferSyntaxUID.is_compressed:
        data.decompress()
    n = int(data.get("NumberOfFrames") or 1)
    size, per_frame = len(data.PixelData) // n, list(data.get("PerFrameFunctionalGroupsSequence") or [])
    whole, data.NumberOfFrames = data.PixelData, 1
    for number in range(n):
        frame = whole[number * size : (number + 1) * size]
        data.PixelData = frame + b"\0" * (size % 2)
        if len(per_frame) == n:
            data.PerFrameFunctionalGroupsSequence = [per_frame[number]]
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        made = path.with_name(f"{path.stem}_{number:04d}.dcm")
        data.save_as(made)
        yield made


def main(argv: list[str] | None = None) -> int:
    """Split one file and say where its images lie."""
    parser = argparse.ArgumentParser(prog="python -m nafld_utils.images.frames", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    try:
        found = split(parser.parse_args(argv).file)
    except (ImageFault, OSError) as error:
        print(f"{parser.parse_args(argv).file}: {error}")
        return 1
    print(f"{len(found)} files, {found[0]} to {found[-1].name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
