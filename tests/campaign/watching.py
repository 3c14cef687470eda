"""What a process does on the disk, told by Python's audit events, so that it can be killed or refused at each."""

import os
import sys

from mvp_jax.storage import fault_points

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
"""Audit events of what changes a folder; each comes before the change. Opening a file to write is one more."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(root, told):
    """From now on calls `told(name, path)` before each change below `root` and at each fault point of the library.

    An audit hook cannot be removed, so only processes that are to die install one. `told` may end the process, or raise
    an `OSError`, which is then what the change ends with. The opening of a file that is emptied by it is `open anew`.
    """
    root = os.path.join(os.path.realpath(root), "")
    busy = False

    def hook(event, arguments):
        nonlocal busy
        if busy or not (event in CHANGES or event in (fault_points.EVENT, "open")):
            return
        busy = True
        try:
            if event == fault_points.EVENT:
                told(*arguments)
                return
            path = arguments[0]
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
                return
            if isinstance(path, str | bytes | os.PathLike):
                path = os.path.abspath(os.fsdecode(path))
                if f"{path}/".startswith(root):
                    told("open anew" if event == "open" and arguments[2] & os.O_TRUNC else event, path)
        finally:
            busy = False

    sys.addaudithook(hook)
