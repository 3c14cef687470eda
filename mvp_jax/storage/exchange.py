"""The exchange of two folders in one step, where the operating system has it (Linux, on most local file systems)."""

import ctypes
import errno
import os
import sys

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_ABSENT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""What systems and file systems without it answer."""


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Exchanges the names of two folders or files of one file system in a single step, which no reader sees half done.

    Args:
        one: an existing path.
        other: an existing path.

    Returns:
        `False` if the system cannot do it; nothing is changed then.

    Raises:
        OSError: if a path is missing or may not be changed.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _ABSENT:
        return False
    raise OSError(code, os.strerror(code), os.fspath(one), None, os.fspath(other))


__all__ = ["exchange"]
