"""Weak members: forks of a run, each trained for a moment by a protocol of its own, all at once.

What Instant Soup Pruning, the instant model soup and the meta-soup have in common.
"""

import dataclasses
import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Array, Key, Masks, Scores
from mvp_jax.methods.sparse import api
from mvp_jax.train import population

Range: TypeAlias = tuple[float, float] | None
"""Each member draws from it; `None` leaves the matter as it is for the run that is forked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diversity:
    """In what members differ besides their batches.

    Attributes:
        subset: share of the training examples that each member sees.
        learning_rate: factors of the run's own.
        law: how the factors are drawn, `log` (uniform in the logarithm) or `uniform`.
        weight_decay: values.
        label_smoothing: values, in [0, 1).
        dropout: rates, in [0, 1).
        augment: share of the examples that are augmented, in [0, 1]; of the training's `augment`.
        sgd: the probability that a member takes SGD rather than AdamW; needs the optimiser `either`.
    """

    subset: float = 0.5
    learning_rate: Range = (0.5, 2.0)
    law: Literal["log", "uniform"] = "log"
    weight_decay: Range = None
    label_smoothing: Range = None
    dropout: Range = None
    augment: Range = None
    sgd: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.subset <= 1 or not 0 <= self.sgd <= 1:
            raise ValueError(f"subset lies in (0, 1] and sgd in [0, 1], got {self.subset} and {self.sgd}")
        if self.law not in ("log", "uniform"):
            raise ValueError(f"unknown law {self.law!r}; choose 'log' or 'uniform'")
        tops = {"learning_rate": jnp.inf, "weight_decay": jnp.inf, "label_smoothing": 1, "dropout": 1, "augment": 1}
        for name, top in tops.items():
            given = getattr(self, name)
            least_of_all = name in ("label_smoothing", "dropout")  # at 1 nothing would be left to learn from
            if given is not None and not (0 <= given[0] <= given[1] <= top and not (least_of_all and given[1] == top)):
                raise ValueError(
                    f"{name} is {given}; give (low, high) with 0 <= low <= high {'<' if least_of_all else '<='} {top}"
                )
        rate = self.learning_rate
        if rate is not None and not (rate[1] > 0 and (rate[0] > 0 or self.law == "uniform")):
            raise ValueError(f"learning_rate is {rate}; factors are positive, and a logarithm has no 0")


NONE = Diversity(subset=1.0, learning_rate=None)
"""Members differ in the order of their batches alone."""


@functools.partial(jax.jit, static_argnames=("diversity", "count", "examples"))
def draw(
    key: Key, learning_rate: Array, *, diversity: Diversity, count: int, examples: int
) -> tuple[train.Protocol, Array]:
    """Protocols `[K]` and the examples `int32[K, n]` of each member."""
    keys = jax.random.split(key, 8)

    def within(i: int, given: Range, law: str = "uniform") -> Array | None:
        if given is None:
            return None
        low, high = given
        u = jax.random.uniform(keys[i], (count,))
        if law == "log":
            return jnp.exp(jnp.log(low) + u * (jnp.log(high) - jnp.log(low)))
        return low + u * (high - low)

    factor = within(0, diversity.learning_rate, diversity.law)
    rate = jnp.broadcast_to(jnp.asarray(learning_rate, jnp.float32), (count,))
    protocol = train.Protocol(
        learning_rate=rate if factor is None else rate * factor,
        weight_decay=within(1, diversity.weight_decay),
        adaptive=(jax.random.uniform(keys[2], (count,)) >= diversity.sgd).astype(jnp.float32)
        if diversity.sgd
        else None,
        label_smoothing=within(3, diversity.label_smoothing),
        dropout=within(4, diversity.dropout),
        augment=within(5, diversity.augment),
    )
    own = max(1, round(diversity.subset * examples))
    orders = jax.vmap(lambda k: jax.random.permutation(k, examples)[:own])(jax.random.split(keys[6], count))
    return protocol, orders.astype(jnp.int32)


def fork(
    problem: api.Problem,
    training: api.Training,
    run: api.Run,
    key: Key,
    *,
    count: int,
    steps: int,
    diversity: Diversity,
    inherit: bool = True,
    decay: Literal["constant", "cosine"] = "constant",
    mapping: population.MemberMapping = "auto",
    mesh: Mesh | None = None,
) -> tuple[train.TrainState, Array, api.Spent]:
    """`count` members forked from a run, trained for `steps` at once under its mask.

    Args:
        problem: whose data they share out.
        training: the optimiser, batch, warm-up and augmentation.
        run: what is forked; it stays as it is.
        key: of this fork.
        count: `K`.
        steps: of each.
        diversity: in what they differ.
        inherit: whether they go on with the run's moments, or start with empty ones (and the warm-up again).
        decay: of their rate over the steps.
        mapping: see `population.over`.
        mesh: see `population.mesh`.

    Returns:
        The members' states, leaves lead with `K`; the examples of each, `int32[K, n]`; and what they took.
    """
    key_draw, key_members = jax.random.split(key)
    protocol, index = draw(
        key_draw, jnp.float32(training.learning_rate), diversity=diversity, count=count, examples=problem.examples
    )
    one = run.state._replace(step=jnp.zeros((), jnp.int32))
    if not inherit:
        one = one._replace(opt_state=training.tx.init(one.variables.params))
    states = population.create(one, jax.random.split(key_members, count), protocol, mesh=mesh)
    states, _ = population.fit(
        problem.model,
        states,
        problem.train,
        steps,
        tx=training.tx,
        index=index,
        batch=training.batch,
        augment=training.augment,
        decay=decay,
        warmup=0 if inherit else training.warmup,
        mapping=mapping,
        mesh=mesh,
    )
    states = population.members(states, count)
    examples = count * steps * min(training.batch, int(index.shape[1]))
    return states, index, api.Spent(count * steps, examples)


def weights(states: train.TrainState) -> Array:
    """Who counts, `float32[K]`: members whose training stayed finite; all, if none did."""
    alive = population.voters(states)
    return jnp.where(jnp.any(alive > 0), alive, 1.0)


@functools.partial(jax.jit, static_argnames=("pattern",))
def ballots(scores: Scores, kept: Masks, keep: Any, *, pattern: Pattern) -> Masks:
    """What each member keeps of what is left: `keep` entries of its own highest scores."""
    return jax.vmap(lambda s: pattern.select(s, keep, kept))(scores)
