"""Keeps compiled programs on disk for later runs, and says when a program takes long to compile.

Both change JAX for the whole process, so the command line switches them on (`main`), and the library never does.
"""

import contextlib
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from mvp_jax.storage import records, user_cache

_COMPILE = "/jax/core/compile/backend_compile_duration"

_LEAST = 0.0
"""Seconds that a program compiles at least to be kept: all are, where JAX by itself keeps those of a second. What that
is worth is in `docs/experiments.md`."""


def folder_of(setting: str) -> pathlib.Path | None:
    """Returns the folder that a value of `config.compilation_cache` means.

    Args:
        setting: `auto`: `mvp_jax/jax` in the user's cache, which is `$XDG_CACHE_HOME` or `~/.cache`; `off`: `None`;
            anything else is the folder itself.

    Raises:
        ValueError: for an empty setting.

    >>> folder_of("off"), folder_of("runs/compiled").name
    (None, 'compiled')
    """
    if not setting:
        raise ValueError("compilation_cache is empty; give 'auto', 'off', or a folder")
    if setting == "off":
        return None
    if setting == "auto":
        return user_cache.folder() / "jax"
    return pathlib.Path(setting).expanduser().absolute()


def keep(setting: str) -> str:
    """Switches JAX's persistent compilation cache on, and returns its folder; empty if there is none.

    What the environment says (`JAX_COMPILATION_CACHE_DIR`) is left as it is. A folder that cannot be written costs a
    line on standard error, and not the run.

    Args:
        setting: the value of `config.compilation_cache`, see `folder_of`.

    Raises:
        ValueError: for an empty setting.
    """
    folder = folder_of(setting)
    now: Any = jax.config
    if not now.jax_enable_compilation_cache:
        return ""
    if now.jax_compilation_cache_dir or folder is None:
        return now.jax_compilation_cache_dir or ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        records.say(
            f"compiled programs are not kept for later runs: {folder} cannot be written ({error.strerror}); give "
            "--config.compilation_cache=FOLDER, or 'off'"
        )
        return ""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST)
    return str(folder)


class _Watch:
    """Listens to JAX's events of compilation.

    Attributes:
        folder: where compiled programs are kept; empty: they are not.
        after: the seconds after which a compilation is announced.
        seconds: how long programs were compiled, or read from the folder, of all threads together.
    """

    def __init__(self, folder: str, after: float) -> None:
        self.folder, self.after = folder, after
        self.seconds, self._first = 0.0, True
        self._timers: dict[int, threading.Timer] = {}

    def begins(self, event: str, value: float, **about: Any) -> None:
        if event == _COMPILE:
            timer = threading.Timer(self.after, self._say, (str(about.get("fun_name", "")),))
            timer.daemon = True
            self._timers[threading.get_ident()] = timer
            timer.start()

    def ends(self, event: str, duration_secs: float, **about: Any) -> None:
        if event == _COMPILE:
            self.seconds += duration_secs
            timer = self._timers.pop(threading.get_ident(), None)
            if timer is not None:
                timer.cancel()

    def _say(self, name: str) -> None:
        kept = f" (once; kept in {self.folder})" if self.folder else " (in every run, as programs are not kept)"
        records.say(f"compiling {name or 'a program'}{kept if self._first else ''} ...")
        self._first = False

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()


@contextlib.contextmanager
def announced(folder: str, *, after: float = 5.0, least: float = 10.0) -> Iterator[None]:
    """A context in which a compilation that takes long is announced on standard error while it goes on.

    At its end a line says how much of the time was spent on compiling, if it was more than a moment.

    Args:
        folder: where compiled programs are kept; empty: they are not.
        after: the seconds after which a compilation is announced; shorter ones are not.
        least: the seconds of compilation in all from which the last line is written.
    """
    watch, start = _Watch(folder, after), time.monotonic()
    jax.monitoring.register_scalar_listener(watch.begins)
    jax.monitoring.register_event_duration_secs_listener(watch.ends)
    try:
        yield
    finally:
        jax.monitoring.unregister_scalar_listener(watch.begins)
        jax.monitoring.unregister_event_duration_listener(watch.ends)
        watch.close()
    if watch.seconds >= least:  # not after an error or Ctrl-C, which end in their own line
        took = f"{time.monotonic() - start:.0f} s, of which {watch.seconds:.0f} s were for compiling programs"
        records.say(took + (f" or reading them from {folder}, where they are kept" if folder else ""))


__all__ = ["announced", "folder_of", "keep"]
