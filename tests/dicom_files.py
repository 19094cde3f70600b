"""Small DICOM files for tests."""

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset


def write(path, values, photometric="MONOCHROME2", leave_out=(), **tags):
    """A file of grey or colour values, (H, W), (H, W, 3) or as many frames as `NumberOfFrames` says."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = values.shape[-1] == 3
    data.Rows, data.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        data.PlanarConfiguration = 0
    bits = values.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(data, name, value)
    for name in leave_out:
        delattr(data, name)
    data.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    data.save_as(path, enforce_file_format=True)
    return path


def table(entries, first=0, bits=8):
    """A lookup table of so many bits that begins at value `first`."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return [item]


def item(**tags):
    """A sequence of one item."""
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return [found]
