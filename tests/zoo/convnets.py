"""Convolutional networks: residual, plain, depthwise, grouped, concatenating, gating, shuffling."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.cases import (
    Builders,
    Case,
    batch_norm,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    layer_norm,
    norm_shapes,
    normal,
    pool,
    stats_shapes,
    unit,
    why,
)

IMAGE = (2, 8, 8, 3)
relu = jax.nn.relu


def _bare(size: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """A convolution without a bias, as before a batch norm."""
    return {"kernel": (size, size, inputs, outputs)}


def resnet_projection() -> Case:
    """Two blocks; the second changes the width through a strided 1×1 convolution."""
    norms = {"norm0": 6, "norm1a": 8, "norm1b": 6, "norm2a": 10, "norm2b": 9, "normp": 9}
    variables = {
        "params": {
            "stem": _bare(3, 3, 6),
            "conv1a": _bare(3, 6, 8),
            "conv1b": _bare(3, 8, 6),
            "conv2a": _bare(3, 6, 10),
            "conv2b": _bare(3, 10, 9),
            "proj": _bare(1, 6, 9),
            "head": dense_shapes(9, 5),
            **{name: norm_shapes(n) for name, n in norms.items()},
        },
        "batch_stats": {name: stats_shapes(n) for name, n in norms.items()},
    }

    def apply(v, x):
        p, s = v["params"], v["batch_stats"]

        def norm(name, y):
            return batch_norm(p[name], s[name], y)

        x = relu(norm("norm0", conv(p["stem"], x)))
        y = relu(norm("norm1a", conv(p["conv1a"], x)))
        x = relu(x + norm("norm1b", conv(p["conv1b"], y)))
        y = relu(norm("norm2a", conv(p["conv2a"], x, stride=2)))
        y = norm("norm2b", conv(p["conv2b"], y))
        x = relu(y + norm("normp", conv(p["proj"], x, stride=2)))
        return dense(p["head"], x.mean((1, 2)))

    every = "scale,bias,mean,var:0"
    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(
            6,
            f"stem,conv1b/kernel:3 norm0,norm1b/{every} conv1a,conv2a,proj/kernel:2",
            kind="stage",
            name="stem",
        ),
        unit(8, f"conv1a/kernel:3 norm1a/{every} conv1b/kernel:2", kind="filter", name="conv1a"),
        unit(10, f"conv2a/kernel:3 norm2a/{every} conv2b/kernel:2", kind="filter", name="conv2a"),
        unit(9, f"conv2b,proj/kernel:3 norm2b,normp/{every} head/kernel:0", kind="stage"),
        frozen=why("stem/kernel:2", "input")
        | why("head/kernel:1 head/bias:0", "output")
        | why("conv1a/kernel:0,1", "."),
    )


def resnet_option_a() -> Case:
    """The shortcut drops pixels and adds channels of zeros on both sides."""
    variables = {
        "stem": conv_shapes(3, 3, 6),
        "conva": conv_shapes(3, 6, 8),
        "convb": conv_shapes(3, 8, 10),
        "head": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = relu(conv(p["stem"], x))
        y = conv(p["convb"], relu(conv(p["conva"], x, stride=2)))
        shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
        return dense(p["head"], relu(y + shortcut).mean((1, 2)))

    added = "convb/kernel:3 convb/bias:0 head/kernel:0"
    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, f"stem/kernel:3 stem/bias:0 conva/kernel:2 {added}"),
        unit(8, "conva/kernel:3 conva/bias:0 convb/kernel:2", kind="filter", name="conva"),
        unit(2, added),
        unit(2, added),
    )


def vgg() -> Case:
    """Every pixel of every channel is a feature of the dense layer."""
    variables = {
        "conv1": conv_shapes(3, 3, 6),
        "conv2": conv_shapes(3, 6, 8),
        "fc1": dense_shapes(32, 10),
        "fc2": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = pool(relu(conv(p["conv1"], x)))
        x = pool(relu(conv(p["conv2"], x)))
        return dense(p["fc2"], relu(dense(p["fc1"], x.reshape(x.shape[0], -1))))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, "conv2/kernel:2", makes="conv1/kernel:3 conv1/bias:0", kind="filter", name="conv1"),
        unit(8, "conv2/kernel:3 conv2/bias:0 fc1/kernel:0", kind="filter", name="conv2"),
        unit(10, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", kind="neuron", name="fc1"),
        partly=why("fc1/kernel:0", "."),
    )


def mobilenet_v2() -> Case:
    """Expand, depthwise, project; one block with and one without a residual."""
    variables = {
        "stem": conv_shapes(3, 3, 6),
        "expand1": conv_shapes(1, 6, 12),
        "depth1": conv_shapes(3, 12, 12, groups=12),
        "project1": conv_shapes(1, 12, 6),
        "expand2": conv_shapes(1, 6, 10),
        "depth2": conv_shapes(3, 10, 20, groups=10),  # two filters a channel
        "project2": conv_shapes(1, 20, 8),
        "top": conv_shapes(1, 8, 11),
        "head": dense_shapes(11, 5),
    }
    relu6 = jax.nn.relu6

    def apply(p, x):
        x = relu6(conv(p["stem"], x, stride=2))
        y = relu6(conv(p["depth1"], relu6(conv(p["expand1"], x)), groups=12))
        x = x + conv(p["project1"], y)
        y = relu6(conv(p["depth2"], relu6(conv(p["expand2"], x)), groups=10, stride=2))
        x = relu6(conv(p["top"], conv(p["project2"], y)))
        return dense(p["head"], x.mean((1, 2)))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, "stem,project1/kernel:3 stem,project1/bias:0 expand1,expand2/kernel:2", kind="stage", name="stem"),
        unit(12, "expand1,depth1/kernel:3 expand1,depth1/bias:0 project1/kernel:2", name="expand1"),
        unit(10, "expand2,depth2/kernel:3 expand2,depth2/bias:0 project2/kernel:2"),
        unit(2, "depth2/kernel:3 depth2/bias:0 project2/kernel:2"),
        unit(8, "project2/kernel:3 project2/bias:0 top/kernel:2", name="project2"),
        unit(11, "top/kernel:3 top/bias:0 head/kernel:0", name="top"),
    )


def resnext() -> Case:
    """A convolution of 3 groups: whole groups can go, and the same channel of every group, before and after."""
    variables = {
        "stem": conv_shapes(3, 3, 8),
        "conv1": conv_shapes(1, 8, 12),
        "conv2": conv_shapes(3, 12, 18, groups=3),
        "conv3": conv_shapes(1, 18, 8),
        "head": dense_shapes(8, 5),
    }

    def apply(p, x):
        x = relu(conv(p["stem"], x))
        y = relu(conv(p["conv2"], relu(conv(p["conv1"], x)), groups=3))
        return dense(p["head"], relu(x + conv(p["conv3"], y)).mean((1, 2)))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(8, "stem,conv3/kernel:3 stem,conv3/bias:0 conv1/kernel:2 head/kernel:0", kind="stage", name="stem"),
        unit(3, "conv1,conv2/kernel:3 conv1,conv2/bias:0 conv3/kernel:2"),
        unit(4, "conv1/kernel:3 conv1/bias:0 conv2/kernel:2"),
        unit(6, "conv2/kernel:3 conv2/bias:0 conv3/kernel:2"),
    )


def squeeze_excite() -> Case:
    """A gate for each channel, computed from the means of all channels."""
    variables = {
        "stem": conv_shapes(3, 3, 8),
        "conv": conv_shapes(3, 8, 10),
        "squeeze": dense_shapes(10, 4),
        "excite": dense_shapes(4, 10),
        "project": conv_shapes(1, 10, 8),
        "head": dense_shapes(8, 5),
    }

    def apply(p, x):
        x = relu(conv(p["stem"], x, stride=2))
        y = relu(conv(p["conv"], x))
        gate = jax.nn.sigmoid(dense(p["excite"], relu(dense(p["squeeze"], y.mean((1, 2))))))
        x = x + conv(p["project"], y * gate[:, None, None])
        return dense(p["head"], x.mean((1, 2)))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(8, "stem,project/kernel:3 stem,project/bias:0 conv/kernel:2 head/kernel:0", kind="stage", name="stem"),
        unit(
            10,
            "squeeze/kernel:0 project/kernel:2",
            makes="conv/kernel:3 excite/kernel:1 conv,excite/bias:0",
        ),
        unit(4, "squeeze/kernel:1 squeeze/bias:0 excite/kernel:0", kind="neuron", name="squeeze"),
    )


def convnext() -> Case:
    """Depthwise convolution, norm over channels, two dense layers, layer scale."""
    variables = {
        "stem": conv_shapes(2, 3, 8),
        "norm0": norm_shapes(8),
        "depth": conv_shapes(3, 8, 8, groups=8),
        "norm1": norm_shapes(8),
        "up": dense_shapes(8, 12),
        "down": dense_shapes(12, 8),
        "gamma": (8,),
        "norm2": norm_shapes(8),
        "head": dense_shapes(8, 5),
    }

    def apply(p, x):
        x = layer_norm(p["norm0"], conv(p["stem"], x, stride=2, padding="VALID"))
        y = layer_norm(p["norm1"], conv(p["depth"], x, groups=8))
        x = x + p["gamma"] * dense(p["down"], jax.nn.gelu(dense(p["up"], y)))
        return dense(p["head"], layer_norm(p["norm2"], x.mean((1, 2))))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(
            8,
            "stem,depth/kernel:3 stem,depth,down/bias:0 norm0,norm1,norm2/scale,bias:0 up,head/kernel:0 "
            "down/kernel:1 gamma:0",
            kind="stage",
        ),
        unit(12, "up/kernel:1 up/bias:0 down/kernel:0", kind="neuron", name="up"),
    )


def group_norm() -> Case:
    """8 channels normalised as 2 × 4: both factors are units."""
    variables = {
        "stem": conv_shapes(3, 3, 8),
        "norm": norm_shapes(8),
        "conv": conv_shapes(3, 8, 7),
        "head": dense_shapes(7, 5),
    }

    def norm(p, x):
        b, h, w, c = x.shape
        y = x.reshape(b, h, w, 2, c // 2)
        mean = y.mean((1, 2, 4), keepdims=True)
        var = jnp.square(y).mean((1, 2, 4), keepdims=True) - jnp.square(mean)
        return ((y - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]

    def apply(p, x):
        x = relu(norm(p["norm"], conv(p["stem"], x)))
        return dense(p["head"], relu(conv(p["conv"], x, stride=2)).mean((1, 2)))

    both = "stem/kernel:3 stem/bias:0 norm/scale,bias:0 conv/kernel:2"
    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(2, both),
        unit(4, both),
        unit(7, "conv/kernel:3 conv/bias:0 head/kernel:0", name="conv"),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        resnet_projection,
        resnet_option_a,
        vgg,
        mobilenet_v2,
        resnext,
        squeeze_excite,
        convnext,
        group_norm,
    )
}
