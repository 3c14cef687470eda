"""Straight-through estimation as an optimiser, against loops in NumPy, and for what it is meant: better 2:4 models."""

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvp_jax.core import masks, patterns, trees
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)
PARAMS = {"a": {"bias": np.ones(12), "kernel": RNG.standard_normal((8, 12))}, "b": RNG.standard_normal((12, 4))}
PARAMS = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
TARGET = jax.tree.map(lambda p: RNG.standard_normal(p.shape).astype(np.float32), PARAMS)
RULES = [".*kernel", "b"]
HEAVY = optax.sgd(0.1, momentum=0.9)


def gradients(params):
    """Of a quadratic loss in which neighbours are coupled; written so that NumPy computes it too."""
    xp = np if isinstance(jax.tree.leaves(params)[0], np.ndarray) else jnp
    return jax.tree.map(lambda p, t: p - t + 0.25 * xp.roll(p, 1, axis=0), params, TARGET)


def straight(tx=HEAVY, **settings):
    settings = {"sparsity": 0.5, "prunable": RULES, "pattern": patterns.NofM(4), **settings}
    return transforms.straight_through(tx, **settings)


def step_of(tx, gradients=gradients):
    def step(params, state):
        masked = masks.apply(params, transforms.masks_of(state))
        updates, state = tx.update(gradients(masked), state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(step, carry, steps):
    for _ in range(steps):
        carry = step(*carry)
    return carry


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def pruned(state):
    """The masks of what may be pruned, by path."""
    return {n: np.array(m) for n, m in trees.flatten(transforms.masks_of(state)).items() if m.ndim}


# ---------------------------------------------------------------------------------------------------------- by hand


def two_of_four(w):
    """Runs of four along the first axis, one after the other: the two largest stay."""
    kept = np.zeros(w.shape, bool)
    for column in range(w.shape[1]):
        for run in range(0, w.shape[0], 4):
            entries = sorted(range(run, run + 4), key=lambda i: (-abs(w[i, column]), i))
            kept[entries[:2], column] = True
    return kept


def largest(params, n):
    """The `n` largest of all leaves together."""
    entries = sorted(
        ((name, i) for name, p in params.items() for i in range(p.size)),
        key=lambda e: -abs(params[e[0]].reshape(-1)[e[1]]),
    )
    kept = {name: np.zeros(p.size, bool) for name, p in params.items()}
    for name, i in entries[:n]:
        kept[name][i] = True
    return {name: m.reshape(params[name].shape) for name, m in kept.items()}


def simulate(choose, updates, every, decay):
    """Straight-through estimation with momentum in NumPy: the parameters, and the masks before each update and last."""
    params = jax.tree.map(np.array, PARAMS)
    flat = trees.flatten(params)  # the same arrays: writing changes `params`
    velocity = {name: np.zeros_like(p) for name, p in flat.items()}
    kept = choose({name: flat[name] for name in ("a/kernel", "b")})
    history = [kept]
    for number in range(1, updates + 1):
        masked = {name: np.where(kept.get(name, True), p, np.float32(0)) for name, p in flat.items()}
        grads = trees.flatten(
            gradients({"a": {"bias": masked["a/bias"], "kernel": masked["a/kernel"]}, "b": masked["b"]})
        )
        for name, p in flat.items():
            gone = ~kept[name] if name in kept else np.zeros(p.shape, bool)
            velocity[name] = np.float32(0.9) * velocity[name] + grads[name] + np.float32(decay) * gone * p
            p -= np.float32(0.1) * velocity[name]
        if number % every == 0:
            kept = choose({name: flat[name] for name in ("a/kernel", "b")})
        history.append(kept)
    return params, history


CHOICES = {
    "2:4": (patterns.NofM(4), 0.5, lambda params: {name: two_of_four(w) for name, w in params.items()}),
    "weights": (patterns.Weights(), 0.8, lambda params: largest(params, 29)),
}


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize(("every", "decay"), [(1, 0.0), (1, 0.3), (3, 0.3)])
def test_straight_through_by_hand(kind, every, decay):
    pattern, sparsity, choose = CHOICES[kind]
    expected, history = simulate(choose, 12, every, decay)
    tx = straight(pattern=pattern, sparsity=sparsity, every=every, decay=decay)
    carry, step = (PARAMS, tx.init(PARAMS)), jax.jit(step_of(tx))
    for i, kept in enumerate(history):
        for name, mask in pruned(carry[1]).items():
            np.testing.assert_array_equal(mask, kept[name], name)
        carry = step(*carry) if i + 1 < len(history) else carry
    same(carry[0], expected, rtol=2e-4, atol=2e-5)
    assert sum((history[-1][n] & ~history[0][n]).sum() for n in history[0]) > 5
    # Not trivial: what is pruned goes on to change, and is not zero.
    assert all((np.array(p) != 0).all() for p in jax.tree.leaves(carry[0]))


def test_decay_reaches_pruned_weights_alone():
    tx = straight(optax.sgd(1.0), decay=2e-4, pattern=patterns.Weights())
    state = tx.init(PARAMS)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    for name, update in trees.flatten(updates).items():
        mask, weights = pruned(state).get(name, True), trees.flatten(PARAMS)[name]
        np.testing.assert_allclose(update, np.where(mask, 0, -np.float32(2e-4) * weights), rtol=1e-6)
    assert np.abs(updates["b"]).max() > 1e-5


# ------------------------------------------------------------------------------------------------------- its purpose


def test_two_of_four_trained_straight_through_beats_pruning_once():
    """Small networks on a random teacher's outputs, by seeds: pruned once, STE, SR-STE."""

    def final(seed):
        teacher, start, data = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(data, (256, 16))

        def net(params, x):
            return jnp.tanh(x @ params["a"]) @ params["b"]

        def init(key):
            a, b = jax.random.split(key)
            return {"a": jax.random.normal(a, (16, 32)) / 4, "b": jax.random.normal(b, (32, 4)) / 6}

        y = net(jax.tree.map(lambda p: 2 * p, init(teacher)), x)

        def loss(params):
            return jnp.mean((net(params, x) - y) ** 2)

        def trained(tx, params, steps):
            def body(carry, _):
                params, state = carry
                at = masks.apply(params, transforms.masks_of(state))
                updates, state = tx.update(jax.grad(loss)(at), state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(body, (params, tx.init(params)), length=steps)[0]

        def sgd():
            return optax.sgd(optax.cosine_decay_schedule(0.1, 500), momentum=0.9)

        def straight(decay):
            settings = {"sparsity": 0.5, "prunable": ["a", "b"], "pattern": patterns.NofM(4), "decay": decay}
            return transforms.straight_through(sgd(), **settings)

        dense, _ = trained(transforms.keep_mask(sgd(), masks.ones(init(start))), init(start), 500)
        once = straight(0.0).init(dense).masks
        plain, refined = (trained(straight(decay), init(start), 500) for decay in (0.0, 0.02))
        return {
            "dense": loss(dense),
            "once": loss(masks.apply(dense, once)),
            "ste": loss(masks.apply(plain[0], plain[1].masks)),
            "sr-ste": loss(masks.apply(refined[0], refined[1].masks)),
        }, refined[1].masks

    losses, kept = jax.jit(jax.vmap(final))(jnp.arange(8))
    print({k: np.sort(v).round(4).tolist() for k, v in losses.items()})
    for mask in jax.tree.leaves(kept):
        members, rows, columns = mask.shape
        assert (np.array(mask).reshape(members, rows // 4, 4, columns).sum(2) == 2).all()
    assert (losses["ste"] < losses["once"]).all()
    assert (losses["sr-ste"] < losses["once"] / 2).all()
    assert losses["sr-ste"].mean() < losses["ste"].mean() - 0.03
    assert losses["dense"].max() < 0.2


def test_a_pruned_weight_returns():
    tx = transforms.straight_through(optax.sgd(0.5), sparsity=0.5, prunable=["w"])
    params = {"w": jnp.array([0.1, 1.0, 1.0, -0.1])}
    state, seen = tx.init(params), []
    for _ in range(4):
        masked = masks.apply(params, transforms.masks_of(state))
        updates, state = tx.update({"w": masked["w"] - jnp.array([3.0, 0.0, 1.0, 0.0])}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(transforms.masks_of(state)["w"].tolist())
    assert seen[0] == [True, False, True, False]
    # The last gets the gradient 0 while it is pruned, so it stays what it was.
    assert params["w"].tolist()[3] == pytest.approx(-0.1)


# ------------------------------------------------------------------------------------------------ compiled programs


@pytest.mark.parametrize("every", [1, 2])
def test_members_equal_a_loop_and_eager_equals_jit(every):
    tx = straight(every=every, decay=0.1)
    members = [jax.tree.map(lambda p, i=i: p * (1 + 0.3 * i) + 0.1 * i, PARAMS) for i in range(3)]
    step = jax.jit(step_of(tx))
    finals = [run(step, (p, tx.init(p)), 5) for p in members]
    start = trees.stack(members)
    stacked = run(jax.jit(jax.vmap(step_of(tx))), (start, jax.vmap(tx.init)(start)), 5)
    for got, expected in zip(trees.unstack(stacked), finals, strict=True):
        same(got[1].masks, expected[1].masks)
        same(got, expected, rtol=1e-4, atol=1e-5)
    same(run(step_of(tx), (PARAMS, tx.init(PARAMS)), 5), finals[0], rtol=1e-4, atol=1e-5)
    assert (finals[0][1].masks["b"] != finals[2][1].masks["b"]).any()


def test_one_compiled_step_serves_other_sparsities():
    traces = []

    def counting(params, state):
        traces.append(1)
        return step_of(straight())(params, state)

    step = jax.jit(counting)
    for sparsity, of_eight in ((0.5, 4), (0.75, 2), (0.25, 6)):
        _, state = run(step, (PARAMS, straight(sparsity=sparsity).init(PARAMS)), 2)
        assert (np.array(state.masks["a"]["kernel"]).sum(0) == of_eight).all()
    assert len(traces) == 1


def test_inside_other_wrappers_an_update_is_what_they_pass_on():
    plain = straight(decay=0.1)
    expected = run(jax.jit(step_of(plain)), (PARAMS, plain.init(PARAMS)), 4)
    several = optax.MultiSteps(plain, 3)
    got = run(jax.jit(step_of(several)), (PARAMS, several.init(PARAMS)), 12)
    same(transforms.masks_of(got[1]), transforms.masks_of(expected[1]))
    same(got[0], expected[0], rtol=1e-4, atol=1e-5)
    injected = optax.inject_hyperparams(transforms.straight_through, static_args=("sparsity", "every"))(
        HEAVY, sparsity=0.5, prunable=RULES, pattern=patterns.NofM(4), decay=0.9
    )
    state = injected.init(PARAMS)
    state.hyperparams["decay"] = jnp.float32(0.1)
    got = run(jax.jit(step_of(optax.chain(optax.clip(1e6), injected))), (PARAMS, (optax.EmptyState(), state)), 4)
    same(got[0], expected[0], rtol=1e-4, atol=1e-5)
    same(transforms.masks_of(got[1]), transforms.masks_of(expected[1]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_what_it_is(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = straight(decay=2e-4)
    step = jax.jit(step_of(tx, lambda p: jax.tree.map(lambda p, t: p - jnp.asarray(t, p.dtype), p, TARGET)))
    new, state = run(step, (params, tx.init(params)), 3)
    assert {p.dtype for p in jax.tree.leaves((new, state.inner))} == {jnp.dtype(dtype)}
    assert (pruned(state)["b"].reshape(3, 4, 4).sum(1) == 2).all()


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
    return {
        "nnx": (nnx.state(Net(nnx.Rngs(0)), nnx.Param), [".*kernel"]),
        "linen": (flax.core.freeze({"params": {"a": a, "b": {"kernel": b}}}), ["params/.*/kernel"]),
        "tuples": (((a["kernel"], None), [b, a["bias"]]), ((True, None), [True, False])),
        "equinox": ([Layer(a["kernel"], a["bias"], "a"), Layer(b, b[0], "b")], ["[01]/weight"]),
    }


@pytest.mark.parametrize("kind", trees_of_parameters())
def test_any_tree_of_parameters(kind):
    params, prunable = trees_of_parameters()[kind]
    tx = straight(optax.adam(0.05), prunable=prunable)
    step = jax.jit(step_of(tx, lambda p: jax.tree.map(lambda x: x - 1.0, p)))
    new, state = run(step, (params, tx.init(params)), 3)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    sparse = masks.apply(new, transforms.masks_of(state))
    found = [np.array(p) for p in jax.tree.leaves(sparse) if p.ndim == 2]
    assert len(found) == 2
    for kernel in found:
        runs = (kernel != 0).reshape(-1, 4, kernel.shape[1]).sum(1)
        assert (runs == 2).all()


def test_nnx_as_its_users_write_it():
    model = Net(nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    tx = straight(optax.adamw(0.05), prunable=[".*kernel"])

    @jax.jit
    def step(params, state, x):
        masked = masks.apply(params, transforms.masks_of(state))
        grads = jax.grad(lambda p: jnp.mean((nnx.merge(graphdef, p)(x) - 1.0) ** 2))(masked)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state, jnp.ones((3, 8)))
    sparse = nnx.merge(graphdef, masks.apply(params, transforms.masks_of(state)))
    kernel = np.array(sparse.a.kernel[...])
    assert ((kernel != 0).reshape(2, 4, 12).sum(1) == 2).all()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"decay": -1e-4}, "decay is -0.0001"),
        ({"sparsity": 0.6}, "choose one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        straight(**settings)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not divide axis 0"):
        straight(pattern=patterns.NofM(5), sparsity=0.4).init(PARAMS)
    with pytest.raises(ValueError, match="nothing would stay"):
        straight(prunable=[], pattern=patterns.Weights()).init(PARAMS)
    tx = straight()
    with pytest.raises(ValueError, match="params is None"):
        tx.update(PARAMS, tx.init(PARAMS))
    injected = optax.inject_hyperparams(transforms.straight_through)(HEAVY, sparsity=0.5, prunable=RULES)
    with pytest.raises(ValueError, match="static_args"):
        jax.jit(step_of(injected))(PARAMS, injected.init(PARAMS))
