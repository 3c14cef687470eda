"""Methods for a sparsity on parameters in any container, on units, and by every pattern."""

import functools

import jax
import numpy as np
import pytest
from flax import linen, nnx

from mvp_jax.core import patterns
from mvp_jax.core.types import Variables
from mvp_jax.models import functions
from tests import mlp
from tests.methods.sparse import contract_test as contract


def as_nnx(params):
    return nnx.State(jax.tree.map(nnx.Param, params))


def as_linen(params):
    return linen.FrozenDict(params)


CONTAINERS = {
    "nnx": as_nnx,
    "linen": as_linen,
    "tuples": lambda p: ({"kernel": p["one"]["kernel"], "bias": p["one"]["bias"]}, (p["two"], p["head"])),
}
PATHS = {"tuples": ("0/kernel", "1/0/kernel")}


@functools.cache
def contained(kind):
    def apply(variables, x, **_):
        if kind == "tuples":
            one, (two, head) = variables.params
            p = {"one": one, "two": two, "head": head}
        else:
            p = nnx.to_pure_dict(variables.params) if kind == "nnx" else variables.params
        return contract.relu_net(Variables(p, {}), x)[0], variables.rest

    rules = PATHS.get(kind, ("(one|two)/kernel",))
    return functions.from_apply(apply, input_shape=(5,), num_classes=3, prunable=rules)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("gradual", "nnx"),
        ("once_synflow", "linen"),
        ("once_wanda", "tuples"),
        *(slow(c, "nnx") for c in ("isp_taylor", "once_wanda", "movement_hard", "rigl")),
        *(slow(c, "linen") for c in ("imp_rewound", "isp_union", "sparse_soups")),
        *(slow(c, "tuples") for c in ("once_snip", "gradual", "isp")),
    ],
)
def test_any_container_gives_what_a_dict_gives(case, kind):
    variables = mlp.variables()
    own = Variables(CONTAINERS[kind]({n: variables.params[n] for n in ("one", "two", "head")}), {})
    bare = Variables({n: variables.params[n] for n in ("one", "two", "head")}, {})
    got = contract.run(case, model=contained(kind), variables=own)
    wanted = contract.run(case, variables=bare)
    assert type(got.variables.params) is type(own.params)
    sorted_masks = [np.asarray(m) for m in jax.tree.leaves(got.masks) if np.ndim(m)]
    plain_masks = [np.asarray(m) for m in jax.tree.leaves(wanted.masks) if np.ndim(m)]
    assert [m.shape for m in sorted_masks] == [m.shape for m in plain_masks]
    if case != "rigl":  # the stream of random numbers follows the order of leaves
        assert all(np.array_equal(a, b) for a, b in zip(sorted_masks, plain_masks, strict=True))
    assert sum(m.sum() for m in sorted_masks) in (contract.KEPT, contract.BY_OUTPUT)


@pytest.mark.parametrize(
    "case",
    ["once_taylor", "rigl", "isp", *map(slow, ("once_magnitude", "gradual", "imp_rewound", "isp_union", "isp_taylor"))],
)
def test_whole_units_go(case):
    model = mlp.mlp()
    got = contract.run(case, model=model, pattern=patterns.WholeUnits(model.groups), sparsity=0.5)
    assert {n: int(u.sum()) for n, u in got.units.items()} == {"a": 4, "b": 3}
    off = ~np.asarray(got.units["a"])
    assert not np.asarray(got.variables.params["one"]["kernel"])[:, off].any()
    assert not np.asarray(got.variables.params["two"]["kernel"])[off].any()
    if case != "rigl":  # what grew behind a dead unit is still 0
        assert np.asarray(got.variables.params["two"]["kernel"])[~off][:, np.asarray(got.units["b"])].all()


@pytest.mark.parametrize(
    ("case", "pattern"),
    [
        ("gradual", patterns.Weights("uniform")),
        slow("rigl", patterns.Weights("erk")),
        ("isp", patterns.Weights("erk")),
        slow("isp_union", patterns.Blocks((1, 2))),
        ("rigl", patterns.Blocks((1, 2))),
        ("isp", patterns.Channels()),
    ],
    ids=str,
)
def test_every_pattern_is_kept_exactly(case, pattern):
    p = contract.problem(pattern=pattern, sparsity=0.5)
    got = contract.run(case, pattern=pattern, sparsity=0.5)
    wanted = p.keep()
    for name in ("one", "two"):
        mask = np.asarray(got.masks[name]["kernel"])
        entries = mask[:, ::2] if isinstance(pattern, patterns.Blocks) else mask
        assert entries.sum() == wanted[name]["kernel"]
        if isinstance(pattern, patterns.Blocks):
            assert np.array_equal(mask[:, ::2], mask[:, 1::2])


def test_two_of_four():
    pattern = patterns.NofM(4, axis=1)
    for case in ("once_magnitude", "gradual", "imp_rewound"):
        got = contract.run(case, pattern=pattern, sparsity=0.5, rules=("one/kernel",))
        assert np.asarray(got.masks["one"]["kernel"]).reshape(-1, 4).sum(1).tolist() == [2] * 10
    for case in ("isp", "rigl"):
        with pytest.raises(ValueError, match="N of every M"):
            contract.run(case, pattern=pattern, sparsity=0.5, rules=("one/kernel",))
