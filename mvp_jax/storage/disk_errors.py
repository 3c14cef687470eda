"""What to do when a write fails: one sentence for each kind of failure, which names the folder."""

import contextlib
import errno
import os
from collections.abc import Iterator

_ADVICE = {
    errno.ENOSPC: "make room on that disk, or choose another folder",
    errno.EDQUOT: "make room within your quota, or choose another folder",
    errno.EFBIG: "files may not become so large here (`ulimit -f`); raise the limit, or choose another folder",
    errno.EMFILE: "this process has too many files open; raise the limit (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open; close other programs",
    errno.EROFS: "the disk is read-only; choose a folder that can be written",
    errno.EIO: "the disk reports a failure; look at it, or choose another folder",
    errno.ESTALE: "the network file system has lost the folder; mount it again",
    errno.ENOMEM: "free some memory",
}
_VANISHED = "a folder was removed or unmounted during the run"
_OTHER = "choose a folder that can be written"
_GOES_ON = "the same command then goes on from what is finished"


def advice(error: BaseException) -> str:
    """What helps against an error of the disk.

    >>> advice(OSError(errno.ENOSPC, "No space left on device"))
    'make room on that disk, or choose another folder'
    """
    if passing(error):
        return "try again when the network answers"
    code = error.errno if isinstance(error, OSError) else None
    if code is None and "no space left" in str(error).lower():  # what C++ libraries say
        code = errno.ENOSPC
    return _ADVICE.get(code or 0, _VANISHED if code == errno.ENOENT else _OTHER)


def passing(error: BaseException) -> bool:
    """Whether an error is one of the network that may be gone at the next attempt, and says nothing about the files.

    >>> passing(TimeoutError("no answer")), passing(FileNotFoundError("no such file"))
    (True, False)
    """
    return isinstance(error, TimeoutError | ConnectionError | BlockingIOError)


@contextlib.contextmanager
def told(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A context in which a failure of the disk or of memory ends in one line that names the folder and says what to do.

    Errors of the disk are those whose kind says so (no room, read-only, too many open files) and those of files in
    `folder`; other ones, such as data that are not there, pass as they are.

    Args:
        folder: the folder of the run.

    Raises:
        ValueError: in the place of such an `OSError`, of a `MemoryError` or of XLA's error of memory.
    """
    try:
        yield
    except MemoryError as error:
        raise _no_memory(folder, str(error)) from error
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # what XLA says
            raise
        raise _no_memory(folder, str(error).partition("\n")[0]) from error
    except OSError as error:
        if not _of_disk(error, folder):
            raise
        text = " ".join(str(error).split())
        raise ValueError(f"cannot write to {folder}: {text}; {advice(error)}; {_GOES_ON}") from error


def _no_memory(folder: str | os.PathLike[str], text: str) -> ValueError:
    detail = f" ({text[:200]})" if text else ""
    return ValueError(
        f"no memory is left{detail} for the run in {folder}; free some, or lower `chunk` or the batch; {_GOES_ON}"
    )


def _of_disk(error: OSError, folder: str | os.PathLike[str]) -> bool:
    if error.errno in _ADVICE:
        return True
    if "://" in os.fspath(folder):  # a bucket's client says what it likes
        return not isinstance(error, FileNotFoundError)
    inside = os.path.join(os.path.abspath(folder), "")
    names = [os.path.abspath(n) for n in (error.filename, error.filename2) if isinstance(n, str | os.PathLike)]
    return any(f"{name}/".startswith(inside) for name in names)


__all__ = ["advice", "passing", "told"]
