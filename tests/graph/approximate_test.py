"""Cuts that are approximate because the user allows it, and what is said about what may not be cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvp_jax import compact, graph
from tests.zoo.cases import batch_norm, conv, conv_shapes, dense, dense_shapes, draw, norm_shapes, normal, stats_shapes

TOKENS, WIDTH = 6, 8
TABLE = np.sin(np.arange(TOKENS)[:, None] * np.exp(-np.arange(WIDTH) / 3)).astype(np.float32)
X = normal(4, TOKENS, 5)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def encoder(p, x, table=TABLE):
    """A fixed table of positions, and norms on the stream."""
    h = dense(p["embed"], x) + table
    h = h + dense(p["down"], jax.nn.gelu(dense(p["up"], norm(p["norm1"], h))))
    return dense(p["head"], norm(p["norm2"], h).mean(1))


ENCODER = draw(
    {
        "embed": dense_shapes(5, WIDTH),
        "norm1": norm_shapes(WIDTH),
        "up": dense_shapes(WIDTH, 12),
        "down": dense_shapes(12, WIDTH),
        "norm2": norm_shapes(WIDTH),
        "head": dense_shapes(WIDTH, 3),
    }
)


def after_statistics(v, x):
    """A removed channel holds its running mean, which differs from channel to channel, when it comes to the norm."""
    p, s = v["params"], v["batch_stats"]
    h = (dense(p["embed"], x) - s["mean"]) * lax.rsqrt(s["var"] + 1e-5)
    return dense(p["head"], norm(p["norm"], h))


AFTER_STATISTICS = {
    "params": draw({"embed": dense_shapes(5, WIDTH), "norm": norm_shapes(WIDTH), "head": dense_shapes(WIDTH, 3)}),
    "batch_stats": draw(stats_shapes(WIDTH)),
}


def without_epsilon(p, x):
    w = p["kernel"]
    return jax.nn.relu(dense(p["embed"], x)) @ ((w - w.mean(0)) / jnp.std(w, 0)) @ p["head"]


WITHOUT_EPSILON = draw({"embed": dense_shapes(5, WIDTH), "kernel": (WIDTH, 7), "head": (7, 3)})


def approximate(groups):
    return {g.name: g.approximate for g in groups if g.approximate}


def every_second(groups):
    return {g.name: jnp.arange(g.size) % 2 == 0 for g in groups}


@pytest.mark.parametrize(
    ("apply", "variables", "allow", "want"),
    [
        (encoder, ENCODER, ("norm",), {"embed": ("norm",)}),
        (encoder, ENCODER, ("positions",), {"embed": ("positions",)}),
        (encoder, ENCODER, ("norm", "positions"), {"embed": ("positions",)}),
        (after_statistics, AFTER_STATISTICS, ("norm",), {"embed": ("norm",)}),
        (without_epsilon, WITHOUT_EPSILON, ("kernel_standardisation",), {"kernel": ("kernel_standardisation",)}),
    ],
)
def test_what_is_allowed_frees_what_was_frozen_and_is_marked(apply, variables, allow, want):
    exact = graph.groups(apply, variables, X)
    assert approximate(exact) == {}
    assert not set(want) & {g.name for g in exact}
    found = graph.groups(apply, variables, X, allow=allow)
    assert approximate(found) == want
    assert [g for g in found if not g.approximate] == list(exact)
    seen = compact.verify(apply, variables, found, X, key=jax.random.key(0))
    assert not seen.differences or max(seen.differences) < 1e-5
    assert bool(seen.differences) == bool(exact)
    assert len(seen.approximate) == 5
    assert not max(seen.approximate) < 1e-3  # nan where the masked function divides zero by zero
    assert "as expected" in str(seen)
    assert "report" not in str(seen)


@pytest.mark.parametrize(
    ("apply", "variables"), [(encoder, ENCODER), (after_statistics, AFTER_STATISTICS)], ids=["encoder", "statistics"]
)
def test_other_ways_free_nothing(apply, variables):
    exact = graph.groups(apply, variables, X)
    assert graph.groups(apply, variables, X, allow=("kernel_standardisation",)) == exact


def test_a_norm_is_taken_over_the_kept_units_as_a_norm_of_that_width_takes_it():
    groups = graph.groups(after_statistics, AFTER_STATISTICS, X, allow=("norm",))
    small, slim = compact.slim(after_statistics, AFTER_STATISTICS, groups, every_second(groups), X)
    want = after_statistics(slim, X)  # the same function, written for any width
    assert float(jnp.std(want)) > 0.1
    np.testing.assert_allclose(small(slim, X), want, atol=1e-5)
    masked = after_statistics(compact.mask(AFTER_STATISTICS, groups, every_second(groups)), X)
    assert float(jnp.max(jnp.abs(masked - want))) > 0.1


def test_positions_are_masked_with_the_units():
    groups = graph.groups(encoder, ENCODER, X, allow=("positions",))
    units = every_second(groups)
    small, slim = compact.slim(encoder, ENCODER, groups, units, X)
    table = TABLE * np.asarray(units["embed"])
    want = encoder(compact.mask(ENCODER, groups, units), X, table)
    assert float(jnp.std(want)) > 0.1
    np.testing.assert_allclose(small(slim, X), want, atol=1e-5)
    assert float(jnp.max(jnp.abs(want - encoder(compact.mask(ENCODER, groups, units), X)))) > 1e-2


def test_a_removed_filter_without_deviation_is_not_computed():
    groups = graph.groups(without_epsilon, WITHOUT_EPSILON, X, allow=("kernel_standardisation",))
    units = {g.name: jnp.ones(g.size, bool) for g in groups} | {"kernel": jnp.arange(7) % 2 == 0}
    small, slim = compact.slim(without_epsilon, WITHOUT_EPSILON, groups, units, X)
    np.testing.assert_allclose(small(slim, X), without_epsilon(slim, X), atol=1e-5)
    assert np.isfinite(small(slim, X)).all()
    assert not np.isfinite(without_epsilon(compact.mask(WITHOUT_EPSILON, groups, units), X)).any()


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match=r"allow=\['layer_norm'\] is not known; allowed are \['norm', 'positions'"):
        graph.groups(encoder, ENCODER, X, allow=("layer_norm",))


def reason(explanation, path):
    return next(f.reason for f in explanation.frozen if f.path == path)


def test_reasons_name_the_layer_and_the_remedy():
    told = reason(graph.explain(encoder, ENCODER, X), "embed/bias")
    assert told.startswith("a mean in 'norm1' runs over removed entries that differ")
    assert 'allow=("norm",) takes the mean over the kept ones' in told
    assert 'allow=("positions",)' in told
    told = reason(graph.explain(without_epsilon, WITHOUT_EPSILON, X), "kernel")
    assert told.startswith("div of a value made of parameters that is zero where units are removed")
    assert 'allow=("kernel_standardisation",)' in told


def test_explain_marks_what_is_approximate():
    seen = graph.explain(encoder, ENCODER, X, allow=("positions",))
    assert {r.name: r.approximate for r in seen.rows} == {"embed": ("positions",), "up": ()}
    lines = str(seen).splitlines()
    at = lines.index("approximate: slim is near to masked, not equal")
    assert lines[at + 2].split() == ["embed", "positions"]
    assert "approximate" not in str(graph.explain(encoder, ENCODER, X))


def test_explain_says_how_cuts_multiply():
    def apply(p, x):
        h = jax.nn.relu(jnp.einsum("ni,ihd->nhd", x, p["a"]))
        return jnp.einsum("nhd,hde->ne", h, p["b"])

    seen = graph.explain(apply, {"a": jnp.ones((3, 16, 16)), "b": jnp.ones((16, 16, 2))}, jnp.ones((1, 3)))
    assert [r.size for r in seen.rows] == [16, 16]
    assert seen.left == 0.25
    assert seen.halving == 0.29  # 11 × 11 of 16 × 16 are 47 %, and 0.29 · 16 rounds to 5
    wide = {"a": jnp.ones((3, 16, 16)), "b": jnp.ones((16, 16, 20)), "c": jnp.ones((20, 40)), "d": jnp.ones((40, 1))}
    seen = graph.explain(lambda p, x: jax.nn.relu(apply(p, x) @ p["c"]) @ p["d"], wide, jnp.ones((1, 3)))
    kept = 3 * 64 + 64 * 10 + 10 * 20 + 20
    assert seen.left == pytest.approx(kept / (3 * 256 + 256 * 20 + 800 + 40))
    assert f"half of every group leaves {seen.left:.1%} of the parameters" in str(seen)
    assert f"removing {seen.halving:.0%} of every group leaves half of them" in str(seen)


def test_offsets_of_a_pixel_shuffle_are_no_filters():
    def apply(p, x):
        y = conv(p["up"], x)
        b, h, w, c = y.shape
        y = y.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)
        return dense(p["head"], jax.nn.relu(y).mean((1, 2)))

    p = draw({"up": conv_shapes(3, 3, 16), "head": dense_shapes(4, 2)})
    found = graph.analyse(apply, p, normal(2, 4, 4, 3))
    assert [(g.name, g.kind, g.size) for g in found.groups] == [("up", "filter", 4)]
    assert sum("pixel shuffle" in f.reason for f in found.frozen if f.path == "up/kernel") == 2

    def flat(p, x):
        return dense(p["head"], jax.nn.relu(conv(p["up"], x)).reshape(x.shape[0], -1))

    p = draw({"up": conv_shapes(3, 3, 6), "head": dense_shapes(96, 2)})
    assert [g.size for g in graph.groups(flat, p, normal(2, 4, 4, 3))] == [6]


def test_statistics_of_batches_are_not_means_over_units():
    def apply(v, x):
        return dense(v["params"]["head"], batch_norm(v["params"]["norm"], v["rest"], dense(v["params"]["embed"], x)))

    shapes = {"embed": dense_shapes(5, WIDTH), "norm": norm_shapes(WIDTH), "head": dense_shapes(WIDTH, 3)}
    variables = {"params": draw(shapes), "rest": draw(stats_shapes(WIDTH))}
    (group,) = graph.groups(apply, variables, X, allow=("norm", "positions", "kernel_standardisation"))
    assert group.approximate == ()


def test_a_mean_leaves_out_only_what_may_be_approximate():
    """Heads are cut exactly: removed ones count in the mean as they do in the masked function."""
    table = jnp.asarray([-1.0, 1.0, 0.3, 0.7])

    def centred(p, x, mean=jnp.mean):
        y = jnp.cos(jnp.einsum("bi,ihd->bhd", x, p["heads"])) + table
        return jnp.einsum("bhd,hdo->bo", y - mean(y, axis=(1, 2), keepdims=True), p["out"])

    p = draw({"heads": (5, 6, 4), "out": (6, 4, 3)})
    x = normal(2, 5)
    heads, dims = graph.groups(centred, p, x, allow=("norm",))
    assert (heads.size, heads.approximate, dims.size, dims.approximate) == (6, (), 4, ("norm",))
    units = {heads.name: np.arange(6) < 2, dims.name: np.arange(4) < 3}

    def over_kept(y, **how):
        return jnp.mean(y, where=units[dims.name], **how)

    small, variables = compact.slim(centred, p, (heads, dims), units, x)
    want = centred(compact.mask(p, (heads, dims), units), x, over_kept)
    np.testing.assert_allclose(small(variables, x), want, rtol=1e-5, atol=1e-5)


def test_a_fixed_table_counts_as_masked_where_removed_units_leave_a_number():
    table = jnp.linspace(-1, 2, 8)

    def apply(p, x, table=table):
        return (jnp.cos(x @ p["kernel"]) + table).sum(-1)

    p, x = draw({"kernel": (5, 8)}), normal(2, 5)
    (group,) = graph.groups(apply, p, x, allow=("positions",))
    for kept in (np.arange(8) < 4, np.arange(8) >= 4):
        small, variables = compact.slim(apply, p, (group,), {group.name: kept}, x)
        want = apply(compact.mask(p, (group,), {group.name: kept}), x, table * kept)
        np.testing.assert_allclose(small(variables, x), want, rtol=1e-5)
