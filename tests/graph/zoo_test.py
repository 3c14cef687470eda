"""Coupled groups of many architectures against hand-written truths, and slim against masked models on all of them.

Masking and cutting are done here by plain loops over the groups' indices (`zoo.cases`), so that nothing but the
replayed program is shared with what is tested.
"""

import collections
import functools
import operator
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, graph
from mvp_jax.core import masks as masks_lib
from mvp_jax.core import units as units_lib
from tests.zoo import (
    adversarial,
    attention,
    borderline,
    branches,
    cases,
    convnets,
    frameworks,
    indexing,
    leftovers,
    loops,
    normed_transformers,
    norms,
    others,
    passing,
    permutations,
    standardised,
    transformers,
    uneven,
)

ARCHITECTURES = convnets.CASES | branches.CASES | transformers.CASES | attention.CASES | others.CASES | frameworks.CASES
ARCHITECTURES |= norms.CASES | normed_transformers.CASES | standardised.CASES
FURTHER = (adversarial, borderline, indexing, leftovers, loops, passing, permutations, uneven)
CASES = functools.reduce(operator.or_, (module.CASES for module in FURTHER), ARCHITECTURES)
REMOVED = (0.15, 0.3, 0.5, 0.7, 0.85)
TOLERANCE = 1e-5


@functools.cache
def built(name):
    if name.startswith("equinox"):
        pytest.importorskip("equinox")
    return CASES[name]()


@functools.cache
def analysed(name):
    case = built(name)
    return graph.analyse(case.apply, case.variables, *case.inputs)


def pairs(group):
    return frozenset((s.path, s.axis) for s in group.slots)


def shown(counter):
    return sorted((size, " ".join(f"{path}:{axis}" for path, axis in sorted(slots))) for size, slots in counter)


def random_units(name, groups, ratio):
    """Of each group about `ratio` is removed, at least one unit if there are two, and at least one is kept."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {ratio}".encode()))
    units = {}
    for g in groups:
        count = min(max(round(ratio * g.size), 1), g.size - 1)
        units[g.name] = np.ones(g.size, bool)
        units[g.name][rng.choice(g.size, count, replace=False)] = False
    return units


def outputs(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def difference(a, b):
    """The largest difference relative to the largest entry of `b`, over all outputs; infinite if shapes differ."""
    worst = 0.0
    for x, y in zip(outputs(a), outputs(b), strict=True):
        if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            return np.inf
        worst = max(worst, np.abs(x - y).max() / max(np.abs(y).max(), 1e-30))
    return worst


def test_every_claim_is_looked_at():
    # Equinox cases claim nothing, and are not built where it is missing.
    assert set(NAIVE) == {name for name in CASES if not name.startswith("equinox") and built(name).naive}


def test_there_are_enough_architectures():
    assert len(ARCHITECTURES) >= 24
    assert len(ARCHITECTURES) + sum(len(module.CASES) for module in FURTHER) == len(CASES)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_the_truth(name):
    case, found = built(name), analysed(name).groups
    true = collections.Counter((t.size, t.slots) for t in case.truth)
    got = collections.Counter((g.size, pairs(g)) for g in found)
    missing, surplus = shown(true - got), shown(got - true)
    assert not missing, f"missing {missing}, surplus {surplus}"
    assert not (case.exactly and surplus), f"surplus {surplus}"
    assert len({g.name for g in found}) == len(found)
    for g in found:
        assert any(s.scored for s in g.slots if s.collection == "params"), g.name
    for t in case.truth:
        twins = [g for g in found if (g.size, pairs(g)) == (t.size, t.slots)]
        if len(twins) == 1:
            assert t.kind in (None, twins[0].kind), (t.size, sorted(t.slots))
            assert t.name in (None, twins[0].name)
            assert t.scored in (None, {(s.path, s.axis) for s in twins[0].slots if s.scored})


@pytest.mark.parametrize("name", CASES)
def test_frozen_axes_have_the_right_reason(name):
    case, analysis = built(name), analysed(name)
    cut = frozenset().union(*map(pairs, analysis.groups))
    reasons = collections.defaultdict(list)
    for f in analysis.frozen:
        reasons[f.path, f.axis].append(f.reason)
    for at, pattern in {**case.frozen, **case.partly}.items():
        assert any(re.search(pattern, r) for r in reasons[at]), (at, pattern, reasons[at])
        assert at not in case.frozen or at not in cut, at
    for at, pattern in case.either.items():
        assert at in cut or any(re.search(pattern, r) for r in reasons[at]), (at, pattern, reasons[at])


@pytest.mark.filterwarnings("ignore::mvp_jax.graph.CustomDerivativeWarning")
@pytest.mark.parametrize("ratios", [REMOVED[1::2], pytest.param(REMOVED[::2], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_masked_is_slim(name, ratios):
    case, groups = built(name), analysed(name).groups
    apply = jax.jit(case.apply)
    dense, counts = apply(case.variables, *case.inputs), []
    for ratio in ratios:
        units = random_units(name, groups, ratio)
        gone = cases.removed(groups, units)
        masked = cases.masked(case.variables, gone)
        want = apply(masked, *case.inputs)
        assert difference(dense, want) > 1e-3
        assert any(np.std(y) > 0 for y in outputs(want))
        run, slim = compact.slim(case.apply, case.variables, groups, units, *case.inputs)
        run = jax.jit(run)
        assert difference(run(slim, *case.inputs), want) <= TOLERANCE
        for inputs in case.more:
            assert difference(run(slim, *inputs), apply(masked, *inputs)) <= TOLERANCE
        by_hand = cases.smaller(case.variables, gone)
        jax.tree.map(np.testing.assert_array_equal, slim, by_hand)
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(slim)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] < sum(leaf.size for leaf in jax.tree.leaves(case.variables))


PERMUTED = ["two_layers_added", "inside_a_concatenation", "heads_and_dimensions", "shuffle_by_index", "grouped_after"]


@pytest.mark.parametrize("name", ["resnet_option_a", "vit_fused_split", "lstm", "bilinear", "gpt", *PERMUTED])
def test_expand_masks_the_same_entries(name):
    case, groups = built(name), analysed(name).groups
    units = random_units(name, groups, 0.5)
    want = cases.masked(case.variables, cases.removed(groups, units))
    device = {name: jnp.asarray(u) for name, u in units.items()}
    got = masks_lib.apply(case.variables, units_lib.expand(device, groups, case.variables))
    jax.tree.map(np.testing.assert_array_equal, got, want)


TRAINED = ["resnet_option_a", "vit_separate", "lstm", *PERMUTED]
NORMED = "convnext_stages vit_two_pass post_norm group_norm_large_epsilon norm_twice_without_scale norm_by_deviation"
NORMED += " big_transfer norm_free mixer_two_pass quantised_by_channel softmax_layers squeeze_softmax"


@pytest.mark.parametrize("name", TRAINED + NORMED.split())
def test_slim_models_go_on_training(name):
    """Compiled, at another batch size, and differentiated: the gradient is the masked model's, cut."""
    case, groups = built(name), analysed(name).groups
    units = random_units(name, groups, 0.5)
    masked = cases.masked(case.variables, cases.removed(groups, units))
    run, slim = compact.slim(case.apply, case.variables, groups, units, *case.inputs)
    larger = tuple(jnp.concatenate([x, 0.5 * x[:1], -x]) for x in case.inputs)
    assert larger[0].shape[0] == 2 * case.inputs[0].shape[0] + 1
    assert difference(jax.jit(run)(slim, *larger), case.apply(masked, *larger)) <= TOLERANCE

    def loss(apply):
        return jax.jit(jax.grad(lambda v: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(apply(v, *larger)))))

    got = loss(run)(slim)
    want = compact.cut(loss(case.apply)(masked), groups, units)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    assert scale > 1e-3
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name",
    [
        *("scatter_set", "scatter_set_one", "scatter_add", "scatter_multiply", "scatter_least", "gather_along"),
        *("graph_network", "mixture_of_experts", "experts_of_uniform_entries", "decoder_step"),
        *("shard_map_of_rows", "shard_map_even", "mapped_names"),
        *("watched", "complex_numbers", "diagonal_state", "key_of_rows", "quantised"),
    ],
)
def test_gradients_are_those_of_the_masked_function(name):
    case, groups = built(name), analysed(name).groups
    units = random_units(name, groups, 0.5)
    masked = compact.mask(case.variables, groups, {n: jnp.asarray(u) for n, u in units.items()})
    run, slim = compact.slim(case.apply, case.variables, groups, units, *case.inputs)

    def loss(apply):
        return jax.jit(
            jax.grad(
                lambda v: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(apply(v, *case.inputs))), allow_int=True
            )
        )

    got, want = loss(run)(slim), compact.cut(loss(case.apply)(masked), groups, units)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if a.dtype == b.dtype == jnp.float32:
            scale = max(float(np.abs(b).max()), 1e-2)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def naive_difference(name, ratio):
    """How far a model whose frozen axes are simply cut is from one where they are masked."""
    case = built(name)
    by_path = {path: leaf for (_, path), leaf in cases.leaves(case.variables).items()}
    (size,) = {by_path[path].shape[axis] for path, axis in case.frozen}
    keep = random_units(name, [units_lib.Group(name="naive", size=size, slots=())], ratio)["naive"]
    where = {
        key: {axis: set(np.flatnonzero(~keep)) for path, axis in case.frozen if path == key[1]}
        for key in cases.leaves(case.variables)
    }
    want = case.apply(cases.masked(case.variables, where), *case.inputs)
    try:
        return difference(case.apply(cases.smaller(case.variables, where), *case.inputs), want)
    except (TypeError, ValueError):
        return np.inf


# Every case that claims so; all adversarial ones but one, which says nothing about plain removal.
NAIVE = [
    *(set(adversarial.CASES) - {"batch_norm_without_scale"}),
    *indexing.NEVER,
    *loops.NEVER,
    *passing.NEVER,
    *permutations.NEVER,
    *uneven.NEVER,
]


@pytest.mark.parametrize("name", sorted(NAIVE))
def test_what_must_stay_really_must(name):
    """Where a truth says that removal is not masking, plain removal does give something else."""
    assert built(name).naive
    assert max(naive_difference(name, ratio) for ratio in REMOVED[:3]) > 1e-3
