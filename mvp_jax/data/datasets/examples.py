"""Examples with labels as they are read: what each is equal by, and which parts the files have."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.loading import lazy
from mvp_jax.data.loading.lazy import Lazy


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Labelled examples, with what makes two of them equal.

    Attributes:
        x: N texts or pictures; texts are a list, pictures an array `[N, H, W, C]` or anything with a method `take`.
        pairs: the second text of each example; `None`: there are single texts, or pictures.
        y: labels `int32[N]`, or values `float32[N]` of a regression.
        keys: for each example what it is equal by, such as its text without blanks around it.
        origin: where the examples are from, for messages, such as the name of a file.
    """

    x: Any
    pairs: Sequence[str] | None = None
    y: np.ndarray
    keys: Sequence[Hashable]
    origin: str

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: np.ndarray) -> "Pool":
        """Returns the examples at indices.

        >>> pool = Pool(x=["a", "b", "c"], y=np.arange(3), keys=["a", "b", "c"], origin="here")
        >>> pool.take(np.array([2, 0])).x
        ['c', 'a']
        """
        indices = [int(i) for i in which]
        if isinstance(self.x, np.ndarray):
            x = self.x[which]
        else:
            x = [self.x[i] for i in indices] if isinstance(self.x, list | tuple) else self.x.take(which)
        return dataclasses.replace(
            self,
            x=x,
            pairs=None if self.pairs is None else [self.pairs[i] for i in indices],
            y=self.y[which],
            keys=[self.keys[i] for i in indices],
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GivenParts:
    """A data set with the parts that its files have.

    Attributes:
        name: the name of the data set in tables.
        kind: what an example is.
        train: the examples to learn from, and to cut from what is not given.
        valid: the given validation part, if there is one.
        test: the given test part, if there is one.
        class_names: the name of each class; `()`: a regression.
        columns: which column of a table was read as what.
        notes: what was decided, a sentence each.
    """

    name: str
    kind: Literal["texts", "pictures"]
    train: Pool
    valid: Pool | None = None
    test: Pool | None = None
    class_names: tuple[str, ...]
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def image_keys(x: np.ndarray | Lazy) -> list[bytes]:
    """Returns what images are equal by: the exact pixels of arrays, the files' content of images decoded later.

    Args:
        x: N images.

    Raises:
        ValueError: if a file cannot be read.
    """
    # -0.0 and 0.0 are equal and have other bytes; adding 0 makes both the same.
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        return [lazy.digest(image + 0) for image in x]
    return sources.hashes(x)
