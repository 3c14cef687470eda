"""How a dense network is pre-trained, with labels (mixed, smoothed) or without: settings, and their recipe for `train`.

The loop is `train.fit`'s, on data that lie on the device or on batches that come one by one. Learning rate, weight
decay, smoothing and the number of steps are traced.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvp_jax.core.types import Batch, Key
from mvp_jax.data import augment
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping
from mvp_jax.train import fitting, losses, optimizers, simsiam, stepping

OBJECTIVES = ("supervised", "simsiam")
SHARED = PartitionSpec((mapping.MEMBER, mapping.DATA))
"""How the examples of a batch are shared out: over all devices of a mesh."""

_OPTIMIZERS = ("sgd", "nesterov", "adamw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is pre-trained.

    Attributes:
        method: `supervised`: with the labels; `simsiam`: without, see `simsiam.siamese`.
        steps: number of steps in all; the learning rate is a cosine over them, see `learning_rates.at`.
        batch: examples in a step, on all devices together.
        learning_rate: the highest learning rate.
        warmup: number of steps over which the learning rate rises.
        optimizer: `sgd` (momentum 0.9), `nesterov` (with Nesterov's momentum 0.9) or `adamw`.
        weight_decay: of the parameters in `decayed`.
        decayed: which parameters decay: `all`, or `kernels`, so no biases, norms, tokens and positions.
        clip: gradients are scaled down to this global norm; `None`: never.
        label_smoothing: part of the target that is spread evenly over all classes, in [0, 1).
        mixup: alpha of `data.augment.mixup`; 0: not done.
        cutmix: alpha of `data.augment.cutmix`; 0: not done. With both, each batch takes one of them.
        augment: augments a batch of images, on the device.
        views: for `simsiam`: draws two views of a batch.
        dim: for `simsiam`: length of the projections.
        hidden: for `simsiam`: hidden width of the predictor.
        projector_layers: for `simsiam`: number of layers of the projector.
        save_every: steps between two looks at the validation images, which are also those between two saved states.
        keep: whether to keep the model of the `last` step, or the `best` on the validation images.
        examples: number of training images whose labels a head is fitted to, if the network was trained without labels.
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
        choices = {
            "method": OBJECTIVES,
            "optimizer": _OPTIMIZERS,
            "decayed": ("all", "kernels"),
            "keep": ("last", "best"),
        }
        for name, allowed in choices.items():
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

    @property
    def judged(self) -> bool:
        """Whether the steps have an accuracy: there are labels, and they are not mixed."""
        return self.method == "supervised" and not self.mixup and not self.cutmix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a batch of images and labels before a step: floats, shared out, augmented, mixed.

    A `train.Prepare`. Images are mixed if `mixup` or `cutmix` is given; labels are then distributions over classes.

    Attributes:
        num_classes: number of classes of mixed labels.
        augment: of the images, before they are mixed.
        mixup: see `data.augment.mixup`; `None`: not done.
        cutmix: see `data.augment.cutmix`; `None`: not done. With both, each batch takes one of them.
        mesh: devices that share the batch; `None`: it stays where it is.
    """

    num_classes: int
    augment: stepping.Augment | None = None
    mixup: float | None = None
    cutmix: float | None = None
    mesh: Mesh | None = None

    def __call__(self, key: Key, batch: Batch) -> Batch:
        if self.mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, NamedSharding(self.mesh, SHARED))
        x, y = batch["x"], batch["y"].astype(jnp.int32)
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 255
        key_augment, key_mix = jax.random.split(key)
        if self.augment is not None:
            x = self.augment(key_augment, x)
        if self.mixup is None and self.cutmix is None:
            return {"x": x, "y": y}
        targets = jax.nn.one_hot(y, self.num_classes)
        if self.cutmix is None:
            x, targets = augment.mixup(key_mix, x, targets, self.mixup)
        elif self.mixup is None:
            x, targets = augment.cutmix(key_mix, x, targets, self.cutmix)
        else:
            x, targets = augment.mix(key_mix, x, targets, self.mixup, self.cutmix)
        return {"x": x, "y": targets}


def begin(
    model: Model, settings: Settings, key: Key, *, mesh: Mesh | None = None
) -> tuple[fitting.Recipe, stepping.TrainState]:
    """Returns what a run is made of: the recipe and the state at step 0, for `train.fit(..., total=settings.steps)`.

    Args:
        model: the dense network.
        settings: how it is trained.
        key: of weights, batches and augmentation.
        mesh: devices that share each batch; `None` for one.
    """
    labels = settings.method == "supervised"
    mixes = bool(settings.mixup or settings.cutmix)
    prepare = Preparation(
        num_classes=model.num_classes,
        augment=settings.augment if mixes else None,
        mixup=settings.mixup or None,
        cutmix=settings.cutmix or None,
        mesh=mesh,
    )
    if not labels:
        assert settings.views is not None
        model = simsiam.siamese(
            model, settings.views, dim=settings.dim, hidden=settings.hidden, projector_layers=settings.projector_layers
        )
    recipe = fitting.Recipe(
        model=model,
        tx=optimizers.optimizer(settings.optimizer, decayed=settings.decayed, clip=settings.clip),
        batch=settings.batch,
        loss=losses.cross_entropy if labels else simsiam.loss,
        prepare=prepare,
        augment=settings.augment if labels and not mixes else None,
        decay="cosine",
        warmup=settings.warmup,
    )
    key_init, key_fit = jax.random.split(key)
    own = stepping.RunSettings(
        learning_rate=jnp.asarray(settings.learning_rate, jnp.float32),
        weight_decay=jnp.asarray(settings.weight_decay, jnp.float32),
        label_smoothing=jnp.asarray(settings.label_smoothing, jnp.float32) if settings.label_smoothing else None,
    )
    state = stepping.create(model.init(key_init), recipe.tx, key_fit, settings=own)
    return recipe, state if mesh is None else jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


__all__ = ["OBJECTIVES", "SHARED", "Preparation", "Settings", "begin"]
