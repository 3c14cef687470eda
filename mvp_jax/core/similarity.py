"""How near two tasks are: arrays in, one number out, higher = nearer.

Every score is a pure function of arrays of fixed shapes, so a whole bank is ranked by one call:
`jax.lax.map(lambda p: leep(p, labels, 10), stacked_probs, batch_size=64)`. Examples that only fill up a batch are
left out by `where`.
"""

import functools

import jax
import jax.numpy as jnp

from mvp_jax.core import labels as labels_lib
from mvp_jax.core import layouts, precision
from mvp_jax.core.leave_one_out import press
from mvp_jax.core.types import Array

# Scores of near-equal tasks differ in the third digit, which a GPU's default TF32 products would blur.
_PRECISE = jax.lax.Precision.HIGHEST


def leep(source_probs: Array, labels: Array, num_classes: int, *, where: Array | None = None) -> Array:
    """Log expected empirical prediction: how well a source model's outputs foretell the target's labels.

    `P(y,z) = 1/N Σ_{n: y_n=y} p(z|x_n)`, `P(y|z) = P(y,z)/P(z)` (0 where `P(z) = 0`, as in heads padded to a
    common width), `LEEP = 1/N Σ_n log Σ_z P(y_n|z) p(z|x_n)`; in `[-log N, 0]`.

    Args:
        source_probs: `[N, Z]`, the source model's probabilities for the target's examples; rows sum to 1.
        labels: int[N] in `[0, num_classes)`.
        num_classes: the target's classes `Y`, static.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: for shapes that do not fit, labels outside the classes, or rows that are no probabilities.

    >>> probs = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> f"{leep(probs, jnp.array([0, 0, 1]), 2):.3f}", f"{leep(probs, jnp.array([0, 1, 1]), 2):.3f}"
    ('0.000', '-0.462')

    Reference: Nguyen et al., "LEEP", 2020, arXiv:2002.12462, eqs. 1 and 2.
    """
    labels_lib.check_rows(source_probs, labels, "source_probs")
    labels_lib.check(labels, num_classes, where, "labels")
    labels_lib.check_probs(source_probs, where)
    return _leep(*map(layouts.whole, (source_probs, labels)), num_classes, layouts.whole(where))


@functools.partial(jax.jit, static_argnames="num_classes")
def _leep(source_probs: Array, labels: Array, num_classes: int, where: Array | None) -> Array:
    labels, weights = labels_lib.weights(labels, where)
    p = source_probs.astype(jnp.float32)
    p = jnp.where(weights[:, None] > 0, p, 0.0)
    joint = jnp.matmul(labels_lib.one_hot(labels, num_classes, weights).T, p, precision=_PRECISE)  # [Y, Z], times N
    marginal = jnp.sum(joint, axis=0)
    given = joint / jnp.where(marginal > 0, marginal, 1.0)[None, :]  # a source class never seen: 0 / 1
    expected = jnp.sum(given[labels] * p, axis=1)
    return jnp.sum(jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, expected, 1.0)), 0.0)) / jnp.sum(weights)


def nce(
    source_labels: Array, labels: Array, num_source_classes: int, num_classes: int, *, where: Array | None = None
) -> Array:
    """Negative conditional entropy of the target's labels, given the source labels of the same examples.

    `NCE = 1/N Σ_n log P(y_n|z_n) = -H(Y|Z)`, with `P` the shares counted: LEEP of a source model that is always sure.

    Args:
        source_labels: int[N] in `[0, num_source_classes)`, given or predicted.
        labels: int[N] in `[0, num_classes)`.
        num_source_classes: `Z`, static.
        num_classes: `Y`, static.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        A float32 scalar in `[-log Y, 0]`.

    Raises:
        ValueError: for shapes that do not fit, or labels outside the classes.

    >>> f"{nce(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1]), 2, 2):.3f}"
    '-0.347'

    Reference: Tran et al., "Transferability and Hardness of Supervised Classification Tasks", 2019,
    arXiv:1908.08142, eq. 4.
    """
    if jnp.shape(source_labels) != jnp.shape(labels):
        raise ValueError(f"{jnp.shape(source_labels)} source labels for {jnp.shape(labels)} labels; give one each")
    labels_lib.check(source_labels, num_source_classes, where, "source_labels")
    labels_lib.check(labels, num_classes, where, "labels")
    source = jax.nn.one_hot(layouts.whole(source_labels), num_source_classes, dtype=jnp.float32)
    return _leep(source, layouts.whole(labels), num_classes, layouts.whole(where))


def logme(features: Array, labels: Array, num_classes: int, *, where: Array | None = None) -> Array:
    """Log maximum evidence of Bayesian linear regressions from the features to the classes.

    For each class, with targets `t = 1[y = class]`, prior `w ~ N(0, 1/α)` and noise `1/β`:
    `max over α, β of log p(t | F, α, β) / N`, found by MacKay's fixed point on the singular values of `F`; the mean
    over the classes that occur.

    Args:
        features: `[N, D]`, a source model's features of the target's examples.
        labels: int[N] in `[0, num_classes)`.
        num_classes: the target's classes, static.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: for shapes that do not fit, or labels outside the classes.

    >>> labels = jnp.array([0, 0, 0, 1, 1, 1])
    >>> apart = jnp.array([[-1.1], [-0.9], [-1.0], [1.0], [0.9], [1.1]])
    >>> mixed = jnp.array([[-1.1], [0.9], [-1.0], [1.0], [-0.9], [1.1]])
    >>> bool(logme(apart, labels, 2) > logme(mixed, labels, 2))
    True

    Reference: You et al., "LogME", 2021, arXiv:2102.11005, algorithm 1.
    """
    labels_lib.check_rows(features, labels, "features")
    labels_lib.check(labels, num_classes, where, "labels")
    return _logme(*map(layouts.whole, (features, labels)), num_classes, layouts.whole(where))


@functools.partial(jax.jit, static_argnames="num_classes")
def _logme(features: Array, labels: Array, num_classes: int, where: Array | None) -> Array:
    labels, weights = labels_lib.weights(labels, where)
    # A row of zeros in both features and targets changes no sum below, so left-out examples need no other care.
    f = jnp.where(weights[:, None] > 0, features.astype(jnp.float32), 0.0)
    targets = labels_lib.one_hot(labels, num_classes, weights)
    n, d = jnp.sum(weights), f.shape[1]
    u, sigma, _ = jnp.linalg.svd(f, full_matrices=False)
    # The evidence is the same for features of any scale; this one keeps `tiny` below tiny.
    s = jnp.square(sigma / jnp.where(sigma[0] > 0, sigma[0], 1.0))
    projected = jnp.square(jnp.matmul(u.T, targets, precision=_PRECISE))  # [min(N, D), Y]
    outside = jnp.maximum(jnp.sum(targets, axis=0) - jnp.sum(projected, axis=0), 0.0)
    tiny = 1e-5  # as published; keeps β finite where the features fit a class exactly

    def evidence(z2: Array, rest: Array) -> Array:
        def fit(ratio: Array) -> tuple[Array, Array, Array, Array]:
            """New α and β from the posterior mean `w` at `ratio = α/β`, with |w|² and |t - Fw|²."""
            shrunk = s + ratio
            gamma = jnp.sum(s / shrunk)  # the dimensions that the data determine
            w2 = jnp.sum(s * z2 / jnp.square(shrunk))
            r2 = jnp.sum(z2 * jnp.square(ratio / shrunk)) + rest
            return jnp.maximum(gamma / (w2 + tiny), 1e-12), jnp.maximum((n - gamma) / (r2 + tiny), 1e-12), w2, r2

        def going(state: tuple[Array, Array, Array]) -> Array:
            i, old, new = state
            return (i < 100) & (jnp.abs(new - old) > 1e-3 * old)

        def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            i, _, ratio = state
            alpha, beta, _, _ = fit(ratio)
            return i + 1, ratio, jnp.clip(alpha / beta, 1e-12, 1e12)

        start = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32))
        alpha, beta, _, _ = fit(jax.lax.while_loop(going, step, start)[2])
        _, _, w2, r2 = fit(alpha / beta)
        # |A| of A = αI + βFᵀF: directions that no feature spans count α each.
        log_det = jnp.sum(jnp.log(alpha + beta * s)) + (d - s.shape[0]) * jnp.log(alpha)
        fitted = d * jnp.log(alpha) + n * jnp.log(beta) - log_det - beta * r2 - alpha * w2
        return 0.5 * (fitted - n * jnp.log(2 * jnp.pi))

    values = jax.vmap(evidence)(projected.T, outside) / n
    present = jnp.sum(targets, axis=0) > 0
    return jnp.mean(values, where=present)


def cka(a: Array, b: Array, *, where: Array | None = None) -> Array:
    """Linear centred kernel alignment of two feature matrices of the same examples.

    `CKA = ‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖)` with centred columns and Frobenius norms; in `[0, 1]`, 1 for features that a
    rotation and a scale turn into each other, 0 if either is constant.

    Args:
        a: `[N, D]`.
        b: `[N, E]`.
        where: bool[N], the examples that count (default all); at least one.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: for shapes that do not fit.

    >>> x = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]])
    >>> f"{cka(x, 3 * x[:, ::-1]):.3f}"
    '1.000'

    Reference: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, arXiv:1905.00414,
    section 3.
    """
    if len(jnp.shape(a)) != 2 or len(jnp.shape(b)) != 2 or jnp.shape(a)[0] != jnp.shape(b)[0]:
        raise ValueError(
            f"features of shapes {jnp.shape(a)} and {jnp.shape(b)}; give [N, D] and [N, E] of one set of N"
        )
    return _cka(*map(layouts.whole, (a, b, where)))


@jax.jit
def _cka(a: Array, b: Array, where: Array | None) -> Array:
    keep = None if where is None else where[:, None]

    def centred(x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=0, keepdims=True, where=keep)
        x = x if keep is None else jnp.where(keep, x, 0.0)
        # CKA ignores scale; without it the fourth powers below could leave float32's range.
        top = jnp.max(jnp.abs(x))
        return x / jnp.where(top > 0, top, 1.0)

    def dot(p: Array, q: Array) -> Array:
        """`‖pᵀq‖²`, through whichever of the two equal products is smaller."""
        if p.shape[0] ** 2 < p.shape[1] * q.shape[1]:
            return jnp.sum(jnp.matmul(p, p.T, precision=_PRECISE) * jnp.matmul(q, q.T, precision=_PRECISE))
        return jnp.sum(jnp.square(jnp.matmul(p.T, q, precision=_PRECISE)))

    a, b = centred(a), centred(b)
    scale = jnp.sqrt(dot(a, a)) * jnp.sqrt(dot(b, b))
    return jnp.where(scale > 0, dot(a, b) / jnp.where(scale > 0, scale, 1.0), 0.0)


def prototypes(features: Array, labels: Array, num_classes: int, *, where: Array | None = None) -> Array:
    """The mean feature of every class.

    Args:
        features: `[N, D]`.
        labels: int[N] in `[0, num_classes)`.
        num_classes: `Y`, static.
        where: bool[N], the examples that count (default all).

    Returns:
        float32[Y, D]; zeros for a class without examples.

    Raises:
        ValueError: for shapes that do not fit, or labels outside the classes.

    >>> prototypes(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 2]), 3).tolist()
    [[2.0], [0.0], [5.0]]

    Reference: Snell et al., "Prototypical Networks for Few-shot Learning", 2017, arXiv:1703.05175, eq. 1.
    """
    labels_lib.check_rows(features, labels, "features")
    labels_lib.check(labels, num_classes, where, "labels")
    return _prototypes(*map(layouts.whole, (features, labels)), num_classes, layouts.whole(where))


@functools.partial(jax.jit, static_argnames="num_classes")
def _prototypes(features: Array, labels: Array, num_classes: int, where: Array | None) -> Array:
    labels, weights = labels_lib.weights(labels, where)
    f = jnp.where(weights[:, None] > 0, features.astype(jnp.float32), 0.0)
    members = labels_lib.one_hot(labels, num_classes, weights)
    return jnp.matmul(members.T, f, precision=_PRECISE) / jnp.maximum(jnp.sum(members, axis=0), 1.0)[:, None]


def prototype_cosine(target: Array, source: Array, *, centre: Array | None = None) -> Array:
    """How near each class of the target is to some class of the source.

    `1/Y Σ_y max_z cos(μ_y - c, ν_z - c)`, over the classes that have examples. Not symmetric: a source may have
    classes that the target lacks. Features after a ReLU all point into one orthant; `centre`, such as the mean
    feature of the pre-trained model's data, spreads the scores but need not be given to rank.

    Args:
        target: `[Y, D]` from `prototypes`; rows of zeros are classes without examples and left out.
        source: `[Z, D]`, of the same features; rows of zeros (padding) are left out.
        centre: `[D]`, subtracted from every prototype (default none).

    Returns:
        A float32 scalar in `[-1, 1]`; -1 if either has no classes.

    Raises:
        ValueError: for shapes that do not fit.

    >>> target = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> float(prototype_cosine(target, jnp.array([[3.0, 0.0], [0.0, 0.0]])))
    0.5
    """
    if len(jnp.shape(target)) != 2 or len(jnp.shape(source)) != 2 or jnp.shape(target)[1] != jnp.shape(source)[1]:
        raise ValueError(
            f"prototypes of shapes {jnp.shape(target)} and {jnp.shape(source)}; "
            "they must be [Y, D] and [Z, D] of one feature space"
        )
    return _prototype_cosine(*map(layouts.whole, (target, source, centre)))


@jax.jit
def _prototype_cosine(target: Array, source: Array, centre: Array | None) -> Array:
    def directions(x: Array) -> tuple[Array, Array]:
        there = jnp.any(x != 0, axis=1)
        x = x.astype(jnp.float32)
        x = x if centre is None else x - centre[None, :].astype(jnp.float32)
        length = jnp.linalg.norm(x, axis=1, keepdims=True)
        return x / jnp.where(length > 0, length, 1.0), there

    (a, in_a), (b, in_b) = directions(target), directions(source)
    cosines = jnp.where(in_b[None, :], jnp.matmul(a, b.T, precision=_PRECISE), -1.0)
    best = jnp.clip(jnp.max(cosines, axis=1), -1.0, 1.0)
    count = jnp.sum(in_a, dtype=jnp.float32)
    return jnp.where(count > 0, jnp.sum(jnp.where(in_a, best, 0.0)) / jnp.maximum(count, 1.0), -1.0)


@jax.jit
def rank(scores: Array) -> Array:
    """Indices from the nearest to the farthest; ties go to the lower index, `nan` comes last.

    The farthest first is `rank(-scores)`.

    Args:
        scores: real numbers [K], compared in float32 (float64 if they are float64).

    Returns:
        int32[K].

    >>> rank(jnp.array([0.1, float("nan"), 0.7, 0.1])).tolist()
    [2, 0, 3, 1]
    """
    return jnp.argsort(-precision.widen(layouts.whole(scores)), stable=True).astype(jnp.int32)


def nearest(scores: Array, k: int) -> Array:
    """The indices of the `k` highest scores, highest first.

    Args:
        scores: float[K].
        k: how many, static, from 1 to `K`.

    Returns:
        int32[k].

    Raises:
        ValueError: for another `k`.

    >>> nearest(jnp.array([0.1, 0.9, 0.7]), 2).tolist()
    [1, 2]
    """
    n = jnp.shape(scores)[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} of {n} scores; ask for 1 to {n}, or score more tasks")
    return rank(scores)[:k]


__all__ = ["cka", "leep", "logme", "nce", "nearest", "press", "prototype_cosine", "prototypes", "rank"]
