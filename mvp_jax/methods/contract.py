"""What all methods share: how they train (`Training`), what they return (`Pruned`) and what it took (`Spent`)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import trees
from mvp_jax.core.types import Array, Masks, PyTree, Units, Variables

CROSS_ENTROPY: train.Loss = train.cross_entropy
"""The loss of a problem that names none: softmax cross-entropy with integer labels."""


class Spent(NamedTuple):
    """What a method took.

    Attributes:
        steps: optimiser steps, of all members together.
        examples: examples that passed forward and backward; a forward pass alone counts as a third of one.
    """

    steps: int
    examples: int


class Look(NamedTuple):
    """A model on the way: its variables after some fine-tuning steps, and what had been spent by then."""

    variables: Variables
    spent: Spent


class Pruned(NamedTuple):
    """A pruned model in the dense shapes.

    Attributes:
        variables: zero where `masks` are False.
        masks: in the parameters' structure, each broadcastable to its parameter; True = kept.
        units: the units kept, by group, where units were pruned; else empty.
        spent: what the method took.
        alive: whether training stayed finite; where it did not, `variables` are the last finite ones.
        looks: the model after some numbers of fine-tuning steps, where the settings ask for it. Methods for few-shot
            tasks give slim variables (of `problem.slim`).
    """

    variables: Variables
    masks: Masks
    units: Units
    spent: Spent
    alive: Array
    looks: dict[int, Look] = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a method trains, and how every method's model is finished.

    Attributes:
        steps: `J`, steps of the final fine-tuning.
        learning_rate: of the optimiser; traced.
        optimizer: `sgd` (momentum 0.9), `adamw`, or `either` of both by a value of the run (see `train.optimizer`).
        weight_decay: of the optimiser, as in `train.optimizer`.
        batch: examples a step; all of them if there are fewer.
        clip: gradients are scaled down to this global norm; `None`: they are not.
        norm_examples: batch-norm statistics are re-estimated on at most so many examples.
        augment: `(key, x) -> x`, applied to each batch; `None`: nothing is.
        undecayed: paths of parameters that weight decay leaves alone, such as a frozen head.
    """

    steps: int = 100
    learning_rate: float = 0.02
    optimizer: Literal["sgd", "adamw", "either"] = "sgd"
    weight_decay: float = 0.0
    batch: int = 64
    clip: float | None = None
    norm_examples: int = 512
    augment: train.Augment | None = None
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise ValueError(f"steps must be >= 0 and batch >= 1, got {self.steps} and {self.batch}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        train.optimizer(self.optimizer)  # refuses an unknown name

    @property
    def tx(self) -> Any:
        """The optimiser; equal settings give the same object."""
        decayed = all_but(self.undecayed) if self.undecayed else None
        return train.optimizer(self.optimizer, weight_decay=self.weight_decay, clip=self.clip, decayed=decayed)


@functools.cache
def per_example(loss: train.Loss) -> train.Loss:
    """Returns a loss of one number an example: the mean of `loss` over what follows the first axis, such as tokens.

    Equal losses give the same function.

    >>> per_example(lambda outputs, labels: outputs - labels)(jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
    [1.0, 1.0]
    """

    def one_each(outputs: Array, labels: Array) -> Array:
        losses = loss(outputs, labels)
        return jnp.mean(losses.reshape(losses.shape[0], -1), -1)

    return one_each


@functools.cache
def all_but(names: tuple[str, ...]) -> Callable[[PyTree], PyTree]:
    """Returns a function from parameters to booleans: False for those under one of the paths, which do not decay.

    Equal paths give the same function, so that optimisers made with it are equal too.

    >>> all_but(("a/b",))({"a": {"b": {"c": 0}, "d": 0}})
    {'a': {'b': {'c': False}, 'd': True}}
    """

    def decays(path: str) -> bool:
        return not any(path == name or path.startswith(f"{name}/") for name in names)

    return lambda params: jax.tree.map(decays, trees.paths(params))


def check_labels(labels: Array, num_classes: int) -> None:
    """Raises `ValueError` unless there are labels, all in `[0, num_classes)`."""
    if labels.size == 0:
        raise ValueError("the task has no examples; draw it with at least one image a class")
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1} for {num_classes} classes, got {low} to {high}")
