"""Counts and searches against hand-computed ones and against what is really cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, graph, models, saliency
from mvp_jax.compact import budget, cost
from mvp_jax.core import units
from mvp_jax.core.units import Group, Slot

MODEL = models.create("resnet8_distiller", image_size=8, channels=1, classes=4)
SHAPE = (1, 8, 8, 1)


def apply(variables, x):
    return MODEL.apply(variables, x)[0]


@pytest.fixture(scope="module")
def case():
    variables = MODEL.init(jax.random.key(0))
    groups = graph.groups(apply, variables, jnp.ones(SHAPE))
    scores = units.reduce(saliency.magnitude(variables.params), groups)
    return variables, groups, scores


def kept(fit):
    return {name: int(u.sum()) for name, u in fit.units.items()}


@pytest.mark.parametrize("measure", ["params", "flops"])
@pytest.mark.parametrize("scope", ["group", "isomorphic", "all"])
def test_the_cut_function_meets_the_budget_and_one_unit_more_would_not(case, measure, scope):
    variables, groups, scores = case
    scores = budget.normalise(scores, "mean")
    found = budget.fit(apply, variables, groups, scores, jnp.ones(SHAPE), target=0.4, measure=measure, scope=scope)
    small, small_variables = compact.slim(apply, variables, groups, found.units, jnp.ones(SHAPE))
    if measure == "params":
        left = cost.parameters(small_variables.params) / cost.parameters(variables.params)
        assert left == pytest.approx(found.share, rel=1e-6)
    else:
        left = cost.flops(small, small_variables, SHAPE) / cost.flops(apply, variables, SHAPE)
        assert left == pytest.approx(found.share, rel=0.05)
    assert 0.3 < found.share <= 0.4
    # the next count up, a hair below the ratio found, costs too much
    more = budget.counts(groups, scores, found.ratio - 2e-3, scope=scope)
    assert sum(more.values()) > sum(kept(found).values())


def test_global_ranking_is_a_sort_of_everything():
    groups = [Group(name=n, size=s, slots=()) for n, s in (("a", 5), ("b", 7))]
    rng = np.random.default_rng(0)
    scores = {"a": jnp.asarray(rng.random(5)), "b": jnp.asarray(rng.random(7))}
    everything = np.sort(np.concatenate([scores["a"], scores["b"]]))[::-1]
    got = budget.counts(groups, scores, 0.5, scope="all")
    assert got == {n: int(np.sum(np.asarray(scores[n]) >= everything[5])) for n in "ab"}
    assert set(got.values()) != {3}


def test_isomorphic_ranks_like_with_like(case):
    _, groups, scores = case
    classes = budget.isomorphic(groups)
    filters = {classes[g.name] for g in groups if g.kind == "filter"}
    stages = {classes[g.name] for g in groups if g.kind == "stage"}
    assert filters
    assert stages
    assert not filters & stages
    inflated = {g.name: scores[g.name] * (1e-3 if g.kind == "stage" else 1.0) for g in groups}
    assert budget.counts(groups, inflated, 0.5, scope="isomorphic") == budget.counts(
        groups, scores, 0.5, scope="isomorphic"
    )
    assert budget.counts(groups, inflated, 0.5, scope="all") != budget.counts(groups, scores, 0.5, scope="all")


def test_floors_and_multiples():
    groups = [Group(name="a", size=20, slots=(), kind="filter"), Group(name="h", size=6, slots=(), kind="head")]
    scores = {"a": jnp.arange(20.0), "h": jnp.arange(6.0)}
    assert budget.counts(groups, scores, 0.99, min_units=2) == {"a": 2, "h": 2}
    assert budget.counts(groups, scores, 0.5, multiple=8) == {"a": 16, "h": 6}
    assert budget.counts(groups, scores, 0.5, multiple={"filter": 4}) == {"a": 12, "h": 3}


def test_latency_is_measured(case):
    variables, groups, scores = case
    found = budget.fit(
        apply, variables, groups, scores, jnp.ones((8, 8, 8, 1)), target=1.0, measure="latency", repeats=3
    )
    assert found.share > 0
    assert kept(found)


@pytest.mark.parametrize("how", ["none", "mean", "max", "sum", "standard"])
def test_normalisations(how):
    x = np.array([1.0, 2.0, 6.0])
    want = {"none": x, "mean": x / 3, "max": x / 6, "sum": x / 9, "standard": (x - 3) / x.std()}[how]
    np.testing.assert_allclose(budget.normalise({"a": jnp.asarray(x)}, how)["a"], want, rtol=1e-6)
    assert budget.normalise({"a": jnp.zeros(3)}, how)["a"].tolist() == [0, 0, 0]


def test_bad_settings_are_refused(case):
    variables, groups, scores = case
    x = jnp.ones(SHAPE)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\)"):
        budget.counts(groups, scores, 1.0)
    with pytest.raises(ValueError, match="no scores of the right length"):
        budget.counts(groups, {}, 0.5)
    with pytest.raises(ValueError, match="unknown scope"):
        budget.counts(groups, scores, 0.5, scope="some")
    with pytest.raises(ValueError, match="min_units"):
        budget.counts(groups, scores, 0.5, min_units=0)
    with pytest.raises(ValueError, match="multiple"):
        budget.counts(groups, scores, 0.5, multiple=0)
    with pytest.raises(ValueError, match="unknown normalisation"):
        budget.normalise(scores, "l2")
    with pytest.raises(ValueError, match="share of the dense cost"):
        budget.fit(apply, variables, groups, scores, x, target=0.0)
    with pytest.raises(ValueError, match="unknown measure"):
        budget.fit(apply, variables, groups, scores, x, target=0.5, measure="time")
    with pytest.raises(ValueError, match=r"with the fewest units .* of the dense params are left"):
        budget.fit(apply, variables, groups, scores, x, target=1e-5, measure="params")


def test_a_slot_without_group_keeps_whole_axes():
    slot = Slot(path="w", axis=0, start=2, length=5)
    assert units.spread(jnp.array([True, False]), slot).tolist() == [True, True, True, False, True]


def test_the_meter_counts_products_by_hand():
    def net(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params, x = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}, jnp.ones((5, 3))
    groups = graph.groups(net, params, x)
    cost_of = budget.meter(net, params, groups, x)
    for kept in (8, 3):
        want = budget.Totals(5 * kept, 5 * (2 * 3 * kept + kept + 2 * kept * 2), 5 * (kept + kept + 2))
        assert cost_of({"a": kept}) == want
    assert cost_of({}) == cost_of({"a": 8})
    looped = budget.meter(
        lambda p, x: jax.lax.scan(lambda h, _: (net(p, h) @ jnp.ones((2, 3)), None), x, None, length=4)[0],
        params,
        groups,
        x,
    )
    assert looped({}).flops == 4 * (cost_of({}).flops + 2 * 5 * 2 * 3)


def test_savings_are_those_of_one_group_alone(case):
    variables, groups, _ = case
    rows = budget.savings(apply, variables, groups, jnp.ones(SHAPE), ratio=0.5)
    assert [r.group for r in rows] == [g.name for g in groups]
    for row, g in list(zip(rows, groups, strict=True))[:3]:
        units = {g.name: jnp.arange(g.size) < g.size // 2}
        _, small = compact.slim(apply, variables, [g], units, jnp.ones(SHAPE))
        left = cost.parameters(small.params) / cost.parameters(variables.params)
        assert row.params == pytest.approx(1 - left)
        assert 0 < row.flops < 1
        assert 0 < row.activations < 1
        assert row.latency is None
    (timed,) = budget.savings(apply, variables, groups[:1], jnp.ones(SHAPE), latency=True, repeats=3)
    assert timed.latency is not None
    assert timed.latency < 1
