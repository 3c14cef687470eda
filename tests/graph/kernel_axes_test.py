"""Axes that products sum over, against what each function says by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from mvp_jax import graph

X = jnp.ones((2, 4))


def ones(*shape):
    return jnp.ones(shape)


def looped(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]


def tied(p, x):
    return (p["w"][jnp.array([1, 0])] + x) @ p["w"].T


def image(p, x, groups=1):
    return jax.lax.conv_general_dilated(
        x.reshape(1, 2, 1, 4), p["w"], (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"), groups
    )


CASES = {
    "dense": (lambda p, x: x @ p["w"], ones(4, 3), (0,)),
    "transposed": (lambda p, x: x @ p["w"].T, ones(3, 4), (1,)),
    "cast and masked": (lambda p, x: x @ jnp.where(p["w"] > 0, p["w"], 0).astype(jnp.bfloat16), ones(4, 3), (0,)),
    "query": (lambda p, x: jnp.einsum("nd,dhk->nhk", x, p["w"]), ones(4, 2, 3), (0,)),
    "output": (lambda p, x: jnp.einsum("nhk,hkd->nd", x.reshape(2, 2, 2), p["w"]), ones(2, 2, 5), (0, 1)),
    "output, flattened": (lambda p, x: x @ p["w"].reshape(4, 5), ones(2, 2, 5), (0, 1)),
    "fused": (lambda p, x: x @ jnp.split(p["w"].reshape(4, 6), 3, 1)[1], ones(4, 3, 2), (0,)),
    "convolution": (image, ones(3, 3, 4, 5), (2,)),
    "depthwise": (lambda p, x: image(p, x, 4), ones(3, 3, 1, 4), (2,)),
    "tied embedding": (tied, ones(6, 4), (1,)),
    "looked up": (lambda p, x: p["w"][jnp.array([1, 0])] + x, ones(6, 4), ()),
    "layers in a scan": (looped, ones(3, 4, 4), (1,)),
    "added": (lambda p, x: (x + p["w"]) @ jnp.ones((4, 3)), ones(2, 4), ()),
    "both ways": (lambda p, x: (x @ p["w"]) @ p["w"].T, ones(4, 3), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_axes_are_those_worked_out_by_hand(name):
    apply, kernel, wanted = CASES[name]
    assert graph.contracted(apply, {"w": kernel}, X) == {"w": wanted}


def test_attention_of_linen_and_nnx():
    x = jnp.ones((1, 3, 8))
    layer = linen.MultiHeadDotProductAttention(num_heads=2)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    definition, state = nnx.split(nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)
    found = [
        graph.contracted(layer.apply, variables, x),
        graph.contracted(lambda p, x: nnx.merge(definition, p)(x), nnx.to_pure_dict(state), x),
    ]
    for axes in found:
        assert {n: axes[n]["kernel"] for n in ("query", "key", "value", "out")} == {
            "query": (0,),
            "key": (0,),
            "value": (0,),
            "out": (0, 1),
        }
        assert axes["out"]["bias"] == ()
