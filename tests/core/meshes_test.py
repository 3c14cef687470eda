"""What small arrays are compared by, on meshes with automatic and with explicit axes; for weights see `grid_test`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvp_jax.core import layouts, masks, patterns, prune, similarity, trees, units, vote

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(32, 8)).astype(np.float32)
OTHERS = RNG.normal(size=(32, 6)).astype(np.float32)
PROBS = np.exp(FEATURES) / np.exp(FEATURES).sum(1, keepdims=True)
LABELS = RNG.integers(0, 4, 32)
WHERE = np.arange(32) < 30
KEEP = FEATURES > 0
GROUPS = (units.Group(name="g", size=8, slots=(units.Slot(path="a", axis=1, scored=True),)),)

CASES = {
    "leep": (lambda p, y, w: similarity.leep(p, y, 8, where=w), PROBS, LABELS, WHERE),
    "nce": (lambda z, y: similarity.nce(z, y, 4, 4), LABELS[::-1].copy(), LABELS),
    "logme": (lambda f, y: similarity.logme(f, y, 4), FEATURES, LABELS),
    "cka": (similarity.cka, FEATURES, OTHERS),
    "prototypes": (lambda f, y: similarity.prototypes(f, y, 4), FEATURES, LABELS),
    "prototype_cosine": (similarity.prototype_cosine, FEATURES, PROBS),
    "rank": (similarity.rank, FEATURES[:, 0].copy()),
    "pack": (lambda m: masks.unpack(masks.pack([m]), [jax.ShapeDtypeStruct(m.shape, bool)]), KEEP),
    "overlap": (lambda m: masks.overlap([m], [m[:, ::-1]]), KEEP),
    "leaf_cosines": (lambda m: masks.leaf_cosines([m], [m[:, ::-1]]), KEEP),
    "apply": (lambda f, m: masks.apply([f], [m]), FEATURES, KEEP),
    "nonzero": (lambda m: masks.nonzero([m]), KEEP),
    "unstack": (lambda f: trees.unstack(trees.stack([[f], [f + 1]])), FEATURES),
    "unstack a sharded axis": (lambda f: trees.unstack([f]), FEATURES),
    "reduce": (lambda f: units.reduce({"a": f}, GROUPS), FEATURES),
    "expand": (lambda f, u: units.expand({"g": u}, GROUPS, {"a": f}), FEATURES, KEEP[0].copy()),
    "support": (lambda m: vote.support([m]), KEEP),
    "count_nonfinite": (lambda f: prune.count_nonfinite([1 / jnp.maximum(f, 0)]), FEATURES),
}


def placed(x, kind, spread):
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(kind,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("d" if spread else None, *[None] * (np.ndim(x) - 1))))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_comparisons_on_a_mesh(name, kind):
    function, *arrays = CASES[name]
    expected = [np.asarray(x) for x in jax.tree.leaves(function(*arrays))]
    assert any(np.unique(x).size > 1 or x.ndim == 0 for x in expected)
    for spread in (False, True):
        for call in (function, jax.jit(function)):
            got = jax.tree.leaves(call(*(placed(x, kind, spread) for x in arrays)))
            assert len(got) == len(expected)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5)


PATTERNS = (
    patterns.Weights(),
    patterns.Weights("erk"),
    patterns.Channels(),
    patterns.Channels(0, "global"),
    patterns.Blocks((4, 4)),
    patterns.Blocks((16, 2), "global"),
    patterns.NofM(4, axis=0),
)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_on_a_mesh(pattern, kind):
    params = {"a": FEATURES, "b": OTHERS[:, :4].copy(), "c": np.ones(3, np.float32)}
    prunable = {"a": True, "b": True, "c": False}
    spread = {k: placed(v, kind, k == "a") for k, v in params.items()}

    def run(params):
        whole = pattern.whole(params, prunable)
        kept = pattern.select(pattern.entries(params, prunable), pattern.counts(params, prunable, 0.5), whole)
        return whole, pattern.masks(kept, params, prunable)

    whole, expected = run(params)
    got_whole, got = run(spread)
    assert 0 < np.mean(expected["a"]) < 1
    for k in params:
        np.testing.assert_array_equal(np.asarray(got[k]), np.asarray(expected[k]))
        np.testing.assert_array_equal(np.asarray(got_whole[k]), np.asarray(whole[k]))
    assert got["a"].shape != params["a"].shape or got["a"].sharding.is_equivalent_to(spread["a"].sharding, 2)


def test_runs_that_do_not_lie_on_whole_devices():
    x = np.arange(24.0).reshape(6, 4)
    spread = placed(x, AxisType.Explicit, True)
    runs = layouts.split(spread, {0: 6})
    assert runs.shape == (1, 6, 4)
    back = layouts.join(runs, {0: 6}, spread)
    assert back.sharding == spread.sharding
    np.testing.assert_array_equal(np.asarray(back), x)
