"""The optimiser factory."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import train
from mvp_jax.train import optimizers


def test_nesterov_is_the_update_written_as_loops_and_kernels_alone_decay():
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    grads = {"kernel": jnp.array([0.5, 0.25]), "bias": jnp.array([-1.0])}
    tx = train.optimizer("nesterov", decayed="kernels")
    state = tx.init(params)
    given = {"learning_rate": jnp.array(0.1), "weight_decay": jnp.array(0.2)}
    state = state._replace(hyperparams={**state.hyperparams, **given})
    theta, speed = {k: np.asarray(v, np.float64) for k, v in params.items()}, dict.fromkeys(params, 0.0)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in theta:
            g = np.asarray(grads[name], np.float64) + (0.2 * theta[name] if name == "kernel" else 0)
            speed[name] = 0.9 * speed[name] + g
            theta[name] = theta[name] - 0.1 * (g + 0.9 * speed[name])
    for name in theta:
        np.testing.assert_allclose(params[name], theta[name], rtol=1e-5)
    assert abs(float(params["bias"][0]) - 3) > 0.3


def test_equal_arguments_give_one_object_and_unknown_ones_are_refused():
    assert train.optimizer("nesterov", decayed="all") is train.optimizer("nesterov")
    assert train.optimizer("sgd", decayed="kernels") is train.optimizer("sgd", decayed=optimizers.kernels)
    assert train.optimizer("sgd") is not train.optimizer("nesterov")
    assert train.optimizer("sgd", momentum=0.5) is not train.optimizer("sgd")
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; choose one of sgd, nesterov, adamw, either"):
        train.optimizer("adam")
    with pytest.raises(ValueError, match="decayed is 'none'; choose 'all' or 'kernels'"):
        train.optimizer("sgd", decayed="none")
