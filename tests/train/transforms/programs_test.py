"""The optimisers that prune as compiled programs: what they compute when, and how often they compile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from mvp_jax.core import masks, patterns, trees
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)
PARAMS = {"bias": jnp.ones(4), "kernel": jnp.asarray(RNG.standard_normal((12, 8)), jnp.float32)}
HEAVY = optax.sgd(0.1, momentum=0.9)
MASKS = {"bias": jnp.array(True), "kernel": jnp.asarray(RNG.random((12, 8)) < 0.4)}


def gradual(sparsity=0.8, **settings):
    settings = {"steps": 6, "every": 3, "prunable": ["kernel"], **settings}
    return transforms.prune_on_schedule(HEAVY, sparsity=sparsity, **settings)


def step_of(tx):
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda p: p - 0.3, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


STEP = jax.jit(step_of(gradual()))  # for every sparsity


def run(step, carry, steps):
    for _ in range(steps):
        carry = step(*carry)
    return carry


def left(state):
    return int(transforms.masks_of(state)["kernel"].sum())


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def counted():
    """Magnitude, and a list that grows whenever it is computed."""
    calls = []

    def scores(params, grads):
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(jnp.abs, params)

    return calls, scores


def watched(step, carry, steps, calls):
    """The last carry, and how often scores had been computed after each step."""
    jax.effects_barrier()
    calls.clear()
    seen = []
    for _ in range(steps):
        carry = step(*carry)
        jax.effects_barrier()
        seen.append(len(calls))
    return carry, seen


def test_eager_jit_and_scan_agree_and_compute_only_when_due():
    calls, scores = counted()
    tx = gradual(scores=scores)
    start = PARAMS, tx.init(PARAMS)
    eager, seen = watched(step_of(tx), start, 8, calls)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2]
    jitted, seen = watched(jax.jit(step_of(tx)), start, 8, calls)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2]
    calls.clear()
    scanned, _ = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step_of(tx)(*c), None), c, length=8))(start)
    jax.effects_barrier()
    assert len(calls) == 2
    same(eager, jitted, rtol=1e-5, atol=1e-6)
    same(eager, scanned, rtol=1e-5, atol=1e-6)
    assert left(scanned[1]) == 96 - 77


def predicates(jaxpr):
    """The shapes of the predicates of all branches, inside calls too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            found.append(equation.invars[0].aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                found += predicates(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_stacked_members_prune_when_they_are_due_and_compute_when_one_is(nested):
    calls, scores = counted()
    tx = gradual(scores=scores)
    shares = (0.8, 0.5, 0.9, 0.6)
    members = [jax.tree.map(lambda p, i=i: p * (1 + 0.1 * i), PARAMS) for i in range(4)]
    # They stand at different counts, and have different sparsities ahead.
    pairs = zip(members, shares, (0, 1, 1, 3), strict=True)
    alone = [run(STEP, (p, gradual(s).init(p)), late) for p, s, late in pairs]
    stacked, together = trees.stack(alone), jax.vmap(step_of(tx))
    if nested:
        stacked = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), stacked)
        together = jax.vmap(together)
    # A branch with one predicate stays a branch; a batched one would become a select.
    assert set(predicates(jax.make_jaxpr(together)(*stacked).jaxpr)) == {()}
    stacked, seen = watched(jax.jit(together), stacked, 7, calls)
    # Due at counts 3 and 6, which the members reach after 3, 2, 2, 0 and after 6, 5, 5, 3 of these updates.
    assert seen == [0, 1, 2, 2, 3, 4, 4]
    if nested:
        stacked = jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), stacked)
    for member, start, share in zip(trees.unstack(stacked), alone, shares, strict=True):
        same(member, run(STEP, start, 7), rtol=1e-5, atol=1e-6)
        assert left(member[1]) == 96 - round(share * 96)


def test_members_that_share_a_count_share_the_branch():
    state = gradual().init(PARAMS)._replace(count=jnp.int32(2))
    members = trees.stack([PARAMS, jax.tree.map(lambda p: p[::-1], PARAMS)])
    together = jax.vmap(step_of(gradual()), in_axes=(0, None))
    jaxpr = jax.make_jaxpr(together)(members, state).jaxpr
    assert set(predicates(jaxpr)) == {()}
    assert "reduce_or" not in str(jaxpr)
    _, stacked = jax.jit(together)(members, state)
    for i, member in enumerate(trees.unstack(members)):
        same(jax.tree.map(lambda m, i=i: m[i], stacked.masks), STEP(member, state)[1].masks)
    assert 19 < int(stacked.masks["kernel"][0].sum()) < 96


def test_one_compiled_step_serves_other_sparsities():
    traces = []

    def counting(params, state):
        traces.append(1)
        return step_of(gradual())(params, state)

    step = jax.jit(counting)
    for share, schedule in ((0.5, "cubic"), (0.8, "linear"), (0.95, "geometric")):
        _, state = run(step, (PARAMS, gradual(share, schedule=schedule).init(PARAMS)), 6)
        assert left(state) == 96 - round(share * 96)
    assert len(traces) == 1
    pattern = patterns.NofM(4)
    stacked = trees.stack([(PARAMS, gradual(s, pattern=pattern).init(PARAMS)) for s in (0.25, 0.5)])
    _, states = run(jax.jit(jax.vmap(step_of(gradual(0.5, pattern=pattern)))), stacked, 6)
    for kept, n in zip(states.masks["kernel"], (3, 2), strict=True):
        assert (kept.reshape(3, 4, 8).sum(1) == n).all()


def test_states_may_be_donated_and_the_optimiser_used_again():
    for tx in (gradual(), transforms.keep_mask(HEAVY, MASKS)):
        step = jax.jit(step_of(tx), donate_argnums=(0, 1))
        for _ in range(2):
            first = tx.init(PARAMS)
            _, state = run(step, (jax.tree.map(jnp.copy, PARAMS), first), 4)
            assert 0 < left(state) < 96
        assert all(m.is_deleted() for m in jax.tree.leaves(transforms.masks_of(first)))
    assert not any(m.is_deleted() for m in jax.tree.leaves(MASKS))


def test_a_saved_state_goes_on_where_it_was():
    carry = run(STEP, (PARAMS, gradual().init(PARAMS)), 4)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((carry, gradual().init(PARAMS))))
    found = serialization.from_bytes((PARAMS, gradual(0.1).init(PARAMS)), serialization.to_bytes(carry))
    expected, resumed = run(STEP, carry, 4), run(STEP, found, 4)
    same(expected, resumed, rtol=0)
    assert left(carry[1]) > left(resumed[1]) == 96 - 77


def test_parameters_spread_over_devices():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(PARAMS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    got, state = run(STEP, (spread, jax.jit(gradual().init)(spread)), 7)
    expected, alone = run(STEP, (PARAMS, gradual().init(PARAMS)), 7)
    same((got, state.masks), (expected, alone.masks), rtol=1e-5, atol=1e-6)
    assert len(got["kernel"].sharding.device_set) == 2


def test_a_loop_may_be_differentiated_through():
    tx = transforms.prune_on_schedule(optax.sgd(0.1), sparsity=0.5, steps=1, prunable=["w"])

    @jax.jit
    @jax.grad
    def last(rate):
        params = {"w": jnp.array([1.0, 4.0, -3.0, 2.0])}
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(lambda p: rate * p, params), state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params["w"] ** 2)

    # 4 and -3 stay, times (1 - 0.1 rate)²: the sum of squares is 25 (1 - 0.1 rate)⁴.
    np.testing.assert_allclose(last(1.0), -10 * 0.9**3, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- around it


def test_masks_are_found_in_any_nested_state():
    kept = transforms.keep_mask(HEAVY, MASKS)
    for tx in (
        optax.chain(optax.clip(1.0), kept),
        optax.MultiSteps(kept, 3),
        optax.inject_hyperparams(lambda rate: transforms.keep_mask(optax.sgd(rate), MASKS))(rate=0.1),
        optax.apply_if_finite(kept, 2),
    ):
        same(transforms.masks_of(tx.init(PARAMS)), MASKS)
    both = transforms.keep_mask(gradual(), MASKS)
    params, state = run(jax.jit(step_of(both)), (PARAMS, both.init(PARAMS)), 6)
    found = transforms.masks_of(state)
    np.testing.assert_array_equal(params["kernel"] != 0, found["kernel"])
    assert masks.count(found) < masks.count(MASKS)
    with pytest.raises(ValueError, match="no masks in this optimiser state; make the optimiser with"):
        transforms.masks_of(optax.adam(0.1).init(PARAMS))


def test_accumulated_steps_count_as_one():
    tx = optax.MultiSteps(gradual(), 2)
    params, state = run(jax.jit(step_of(tx)), (PARAMS, tx.init(PARAMS)), 12)
    assert left(state) == 96 - 77
    np.testing.assert_array_equal(params["kernel"] != 0, transforms.masks_of(state)["kernel"])


REFUSED = {
    "steps is 0": {"steps": 0},
    "begin -1": {"begin": -1},
    "every 7": {"every": 7},
    "every 0": {"every": 0},
    "unknown schedule 'cube'; choose one of": {"schedule": "cube"},
    r"sparsity is 1.0, but must lie in \[0, 1\)": {"sparsity": 1.0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_out_of_range_are_refused(message):
    with pytest.raises(ValueError, match=message):
        gradual(**REFUSED[message])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prunable": [".*weight"]}, "rules that match no leaf"),
        ({"prunable": []}, "nothing would stay of what is prunable at sparsity 0.8"),
        ({"pattern": patterns.NofM(4), "sparsity": 0.9}, "leaves 0.4 of every 4"),
        ({"pattern": patterns.Blocks((5, 2))}, "do not divide"),
        ({"prunable": {"kernel": True}}, "params and prunable differ in structure"),
        ({"prunable": {"kernel": 1.0, "bias": False}}, "give rules over paths, or a tree of Python booleans"),
    ],
)
def test_what_does_not_fit_the_parameters_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gradual(**settings).init(PARAMS)


def test_updates_without_or_with_other_parameters_are_refused():
    for tx in (gradual(), transforms.keep_mask(HEAVY, MASKS)):
        state, other = tx.init(PARAMS), {"kernel": PARAMS["kernel"]}
        with pytest.raises(ValueError, match=r"params is None.*call tx.update\(grads, state, params\)"):
            tx.update(PARAMS, state)
        with pytest.raises(ValueError, match="params and the gradients differ in structure"):
            tx.update(other, state, PARAMS)
        with pytest.raises(ValueError, match="params and the masks in the optimiser state differ in structure"):
            tx.update(other, state, other)
    with pytest.raises(ValueError, match="does not broadcast"):
        transforms.keep_mask(HEAVY, jax.tree.map(lambda p: jnp.ones(7, bool), PARAMS)).init(PARAMS)
    with pytest.raises(ValueError, match="masks are booleans"):
        transforms.keep_mask(HEAVY, PARAMS).init(PARAMS)
    wrong = gradual(steps=1, every=1, scores=lambda p, g: p["kernel"])
    with pytest.raises(ValueError, match="what `scores` returned"):
        wrong.update(PARAMS, wrong.init(PARAMS), PARAMS)
