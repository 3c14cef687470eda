"""The wrappers on a model of 3.6e9 weights, of which the abstract shapes suffice."""

import jax
import jax.numpy as jnp
import optax
import pytest

from mvp_jax import transforms
from mvp_jax.core import counts, patterns

PARAMS = {k: jax.ShapeDtypeStruct((60_000, 30_000), jnp.bfloat16) for k in "ab"}

WRAPPERS = {
    "global": lambda tx: transforms.prune_on_schedule(tx, sparsity=0.4, steps=5, prunable=["a", "b"]),
    "erk": lambda tx: transforms.prune_on_schedule(tx, sparsity=0.4, steps=5, prunable=["a", "b"], pattern="erk"),
    "2:4": lambda tx: transforms.prune_on_schedule(
        tx, sparsity=0.5, steps=5, prunable=["a", "b"], pattern=patterns.NofM(4, axis=0)
    ),
    "rigl": lambda tx: transforms.rigl(tx, sparsity=0.4, steps=5, every=1, prunable=["a", "b"], initial="magnitude"),
    "straight_through": lambda tx: transforms.straight_through(tx, sparsity=0.4, prunable=["a", "b"]),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_step_on_billions_of_weights_can_be_traced(name):
    tx = WRAPPERS[name](optax.sgd(0.1))
    state = jax.eval_shape(tx.init, PARAMS)
    updates, after = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert updates["a"].dtype == jnp.bfloat16
    assert updates["a"].shape == (60_000, 30_000)
    large = [
        x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, counts.Words)) if type(x) is counts.Words
    ]
    # Only a threshold over both leaves counts more than 2^31 entries.
    assert bool(large) == (name in ("global", "straight_through"))
