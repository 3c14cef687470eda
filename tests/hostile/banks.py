"""Banks and archives of banks."""

import hashlib
import json
import pathlib
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from tests.hostile import samples
from tests.hostile.cases import DEEP, HUGE, LATIN, Code, case, changed, plain

# Banks


def entry_of(folder, **more):
    return changed(folder, samples.a_bank, "entries/cats/entry.json", **more)


ENTRIES: dict[str, dict[str, Any]] = {
    "classes of infinity": {"classes": [float("inf")]},
    "classes of text": {"classes": ["a"]},
    "classes of a number": {"classes": 3},
    "a ratio of NaN": {"ratio": float("nan")},
    "a ratio of 10^400": {"ratio": HUGE},
    "an accuracy of text": {"accuracy": "good"},
    "a checksum of a number": {"checksum": 7},
    "a fingerprint of a list": {"fingerprint": []},
    "a cost of text": {"cost": "much"},
    "a task of a number": {"task": 7},
    "a task that steers the terminal": {"task": "\x1b[2J\n", "checksum": "0"},
    "class names of numbers": {"class_names": [1, 2]},
}

for _name, _fields in ENTRIES.items():
    case(f"entry.json: {_name}", "banks", "whole_bank", "entries/cats")(
        lambda folder, fields=_fields: entry_of(folder, **fields)
    )
    case(f"entry.json, verified: {_name}", "banks", "verified_bank", "entries/cats")(
        lambda folder, fields=_fields: entry_of(folder, **fields)
    )

ABOUT: dict[str, dict[str, Any]] = {
    "a fingerprint of a number": {"fingerprint": 3},
    "another version": {"version": 99},
    "settings of a list": {"settings": []},
    "a description of text": {"about": "pets"},
    "a title of a number": {"about": {"title": 3}},
}

for _name, _fields in ABOUT.items():
    case(f"manifest.json: {_name}", "banks", "whole_bank")(
        lambda folder, fields=_fields: changed(folder, samples.a_bank, "manifest.json", **fields)
    )


@case("manifest.json: a model of 100,000 layers", "banks", "verified_bank")
def _(folder):
    samples.a_bank(folder)
    shutil.rmtree(folder / "model")
    described = json.loads((folder / "manifest.json").read_text())
    described["about"]["model"]["inner_widths"] = [[[4]] * 100_000, [[4]], [[4]]]
    (folder / "manifest.json").write_text(json.dumps(described))
    return folder


@case("bank: entries that are a file", "folders for files", "whole_bank")
def _(folder):
    samples.a_bank(folder)
    shutil.rmtree(folder / "entries")
    (folder / "entries").write_text("no folder")
    return folder


@case("bank: an entry whose description is a folder", "folders for files", "whole_bank")
def _(folder):
    samples.a_bank(folder)
    (folder / "entries" / "birds" / "entry.json").mkdir(parents=True)
    return folder


@case("bank: an entry that is a link out of the bank", "links", "whole_bank", "entries/birds")
def _(folder):
    samples.a_bank(folder)
    other = samples.a_bank(folder.parent / "outside", ("birds",))
    (folder / "entries" / "birds").symlink_to(other / "entries" / "birds")
    return folder


@case("bank: a description that is a link out of the bank", "links", "whole_bank", "entries/cats")
def _(folder):
    samples.a_bank(folder)
    other = samples.a_bank(folder.parent / "outside", ("cats",))
    (folder / "entries" / "cats" / "entry.json").unlink()
    (folder / "entries" / "cats" / "entry.json").symlink_to(other / "entries" / "cats" / "entry.json")
    return folder


@case("bank: a description that is a link to endless zeros", "links", "verified_bank", "entries/cats")
def _(folder):
    samples.a_bank(folder)
    (folder / "entries" / "cats" / "entry.json").unlink()
    (folder / "entries" / "cats" / "entry.json").symlink_to("/dev/zero")
    return folder


@case("bank: arrays that are a link to endless zeros", "links", "verified_bank", "entries/cats")
def _(folder):
    samples.a_bank(folder)
    (folder / "entries" / "cats" / "arrays.safetensors").unlink()
    (folder / "entries" / "cats" / "arrays.safetensors").symlink_to("/dev/zero")
    return folder


@case("bank: arrays that are cut short", "banks", "verified_bank", "entries/cats")
def _(folder):
    path = samples.a_bank(folder) / "entries" / "cats" / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    return folder


@case("bank: event files of TensorBoard", "event files", "whole_bank")
def _(folder):
    samples.events(folder)
    return folder


@case("bank: an event file of TensorBoard", "event files", "whole_bank")
def _(folder):
    return samples.events(folder)


@case("bank: an event file as its manifest", "event files", "continued_bank")
def _(folder):
    content = samples.events(folder.parent / "board").read_bytes()
    samples.a_bank(folder)
    (folder / "manifest.json").write_bytes(content)
    return folder


@case("archive: an event file of TensorBoard", "event files", "archive")
def _(folder):
    return samples.events(folder)


# Archives of banks


def packed(folder, members=None, change=None, drop=()):
    """An archive of a bank with other members: `(name or ZipInfo, content)`, and checksums that fit."""
    path = samples.archive(folder)
    with zipfile.ZipFile(path) as archive:
        content: dict[Any, bytes] = {
            n: archive.read(n) for n in archive.namelist() if n != "SHA256SUMS" and n not in drop
        }
    content |= members or {}
    names = {n if isinstance(n, str) else n.filename: c for n, c in content.items()}
    sums = "".join(f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in names.items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, own in {**content, "SHA256SUMS": sums.encode()}.items():
            archive.writestr(name, own)
    if change:
        path.write_bytes(change(path.read_bytes()))
    return path


def link(name, target):
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = (0o120777) << 16
    return {info: target.encode()}


def squeezed(name, content):
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return {info: content}


def claimed_size(content, size=2**31):
    """The sizes that the directory of a zip file tells, made larger."""
    content = bytearray(content)
    at = content.find(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", size, size)
    return bytes(content)


ARCHIVES: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "a path above": lambda f: packed(f, {"../outside/executed": b""}),
    "a path above inside": lambda f: packed(f, {"entries/../../executed/entry.json": b""}),
    "an absolute path": lambda f: packed(f, {"/tmp/executed": b""}),
    "a path of a drive": lambda f: packed(f, {"C:\\executed": b""}),
    "a NUL in a name": lambda f: packed(f, change=lambda c: c.replace(b"entries/cats", b"entries/c\0ts")),
    "a link": lambda f: packed(
        f, link("entries/cats/arrays.safetensors", "/etc/passwd"), drop=["entries/cats/arrays.safetensors"]
    ),
    "a link as the description": lambda f: packed(f, link("manifest.json", "/etc/passwd"), drop=["manifest.json"]),
    "code": lambda f: packed(f, {"model/setup.py": b"import os"}),
    "a file of pickles": lambda f: packed(f, {"model/pytorch_model.bin": pickle.dumps(Code())}),
    "a bomb": lambda f: packed(f, squeezed("README.md", bytes(2**28)), drop=["README.md"]),
    "sizes that lie": lambda f: packed(f, change=claimed_size),
    "another content than listed": lambda f: packed(f, change=lambda c: c.replace(b"CC0", b"CC1")),
    "no manifest": lambda f: packed(f, drop=["manifest.json"]),
    "a manifest nested deeply": lambda f: packed(f, {"manifest.json": DEEP.encode()}),
    "a manifest that is not UTF-8": lambda f: packed(f, {"manifest.json": LATIN}),
    "an entry nested deeply": lambda f: packed(f, {"entries/cats/entry.json": DEEP.encode()}),
    "an entry that is a number": lambda f: packed(f, {"entries/cats/entry.json": b"7"}),
    "half an entry": lambda f: packed(f, drop=["entries/cats/entry.json"]),
    "an entry under another name": lambda f: packed(f, change=lambda c: c.replace(b"entries/cats", b"entries/bats")),
    "a model nested deeply": lambda f: packed(f, {"model/model.json": DEEP.encode()}),
    "no zip": lambda f: plain(f, b"not a zip file"),
    "an empty file": lambda f: plain(f, b""),
    "cut short": lambda f: packed(f, change=lambda c: c[: len(c) // 2]),
    "a directory that points outside": lambda f: packed(f, change=lambda c: c[:-6] + struct.pack("<I", 2**31) + c[-2:]),
    "a folder": lambda f: samples.a_bank(f),
}


for _name, _make in ARCHIVES.items():
    case(f"archive: {_name}", "archives of banks", "archive")(_make)
    case(f"archive, imported: {_name}", "archives of banks", "imported")(_make)
