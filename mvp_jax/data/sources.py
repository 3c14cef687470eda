"""Labelled images or texts on the host: arrays of one's own, scikit-learn's digits, `.npz` archives.

Examples are NumPy arrays, or `lazy.Lazy` where images are too many for memory. A `Source` is checked once, when it is
made, so that nothing built on it has to check again.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.data import archives
from mvp_jax.data.loading import lazy
from mvp_jax.data.loading.lazy import Lazy
from mvp_jax.storage import foreign_files

_MUCH = 2**29  # bytes; more uint8 images than this are normalised only when they are read
_SAMPLE = 10_000  # how many images give mean and deviation, if they have to be decoded for it


class Arrays(NamedTuple):
    """Labelled examples.

    Attributes:
        x: images `[N, H, W, C]`, float32 or uint8, in memory, in a mapped file (`np.memmap`) or decoded when they are
            read (`lazy.Lazy`); or token ids `int32[N, L]`.
        y: labels, `int32[N]`.
    """

    x: np.ndarray | Lazy
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A labelled data set, checked when it is made.

    Attributes:
        name: the name of the data set in tables.
        train: the examples to learn from.
        test: the examples to report on, if the data set has such a split; else `None`.
        class_names: the name of each class; labels are indices into it.
        coarse: the number of each class's superclass; `()`: there are no superclasses.
        coarse_names: the name of each superclass; `()`: they have none.

    Raises:
        ValueError: for shapes, dtypes or labels that do not fit, images with nan or inf, or splits of other shapes.
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
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one example: `(H, W, C)` of an image, `(L,)` of token ids."""
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
    """Makes a source of arrays.

    Args:
        name: the name of the data set in tables.
        train: the training examples and their integer labels `[N]`. Examples are images `[N, H, W, C]` or `[N, H, W]`
            (uint8; floats, which become float32; or a `lazy.Lazy`), or token ids `int32[N, L]`.
        test: the test examples and their labels, of the same kinds; `None`: the data set has no test split.
        class_names: the name of each class; `None`: the classes are `0` to the largest training label.
        coarse: the number of each class's superclass; `()`: there are no superclasses.
        coarse_names: the name of each superclass.

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
        last = int(first.y.max(initial=-1))
        if last >= 1_000_000:
            raise ValueError(f"{name}: labels reach {last}; number the classes from 0, or name them")
        class_names = [str(i) for i in range(last + 1)]
    return Source(
        name=name,
        train=first,
        test=None if test is None else pair("test", test),
        class_names=tuple(str(n) for n in class_names),
        coarse=tuple(int(c) for c in coarse),
        coarse_names=tuple(str(n) for n in coarse_names),
    )


def digits(*, upsample: int = 1) -> Source:
    """Returns the 1,797 handwritten digits that come with scikit-learn: 8×8, one channel, float32 in [0, 1].

    Args:
        upsample: how often each pixel is repeated along both axes; 2 gives images of 16×16.

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
    """Reads a source from an `.npz` archive.

    Images and labels must be plain arrays in it, as `np.savez` writes them.

    Args:
        path: the archive.
        name: the name of the data set in tables; `None`: the file's name.
        train: the keys of the training images and labels.
        test: the keys of the test images and labels; `None`: the source gets no test split.
        class_names: the key of the class names, or the names themselves; numbers if the archive lacks the key.
        coarse_labels: the key of each training image's superclass; `None`, or a missing key: no superclasses.
        coarse_names: the key of the superclasses' names; if the archive lacks it, they have none.

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
    found = archives.read(path, [*train, *(test or ())], [k for k in (names, coarse_labels, coarse_names) if k])
    with foreign_files.named(path):
        called = archives.texts(found[names]) if names and names in found else None if names else class_names
        pairs = [(found[x], found[y]) for x, y in (train, *([test] if test else []))]
        source = arrays(name or path.stem, *pairs, class_names=called)
    if not coarse_labels or coarse_labels not in found:
        return source
    coarse = _labels(f"{source.name}, {coarse_labels}", found[coarse_labels])
    if coarse.shape != source.train.y.shape:
        raise ValueError(f"{source.name}: {len(coarse)} entries in {coarse_labels!r} for {len(source.train.y)} images")
    classes = sorted({(int(a), int(b)) for a, b in zip(source.train.y, coarse, strict=True)})
    if [a for a, _ in classes] != list(range(source.num_classes)):
        raise ValueError(
            f"{source.name}: {coarse_labels!r} does not give each class one superclass; pass coarse_labels=None"
        )
    return dataclasses.replace(
        source,
        coarse=tuple(b for _, b in classes),
        coarse_names=tuple(archives.texts(found[coarse_names])) if coarse_names and coarse_names in found else (),
    )


def normalise(source: Source, mean: Any = None, std: Any = None) -> Source:
    """Returns a source whose images are normalised, float32 `(x - mean) / std`; uint8 first becomes `x / 255`.

    Images that have to be decoded, are mapped from a file, or take more than half a gigabyte as uint8 are normalised
    each time they are read; others now.

    Args:
        source: a source of images; it stays as it is.
        mean: what is subtracted, a scalar or `[C]`; `None`: the mean of the training images by channel (of 10,000,
            evenly spread, if there are more and they have to be decoded).
        std: what the images are then divided by, a scalar or `[C]`; `None`: the standard deviation of the same images.

    Returns:
        The normalised source.

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
    """Returns images in memory as float32, those of uint8 divided by 255; token ids stay int32.

    Args:
        x: images of any kind that `Arrays` holds, or token ids.

    Returns:
        An array of the same shape.

    >>> to_float(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    x = np.asarray(x)
    if x.dtype == np.int32:
        return x
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


def hashes(x: np.ndarray | Lazy) -> list[bytes]:
    """Returns a digest of each image, 16 bytes, by which equal images are found.

    Args:
        x: N images. Of arrays the exact pixels are digested; of `Lazy` images the content of their files.

    Returns:
        N digests.

    Raises:
        ValueError: if a file cannot be read.
    """
    return x.digests() if isinstance(x, Lazy) else [lazy.digest(image) for image in x]


def drop_duplicates(source: Source) -> tuple[Source, int]:
    """Drops the test images that also occur, pixel for pixel, in the training split.

    Args:
        source: any source; one without a test split is given back.

    Returns:
        The source without these test images, and how many they were.

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
    """Returns some of the examples with their labels; images that are not decoded yet stay so.

    Args:
        pair: the examples.
        which: indices, or a boolean mask over the examples.
    """
    return Arrays(pair.x.take(which) if isinstance(pair.x, Lazy) else pair.x[which], pair.y[which])


def sizes(source: Source) -> Mapping[str, int]:
    """Returns how many examples the splits `train` and `test` have.

    >>> sizes(digits())
    {'train': 1797, 'test': 0}
    """
    return {"train": len(source.train.y), "test": 0 if source.test is None else len(source.test.y)}
