"""Soups: the mean of many members' weights, and the methods that average members while they prune.

Sources: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482); Zimmer et al. 2023, "Sparse Model Soups"
(arXiv:2306.16788); Jaiswal et al. 2023, the instant model soup (arXiv:2306.10460), section 4.
"""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core import schedules, vote
from mvp_jax.core.types import Array, Batch, Key, Masks, Params, PyTree, Variables
from mvp_jax.methods import checks, weak_members
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining, check_smoothing
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import evaluation, population


def mean(
    members: Variables, weights: Array | None = None, *, masks: Masks | None = None, fallback: Params | None = None
) -> Variables:
    """Returns the mean of the members' weights and batch statistics.

    Args:
        members: variables of many members; every leaf leads with `K`.
        weights: `[K]`, how much each member counts; `None`: all equally.
        masks: the masks of the members, leading with `K`: every weight is averaged over the members that kept it.
            `None`: over all members.
        fallback: parameters for weights that no member kept; `None`: zeros.

    Returns:
        One model's variables. Leaves of `rest` that are not floats, such as counters, are the first member's.
    """
    floats, structure = jax.tree.flatten(members.rest)
    souped = [vote.soup(x, weights=weights) if jnp.issubdtype(x.dtype, jnp.floating) else x[0] for x in floats]
    return Variables(
        vote.soup(members.params, masks=masks, weights=weights, fallback=fallback),
        jax.tree.unflatten(structure, souped),
    )


@functools.partial(jax.jit, static_argnames=("model", "loss", "norm_examples"))
def _quality(
    model: Model,
    members: Variables,
    weights: Array,
    data: Batch,
    norm: Array,
    *,
    loss: train.Loss,
    norm_examples: int,
) -> Array:
    """Higher is better: the accuracy for the default loss, minus the loss for any other."""
    variables = evaluation.reestimate(model, mean(members, weights), norm[:norm_examples])
    judged = evaluation.evaluate(model, variables, data, loss=loss)
    quality: Array = judged["accuracy"] if loss is train.cross_entropy else -judged["loss"]
    return quality


def greedy(
    model: Model,
    members: Variables,
    valid: Batch,
    norm: Array,
    *,
    loss: train.Loss = train.cross_entropy,
    weights: Array | None = None,
    norm_examples: int = 512,
) -> Array:
    """Chooses members by the greedy recipe of model soups.

    Members are tried from the best to the worst. Each joins the soup only if the soup gets no worse on held-out
    examples: by its accuracy for the default loss, by its mean loss for any other.

    Args:
        model: static.
        members: variables of many members; every leaf leads with `K`.
        valid: the held-out examples, `{"x": [N, ...], "y": [N, ...]}`.
        norm: inputs on which batch-norm statistics are re-estimated.
        loss: the loss of each example, or of each part of an example; static.
        weights: `[K]`; members of weight 0 are left out. `None`: all take part.
        norm_examples: number of the inputs in `norm` that are used.

    Returns:
        Weights `float32[K]` for `mean`: 1 for members that were chosen, 0 for the others.

    Reference: Wortsman et al. 2022 (arXiv:2203.05482), recipe 1.
    """
    k = jax.tree.leaves(members.params)[0].shape[0]
    judge = functools.partial(_quality, model, members, data=valid, norm=norm, loss=loss, norm_examples=norm_examples)
    there = [i for i in range(k) if weights is None or float(weights[i]) > 0]
    alone = {i: float(judge(jnp.eye(k)[i])) for i in there}
    order = sorted(there, key=lambda i: -alone[i])
    chosen, best = jnp.zeros(k).at[order[0]].set(1.0), alone[order[0]]
    for i in order[1:]:
        tried = chosen.at[i].set(1.0)
        quality = float(judge(tried))
        if quality >= best:
            chosen, best = tried, quality
    return chosen


@functools.partial(jax.jit, static_argnames=("model", "loss", "steps", "batch"))
def learned(
    model: Model,
    members: Variables,
    valid: Batch,
    key: Key,
    *,
    loss: train.Loss = train.cross_entropy,
    weights: Array | None = None,
    steps: int = 50,
    learning_rate: float = 0.05,
    batch: int = 128,
) -> Array:
    """Learns how much each member counts, by gradient descent on held-out examples.

    The weights are `softmax(a)`; Adam minimises the mean loss of the soup, in evaluation mode, over `a`.

    Args:
        model: static.
        members: variables of many members; every leaf leads with `K`.
        valid: the held-out examples, `{"x": [N, ...], "y": [N, ...]}`.
        key: draws the batches.
        loss: the loss of each example, or of each part of an example; static.
        weights: `[K]`; members of weight 0 are left out. `None`: all take part.
        steps: number of Adam's steps.
        learning_rate: Adam's learning rate.
        batch: number of examples in a step.

    Returns:
        Weights `float32[K]` that add up to 1.

    Reference: Wortsman et al. 2022 (arXiv:2203.05482), appendix I, learned soup.
    """
    tx = optax.adam(learning_rate)
    n = valid["y"].shape[0]
    out = 0.0 if weights is None else jnp.where(weights > 0, 0.0, -jnp.inf)

    def soup_loss(a: Array, index: Array) -> Array:
        souped = mean(members, jax.nn.softmax(a + out))
        outputs, _ = model.apply(souped, valid["x"][index])
        return jnp.mean(loss(outputs, valid["y"][index]))

    def step(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        a, state = carry
        index = jax.random.randint(jax.random.fold_in(key, i), (min(batch, n),), 0, n)
        updates, state = tx.update(jax.grad(soup_loss)(a, index), state)
        return a + updates, state

    a = jnp.zeros(jax.tree.leaves(members.params)[0].shape[0])
    a, _ = jax.lax.fori_loop(0, steps, step, (a, tx.init(a)))
    return jax.nn.softmax(a + out)


SoupRecipe: TypeAlias = Literal["uniform", "greedy", "learned"]
"""How members are averaged: all alike, those that `greedy` chooses, or by the weights that `learned` finds."""


def blend(
    problem: SparsityProblem, training: SparsityTraining, states: train.TrainState, recipe: SoupRecipe, key: Key
) -> Variables:
    """Returns the soup of many members by a recipe.

    Args:
        problem: gives the model and the loss, and the held-out examples that `greedy` and `learned` look at.
        training: says how many examples batch-norm statistics are re-estimated on.
        states: the members' states; every leaf leads with `K`. Members that diverged do not count.
        recipe: how the members are averaged.
        key: draws the batches of `learned`.

    Raises:
        ValueError: if the recipe needs held-out examples and the problem has none.
    """
    members, who = states.variables, weak_members.weights(states)
    if recipe == "uniform":
        return mean(members, who)
    valid = _held_out(problem, recipe)
    if recipe == "greedy":
        chosen = greedy(
            problem.model,
            members,
            valid,
            problem.train["x"],
            loss=problem.loss,
            weights=who,
            norm_examples=training.norm_examples,
        )
        return mean(members, chosen)
    return mean(members, learned(problem.model, members, valid, key, loss=problem.loss, weights=who))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseSoupSettings:
    """Settings of sparse model soups: prune, retrain many copies under the same mask, average them, and repeat.

    Attributes:
        members: number of copies, `K`.
        rounds: how many times entries are pruned; each time the same fraction of those that are left.
        first: number of training steps before entries are pruned for the first time.
        steps: number of training steps of every member after each pruning.
        diversity: how members differ.
        recipe: how members are averaged.
        training: how steps are taken, and the fine-tuning of the last soup (its `steps` may be 0).
        mapping: how the members of one device are run, as `population.over` takes it.
        mesh: the devices over which members are spread; `None`: one device.
    """

    members: int = 3
    rounds: int = 3
    first: int = 100
    steps: int = 100
    diversity: weak_members.Diversity = dataclasses.field(default_factory=lambda: weak_members.Diversity(subset=1.0))
    recipe: SoupRecipe = "uniform"
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)
    mapping: population.Mapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if min(self.members, self.rounds, self.steps) < 1 or self.first < 0:
            raise ValueError(
                "members, rounds and steps must be at least 1 and first >= 0, got "
                f"{self.members}, {self.rounds}, {self.steps}, {self.first}"
            )
        if self.recipe not in ("uniform", "greedy", "learned"):
            raise ValueError(f"unknown recipe {self.recipe!r}; choose 'uniform', 'greedy' or 'learned'")


def sparse_soups(
    problem: SparsityProblem, settings: SparseSoupSettings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Makes sparse model soups; then fine-tunes the last of them.

    Args:
        problem: the model, the task and the sparsity. The recipes `greedy` and `learned` need `valid`.
        settings: how members are trained and averaged.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, a recipe without the held-out examples it needs, or label
            smoothing with a loss that takes none.
    """
    checks.check("sparse_soups", problem, SparsityProblem, settings, SparseSoupSettings)
    check_smoothing(problem, settings.diversity)
    training = settings.training
    # Streams of their own: how many there are must not matter to what is compiled.
    keys = functools.partial(jax.random.fold_in, key)
    counts = problem.counts(schedules.geometric, settings.rounds)
    if settings.recipe != "uniform":
        _held_out(problem, settings.recipe)  # refused before anything is trained
    forks = weak_members.ForkSettings(
        count=settings.members,
        steps=settings.steps,
        diversity=settings.diversity,
        mapping=settings.mapping,
        mesh=settings.mesh,
    )

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.rounds:
            # The run's moments are from before the first cut.
            fresh = api.anew(training, run, keys(settings.rounds + 1), moments=True)
            return api.finish(problem, training, fresh, keys(settings.rounds + 1))
        if r == 0:
            run = api.advance(problem, training, run, settings.first)
        run = api.cut(problem, run, api.host(counts[r]))
        members = api.fork(problem, training, run, keys(r + 1), forks, inherit=False, decay=training.decay)
        run = api.spend(run, *members.spent)
        souped = blend(problem, training, members.states, settings.recipe, jax.random.fold_in(keys(r + 1), 1))
        # Members differ at kept entries alone, so that the soup is as sparse as they are.
        return api.with_masks(run._replace(state=run.state._replace(variables=souped)), run.kept, run.state.masks)

    run = api.rounds(body, api.begin(problem, training, keys(0)), settings.rounds + 1, saved)
    return api.end(problem, training, run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstantSoupSettings:
    """Settings of the instant model soup: weak members are forked and averaged during training, and pruned at its end.

    Attributes:
        members: number of weak members, `K`.
        rounds: how many times members are forked and averaged.
        epochs: number of epochs for which the main weights train before each fork.
        weak_epochs: number of epochs for which each member trains.
        diversity: how members differ.
        inherit: whether members continue with the main optimiser's moments; otherwise they start with empty ones.
        training: how steps are taken, and the fine-tuning after the pruning. With `steps=0` and sparsity 0 the result
            is a dense soup in a single pass.
        mapping: how the members of one device are run, as `population.over` takes it.
        mesh: the devices over which members are spread; `None`: one device.
    """

    members: int = 5
    rounds: int = 5
    epochs: float = 0.2
    weak_epochs: float = 0.1
    diversity: weak_members.Diversity = dataclasses.field(default_factory=weak_members.Diversity)
    inherit: bool = True
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)
    mapping: population.Mapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if min(self.members, self.rounds) < 1 or not (self.epochs > 0 and self.weak_epochs > 0):
            raise ValueError(
                "members and rounds must be at least 1, epochs and weak_epochs positive, got "
                f"{self.members}, {self.rounds}, {self.epochs}, {self.weak_epochs}"
            )


def instant_soup(
    problem: SparsityProblem, settings: InstantSoupSettings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Makes a dense soup in one pass; then prunes once by magnitude, and fine-tunes.

    Args:
        problem: the model, the task and the sparsity.
        settings: how members are trained.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, or label smoothing with a loss that takes none.
    """
    checks.check("instant_soup", problem, SparsityProblem, settings, InstantSoupSettings)
    check_smoothing(problem, settings.diversity)
    training = settings.training
    keys = functools.partial(jax.random.fold_in, key)
    steps = training.steps_in(problem, settings.epochs)
    forks = weak_members.ForkSettings(
        count=settings.members,
        steps=training.steps_in(problem, settings.weak_epochs),
        diversity=settings.diversity,
        mapping=settings.mapping,
        mesh=settings.mesh,
    )

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.rounds:
            run = api.cut(problem, run, api.host(problem.keep()))
            return api.finish(problem, training, run, keys(settings.rounds + 1))
        run = api.advance(problem, training, run, steps)
        members = api.fork(problem, training, run, keys(r + 1), forks, inherit=settings.inherit)
        souped = mean(members.states.variables, weak_members.weights(members.states))
        return api.spend(run._replace(state=run.state._replace(variables=souped)), *members.spent)

    run = api.rounds(body, api.begin(problem, training, keys(0)), settings.rounds + 1, saved)
    return api.end(problem, training, run)


def _held_out(problem: SparsityProblem, recipe: SoupRecipe) -> Batch:
    """Returns the examples that a recipe chooses on; raises `ValueError` if there are none."""
    if problem.valid is None:
        raise ValueError(f"a {recipe} soup chooses on held-out examples, but the problem has none; pass valid=...")
    return problem.valid
