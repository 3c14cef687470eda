"""The training loop: batches, the learning rate, many masked steps as one compiled program.

Everything is a pure function of its arguments. The number of steps, the learning rate, masks and keys are traced: one
compilation serves every budget, rate, sparsity and seed. All functions work under `jax.vmap` over members; what a
member has of its own beside data and key is its `RunSettings`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core.types import Array, Batch, Key, PyTree
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping
from mvp_jax.train import learning_rates, losses, stepping
from mvp_jax.train.losses import Loss
from mvp_jax.train.stepping import Augment, Metrics, StepScore, TrainState

Prepare: TypeAlias = Callable[[Key, Batch], Batch]
"""`(key, {"x": [N, ...], "y": [N, ...]}) -> {"x": ..., "y": ...}`: what is done to inputs and labels of a batch
together before a step, such as mixing images and their labels."""


_BATCHES = 2**31 - 1
"""What is folded into a run's key for the order of its examples."""


def batch_indices(key: Key, step: Array, examples: int, batch: int) -> Array:
    """Returns which examples a step sees: `int32[min(batch, examples)]`.

    Every epoch is a permutation of the examples, of which a remainder smaller than a batch is left out. The result
    depends on key and step alone, so that a resumed run sees what an uninterrupted one does.

    Args:
        key: of all steps.
        step: number of the step, from 0; may be traced.
        examples: number of examples.
        batch: examples in a step.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> sorted(int(i) for s in range(2) for i in batch_indices(key, s, 6, 3))
    [0, 1, 2, 3, 4, 5]
    """
    batch = min(batch, examples)
    per_epoch = examples // batch
    order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), examples)
    return jax.lax.dynamic_slice(order, ((step % per_epoch) * batch,), (batch,))


def next_batch(state: TrainState, examples: int, batch: int) -> Array:
    """Returns which examples a run sees in its next step: `int32[min(batch, examples)]`, from its key and step alone.

    For data that do not fit on the device: read these examples on the host, and hand them over as batches (see `fit`
    and `population.advance`).
    """
    return batch_indices(jax.random.fold_in(state.key, _BATCHES), state.step, examples, batch)


def _batch_of(batch: int, key: Key, step: Array, data: Batch, index: Array | None) -> Batch:
    """The batch of the run with this key in this step, out of data that lies on the device."""
    own = data["y"].shape[0] if index is None else index.shape[0]
    chosen = batch_indices(jax.random.fold_in(key, _BATCHES), step, own, batch)
    chosen = chosen if index is None else index[chosen]
    return jax.tree.map(lambda leaf: leaf[chosen], data)


def loops_on_host(model: Model, *trees: PyTree) -> bool:
    """Returns whether a loop around this model's convolutions should be Python's rather than XLA's.

    XLA's CPU back end runs a convolution inside a compiled loop on one thread of a slow fallback, 20 to 50 times
    slower than outside; a dispatch per iteration costs next to nothing beside that. Elsewhere, for `conv="im2col"`,
    for models without convolutions and for traced arguments the loop is compiled.
    """
    native = getattr(model.config, "conv", None) == "native" and jax.default_backend() == "cpu"
    return native and not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained: everything that is static. Equal recipes share compiled programs.

    Attributes:
        model: what to train.
        tx: any optax transformation. If its learning rate is a value of its state, as in those of `train.optimizer` and
            `optax.inject_hyperparams`, that rate is set in every step; any other transformation keeps its own rate or
            schedule.
        batch: examples in a step; all examples if there are fewer. Batches that come from an iterator have their own
            size.
        loss: see `Loss`; its mean is minimised.
        prepare: what is done first to inputs and labels of a batch, see `Prepare`; give the same object every
            time, or one that compares by value.
        augment: applied to the inputs of each batch after that.
        decay: `cosine` lets the learning rate fall to 0 over `total` steps (see `fit`), `constant` does not.
        warmup: number of steps over which the learning rate rises linearly, counted from step 0 of the state; see
            `learning_rates.at`.
        score: unit scores to compute besides, see `make_step`.
        groups: the groups whose units are scored.
    """

    model: Model
    tx: optax.GradientTransformation
    batch: int = 64
    loss: Loss = losses.cross_entropy
    prepare: Prepare | None = None
    augment: Augment | None = None
    decay: learning_rates.Decay = "constant"
    warmup: int = 0
    score: StepScore = None
    groups: tuple[Group, ...] = ()

    def blank(self) -> Metrics:
        """Returns the sums of the metrics over no steps: zeros."""
        sums: Metrics = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(()), "taken": jnp.zeros(())}
        if self.score:
            sums["scores"] = {g.name: jnp.zeros(g.size) for g in self.groups}
        return sums

    def rate(self, state: TrainState, total: Array) -> Array | None:
        """Returns the learning rate of the state's next step, or `None` if the optimiser's own counts."""
        highest = state.settings.learning_rate
        if highest is None or (self.decay == "constant" and not self.warmup):
            return highest
        return learning_rates.at(state.step, highest, steps=total, warmup=self.warmup, decay=self.decay)

    def step_on(self, state: TrainState, sums: Metrics, batch: Batch, total: Array) -> tuple[TrainState, Metrics]:
        """Takes one step on a batch; returns the state and the sums of the metrics with this step's added."""
        settings = state.settings
        if self.prepare is not None:
            # A stream of its own: `make_step` folds the step's number into the state's key.
            key = jax.random.fold_in(jax.random.fold_in(state.key, 2**31 - 2), state.step)
            batch = self.prepare(key, batch)
        state = state._replace(settings=settings._replace(learning_rate=self.rate(state, total)))
        one = stepping.make_step(
            self.model, self.loss, self.tx, augment=self.augment, score=self.score, groups=self.groups
        )
        state, metrics = one(state, mapping.split_batch(batch))
        sums = jax.tree.map(lambda s, m: s + jnp.where(metrics["taken"], m, 0.0), sums, metrics)
        return state._replace(settings=settings), sums

    def step(
        self, state: TrainState, sums: Metrics, data: Batch, index: Array | None, total: Array
    ) -> tuple[TrainState, Metrics]:
        """Takes one step on a batch of the data that lies on the device, see `step_on`."""
        return self.step_on(state, sums, _batch_of(self.batch, state.key, state.step, data, index), total)

    def steps(
        self, state: TrainState, sums: Metrics, data: Batch, index: Array | None, count: Array, total: Array
    ) -> tuple[TrainState, Metrics]:
        """Takes `count` steps, or as many as the run's settings leave, as one loop."""
        if state.settings.steps is not None:
            # Under a mapping that takes members in turn, one that is done costs nothing more.
            count = jnp.clip(state.settings.steps - state.step, 0, count)

        def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            return self.step(*carry, data, index, total)

        return jax.lax.fori_loop(0, count, body, (state, sums))


_pick_batch = jax.jit(_batch_of, static_argnums=0)
_one_batch = jax.jit(Recipe.step_on, static_argnums=0)
_many_steps = jax.jit(Recipe.steps, static_argnums=0)


@jax.jit
def means(sums: Metrics) -> Metrics:
    """Returns the means of the metrics over the steps taken, and the number of these steps as `taken`."""
    return jax.tree.map(lambda s: s / jnp.maximum(sums["taken"], 1), sums) | {"taken": sums["taken"]}


def fit(
    recipe: Recipe,
    state: TrainState,
    data: Batch | Iterator[Batch],
    steps: int | Array,
    *,
    learning_rate: float | Array | None = None,
    total: int | Array | None = None,
    index: Array | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains for `steps` steps: as one compiled loop on data that lies on the device, or on batches as they come.

    Args:
        recipe: what is trained and how; static.
        state: from `create`, or from a former call.
        data: `{"x": [N, ...], "y": [N, ...]}`, of which each step takes a batch; labels as the recipe's loss takes
            them, `int32[N]` by default. Or an iterator of such batches, one for each step.
        steps: number of steps; traced, but for an iterator. The run's settings may allow fewer.
        learning_rate: traced; `None`: the rate of the run's settings, or if they have none the optimiser's own.
        total: number of steps over which the rate decays, counted from step 0 of the state; `None`: the steps of the
            run's settings, or if they have none `steps`.
        index: `int32[n]`, the examples of the data that this run may see; `None`: all.

    Returns:
        The state after the steps, and means over the steps taken: `loss`, `accuracy` (`nan` where labels are not
        classes, see `train.accuracy`) and `scores` if the recipe asks for them; `taken` is the number of these steps.
        Nothing waits for the device.

    Raises:
        ValueError: for a learning rate that the optimiser's state does not take, none where it needs one, no data, an
            iterator that ends early, or one with an `index`.

    >>> from mvp_jax import models
    >>> model = models.create("vit_micro", dim=8, layers=1, image_size=4, patch=2, channels=1, classes=3)
    >>> recipe = Recipe(model=model, tx=optax.adam(1e-3), batch=8)
    >>> state = stepping.create(model.init(jax.random.key(0)), recipe.tx, jax.random.key(1))
    >>> data = {"x": jnp.ones((16, 4, 4, 1)), "y": jnp.arange(16) % 3}
    >>> state, metrics = fit(recipe, state, data, 5)
    >>> int(state.step), sorted(metrics)
    (5, ['accuracy', 'loss', 'taken'])
    """
    own = state.settings
    if learning_rate is not None:
        state = state._replace(settings=own._replace(learning_rate=jnp.asarray(learning_rate, jnp.float32)))
    check_trainable(recipe, state, data, index)
    if total is None:
        total = steps if own.steps is None else own.steps
    total = jnp.asarray(total, jnp.int32)
    sums = recipe.blank()
    if not isinstance(data, Mapping):
        for done in range(int(steps)):
            batch = next(data, None)
            if batch is None:
                raise ValueError(f"there were {done} batches for {int(steps)} steps; give an iterator of as many")
            state, sums = _one_batch(recipe, state, sums, {"x": batch["x"], "y": batch["y"]}, total)
        return state._replace(settings=own), means(sums)
    data = {"x": data["x"], "y": data["y"]}
    if loops_on_host(recipe.model, state, data, index, total, steps):
        for _ in range(int(steps)):
            # Two programs, so that the large one serves data of every length: a batch is always of one shape.
            batch = _pick_batch(recipe.batch, state.key, state.step, data, index)
            state, sums = _one_batch(recipe, state, sums, batch, total)
    else:
        state, sums = _many_steps(recipe, state, sums, data, index, jnp.asarray(steps, jnp.int32), total)
    return state._replace(settings=own), means(sums)


def check_trainable(
    recipe: Recipe, state: TrainState, data: Batch | Iterator[Batch], index: Array | None = None
) -> None:
    """Raises `ValueError` unless `fit` can train this state by this recipe on these data."""
    settable = "learning_rate" in stepping.injected(state.opt_state)
    if state.settings.learning_rate is not None:
        if not settable:
            raise ValueError(
                "a learning rate is given, but the optimiser's state holds none that can be set; use "
                "train.optimizer(...), wrap yours in optax.inject_hyperparams, or give no learning rate and let the "
                "optimiser's own count"
            )
    elif settable:
        raise ValueError("fit needs a learning rate: pass learning_rate=... or settings of the run that have one")
    elif recipe.decay != "constant" or recipe.warmup:
        raise ValueError(
            f"decay is {recipe.decay!r} and warmup {recipe.warmup}, but no learning rate is given that they could "
            "change, and the optimiser keeps its own; take decay='constant' and warmup=0 with a schedule in the "
            "optimiser, or use train.optimizer(...) with a learning rate"
        )
    if not isinstance(data, Mapping):
        if index is not None:
            raise ValueError("an index says which of the data a run may see; leave such batches to the iterator")
    elif 0 in data["y"].shape or (index is not None and 0 in index.shape):
        raise ValueError("no examples to train on; the task's training split is empty")
