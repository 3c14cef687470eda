"""The next batches are read and put on the device while the present one is worked on."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def prefetch(items: Iterable[T], *, place: Callable[[T], Any] = jax.device_put, ahead: int = 2) -> Iterator[Any]:
    """Runs through `items` in a thread, up to `ahead` of who consumes them.

    Args:
        items: anything iterable, such as a generator that reads batches of NumPy arrays; it is run in the thread.
        place: what is done to each in the thread as well; by default it is put on the default device. For members on a
            mesh: `functools.partial(population.place_batches, mesh=mesh)`.
        ahead: how many may wait; each takes memory on the device.

    Yields:
        `place(item)` in the order of the items. What `items` raises is raised here, after the items before it. When
        the consumer stops early, so does the thread.

    Raises:
        ValueError: if `ahead` is less than 1.

    >>> import numpy as np
    >>> [int(x.sum()) for x in prefetch(np.full(2, i) for i in range(3))]
    [0, 2, 4]
    """
    if ahead < 1:
        raise ValueError(f"ahead is {ahead}; at least one item must be allowed to wait")
    return _consume(items, place, ahead)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


_END = object()


def _consume(items: Iterable[T], place: Callable[[T], Any], ahead: int) -> Iterator[Any]:
    ready: queue.Queue[Any] = queue.Queue(ahead)
    stopped = threading.Event()

    def hand_over(value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not hand_over(place(item)):
                    return
        except BaseException as error:
            hand_over(_Failure(error))
        else:
            hand_over(_END)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not _END:
            if isinstance(value, _Failure):
                raise value.error
            yield value
    finally:
        stopped.set()
        thread.join()
