"""Several data sets as one, so that one bank may hold tasks of each."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mvp_jax.data.datasets import catalog
from mvp_jax.data.loading import lazy
from mvp_jax.data.loading.lazy import Lazy
from mvp_jax.data.sources import Arrays, Source


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """The pictures of several data sets, one after the other; reads the picture of a number."""

    parts: tuple[Lazy, ...]
    starts: tuple[int, ...]

    def at(self, i: int) -> tuple[Lazy, int]:
        which = bisect.bisect_right(self.starts, i) - 1
        part = self.parts[which]
        return part, int(part.indices[i - self.starts[which]])

    def __call__(self, i: int) -> bytes | np.ndarray:
        part, number = self.at(i)
        return part.read(number)

    def called(self, i: int) -> str:
        part, number = self.at(i)
        return part.called(number)


def join(sources: Sequence[Source], *, size: int | None = None) -> Source:
    """Joins several data sets of images into one, whose superclasses are the data sets.

    Grey images become RGB if any data set is RGB.

    Args:
        sources: data sets of images before normalisation: uint8, or floats in [0, 1], which become uint8.
        size: the side of the square that all images are resized to; `None`: the size that all have in common, or else
            that of the first data set.

    Returns:
        A source of classes such as `cifar100/apple`, with a superclass for each data set. It has a test split if all
        of the data sets have one; otherwise it has none, and test images are left out.

    Raises:
        ValueError: for fewer than two data sets, two of one name, texts, or images that are already normalised.

    >>> from mvp_jax.data import sources
    >>> a = sources.arrays("a", (np.zeros((2, 4, 4), np.uint8), [0, 1]))
    >>> b = sources.arrays("b", (np.ones((3, 8, 8, 3), np.uint8), [0, 0, 0]))
    >>> both = join([a, b])
    >>> both.class_names, both.coarse, both.coarse_names, both.train.x.shape
    (('a/0', 'a/1', 'b/0'), (0, 0, 1), ('a', 'b'), (5, 4, 4, 3))
    """
    names = [source.name for source in sources]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"data sets {names} to be joined; give at least two, of different names")
    texts = [s.name for s in sources if len(s.image_shape) != 3]
    if texts:
        raise ValueError(f"{texts} are texts, which are not joined; join data sets of images")
    shapes = {source.image_shape[:2] for source in sources}
    if size is None and len(shapes) > 1:
        size = min(sources[0].image_shape[:2])
    channels = max(source.image_shape[2] for source in sources)
    offsets = [0, *itertools.accumulate(source.num_classes for source in sources)]

    def joined(pairs: Sequence[Arrays]) -> Arrays:
        parts = tuple(_levels(n, pair.x) for n, pair in zip(names, pairs, strict=True))
        starts = (0, *itertools.accumulate(len(part) for part in parts))
        read = _Parts(parts, starts[:-1])
        known = np.concatenate([part.known[part.indices] for part in parts])
        x = lazy.pictures(read, starts[-1], size=size, channels=channels, called=read.called, known=known)
        decoded = any(isinstance(pair.x, Lazy) for pair in pairs) or np.prod(x.shape, dtype=float) > catalog.SMALL
        y = np.concatenate([pair.y + np.int32(o) for pair, o in zip(pairs, offsets, strict=False)])
        return Arrays(x if decoded else x[:], y)

    tests = [source.test for source in sources if source.test is not None]
    return Source(
        name="+".join(names),
        train=joined([source.train for source in sources]),
        test=joined(tests) if len(tests) == len(names) else None,
        class_names=tuple(f"{source.name}/{c}" for source in sources for c in source.class_names),
        coarse=tuple(i for i, source in enumerate(sources) for _ in source.class_names),
        coarse_names=tuple(names),
    )


def _levels(name: str, x: np.ndarray | Lazy) -> Lazy:
    """Returns images as lazy ones of 256 levels; floats in [0, 1] are rounded."""
    if isinstance(x, Lazy):
        if x.steps or x.whole is not None:
            raise ValueError(f"images of {name} are already normalised or processed; join them as they were read")
        return x
    if x.dtype != np.uint8:
        if x.min() < 0 or x.max() > 1:
            raise ValueError(
                f"images of {name} lie in [{x.min():.2g}, {x.max():.2g}]; join them before normalisation, in [0, 1] "
                "or as uint8"
            )
        x = np.round(x * 255).astype(np.uint8)
    return lazy.rows(x)
