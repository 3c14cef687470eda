"""The bank: a directory of pruned models, all made from one pre-trained model.

    DIR/manifest.json                  format, fingerprint of the pre-trained model, settings
    DIR/entries/TASK/entry.json        task, classes, ratio, accuracy, cost, checksum
    DIR/entries/TASK/arrays.safetensors

An entry is written into a hidden folder beside the others and then renamed, so a reader sees all of it or none,
whenever the writer is killed. In a bucket (`storage`) it is there when its `entry.json` is, which comes last. Nothing
is cached: a reader sees new entries the next time it asks.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree
from mvp_jax.storage import checkpoint, files

_FORMAT, _VERSION = "mvp_jax bank", 1
_ARRAYS, _MARKER = "arrays.safetensors", "entry.json"


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
    path: pathlib.Path | None = None
    checksum: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank:
    """An open bank.

    Attributes:
        path: its folder.
        fingerprint: that of the pre-trained model from which all its entries are made; see the function `fingerprint`.
        settings: how its entries are made, plain JSON values.
        write: whether entries may be added.
    """

    path: pathlib.Path
    fingerprint: str
    settings: Mapping[str, Any] = dataclasses.field(hash=False)
    write: bool = False


def fingerprint(variables: PyTree) -> str:
    """The identity of a pre-trained model: sha256 (hexadecimal) over the paths, dtypes, shapes and bytes of its arrays.

    It does not depend on the kinds of containers in the tree.

    >>> fingerprint({"a": np.zeros(2, np.float32)})[:8], fingerprint({"a": np.ones(2, np.float32)})[:8]
    ('a0025d8c', '404ca05b')
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(variables).items()):
        leaf = np.asarray(leaf)
        digest.update(json.dumps([path, str(leaf.dtype), leaf.shape]).encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def create(
    directory: str | os.PathLike[str], *, fingerprint: str, settings: Mapping[str, Any], exist_ok: bool = False
) -> Bank:
    """Makes a bank and opens it for writing.

    Args:
        directory: a new or empty folder, or an address in a bucket.
        fingerprint: that of the pre-trained model; see the function `fingerprint`.
        settings: how entries are made, plain JSON values; all entries of a bank are made by the same settings.
        exist_ok: whether to open a bank that is there already, such as one that a killed run left.

    Raises:
        ValueError: if the folder holds something else or cannot be written; if it holds a bank and `exist_ok` is
            `False`, or the bank has another fingerprint or other settings.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> bank = create(folder, fingerprint="f" * 64, settings={"ratio": 0.5})
    >>> entries(create(folder, fingerprint="f" * 64, settings={"ratio": 0.5}, exist_ok=True))
    []
    """
    directory = files.absolute(directory)
    settings = _plain("settings", settings)
    if files.exists(directory / "manifest.json"):
        if not exist_ok:
            raise ValueError(f"{directory} is a bank already; pass exist_ok=True to continue it, or choose another")
        return open(directory, fingerprint=fingerprint, settings=settings, write=True)
    files.writable(directory)
    # What a bank killed before its manifest was written leaves behind is its own, anything else is not.
    found = [] if files.is_remote(directory) else [p.name for p in directory.iterdir() if p.name[0] == "."]
    found = [name for name in [*found, *files.listing(directory)] if not name.startswith(".tmp-")]
    foreign = sorted(set(found) - {"entries"})
    if foreign or files.listing(directory / "entries"):
        raise ValueError(f"{directory} is neither empty ({foreign[:5] or 'entries'}) nor a bank; choose another folder")
    content = {"format": _FORMAT, "version": _VERSION, "fingerprint": fingerprint, "settings": settings}
    with files.writing(directory):
        files.write_bytes(directory / "manifest.json", json.dumps(content, indent=1).encode())
    return open(directory, write=True)


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
    try:
        content = json.loads((directory / "manifest.json").read_text())
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ValueError(f"its manifest says {content['format']!r}, version {content['version']!r}")
        bank = Bank(path=directory, fingerprint=content["fingerprint"], settings=content["settings"], write=write)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory} is not a bank of version {_VERSION} (`bank.create` makes one): {error}"
        ) from error
    if fingerprint is not None and fingerprint != bank.fingerprint:
        raise ValueError(
            f"the bank {directory} belongs to another pre-trained model: its fingerprint is {bank.fingerprint[:12]}, "
            f"the model's {fingerprint[:12]}; load the model it was made from, or build a bank in another folder"
        )
    if settings is not None:
        differing = _differences(_plain("settings", settings), bank.settings)
        if differing:
            raise ValueError(
                f"the bank {directory} was made with other settings: {'; '.join(differing)}; "
                "use those, or build a bank in another folder"
            )
    if write:
        files.writable(directory / "entries")
        files.sweep(directory / "entries")
    return bank


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
    target = _folder(bank, entry.task)
    if has(bank, entry.task):
        raise ValueError(f"task {entry.task!r} is already in the bank {bank.path}; `bank.has` tells before the work")
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.name != "path"}
    content = _plain(f"entry {entry.task!r}", fields)
    if files.is_remote(target):
        content["checksum"] = checkpoint.save_arrays(target / _ARRAYS, arrays)
        with files.writing(bank.path):
            files.write_bytes(target / _MARKER, json.dumps(content, indent=1).encode())
        return _entry(target)
    with files.writing(bank.path):
        hidden = files.hidden(target.parent)
        try:
            content["checksum"] = checkpoint.save_arrays(hidden / _ARRAYS, arrays)
            files.write_bytes(hidden / _MARKER, json.dumps(content, indent=1).encode())
            os.rename(hidden, target)  # refused, not merged, if another writer was first: its folder is not empty
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        files.sync(target.parent)
    return _entry(target)


def has(bank: Bank, task: str) -> bool:
    """Whether the bank has an entry for the task of this name."""
    return files.complete(_folder(bank, task), _MARKER)


def entries(bank: Bank) -> list[BankEntry]:
    """All entries that a bank has now, sorted by task.

    Raises:
        ValueError: naming the folder, if an entry is damaged.
    """
    return sorted((_entry(folder) for folder in _folders(bank)), key=lambda e: e.task)


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
    file = entry.path / _ARRAYS
    try:
        if check:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != entry.checksum:
                raise ValueError(f"{file} has the checksum {found[:12]}, expected {entry.checksum[:12]}")
        return checkpoint.load_arrays(file, only=only)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"bank entry {entry.path}: {error}; if it is damaged, delete that folder and build the entry again"
        ) from error


def ballots(bank_entries: Sequence[BankEntry]) -> dict[str, np.ndarray]:
    """Returns the units that `T` entries keep, stacked for a vote, `{group: bool[T, C]}`.

    Raises:
        ValueError: if there are no entries, one cannot be read, or their groups differ.
    """
    return stacked(bank_entries, "units")


def weights(bank_entries: Sequence[BankEntry]) -> Any:
    """Returns the variables of `T` entries, stacked: every leaf leads with `T`.

    Raises:
        ValueError: if there are no entries, one cannot be read, or their shapes differ.
    """
    return stacked(bank_entries, "variables")


def stacked(bank_entries: Sequence[BankEntry], name: str) -> Any:
    """The arrays that several entries hold under one name, stacked as NumPy arrays: every leaf leads with `T`.

    Args:
        bank_entries: `T` entries, at least one.
        name: a name given to `add`, such as `units`, `variables` or `saliency`.

    Raises:
        ValueError: if there are no entries, their trees or shapes differ, or one has nothing of this name.
    """
    if not bank_entries:
        raise ValueError("no entries to stack; give at least one")
    return stack(bank_entries, [load(e, only=[name], check=False)[name] for e in bank_entries], name)


def stack(bank_entries: Sequence[BankEntry], found: Sequence[Any], name: str) -> Any:
    """Trees of several entries as one on the host, whose leaves lead with the axis of entries `T`.

    Args:
        bank_entries: whose trees they are; at least one.
        found: a tree of each, all of one structure and with the same shapes.
        name: what they are, for the errors.

    Raises:
        ValueError: naming the entries and the leaf, if trees or shapes differ.
    """
    first = trees.flatten(found[0])
    for entry, tree in zip(bank_entries[1:], found[1:], strict=True):
        trees.check_same_structure(found[0], tree, f"{name} of {bank_entries[0].task!r}", f"of {entry.task!r}")
        for path, leaf in trees.flatten(tree).items():
            if leaf.shape != first[path].shape:
                raise ValueError(
                    f"{name}/{path} is {first[path].shape} in {bank_entries[0].task!r} and {leaf.shape} in "
                    f"{entry.task!r}; entries stack if they have one ratio and one number of classes"
                )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def verify(bank: Bank) -> int:
    """Reads every entry, compares checksums and fingerprints, and returns the number of entries.

    Raises:
        ValueError: listing all entries that are damaged or made from another pre-trained model.
    """
    problems = []
    folders = _folders(bank)
    for folder in folders:
        try:
            entry = _entry(folder)
            load(entry)
            if entry.fingerprint != bank.fingerprint:
                problems.append(f"bank entry {folder}: made from another pre-trained model")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"{len(problems)} of {len(folders)} entries are not sound:\n" + "\n".join(problems))
    return len(folders)


def _folder(bank: Bank, task: str) -> pathlib.Path:
    name = urllib.parse.quote(task, safe=" ,=+@")
    return bank.path / "entries" / (f"%2E{name[1:]}" if name.startswith(".") else name)


def _folders(bank: Bank) -> list[pathlib.Path]:
    folder = bank.path / "entries"
    return [folder / name for name in files.listing(folder) if files.complete(folder / name, _MARKER)]


def _entry(folder: pathlib.Path) -> BankEntry:
    try:
        content = json.loads((folder / _MARKER).read_text())
        fields = {f.name: content[f.name] for f in dataclasses.fields(BankEntry) if f.name != "path"}
        return BankEntry(**fields | {"classes": tuple(fields["classes"]), "path": folder})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"bank entry {folder}: entry.json is missing or damaged ({error!r}); delete that folder and build it again"
        ) from error


def _plain(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if not isinstance(value, np.generic | np.ndarray | jax.Array):
            raise TypeError(f"{type(value).__name__} {value!r}")
        return value.tolist()

    try:
        return dict(json.loads(json.dumps(dict(values), default=number, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be plain JSON values (finite numbers, text, lists, dicts): {error}") from error


def _differences(asked: dict[str, Any], found: Mapping[str, Any]) -> list[str]:
    def flat(values: Any) -> dict[str, Any]:
        pairs = jax.tree_util.tree_leaves_with_path(values, is_leaf=lambda v: not isinstance(v, dict))
        return {trees.path_of(keys): value for keys, value in pairs}

    left, right = flat(asked), flat(found)
    return [
        f"{name} is {right.get(name, 'missing')!r} in the bank, {left.get(name, 'missing')!r} asked for"
        for name in sorted({*left, *right})
        if left.get(name, left) != right.get(name, right)
    ]
