"""Units that change places: what their slots say, and that only orders that matter are computed."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_jax import compact, graph, saliency
from mvp_jax.core import masks, prune, units
from mvp_jax.core.units import Group, Slot
from mvp_jax.graph import binding

ORDER = np.array([2, 0, 3, 1])
BACK = np.argsort(ORDER)
RNG = np.random.default_rng(0)
PARAMS = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in (("a", (3, 4)), ("plain", (4, 2)), ("flipped", (4, 2)), ("ordered", (4, 5)), ("scale", (4,)))
}
X = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)


def net(p, x):
    h = jnp.tanh(x @ p["a"])
    return h @ p["plain"] + h[:, ::-1] @ p["flipped"], (h[:, ORDER] * p["scale"]) @ p["ordered"]


def test_slots_say_where_each_unit_went():
    (group,) = graph.groups(net, PARAMS, X)
    at = {s.path: s.index(4).ravel().tolist() for s in group.slots}
    backwards, ordered = [3, 2, 1, 0], [list(ORDER).index(c) for c in range(4)]
    assert at == {
        "a": [0, 1, 2, 3],
        "plain": [0, 1, 2, 3],
        "flipped": backwards,
        "ordered": ordered,
        "scale": ordered,
    }
    said = {s.path: (s.start, s.step, s.repeats, s.order, s.length) for s in group.slots}
    assert said["a"] == (0, 1, (), (), 0)
    assert said["flipped"] == (3, -1, (), (), 4)
    assert said["ordered"] == (0, 1, (), tuple(ordered), 4)


def test_scores_masks_and_cuts_follow_the_units():
    """All that units cross into weights by, against NumPy with the reordering written out."""
    (group,) = graph.groups(net, PARAMS, X)
    group = dataclasses.replace(group, slots=tuple(dataclasses.replace(s, scored=True) for s in group.slots))
    p = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}
    by_unit = [p["a"].T, p["plain"], p["flipped"][::-1], p["ordered"][BACK], p["scale"][BACK][:, None]]
    got = units.reduce(PARAMS, [group], "l1")[group.name]
    np.testing.assert_allclose(got, sum(np.abs(w).sum(1) for w in by_unit), rtol=1e-6)
    keep = np.array([True, False, True, True])
    kept = {group.name: jnp.asarray(keep)}
    stay = {"a": keep, "plain": keep, "flipped": keep[::-1], "ordered": keep[ORDER], "scale": keep[ORDER]}
    axis = {"a": 1, "plain": 0, "flipped": 0, "ordered": 0, "scale": 0}
    small = compact.cut(PARAMS, [group], kept)
    traced = jax.jit(lambda u: compact.cut(PARAMS, [group], u, sizes={group.name: 3}))(kept)
    masked = masks.apply(PARAMS, units.expand(kept, [group], PARAMS))
    back = compact.embed(small, [group], kept, PARAMS)
    for name, there in stay.items():
        want = np.compress(there, PARAMS[name], axis[name])
        np.testing.assert_array_equal(small[name], want)
        np.testing.assert_array_equal(traced[name], want)
        zeroed = np.where(there if axis[name] or p[name].ndim == 1 else there[:, None], PARAMS[name], 0)
        np.testing.assert_array_equal(masked[name], zeroed)
        np.testing.assert_array_equal(back[name], zeroed)
        np.testing.assert_array_equal(compact.mask(PARAMS, [group], kept)[name], zeroed)
    run, slim = compact.slim(net, PARAMS, [group], kept, X)
    jax.tree.map(np.testing.assert_array_equal, slim, small)
    for a, b in zip(run(slim, X), net(masked, X), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_scale_in_another_order_scores_the_unit_that_it_scales():
    group = Group(
        name="g",
        size=3,
        slots=(
            Slot(path="one/scale", axis=0, scored=True, order=(2, 0, 1), length=3),
            Slot(path="two/scale", axis=0, scored=True, start=2, step=-1, length=3),
            Slot(path="four/scale", axis=0, scored=True, start=1, length=4),
        ),
    )
    params = {
        "one": {"scale": jnp.array([1.0, 2.0, -4.0])},
        "two": {"scale": jnp.array([10.0, 20.0, 40.0])},
        "four": {"scale": jnp.array([9.0, 100.0, 200.0, -400.0])},
    }
    got = saliency.batch_norm_scale(params, [group])["g"]
    np.testing.assert_allclose(got, np.array([4 + 40 + 100, 1 + 20 + 200, 2 + 10 + 400]) / 3)


def test_a_slot_by_hand_needs_no_length_and_its_order_is_checked():
    flipped = Group(name="f", size=3, slots=(Slot(path="w", axis=0, scored=True, start=2, step=-1),))
    ordered = Group(name="o", size=3, slots=(Slot(path="w", axis=0, scored=True, order=(2, 0, 1)),))
    w = {"w": jnp.array([1.0, 2.0, 4.0])}
    for group, values in ((flipped, [4.0, 2.0, 1.0]), (ordered, [4.0, 1.0, 2.0])):
        assert units.reduce(w, [group], "sum")[group.name].tolist() == values
        kept = {group.name: jnp.array([False, True, True])}
        assert units.expand(kept, [group], w)["w"].tolist() == [True, True, False]
        assert compact.cut(w, [group], kept)["w"].tolist() == [1.0, 2.0]
        assert compact.embed(compact.cut(w, [group], kept), [group], kept, w)["w"].tolist() == [1.0, 2.0, 0.0]
        chosen = prune.by_leaf(units.reduce(w, [group], "sum"), {group.name: 1})
        assert compact.cut(w, [group], chosen)["w"].tolist() == [4.0]
    # A head of two entries in an axis of four, whose middle entries have changed places.
    head = Slot(path="w", axis=0, step=2, repeats=((2, 1),), length=4, order=(0, 2, 1, 3))
    assert head.index(2).tolist() == [[0, 2], [1, 3]]
    assert units.spread(jnp.array([True, False]), head).tolist() == [True, False, True, False]
    for order, length in (((0, 0, 1), 3), ((1, 2, 3), 3), ((1, 0), 3)):
        with pytest.raises(ValueError, match="every index of the axis once"):
            Slot(path="w", axis=0, order=order, length=length)


def test_slots_stored_before_there_were_orders_are_read():
    slot = Slot(path="w", axis=0, start=1, length=4)
    state = {k: v for k, v in vars(slot).items() if k != "order"}
    old = object.__new__(Slot)
    old.__dict__.update(state)
    again = pickle.loads(pickle.dumps(old))
    assert again == slot
    assert again.index(2).tolist() == [[1], [2]]


def test_only_indices_that_matter_are_computed(monkeypatch):
    asked = []
    monkeypatch.setattr(binding, "known", lambda compute: asked.append(1))
    fewer, every = np.array([2, 0, 1]), np.array([2, 0, 1, 3])

    def asked_for(op):
        asked.clear()
        return len(graph.groups(lambda p, x: op(x @ p["a"]), PARAMS, X)), len(asked)

    assert asked_for(lambda h: h[:4][every] @ PARAMS["plain"]) == (1, 0)  # examples stay whole
    assert asked_for(lambda h: h[:, fewer] @ PARAMS["plain"][fewer]) == (0, 0)
    assert asked_for(lambda h: h[:, every] @ PARAMS["plain"]) == (0, 1)
    assert asked_for(lambda h: (h[:, every] + h[:, every]) @ PARAMS["plain"]) == (0, 1)  # not known, so all has to stay


def test_orders_are_known_while_something_else_is_traced():
    order = jnp.asarray(ORDER)

    def apply(p, x):
        return jnp.tanh(x @ p["a"])[:, jnp.roll(order, 1)] @ p["plain"]

    groups = graph.groups(apply, PARAMS, X)
    kept = {groups[0].name: jnp.array([True, False, True, True])}
    run, slim = compact.slim(apply, PARAMS, groups, kept, X)
    want = apply(compact.mask(PARAMS, groups, kept), X[:2])
    np.testing.assert_allclose(jax.jit(run)(slim, X[:2]), want, atol=1e-6)  # this batch is traced inside `jit`
    each = jax.jit(jax.vmap(lambda x: run(slim, x[None])[0]))(X)
    np.testing.assert_allclose(each[:2], want, atol=1e-6)

    @jax.jit
    def inside(order):
        found = graph.groups(lambda p, x: (x @ p["a"])[:, order] @ p["plain"], PARAMS, X)
        assert found == ()  # an order that is traced itself is not known
        return order

    inside(order)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.permutations(range(5)), min_size=1, max_size=3), st.permutations(range(5)), st.booleans())
def test_units_meet_themselves_only_in_their_own_order(orders, other, undo):
    """A stream and a permuted copy are added: exact where the orders cancel, frozen where they do not."""
    at = np.arange(5)
    for order in orders:
        at = at[np.asarray(order)]
    last = np.argsort(at) if undo else np.asarray(other)
    p = {"a": jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32), "b": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)}

    def apply(p, x):
        h = x @ p["a"]
        moved = h
        for order in orders:
            moved = moved[:, np.asarray(order)]
        return (h + jnp.cos(moved[:, last])) @ p["b"]

    groups = graph.groups(apply, p, X)
    assert len(groups) == int((at[last] == np.arange(5)).all())
    if groups:
        assert max(compact.verify(apply, p, groups, X, key=jax.random.key(0), cuts=2).differences) < 1e-5
