"""The logistic head against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mvp_jax import models, train
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models.api import replace_head
from mvp_jax.train import metrics, probe
from tests import mlp

N, F, Y = 40, 6, 3


def features():
    rng = np.random.default_rng(0)
    y = np.arange(N) % Y
    x = rng.normal(size=(Y, F))[y] + rng.normal(size=(N, F))
    x = x * np.array([1.0, 30.0, 0.01, 1.0, 5.0, 1.0]) + np.array([0.0, 100.0, 0.0, -7.0, 1.0, 0.0])
    x[:, 5] = 2.5  # a pruned unit: constant
    return x.astype(np.float32), y


@pytest.mark.parametrize("l2", [1e-2, 0.3])
def test_logistic_is_scikit_learns_on_standardised_features(l2):
    x, y = features()
    kernel, bias = probe.logistic(jnp.asarray(x), jnp.asarray(y), Y, l2=l2)
    scaler = StandardScaler().fit(x)
    # Theirs is the sum of losses + ‖W‖²/2C, ours the mean + l2/2 ‖W‖².
    theirs = LogisticRegression(C=1 / (l2 * N), tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
    expected = theirs.predict_proba(scaler.transform(x))
    got = np.asarray(jax.nn.softmax(jnp.asarray(x) @ kernel + bias))
    np.testing.assert_allclose(got, expected, atol=3e-3)
    assert expected.max(1).std() > 0.05
    assert expected.max() > 0.6
    raw = theirs.coef_.T / scaler.scale_[:, None]
    np.testing.assert_allclose(kernel[:5] * scaler.scale_[:5, None], raw[:5] * scaler.scale_[:5, None], atol=0.02)
    assert not np.asarray(kernel[5]).any()
    assert np.all(np.isfinite(kernel))


def test_a_stronger_penalty_gives_a_smaller_kernel_and_vmap_gives_each_problems_own():
    x, y = features()
    strengths = jnp.array([1e-3, 1e-1])
    kernels, biases = jax.vmap(lambda s: probe.logistic(jnp.asarray(x), jnp.asarray(y), Y, l2=s))(strengths)
    sizes = np.linalg.norm(kernels[:, 0], axis=-1)
    assert sizes[0] > 1.2 * sizes[1] > 0
    for i, s in enumerate(strengths):
        kernel, bias = probe.logistic(jnp.asarray(x), jnp.asarray(y), Y, l2=s)
        np.testing.assert_allclose(kernels[i], kernel, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(biases[i], bias, rtol=1e-3, atol=1e-2)


def test_fit_head_fits_the_head_to_the_first_examples_features_and_leaves_the_body():
    model, data = mlp.mlp(), mlp.data()
    other_head = replace_head(mlp.variables(), mlp.mlp(classes=7))  # pre-trained on other classes
    got = probe.fit_head(model, other_head, data, l2=0.1, examples=15)
    seen = model.inspect(got, data["x"])
    kernel, bias = probe.logistic(seen.features[:15], data["y"][:15], 3, l2=0.1)
    np.testing.assert_allclose(seen.logits, seen.features @ kernel + bias, rtol=1e-4, atol=1e-4)
    assert float(jnp.mean(jnp.argmax(seen.logits, -1) == data["y"])) > 0.6
    body, before = ({p: v for p, v in trees.flatten(t.params).items() if "head" not in p} for t in (got, other_head))
    assert body.keys() == before.keys()
    assert all(np.array_equal(body[p], before[p]) for p in body)


def test_a_head_for_a_regression_is_the_ridge_that_numpy_solves():
    model, data = mlp.mlp(classes=1), mlp.data()
    variables = replace_head(mlp.variables(), model)
    y = jnp.sin(data["x"][:, 0]) + 2.0
    got = probe.fit_head(model, variables, {"x": data["x"], "y": y}, loss=metrics.squared_error, l2=0.1)
    seen = model.inspect(got, data["x"])
    f = np.asarray(seen.features, np.float64)
    z = (f - f.mean(0)) / f.std(0)
    # The mean of squares and a twentieth of the squared norm: half of the ridge with penalty N l2 / 2.
    w = np.linalg.solve(z.T @ z + len(z) * 0.1 / 2 * np.eye(z.shape[1]), z.T @ (np.asarray(y) - np.mean(y)))
    np.testing.assert_allclose(seen.logits[:, 0], z @ w + np.mean(y), atol=2e-3)
    assert np.ptp(seen.logits) > 0.1


def test_it_stops_when_the_gradient_is_small_and_at_its_last_iteration():
    x, y = (jnp.asarray(part) for part in features())

    def slope(kernel, bias):
        def objective(kernel, bias):
            scaled = kernel * jnp.std(x, 0)[:, None]
            return jnp.mean(train.cross_entropy(x @ kernel + bias, y)) + 0.005 * jnp.sum(scaled**2)

        mean, std = jnp.mean(x, 0), jnp.std(x, 0)
        of_kernel, of_bias = jax.grad(objective, (0, 1))(kernel, bias)
        inside = jnp.where(std > 1e-6, 1 / jnp.maximum(std, 1e-6), 0)[:, None] * (of_kernel - mean[:, None] * of_bias)
        return float(jnp.sqrt(jnp.sum(inside**2) + jnp.sum(of_bias**2)))

    few, more, close = (
        slope(*probe.linear(x, y, Y, **how)) for how in ({"iterations": 2}, {"tolerance": 0.05}, {"tolerance": 1e-4})
    )
    assert few > more > close
    assert more < 0.06
    assert close < 3e-4


def test_a_model_without_a_head_comes_back_as_it_is():
    data = mlp.data()
    for params in ({"w": jnp.ones((5, 3))}, {"head": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}}, [jnp.eye(5)]):

        def apply(variables, x, **_):
            leaf = jax.tree.leaves(variables.params)[-1]
            return x @ leaf, variables.rest

        model, variables = models.from_apply(apply, input_shape=(5,), num_classes=3), Variables(params, {})
        assert probe.fit_head(model, variables, data) is variables
