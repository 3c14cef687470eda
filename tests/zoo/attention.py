"""Variants of attention and of feed-forward layers: gated, rotary, grouped, crossed, linear, with learned queries."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.cases import (
    Builders,
    Case,
    attend,
    case,
    dense,
    dense_shapes,
    layer_norm,
    merge_heads,
    norm_shapes,
    normal,
    rms_norm,
    unit,
)
from tests.zoo.transformers import attention_shapes, inside, mlp


def glu() -> Case:
    """Gate and value are halves of one projection."""
    shapes = {
        "embed": dense_shapes(3, 10),
        "rms": {"scale": (10,)},
        "up": dense_shapes(10, 14),
        "down": dense_shapes(7, 10),
        "head": dense_shapes(10, 4),
    }

    def apply(p, x):
        x = dense(p["embed"], x)
        a, b = jnp.split(dense(p["up"], rms_norm(p["rms"], x)), 2, -1)
        return dense(p["head"], x + dense(p["down"], jax.nn.silu(a) * b))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(10, "embed,down/kernel:1 embed,down/bias:0 rms/scale:0 up,head/kernel:0", kind="stage"),
        unit(7, "down/kernel:0", makes="up/kernel:1 up/bias:0", kind="neuron", name="up"),
    )


def swiglu() -> Case:
    """Gate and value are layers of their own, without biases."""
    shapes = {
        "embed": dense_shapes(3, 10),
        "rms": {"scale": (10,)},
        "gate": {"kernel": (10, 12)},
        "up": {"kernel": (10, 12)},
        "down": {"kernel": (12, 10)},
        "rms2": {"scale": (10,)},
        "head": dense_shapes(10, 4),
    }

    def apply(p, x):
        x = dense(p["embed"], x)
        y = rms_norm(p["rms"], x)
        x = x + (jax.nn.silu(y @ p["gate"]["kernel"]) * (y @ p["up"]["kernel"])) @ p["down"]["kernel"]
        return dense(p["head"], rms_norm(p["rms2"], x))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(10, "embed,down/kernel:1 embed/bias:0 rms,rms2/scale:0 gate,up,head/kernel:0", kind="stage"),
        unit(12, "gate,up/kernel:1 down/kernel:0", kind="neuron"),
    )


def rotary_grouped_query() -> Case:
    """Six query heads share two key/value heads; positions rotate the halves of each head."""
    heads, shared, half = 6, 2, 4
    shapes = {
        "embed": dense_shapes(3, 10),
        "rms1": {"scale": (10,)},
        **attention_shapes(10, heads, 2 * half, 5, kv_heads=shared),
        "rms2": {"scale": (10,)},
        "head": dense_shapes(10, 4),
    }

    def rotate(x):
        angles = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half) / half)
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def apply(p, x):
        x = dense(p["embed"], x)
        y = rms_norm(p["rms1"], x)
        k = jnp.repeat(rotate(dense(p["k"], y)), heads // shared, 2)
        v = jnp.repeat(dense(p["v"], y), heads // shared, 2)
        x = x + merge_heads(p["o"], attend(rotate(dense(p["q"], y)), k, v))
        return dense(p["head"], rms_norm(p["rms2"], x).mean(1))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(
            10,
            "embed/kernel:1 embed,o/bias:0 rms1,rms2/scale:0 q,k,v,head/kernel:0 o/kernel:2",
            kind="stage",
        ),
        unit(shared, "q,k,v/kernel:1 q,k,v/bias:0 o/kernel:0", kind="kv_head"),
        unit(heads // shared, "q/kernel:1 q/bias:0 o/kernel:0", kind="query_head"),
        unit(half, "q,k/kernel:2 q,k/bias:1", kind="qk"),
        unit(5, "v/kernel:2 v/bias:1 o/kernel:1", kind="value"),
    )


def cross_attention() -> Case:
    """Two inputs of different widths; queries and keys are normalised in each head."""
    shapes = {
        "embed": dense_shapes(3, 10),
        "memory": dense_shapes(4, 9),
        "lnm": norm_shapes(9),
        **attention_shapes(10, 2, 6, 5, memory=9),
        "rmsq": {"scale": (6,)},
        "rmsk": {"scale": (6,)},
        "head": dense_shapes(10, 4),
    }

    def apply(p, x, memory):
        x, y = dense(p["embed"], x), layer_norm(p["lnm"], dense(p["memory"], memory))
        q, k = rms_norm(p["rmsq"], dense(p["q"], x)), rms_norm(p["rmsk"], dense(p["k"], y))
        return dense(p["head"], x + merge_heads(p["o"], attend(q, k, dense(p["v"], y))))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3), normal(2, 6, 4, seed=2)),
        unit(10, "embed/kernel:1 embed,o/bias:0 q,head/kernel:0 o/kernel:2"),
        unit(9, "memory/kernel:1 memory/bias:0 lnm/scale,bias:0 k,v/kernel:0"),
        unit(2, "q,k,v/kernel:1 q,k,v/bias:0 o/kernel:0", kind="head"),
        unit(6, "q,k/kernel:2 q,k/bias:1 rmsq,rmsk/scale:0", kind="qk"),
        unit(5, "v/kernel:2 v/bias:1 o/kernel:1", kind="value"),
    )


def linear_attention() -> Case:
    """Features `elu + 1` are 1 where a dimension is removed: each of them adds 1 to what queries and keys sum over."""
    shapes = {
        "embed": dense_shapes(3, 10),
        **attention_shapes(10, 2, 6, 5),
        "head": dense_shapes(10, 4),
    }

    def apply(p, x):
        x = dense(p["embed"], x)
        q, k = (jax.nn.elu(dense(p[name], x)) + 1.0 for name in "qk")
        v = dense(p["v"], x)
        read = jnp.einsum("bthd,bshd,bshe->bthe", q, k, v)
        weight = jnp.einsum("bthd,bshd->bth", q, k)
        return dense(p["head"], x + merge_heads(p["o"], read / weight[..., None]))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(10, "embed/kernel:1 embed,o/bias:0 q,k,v,head/kernel:0 o/kernel:2"),
        unit(2, "q,k,v/kernel:1 q,k,v/bias:0 o/kernel:0", kind="head"),
        unit(5, "v/kernel:2 v/bias:1 o/kernel:1", kind="value"),
        unit(6, "q,k/kernel:2 q,k/bias:1"),
    )


def perceiver() -> Case:
    """Six learned queries read the input; all of them reach the head, so queries are units as well."""
    shapes = {
        "latents": (6, 8),
        "embed": dense_shapes(3, 9),
        "ln1": norm_shapes(8),
        **attention_shapes(8, 2, 4, 5, memory=9),
        "ln2": norm_shapes(8),
        "fc1": dense_shapes(8, 11),
        "fc2": dense_shapes(11, 8),
        "head": dense_shapes(48, 4),
    }

    def apply(p, x):
        y = dense(p["embed"], x)
        z = jnp.broadcast_to(p["latents"], (x.shape[0], *p["latents"].shape))
        q = dense(p["q"], layer_norm(p["ln1"], z))
        z = z + merge_heads(p["o"], attend(q, dense(p["k"], y), dense(p["v"], y)))
        z = z + mlp(p, layer_norm(p["ln2"], z))
        return dense(p["head"], lax.reshape(z, (x.shape[0], z.shape[1] * z.shape[2])))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(6, "latents:0 head/kernel:0"),
        unit(
            8,
            "latents:1 ln1,ln2/scale,bias:0 q,fc1,head/kernel:0 o/kernel:2 fc2/kernel:1 o,fc2/bias:0",
            kind="stage",
        ),
        unit(9, "embed/kernel:1 embed/bias:0 k,v/kernel:0", name="embed"),
        *inside(2, 4, 5, 11),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        glu,
        swiglu,
        rotary_grouped_query,
        cross_attention,
        linear_attention,
        perceiver,
    )
}
