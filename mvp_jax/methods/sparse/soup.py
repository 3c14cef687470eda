"""Soups: the mean of many members' weights, and the methods that are made of them.

Sources: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482); Zimmer et al. 2023, "Sparse Model Soups"
(arXiv:2306.16788); Jaiswal et al. 2023, the instant model soup (arXiv:2306.10460), section 4.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core import schedules, vote
from mvp_jax.core.types import Array, Batch, Key, Masks, Params, PyTree, Variables
from mvp_jax.methods.sparse import api, weak_members
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import evaluation, population


def mean(
    members: Variables, weights: Array | None = None, *, masks: Masks | None = None, fallback: Params | None = None
) -> Variables:
    """The uniform soup: the mean of the members' weights and batch statistics.

    Args:
        members: leaves lead with `K`.
        weights: `[K]`, equal by default.
        masks: what each member kept, see `vote.soup`.
        fallback: parameters for what nobody kept; 0 by default.

    Returns:
        One model's variables; what is no float (a counter) is the first member's.
    """
    floats, structure = jax.tree.flatten(members.rest)
    souped = [
        vote.soup(x, weights=weights) if jnp.issubdtype(x.dtype, jnp.floating) else x[0] for x in floats
    ]  # fmt: skip
    return Variables(
        vote.soup(members.params, masks=masks, weights=weights, fallback=fallback),
        jax.tree.unflatten(structure, souped),
    )


@functools.partial(jax.jit, static_argnames=("model", "norm_examples"))
def _judge(model: Model, members: Variables, weights: Array, data: Batch, norm: Array, *, norm_examples: int) -> Array:
    variables = evaluation.reestimate(model, mean(members, weights), norm[:norm_examples])
    accuracy: Array = evaluation.evaluate(model, variables, data)["accuracy"]
    return accuracy


def greedy(
    model: Model,
    members: Variables,
    valid: Batch,
    norm: Array,
    *,
    weights: Array | None = None,
    norm_examples: int = 512,
) -> Array:
    """Adds members from the best down, each only if the soup gets no worse on held-out examples.

    Args:
        model: static.
        members: leaves lead with `K`.
        valid: held-out `{"x", "y"}`.
        norm: inputs for batch statistics.
        weights: `[K]`; who has 0 is left out. Default all.
        norm_examples: how many of them.

    Returns:
        Weights `float32[K]` of 0 and 1 for `mean`.

    Reference: Wortsman et al. 2022 (arXiv:2203.05482), recipe 1.
    """
    k = jax.tree.leaves(members.params)[0].shape[0]
    judge = functools.partial(_judge, model, members, data=valid, norm=norm, norm_examples=norm_examples)
    there = [i for i in range(k) if weights is None or float(weights[i]) > 0]
    alone = {i: float(judge(jnp.eye(k)[i])) for i in there}
    order = sorted(there, key=lambda i: -alone[i])
    chosen, best = jnp.zeros(k).at[order[0]].set(1.0), alone[order[0]]
    for i in order[1:]:
        tried = chosen.at[i].set(1.0)
        accuracy = float(judge(tried))
        if accuracy >= best:
            chosen, best = tried, accuracy
    return chosen


@functools.partial(jax.jit, static_argnames=("model", "steps", "batch"))
def learned(
    model: Model,
    members: Variables,
    valid: Batch,
    key: Key,
    *,
    weights: Array | None = None,
    steps: int = 50,
    learning_rate: float = 0.05,
    batch: int = 128,
) -> Array:
    """Mixing weights by gradient descent on held-out examples.

    Minimises the loss of the soup over `softmax(a)`, in evaluation mode, with Adam.

    Args:
        model: static.
        members: leaves lead with `K`.
        valid: held-out `{"x", "y"}`.
        key: draws batches.
        weights: `[K]`; who has 0 is left out. Default all.
        steps: of Adam.
        learning_rate: of Adam.
        batch: examples a step.

    Returns:
        Weights `float32[K]` that add up to 1.

    Reference: Wortsman et al. 2022 (arXiv:2203.05482), appendix I, learned soup.
    """
    tx = optax.adam(learning_rate)
    n = valid["y"].shape[0]
    out = 0.0 if weights is None else jnp.where(weights > 0, 0.0, -jnp.inf)

    def loss(a: Array, index: Array) -> Array:
        souped = mean(members, jax.nn.softmax(a + out))
        logits, _ = model.apply(souped, valid["x"][index])
        return jnp.mean(train.cross_entropy(logits, valid["y"][index]))

    def step(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        a, state = carry
        index = jax.random.randint(jax.random.fold_in(key, i), (min(batch, n),), 0, n)
        updates, state = tx.update(jax.grad(loss)(a, index), state)
        return a + updates, state

    a = jnp.zeros(jax.tree.leaves(members.params)[0].shape[0])
    a, _ = jax.lax.fori_loop(0, steps, step, (a, tx.init(a)))
    return jax.nn.softmax(a + out)


Recipe = Literal["uniform", "greedy", "learned"]


def blend(
    problem: api.Problem, training: api.Training, states: train.TrainState, recipe: Recipe, key: Key
) -> Variables:
    """The soup of members by a recipe; those that choose look at the problem's held-out examples."""
    members, who = states.variables, weak_members.weights(states)
    if recipe == "uniform":
        return mean(members, who)
    valid = _held_out(problem, recipe)
    if recipe == "greedy":
        norm, count = problem.train["x"], training.norm_examples
        return mean(members, greedy(problem.model, members, valid, norm, weights=who, norm_examples=count))
    return mean(members, learned(problem.model, members, valid, key, weights=who))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparse:
    """Sparse model soups: prune, retrain many copies under the same mask, average, and again.

    Attributes:
        members: `K`.
        rounds: how often entries go; the same share of what remains each time.
        first: steps of training before the first cut.
        steps: of every member after each cut.
        diversity: in what members differ.
        recipe: how they are averaged.
        training: how steps are taken, and the fine-tuning of the last soup (`steps`, may be 0).
        mapping: see `population.over`.
        mesh: see `population.mesh`.
    """

    members: int = 3
    rounds: int = 3
    first: int = 100
    steps: int = 100
    diversity: weak_members.Diversity = dataclasses.field(default_factory=lambda: weak_members.Diversity(subset=1.0))
    recipe: Recipe = "uniform"
    training: api.Training = dataclasses.field(default_factory=api.Training)
    mapping: population.MemberMapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if min(self.members, self.rounds, self.steps) < 1 or self.first < 0:
            raise ValueError("members, rounds and steps must be at least 1 and first >= 0, got "
                             f"{self.members}, {self.rounds}, {self.steps}, {self.first}")  # fmt: skip
        if self.recipe not in ("uniform", "greedy", "learned"):
            raise ValueError(f"unknown recipe {self.recipe!r}; choose 'uniform', 'greedy' or 'learned'")


def sparse_soups(
    problem: api.Problem, settings: Sparse, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """Sparse model soups; then fine-tunes the last of them."""
    training = settings.training
    # Streams of their own: how many there are must not matter to what is compiled.
    keys = functools.partial(jax.random.fold_in, key)
    counts = problem.counts(schedules.geometric, settings.rounds)
    if settings.recipe != "uniform":
        _held_out(problem, settings.recipe)  # refused before anything is trained

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.rounds:
            # The run's moments are from before the first cut.
            fresh = api.anew(training, run, keys(settings.rounds + 1), moments=True)
            return api.finish(problem, training, fresh, keys(settings.rounds + 1))
        if r == 0:
            run = api.advance(problem, training, run, settings.first)
        run = api.cut(problem, run, api.host(counts[r]))
        states, _, spent = weak_members.fork(
            problem, training, run, keys(r + 1), count=settings.members, steps=settings.steps,
            diversity=settings.diversity, inherit=False, decay=training.decay, mapping=settings.mapping,
            mesh=settings.mesh,
        )  # fmt: skip
        run = api.spend(run, *spent)
        souped = blend(problem, training, states, settings.recipe, jax.random.fold_in(keys(r + 1), 1))
        # Members differ at kept entries alone, so that the soup is as sparse as they are.
        return api.with_masks(
            run._replace(state=run.state._replace(variables=souped)), run.kept, run.state.masks
        )  # fmt: skip

    run = api.rounds(body, api.begin(problem, training, keys(0)), settings.rounds + 1, saved)
    return api.end(problem, training, run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instant:
    """The instant model soup: weak members forked and averaged on the way, nothing pruned until the end.

    Attributes:
        members: `K`.
        rounds: forks.
        epochs: of the main weights before each.
        weak_epochs: of each member.
        diversity: in what members differ.
        inherit: whether members go on with the main optimiser's moments.
        training: how steps are taken, and the fine-tuning after the cut (none, where nothing is to be pruned, is a soup
            in a single pass: `steps=0`).
        mapping: see `population.over`.
        mesh: see `population.mesh`.
    """

    members: int = 5
    rounds: int = 5
    epochs: float = 0.2
    weak_epochs: float = 0.1
    diversity: weak_members.Diversity = dataclasses.field(default_factory=weak_members.Diversity)
    inherit: bool = True
    training: api.Training = dataclasses.field(default_factory=api.Training)
    mapping: population.MemberMapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if min(self.members, self.rounds) < 1 or not (self.epochs > 0 and self.weak_epochs > 0):
            raise ValueError("members and rounds must be at least 1, epochs and weak_epochs positive, got "
                             f"{self.members}, {self.rounds}, {self.epochs}, {self.weak_epochs}")  # fmt: skip


def instant_soup(
    problem: api.Problem, settings: Instant, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """A dense soup in one pass; then one magnitude step to the sparsity, if there is one, and fine-tuning."""
    training = settings.training
    keys = functools.partial(jax.random.fold_in, key)
    steps, weak_steps = (training.steps_in(problem, e) for e in (settings.epochs, settings.weak_epochs))

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.rounds:
            return api.finish(
                problem, training, api.cut(problem, run, api.host(problem.keep())), keys(settings.rounds + 1)
            )
        run = api.advance(problem, training, run, steps)
        states, _, spent = weak_members.fork(
            problem, training, run, keys(r + 1), count=settings.members, steps=weak_steps,
            diversity=settings.diversity, inherit=settings.inherit, mapping=settings.mapping, mesh=settings.mesh,
        )  # fmt: skip
        souped = mean(states.variables, weak_members.weights(states))
        return api.spend(run._replace(state=run.state._replace(variables=souped)), *spent)

    run = api.rounds(body, api.begin(problem, training, keys(0)), settings.rounds + 1, saved)
    return api.end(problem, training, run)


def _held_out(problem: api.Problem, recipe: Recipe) -> Batch:
    """The examples that a recipe chooses on; raises `ValueError` if there are none."""
    if problem.valid is None:
        raise ValueError(f"a {recipe} soup chooses on held-out examples, but the problem has none; pass valid=...")
    return problem.valid
