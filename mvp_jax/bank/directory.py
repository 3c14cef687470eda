"""The bank: a directory of pruned models, all made from one pre-trained model.

    DIR/README.md                      what the bank is and how it is used; made from the manifest
    DIR/manifest.json                  format, fingerprint of the pre-trained model, settings, description
    DIR/model/                         the pre-trained model, and its processor's or tokeniser's files (`bank.dense`)
    DIR/entries/TASK/entry.json        task, classes, ratio, accuracy, cost, checksum
    DIR/entries/TASK/arrays.safetensors

An entry is written into a hidden folder beside the others and then renamed, so a reader sees all of it or none,
whenever the writer is killed. In a bucket (`storage`) it is there when its `entry.json` is, which comes last. Nothing
is cached: a reader sees new entries the next time it asks.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

from mvp_jax.bank import dense as dense_model
from mvp_jax.bank import manifest, placing, readme
from mvp_jax.bank.manifest import Bank, BankDescription
from mvp_jax.core.types import PyTree, Variables
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint, files, foreign_files, leftovers, locks

S = TypeVar("S")
T = TypeVar("T")

ARRAYS, MARKER = "arrays.safetensors", "entry.json"
"""The files of an entry; the second says, in a bucket, that the entry is complete."""

_PATIENCE = 30.0  # seconds to wait for another process that writes the manifest
_READERS = 32  # requests to a bucket at a time: each waits for the network, hardly any for this process


@dataclasses.dataclass(frozen=True, kw_only=True)
class BankEntry:
    """A pruned model in a bank: all that is known of it but its arrays.

    Attributes:
        task: the name of the task; unique in a bank.
        classes: the task's classes in the data set, in the order of the head's outputs.
        fingerprint: that of the pre-trained model it was made from; see `fingerprint`.
        ratio: the share of units removed, in [0, 1).
        accuracy: on the task's validation examples, in [0, 1].
        cost: what making it took: `steps`, `examples`, `flops`.
        class_names: the names of the classes, in the same order; `()`: the bank's description has them by number, or
            nobody knows them.
        extra: any other values that JSON can hold.
        path: the entry's folder; set by the bank.
        checksum: sha256 of the arrays' file; set by the bank.
    """

    task: str
    classes: tuple[int, ...]
    fingerprint: str
    ratio: float
    accuracy: float
    cost: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    class_names: tuple[str, ...] = ()
    path: pathlib.Path | None = None
    checksum: str = ""


def create(
    directory: str | os.PathLike[str],
    *,
    fingerprint: str,
    settings: Mapping[str, Any],
    about: BankDescription | None = None,
    dense: tuple[Model, Variables] | None = None,
    exist_ok: bool = False,
) -> Bank:
    """Makes a bank and opens it for writing.

    Args:
        directory: a new or empty folder, or an address in a bucket.
        fingerprint: that of the pre-trained model; see the function `fingerprint`.
        settings: how entries are made, plain JSON values; all entries of a bank are made by the same settings.
        about: what a person has to know to use the bank; it goes into the manifest and the readme. A bank that is there
            already keeps its own, and gets this one if it has none.
        dense: the pre-trained model and its variables, to be stored in the bank, so that the bank can be used alone;
            `None`: whoever uses the bank must have the model. Files of its processor or tokeniser are stored by
            `bank.store_model`.
        exist_ok: whether to open a bank that is there already, such as one that a killed run left.

    Raises:
        ValueError: if the folder holds something else or cannot be written; if it holds a bank and `exist_ok` is
            `False`, or the bank has another fingerprint or other settings; if `dense` is not the model of the
            fingerprint, or not one of this package's families.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> bank = create(folder, fingerprint="f" * 64, settings={"ratio": 0.5}, about=BankDescription(title="Pets"))
    >>> entries(create(folder, fingerprint="f" * 64, settings={"ratio": 0.5}, exist_ok=True))
    []
    """
    directory = files.absolute(directory)
    settings = manifest.plain("settings", settings)
    about = about or BankDescription()
    manifest.plain("about", dataclasses.asdict(about))
    if dense is not None:
        about = dataclasses.replace(about, model=dense_model.configuration(dense[0]))
        dense_model.check(fingerprint, dense[1])
    # Of several that make one bank at once, the first writes the manifest, and the others see it. One that was killed
    # after that has left its lock.
    new = not files.exists(directory / manifest.NAME) or files.exists(directory / locks.NAME)
    with locks.held(directory, wait=_PATIENCE) if new else contextlib.nullcontext():
        if not files.exists(directory / manifest.NAME):
            _empty(directory)
            manifest.write(Bank(path=directory, fingerprint=fingerprint, settings=settings, about=about))
        elif not exist_ok:
            raise ValueError(f"{directory} is a bank already; pass exist_ok=True to continue it, or choose another")
    bank = open(directory, fingerprint=fingerprint, settings=settings, write=True)
    if bank.about == BankDescription() != about:
        bank = dataclasses.replace(bank, about=about)
        manifest.write(bank)
    if dense is not None and not dense_model.has_model(bank):
        dense_model.store_model(bank, *dense)
    if not files.exists(directory / readme.NAME):
        write_readme(bank)
    return bank


def _empty(directory: pathlib.Path) -> None:
    """Makes a folder for a new bank; `ValueError` if it holds something."""
    files.writable(directory)
    # What a bank killed before its manifest was written leaves behind is its own, anything else is not.
    found = [] if files.is_remote(directory) else [p.name for p in directory.iterdir() if p.name[0] == "."]
    found = [name for name in [*found, *files.listing(directory)] if not leftovers.is_hidden(name)]
    foreign = sorted(set(found) - {"entries", locks.NAME})
    if foreign or files.listing(directory / "entries"):
        raise ValueError(f"{directory} is neither empty ({foreign[:5] or 'entries'}) nor a bank; choose another folder")


def open(
    directory: str | os.PathLike[str],
    *,
    fingerprint: str | None = None,
    settings: Mapping[str, Any] | None = None,
    write: bool = False,
) -> Bank:
    """Opens a bank.

    Args:
        directory: its folder, or an address in a bucket.
        fingerprint: if given, that of the pre-trained model that the bank must belong to.
        settings: if given, how its entries must have been made.
        write: whether entries are to be added; what killed writers left is then removed.

    Raises:
        ValueError: if there is no bank, it belongs to another pre-trained model, its settings differ (the error says
            which), or it cannot be written although `write` is set.
    """
    directory = files.absolute(directory)
    bank = manifest.read(directory, write=write)
    if fingerprint is not None and fingerprint != bank.fingerprint:
        raise ValueError(
            f"the bank {directory} belongs to another pre-trained model: its fingerprint is {bank.fingerprint[:12]}, "
            f"the model's {fingerprint[:12]}; load the model it was made from, or build a bank in another folder"
        )
    if settings is not None:
        differing = manifest.differences(manifest.plain("settings", settings), bank.settings)
        if differing:
            raise ValueError(
                f"the bank {directory} was made with other settings: {'; '.join(differing)}; "
                "use those, or build a bank in another folder"
            )
    if write:
        files.writable(directory / "entries")
        leftovers.sweep(directory)
        leftovers.sweep(directory / "entries")
    return bank


def write_readme(bank: Bank) -> None:
    """Writes the bank's `README.md` anew, from its manifest and the number of entries that it has now.

    Raises:
        ValueError: if the bank is read-only or cannot be written.
    """
    if not bank.write:
        raise ValueError(f"the bank {bank.path} is open for reading; pass write=True to `bank.open`")
    text = readme.text(bank, len(folders(bank)), dense_model.has_model(bank)).encode()
    file = bank.path / readme.NAME
    if files.exists(file) and file.read_bytes() == text:
        return  # what nothing was added to stays as it is
    with files.writing(bank.path):
        files.write_bytes(file, text)


def add(bank: Bank, entry: BankEntry, arrays: Mapping[str, PyTree]) -> BankEntry:
    """Adds an entry to a bank, whole or not at all.

    Args:
        bank: open for writing.
        entry: what is known of the pruned model; its `path` and `checksum` are ignored.
        arrays: nested dicts of arrays (`Variables` too) by name. `neighbours` reads `variables` (of the slim model),
            `units` (`{group: bool[C]}`, kept units in the dense model's index space), `saliency` (`{group: float[C]}`)
            and, for `similarity="prototype"`, `prototypes`; other names may be added.

    Returns:
        The entry as a reader finds it.

    Raises:
        ValueError: if the bank is read-only or another model's, the task is already in it, or a value cannot be stored.

    >>> import tempfile
    >>> import numpy as np
    >>> bank = create(tempfile.mkdtemp(), fingerprint="f" * 64, settings={})
    >>> entry = BankEntry(task="cats", classes=(3, 5), fingerprint="f" * 64, ratio=0.5, accuracy=0.9)
    >>> entry = add(bank, entry, {"units": {"block/fc": np.array([True, False])}})
    >>> load(entry)["units"]["block/fc"].tolist(), [e.task for e in entries(bank)]
    ([True, False], ['cats'])
    """
    if not bank.write:
        raise ValueError(f"the bank {bank.path} is open for reading; pass write=True to `bank.open`")
    if entry.fingerprint != bank.fingerprint:
        raise ValueError(f"entry {entry.task!r} was made from another pre-trained model than the bank {bank.path}")
    if not entry.task or not entry.classes or not 0 <= entry.ratio < 1 or not 0 <= entry.accuracy <= 1:
        raise ValueError(
            f"entry {entry.task!r}: classes {entry.classes}, ratio {entry.ratio}, accuracy {entry.accuracy}; expected "
            "a name, at least one class, a ratio in [0, 1) and an accuracy in [0, 1]"
        )
    if len(entry.class_names) not in (0, len(entry.classes)):
        raise ValueError(
            f"entry {entry.task!r} has {len(entry.classes)} classes and {len(entry.class_names)} names; give one each"
        )
    target = _folder(bank, entry.task)
    if has(bank, entry.task):
        raise ValueError(f"task {entry.task!r} is already in the bank {bank.path}; `bank.has` tells before the work")
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.name != "path"}
    content = manifest.plain(f"entry {entry.task!r}", fields)
    if files.is_remote(target):
        content["checksum"] = checkpoint.save_arrays(target / ARRAYS, arrays)
        with files.writing(bank.path):
            files.write_bytes(target / MARKER, json.dumps(content, indent=1).encode())
        return entry_at(target)

    def write(hidden: pathlib.Path) -> None:
        content["checksum"] = checkpoint.save_arrays(hidden / ARRAYS, arrays)
        files.write_bytes(hidden / MARKER, json.dumps(content, indent=1).encode())

    with files.writing(bank.path):
        if not placing.place(target, write):
            raise ValueError(
                f"task {entry.task!r} was added to the bank {bank.path} by another process in the meantime; its entry "
                "is there and complete"
            )
    return entry_at(target)


def has(bank: Bank, task: str) -> bool:
    """Whether the bank has an entry for the task of this name."""
    return files.complete(_folder(bank, task), MARKER)


def entries(bank: Bank) -> list[BankEntry]:
    """All entries that a bank has now, sorted by task.

    Raises:
        ValueError: naming the folder, if an entry is damaged.
    """
    return sorted(together(entry_at, folders(bank), bank.path), key=lambda e: e.task)


def class_names(bank: Bank, entry: BankEntry) -> tuple[str, ...]:
    """The names of an entry's classes, in the order of its head's outputs: its own, the bank's, or else numbers.

    >>> about = BankDescription(class_names=("ant", "bee", "cat"))
    >>> pets = Bank(path=pathlib.Path(), fingerprint="", settings={}, about=about)
    >>> class_names(pets, BankEntry(task="t", classes=(2, 0), fingerprint="", ratio=0.5, accuracy=0.9))
    ('cat', 'ant')
    """
    if entry.class_names:
        return entry.class_names
    known = bank.about.class_names
    return tuple(known[c] if 0 <= c < len(known) else str(c) for c in entry.classes)


def load(entry: BankEntry, *, only: Sequence[str] | None = None, check: bool = True) -> dict[str, Any]:
    """The arrays of an entry, as they were given to `add`.

    Args:
        entry: from `entries` or `add`.
        only: the names to read; `None`: all.
        check: whether to compare the checksum first, for which the whole file is read.

    Returns:
        `{name: tree}` of NumPy arrays in plain dicts; `Variables` come back as such.

    Raises:
        ValueError: if the file is missing or damaged, or has no such name.
    """
    if entry.path is None:
        raise ValueError(f"entry {entry.task!r} is in no bank yet; `bank.add` returns one that is")
    file = entry.path / ARRAYS
    try:
        if check:
            with foreign_files.plain_file(file).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != entry.checksum:
                raise ValueError(f"{file} has the checksum {found[:12]}, expected {entry.checksum[:12]!r}")
        return checkpoint.load_arrays(file, only=only)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"bank entry {entry.path}: {error}; if it is damaged, delete that folder and build the entry again"
        ) from error


def folder_name(task: str) -> str:
    """The name of the folder of a task's entry.

    >>> folder_name("cats/dogs"), folder_name(".hidden")
    ('cats%2Fdogs', '%2Ehidden')
    """
    name = urllib.parse.quote(task, safe=" ,=+@")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _folder(bank: Bank, task: str) -> pathlib.Path:
    return bank.path / "entries" / folder_name(task)


def folders(bank: Bank) -> list[pathlib.Path]:
    """The folders of the entries that a bank has now."""
    folder = bank.path / "entries"
    if not files.is_remote(folder) and folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a bank has a folder of entries there")
    found = [folder / name for name in files.listing(folder)]
    complete = together(lambda path: files.complete(path, MARKER), found, folder)
    return [path for path, there in zip(found, complete, strict=True) if there]


def together(read: Callable[[S], T], items: Sequence[S], where: pathlib.Path | None) -> list[T]:
    """What `read` gives for each item; if `where` is an address in a bucket, many are asked for at once."""
    if where is None or len(items) < 2 or not files.is_remote(where):
        return [read(item) for item in items]
    with futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, items))


def entry_at(folder: pathlib.Path) -> BankEntry:
    """The entry in a folder.

    Raises:
        ValueError: naming the folder, if `entry.json` is missing or damaged.
    """
    try:
        _check_inside(folder)
        content = foreign_files.parsed(foreign_files.text(folder / MARKER), MARKER)
        # Entries of earlier releases have no names of classes.
        content.setdefault("class_names", ())
        fields = {f.name: content[f.name] for f in dataclasses.fields(BankEntry) if f.name != "path"}
        checked = {
            "task": _text(fields["task"]),
            "classes": tuple(map(int, fields["classes"])),
            "class_names": tuple(map(_text, fields["class_names"])),
            "ratio": _share(fields["ratio"]),
            "accuracy": _share(fields["accuracy"]),
            "fingerprint": _text(fields["fingerprint"]),
            "checksum": _text(fields["checksum"]),
            "cost": dict(fields["cost"]),
            "extra": dict(fields["extra"]),
        }
        return BankEntry(**fields | checked | {"path": folder})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"bank entry {folder}: entry.json is missing or damaged ({foreign_files.told(repr(error))}); delete that "
            "folder and build it again"
        ) from error


def _check_inside(folder: pathlib.Path) -> None:
    """Raises `ValueError` if an entry, or a file of it, is a link out of the bank."""
    if files.is_remote(folder):
        return
    home = folder.parent.resolve() / folder.name
    for path in (folder, folder / MARKER, folder / ARRAYS):
        if path.is_symlink() and not path.resolve().is_relative_to(home.parent):
            raise ValueError(f"{path.name} is a link out of the bank; copy what it leads to")


def _share(value: Any) -> float:
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{value!r:.40} is no share in [0, 1]")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value
