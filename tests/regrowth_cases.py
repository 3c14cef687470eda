"""What the tests of RigL and SET as wrappers of an optimiser share: a small problem, and both wrappers on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax.core import masks, trees
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"bias": np.ones(12), "kernel": RNG.standard_normal((8, 12))},
    "b": {"kernel": RNG.standard_normal((12, 4))},
    "dense": {"kernel": RNG.standard_normal((2, 2))},
}
PARAMS = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
TARGET = jax.tree.map(lambda p: RNG.standard_normal(p.shape).astype(np.float32), PARAMS)
KERNELS = [".*kernel"]
KEY = jax.random.key(3)
HEAVY = optax.sgd(0.1, momentum=0.9)


def gradients(params):
    """Of a quadratic loss in which neighbours are coupled; written so that NumPy computes it too."""
    xp = np if isinstance(jax.tree.leaves(params)[0], np.ndarray) else jnp
    return jax.tree.map(lambda p, t: p - t + 0.25 * xp.roll(p, 1, axis=0), params, TARGET)


def rigl(tx=HEAVY, **settings):
    settings = {"sparsity": 0.6, "steps": 9, "every": 2, "prunable": KERNELS, "key": KEY, **settings}
    return transforms.rigl(tx, **settings)


def evolution(tx=HEAVY, **settings):
    settings = {"sparsity": 0.6, "steps": 9, "every": 2, "prunable": KERNELS, "key": KEY, **settings}
    return transforms.sparse_evolution(tx, **settings)


def step_of(tx, gradients=gradients):
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def start(tx, params=PARAMS):
    state = tx.init(params)
    return masks.apply(params, transforms.masks_of(state)), state


def run(step, carry, steps):
    for _ in range(steps):
        carry = step(*carry)
    return carry


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def kernels(tree):
    """The kernels by name, flat."""
    return {name: np.ravel(leaf) for name, leaf in trees.flatten(tree).items() if name.endswith("kernel")}
