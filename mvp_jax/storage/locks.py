"""The lock of a folder: a second process that wants to write in it is refused in words.

On this machine, and on network file systems that pass locks on, the operating system holds it (`flock`): when the
process ends in whatever way, `kill -9` and a power cut included, the lock is free, and the next process takes it over.
Nothing about it depends on the clock. The file `.lock` says who has it, for the message alone.

In a bucket, and where the system has no locks, the object or file `.lock` is a notice: a process of this machine is
refused a folder in which another one of this machine, which still runs, has left its notice. A notice from another
machine cannot be checked, as nobody here knows whether that process lives; the folder is then taken over with a line
that says so. Thus a job that was killed there goes on here, and two jobs on two machines in one bucket are the user's
to avoid: their finished parts are equal, but one may remove a state that the other is writing.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from mvp_jax.storage import fault_points, files, leftovers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""The file in a locked folder."""

_TICK = 0.02  # seconds between two attempts to get a lock for which it is worth to wait


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], *, name: str = NAME, wait: float = 0.0) -> Iterator[bool]:
    """A context in which this process alone has the lock of a folder.

    Args:
        folder: made if absent; an address in a bucket too, see above.
        name: the file of the lock; locks of one folder with different names are different ones.
        wait: how many seconds to wait for another process before the folder is refused.

    Yields:
        Whether the lock excludes all others, as it does unless it is a mere notice.

    Raises:
        ValueError: if another process has the lock, or the folder cannot be written.

    >>> import tempfile
    >>> place = tempfile.mkdtemp()
    >>> with held(place):
    ...     try:
    ...         with held(place):
    ...             pass
    ...     except ValueError as error:
    ...         print(str(error).split(" is ")[1].split(" (")[0])
    in use by another run
    >>> os.listdir(place)
    []
    """
    folder = files.absolute(folder)
    if files.is_remote(folder):
        with _notice(folder, name):
            yield False
        return
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(folder, name, time.monotonic() + wait)
    if descriptor is None:
        with _notice(folder, name):
            yield False
        return
    try:
        with files.writing(folder):
            fault_points.reached("lock taken", folder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _signature(), 0)
            fault_points.reached("lock signed", folder)
        yield True
    finally:
        try:
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only by now
                fault_points.reached("lock left", folder)
                (folder / name).unlink(missing_ok=True)  # while it is held: whoever waits sees that it is another file
        finally:
            os.close(descriptor)


def _taken(folder: pathlib.Path, name: str, until: float) -> int | None:
    """Returns the descriptor of the lock's file once this process has it, or `None` where there are no locks."""
    while fcntl is not None:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, folder / name):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                refusal = _refusal(folder, _read(folder / name))
                os.close(descriptor)
                raise refusal from None
            time.sleep(_TICK)
        except OSError:  # no locks on this file system
            os.close(descriptor)
            return None
        os.close(descriptor)
    return None


def _same(descriptor: int, file: pathlib.Path) -> bool:
    """Whether the locked file is still the one of its name; its last owner may have removed it in between."""
    try:
        found, there = os.fstat(descriptor), os.stat(file)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)


@contextlib.contextmanager
def _notice(folder: pathlib.Path, name: str) -> Iterator[None]:
    """A lock that is only a file with this process's name in it."""
    file = folder / name
    found = _read(file) if files.exists(file) else {}
    pid, own = found.get("pid"), found.get("host") == leftovers.host()
    if own and isinstance(pid, int) and pid != os.getpid() and leftovers.alive(pid):
        raise _refusal(folder, found)
    if found and not own:
        who = f"process {pid} of {found.get('host')}"
        sys.stderr.write(f"{folder} was in use by {who}, which did not say that it ended; if it runs still, stop it\n")
    with files.writing(folder):
        files.write_bytes(file, _signature())
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # a bucket's client raises what it likes
            files.remove(file)


def _signature() -> bytes:
    return json.dumps({"host": leftovers.host(), "pid": os.getpid()}).encode()


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def _refusal(folder: pathlib.Path, found: dict[str, Any]) -> ValueError:
    who = f"process {found['pid']} on {found['host']}" if {"pid", "host"} <= set(found) else "a process"
    return ValueError(
        f"{folder} is in use by another run ({who}); wait until it ends, stop it, or choose another folder"
    )


__all__ = ["NAME", "held"]
