"""Tasks within groups of classes: within a superclass, within one of several joined data sets, or of all classes."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mvp_jax.data import tasks
from mvp_jax.data.sources import Source
from mvp_jax.data.tasks import Task


def whole(source: Source, name: str = "target-0000") -> Task:
    """Makes one task of all classes of a data set.

    Args:
        source: the data set.
        name: the task's name.

    >>> from mvp_jax.data import sources
    >>> whole(sources.digits()).classes
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    """
    return Task(name=name, classes=tuple(range(source.num_classes)))


def coarse_tasks(source: Source) -> tuple[Task, ...]:
    """Makes a task of the classes of each superclass.

    Args:
        source: a data set with superclasses.

    Returns:
        One task for each superclass, in their order, with their names.

    Raises:
        ValueError: if the data set has no superclasses.

    >>> from mvp_jax.data import sources
    >>> source = sources.arrays("toy", (np.zeros((4, 1, 1), np.uint8), [0, 1, 2, 3]), coarse=(1, 0, 1, 0))
    >>> [t.classes for t in coarse_tasks(source)]
    [(1, 3), (0, 2)]
    """
    if not source.coarse:
        raise ValueError(f"{source.name} has no superclasses; `tasks.draw` makes tasks of any source")
    names = source.coarse_names or tuple(f"coarse-{i:04d}" for i in range(max(source.coarse) + 1))
    members = {c: tuple(i for i, b in enumerate(source.coarse) if b == c) for c in sorted(set(source.coarse))}
    return tuple(Task(name=names[c], classes=classes) for c, classes in members.items())


def by_coarse(source: Source) -> tuple[tuple[int, ...], ...]:
    """Returns the classes of each superclass; in joined data sets, the superclasses are the data sets.

    Args:
        source: a data set with superclasses.

    Raises:
        ValueError: if it has none.
    """
    return tuple(task.classes for task in coarse_tasks(source))


def draw_within(
    groups: Iterable[Iterable[int]],
    count: int,
    classes_per_task: int,
    seed: int,
    *,
    must_include: Iterable[int] = (),
    at_least: int | None = None,
    exclude: Iterable[Task] = (),
    prefix: str = "task",
) -> tuple[Task, ...]:
    """Draws tasks with distinct sets of classes, each set within one group of classes.

    The groups take turns, in an order that the seed gives, until they have no more sets; within its group a set is
    drawn as `tasks.draw` draws it. A longer list drawn with the same seed begins with the shorter one. A group of fewer
    classes than a task gives no tasks.

    Args:
        groups: disjoint sets of classes, such as superclasses or joined data sets.
        count: how many tasks to draw.
        classes_per_task: how many classes each task has.
        seed: the seed of the draw.
        must_include: classes of which every task holds some.
        at_least: how many of the group's classes in `must_include` a task holds at least; `None`: all of them.
        exclude: tasks whose sets of classes are not drawn.
        prefix: the beginning of the tasks' names, `prefix-0000`, `prefix-0001` and so on.

    Returns:
        The tasks, with their classes in ascending order.

    Raises:
        ValueError: if more distinct tasks are asked for than exist, groups overlap, or numbers do not fit.

    >>> sorted(t.classes for t in draw_within([(0, 1, 2), (3, 4), (5,)], 4, 2, seed=0))
    [(0, 1), (0, 2), (1, 2), (3, 4)]
    """
    parts = [sorted({int(c) for c in group}) for group in groups]
    if len(set(itertools.chain.from_iterable(parts))) != sum(map(len, parts)):
        raise ValueError("a class is in two groups; give each class one superclass, or data set")
    if count < 1 or classes_per_task < 1:
        raise ValueError(f"{count} tasks of {classes_per_task} classes asked for; both are at least 1")
    musts, barred = {int(c) for c in must_include}, tuple(exclude)
    limits: list[dict[str, Any]] = []
    for part in parts:
        own = sorted(musts & set(part))
        limits.append({"must_include": own, "at_least": len(own) if at_least is None else at_least, "exclude": barred})
    room = [_possible(part, classes_per_task, **limit) for part, limit in zip(parts, limits, strict=True)]
    if sum(room) < count:
        raise ValueError(
            f"{count} distinct tasks of {classes_per_task} classes of one group asked for, but only {sum(room)} exist "
            f"(there are {len(parts)} groups, the largest of {max(map(len, parts), default=0)} classes); ask for "
            "fewer, or for fewer classes"
        )
    order = np.random.default_rng(seed).permutation(len(parts)).tolist()
    turns: list[int] = []
    while len(turns) < count:
        turns += [g for g in order if turns.count(g) < room[g]]
    turns = turns[:count]
    drawn = {
        g: iter(tasks.draw(parts[g], turns.count(g), classes_per_task, _seed(seed, g), **limits[g]))
        for g in sorted(set(turns))
    }
    return tuple(Task(name=f"{prefix}-{i:04d}", classes=next(drawn[g]).classes) for i, g in enumerate(turns))


def _seed(seed: int, group: int) -> int:
    return int(np.random.SeedSequence([seed, group]).generate_state(1)[0])


def _possible(
    part: Sequence[int], size: int, *, must_include: Sequence[int], at_least: int, exclude: Sequence[Task]
) -> int:
    """Counts the sets of classes that can be drawn from one group."""
    musts, others, fits = set(must_include), len(part) - len(must_include), set(part)
    ways = sum(math.comb(len(musts), j) * math.comb(others, size - j) for j in range(max(at_least, 0), size + 1))
    taken = {frozenset(t.classes) for t in exclude}
    return ways - sum(len(s) == size and s <= fits and len(s & musts) >= at_least for s in taken)
