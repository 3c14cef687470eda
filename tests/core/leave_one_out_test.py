"""The leave-one-out error in closed form against regressions that are really fitted without each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import similarity


def by_fitting(features: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Minus the mean squared error of N ridge regressions, each fitted to all examples but one, in float64."""
    f = features.astype(np.float64)
    deviation = f.std(0)
    f = np.where(deviation > 1e-6, (f - f.mean(0)) / np.where(deviation > 1e-6, deviation, 1), 0) / np.sqrt(f.shape[1])
    x = np.concatenate([f, np.ones((len(f), 1))], 1)
    errors = []
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        a = x[rest].T @ x[rest] + ridge * np.eye(x.shape[1])
        errors.append((y[i] - x[i] @ np.linalg.solve(a, x[rest].T @ y[rest])) ** 2)
    return -float(np.mean(errors))


def draw(n: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + width)
    labels = rng.integers(0, classes, n)
    features = rng.normal(size=(n, width)) + rng.normal(size=(classes, width))[labels]
    features[:, -1] = 3.0  # a unit that says nothing
    return features.astype(np.float32), labels


@pytest.mark.parametrize(("n", "width", "classes"), [(12, 40, 3), (40, 12, 3), (30, 30, 5), (9, 8, 2), (2, 3, 2)])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_it_is_the_error_of_regressions_fitted_without_each_example(n, width, classes, ridge):
    features, labels = draw(n, width, classes)
    want = by_fitting(features, np.eye(classes)[labels], ridge)
    got = similarity.press(jnp.asarray(features), jnp.asarray(labels), classes, ridge=ridge)
    assert got.shape == ()
    assert got.dtype == jnp.float32
    assert float(got) == pytest.approx(want, rel=2e-3 if ridge < 0.01 else 2e-4)
    # Not the error on the examples that were fitted, which is far smaller.
    f = (features - features.mean(0)) / np.where(features.std(0) > 1e-6, features.std(0), np.inf) / np.sqrt(width)
    x = np.concatenate([f, np.ones((n, 1))], 1)
    fitted = x @ np.linalg.solve(x.T @ x + ridge * np.eye(width + 1), x.T @ np.eye(classes)[labels])
    seen = -float(np.mean((np.eye(classes)[labels] - fitted) ** 2))
    assert want < seen - 1e-3


@pytest.mark.parametrize(("n", "width", "classes"), [(12, 40, 3), (50, 64, 5), (9, 8, 2)])
def test_a_small_penalty_loses_no_digits_where_examples_are_fitted_exactly(n, width, classes):
    features, labels = draw(n, width, classes)
    want = by_fitting(features, np.eye(classes)[labels], 1e-6)
    got = similarity.press(jnp.asarray(features), jnp.asarray(labels), classes, ridge=1e-6)
    assert float(got) == pytest.approx(want, rel=2e-3)


def test_both_systems_give_one_answer():
    # With as many examples as features the smaller system changes; more features that say nothing change no error
    # but for the scale sqrt(F), which a ridge of the same scale undoes where there is no bias to penalise.
    features, labels = draw(20, 19, 3)
    want = by_fitting(features, np.eye(3)[labels], 0.1)
    wide = np.concatenate([features, np.ones((20, 3), np.float32)], 1)
    both = [similarity.press(jnp.asarray(f), jnp.asarray(labels), 3) for f in (features, wide)]
    assert float(both[0]) == pytest.approx(want, rel=2e-4)
    assert float(both[1]) == pytest.approx(by_fitting(wide, np.eye(3)[labels], 0.1), rel=2e-4)
    assert float(both[0]) != pytest.approx(float(both[1]), rel=1e-3)


def test_numbers_and_tokens_are_predicted_too():
    features, labels = draw(24, 6, 3)
    y = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32) + features[:, :2]
    want = by_fitting(features, y, 0.1)
    assert float(similarity.press(jnp.asarray(features), jnp.asarray(y))) == pytest.approx(want, rel=2e-4)
    single = float(similarity.press(jnp.asarray(features), jnp.asarray(y[:, 0])))
    assert single == pytest.approx(by_fitting(features, y[:, :1], 0.1), rel=2e-4)
    assert want != pytest.approx(single, rel=1e-2)
    tokens = similarity.press(jnp.asarray(features.reshape(4, 6, 6)), jnp.asarray(labels.reshape(4, 6)), 3)
    assert float(tokens) == pytest.approx(by_fitting(features, np.eye(3)[labels], 0.1), rel=2e-4)


@pytest.mark.parametrize(("n", "width"), [(10, 30), (30, 10)])
def test_examples_that_do_not_count_change_nothing(n, width):
    features, labels = draw(n, width, 3)
    want = float(similarity.press(jnp.asarray(features), jnp.asarray(labels), 3))
    padded = np.concatenate([features, np.full((5, width), 1e3, np.float32)])
    marks = np.arange(n + 5) < n
    got = similarity.press(jnp.asarray(padded), jnp.asarray(np.append(labels, [-1] * 5)), 3, where=jnp.asarray(marks))
    assert float(got) == pytest.approx(want, rel=1e-4)
    assert want < -0.01


def test_one_program_serves_members_and_every_ridge():
    features, labels = (np.stack(a) for a in zip(*[draw(15, 9 + 0 * i, 3) for i in range(4)], strict=True))
    features = features + np.arange(4, dtype=np.float32)[:, None, None] * np.linspace(0, 1, 9, dtype=np.float32) ** 2
    traces = 0

    @jax.jit
    def every(f, y, ridge):
        nonlocal traces
        traces += 1
        return jax.vmap(lambda f, y: similarity.press(f, y, 3, ridge=ridge))(f, y)

    got = every(features, labels, 0.1)
    for i in range(4):
        assert float(got[i]) == pytest.approx(by_fitting(features[i], np.eye(3)[labels[i]], 0.1), rel=2e-4)
    assert not np.allclose(every(features, labels, 1.0), got, rtol=1e-3)
    assert traces == 1
    slope = jax.grad(lambda f: similarity.press(f, jnp.asarray(labels[0]), 3))(jnp.asarray(features[0]))
    assert bool(jnp.all(jnp.isfinite(slope)))
    assert float(jnp.abs(slope).max()) > 1e-4


@pytest.mark.parametrize(
    ("features", "targets", "classes", "message"),
    [
        ((5, 3), np.zeros(4, np.int32), 2, "a label"),
        ((5, 3), np.zeros((5, 2), np.int32), 2, "a label"),
        ((5, 3), np.array([0, 1, 2, 0, 1]), 2, "outside the classes"),
        ((3,), np.zeros(3, np.int32), 2, "outside|a label|features"),
        ((5, 3), np.zeros((5, 1, 2), np.float32), None, "a label"),
    ],
)
def test_bad_input_is_refused(features, targets, classes, message):
    with pytest.raises(ValueError, match=message):
        similarity.press(jnp.zeros(features), jnp.asarray(targets), classes)
