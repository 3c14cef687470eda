"""Labels as people write them, words or numbers, turned into numbers of classes or into values of a regression."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mvp_jax.data.datasets.columns import is_number

_MANY = 20  # whole numbers without gaps may be more classes than these

_WHOLE = "Labels are whole numbers and are taken for classes; regression=True takes them for values to be estimated."

_LARGEST = float(np.finfo(np.float32).max)

Where = Callable[[Iterable[int]], str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What the labels of a data set are, and how they are read.

    Attributes:
        class_names: the names of the classes in the order of their numbers; `()`: a regression.
        index: the number of a class by each way in which it is written.
        notes: what was decided, a sentence each.
    """

    class_names: tuple[str, ...]
    index: dict[str, int]
    notes: tuple[str, ...] = ()

    def numbers(self, labels: Sequence[str], what: str, where: Where) -> np.ndarray:
        """Returns the labels of some examples as numbers.

        Args:
            labels: N labels as they are written, without blanks around them.
            what: the file, for messages.
            where: names examples in a message.

        Returns:
            `int32[N]`, the numbers of classes; of a regression `float32[N]`.

        Raises:
            ValueError: for labels that were not among those that the classes were found from.
        """
        if not self.class_names:
            return np.array([float(label) for label in labels], np.float32)
        unknown = [i for i, label in enumerate(labels) if label not in self.index]
        if unknown:
            names = sorted({labels[i] for i in unknown})
            raise ValueError(
                f"{what}, {where(unknown)}: the labels {names[:6]} do not occur in the training data, whose classes "
                f"are {shown(self.class_names)}; remove these examples, or give training examples of them"
            )
        return np.array([self.index[label] for label in labels], np.int32)


def shown(names: Sequence[str], count: int = 8) -> str:
    """Returns the first few names for a message.

    >>> shown(["a", "b", "c"], 2)
    "['a', 'b'] and 1 more"
    """
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{list(names[:count])}{more}"


def find(labels: Sequence[str], what: str, where: Where, regression: bool | None = None) -> Targets:
    """Finds the classes, or that the labels are values to be estimated.

    Classes are sorted: by their numbers if all are numbers, else by their names, which stay as they are written.

    Args:
        labels: the N labels of all training examples, without blanks around them.
        what: the file and its column, for messages.
        where: names examples in a message.
        regression: whether labels are values to be estimated; `None`: if one of them is a fraction.

    Returns:
        The classes, or none for a regression.

    Raises:
        ValueError: for numbers that are not finite, words in a regression, labels that are all equal, classes that
            differ only in upper and lower case, whole numbers that could be classes or values, and more classes than
            half of the examples.

    >>> found = find(["10", "2", "10", "2", "2"], "a.csv", str)
    >>> found.class_names, found.numbers(["2", "10"], "a.csv", str).tolist()
    (('2', '10'), [0, 1])
    >>> find(["0.5", "3", "1", "2"], "a.csv", str).class_names
    ()
    """
    kinds = collections.Counter(labels)
    commas = [kind for kind in kinds if re.fullmatch(r"[-+]?\d+,\d+", kind)]
    if len(commas) > len(kinds) // 2 and regression is not False:
        raise ValueError(f"{what}: labels such as {commas[0]!r} have a decimal comma; write them with a point")
    numbers = {kind: float(kind) for kind in kinds if is_number(kind)}
    words = [kind for kind in kinds if kind not in numbers]
    # A cell or two such as "n/a" among decimals are no classes.
    strange = regression is None and sum(kinds[w] for w in words) <= len(labels) // 10
    if strange and any(value != int(value) for value in numbers.values() if np.isfinite(value)):
        check_finite(labels, what, where, words=True)
    if not words or regression:
        check_finite(labels, what, where, words=bool(regression))
    if len(set(numbers.values()) if not words else kinds) < 2:
        raise ValueError(f"{what}: all labels are {next(iter(kinds))!r}; give examples of at least two classes")
    fractions = [kind for kind, value in numbers.items() if not words and value != int(value)]
    if regression or (regression is None and fractions):
        why = f"there are fractions such as {fractions[0]}" if fractions else "regression=True says so"
        low, high = min(numbers.values()), max(numbers.values())
        note = f"Labels are numbers to be estimated, from {low:g} to {high:g}, as {why}."
        return Targets(class_names=(), index={}, notes=(note,))
    if not words:
        return _numbered(kinds, numbers, what, regression)
    _check_case(kinds, what)
    _check_count(len(kinds), len(labels), what, kinds)
    names = tuple(sorted(kinds))
    return Targets(class_names=names, index={name: i for i, name in enumerate(names)})


def check_finite(labels: Sequence[str], what: str, where: Where, *, words: bool) -> None:
    """Refuses labels that are nan or inf and, if `words`, those that are no numbers.

    Raises:
        ValueError: if there are such labels, with where they stand.
    """
    good = {kind: is_number(kind) and abs(float(kind)) < _LARGEST for kind in set(labels)}
    wrong = [i for i, label in enumerate(labels) if not good[label] and (words or is_number(label))]
    if wrong:
        raise ValueError(
            f"{what}, {where(wrong)}: {sorted({labels[i] for i in wrong})[:4]} are no finite numbers; remove these "
            "examples or give their numbers" + (", or pass regression=False for classes" if words else "")
        )


def _numbered(
    kinds: collections.Counter[str], numbers: dict[str, float], what: str, regression: bool | None
) -> Targets:
    """Returns classes that are written as numbers."""
    values = sorted(set(numbers.values()))
    whole = all(value == int(value) for value in values)
    dense = whole and values[0] in (0, 1) and values[-1] - values[0] == len(values) - 1
    _check_count(len(values), kinds.total(), what, kinds, numeric=True)
    if len(values) > _MANY and not dense and regression is None:
        raise ValueError(
            f"{what}: {len(values)} different whole numbers from {values[0]:g} to {values[-1]:g}; pass regression=True "
            "if they are values to be estimated, regression=False if each is a class, or name another column for labels"
        )
    spelt: dict[float, list[str]] = {value: [] for value in values}
    for kind, value in numbers.items():
        spelt[value].append(kind)
    rewritten = any(len(ways) > 1 or "." in ways[0] or "e" in ways[0].lower() for ways in spelt.values())
    names = tuple(str(int(v)) if rewritten and whole else min(spelt[v], key=len) for v in values)
    return Targets(
        class_names=names,
        index={kind: i for i, value in enumerate(values) for kind in spelt[value]},
        notes=(_WHOLE,) if whole else (),
    )


def _check_case(kinds: collections.Counter[str], what: str) -> None:
    folded = collections.defaultdict(list)
    for kind in sorted(kinds):
        folded[kind.casefold()].append(kind)
    alike = [ways for ways in folded.values() if len(ways) > 1]
    if alike:
        raise ValueError(f"{what}: the classes {alike[0]} differ only in upper and lower case; write each in one way")


def _check_count(
    classes: int, examples: int, what: str, kinds: collections.Counter[str], numeric: bool = False
) -> None:
    if 2 * classes > examples:
        hint = "pass regression=True if they are values to be estimated, or name" if numeric else "name"
        raise ValueError(
            f"{what}: {classes} different labels of {examples} examples, such as {shown(list(kinds), 3)}; a "
            f"class needs at least two examples on average: {hint} another column for the labels, as these look like "
            "identifiers"
        )
