"""Transformers whose norms subtract the mean first and square afterwards: before, after and between the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.cases import (
    Builders,
    Case,
    attend,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    merge_heads,
    norm_shapes,
    normal,
    unit,
    why,
)
from tests.zoo.norms import IMAGE, centred, norm
from tests.zoo.transformers import attention_shapes, inside, mlp


def block_shapes(width: int, heads: int, size: int, value: int, hidden: int) -> dict:
    """Separate projections with heads as an axis, and two layers."""
    return {
        "ln1": norm_shapes(width),
        **attention_shapes(width, heads, size, value),
        "ln2": norm_shapes(width),
        "fc1": dense_shapes(width, hidden),
        "fc2": dense_shapes(hidden, width),
    }


def attention(p, x, memory=None, **how):
    """Attention to itself, or to a memory."""
    memory = x if memory is None else memory
    return merge_heads(p["o"], attend(dense(p["q"], x), dense(p["k"], memory), dense(p["v"], memory), **how))


def before(p, x, **how):
    """Norms before attention and layers."""
    x = x + attention(p, norm(p["ln1"], x), **how)
    return x + mlp(p, norm(p["ln2"], x))


def width_of(at: str = "") -> str:
    """Where the width of the residual stream lies in a block."""
    return f"{at}ln1,ln2/scale,bias:0 {at}q,k,v,fc1/kernel:0 {at}o/kernel:2 {at}fc2/kernel:1 {at}o,fc2/bias:0 "


def vit_two_pass() -> Case:
    """Norms first; a class token and learned positions."""
    shapes = {
        "patch": conv_shapes(4, 3, 10),
        "cls": (1, 1, 10),
        "pos": (1, 5, 10),
        "block0": block_shapes(10, 3, 4, 5, 14),
        "block1": block_shapes(10, 2, 3, 6, 13),
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 6),
    }

    def apply(p, x):
        x = conv(p["patch"], x, stride=4, padding="VALID").reshape(x.shape[0], 4, -1)
        x = jnp.concatenate([jnp.broadcast_to(p["cls"], (x.shape[0], 1, x.shape[-1])), x], 1) + p["pos"]
        return dense(p["head"], norm(p["ln"], before(p["block1"], before(p["block0"], x)))[:, 0])

    width = "patch/kernel:3 patch/bias:0 cls,pos:2 ln/scale,bias:0 head/kernel:0 "
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(10, width + width_of("block0,block1/"), kind="stage"),
        *inside(3, 4, 5, 14, "block0/"),
        *inside(2, 3, 6, 13, "block1/"),
        frozen=why("pos:1", "."),
    )


def post_norm() -> Case:
    """Norms after the sums, as in the first transformers; the epsilon is 1."""
    shapes = {"embed": dense_shapes(3, 10), **block_shapes(10, 3, 4, 5, 14), "head": dense_shapes(10, 4)}

    def apply(p, x):
        x = dense(p["embed"], x)
        x = norm(p["ln1"], x + attention(p, x), 1.0)
        x = norm(p["ln2"], x + mlp(p, x), 1.0)
        return dense(p["head"], x[:, 0])

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(10, "embed/kernel:1 embed/bias:0 head/kernel:0 " + width_of(), kind="stage"),
        *inside(3, 4, 5, 14),
    )


def scanned_blocks() -> Case:
    """Three blocks stacked along a leading axis, recomputed in the backward pass: the norm lies inside two programs."""
    shapes = {
        "embed": dense_shapes(3, 10),
        "blocks": {"scale": (3, 10), "bias": (3, 10), "w1": (3, 10, 7), "b1": (3, 7), "w2": (3, 7, 10)},
        "head": dense_shapes(10, 4),
    }

    def apply(p, x):
        @jax.checkpoint
        def layer(x, q):
            return x + jax.nn.gelu(norm(q, x) @ q["w1"] + q["b1"]) @ q["w2"], None

        x, _ = lax.scan(layer, dense(p["embed"], x), p["blocks"])
        return dense(p["head"], centred(x)[:, 0])

    width = "embed/kernel:1 embed/bias:0 blocks/scale,bias:1 blocks/w1:1 blocks/w2:2 head/kernel:0"
    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        unit(10, width),
        unit(7, "blocks/w1:2 blocks/b1:1 blocks/w2:1"),
        frozen=why("blocks/scale,w1,b1,w2:0", "scan"),
    )


def swin_merging() -> Case:
    """Four pixels become one: the norm runs over a row in which every unit occurs four times."""
    shapes = {
        "patch": conv_shapes(2, 3, 8),
        "block0": block_shapes(8, 2, 3, 4, 12),
        "norm": norm_shapes(32),
        "merge": {"kernel": (32, 10)},
        "block1": block_shapes(10, 3, 4, 5, 14),
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = conv(p["patch"], x, stride=2, padding="VALID")
        b, h, w, c = x.shape
        x = before(p["block0"], x.reshape(b, h * w, c)).reshape(x.shape)
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        x = norm(p["norm"], x) @ p["merge"]["kernel"]
        x = before(p["block1"], x.reshape(b, h * w // 4, -1))
        return dense(p["head"], norm(p["ln"], x).mean(1))

    first = "patch/kernel:3 patch/bias:0 norm/scale,bias:0 merge/kernel:0 "
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(8, first + width_of("block0/"), kind="stage"),
        unit(10, "merge/kernel:1 ln/scale,bias:0 head/kernel:0 " + width_of("block1/"), kind="stage"),
        *inside(2, 3, 4, 12, "block0/"),
        *inside(3, 4, 5, 14, "block1/"),
    )


def whisper() -> Case:
    """A stem of two convolutions and fixed waves as positions before the encoder; the decoder crosses into it."""
    encoder = block_shapes(8, 2, 3, 4, 11)
    decoder = block_shapes(10, 3, 4, 5, 14) | {
        "cross": attention_shapes(10, 2, 4, 3, memory=8),
        "ln3": norm_shapes(10),
    }
    shapes = {
        "conv1": {"kernel": (3, 3, 7), "bias": (7,)},
        "conv2": {"kernel": (3, 7, 8), "bias": (8,)},
        "encoder": encoder,
        "lne": norm_shapes(8),
        "embed": dense_shapes(4, 10),
        "pos": (5, 10),
        "decoder": decoder,
        "lnd": norm_shapes(10),
        "head": dense_shapes(10, 6),
    }
    angle = np.arange(3)[:, None] / 10.0 ** np.linspace(0, 1, 4)
    waves = np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)

    def line(p, x, stride):
        y = lax.conv_general_dilated(x, p["kernel"], (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.nn.gelu(y + p["bias"])

    def apply(p, x, y):
        x = line(p["conv2"], line(p["conv1"], x, 1), 2) + waves
        x = norm(p["lne"], before(p["encoder"], x))
        y, d = dense(p["embed"], y) + p["pos"], p["decoder"]
        y = y + attention(d, norm(d["ln1"], y), mask=jnp.tril(jnp.ones((5, 5), bool)))
        y = y + attention(d["cross"], norm(d["ln3"], y), x)
        y = y + mlp(d, norm(d["ln2"], y))
        return dense(p["head"], norm(p["lnd"], y))

    width = "embed/kernel:1 embed/bias:0 pos:1 lnd/scale,bias:0 head/kernel:0 " + width_of("decoder/")
    cross = "decoder/cross/q/kernel:0 decoder/cross/o/kernel:2 decoder/cross/o/bias:0 decoder/ln3/scale,bias:0"
    return case(
        apply,
        shapes,
        (normal(2, 6, 3), normal(2, 5, 4, seed=2)),
        unit(7, "conv1/kernel:2 conv1/bias:0 conv2/kernel:1", kind="filter", name="conv1"),
        unit(10, width + cross, kind="stage"),
        *inside(2, 3, 4, 11, "encoder/"),
        *inside(3, 4, 5, 14, "decoder/"),
        *inside(2, 4, 3, 0, "decoder/cross/")[:3],
        frozen=why("conv2/kernel:2 conv2/bias:0 " + width_of("encoder/") + " lne/scale,bias:0", "."),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        vit_two_pass,
        post_norm,
        scanned_blocks,
        swin_merging,
        whisper,
    )
}
