"""What a hostile file is, and the pieces of which they are made."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.hostile import samples

DEEP = "[" * 10_000 + "]" * 10_000
DEEP_OBJECT = '{"a":' * 10_000 + "0" + "}" * 10_000
LONG = "9" * 5_000  # digits; Python reads no whole number of so many
HUGE = 10**400  # more than a float holds
LATIN = b'{"a": "\xe9\xff"}'


class Case(NamedTuple):
    """A hostile file.

    Attributes:
        kind: what it is, for counting.
        reader: the name of the reader that it is given to.
        make: called with an empty folder; returns the path that is given.
        named: what the message must contain besides the path, such as the name of a file in a folder.
    """

    kind: str
    reader: str
    make: Callable[[pathlib.Path], pathlib.Path]
    named: str = ""


CASES: dict[str, Case] = {}


def case(name, kind, reader, named=""):
    """Enters the function that follows under a name."""

    def enter(make):
        assert name not in CASES, name
        CASES[name] = Case(kind, reader, make, named)
        return make

    return enter


class Code:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command="touch executed"):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def elsewhere(folder, name="secret.safetensors"):
    """A file beside the folder that is given, which nobody may read."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / name).write_bytes(samples.content({"secret": np.ones(2, np.float32)}))
    return outside / name


def config(folder, text, name="config.json", make=samples.hugging_face):
    make(folder)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def changed(folder, make=samples.hugging_face, name="config.json", **more):
    make(folder)
    described = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(described | more))
    return folder


def plain(folder, content, name="bank.zip"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name
