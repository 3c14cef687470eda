"""Metrics of predictions, by hand, by counting, and where they have no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax import train
from mvp_jax.data.datasets import glue
from mvp_jax.train import metrics
from tests import mlp

BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


def test_by_hand():
    """Three true positives, one false, two missed, four true negatives."""
    y = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], np.int32)
    guess = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    got = metrics.score(("accuracy", "f1", "matthews"), guess, y)
    # 6 / 9; (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6)
    assert got == pytest.approx({"accuracy": 0.7, "f1": 2 / 3, "matthews": 10 / 600**0.5})
    logits = np.stack([-guess, guess], 1) + 0.25
    assert metrics.score(("accuracy", "f1", "matthews"), jnp.asarray(logits), jnp.asarray(y)) == pytest.approx(got)
    # Deviations (-1, 0, 1) and (-1, 2, -1) / 3 and ranks 1, 2, 3 and 1.5, 3, 1.5: nothing in common.
    assert metrics.score(("pearson", "spearman"), [1, 2, 3], [0, 3, 0]) == pytest.approx({"pearson": 0, "spearman": 0})
    # Ranks 1, 2, 3, 4 of 1, 2, 4, 3: 1 - 6 * 2 / (4 * 15).
    got = metrics.score(("pearson", "spearman"), np.array([[0.0], [1.0], [2.0], [3.0]]), [0.5, 1.0, 5.0, 4.5])
    assert got["spearman"] == pytest.approx(0.8)
    assert got["pearson"] == pytest.approx(8 / (5 * 16.25) ** 0.5)


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / ((a @ a) * (b @ b)) ** 0.5


@given(BITS)
def test_two_classes_by_counting(pairs):
    guess, y = (np.array(v) for v in zip(*pairs, strict=True))
    got = metrics.score(("accuracy", "f1", "matthews"), guess, y)
    tp, tn, fp, fn = (sum(p == pair for p in pairs) for pair in ((1, 1), (0, 0), (1, 0), (0, 1)))
    assert got["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert got["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert got["matthews"] == pytest.approx((tp * tn - fp * fn) / under**0.5 if under else 0.0, abs=1e-12)


NUMBERS = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 20)), min_size=2, max_size=20)


@given(NUMBERS)
def test_numbers_by_ranks(pairs):
    guess, y = (np.array(v, np.float64) / 4 for v in zip(*pairs, strict=True))
    got = metrics.score(("pearson", "spearman"), guess[:, None].astype(np.float32), y.astype(np.float32))
    if len(set(guess)) == 1 or len(set(y)) == 1:
        assert np.isnan([*got.values()]).all()
        return
    ranks = [np.array([(v < x).sum() + (v == x).sum() / 2 for x in v]) for v in (guess, y)]
    assert got["pearson"] == pytest.approx(correlation(guess, y), abs=1e-9)
    assert got["spearman"] == pytest.approx(correlation(*ranks), abs=1e-9)


def test_three_classes():
    """R_K is the correlation of all indicators together."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    guess = np.where(rng.random(200) < 0.6, y, rng.integers(0, 3, 200))
    a, b = (np.eye(3)[v] for v in (guess, y))
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (a * b).sum() / ((a * a).sum() * (b * b).sum()) ** 0.5
    assert metrics.score(("matthews",), guess, y)["matthews"] == pytest.approx(expected)
    assert 0.2 < expected < 0.8


def test_without_a_value():
    """No warning, which would be an error here."""
    for guess, y in (([0, 0, 0], [0, 1, 1]), ([0, 0], [0, 0]), ([0, 1], [0, 0])):
        got = metrics.score(("f1", "matthews"), guess, y)
        assert got == {"f1": 0.0, "matthews": 0.0}
    assert metrics.score(("f1", "matthews"), [1, 1], [1, 1]) == {"f1": 1.0, "matthews": 0.0}
    for guess, y in (([2.0, 2.0], [1, 2]), ([1, 2], [3.0, 3.0]), ([1.0], [1.0]), ([np.nan, 1.0], [1.0, 2.0])):
        assert np.isnan([*metrics.score(("pearson", "spearman"), guess, y).values()]).all()
    nearly = metrics.score(("pearson",), 1 + 1e-15 * np.arange(3), [1.0, 2.0, 3.0])["pearson"]
    assert np.isnan(nearly) or abs(nearly) <= 1


@pytest.mark.parametrize(
    ("names", "guess", "y", "message"),
    [
        (("accuracy", "f2"), [0], [0], r"no metrics \['f2'\]; there are accuracy, f1"),
        (("pearson",), [[0.1, 0.9]], [1.0], r"predicted numbers, and here are 2 classes"),
        (("pearson", "f1"), [0.1, 0.2], [1.0, 2.0], r"metrics \['f1'\] are of classes"),
        (("f1",), [0, 2], [0, 1], "f1 is of two classes, and here are 3"),
        (("f1",), np.zeros((2, 4)), [0, 1], "f1 is of two classes, and here are 4"),
        (("accuracy",), [0.5, 1.0], [0, 1], "predictions are float64 and labels int64"),
        (("accuracy",), [0, 1], [0.5, 1.0], "want classes as integers"),
        (("accuracy",), [0, 1], [0], r"predictions \[2\] of labels \[1\]"),
        (("accuracy",), np.zeros((0, 2)), np.zeros(0, int), "at least one"),
        (("accuracy",), np.zeros((2, 2, 2)), [0, 1], r"give logits \[N, Y\]"),
    ],
)
def test_refused(names, guess, y, message):
    with pytest.raises(ValueError, match=message):
        metrics.score(names, guess, y)


def test_metrics_of_glue_fit_its_tasks():
    for task in glue.TASKS.values():
        metrics.check(task.metrics, task.classes)
    assert glue.TASKS["cola"].metrics == ("matthews",)
    assert glue.TASKS["stsb"].metrics == ("pearson", "spearman")


def test_a_regression_is_learned():
    """As `stsb` is: one output, squared errors, a correlation."""
    model = mlp.mlp().with_classes(1)
    x = jax.random.normal(jax.random.key(0), (64, *model.input_shape))
    y = jnp.clip(2.5 + jnp.sum(x[:, :2].reshape(64, -1), 1), 0.0, 5.0)
    tx = train.optimizer("adamw")
    state = train.create(model.init(jax.random.key(1)), tx, jax.random.key(2))
    before = metrics.score(("pearson",), model.apply(state.variables, x)[0], y)["pearson"]
    recipe = train.Recipe(model=model, tx=tx, batch=32, loss=metrics.squared_error)
    state, seen = train.fit(recipe, state, {"x": x, "y": y}, 200, learning_rate=1e-2)
    assert np.isnan(float(seen["accuracy"]))
    outputs = model.apply(state.variables, x)[0]
    assert metrics.score(("pearson",), outputs, y)["pearson"] > max(0.9, before)
    assert float(jnp.mean(metrics.squared_error(outputs, y))) == pytest.approx(
        float(jnp.mean((outputs[:, 0] - y) ** 2))
    )
