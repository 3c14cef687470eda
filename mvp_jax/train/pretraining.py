"""How a dense network is pre-trained: the settings, the rate, one step with labels (mixed, smoothed) or without.

A step is `train.make_step`'s, on batches that lie on the device or come one by one. Rates, decay, smoothing and the
number of steps are traced.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvp_jax.core import trees
from mvp_jax.core.types import Array, Batch, Key, Params, PyTree
from mvp_jax.data import augment
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping
from mvp_jax.train import fitting, simsiam, stepping

METHODS = ("supervised", "simsiam")
SHARED = PartitionSpec((mapping.MEMBER, mapping.DATA))
"""A batch, over all devices of a mesh."""

_OPTIMIZERS = ("sgd", "nesterov", "adamw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is pre-trained.

    Attributes:
        method: with the labels, or `simsiam` without.
        steps: in all; the rate rises linearly over `warmup` of them and then falls as a cosine to 0.
        batch: examples a step, of all devices.
        learning_rate: the highest.
        warmup: steps.
        optimizer: `sgd` (momentum 0.9), `nesterov` (the same with Nesterov's look ahead) or `adamw`.
        weight_decay: see `decayed`.
        decayed: what decays: `all` parameters, or `kernels`, no biases, norms, tokens and positions.
        clip: global norm of the gradient, or `None`.
        label_smoothing: share of the target spread over all classes.
        mixup: see `data.augment.mix`; 0 for none.
        cutmix: likewise. With both, each batch takes one of them.
        augment: of a batch, on the device.
        views: of a batch, for `simsiam`.
        dim: of the projections, likewise.
        hidden: of the predictor.
        projector_layers: of the projector.
        save_every: steps between two looks at the validation images and two states on disk.
        keep: the model of the `last` step, or the `best` on the validation images.
        examples: training images under whose labels a head is fitted to a network trained without any.
    """

    method: Literal["supervised", "simsiam"]
    steps: int
    batch: int
    learning_rate: float
    warmup: int = 0
    optimizer: Literal["sgd", "nesterov", "adamw"] = "nesterov"
    weight_decay: float = 5e-4
    decayed: Literal["all", "kernels"] = "all"
    clip: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: stepping.Augment | None = None
    views: simsiam.Views | None = None
    dim: int = 2048
    hidden: int = 512
    projector_layers: int = 3
    save_every: int = 1000
    keep: Literal["last", "best"] = "last"
    examples: int = 5000

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("optimizer", _OPTIMIZERS), ("decayed", ("all", "kernels")),
                              ("keep", ("last", "best"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {allowed}")
        for name in ("steps", "batch", "save_every", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of at least 1")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; give fewer than all, at least 0")
        if not 0 <= self.label_smoothing < 1 or self.mixup < 0 or self.cutmix < 0:
            raise ValueError(
                f"label_smoothing lies in [0, 1), mixup and cutmix are at least 0; got {self.label_smoothing}, "
                f"{self.mixup} and {self.cutmix}"
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                f"learning_rate and clip are positive, weight_decay not negative; got {self.learning_rate}, "
                f"{self.clip} and {self.weight_decay}"
            )
        if self.method == "simsiam" and (self.label_smoothing or self.mixup or self.cutmix or self.views is None):
            raise ValueError(
                "simsiam needs views of images and looks at no labels; leave label_smoothing, mixup and cutmix at 0"
            )


def kernels(params: Params) -> PyTree:
    """True for kernels, what weight decay is for in transformers."""
    return trees.select(params, (r"(.*/)?kernel",))


@functools.lru_cache
def optimizer(
    name: Literal["sgd", "nesterov", "adamw"], *, decayed: Literal["all", "kernels"] = "all", clip: float | None = None
) -> optax.GradientTransformation:
    """An optimiser whose rate and decay are values of its state, as `train.optimizer`; see `Settings` for the names."""
    chosen = kernels if decayed == "kernels" else None
    if name != "nesterov":
        return stepping.optimizer(name, clip=clip, decayed=chosen)
    first = optax.identity() if clip is None else optax.clip_by_global_norm(clip)

    def make(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay, chosen)
        return optax.chain(first, decay, optax.sgd(learning_rate, 0.9, nesterov=True))

    return optax.inject_hyperparams(make)(learning_rate=0.0, weight_decay=0.0)


def rate(step: Array | int, highest: Array | float, *, steps: Array | int, warmup: Array | int = 0) -> Array:
    r"""The learning rate of a step: a linear rise over `warmup` steps, then half a cosine down to 0 at `steps`.

    Args:
        step: from 0; all arguments may be traced.
        highest: reached in step `warmup`.
        steps: in all.
        warmup: fewer than `steps`.

    >>> [round(float(rate(t, 1.0, steps=6, warmup=2)), 3) for t in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]

    Reference: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts.
    """
    step, warmup = jnp.asarray(step, jnp.float32), jnp.asarray(warmup, jnp.float32)
    rising = jnp.minimum((step + 1) / jnp.maximum(warmup, 1), 1.0)
    along = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
    return highest * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * along)))


@dataclasses.dataclass(frozen=True)
class Work:
    """What is static about a step; rates, decay, smoothing, steps and shares of mixing are traced."""

    model: Model
    tx: optax.GradientTransformation
    batch: int
    labels: bool
    augment: stepping.Augment | None
    mixing: tuple[bool, bool]
    mesh: Mesh | None

    def step(
        self, state: stepping.TrainState, sums: stepping.Metrics, batch: Batch, given: dict[str, Array]
    ) -> tuple[stepping.TrainState, stepping.Metrics]:
        """One step on a batch: rate, augmentation, mixing, gradient."""
        own = state.settings
        assert own.learning_rate is not None
        now = rate(state.step, own.learning_rate, steps=given["steps"], warmup=given["warmup"])
        x, y = batch["x"], batch["y"]
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 255
        loss: stepping.Loss = stepping.cross_entropy if self.labels else simsiam.loss
        changing = self.augment
        if any(self.mixing):
            # A stream of its own; the step folds the step's number into the state's key.
            first, second = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, 2**31 - 2), state.step))
            x = x if changing is None else changing(first, x)
            x, targets = self.mixed(second, x, jax.nn.one_hot(y, self.model.num_classes), given)
            loss, changing = lambda logits, _, **how: augment.soft_cross_entropy(logits, targets, **how), None
        one = stepping.make_step(self.model, loss, self.tx, augment=changing)
        state, metrics = one(state._replace(settings=own._replace(learning_rate=now)), {"x": x, "y": y})
        sums = jax.tree.map(lambda s, m: s + jnp.where(metrics["taken"], m, 0.0), sums, metrics)
        return state._replace(settings=own), sums

    def mixed(self, key: Array, x: Array, targets: Array, given: dict[str, Array]) -> tuple[Array, Array]:
        """Images and targets of a batch, mixed in one of the ways asked for."""
        if all(self.mixing):
            return augment.mix(key, x, targets, given["mixup"], given["cutmix"])
        if self.mixing[0]:
            return augment.mixup(key, x, targets, given["mixup"])
        return augment.cutmix(key, x, targets, given["cutmix"])

    def steps(
        self,
        state: stepping.TrainState,
        sums: stepping.Metrics,
        data: Batch,
        given: dict[str, Array],
        count: Array | int,
    ) -> tuple[stepping.TrainState, stepping.Metrics]:
        """`count` steps on data that lie on the device."""

        def body(
            _: Any, carry: tuple[stepping.TrainState, stepping.Metrics]
        ) -> tuple[stepping.TrainState, stepping.Metrics]:
            chosen = fitting.next_batch(carry[0], data["y"].shape[0], self.batch)
            batch = jax.tree.map(lambda leaf: leaf[chosen], data)
            if self.mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, SHARED))
            return self.step(*carry, batch, given)

        return body(0, (state, sums)) if isinstance(count, int) else jax.lax.fori_loop(0, count, body, (state, sums))


_step = jax.jit(Work.step, static_argnums=0)
_one_of = jax.jit(functools.partial(Work.steps, count=1), static_argnums=0)
_many_of = jax.jit(Work.steps, static_argnums=0)


def begin(
    model: Model, settings: Settings, key: Key, *, mesh: Mesh | None = None
) -> tuple[Work, stepping.TrainState, dict[str, Array]]:
    """What a run is made of.

    Args:
        model: the dense network.
        settings: how it is trained.
        key: of weights, batches and augmentation.
        mesh: devices that share each batch; `None` for one.

    Returns:
        The static part, the state at step 0, and the traced settings.
    """
    labels = settings.method == "supervised"
    if not labels:
        assert settings.views is not None
        model = simsiam.siamese(
            model, settings.views, dim=settings.dim, hidden=settings.hidden, projector_layers=settings.projector_layers
        )
    tx = optimizer(settings.optimizer, decayed=settings.decayed, clip=settings.clip)
    key_init, key_fit = jax.random.split(key)
    own = stepping.RunSettings(
        learning_rate=jnp.asarray(settings.learning_rate, jnp.float32),
        weight_decay=jnp.asarray(settings.weight_decay, jnp.float32),
        label_smoothing=jnp.asarray(settings.label_smoothing, jnp.float32) if settings.label_smoothing else None,
    )
    state = stepping.create(model.init(key_init), tx, key_fit, settings=own)
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    static = Work(
        model=model, tx=tx, batch=settings.batch, labels=labels, augment=settings.augment if labels else None,
        mixing=(settings.mixup > 0, settings.cutmix > 0), mesh=mesh,
    )  # fmt: skip
    numbers = ("steps", "warmup", "mixup", "cutmix")
    return static, state, {name: jnp.asarray(getattr(settings, name), jnp.float32) for name in numbers}


def advance(
    static: Work, state: stepping.TrainState, given: dict[str, Array], count: int, data: Batch | Iterator[Batch]
) -> tuple[stepping.TrainState, stepping.Metrics]:
    """`count` steps, on data that lie on the device or on batches as they come; and the means of the metrics."""
    sums: stepping.Metrics = {name: jnp.zeros(()) for name in ("loss", "accuracy", "taken")}
    if not isinstance(data, Mapping):
        for _ in range(count):
            batch = next(data)
            state, sums = _step(static, state, sums, {"x": batch["x"], "y": batch["y"].astype(jnp.int32)}, given)
    elif fitting.loops_on_host(static.model, state, data):
        for _ in range(count):
            state, sums = _one_of(static, state, sums, data, given)
    else:
        state, sums = _many_of(static, state, sums, data, given, jnp.asarray(count, jnp.int32))
    return state, fitting.means(sums)


__all__ = ["METHODS", "SHARED", "Settings", "Work", "advance", "begin", "kernels", "optimizer", "rate"]
