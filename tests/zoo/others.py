"""Recurrent networks, layers under `scan`, branches, and parameters used in unusual ways."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.cases import (
    Builders,
    Case,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    layer_norm,
    norm_shapes,
    normal,
    rms_norm,
    unit,
    why,
)


def mlp() -> Case:
    """A dict of arrays; both hidden layers have as many units as the input has entries."""
    shapes = {"w1": (8, 8), "b1": (8,), "w2": (8, 8), "b2": (8,), "w3": (8, 3), "b3": (3,)}

    def apply(p, x):
        x = jnp.tanh(x @ p["w1"] + p["b1"])
        return jax.nn.sigmoid(x @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]

    return case(
        apply,
        shapes,
        (normal(4, 8),),
        unit(8, "w1:1 b1:0 w2:0", kind="neuron", name="w1"),
        unit(8, "w2:1 b2:0 w3:0", kind="neuron", name="w2"),
        frozen=why("w1:0", "input") | why("w3:1 b3:0", "output"),
    )


def lstm() -> Case:
    """The state is read back, so both axes of the recurrent kernel belong to it; four gates lie side by side."""
    shapes = {"cell": {"wx": (3, 28), "wh": (7, 28), "bias": (28,)}, "head": dense_shapes(7, 4)}

    def apply(p, x):
        def step(state, x):
            h, c = state
            gates = x @ p["cell"]["wx"] + h @ p["cell"]["wh"] + p["cell"]["bias"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[0], 7))
        (h, _), every = lax.scan(step, (zero, zero), x.swapaxes(0, 1))
        return dense(p["head"], h) + dense(p["head"], every.mean(0))

    cell = unit(7, "cell/wh:0 head/kernel:0", makes="cell/wx,wh:1 cell/bias:0", name="cell")
    return case(apply, shapes, (normal(2, 6, 3),), cell)


def gru_both_ways() -> Case:
    """One cell reads forward, one backward; their states are laid side by side."""
    cell = {"wx": (3, 18), "wh": (6, 18), "bias": (18,), "inner": (6,)}
    shapes = {"ahead": cell, "back": cell, "head": dense_shapes(12, 4)}

    def run(p, x, reverse):
        def step(h, x):
            a, b = x @ p["wx"] + p["bias"], h @ p["wh"]
            z, r = (jax.nn.sigmoid(a[:, i : i + 6] + b[:, i : i + 6]) for i in (0, 6))
            n = jnp.tanh(a[:, 12:] + r * (b[:, 12:] + p["inner"]))
            return (1 - z) * n + z * h, None

        return lax.scan(step, jnp.zeros((x.shape[1], 6)), x, reverse=reverse)[0]

    def apply(p, x):
        x = x.swapaxes(0, 1)
        return dense(p["head"], jnp.concatenate([run(p["ahead"], x, False), run(p["back"], x, True)], -1))

    return case(
        apply,
        shapes,
        (normal(2, 5, 3),),
        *(unit(6, f"{n}/wx:1 {n}/wh:0,1 {n}/bias,inner:0 head/kernel:0", name=n) for n in ("ahead", "back")),
    )


def scan_layers() -> Case:
    """Three layers stacked along a leading axis: cut alike in all of them."""
    shapes = {
        "embed": dense_shapes(5, 10),
        "blocks": {"scale": (3, 10), "w1": (3, 10, 7), "b1": (3, 7), "w2": (3, 7, 10)},
        "rms": {"scale": (10,)},
        "head": dense_shapes(10, 4),
    }

    def apply(p, x):
        def layer(x, q):
            return x + jax.nn.gelu(rms_norm(q, x) @ q["w1"] + q["b1"]) @ q["w2"], None

        x, _ = lax.scan(layer, dense(p["embed"], x), p["blocks"])
        return dense(p["head"], rms_norm(p["rms"], x))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(
            10,
            "embed/kernel:1 embed/bias:0 blocks/scale:1 blocks/w1:1 blocks/w2:2 rms/scale:0 head/kernel:0",
        ),
        unit(7, "blocks/w1:2 blocks/b1:1 blocks/w2:1"),
        frozen=why("blocks/scale,w1,b1,w2:0", "scan"),
    )


def remat() -> Case:
    """Blocks whose activations are computed again in the backward pass."""
    block = {"ln": norm_shapes(10), "fc1": dense_shapes(10, 7), "fc2": dense_shapes(7, 10)}
    shapes = {"embed": dense_shapes(5, 10), "block0": block, "block1": block, "head": dense_shapes(10, 4)}

    @jax.checkpoint
    def run(p, x):
        return x + dense(p["fc2"], jax.nn.relu(dense(p["fc1"], layer_norm(p["ln"], x))))

    def apply(p, x):
        return dense(p["head"], run(p["block1"], run(p["block0"], dense(p["embed"], x))))

    both = "block0,block1"
    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(
            10,
            f"embed/kernel:1 embed/bias:0 {both}/ln/scale,bias:0 {both}/fc1/kernel:0 {both}/fc2/kernel:1 "
            f"{both}/fc2/bias:0 head/kernel:0",
            kind="stage",
        ),
        *(unit(7, f"{n}/fc1/kernel:1 {n}/fc1/bias:0 {n}/fc2/kernel:0", name=f"{n}/fc1") for n in ("block0", "block1")),
    )


def cond() -> Case:
    """One of two branches runs; both must fit."""
    shapes = {
        "embed": dense_shapes(5, 8),
        "yes": {"up": dense_shapes(8, 6), "down": dense_shapes(6, 8)},
        "no": {"up": dense_shapes(8, 7), "down": dense_shapes(7, 8)},
        "head": dense_shapes(8, 3),
    }

    def apply(p, x):
        h = dense(p["embed"], x)
        y = lax.cond(
            x.sum() > 0,
            lambda h: dense(p["yes"]["down"], jax.nn.relu(dense(p["yes"]["up"], h))),
            lambda h: dense(p["no"]["down"], jnp.tanh(dense(p["no"]["up"], h))),
            h,
        )
        return dense(p["head"], h + y)

    x = normal(4, 5)
    return case(
        apply,
        shapes,
        (x,),
        unit(8, "embed/kernel:1 embed/bias:0 yes,no/up/kernel:0 yes,no/down/kernel:1 yes,no/down/bias:0 head/kernel:0"),
        unit(6, "yes/up/kernel:1 yes/up/bias:0 yes/down/kernel:0", name="yes/up"),
        unit(7, "no/up/kernel:1 no/up/bias:0 no/down/kernel:0", name="no/up"),
        more=((-x,),),
    )


def weight_norm() -> Case:
    """Kernels divided by the norm of each output, with something added under the root: zero stays zero."""
    shapes = {
        "fc1": {"v": (5, 7), "gamma": (7,), "bias": (7,)},
        "fc2": {"v": (7, 8), "gamma": (8,), "bias": (8,)},
        "head": dense_shapes(8, 3),
    }

    def layer(p, x):
        kernel = p["v"] * lax.rsqrt(jnp.square(p["v"]).sum(0) + 1e-4) * p["gamma"]
        return jax.nn.relu(x @ kernel + p["bias"])

    def apply(p, x):
        return dense(p["head"], layer(p["fc2"], layer(p["fc1"], x)))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(7, "fc1/v:1 fc1/gamma,bias:0 fc2/v:0", name="fc1"),
        unit(8, "fc2/v:1 fc2/gamma,bias:0 head/kernel:0", name="fc2"),
    )


def mixture() -> Case:
    """A softmax over three experts: the gate of a removed one is not zero, but what it lets through is."""
    shapes = {
        "embed": dense_shapes(5, 8),
        "gate": dense_shapes(8, 3),
        "w1": (3, 8, 6),
        "b1": (3, 6),
        "w2": (3, 6, 8),
        "b2": (3, 8),
        "head": dense_shapes(8, 4),
    }

    def apply(p, x):
        x = dense(p["embed"], x)
        y = jax.nn.relu(jnp.einsum("nd,edf->nef", x, p["w1"]) + p["b1"])
        y = jnp.einsum("nef,efd->ned", y, p["w2"]) + p["b2"]
        return dense(p["head"], jnp.einsum("ne,ned->nd", jax.nn.softmax(dense(p["gate"], x)), y))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(8, "embed/kernel:1 embed/bias:0 gate/kernel:0 w1:1"),
        unit(6, "w1:2 b1:1 w2:1"),
        unit(8, "w2:2 b2:1 head/kernel:0"),
        unit(3, "gate/kernel:1 gate/bias:0 w1,b1,w2,b2:0"),
    )


def ensemble() -> Case:
    """Three members under `vmap`, averaged: a removed member adds zero, and the mean still divides by three."""
    shapes = {"w1": (3, 5, 7), "b1": (3, 7), "w2": (3, 7, 4), "b2": (3, 4)}

    def member(p, x):
        return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def apply(p, x):
        return jax.vmap(member, (0, None))(p, x).mean(0)

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(3, "w1,b1,w2,b2:0"),
        unit(7, "w1:2 b1:1 w2:1", kind="neuron"),
    )


def tied_autoencoder() -> Case:
    """The decoder is the encoder transposed."""
    shapes = {"code": dense_shapes(5, 7), "offset": (5,)}

    def apply(p, x):
        return jax.nn.relu(dense(p["code"], x)) @ p["code"]["kernel"].T + p["offset"]

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(7, "code/kernel:1 code/bias:0", name="code"),
        frozen=why("code/kernel:0", "input|output") | why("offset:0", "output|input"),
    )


def bilinear() -> Case:
    """Products of all pairs of units: one unit is a row and a column of the flattened square."""
    shapes = {"fc": dense_shapes(5, 6), "head": dense_shapes(36, 3)}

    def apply(p, x):
        h = jnp.tanh(dense(p["fc"], x))
        return dense(p["head"], (h[:, :, None] * h[:, None, :]).reshape(x.shape[0], -1))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(6, "fc/kernel:1 fc/bias:0 head/kernel:0", kind="neuron", name="fc"),
    )


def symmetric() -> Case:
    """A square kernel added to its transpose, applied twice: its axes are one."""
    shapes = {"fc": dense_shapes(5, 6), "square": (6, 6), "head": dense_shapes(6, 3)}

    def apply(p, x):
        h, w = jnp.tanh(dense(p["fc"], x)), p["square"] + p["square"].T
        return dense(p["head"], h + jnp.tanh(jnp.tanh(h @ w) @ w))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(6, "fc/kernel:1 fc/bias:0 square:0,1 head/kernel:0"),
    )


def wrapped() -> Case:
    """Calls of compiled functions and of functions with derivative rules of their own."""
    shapes = {"fc1": dense_shapes(5, 7), "fc2": dense_shapes(7, 8), "head": dense_shapes(8, 3)}

    @jax.custom_vjp
    def swish(x):
        return x * jax.nn.sigmoid(x)

    swish.defvjp(lambda x: (swish(x), x), lambda x, g: (g * jnp.cos(x),))

    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda x, t: (cube(x[0]), t[0] * 3 * x[0] ** 2))
    layer = jax.jit(lambda p, x: swish(dense(p, x)))

    def apply(p, x):
        return dense(p["head"], cube(layer(p["fc2"], layer(p["fc1"], x))))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(7, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(8, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


def batch_statistics() -> Case:
    """Normalised by the batch itself, in two passes: each channel on its own."""
    shapes = {
        "conv1": {"kernel": (3, 3, 3, 6)},
        "norm": norm_shapes(6),
        "conv2": conv_shapes(3, 6, 8),
        "head": dense_shapes(8, 4),
    }

    def apply(p, x):
        x = conv(p["conv1"], x)
        x = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        return dense(p["head"], jax.nn.relu(conv(p["conv2"], jax.nn.relu(x), stride=2)).mean((1, 2)))

    return case(
        apply,
        shapes,
        (normal(2, 8, 8, 3),),
        unit(6, "conv1/kernel:3 norm/scale,bias:0 conv2/kernel:2", kind="filter", name="conv1"),
        unit(8, "conv2/kernel:3 conv2/bias:0 head/kernel:0", kind="filter", name="conv2"),
    )


def graph_convolution() -> Case:
    """Nodes exchange features along the edges of a graph that is an input."""
    shapes = {"fc1": dense_shapes(3, 6), "fc2": dense_shapes(6, 7), "head": dense_shapes(7, 4)}

    def apply(p, edges, x):
        spread = edges / edges.sum(1, keepdims=True)
        for name in ("fc1", "fc2"):
            x = jax.nn.relu(spread @ dense(p[name], x))
        return dense(p["head"], x)

    edges = jnp.asarray(np.random.default_rng(3).random((6, 6)) < 0.4, jnp.float32) + jnp.eye(6)
    return case(
        apply,
        shapes,
        (edges, normal(6, 3)),
        unit(6, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(7, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        mlp,
        lstm,
        gru_both_ways,
        scan_layers,
        remat,
        cond,
        weight_norm,
        mixture,
        ensemble,
        tied_autoencoder,
        bilinear,
        symmetric,
        wrapped,
        batch_statistics,
        graph_convolution,
    )
}
