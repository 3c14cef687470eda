"""Outputs of many examples in batches, and batch statistics, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import trees
from mvp_jax.train import evaluation
from tests.masked_mlp import distance, in_float64, problem
from tests.model_kinds import batch, made


def test_statistics_are_those_of_the_first_layers_activations():
    model, variables = made("option_a")
    x = batch(model, 6)
    got = evaluation.reestimate(model, variables, x)
    leaves = trees.flatten(variables)
    kernel = np.asarray(leaves["params/stem/conv/kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    before = sum(
        padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)
    )  # a 3x3 convolution, written out
    stats = {p: v for p, v in trees.flatten(got.rest).items() if p.startswith("stem/")}
    np.testing.assert_allclose(stats["stem/norm/mean"], before.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["stem/norm/var"], before.var((0, 1, 2)), rtol=1e-4)
    assert distance(got.rest, in_float64(variables.rest)) > 0.1
    assert got.params is variables.params or distance(got.params, in_float64(variables.params)) == 0
    # In evaluation mode the model now computes what it computes in training mode on this batch.
    np.testing.assert_allclose(model.apply(got, x)[0], model.apply(variables, x, train=True)[0], rtol=1e-3, atol=1e-4)
    vit, weights = made("vit_mean")
    unchanged = evaluation.reestimate(vit, weights, batch(vit))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, unchanged, weights)))


@pytest.mark.parametrize("n", [3, 4, 9])
def test_evaluation_in_batches_is_evaluation_at_once(n):
    model, variables = made("option_a")
    x, y = batch(model, n), jnp.arange(n) % 3
    logits, features = evaluation.infer(model, variables, x, batch=4)
    seen = model.inspect(variables, x)
    np.testing.assert_allclose(logits, seen.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features, seen.features, rtol=1e-5, atol=1e-5)
    got = evaluation.evaluate(model, variables, {"x": x, "y": y}, batch=4)
    z = np.asarray(seen.logits, np.float64)
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(n), np.asarray(y)]
    assert float(got["accuracy"]) == pytest.approx(np.mean(z.argmax(1) == np.asarray(y)))
    assert float(got["loss"]) == pytest.approx(losses.mean(), rel=1e-4)
    assert np.ptp(z) > 0.1


def test_what_is_read_from_the_host_is_inferred_as_what_lies_on_the_device():
    model, variables, _, data = problem()
    for n, size in ((24, 7), (24, 24), (5, 9)):
        x = np.asarray(data["x"][:n])
        got = evaluation.infer(model, variables, list(x), batch=size, read=np.stack)
        want = evaluation.infer(model, variables, data["x"][:n])
        for a, b in zip(got, want, strict=True):
            assert isinstance(a, np.ndarray)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
