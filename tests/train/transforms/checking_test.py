"""What no update can do, and how it is found: infinite weights, updates changed after a wrapper, other targets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax.train import transforms

PARAMS = {"w": jnp.array([3.0, -1.0, 2.0, 0.5]), "b": jnp.ones(2)}
MASKS = {"w": jnp.array([True, False, True, False]), "b": jnp.array(True)}


def step(tx, params, state, apply=False):
    updates, state = tx.update(jax.tree.map(lambda p: 0.1 * jnp.where(jnp.isfinite(p), p, 1), params), state, params)
    if apply:
        return transforms.apply_updates(params, updates, state), state
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_found_and_zeroed(bad):
    params = {**PARAMS, "w": PARAMS["w"].at[1].set(bad)}
    tx = transforms.keep_mask(optax.adamw(0.1), MASKS)
    updates, _ = tx.update(params, tx.init(params), params)
    assert np.isfinite(updates["w"]).all()
    new, state = step(tx, params, tx.init(params))
    assert new["w"][3] == 0
    assert not np.isfinite(new["w"][1])
    with pytest.raises(ValueError, match=r"1 pruned weights are not zero: 'w' \(1\). 1 of them are infinite or nan"):
        transforms.check(new, state)
    for compiled in (False, True):
        run = jax.jit(lambda p, s: step(tx, p, s, apply=True)) if compiled else lambda p, s: step(tx, p, s, apply=True)
        new, state = run(params, tx.init(params))
        transforms.check(new, state)
        assert new["w"][1] == new["w"][3] == 0
        assert np.isfinite(jax.tree.leaves((new, state))[0]).all()
        # Kept weights are what optax alone makes of them.
        alone, _ = step(optax.adamw(0.1), PARAMS, optax.adamw(0.1).init(PARAMS))
        np.testing.assert_allclose(new["w"][::2], alone["w"][::2], rtol=1e-6)


def test_a_schedule_removes_nan_first_and_says_so():
    params = {**PARAMS, "w": PARAMS["w"].at[0].set(np.nan)}
    tx = transforms.prune_on_schedule(optax.sgd(0.1), sparsity=0.25, steps=1, prunable=["w"])
    new, state = step(tx, params, tx.init(params))
    assert transforms.masks_of(state)["w"].tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="infinite or nan, which no update can make 0"):
        transforms.check(new, state)
    new, state = step(tx, params, tx.init(params), apply=True)
    transforms.check(new, state)
    assert new["w"][0] == 0


CHAINS = {
    "scaled": lambda kept: optax.chain(kept, optax.scale(0.5)),
    "decayed": lambda kept: optax.chain(kept, optax.add_decayed_weights(0.1)),
    "clipped": lambda kept: optax.chain(kept, optax.clip(0.1)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(
    "kept",
    [
        transforms.keep_mask(optax.sgd(0.1), MASKS),
        transforms.prune_on_schedule(optax.sgd(0.1), sparsity=0.5, steps=1, prunable=["w"]),
    ],
    ids=["keep", "prune"],
)
def test_what_changes_the_updates_after_a_wrapper_is_found(name, kept):
    tx = CHAINS[name](kept)
    new, state = step(tx, PARAMS, tx.init(PARAMS))
    with pytest.raises(
        ValueError, match=r"2 pruned weights are not zero: 'w' \(2\). Something after the wrapper changed"
    ):
        transforms.check(new, state)
    new, state = step(tx, PARAMS, tx.init(PARAMS), apply=True)
    transforms.check(new, state)
    assert np.count_nonzero(new["w"]) == 2
    # The right order needs no more than optax.
    new, state = step(kept, PARAMS, kept.init(PARAMS))
    transforms.check(new, state)


def test_checks_are_made_outside_of_compiled_functions():
    tx = transforms.keep_mask(optax.sgd(0.1), MASKS)
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda p: transforms.check(p, tx.init(p)))(PARAMS)


def test_a_state_with_another_target_warns():
    make = lambda s, **kw: transforms.prune_on_schedule(optax.adam(0.1), sparsity=s, steps=2, prunable=["w"], **kw)  # noqa: E731
    state = optax.chain(optax.clip(1.0), make(0.5)).init(PARAMS)
    transforms.check(PARAMS, state, optax.chain(optax.clip(1.0), make(0.5)))
    with pytest.warns(UserWarning, match=r"all leaves: 2 and 1\). The state decides; transforms.restart"):
        transforms.check(PARAMS, state, optax.chain(optax.clip(1.0), make(0.75)))
    with pytest.warns(UserWarning, match=r"w: 2 and 1"):
        transforms.check(PARAMS, make(0.5, pattern="uniform").init(PARAMS), make(0.75, pattern="uniform"))
    with pytest.warns(UserWarning, match="1 schedules of pruning, the optimiser 0"):
        transforms.check(PARAMS, state, optax.adam(0.1))


def test_the_dense_parameters_of_straight_through_are_left_alone():
    tx = transforms.straight_through(optax.sgd(0.1), sparsity=0.5, prunable=["w"])
    new, state = step(tx, PARAMS, tx.init(PARAMS))
    transforms.check(new, state)
    same, _ = step(tx, PARAMS, tx.init(PARAMS), apply=True)
    np.testing.assert_array_equal(same["w"], new["w"])
    assert np.count_nonzero(same["w"]) == 4
    with pytest.raises(ValueError, match="no masks in this optimiser state"):
        transforms.check(new, optax.sgd(0.1).init(PARAMS))
