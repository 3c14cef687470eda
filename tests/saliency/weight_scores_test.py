"""Scores of single weights against NumPy loops, explicit Hessians, one example at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from mvp_jax import saliency
from mvp_jax.core import masks, prune, trees
from mvp_jax.core.types import Variables
from tests import mlp


def in_numpy():
    """The network of tests/mlp with its data, everything as float64 arrays."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), mlp.variables().params)
    batch = mlp.data(11)
    return params, np.asarray(batch["x"], np.float64), np.asarray(batch["y"])


def cross_entropy(params, x, y):
    logits, _ = mlp.mlp().apply(Variables(params, {}), x)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def one_example(params, x1, y1):
    return cross_entropy(params, x1[None], y1[None])


def assert_close(got, expected, rtol=1e-4):
    got, expected = trees.flatten(got), trees.flatten(expected)
    assert set(got) == set(expected)
    for path, e in expected.items():
        e = np.asarray(e)
        assert np.ptp(e) > 0, path
        np.testing.assert_allclose(got[path], e, rtol=rtol, atol=rtol * np.abs(e).max(), err_msg=path)


def test_snip_is_the_magnitude_of_weight_times_gradient():
    params, x, y = in_numpy()
    _, grads, _, _ = mlp.in_numpy(params, x, y)
    assert any((p * g < 0).any() for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True))
    expected = jax.tree.map(lambda p, g: np.abs(p * g), params, grads)
    p = mlp.variables().params
    assert_close(saliency.snip(p, jax.jit(jax.grad(cross_entropy))(p, *mlp.data(11).values())), expected)
    with pytest.raises(ValueError, match="differ in structure"):
        saliency.snip(p, {"one": p["one"]})


def smooth(params, x, y):
    """A loss with curvature in every weight."""
    h = jnp.tanh(x @ params["a"]) @ params["b"]
    return jnp.mean((h - y) ** 2) + 0.1 * jnp.sum(params["a"] ** 4)


def smooth_case(seed=0, n=9, features=3, hidden=6):
    rng = np.random.default_rng(seed)
    shapes = {"a": (features, hidden), "b": (hidden, 2)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x, y = (jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for d in (features, 2))
    return params, x, y


def test_grasp_is_the_weight_times_hessian_times_gradient():
    params, x, y = smooth_case()
    flat, back = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda f: smooth(back(f), x, y)))(flat), np.float64)
    gradient = np.asarray(jax.jit(jax.grad(lambda f: smooth(back(f), x, y)))(flat), np.float64)
    expected = np.asarray(flat) * (hessian @ gradient)
    assert (expected > 0).any()
    assert (expected < 0).any()
    assert_close(saliency.grasp(smooth, params, x, y), back(jnp.asarray(expected, jnp.float32)))
    assert_close(saliency.grasp(lambda p: smooth(p, x, y), params), saliency.grasp(smooth, params, x, y))


@pytest.mark.parametrize("seed", range(3))
def test_pruning_by_grasp_keeps_the_gradients_norm(seed):
    params, x, y = smooth_case(seed, n=20, features=6, hidden=12)
    n = sum(leaf.size for leaf in jax.tree.leaves(params))
    keep = prune.keep_count(n, 0.1)

    gradient = jax.jit(jax.grad(smooth))

    def norm(scores):
        pruned = masks.apply(params, prune.across_tree(scores, keep))
        return sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(gradient(pruned, x, y)))

    scores = saliency.grasp(smooth, params, x, y)
    opposite = norm(jax.tree.map(jnp.negative, scores))
    by_chance = [norm(saliency.random(jax.random.key(i), params)) for i in range(10)]
    assert norm(scores) > 1.05 * max(*by_chance, opposite)
    assert opposite < 0.95 * np.mean(by_chance)


@pytest.mark.parametrize("batch", [4, 50])
def test_fisher_squares_the_gradient_of_every_example(batch):
    params, x, y = in_numpy()
    total = jax.tree.map(np.zeros_like, params)
    for i in range(len(y)):
        _, grads, _, _ = mlp.in_numpy(params, x[i : i + 1], y[i : i + 1])
        total = jax.tree.map(lambda t, g: t + g**2, total, grads)
    expected = jax.tree.map(lambda p, t: p**2 * t / len(y), params, total)
    data = mlp.data(11)
    got = saliency.fisher(one_example, mlp.variables().params, data["x"], data["y"], batch=batch)
    assert_close(got, expected)
    # The gradient of the mean, squared, would be something else.
    mean = mlp.in_numpy(params, x, y)[1]
    assert not np.allclose((params["one"]["kernel"] * mean["one"]["kernel"]) ** 2, got["one"]["kernel"], rtol=0.1)


def test_fisher_holds_no_more_gradients_than_a_batch():
    data = mlp.data(24)
    program = functools.partial(saliency.fisher, one_example, batch=4)
    text = str(jax.make_jaxpr(program)(mlp.variables().params, data["x"], data["y"]))
    assert "f32[4,5,8]" in text
    assert "f32[24,5,8]" not in text


def test_losses_and_examples_are_checked():
    params, x, y = smooth_case()
    with pytest.raises(ValueError, match=r"shapes \[\(9, 2\)\]; it must return one number"):
        saliency.grasp(lambda p: x @ p["a"] @ p["b"], params)
    with pytest.raises(ValueError, match=r"must return one number"):
        saliency.fisher(lambda p, x1, y1: x1 @ p["a"], params, x, y)
    for wrong in ((x, y, 0), (x, y[:5], 4), (x[:0], y[:0], 4)):
        with pytest.raises(ValueError, match="equally many examples"):
            saliency.fisher(smooth, params, *wrong[:2], batch=wrong[2])


def containers(params):
    """The same weights in every container that a framework hands out."""
    return [params, freeze(params), nnx.State(jax.tree.map(nnx.Param, params)), tuple(jax.tree.leaves(params))]


def test_any_container_gives_the_same_scores():
    params, x, y = smooth_case()

    def net(p, x):
        a, b = jax.tree.leaves(p)
        return x @ a @ b

    def loss(p, x, y):
        return jnp.sum((net(p, x) - y) ** 2)

    for p in containers(params):
        found = [
            saliency.snip(p, p),
            saliency.grasp(loss, p, x, y),
            saliency.fisher(loss, p, x, y),
            saliency.wanda(p, p),
            saliency.synflow(net, p, (3,), prunable=[".*"]),
        ]
        if p is params:
            expected = found
        for got, e in zip(found, expected, strict=True):
            assert jax.tree.structure(got) == jax.tree.structure(p)
            assert_close(dict(zip("ab", jax.tree.leaves(got), strict=True)), e, 1e-6)


def test_wanda_refuses_norms_of_another_model():
    params = {"a": -jnp.ones((2, 3)), "b": jnp.ones(3)}
    scores = saliency.wanda(params, {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(())})
    assert scores["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert scores["b"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"norms of 'a' have shape \(3, 2\)"):
        saliency.wanda(params, {"a": jnp.ones((3, 2)), "b": jnp.ones(())})
