"""Files of somebody else's: read only if they are plain files, and refused in one line that names them.

A file may come from anybody. What is wrong with it is told as a `ValueError` whose message is one line, holds nothing
that steers a terminal, and stays short however long the names in the file are.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from mvp_jax.storage import files

LONGEST = 100_000_000
"""The most bytes of a file that is read as one text of JSON; the largest tokenisers have a fifth of it."""

_TOLD = 1000  # characters of a message


def plain_file(path: str | os.PathLike[str], longest: int | None = None) -> pathlib.Path:
    """The path of a file, if it is a plain one: no folder, no device without an end, no pipe that nobody writes to.

    Args:
        path: the file, on this machine; a link to a plain file is one. An address in a bucket is returned as it is.
        longest: the most bytes it may have; `None`: any number.

    Raises:
        FileNotFoundError: if there is none of this name.
        ValueError: if it is something else than a file, cannot be looked at, or is longer.

    >>> plain_file(os.devnull)
    Traceback (most recent call last):
    ValueError: /dev/null cannot be read: it is no plain file
    """
    file = files.path(path)
    if files.is_remote(file):  # where there are no links and no devices
        return file
    try:
        size, plain = os.stat(file).st_size, file.is_file()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a link to itself, a name that is too long or has a NUL
        raise ValueError(f"{told(file)} cannot be read: {told(getattr(error, 'strerror', None) or error)}") from error
    if not plain:
        raise ValueError(f"{told(file)} cannot be read: it is no plain file")
    if longest is not None and size > longest:
        raise ValueError(f"{told(file)} has {size:,} bytes; at most {longest:,} are read of such a file")
    return file


def text(path: str | os.PathLike[str], *, missing: str | None = None) -> str:
    """The content of a file as text in UTF-8.

    Args:
        path: the file, on this machine or in a bucket.
        missing: what is returned if there is no such file; `None`: that is an error.

    Raises:
        ValueError: naming the file, if it is missing, no plain file, longer than `LONGEST`, or no text in UTF-8.

    >>> text("nowhere.txt", missing="")
    ''
    """
    try:
        content = plain_file(path, LONGEST).read_bytes()
        if b"\0" in content:
            raise ValueError(f"{told(path)} is no text: it has a NUL byte ({content.index(0)})")
        return content.decode("utf-8")
    except FileNotFoundError as error:
        if missing is None:
            raise ValueError(f"no file {told(path)}") from error
        return missing
    except UnicodeDecodeError as error:
        raise ValueError(f"{told(path)} is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{told(path)} cannot be read: {told(error)}") from error


def parsed(content: str | bytes, what: object) -> Any:
    """The value that a text of JSON holds.

    Args:
        content: the text, in UTF-8 if it is bytes.
        what: what the message calls it, such as the path of its file.

    Raises:
        ValueError: if it is no JSON, has numbers of thousands of digits, or is nested more deeply than Python reads.

    >>> parsed('{"a": 1}', "a.json"), parsed(b"[2]", "b.json")
    ({'a': 1}, [2])
    >>> parsed("[" * 10_000, "c.json")
    Traceback (most recent call last):
    ValueError: c.json is not readable JSON: maximum recursion depth exceeded ...
    """
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{told(what)} is not readable JSON: {told(error)}") from error


@contextlib.contextmanager
def named(file: object) -> Iterator[None]:
    """A context in which a foreign file is read: what its content brings about becomes a `ValueError` that names it.

    Args:
        file: the path of the file, or words for it.

    Raises:
        ValueError: for any error inside that is not one already and does not name the file already.

    >>> with named("a.json"):
    ...     int("x")
    Traceback (most recent call last):
    ValueError: a.json: invalid literal for int() with base 10: 'x'
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError and str(file) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{told(file)}: {kind}{told(error)}") from error


def told(found: object, most: int = _TOLD) -> str:
    r"""Returns what a file says, or an error tells of it, in one line that can be shown on a terminal.

    Args:
        found: a text, a path, an error.
        most: how many characters are kept.

    >>> told("two\nlines \x1b[2J"), told("a" * 50, most=8)
    ('two lines ?[2J', 'aaaaaaa…')
    """
    line = " ".join(str(found).split())
    line = line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


__all__ = ["LONGEST", "named", "parsed", "plain_file", "text", "told"]
