import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mvp_jax.core import units
from mvp_jax.core.units import Group, Slot

# A filter group (produced by `conv`, consumed by `next`) and the group of what `next` produces.
GROUPS = (
    Group(
        name="conv",
        size=3,
        slots=(
            Slot(path="conv/kernel", axis=1, scored=True),
            Slot(path="conv/bias", axis=0, scored=True),
            Slot(path="norm/mean", axis=0, collection="rest"),
            Slot(path="next/kernel", axis=0),
        ),
    ),
    Group(name="next", size=2, slots=(Slot(path="next/kernel", axis=1, scored=True),)),
)
RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"bias": RNG.standard_normal(3).astype("f"), "kernel": RNG.standard_normal((4, 3)).astype("f")},
    "head": {"kernel": RNG.standard_normal((2, 2)).astype("f")},
    "next": {"kernel": RNG.standard_normal((3, 2)).astype("f")},
}


@pytest.mark.parametrize(
    ("how", "oracle"),
    [
        ("sum", lambda v: v.sum()),
        ("l1", lambda v: np.abs(v).sum()),
        ("l2", np.linalg.norm),
        ("sum_square", lambda v: v.sum() ** 2),
    ],
)
def test_reduce_over_producing_slots(how, oracle):
    got = jax.jit(lambda p: units.reduce(p, GROUPS, how))(PARAMS)
    conv = [oracle(np.append(PARAMS["conv"]["kernel"][:, c], PARAMS["conv"]["bias"][c])) for c in range(3)]
    np.testing.assert_allclose(got["conv"], conv, rtol=1e-5)
    np.testing.assert_allclose(got["next"], [oracle(PARAMS["next"]["kernel"][:, c]) for c in range(2)], rtol=1e-5)
    assert len(set(np.asarray(got["conv"]).tolist())) == 3


def test_reduce_refuses():
    with pytest.raises(ValueError, match="unknown reduction"):
        units.reduce(PARAMS, GROUPS, "max")
    with pytest.raises(ValueError, match="no producing slot"):
        units.reduce(PARAMS, [Group(name="x", size=3, slots=(Slot(path="conv/bias", axis=0),))])


def test_expand_is_the_outer_product_where_groups_meet():
    kept = {"conv": jnp.array([True, False, True]), "next": jnp.array([False, True])}
    got = jax.jit(lambda u: units.expand(u, GROUPS, PARAMS))(kept)
    assert got["conv"]["kernel"].shape == (1, 3)
    assert got["conv"]["bias"].tolist() == [True, False, True]
    assert np.array_equal(got["next"]["kernel"], np.outer([True, False, True], [False, True]))
    assert got["head"]["kernel"].shape == ()
    assert bool(got["head"]["kernel"])
    stacked = jax.tree.map(lambda u: jnp.stack([u, ~u]), kept)
    many = jax.vmap(lambda u: units.expand(u, GROUPS, PARAMS))(stacked)
    assert many["next"]["kernel"].shape == (2, 3, 2)
    assert np.array_equal(many["next"]["kernel"][1], np.outer([False, True, False], [True, False]))


def test_expand_of_all_units_keeps_everything():
    got = units.expand(units.full(GROUPS), GROUPS, PARAMS)
    assert jax.tree.structure(got) == jax.tree.structure(PARAMS)
    assert all(bool(m.all()) for m in jax.tree.leaves(got))


def test_expand_and_check_refuse():
    whole = units.full(GROUPS)
    with pytest.raises(ValueError, match="only in groups: \\['next'\\]"):
        units.expand({"conv": whole["conv"]}, GROUPS, PARAMS)
    with pytest.raises(ValueError, match="index space of the dense model"):
        units.check({**whole, "next": jnp.ones(1, bool)}, GROUPS)
    with pytest.raises(ValueError, match="which the parameters lack"):
        units.expand({"x": jnp.ones(3, bool)}, [Group(name="x", size=3, slots=(Slot(path="no", axis=0),))], PARAMS)
    wrong = Group(name="x", size=3, slots=(Slot(path="next/kernel", axis=1),))
    with pytest.raises(ValueError, match="does not lie along axis 1"):
        units.expand({"x": jnp.ones(3, bool)}, [wrong], PARAMS)


def test_count_and_restrict():
    kept = {"next": jnp.array([False, True]), "conv": jnp.array([True, False, True])}
    assert units.count(kept) == {"next": 1, "conv": 2}
    assert list(units.restrict(kept, GROUPS)) == ["conv", "next"]
    assert list(units.restrict(kept, GROUPS[:1])) == ["conv"]


REDUCTIONS = {
    "sum": np.sum,
    "l1": lambda v: np.sum(np.abs(v)),
    "l2": lambda v: np.sqrt(np.sum(v**2)),
    "sum_square": lambda v: np.sum(v) ** 2,
}


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [*((d, s) for d in ("float16", "bfloat16", "float32", "float64") for s in (1e-4, 300.0)), ("int8", 60.0)],
)
def test_reduce_is_computed_in_float32_or_float64(dtype, scale, how):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(1)
        draw = {
            "kernel": rng.normal(size=(2000, 50)),
            "bias": rng.normal(size=(50,)),
            "fused": rng.normal(size=(3, 104)),
        }
        terms = {
            k: jnp.asarray(np.clip(v * scale, -128, 127) if dtype == "int8" else v * scale, dtype)
            for k, v in draw.items()
        }
        # Unit c of the fused axis lies at 4 + 2c and 5 + 2c.
        fused = Slot(path="fused", axis=1, scored=True, start=4, step=2, repeats=((2, 1),), length=104)
        slots = (Slot(path="kernel", axis=1, scored=True), Slot(path="bias", axis=0, scored=True), fused)
        got = units.reduce(terms, [Group(name="fc", size=50, slots=slots)], how)["fc"]
        held = {k: np.asarray(v).astype(np.float64) for k, v in terms.items()}
        want = []
        for c in range(50):
            own = [held["kernel"][:, c], held["bias"][c : c + 1], held["fused"][:, 4 + 2 * c : 6 + 2 * c].ravel()]
            want.append(REDUCTIONS[how](np.concatenate(own)))
        assert got.dtype == ("float64" if dtype == "float64" else "float32")
        assert len(set(want)) > 40
        rtol = 1e-12 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.max(np.abs(want)))
        assert len(np.unique(got)) > 40


def test_reduce_of_narrow_terms_stays_float32_under_x64():
    group = Group(name="fc", size=2, slots=(Slot(path="w", axis=0, scored=True), Slot(path="v", axis=0, scored=True)))
    with jax.enable_x64(True):
        terms = {"w": jnp.array([-128, 3], jnp.int8), "v": jnp.array([1.0, 2.0], jnp.float16)}
        got = units.reduce(terms, [group], "l1")["fc"]
        assert got.dtype == jnp.float32
        assert got.tolist() == [129.0, 5.0]
        terms["v"] = jnp.array([2.0**-40, 0.0])
        assert units.reduce(terms, [group], "l1")["fc"].tolist() == [128 + 2.0**-40, 3.0]


def test_scores_that_are_not_finite_become_nan_and_are_told():
    scores = {
        "a": jnp.array([1.0, jnp.inf, -jnp.inf]),
        "b": jnp.array([2, 3], jnp.int8),
        "c": jnp.array([jnp.nan, 0.0]),
    }
    with pytest.warns(RuntimeWarning, match="before all others: 2 of 3 units of 'a', 1 of 2 units of 'c'") as caught:
        got = units.only_finite(scores)
    assert [w.filename for w in caught] == [__file__]
    for name, want in (("a", [1.0, np.nan, np.nan]), ("b", [2.0, 3.0]), ("c", [np.nan, 0.0])):
        np.testing.assert_array_equal(got[name], want)
    traced = jax.jit(units.only_finite)(scores)  # a warning would be an error here
    jax.tree.map(np.testing.assert_array_equal, traced, got)
    with pytest.warns(RuntimeWarning, match="units of 'e' and more in 2 further groups$"):
        units.only_finite({name: jnp.array([jnp.nan, 1.0]) for name in "abcdefg"})


def test_a_group_without_finite_score_is_refused_where_scores_are_known():
    scores = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([jnp.nan, jnp.inf])}
    with pytest.raises(ValueError, match=r"not one score of \['b'\] is finite"):
        units.only_finite(scores)
    assert np.isnan(jax.jit(units.only_finite)(scores)["b"]).all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(), P("d", None), P(None, "d")])
def test_units_of_arrays_on_a_mesh_are_those_of_one_device(kind, spec):
    """Unit c lies at 2c and 2c + 1 of an axis that two devices share."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    fused = {"axis": 1, "scored": True, "step": 2, "repeats": ((2, 1),), "length": 12}
    group = Group(name="f", size=6, slots=(Slot(path="k", **fused), Slot(path="b", **fused | {"axis": 0})))
    params = {"k": np.arange(48.0, dtype=np.float32).reshape(4, 12), "b": np.arange(12.0, dtype=np.float32)}
    placed = {
        "k": jax.device_put(params["k"], NamedSharding(mesh, spec)),
        "b": jax.device_put(params["b"], NamedSharding(mesh, P("d"))),
    }
    want = [params["k"][:, 2 * c : 2 * c + 2].sum() + params["b"][2 * c : 2 * c + 2].sum() for c in range(6)]
    for call in (units.reduce, jax.jit(units.reduce, static_argnums=(1, 2))):
        assert call(placed, (group,), "l1")["f"].tolist() == want
    kept = np.array([True, False, True, True, False, False])
    got = units.expand({"f": jax.device_put(kept, NamedSharding(mesh, P("d")))}, [group], placed)
    assert got["k"].tolist() == [np.repeat(kept, 2).tolist()]
    assert got["b"].tolist() == np.repeat(kept, 2).tolist()
