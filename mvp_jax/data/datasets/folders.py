"""Pictures in folders: one folder for each class, Tiny ImageNet's layout, and that of the traffic signs of GTSRB."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.datasets import catalog
from mvp_jax.data.loading import decoding, lazy
from mvp_jax.data.sources import Source
from mvp_jax.storage import foreign_files

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""The endings of files that are taken for pictures, in lower or upper case."""

_TRAIN = "train"
_HELD_OUT = ("test", "val", "valid", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    """Pictures and the label of each; reads the file of a number."""

    paths: tuple[pathlib.Path, ...]
    labels: tuple[int, ...]

    def __call__(self, i: int) -> bytes:
        return foreign_files.plain_file(self.paths[i]).read_bytes()

    def called(self, i: int) -> str:
        return str(self.paths[i])


def folder(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    size: int | None = None,
    test: str | None = None,
    lazily: bool | None = None,
    channels: int = 3,
) -> Source:
    """Reads a source from a folder that has one folder of pictures for each class.

    The layout is `PATH/train/CLASS/...` with `PATH/test/CLASS/...`, where `val`, `valid` or `validation` may stand for
    `test`; or `PATH/CLASS/...` without splits. If there are both a test and a validation folder, the validation
    pictures join those to learn from, since `tasks.split` cuts validation pools itself. Classes and files are sorted
    by name; pictures count at any depth below a class's folder.

    Args:
        path: the folder.
        name: the name of the data set in tables; `None`: the folder's name.
        size: the side of the images: the shorter side of a picture is resized to it, and the middle square cut out;
            `None`: all pictures must have one size.
        test: the name of the folder to report on; `None`: the first there is of `test`, `val`, `valid`, `validation`;
            `""`: no test split.
        lazily: whether pictures are decoded when they are read; `None`: if they are too many for memory.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The checked source.

    Raises:
        ValueError: for a folder that is missing or cannot be read, without pictures, a class without pictures, splits
            whose classes differ, pictures of several sizes, or (when it is read) a broken picture.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for kind in ("ant", "bee"):
    ...     (root / kind).mkdir()
    ...     Image.new("RGB", (6, 4)).save(root / kind / "0.png")
    >>> source = folder(root, size=4)
    >>> source.class_names, source.train.x.shape, source.train.y.tolist()
    (('ant', 'bee'), (2, 4, 4, 3), [0, 1])
    """
    root = _root(path)
    parts = [p.name for p in subfolders(root)]
    if _TRAIN not in parts:
        if test:
            raise ValueError(f"{root} has no folder {_TRAIN!r} beside {test!r}; it has {parts[:8]}")
        classes = by_class(root)
        return _source(name or root.name, tuple(classes), _files(classes), None, size, lazily, channels)
    held_out = [part for part in _HELD_OUT if part in parts]
    chosen = (held_out[0] if held_out else "") if test is None else test
    if chosen and chosen not in parts:
        raise ValueError(f"{root} has no folder {chosen!r}; it has {parts}")
    classes = by_class(root / _TRAIN)
    further = [part for part in held_out if part != chosen][:1] if chosen else []
    learned = _files(classes)
    for part in further:
        learned = _together(learned, _files(_same(classes, root / part)))
    tested = _files(_same(classes, root / chosen)) if chosen else None
    return _source(name or root.name, tuple(classes), learned, tested, size, lazily, channels)


def tiny_imagenet(path: str | os.PathLike[str], *, size: int | None = None, lazily: bool | None = None) -> Source:
    """Reads Tiny ImageNet as it is unpacked: 200 classes, 64×64; the official validation pictures are the test split.

    Args:
        path: a folder with `train/n01443537/images/*.JPEG` and so on, `val/images`, `val/val_annotations.txt` and
            `words.txt`, or with these in `tiny-imagenet-200`.
        size: the side of the images in pixels; `None`: 64.
        lazily: whether pictures are decoded when they are read; `None`: if they are too many for memory.

    Returns:
        The checked source; a class's name is the first of its words.

    Raises:
        ValueError: for a folder that is missing or without pictures, a broken picture, or if
            `val_annotations.txt` is missing or does not fit.
    """
    root = _root(path, "tiny-imagenet-200")
    classes = by_class(root / _TRAIN)
    numbers = {kind: i for i, kind in enumerate(classes)}
    table = root / "val" / "val_annotations.txt"
    found = [(row[0], row[1]) for row in _rows(table, "\t", 2)]
    unknown = sorted({kind for _, kind in found} - set(numbers))
    if unknown:
        raise ValueError(f"{table} names the classes {unknown[:4]}, which {root / _TRAIN} has not")
    tested = _Files(tuple(root / "val" / "images" / file for file, _ in found), tuple(numbers[k] for _, k in found))
    words = dict(row[:2] for row in _rows(root / "words.txt", "\t", 2)) if (root / "words.txt").is_file() else {}
    names = [words.get(kind, kind).partition(",")[0] for kind in classes]
    # Two kinds of crane, for example.
    distinct = tuple(n if names.count(n) == 1 else f"{n} {kind}" for n, kind in zip(names, classes, strict=True))
    return _source("tiny_imagenet", distinct, _files(classes), tested, size or 64, lazily, 3)


def gtsrb(path: str | os.PathLike[str], *, size: int | None = None, lazily: bool | None = None) -> Source:
    """Reads the German Traffic Sign Recognition Benchmark as it is unpacked.

    It has 43 classes of pictures of 15 to 250 pixels a side.

    Args:
        path: a folder with `Train/00000` to `Train/00042` and `Test`, or with `Final_Training/Images` and
            `Final_Test/Images`, or with these in `GTSRB`. The table of the test pictures, `GT-final_test.csv`, lies
            beside the test pictures or in the folder.
        size: the side of the images in pixels; `None`: 32.
        lazily: whether pictures are decoded when they are read; `None`: if they are too many for memory.

    Returns:
        The checked source; pictures keep the frame of about 10 % around a sign.

    Raises:
        ValueError: for a folder that is missing or without pictures, a broken picture, or if
            the table is missing or does not fit.

    Reference: Stallkamp et al., "Man vs. computer", Neural Networks 2012.
    """
    entry = catalog.CATALOG["gtsrb"]
    root = _root(path, "GTSRB")
    train = _one_of(root, ("Train", "Final_Training/Images", "Training"))
    test = _one_of(root, ("Test", "Final_Test/Images"))
    classes = by_class(train)
    if not all(kind.isdecimal() and int(kind) < entry.classes for kind in classes) or len(classes) != entry.classes:
        raise ValueError(f"{train} holds {len(classes)} folders {list(classes)[:4]}...; expected 00000 to 00042")
    learned = _files({f"{int(kind):05d}": paths for kind, paths in classes.items()}, sort=True)
    tables = [place / file for place in (test, root) for file in ("GT-final_test.csv", "Test.csv")]
    table = next((t for t in tables if t.is_file()), tables[0])
    header, *found = _rows(table, ";" if table.name.startswith("GT") else ",", 8, header=True)
    columns = {title.strip().lower(): i for i, title in enumerate(header)}
    file, label = columns.get("filename", columns.get("path")), columns.get("classid")
    if file is None or label is None:
        raise ValueError(
            f"{table} has the columns {header}; expected Filename and ClassId (GT-final_test.csv has both)"
        )
    try:
        labels = tuple(int(row[label]) for row in found)
    except ValueError as error:
        raise ValueError(f"{table}: {error}; expected a number of a class in each row") from error
    tested = _Files(tuple(test / pathlib.PurePosixPath(row[file]).name for row in found), labels)
    return _source("gtsrb", entry.class_names, learned, tested, size or entry.size, lazily, 3)


def _root(path: str | os.PathLike[str], inner: str = "") -> pathlib.Path:
    root = pathlib.Path(path).expanduser()
    if not root.is_dir() or not str(path):
        raise ValueError(f"no folder {str(path)!r}; give the path of the folder with the pictures")
    return root / inner if inner and (root / inner).is_dir() else root


def _one_of(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"{root} has none of the folders {list(names)}; it has {[p.name for p in subfolders(root)][:8]}")


def subfolders(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder, sorted by name, without hidden ones.

    Raises:
        ValueError: for a folder that cannot be read.
    """
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise ValueError(f"cannot read the folder {root}: {error}") from error


def by_class(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    """Returns the pictures of each class, at any depth below the class's folder, sorted by name.

    Args:
        root: the folder with a folder for each class.

    Raises:
        ValueError: for a folder that cannot be read or has no pictures, or a class without pictures.
    """
    found = {p.name: tuple(_pictures(p)) for p in subfolders(root)} if root.is_dir() else {}
    empty = [kind for kind, paths in found.items() if not paths]
    if not any(found.values()):
        raise ValueError(f"no pictures in {root}; expected a folder for each class, with files {', '.join(ENDINGS)}")
    if empty:
        raise ValueError(f"{root}: no pictures of the classes {empty[:8]}; add some, or remove the empty folders")
    return found


def loose(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the pictures that lie in a folder itself and not in a folder of a class, sorted by name."""
    return sorted(p for p in root.iterdir() if p.is_file() and p.suffix.lower() in ENDINGS and p.name[0] != ".")


def _pictures(root: pathlib.Path) -> Iterable[pathlib.Path]:
    for where, below, files in os.walk(root):
        below.sort()
        yield from (pathlib.Path(where, f) for f in sorted(files) if f.lower().endswith(ENDINGS) and f[0] != ".")


def _same(classes: dict[str, tuple[pathlib.Path, ...]], root: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    """Returns the pictures of the same classes in another split."""
    found = by_class(root)
    if set(found) != set(classes):
        missing, further = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise ValueError(
            f"{root} lacks the classes {missing[:8]} and has {further[:8]} besides; give both splits the same classes"
        )
    return found


def _files(classes: dict[str, tuple[pathlib.Path, ...]], sort: bool = False) -> _Files:
    items = sorted(classes.items()) if sort else list(classes.items())
    pairs = [(path, i) for i, (_, paths) in enumerate(items) for path in paths]
    return _Files(tuple(p for p, _ in pairs), tuple(i for _, i in pairs))


def _together(a: _Files, b: _Files) -> _Files:
    return _Files(a.paths + b.paths, a.labels + b.labels)


def _rows(table: pathlib.Path, delimiter: str, least: int, header: bool = False) -> list[list[str]]:
    """Reads the rows of a table, with or without its header line."""
    try:
        with foreign_files.plain_file(table).open(newline="", encoding="utf-8") as stream:
            found = [row for row in csv.reader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {table}, which says what the pictures are: {error}") from error
    wrong = [i for i, row in enumerate(found) if len(row) < least]
    if len(found) <= header or wrong:
        where = f"row {wrong[0] + 1} has {len(found[wrong[0]])}" if wrong else "there is none"
        raise ValueError(f"{table}: {where}; expected rows of at least {least} columns, parted by {delimiter!r}")
    return found


def _source(
    name: str,
    classes: Sequence[str],
    learned: _Files,
    tested: _Files | None,
    size: int | None,
    lazily: bool | None,
    channels: int,
) -> Source:
    side = size or max(_common(learned, tested))
    count = len(learned.paths) + (len(tested.paths) if tested else 0)
    if lazily is None:
        lazily = count * side**2 * channels > catalog.SMALL

    def pair(files: _Files) -> tuple[lazy.Lazy | np.ndarray, np.ndarray]:
        x = lazy.pictures(files, len(files.paths), size=size, channels=channels, called=files.called)
        return x if lazily else x[:], np.array(files.labels, np.int32)

    return sources.arrays(name, pair(learned), None if tested is None else pair(tested), class_names=classes)


def _common(*splits: _Files | None) -> tuple[int, int]:
    """Returns the one size `(height, width)` of all pictures, read from the headers of their files."""
    first: tuple[tuple[int, int], pathlib.Path] | None = None
    for path in (path for files in splits if files for path in files.paths):
        try:
            with decoding.opened(path) as image:
                found = (image.height, image.width)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        first = first or (found, path)
        if found != first[0]:
            raise ValueError(
                f"{path} is {found[0]} x {found[1]}, {first[1]} is {first[0][0]} x {first[0][1]}; give a size "
                "(data.size in a config), to which the shorter side is brought before the middle is cut out"
            )
    assert first is not None
    return first[0]
