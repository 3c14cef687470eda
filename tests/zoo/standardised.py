"""Kernels that are standardised or rounded by their own statistics, weights of softmax over units, biases per token."""

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
from tests.zoo.normed_transformers import before, block_shapes, width_of
from tests.zoo.norms import IMAGE, centred, group_norm, norm
from tests.zoo.transformers import inside, mlp

relu = jax.nn.relu


def standard(w: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """A kernel with mean 0 and variance 1 over all axes but the last, for every output by itself."""
    return centred(w, tuple(range(w.ndim - 1)), epsilon)


def standard_conv(p, x: jax.Array, **how) -> jax.Array:
    """A convolution by a standardised kernel."""
    return conv({**p, "kernel": standard(p["kernel"])}, x, **how)


def _kernel(size: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (size, size, inputs, outputs)}


def both_ways(groups: int, width: int, at: str) -> tuple:
    """Whole groups of a group norm, and the same channels of every group."""
    return unit(groups, at), unit(width // groups, at)


# --- Standardised kernels --------------------------------------------------------------------------------------------


def big_transfer() -> Case:
    """Norm and activation before each convolution; all kernels standardised, all norms over groups of channels."""
    shapes = {
        "root": _kernel(3, 3, 8),
        "gn1": norm_shapes(8),
        "conv1": _kernel(1, 8, 6),
        "gn2": norm_shapes(6),
        "conv2": _kernel(3, 6, 8),
        "gn3": norm_shapes(8),
        "proj": _kernel(1, 8, 10),
        "conv3": _kernel(3, 8, 10),
        "gn4": norm_shapes(10),
        "head": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = standard_conv(p["root"], x)
        y = relu(group_norm(p["gn1"], x, 2))
        y = relu(group_norm(p["gn2"], standard_conv(p["conv1"], y), 3))
        x = x + standard_conv(p["conv2"], y)
        y = relu(group_norm(p["gn3"], x, 2))
        x = standard_conv(p["proj"], y, stride=2) + standard_conv(p["conv3"], y, stride=2)
        return dense(p["head"], relu(group_norm(p["gn4"], x, 2)).mean((1, 2)))

    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        *both_ways(2, 8, "root,conv2/kernel:3 gn1,gn3/scale,bias:0 conv1,conv3,proj/kernel:2"),
        *both_ways(3, 6, "conv1/kernel:3 gn2/scale,bias:0 conv2/kernel:2"),
        *both_ways(2, 10, "proj,conv3/kernel:3 gn4/scale,bias:0 head/kernel:0"),
        frozen=why("root/kernel:2", "input"),
    )


def norm_free() -> Case:
    """Scaled kernels with a gain for each output, no norm; a scalar that starts the residual branch."""
    layers = {"stem": (3, 8), "conv1": (8, 6), "conv2": (6, 8), "last": (8, 10)}
    shapes = {n: {**conv_shapes(3, *io), "gamma": io[1:]} for n, io in layers.items()}
    shapes |= {"start": (), "head": dense_shapes(10, 5)}

    def scaled(p, x, **how):
        w = p["kernel"]
        count = w.shape[0] * w.shape[1] * w.shape[2]
        mean, var = w.mean((0, 1, 2)), w.var((0, 1, 2))
        w = (w - mean) * lax.rsqrt(jnp.maximum(var * count, 1e-4)) * p["gamma"]
        return conv({"kernel": w, "bias": p["bias"]}, x, **how)

    def act(x):
        return relu(x) * 1.7139

    def apply(p, x):
        x = scaled(p["stem"], x)
        y = scaled(p["conv2"], act(scaled(p["conv1"], act(x * 0.9))))
        x = x + 0.2 * p["start"] * y
        return dense(p["head"], act(scaled(p["last"], act(x), stride=2)).mean((1, 2)))

    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(8, "stem,conv2/kernel:3 stem,conv2/bias,gamma:0 conv1,last/kernel:2", kind="stage"),
        unit(6, "conv1/kernel:3 conv1/bias,gamma:0 conv2/kernel:2", kind="filter", name="conv1"),
        unit(10, "last/kernel:3 last/bias,gamma:0 head/kernel:0", kind="filter", name="last"),
    )


def hybrid() -> Case:
    """A stem of standardised convolutions, its pixels the tokens of a transformer with two-pass norms."""
    shapes = {
        "root": _kernel(3, 3, 8),
        "gn": norm_shapes(8),
        "conv": _kernel(3, 8, 9),
        "gn2": norm_shapes(9),
        "embed": dense_shapes(9, 10),
        "pos": (4, 10),
        **block_shapes(10, 2, 3, 4, 12),
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 5),
    }

    def apply(p, x):
        x = relu(group_norm(p["gn"], standard_conv(p["root"], x, stride=2), 4))
        x = relu(group_norm(p["gn2"], standard_conv(p["conv"], x, stride=2), 3))
        x = dense(p["embed"], x.reshape(x.shape[0], 4, -1)) + p["pos"]
        return dense(p["head"], norm(p["ln"], before(p, x)).mean(1))

    width = "embed/kernel:1 embed/bias:0 pos:1 ln/scale,bias:0 head/kernel:0 "
    nine = "conv/kernel:3 gn2/scale,bias:0 embed/kernel:0"
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        *both_ways(4, 8, "root/kernel:3 gn/scale,bias:0 conv/kernel:2"),
        *both_ways(3, 9, nine),
        unit(10, width + width_of(), kind="stage"),
        *inside(2, 3, 4, 12),
    )


def standardised_layers() -> Case:
    """Dense kernels standardised over their inputs, with an epsilon as large as the variance."""
    shapes = {"fc1": dense_shapes(5, 9), "fc2": dense_shapes(9, 8), "head": dense_shapes(8, 4)}

    def layer(p, x):
        return x @ standard(p["kernel"], 1.0) + p["bias"]

    def apply(p, x):
        return layer(p["head"], jnp.tanh(layer(p["fc2"], relu(layer(p["fc1"], x)))))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(9, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(8, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


def standardised_after_norm() -> Case:
    """Neither factor is zero at removed units: a norm without a scale, then a standardised kernel."""
    shapes = {"fc1": dense_shapes(5, 9), "fc2": dense_shapes(9, 8), "head": dense_shapes(8, 4)}

    def apply(p, x):
        x = centred(dense(p["fc1"], x)) @ standard(p["fc2"]["kernel"], 0.1) + p["fc2"]["bias"]
        return centred(x, epsilon=0.1) @ standard(p["head"]["kernel"], 0.1) + p["head"]["bias"]

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(9, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(8, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


# --- Rounded kernels -------------------------------------------------------------------------------------------------


def _quantised(axes: tuple[int, ...] | None, safe) -> Case:
    """Eight bits by the largest magnitude, with gradients straight through."""
    shapes = {"conv1": conv_shapes(3, 3, 7), "conv2": conv_shapes(3, 7, 6), "head": dense_shapes(6, 4)}

    def rounded(w):
        step = safe(jnp.abs(w).max(axes if w.ndim == 4 or axes is None else (0,), keepdims=True) / 127)
        return w + lax.stop_gradient(jnp.clip(jnp.round(w / step), -127, 127) * step - w)

    def apply(p, x):
        x = relu(conv({**p["conv1"], "kernel": rounded(p["conv1"]["kernel"])}, x, stride=2))
        x = relu(conv({**p["conv2"], "kernel": rounded(p["conv2"]["kernel"])}, x, stride=2)).mean((1, 2))
        return x @ rounded(p["head"]["kernel"]) + p["head"]["bias"]

    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(7, "conv1/kernel:3 conv1/bias:0 conv2/kernel:2", kind="filter", name="conv1"),
        unit(6, "conv2/kernel:3 conv2/bias:0 head/kernel:0", kind="filter", name="conv2"),
    )


def quantised_by_tensor() -> Case:
    """One step for the whole kernel."""
    return _quantised(None, lambda step: step)


def quantised_by_channel() -> Case:
    """A step for every output; that of a removed one is not zero but tiny."""
    return _quantised((0, 1, 2), lambda step: jnp.maximum(step, 1e-8))


def quantised_by_channel_or_one() -> Case:
    """A step for every output; that of a removed one is 1."""
    return _quantised((0, 1, 2), lambda step: jnp.where(step == 0, 1.0, step))


def scaled_by_largest() -> Case:
    """Activations divided by the largest magnitude of their token."""
    shapes = {"fc1": dense_shapes(5, 9), "fc2": dense_shapes(9, 8), "head": dense_shapes(8, 4)}

    def scaled(x):
        return x / (jnp.abs(x).max(-1, keepdims=True) + 0.1)

    def apply(p, x):
        x = scaled(jnp.tanh(dense(p["fc1"], x)) + 0.3)
        return dense(p["head"], scaled(dense(p["fc2"], x)))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(9, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(8, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


# --- Softmax over units ----------------------------------------------------------------------------------------------


def softmax_layers() -> Case:
    """Hidden units compete by softmax, as in memory layers."""
    shapes = {"fc1": dense_shapes(5, 9), "fc2": dense_shapes(9, 8), "head": dense_shapes(8, 4)}

    def apply(p, x):
        x = dense(p["fc2"], jax.nn.softmax(dense(p["fc1"], x) * 3))
        return dense(p["head"], jax.nn.log_softmax(x))

    return case(
        apply,
        shapes,
        (normal(4, 5),),
        unit(9, "fc1/kernel:1 fc1/bias:0 fc2/kernel:0", name="fc1"),
        unit(8, "fc2/kernel:1 fc2/bias:0 head/kernel:0", name="fc2"),
    )


def squeeze_softmax() -> Case:
    """The weights of channels are a softmax over them; two branches are weighed against each other as well."""
    shapes = {
        "conv1": conv_shapes(3, 3, 8),
        "conv2": conv_shapes(5, 3, 8),
        "squeeze": dense_shapes(8, 7),
        "gate": dense_shapes(7, 8),
        "branch1": dense_shapes(7, 8),
        "branch2": dense_shapes(7, 8),
        "head": dense_shapes(8, 5),
    }

    def apply(p, x):
        a, b = conv(p["conv1"], x), conv(p["conv2"], x)
        s = relu(dense(p["squeeze"], (a + b).mean((1, 2))))
        each = jax.nn.softmax(jnp.stack([dense(p["branch1"], s), dense(p["branch2"], s)]), 0)
        x = each[0][:, None, None] * a + each[1][:, None, None] * b
        return dense(p["head"], relu(x * jax.nn.softmax(dense(p["gate"], s))[:, None, None]).mean((1, 2)))

    wide = (
        "conv1,conv2/kernel:3 conv1,conv2/bias:0 squeeze,head/kernel:0 gate,branch1,branch2/kernel:1 "
        "gate,branch1,branch2/bias:0"
    )
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(8, wide),
        unit(7, "squeeze/kernel:1 squeeze/bias:0 gate,branch1,branch2/kernel:0", name="squeeze"),
    )


# --- Biases per token ------------------------------------------------------------------------------------------------


def mixer_two_pass() -> Case:
    """The token mixer's biases write the same numbers into all removed channels; two blocks."""
    block = {
        "ln1": norm_shapes(10),
        "token1": dense_shapes(4, 7),
        "token2": dense_shapes(7, 4),
        "ln2": norm_shapes(10),
        "fc1": dense_shapes(10, 14),
        "fc2": dense_shapes(14, 10),
    }
    shapes = {
        "patch": conv_shapes(4, 3, 10),
        "block0": block,
        "block1": block,
        "ln": norm_shapes(10),
        "head": dense_shapes(10, 5),
    }

    def run(p, x):
        y = norm(p["ln1"], x).swapaxes(1, 2)
        x = x + dense(p["token2"], jax.nn.gelu(dense(p["token1"], y))).swapaxes(1, 2)
        return x + mlp(p, norm(p["ln2"], x))

    def apply(p, x):
        x = conv(p["patch"], x, stride=4, padding="VALID").reshape(x.shape[0], 4, 10)
        x = run(p["block1"], run(p["block0"], x))
        return dense(p["head"], norm(p["ln"], x).mean(1))

    at = "block0,block1/"
    width = f"{at}ln1,ln2/scale,bias:0 {at}fc1/kernel:0 {at}fc2/kernel:1 {at}fc2/bias:0 "
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(10, width + "patch/kernel:3 patch/bias:0 ln/scale,bias:0 head/kernel:0", kind="stage"),
        *(
            unit(n, f"{b}/{a}1/kernel:1 {b}/{a}1/bias:0 {b}/{a}2/kernel:0", kind="neuron", name=f"{b}/{a}1")
            for b in ("block0", "block1")
            for n, a in ((7, "token"), (14, "fc"))
        ),
    )


CASES: Builders = {
    f.__name__: f
    for f in (
        big_transfer,
        norm_free,
        hybrid,
        standardised_layers,
        standardised_after_norm,
        quantised_by_tensor,
        quantised_by_channel,
        quantised_by_channel_or_one,
        scaled_by_largest,
        softmax_layers,
        squeeze_softmax,
        mixer_two_pass,
    )
}
