"""What the data give every job: pools of examples, tasks, and the numbers of images."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from mvp_jax.core.types import Batch
from mvp_jax.data import sources, tasks


class Pools(NamedTuple):
    """Examples by use; no picture is in two of them."""

    source: sources.Arrays
    target: sources.Arrays
    valid: sources.Arrays
    test: sources.Arrays


class Setting(NamedTuple):
    """What the data give: the pools, who sees which classes, the tasks.

    Attributes:
        pools: examples by use.
        image_shape: the shape of one example.
        class_names: of all classes.
        pretrain_classes: the classes that the dense model is pre-trained on.
        bank_tasks: source tasks, whose pruned models make the bank.
        targets: tasks to prune for.
    """

    pools: Pools
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    pretrain_classes: tuple[int, ...]
    bank_tasks: tuple[tasks.Task, ...]
    targets: tuple[tasks.Task, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many classes a task has, and how many images each of its classes gives (`None`: all there are).

    Attributes:
        classes_per_task: of every task.
        source_images: training images a class of a bank task.
        shots: training images a class of a target.
        valid: validation images a class of a target.
        test: test images a class of a target.
    """

    classes_per_task: int
    source_images: int | None
    shots: int
    valid: int | None
    test: int | None


def batch_of(pair: sources.Arrays) -> Batch:
    """Returns images and labels as `{"x": float or int [N, ...], "y": int32[N]}` on the device."""
    return {"x": jnp.asarray(sources.to_float(pair.x)), "y": jnp.asarray(pair.y, jnp.int32)}
