"""Training: a masked step (`stepping`), many steps as one program (`fitting`), many runs at once (`population`)."""

from mvp_jax.train.fitting import Recipe, batch_indices, check_trainable, fit, loops_on_host, means, next_batch
from mvp_jax.train.stepping import (
    Augment,
    Loss,
    Metrics,
    RunSettings,
    Step,
    StepScore,
    TrainState,
    accuracy,
    create,
    cross_entropy,
    make_step,
    optimizer,
    restrict,
)

__all__ = [
    "Augment",
    "Loss",
    "Metrics",
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
