"""A bank as one file: a zip archive of what its folder holds, each file as it is, with the checksums of all of them.

    manifest.json  README.md  model/...  entries/TASK/entry.json  entries/TASK/arrays.safetensors  SHA256SUMS

Nothing is compressed, since weights hardly become smaller, so an archive never unpacks to more than its own size, and
any tool that reads zip files opens it. `SHA256SUMS` has the format of the command `sha256sum`.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from mvp_jax import pretrained
from mvp_jax.bank import dense, directory, manifest, readme
from mvp_jax.bank.directory import BankEntry
from mvp_jax.bank.manifest import Bank
from mvp_jax.pretrained import source_files
from mvp_jax.storage import files, foreign_files

SUMS = "SHA256SUMS"
"""The file in an archive that lists the sha256 of all others."""

LIMIT = 256 * 2**30
"""The most bytes that `unpack` writes unless it is told otherwise."""

_CHUNK = 2**20  # bytes that are in memory at a time
_JSON_LIMIT = 2**26  # bytes of a file that is read as a whole
_MODEL_FILES = "|".join(
    map(re.escape, (dense.MARKER, dense.WEIGHTS, readme.NAME, *source_files.TOKENIZER, *source_files.PROCESSOR))
)
_LEGAL = r"(?i:licen[cs]e|notice|copying)[A-Za-z0-9_.-]{0,60}"
_ALLOWED = re.compile(
    rf"{manifest.NAME}|{readme.NAME}|{SUMS}|{dense.FOLDER}/({_MODEL_FILES}|{_LEGAL})"
    # The characters that `directory.add` leaves in the name of a task's folder.
    rf"|entries/(?!\.)[A-Za-z0-9_.~ ,=+@%-]{{1,255}}/({re.escape(directory.MARKER)}|{re.escape(directory.ARRAYS)})"
)


def pack(bank: Bank, file: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a bank into one archive, whole or not at all; the same bank gives the same bytes.

    Args:
        bank: an open bank, in a folder or in a bucket; only its complete entries are packed.
        file: the archive, a new file on this machine.

    Returns:
        The archive.

    Raises:
        ValueError: if the file is there already, is an address in a bucket or cannot be written, or an entry's arrays
            do not have their checksum.

    >>> import tempfile
    >>> from mvp_jax import bank
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pets = bank.create(folder / "pets", fingerprint="f" * 64, settings={})
    >>> archive = bank.pack(pets, folder / "pets.zip")
    >>> bank.unpack(archive, folder / "copy").fingerprint == pets.fingerprint
    True
    """
    target = files.path(file)
    if files.is_remote(target):
        raise ValueError(f"{target} is an address; an archive is written to a file on this machine, and then copied")
    if target.exists():
        raise ValueError(f"{target} is there already; choose another file, or delete it")
    entries = directory.entries(bank)
    text = readme.text(bank, len(entries), dense.has_model(bank)).encode()
    model = files.listing(bank.path / dense.FOLDER) if dense.has_model(bank) else []
    model = [name for name in (f"{dense.FOLDER}/{n}" for n in model) if _ALLOWED.fullmatch(name)]
    with (
        files.writing(target.parent),
        files.replacing(target) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        sums = {readme.NAME: _put(archive, readme.NAME, text)}
        for name in (manifest.NAME, *model):
            sums[name] = _copy_in(archive, bank, name)
        for entry in entries:
            sums |= _put_entry(archive, bank, entry)
        _put(archive, SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    return target


def _put_entry(archive: zipfile.ZipFile, bank: Bank, entry: BankEntry) -> dict[str, str]:
    assert entry.path is not None
    names = [f"entries/{entry.path.name}/{name}" for name in (directory.MARKER, directory.ARRAYS)]
    sums = {name: _copy_in(archive, bank, name) for name in names}
    if sums[names[1]] != entry.checksum:
        raise ValueError(
            f"bank entry {entry.path}: {directory.ARRAYS} has the checksum {sums[names[1]][:12]}, expected "
            f"{entry.checksum[:12]}; delete that folder and build the entry again"
        )
    return sums


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # no date, so that equal banks give equal archives
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> str:
    archive.writestr(_info(name), content)
    return hashlib.sha256(content).hexdigest()


def _copy_in(archive: zipfile.ZipFile, bank: Bank, name: str) -> str:
    with (bank.path / name).open("rb") as source, archive.open(_info(name), "w", force_zip64=True) as target:
        return _copy(source, target)


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copies a stream in pieces and returns its sha256."""
    digest = hashlib.sha256()
    while piece := source.read(_CHUNK):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def unpack(file: str | os.PathLike[str], folder: str | os.PathLike[str], *, limit: int = LIMIT) -> Bank:
    """Unpacks an archive that `pack` wrote into a new folder, whole or not at all, and opens the bank for reading.

    An archive may come from anybody, so all its names, kinds and sizes are checked before anything is written, and
    every file must have the checksum that the archive lists. Nothing in it is executed.

    Args:
        file: the archive, on this machine.
        folder: where to: a folder on this machine that is absent or empty.
        limit: the most bytes that may be written.

    Returns:
        The bank.

    Raises:
        ValueError: if the archive is damaged, is no bank's, has a file that a bank does not have, a name twice, a link,
            a path out of the folder, compressed files, or more bytes than `limit` or the disk has; or if the folder is
            not empty or cannot be written.
    """
    source, target = pathlib.Path(file), files.path(folder)
    if files.is_remote(target) or files.is_remote(source):
        raise ValueError(f"{source} to {target}: an archive is unpacked from and to this machine; copy the folder then")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already and not an empty folder; choose another")
    with _opened(source) as archive:
        members = _members(archive, source, limit)
        sums = _sums(archive, source, members)
        with foreign_files.named(source):
            bank = manifest.parse(archive.read(manifest.NAME), target)
        needed = {f"{n.rpartition('/')[0]}/{name}" for n in members if "/" in n for name in _pair(n)}
        half = sorted(needed - set(members))
        if half:
            raise ValueError(f"{source} lacks {half[:5]}; it was not written by `bank.pack`")
        target.parent.mkdir(parents=True, exist_ok=True)
        size = sum(info.file_size for info in members.values())
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise ValueError(f"{source} holds {size:,} bytes, but {target.parent} has room for {free:,}")
        with files.writing(target), files.replacing_folder(target, manifest.NAME) as fresh:
            for info in members.values():
                _extract(archive, source, info, fresh, sums)
            with foreign_files.named(source):
                _agree(fresh, source, bank, sums)
            if os.name == "posix":
                os.sync()  # once for all the files, before the folder appears
    return directory.open(target)


def _pair(name: str) -> tuple[str, str]:
    """The two files that the folder of a file of an archive must have."""
    return (
        (dense.MARKER, dense.WEIGHTS) if name.startswith(f"{dense.FOLDER}/") else (directory.MARKER, directory.ARRAYS)
    )


@contextlib.contextmanager
def _opened(source: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(foreign_files.plain_file(source)) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, struct.error, RuntimeError) as error:
        raise ValueError(f"{source} is not a sound zip archive: {foreign_files.told(error)}") from error
    except FileNotFoundError as error:
        raise ValueError(f"no file {source}; give an archive that `bank.pack` wrote") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error}") from error


def _members(archive: zipfile.ZipFile, source: pathlib.Path, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name, all of them such as `pack` writes; `ValueError` for the first that is not."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        reason = ""
        if not _ALLOWED.fullmatch(name) or info.filename != name:
            reason = "a bank has no such file"
        elif name in members:
            reason = "the name occurs twice"
        elif not 0 <= info.header_offset < source.stat().st_size:
            reason = "it begins outside the archive"
        elif kind not in (0, stat.S_IFREG):
            reason = "it is a link or another thing that is not a plain file"
        elif info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            reason = "it is compressed or encrypted; `bank.pack` stores files as they are"
        elif info.file_size > _JSON_LIMIT and not name.endswith(".safetensors"):
            reason = f"it has {info.file_size:,} bytes, more than the {_JSON_LIMIT:,} of a description"
        if reason:
            raise ValueError(f"{source} is refused because of {name!r:.120}: {reason}")
        members[name] = info
    size = sum(info.file_size for info in members.values())
    if size > limit or size > source.stat().st_size:
        raise ValueError(f"{source} says that it holds {size:,} bytes; at most {limit:,} and its own size are unpacked")
    missing = sorted({manifest.NAME, SUMS} - set(members))
    if missing:
        raise ValueError(f"{source} lacks {missing}; it was not written by `bank.pack`")
    return members


def _sums(archive: zipfile.ZipFile, source: pathlib.Path, members: dict[str, Any]) -> dict[str, str]:
    """The checksums that the archive lists, one of each of its other files."""
    lines = archive.read(SUMS).decode("utf-8").splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if len(found) != len(lines) or set(found) != set(members) - {SUMS}:
        differing = sorted(set(found) ^ (set(members) - {SUMS}))
        raise ValueError(f"{source}: {SUMS} does not list each of its files once; they differ in {differing[:5]}")
    return found


def _extract(
    archive: zipfile.ZipFile, source: pathlib.Path, info: zipfile.ZipInfo, folder: pathlib.Path, sums: dict[str, str]
) -> None:
    if info.filename == SUMS:
        return
    target = folder / info.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as stream, target.open("xb") as written:
        digest = _copy(stream, written)
    if digest != sums[info.filename]:
        raise ValueError(
            f"{source} is damaged: {info.filename} has the checksum {digest[:12]}, listed is "
            f"{sums[info.filename][:12]}; get the archive again"
        )


def _agree(folder: pathlib.Path, source: pathlib.Path, bank: Bank, sums: dict[str, str]) -> None:
    """Raises `ValueError` unless entries are of the bank's model and name the checksums of their arrays."""
    for path in sorted((folder / "entries").iterdir()) if (folder / "entries").is_dir() else ():
        entry = directory.entry_at(path)
        if entry.fingerprint != bank.fingerprint:
            raise ValueError(f"{source}: entry {entry.task!r} was made from another pre-trained model than the bank's")
        if entry.checksum != sums[f"entries/{path.name}/{directory.ARRAYS}"]:
            raise ValueError(f"{source}: the arrays of entry {entry.task!r} are not those that it was written with")
        if directory.folder_name(entry.task) != path.name:
            raise ValueError(f"{source}: entry {entry.task!r} lies in the folder {path.name!r} of another task")
    if (folder / dense.FOLDER).is_dir():
        described = pretrained.describe(folder / dense.FOLDER)
        if described["sha256"] != sums[f"{dense.FOLDER}/{dense.WEIGHTS}"]:
            raise ValueError(f"{source}: the pre-trained model's weights are not those that it was written with")
