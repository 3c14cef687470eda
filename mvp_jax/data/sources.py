"""Labelled images or texts on the host: the embedded digits, `.npz` archives, arrays of one's own.

Everything here is NumPy, or `lazy.Lazy` where images are too many for memory; a `Source` is validated once, when it is
made, so that nothing built on it need look again.
"""

import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.data.loading import lazy
from mvp_jax.data.loading.lazy import Lazy

_MUCH = 2**29  # bytes of uint8 images, from which on they are normalised when they are looked at
_SAMPLE = 10_000  # images that mean and deviation are taken of, where they have to be decoded for it


class Arrays(NamedTuple):
    """Images `x`, `[N, H, W, C]` float32 or uint8, or token ids, `int32[N, L]`; and labels `y`, `int32[N]`.

    Images may be in memory, in a mapped file (`np.memmap`), or decoded when they are looked at (`lazy.Lazy`).
    """

    x: np.ndarray | Lazy
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A labelled data set, checked when it is made.

    Attributes:
        name: what tables call it.
        train: the images to learn from.
        test: the images to report on, where the data set has a split of its own.
        class_names: one for each class; labels index it.
        coarse: the superclass of each class, or `()`.
        coarse_names: the names of the superclasses, or `()`.
    """

    name: str
    train: Arrays
    test: Arrays | None = None
    class_names: tuple[str, ...]
    coarse: tuple[int, ...] = ()
    coarse_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, pair in (("train", self.train), ("test", self.test)):
            if pair is not None:
                _check(f"{self.name}, {split}", pair, len(self.class_names))
        if self.test is not None and self.test.x.shape[1:] != self.train.x.shape[1:]:
            raise ValueError(
                f"{self.name}: train images are {self.train.x.shape[1:]}, test images {self.test.x.shape[1:]}; "
                "give both splits one [H, W, C], or one length of texts"
            )
        if self.coarse and len(self.coarse) != self.num_classes:
            raise ValueError(
                f"{self.name}: {len(self.coarse)} superclasses given for {self.num_classes} classes; give one a class"
            )
        if self.coarse and self.coarse_names and not all(0 <= c < len(self.coarse_names) for c in self.coarse):
            raise ValueError(f"{self.name}: superclasses {self.coarse} reach outside {len(self.coarse_names)} names")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`, or `(L,)` of token ids."""
        return self.train.x.shape[1:]


def _check(what: str, pair: Arrays, num_classes: int) -> None:
    x, y = pair
    if isinstance(x, np.ndarray) and _is_tokens(x):
        if 0 in x.shape or x.min() < 0:
            raise ValueError(f"{what}: token ids {list(x.shape)} are empty, or negative; expected int32 [N, L] from 0")
    elif x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f"{what}: images have shape {x.shape}; expected [N, H, W, C] with nothing empty, or int32 token ids [N, L]"
        )
    elif x.dtype not in (np.float32, np.uint8):
        raise ValueError(f"{what}: images are {x.dtype}; expected float32 (or uint8, which stands for 0 to 255)")
    if y.dtype != np.int32 or y.shape != x.shape[:1]:
        raise ValueError(f"{what}: labels are {y.dtype}{list(y.shape)}; expected int32[{len(x)}], one for each image")
    if isinstance(x, np.ndarray) and x.dtype == np.float32 and not np.isfinite(x).all():
        raise ValueError(f"{what}: images hold nan or inf; clean or drop them first")
    outside = np.unique(y[(y < 0) | (y >= num_classes)])
    if outside.size:
        raise ValueError(
            f"{what}: labels {outside[:8].tolist()} are outside the {num_classes} classes (0 to {num_classes - 1}); "
            "number the classes from 0, or name all of them"
        )


def _is_tokens(x: np.ndarray | Lazy) -> bool:
    return x.ndim == 2 and x.dtype == np.int32


def _images(x: Any) -> np.ndarray | Lazy:
    if isinstance(x, Lazy):
        return x
    x = np.asanyarray(x)  # what is mapped into memory stays so
    if x.dtype in (np.float64, np.float16):
        x = x.astype(np.float32)
    return x[..., None] if x.ndim == 3 else x  # grey images without a channel axis


def _labels(what: str, y: Any) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iu":
        raise ValueError(f"{what}: labels are {y.dtype}; expected integers that index the classes")
    if y.size and (int(y.max()) > np.iinfo(np.int32).max or int(y.min()) < np.iinfo(np.int32).min):
        raise ValueError(f"{what}: labels reach from {y.min()} to {y.max()}; number the classes from 0")
    return y.astype(np.int32)


def arrays(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    coarse: Sequence[int] = (),
    coarse_names: Sequence[str] = (),
) -> Source:
    """A source from arrays.

    Args:
        name: what tables call it.
        train: images `[N, H, W, C]` or `[N, H, W]` (uint8, or floats, kept as float32; a `lazy.Lazy` as it is), or
            token ids `int32[N, L]`; and integer labels `[N]`.
        test: the same, or `None`.
        class_names: one for each class; without it the classes are `0` to the largest training label.
        coarse: the superclass of each class.
        coarse_names: the names of the superclasses.

    Returns:
        The checked source.

    Raises:
        ValueError: for shapes, dtypes or labels that do not fit.

    >>> source = arrays("toy", (np.zeros((4, 2, 2), np.uint8), [0, 1, 2, 1]))
    >>> source.num_classes, source.image_shape, source.train.y.tolist()
    (3, (2, 2, 1), [0, 1, 2, 1])
    """

    def pair(split: str, value: tuple[Any, Any]) -> Arrays:
        return Arrays(_images(value[0]), _labels(f"{name}, {split}", value[1]))

    first = pair("train", train)
    if class_names is None:
        class_names = [str(i) for i in range(int(first.y.max(initial=-1)) + 1)]
    return Source(
        name=name,
        train=first,
        test=None if test is None else pair("test", test),
        class_names=tuple(str(n) for n in class_names),
        coarse=tuple(int(c) for c in coarse),
        coarse_names=tuple(str(n) for n in coarse_names),
    )


def digits(*, upsample: int = 1) -> Source:
    """The 1,797 handwritten digits that scikit-learn carries: 8×8, one channel, in [0, 1], no download.

    Args:
        upsample: how often each pixel is repeated along both axes; 2 gives 16×16.

    Returns:
        A source of ten classes without a test split; `tasks.split` makes pools.

    Raises:
        ValueError: if `upsample` is less than 1.

    >>> digits().train.x.shape, digits(upsample=2).image_shape
    ((1797, 8, 8, 1), (16, 16, 1))

    Reference: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    if upsample < 1:
        raise ValueError(f"upsample is {upsample}; expected a whole number of at least 1")
    import sklearn.datasets  # here, because it takes a second to import

    bunch = sklearn.datasets.load_digits()
    x = (bunch.images / 16.0).astype(np.float32)
    x = x.repeat(upsample, axis=1).repeat(upsample, axis=2)
    return arrays("digits", (x, bunch.target), class_names=[str(n) for n in bunch.target_names])


def npz(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    train: tuple[str, str] = ("train_images", "train_labels"),
    test: tuple[str, str] | None = ("test_images", "test_labels"),
    class_names: str | Sequence[str] | None = "class_names",
    coarse_labels: str | None = "train_coarse_labels",
    coarse_names: str | None = "coarse_class_names",
) -> Source:
    """A source from an `.npz` archive.

    Images and labels must be plain arrays in it, as `np.savez` writes them; an archive of another packing has to be
    written anew first.

    Args:
        path: the archive.
        name: what tables call it; the file's name without it.
        train: the keys of the training images and labels.
        test: the keys of the test images and labels; `None` to do without.
        class_names: the key of the class names, or the names themselves; numbers if the archive lacks the key.
        coarse_labels: the key of each training image's superclass; left out if the archive lacks it.
        coarse_names: the key of the superclasses' names; left out if the archive lacks it.

    Returns:
        The checked source.

    Raises:
        ValueError: for a missing or damaged file, missing keys (with those there are), or contents that do not fit.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "toy.npz"
    >>> np.savez(file, train_images=np.zeros((2, 4, 4, 3), np.uint8), train_labels=[0, 1])
    >>> npz(file, test=None).image_shape
    (4, 4, 3)
    """
    path = pathlib.Path(path)
    names = class_names if isinstance(class_names, str) else None
    needed = [*train, *(test or ())]
    found = _read(path, needed, [k for k in (names, coarse_labels, coarse_names) if k])
    source = arrays(
        name or path.stem,
        (found[train[0]], found[train[1]]),
        None if test is None else (found[test[0]], found[test[1]]),
        class_names=[_text(n) for n in found[names]] if names in found else (None if names else class_names),
    )
    if coarse_labels not in found:
        return source
    coarse = _labels(f"{source.name}, {coarse_labels}", found[coarse_labels])
    if coarse.shape != source.train.y.shape:
        raise ValueError(f"{source.name}: {len(coarse)} entries in {coarse_labels!r} for {len(source.train.y)} images")
    pairs = sorted({(int(a), int(b)) for a, b in zip(source.train.y, coarse, strict=True)})
    if [a for a, _ in pairs] != list(range(source.num_classes)):
        raise ValueError(
            f"{source.name}: {coarse_labels!r} does not give each class one superclass; pass coarse_labels=None"
        )
    return dataclasses.replace(
        source,
        coarse=tuple(b for _, b in pairs),
        coarse_names=tuple(_text(n) for n in found[coarse_names]) if coarse_names in found else (),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read(path: pathlib.Path, needed: Sequence[str], optional: Sequence[str]) -> dict[Any, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"no file {path}; give the path of an .npz archive")
    found: dict[Any, np.ndarray] = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            there = list(archive.files)
            missing = [k for k in needed if k not in there]
            if not missing:
                found = {k: archive[k] for k in (*needed, *optional) if k in there}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz archive (damaged or cut short?): {error}") from error
    if missing:
        raise ValueError(
            f"{path} lacks {missing}; it has {there}; name its keys by train=(images, labels) and test=..., "
            "or pass test=None"
        )
    return found


def normalise(source: Source, mean: Any = None, std: Any = None) -> Source:
    """The source with float images `(x - mean) / std`, where uint8 counts as `x / 255`.

    Images that are decoded when they are looked at, mapped from a file, or larger than half a gigabyte are normalised
    when they are looked at.

    Args:
        source: any source.
        mean: scalar or `[C]`; of the training images without it (of at most 10,000, evenly spread, if they are to be
            decoded).
        std: scalar or `[C]`; likewise.

    Returns:
        A new source; the first stays as it was.

    Raises:
        ValueError: if `std` is not positive everywhere, or the source holds token ids.

    >>> x = normalise(digits()).train.x
    >>> f"{abs(x.mean()):.3f} {x.std():.3f}"
    '0.000 1.000'
    """
    if _is_tokens(source.train.x):
        raise ValueError(f"{source.name} holds token ids, which are looked up as they are; only images are normalised")
    if mean is None or std is None:
        x = source.train.x
        seen = to_float(x[:: -(-len(x) // _SAMPLE)] if isinstance(x, Lazy) else x)
        mean = seen.mean((0, 1, 2), dtype=np.float64) if mean is None else mean
        std = seen.std((0, 1, 2), dtype=np.float64) if std is None else std
    step = _Scale(np.asarray(mean, np.float32), np.asarray(std, np.float32))
    if not (step.std > 0).all():
        raise ValueError(f"std is {step.std.tolist()}; expected positive numbers (a constant channel has none: pass 1)")

    def made(pair: Arrays) -> Arrays:
        x = pair.x
        if not isinstance(x, Lazy) and not isinstance(x, np.memmap) and (x.dtype != np.uint8 or x.nbytes < _MUCH):
            return pair._replace(x=step(x))
        x = x if isinstance(x, Lazy) else lazy.rows(x)
        (channels,) = np.broadcast_shapes(x.shape[-1:], step.mean.shape, step.std.shape)
        return pair._replace(x=x.map(step, np.float32, (*x.shape[1:-1], channels)))

    return dataclasses.replace(
        source, train=made(source.train), test=None if source.test is None else made(source.test)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale:
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (to_float(x) - self.mean) / self.std


def to_float(x: np.ndarray | Lazy) -> np.ndarray:
    """Float32 images in memory; uint8 is divided by 255. Token ids, int32, stay as they are.

    >>> to_float(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    x = np.asarray(x)
    if x.dtype == np.int32:
        return x
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


def hashes(x: np.ndarray | Lazy) -> list[bytes]:
    """One digest of each image's exact pixels; of images in files, of the file's content."""
    return x.digests() if isinstance(x, Lazy) else [lazy.digest(image) for image in x]


def drop_duplicates(source: Source) -> tuple[Source, int]:
    """Drops test images whose exact pixels also occur in the training split.

    Args:
        source: any source.

    Returns:
        The source, and how many test images went.

    Raises:
        ValueError: if no test image would be left.

    >>> x = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    >>> slim, gone = drop_duplicates(arrays("toy", (x[:2], [0, 1]), (x[1:], [1, 0])))
    >>> slim.test.x.ravel().tolist(), gone
    ([2], 1)
    """
    if source.test is None:
        return source, 0
    seen = set(hashes(source.train.x))
    fresh = np.array([h not in seen for h in hashes(source.test.x)])
    if not fresh.any():
        raise ValueError(f"{source.name}: every test image also stands in the training split; this is no test")
    return dataclasses.replace(source, test=take(source.test, fresh)), int((~fresh).sum())


def take(pair: Arrays, which: np.ndarray) -> Arrays:
    """The images and labels at the given indices (or where a mask is true); what is not decoded stays so."""
    return Arrays(pair.x.take(which) if isinstance(pair.x, Lazy) else pair.x[which], pair.y[which])


def sizes(source: Source) -> Mapping[str, int]:
    """How many images each split has.

    >>> sizes(digits())
    {'train': 1797, 'test': 0}
    """
    return {"train": len(source.train.y), "test": 0 if source.test is None else len(source.test.y)}
