"""The logistic head against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mvp_jax.core import trees
from mvp_jax.models.api import replace_head
from mvp_jax.train import probe
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
