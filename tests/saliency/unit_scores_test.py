"""Scores against numpy, finite differences, and gradients taken one example at a time."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mvp_jax import saliency
from mvp_jax.core import units
from mvp_jax.core.types import Variables
from mvp_jax.core.units import Group, Slot

FLOATS = st.floats(-100, 100, width=32)

GROUPS = (
    Group(
        name="conv",
        size=5,
        slots=(
            Slot(path="conv/kernel", axis=3, scored=True),
            Slot(path="bn/scale", axis=0, scored=True),
            Slot(path="bn/bias", axis=0, scored=True),
            Slot(path="bn/mean", axis=0, collection="rest"),
            Slot(path="fc/kernel", axis=0),
        ),
    ),
    Group(
        name="fc",
        size=4,
        kind="neuron",
        slots=(
            Slot(path="fc/kernel", axis=1, scored=True),
            Slot(path="fc/bias", axis=0, scored=True),
            Slot(path="head/kernel", axis=0),
        ),
    ),
)


def variables(seed: int = 0) -> Variables:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape).astype(np.float32) * 0.5)

    params = {
        "conv": {"kernel": draw(3, 3, 2, 5)},
        "bn": {"scale": 1 + draw(5), "bias": draw(5)},
        "fc": {"kernel": draw(5, 4), "bias": draw(4)},
        "head": {"kernel": draw(4, 3), "bias": draw(3)},
    }
    return Variables(params, {"bn": {"mean": draw(5), "var": 1 + jnp.square(draw(5))}})


def apply(v, x, *, train=False, gates=None):
    """A convolution, its norm, a hidden layer and a head, written out; gates after norm and nonlinearity."""
    p, gates = v.params, gates or {}
    h = jax.lax.conv_general_dilated(x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean, var = (h.mean((0, 1, 2)), h.var((0, 1, 2))) if train else (v.rest["bn"]["mean"], v.rest["bn"]["var"])
    h = (h - mean) * jax.lax.rsqrt(var + 1e-5) * p["bn"]["scale"] + p["bn"]["bias"]
    h = jax.nn.relu(h)
    if "conv" in gates:
        h = h * gates["conv"].reshape(-1, 1, 1, 5)
    h = jax.nn.gelu(h.mean((1, 2)) @ p["fc"]["kernel"] + p["fc"]["bias"])
    if "fc" in gates:
        h = h * gates["fc"].reshape(-1, 4)
    return h @ p["head"]["kernel"] + p["head"]["bias"], v.rest


def loss(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]


def batch(n: int = 6, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, 4, 4, 2)).astype(np.float32)), jnp.asarray(rng.integers(0, 3, n), jnp.int32)


@hypothesis.given(
    theta=hnp.arrays(np.float32, (3, 4), elements=FLOATS), g=hnp.arrays(np.float32, (3, 4), elements=FLOATS)
)
def test_weight_scores_are_their_formulas(theta, g):
    params, grads = (
        {"a": jnp.asarray(theta), "b": (jnp.asarray(theta[0]),)},
        {"a": jnp.asarray(g), "b": (jnp.asarray(g[0]),)},
    )
    np.testing.assert_array_equal(saliency.magnitude(params)["b"][0], np.abs(theta[0]))
    product = theta.astype(np.float64) * g
    np.testing.assert_allclose(saliency.taylor_terms(params, grads)["a"], product, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(saliency.taylor(params, grads)["a"], product**2, rtol=1e-5, atol=1e-30)
    assert jax.tree.structure(saliency.taylor(params, grads)) == jax.tree.structure(params)


def test_random_depends_on_key_and_leaf_only_and_takes_shapes():
    like = {"a": jnp.zeros((40, 5)), "b": jnp.ones((40, 5))}
    first, again = (
        saliency.random(jax.random.key(3), like),
        saliency.random(jax.random.key(3), jax.eval_shape(lambda: like)),
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = saliency.random(jax.random.key(4), like)
    assert not np.allclose(first["a"], other["a"])
    assert not np.allclose(first["a"], first["b"])
    assert first["a"].dtype == jnp.float32
    assert 0.4 < float(first["a"].mean()) < 0.6
    many = jax.vmap(lambda k: saliency.random(k, {"fc": jnp.zeros(7)}))(jax.random.split(jax.random.key(0), 3))
    assert many["fc"].shape == (3, 7)
    assert len(np.unique(many["fc"])) == 21


def test_unit_taylor_is_the_change_along_the_units_own_weights():
    """`Σ θ·g` over a unit's producing slots is the derivative of the loss by a scale on them (finite differences)."""
    v, (x, y) = variables(), batch()

    def mean_loss(params):
        return loss(apply(Variables(params, v.rest), x)[0], y).mean()

    got = units.reduce(saliency.taylor_terms(v.params, jax.grad(mean_loss)(v.params)), GROUPS, "sum_square")["fc"]

    def scaled(c, factor):
        along = jnp.ones(4).at[c].set(factor)
        fc = {"kernel": v.params["fc"]["kernel"] * along[None, :], "bias": v.params["fc"]["bias"] * along}
        return float(mean_loss({**v.params, "fc": fc}))

    eps = 1e-2
    slope = np.array([(scaled(c, 1 + eps) - scaled(c, 1 - eps)) / (2 * eps) for c in range(4)])
    assert np.abs(slope).max() > 0.01
    assert np.ptp(slope) > 0.01
    np.testing.assert_allclose(got, slope**2, rtol=0.02, atol=2e-6)


def test_taylor_of_a_filter_before_a_norm_vanishes_in_train_mode_only():
    """Why the docstring says eval mode."""
    v, (x, y) = variables(), batch()
    own = (Group(name="conv", size=5, slots=(Slot(path="conv/kernel", axis=3, scored=True),)),)

    def score(train):
        grads = jax.grad(lambda p: loss(apply(Variables(p, v.rest), x, train=train)[0], y).mean())(v.params)
        return units.reduce(saliency.taylor_terms(v.params, grads), own, "sum_square")["conv"]

    assert float(score(True).max()) < 1e-8 < 1e-6 < float(score(False).max())


def test_gate_gradients_equal_one_gradient_an_example():
    v, (x, y) = variables(), batch()

    def one(xi, yi):
        def f(gates):
            return loss(apply(v, xi[None], gates=gates)[0], yi[None])[0]

        return jax.grad(f)({"conv": jnp.ones(5), "fc": jnp.ones(4)})

    want = jax.vmap(one)(x, y)
    got = saliency.gate_gradients(apply, v, x, y, loss, GROUPS)
    assert set(got) == {"conv", "fc"}
    assert got["conv"].shape == (6, 5)
    assert got["fc"].dtype == jnp.float32
    for name in got:
        assert float(jnp.abs(want[name]).max()) > 0.01
        assert float(jnp.ptp(want[name], axis=0).max()) > 0.01
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-6)
    fisher = saliency.gate_fisher(got)
    for name in got:
        np.testing.assert_allclose(fisher[name], np.mean(np.square(np.asarray(want[name], np.float64)), 0), rtol=1e-3)


def test_gate_gradients_against_finite_differences():
    v, (x, y) = variables(2), batch(3, seed=5)
    got = saliency.gate_gradients(apply, v, x, y, loss, GROUPS)["fc"]
    eps = 1e-2
    for n in range(3):
        for c in range(4):

            def at(value, n=n, c=c):
                return float(loss(apply(v, x, gates={"fc": jnp.ones((3, 4)).at[n, c].set(value)})[0], y).sum())

            assert float(got[n, c]) == pytest.approx((at(1 + eps) - at(1 - eps)) / (2 * eps), abs=3e-4)
    assert float(jnp.abs(got).max()) > 0.01


def test_gate_gradients_of_stacked_models_and_its_errors():
    x, y = batch(4)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables(0), variables(7))
    stacked = jax.vmap(lambda v: saliency.gate_fisher(saliency.gate_gradients(apply, v, x, y, loss, GROUPS)))(both)
    alone = saliency.gate_fisher(saliency.gate_gradients(apply, variables(7), x, y, loss, GROUPS))
    assert not np.allclose(stacked["conv"][0], stacked["conv"][1])
    np.testing.assert_allclose(stacked["conv"][1], alone["conv"], rtol=1e-3, atol=1e-9)
    with pytest.raises(ValueError, match="one number each"):
        saliency.gate_gradients(apply, variables(), x, y, lambda a, b: loss(a, b).mean(), GROUPS)
    with pytest.raises(ValueError, match="no groups"):
        saliency.gate_gradients(apply, variables(), x, y, loss, ())


def test_a_second_call_compiles_nothing():
    traces = []

    def counted(logits, y):
        traces.append(1)
        return loss(logits, y)

    for seed in range(3):
        saliency.gate_gradients(apply, variables(seed), *batch(seed=seed), counted, GROUPS)
    assert len(traces) == 1


@hypothesis.given(data=st.data(), n=st.integers(1, 6))
def test_means_over_examples_that_count(data, n):
    a = data.draw(hnp.arrays(np.float32, (n, 3), elements=FLOATS))
    where = data.draw(hnp.arrays(bool, (n,)).filter(np.any))
    got = saliency.activation({"g": jnp.asarray(a)}, where=jnp.asarray(where))["g"]
    np.testing.assert_allclose(got, np.abs(a[where]).astype(np.float64).mean(0), rtol=1e-5, atol=1e-30)
    got = saliency.gate_fisher({"g": jnp.asarray(a)}, where=jnp.asarray(where))["g"]
    np.testing.assert_allclose(got, np.square(a[where].astype(np.float64)).mean(0), rtol=1e-5, atol=1e-30)


def test_batch_norm_scale_takes_the_groups_own_norms():
    params = {
        "a": {"scale": jnp.array([1.0, -4.0]), "bias": jnp.array([9.0, 9.0])},
        "b": {"scale": jnp.array([3.0, 0.0])},
        "next": {"scale": jnp.array([50.0, 50.0])},
    }
    stage = Group(
        name="stage",
        size=2,
        slots=(
            Slot(path="a/scale", axis=0, scored=True),
            Slot(path="a/bias", axis=0, scored=True),
            Slot(path="b/scale", axis=0, scored=True),
            Slot(path="next/scale", axis=0),
        ),
    )
    assert saliency.batch_norm_scale(params, [stage])["stage"].tolist() == [2.0, 2.0]
    np.testing.assert_array_equal(
        saliency.batch_norm_scale(variables().params, GROUPS[:1])["conv"], np.abs(variables().params["bn"]["scale"])
    )
    with pytest.raises(ValueError, match=r"without a norm.*'fc'"):
        saliency.batch_norm_scale(variables().params, GROUPS)
    with pytest.raises(ValueError, match="b/scale"):
        saliency.batch_norm_scale({"a": params["a"]}, [stage])


def test_trees_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"only in params: \['b'\]"):
        saliency.taylor({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"only in grads: \['b'\]"):
        saliency.taylor_terms({"a": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)})
