"""Settings of weak members, the members trained by them, and what their training is made of, against NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import train
from mvp_jax.core.types import Variables
from mvp_jax.methods import sparse, weak_members
from mvp_jax.models import functions
from tests import mlp

VARIED = weak_members.Diversity(
    subset=0.4,
    learning_rate=(0.5, 2.0),
    weight_decay=(0.01, 0.1),
    label_smoothing=(0.0, 0.3),
    dropout=(0.1, 0.5),
    augment=(0.2, 0.9),
    sgd=0.25,
)
COUNT = 2000


@functools.cache
def drawn(diversity=VARIED, key=0):
    settings, index = weak_members.draw(jax.random.key(key), 0.1, diversity=diversity, count=COUNT, examples=50)
    return jax.tree.map(np.asarray, settings), np.asarray(index)


def is_uniform(values, low, high):
    """Kolmogorov's and Smirnov's distance from the uniform law, at a significance of a thousandth."""
    u = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    assert u[0] > -1e-6
    assert u[-1] < 1 + 1e-6
    return np.max(np.abs(u - (np.arange(COUNT) + 0.5) / COUNT)) < 1.95 / np.sqrt(COUNT)


def test_drawn_settings_follow_their_laws_and_lie_in_their_ranges():
    settings, _ = drawn()
    logs = np.log(settings.learning_rate / 0.1)
    assert is_uniform(logs, np.log(0.5), np.log(2))
    assert not is_uniform(settings.learning_rate / 0.1, 0.5, 2)
    for name in ("weight_decay", "label_smoothing", "dropout", "augment"):
        assert is_uniform(getattr(settings, name), *getattr(VARIED, name)), name
    fields = [logs, *(getattr(settings, n) for n in ("weight_decay", "label_smoothing", "dropout", "augment"))]
    fields.append(settings.adaptive)
    for a, b in itertools.combinations(fields, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.09  # four deviations
    assert settings.steps is None
    assert settings.classes is None
    other, index = drawn(weak_members.Diversity(subset=1.0, learning_rate=(0.0, 1.0), law="uniform"))
    assert is_uniform(other.learning_rate / 0.1, 0, 1)
    assert np.array_equal(np.sort(index, axis=1), np.tile(np.arange(50), (COUNT, 1)))


def test_sgd_is_a_probability():
    adaptive = drawn()[0].adaptive
    assert set(adaptive.tolist()) == {0.0, 1.0}
    assert abs(adaptive.mean() - 0.75) < 0.04


def test_subsets_hold_nothing_twice_and_favour_nobody():
    _, index = drawn()
    assert index.shape == (COUNT, 20)
    assert all(len(set(row)) == 20 for row in index.tolist())
    often = np.bincount(index.ravel(), minlength=50) / COUNT
    assert often.shape == (50,)
    assert np.all(np.abs(often - 0.4) < 0.05)
    assert len({tuple(sorted(row)) for row in index.tolist()}) == COUNT


def test_draws_are_repeatable_and_follow_the_key():
    again, index = weak_members.draw(jax.random.key(0), 0.1, diversity=VARIED, count=COUNT, examples=50)
    for a, b in zip(jax.tree.leaves(drawn()), jax.tree.leaves((again, index)), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(drawn()), jax.tree.leaves(drawn(key=1)), strict=True):
        assert not np.array_equal(a, b)


def test_what_has_no_range_is_left_as_it_is():
    for diversity, n in ((weak_members.NONE, 50), (weak_members.Diversity(learning_rate=None), 25)):
        shapes = functools.partial(weak_members.draw, diversity=diversity, count=4, examples=50)
        settings, index = jax.eval_shape(shapes, jax.random.key(0), jnp.float32(0.1))
        assert index.shape == (4, n)
        assert settings.learning_rate.shape == (4,)
        assert jax.tree.leaves(settings._replace(learning_rate=None)) == []


@functools.cache
def linear():
    """Softmax regression whose inputs shrink by the dropout rate: NumPy can follow a knob that draws nothing."""

    def apply(variables, x, *, train=False, key=None, gates=None, knobs=None):
        share = 1 - (knobs or {}).get("dropout", 0.0)
        return share * x @ variables.params["w"] + variables.params["b"], variables.rest

    return functions.from_apply(apply, input_shape=(mlp.INPUTS,), num_classes=3, prunable=("w",))


def start():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(mlp.INPUTS, 3)), "b": rng.normal(size=3)}
    return Variables(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params), {})


def descend(params, trace, mask, x, y, steps, rate, *, decay=0.0, smoothing=0.0, dropout=0.0):
    """Full-batch descent with momentum under a mask of `w`, in float64."""
    w, b = params
    target = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
    for _ in range(steps):
        z = (1 - dropout) * x @ w + b
        p = np.exp(z - z.max(1, keepdims=True))
        d = (p / p.sum(1, keepdims=True) - target) / len(y)
        grads = (1 - dropout) * x.T @ d, d.sum(0)
        trace = tuple(0.9 * v + g + decay * q for v, g, q in zip(trace, grads, (w, b), strict=True))
        w, b = np.where(mask, w - rate * trace[0], 0), b - rate * trace[1]
    return (w, b), trace


TRAINING = sparse.SparsityTraining(learning_rate=0.2, batch=99, augment=lambda key, x: x + 1.0)
# No example is augmented, against the training's own augmentation.
PARTICULAR = weak_members.Diversity(
    subset=0.5, weight_decay=(0.05, 0.3), label_smoothing=(0.05, 0.3), dropout=(0.1, 0.5), augment=(0.0, 0.0)
)


@functools.cache
def forked():
    """A masked run after two steps, and the same in NumPy."""
    problem = sparse.SparsityProblem(model=linear(), variables=start(), train=mlp.data(), sparsity=0.4)
    run = sparse.cut(problem, sparse.begin(problem, TRAINING, jax.random.key(0)), sparse.host(problem.keep()))
    run = sparse.advance(problem, TRAINING, run, 2)
    mask = np.asarray(run.kept["w"])
    assert mask.sum() == 9
    data = np.asarray(mlp.data()["x"], np.float64), np.asarray(mlp.data()["y"])
    w, b = (np.asarray(start().params[n], np.float64) for n in ("w", "b"))
    params = np.where(mask, w, 0), b
    # In main training all examples are augmented.
    params, trace = descend(params, (np.zeros((5, 3)), np.zeros(3)), mask, data[0] + 1, data[1], 2, 0.2)
    return problem, run, mask, data, params, trace


@pytest.mark.parametrize("inherit", [True, False])
def test_members_train_as_numpy_does_each_by_its_settings(inherit):
    problem, run, mask, (x, y), params, trace = forked()
    np.testing.assert_allclose(run.state.variables.params["w"], params[0], rtol=1e-5, atol=1e-6)
    forks = weak_members.ForkSettings(count=4, steps=3, diversity=PARTICULAR)
    states, index, metrics, spent = sparse.fork(problem, TRAINING, run, jax.random.key(3), forks, inherit=inherit)
    assert spent == (4 * 3, 4 * 3 * 12, 3, 1)
    assert metrics["taken"].tolist() == [3] * 4
    assert index.shape == (4, 12)
    settings = jax.tree.map(np.asarray, states.settings)
    fresh = tuple(np.zeros_like(v) for v in trace)
    seen = []
    for k in range(4):
        own = np.asarray(index[k])
        wanted, _ = descend(
            params,
            trace if inherit else fresh,
            mask,
            x[own],
            y[own],
            3,
            settings.learning_rate[k],
            decay=settings.weight_decay[k],
            smoothing=settings.label_smoothing[k],
            dropout=settings.dropout[k],
        )
        got = np.asarray(states.variables.params["w"][k])
        np.testing.assert_allclose(got, wanted[0], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(states.variables.params["b"][k], wanted[1], rtol=2e-4, atol=2e-5)
        assert not got[~mask].any()
        seen.append(got)
    moved = [np.max(np.abs(a - np.asarray(params[0]))) for a in seen]
    apart = [np.max(np.abs(a - b)) for a, b in itertools.combinations(seen, 2)]
    assert min(moved) > 0.01
    assert min(apart) > 0.01
    assert int(run.state.step) == 2  # what was forked stays as it was


def steps(tx, gradients, rate, **values):
    """The parameters after these gradients."""
    params = {"u": jnp.array([1.0, -2.0, 3.0]), "v": jnp.array([[0.5, 4.0]])}
    state = tx.init(params)
    for g in gradients:
        if hasattr(state, "hyperparams"):
            given = {"learning_rate": rate} | values
            state = state._replace(hyperparams=state.hyperparams | {n: jnp.asarray(v) for n, v in given.items()})
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


GRADIENTS = [
    {"u": jnp.asarray(s * a, jnp.float32), "v": jnp.asarray(s * b, jnp.float32)}
    for s in (3.0, 0.05, 1.0, 0.3)
    for a, b in [(np.sin(s + np.arange(3)), np.cos(s + np.arange(2)[None]))]
]
CLIP = 0.5


def in_numpy(rate, decay, adaptive):
    """Clipped AdamW or SGD with coupled decay, on one vector of both leaves."""
    q, m, v = np.array([1.0, -2.0, 3.0, 0.5, 4.0]), np.zeros(5), np.zeros(5)
    clipped = []
    for t, tree in enumerate(GRADIENTS, start=1):
        g = np.concatenate([np.asarray(tree["u"], np.float64), np.asarray(tree["v"], np.float64)[0]])
        norm = np.sqrt(np.sum(g**2))
        clipped.append(norm > CLIP)
        g = g * min(1.0, CLIP / norm)
        if adaptive:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            q = q - rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * q)
        else:
            m = 0.9 * m + g + decay * q
            q = q - rate * m
    assert {True, False} == set(map(bool, clipped))
    return q


def as_vector(params):
    return np.concatenate([params["u"], params["v"][0]])


@pytest.mark.parametrize("adaptive", [1.0, 0.0])
def test_either_is_one_of_its_two(adaptive):
    either = train.optimizer("either", weight_decay=0.1, clip=CLIP, sgd_rate=3.0)
    alone = train.optimizer("adamw" if adaptive else "sgd", weight_decay=0.1, clip=CLIP)
    rate = 0.05 if adaptive else 0.15
    got, wanted = steps(either, GRADIENTS, 0.05, adaptive=adaptive), steps(alone, GRADIENTS, rate)
    np.testing.assert_allclose(as_vector(got), as_vector(wanted), rtol=1e-6)
    np.testing.assert_allclose(as_vector(got), in_numpy(rate, 0.1, adaptive), rtol=1e-5)
    # A run's own decay counts for both.
    np.testing.assert_allclose(
        as_vector(steps(either, GRADIENTS, 0.05, adaptive=adaptive, weight_decay=0.3)),
        in_numpy(rate, 0.3, adaptive),
        rtol=1e-5,
    )
    assert np.max(np.abs(in_numpy(rate, 0.1, adaptive) - in_numpy(rate, 0.3, adaptive))) > 0.01
    assert np.max(np.abs(in_numpy(0.05, 0.1, 1.0) - in_numpy(0.15, 0.1, 0.0))) > 0.01


def test_members_may_take_either():
    both = jax.jit(jax.vmap(lambda a: steps(train.optimizer("either", clip=CLIP), GRADIENTS, 0.05, adaptive=a)))
    got = both(jnp.array([1.0, 0.0]))
    for k, adaptive in enumerate((1.0, 0.0)):
        wanted = in_numpy(0.05, 0.0, adaptive)
        np.testing.assert_allclose(as_vector(jax.tree.map(lambda p, k=k: p[k], got)), wanted, rtol=1e-5)


def test_clip_is_optaxs():
    ours = steps(train.optimizer("sgd", clip=CLIP), GRADIENTS, 0.1)
    theirs = steps(optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(0.1, 0.9)), GRADIENTS, 0.1)
    np.testing.assert_allclose(as_vector(ours), as_vector(theirs), rtol=1e-6)
    assert np.max(np.abs(as_vector(steps(train.optimizer("sgd"), GRADIENTS, 0.1)) - as_vector(theirs))) > 0.1


def test_the_rate_warms_up_step_by_step():
    # On a linear loss every step has the same gradient, so that the way is the sum of the rates.
    tx, data = train.optimizer("sgd", momentum=0.0), mlp.data()
    state = train.create(start(), tx, jax.random.key(0))
    fit = functools.partial(
        train.fit,
        train.Recipe(model=linear(), tx=tx, batch=99, warmup=4, loss=lambda logits, y: logits[:, 0]),
        data=data,
        learning_rate=0.3,
    )
    rates = 0.3 * np.array([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    slope = np.asarray(data["x"], np.float64).mean(0)
    assert np.max(np.abs(slope)) > 0.4
    for n in (1, 2, 3, 4, 6):
        after, _ = fit(state=state, steps=n)
        way = np.asarray(after.variables.params["w"] - state.variables.params["w"])
        np.testing.assert_allclose(way[:, 0], -rates[:n].sum() * slope, rtol=1e-4, atol=1e-6)
        assert not way[:, 1:].any()
    # A state that goes on is not warmed up again.
    halves, _ = fit(state=fit(state=state, steps=3)[0], steps=3)
    np.testing.assert_allclose(halves.variables.params["w"], after.variables.params["w"], rtol=1e-6)
