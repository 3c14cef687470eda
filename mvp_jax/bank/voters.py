"""Who votes for a new task: the bank's entries that are most similar to it, in the dense model's shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact
from mvp_jax.bank import ranking, stacking
from mvp_jax.bank.directory import BankEntry
from mvp_jax.bank.ranking import EntrySimilarity, SimilarityFn
from mvp_jax.core import similarity as similarities
from mvp_jax.core.types import Array, Batch, PyTree, Units, UnitScores, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model, replace_head

_NAMES = ("variables", "units", "saliency")


class Neighbours(NamedTuple):
    """Pruned models of other tasks in the dense model's index space; every leaf leads with the member axis `K`.

    Attributes:
        units: `{group: bool[K, C]}`, the units that each model kept.
        variables: in the dense model's shapes, zero where units were removed; heads do not vote.
        saliency: `{group: float[K, C]}`, how much each unit mattered to its model, higher = more.
        similarity: `float[K]`, of each model's task to the new one, higher = nearer.
    """

    units: Units
    variables: Variables
    saliency: UnitScores
    similarity: Array

    def take(self, index: Array) -> "Neighbours":
        """The neighbours at the positions `index`, `int[k]`, in this order; works under `jit`."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def neighbours(
    entries: Sequence[BankEntry],
    model: Model,
    variables: Variables,
    data: Batch,
    k: int = 5,
    *,
    similarity: EntrySimilarity | SimilarityFn = "leep",
    chunk: int = 64,
) -> Neighbours:
    """The `k` entries of a bank that are most similar to a new task, as the voters of Meta-Vote Pruning.

    Args:
        entries: from `bank.entries`. Each must hold `variables` (slim), `units` and `saliency`, and all must keep
            equally many units in each group; heads may be for different numbers of classes.
        model: the dense model with the new task's number of classes.
        variables: those of the pre-trained model from which the entries were made, under the head they had then.
        data: the new task's training examples: `x` `[N, ...]` and `y` `int[N]`, labels from 0.
        k: how many entries vote; all of them if there are fewer.
        similarity: how similar an entry is to the task. `leep`: LEEP of the entry's predictions (arXiv:2002.12462),
            its model run on `data`; `logme` and `press`: how well the features of its model tell the labels of `data`
            (see `similarity_to_all`); `prototype`: cosines between class means of the pre-trained model's features, for
            entries that were added with `prototypes` (see `bank.prototypes`); or a function
            `(entries, data) -> float[T]`, higher = nearer.
        chunk: how many entries are in memory at a time while they are ranked.

    Runs on the host, outside `jax.jit` and `jax.vmap`, as it reads the entries' files.

    Returns:
        The neighbours, nearest first; equally similar entries in the order of `entries`. `variables` have the dense
        shapes and the new task's head (zeros), on the device.

    Raises:
        ValueError: if there are no entries, `k` is below 1, labels lie outside the model's classes, an entry was made
            from other variables or for other groups, or entries differ in the number of kept units.

    >>> import tempfile
    >>> from mvp_jax import bank, compact, models
    >>> model = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
    >>> pretrained = model.init(jax.random.key(0))
    >>> mark = bank.fingerprint(pretrained)
    >>> folder = bank.create(tempfile.mkdtemp(), fingerprint=mark, settings={})
    >>> for i in range(3):
    ...     scores = {g.name: jax.random.uniform(jax.random.key(i), (g.size,)) for g in model.groups}
    ...     kept = {name: s >= jnp.median(s) for name, s in scores.items()}
    ...     arrays = {"variables": compact.cut(pretrained, model.groups, kept), "units": kept, "saliency": scores}
    ...     entry = bank.BankEntry(task=f"{i}", classes=(0, 1, 2), fingerprint=mark, ratio=0.5, accuracy=0.9)
    ...     _ = bank.add(folder, entry, arrays)
    >>> few = {"x": jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), "y": jnp.array([0, 1, 0, 1])}
    >>> found = bank.neighbours(bank.entries(folder), model.with_classes(2), pretrained, few, k=2)
    >>> found.variables.params["head"]["kernel"].shape, found.similarity.shape
    ((2, 16, 2), (2,))

    Reference: Zhao et al., "Meta-Vote Pruning", 2023, arXiv:2301.11560, algorithm 2.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; give a whole number: at least one entry must vote")
    scores = ranking.similarities_to(entries, model, variables, data, similarity=similarity, chunk=chunk)
    index = np.asarray(similarities.nearest(scores, min(k, len(entries))))
    near = [entries[i] for i in index]
    found = ranking.read(near, _NAMES)
    groups = ranking.groups(near, found, model, (near[0], found[0]["units"]))
    # Heads are left out further on; of different numbers of classes they would not stack.
    widest = max(f["variables"].params[model.head]["bias"].shape[0] for f in found)
    for f in found:
        f["variables"] = ranking.widened(f["variables"], model.head, widest)
    slim, kept, saliency = (stacking.stack(near, [f[name] for f in found], name) for name in _NAMES)
    like = replace_head(variables, model)
    return in_dense_shapes(
        jax.tree.map(jnp.asarray, slim),
        jax.tree.map(jnp.asarray, kept),
        jax.tree.map(jnp.asarray, saliency),
        scores[index],
        groups=groups,
        like=like,
        head=model.head,
    )


def in_dense_shapes(
    slim: Variables,
    units: Units,
    saliency: UnitScores,
    similarity: Array,
    *,
    groups: Sequence[Group],
    like: Variables,
    head: str = "head",
) -> Neighbours:
    """Slim models as voters: their weights at their places in the dense model, zero where units were removed.

    Args:
        slim: variables of `K` slim models, every leaf leads with `K`.
        units: `{group: bool[K, C]}`, the units they kept.
        saliency: `{group: float[K, C]}`.
        similarity: `float[K]`.
        groups: the dense model's groups that were pruned.
        like: the dense model's variables, whose head all `K` get: heads belong to their tasks' classes.
        head: the name of the head among the parameters.

    Raises:
        ValueError: if the slim variables do not fit the units or the dense model.
    """
    count = similarity.shape[0]
    bodies = Variables(_without(slim.params, head), slim.rest)
    dense_body = Variables(_without(like.params, head), like.rest)
    dense = jax.vmap(lambda body, kept: compact.embed(body, groups, kept, dense_body))(bodies, units)
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), like.params[head])
    return Neighbours(units, Variables({**dense.params, head: own}, dense.rest), saliency, similarity)


def _without(params: PyTree, head: str) -> PyTree:
    return {name: child for name, child in params.items() if name != head}
