"""The moments of a write at which a test may kill the process or refuse the disk.

Each is an audit event of Python (PEP 578) named `EVENT`, with the name of the point and the path. Without an audit
hook, which only tests add (`sys.addaudithook`), an event costs some tens of nanoseconds and does nothing. A hook that
ends the process there is a kill at that moment, and one that raises `OSError` is a disk that fails there.
"""

import os
import sys

EVENT = "mvp_jax.storage"
"""The name of the audit event; its arguments are the name of the point and the path."""

POINTS = {
    "bytes opened": "the hidden file is there and empty",
    "bytes half": "half of the content is in the hidden file",
    "bytes written": "the whole content is in the hidden file, and may not be on the disk yet",
    "bytes synced": "the hidden file is on the disk, and is renamed next",
    "bytes moved": "the file has its name, and the folder may not be on the disk yet",
    "file written": "the caller of `replacing` has written the hidden file",
    "file synced": "the hidden file of `replacing` is on the disk, and is renamed next",
    "file moved": "the file of `replacing` has its name, and the folder may not be on the disk yet",
    "folder written": "the hidden folder is complete, and is renamed next",
    "folder aside": "the old folder has stepped aside, where the system cannot exchange two folders at once",
    "folder moved": "the new folder has its name; the old one, if there was one, is still there under a hidden name",
    "hidden made": "an empty hidden folder is there",
    "hidden left": "the work in the hidden folder is over, and it is removed next",
    "marker removed": "in a bucket: the old folder is not complete any more",
    "object written": "in a bucket: one of the files of a folder is there, and the marker is not",
    "marker written": "in a bucket: the folder is complete",
    "entry written": "the entry of a bank is complete in its hidden folder, and is renamed next",
    "entry moved": "the entry of a bank has its name, and the folder may not be on the disk yet",
    "state next": "a state is saved next",
    "state saved": "a state is on the disk",
    "lock taken": "this process has the lock of a folder, and has not yet written who it is",
    "lock signed": "the lock says who has it",
    "lock left": "the lock is removed next",
}
"""Every point, and what is on the disk at that moment."""


def reached(point: str, path: str | os.PathLike[str]) -> None:
    """Tells the audit hooks, if there are any, that a write has come to a point.

    Args:
        point: its name in `POINTS`.
        path: the file or folder that is written.
    """
    sys.audit(EVENT, point, os.fspath(path))


__all__ = ["EVENT", "POINTS", "reached"]
