"""Archives of arrays, and pickles with code."""

import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from tests.hostile import samples
from tests.hostile.cases import Code, case

# Pickles with code


@case("pytorch_model.bin: a pickle with code", "pickles with code", "load", "pytorch_model.bin")
def _(folder):
    samples.hugging_face(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    return folder


@case("weights.pth: a zip with a pickle with code", "pickles with code", "weights")
def _(folder):
    folder.mkdir()
    with zipfile.ZipFile(folder / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Code()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return folder / "weights.pth"


@case("npz: objects with code", "pickles with code", "npz")
def _(folder):
    return samples.npz(folder, train_images=np.array([Code()] * 4, object), train_labels=np.arange(4))


@case("npz: objects with code, by labelled.read", "pickles with code", "data")
def _(folder):
    return samples.npz(folder, train_images=np.array([Code()] * 4, object), train_labels=np.arange(4))


@case("npz: a pickle under the name", "pickles with code", "npz")
def _(folder):
    folder.mkdir()
    (folder / "toy.npz").write_bytes(pickle.dumps(Code()))
    return folder / "toy.npz"


@case("npz: an array file of objects under the name", "pickles with code", "data")
def _(folder):
    folder.mkdir()
    (folder / "toy.npz").write_bytes(samples.npy(np.array([Code()], object)))
    return folder / "toy.npz"


@case("npz: class names of objects", "pickles with code", "npz")
def _(folder):
    x = np.zeros((4, 4, 4), np.uint8)
    names = np.array([Code(), Code()], object)
    return samples.npz(folder, train_images=x, train_labels=np.arange(4) % 2, class_names=names)


@case("mask of a run: objects with code", "pickles with code", "mask")
def _(folder):
    return samples.npz(folder, w=np.array([Code()], object))


# Archives of arrays


def npz_of(folder, members, compression=zipfile.ZIP_DEFLATED):
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy.npz", "w", compression, compresslevel=9) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                for piece in content if isinstance(content, list) else [content]:
                    stream.write(piece)
    return folder / "toy.npz"


def head(shape, dtype="|u1", order=False):
    """The head of an array file."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": order, "shape": shape})
    return stream.getvalue()


LABELS = samples.npy(np.arange(4) % 2)
IMAGES = samples.npy(np.zeros((4, 4, 4), np.uint8))

ARRAYS: dict[str, dict[str, Any]] = {
    "a shape of 10^15 bytes": {"train_images.npy": head((10**9, 10**6)), "train_labels.npy": LABELS},
    "a shape that overflows": {"train_images.npy": head((2**40, 2**40)), "train_labels.npy": LABELS},
    "a negative shape": {"train_images.npy": head((-4, 4)) + bytes(16), "train_labels.npy": LABELS},
    "a bomb of 256 MiB": {
        "train_images.npy": [head((256, 1024, 1024)), *[bytes(2**20)] * 256],
        "train_labels.npy": LABELS,
    },
    "a dtype that is code": {
        "train_images.npy": IMAGES.replace(b"'|u1'", b"f() "[:5]),
        "train_labels.npy": LABELS,
    },
    "a head that is no literal": {
        "train_images.npy": b"\x93NUMPY\x01\x00"
        + struct.pack("<H", 40)
        + b"__import__('os').system('touch x')".ljust(40),
        "train_labels.npy": LABELS,
    },
    "a head nested deeply": {
        "train_images.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 4500 + b")" * 4500,
        "train_labels.npy": LABELS,
    },
    "members that are text": {"train_images.npy": b"text", "train_labels.npy": b""},
    "no members": {},
    "class names of numbers": {
        "train_images.npy": IMAGES,
        "train_labels.npy": LABELS,
        "class_names.npy": samples.npy(np.float64(3)),
    },
    "class names that are not UTF-8": {
        "train_images.npy": IMAGES,
        "train_labels.npy": LABELS,
        "class_names.npy": samples.npy(np.array([b"\xff\xfe", b"b"])),
    },
    "class names in a square": {
        "train_images.npy": IMAGES,
        "train_labels.npy": LABELS,
        "class_names.npy": samples.npy(np.array([["a", "b"], ["c", "d"]])),
    },
    "labels of complex numbers": {"train_images.npy": IMAGES, "train_labels.npy": samples.npy(np.ones(4) * 1j)},
    "labels of dates": {"train_images.npy": IMAGES, "train_labels.npy": samples.npy(np.zeros(4, "M8[s]"))},
    "labels of 10^9 classes": {
        "train_images.npy": IMAGES,
        "train_labels.npy": samples.npy(np.array([0, 1, 2, 2**31 - 1])),
    },
    "labels of no axis": {"train_images.npy": IMAGES, "train_labels.npy": samples.npy(np.int64(1))},
    "images of one number": {"train_images.npy": samples.npy(np.uint8(1)), "train_labels.npy": LABELS},
}

for _name, _members in ARRAYS.items():
    for _reader in ("npz", "data"):
        if (_reader, _name) == ("data", "labels of 10^9 classes"):
            continue  # labels there are names
        case(f"npz, {_reader}: {_name}", "archives of arrays", _reader)(
            lambda folder, members=_members: npz_of(folder, members)
        )


@case("npz: a member that is encrypted", "archives of arrays", "npz")
def _(folder):
    path = samples.npz(folder)
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + at] |= 1
    path.write_bytes(content)
    return path


@case("npz: an unknown compression", "archives of arrays", "npz")
def _(folder):
    path = samples.npz(folder)
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + at] = 99
    path.write_bytes(content)
    return path


@case("npz: a folder", "folders for files", "npz")
def _(folder):
    (folder / "toy.npz").mkdir(parents=True)
    return folder / "toy.npz"


@case("npz: a link to itself", "links", "data")
def _(folder):
    folder.mkdir()
    (folder / "toy.npz").symlink_to("toy.npz")
    return folder / "toy.npz"


@case("mask of a run: a bomb of 256 MiB", "archives of arrays", "mask")
def _(folder):
    return npz_of(folder, {"w.npy": [head((256, 1024, 1024)), *[bytes(2**20)] * 256]})


@case("mask of a run: text", "archives of arrays", "mask")
def _(folder):
    folder.mkdir()
    (folder / "mask.npz").write_text("no mask")
    return folder / "mask.npz"
