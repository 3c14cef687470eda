"""The folder in the user's cache where the library keeps what it can make again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns `mvp_jax` in the user's cache, which is `$XDG_CACHE_HOME` or `~/.cache`; it need not exist yet.

    >>> folder().name
    'mvp_jax'
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home) / "mvp_jax"


__all__ = ["folder"]
