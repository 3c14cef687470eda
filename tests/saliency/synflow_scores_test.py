"""SynFlow against sums over paths, and what it refuses."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import models, saliency
from mvp_jax.core import masks, prune, schedules, trees
from tests import model_kinds


def chain(params, x):
    for i in range(len(params)):
        x = x @ params[str(i)]["kernel"] + params[str(i)]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def chain_case(widths=(3, 4, 5, 2), seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(widths))
    return {
        str(i): {
            "kernel": jnp.asarray(scale * rng.normal(size=p), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=p[1]), jnp.float32),
        }
        for i, p in enumerate(pairs)
    }


def flow_by_paths(kernels):
    """Every weight's share of all paths from input to output: the product of magnitudes along each, path by path."""
    scores = [np.zeros(k.shape) for k in kernels]
    widths = [kernels[0].shape[0], *(k.shape[1] for k in kernels)]
    for path in itertools.product(*map(range, widths)):
        steps = list(itertools.pairwise(path))
        product = math.prod(abs(k[s]) for k, s in zip(kernels, steps, strict=True))
        for score, s in zip(scores, steps, strict=True):
            score[s] += product
    return scores


KERNELS = [r"\d+/kernel"]


def test_synflow_scores_sum_over_paths():
    params = chain_case()
    expected = flow_by_paths([np.asarray(params[i]["kernel"], np.float64) for i in "012"])
    got = saliency.synflow(chain, params, (3,), prunable=KERNELS)
    for i, e in zip("012", expected, strict=True):
        assert np.ptp(e) > 1
        np.testing.assert_allclose(got[i]["kernel"], e, rtol=1e-5)
        assert got[i]["bias"].shape == ()
        assert float(jnp.sum(got[i]["kernel"])) == pytest.approx(expected[0].sum(), rel=1e-5)


def test_synflow_prunes_round_after_round():
    params = chain_case(seed=2)
    kernels = [np.asarray(params[i]["kernel"], np.float64) for i in "012"]
    n = sum(k.size for k in kernels)
    counts = schedules.counts("geometric", 6, n, 0.7)
    kept = [np.ones(k.shape, bool) for k in kernels]
    for count in counts:
        scores = flow_by_paths([np.where(m, k, 0) for k, m in zip(kernels, kept, strict=True)])
        flat = np.concatenate([np.where(m, s, -1).ravel() for s, m in zip(scores, kept, strict=True)])
        chosen = np.zeros(n, bool)
        chosen[np.argsort(-flat, kind="stable")[:count]] = True
        parts = np.split(chosen, np.cumsum([k.size for k in kernels])[:-1])
        kept = [m & p.reshape(m.shape) for m, p in zip(kept, parts, strict=True)]
    got = saliency.prune_by_synflow(chain, params, (3,), counts, prunable=KERNELS)
    for i, e in zip("012", kept, strict=True):
        np.testing.assert_array_equal(got[i]["kernel"], e)
        assert got[i]["bias"].shape == ()
        assert bool(got[i]["bias"])
    masks.check(got, params)
    once = saliency.prune_by_synflow(chain, params, (3,), counts[-1:], prunable=KERNELS)
    assert any((once[i]["kernel"] != got[i]["kernel"]).any() for i in "012")


def test_what_is_gone_stays_gone():
    # The three weights into the second unit go first, which leaves its way out without flow, but not without a place.
    params = {"0": jnp.array([[1.0, 0.1]] * 3), "1": jnp.ones((2, 1))}
    got = saliency.prune_by_synflow(lambda p, x: x @ p["0"] @ p["1"], params, (3,), [5, 5], prunable=[".*"])
    assert got["0"].tolist() == [[True, False]] * 3
    assert got["1"].tolist() == [[True], [True]]


def test_rescaling_changes_no_order_of_a_chain():
    params = chain_case((4, 6, 5, 3), seed=1)
    plain, scaled = (saliency.synflow(chain, params, (4,), prunable=KERNELS, rescale=r) for r in (False, True))
    ratios = np.concatenate([np.ravel(plain[i]["kernel"] / scaled[i]["kernel"]) for i in "012"])
    assert np.ptp(plain["0"]["kernel"]) > 1
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
    assert abs(ratios[0] - 1) > 0.5


def test_rescaling_saves_a_chain_that_overflows():
    params = chain_case((8,) * 6, seed=2, scale=1e8)
    with pytest.raises(ValueError, match="rescale=True"):
        saliency.prune_by_synflow(chain, params, (8,), [300], prunable=KERNELS)
    counts = schedules.counts("geometric", 20, 5 * 64, 0.9)
    got = saliency.prune_by_synflow(chain, params, (8,), counts, prunable=KERNELS, rescale=True)
    left = [int(got[i]["kernel"].sum()) for i in got]
    assert sum(left) == counts[-1]
    assert min(left) >= 2


def test_a_residual_network_keeps_every_layer_alive():
    model = models.create("resnet8", width=3, image_size=4, channels=2, classes=3)
    variables = model_kinds.randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    prunable = trees.select(variables.params, model.prunable)
    n = sum(p.size for p, c in zip(*map(jax.tree.leaves, (variables.params, prunable)), strict=True) if c)
    counts = schedules.counts("geometric", 20, n, 0.97)
    got = saliency.prune_by_synflow(model.apply, variables, model.input_shape, counts, prunable=prunable)
    masks.check(got, variables.params)
    left = [int(m.sum()) for m, c in zip(jax.tree.leaves(got), jax.tree.leaves(prunable), strict=True) if c]
    assert sum(left) == prune.keep_count(n, 0.97)
    assert min(left) > 0
    assert all(bool(m.all()) for m, c in zip(jax.tree.leaves(got), jax.tree.leaves(prunable), strict=True) if not c)


def test_norms_are_the_identity_and_other_weights_positive():
    rng = np.random.default_rng(0)

    def net(v, x):
        p, r = v["params"], v["batch_stats"]
        h = jax.nn.relu((x @ p["a"] + p["bias"] - r["mean"]) / jnp.sqrt(r["var"]) * p["norm"]["scale"])
        return h @ p["head"], r

    shapes = {"a": (3, 4), "bias": (4,), "norm": {"scale": (4,)}, "head": (4, 2)}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=_is_shape)
    variables = {"params": params, "batch_stats": {"mean": jnp.full(4, 7.0), "var": jnp.full(4, 9.0)}}
    expected = flow_by_paths([np.asarray(params["a"]), np.asarray(params["head"])])[0]
    got = saliency.synflow(net, variables, (3,), prunable=["a"])
    np.testing.assert_allclose(got["a"], expected, rtol=1e-5)
    assert jax.tree.structure(got) == jax.tree.structure(params)

    def neutral(v):
        return {
            "params": v["params"] | {"bias": jnp.zeros(4), "norm": {"scale": jnp.ones(4)}, "head": jnp.ones((4, 2))},
            "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
        }

    expected = flow_by_paths([np.asarray(params["a"]), np.ones((4, 2))])[0]
    got = saliency.synflow(net, variables, (3,), prunable=["a"], neutral=neutral)
    np.testing.assert_allclose(got["a"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="what neutral returns differ in structure"):
        saliency.synflow(net, variables, (3,), prunable=["a"], neutral=lambda v: v["params"])


def _is_shape(x):
    return isinstance(x, tuple)


def test_counts_are_traced_and_members_are_mapped():
    params = chain_case()
    traces = []

    def counted(p, x):
        traces.append(1)
        return chain(p, x)

    def kept(p, counts):
        return saliency.prune_by_synflow(counted, p, (3,), counts, prunable=KERNELS)

    first = kept(params, [30, 20])
    before = len(traces)
    assert int(masks.count(kept(params, [25, 10])) - masks.count(first)) == -10
    assert len(traces) == before
    several = [params, chain_case(seed=5)]
    counts = jnp.array([[30, 20], [25, 10]])
    together = jax.jit(jax.vmap(kept))(trees.stack(several), counts)
    for one, p, c in zip(trees.unstack(together), several, counts, strict=True):
        assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(kept(p, c))))


def attention(softmax):
    def net(p, x):
        q, k, v = (x @ p[name] for name in ("query", "key", "value"))
        return x + softmax(q @ jnp.swapaxes(k, -1, -2)) @ v @ p["out"]

    return net


def attention_case(scale):
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(scale * rng.normal(size=(4, 4)), jnp.float32) for name in ("query", "key", "value", "out")
    }


def layer_norm(p, x):
    h = x @ p["a"]
    h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)
    return h @ p["b"]


@pytest.mark.parametrize(
    ("net", "params", "shape"),
    [
        (attention(jax.nn.softmax), attention_case(0.01), (5, 4)),
        (attention(jax.nn.softmax), attention_case(30.0), (5, 4)),
        (layer_norm, {"a": jnp.eye(3, 4) + 0.1, "b": jnp.eye(4, 2) + 0.2}, (3,)),
        (lambda p, x: jax.nn.gelu(x @ p["a"]) @ p["b"], {"a": jnp.full((3, 4), 0.2), "b": jnp.ones((4, 2))}, (3,)),
        (lambda p, x: x @ p["a"] @ p["a"], {"a": jnp.full((3, 3), 0.2)}, (3,)),
        (lambda p, x: jax.nn.relu(x @ p["a"] - 1.0), {"a": jnp.full((3, 4), 0.1)}, (3,)),
    ],
    ids=["flat softmax", "sharp softmax", "layer norm", "gelu", "tied", "negative inputs"],
)
def test_what_is_not_linear_is_refused(net, params, shape):
    with pytest.raises(ValueError, match=r"(not linear in '|gives 0: some layer)"):
        saliency.prune_by_synflow(net, params, shape, [3], prunable=[".*"])


def test_vision_transformers_are_refused_and_linear_attention_is_not():
    model, variables = model_kinds.made("vit_mean")
    with pytest.raises(ValueError, match=r"not linear in 'layers/0/.*softmax attention"):
        saliency.prune_by_synflow(model.apply, variables, model.input_shape, [9], prunable=model.prunable)
    got = saliency.synflow(attention(lambda w: w), attention_case(0.3), (5, 4), prunable=[".*"])
    assert all(float(leaf.min()) > 0 for leaf in jax.tree.leaves(got))


def test_a_network_without_flow_and_impossible_counts_are_refused():
    params = chain_case()
    silent = trees.replace(params, {"2/kernel": jnp.zeros((5, 2))})
    with pytest.raises(ValueError, match="a fresh head"):
        saliency.synflow(chain, silent, (3,), prunable=KERNELS)
    with pytest.raises(ValueError, match="not finite"):
        saliency.synflow(chain, trees.replace(params, {"2/kernel": jnp.full((5, 2), jnp.nan)}), (3,), prunable=KERNELS)
    for counts, message in (([50], "42 entries"), ([20, 30], "do not come back"), (9, "shape"), ([0.5], "counts")):
        with pytest.raises(ValueError, match=message):
            saliency.prune_by_synflow(chain, params, (3,), counts, prunable=KERNELS)
    with pytest.raises(ValueError, match="match no leaf"):
        saliency.prune_by_synflow(chain, params, (3,), [9], prunable=["fc/.*"])
