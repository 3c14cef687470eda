"""How sure a score is: 95 % intervals of accuracies, of differences of two models, and of any other metric.

All of them answer for the choice of test examples: how far the score would move with other examples of the same kind.
They do not answer for the random numbers of training.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from mvp_jax.reports.model_report import ScoreDifference

ScoreFunction: TypeAlias = Callable[[Any, Any], float]
"""A score of predictions `[N, ...]` against labels `[N]`; `nan` where it has no value."""


def accuracy_interval(correct: int, count: int, *, confidence: float = 0.95) -> tuple[float, float]:
    r"""Returns Wilson's interval of an accuracy.

    The interval holds every accuracy $p$ with $|k/n - p| \le z \sqrt{p (1 - p) / n}$. It stays within [0, 1] and is
    not empty even if all examples are right.

    Args:
        correct: the number $k$ of examples that are right.
        count: the number $n$ of examples, at least 1.
        confidence: the share of such intervals that hold the true accuracy, between 0 and 1.

    Raises:
        ValueError: if `correct` is not from 0 to `count`, there are no examples, or `confidence` is not between 0
            and 1.

    >>> low, high = accuracy_interval(81, 263)
    >>> f"{low:.4f} to {high:.4f}"
    '0.2553 to 0.3662'

    Reference: Wilson, Journal of the American Statistical Association 22, 1927. The example is the first one of
    Newcombe, Statistics in Medicine 17, 1998, p. 857, method 3.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"{correct} of {count} examples are right; give at least one example, and 0 to all of them")
    z = _normal_quantile(confidence)
    p = correct / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    # At the ends the formula gives exactly 0 and 1 but for rounding.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == count else centre + half)


def paired_difference(dense_correct: Any, pruned_correct: Any, *, confidence: float = 0.95) -> ScoreDifference:
    r"""Returns the pruned model's accuracy less the dense model's on the same examples, with Newcombe's interval.

    Two models that err on the same examples differ by less than their two intervals suggest. The interval joins
    Wilson's intervals of both accuracies by the correlation $\phi$ of being right, which is moved towards 0 by $n/2$
    in its numerator (method 10).

    Args:
        dense_correct: whether the dense model is right, `bool[N]`.
        pruned_correct: whether the pruned model is right on the same examples, `bool[N]`.
        confidence: the share of such intervals that hold the true difference, between 0 and 1.

    Raises:
        ValueError: if both are not boolean of one length of at least 1.

    >>> dense = np.array([True] * 36 + [False] * 2 + [True] * 12)
    >>> pruned = np.array([True] * 36 + [True] * 2 + [False] * 12)
    >>> d = paired_difference(dense, pruned)
    >>> f"{d.value:.2f}, {d.low:.4f} to {d.high:.4f}"
    '-0.20, -0.3404 to -0.0569'

    Reference: Newcombe, Statistics in Medicine 17, 1998, p. 2635, method 10.
    """
    dense, pruned = np.asarray(dense_correct), np.asarray(pruned_correct)
    if dense.dtype != bool or pruned.dtype != bool or dense.ndim != 1 or dense.shape != pruned.shape or not dense.size:
        raise ValueError(
            f"dense_correct is {dense.dtype}{list(dense.shape)} and pruned_correct {pruned.dtype}{list(pruned.shape)}; "
            "give bool[N] of the same examples twice, at least one"
        )
    n = len(dense)
    both, neither = int(np.sum(dense & pruned)), int(np.sum(~dense & ~pruned))
    gained, lost = int(np.sum(pruned & ~dense)), int(np.sum(dense & ~pruned))
    a, b = (both + gained) / n, (both + lost) / n  # of the pruned and of the dense model
    a_low, a_high = accuracy_interval(both + gained, n, confidence=confidence)
    b_low, b_high = accuracy_interval(both + lost, n, confidence=confidence)
    product = (both + gained) * (neither + lost) * (both + lost) * (neither + gained)
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    phi = excess / math.sqrt(product) if product else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    value = (gained - lost) / n
    return ScoreDifference(value, value - reach(a - a_low, b_high - b), value + reach(a_high - a, b - b_low))


def bootstrap(
    metric: ScoreFunction, predictions: Any, labels: Any, *, seed: int, repeats: int = 1000, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap's interval of any metric, such as F1 or a correlation.

    The metric is computed on `repeats` samples of as many examples, drawn with replacement. Samples on which it has no
    value (such as a correlation of equal numbers) are left out.

    Args:
        metric: what is computed from predictions `[N, ...]` and labels `[N]`.
        predictions: of the `N` examples.
        labels: of the same examples.
        seed: of the draws; the same seed gives the same interval.
        repeats: the number of samples.
        confidence: the share of such intervals that hold the true value, about.

    Returns:
        The lower and the upper end; `None` if the metric has no value on more than a twentieth of the samples, as an
        interval of the rest would look surer than it is.

    Raises:
        ValueError: if there are no examples, or not as many predictions as labels.

    >>> labels = np.arange(100) % 2
    >>> low, high = bootstrap(lambda p, y: float(np.mean(p == y)), np.ones(100), labels, seed=0)
    >>> 0.39 < low < 0.42 and 0.58 < high < 0.61
    True

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    guess, y = np.asarray(predictions), np.asarray(labels)
    _check_lengths(len(y), predictions=len(guess))
    values = [metric(guess[chosen], y[chosen]) for chosen in _samples(len(y), seed, repeats)]
    return _percentiles(values, confidence)


def bootstrap_difference(
    metric: ScoreFunction,
    dense: Any,
    pruned: Any,
    labels: Any,
    *,
    seed: int,
    repeats: int = 1000,
    confidence: float = 0.95,
) -> ScoreDifference:
    """Returns the pruned model's score less the dense model's by any metric, with the bootstrap's interval.

    Both models are scored on the same samples of examples, so that what is hard for both does not count.

    Args:
        metric: what is computed from predictions `[N, ...]` and labels `[N]`.
        dense: the dense model's predictions of the `N` examples.
        pruned: the pruned model's predictions of the same examples.
        labels: of the same examples.
        seed: of the draws; the same seed gives the same interval.
        repeats: the number of samples.
        confidence: the share of such intervals that hold the true difference, about.

    Raises:
        ValueError: if there are no examples, or not as many predictions as labels.

    >>> labels = np.arange(60) % 3
    >>> equal = lambda p, y: float(np.mean(p == y))
    >>> bootstrap_difference(equal, labels, labels, labels, seed=0)
    ScoreDifference(value=0.0, low=0.0, high=0.0)
    """
    before, after, y = np.asarray(dense), np.asarray(pruned), np.asarray(labels)
    _check_lengths(len(y), dense=len(before), pruned=len(after))
    found = _percentiles(
        [metric(after[c], y[c]) - metric(before[c], y[c]) for c in _samples(len(y), seed, repeats)], confidence
    )
    low, high = (None, None) if found is None else found
    return ScoreDifference(metric(after, y) - metric(before, y), low, high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}; give a number between 0 and 1, such as 0.95")
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_lengths(labels: int, **predictions: int) -> None:
    if not labels or set(predictions.values()) != {labels}:
        raise ValueError(f"{predictions} predictions of {labels} labels; give as many of each, at least one")


def _samples(count: int, seed: int, repeats: int) -> Iterator[np.ndarray]:
    draws = np.random.default_rng(seed)
    for _ in range(repeats):
        yield draws.integers(0, count, count)


def _percentiles(values: list[float], confidence: float) -> tuple[float, float] | None:
    _normal_quantile(confidence)
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 0.95 * len(values) or not known:
        return None
    low, high = np.quantile(known, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


__all__ = ["ScoreFunction", "accuracy_interval", "bootstrap", "bootstrap_difference", "paired_difference"]
