"""JSON files that other programs wrote: read as an object, or refused in one line that says which file is at fault."""

import os
from typing import Any

from mvp_jax.storage import files, foreign_files


def read_json(path: str | os.PathLike[str], *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
        path: the file, on this machine or in a bucket.
        missing: what is returned if there is no such file; `None`: that is an error.

    Raises:
        ValueError: if the file is missing, cannot be read, is no JSON in UTF-8, or holds something else than an object.

    >>> read_json("nowhere.json", missing={})
    {}
    >>> read_json("nowhere.json")
    Traceback (most recent call last):
    ValueError: no file nowhere.json
    """
    file = files.path(path)
    try:
        content = foreign_files.text(file, missing=None if missing is None else "")
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ValueError(f"{file} is not readable JSON: {error}") from error
    if not content and missing is not None and not files.exists(file):
        return missing
    found = foreign_files.parsed(content, file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is a JSON {type(found).__name__}, not an object")
    return found


__all__ = ["read_json"]
