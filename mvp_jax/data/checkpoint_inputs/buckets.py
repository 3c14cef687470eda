"""Texts by length: each text is padded only to the next of a few lengths, so that short texts cost little.

Every length is one more shape to compile, so there should be few. All texts of a batch have one length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mvp_jax.core.types import PyTree

LENGTHS = (32, 64, 128)
_PART = 1 << 16  # rows that are looked at together


class Bucket(NamedTuple):
    """Texts of one length.

    Attributes:
        indices: `int[n]`, which of all texts these are.
        x: their token ids, `int32[n, length]`.
    """

    indices: np.ndarray
    x: np.ndarray


class Padded(NamedTuple):
    """Texts of one length, filled up to a multiple of the batch by repeating the first text.

    Attributes:
        indices: `int[n]`, which of all texts these are.
        x: their token ids, `int32[n, length]`.
        weight: `float32[n]`, 1 for a text and 0 for a row that was added.
    """

    indices: np.ndarray
    x: np.ndarray
    weight: np.ndarray


def filled(x: np.ndarray, *, pad: int = 0, tail: int = 0) -> np.ndarray:
    """Counts the ids that each text needs: up to the last one that is not padding, and `tail` more.

    Args:
        x: token ids, `int[N, L]`, padded at the end.
        pad: the id of padding, `Tokenizer.pad`.
        tail: how many padding ids after a text are kept; 1 for CLIP, whose padding is also the mark of the end.

    Returns:
        The counts, `int[N]`, at most `L`.

    Raises:
        ValueError: if `x` is not integers `[N, L]`.

    >>> filled(np.array([[5, 0, 6, 0], [0, 0, 0, 0]])).tolist()
    [3, 0]
    """
    if x.ndim != 2 or x.dtype.kind not in "iu":
        raise ValueError(f"texts are {x.dtype}{list(x.shape)}; give token ids, integers [N, L]")
    ends = np.arange(1, x.shape[1] + 1)
    parts = [np.max((x[i : i + _PART] != pad) * ends, axis=1, initial=0) for i in range(0, len(x), _PART)]
    return np.minimum(np.concatenate([np.zeros(0, int), *parts]) + tail, x.shape[1])


def buckets(x: np.ndarray, lengths: Sequence[int] = LENGTHS, *, pad: int = 0, tail: int = 0) -> tuple[Bucket, ...]:
    """Puts every text into the bucket of the smallest length that holds it.

    Args:
        x: token ids `int32[N, L]`, padded at the end.
        lengths: the lengths to which texts may be padded, rising; those beyond `L` stand for `L`.
        pad: the id of padding, `Tokenizer.pad`.
        tail: how many padding ids after a text are kept; 1 for CLIP, whose padding is also the mark of the end.

    Returns:
        The buckets that hold any text, shortest first; within a bucket texts keep their order.

    Raises:
        ValueError: for lengths that do not rise from 1, or a text that is longer than all of them.

    >>> x = np.array([[1, 7, 2, 0, 0, 0], [1, 7, 8, 9, 9, 2], [1, 2, 0, 0, 0, 0]])
    >>> [(b.indices.tolist(), b.x.shape) for b in buckets(x, (4, 8))]
    [([0, 2], (2, 4)), ([1], (1, 6))]
    """
    widths, which = _assigned(x, lengths, pad, tail)
    found = [(np.flatnonzero(which == i), width) for i, width in enumerate(widths)]
    return tuple(Bucket(own, x[own, :width]) for own, width in found if own.size)


def padded(
    x: np.ndarray, lengths: Sequence[int] = LENGTHS, *, batch: int, pad: int = 0, tail: int = 0
) -> tuple[Padded, ...]:
    """Puts texts into buckets as `buckets` does, and fills each bucket up to a multiple of `batch`.

    So every batch of one length has one shape. Each text has weight 1 in exactly one row, so that weighted sums count
    every text once.

    Args:
        x: token ids `int32[N, L]`, padded at the end.
        lengths: the lengths to which texts may be padded, rising; those beyond `L` stand for `L`.
        batch: how many texts are read at a time.
        pad: the id of padding, `Tokenizer.pad`.
        tail: how many padding ids after a text are kept; 1 for CLIP, whose padding is also the mark of the end.

    Returns:
        The filled buckets that hold any text, shortest first.

    Raises:
        ValueError: for a batch below 1, lengths that do not rise from 1, or a text that is longer than all of them.

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


def predict(
    function: Callable[[np.ndarray], PyTree],
    x: np.ndarray,
    lengths: Sequence[int] = LENGTHS,
    *,
    batch: int = 64,
    pad: int = 0,
    tail: int = 0,
) -> PyTree:
    """Applies a function to many texts, a batch of one length at a time, and puts its results in the texts' order.

    With `functools.partial(evaluation.infer, model, variables)` the results are a model's logits and features, and at
    most one program is compiled for each length. The model must read texts that are shorter than its longest, as BERT
    and CLIP's text tower do.

    Args:
        function: takes token ids `int32[batch, length]`, and gives a pytree of arrays whose first axis is the batch.
        x: token ids `int32[N, L]`, padded at the end.
        lengths: the lengths to which texts may be padded, rising; those beyond `L` stand for `L`.
        batch: how many texts the function gets at a time.
        pad: the id of padding, the tokeniser's and the model's.
        tail: how many padding ids after a text are kept; 1 for CLIP, whose padding is also the mark of the end.

    Returns:
        The function's pytree with NumPy arrays `[N, ...]`, in the order of `x`.

    Raises:
        ValueError: without texts, for lengths that do not rise from 1, a text that is longer than all of them, or
            results whose shape depends on the texts' length.

    >>> x = np.array([[1, 2, 0, 0], [1, 7, 8, 2], [1, 7, 2, 0]])
    >>> predict(lambda ids: {"sum": ids.sum(1)}, x, (2, 4), batch=2)
    {'sum': array([ 3, 18, 10])}
    """
    parts = padded(x, lengths, batch=batch, pad=pad, tail=tail)
    if not parts:
        raise ValueError("no texts to read; give at least one")
    starts = [(part, i) for part in parts for i in range(0, len(part.x), batch)]
    own = [part.weight[i : i + batch] > 0 for part, i in starts]
    found = [function(part.x[i : i + batch]) for part, i in starts]  # nothing is waited for in between
    rows = [part.indices[i : i + batch][o] for (part, i), o in zip(starts, own, strict=True)]
    order = np.argsort(np.concatenate(rows))

    def joined(*leaves: Any) -> np.ndarray:
        shapes = sorted({tuple(leaf.shape[1:]) for leaf in leaves})
        if len(shapes) > 1:
            raise ValueError(
                f"the function gives results of shapes {shapes[:4]} a text, which depend on the texts' length, such as "
                "one row a token; call it on texts of one length"
            )
        return np.concatenate([np.asarray(leaf)[o] for leaf, o in zip(leaves, own, strict=True)])[order]

    return jax.tree.map(joined, *found)


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
    """Draws batches to train on, without end; all texts of a batch have one length.

    An epoch has `N // batch` batches in a random order, in which no text occurs twice. The texts of a bucket that do
    not fill a batch go to the next longer bucket; those left over of the longest, fewer than a batch, are left out of
    this epoch. Batch `s` depends on the data, the seed and `s` alone, so that a run is continued by `start`.

    Args:
        x: token ids `int32[N, L]`, padded at the end.
        y: labels or scores, `[N]`.
        lengths: the lengths to which texts may be padded, rising; those beyond `L` stand for `L`.
        batch: how many texts a step sees.
        seed: of the order in all epochs.
        start: how many steps were already taken.
        pad: the id of padding, `Tokenizer.pad`.
        tail: how many padding ids after a text are kept; 1 for CLIP, whose padding is also the mark of the end.

    Yields:
        `{"x": int32[batch, length], "y": [batch]}`, NumPy arrays.

    Raises:
        ValueError: for fewer texts than a batch, labels that do not fit, lengths that do not rise from 1, or a text
            that is longer than all of them; at once, not when the first batch is asked for.

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
