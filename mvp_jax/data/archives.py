"""`.npz` archives, read by the keys that are wanted."""

import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np


def read(path: pathlib.Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads arrays of an archive.

    Args:
        path: the `.npz` file.
        needed: keys that must be there.
        optional: keys that are left out if they are not there.

    Returns:
        The arrays by key.

    Raises:
        ValueError: for a missing or damaged file, pickled objects, or missing keys, with those that are there.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; give the path of an .npz archive")
    found: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            there = list(archive.files)
            missing = [k for k in needed if k not in there]
            if not missing:
                found = {k: archive[k] for k in (*needed, *optional) if k in there}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz archive (damaged or cut short?): {error}") from error
    if missing:
        raise ValueError(
            f"{path} lacks {missing}; it has {there}; name its keys by train=(images, labels) and test=..., "
            "or pass test=None"
        )
    return found


def texts(names: np.ndarray) -> list[str]:
    """Returns the names in an array of strings or bytes.

    >>> texts(np.array([b"ant", b"bee"]))
    ['ant', 'bee']
    """
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
