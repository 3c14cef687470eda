"""Intervals agree with published examples, with SciPy, and hold what they claim on simulated models."""

import math

import numpy as np
import pytest
from scipy import stats

from mvp_jax.reports import intervals


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Newcombe, Statistics in Medicine 17, 1998, p. 857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_accuracy_intervals_are_the_published_ones(correct, count, low, high):
    assert intervals.accuracy_interval(correct, count) == pytest.approx((low, high), abs=5e-5)
    mirrored = intervals.accuracy_interval(count - correct, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_accuracy_intervals_are_scipys(confidence):
    for count in (1, 2, 7, 100, 12345):
        for correct in sorted({0, 1, count // 3, count - 1, count}):
            ours = intervals.accuracy_interval(correct, count, confidence=confidence)
            theirs = stats.binomtest(correct, count).proportion_ci(confidence, method="wilson")
            np.testing.assert_allclose(ours, (theirs.low, theirs.high), atol=1e-12)
            assert 0 <= ours[0] <= correct / count <= ours[1] <= 1
            assert ours[0] < ours[1]


def test_wrong_counts_are_refused():
    for correct, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{correct} of {count} examples"):
            intervals.accuracy_interval(correct, count)
    with pytest.raises(ValueError, match="confidence=1"):
        intervals.accuracy_interval(1, 2, confidence=1)


def answers(both, first, second, neither):
    """Whether two models are right, from the four counts."""
    one = [True] * both + [True] * first + [False] * second + [False] * neither
    two = [True] * both + [False] * first + [True] * second + [False] * neither
    order = np.random.default_rng(0).permutation(len(one))
    return np.array(one)[order], np.array(two)[order]


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe, Statistics in Medicine 17, 1998, p. 2635
        ((14, 5, 0, 22), 0.122, 0.011, 0.226),  # Altman and others, Statistics with Confidence, 2000, table 6.2
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),  # Fagerland and others, Statistics in Medicine 33, 2014
    ],
)
def test_paired_differences_are_the_published_ones(counts, value, low, high):
    first, second = answers(*counts)
    digits = 5e-4 if high != 0.3404 else 5e-5
    found = intervals.paired_difference(second, first)  # theirs is the first less the second
    assert found == pytest.approx((value, low, high), abs=digits)
    turned = intervals.paired_difference(first, second)
    assert turned == pytest.approx((-value, -high, -low), abs=digits)


def test_paired_differences_hold_the_truth_as_often_as_they_claim():
    draws = np.random.default_rng(1)
    held = narrower = 0
    for _ in range(600):
        kind = draws.choice(4, 150, p=[0.78, 0.10, 0.04, 0.08])  # both right, only dense, only pruned, neither
        dense, pruned = np.isin(kind, (0, 1)), np.isin(kind, (0, 2))
        found = intervals.paired_difference(dense, pruned)
        assert found.low <= found.value <= found.high
        held += found.low <= 0.04 - 0.10 <= found.high
        one, two = (intervals.accuracy_interval(int(x.sum()), 150) for x in (dense, pruned))
        narrower += found.high - found.low < math.hypot(one[1] - one[0], two[1] - two[0])
    assert 0.93 <= held / 600 <= 0.985
    assert narrower > 0.95 * 600, "models that err on the same examples are compared more sharply"


def test_equal_models_differ_by_nothing_within_an_interval():
    right = np.arange(50) % 5 > 0
    found = intervals.paired_difference(right, right)
    assert found.value == 0
    assert found.low < 0 < found.high
    for wrong in (right[:-1], right.astype(int), right[None]):
        with pytest.raises(ValueError, match="give bool"):
            intervals.paired_difference(right, wrong)
    with pytest.raises(ValueError, match="at least one"):
        intervals.paired_difference(right[:0], right[:0])


def accuracy(guess, labels):
    return float(np.mean(guess == labels))


def pearson(guess, labels):
    return float(np.corrcoef(guess, labels)[0, 1])


def test_the_bootstrap_agrees_with_the_binomial_and_with_fishers_interval():
    labels = np.zeros(400, int)
    guess = (np.arange(400) % 4 == 0).astype(int)  # accuracy 0.75
    found = intervals.bootstrap(accuracy, guess, labels, seed=0)
    want = stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    np.testing.assert_allclose(found, want, atol=0.01)

    draws = np.random.default_rng(2)
    x = draws.normal(size=500)
    y = 0.8 * x + 0.6 * draws.normal(size=500)
    found = intervals.bootstrap(pearson, x, y, seed=0)
    theirs = stats.pearsonr(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(found, (theirs.low, theirs.high), atol=0.012)
    assert found == intervals.bootstrap(pearson, x, y, seed=0)
    assert found != intervals.bootstrap(pearson, x, y, seed=1)


def test_the_bootstrap_resamples_predictions_and_labels_together():
    seen = []

    def metric(guess, labels):
        seen.append((guess.copy(), labels.copy()))
        return float(np.mean(labels))

    logits = np.stack([np.arange(30), -np.arange(30)], 1)
    intervals.bootstrap(metric, logits, np.arange(30), seed=3, repeats=5)
    assert len(seen) == 5
    for guess, labels in seen:
        assert guess.shape == (30, 2)
        np.testing.assert_array_equal(guess[:, 0], labels)
        assert len(set(labels)) < 30, "drawn with replacement"


def test_a_paired_bootstrap_is_newcombes_interval_about():
    right = answers(400, 40, 20, 40)
    labels = np.ones(500, int)
    dense, pruned = (x.astype(int) for x in right)
    found = intervals.bootstrap_difference(accuracy, dense, pruned, labels, seed=0)
    want = intervals.paired_difference(dense == labels, pruned == labels)
    np.testing.assert_allclose(found, want, atol=0.006)
    assert found.value == pytest.approx(want.value)
    assert want.value == pytest.approx(-0.04)


def test_where_a_metric_has_no_value_there_is_no_interval():
    assert intervals.bootstrap(lambda p, y: math.nan, [1.0, 2.0], [1.0, 2.0], seed=0, repeats=20) is None
    found = intervals.bootstrap_difference(lambda p, y: math.nan, [1.0], [2.0], [3.0], seed=0, repeats=20)
    assert math.isnan(found.value)
    assert found.low is found.high is None
    with pytest.raises(ValueError, match="at least one"):
        intervals.bootstrap(accuracy, [], [], seed=0)
    with pytest.raises(ValueError, match="3 labels"):
        intervals.bootstrap(accuracy, [1, 2], [1, 2, 3], seed=0)
