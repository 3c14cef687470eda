"""Training: a masked step (`stepping`), many steps as one program (`fitting`), many runs at once (`population`)."""

from mvp_jax.train.fitting import (
    Prepare,
    Recipe,
    batch_indices,
    check_trainable,
    fit,
    loops_on_host,
    means,
    next_batch,
)
from mvp_jax.train.losses import Loss, accuracy, cross_entropy, restrict
from mvp_jax.train.optimizers import optimizer
from mvp_jax.train.stepping import Augment, Metrics, RunSettings, Step, StepScore, TrainState, create, make_step

__all__ = [
    "Augment",
    "Loss",
    "Metrics",
    "Prepare",
    "Recipe",
    "RunSettings",
    "Step",
    "StepScore",
    "TrainState",
    "accuracy",
    "batch_indices",
    "check_trainable",
    "create",
    "cross_entropy",
    "fit",
    "loops_on_host",
    "make_step",
    "means",
    "next_batch",
    "optimizer",
    "restrict",
]
