"""Metrics of predictions: accuracy, F1, Matthews' and other correlations, as scikit-learn and SciPy compute them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array

OF_CLASSES = ("accuracy", "f1", "matthews")
"""Metrics of predicted classes."""

OF_SCORES = ("pearson", "spearman")
"""Metrics of predicted numbers."""


def check(names: Sequence[str], classes: int) -> None:
    """Checks that metrics fit the kind of prediction.

    Args:
        names: names of metrics, in `OF_CLASSES` or `OF_SCORES`.
        classes: number of classes; 1 for a regression.

    Raises:
        ValueError: for an unknown name, a metric of classes for a regression, a metric of numbers for classes, or F1
            for other than two classes.
    """
    known = (*OF_CLASSES, *OF_SCORES)
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(f"no metrics {strange}; there are {', '.join(known)}")
    wrong = [name for name in names if name not in (OF_SCORES if classes == 1 else OF_CLASSES)]
    if wrong and classes == 1:
        raise ValueError(f"metrics {wrong} are of classes, and one number is predicted; take {', '.join(OF_SCORES)}")
    if wrong:
        raise ValueError(
            f"metrics {wrong} are of predicted numbers, and here are {classes} classes; take {', '.join(OF_CLASSES)}"
        )
    if "f1" in names and classes != 2:
        raise ValueError(f"f1 is of two classes, and here are {classes}; take accuracy or matthews")


def score(names: Sequence[str], predictions: Any, labels: Any) -> dict[str, float]:
    r"""Returns metrics of predictions, `{name: value}`; higher is better.

    With true and false positives and negatives of class 1, $F_1 = 2 TP / (2 TP + FP + FN)$, and Matthews' correlation
    is $(TP \cdot TN - FP \cdot FN) / \sqrt{(TP+FP)(TP+FN)(TN+FP)(TN+FN)}$, Pearson's of the two indicators (for more
    classes its generalisation $R_K$). Spearman's is Pearson's of the ranks, equal values sharing their mean rank.

    F1 and Matthews' are 0 where they have no value (one class predicted, or given), and the others `nan` (constant
    numbers, fewer than two of them, or not finite).

    Args:
        names: names of metrics, all in `OF_CLASSES` or all in `OF_SCORES`.
        predictions: logits `[N, Y]` or classes `int[N]`; for a regression, outputs `[N, 1]` or `[N]`.
        labels: classes `int[N]`; for a regression, numbers `[N]`.

    Raises:
        ValueError: for metrics that do not fit (see `check`), other shapes, or no examples.

    >>> score(("accuracy", "f1"), [1, 1, 0, 1], [1, 0, 0, 1])
    {'accuracy': 0.75, 'f1': 0.8}
    >>> score(("spearman",), [[0.1], [0.3], [0.2]], [1.0, 5.0, 2.5])
    {'spearman': 1.0}

    Reference: van Rijsbergen, Information Retrieval, 1979, chapter 7; Matthews, BBA 405, 1975; Gorodkin, Computational
    Biology and Chemistry 28, 2004, equation 8 ($R_K$).
    """
    given, y = np.asarray(predictions), np.asarray(labels)
    if y.ndim != 1 or not y.size or given.ndim not in (1, 2) or len(given) != len(y):
        raise ValueError(
            f"predictions {list(given.shape)} of labels {list(y.shape)}; give logits [N, Y] or predictions [N], and "
            "labels [N], at least one"
        )
    of_scores = bool(set(names) & set(OF_SCORES))
    if of_scores:
        check(names, 1 if given.ndim == 1 or given.shape[1] == 1 else given.shape[1])
        guess = given.reshape(len(y)).astype(np.float64)
    else:
        guess = given if given.ndim == 1 else np.argmax(given, axis=1)
        if guess.dtype.kind not in "iub" or y.dtype.kind not in "iub":
            raise ValueError(
                f"predictions are {guess.dtype} and labels {y.dtype}; {', '.join(names)} want classes as integers, "
                "or logits [N, Y]"
            )
        largest = int(max(guess.max(), y.max())) + 1
        check(names, max(2, largest if given.ndim == 1 else max(largest, given.shape[1])))
    return {name: float(_METRICS[name](y, guess)) for name in names}


def squared_error(outputs: Array, labels: Array) -> Array:
    """Returns the squared error of each example, the loss of a regression; a `train.Loss`.

    Args:
        outputs: `[N, 1]`.
        labels: `[N]`.

    Returns:
        `[N]`.

    >>> squared_error(jnp.array([[3.0]]), jnp.array([1.0]))
    Array([4.], dtype=float32)
    """
    return jnp.square(outputs[:, 0] - labels)


def _f1(labels: np.ndarray, guess: np.ndarray) -> float:
    from sklearn import metrics

    return float(metrics.f1_score(labels, guess, zero_division=0.0))


def _matthews(labels: np.ndarray, guess: np.ndarray) -> float:
    from sklearn import metrics

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label")
        return float(metrics.matthews_corrcoef(labels, guess))


def _correlated(kind: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def one(labels: np.ndarray, guess: np.ndarray) -> float:
        from scipy import stats

        if len(labels) < 2 or not (np.isfinite(guess).all() and np.isfinite(labels).all()):
            return float("nan")
        with warnings.catch_warnings():
            # Constant input has no correlation, which `nan` says.
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(getattr(stats, kind)(guess, labels.astype(np.float64)).statistic)

    return one


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, guess: float(np.mean(labels == guess)),
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlated("pearsonr"),
    "spearman": _correlated("spearmanr"),
}
