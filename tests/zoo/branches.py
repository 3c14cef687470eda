"""Convolutional networks that concatenate, split, shuffle or grow their channels and pixels."""

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
    norm_shapes,
    normal,
    pool,
    stats_shapes,
    unit,
    why,
)

IMAGE = (2, 8, 8, 3)
relu = jax.nn.relu


def densenet() -> Case:
    """Every layer reads what all earlier layers wrote."""
    norms = {"norm1": 6, "norm2": 10, "normt": 15}
    variables = {
        "params": {
            "stem": conv_shapes(3, 3, 6),
            "layer1": conv_shapes(3, 6, 4),
            "layer2": conv_shapes(3, 10, 5),
            "trans": conv_shapes(1, 15, 9),
            "head": dense_shapes(9, 5),
            **{name: norm_shapes(n) for name, n in norms.items()},
        },
        "batch_stats": {name: stats_shapes(n) for name, n in norms.items()},
    }

    def apply(v, x):
        p, s = v["params"], v["batch_stats"]

        def layer(norm, name, y):
            return conv(p[name], relu(batch_norm(p[norm], s[norm], y)))

        x = conv(p["stem"], x)
        x = jnp.concatenate([x, layer("norm1", "layer1", x)], -1)
        x = jnp.concatenate([x, layer("norm2", "layer2", x)], -1)
        x = pool(layer("normt", "trans", x), how="mean")
        return dense(p["head"], relu(x).mean((1, 2)))

    every = "scale,bias,mean,var:0"
    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(
            6,
            f"stem/kernel:3 stem/bias:0 norm1,norm2,normt/{every} layer1,layer2,trans/kernel:2",
            name="stem",
        ),
        unit(4, f"layer1/kernel:3 layer1/bias:0 norm2,normt/{every} layer2,trans/kernel:2", name="layer1"),
        unit(5, f"layer2/kernel:3 layer2/bias:0 normt/{every} trans/kernel:2", name="layer2"),
        unit(9, "trans/kernel:3 trans/bias:0 head/kernel:0", kind="filter", name="trans"),
    )


def _unet(double) -> Case:
    variables = {
        "enc1": conv_shapes(3, 3, 6),
        "enc2": conv_shapes(3, 6, 8),
        "mid": conv_shapes(3, 8, 10),
        "dec2": conv_shapes(3, 18, 9),
        "dec1": conv_shapes(3, 15, 7),
        "head": conv_shapes(1, 7, 2),
    }

    def apply(p, x):
        one = relu(conv(p["enc1"], x))
        two = relu(conv(p["enc2"], pool(one)))
        x = relu(conv(p["mid"], pool(two)))
        x = relu(conv(p["dec2"], jnp.concatenate([double(x), two], -1)))
        x = relu(conv(p["dec1"], jnp.concatenate([one, double(x)], -1)))
        return conv(p["head"], x)

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, "enc1/kernel:3 enc1/bias:0 enc2,dec1/kernel:2", name="enc1"),
        unit(8, "enc2/kernel:3 enc2/bias:0 mid,dec2/kernel:2", name="enc2"),
        unit(10, "mid/kernel:3 mid/bias:0 dec2/kernel:2", name="mid"),
        unit(9, "dec2/kernel:3 dec2/bias:0 dec1/kernel:2", name="dec2"),
        unit(7, "dec1/kernel:3 dec1/bias:0 head/kernel:2", name="dec1"),
        frozen=why("head/kernel:3 head/bias:0", "output"),
    )


def unet_repeat() -> Case:
    """Skip connections by concatenation; pixels doubled by repetition."""
    return _unet(lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))


def unet_resize() -> Case:
    """The same with pixels looked up."""

    def double(x):
        b, h, w, c = x.shape
        return jax.image.resize(x, (b, 2 * h, 2 * w, c), "nearest")

    return _unet(double)


def unet_bilinear() -> Case:
    """The same with pixels blended."""

    def double(x):
        b, h, w, c = x.shape
        return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")

    return _unet(double)


def _shuffle(x: jax.Array, groups: int) -> jax.Array:
    *plane, c = x.shape
    return x.reshape(*plane, groups, c // groups).swapaxes(-1, -2).reshape(x.shape)


def shuffle() -> Case:
    """The 12 channels are 3 × 4 before and 4 × 3 after a shuffle: rows and columns are units of their own."""
    variables = {
        "conv1": conv_shapes(1, 3, 12),
        "depth": conv_shapes(3, 12, 12, groups=12),
        "conv2": conv_shapes(1, 12, 7),
        "head": dense_shapes(7, 5),
    }

    def apply(p, x):
        x = _shuffle(relu(conv(p["conv1"], x, stride=2)), 3)
        x = relu(conv(p["conv2"], conv(p["depth"], x, groups=12)))
        return dense(p["head"], x.mean((1, 2)))

    both = "conv1,depth/kernel:3 conv1,depth/bias:0 conv2/kernel:2"
    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(3, both),
        unit(4, both),
        unit(7, "conv2/kernel:3 conv2/bias:0 head/kernel:0", name="conv2"),
    )


def shufflenet() -> Case:
    """Grouped convolutions on both sides of a shuffle, and a residual: whatever is found must be exact."""
    variables = {
        "stem": conv_shapes(3, 3, 12),
        "group1": conv_shapes(1, 12, 12, groups=2),
        "depth": conv_shapes(3, 12, 12, groups=12),
        "group2": conv_shapes(1, 12, 12, groups=2),
        "top": conv_shapes(1, 12, 7),
        "head": dense_shapes(7, 5),
    }

    def apply(p, x):
        x = relu(conv(p["stem"], x, stride=2))
        y = _shuffle(relu(conv(p["group1"], x, groups=2)), 2)
        x = relu(x + conv(p["group2"], conv(p["depth"], y, groups=12), groups=2))
        return dense(p["head"], relu(conv(p["top"], x)).mean((1, 2)))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(7, "top/kernel:3 top/bias:0 head/kernel:0", kind="filter", name="top"),
        exactly=False,
        either=why("stem,group1,depth,group2/kernel:3 stem,group1,depth,group2/bias:0", "."),
    )


def inception() -> Case:
    """Branches of different depth side by side, one of them behind a max-pool."""
    variables = {
        "stem": conv_shapes(3, 3, 6),
        "one": conv_shapes(1, 6, 4),
        "reduce": conv_shapes(1, 6, 9),
        "three": conv_shapes(3, 9, 5),
        "pooled": conv_shapes(1, 6, 7),
        "mix": conv_shapes(1, 16, 10),
        "head": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = relu(conv(p["stem"], x, stride=2))
        branches = [
            conv(p["one"], x),
            conv(p["three"], relu(conv(p["reduce"], x))),
            conv(p["pooled"], pool(x, 3, stride=1)),
        ]
        x = relu(conv(p["mix"], relu(jnp.concatenate(branches, -1))))
        return dense(p["head"], pool(x, how="mean").mean((1, 2)))

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, "stem/kernel:3 stem/bias:0 one,reduce,pooled/kernel:2", name="stem"),
        unit(4, "one/kernel:3 one/bias:0 mix/kernel:2", name="one"),
        unit(9, "reduce/kernel:3 reduce/bias:0 three/kernel:2", name="reduce"),
        unit(5, "three/kernel:3 three/bias:0 mix/kernel:2", name="three"),
        unit(7, "pooled/kernel:3 pooled/bias:0 mix/kernel:2", name="pooled"),
        unit(10, "mix/kernel:3 mix/bias:0 head/kernel:0", name="mix"),
    )


def autoencoder() -> Case:
    """A transposed convolution back to the image."""
    variables = {
        "enc": conv_shapes(3, 3, 6),
        "mid": conv_shapes(3, 6, 8),
        "dec": conv_shapes(3, 8, 3),
    }

    def apply(p, x):
        x = relu(conv(p["mid"], relu(conv(p["enc"], x, stride=2))))
        y = lax.conv_transpose(x, p["dec"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + p["dec"]["bias"]

    return case(
        apply,
        variables,
        (normal(*IMAGE),),
        unit(6, "enc/kernel:3 enc/bias:0 mid/kernel:2", name="enc"),
        unit(8, "mid/kernel:3 mid/bias:0 dec/kernel:2", name="mid"),
        frozen=why("dec/kernel:3 dec/bias:0", "output"),
    )


def pixel_shuffle() -> Case:
    """Pixels become channels and channels become pixels."""
    shapes = {
        "conv1": conv_shapes(3, 12, 6),
        "conv2": conv_shapes(3, 6, 28),
        "conv3": conv_shapes(1, 7, 3),
    }

    def apply(p, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
        x = conv(p["conv2"], relu(conv(p["conv1"], x)))
        x = x.reshape(b, h // 2, w // 2, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        return conv(p["conv3"], relu(x))

    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(6, "conv1/kernel:3 conv1/bias:0 conv2/kernel:2", name="conv1"),
        unit(7, "conv2/kernel:3 conv2/bias:0 conv3/kernel:2", name="conv2"),
        partly=why("conv2/kernel:3 conv2/bias:0", "."),
    )


def wavenet() -> Case:
    """Dilated convolutions in time, gated by halves of one projection, read through a skip path."""
    variables = {
        "stem": dense_shapes(3, 6),
        "gate": {"kernel": (3, 6, 14), "bias": (14,)},
        "back": dense_shapes(7, 6),
        "skip": dense_shapes(7, 9),
        "head": dense_shapes(9, 4),
        "last": dense_shapes(6, 4),
    }

    def apply(p, x):
        x = dense(p["stem"], x)
        y = lax.conv_general_dilated(
            x, p["gate"]["kernel"], (1,), [(4, 0)], rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        a, b = jnp.split(y + p["gate"]["bias"], 2, -1)
        y = jnp.tanh(a) * jax.nn.sigmoid(b)
        x = x + dense(p["back"], y)
        return dense(p["head"], relu(dense(p["skip"], y))) + dense(p["last"], x)

    return case(
        apply,
        variables,
        (normal(2, 8, 3),),
        unit(7, "gate/kernel:2 gate/bias:0 back,skip/kernel:0", name="gate"),
        unit(9, "skip/kernel:1 skip/bias:0 head/kernel:0", kind="neuron", name="skip"),
        unit(6, "stem,back/kernel:1 stem,back/bias:0 gate/kernel:1 last/kernel:0"),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        densenet,
        unet_repeat,
        unet_resize,
        unet_bilinear,
        shuffle,
        shufflenet,
        inception,
        autoencoder,
        pixel_shuffle,
        wavenet,
    )
}
