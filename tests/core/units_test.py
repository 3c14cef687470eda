import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
