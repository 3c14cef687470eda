"""Similarities against hand-computed numbers, loops in numpy, and their own invariances."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import optimize, special, stats

from mvp_jax.core import similarity


def draw(seed: int, n: int, z: int, y: int, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return special.softmax(sharpness * rng.normal(size=(n, z)), axis=1).astype(np.float32), rng.integers(0, y, n)


def leep_by_loops(probs: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    n, z = probs.shape
    joint = np.zeros((num_classes, z))
    for i in range(n):
        for k in range(z):
            joint[labels[i], k] += float(probs[i, k]) / n
    total = 0.0
    for i in range(n):
        expected = 0.0
        for k in range(z):
            marginal = joint[:, k].sum()
            if marginal > 0:
                expected += joint[labels[i], k] / marginal * float(probs[i, k])
        total += math.log(expected)
    return total / n


def test_leep_by_hand():
    # P(y=0,z=0) = (.8+.6)/4 = .35, P(1,0) = (.4+.2)/4 = .15, P(0,1) = .15, P(1,1) = .35, both marginals are 1/2:
    # P(0|0) = .7, P(0|1) = .3. Expected: .7*.8+.3*.2 = .62, .7*.6+.3*.4 = .54, and by symmetry .54, .62.
    probs = jnp.array([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]])
    got = similarity.leep(probs, jnp.array([0, 0, 1, 1]), 2)
    assert got.shape == ()
    assert got.dtype == jnp.float32
    assert float(got) == pytest.approx((math.log(0.62) + math.log(0.54)) / 2, abs=1e-6)


@pytest.mark.parametrize(("n", "z", "y"), [(1, 1, 1), (7, 3, 2), (40, 5, 10), (12, 20, 3)])
def test_leep_equals_the_double_loop(n, z, y):
    probs, labels = draw(n, n, z, y)
    want = leep_by_loops(probs, labels, y)
    assert float(similarity.leep(probs, labels, y)) == pytest.approx(want, abs=2e-5)
    assert n == 1 or -math.log(n) < want < -0.01


@hypothesis.given(seed=st.integers(0, 10**6), n=st.integers(1, 12), sharpness=st.floats(0, 60))
def test_leep_lies_between_minus_log_n_and_zero(seed, n, sharpness):
    probs, labels = draw(seed, 12, 4, 5, sharpness)
    where = np.arange(12) < n
    got = float(similarity.leep(probs, labels, 5, where=where))
    assert -math.log(n) - 1e-4 <= got <= 1e-4


def test_leep_reaches_its_bounds():
    labels = np.arange(6)
    assert float(similarity.leep(np.eye(6, dtype=np.float32), labels, 6)) == pytest.approx(0.0, abs=1e-6)
    assert float(similarity.leep(np.full((6, 4), 0.25, np.float32), labels, 6)) == pytest.approx(-math.log(6), abs=1e-6)


@pytest.mark.parametrize("score", ["leep", "logme", "cka", "prototypes"])
def test_padding_changes_nothing(score):
    """Columns of zeros (padded heads) and examples that do not count, whatever stands in them."""
    probs, labels = draw(3, 30, 4, 3)
    padded = np.concatenate([probs, np.full((5, 4), np.nan, np.float32)])
    more, where = np.concatenate([labels, [-1, 99, 0, 1, 2]]), np.arange(35) < 30
    if score == "leep":
        short = similarity.leep(probs, labels, 3)
        wide = np.pad(padded, ((0, 0), (0, 6)))
        long = similarity.leep(wide, more, 3, where=where)
    elif score == "logme":
        short, long = similarity.logme(probs, labels, 3), similarity.logme(padded, more, 3, where=where)
    elif score == "cka":
        other = np.random.default_rng(0).normal(size=(35, 3)).astype(np.float32)
        short, long = similarity.cka(probs, other[:30]), similarity.cka(padded, other, where=where)
    else:
        short, long = similarity.prototypes(probs, labels, 3), similarity.prototypes(padded, more, 3, where=where)
    assert np.all(np.isfinite(short))
    assert np.abs(short).max() > 1e-3
    np.testing.assert_allclose(long, short, rtol=2e-4, atol=1e-5)


def test_a_bank_is_ranked_by_one_call():
    stacked = np.stack([draw(s, 20, 4, 3)[0] for s in range(5)])
    labels = jnp.asarray(draw(0, 20, 4, 3)[1])
    one = np.array([leep_by_loops(p, np.asarray(labels), 3) for p in stacked])
    by_vmap = jax.vmap(lambda p: similarity.leep(p, labels, 3))(stacked)
    chunks = jax.jit(lambda ps: jax.lax.map(lambda p: similarity.leep(p, labels, 3), ps, batch_size=2))(stacked)
    assert np.ptp(one) > 1e-3
    np.testing.assert_allclose(by_vmap, one, atol=1e-5)
    np.testing.assert_allclose(chunks, one, atol=1e-5)
    assert similarity.nearest(by_vmap, 3).tolist() == np.argsort(-one)[:3].tolist()


def test_nce_is_minus_the_conditional_entropy():
    rng = np.random.default_rng(4)
    z, y = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    counts = np.zeros((3, 4))
    np.add.at(counts, (y, z), 1)
    want = -sum(counts[:, k].sum() / 50 * stats.entropy(counts[:, k]) for k in range(4))
    assert want < -0.5
    assert float(similarity.nce(z, y, 4, 3)) == pytest.approx(want, abs=1e-5)
    assert float(similarity.nce(y, y, 3, 3)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("n", "d", "scale"), [(40, 5, 1.0), (40, 5, 300.0), (15, 25, 1.0)])
def test_logme_is_the_maximum_of_the_evidence(n, d, scale):
    """The evidence as the density of a Gaussian, maximised by scipy in double precision."""
    rng = np.random.default_rng(n)
    labels = np.arange(n) % 3
    features = rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(3, d))[labels]

    def best(target: np.ndarray) -> float:
        gram = features @ features.T

        def negative(logs: np.ndarray) -> float:
            cov = np.exp(-logs[1]) * np.eye(n) + np.exp(-logs[0]) * gram
            return -stats.multivariate_normal.logpdf(target, np.zeros(n), cov) / n

        return -min(optimize.minimize(negative, start, method="Nelder-Mead").fun for start in ([0, 0], [3, 3]))

    want = np.mean([best((labels == c).astype(float)) for c in range(3)])
    got = float(similarity.logme((scale * features).astype(np.float32), labels, 3))
    assert got == pytest.approx(want, abs=5e-3)
    empty_class = float(similarity.logme((scale * features).astype(np.float32), labels, 4))
    assert empty_class == pytest.approx(got, abs=1e-5)
    shuffled = float(similarity.logme((scale * features).astype(np.float32), rng.permutation(labels), 3))
    assert shuffled < got - 0.01


@pytest.mark.parametrize(("n", "d", "e"), [(50, 3, 4), (6, 20, 30)])
def test_cka_equals_its_formula_and_ignores_rotation_and_scale(n, d, e):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(n, d)) + 3, rng.normal(size=(n, e))
    b[:, 0] += a[:, 0]
    ac, bc = a - a.mean(0), b - b.mean(0)
    want = np.linalg.norm(ac.T @ bc) ** 2 / (np.linalg.norm(ac.T @ ac) * np.linalg.norm(bc.T @ bc))
    assert 0.05 < want < 0.95
    assert float(similarity.cka(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(want, rel=1e-4)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    turned = jnp.asarray(1e6 * (a @ turn) + 7)
    assert float(similarity.cka(turned, jnp.asarray(b))) == pytest.approx(want, rel=1e-3)
    assert float(similarity.cka(jnp.ones((n, 2)), jnp.asarray(b))) == 0.0


def test_prototypes_and_their_cosine():
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(30, 6)).astype(np.float32), np.arange(30) % 4
    mu = np.stack([features[labels == c].mean(0) for c in range(4)])
    got = similarity.prototypes(features, labels, 5)
    np.testing.assert_allclose(got[:4], mu, rtol=1e-5, atol=1e-6)
    assert not np.any(got[4])

    nu = rng.normal(size=(3, 6)).astype(np.float32)
    centre = rng.normal(size=6).astype(np.float32)
    for c in (None, centre):
        m, v = (mu, nu) if c is None else (mu - c, nu - c)
        cosines = [[p @ q / np.linalg.norm(p) / np.linalg.norm(q) for q in v] for p in m]
        want = np.mean(np.max(cosines, axis=1))
        padded = jnp.concatenate([jnp.asarray(nu), jnp.zeros((2, 6))])
        assert float(similarity.prototype_cosine(got, padded, centre=c)) == pytest.approx(want, abs=1e-5)
    negative = -mu.mean(0, keepdims=True)  # the padding must not win over a negative cosine
    alone = float(similarity.prototype_cosine(mu[:1], np.concatenate([-mu[:1], 0 * negative])))
    assert alone == pytest.approx(-1.0, abs=1e-6)
    assert float(similarity.prototype_cosine(mu, mu)) == pytest.approx(1.0, abs=1e-6)
    assert float(similarity.prototype_cosine(mu, np.zeros((2, 6), np.float32))) == -1.0


@hypothesis.given(scores=st.lists(st.sampled_from([0.0, -1.5, 2.0, -math.inf, math.nan]), min_size=1, max_size=9))
def test_rank_is_a_stable_sort_with_nan_last(scores):
    def place(i: int) -> tuple:
        return (math.isnan(scores[i]), 0.0 if math.isnan(scores[i]) else -scores[i], i)

    want = sorted(range(len(scores)), key=place)
    assert similarity.rank(jnp.array(scores)).tolist() == want
    assert similarity.nearest(jnp.array(scores), len(scores)).tolist() == want


def test_ranks_of_narrow_numbers_are_those_of_their_values():
    for values, dtype in (
        ([-128, 127, 0, -1], "int8"),
        ([0, 200, 1, 255], "uint8"),
        ([1.0, 1.5, -2.0, 0.0], "bfloat16"),
    ):
        want = sorted(range(4), key=lambda i, v=values: -v[i])
        assert similarity.rank(jnp.array(values, dtype)).tolist() == want


def test_the_centre_of_half_precision_features_is_subtracted_in_float32():
    # In float16 1000 - 0.25 rounds to 1000.
    target, centre = jnp.array([[1000.0, 1.0]], jnp.float16), jnp.array([0.25, 0.0], jnp.float16)
    source = jnp.array([[1.0, 1000.0]], jnp.float16)
    p, q = np.array([999.75, 1.0]), np.array([0.75, 1000.0])
    want = p @ q / np.linalg.norm(p) / np.linalg.norm(q)
    assert abs(want - 0.00175) < 1e-5
    assert float(similarity.prototype_cosine(target, source, centre=centre)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y: similarity.leep(p, y + 1, 3), r"outside the classes: \[3\]; 3 classes allow 0 to 2"),
        (lambda p, y: similarity.leep(p, y - 1, 3), r"outside the classes: \[-1\]"),
        (lambda p, y: similarity.leep(4 * p, y, 3), "softmax"),
        (lambda p, y: similarity.leep(np.log(p), y, 3), "softmax"),
        (lambda p, y: similarity.leep(p * np.nan, y, 3), "softmax"),
        (lambda p, y: similarity.leep(p, y[:-1], 3), r"source_probs of shape \(9, 4\)"),
        (lambda p, y: similarity.leep(p[:0], y[:0], 3), "at least one"),
        (lambda p, y: similarity.leep(p, y, 3, where=np.zeros(9, bool)), "leaves no example"),
        (lambda p, y: similarity.leep(p, y, 3, where=np.ones(8, bool)), r"bool\[N\]"),
        (lambda p, y: similarity.nce(y + 4, y, 3, 3), "source_labels outside"),
        (lambda p, y: similarity.nce(y, y[1:], 3, 3), "one each"),
        (lambda p, y: similarity.logme(p, y, 2), "labels outside"),
        (lambda p, y: similarity.prototypes(p, y, 2), "labels outside"),
        (lambda p, y: similarity.cka(p, p[1:]), r"\[N, D\]"),
        (lambda p, y: similarity.prototype_cosine(p, p[:, 1:]), "one feature space"),
        (lambda p, y: similarity.nearest(p[:, 0], 10), "1 to 9"),
        (lambda p, y: similarity.nearest(p[:, 0], 0), "1 to 9"),
    ],
)
def test_bad_input_is_refused(call, message):
    probs, _ = draw(0, 9, 4, 3)
    with pytest.raises(ValueError, match=message):
        call(probs, np.arange(9) % 3)
