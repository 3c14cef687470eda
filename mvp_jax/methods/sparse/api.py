"""The steps that methods for a sparsity are made of.

A `SparsityProblem` goes in, a `Pruned` model comes out. Between them a `Run` is trained under a mask (`advance`), loses
entries (`cut`), forks or rewinds, in `rounds` that are saved as they end, so that a killed run continues. Every step
is compiled once: counts, learning rates, masks and keys are traced.

How long pruning goes on is a method's own setting; then all methods fine-tune for `SparsityTraining.steps` steps under
the final mask.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax import saliency, train
from mvp_jax.core import masks, patterns, prune
from mvp_jax.core.patterns import How, Pattern
from mvp_jax.core.types import Array, Batch, Key, Masks, Params, PyTree, Scores, Variables
from mvp_jax.methods import weak_members
from mvp_jax.methods.contract import Pruned, Spent
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import evaluation


class Run(NamedTuple):
    """A method in progress; a pytree, so it is saved and restored as it is.

    Attributes:
        state: what is trained; its masks follow `kept`.
        kept: the entries that are left.
        spent: the cost so far.
        more: what else a method carries from round to round.
    """

    state: train.TrainState
    kept: Masks
    spent: Spent
    more: PyTree = ()


def begin(problem: SparsityProblem, training: SparsityTraining, key: Key, more: PyTree = ()) -> Run:
    """Returns a run at its start: nothing pruned, nothing trained."""
    kept = problem.whole()
    whole = problem.pattern.masks(kept, problem.variables.params, problem.prunable)
    variables = jax.tree.map(jnp.asarray, problem.variables)
    return Run(train.create(variables, training.tx, key, masks=whole), kept, Spent(0, 0, 0), more)


def recipe(
    problem: SparsityProblem,
    training: SparsityTraining,
    *,
    decay: Literal["constant", "cosine"] = "constant",
    warmup: int | None = None,
) -> train.Recipe:
    """Returns the recipe by which a problem's model is trained.

    Args:
        problem: gives the model and the loss.
        training: gives the optimiser, the batch size and the augmentation.
        decay: how the learning rate falls.
        warmup: number of steps over which the learning rate rises; `None`: the training's own.
    """
    return train.Recipe(
        model=problem.model,
        tx=training.tx,
        batch=training.batch,
        loss=problem.loss,
        augment=training.augment,
        decay=decay,
        warmup=training.warmup if warmup is None else warmup,
    )


def advance(
    problem: SparsityProblem,
    training: SparsityTraining,
    run: Run,
    steps: int,
    *,
    last: bool = False,
    total: int | None = None,
) -> Run:
    """Trains a run for `steps` steps under its mask.

    Args:
        problem: gives the model, the loss and the training examples.
        training: how steps are taken.
        run: what is trained.
        steps: number of steps.
        last: whether the learning rate decays as `training.decay` says; otherwise it is constant.
        total: number of steps over which it decays; `None`: `steps`.

    Returns:
        The run after the steps, with its cost counters increased.
    """
    if not steps:
        return run
    how = recipe(problem, training, decay=training.decay if last else "constant")
    state, every = run.state, steps if training.watch is None else training.watch_every
    # A state knows its step and its batches follow from it, so that training in parts is the same training.
    for done in range(0, steps, every):
        count = min(every, steps - done)
        state, metrics = train.fit(
            how,
            state,
            problem.train,
            count,
            learning_rate=training.learning_rate,
            total=steps if total is None else total,
        )
        if training.watch is not None:
            training.watch(state, metrics)
    return spend(run._replace(state=state), steps, steps * min(training.batch, problem.examples))


def fork(
    problem: SparsityProblem,
    training: SparsityTraining,
    run: Run,
    key: Key,
    settings: weak_members.ForkSettings,
    *,
    inherit: bool = True,
    decay: Literal["constant", "cosine"] = "constant",
) -> weak_members.WeakMembers:
    """Makes weak members of a run and trains them all at once, under the run's mask.

    Args:
        problem: gives the model, the loss and the training examples.
        training: the optimiser, batch size, warm-up and augmentation of the members.
        run: what the members start from; it stays as it is.
        key: the source of the members' settings, subsets and batches.
        settings: how many members there are, how long they train and how they differ.
        inherit: whether members continue with the run's optimiser moments; otherwise they start with empty moments and
            a new warm-up.
        decay: how the members' learning rate falls over their steps.

    Returns:
        The trained members, with what they cost.
    """
    state = run.state._replace(step=jnp.zeros((), jnp.int32))
    if not inherit:
        state = state._replace(opt_state=training.tx.init(state.variables.params))
    how = recipe(problem, training, decay=decay, warmup=0 if inherit else None)
    return weak_members.fork(how, state, problem.train, key, settings, learning_rate=training.learning_rate)


def spend(run: Run, steps: int, examples: int, serial_steps: int | None = None, collectives: int = 0) -> Run:
    """Returns `run` with its cost counters increased, see `contract.Spent`.

    Args:
        run: the run.
        steps: optimiser steps of all members.
        examples: examples that passed forward and backward.
        serial_steps: optimiser steps that followed one another; `None`: all of them.
        collectives: how often what all members have was put together.
    """
    serial = steps if serial_steps is None else serial_steps
    return run._replace(spent=run.spent.plus(Spent(steps, examples, serial, collectives)))


def anew(training: SparsityTraining, run: Run, key: Key, *, moments: bool = False) -> Run:
    """Returns `run` at step 0 with its weights as they are, another stream of batches, and empty moments if asked."""
    state = run.state._replace(step=jnp.zeros((), jnp.int32), key=key)
    if moments:
        state = state._replace(opt_state=training.tx.init(state.variables.params))
    return run._replace(state=state)


@functools.partial(jax.jit, static_argnames=("pattern", "how"))
def _select(
    params: Params, kept: Masks, values: PyTree, keep: PyTree, *, pattern: Pattern, how: How
) -> tuple[Masks, Masks]:
    chosen = pattern.select(pattern.entries(values, kept, how), keep, kept)
    return chosen, pattern.masks(chosen, params, kept)


def cut(problem: SparsityProblem, run: Run, keep: PyTree, values: PyTree | None = None, how: How = "l2") -> Run:
    """Keeps the best of the entries that are left, and masks the weights.

    Args:
        problem: its pattern says what an entry is.
        run: the run whose entries are pruned.
        keep: how many entries stay, as `SparsityProblem.keep` counts them; traced.
        values: numbers in the parameters' shapes that are compared; `None`: the weights, so that magnitudes count.
        how: how the numbers of an entry become one, see `patterns.How`.

    Returns:
        The run with fewer entries.
    """
    params = run.state.variables.params
    values = params if values is None else values
    kept, new = _select(params, run.kept, values, keep, pattern=problem.pattern, how=how)
    return with_masks(run, kept, new)


def with_masks(run: Run, kept: Masks, new: Masks) -> Run:
    """Returns `run` with other entries kept and the weights masked by `new`, the masks of these entries."""
    params, rest = run.state.variables
    state = run.state._replace(variables=Variables(masks.apply(params, new), rest), masks=new)
    return run._replace(state=state, kept=kept)


def forget(training: SparsityTraining, run: Run) -> Run:
    """Returns `run` with the optimiser's moments of pruned weights set to zero.

    A weight that grows again then starts without momentum.
    """

    def clear(leaf: Array, mask: Array) -> Array:
        return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))

    opt_state = optax.tree_utils.tree_map_params(training.tx, clear, run.state.opt_state, run.state.masks)
    return run._replace(state=run.state._replace(opt_state=opt_state))


def rounds(
    body: Callable[[int, Run], Run],
    run: Run,
    until: int | Callable[[int, Run], bool],
    saved: checkpoint.Checkpoints | None = None,
) -> Run:
    """Runs one round after the other, from the first, or after the last that was saved.

    Args:
        body: `(number of the round, run) -> run`; rounds count from 0.
        run: the run before the first round.
        until: the number of rounds, or a function `(number of the next round, run) -> bool` that says whether to stop.
        saved: where the run is saved after each round; `None`: nowhere.

    Returns:
        The run after the last round.
    """
    first = 0
    if saved is not None and (latest := saved.latest()) is not None:
        run, first = saved.restore(run, step=latest), latest
    for r in itertools.count(first):
        if r >= until if isinstance(until, int) else until(r, run):
            return run
        run = body(r, run)
        if saved is not None:
            saved.save(r + 1, run)
    raise AssertionError("unreachable")


def finish(problem: SparsityProblem, training: SparsityTraining, run: Run, key: Key) -> Run:
    """Returns the run after the fine-tuning under the final mask that ends every method."""
    return advance(problem, training, anew(training, run, key), training.steps, last=True)


def end(problem: SparsityProblem, training: SparsityTraining, run: Run) -> Pruned:
    """Returns the pruned model, with batch-norm statistics re-estimated for its final weights."""
    variables = evaluation.reestimate(problem.model, run.state.variables, problem.train["x"][: training.norm_examples])
    kept = run.kept if isinstance(problem.pattern, patterns.WholeUnits) else {}
    return Pruned(variables, run.state.masks, kept, run.spent, run.state.alive)


def remaining(kept: Masks, scope: Literal["leaf", "tree"]) -> PyTree:
    """Returns how many entries are left, as `SparsityProblem.keep` counts them; waits for the device.

    Args:
        kept: the entries that are left.
        scope: `tree` counts over all leaves together, `leaf` counts in each leaf.
    """
    counts = jax.tree.map(int, jax.device_get(jax.tree.map(lambda m: jnp.sum(m, dtype=jnp.int32), kept)))
    return sum(jax.tree.leaves(counts)) if scope == "tree" else counts


def fewer(counts: PyTree, sparsity: float) -> PyTree:
    """Returns how many entries stay when the fraction `sparsity` of those that are left is removed."""
    return jax.tree.map(lambda n: prune.keep_count(n, sparsity), counts)


@functools.partial(jax.jit, static_argnames=("model", "loss", "training"))
def gradients(
    model: Model,
    variables: Variables,
    data: Batch,
    *,
    loss: train.Loss = train.cross_entropy,
    training: bool = False,
) -> PyTree:
    """Returns the gradient of the mean loss by the parameters.

    Args:
        model: static.
        variables: where the gradient is taken.
        data: the examples, `{"x": [N, ...], "y": [N, ...]}`.
        loss: the loss of each example, or of each part of an example; static.
        training: whether the model is applied in training mode (without dropout); otherwise in evaluation mode.

    Returns:
        A tree like `variables.params`.
    """
    extra = {"train": True, "key": jax.random.key(0), "knobs": {"dropout": jnp.zeros(())}} if training else {}

    def mean_loss(params: Params) -> Array:
        outputs, _ = model.apply(Variables(params, variables.rest), data["x"], **extra)
        return jnp.mean(loss(outputs, data["y"]))

    return jax.grad(mean_loss)(variables.params)


def magnitudes(problem: SparsityProblem, params: Params) -> Scores:
    """Returns the magnitude of every entry, its l2 norm; for many members, `jax.vmap` it."""
    return problem.pattern.entries(params, problem.prunable, "l2")


def sample(problem: SparsityProblem, key: Key, count: int) -> Batch:
    """Returns at most `count` training examples, drawn without replacement."""
    index = jax.random.permutation(key, problem.examples)[: min(count, problem.examples)]
    return {"x": problem.train["x"][index], "y": problem.train["y"][index]}


def noise(key: Key, params: Params) -> PyTree:
    """Returns uniform noise in [0, 1) in the parameters' shapes."""
    return saliency.random(key, params)


def host(values: PyTree) -> PyTree:
    """Returns counts as NumPy int32, so that a function compiled for one count serves them all."""
    return jax.tree.map(np.int32, values)
