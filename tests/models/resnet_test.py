import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import models
from mvp_jax.models import layers, resnet
from tests import declared
from tests.model_kinds import KINDS, batch, made, randomise


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet8_distiller", 112_452),
        ("resnet20_distiller", 306_884),
        ("resnet32_distiller", 501_316),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    model = models.create(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(np.prod(a.shape, dtype=int) for a in jax.tree.leaves(shapes.params)) == count


def test_streams_follow_the_shortcuts():
    assert [g.name for g in made("option_a")[0].groups] == [f"stages/{s}/blocks/0/conv1" for s in range(3)]
    seen = ("resnet8_distiller", "resnet18", "resnet50")
    names = {n: [(g.name, g.kind) for g in models.create(n).groups if "blocks" not in g.name] for n in seen}
    stages = [(f"stages/{s}", "stage") for s in range(4)]
    assert names["resnet8_distiller"] == [("stem/conv", "filter"), *stages[:3]]
    assert names["resnet18"] == stages  # the stem feeds stage 0 through an identity, so they are one
    assert names["resnet50"] == [("stem/conv", "filter"), *stages]
    wide = {g.name: g.size for g in models.create("resnet50").groups}
    assert (wide["stem/conv"], wide["stages/0"], wide["stages/3/blocks/2/conv2"]) == (64, 256, 512)
    assert len(wide) == 1 + 4 + 2 * 16


def test_stage_group_holds_every_producer_and_consumer():
    groups = {g.name: g for g in resnet.build(resnet.distiller(14)).groups}
    made_by = {s.path for s in groups["stages/1"].slots if s.scored and s.path.endswith("kernel")}
    used_by = {s.path for s in groups["stages/1"].slots if not s.scored and s.collection == "params"}
    path = "stages/1/blocks/{}/{}/kernel"
    assert made_by == {path.format(0, "shortcut/conv"), path.format(0, "conv2"), path.format(1, "conv2")}
    assert used_by == {path.format(1, "conv1")} | {f"stages/2/blocks/0/{n}/kernel" for n in ("conv1", "shortcut/conv")}
    assert [(s.path, s.axis) for s in groups["stages/2"].slots if s.path.startswith("head")] == [("head/kernel", 2)]


def test_resize_changes_the_named_widths_only():
    model = models.create("resnet50", width=4, image_size=32)
    config = model.resize({"stages/1": 9, "stages/3/blocks/1/conv2": 5, "stem/conv": 2}).config
    assert (config.stem_width, config.stage_widths) == (2, (16, 9, 64, 128))
    assert config.inner_widths[3] == ((32, 32), (32, 5), (32, 32))
    assert config.inner_widths[:3] == model.config.inner_widths[:3]
    basic = models.build(KINDS["basic"]).resize({"stages/0": 2}).config
    assert (basic.stem_width, basic.stage_widths) == (2, (2, 7))


@pytest.mark.parametrize(("size", "stride", "p"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (7, 2, 3)])
def test_im2col_is_a_convolution(size, stride, p):
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(size, size, 3, 4))
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    h, w = (9 + 2 * p - size) // stride + 1, (8 + 2 * p - size) // stride + 1
    expected = np.zeros((2, h, w, 4))
    for i in range(h):
        for j in range(w):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.einsum("nabc,abco->no", window, k)
    pad = ((p, p), (p, p))
    x, k = jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32)
    im2col = jax.jit(layers.im2col, static_argnums=(2, 3))
    np.testing.assert_allclose(im2col(x, k, (stride, stride), pad), expected, rtol=1e-4, atol=1e-4)
    for name in ("SAME", "VALID") if size == 3 else ():
        native = jax.lax.conv_general_dilated(x, k, (stride, stride), name, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        np.testing.assert_allclose(im2col(x, k, (stride, stride), name), native, rtol=1e-4, atol=1e-4)


def test_im2col_model_equals_the_native_one_gradients_included():
    config = dataclasses.replace(
        KINDS["basic"], stage_widths=(4,), inner_widths=(((3,),),), strides=(2,), projections=(True,)
    )
    model = resnet.build(config)
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    other = models.build(dataclasses.replace(model.config, conv="im2col"))
    x = batch(model)

    def run(m):
        def loss(params):
            logits, rest = m.apply((params, variables.rest), x, train=True)
            return jnp.sum(jnp.sin(logits)), (logits, rest)

        return jax.jit(jax.grad(loss, has_aux=True))(variables.params)

    native, columns = run(model), run(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), native, columns)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-4 for g in jax.tree.leaves(native[0]))


def test_im2col_refuses_what_it_does_not_cover():
    x, k = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match="ungrouped, undilated"):
        layers.im2col(x, k, (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(ValueError, match="ungrouped, undilated"):
        layers.im2col(x, k, (1, 1), "SAME", rhs_dilation=(2, 2))


def test_spatial_head_sees_cells():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    cells = np.asarray(layers.average_to(jnp.asarray(x), 2))
    np.testing.assert_allclose(cells[:, 1, 0], x[:, 4:, :4].mean((1, 2)), rtol=1e-4, atol=1e-6)


def test_bad_configurations_are_refused():
    good = KINDS["basic"]
    for change, message in [
        ({"strides": (1,)}, "one of each per stage"),
        ({"projections": (True, False)}, "project or pad"),
        ({"pad": True}, "do not mix"),
        ({"stage_widths": (5, 0)}, "at least 1"),
        ({"inner_widths": (((4,), (6,)), ())}, "one or two inner widths"),
        ({"pool": 2, "image_size": 24}, "cannot be averaged"),
        ({"conv": "fft"}, "native or im2col"),
        ({"relu": "never"}, "block|stage"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change)
    with pytest.raises(ValueError, match="padding can only add"):
        dataclasses.replace(KINDS["option_a"], stage_widths=(4, 8, 7))
    with pytest.raises(ValueError, match="not 6n"):
        resnet.cifar(18)
    with pytest.raises(ValueError, match="no ResNet-77"):
        resnet.imagenet(77)


def test_the_stride_of_a_bottleneck_in_its_first_convolution():
    config = dataclasses.replace(KINDS["bottleneck"], inner_widths=(((3, 4),),))
    early = resnet.build(dataclasses.replace(config, downsample_in_bottleneck=True))
    late = resnet.build(config)
    variables = randomise(jax.eval_shape(early.init, jax.random.key(0)), 0)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    rest = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.rest)

    def conv(x, kernel, stride):
        size = kernel.shape[0]
        x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
        side = (x.shape[1] - size) // stride + 1
        out = np.zeros((len(x), side, side, kernel.shape[3]))
        for i in range(side):
            for j in range(side):
                window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                out[:, i, j] = np.einsum("nabc,abco->no", window, kernel)
        return out

    def norm(x, name):
        s, r = (functools.reduce(lambda t, k: t[k], name.split("/"), tree) for tree in (p, rest))
        return (x - r["mean"]) / np.sqrt(r["var"] + 1e-5) * s["scale"] + s["bias"]

    x = np.asarray(batch(early), np.float64)
    x = np.maximum(norm(conv(x, p["stem"]["conv"]["kernel"], 1), "stem/norm"), 0)
    block, at = p["stages"]["0"]["blocks"]["0"], "stages/0/blocks/0"
    y = x
    for j, stride in ((1, 2), (2, 1), (3, 1)):
        y = norm(conv(y, block[f"conv{j}"]["kernel"], stride), f"{at}/norm{j}")
        y = np.maximum(y, 0) if j < 3 else y
    y = np.maximum(y + norm(conv(x, block["shortcut"]["conv"]["kernel"], 2), f"{at}/shortcut/norm"), 0)
    expected = y.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]
    assert np.ptp(expected, axis=0).min() > 1e-2
    got, other = (m.apply(variables, batch(m))[0] for m in (early, late))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(other - got))) > 1e-2
    by_hand = [frozenset(g.slots) for g in declared.groups(late)]
    assert [frozenset(g.slots) for g in early.groups] == [frozenset(g.slots) for g in late.groups] == by_hand
