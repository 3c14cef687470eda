"""Masks and schedules inside an optimiser, against loops in NumPy and the same optimiser on the kept weights alone.

Most loops run without `jit`: what they compile then, the selection, is shared between them.
"""

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvp_jax.core import masks, patterns, trees
from mvp_jax.core.units import Group, Slot
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


PARAMS = {"a": {"bias": jnp.ones(12), "kernel": normal(8, 12)}, "b": {"bias": jnp.ones(4), "kernel": normal(12, 4)}}
TARGET = jax.tree.map(lambda p: normal(*p.shape), PARAMS)
KERNELS = [".*kernel"]
HEAVY = optax.chain(optax.clip(5.0), optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(-0.01))
MASKS = {
    "a": {"bias": jnp.array(True), "kernel": normal(8, 12) > 0.3},
    "b": {"bias": jnp.array([True, False, True, False]), "kernel": normal(12, 1) > 0},
}


def gradients(params, target=TARGET):
    return jax.tree.map(lambda p, t: p - t, params, target)


def step_of(tx, gradients=gradients):
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(step, carry, steps):
    for _ in range(steps):
        carry = step(*carry)
    return carry


def train(tx, params, steps, gradients=gradients):
    return run(step_of(tx, gradients), (params, tx.init(params)), steps)


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def wide(masks, params=PARAMS):
    return jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape), masks, params)


def kept_of(state):
    return wide(transforms.masks_of(state))


# -------------------------------------------------------------------------------------------------------- keep a mask


@pytest.mark.parametrize("optimizer", [HEAVY, optax.adamw(0.05, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_kept_weights_train_as_if_the_others_did_not_exist(optimizer):
    kept = flat(wide(MASKS))
    got, state = train(transforms.keep_mask(optimizer, MASKS), PARAMS, 7)  # the parameters were not masked before
    some, target = jnp.asarray(flat(PARAMS)[kept]), jnp.asarray(flat(TARGET)[kept])
    alone, _ = run(jax.jit(step_of(optimizer, lambda p: p - target)), (some, optimizer.init(some)), 7)
    np.testing.assert_allclose(flat(got)[kept], alone, rtol=1e-4, atol=1e-6)
    assert 20 < kept.sum() < kept.size - 20
    assert np.abs(flat(got)[kept] - flat(PARAMS)[kept]).min() > 0
    assert not flat(got)[~kept].any()
    moments = [s for s in jax.tree.leaves(state.inner, is_leaf=lambda x: isinstance(x, dict)) if isinstance(s, dict)]
    assert moments
    assert all((flat(m) != 0).tolist() == kept.tolist() for m in moments)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float16")], ids=str)
def test_pruned_is_exactly_zero_in_any_precision(dtypes):
    params, grads = (normal(200).astype(d) for d in dtypes)
    mask = jnp.arange(200) % 3 == 0
    cast = optax.stateless(lambda updates, params: updates.astype(dtypes[1]))
    tx = transforms.keep_mask(optax.chain(optax.sgd(0.1, momentum=0.9), cast), mask)
    new, _ = jax.jit(step_of(tx, lambda p: grads))(params, tx.init(params))
    assert new.dtype == params.dtype
    assert not new[~mask].any()
    assert (new != params)[mask].any()


def test_members_may_have_masks_of_their_own():
    tx = transforms.keep_mask(optax.adam(0.1), MASKS)
    params, choices = trees.stack([PARAMS, PARAMS]), [MASKS, masks.invert(MASKS)]
    state = jax.vmap(tx.init)(params)._replace(masks=trees.stack(choices))
    params, state = jax.jit(jax.vmap(step_of(tx)))(params, state)
    for member, mask in zip(trees.unstack(params), choices, strict=True):
        np.testing.assert_array_equal(flat(member) != 0, flat(wide(mask)))


def test_further_arguments_reach_the_optimiser():
    def update(grads, state, params=None, *, rate, **_):
        return jax.tree.map(lambda g: -rate * g, grads), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    for tx in (
        transforms.keep_mask(inner, MASKS),
        transforms.prune_on_schedule(inner, sparsity=0.8, steps=1, prunable=KERNELS),
    ):
        updates, state = tx.update(TARGET, tx.init(PARAMS), PARAMS, rate=0.25)
        kept = flat(kept_of(state))
        assert 40 < kept.sum() < 80
        np.testing.assert_allclose(flat(updates), np.where(kept, -0.25 * flat(TARGET), -flat(PARAMS)))


# --------------------------------------------------------------------------------------------------------- a schedule


def simulate(updates, sparsity, steps, begin, every):
    """Gradual magnitude pruning with momentum in NumPy, all leaves flattened; biases are never pruned."""
    p, target = flat(PARAMS), flat(TARGET)
    prunable = flat(jax.tree.map(lambda x: np.full(x.shape, x.ndim == 2), PARAMS))
    kept, velocity, history, n = np.ones(p.size, bool), np.zeros_like(p), [], int(prunable.sum())
    for t in range(1 - begin, updates + 1 - begin):
        velocity = np.float32(0.9) * velocity + np.where(kept, p - target, np.float32(0))
        p = np.where(kept, p - np.float32(0.1) * velocity, np.float32(0))
        if t == steps or (0 < t < steps and t % every == 0):
            share = sparsity if t == steps else sparsity * (1 - (1 - t / steps) ** 3)
            order = np.lexsort([np.arange(p.size), -np.abs(p), ~(kept & prunable)])
            kept = ~prunable
            kept[order[: n - round(share * n)]] = True
        p = np.where(kept, p, np.float32(0))
        history.append(kept)
    return p, history


@pytest.mark.parametrize(("begin", "steps", "every"), [(0, 8, 2), (3, 7, 3), (2, 4, 4), (0, 1, 1)])
def test_gradual_pruning_by_hand(begin, steps, every):
    tx = transforms.prune_on_schedule(
        optax.sgd(0.1, momentum=0.9), sparsity=0.9, steps=steps, begin=begin, every=every, prunable=KERNELS
    )
    expected, history = simulate(13, 0.9, steps, begin, every)
    carry = PARAMS, tx.init(PARAMS)
    for kept in history:
        carry = step_of(tx)(*carry)
        np.testing.assert_array_equal(flat(kept_of(carry[1])), kept)
    np.testing.assert_allclose(flat(carry[0]), expected, rtol=2e-5, atol=1e-6)
    assert history[-1].sum() == 14 + 16
    assert len({k.sum() for k in history}) == -(-steps // every) + (begin + every > 1)


FILTERS = (
    Group(
        name="a",
        size=12,
        slots=(
            Slot(path="a/kernel", axis=1, scored=True),
            Slot(path="a/bias", axis=0, scored=True),
            Slot(path="b/kernel", axis=0),
        ),
    ),
)
PATTERNS = {
    "global": (patterns.Weights(), 0.9, lambda a, b, bias: a.sum() + b.sum() == 14),
    "uniform": (patterns.Weights("uniform"), 0.9, lambda a, b, bias: (a.sum(), b.sum()) == (10, 5)),
    "erk": (patterns.Weights("erk"), 0.75, lambda a, b, bias: a.sum() + b.sum() == 36 and b.sum() > 12),
    "2:4": (
        patterns.NofM(4),
        0.5,
        lambda a, b, bias: all((x.reshape(-1, 4, x.shape[1]).sum(1) == 2).all() for x in (a, b)),
    ),
    "blocks": (
        patterns.Blocks((2, 2)),
        0.75,
        lambda a, b, bias: [(x[::2, ::2] & x[1::2, 1::2]).sum() for x in (a, b)] == [6, 3] and a.sum() == 24,
    ),
    "channels": (
        patterns.Channels(),
        0.5,
        lambda a, b, bias: a.all(0).sum() == a.any(0).sum() == 6 and b.all(0).sum() == b.any(0).sum() == 2,
    ),
    "units": (
        patterns.WholeUnits(FILTERS),
        0.75,
        lambda a, b, bias: bias.sum() == 3 and (a == bias).all() and (b == bias[:, None]).all(),
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_ends_exactly_and_stays_zero(name):
    pattern, sparsity, right = PATTERNS[name]
    prunable = [] if name == "units" else jax.tree.map(lambda p: p.ndim == 2, PARAMS)
    tx = transforms.prune_on_schedule(HEAVY, sparsity=sparsity, steps=5, every=2, prunable=prunable, pattern=pattern)
    params, state = PARAMS, tx.init(PARAMS)
    before = flat(kept_of(state))
    assert before.all()
    for t in range(1, 9):
        params, state = step_of(tx)(params, state)
        kept = flat(kept_of(state))
        assert (kept <= before).all()  # nothing comes back
        assert t in (2, 4, 5) or (kept == before).all()
        np.testing.assert_array_equal(flat(params) != 0, kept)
        before = kept
    masks = kept_of(state)
    assert right(masks["a"]["kernel"], masks["b"]["kernel"], masks["a"]["bias"])
    assert masks["b"]["bias"].all()


def test_a_leaf_that_rounding_would_enlarge_late_ends_exactly():
    """By largest remainder a leaf may get one entry more of a smaller whole (Alabama paradox), but none comes back."""

    def counts(params):
        return [np.array(patterns.Weights("erk").counts(params, [True] * 4, s)) for s in (0.66, 0.70)]

    drawn = (RNG.integers(1, 7, (4, 2)) for _ in range(500))
    params = next(p for p in ([normal(*s) for s in shapes] for shapes in drawn) if np.less(*counts(p)).any())
    early, late = counts(params)
    tx = transforms.prune_on_schedule(
        optax.sgd(0.0),
        sparsity=0.70,
        steps=2,
        prunable=[True] * 4,
        pattern=patterns.Weights("erk"),
        schedule=lambda t, steps, end: 0.66 if t == 1 else end,
    )
    carry, step = (params, tx.init(params)), jax.jit(step_of(tx, lambda p: p))
    for expected in (np.maximum(early, late), late):
        carry = step(*carry)
        assert [np.sum(m) for m in transforms.masks_of(carry[1])] == expected.tolist()


def test_a_weight_that_one_unit_took_along_does_not_count_for_another():
    """Unit 0 of x is gone, and so are its inputs of y; the momentum they still have must not save y's unit 0."""
    groups = (
        Group(name="x", size=2, slots=(Slot(path="x", axis=0, scored=True), Slot(path="y", axis=0))),
        Group(name="y", size=2, slots=(Slot(path="y", axis=1, scored=True),)),
    )
    tx = transforms.prune_on_schedule(
        optax.trace(1.0), sparsity=0.5, steps=1, prunable=[], pattern=patterns.WholeUnits(groups)
    )
    params = {"x": jnp.array([0.0, 5.0]), "y": jnp.array([[0.0, 0.0], [2.0, 3.0]])}
    kept = {"x": jnp.array([False, True]), "y": jnp.array([True, True])}
    momentum = optax.TraceState({"x": jnp.zeros(2), "y": jnp.array([[50.0, 0.0], [0.0, 0.0]])})
    state = tx.init(params)._replace(
        kept=kept, masks=patterns.WholeUnits(groups).masks(kept, params, None), inner=momentum
    )
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert state.kept["y"].tolist() == [False, True]


def test_scores_replace_magnitude_with_their_sign():
    """Movement: what moves to zero goes, however large it is; gradients come as they were given."""
    params, grads = {"w": jnp.array([9.0, 1.0, -8.0, 2.0])}, {"w": jnp.array([1.0, -1.0, -2.0, -3.0])}
    tx = transforms.prune_on_schedule(
        optax.clip(0.5),
        sparsity=0.5,
        steps=1,
        prunable=["w"],
        scores=lambda p, g: jax.tree.map(lambda p, g: -p * g, p, g),
    )
    _, state = tx.update(grads, tx.init(params), params)
    assert transforms.masks_of(state)["w"].tolist() == [False, True, False, True]


# ---------------------------------------------------------------------------------------------- any tree of parameters


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 12, rngs=rngs)
        self.b = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


class Layer(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    name: str = eqx.field(static=True)


def trees_of_parameters():
    a, b = PARAMS["a"], PARAMS["b"]
    layers = [Layer(p["kernel"], p["bias"], name) for name, p in PARAMS.items()]
    return {
        "nnx": (nnx.state(Net(nnx.Rngs(0)), nnx.Param), KERNELS),
        "linen": (flax.core.freeze({"params": PARAMS}), ["params/.*/kernel"]),
        "tuples": (((a["kernel"], None), [b["kernel"], b["bias"]]), ((True, None), [True, False])),
        "equinox": (layers, [(".*bias", False), "[01]/.*"]),
    }


@pytest.mark.parametrize("kind", trees_of_parameters())
def test_any_tree_of_parameters(kind):
    params, prunable = trees_of_parameters()[kind]
    tx = transforms.prune_on_schedule(HEAVY, sparsity=0.75, steps=2, prunable=prunable)
    new, state = train(tx, params, 4, lambda p: p)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert sum(int((p != 0).sum()) for p in jax.tree.leaves(new) if p.ndim == 2) == 36
    assert sum(p.size for p in jax.tree.leaves(new) if p.ndim == 2) == 144
    found = transforms.masks_of(state)
    assert int(masks.count(found, params)) == flat(params).size - 108
    again, _ = train(transforms.keep_mask(HEAVY, found), params, 2, lambda p: p)
    np.testing.assert_array_equal(flat(again) != 0, flat(wide(found, params)) & (flat(params) != 0))


def test_the_optimizer_of_nnx():
    model = Net(nnx.Rngs(0))
    tx = transforms.prune_on_schedule(optax.adamw(0.05), sparsity=0.75, steps=4, prunable=KERNELS)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model))

    for _ in range(6):
        step(model, optimizer, jnp.ones((3, 8)))
    kept = transforms.masks_of(nnx.as_pure(optimizer.opt_state))
    assert int(kept["a"]["kernel"].sum() + kept["b"]["kernel"].sum()) == 36
    np.testing.assert_array_equal(model.a.kernel[...] != 0, kept["a"]["kernel"])
