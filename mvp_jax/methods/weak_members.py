"""Weak members: many copies of one model, each trained for a few steps by settings of its own, all at once.

Instant Soup Pruning, the soups and the meta-soup are made of them.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Array, Batch, Key, Masks, Scores
from mvp_jax.methods.contract import Spent
from mvp_jax.train import population

DrawRange: TypeAlias = tuple[float, float] | None
"""`(low, high)`: each member draws a value of its own between the two; `None`: it uses the parent run's value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity:
    """How members differ, besides the order of their batches.

    A range that is `None` leaves its quantity at the parent run's value.

    Attributes:
        subset: fraction of the training examples that each member sees, in (0, 1].
        learning_rate: range of the factor by which a member's learning rate differs from the parent run's.
        law: how the factor is drawn: `log` draws it uniformly in the logarithm, `uniform` uniformly.
        weight_decay: range of the weight decay.
        label_smoothing: range of the label smoothing, in [0, 1). The problem's loss must take `smoothing`.
        dropout: range of the dropout rate, in [0, 1).
        augment: range of the fraction of examples that are augmented, in [0, 1], by the training's `augment`.
        sgd: probability that a member is trained by SGD instead of AdamW. It needs the optimiser `either`.
    """

    subset: float = 0.5
    learning_rate: DrawRange = (0.5, 2.0)
    law: Literal["log", "uniform"] = "log"
    weight_decay: DrawRange = None
    label_smoothing: DrawRange = None
    dropout: DrawRange = None
    augment: DrawRange = None
    sgd: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.subset <= 1 or not 0 <= self.sgd <= 1:
            raise ValueError(f"subset lies in (0, 1] and sgd in [0, 1], got {self.subset} and {self.sgd}")
        if self.law not in ("log", "uniform"):
            raise ValueError(f"unknown law {self.law!r}; choose 'log' or 'uniform'")
        tops = {"learning_rate": jnp.inf, "weight_decay": jnp.inf, "label_smoothing": 1, "dropout": 1, "augment": 1}
        for name, top in tops.items():
            given = getattr(self, name)
            below = name in ("label_smoothing", "dropout")  # at 1 nothing would be left to learn from
            if given is not None and not (0 <= given[0] <= given[1] <= top and not (below and given[1] == top)):
                raise ValueError(
                    f"{name} is {given}; give (low, high) with 0 <= low <= high {'<' if below else '<='} {top}"
                )
        rate = self.learning_rate
        if rate is not None and not (rate[1] > 0 and (rate[0] > 0 or self.law == "uniform")):
            raise ValueError(f"learning_rate is {rate}; factors are positive, and a logarithm has no 0")


NONE = Diversity(subset=1.0, learning_rate=None)
"""Members differ in the order of their batches alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForkSettings:
    """How many weak members there are, and how they are trained.

    Attributes:
        count: number of members, `K`.
        steps: number of training steps of each member.
        diversity: how members differ.
        mapping: how the members of one device are run, as `population.over` takes it.
        mesh: the devices over which members are spread; `None`: one device.
    """

    count: int
    steps: int
    diversity: Diversity
    mapping: population.MemberMapping = "auto"
    mesh: Mesh | None = None


class WeakMembers(NamedTuple):
    """Members after their training.

    Attributes:
        states: their training states; every leaf leads with `K`.
        examples: `int32[K, n]`, the training examples that each member was allowed to see, by number.
        metrics: `[K]` of each, means over the steps as `population.fit` returns them.
        spent: what all members together cost; it counts one collective, as many members are put together once.
    """

    states: train.TrainState
    examples: Array
    metrics: train.Metrics
    spent: Spent


@functools.partial(jax.jit, static_argnames=("diversity", "count", "examples"))
def draw(
    key: Key, learning_rate: Array, *, diversity: Diversity, count: int, examples: int
) -> tuple[train.RunSettings, Array]:
    """Draws how each member is trained.

    Args:
        key: the source of randomness.
        learning_rate: the parent run's learning rate.
        diversity: how members differ; static.
        count: number of members, `K`; static.
        examples: number of training examples; static.

    Returns:
        The members' training settings, `[K]` in every field that is set, and the examples that each member sees,
        `int32[K, n]`.
    """
    keys = jax.random.split(key, 8)

    def within(i: int, given: DrawRange, law: str = "uniform") -> Array | None:
        if given is None:
            return None
        low, high = given
        u = jax.random.uniform(keys[i], (count,))
        if law == "log":
            return jnp.exp(jnp.log(low) + u * (jnp.log(high) - jnp.log(low)))
        return low + u * (high - low)

    factor = within(0, diversity.learning_rate, diversity.law)
    rate = jnp.broadcast_to(jnp.asarray(learning_rate, jnp.float32), (count,))
    adaptive = None
    if diversity.sgd:
        adaptive = (jax.random.uniform(keys[2], (count,)) >= diversity.sgd).astype(jnp.float32)
    settings = train.RunSettings(
        learning_rate=rate if factor is None else rate * factor,
        weight_decay=within(1, diversity.weight_decay),
        adaptive=adaptive,
        label_smoothing=within(3, diversity.label_smoothing),
        dropout=within(4, diversity.dropout),
        augment=within(5, diversity.augment),
    )
    own = subset_size(diversity, examples)
    orders = jax.vmap(lambda k: jax.random.permutation(k, examples)[:own])(jax.random.split(keys[6], count))
    return settings, orders.astype(jnp.int32)


def subset_size(diversity: Diversity, examples: int) -> int:
    """Returns how many of `examples` training examples each member sees, at least one."""
    return max(1, round(diversity.subset * examples))


def fork(
    recipe: train.Recipe,
    state: train.TrainState,
    data: Batch,
    key: Key,
    settings: ForkSettings,
    *,
    learning_rate: float | Array,
) -> WeakMembers:
    """Makes `settings.count` members of one state and trains them all at once, under the state's masks.

    Args:
        recipe: what is trained and how.
        state: the state that every member starts from, with its optimiser's moments; it stays as it is.
        data: the training examples, of which each member sees a subset of its own.
        key: the source of the members' settings, subsets and batches.
        settings: how many members there are, how long they train and how they differ. Under `jax.vmap` and `jax.jit`
            its mapping and mesh do not count: all members train at once.
        learning_rate: the parent run's learning rate.

    Returns:
        The trained members.
    """
    key_draw, key_members = jax.random.split(key)
    count = settings.count
    drawn, index = draw(
        key_draw,
        jnp.float32(learning_rate),
        diversity=settings.diversity,
        count=count,
        examples=int(data["y"].shape[0]),
    )
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, data, key)))
    mesh = None if traced else settings.mesh
    states = population.create(state, jax.random.split(key_members, count), drawn, mesh=mesh)
    if traced:
        # Inside another transformation, as when a method runs for many tasks at once, no memory can be reused.
        one = functools.partial(train.fit, recipe, data=data, steps=settings.steps)
        states, metrics = jax.vmap(lambda state, index: one(state=state, index=index))(states, index)
    else:
        states, metrics = population.fit(
            recipe, states, data, settings.steps, index=index, mapping=settings.mapping, mesh=mesh
        )
        states, metrics = population.members((states, metrics), count)
    examples = count * settings.steps * min(recipe.batch, int(index.shape[1]))
    spent = Spent(count * settings.steps, examples, settings.steps, int(count > 1))
    return WeakMembers(states, index, metrics, spent)


def weights(states: train.TrainState) -> Array:
    """Returns each member's weight in votes and soups, `float32[K]`.

    It is 1 for members whose training stayed finite and 0 for the others; it is 1 for all if none stayed finite.
    """
    alive = population.voters(states)
    return jnp.where(jnp.any(alive > 0), alive, 1.0)


@functools.partial(jax.jit, static_argnames=("pattern",))
def ballots(scores: Scores, kept: Masks, keep: Any, *, pattern: Pattern) -> Masks:
    """Returns one mask per member: the `keep` entries of its own highest scores among those that are left.

    Args:
        scores: scores of the entries; every leaf leads with `K`, and higher scores are kept.
        kept: the entries that are left.
        keep: how many entries each mask keeps, as `pattern.counts` counts them; traced.
        pattern: what an entry is; static.

    Returns:
        Masks of the entries; every leaf leads with `K`.
    """
    return jax.vmap(lambda s: pattern.select(s, keep, kept))(scores)
