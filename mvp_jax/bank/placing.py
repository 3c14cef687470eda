"""An entry's folder is written under a hidden name and takes its place in one step, unless another writer was first."""

import os
import pathlib
import shutil
from collections.abc import Callable

from mvp_jax.storage import fault_points, files, leftovers


def place(target: pathlib.Path, write: Callable[[pathlib.Path], None]) -> bool:
    """Makes a folder on this machine, whole or not at all, and never in the place of one that is there.

    Args:
        target: the folder to make; its parent exists.
        write: writes the files into the hidden folder that it is given.

    Returns:
        `False` if another writer made the folder in the meantime; it is as that one wrote it.

    Raises:
        OSError: if the folder cannot be written.
    """
    hidden = leftovers.hidden(target.parent)
    try:
        write(hidden)
        fault_points.reached("entry written", target)
        os.rename(hidden, target)  # refused, not merged, if another writer was first: its folder is not empty
        fault_points.reached("entry moved", target)
    except OSError:
        if target.is_dir():
            return False
        raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    files.sync(target.parent)
    return True


__all__ = ["place"]
