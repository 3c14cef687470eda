"""Cross-entropy against what it was written as before, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import train

MORE = ({}, {"smoothing": 0.1}, {"classes": 4}, {"smoothing": 0.2, "classes": 4})


def by_a_low_logit(logits, targets, smoothing=0.0, classes=None):
    """The same with -1e9 for classes that a task does not have."""
    count = logits.shape[-1] if classes is None else classes
    own = jnp.arange(logits.shape[-1]) < count
    log_p = jax.nn.log_softmax(jnp.where(own, logits, -1e9))
    targets = (1.0 - smoothing) * targets + smoothing / count
    return -jnp.sum(jnp.where(own, targets * log_p, 0.0), -1)


def problem(dtype, beyond=1.0):
    """Logits whose last two are those of classes that some tasks do not have, labels, and distributions."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(9, 6)) * 3, dtype).at[:, 4:].multiply(beyond)
    soft = np.concatenate([rng.dirichlet(np.ones(4), 9), np.zeros((9, 2))], 1)
    return logits, jnp.asarray(rng.integers(0, 4, 9)), jnp.asarray(soft, jnp.float32)


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("beyond", [1.0, 300.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_a_low_logit(dtype, beyond, more):
    logits, labels, soft = problem(dtype, beyond)
    classes = {**more, "classes": jnp.int32(more["classes"])} if "classes" in more else more
    for given, targets in ((labels, jax.nn.one_hot(labels, 6)), (soft, soft)):

        def ours(logits, given=given):
            return train.cross_entropy(logits, given, **classes).astype(jnp.float32)

        def theirs(logits, targets=targets):
            return by_a_low_logit(logits, targets, **more).astype(jnp.float32)

        # Of labels alone optax subtracts in bfloat16, of distributions the sum is in float32.
        rounding = 1e-6 if dtype == jnp.float32 or given is soft or "smoothing" in more else 1e-2
        np.testing.assert_allclose(ours(logits), theirs(logits), rtol=rounding, atol=rounding)
        slopes = (jax.grad(lambda z, f=f: jnp.sum(f(z)))(logits).astype(jnp.float32) for f in (ours, theirs))
        np.testing.assert_allclose(*slopes, atol=rounding)
        assert bool(jnp.isfinite(ours(logits)).all())
    assert float(jnp.ptp(ours(logits))) > 0.1


def test_labels_are_distributions_with_all_in_one_place():
    logits, labels, _ = problem(jnp.float32)
    for more in MORE:
        hard = train.cross_entropy(logits, labels, **more)
        np.testing.assert_allclose(train.cross_entropy(logits, jax.nn.one_hot(labels, 6), **more), hard, rtol=2e-5)
    rng = np.random.default_rng(1)
    z, targets = np.asarray(logits, np.float64), rng.dirichlet(np.ones(6), 9)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    want = [-sum(t * np.log(q) for t, q in zip(*pair, strict=True)) for pair in zip(targets, p, strict=True)]
    np.testing.assert_allclose(train.cross_entropy(logits, jnp.asarray(targets, jnp.float32)), want, rtol=1e-5)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels are float32\[2, 4\] and logits \[2, 3\]; expected integers \[2\]"):
        train.cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 4)))


def test_no_class_beyond_is_the_largest():
    logits, _, _ = problem(jnp.float32, 300.0)
    assert int(train.restrict(logits, 4).argmax(-1).max()) < 4
    assert int(logits.argmax(-1).max()) >= 4
