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


class Spent(NamedTuple):
    """What a method took: optimiser steps of all members, and examples that passed forward and backward."""

    steps: int
    examples: int


class Pruned(NamedTuple):
    """A pruned model in the dense shapes: `variables` are zero where `masks` are False.

    `units` are those kept, where units were pruned. `spent` and `alive` (whether training stayed finite) are known of
    methods for a sparsity (`methods.sparse`).
    """

    variables: Variables
    masks: Masks
    units: Units
    spent: Spent | None = None
    alive: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a method trains, and how every method's model is finished.

    Attributes:
        steps: of the final fine-tuning, `J`.
        learning_rate: traced.
        optimizer: `sgd` (momentum 0.9), `adamw` or `either`.
        weight_decay: see `train.optimizer`.
        batch: examples a step, at most what there is.
        clip: global norm that gradients are scaled down to.
        norm_examples: batch-norm statistics are re-estimated on at most so many.
        augment: applied to each batch.
        undecayed: parts of the parameters that weight decay leaves alone, such as a frozen head, by path.
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
        decayed = all_but(self.undecayed) if self.undecayed else None
        return train.optimizer(self.optimizer, weight_decay=self.weight_decay, clip=self.clip, decayed=decayed)


@functools.cache
def all_but(names: tuple[str, ...]) -> Callable[[PyTree], PyTree]:
    """From parameters to what decays: all but the parts of these paths; one function for equal paths, so that
    optimisers are equal too.

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
