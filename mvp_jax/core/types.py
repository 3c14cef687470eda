"""Names for the values that travel through the library.

Aliases only, with one exception: `Variables`, the pair that every model function takes and returns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

PyTree: TypeAlias = Any
"""Any nesting of containers that `jax.tree` understands."""

Array: TypeAlias = jax.Array
"""An array on a device, or one that is traced."""

Key: TypeAlias = jax.Array
"""A typed key made by `jax.random.key`; consumed once."""

Params: TypeAlias = PyTree
"""A pytree of float arrays. Everywhere in the library the canonical form is a nested dict."""

Masks: TypeAlias = PyTree
"""Booleans with the tree structure of the parameters, `True` = keep; every leaf broadcasts to its parameter."""

Scores: TypeAlias = PyTree
"""Floats with the tree structure (and shapes) of what is selected from; higher = keep."""

Units: TypeAlias = Mapping[str, Array]
"""`{group name: bool[C]}`, `True` = keep, always in the index space of the dense model."""

UnitScores: TypeAlias = Mapping[str, Array]
"""`{group name: float[C]}`, higher = keep."""

Batch: TypeAlias = Mapping[str, Array]
"""`{"x": [N, ...], "y": int32[N]}`."""


class Variables(NamedTuple):
    """What a model computes with: trainable `params` and everything else it carries (batch statistics)."""

    params: Params
    rest: PyTree
