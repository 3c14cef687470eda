"""Texts by length: each is padded no further than to the next of a few lengths, so that short ones cost little.

Every length is one more shape to compile, so there should be few; examples of a batch share one.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array, Variables
from mvp_jax.models.api import Model

LENGTHS = (32, 64, 128)
_PART = 1 << 16  # rows that are looked at together


class Bucket(NamedTuple):
    """Examples of one length: which of all they are, `int[n]`, and their ids `int32[n, L]`."""

    indices: np.ndarray
    x: np.ndarray


class Padded(NamedTuple):
    """A bucket made up to a multiple of the batch: `indices` and `weight` `[n]`, `x` `[n, L]`.

    A row that was added repeats the bucket's first one, and has weight 0; all others have 1.
    """

    indices: np.ndarray
    x: np.ndarray
    weight: np.ndarray


def filled(x: np.ndarray, *, pad: int = 0, tail: int = 0) -> np.ndarray:
    """How many ids each text needs: up to the last that is not padding, and `tail` more where there are.

    Args:
        x: `int[N, L]`.
        pad: the id of padding; `Tokenizer.pad`.
        tail: 1 where padding is also the mark of the end, which a model looks for (CLIP).

    Returns:
        `int[N]`, at most `L`.

    Raises:
        ValueError: for other shapes.

    >>> filled(np.array([[5, 0, 6, 0], [0, 0, 0, 0]])).tolist()
    [3, 0]
    """
    if x.ndim != 2 or x.dtype.kind not in "iu":
        raise ValueError(f"texts are {x.dtype}{list(x.shape)}; give token ids, integers [N, L]")
    ends = np.arange(1, x.shape[1] + 1)
    parts = [
        np.max((x[i : i + _PART] != pad) * ends, axis=1, initial=0) for i in range(0, len(x), _PART)
    ]  # fmt: skip
    return np.minimum(np.concatenate([np.zeros(0, int), *parts]) + tail, x.shape[1])


def buckets(
    x: np.ndarray, lengths: Sequence[int] = LENGTHS, *, pad: int = 0, tail: int = 0
) -> tuple[Bucket, ...]:  # fmt: skip
    """Puts every text into the smallest length that holds it.

    Args:
        x: `int32[N, L]`, padded at the end.
        lengths: rising; those beyond `L` stand for `L`.
        pad: see `filled`.
        tail: see `filled`.

    Returns:
        The lengths that hold any, shortest first, the examples of each in their old order.

    Raises:
        ValueError: for lengths that do not rise from 1, or a text that is longer than all.

    >>> x = np.array([[1, 7, 2, 0, 0, 0], [1, 7, 8, 9, 9, 2], [1, 2, 0, 0, 0, 0]])
    >>> [(b.indices.tolist(), b.x.shape) for b in buckets(x, (4, 8))]
    [([0, 2], (2, 4)), ([1], (1, 6))]
    """
    widths, which = _assigned(x, lengths, pad, tail)
    found = [(np.flatnonzero(which == i), width) for i, width in enumerate(widths)]
    return tuple(Bucket(own, x[own, :width]) for own, width in found if own.size)


def padded(
    x: np.ndarray, lengths: Sequence[int] = LENGTHS, *, batch: int, pad: int = 0, tail: int = 0
) -> tuple[Padded, ...]:  # fmt: skip
    """As `buckets`, each made up to a multiple of `batch`, so that a length has one shape.

    Every example has weight 1 once: sums weighted so count none twice, and none is left out.

    Args:
        x: see `buckets`.
        lengths: see `buckets`.
        batch: examples at a time.
        pad: see `filled`.
        tail: see `filled`.

    >>> x = np.array([[1, 2, 0, 0], [1, 7, 8, 2], [1, 7, 2, 0]])
    >>> [(p.indices.tolist(), p.weight.tolist(), p.x.shape) for p in padded(x, (3, 4), batch=4)]
    [([0, 2, 0, 0], [1.0, 1.0, 0.0, 0.0], (4, 3)), ([1, 1, 1, 1], [1.0, 0.0, 0.0, 0.0], (4, 4))]
    """
    _check_batch(batch)

    def full(bucket: Bucket) -> Padded:
        count = len(bucket.indices)
        at = np.arange(-(-count // batch) * batch)
        inside = at < count
        at = np.where(inside, at, 0)
        return Padded(bucket.indices[at], bucket.x[at], inside.astype(np.float32))

    return tuple(full(bucket) for bucket in buckets(x, lengths, pad=pad, tail=tail))


@functools.partial(jax.jit, static_argnames=("model",))
def _infer(model: Model, variables: Variables, x: Array) -> tuple[Array, Array]:
    seen = model.inspect(variables, x)
    return seen.logits, seen.features


def infer(
    model: Model,
    variables: Variables,
    x: np.ndarray,
    lengths: Sequence[int] = LENGTHS,
    *,
    batch: int = 64,
    pad: int = 0,
    tail: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What `evaluation.infer` gives, bucket by bucket; compiles at most one program a length.

    Args:
        model: static; reads texts shorter than its longest, as `models.bert` and CLIP's text tower do.
        variables: of one model.
        x: `int32[N, L]`.
        lengths: see `buckets`.
        batch: examples at a time.
        pad: see `filled`; must be the model's.
        tail: see `filled`.

    Returns:
        Logits `[N, Y]` and features `[N, F]`, in the order of `x`.

    Raises:
        ValueError: as `buckets` does, without examples, or for a model whose outputs are as long as its texts.
    """
    parts = padded(x, lengths, batch=batch, pad=pad, tail=tail)
    if not parts:
        raise ValueError("no texts to read; give at least one")
    found, order = [], []
    for part in parts:
        for i in range(0, len(part.x), batch):
            own = part.weight[i : i + batch] > 0
            found.append((own, _infer(model, variables, jnp.asarray(part.x[i : i + batch]))))
            order.append(part.indices[i : i + batch][own])
    if found[0][1][0].ndim != 2:
        raise ValueError(
            f"the model gives logits {list(found[0][1][0].shape)}, one row a token, which differ in length from bucket "
            "to bucket; use evaluation.infer"
        )
    back = np.argsort(np.concatenate(order))
    logits, features = (np.concatenate([np.asarray(out[k])[own] for own, out in found])[back] for k in (0, 1))
    return logits, features


def batches(
    x: np.ndarray,
    y: np.ndarray,
    lengths: Sequence[int] = LENGTHS,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    pad: int = 0,
    tail: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches to train on, without end, each of texts of one bucket.

    An epoch has `N // batch` batches in a random order, and no example twice. What is left over of a bucket goes to
    the next longer one; what is left over of the longest, less than a batch, waits for another epoch, as in
    `train.batch_indices`. Batch `s` depends on data, seed and `s` alone, so that a run goes on by `start`.

    Args:
        x: `int32[N, L]`.
        y: `[N]`.
        lengths: see `buckets`.
        batch: examples a step.
        seed: of all epochs.
        start: steps that were already taken.
        pad: see `filled`.
        tail: see `filled`.

    Yields:
        `{"x": int32[batch, length], "y": [batch]}`, on the host.

    Raises:
        ValueError: as `buckets` does, or for fewer examples than a batch; at once, not when the first is asked for.

    >>> x = np.array([[1, 2, 0, 0], [1, 7, 8, 2], [1, 7, 2, 0], [1, 8, 2, 0]])
    >>> steps = batches(x, np.arange(4), (3, 4), batch=2, seed=0)
    >>> sorted((b["x"].shape[1], len(b["y"])) for b in (next(steps), next(steps)))
    [(3, 2), (4, 2)]
    """
    _check_batch(batch)
    if len(x) != len(y) or len(x) < batch or start < 0:
        raise ValueError(
            f"{len(x)} texts, {len(y)} labels, batch={batch}, start={start}; give one label a text, at least a batch "
            "of them, and steps from 0"
        )
    widths, which = _assigned(x, lengths, pad, tail)
    return _batches(x, np.asarray(y), widths, which, batch, seed, start)


def _batches(
    x: np.ndarray, y: np.ndarray, widths: Sequence[int], which: np.ndarray, batch: int, seed: int, start: int
) -> Iterator[dict[str, np.ndarray]]:
    epoch, at = divmod(start, len(x) // batch)
    while True:
        for width, own in _epoch(widths, which, batch, np.random.default_rng([seed, epoch]))[at:]:
            yield {"x": np.asarray(x[own, :width]), "y": y[own]}
        epoch, at = epoch + 1, 0


def _epoch(
    widths: Sequence[int], which: np.ndarray, batch: int, rng: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """The batches of one epoch: their width and examples."""
    made, rest = [], np.zeros(0, int)
    for i, width in enumerate(widths):
        # What came from shorter ones goes first, so that only texts of this length can be left over again.
        own = np.concatenate([rest, rng.permutation(np.flatnonzero(which == i))])
        whole = len(own) // batch * batch
        made += [(width, part) for part in own[:whole].reshape(-1, batch)]
        rest = own[whole:]
    return [made[i] for i in rng.permutation(len(made))]


def _assigned(x: np.ndarray, lengths: Sequence[int], pad: int, tail: int) -> tuple[list[int], np.ndarray]:
    """The width of each bucket, and the bucket of each example."""
    given = list(lengths)
    if not given or given[0] < 1 or given != sorted(set(given)):
        raise ValueError(f"lengths are {tuple(given)}; they must rise from at least 1, as {LENGTHS}")
    needed = filled(x, pad=pad, tail=tail)
    widths = sorted({min(width, x.shape[1]) for width in given})
    longest = int(needed.max(initial=0))
    if longest > widths[-1]:
        raise ValueError(f"a text has {longest} ids, but lengths end at {widths[-1]}; give lengths up to {x.shape[1]}")
    return widths, np.searchsorted(widths, needed)


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}; give at least 1 example at a time")
