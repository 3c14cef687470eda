"""Who votes for a new task: the bank's entries that are most similar to it, in the dense model's shapes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact
from mvp_jax.bank import directory
from mvp_jax.bank.directory import BankEntry
from mvp_jax.core import labels, trees
from mvp_jax.core import similarity as similarities
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Batch, PyTree, Units, UnitScores, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import evaluation
from mvp_jax.train.fitting import loops_on_host

SimilarityFn: TypeAlias = Callable[[Sequence[BankEntry], Batch], Array]
"""`(entries, data) -> float[T]`: how similar each of `T` entries is to the task that `data` shows, higher = nearer."""


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
    similarity: Literal["leep", "prototype"] | SimilarityFn = "leep",
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
            its model run on `data`; `prototype`: cosines between class means of the pre-trained model's features, for
            entries that were added with `prototypes` (see `bank.prototypes`); or a function
            `(entries, data) -> float[T]`, higher = nearer.

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
    _check(entries, model, variables, data, k)
    names = ["variables", "units", "saliency", *(["prototypes"] if similarity == "prototype" else [])]
    loaded = [directory.load(e, only=names, check=False) for e in entries]
    groups = _groups(entries, loaded, model)
    widest = max(found["variables"].params[model.head]["bias"].shape[0] for found in loaded)
    for found in loaded:
        found["variables"] = _widened(found["variables"], model.head, widest)
    stacked = {name: directory.stack(entries, [found[name] for found in loaded], name) for name in names[:3]}
    if similarity == "leep":
        slim = model.with_classes(widest).resize(_counts(loaded[0]["units"]))
        scores = leep_to_all(slim, stacked["variables"], data, num_classes=model.num_classes)
    elif similarity == "prototype":
        sources = _padded([found["prototypes"] for found in loaded])
        scores = prototypes_to_all(prototypes(model, variables, data), sources)
    elif callable(similarity):
        scores = jnp.asarray(similarity(entries, data))
        if scores.shape != (len(entries),):
            raise ValueError(f"similarity gave {scores.shape} for {len(entries)} entries; it must give one number each")
    else:
        raise ValueError(f"unknown similarity {similarity!r}; choose leep, prototype or a function (entries, data)")
    index = np.asarray(similarities.nearest(scores, min(k, len(entries))))
    near = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), stacked)
    like = replace_head(variables, model)
    return in_dense_shapes(
        near["variables"],
        near["units"],
        near["saliency"],
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


def leep_to_all(model: Model, members: Variables, data: Batch, *, num_classes: int, chunk: int = 8) -> Array:
    """LEEP of every bank entry for one target task, as a single program over the stacked entries.

    Args:
        model: of the entries; slim, all of one shape.
        members: their variables, every leaf leads with `T`.
        data: the target's training examples: `x` `[N, ...]` and `y` `int[N]`.
        num_classes: of the target.
        chunk: entries at a time; it bounds the memory that activations take.

    Returns:
        `float32[T]`, higher = nearer.

    Reference: Nguyen et al., "LEEP", 2020, arXiv:2002.12462, eqs. 1 and 2.
    """
    if loops_on_host(model, members, data):
        return jnp.stack([_leep(model, v, data, num_classes=num_classes) for v in trees.unstack(members)])
    return _leep_to_all(model, members, data, num_classes=num_classes, chunk=chunk)


def _leep(model: Model, variables: Variables, data: Batch, *, num_classes: int) -> Array:
    logits, _ = evaluation.infer(model, variables, data["x"])
    return similarities.leep(jax.nn.softmax(logits), data["y"], num_classes)


@functools.partial(jax.jit, static_argnames=("model", "num_classes", "chunk"))
def _leep_to_all(model: Model, members: Variables, data: Batch, *, num_classes: int, chunk: int) -> Array:
    return jax.lax.map(lambda v: _leep(model, v, data, num_classes=num_classes), members, batch_size=chunk)


def prototypes(model: Model, variables: Variables, data: Batch) -> Array:
    """Class means of the pre-trained model's features: what an entry stores for `similarity="prototype"`.

    Args:
        model: the dense model with the task's number of classes `Y`.
        variables: the pre-trained model's; their head does not count.
        data: the task's training examples: `x` `[N, ...]` and `y` `int[N]`.

    Returns:
        `float32[Y, F]`, zeros for a class without examples. Add an entry with `{"prototypes": ...}` of its task.

    Raises:
        ValueError: for labels outside the model's classes.

    Reference: Snell et al., "Prototypical Networks for Few-shot Learning", 2017, arXiv:1703.05175, eq. 1.
    """
    _, features = evaluation.infer(model, replace_head(variables, model), data["x"])
    return similarities.prototypes(features, data["y"], model.num_classes)


@jax.jit
def prototypes_to_all(target: Array, sources: Array) -> Array:
    """Mean cosine of each of the target's class means to the closest class mean of every source task.

    Args:
        target: `[Y, F]` from `prototypes`.
        sources: `[T, Z, F]`, the prototypes of `T` source tasks; rows of zeros (padding) are left out.

    Returns:
        `float32[T]` in `[-1, 1]`, higher = nearer; see `similarity.prototype_cosine`.
    """
    return jax.vmap(lambda source: similarities.prototype_cosine(target, source))(sources)


def _check(entries: Sequence[BankEntry], model: Model, variables: Variables, data: Batch, k: int) -> None:
    if isinstance(entries, directory.Bank):
        raise ValueError("entries is a bank; pass bank.entries(it)")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, data))):
        raise ValueError("bank.neighbours reads files and runs on the host; call it outside jit, vmap and grad")
    if not isinstance(data, Mapping) or not {"x", "y"} <= data.keys():
        raise ValueError("data is not {'x': inputs [N, ...], 'y': labels int[N]}; make it so")
    if not entries:
        raise ValueError("the bank has no entries, so nobody can vote; add pruned models with bank.add first")
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; give a whole number: at least one entry must vote")
    labels.check(data["y"], model.num_classes)
    mark = directory.fingerprint(variables)
    foreign = [e.task for e in entries if e.fingerprint != mark]
    if foreign:
        raise ValueError(
            f"entries {foreign[:5]} were made from another pre-trained model: the variables' fingerprint is "
            f"{mark[:12]}, theirs {next(e.fingerprint for e in entries if e.fingerprint != mark)[:12]}; give the "
            "variables that the bank was made from, under the head they had then"
        )


def _groups(entries: Sequence[BankEntry], loaded: Sequence[dict[str, Any]], model: Model) -> tuple[Group, ...]:
    """The model's groups that the entries prune; `ValueError` where entries do not fit them or one another."""
    have = {g.name: g for g in model.groups}
    first = _counts(loaded[0]["units"])
    for entry, found in zip(entries, loaded, strict=True):
        unknown = sorted(set(found["units"]) - set(have))
        if unknown:
            raise ValueError(
                f"entry {entry.task!r} prunes groups that the model lacks: {unknown[:5]}; it has {sorted(have)[:5]}"
            )
        units_lib.check(found["units"], [have[name] for name in found["units"]])
        counts = _counts(found["units"])
        if counts != first:
            wrong = {n: (first.get(n), counts.get(n)) for n in {*first, *counts} if first.get(n) != counts.get(n)}
            raise ValueError(
                f"entries {entries[0].task!r} and {entry.task!r} keep different numbers of units, {wrong}; entries "
                "vote together if all were pruned by one ratio in the same groups"
            )
    return tuple(g for g in model.groups if g.name in first)


def _counts(units: Units) -> dict[str, int]:
    return {name: int(np.count_nonzero(kept)) for name, kept in units.items()}


def _widened(variables: Variables, head: str, classes: int) -> Variables:
    """The same model with more classes, of probability 0: LEEP is then what it was, and heads of all entries stack."""
    kernel, bias = variables.params[head]["kernel"], variables.params[head]["bias"]
    missing = classes - bias.shape[0]
    kernel = np.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, missing)])
    bias = np.concatenate([bias, np.full(missing, -np.inf, bias.dtype)])
    return Variables({**variables.params, head: {"kernel": kernel, "bias": bias}}, variables.rest)


def _padded(prototypes: Sequence[np.ndarray]) -> Array:
    """Prototypes of tasks of different numbers of classes as one array; rows of zeros are no classes."""
    classes = max(p.shape[0] for p in prototypes)
    return jnp.stack([jnp.pad(p, ((0, classes - p.shape[0]), (0, 0))) for p in prototypes])


def _without(params: PyTree, head: str) -> PyTree:
    return {name: child for name, child in params.items() if name != head}


__all__ = [
    "Neighbours",
    "SimilarityFn",
    "in_dense_shapes",
    "leep_to_all",
    "neighbours",
    "prototypes",
    "prototypes_to_all",
]
