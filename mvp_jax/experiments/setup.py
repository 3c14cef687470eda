"""What a job gets from its data: pools of examples, tasks, and the numbers of examples."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from mvp_jax.core.types import Batch
from mvp_jax.data import sources, tasks


class Pools(NamedTuple):
    """Examples by their use; no example is in two pools.

    Attributes:
        source: training examples for pre-training and for the bank's tasks.
        target: training examples of the targets.
        valid: validation examples.
        test: test examples.
    """

    source: sources.Arrays
    target: sources.Arrays
    valid: sources.Arrays
    test: sources.Arrays


class Setting(NamedTuple):
    """The data of a job: the pools, the classes and the tasks.

    Attributes:
        pools: the examples by their use.
        image_shape: the shape of one example: `(height, width, channels)` of images, `(length,)` of texts.
        class_names: the names of all classes, by number.
        pretrain_classes: the numbers of the classes that the dense model is pre-trained on.
        bank_tasks: the source tasks, whose pruned models make the bank.
        targets: the tasks that methods prune for.
        unseen: the numbers of the classes that neither pre-training here nor the bank sees.
        normalised: the mean and the standard deviation of each channel by which images were normalised; `None`: they
            were not, or a checkpoint's own processor did it.
        superclasses: the number of the superclass of each class, such as its alphabet; `()`: there are none.
        tuning: further targets, on which the methods' learning rates are chosen, or the reported ones under other names
            for other seeds; they are not reported.
    """

    pools: Pools
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    pretrain_classes: tuple[int, ...]
    bank_tasks: tuple[tasks.Task, ...]
    targets: tuple[tasks.Task, ...]
    unseen: tuple[int, ...] = ()
    normalised: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    superclasses: tuple[int, ...] = ()
    tuning: tuple[tasks.Task, ...] = ()

    @property
    def tunes_on_targets(self) -> bool:
        """Whether learning rates are chosen on the reported targets themselves, with other seeds."""
        return bool(self.tuning) and {t.classes for t in self.tuning} <= {t.classes for t in self.targets}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The number of classes of a task, and the numbers of examples of each class; `None`: as many as there are.

    Attributes:
        classes_per_task: the number of classes of every task.
        source_images: the number of training examples of each class of a bank task.
        shots: the number of training examples of each class of a target.
        valid: the number of validation examples of each class of a target.
        test: the number of test examples of each class of a target.
    """

    classes_per_task: int
    source_images: int | None
    shots: int
    valid: int | None
    test: int | None


def batch_of(pair: sources.Arrays) -> Batch:
    """Returns examples and labels as a batch on the device, `{"x": [N, ...], "y": int32[N]}`.

    Args:
        pair: `N` examples and their labels on the host; images become floating-point numbers, token ids stay integers.
    """
    return {"x": jnp.asarray(sources.to_float(pair.x)), "y": jnp.asarray(pair.y, jnp.int32)}
