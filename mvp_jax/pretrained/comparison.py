"""What an export says of itself: where it went, and how far it is from the model that was exported."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import Array, PyTree
from mvp_jax.models.api import Model


class Written(NamedTuple):
    """What an export wrote.

    Attributes:
        path: the folder or file that was written.
        difference: `max |written - model|` over what is computed from the examples, on this machine.
        bytes: the size on disk.
        notes: what the folder lacks or what is smaller in it than could be, a sentence each; also in its report.
    """

    path: pathlib.Path
    difference: float
    bytes: int
    notes: tuple[str, ...] = ()


def examples(model: Model, count: int = 3) -> Array:
    """Made-up inputs of a model's kind, which differ from one another.

    Args:
        model: the model.
        count: how many.

    Returns:
        `[count, *model.input_shape]`: normal numbers, or token ids for a model of an integer dtype.

    >>> from mvp_jax import models
    >>> examples(models.create("vit_micro")).shape
    (3, 8, 8, 1)
    """
    key, shape = jax.random.key(0), (count, *model.input_shape)
    if jnp.issubdtype(model.input_dtype, jnp.integer):
        return jax.random.randint(key, shape, 0, getattr(model.config, "vocab", 2))
    return jax.random.normal(key, shape, jnp.float32)


def difference(got: PyTree, wanted: PyTree) -> float:
    """How far what was written is from the model: `max |got - wanted|` over all arrays of two outputs.

    Args:
        got: what was computed by what is written, arrays of the same shapes in the same order as those of `wanted`.
        wanted: what the model computes. Infinite entries have to be the same in both, and count as 0.

    Returns:
        The largest difference.

    Raises:
        ValueError: if in some array it is more than 1e-3 of the largest finite magnitude there (or of 1, if that is
            more), or than 8 times the machine epsilon where the array's dtype is a coarser one; or not a number.

    >>> difference({"logits": np.array([1.0, 2.0])}, {"logits": np.array([1.0, 2.0005])}) < 1e-3
    True
    """
    largest = 0.0
    named = trees.flatten(wanted)
    for (path, of), other in zip(named.items(), jax.tree.leaves(got), strict=True):
        a, b = _numbers(other), _numbers(of)
        apart = float(np.max(np.abs(np.subtract(a, b, out=np.zeros_like(b), where=a != b)), initial=0.0))
        size = float(np.max(np.abs(b), initial=1.0, where=np.isfinite(b)))
        coarse = 8 * float(jnp.finfo(of.dtype).eps) if jnp.issubdtype(of.dtype, jnp.inexact) else 0.0
        if not apart <= max(1e-3, coarse) * size:
            where = "its logits" if len(named) == 1 else f"its output {path!r}"
            raise ValueError(f"what would be written differs from the model by {apart:.2g} in {where}")
        largest = max(largest, apart)
    return largest


def _numbers(a: Array | np.ndarray) -> np.ndarray:
    array = np.asarray(a)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
