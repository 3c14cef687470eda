"""The next batches are read and put on the device while the present one is worked on.

`streams.to_device` and the jobs read ahead by this one function. Grain's `experimental.device_put` does the same for
its own datasets only, is no faster, and would make Grain a requirement of every job.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_END: Any = object()


def prefetch(items: Iterable[T], *, place: Callable[[T], Any] = jax.device_put, ahead: int = 2) -> Iterator[Any]:
    """Runs through `items` in a thread, up to `ahead` items before the one that is worked on.

    Args:
        items: anything iterable, such as a generator that reads batches of NumPy arrays; it is run in the thread.
        place: a function of an item that is called in the thread too; by default it puts the item on the default
            device. For members on a mesh: `functools.partial(population.place_batches, mesh=mesh)`.
        ahead: how many placed items may wait at most; each takes memory on the device.

    Yields:
        `place(item)` in the order of the items. What `items` or `place` raises is raised here, after the items before
        it. When the consumer stops early, so does the thread.

    Raises:
        ValueError: if `ahead` is less than 1.

    >>> import numpy as np
    >>> [int(x.sum()) for x in prefetch(np.full(2, i) for i in range(3))]
    [0, 2, 4]
    """
    if ahead < 1:
        raise ValueError(f"ahead is {ahead}; at least one item must be allowed to wait")
    return _consume(iter(items), place, ahead)


def _consume(items: Iterator[T], place: Callable[[T], Any], ahead: int) -> Iterator[Any]:
    def step() -> Any:
        item = next(items, _END)
        return _END if item is _END else place(item)

    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = collections.deque(thread.submit(step) for _ in range(ahead))
        try:
            while (found := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(step))
                yield found
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
