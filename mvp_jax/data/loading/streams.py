"""Batches read from data that need not fit in memory, in an order that a seed and a position determine.

Grain reads ahead in threads; hosts read disjoint shards; a stream goes on where a checkpoint left it.
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
"""`(example, rng) -> array`, on the host; the generator is the example's own, another one in every epoch."""

State: TypeAlias = dict[str, np.ndarray]
"""`position` (batches handed out), `seed`, `examples`, `batch` (of all hosts) and `per_epoch`: int32 scalars."""


class Labelled(Protocol):
    """Examples `x` (an array, a memory map, anything with `len` and `x[i]`) and their labels `y`."""

    @property
    def x(self) -> Any: ...
    @property
    def y(self) -> Any: ...


class Stream(Iterator[dict[str, np.ndarray]]):
    """Batches `{"x": [B, ...], "y": [B, ...]}` of NumPy arrays; made by `stream`.

    Attributes:
        position: how many batches the consumer has got, since the first batch of the first epoch.
        per_epoch: batches in an epoch, on every host the same number.
        total: batches in all epochs; `None` if there is no end.
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
        """Of the next batch, from 0."""
        return self.position // self.per_epoch

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches from `position` on, read ahead by Grain; moves nothing. `to_device` uses it."""
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
        """Where the consumer is, to be saved beside the training state; the same on all hosts."""
        return {n: np.asarray(v, np.int32) for n, v in {"position": self.position, **self._made}.items()}

    def at(self, state: Mapping[str, Any]) -> "Stream":
        """This stream, to go on where `state` was taken.

        The number of hosts may differ, if the batch of all of them together does not: each step sees the same examples.

        Args:
            state: from `state()`.

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
        """Stops reading ahead; the next batch starts it again."""
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
    """Batches of a source, shuffled anew in every epoch, as a function of the seed and the position alone.

    Step `s` of an epoch sees examples `s * batch * shards` onwards of the epoch's order; host `shard` takes each
    `shards`-th of them. What does not fill a batch of all hosts is left out, other examples in every epoch.

    Args:
        source: images or token ids `x` and labels `y`, such as `Source.train`: arrays, memory maps, lazy pictures.
        batch: examples in a batch of this host.
        seed: of order and transforms, from 0.
        shard: which host this is, as `jax.process_index()`.
        shards: how many hosts there are, as `jax.process_count()`.
        epochs: how often the data are gone through; without end if `None`.
        transform: `(x[i], rng) -> array`, on the host, in the reading threads, such as `cropping.resized_crop(224)`.
        full: give the transform pictures of lazy `x` at their full size, uint8; what was mapped on `x`, such as
            normalisation, comes after the transform.
        shuffle: `False` keeps the order of the source.
        drop_remainder: `False` keeps an epoch's last examples as a smaller batch; for one host.
        threads: that read batches ahead, each a batch of its own; by default two for arrays in memory, else one a core.
        start: how many batches were seen already.

    Returns:
        The stream, an iterator.

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
        raise ValueError("streams need Grain, which is not installed: pip install 'mvp-jax[data]'") from error
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
    """What `to_device` returns: an iterator over batches on the device, to be closed."""

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
        """That of the stream after the last batch handed out, whatever was read ahead."""
        return self._stream.state()

    def close(self) -> None:
        """Stops reading ahead."""
        self._found.close()  # type: ignore[attr-defined]


def to_device(source: Stream, *, sharding: jax.sharding.Sharding | None = None, ahead: int = 2) -> OnDevice:
    """The batches of a stream on the device, read and copied while the ones before are worked on.

    The stream's own position moves with what is handed out; a batch that waits counts as not seen. Read the stream by
    one of both ways at a time.

    Args:
        source: from `stream`, from where it stands.
        sharding: of the batches' first axis; with several processes each gives its shard of the batch of all. Without
            it the default device.
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
