"""Ranks with scores that are not finite: what is kept is what is kept without those units, by plain lists."""

import warnings

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax import graph, saliency
from mvp_jax.compact import budget, ranking
from mvp_jax.core import prune, units
from mvp_jax.core.units import Group, Slot

BROKEN = (np.nan, np.inf, -np.inf)
IN, A, B, OUT = 3, 8, 6, 2


def net(params, x):
    h = jax.nn.relu(x @ params["a"])
    return jax.nn.relu(h @ params["b"]) @ params["c"]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (IN, A), "b": (A, B), "c": (B, OUT)}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def spoiled(params, value, unit=2):
    """A unit of `a` with one weight that is not finite, and others that would rank it high; no unit of `b` reads it."""
    a, b = params["a"].copy(), params["b"].copy()
    a[:, unit], b[unit] = 9.0, 0.0
    a[1, unit] = value
    return params | {"a": a, "b": b}


def ranked_and_fitted(params, x, target):
    """The path of the README."""
    groups = graph.groups(net, params, x)
    assert [g.name for g in groups] == ["a", "b"]
    scores = budget.normalise(units.reduce(saliency.magnitude(params), groups))
    return budget.fit(net, params, groups, scores, x, target=target, measure="params", scope="all").units


def by_lists(params, unit, target):
    """Units left, by removing one at a time, the broken one first, until the parameters are within the target."""
    norms = {"a": np.linalg.norm(params["a"].astype(np.float64), axis=0)}
    norms["b"] = np.linalg.norm(params["b"].astype(np.float64), axis=0)
    fine = {"a": [i for i in range(A) if i != unit], "b": list(range(B))}
    means = {n: np.mean([norms[n][i] for i in fine[n]]) for n in "ab"}
    order = [
        ("a", unit),
        *sorted(((n, i) for n in "ab" for i in fine[n]), key=lambda u: norms[u[0]][u[1]] / means[u[0]]),
    ]
    left = {"a": list(range(A)), "b": list(range(B))}
    for name, i in order:
        k, m = len(left["a"]), len(left["b"])
        if IN * k + k * m + m * OUT <= target * (IN * A + A * B + B * OUT):
            return left
        if len(left[name]) > 1:
            left[name].remove(i)
    raise AssertionError("the target was not reached")


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("target", [0.4, 0.6, 0.85])
def test_one_broken_unit_goes_and_the_rest_is_kept_as_without_it(value, target):
    params, x = spoiled(weights(), value), jnp.ones((1, IN))
    with pytest.warns(RuntimeWarning, match="1 of 8 units of 'a'$") as told:
        kept = ranked_and_fitted(params, x, target)
    # `normalise` tells it and `fit` tells it, each in the name of the line that called it.
    assert [w.filename for w in told] == [__file__] * 2
    want = by_lists(params, 2, target)
    assert {n: np.flatnonzero(kept[n]).tolist() for n in "ab"} == want
    assert 2 not in want["a"]
    assert len(want["a"]) + len(want["b"]) < A + B - 1 or target == 0.85
    # The same network without that unit, at the same number of parameters.
    small = {"a": np.delete(params["a"], 2, 1), "b": np.delete(params["b"], 2, 0), "c": params["c"]}
    share = target * (IN * A + A * B + B * OUT) / (IN * (A - 1) + (A - 1) * B + B * OUT)
    without = ranked_and_fitted(small, x, share)
    assert np.insert(np.asarray(without["a"]), 2, False).tolist() == kept["a"].tolist()
    assert without["b"].tolist() == kept["b"].tolist()


def quietly(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return call(*args, **kwargs)


@pytest.mark.parametrize("how", ["none", "mean", "max", "sum", "standard"])
def test_what_is_not_finite_enters_no_statistic(how):
    x = np.array([1.0, 2.0, 6.0, 3.5])
    want = {"none": x, "mean": x / x.mean(), "max": x / 6, "sum": x / 12.5, "standard": (x - x.mean()) / x.std()}[how]
    scores = {"a": jnp.array([1.0, np.nan, 2.0, np.inf, 6.0, 3.5, -np.inf]), "b": jnp.array([1.0, 3.0])}
    with pytest.warns(RuntimeWarning, match="3 of 7 units of 'a'$"):
        got = budget.normalise(scores, how)
    np.testing.assert_allclose(np.asarray(got["a"])[[0, 2, 4, 5]], want, rtol=1e-6)
    assert np.isnan(np.asarray(got["a"])[[1, 3, 6]]).all()
    traced = jax.jit(lambda s: budget.normalise(s, how))(scores)
    for name in "ab":
        np.testing.assert_allclose(traced[name], got[name], rtol=1e-6)


@pytest.mark.parametrize("how", ["mean", "max", "sum", "standard"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e38])
def test_normalising_neither_overflows_nor_vanishes(how, scale):
    x = np.float32(scale) * np.array([1.0, 2.5, 3.0, 0.5], np.float32)
    wide = x.astype(np.float64)
    want = {"mean": wide / wide.mean(), "max": wide / wide.max(), "sum": wide / wide.sum()}
    want["standard"] = (wide - wide.mean()) / wide.std()
    np.testing.assert_allclose(budget.normalise({"a": jnp.asarray(x)}, how)["a"], want[how], rtol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float64"])
def test_scores_of_any_dtype_are_normalised_in_float32_or_float64(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.array([120, 127, 3, -128], dtype)
        wide = np.asarray(x).astype(np.float64)
        got = budget.normalise({"a": x}, "standard")["a"]
        assert got.dtype == ("float64" if dtype == "float64" else "float32")
        rtol = 1e-14 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(got, (wide - wide.mean()) / wide.std(), rtol=rtol)


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_a_negative_divisor_turns_no_order_round(how):
    got = np.asarray(budget.normalise({"a": jnp.array([-3.0, -1.0, -2.0])}, how)["a"])
    assert np.argsort(got).tolist() == [0, 2, 1]


SCORES = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, *BROKEN]), min_size=1, max_size=6).filter(
        lambda x: np.isfinite(x).any()
    ),
    min_size=1,
    max_size=4,
)


@hypothesis.given(scores=SCORES, ratio=st.floats(0, 1, exclude_max=True), scope=st.sampled_from(["all", "group"]))
def test_counts_and_selection_are_one_stable_sort(scores, ratio, scope):
    """With ties and broken units, the units that `by_leaf` picks by these counts are the first of one sorted list."""
    groups = [Group(name=str(i), size=len(s), slots=()) for i, s in enumerate(scores)]
    given = {str(i): jnp.array(s) for i, s in enumerate(scores)}
    counted = quietly(budget.counts, groups, given, ratio, scope=scope)
    picked = prune.by_leaf(quietly(budget.normalise, given, "none"), counted)
    everything = [(i, j) for i, s in enumerate(scores) for j in range(len(s))]

    def first(some):
        some = sorted(some, key=lambda u: (not np.isfinite(s := scores[u[0]][u[1]]), -s if np.isfinite(s) else 0, u))
        return some[: len(some) - round(ratio * len(some))]

    sets = [everything] if scope == "all" else [[u for u in everything if u[0] == i] for i in range(len(scores))]
    kept = {u for s in sets for u in first(s)}
    for i, s in enumerate(scores):
        want = [j for j in range(len(s)) if (i, j) in kept]
        if want:  # otherwise `min_units` decides
            assert np.flatnonzero(picked[str(i)]).tolist() == want
        assert counted[str(i)] == max(len(want), 1)


def test_where_more_stay_than_are_finite_the_first_of_the_others_do():
    group, scores = Group(name="a", size=4, slots=()), {"a": jnp.array([np.inf, 2.0, np.nan, 1.0])}
    for settings, want in (
        ({"ratio": 0.25}, [0, 1, 3]),
        ({"ratio": 0.9, "min_units": 3}, [0, 1, 3]),
        ({"ratio": 0.5, "multiple": 4}, [0, 1, 2, 3]),
        ({"ratio": 0.5}, [1, 3]),
        ({"ratio": 0.75}, [1]),
    ):
        kept = quietly(budget.counts, [group], scores, **settings)
        assert np.flatnonzero(prune.by_leaf(quietly(budget.normalise, scores), kept)["a"]).tolist() == want


def test_a_group_without_any_finite_score_is_refused():
    params = weights()
    params["a"][0] = np.nan
    x = jnp.ones((1, IN))
    groups = graph.groups(net, params, x)
    scores = units.reduce(saliency.magnitude(params), groups)
    for call in (
        lambda: budget.normalise(scores),
        lambda: budget.counts(groups, scores, 0.5),
        lambda: budget.fit(net, params, groups, scores, x, target=0.5),
    ):
        with pytest.raises(ValueError, match=r"not one score of \['a'\] is finite"):
            call()
    # Other groups are ranked without it.
    assert budget.counts(groups[1:], scores, 0.5) == {"b": 3}
    traced = jax.jit(budget.normalise)(scores)
    assert np.isnan(traced["a"]).all()
    assert np.isfinite(traced["b"]).all()


def test_counts_warn_where_they_are_called():
    group = Group(name="a", size=3, slots=(Slot(path="w", axis=0),))
    with pytest.warns(RuntimeWarning, match="1 of 3 units of 'a'$") as told:
        assert budget.counts([group], {"a": jnp.array([np.inf, 1.0, 2.0])}, 0.4) == {"a": 2}
    assert [w.filename for w in told] == [__file__]
    count = ranking.counter([group], {"a": jnp.array([np.nan, 1.0, 2.0])}, scope="all")
    assert [count(r)["a"] for r in (0.0, 0.4, 0.7)] == [3, 2, 1]


def test_no_groups_need_no_scores():
    assert budget.counts([], {}, 0.5) == {}
    assert budget.normalise({}) == {}
