"""Safetensors files, and the arrays of a bank in them."""

import json
from typing import Any

import numpy as np

from tests.hostile import samples
from tests.hostile.cases import DEEP, HUGE, LATIN, LONG, case

# Safetensors


def tensors(folder, header, data=b"", length=None, name="m.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / name
    path.write_bytes((len(head) if length is None else length).to_bytes(8, "little") + head + data)
    return path


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


TENSORS: dict[str, tuple[Any, ...]] = {
    "empty": (b"", b"", 0),
    "a header of 2^63 bytes": ({"x": entry()}, bytes(8), 2**63),
    "a header longer than the file": ({"x": entry()}, bytes(8), 10_000),
    "overlapping": ({"x": entry(), "y": entry(4, 12)}, bytes(12)),
    "a gap": ({"x": entry(), "y": entry(12, 20)}, bytes(20)),
    "bytes left over": ({"x": entry()}, bytes(12)),
    "an unknown dtype": ({"x": entry(dtype="F31")}, bytes(8)),
    "a dtype of another size": ({"x": entry(dtype="F64")}, bytes(8)),
    "a shape that overflows": ({"x": entry(0, 0, (2**32, 2**32))}, b""),
    "a shape that wraps to its bytes": ({"x": entry(0, 8, (2**62, 4, 2))}, bytes(8)),
    "a negative shape": ({"x": entry(0, 8, (-1, -2))}, bytes(8)),
    "negative offsets": ({"x": entry(-8, 0)}, bytes(8)),
    "huge offsets": ({"x": entry(0, HUGE, (HUGE // 4,))}, bytes(8)),
    "a name twice": (b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "offsets of NaN": (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[NaN,Infinity]}}', bytes(8)),
    "nested deeply": (b'{"x":' + DEEP.encode() + b"}", b""),
    "a number of 5,000 digits": (b'{"x":' + LONG.encode() + b"}", b""),
    "not UTF-8": (LATIN, b""),
    "a name that steers the terminal": ({"x\n\x1b[2J\x1b]0;owned\x07": entry(dtype="F31")}, bytes(8)),
    "a name of a megabyte": ({"x" * 2**20: entry(dtype="F31")}, bytes(8)),
}

for _name, _parts in TENSORS.items():
    case(f"safetensors: {_name}", "safetensors", "weights")(lambda folder, parts=_parts: tensors(folder, *parts))
    case(f"bank arrays: {_name}", "safetensors", "arrays")(lambda folder, parts=_parts: tensors(folder, *parts))


@case("safetensors: truncated", "safetensors", "weights")
def _(folder):
    path = samples.hugging_face(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return path


@case("safetensors: a link to itself", "links", "weights")
def _(folder):
    folder.mkdir()
    (folder / "m.safetensors").symlink_to(folder / "m.safetensors")
    return folder / "m.safetensors"


@case("safetensors: a link to endless zeros", "links", "weights")
def _(folder):
    folder.mkdir()
    (folder / "m.safetensors").symlink_to("/dev/zero")
    return folder / "m.safetensors"


@case("safetensors: a folder", "folders for files", "load", "model.safetensors")
def _(folder):
    samples.hugging_face(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    return folder


# Arrays that this package writes: the layout in the metadata


LAYOUTS = {
    "no layout": {},
    "a layout that is no JSON": {"layout": "{"},
    "a layout nested deeply": {"layout": DEEP},
    "a layout of a list": {"layout": "[]"},
    "a layout of numbers": {"layout": '{"names": 3, "variables": [], "empty": [], "dtypes": {}}'},
    "a layout of unhashable names": {"layout": '{"names": [[]], "variables": [], "empty": [], "dtypes": {}}'},
    "variables that are none": {"layout": '{"names": ["x"], "variables": ["x"], "empty": [], "dtypes": {}}'},
    "variables nowhere": {"layout": '{"names": ["x"], "variables": ["x/y/z"], "empty": [], "dtypes": {}}'},
    "a dtype that does not fit": {"layout": '{"names": ["x"], "variables": [], "empty": [], "dtypes": {"x": "int4"}}'},
    "a dtype of a list": {"layout": '{"names": ["x"], "variables": [], "empty": [], "dtypes": {"x": []}}'},
    "names without arrays": {"layout": '{"names": ["x", "y"], "variables": [], "empty": [], "dtypes": {}}'},
}

for _name, _metadata in LAYOUTS.items():

    @case(f"bank arrays: {_name}", "bank arrays", "arrays")
    def _(folder, metadata=_metadata):
        folder.mkdir()
        (folder / "arrays.safetensors").write_bytes(samples.content({"x": np.ones(2, np.float32)}, **metadata))
        return folder / "arrays.safetensors"
