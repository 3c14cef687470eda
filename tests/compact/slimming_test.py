"""Masked = slim, on every kind of model; cutting and embedding against numpy."""

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from mvp_jax import compact, graph, models
from mvp_jax.compact import cutting
from mvp_jax.core import masks, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.core.units import Group, Slot
from tests import model_kinds
from tests.model_kinds import KINDS, batch, made, random_units

HIDDEN = Group(
    name="hidden",
    size=4,
    slots=(
        Slot(path="one/kernel", axis=1, scored=True),
        Slot(path="one/bias", axis=0),
        Slot(path="two/kernel", axis=0),
    ),
)
OUTER = Group(name="outer", size=3, slots=(Slot(path="two/kernel", axis=1, scored=True),))
GROUPS = (HIDDEN, OUTER)
KEPT = {"hidden": jnp.array([True, False, True, True]), "outer": jnp.array([False, True, True])}


def params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"one": {"kernel": (2, 4), "bias": (4,)}, "two": {"kernel": (4, 3)}, "free": {"kernel": (2, 2)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def by_numpy(p):
    h, o = np.asarray(KEPT["hidden"]), np.asarray(KEPT["outer"])
    one, two = p["one"], p["two"]["kernel"]
    return {
        "one": {"kernel": np.asarray(one["kernel"])[:, h], "bias": np.asarray(one["bias"])[h]},
        "two": {"kernel": np.asarray(two)[h][:, o]},
        "free": {"kernel": np.asarray(p["free"]["kernel"])},
    }


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_equals_slim(kind):
    model, variables = made(kind)
    x = batch(model)
    dense, _ = model.apply(variables, x)
    slim_models = set()
    for seed in (11, 12, 13):
        kept = random_units(model, seed)
        slim_model, slim = compact.rebuild(model, variables, kept)
        slim_models.add(slim_model)
        masked = masks.apply(variables.params, units.expand(kept, model.groups, variables.params))
        expected, _ = model.apply(Variables(masked, variables.rest), x)
        got, _ = slim_model.apply(slim, x)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert np.ptp(np.asarray(expected), axis=0).min() > 1e-3
        assert float(jnp.max(jnp.abs(expected - dense))) > 1e-2
        assert compact.check(model, variables, model.groups, kept, x) <= 2e-5
        for a in jax.tree.leaves(slim.params):
            assert 0 not in a.shape
    assert len(slim_models) == 1  # the same sizes give the same model, so nothing compiles again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"width": 4, "image_size": 16, "stem": "small"}),
        ("resnet50", {"width": 2, "image_size": 32}),
        ("resnet20", {"width": 3, "image_size": 8}),
    ],
)
def test_masked_equals_slim_on_presets_at_uneven_sizes(name, options):
    model = models.create(name, classes=3, **options)
    variables = model_kinds.randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    rng = np.random.default_rng(0)
    kept = {g.name: jnp.asarray(rng.permutation(g.size) < rng.integers(1, g.size + 1)) for g in model.groups}
    x = batch(model, 2)
    size = float(jnp.max(jnp.abs(model.apply(variables, x)[0])))
    assert size > 1e-2
    assert compact.check(model, variables, model.groups, kept, x) <= 1e-5 * max(1.0, size)


def test_check_sees_a_wrong_group():
    model, variables = made("option_a")
    kept = random_units(model, 3)

    class Wrong:  # a model whose slim version keeps the first units instead of the right ones
        groups, apply, resize = model.groups, model.apply, model.resize

    first = {n: jnp.arange(u.size) < int(u.sum()) for n, u in kept.items()}
    slim_model, slim = compact.rebuild(Wrong, variables, first)
    masked = masks.apply(variables.params, units.expand(kept, model.groups, variables.params))
    x = batch(model)
    a, _ = model.apply(Variables(masked, variables.rest), x)
    b, _ = slim_model.apply(slim, x)
    assert float(jnp.max(jnp.abs(a - b))) > 1e-2


def test_some_groups_only():
    model, variables = made("distiller")
    kept = {g.name: u for g in model.groups if g.kind == "stage" for u in [random_units(model, 4)[g.name]]}
    slim_model, _ = compact.rebuild(model, variables, kept)
    assert slim_model.config.inner_widths == model.config.inner_widths
    assert slim_model.config.stage_widths == tuple(int(u.sum()) for u in kept.values()) == (2, 2)
    groups = [g for g in model.groups if g.name in kept]
    assert compact.check(model, variables, groups, kept, batch(model)) <= 2e-5


def test_a_training_step_on_the_slim_model_is_the_masked_one_cut():
    model, variables = made("basic")
    kept = random_units(model, 5)
    slim_model, slim = compact.rebuild(model, variables, kept)
    keep = units.expand(kept, model.groups, variables.params)
    tx = optax.sgd(0.01, momentum=0.9)
    x, y = batch(model, 6), jnp.array([0, 1, 2, 0, 1, 2])

    def step(m, v, opt, keep):
        def loss(p):
            logits, rest = m.apply(Variables(p, v.rest), x, train=True)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), rest

        grads, rest = jax.grad(loss, has_aux=True)(v.params)
        grads = masks.apply(grads, keep) if keep is not None else grads
        updates, opt = tx.update(grads, opt)
        return Variables(optax.apply_updates(v.params, updates), rest), opt

    masked = Variables(masks.apply(variables.params, keep), variables.rest)
    opt = jax.tree.map(lambda a: a + 0.3, tx.init(masked.params))
    dense_v, dense_opt = jax.jit(functools.partial(step, model))(masked, opt, keep)
    slim_v, slim_opt = jax.jit(functools.partial(step, slim_model, keep=None))(
        slim, compact.cut(opt, model.groups, kept)
    )
    expected = compact.cut((dense_v, dense_opt), model.groups, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), (slim_v, slim_opt), expected)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), slim_v, slim))) > 1e-3


def test_cut_takes_the_kept_units_of_every_slot():
    p = params()
    assert_equal(jax.tree.map(np.asarray, compact.cut(p, GROUPS, KEPT)), by_numpy(p))


class State(NamedTuple):
    step: jax.Array
    variables: Variables
    opt: object
    masks: object
    key: jax.Array


def test_cut_finds_every_copy_of_the_parameters_in_a_training_state():
    p = params()
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.trace(0.9))
    opt = jax.tree.map(lambda a: a + 1 if a.ndim == 0 else a + 2.0, tx.init(p))
    keep = units.expand(KEPT, GROUPS, p)
    state = State(jnp.int32(3), Variables(p, {"norm": {"mean": jnp.ones(4)}}), opt, keep, jax.random.key(1))
    cut = compact.cut(state, GROUPS, KEPT)
    assert jax.tree.structure(cut) == jax.tree.structure(state)
    assert_equal(jax.tree.map(np.asarray, cut.variables.params), by_numpy(p))
    adam = cut.opt[1][0]
    assert_equal(jax.tree.map(np.asarray, adam.mu), by_numpy(opt[1][0].mu))
    assert_equal(jax.tree.map(np.asarray, cut.opt[2].trace), by_numpy(opt[2].trace))
    assert int(adam.count) == 1
    assert cut.variables.rest["norm"]["mean"].shape == (4,)  # no group names it
    # Masks keep their broadcast axes; what is left of them keeps everything.
    assert jax.tree.map(jnp.shape, cut.masks) == {
        "free": {"kernel": ()},
        "one": {"bias": (3,), "kernel": (1, 3)},
        "two": {"kernel": (3, 2)},
    }
    assert all(bool(jnp.all(m)) for m in jax.tree.leaves(cut.masks))
    assert jnp.array_equal(jax.random.key_data(cut.key), jax.random.key_data(state.key))


def test_a_longer_root_yields_to_a_shorter_one():
    group = Group(name="fc", size=2, slots=(Slot(path="kernel", axis=0, scored=True),))
    tree = {"kernel": jnp.zeros((2, 5)), "head": {"kernel": jnp.zeros((2, 7))}}
    cut = compact.cut(tree, [group], {"fc": jnp.array([True, False])})
    assert cut["kernel"].shape == (1, 5)
    assert cut["head"]["kernel"].shape == (2, 7)


def test_cut_works_under_jit_and_vmap_with_sizes():
    p, sizes = params(), compact.sizes(KEPT)
    jitted = jax.jit(lambda p, u: compact.cut(p, GROUPS, u, sizes=sizes))(p, KEPT)
    assert_equal(jitted, compact.cut(p, GROUPS, KEPT))
    other = {"hidden": KEPT["hidden"][::-1], "outer": KEPT["outer"][::-1]}
    many = jax.vmap(lambda p, u: compact.cut(p, GROUPS, u, sizes=sizes))(
        trees.stack([p, params(1)]), trees.stack([KEPT, other])
    )
    assert_equal(trees.unstack(many)[0], compact.cut(p, GROUPS, KEPT))
    assert_equal(trees.unstack(many)[1], compact.cut(params(1), GROUPS, other))


def test_another_task_of_the_same_sizes_compiles_nothing():
    p = params()
    compact.cut(p, GROUPS, KEPT)
    before = cutting._gather._cache_size()
    compact.cut(params(2), GROUPS, {n: u[::-1] for n, u in KEPT.items()})
    assert cutting._gather._cache_size() == before


@pytest.mark.parametrize("kind", ["distiller", "vit_mean"])
def test_embed_reverses_cut(kind):
    model, variables = made(kind)
    kept = random_units(model, 6)
    slim = compact.cut(variables, model.groups, kept)
    dense = compact.embed(slim, model.groups, kept, variables)
    keep = units.expand(kept, model.groups, variables.params)
    assert_equal(dense.params, masks.apply(variables.params, keep))
    assert_equal(compact.cut(dense, model.groups, kept), slim)
    shapes = jax.eval_shape(lambda: variables)
    assert_equal(compact.embed(slim, model.groups, kept, shapes, fill=variables), variables)
    gone = sum(int(jnp.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (dense, variables)), strict=True))
    assert gone > 10


def test_embed_works_under_jit_and_on_masks():
    p = params()
    slim = compact.cut(p, GROUPS, KEPT)
    eager = compact.embed(slim, GROUPS, KEPT, p)
    assert_equal(jax.jit(lambda s, u: compact.embed(s, GROUPS, u, p))(slim, KEPT), eager)
    all_true = jax.tree.map(lambda a: jnp.ones(a.shape, bool), slim)
    back = compact.embed(all_true, GROUPS, KEPT, jax.tree.map(lambda a: jnp.zeros(a.shape, bool), p))
    keep = units.expand(KEPT, GROUPS, p)
    jax.tree.map(lambda a, m: np.testing.assert_array_equal(a, np.broadcast_to(m, a.shape)), back, keep)


@hypothesis.settings(max_examples=12)  # every new shape compiles
@hypothesis.given(
    rows=st.lists(st.booleans(), min_size=1, max_size=5), columns=st.lists(st.booleans(), min_size=3, max_size=3)
)
def test_cut_is_numpy_compress(rows, columns):
    lead = 2
    groups = (
        Group(name="r", size=len(rows), slots=(Slot(path="w", axis=1, scored=True),)),
        Group(name="c", size=len(columns), slots=(Slot(path="w", axis=2, scored=True),)),
    )
    kept = {"r": jnp.array(rows), "c": jnp.array(columns)}
    w = np.arange(1, lead * len(rows) * len(columns) + 1, dtype=np.float32).reshape(lead, len(rows), len(columns))
    slim = compact.cut({"w": jnp.asarray(w)}, groups, kept)
    np.testing.assert_array_equal(slim["w"], np.compress(columns, np.compress(rows, w, axis=1), axis=2))
    if any(rows) and any(columns):
        back = compact.embed(slim, groups, kept, {"w": jnp.asarray(w)})
        np.testing.assert_array_equal(back["w"], np.where(np.outer(rows, columns), w, 0.0))


def test_slim_compiles_nothing_for_each_shape():
    """A compiled program for every array would take seconds for a large model."""

    def apply(p, x):
        h = jnp.tanh(x @ p["in"])
        return [h @ p[f"out{i}"] for i in range(len(p) - 1)]

    def cut_with(n):
        p = {"in": np.ones((3, 8), np.float32)} | {f"out{i}": np.ones((8, n + i), np.float32) for i in range(n)}
        groups = graph.groups(apply, p, jnp.ones((1, 3)))
        return compact.slim(apply, p, groups, {g.name: np.arange(g.size) < 5 for g in groups}, jnp.ones((1, 3)))[1]

    cut_with(1)  # what is compiled once
    compiled = []
    listen = lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        small = cut_with(9)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert small["out8"].shape == (5, 17)
    assert not compiled


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.float32])
def test_units_may_be_zeros_and_ones(kind):
    def apply(p, x):
        return jax.nn.softmax(x @ p["a"]) @ p["b"]

    p = {"a": jnp.linspace(-1, 1, 24).reshape(3, 8), "b": jnp.linspace(1, -1, 16).reshape(8, 2)}
    x = jnp.ones((1, 3))
    groups = graph.groups(apply, p, x)
    kept = [1, 0, 1, 1, 0, 1, 0, 1]
    small, variables = compact.slim(apply, p, groups, {"a": np.asarray(kept, kind)}, x)
    assert_equal(variables["b"], p["b"][np.asarray(kept) == 1])
    masked = compact.mask(p, groups, {"a": np.asarray(kept, bool)})
    np.testing.assert_allclose(small(variables, x), apply(masked, x), rtol=1e-5)


def test_bad_input_is_refused():
    p = params()
    with pytest.raises(ValueError, match="units and groups differ"):
        compact.cut(p, GROUPS, {"hidden": KEPT["hidden"]})
    with pytest.raises(ValueError, match="index space of the dense model"):
        compact.cut(p, GROUPS, {**KEPT, "outer": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match="lacks the 4 units of group 'hidden'"):
        compact.cut(compact.cut(p, GROUPS, KEPT), GROUPS, KEPT)
    with pytest.raises(ValueError, match="is in the tree"):
        compact.cut({"other": jnp.zeros(4)}, GROUPS, KEPT)
    with pytest.raises(ValueError, match="give sizes="):
        jax.jit(lambda u: compact.cut(p, GROUPS, u))(KEPT)
    with pytest.raises(ValueError, match=r"\(given, kept\): {'hidden': \(2, 3\)}"):
        compact.cut(p, GROUPS, KEPT, sizes={"hidden": 2, "outer": 2})
    with pytest.raises(ValueError, match="are stacked"):
        compact.cut(p, GROUPS, trees.stack([KEPT, KEPT]))
    with pytest.raises(ValueError, match="3 of 'hidden' are kept"):
        compact.embed(p, GROUPS, KEPT, p)
    model, variables = made("option_a")
    with pytest.raises(ValueError, match="no unit is kept"):
        compact.rebuild(model, variables, {g.name: jnp.zeros(g.size, bool) for g in model.groups})
    with pytest.raises(ValueError, match="only in units"):
        compact.rebuild(model, variables, {"stem/conv": jnp.ones(4, bool)})


def test_groups_of_another_function_that_ties_their_units_are_refused():
    shapes = {"a": (3, 4), "b": (3, 4), "o": (4, 2), "o2": (4, 2)}
    p = {name: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.ones((2, 3))

    def apart(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["o"] + jax.nn.relu(x @ p["b"]) @ p["o2"]

    def tied(p, x):
        return jax.nn.relu(x @ p["a"] + x @ p["b"]) @ (p["o"] + p["o2"])

    groups = graph.groups(apart, p, x)
    assert sorted(g.name for g in groups) == ["a", "b"]
    units = {"a": jnp.array([True, False, True, True]), "b": jnp.array([False, True, True, True])}
    with pytest.raises(ValueError, match=r"group 'a' are tied to those of \['b\[1\]', 'o2\[0\]'\]"):
        compact.slim(tied, p, groups, units, x)
    with pytest.raises(ValueError, match="are tied to those of"):
        compact.slim(tied, p, groups[:1], {"a": units["a"]}, x)
