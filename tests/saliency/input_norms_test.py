"""Norms of what kernels multiply, against NumPy loops over examples, positions and taps."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from mvp_jax import models
from mvp_jax.core import prune, trees
from mvp_jax.saliency import input_norms, weight_scores
from tests import mlp, model_kinds

AXES = {"is_leaf": lambda x: isinstance(x, tuple)}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_norm(got, squares):
    """Compares with sums of squares, which must differ among themselves."""
    squares = np.asarray(squares, np.float64)
    assert np.ptp(squares) > 0.1
    np.testing.assert_allclose(got, np.sqrt(squares), rtol=1e-5)


def test_an_mlp_by_loops():
    variables, x = mlp.variables(), np.asarray(mlp.data(7)["x"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    first = x + p["offset"]
    second = np.tanh(first @ p["one"]["kernel"] + p["one"]["bias"])
    found = input_norms.norms(mlp.mlp().apply, variables, x, prunable=mlp.mlp().prunable)
    for name, data in (("one", first), ("two", second)):
        squares = np.zeros(p[name]["kernel"].shape)
        for (i, o), row in itertools.product(np.ndindex(squares.shape), data):
            squares[i, o] += row[i] ** 2
        assert_norm(found.norm[name]["kernel"], squares)
        assert found.outputs[name]["kernel"] == (1,)
    assert found.norm["head"]["kernel"].tolist() == 1
    assert found.outputs["head"]["kernel"] == ()
    assert jax.tree.structure(found.norm) == jax.tree.structure(variables.params)


def test_wanda_keeps_the_best_of_every_output():
    model, variables, x = mlp.mlp(), mlp.variables(), mlp.data(7)["x"]
    prunable = trees.select(variables.params, model.prunable)
    found = input_norms.norms(model.apply, variables, x, prunable=prunable)
    scores = weight_scores.wanda(variables.params, found.norm)
    keep = jax.tree.map(lambda p: prune.keep_count(p.shape[0], 0.5), variables.params)
    got = prune.by_output(scores, keep, axis=found.outputs, within=prunable)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    hidden = np.tanh((x + p["offset"]) @ p["one"]["kernel"] + p["one"]["bias"])
    for name, data in (("one", x + p["offset"]), ("two", hidden)):
        kernel = p[name]["kernel"]
        expected = np.zeros(kernel.shape, bool)
        for o in range(kernel.shape[1]):
            score = [abs(kernel[i, o]) * math.sqrt(sum(row[i] ** 2 for row in data)) for i in range(len(kernel))]
            expected[np.argsort(score)[len(kernel) - keep[name]["kernel"] :], o] = True
        assert expected.sum() == kernel.shape[1] * keep[name]["kernel"]
        np.testing.assert_array_equal(got[name]["kernel"], expected)
        assert not np.array_equal(expected, prune.by_output(np.abs(p[name]["kernel"]).astype(np.float32), 1, axis=1))


def taps(x, shape, *, stride=1, pad=(0, 0), dilation=1, groups=1):
    """What each entry of an HWIO kernel meets in NHWC images, window by window."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), pad, pad, (0, 0)))
    kh, kw, per_group, filters = shape
    height, width = ((n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[1:3], (kh, kw), strict=True))
    squares = np.zeros(shape)
    for i, j, c, o in np.ndindex(shape):
        channel = o // (filters // groups) * per_group + c
        for row, column in itertools.product(range(height), range(width)):
            squares[i, j, c, o] += (
                x[:, row * stride + i * dilation, column * stride + j * dilation, channel] ** 2
            ).sum()
    return squares


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ({"stride": 2, "pad": (1, 1)}, {"window_strides": (2, 2), "padding": [(1, 1)] * 2}),
        ({"dilation": 2, "pad": (0, 2)}, {"window_strides": (1, 1), "padding": [(0, 2)] * 2, "rhs_dilation": (2, 2)}),
        ({"groups": 2}, {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2}),
        ({"groups": 4}, {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 4}),
    ],
    ids=["strided", "dilated", "grouped", "depthwise"],
)
def test_convolutions_tap_by_tap(how, options):
    x, kernel = draw(0, 2, 6, 5, 4), draw(1, 3, 2, 4 // how.get("groups", 1), 4)

    def apply(p, x):
        return jax.lax.conv_general_dilated(x, p["k"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    found = input_norms.norms(apply, {"k": kernel}, x, prunable=["k"])
    assert_norm(found.norm["k"], taps(x, kernel.shape, **how))
    assert found.outputs == {"k": (3,)}


def test_a_residual_network_in_both_ways_of_convolving():
    found = []
    for conv in ("native", "im2col"):
        model = models.create("resnet8", width=3, image_size=6, channels=2, classes=3, conv=conv)
        variables = model_kinds.randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
        x = model_kinds.batch(model)
        found.append(input_norms.norms(model.apply, variables, x, prunable=model.prunable))
    p, r = variables.params["stem"]["conv"]["kernel"], variables.rest["stem"]["norm"]
    assert_norm(found[0].norm["stem"]["conv"]["kernel"], taps(x, p.shape, pad=(1, 1)))
    # The stream behind the stem, computed by hand: convolution, norm, ReLU.
    padded, h = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros((4, 6, 6, 3))
    for i, j in np.ndindex(3, 3):
        h += padded[:, i : i + 6, j : j + 6] @ np.asarray(p[i, j])
    norm = variables.params["stem"]["norm"]
    h = np.maximum((h - r["mean"]) / np.sqrt(r["var"] + 1e-5) * norm["scale"] + norm["bias"], 0)
    first = variables.params["stages"]["0"]["blocks"]["0"]["conv1"]["kernel"]
    squares = taps(h, first.shape, pad=(1, 1))
    assert_norm(found[0].norm["stages"]["0"]["blocks"]["0"]["conv1"]["kernel"], squares)
    for a, b in zip(jax.tree.leaves(found[0].norm), jax.tree.leaves(found[1].norm), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    kernels = [n for n in jax.tree.leaves(found[0].norm) if n.ndim]
    assert len(kernels) == 7
    assert found[0].outputs == found[1].outputs
    assert set(jax.tree.leaves(found[0].outputs, **AXES)) == {(), (3,)}


def vit_in_numpy(p, x, heads):
    """A layer of a transformer without class token, float64: what each of its kernels multiplies, `[N, T, ...]`."""

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    n, side, patch = len(x), x.shape[1] // p["patch"]["kernel"].shape[0], p["patch"]["kernel"].shape[0]
    tokens = np.zeros((n, side * side, p["patch"]["bias"].size))
    for i, j in np.ndindex(side, side):
        cell = x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        tokens[:, i * side + j] = np.tensordot(cell, p["patch"]["kernel"], 3) + p["patch"]["bias"]
    h = tokens + p["position"]
    layer, a = p["layers"]["0"], p["layers"]["0"]["attention"]
    before = norm(h, layer["norm1"])
    q, k, v = (np.tensordot(before, a[m]["kernel"], 1) + a[m]["bias"] for m in ("query", "key", "value"))
    mixed = np.zeros_like(v)
    for b, head in np.ndindex(n, heads):
        w = np.exp(q[b, :, head] @ k[b, :, head].T * 4**-0.5)
        mixed[b, :, head] = w / w.sum(-1, keepdims=True) @ v[b, :, head]
    h = h + np.tensordot(mixed, a["out"]["kernel"], 2) + a["out"]["bias"]
    again = norm(h, layer["norm2"])
    z = again @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
    gelu = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return {"attention/query": before, "attention/out": mixed, "fc1": again, "fc2": gelu}


def test_a_vision_transformer():
    model, variables = model_kinds.made("vit_mean")
    x = model_kinds.batch(model)
    found = input_norms.norms(model.apply, variables, x, prunable=model.prunable)
    norms, params = trees.flatten(found.norm), trees.flatten(variables.params)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    for name, data in vit_in_numpy(p, np.asarray(x, np.float64), 3).items():
        squares = (data**2).sum((0, 1))
        path = f"layers/0/{name}/kernel"
        outer = (1,) * (params[path].ndim - squares.ndim)
        np.testing.assert_allclose(
            norms[path],
            np.broadcast_to(np.sqrt(squares).reshape(*squares.shape, *outer), params[path].shape),
            rtol=1e-4,
        )
        assert np.ptp(squares) > 0.1
    attention = found.outputs["layers"]["0"]["attention"]
    assert [attention[m]["kernel"] for m in ("query", "key", "value", "out")] == [(1, 2), (1, 2), (1, 2), (2,)]
    for m in ("key", "value"):
        np.testing.assert_array_equal(norms[f"layers/0/attention/{m}/kernel"], norms["layers/0/attention/query/kernel"])


X = draw(2, 4, 6)
COLUMNS = (np.asarray(X, np.float64) ** 2).sum(0)


def jitted(p, x):
    return jax.jit(lambda k, x: x @ jax.jit(jnp.transpose)(k))(p["k"], x)


@pytest.mark.parametrize(
    ("apply", "shape", "squares", "outputs"),
    [
        (lambda p, x: x @ p["k"].T, (3, 6), COLUMNS[None], (0,)),
        (jitted, (3, 6), COLUMNS[None], (0,)),
        (lambda p, x: jax.checkpoint(lambda k: jnp.tanh(x @ k))(p["k"]), (6, 3), COLUMNS[:, None], (1,)),
        (lambda p, x: x @ p["k"][::-1], (6, 3), COLUMNS[::-1, None], (1,)),
        (lambda p, x: x @ p["k"].astype(jnp.bfloat16).astype(jnp.float32)[None], (6, 3), COLUMNS[:, None], (1,)),
        (lambda p, x: x @ p["k"].reshape(6, 6), (2, 3, 2, 3), COLUMNS.reshape(2, 3, 1, 1), (2, 3)),
        (
            lambda p, x: jnp.einsum("nhk,khd->nhd", x.reshape(4, 2, 3), p["k"]),
            (3, 2, 5),
            COLUMNS.reshape(2, 3).T[..., None],
            (1, 2),
        ),
        (
            lambda p, x: jnp.einsum("nab,dbca->ndc", x.reshape(4, 2, 3), p["k"].transpose(1, 2, 3, 0)),
            (2, 5, 3, 1),
            COLUMNS.reshape(2, 1, 3, 1),
            (1,),
        ),
        (lambda p, x: x @ p["k"] + (2 * x) @ p["k"], (6, 3), 5 * COLUMNS[:, None], (1,)),
        (lambda p, x: jax.vmap(lambda row: p["k"] @ row)(x), (3, 6), COLUMNS[None], (0,)),
    ],
    ids=["transposed", "jitted", "remat", "flipped", "cast", "reshaped", "heads", "permuted", "twice", "vmapped"],
)
def test_a_kernel_in_any_layout(apply, shape, squares, outputs):
    params = {"k": draw(3, *shape), "other": draw(4, 2)}
    found = input_norms.norms(apply, params, X, prunable={"k": True, "other": False})
    assert_norm(found.norm["k"], np.broadcast_to(squares, shape))
    assert found.outputs == {"k": outputs, "other": ()}


def test_it_is_compiled_and_mapped_like_any_function():
    traces = []

    def apply(p, x):
        traces.append(1)
        return jnp.tanh(x @ p["a"]) @ p["b"]

    several = {"a": draw(0, 2, 6, 3), "b": draw(1, 2, 3, 2)}

    def norm(p, x):
        return input_norms.norms(apply, p, x, prunable=["a", "b"]).norm

    eager = [norm(p, X) for p in trees.unstack(several)]
    together = jax.jit(jax.vmap(norm, (0, None)))(several, X)
    for e, t in zip(eager, trees.unstack(together), strict=True):
        for a, b in zip(jax.tree.leaves(e), jax.tree.leaves(t), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(eager[0]["b"], eager[1]["b"])


class _Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(3)(x)
        return linen.Dense(2)(jnp.tanh(linen.BatchNorm(use_running_average=True)(x)))


def test_linen_nnx_and_equinox():
    net = _Net()
    variables = net.init(jax.random.key(0), X)
    found = input_norms.norms(net.apply, variables, X, prunable=[".*kernel"])
    assert_norm(found.norm["Dense_0"]["kernel"], np.broadcast_to(COLUMNS[:, None], (6, 3)))
    assert jax.tree.structure(found.norm) == jax.tree.structure(variables["params"])

    graph, state = nnx.split(nnx.Linear(6, 3, rngs=nnx.Rngs(0)))
    found = input_norms.norms(lambda s, x: nnx.merge(graph, s)(x), state, X, prunable=["kernel"])
    assert_norm(trees.flatten(found.norm)["kernel"], np.broadcast_to(COLUMNS[:, None], (6, 3)))

    eqx = pytest.importorskip("equinox")
    conv = eqx.nn.Conv2d(2, 3, (3, 2), key=jax.random.key(0))
    arrays, rest = eqx.partition(conv, eqx.is_array)
    image = draw(5, 2, 2, 5, 5)
    found = input_norms.norms(lambda c, x: jax.vmap(eqx.combine(c, rest))(x), arrays, image, prunable=["weight"])
    expected = taps(image.transpose(0, 2, 3, 1), (3, 2, 2, 3)).transpose(3, 2, 0, 1)
    assert_norm(found.norm.weight, expected)
    assert found.outputs.weight == (0,)


def looped(p, x):
    return jax.lax.scan(lambda h, k: (h @ k, None), x, p["k"])[0]


@pytest.mark.parametrize(
    ("apply", "shape", "message"),
    [
        (lambda p, x: x @ p["k"][:, :2], (6, 3), "'k' is used by slice"),
        (lambda p, x: x @ (2 * p["k"]), (6, 3), "'k' is used by mul"),
        (lambda p, x: x @ p["k"] + p["k"].sum(), (6, 3), "'k' is used by reduce_sum"),
        (lambda p, x: x @ p["k"].astype(jnp.int8).astype(jnp.float32), (6, 3), "'k' is rounded to int8"),
        (lambda p, x: x @ jnp.broadcast_to(p["k"], (4, 6, 3)), (6, 3), "'k' is repeated"),
        (looped, (2, 6, 6), r"'k' is used inside a loop \(scan\)"),
        (lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda k: x @ k, lambda k: x @ k, p["k"]), (6, 3), "inside a branch"),
        (lambda p, x: x @ (p["k"] @ p["other"]), (6, 2), "'k' multiplies another kernel, 'other'"),
        (lambda p, x: x @ p["other"].T, (6, 3), r"\['k'\] never multiply data"),
        (lambda p, x: x, (6, 3), r"\['k', 'other'\] never multiply data"),
        (lambda p, x: x @ p["k"] + x @ p["k"].T, (6, 6), "outputs along"),
        (
            lambda p, x: jnp.einsum("nhk,hkd->nhd", x.reshape(4, 2, 3), p["k"].reshape(2, 3, 5)),
            (6, 5),
            r"inputs and outputs mixed in its axes \[0\]",
        ),
        (lambda p, x: x @ p["k"].reshape(6, 4), (4, 6), "inputs and outputs mixed"),
    ],
)
def test_what_is_no_kernel_is_refused_by_name(apply, shape, message):
    params = {"k": jnp.ones(shape), "other": jnp.ones((2, 6))}
    with pytest.raises(ValueError, match=message):
        input_norms.norms(apply, params, X, prunable=[".*"])


def test_prunable_is_checked():
    params = {"k": jnp.ones((6, 3)), "b": jnp.ones(3)}

    def apply(p, x):
        return x @ p["k"] + p["b"]

    for prunable, message in (
        (["fc"], "match no leaf"),
        ({"k": True}, "differ in structure"),
        ({"k": jnp.ones((6, 3), bool), "b": False}, "Python booleans"),
        ({"k": False, "b": False}, r"no leaf is prunable; the parameters have \['b', 'k'\]"),
        (["b"], "'b' is used by"),
    ):
        with pytest.raises(ValueError, match=message):
            input_norms.norms(apply, params, X, prunable=prunable)
