"""`.npz` archives, read by the keys that are wanted."""

import math
import pathlib
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from mvp_jax.storage import foreign_files

_SMALL = 2**26  # bytes; an array of no more may be packed as closely as it likes
_PACKED = 100  # times its size in the file; what deflates further is zeros, such as those that fill a machine's memory


def read(
    path: pathlib.Path, needed: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Reads arrays of an archive.

    Args:
        path: the `.npz` file.
        needed: keys that must be there; `None`: all that are there.
        optional: keys that are left out if they are not there.

    Returns:
        The arrays by key.

    Raises:
        ValueError: for a missing or damaged file, pickled objects, arrays of more than 64 MiB that would take more
            than a hundred times what they take in the file, or missing keys, with those that are there.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; give the path of an .npz archive")
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            needed = there if needed is None else needed
            missing = [k for k in needed if k not in there]
            if not missing:
                found = {k: _array(archive, f"{k}.npy") for k in (*needed, *optional) if k in there}
    except Exception as error:  # what a damaged file makes of zip, deflate and NumPy has no common type
        reason = foreign_files.told(error, 300)
        raise ValueError(f"{path} is not a readable .npz archive (damaged or cut short?): {reason}") from error
    if missing:
        raise ValueError(
            f"{path} lacks {missing}; it has {foreign_files.told(there, 300)}; name its keys by train=(images, labels) "
            "and test=..., or pass test=None"
        )
    return found


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive, if it is as large as its head says and no bomb."""
    info = archive.getinfo(name)
    if info.file_size > max(_SMALL, _PACKED * info.compress_size):
        raise ValueError(
            f"{name} would unpack from {info.compress_size:,} to {info.file_size:,} bytes; write it by np.savez, "
            "without compression, if that is right"
        )
    with archive.open(info) as stream:
        shape, dtype = _head(stream)
        size = math.prod(shape) * dtype.itemsize + stream.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or size != info.file_size:
        raise ValueError(f"{name} of {dtype}{list(shape)!s:.60} would take {size!s:.30} bytes, not {info.file_size}")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _head(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def texts(names: np.ndarray) -> list[str]:
    """Returns the names in an array of strings or bytes.

    Raises:
        ValueError: if they do not stand in one row, or are not UTF-8.

    >>> texts(np.array([b"ant", b"bee"]))
    ['ant', 'bee']
    """
    if names.ndim != 1:
        raise ValueError(f"names of the shape {list(names.shape)}; give one row of them")
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()]
