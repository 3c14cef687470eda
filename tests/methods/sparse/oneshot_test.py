"""Pruning in one shot: the masks of every score against NumPy."""

import functools

import jax
import numpy as np
import pytest

from mvp_jax.methods.sparse import oneshot
from tests import mlp
from tests.methods.sparse.isp_test import best
from tests.methods.sparse.recipes_test import ALL, TRAINING, data, in_float64, kernels, problem


@functools.cache
def slopes():
    """Gradients of the mean loss, and of every example alone."""
    params = in_float64(mlp.variables().params)
    x, y = data()
    each = [kernels(mlp.in_numpy(params, x[i : i + 1], y[i : i + 1])[1]) for i in range(len(y))]
    return kernels(mlp.in_numpy(params, x, y)[1]), np.array(each)


def by_hand(score):
    params = in_float64(mlp.variables().params)
    theta, (mean, each) = kernels(params), slopes()
    if score == "grasp":
        # The Hessian times the gradient as a difference of gradients along it.
        grads = mlp.in_numpy(params, *data())[1]
        ends = [jax.tree.map(lambda p, g, s=s: p + s * g, params, grads) for s in (1e-5, -1e-5)]
        up, down = (kernels(mlp.in_numpy(end, *data())[1]) for end in ends)
        return theta * (up - down) / 2e-5
    return {
        "magnitude": np.abs(theta),
        "snip": np.abs(theta * mean),
        "taylor": (theta * mean) ** 2,
        "fisher": theta**2 * np.mean(each**2, axis=0),
    }[score]


@pytest.mark.parametrize("score", ["magnitude", "snip", "taylor", "fisher", "grasp"])
def test_one_shot_masks_are_numpys(score):
    settings = oneshot.Settings(score=score, examples=99, batch=5, training=TRAINING)
    got = oneshot.oneshot(problem(), settings, jax.random.key(0))
    wanted = best(by_hand(score), 26, ALL)
    assert np.array_equal(kernels(got.masks), wanted)
    assert score == "magnitude" or not np.array_equal(wanted, best(by_hand("magnitude"), 26, ALL))


def test_wanda_compares_the_inputs_of_each_output():
    got = oneshot.oneshot(
        problem(0.6), oneshot.Settings(score="wanda", examples=99, training=TRAINING), jax.random.key(0)
    )
    params = in_float64(mlp.variables().params)
    x0 = data()[0] + params["offset"]
    h1 = np.tanh(x0 @ params["one"]["kernel"] + params["one"]["bias"])
    for name, inputs, keep in (("one", x0, 2), ("two", h1, 3)):
        scores = np.abs(params[name]["kernel"]) * np.linalg.norm(inputs, axis=0)[:, None]
        wanted = np.stack([best(column, keep, np.ones(len(column), bool)) for column in scores.T], axis=1)
        assert np.array_equal(np.asarray(got.masks[name]["kernel"]), wanted)
