"""A person's own data, whatever files they are in: texts or pictures with labels, in three parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPart:
    """The examples of one part of a data set.

    Attributes:
        x: N texts; or N pictures, each `uint8[H, W, C]` when it is indexed, which may differ in size; or, of an archive
            of arrays, `[N, H, W, C]`.
        pairs: the second text of each example; `None`: there are single texts, or pictures.
        y: labels `int32[N]`, or numbers `float32[N]` of a regression.
    """

    x: Sequence[str] | Sequence[np.ndarray] | np.ndarray
    pairs: Sequence[str] | None = None
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledData:
    """Texts or pictures with labels, in three parts that share no example.

    Attributes:
        name: the name of the data set in tables.
        kind: what an example is: a text (or a pair of texts) or a picture.
        train: the part to learn from.
        valid: the part by which choices are made.
        test: the part that is reported on, and looked at once.
        class_names: the name of each class, in the order of the labels; `()`: a regression.
        columns: which column of a table was read as what, such as `{"text": "review", "label": "sentiment"}`.
        notes: what was decided for the reader, a sentence each, such as how the parts were cut.
    """

    name: str
    kind: Literal["texts", "pictures"]
    train: LabelledPart
    valid: LabelledPart
    test: LabelledPart
    class_names: tuple[str, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be estimated, and not classes."""
        return not self.class_names
