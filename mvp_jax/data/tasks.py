"""Tasks: some of a data set's classes, drawn by a seed, and the images that a task learns from.

A task list is data: it is drawn once, saved as JSON and reloaded the same. Which images of a class a task gets depends
on the seed and the class alone. So if two tasks share a class and a seed, no image that one trains on is an image that
the other validates or tests on.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.sources import Arrays, Source
from mvp_jax.storage import files, json_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task: some classes of a data set, to be told apart.

    Attributes:
        name: the task's name, unique in its list; its bank entry has the same.
        classes: labels in the data set; the task's own label of a class is its position in this tuple.

    Raises:
        ValueError: without classes, or if a class occurs twice.
    """

    name: str
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"task {self.name!r} is empty; a task needs at least one class")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"task {self.name!r} names a class twice: {self.classes}")

    @property
    def num_classes(self) -> int:
        """How many classes the task has."""
        return len(self.classes)


class TaskData(NamedTuple):
    """A task's examples, with labels `0` to `Y - 1`; a split that was not asked for is empty.

    Attributes:
        train: examples to learn from.
        valid: examples to choose by.
        test: examples to report on.
    """

    train: Arrays
    valid: Arrays
    test: Arrays


def draw(
    classes: int | Iterable[int],
    tasks: int,
    classes_per_task: int,
    seed: int,
    *,
    must_include: Iterable[int] = (),
    at_least: int | None = None,
    exclude: Iterable[Task] = (),
    prefix: str = "task",
) -> tuple[Task, ...]:
    """Draws tasks with distinct sets of classes, uniformly among all such sets.

    A longer list drawn with the same seed begins with the shorter one, so a bank can grow.

    Args:
        classes: how many classes there are, or the classes that may be used.
        tasks: how many tasks to draw.
        classes_per_task: how many classes each task has.
        seed: the seed of the draw.
        must_include: classes of which every task holds some.
        at_least: how many of `must_include` every task holds at least; `None`: all of them.
        exclude: tasks whose sets of classes are not drawn, such as those of the bank when targets are drawn.
        prefix: the beginning of the tasks' names, `prefix-0000`, `prefix-0001` and so on.

    Returns:
        The tasks, with their classes in ascending order.

    Raises:
        ValueError: if more distinct tasks are asked for than exist, or for numbers that do not fit.

    >>> sorted(t.classes for t in draw(4, 3, 2, seed=0, must_include=[3]))
    [(0, 3), (1, 3), (2, 3)]
    """
    allowed = sorted(set(range(classes) if isinstance(classes, int) else (int(c) for c in classes)))
    musts = sorted({int(c) for c in must_include})
    others = [c for c in allowed if c not in set(musts)]
    if set(musts) - set(allowed):
        raise ValueError(f"must_include has {sorted(set(musts) - set(allowed))}, which are not among {_few(allowed)}")
    if not 1 <= classes_per_task <= len(allowed):
        raise ValueError(f"{classes_per_task} classes a task asked of {len(allowed)}; choose 1 to {len(allowed)}")
    least = len(musts) if at_least is None else at_least
    if not 0 <= least <= min(len(musts), classes_per_task):
        raise ValueError(
            f"each of the tasks of {classes_per_task} classes is to hold {least} of {len(musts)} classes; "
            f"choose at most {min(len(musts), classes_per_task)}"
        )
    if tasks < 1:
        raise ValueError(f"{tasks} tasks asked for; a list has at least one")
    ways = {
        j: math.comb(len(musts), j) * math.comb(len(others), classes_per_task - j)
        for j in range(least, min(len(musts), classes_per_task) + 1)
    }
    fits = set(allowed)
    barred = {
        s
        for s in (frozenset(t.classes) for t in exclude)
        if len(s) == classes_per_task and s <= fits and len(s & set(musts)) >= least
    }
    total = sum(ways.values()) - len(barred)
    if tasks > total:
        raise ValueError(
            f"{tasks} distinct tasks of {classes_per_task} classes asked for, but only {total} exist; "
            "ask for fewer, or allow more classes"
        )
    rng = np.random.default_rng(seed)
    share = np.array([w / sum(ways.values()) for w in ways.values()])
    drawn: dict[frozenset[int], None] = {}
    while len(drawn) < tasks:
        j = list(ways)[int(rng.choice(len(ways), p=share / share.sum()))]
        picked = [musts[i] for i in rng.choice(len(musts), j, replace=False)]
        picked += [others[i] for i in rng.choice(len(others), classes_per_task - j, replace=False)]
        if frozenset(picked) not in barred:
            drawn[frozenset(picked)] = None
    return tuple(Task(name=f"{prefix}-{i:04d}", classes=tuple(sorted(s))) for i, s in enumerate(drawn))


def _few(values: Sequence[Any], most: int = 12) -> str:
    return f"{list(values[:most])}"[:-1] + (", ...]" if len(values) > most else "]")


def shared_classes(a: Task, b: Task) -> float:
    """Returns the overlap of two tasks' classes, `|A ∩ B| / |A ∪ B|`, from 0 to 1.

    >>> shared_classes(Task(name="a", classes=(0, 1, 2)), Task(name="b", classes=(2, 3)))
    0.25
    """
    left, right = set(a.classes), set(b.classes)
    return len(left & right) / len(left | right)


def save(tasks: Sequence[Task], path: str | os.PathLike[str]) -> None:
    """Writes a task list as JSON, whole or not at all.

    Args:
        tasks: tasks of different names.
        path: the file; its folder is made if absent.

    Raises:
        ValueError: if two tasks share a name, or the file cannot be written.
    """
    _distinct(tasks)
    rows = ",\n".join("  " + json.dumps({"name": t.name, "classes": list(t.classes)}) for t in tasks)
    with files.writing(path):
        files.write_bytes(path, f'{{"format": "mvp_jax tasks", "version": 1, "tasks": [\n{rows}\n]}}\n'.encode())


def load(path: str | os.PathLike[str]) -> tuple[Task, ...]:
    """Reads a task list that `save` wrote.

    Args:
        path: the file.

    Returns:
        The tasks, as they were saved.

    Raises:
        ValueError: for a missing file, or one that is not a task list.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no task list {path}; make one by `tasks.save(tasks.draw(...), path)`")
    try:
        content = json_files.read_json(path)
        if content["format"] != "mvp_jax tasks" or content["version"] != 1:
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        tasks = tuple(Task(name=str(t["name"]), classes=tuple(int(c) for c in t["classes"])) for t in content["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a task list of version 1: {error}") from error
    _distinct(tasks)
    return tasks


def _distinct(tasks: Sequence[Task]) -> None:
    names = [t.name for t in tasks]
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) != len(names) else []
    if twice:
        raise ValueError(f"tasks share the names {_few(twice)}; give each its own")


def split(
    data: Arrays | Source,
    *,
    seed: int,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[Arrays, ...]:
    """Cuts examples into pools that have no example in common, class by class.

    Of examples with equal content only the first is used, so the pools differ in content, not only in index.

    Args:
        data: labelled examples, or a source, whose training split is cut.
        seed: the seed of the cut.
        fractions: the part of every class that each pool gets, together at most 1; sums are rounded down to examples.
        counts: instead of `fractions`, how many examples of every class each pool gets.

    Returns:
        The pools, with their examples in the order of `data`.

    Raises:
        ValueError: for fractions that exceed 1 together, or a class with too few examples.

    >>> a, b = split(sources.digits(), seed=0, fractions=(0.75, 0.25))
    >>> len(a.y) + len(b.y), sorted(set(b.y.tolist()))
    (1797, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    pair = data.train if isinstance(data, Source) else data
    if (fractions is None) == (counts is None):
        raise ValueError("give either fractions or counts")
    if fractions is not None and (not all(f > 0 for f in fractions) or math.fsum(fractions) > 1 + 1e-9):
        raise ValueError(f"fractions {tuple(fractions)} of the pools; expected positive shares, together at most 1")
    if counts is not None and not all(c > 0 for c in counts):
        raise ValueError(f"counts {tuple(counts)} of the pools; expected positive numbers of images a class")
    _, first = np.unique(sources.hashes(pair.x), return_index=True)
    pools: list[list[np.ndarray]] = [[] for _ in (fractions or counts or ())]
    for c in np.unique(pair.y):
        own = _order(np.sort(first[pair.y[first] == c]), seed, int(c))
        if counts is not None:
            ends = np.cumsum([0, *counts])
        else:
            # Shares are added up before rounding, so that they lose at most one image together.
            ends = np.floor(np.cumsum([0.0, *(fractions or ())]) * len(own) + 1e-6).astype(int)
        if ends[-1] > len(own) or (np.diff(ends) == 0).any():
            raise ValueError(
                f"class {c} has {len(own)} distinct images, too few for pools of {np.diff(ends).tolist()}; "
                "ask for fewer, or leave the class out"
            )
        for pool, (start, end) in zip(pools, itertools.pairwise(ends), strict=True):
            pool.append(own[start:end])
    return tuple(sources.take(pair, np.sort(np.concatenate(pool))) for pool in pools)


def subset(pair: Arrays, classes: Sequence[int]) -> Arrays:
    """Returns all examples of some classes, relabelled; images that are not decoded yet stay so.

    Args:
        pair: labelled examples.
        classes: the classes; their new labels are their positions, `0` to `Y - 1`.

    Returns:
        The examples of these classes, in the order of `pair`.

    Raises:
        ValueError: if a class has no examples, or occurs twice.

    >>> subset(Arrays(np.zeros((4, 1, 1, 1), np.uint8), np.array([5, 2, 9, 2], np.int32)), (9, 2)).y.tolist()
    [1, 0, 1]
    """
    task = Task(name="subset", classes=tuple(int(c) for c in classes))
    missing = [c for c in task.classes if not (pair.y == c).any()]
    if missing:
        raise ValueError(f"no images of classes {missing}; there are images of {_few(np.unique(pair.y).tolist())}")
    return _relabel(sources.take(pair, np.flatnonzero(np.isin(pair.y, task.classes))), task)


def materialise(
    task: Task,
    data: Arrays,
    *,
    shots: int | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int,
    valid_from: Arrays | None = None,
    test_from: Arrays | None = None,
) -> TaskData:
    """Reads a task's examples into memory, equally many of every class.

    The seed puts the examples of each class in an order: the first are for the test, the next for validation, the next
    for training. So another number of `shots` leaves the test set as it is, and more shots contain the fewer. The
    shapes of the result depend on `data` and the numbers, not on the task, so tasks of equally many classes can be
    stacked. In every split the classes take turns.

    Args:
        task: the task.
        data: examples with the data set's labels.
        shots: how many training examples of each class; `None`: all that the scarcest class in `data` can give.
        valid: how many validation examples of each class; `None`: none, or with `valid_from` as many as its scarcest
            class has.
        test: how many test examples of each class; `None`: none, or with `test_from` as many as its scarcest class has.
        seed: the seed of the choice of examples.
        valid_from: examples to take the validation split from; `None`: `data`.
        test_from: examples to take the test split from; `None`: `data`.

    Returns:
        The three splits, with labels `0` to `Y - 1`.

    Raises:
        ValueError: for a class without images, too few images, or nothing to train on.

    >>> data = materialise(Task(name="t", classes=(3, 8)), sources.digits().train, shots=5, test=20, seed=0)
    >>> data.train.y[:4].tolist(), data.train.x.shape, data.valid.x.shape, data.test.x.shape
    ([0, 1, 0, 1], (10, 8, 8, 1), (0, 8, 8, 1), (40, 8, 8, 1))
    """
    for what, number in (("shots", shots), ("valid", valid), ("test", test)):
        if number is not None and number < (1 if what == "shots" else 0):
            raise ValueError(f"{what} is {number}; expected a number of images a class")

    def cut(name: str, pair: Arrays, wants: Sequence[tuple[str, int | None]]) -> list[Arrays]:
        scarcest = int(np.unique(pair.y, return_counts=True)[1].min(initial=len(pair.y)))
        fixed = sum(n or 0 for _, n in wants)
        numbers = [scarcest - fixed if n is None else n for _, n in wants]
        if any(n < 0 or (n == 0 and w is None) for n, (_, w) in zip(numbers, wants, strict=True)):
            raise ValueError(f"the scarcest class of {name} has {scarcest} images, all taken by {dict(wants)}")
        ends = np.cumsum([0, *numbers])
        columns = []
        for c in task.classes:
            own = _order(np.flatnonzero(pair.y == c), seed, c)
            if len(own) < max(int(ends[-1]), 1):
                asked = {what: n for (what, _), n in zip(wants, numbers, strict=True) if n}
                raise ValueError(
                    f"task {task.name!r}: class {c} has {len(own)} images in {name}, but {asked} are asked for; "
                    "ask for fewer, or leave the class out"
                )
            columns.append(own[: ends[-1]])
        rows = np.stack(columns, axis=1)  # [images of a class, class]: read row by row, the classes take turns
        return [_relabel(_loaded(pair, rows[a:b].ravel()), task) for a, b in itertools.pairwise(ends)]

    own_wants: list[tuple[str, int | None]] = [
        ("test", 0 if test_from is not None else test or 0),
        ("valid", 0 if valid_from is not None else valid or 0),
        ("shots", shots),
    ]
    tested, validated, trained = cut("the data", data, own_wants)
    if valid_from is not None:
        (validated,) = cut("valid_from", valid_from, [("valid", valid)])
    if test_from is not None:
        (tested,) = cut("test_from", test_from, [("test", test)])
    return TaskData(train=trained, valid=validated, test=tested)


def _order(indices: np.ndarray, seed: int, label: int) -> np.ndarray:
    return np.random.default_rng([seed, label]).permutation(indices)


def _loaded(pair: Arrays, which: np.ndarray) -> Arrays:
    return Arrays(np.asarray(pair.x[which]), pair.y[which])


def _relabel(pair: Arrays, task: Task) -> Arrays:
    new = np.zeros(max(task.classes) + 1, np.int32)
    new[list(task.classes)] = np.arange(task.num_classes, dtype=np.int32)
    return Arrays(pair.x, new[pair.y])


def stack(items: Sequence[TaskData]) -> TaskData:
    """Stacks tasks of equal shape, so that every array gets a leading task axis, for `vmap`.

    Args:
        items: the examples of K tasks, of equal shapes.

    Returns:
        Examples `x` `[K, n, ...]` and labels `y` `[K, n]` of each split.

    Raises:
        ValueError: without tasks, or if their shapes differ.

    >>> t = [materialise(Task(name="", classes=c), sources.digits().train, shots=2, seed=0) for c in ((0, 1), (2, 3))]
    >>> stack(t).train.x.shape, stack(t).train.y.tolist()
    ((2, 4, 8, 8, 1), [[0, 1, 0, 1], [0, 1, 0, 1]])
    """
    if not items:
        raise ValueError("no tasks to stack; give at least one")
    for split_name in TaskData._fields:
        shapes = {getattr(t, split_name).x.shape for t in items}
        if len(shapes) > 1:
            raise ValueError(
                f"{split_name} images differ in shape from task to task: {_few(sorted(shapes))}; give every task "
                "equally many classes and the same numbers of images"
            )

    def joined(pairs: Sequence[Arrays]) -> Arrays:
        return Arrays(np.stack([p.x for p in pairs]), np.stack([p.y for p in pairs]))

    return TaskData(*(joined(pairs) for pairs in zip(*items, strict=True)))
