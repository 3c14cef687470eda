"""How near the entries of a bank are to a new task, read and computed a chunk at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.bank import directory, manifest, stacking
from mvp_jax.bank.directory import BankEntry
from mvp_jax.core import labels, trees
from mvp_jax.core import similarity as similarities
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Batch, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import evaluation
from mvp_jax.train.fitting import loops_on_host

EntrySimilarity: TypeAlias = Literal["leep", "logme", "press", "prototype"]
"""The names of the similarities by which entries are ranked; `similarity_to_all` and `prototypes_to_all` say how."""

SimilarityFn: TypeAlias = Callable[[Sequence[BankEntry], Batch], Array]
"""`(entries, data) -> float[T]`: how similar each of `T` entries is to the task that `data` shows, higher = nearer."""

_OF_MODELS = ("leep", "logme", "press")
_NORM_EXAMPLES = 512  # as `Training.norm_examples`


def similarities_to(
    entries: Sequence[BankEntry],
    model: Model,
    variables: Variables,
    data: Batch,
    *,
    similarity: EntrySimilarity | SimilarityFn = "leep",
    chunk: int = 64,
) -> Array:
    """How similar every entry of a bank is to a new task.

    Entries are read and ranked `chunk` at a time by one compiled program, so that memory does not grow with the bank.

    Args:
        entries: from `bank.entries`, `T` of them; see `neighbours`.
        model: the dense model with the new task's number of classes.
        variables: those of the pre-trained model from which the entries were made, under the head they had then.
        data: the new task's training examples: `x` `[N, ...]` and `y` `int[N]`, labels from 0.
        similarity: `leep`, `logme`, `press`, `prototype` or a function, as in `neighbours`. A function is given all
            entries at once and reads what it needs.
        chunk: how many entries are in memory at a time.

    Returns:
        `float32[T]`, higher = nearer, in the order of `entries`.

    Raises:
        ValueError: as `neighbours` does.
    """
    check(entries, model, variables, data)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk is {chunk!r}; give the number of entries that are in memory at a time, at least 1")
    if callable(similarity):
        scores = jnp.asarray(similarity(entries, data))
        if scores.shape != (len(entries),):
            raise ValueError(f"similarity gave {scores.shape} for {len(entries)} entries; it must give one number each")
        return scores
    if similarity == "prototype":
        return _by_prototypes(entries, model, prototypes(model, variables, data), chunk)
    if similarity in _OF_MODELS:
        return _by_models(entries, model, data, chunk, similarity)
    raise ValueError(
        f"unknown similarity {similarity!r}; choose one of {get_args(EntrySimilarity)} or a function (entries, data)"
    )


def _by_models(entries: Sequence[BankEntry], model: Model, data: Batch, chunk: int, by: str) -> Array:
    widest, parts = max(len(e.classes) for e in entries), []
    for part, found in _chunks(entries, model, "variables", chunk):
        heads = [f["variables"].params[model.head]["bias"].shape[0] for f in found]
        # One width for all chunks, so that they share a program; an entry may have more outputs than it names classes.
        widest = max(widest, *heads)
        members = [widened(f["variables"], model.head, widest) for f in found]
        slim = model.with_classes(widest).resize(counts(found[0]["units"]))
        stacked = stacking.stack(part, members, "variables")
        near = similarity_to_all(slim, stacked, data, num_classes=model.num_classes, by=by)
        parts.append(np.asarray(near))
    return jnp.asarray(np.concatenate(parts)[: len(entries)])


def _by_prototypes(entries: Sequence[BankEntry], model: Model, target: Array, chunk: int) -> Array:
    widest, parts = max(len(e.classes) for e in entries), []
    for _, found in _chunks(entries, model, "prototypes", chunk):
        widest = max(widest, *(f["prototypes"].shape[0] for f in found))
        # Rows of zeros are no classes.
        sources = [np.pad(f["prototypes"], ((0, widest - len(f["prototypes"])), (0, 0))) for f in found]
        parts.append(np.asarray(prototypes_to_all(target, jnp.asarray(np.stack(sources)))))
    return jnp.asarray(np.concatenate(parts)[: len(entries)])


def _chunks(
    entries: Sequence[BankEntry], model: Model, name: str, chunk: int
) -> Iterator[tuple[list[BankEntry], list[dict[str, Any]]]]:
    """Yields chunks of entries, all of one size, with their units and the arrays of a name.

    A smaller last chunk would compile anew, so it is filled up; the surplus is at its end.
    """
    size, first = min(chunk, len(entries)), None
    for start in range(0, len(entries), size):
        part = list(entries[start : start + size])
        found = read(part, [name, "units"])
        first = first or (entries[0], found[0]["units"])
        groups(part, found, model, first)
        short = size - len(part)
        yield part + part[:1] * short, found + found[:1] * short


def read(entries: Sequence[BankEntry], names: Sequence[str]) -> list[dict[str, Any]]:
    """The arrays of some names of each entry, without comparing checksums."""

    def one(entry: BankEntry) -> dict[str, Any]:
        return directory.load(entry, only=names, check=False)

    return directory.together(one, entries, entries[0].path)


def similarity_to_all(
    model: Model, members: Variables, data: Batch, *, num_classes: int, by: str = "leep", chunk: int = 8
) -> Array:
    """How near every bank entry is to one target task, as a single program over the stacked entries.

    Args:
        model: of the entries; slim, all of one shape.
        members: their variables, every leaf leads with `T`.
        data: the target's training examples: `x` `[N, ...]` and `y` `int[N]`.
        num_classes: of the target.
        by: `leep`: LEEP of the entry's predictions for `data`; `logme`: the evidence of linear regressions from the
            entry's features to the target's labels; `press`: minus the leave-one-out error of ridge regressions between
            these. Features are taken under batch statistics that are re-estimated on `data`.
        chunk: entries at a time; it bounds the memory that activations take.

    Returns:
        `float32[T]`, higher = nearer.

    Raises:
        ValueError: for an unknown value of `by`.

    Reference: Nguyen et al., "LEEP", 2020, arXiv:2002.12462, eqs. 1 and 2; You et al., "LogME", 2021,
    arXiv:2102.11005; Allen, Technometrics 16, 1974 (PRESS).
    """
    if by not in _OF_MODELS:
        raise ValueError(f"unknown similarity {by!r}; choose one of {_OF_MODELS}")
    one = _Nearness(model, num_classes, by)
    if loops_on_host(model, members, data):
        return jnp.stack([one(v, data) for v in trees.unstack(members)])
    return _similarity_to_all(members, data, one=one, chunk=chunk)


@dataclasses.dataclass(frozen=True)
class _Nearness:
    """How near one entry is to a task; instances compare by value, so that equal work reuses its compiled program."""

    model: Model
    num_classes: int
    by: str

    def __call__(self, variables: Variables, data: Batch) -> Array:
        if self.by == "leep":
            logits, _ = evaluation.infer(self.model, variables, data["x"])
            return similarities.leep(jax.nn.softmax(logits), data["y"], self.num_classes)
        fitting = evaluation.reestimate(self.model, variables, data["x"][:_NORM_EXAMPLES])
        _, features = evaluation.infer(self.model, fitting, data["x"])
        score = similarities.press if self.by == "press" else similarities.logme
        return score(features, data["y"], self.num_classes)


@functools.partial(jax.jit, static_argnames=("one", "chunk"))
def _similarity_to_all(members: Variables, data: Batch, *, one: _Nearness, chunk: int) -> Array:
    return jax.lax.map(lambda v: one(v, data), members, batch_size=chunk)


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


def check(entries: Sequence[BankEntry], model: Model, variables: Variables, data: Batch) -> None:
    """Raises `ValueError` for what cannot be ranked: no entries, labels outside the classes, another model."""
    if isinstance(entries, manifest.Bank):
        raise ValueError("entries is a bank; pass bank.entries(it)")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, data))):
        raise ValueError("bank.neighbours reads files and runs on the host; call it outside jit, vmap and grad")
    if not isinstance(data, Mapping) or not {"x", "y"} <= data.keys():
        raise ValueError("data is not {'x': inputs [N, ...], 'y': labels int[N]}; make it so")
    if not entries:
        raise ValueError("the bank has no entries, so nobody can vote; add pruned models with bank.add first")
    labels.check(data["y"], model.num_classes)
    mark = manifest.fingerprint(variables)
    foreign = [e.task for e in entries if e.fingerprint != mark]
    if foreign:
        raise ValueError(
            f"entries {foreign[:5]} were made from another pre-trained model: the variables' fingerprint is "
            f"{mark[:12]}, theirs {next(e.fingerprint for e in entries if e.fingerprint != mark)[:12]}; give the "
            "variables that the bank was made from, under the head they had then"
        )


def groups(
    entries: Sequence[BankEntry], found: Sequence[Mapping[str, Any]], model: Model, first: tuple[BankEntry, Units]
) -> tuple[Group, ...]:
    """The model's groups that entries prune; `ValueError` where entries do not fit them or the first entry.

    Args:
        entries: some entries.
        found: their arrays, `units` among them.
        model: the dense model.
        first: an entry and its units, with which all must agree in the number of units that each group keeps.
    """
    have = {g.name: g for g in model.groups}
    wanted = counts(first[1])
    for entry, arrays in zip(entries, found, strict=True):
        kept = arrays["units"]
        unknown = sorted(set(kept) - set(have))
        if unknown:
            raise ValueError(
                f"entry {entry.task!r} prunes groups that the model lacks: {unknown[:5]}; it has {sorted(have)[:5]}"
            )
        units_lib.check(kept, [have[name] for name in kept])
        own = counts(kept)
        if own != wanted:
            wrong = {n: (wanted.get(n), own.get(n)) for n in {*wanted, *own} if wanted.get(n) != own.get(n)}
            raise ValueError(
                f"entries {first[0].task!r} and {entry.task!r} keep different numbers of units, {wrong}; entries "
                "vote together if all were pruned by one ratio in the same groups"
            )
    return tuple(g for g in model.groups if g.name in wanted)


def counts(units: Units) -> dict[str, int]:
    """The number of units that each group keeps."""
    return {name: int(np.count_nonzero(kept)) for name, kept in units.items()}


def widened(variables: Variables, head: str, classes: int) -> Variables:
    """The same model with more classes, of probability 0: LEEP is then what it was, and heads of all entries stack."""
    kernel, bias = variables.params[head]["kernel"], variables.params[head]["bias"]
    missing = classes - bias.shape[0]
    kernel = np.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, missing)])
    bias = np.concatenate([bias, np.full(missing, -np.inf, bias.dtype)])
    return Variables({**variables.params, head: {"kernel": kernel, "bias": bias}}, variables.rest)
