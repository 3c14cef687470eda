"""The network of `mlp` under a mask, and how far apart two trees are."""

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import units
from tests import mlp

KEPT = {
    "a": jnp.array([True, False, True, True, False, True, True, False]),
    "b": jnp.array([False, True, True, False, True, True]),
}


def problem():
    model, variables = mlp.mlp(), mlp.variables()
    return model, variables, units.expand(KEPT, model.groups, variables.params), mlp.data()


def scattered(params):
    """A mask of single weights: their gradients are not zero, so that only the mask keeps them pruned."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda p: jnp.asarray(rng.random(p.shape) < 0.6), params)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def distance(a, b):
    """Largest difference, relative to the size of the leaf it is in."""
    parts = jax.tree.map(
        lambda x, y: float(np.max(np.abs(np.asarray(x, np.float64) - y)) / (np.max(np.abs(y)) + 1e-12)), a, b
    )
    return max(jax.tree.leaves(parts))
