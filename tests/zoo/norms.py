"""Networks whose norms subtract the mean first and square afterwards, as most libraries write them.

A removed channel then holds minus the mean, the same number for each, and masking it is removal only if the sum of
squares goes on counting these numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.cases import (
    Builders,
    Case,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    norm_shapes,
    normal,
    unit,
    why,
)

IMAGE = (2, 8, 8, 3)
relu = jax.nn.relu


def centred(x: jax.Array, axes: int | tuple[int, ...] = -1, epsilon: float = 1e-5) -> jax.Array:
    """Mean 0 and variance 1 along some axes; the variance is the mean square of what is left without the mean."""
    x = x - x.mean(axes, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + epsilon)


def norm(p, x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """A layer norm in two passes, with scale and bias."""
    return centred(x, -1, epsilon) * p["scale"] + p["bias"]


def group_norm(p, x: jax.Array, groups: int, epsilon: float = 1e-5) -> jax.Array:
    """Channels last, in consecutive groups, over each group's channels and the plane."""
    y = centred(x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups), (1, 3), epsilon)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


# --- Convolutional ---------------------------------------------------------------------------------------------------


def _convnext_block_shapes(width: int, hidden: int) -> dict:
    return {
        "depth": conv_shapes(3, width, width, groups=width),
        "norm": norm_shapes(width),
        "up": dense_shapes(width, hidden),
        "down": dense_shapes(hidden, width),
        "gamma": (width,),
    }


def _convnext_block(p, x):
    y = norm(p["norm"], conv(p["depth"], x, groups=p["gamma"].shape[0]), 1e-6)
    return x + p["gamma"] * dense(p["down"], jax.nn.gelu(dense(p["up"], y)))


def _convnext_width(at: str) -> str:
    return (
        f"{at}/depth/kernel:3 {at}/depth,down/bias:0 {at}/norm/scale,bias:0 {at}/up/kernel:0 {at}/down/kernel:1 "
        f"{at}/gamma:0 "
    )


def convnext_stages() -> Case:
    """Two stages; a norm and a strided convolution lie between them."""
    shapes = {
        "stem": conv_shapes(2, 3, 6),
        "norm0": norm_shapes(6),
        "block0": _convnext_block_shapes(6, 11),
        "norm1": norm_shapes(6),
        "down": conv_shapes(2, 6, 9),
        "block1": _convnext_block_shapes(9, 13),
        "norm2": norm_shapes(9),
        "head": dense_shapes(9, 5),
    }

    def apply(p, x):
        x = norm(p["norm0"], conv(p["stem"], x, stride=2, padding="VALID"))
        x = norm(p["norm1"], _convnext_block(p["block0"], x))
        x = _convnext_block(p["block1"], conv(p["down"], x, stride=2, padding="VALID"))
        return dense(p["head"], norm(p["norm2"], x.mean((1, 2))))

    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(
            6,
            _convnext_width("block0") + "stem/kernel:3 stem/bias:0 norm0,norm1/scale,bias:0 down/kernel:2",
            kind="stage",
        ),
        unit(9, _convnext_width("block1") + "down/kernel:3 down/bias:0 norm2/scale,bias:0 head/kernel:0", kind="stage"),
        *(
            unit(n, f"{at}/up/kernel:1 {at}/up/bias:0 {at}/down/kernel:0", kind="neuron", name=f"{at}/up")
            for n, at in ((11, "block0"), (13, "block1"))
        ),
        frozen=why("stem/kernel:2", "input") | why("head/kernel:1", "output"),
    )


def _grouped(epsilon: float, shape: tuple[int, ...], apply_norm) -> tuple:
    shapes = {
        "stem": conv_shapes(3, 3, 8),
        "norm": norm_shapes(*shape),
        "conv": conv_shapes(3, 8, 7),
        "head": dense_shapes(7, 5),
    }

    def apply(p, x):
        x = relu(apply_norm(p["norm"], conv(p["stem"], x), epsilon))
        return dense(p["head"], relu(conv(p["conv"], x, stride=2)).mean((1, 2)))

    return apply, shapes, (normal(*IMAGE),), unit(7, "conv/kernel:3 conv/bias:0 head/kernel:0", name="conv")


def group_norm_two_pass() -> Case:
    """Whole groups can go, and the same channels out of every group."""
    both = "stem/kernel:3 stem/bias:0 norm/scale,bias:0 conv/kernel:2"
    frame = _grouped(1e-5, (8,), lambda p, x, e: group_norm(p, x, 2, e))
    return case(*frame, unit(2, both), unit(4, both))


def group_norm_large_epsilon() -> Case:
    """An epsilon as large as the variance: a wrong variance could not hide behind the division."""
    both = "stem/kernel:3 stem/bias:0 norm/scale,bias:0 conv/kernel:2"
    frame = _grouped(1.0, (8,), lambda p, x, e: group_norm(p, x, 4, e))
    return case(*frame, unit(4, both), unit(2, both))


def group_norm_of_one_group() -> Case:
    """One group: every channel and every pixel is normalised together."""
    both = "stem/kernel:3 stem/bias:0 norm/scale,bias:0 conv/kernel:2"
    return case(*_grouped(1e-5, (8,), lambda p, x, e: group_norm(p, x, 1, e)), unit(8, both, kind="filter"))


def instance_norm() -> Case:
    """Each channel by itself."""
    both = "stem/kernel:3 stem/bias:0 norm/scale,bias:0 conv/kernel:2"
    frame = _grouped(1.0, (8,), lambda p, x, e: centred(x, (1, 2), e) * p["scale"] + p["bias"])
    return case(*frame, unit(8, both, kind="filter"))


# --- Plain layers ----------------------------------------------------------------------------------------------------


def _plain(apply_norm, *more: str, scale: bool = False) -> Case:
    """Two dense layers, each normalised without parameters of its own unless there is a scale."""
    shapes = {"fc1": dense_shapes(5, 9), "fc2": dense_shapes(9, 8), "head": dense_shapes(8, 4)}
    if scale:
        shapes["norm"] = norm_shapes(8)

    def apply(p, x):
        x = dense(p["fc2"], relu(apply_norm(p, dense(p["fc1"], x))))
        x = apply_norm(p, x)
        return dense(p["head"], x * p["norm"]["scale"] + p["norm"]["bias"] if scale else x)

    last = "fc2/kernel:1 fc2/bias:0 head/kernel:0" + (" norm/scale,bias:0" if scale else "")
    return case(apply, shapes, (normal(4, 5),), unit(9, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0"), unit(8, last))


def norm_without_scale() -> Case:
    """What the norm leaves of a removed channel meets only zeros of the next kernel."""
    return _plain(lambda p, x: centred(x))


def norm_twice_without_scale() -> Case:
    """The second norm averages over what the first one left of the removed channels."""
    return _plain(lambda p, x: centred(jnp.tanh(centred(x, epsilon=0.1)), epsilon=1.0))


def norm_by_variance() -> Case:
    """`jnp.var` with one degree of freedom less."""
    return _plain(lambda p, x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, ddof=1, keepdims=True) + 1.0))


def norm_by_deviation() -> Case:
    """`jnp.std`, with the epsilon outside of the root, and a scale."""
    return _plain(lambda p, x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 0.5), scale=True)


def norm_by_standardize() -> Case:
    """`jax.nn.standardize`."""
    return _plain(lambda p, x: jax.nn.standardize(x, epsilon=1e-3), scale=True)


def norm_of_gates() -> Case:
    """The deviation over the units is a gate; the units themselves are not normalised."""
    return _plain(lambda p, x: x * jax.nn.sigmoid(jnp.cos(x).std(-1, keepdims=True) + x.var(-1, keepdims=True)))


CASES: Builders = {
    f.__name__: f
    for f in (
        convnext_stages,
        group_norm_two_pass,
        group_norm_large_epsilon,
        group_norm_of_one_group,
        instance_norm,
        norm_without_scale,
        norm_twice_without_scale,
        norm_by_variance,
        norm_by_deviation,
        norm_by_standardize,
        norm_of_gates,
    )
}
