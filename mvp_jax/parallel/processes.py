"""Several processes in one run: which one this is, which part of the work is its own, and waiting for one another, so
that all stop where one has failed.

Processes talk through JAX's coordination service and not through their devices: one that waits in a device collective
cannot be told that the other will never come.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_PARTING = 30
"""Seconds that a process which ends waits for the others; then JAX stops those too, wherever they are."""

_GLANCE = 1000
"""Milliseconds between two looks at whether one of the others has failed."""

_FAILED = "mvp_jax/failed"

_calls: collections.Counter[str] = collections.Counter()
"""How often each name was used, as the service takes a key once; equal in all processes, which call alike."""


def initialize(coordinator: str = "", count: int | None = None, index: int | None = None) -> None:
    """Makes this process one of several; without arguments JAX finds the others (Cloud TPU, Slurm, MPI).

    Call it before anything that touches a device. If the processes are joined already, it does nothing. On CPUs the
    processes' collectives go over TCP (gloo).

    Args:
        coordinator: `host:port` of process 0, an address that all processes can reach.
        count: the number of processes.
        index: the number of this process, from 0.

    Raises:
        ValueError: if only some arguments are given, one is out of range, no cluster is detected without them, or
            devices are in use already.
    """
    given = {"coordinator": coordinator, "count": count, "index": index}
    missing = [name for name, value in given.items() if value in ("", None)]
    if 0 < len(missing) < len(given):
        raise ValueError(f"{missing} missing; give coordinator, count and index, or none of them to have them detected")
    if not missing:
        _check(coordinator, count or 0, -1 if index is None else index)
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator or None, count, index, shutdown_timeout_seconds=_PARTING)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes cannot be joined: {error} Call processes.initialize before anything that uses a device; "
            "outside Cloud TPU, Slurm and MPI give coordinator='host:port', count and index"
        ) from error


def _check(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator is {coordinator!r}; give host:port of process 0, as '10.0.0.1:9911'")
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}; count must be at least 1, index from 0 to count - 1")


def first() -> bool:
    """Whether this is process 0, the one that writes files of which there is one for all processes.

    >>> first()
    True
    """
    return jax.process_index() == 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a list of work: every `n`-th item from its own number on, where `n` is the number of
    processes.

    All items are in the part of exactly one process, and the parts' lengths differ by at most one.

    >>> share(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return part(items, jax.process_index(), jax.process_count())


def part(items: Sequence[T], index: int, count: int) -> list[T]:
    """The part of a list of work that process `index` of `count` processes has; `share` gives it for this process.

    >>> [part(range(5), i, 2) for i in range(2)]
    [[0, 2, 4], [1, 3]]
    """
    return list(items[index::count])


def barrier(name: str) -> None:
    """Waits until all processes have called it under this name; with one process it returns at once.

    Args:
        name: of this place in the program. A name may be used again, if all processes call in the same order.

    Raises:
        RuntimeError: if another process has failed.
        ValueError: if another process has failed with a `ValueError`, or there are several processes that were not
            joined by `initialize`.
    """
    together(name, lambda: None)


def together(name: str, work: Callable[[], object]) -> None:
    """Calls `work` in every process and waits until all have done it; if it raises in one, all processes raise.

    Args:
        name: of this place in the program. A name may be used again, if all processes call in the same order.
        work: called without arguments.

    Raises:
        Exception: in the process whose work raised, what it raised.
        RuntimeError: in the other processes, naming that process; `ValueError` if it raised one.

    >>> together("doctest", lambda: print("done"))
    done
    """
    _agree(name, work, range(jax.process_count()))


def only_first(name: str, work: Callable[[], T]) -> T | None:
    """Calls `work` in process 0 while the others wait for it; if it raises there, all processes raise.

    Args:
        name: of this place in the program. A name may be used again, if all processes call in the same order.
        work: called without arguments, in process 0 alone.

    Returns:
        In process 0 the result of `work`; in the others `None`.

    Raises:
        Exception: in process 0, what `work` raised.
        RuntimeError: in the other processes, naming process 0; `ValueError` if it raised one.

    >>> only_first("doctest", lambda: 1)
    1
    """
    return _agree(name, work, range(1))


def same(name: str, text: str, otherwise: str) -> None:
    """Raises `ValueError` in all processes unless all give the text that process 0 gives.

    Args:
        name: of this place in the program. A name may be used again, if all processes call in the same order.
        text: what this process has found, such as the steps it sees in a folder.
        otherwise: what to try if the texts differ; the end of the error.

    Raises:
        ValueError: if the text of a process differs from that of process 0.

    >>> same("doctest", "[1, 2]", "use a folder that all processes see")
    """
    found: list[str] = []

    def compare() -> None:
        if found[0] != text:
            raise ValueError(f"process {jax.process_index()} finds {text}, process 0 {found[0]}; {otherwise}")

    if jax.process_count() > 1:
        found.append(_tell(name, text))
        together(name, compare)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """A context in which an exception also stops the other processes, at their next call of a function of this module.

    A process that waits in a device collective is stopped by JAX, within half a minute of the end of the process that
    failed. If a process is killed without raising, JAX stops the others after about two minutes without its heartbeat.
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            with contextlib.suppress(Exception):  # the service may be what failed
                _client().key_value_set(f"{_FAILED}/{jax.process_index()}", _describe(error), allow_overwrite=True)
        raise


def _agree(name: str, work: Callable[[], T], who: Sequence[int]) -> T | None:
    """Those in `who` do the work, all wait for them."""
    if jax.process_count() == 1:
        return work()
    done = None
    client, me, place = _client(), jax.process_index(), _place(name)
    if me in who:
        try:
            done = work()
        except BaseException as error:
            client.key_value_set(f"{place}/{me}", _describe(error))
            raise
        client.key_value_set(f"{place}/{me}", "done")
    for other in who:
        said = _hear(client, f"{place}/{other}")
        if said != "done":
            raise _stopped(other, said)
    return done


def _place(name: str) -> str:
    _calls[name] += 1
    return f"mvp_jax/{name}/{_calls[name]}"


def _tell(name: str, text: str) -> str:
    """What process 0 says, in all processes."""
    client, place = _client(), _place(name)
    if first():
        client.key_value_set(place, text)
    return _hear(client, place)


def _hear(client: Any, key: str) -> str:
    """Waits for a key, as long as nobody has failed."""
    while True:
        try:
            return str(client.blocking_key_value_get(key, _GLANCE))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        for path, said in client.key_value_dir_get(_FAILED):
            raise _stopped(int(path.rpartition("/")[2]), said)


def _stopped(index: int, said: str) -> Exception:
    # What is wrong with the user's input is so in all processes, and `main` shows it in one line.
    kind = ValueError if said.startswith("ValueError") else RuntimeError
    return kind(f"process {index} stopped: {said}; mend that and run the same command in all processes again")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _client() -> Any:
    # Orbax waits by it too, but JAX has no public name for it.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise ValueError(f"{jax.process_count()} processes are not joined; call processes.initialize() first of all")
    return client
