"""What all methods share: how they train (`Training`), what they return (`Pruned`) and what it cost (`Spent`)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import trees
from mvp_jax.core.types import Array, Batch, Masks, PyTree, Units, Variables

CROSS_ENTROPY: train.Loss = train.cross_entropy
"""The loss of a problem that names none: softmax cross-entropy with integer labels."""


class Spent(NamedTuple):
    """The training cost of a method.

    Attributes:
        steps: the number of optimiser steps, summed over all members that the method trains.
        examples: the number of examples that passed forward and backward through the model; an example that passed
            forward only counts as a third.
        serial_steps: the number of optimiser steps that follow one another: what the method takes if every member has a
            device of its own. Members that train at once count once.
        collectives: how often what all members have is put together: their weights, their gradients, or their votes on
            every weight. That is once a round where members are averaged or vote, and once a step where members share
            a batch; 0 for a method that trains one model by itself.
    """

    steps: int
    examples: int
    serial_steps: int
    collectives: int = 0

    def plus(self, other: "Spent") -> "Spent":
        """Returns the cost of this and then the other.

        >>> Spent(6, 60, 2, 1).plus(Spent(4, 40, 4))
        Spent(steps=10, examples=100, serial_steps=6, collectives=1)
        """
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))


class Look(NamedTuple):
    """A model during fine-tuning.

    Attributes:
        variables: the model's variables after some number of fine-tuning steps.
        spent: what the method had cost by then.
    """

    variables: Variables
    spent: Spent


class Pruned(NamedTuple):
    """A pruned model in the dense shapes.

    Attributes:
        variables: the model's variables; parameters are zero where `masks` are False.
        masks: boolean arrays in the parameters' tree structure, each broadcastable to its parameter; True = kept.
        units: which units are kept, `{group: bool[C]}`, where units were pruned; empty where weights were.
        spent: what the method cost.
        alive: boolean scalar: whether all losses and weights stayed finite; if not, `variables` are the last finite
            ones.
        looks: the model after some numbers of fine-tuning steps, by that number, where the settings ask for it. Methods
            for few-shot tasks give variables of the slim model, `problem.slim`.
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
        steps: `J`, the number of steps of the final fine-tuning.
        learning_rate: the optimiser's learning rate; it is traced, so a new value does not compile anew. In a function
            that is traced as a whole it may be an argument of that function.
        optimizer: `sgd` (momentum 0.9), `adamw`, or `either`: both are computed, and a value of the run's state says
            which of them counts.
        weight_decay: the optimiser's weight decay; added to the gradient for SGD, decoupled for AdamW.
        batch: the number of examples a step; all of them if there are fewer.
        clip: gradients of a larger global norm are scaled down to this norm; `None`: gradients are not clipped.
        norm_examples: batch-norm statistics are re-estimated on at most this many examples.
        augment: `(key, x) -> x`, applied to each batch; `None`: no augmentation.
        undecayed: paths of parameters without weight decay, such as a frozen head; a path stands for all below it.

    Raises:
        ValueError: for a negative number of steps, an empty batch, a rate or clipping norm that is not positive, or an
            unknown optimiser.
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
        if not isinstance(self.learning_rate, jax.core.Tracer) and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        train.optimizer(self.optimizer)  # refuses an unknown name

    @property
    def tx(self) -> Any:
        """The optimiser, an optax transformation; equal settings give the same object."""
        decayed = all_but(self.undecayed) if self.undecayed else None
        return train.optimizer(self.optimizer, weight_decay=self.weight_decay, clip=self.clip, decayed=decayed)


@functools.cache
def per_example(loss: train.Loss) -> train.Loss:
    """Returns a loss that gives one number an example: the mean of `loss` over the axes after the first, as of tokens.

    Calls with the same loss return the same function, so that what is compiled for it is found again.

    Args:
        loss: `(outputs, labels) -> losses [N, ...]`.

    Returns:
        A function `(outputs, labels) -> losses [N]`.

    >>> per_example(lambda outputs, labels: outputs - labels)(jnp.ones((2, 3)), jnp.zeros((2, 3))).tolist()
    [1.0, 1.0]
    """

    def one_each(outputs: Array, labels: Array) -> Array:
        losses = loss(outputs, labels)
        return jnp.mean(losses.reshape(losses.shape[0], -1), -1)

    return one_each


@functools.cache
def all_but(names: tuple[str, ...]) -> Callable[[PyTree], PyTree]:
    """Returns a function that says of every parameter whether it decays: all but those at or under the given paths.

    Calls with equal paths return the same function, so that optimisers made with it are equal too.

    Args:
        names: paths in the tree of parameters, such as `("head", "layers/0/norm")`.

    Returns:
        A function from parameters to a tree of booleans in their structure: False = not decayed.

    >>> all_but(("a/b",))({"a": {"b": {"c": 0}, "d": 0}})
    {'a': {'b': {'c': False}, 'd': True}}
    """

    def decays(path: str) -> bool:
        return not any(path == name or path.startswith(f"{name}/") for name in names)

    return lambda params: jax.tree.map(decays, trees.paths(params))


def check_examples(data: Batch, loss: train.Loss, num_classes: int, name: str = "train") -> None:
    """Raises `ValueError` unless there are examples with a label each and, for the default loss, labels are classes.

    Args:
        data: `{"x": [N, ...], "y": [N, ...]}`.
        loss: of the problem; labels are looked at only if it is `CROSS_ENTROPY`.
        num_classes: the number of classes.
        name: what the message calls the examples.
    """
    if jnp.shape(data["x"])[:1] != jnp.shape(data["y"])[:1]:
        raise ValueError(
            f"{name} has inputs of shape {jnp.shape(data['x'])} and labels of shape {jnp.shape(data['y'])}; "
            "give one label, or one row of labels, for each input"
        )
    if loss is CROSS_ENTROPY:
        check_labels(data["y"], num_classes)
    elif 0 in jnp.shape(data["y"]):
        raise ValueError(f"{name} has no examples; give at least one")


def check_labels(labels: Array, num_classes: int) -> None:
    """Checks the labels of a classification task.

    Args:
        labels: integers of any shape.
        num_classes: the number of classes.

    Raises:
        ValueError: if there are no labels, or one is outside `[0, num_classes)`.
    """
    if labels.size == 0:
        raise ValueError("the task has no examples; draw it with at least one image a class")
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1} for {num_classes} classes, got {low} to {high}")
