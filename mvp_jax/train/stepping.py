"""One training step of the masked model, the state it moves, and what a member of a population has of its own.

Its names are `train`'s: `train.make_step`, `train.TrainState`, `train.RunSettings`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core import masks as masks_lib
from mvp_jax.core.types import Array, Batch, Key, Masks, PyTree, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model
from mvp_jax.train import losses
from mvp_jax.train.losses import Loss

Augment: TypeAlias = Callable[[Key, Array], Array]
"""`(key, inputs [N, ...]) -> inputs [N, ...]`."""

StepScore: TypeAlias = Literal["fisher", "activation"] | None
"""Which unit scores a training step computes besides; `None` for none."""


class RunSettings(NamedTuple):
    """What one run has of its own, as traced values; a population has an array `[K]` in each field that is set.

    A field that is `None` is left to the optimiser, the model or the loss.

    Attributes:
        learning_rate: the optimiser's learning rate.
        weight_decay: the optimiser's weight decay.
        adaptive: for the optimiser `either`: 1 uses AdamW's update, 0 SGD's.
        label_smoothing: part of the target that is spread evenly over all classes, in [0, 1).
        dropout: the dropout rate, in [0, 1).
        augment: fraction of the examples that are augmented, in [0, 1].
        steps: the state no longer changes after so many steps.
        classes: number of classes of the task; logits beyond them are disregarded, so that tasks with different numbers
            of classes share one program.
    """

    learning_rate: Array | None = None
    weight_decay: Array | None = None
    adaptive: Array | None = None
    label_smoothing: Array | None = None
    dropout: Array | None = None
    augment: Array | None = None
    steps: Array | None = None
    classes: Array | None = None


class TrainState(NamedTuple):
    """A run in progress; every leaf is an array, so it stacks, shards and saves as it is.

    Attributes:
        step: number of steps taken, int32.
        variables: of the model, the parameters masked.
        opt_state: the optimiser's state.
        masks: booleans that broadcast to the parameters, True = keep.
        key: feeds batch order, dropout and augmentation; it never changes, the step's number is folded into it.
        alive: turns False for good when a loss or a new weight is not finite; the state stays as it was before that
            step.
        settings: what this run has of its own.
    """

    step: Array
    variables: Variables
    opt_state: PyTree
    masks: Masks
    key: Key
    alive: Array
    settings: RunSettings = RunSettings()


Metrics: TypeAlias = dict[str, Any]
"""Values of a step or of many: `loss`, `accuracy`, `taken`, and `scores` where they are asked for."""

Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""One training step: `(state, {"x": inputs, "y": labels}) -> (state, metrics)`."""


def create(
    variables: Variables,
    tx: optax.GradientTransformation,
    key: Key,
    *,
    masks: Masks | None = None,
    settings: RunSettings | None = None,
) -> TrainState:
    """Returns a state at step 0, its parameters already masked.

    Args:
        variables: the variables to start from.
        tx: the optimiser.
        key: feeds batch order, dropout and augmentation.
        masks: booleans, True = keep; they stay as they are while training. `None`: all is kept.
        settings: what this run has of its own.
    """
    masks = masks_lib.ones(variables.params, ()) if masks is None else masks
    params = masks_lib.apply(variables.params, masks)
    settings = RunSettings() if settings is None else jax.tree.map(jnp.asarray, settings)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=Variables(params, variables.rest),
        opt_state=tx.init(params),
        masks=masks,
        key=key,
        alive=jnp.ones((), bool),
        settings=settings,
    )


def injected(opt_state: PyTree) -> dict[str, Any]:
    """The hyperparameters that can be set in an optimiser's state: those injected as numbers, not as schedules."""
    scheduled = getattr(opt_state, "hyperparams_states", {})
    return {name: value for name, value in getattr(opt_state, "hyperparams", {}).items() if name not in scheduled}


def _prescribed(opt_state: PyTree, settings: RunSettings) -> PyTree:
    """The optimiser's state with the learning rate and weight decay of the settings in it."""
    wanted = {n: v for n in ("learning_rate", "weight_decay", "adaptive") if (v := getattr(settings, n)) is not None}
    if not wanted:
        return opt_state
    there = injected(opt_state)
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise ValueError(
            f"the run's settings have {missing}, but the optimiser's state holds {sorted(there)} as values; use "
            "train.optimizer(...), or wrap yours in optax.inject_hyperparams"
        )
    values = {n: jnp.asarray(v, jnp.asarray(there[n]).dtype) for n, v in wanted.items()}
    return opt_state._replace(hyperparams=opt_state.hyperparams | values)


def _finite(*trees: PyTree) -> Array:
    floats = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in floats])


def make_step(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    score: StepScore = None,
    groups: tuple[Group, ...] = (),
) -> Step:
    """Builds one training step of the masked model.

    The gradient is taken at the masked parameters; the update is masked after the optimiser, so that momentum and
    weight decay cannot revive what is pruned. A state that is done or no longer alive comes back as it was.

    Args:
        model: what to train.
        loss: of each example, or of each part of an example; its mean is minimised.
        tx: any optax transformation.
        augment: applied to the inputs first.
        score: also return unit scores of the batch, from the same backward pass: `fisher` (mean over examples
            of squared gradients of per-example gates) or `activation` (mean absolute activation). In training
            mode batch normalisation couples the examples of a batch, so that `fisher` is the per-example one
            only up to that coupling.
        groups: whose units are scored.

    Returns:
        `step(state, batch) -> (state, metrics)`; the metrics are device values: `loss`, `accuracy` (`nan` where labels
        are not classes, see `train.accuracy`), `taken` (whether the state moved) and, if asked for, `scores`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key_augment, key_model = jax.random.split(jax.random.fold_in(state.key, state.step))
        settings, x, y = state.settings, batch["x"], batch["y"]
        if augment is not None:
            changed = augment(key_augment, x)
            if settings.augment is not None:
                # A stream of its own: augmentations fold small numbers into their key.
                lot = jax.random.uniform(jax.random.fold_in(key_augment, 2**31 - 1), x.shape[:1])
                changed = jnp.where(jnp.reshape(lot < settings.augment, (-1,) + (1,) * (x.ndim - 1)), changed, x)
            x = changed
        gates = {g.name: jnp.ones((x.shape[0], g.size), jnp.float32) for g in groups} if score == "fisher" else {}
        knobs = None if settings.dropout is None else {"dropout": settings.dropout}
        particular = {
            name: value
            for name, value in (("smoothing", settings.label_smoothing), ("classes", settings.classes))
            if value is not None
        }

        def objective(params: PyTree, gates: Mapping[str, Array]) -> tuple[Array, tuple[Array, PyTree, PyTree]]:
            variables = Variables(params, state.variables.rest)
            if score == "activation":
                seen = model.inspect(variables, x, train=True, key=key_model, knobs=knobs)
                logits, rest, active = seen.logits, seen.rest, {g.name: seen.activations[g.name] for g in groups}
            else:
                logits, rest = model.apply(variables, x, train=True, key=key_model, gates=gates or None, knobs=knobs)
                active = {}
            return jnp.mean(loss(logits, y, **particular)), (logits, rest, active)

        masked = masks_lib.apply(state.variables.params, state.masks)
        (value, (logits, rest, active)), (grads, gate_grads) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            masked, gates
        )
        updates, opt_state = tx.update(grads, _prescribed(state.opt_state, settings), masked)
        params = masks_lib.apply(optax.apply_updates(masked, updates), state.masks)
        finite = _finite(value, params, rest)
        going = state.alive if settings.steps is None else state.alive & (state.step < settings.steps)
        # XLA would compute this again in the program of every leaf that it decides on, which doubles what is compiled.
        taken = jax.lax.optimization_barrier(going & finite)
        if settings.classes is not None:
            logits = losses.restrict(logits, settings.classes)
        metrics: Metrics = {"loss": value, "accuracy": losses.accuracy(logits, y), "taken": taken}
        if score == "fisher":
            # The loss is a mean, so an example's own gradient is N times what came back.
            metrics["scores"] = {n: jnp.mean(jnp.square(g * x.shape[0]), 0) for n, g in gate_grads.items()}
        elif score == "activation":
            metrics["scores"] = {n: jnp.mean(a, 0) for n, a in active.items()}
        variables, opt_state = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (Variables(params, rest), opt_state),
            (state.variables, state.opt_state),
        )
        after = state._replace(
            step=state.step + taken, variables=variables, opt_state=opt_state, alive=state.alive & (finite | ~going)
        )
        return after, metrics

    return step
