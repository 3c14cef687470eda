"""Batches read from data that need not fit in memory, in an order that a seed and a position determine.

Grain reads ahead in threads, hosts read disjoint shards, and a stream continues where a checkpoint was saved.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from mvp_jax.core.types import PyTree
from mvp_jax.data.loading.lazy import Lazy
from mvp_jax.data.loading.prefetch import prefetch

HostTransform: TypeAlias = Callable[[Any, np.random.Generator], Any]
"""`(example, rng) -> array`, on the host; every example gets a generator of its own, another one in every epoch."""

State: TypeAlias = dict[str, np.ndarray]
"""int32 scalars: `position` (batches handed out), `seed`, `examples`, `batch` (of all hosts together), `per_epoch`."""


class Labelled(Protocol):
    """Anything with examples `x` (an array, a memory map, an object with `len` and `x[i]`) and their labels `y`."""

    @property
    def x(self) -> Any: ...
    @property
    def y(self) -> Any: ...


class Stream(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches `{"x": [B, ...], "y": [B, ...]}` of NumPy arrays; made by `stream`.

    Attributes:
        position: how many batches were handed out, counted from the first batch of the first epoch.
        per_epoch: how many batches an epoch has, the same on every host.
        total: how many batches all epochs have together; `None`: there is no end.
    """

    def __init__(
        self, batches: Any, made: Mapping[str, int], *, per_epoch: int, total: int | None, start: int, threads: int
    ) -> None:
        if start < 0 or (total is not None and start > total):
            most = "no end" if total is None else f"{total} batches"
            raise ValueError(f"start is {start}, in a stream of {most}; expected the number of batches already seen")
        self.position, self.per_epoch, self.total = start, per_epoch, total
        self._batches, self._made, self._threads = batches, dict(made), threads
        self._reader: Iterator[dict[str, np.ndarray]] | None = None
        self._read_to = start

    def __next__(self) -> dict[str, np.ndarray]:
        if self._reader is None or self._read_to != self.position:
            self.close()
            self._reader, self._read_to = self.read(), self.position
        found = next(self._reader)
        self.position = self._read_to = self._read_to + 1
        return found

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, counted from 0."""
        return self.position // self.per_epoch

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Iterates over the batches from `position` on, read ahead by Grain; `position` does not move."""
        import grain

        if self.total is not None and self.position >= self.total:
            return
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(2, self._threads))
        found = iter(self._batches[self.position :].to_iter_dataset(options))
        try:
            yield from found
        finally:
            found.close()

    def state(self) -> State:
        """Returns the stream's position, to be saved beside the training state; it is the same on all hosts."""
        return {n: np.asarray(v, np.int32) for n, v in {"position": self.position, **self._made}.items()}

    def at(self, state: Mapping[str, Any]) -> "Stream":
        """Returns a stream of the same data that continues where a state was taken.

        The number of hosts may differ if the batch of all hosts together does not: every step sees the same examples.

        Args:
            state: what `state()` returned.

        Raises:
            ValueError: if the state is of another stream, with what differs.
        """
        missing = sorted({"position", *self._made} - set(state))
        if missing:
            raise ValueError(f"the state of a stream lacks {missing}; it has {sorted(state)}; pass what `state()` gave")
        wrong = [f"{n} was {int(state[n])}, is {v}" for n, v in self._made.items() if int(state[n]) != v]
        if wrong:
            raise ValueError(f"the state is one of another stream: {'; '.join(wrong)} (batch is that of all hosts)")
        return Stream(
            self._batches,
            self._made,
            per_epoch=self.per_epoch,
            total=self.total,
            start=int(state["position"]),
            threads=self._threads,
        )

    def close(self) -> None:
        """Stops reading ahead; asking for another batch starts it again."""
        if self._reader is not None:
            self._reader.close()  # type: ignore[attr-defined]
            self._reader = None


def stream(
    source: Labelled,
    *,
    batch: int,
    seed: int,
    shard: int = 0,
    shards: int = 1,
    epochs: int | None = None,
    transform: HostTransform | None = None,
    full: bool = False,
    shuffle: bool = True,
    drop_remainder: bool = True,
    threads: int | None = None,
    start: int = 0,
) -> Stream:
    """Returns the batches of a source, shuffled anew in every epoch; they depend on the seed and the position alone.

    Step `s` of an epoch sees `batch * shards` examples of the epoch's order, from number `s * batch * shards` on; host
    `shard` takes every `shards`-th of them. The examples that do not fill a batch of all hosts are left out; they are
    others in every epoch.

    Args:
        source: examples `x` and labels `y`, such as `Source.train`: arrays, memory maps or lazy images.
        batch: how many examples a batch of this host has.
        seed: the seed of the order and the transforms, from 0 to `2**31 - 1`.
        shard: which host this is, as `jax.process_index()` says.
        shards: how many hosts there are, as `jax.process_count()` says.
        epochs: how often all examples are read; `None`: without end.
        transform: a function `(x[i], rng) -> array` that runs on the host in the reading threads, such as
            `cropping.resized_crop(224)`; `None`: examples stay as they are.
        full: whether the transform gets the pictures of lazy `x` at their full size, uint8; the steps that were mapped
            on `x`, such as normalisation, then come after the transform.
        shuffle: `False` keeps the order of the source.
        drop_remainder: `False` keeps an epoch's last examples as a smaller batch; for one host only.
        threads: how many threads read ahead, each a batch of its own; `None`: two for arrays in memory, else as many
            as the host has cores.
        start: how many batches were handed out before.

    Returns:
        The stream, an iterator over `{"x": [batch, ...], "y": [batch]}`.

    Raises:
        ValueError: if Grain is missing, a number is out of range, or an epoch holds less than a batch; while reading,
            if the examples of a batch differ in shape.

    >>> from mvp_jax.data import sources
    >>> one = stream(sources.Arrays(np.arange(6), np.arange(6)), batch=2, seed=0)
    >>> sorted(int(i) for _ in range(one.per_epoch) for i in next(one)["x"]), one.epoch
    ([0, 1, 2, 3, 4, 5], 1)
    >>> again = one.at({**one.state(), "position": 0})
    >>> int(again.state()["position"]), next(again)["x"].shape
    (0, (2,))
    """
    grain = _grain()
    x, y = source.x, np.asarray(source.y)
    x = np.asarray(x) if isinstance(x, jax.Array) else x
    _check(len(x), len(y), batch, seed, shard, shards, epochs, drop_remainder, threads)
    whole = x if full and isinstance(x, Lazy) else None
    if full and (whole is None or whole.whole is not None or transform is None):
        raise ValueError(
            "full=True is for lazy pictures with a transform, and without a checkpoint's processor; make "
            "them by lazy.pictures(...), or pass full=False"
        )
    n = len(x)
    # Two seeds as they stand would share epochs: Grain's epoch e of seed s is epoch 0 of seed s + e.
    order, chance = (int(s) for s in np.random.SeedSequence(seed).generate_state(2, np.uint32))
    index = grain.MapDataset.range(n)
    index = index.shuffle(order) if shuffle else index
    in_memory = transform is None and isinstance(x, np.ndarray)
    if in_memory:
        examples = index
    elif transform is None:
        examples = index.map(lambda i: (np.asarray(x[i]), y[i]))
    else:
        change = transform

        def read(i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return np.asarray(change(x[i] if whole is None else _whole(whole, i), rng)), y[i]

        # Before the shards are cut, so that no two hosts share a generator.
        examples = index.random_map(read, seed=chance)
    examples = examples[shard : n - n % shards : shards]
    batches = examples.batch(
        batch,
        drop_remainder=drop_remainder,
        batch_fn=functools.partial(_gather, x, y) if in_memory else functools.partial(_stack, whole),
    )
    if threads is None:
        threads = 2 if in_memory else os.cpu_count() or 2
    per_epoch = len(batches)
    made = {"seed": seed, "examples": n, "batch": batch * shards, "per_epoch": per_epoch}
    return Stream(
        batches.repeat(epochs),
        made,
        per_epoch=per_epoch,
        total=None if epochs is None else epochs * per_epoch,
        start=start,
        threads=threads,
    )


def _grain() -> Any:
    try:
        import grain  # here, because it takes a second, and only streams need it
    except ImportError as error:
        raise ValueError("streams need Grain, which is not installed: pip install -e '.[data]'") from error
    return grain


def _check(
    n: int,
    labels: int,
    batch: int,
    seed: int,
    shard: int,
    shards: int,
    epochs: int | None,
    drop: bool,
    threads: int | None,
) -> None:
    if n != labels:
        raise ValueError(f"there are {n} examples and {labels} labels; expected one label for each example")
    asked = {"batch": batch, "shards": shards, "epochs": epochs, "threads": threads}
    for name, value in asked.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected a whole number of at least 1")
    if not 0 <= shard < shards:
        raise ValueError(f"shard is {shard} of {shards} shards; expected 0 to {shards - 1}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}; expected 0 to {2**31 - 1}")
    if not drop and shards > 1:
        raise ValueError(
            "drop_remainder=False is for one host: the last batches of several would differ in number; "
            "let each read all, or drop the remainder"
        )
    least = batch * shards if drop else 1
    if n < least:
        raise ValueError(
            f"an epoch of {n} examples holds no batch of {batch} on each of {shards} hosts; take a batch "
            f"of at most {n // shards}, or drop_remainder=False on one host"
        )


def _gather(x: np.ndarray, y: np.ndarray, chosen: Sequence[int]) -> dict[str, np.ndarray]:
    index = np.asarray(chosen)
    return {"x": np.asarray(x[index]), "y": y[index]}


def _whole(x: Lazy, i: int) -> np.ndarray:
    try:
        return x.decode(x.encoded(i))
    except (ValueError, OSError) as error:
        raise ValueError(f"{x.called(int(x.indices[i]))}: {error}") from error


def _stack(whole: Lazy | None, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    shapes = sorted({x.shape for x, _ in examples})
    if len(shapes) > 1:
        raise ValueError(
            f"examples of one batch have the shapes {shapes[:4]}; bring them to one by a transform such "
            "as cropping.resized_crop(224), or read the pictures with a size"
        )
    x = np.stack([x for x, _ in examples])
    return {"x": x if whole is None else whole.finish(x), "y": np.stack([y for _, y in examples])}


class OnDevice(Iterator[dict[str, jax.Array]]):
    """An iterator over batches on the device and a context manager, made by `to_device`; closing it ends its thread."""

    def __init__(self, source: Stream, place: Callable[[PyTree], PyTree], ahead: int) -> None:
        self._stream = source
        self._found = prefetch(source.read(), place=place, ahead=ahead)

    def __next__(self) -> dict[str, jax.Array]:
        found = next(self._found)
        self._stream.position += 1
        return found

    def __enter__(self) -> "OnDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self) -> State:
        """Returns the stream's state after the last batch handed out; batches read ahead do not count."""
        return self._stream.state()

    def close(self) -> None:
        """Stops reading ahead and ends the thread."""
        self._found.close()  # type: ignore[attr-defined]


def to_device(source: Stream, *, sharding: jax.sharding.Sharding | None = None, ahead: int = 2) -> OnDevice:
    """Iterates over the batches of a stream on the device; they are read and copied while earlier ones are used.

    The stream's position moves with every batch handed out; a batch that waits counts as not seen. While this iterator
    is used, the stream must not be read by other means.

    Args:
        source: a stream; its batches from its position on are read.
        sharding: how a batch's first axis is spread over devices; with several processes, each gives its part of the
            batch of all. `None`: batches are put on the default device.
        ahead: how many batches may wait on the device.

    Returns:
        An iterator over `{"x": [B, ...], "y": [B, ...]}`, a context manager, with `state()`.

    Raises:
        ValueError: if `ahead` is less than 1.

    >>> from mvp_jax.data import sources
    >>> one = stream(sources.Arrays(np.arange(6), np.arange(6)), batch=2, seed=0, epochs=1)
    >>> with to_device(one, ahead=3) as batches:
    ...     next(batches)["x"].shape, int(batches.state()["position"]), len(list(batches)), one.position
    ((2,), 1, 2, 3)
    """

    def place(found: dict[str, np.ndarray]) -> PyTree:
        if sharding is None or sharding.is_fully_addressable:
            return jax.device_put(found, sharding)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), found)

    return OnDevice(source, place, ahead)
