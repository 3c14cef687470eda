"""Files that a run writes, in a folder or a bucket (`gs://bucket/run`): each is there whole or not at all.

In a folder that is a rename. A bucket publishes an object when it is complete, renames nothing and knows no folders:
what is made of several files counts once its marker, the file written last, is there. Buckets are reached through
`etils.epath`, so by TensorFlow where that is installed, else by `gcsfs`, `s3fs` or `adlfs`.
"""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from mvp_jax.storage import disk_errors, exchange, fault_points, leftovers

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
"""The package that reads addresses of each scheme."""


def path(where: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a file or folder: a `pathlib.Path` on this machine, an `epath.Path` for an address in a bucket.

    Both have the same methods.

    Raises:
        ValueError: for an address that nothing installed can read.

    >>> path("runs/one").name
    'one'
    >>> path("ftp://host/run")
    Traceback (most recent call last):
    ValueError: 'ftp://host/run' cannot be read; give a folder, or an address that begins with gs://, s3://, az:// or hf://
    """
    found = re.match(r"([A-Za-z][\w+.-]*)://", where) if isinstance(where, str) else None
    if not found:
        own: Any = where
        return own if is_remote(where) else pathlib.Path(where)
    scheme = found[1]
    if scheme not in _PACKAGES:
        *others, last = (f"{name}://" for name in _PACKAGES)
        raise ValueError(
            f"{where!r} cannot be read; give a folder, or an address that begins with {', '.join(others)} or {last}"
        )
    try:
        from etils import epath

        address: Any = epath.Path(where)
        _refresh(address)  # which needs the scheme's package
    except ImportError as error:
        raise ValueError(f"{where!r} cannot be read: {error}; pip install {_PACKAGES[scheme]}") from error
    return address


def absolute(where: str | os.PathLike[str]) -> pathlib.Path:
    """The path as `path` gives it, made absolute, so that it does not depend on the working directory."""
    found = path(where)
    return found if is_remote(found) else found.absolute()


def is_remote(where: str | os.PathLike[str]) -> bool:
    """Whether `where` is an address such as `gs://bucket/run` rather than a path of this machine.

    >>> is_remote("gs://bucket/run"), is_remote(pathlib.Path("run"))
    (True, False)
    """
    return "://" in os.fspath(where)


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A context in which errors of the disk or the bucket become a `ValueError` that names `folder`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(folder, error) from error
    except Exception as error:
        # A bucket's client raises what it likes: no credentials, no such bucket, no network.
        if not is_remote(folder) or isinstance(error, ValueError):
            raise
        raise _unwritable(folder, error) from error


def _unwritable(folder: str | os.PathLike[str], error: Exception) -> ValueError:
    text = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"cannot write to {folder}: {text}; {disk_errors.advice(error)}")


def writable(folder: str | os.PathLike[str]) -> None:
    """Makes a folder if it is absent and checks that files can be written in it, so that a run fails before its work.

    Raises:
        ValueError: if the folder cannot be made or written to.
    """
    folder = path(folder)
    with writing(folder):
        if is_remote(folder):
            (folder / ".writable").write_bytes(b"")
            (folder / ".writable").unlink()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()


def write_bytes(file: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all, and returns when it would survive a power cut. Its folder is made if absent.

    Raises:
        OSError: if the file cannot be written; an earlier file of this name is then unchanged.
    """
    file = path(file)
    if is_remote(file):
        file.write_bytes(content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(file.parent)
    hidden = file.with_name(leftovers.hidden_name(file.name))
    half = len(content) // 2
    try:
        with hidden.open("wb") as stream:
            fault_points.reached("bytes opened", file)
            stream.write(memoryview(content)[:half])
            stream.flush()
            fault_points.reached("bytes half", file)
            stream.write(memoryview(content)[half:])
            stream.flush()
            fault_points.reached("bytes written", file)
            os.fsync(stream.fileno())
        fault_points.reached("bytes synced", file)
        os.replace(hidden, file)
        fault_points.reached("bytes moved", file)
    finally:
        hidden.unlink(missing_ok=True)
    sync(file.parent)


@contextlib.contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A context that gives a hidden path to write a file to; at its end the file is moved to `file`.

    If something is raised, or the process is killed, `file` is unchanged.

    Args:
        file: the file to make or to replace; its folder is made if absent.

    Yields:
        A path on this machine with the same name.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("done")
    ...     os.listdir(folder)
    ['a.txt']
    """
    file = path(file)
    with _aside(file) as temporary:
        yield temporary
        fault_points.reached("file written", file)
        if is_remote(file):
            file.write_bytes(temporary.read_bytes())
            return
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        fault_points.reached("file synced", file)
        os.replace(temporary, file)
        fault_points.reached("file moved", file)
        sync(file.parent)


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike[str], marker: str) -> Iterator[pathlib.Path]:
    """A context that gives a hidden, empty folder to write into; at its end it is moved to `folder`.

    If something is raised, or the process is killed, `folder` is unchanged.

    Args:
        folder: the folder to make or to replace; its parents are made if absent.
        marker: the file in it that says, in a bucket, that the folder is complete; see `complete`.

    Yields:
        A path on this machine with the same name.

    Raises:
        ValueError: if no `marker` was written.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with replacing_folder(f"{place}/model", "model.json") as temporary:
    ...         _ = (temporary / "model.json").write_text("{}")
    ...     complete(f"{place}/model", "model.json")
    True
    """
    folder = path(folder)
    with _aside(folder) as temporary:
        temporary.mkdir()
        yield temporary
        if not (temporary / marker).is_file():
            raise ValueError(f"{folder} was made without {marker!r}, the file that says that it is complete; write it")
        if is_remote(folder):
            _unmark(folder, marker)
            for name in listing(folder):
                remove(folder / name)
            upload(temporary, folder, marker)
            return
        for inside in sorted(temporary.rglob("*")):  # the files, and the names in folders
            sync(inside)
        sync(temporary)
        _publish(temporary, folder)


@contextlib.contextmanager
def _aside(where: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path with the name of `where` to write to: hidden beside it, or on this machine if `where` is in a bucket."""
    if is_remote(where):
        with tempfile.TemporaryDirectory() as here:
            yield pathlib.Path(here) / where.name
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(where.parent)
    folder = leftovers.hidden(where.parent)
    try:
        yield folder / where.name
        fault_points.reached("hidden left", where)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(fresh: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames a complete folder of this machine to where readers look for it; an old one is removed afterwards."""
    fault_points.reached("folder written", folder)
    old = None
    if folder.is_dir() and any(folder.iterdir()):  # a folder cannot be renamed over a full one
        if not exchange.exchange(fresh, folder):
            old = leftovers.aside(folder)
            os.replace(folder, old)
            try:
                fault_points.reached("folder aside", folder)
                os.replace(fresh, folder)
            except BaseException:
                os.replace(old, folder)
                raise
    else:
        os.replace(fresh, folder)
    fault_points.reached("folder moved", folder)
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _unmark(folder: pathlib.Path, marker: str) -> None:
    """Removes the marker of a folder in a bucket first, so that nobody reads old and new together."""
    if exists(folder / marker):
        (folder / marker).unlink()
        fault_points.reached("marker removed", folder)


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, bytes], marker: str) -> pathlib.Path:
    """Writes a folder of files, whole or not at all, in place of an earlier folder of this name.

    Args:
        folder: its parents are made if absent.
        files: the content of each file, by name; `part/name` lies in a folder inside.
        marker: the name of the file that says, in a bucket, that the folder is complete; see `complete`.

    Raises:
        ValueError: if the folder cannot be written. An earlier folder is then unchanged; in a bucket it may have lost
            its marker.
    """
    folder = path(folder)
    with writing(folder):
        if is_remote(folder):
            _unmark(folder, marker)
            for name in listing(folder):
                if name not in files:
                    remove(folder / name)
            for name in sorted(files, key=lambda n: n == marker):
                (folder / name).write_bytes(files[name])
                fault_points.reached("marker written" if name == marker else "object written", folder / name)
            return folder
        with _aside(folder) as fresh:
            for name, content in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(fresh / name, content)
            _publish(fresh, folder)
    return folder


def complete(folder: str | os.PathLike[str], marker: str) -> bool:
    """Whether a folder is there and complete: in a bucket if its marker is there, on this machine if the folder is."""
    folder = path(folder)
    return exists(folder / marker) if is_remote(folder) else folder.is_dir()


def exists(file: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder now. A folder in a bucket exists if there is anything in it."""
    file = path(file)
    _refresh(file)
    return file.exists()


def listing(folder: str | os.PathLike[str]) -> list[str]:
    """The sorted names in a folder, without those that begin with a dot; empty if there is no such folder."""
    folder = path(folder)
    _refresh(folder)
    try:
        found = sorted(p.name for p in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in found if name and not name.startswith(".")]


def remove(where: str | os.PathLike[str]) -> None:
    """Removes a file if it is there, or a folder with all that is in it."""
    where = path(where)
    if not is_remote(where) and where.is_dir():
        shutil.rmtree(where)
    elif is_remote(where) and where.is_dir():
        where.rmtree()  # type: ignore[attr-defined]
    else:
        where.unlink(missing_ok=True)


def upload(source: pathlib.Path, folder: pathlib.Path, marker: str) -> None:
    """Copies a folder of this machine with all that is in it to a bucket, the marker last (an empty one if absent)."""
    last = source / marker
    for file in sorted(p for p in source.rglob("*") if p.is_file() and p != last):
        (folder / file.relative_to(source).as_posix()).write_bytes(file.read_bytes())
        fault_points.reached("object written", folder / file.name)
    (folder / marker).write_bytes(last.read_bytes() if last.is_file() else b"")
    fault_points.reached("marker written", folder)


def download(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder in a bucket with all that is in it to `target`, a folder on this machine."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir():
            download(entry, target / entry.name)
        elif entry.name:
            (target / entry.name).write_bytes(entry.read_bytes())


@contextlib.contextmanager
def local(file: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A context that gives a path on this machine to read a file from: its own, or a copy that is removed after."""
    file = path(file)
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / file.name
        copy.write_bytes(file.read_bytes())
        yield copy


def sync(where: pathlib.Path) -> None:
    """Returns when a file of this machine, or the renames in a folder, would survive a power cut."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(where, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refresh(where: Any) -> None:
    """What other processes have written is seen: clients remember the listings they have read."""
    if is_remote(where) and hasattr(where._backend, "fs"):
        where._backend.fs(where).invalidate_cache()


__all__ = [
    "absolute",
    "complete",
    "download",
    "exists",
    "is_remote",
    "listing",
    "local",
    "path",
    "remove",
    "replacing",
    "replacing_folder",
    "sync",
    "upload",
    "writable",
    "write_bytes",
    "write_folder",
    "writing",
]
