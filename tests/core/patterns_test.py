"""Patterns against selections written in NumPy: what is one entry, how many stay, which, and what mask that makes."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax.core import patterns, prune
from mvp_jax.core.units import Group, Slot

RNG = np.random.default_rng(0)
# Few distinct values, so that ties have to be broken everywhere; quarters, so that sums are exact in any order.
VALUES = {
    "a": np.round(4 * RNG.standard_normal((2, 8, 4))).astype(np.float32) / 4,
    "b": np.round(4 * RNG.standard_normal((4, 8))).astype(np.float32) / 4,
    "c": np.ones(8, np.float32),
}
PRUNABLE = {"a": True, "b": True, "c": False}
GROUPS = (
    Group(name="wide", size=8, slots=(Slot(path="a", axis=1, scored=True), Slot(path="b", axis=1))),
    Group(name="tall", size=4, slots=(Slot(path="b", axis=0, scored=True),)),
)
PATTERNS = {
    "weights": patterns.Weights(),
    "weights, uniform": patterns.Weights("uniform"),
    "weights, erk": patterns.Weights("erk"),
    "channels": patterns.Channels(),
    "channels, global": patterns.Channels(axis=-2, allocation="global"),
    "blocks": patterns.Blocks((2, 2)),
    "blocks, global": patterns.Blocks((4,), "global"),
    "2:4": patterns.NofM(4, axis=-1),
    "units": patterns.WholeUnits(GROUPS),
}


def count(n, sparsity):
    return n - round(sparsity * n)


def highest(scores, keep, within):
    """The `keep` highest of those within, ties to the lower flat index."""
    order = np.lexsort([np.arange(scores.size), -scores.ravel(), ~within.ravel()])
    out = np.zeros(scores.size, bool)
    out[order[:keep]] = True
    return out.reshape(scores.shape) & within


def cells(x, axes, how):
    """Numbers of one entry to one number, by loops over entries; `axes` says how long an entry is along each axis."""
    out = np.zeros([n // k for n, k in zip(x.shape, axes, strict=True)], np.float64)
    for at in np.ndindex(out.shape):
        part = x[tuple(slice(i * k, (i + 1) * k) for i, k in zip(at, axes, strict=True))].astype(np.float64)
        part = part.ravel()
        out[at] = {
            "sum": part.sum(),
            "l1": np.abs(part).sum(),
            "l2": np.sqrt((part**2).sum()),
            "sum_square": part.sum() ** 2,
        }[how]
    return out


def lengths(name, shape):
    """How many weights along each axis make one entry."""
    if name.startswith("channels"):
        keep = len(shape) - (2 if "global" in name else 1)
        return [1 if a == keep else n for a, n in enumerate(shape)]
    if name.startswith("blocks"):
        block = (4,) if "global" in name else (2, 2)
        return [1] * (len(shape) - len(block)) + list(block)
    return [1] * len(shape)


def expected_entries(name, values, how="l2"):
    if name != "units":
        return {k: cells(values[k], lengths(name, values[k].shape), how) for k in "ab"}
    return {
        "wide": np.array([cells(values["a"][:, i], (2, 4), how).item() for i in range(8)]),
        "tall": np.array([cells(values["b"][i], (8,), how).item() for i in range(4)]),
    }


def expected_kept(name, scores, sparsity, within):
    """A selection that shares nothing with the library but the rule `n - round(s n)`."""
    scores = {k: np.float32(x) for k, x in scores.items()}
    if name == "2:4":
        return {k: runs(x, count(4, sparsity), within[k]) for k, x in scores.items()}
    if name in ("weights", "channels, global", "blocks, global"):
        flat = np.concatenate([x.ravel() for x in scores.values()])
        inside = np.concatenate([within[k].ravel() for k in scores])
        chosen = np.split(highest(flat, count(flat.size, sparsity), inside), [scores["a"].size])
        return {k: m.reshape(x.shape) for m, (k, x) in zip(chosen, scores.items(), strict=True)}
    keep = {k: count(x.size, sparsity) for k, x in scores.items()}
    if name == "weights, erk":
        keep = erk({k: x.shape for k, x in scores.items()}, sparsity)
    if name == "units":
        keep = {k: max(1, n) for k, n in keep.items()}
    return {k: highest(x, keep[k], within[k]) for k, x in scores.items()}


def runs(x, n, within):
    out = np.zeros(x.shape, bool)
    for at in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], 4):
            part = (*at, slice(start, start + 4))
            out[part] = highest(x[part], n, within[part])
    return out


def erk(shapes, sparsity):
    """Densities in proportion to Σd/Πd; what would be over 1 is 1, and the rest is shared out again."""
    raw = {k: sum(s) / math.prod(s) for k, s in shapes.items()}
    size = {k: math.prod(s) for k, s in shapes.items()}
    total, dense = count(sum(size.values()), sparsity), set()
    while True:
        scale = (total - sum(size[k] for k in dense)) / sum(raw[k] * size[k] for k in shapes if k not in dense)
        over = {k for k in shapes if k not in dense and scale * raw[k] > 1}
        if not over:
            break
        dense |= over
    wanted = {k: size[k] if k in dense else scale * raw[k] * size[k] for k in shapes}
    keep = {k: math.floor(x) for k, x in wanted.items()}
    for k in sorted(keep, key=lambda k: keep[k] - wanted[k])[: total - sum(keep.values())]:
        keep[k] += 1
    return keep


def expected_masks(name, kept):
    if name == "units":
        wide, tall = kept["wide"], kept["tall"]
        return {"a": np.broadcast_to(wide[:, None], (2, 8, 4)), "b": wide & tall[:, None]}
    return {k: np.kron(m, np.ones(lengths(name, VALUES[k].shape), bool)) for k, m in kept.items()}


TRACED = []


@functools.partial(jax.jit, static_argnames="pattern")
def choose(values, keep, within, *, pattern):
    TRACED.append(pattern)
    kept = pattern.select(pattern.entries(values, PRUNABLE), keep, within)
    return kept, pattern.masks(kept, values, PRUNABLE)


def check(name, values, kept, masks, expected):
    for k, m in expected.items():
        np.testing.assert_array_equal(kept[k], m)
    for k, m in expected_masks(name, expected).items():
        np.testing.assert_array_equal(np.broadcast_to(masks[k], values[k].shape), m)
    assert masks["c"].shape == ()  # no groups, or not prunable
    assert masks["c"]
    assert jax.tree.structure(masks) == jax.tree.structure(values)


# ------------------------------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize("name", PATTERNS)
def test_rounds_of_selection_equal_numpy(name):
    """Each among what the last one left, on other numbers, all with one compilation."""
    pattern = PATTERNS[name]
    kept = pattern.whole(VALUES, PRUNABLE)
    within = {k: np.ones(m.shape, bool) for k, m in expected_entries(name, VALUES).items()}
    check(name, VALUES, kept, pattern.masks(kept, VALUES, PRUNABLE), within)
    before = len(TRACED)
    for i, sparsity in enumerate((0.0, 0.25, 0.5, 0.75)):
        values = {k: np.roll(x, i) for k, x in VALUES.items()}
        within = expected_kept(name, expected_entries(name, values), sparsity, within)
        kept, masks = choose(values, pattern.counts(values, PRUNABLE, sparsity), kept, pattern=pattern)
        check(name, values, kept, masks, within)
    assert len(TRACED) == before + 1
    assert all(0 < m.sum() < m.size for m in within.values())
    assert pattern.scope == ("tree" if name in ("weights", "channels, global", "blocks, global") else "leaf")


@pytest.mark.parametrize("name", ["weights, erk", "blocks, global", "2:4", "units"])
def test_eager_and_stacked_equal_compiled(name):
    pattern = PATTERNS[name]
    shares = (0.25, 0.5, 0.75)
    members = [{k: np.roll(x, i) for k, x in VALUES.items()} for i in range(3)]
    counts = [pattern.counts(VALUES, PRUNABLE, s) for s in shares]
    whole = pattern.whole(VALUES, PRUNABLE)
    stacked, keep = (jax.tree.map(lambda *x: jnp.stack([*map(jnp.asarray, x)]), *xs) for xs in (members, counts))
    _, together = jax.vmap(functools.partial(choose, pattern=pattern), in_axes=(0, 0, None))(stacked, keep, whole)
    eager = pattern.select(pattern.entries(members[0], PRUNABLE), counts[0], whole)
    for i, (values, k) in enumerate(zip(members, counts, strict=True)):
        kept, masks = choose(values, k, whole, pattern=pattern)
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(masks), strict=True):
            np.testing.assert_array_equal(x[i], y)
        for x, y in zip(jax.tree.leaves(eager) if i == 0 else (), jax.tree.leaves(kept), strict=i == 0):
            np.testing.assert_array_equal(x, y)


def test_ties_go_to_the_second_scores():
    scores = {"w": jnp.zeros(8)}
    ties = {"w": jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0])}
    group = Group(name="w", size=8, slots=(Slot(path="w", axis=0, scored=True),))
    for pattern, keep in ((patterns.Weights(), 4), (patterns.NofM(4), 2), (patterns.WholeUnits((group,)), {"w": 4})):
        kept = pattern.select(scores, keep, {"w": jnp.ones(8, bool)}, ties)
        assert kept["w"].tolist() == [False, True, False, True, False, False, True, True]


# --------------------------------------------------------------------------------------------------- entries and counts


@pytest.mark.parametrize("how", ["sum", "l1", "l2", "sum_square"])
def test_entries_equal_loops(how):
    for name in ("weights", "channels", "channels, global", "blocks", "units"):
        got = PATTERNS[name].entries(jax.tree.map(jnp.asarray, VALUES), PRUNABLE, how)
        for k, x in expected_entries(name, VALUES, how).items():
            np.testing.assert_allclose(np.reshape(got[k], x.shape), x, rtol=1e-5, atol=1e-6)
            assert np.ptp(x) > 0


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.floats(0.0, 0.99),
    st.integers(1, 3),
)
def test_counts_are_exact(halves, sparsity, block):
    shapes = {f"p{i}": (block * a, 2 * b) for i, (a, b) in enumerate(halves)}
    params = {**{k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}, "z": np.ones(5)}
    prunable = {k: k != "z" for k in params}
    size = {k: math.prod(s) for k, s in shapes.items()}
    blocks = {k: n // (2 * block) for k, n in size.items()}
    columns = {k: s[1] for k, s in shapes.items()}

    def counts(pattern):
        return pattern.counts(params, prunable, sparsity)

    def each(sizes):
        return {**{k: count(n, sparsity) for k, n in sizes.items()}, "z": 0}

    assert counts(patterns.Weights()) == count(sum(size.values()), sparsity)
    assert counts(patterns.Weights("uniform")) == each(size)
    assert sum(counts(patterns.Weights("erk")).values()) == count(sum(size.values()), sparsity)
    assert counts(patterns.Channels()) == each(columns)
    assert counts(patterns.Channels(allocation="global")) == count(sum(columns.values()), sparsity)
    assert counts(patterns.Blocks((block, 2))) == each(blocks)
    assert counts(patterns.Blocks((block, 2), "global")) == count(sum(blocks.values()), sparsity)
    assert counts(patterns.NofM(2, axis=1)) == count(2, sparsity)
    groups = tuple(Group(name=k, size=s[1], slots=(Slot(path=k, axis=1, scored=True),)) for k, s in shapes.items())
    floored = {k: max(min(2, n), count(n, sparsity)) for k, n in columns.items()}
    assert counts(patterns.WholeUnits(groups, min_units=2)) == floored


def test_erk_gives_the_small_kernel_more():
    keep = patterns.Weights("erk").counts({"a": np.ones((8, 8)), "b": np.ones((40, 40))}, {"a": True, "b": True}, 0.9)
    assert keep == erk({"a": (8, 8), "b": (40, 40)}, 0.9)
    assert keep["a"] / 64 > 3 * keep["b"] / 1600


# --------------------------------------------------------------------------------- the same as the selectors of `prune`


def test_blocks_and_runs_are_those_of_prune():
    params, chosen = {"w": jnp.asarray(VALUES["a"])}, {"w": True}
    blocks, run = patterns.Blocks((2, 2)), patterns.NofM(4, axis=1)
    kept = blocks.select(blocks.entries(params, chosen, "l1"), {"w": 5}, blocks.whole(params, chosen))
    direct = prune.by_block({"w": jnp.abs(params["w"])}, 5, block=(2, 2))
    np.testing.assert_array_equal(blocks.masks(kept, params, chosen)["w"], direct["w"])
    kept = run.select(run.entries(params, chosen), 3, run.whole(params, chosen))
    np.testing.assert_array_equal(kept["w"], prune.n_of_m(jnp.abs(params["w"]), 3, 4, axis=1))
    assert (direct["w"].sum(), kept["w"].sum()) == (20, 48)


def test_n_of_m_compiles_once_for_all_counts():
    x = jnp.asarray(VALUES["b"])
    every = [prune.n_of_m(x, n, 4, axis=1) for n in range(5)]
    compiled = prune._runs._cache_size()
    for n in range(5):
        np.testing.assert_array_equal(every[n], runs(VALUES["b"], n, np.ones((4, 8), bool)))
        np.testing.assert_array_equal(prune.n_of_m(x, jnp.int32(n), 4, axis=1), every[n])
    assert prune._runs._cache_size() <= compiled + 1  # a Python number and an array are two signatures at most
    traced = jax.jit(lambda n: prune.n_of_m(x, n, 4, axis=1))
    assert [int(traced(n).sum()) for n in range(5)] == [0, 8, 16, 24, 32]
    assert traced._cache_size() == 1
    some = jax.vmap(lambda n: prune.n_of_m(x, n, 4, axis=1))(jnp.arange(5))
    np.testing.assert_array_equal(some, every)
    for n in (5, -1):
        with pytest.raises(ValueError, match=f"{n} of 4 is impossible"):
            prune.n_of_m(x, n, 4, axis=1)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patterns.Weights("even"), "unknown allocation 'even'; choose one of"),
        (lambda: patterns.Channels(allocation="erk"), "unknown allocation 'erk'; choose one of"),
        (lambda: patterns.Blocks(()), r"block is \(\); give its lengths"),
        (lambda: patterns.Blocks((0, 2)), r"block is \(0, 2\)"),
        (lambda: patterns.NofM(1), "m is 1; a run has at least 2 entries"),
        (lambda: patterns.WholeUnits(()), "no groups to prune units of"),
        (lambda: patterns.Channels(axis=2).counts(VALUES, PRUNABLE, 0.5), "channels lie along axis 2, but"),
        (
            lambda: patterns.Blocks((3, 2)).counts(VALUES, PRUNABLE, 0.5),
            r"blocks \(3, 2\) do not divide .* \(2, 8, 4\)",
        ),
        (lambda: patterns.Blocks((2, 2, 2)).whole(VALUES, PRUNABLE), r"do not divide .* \(4, 8\)"),
        (
            lambda: patterns.NofM(4, axis=0).counts(VALUES, PRUNABLE, 0.5),
            "runs of 4 do not divide axis 0 of 'a', shape",
        ),
        (lambda: patterns.NofM(4, axis=2).counts(VALUES, PRUNABLE, 0.5), "do not divide axis 2 of 'b', shape"),
        (lambda: patterns.Weights().counts(VALUES, PRUNABLE, 1.0), r"sparsity is 1.0, but must lie in \[0, 1\)"),
        (lambda: patterns.Weights().select({"w": jnp.ones(3)}, 4, {"w": jnp.ones(3, bool)}), "keep is 4.* 3 entries"),
    ],
)
def test_what_is_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
