"""Hidden files and folders that are written to and then renamed, and the removal of what killed processes left of them.

A hidden name says which process of which machine made it: `.tmp-HOST~PID~REST`. A later process of that machine removes
it when that process does not run any more (`sweep`). Whoever has the lock of a folder (`locks.held`) knows that nobody
else writes there, and removes all of them, whatever machine or process they are from (`sweep_all`).
"""

import hashlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
import urllib.parse
from collections.abc import Iterator

from mvp_jax.storage import fault_points

_PREFIX = ".tmp-"
_ORBAX = re.compile(r"\.orbax-checkpoint-tmp(-\d+)?$")
"""The end of the names of states that Orbax is writing."""

_ASIDE = re.compile(r"\.tmp-[^~]*~\d+~aside~(.+)")
"""The hidden name of a folder that stepped aside for a new one; the group is the name that it had."""


def hidden(folder: pathlib.Path) -> pathlib.Path:
    """Makes a hidden folder in `folder`, on this machine, to be renamed; `sweep` removes it if this process died."""
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=_mine(), dir=folder))
    fresh.chmod(0o755)  # mkdtemp's are for the owner alone
    fault_points.reached("hidden made", fresh)
    return fresh


def hidden_name(name: str) -> str:
    """A hidden name for the file `name`, of this process; `sweep` removes the file if this process died."""
    short = name if len(name) < 100 else f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{_mine()}{short}"


def aside(folder: pathlib.Path) -> pathlib.Path:
    """The hidden path to which an old folder is renamed while a new one takes its name.

    A sweep gives the old folder its name back if the process died before the new one had it.
    """
    return folder.with_name(f"{_mine()}aside~{folder.name}")


def sweep(folder: pathlib.Path) -> None:
    """Removes the hidden files and folders in `folder` of processes of this machine that no longer run.

    >>> place = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (place / hidden_name("a.txt")).write_text("half")  # of this process, which runs
    >>> sweep(place)
    >>> len(list(place.iterdir()))
    1
    """
    mine = f"{_PREFIX}{host()}~"
    for left in _inside(folder):
        pid = left.name.removeprefix(mine).partition("~")[0]
        if left.name.startswith(mine) and pid.isdigit() and not alive(int(pid)):
            _clear(left)


def sweep_all(folder: pathlib.Path) -> None:
    """Removes what killed processes left anywhere below `folder`, states that Orbax was writing too.

    Only whoever has the folder's lock may call it, before it writes there: hidden files of living processes go too.

    Args:
        folder: a folder of this machine; for an address in a bucket nothing is done, as a bucket has no hidden files.
    """
    inside = list(_inside(folder))
    for found in inside:
        if found.name.startswith(_PREFIX) or _ORBAX.search(found.name):
            _clear(found)
        elif found.is_dir() and not found.is_symlink():
            sweep_all(found)


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file or folder of this module.

    >>> is_hidden(hidden_name("a.txt")), is_hidden("a.txt")
    (True, False)
    """
    return name.startswith(_PREFIX)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; `True` where the system does not tell.

    >>> alive(os.getpid())
    True
    """
    if os.name != "posix":
        return True  # elsewhere signal 0 is no question but an end
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    except OverflowError:
        return False
    return True


def _clear(left: pathlib.Path) -> None:
    old = _ASIDE.fullmatch(left.name)
    if old and not (left.parent / old[1]).exists():
        os.replace(left, left.parent / old[1])
    elif left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _inside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """What is in a folder of this machine; nothing if it is an address in a bucket or no folder."""
    try:
        names = [] if "://" in os.fspath(folder) else os.listdir(folder)
    except OSError:  # absent, or it may not be listed
        names = []
    return (folder / name for name in names)


def host() -> str:
    """The name of this machine, written so that it may stand in the name of a file."""
    return urllib.parse.quote(socket.gethostname(), safe="")


def _mine() -> str:
    return f"{_PREFIX}{host()}~{os.getpid()}~"


__all__ = ["alive", "aside", "hidden", "hidden_name", "host", "is_hidden", "sweep", "sweep_all"]
