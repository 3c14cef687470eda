"""Token mixers and transformers: separate and fused projections, windows, embeddings, causal with a tied head."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.cases import (
    Builders,
    Case,
    attend,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    layer_norm,
    merge_heads,
    norm_shapes,
    normal,
    tokens,
    unit,
    why,
)

IMAGE = (2, 8, 8, 3)


def attention_shapes(width, heads, size, value, *, memory=None, kv_heads=None):
    """Separate projections, heads as an axis."""
    memory, kv_heads = memory or width, kv_heads or heads
    return {
        "q": dense_shapes(width, heads, size),
        "k": dense_shapes(memory, kv_heads, size),
        "v": dense_shapes(memory, kv_heads, value),
        "o": {"kernel": (heads, value, width), "bias": (width,)},
    }


def _attention(p, x, **how):
    return merge_heads(p["o"], attend(dense(p["q"], x), dense(p["k"], x), dense(p["v"], x), **how))


def mlp(p, x):
    return dense(p["fc2"], jax.nn.gelu(dense(p["fc1"], x)))


def _block_shapes(width, heads, size, value, hidden):
    return {
        "ln1": norm_shapes(width),
        **attention_shapes(width, heads, size, value),
        "ln2": norm_shapes(width),
        "fc1": dense_shapes(width, hidden),
        "fc2": dense_shapes(hidden, width),
    }


def _block(p, x, **how):
    x = x + _attention(p, layer_norm(p["ln1"], x), **how)
    return x + mlp(p, layer_norm(p["ln2"], x))


def _width(at=""):
    """Where the width of the residual stream lies in a block."""
    return f"{at}ln1,ln2/scale,bias:0 {at}q,k,v,fc1/kernel:0 {at}o/kernel:2 {at}fc2/kernel:1 {at}o,fc2/bias:0"


def inside(heads, size, value, hidden, at=""):
    """The groups inside a block."""
    return (
        unit(heads, f"{at}q,k,v/kernel:1 {at}q,k,v/bias:0 {at}o/kernel:0", kind="head"),
        unit(size, "", makes=f"{at}q,k/kernel:2 {at}q,k/bias:1", kind="qk"),
        unit(value, f"{at}o/kernel:1", makes=f"{at}v/kernel:2 {at}v/bias:1", kind="value"),
        unit(hidden, f"{at}fc1/kernel:1 {at}fc1/bias:0 {at}fc2/kernel:0", kind="neuron", name=f"{at}fc1"),
    )


def _mixer(bias: bool) -> Case:
    """Four tokens mixed by a layer across them, then channels."""
    shapes = {
        "patch": conv_shapes(4, 3, 10),
        "ln1": norm_shapes(10),
        "token1": dense_shapes(4, 7),
        "token2": dense_shapes(7, 4),
        "ln2": norm_shapes(10),
        "fc1": dense_shapes(10, 14),
        "fc2": dense_shapes(14, 10),
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 5),
    }
    if not bias:
        del shapes["token1"]["bias"], shapes["token2"]["bias"]

    def mix(p, x):
        y = jax.nn.gelu(x.swapaxes(1, 2) @ p["token1"]["kernel"] + p["token1"].get("bias", 0.0))
        return (y @ p["token2"]["kernel"] + p["token2"].get("bias", 0.0)).swapaxes(1, 2)

    def apply(p, x):
        x = conv(p["patch"], x, stride=4, padding="VALID").reshape(x.shape[0], 4, 10)
        x = x + mix(p, layer_norm(p["ln1"], x))
        x = x + mlp(p, layer_norm(p["ln2"], x))
        return dense(p["head"], layer_norm(p["ln"], x).mean(1))

    width = "patch/kernel:3 patch,fc2/bias:0 ln1,ln2,ln/scale,bias:0 fc1,head/kernel:0 fc2/kernel:1"
    token = "token1/kernel:1 token1/bias:0 token2/kernel:0" if bias else "token1/kernel:1 token2/kernel:0"
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(7, token, kind="neuron", name="token1"),
        unit(14, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", kind="neuron", name="fc1"),
        unit(10, width, kind="stage"),
    )


def mixer() -> Case:
    """Without biases a removed channel stays zero for every token, so the width can be cut."""
    return _mixer(bias=False)


def mixer_biased() -> Case:
    """The biases of the token mixer write the same into every removed channel; the next norm averages over them."""
    return _mixer(bias=True)


def vit_separate() -> Case:
    """Two blocks, a class token, learned positions; q, k and v apart with heads as an axis."""
    shapes = {
        "patch": conv_shapes(4, 3, 10),
        "cls": (1, 1, 10),
        "pos": (1, 5, 10),
        "block0": _block_shapes(10, 3, 4, 5, 14),
        "block1": _block_shapes(10, 3, 4, 5, 14),
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 6),
    }

    def apply(p, x):
        x = conv(p["patch"], x, stride=4, padding="VALID").reshape(x.shape[0], 4, -1)
        x = jnp.concatenate([jnp.broadcast_to(p["cls"], (x.shape[0], 1, x.shape[-1])), x], 1) + p["pos"]
        x = _block(p["block1"], _block(p["block0"], x))
        return dense(p["head"], layer_norm(p["ln"], x)[:, 0])

    width = "patch/kernel:3 patch/bias:0 cls:2 pos:2 ln/scale,bias:0 head/kernel:0 "
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(10, width + _width("block0,block1/"), kind="stage"),
        *inside(3, 4, 5, 14, "block0/"),
        *inside(3, 4, 5, 14, "block1/"),
        frozen=why("patch/kernel:2", "input") | why("head/kernel:1 head/bias:0", "output") | why("pos:1", "."),
    )


def _fused(heads: int, size: int, cut_up) -> tuple:
    width = 10
    shapes = {
        "embed": dense_shapes(3, width),
        "ln1": norm_shapes(width),
        "qkv": dense_shapes(width, 3 * heads * size),
        "o": dense_shapes(heads * size, width),
        "ln2": norm_shapes(width),
        "fc1": dense_shapes(width, 14),
        "fc2": dense_shapes(14, width),
        "ln": norm_shapes(width),
        "head": dense_shapes(width, 6),
    }

    def apply(p, x):
        x = dense(p["embed"], x)
        q, k, v = cut_up(dense(p["qkv"], layer_norm(p["ln1"], x)))
        x = x + dense(p["o"], attend(q, k, v).reshape(*x.shape[:2], heads * size))
        x = x + mlp(p, layer_norm(p["ln2"], x))
        return dense(p["head"], layer_norm(p["ln"], x).mean(1))

    always = (
        unit(
            width,
            "embed,o,fc2/kernel:1 embed,o,fc2/bias:0 ln1,ln2,ln/scale,bias:0 qkv,fc1,head/kernel:0",
            kind="stage",
        ),
        unit(14, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", kind="neuron", name="fc1"),
    )
    return apply, shapes, (normal(2, 5, 3),), *always


def vit_fused_reshape() -> Case:
    """One projection read as `[3, heads, dimensions]`: q, k and v share heads and dimensions."""
    heads, size = 3, 4

    def cut_up(x):
        x = x.reshape(*x.shape[:2], 3, heads, size)
        return x[:, :, 0], x[:, :, 1], x[:, :, 2]

    both = "qkv/kernel:1 qkv/bias:0 o/kernel:0"
    return case(*_fused(heads, size, cut_up), unit(heads, both, kind="head"), unit(size, both))


def vit_fused_split() -> Case:
    """One projection split in three: q and k share their dimensions, v has its own."""
    heads, size = 2, 5

    def cut_up(x):
        return [y.reshape(*x.shape[:2], heads, size) for y in jnp.split(x, 3, -1)]

    return case(
        *_fused(heads, size, cut_up),
        unit(heads, "qkv/kernel:1 qkv/bias:0 o/kernel:0", kind="head"),
        unit(size, "qkv/kernel:1 qkv/bias:0", kind="qk"),
        unit(size, "qkv/kernel:1 qkv/bias:0 o/kernel:0", kind="value"),
    )


def swin() -> Case:
    """Attention in shifted 2×2 windows with a table of relative positions; then four pixels merge into one."""
    shapes = {
        "patch": conv_shapes(2, 3, 8),
        **_block_shapes(8, 2, 3, 4, 12),
        "table": (9, 2),
        "norm": norm_shapes(32),
        "merge": dense_shapes(32, 11),
        "head": dense_shapes(11, 5),
    }
    row, col = np.divmod(np.arange(4), 2)
    offsets = (row[:, None] - row + 1) * 3 + col[:, None] - col + 1

    def windows(x):
        b, _, _, c = x.shape
        return x.reshape(b, 2, 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b * 4, 4, c)

    def plane(x):
        c = x.shape[-1]
        return x.reshape(-1, 2, 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, c)

    def apply(p, x):
        x = conv(p["patch"], x, stride=2, padding="VALID")
        bias = p["table"][offsets].transpose(2, 0, 1)
        y = windows(jnp.roll(layer_norm(p["ln1"], x), (-1, -1), (1, 2)))
        x = x + jnp.roll(plane(_attention(p, y, bias=bias)), (1, 1), (1, 2))
        x = x + mlp(p, layer_norm(p["ln2"], x))
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return dense(p["head"], dense(p["merge"], layer_norm(p["norm"], x)).mean((1, 2)))

    heads, *others = inside(2, 3, 4, 12)
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(8, "patch/kernel:3 patch/bias:0 norm/scale,bias:0 merge/kernel:0 " + _width(), kind="stage"),
        unit(heads.size, "q,k,v/kernel:1 q,k,v/bias:0 o/kernel:0 table:1", kind="head"),
        *others,
        unit(11, "merge/kernel:1 merge/bias:0 head/kernel:0", name="merge"),
        frozen=why("table:0", "gather|index|look"),
    )


def bert() -> Case:
    """Three embeddings added, norms after the sums, a pooler on the first token."""
    shapes = {
        "word": (9, 10),
        "position": (5, 10),
        "kind": (2, 10),
        "ln0": norm_shapes(10),
        **_block_shapes(10, 3, 4, 5, 14),
        "pooler": dense_shapes(10, 11),
        "head": dense_shapes(11, 4),
    }

    def apply(p, ids, kinds):
        x = layer_norm(p["ln0"], p["word"][ids] + p["position"] + jnp.take(p["kind"], kinds, axis=0))
        x = layer_norm(p["ln1"], x + _attention(p, x))
        x = layer_norm(p["ln2"], x + mlp(p, x))
        return dense(p["head"], jnp.tanh(dense(p["pooler"], x[:, 0])))

    return case(
        apply,
        shapes,
        (tokens(2, 5, vocabulary=9), tokens(2, 5, vocabulary=2, seed=2)),
        unit(10, "word,position,kind:1 ln0/scale,bias:0 pooler/kernel:0 " + _width(), kind="stage"),
        *inside(3, 4, 5, 14),
        unit(11, "pooler/kernel:1 pooler/bias:0 head/kernel:0", kind="neuron", name="pooler"),
        frozen=why("word:0 kind:0", "gather|index|look") | why("position:0", "."),
    )


def gpt() -> Case:
    """Causal; the token embedding is the head too; positions beyond the input are there but not read."""
    shapes = {
        "embed": (9, 10),
        "position": (7, 10),
        "block0": _block_shapes(10, 3, 4, 5, 14),
        "block1": _block_shapes(10, 2, 3, 6, 13),
        "ln": norm_shapes(10),
    }

    def apply(p, ids):
        n = ids.shape[1]
        mask = jnp.tril(jnp.ones((n, n), bool))
        x = p["embed"][ids] + p["position"][:n]
        for name in ("block0", "block1"):
            x = _block(p[name], x, mask=mask)
        return layer_norm(p["ln"], x) @ p["embed"].T

    return case(
        apply,
        shapes,
        (tokens(2, 5, vocabulary=9),),
        unit(10, "embed,position:1 ln/scale,bias:0 " + _width("block0,block1/"), kind="stage"),
        *inside(3, 4, 5, 14, "block0/"),
        *inside(2, 3, 6, 13, "block1/"),
        frozen=why("embed:0", "gather|index|look|output"),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        mixer,
        mixer_biased,
        vit_separate,
        vit_fused_reshape,
        vit_fused_split,
        swin,
        bert,
        gpt,
    )
}
