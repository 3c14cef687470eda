"""Pictures with labels from folders of classes: checked before any work, decoded when they are looked at."""

import collections
import dataclasses
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from mvp_jax.data.datasets import folders, tables
from mvp_jax.data.datasets.examples import GivenParts, Pool
from mvp_jax.data.datasets.table_examples import PARTS
from mvp_jax.data.datasets.targets import shown
from mvp_jax.data.loading import decoding, lazy
from mvp_jax.storage import foreign_files

FULLY_CHECKED = 5_000
"""Fewer pictures than this, of less than a gigabyte together, are all decoded once before any work."""

_MUCH = 10**9
_SHOWN = 6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PictureFiles(Sequence[np.ndarray]):
    """Pictures that are decoded each time they are looked at, `uint8[H, W, 3]`, and may differ in size.

    A picture stands upright as the EXIF orientation of its file says, as `transformers.image_utils.load_image` turns
    it; what is transparent is put over white.

    Attributes:
        paths: the N files.

    >>> import tempfile
    >>> from PIL import Image
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.png"
    >>> Image.new("L", (6, 4), 255).save(file)
    >>> PictureFiles((file,))[0].shape
    (4, 6, 3)
    """

    paths: tuple[pathlib.Path, ...]

    def __repr__(self) -> str:
        return f"PictureFiles({len(self)} files)"

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, which: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, which: slice) -> "PictureFiles": ...
    def __getitem__(self, which: "int | slice") -> "np.ndarray | PictureFiles":
        """Decodes the picture at an index; of a slice nothing is decoded."""
        if isinstance(which, slice):
            return PictureFiles(self.paths[which])
        path = self.paths[which]
        try:
            return decoding.decode(foreign_files.plain_file(path).read_bytes(), upright=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def take(self, which: Sequence[int] | np.ndarray) -> "PictureFiles":
        """Returns the pictures at indices, without decoding them."""
        return PictureFiles(tuple(self.paths[int(i)] for i in which))


def read(root: pathlib.Path, name: str, test: pathlib.Path | None = None) -> GivenParts:
    """Reads pictures from `ROOT/CLASS/...`, or from `ROOT/train/CLASS/...` with a folder `test`, `valid`, or both.

    Classes are sorted by name, or by number if all names are numbers. Pictures count at any depth below a class's
    folder.

    Args:
        root: the folder.
        name: the name of the data set in tables.
        test: a folder of the same classes whose pictures are the test part; `None`: the folder `test` if there is one.

    Returns:
        The parts.

    Raises:
        ValueError: for a folder that cannot be read, pictures outside folders of classes, a class without pictures,
            parts whose classes differ, and pictures that are damaged or have more than 8 bits a level.
    """
    where = _parts(root)
    if test is not None:
        where["test"] = test
        if "valid" in where and where["valid"].resolve() == test.resolve():
            del where["valid"]  # what is reported on is not chosen by
    found = {part: _classes(folder) for part, folder in where.items()}
    names = _sorted(found["train"])
    for part, classes in found.items():
        if set(classes) != set(names):
            lacking, further = sorted(set(names) - set(classes)), sorted(set(classes) - set(names))
            raise ValueError(
                f"{where[part]} and {where['train']} have different classes: the first lacks {shown(lacking)} and has "
                f"{shown(further)} besides; give both the same folders"
            )
    if len(names) < 2:
        raise ValueError(
            f"{where['train']} has one class, {names}; give a folder of pictures for each of several classes"
        )
    files = {part: [p for kind in names for p in classes[kind]] for part, classes in found.items()}
    keys, note = _keys([p for own in files.values() for p in own])
    pools, start = {}, 0
    for part, own in files.items():
        y = np.repeat(np.arange(len(names), dtype=np.int32), [len(found[part][kind]) for kind in names])
        pools[part] = Pool(
            x=PictureFiles(tuple(own)), y=y, keys=keys[start : start + len(own)], origin=f"{where[part].name}/"
        )
        start += len(own)
    return GivenParts(
        name=name,
        kind="pictures",
        train=pools["train"],
        valid=pools.get("valid"),
        test=pools.get("test"),
        class_names=names,
        notes=(note, *_loose_note(where.values())),
    )


def _parts(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each part that there is."""
    there = {p.name.lower(): p for p in folders.subfolders(root)}
    found = {part: [there[n] for n in names if n in there] for part, names in PARTS.items()}
    several = [[p.name for p in own] for own in found.values() if len(own) > 1]
    held_out = [own[0].name for part, own in found.items() if own and part != "train"]
    if found["train"] and several:
        raise ValueError(f"{root} has the folders {several[0]} for one part; leave one of them")
    if not found["train"]:
        if held_out and any(folders.subfolders(there[h.lower()]) for h in held_out):
            raise ValueError(
                f"{root} has the folder {held_out[0]!r} and no 'train' beside it; call the other part 'train'"
            )
        return {"train": root}
    return {part: own[0] for part, own in found.items() if own}


def _classes(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    loose = folders.loose(root)
    if loose and not folders.subfolders(root):
        raise ValueError(
            f"{root} has {len(loose)} pictures and no folders of classes; put the pictures of each class into a folder "
            f"with its name, like {root.name}/CLASS/{loose[0].name}"
        )
    found = folders.by_class(root)
    alike = [kind for kind in found if kind != kind.strip() and kind.strip() in found]
    if alike:
        raise ValueError(f"{root}: the classes {alike[0].strip()!r} and {alike[0]!r} differ only in blanks; join them")
    return found


def _sorted(names: Mapping[str, object]) -> tuple[str, ...]:
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _loose_note(roots: Iterable[pathlib.Path]) -> list[str]:
    counts = {root: len(folders.loose(root)) for root in roots}
    return [
        f"Not read, as they belong to no class: {tables.counted(count, 'picture')} in {root.name} itself."
        for root, count in counts.items()
        if count
    ]


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing, which is told when it is opened
        return -1


def _keys(paths: list[pathlib.Path]) -> tuple[list[Hashable], str]:
    """Checks all pictures; returns what each is equal by, and a sentence on how they were checked."""
    sizes = [_size(p) for p in paths]
    full = len(paths) < FULLY_CHECKED and sum(sizes) < _MUCH
    common = collections.Counter(sizes)
    keys: list[Hashable] = [str(p) for p in paths]
    broken: dict[int, str] = {}

    def look(i: int) -> None:
        try:
            if full:
                picture = decoding.decode(foreign_files.plain_file(paths[i]).read_bytes(), upright=True)
                keys[i] = (picture.shape, lazy.digest(picture))
            else:
                decoding.check_head(paths[i])
                if common[sizes[i]] > 1:  # files of different lengths differ
                    keys[i] = lazy.digest(paths[i].read_bytes())
        except (OSError, ValueError) as error:
            broken[i] = str(error)

    lazy.each(look, len(paths))
    if broken:
        first, *rest = sorted(broken)
        others = f"; nor can {[str(paths[i]) for i in rest[:_SHOWN]]} be read" if rest else ""
        more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
        raise ValueError(f"{paths[first]}: {broken[first]}{others}{more}; replace or remove these files")
    if full:
        return keys, f"All {len(paths)} pictures were decoded once; those with equal pixels stay in one part."
    return keys, f"The heads of all {len(paths)} pictures were read; files of equal content stay in one part."
